//! Embeddings: tokenises texts, has an encoder read them, and receipts the vectors.
//!
//! All inputs of a request have a vector, or the request is refused; nothing is cut unless the request says so.

use std::sync::Arc;
use std::time::Instant;

use assay_api::{EmbeddingOrder, Refusal};
use assay_core::answer::GenerationCost;
use assay_core::embedding::{
    EmbeddingFormat, EmbeddingInput, EmbeddingRecord, EmbeddingRequest, EmbeddingTranscript, Record,
    pooled_digests,
};
use assay_core::id::Nonce;
use assay_core::receipt::Receipt;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::program::Head;
use assay_engine::semantics::embedding::embedding;
use assay_engine::text::Tokenizer;

use super::{Provider, RETRY_AFTER_S, alone, execution, internal, no_receipt, wrong_task};
use crate::till::Paid;

impl Provider {
    /// Embeds texts; the record is durable when this returns.
    pub(super) async fn embed_texts(&self, order: EmbeddingOrder) -> Result<Arc<EmbeddingRecord>, Refusal> {
        let EmbeddingOrder { request, request_id, caller } = order;
        let started = Instant::now();
        let model = self.model(request.model)?;
        let price = self.price_for(request.audit, &model)?;
        alone(&caller)?;
        request
            .check()
            .map_err(|e| Refusal::Invalid { param: e.param.to_owned(), message: e.to_string() })?;
        let Some(dimensions) = dimensions(model.artifact()) else {
            return Err(wrong_task(&model, "writes text; POST /v1/chat/completions"));
        };
        if request.dimensions.is_some_and(|d| d > dimensions) {
            let message = format!("`dimensions` must be 1 to {dimensions}, what the model makes");
            return Err(Refusal::Invalid { param: "dimensions".into(), message });
        }
        let program = model.artifact().program().program();
        let (context, vocabulary) = (program.context as usize, program.vocabulary);
        let tokenizer = Arc::clone(model.tokenizer());
        let tokenised = tokio::task::spawn_blocking(move || {
            let ids = input_ids(&request, &tokenizer, context, vocabulary);
            (request, ids)
        });
        let (request, input_ids) = tokenised.await.map_err(internal)?;
        let input_ids = input_ids?;
        let count = input_ids.iter().fold(0usize, |sum, ids| sum.saturating_add(ids.len()));
        let ticket = self.admit(&caller, price, u32::try_from(count).unwrap_or(u32::MAX), 0).await?;
        let span = execution("embeddings", &model);
        let pooled =
            model.encode(input_ids.clone()).await.map_err(|_| match model.standing().withdrawn() {
                Some(withdrawn) => no_receipt(&model.artifact().provenance().name, withdrawn),
                None => Refusal::Busy { retry_after_s: RETRY_AFTER_S },
            })?;
        let pooled = pooled.unwrap_or_default();
        let (store, key) = (Arc::clone(&self.store), Arc::clone(&self.key));
        let (threads, kernel) = (self.threads, model.kernel().name());
        let done = tokio::task::spawn_blocking(move || -> Result<EmbeddingRecord, String> {
            let sequence = store.reserve_sequence().map_err(|e| e.to_string())?;
            let asked = request.dimensions.map_or(usize::MAX, |d| d as usize);
            let vectors = pooled.iter().map(|p| embedding(p, asked.min(p.len()))).collect();
            let request_hash = request.hash();
            let transcript = EmbeddingTranscript { request_hash, input_ids, vectors };
            let digests = pooled_digests(pooled.iter().map(Vec::as_slice));
            let paid = Paid::by(ticket.as_ref(), price.map_or(0, |p| p.fee(transcript.tokens(), 0)));
            let receipt = Receipt {
                provider: key.address(),
                sequence: sequence.number(),
                model_root: request.model,
                request_hash,
                transcript_root: transcript.root(),
                digest_root: digests.root(),
                prompt_tokens: transcript.tokens(),
                completion_tokens: 0,
                fee_micro_usd: paid.fee,
                payer_channel: paid.channel,
                client_nonce: Nonce::ZERO,
                epoch: paid.epoch,
            };
            let prefill_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let record = EmbeddingRecord {
                format: EmbeddingFormat::V2,
                receipt: key.sign(receipt, paid.domain).map_err(|e| e.to_string())?,
                request,
                transcript,
                digests,
                generation: Some(GenerationCost {
                    prefill_ns,
                    decode_ns: 0,
                    threads,
                    kernel: kernel.to_owned(),
                }),
            };
            paid.store(&store, &Record::Embedding(Box::new(record.clone())))?;
            Ok(record)
        });
        let record = done.await.map_err(internal)?;
        if let Ok(record) = &record {
            span.used(record.transcript.tokens(), 0);
            span.responds(&record.receipt.receipt.id());
        }
        record.map(Arc::new).map_err(|message| {
            tracing::error!(request_id, message, "embeddings could not be receipted");
            Refusal::Internal { message }
        })
    }
}

/// The ids of every input, or why one has none.
fn input_ids(
    request: &EmbeddingRequest,
    tokenizer: &Tokenizer,
    context: usize,
    vocabulary: u32,
) -> Result<Vec<Vec<u32>>, Refusal> {
    let most = if request.truncate { context } else { usize::MAX };
    let one = |(i, input): (usize, &EmbeddingInput)| {
        let invalid = |message: String| Refusal::Invalid { param: format!("input[{i}]"), message };
        let ids = match input {
            EmbeddingInput::Text(text) => {
                tokenizer.encode_for_embedding(text, most).map_err(|e| invalid(e.to_string()))?
            }
            EmbeddingInput::Tokens(ids) => ids[..ids.len().min(most)].to_vec(),
        };
        if let Some(id) = ids.iter().find(|id| **id >= vocabulary) {
            return Err(invalid(format!("token id {id} is not below the vocabulary of {vocabulary}")));
        }
        if ids.is_empty() {
            return Err(invalid("an input has no tokens".into()));
        }
        if ids.len() > context {
            let got = ids.len();
            return Err(invalid(format!(
                "input {i} has {got} tokens, but the model reads {context}; shorten it, or set `truncate` to true"
            )));
        }
        Ok(ids)
    };
    request.inputs.iter().enumerate().map(one).collect()
}

/// Numbers of an encoder's vectors.
pub(super) fn dimensions(artifact: &Artifact) -> Option<u32> {
    match artifact.program().program().head {
        Head::Vector { pooled } => artifact.program().value_type(pooled).integers(),
        Head::Tokens { .. } => None,
    }
}
