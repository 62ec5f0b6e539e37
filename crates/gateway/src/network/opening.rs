//! How a request for an answer begins: what it may cost is set aside, or its answer was paid for before and is told again.

use std::sync::Arc;

use assay_api::{Caller, Class, Event, Generation, Refusal, Second, Source, Stop};
use assay_core::answer::AnswerRecord;
use assay_core::embedding::Record;
use assay_core::id::ReceiptId;
use tokio::sync::mpsc;

use super::Network;
use super::kept::Kept;
use super::money::{self, Purse};
use crate::accounts::RequestKey;
use crate::callers;
use crate::routing::Want;

/// What would be a request that has another's name.
pub(super) const OTHER_ANSWER: &str = "the books name another kind of answer";

/// How a request for an answer begins.
pub(super) enum Opening {
    /// It is executed, paid for out of this.
    Purse(Option<Purse>),
    /// It was answered and paid for before.
    Told(Generation),
}

impl Network {
    /// Sets aside the most that a request for an answer can cost, whoever executes it and however often. Who sends neither key nor payment is left with
    /// those who want nothing.
    pub(super) async fn purse(
        &self,
        caller: &Caller,
        want: &mut Want,
        key: RequestKey,
        most: u64,
    ) -> Result<Opening, Refusal> {
        let inner = &self.inner;
        Ok(match (&inner.accounts, inner.caller(caller)) {
            (_, Some(_)) if most == 0 || inner.free(caller, want) => Opening::Purse(None),
            (_, Some(callers)) => match callers.reserve(caller, key, most).await? {
                callers::Opened::Reserved(reserved) => Opening::Purse(Some(Purse::Caller(reserved))),
                callers::Opened::Told(told) => Opening::Told(self.told(*told)?),
            },
            (None, None) => Opening::Purse(None),
            (Some(accounts), None) => match Purse::open(accounts, caller, key, most).await? {
                money::Opened::Purse(purse) => Opening::Purse(Some(purse)),
                money::Opened::Told(told) => {
                    inner.metrics.repeated.inc();
                    Opening::Told(self.told(*told)?)
                }
                money::Opened::Answered(receipt) => match self.again(receipt) {
                    Some(generation) => {
                        inner.metrics.repeated.inc();
                        Opening::Told(generation)
                    }
                    // Not here any more: to execute it for nothing would be an offer to whoever asks for that.
                    None => Opening::Purse(Some(Purse::anew(accounts, caller, key, most).await?)),
                },
            },
        })
    }

    /// An answer that was given and paid for before, told again as it was.
    fn again(&self, receipt: ReceiptId) -> Option<Generation> {
        match self.inner.records().get(receipt) {
            Some(Kept { record: Record::Answer(record), events, .. }) => {
                Some(self.retold(events.clone(), record.clone(), None))
            }
            _ => None,
        }
    }

    /// The same from the books.
    fn told(&self, told: callers::Told) -> Result<Generation, Refusal> {
        match told.record {
            Record::Answer(record) => Ok(self.retold(told.events, record, told.second)),
            Record::Embedding(_) => Err(Refusal::Internal { message: OTHER_ANSWER.into() }),
        }
    }

    fn retold(&self, told: Vec<Event>, record: Box<AnswerRecord>, second: Option<Second>) -> Generation {
        let receipt = record.receipt.receipt.id();
        let (stop, usage) = (record.transcript.stop, record.transcript.usage());
        let (provider, model) = (record.receipt.receipt.provider, record.receipt.receipt.model_root);
        let (events, receiver) = mpsc::channel(told.len() + 1);
        let (audit, class) = (record.request.audit, Class::of(record.request.audit, &record.receipt));
        // Nobody notes of an answer what its provider was spared.
        let end = Event::End { stop, usage, cached_tokens: 0, record: Arc::new(*record) };
        for event in told.into_iter().chain([end]) {
            // There is room for all of them.
            let _ = events.try_send(event);
        }
        let price = self.inner.price(provider, model, audit).flatten();
        let source = Some(Source { provider, price, class, second });
        let prompt_tokens = usage.prompt_tokens;
        Generation { receipt_id: receipt, prompt_tokens, source, stop: Stop::default(), events: receiver }
    }
}
