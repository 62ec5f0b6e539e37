//! Speed of an encoder, and its vectors for comparison with others.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use assay_core::embedding::EMBEDDING_FRAC;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::program::Head;
use assay_engine::replay::Execution;
use assay_engine::semantics::embedding::embedding;
use assay_engine::text::Tokenizer;
use serde_json::{Value, json};

use crate::commands::up::EngineArgs;

pub fn run(
    artifact: &Arc<Artifact>,
    texts: &Path,
    out: Option<&Path>,
    engine: EngineArgs,
    rounds: usize,
    print: &mut dyn FnMut(Value),
) -> Result<()> {
    let program = artifact.program().program();
    if !matches!(program.head, Head::Vector { .. }) {
        bail!("`{}` is no encoder", artifact.provenance().name);
    }
    let whole = std::fs::read_to_string(texts).with_context(|| texts.display().to_string())?;
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
    let context = program.context as usize;
    let ids: Vec<Vec<u32>> =
        whole.lines().map(|text| tokenizer.encode_for_embedding(text, context)).collect::<Result<_, _>>()?;
    let inputs: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let tokens: usize = inputs.iter().map(|t| t.len()).sum();
    if tokens == 0 {
        bail!("{} has no lines", texts.display());
    }
    let pool = engine.pool();
    let threads = pool.threads();
    let mut executor = Executor::new(artifact.shared(), Kernel::from_environment()?, pool);
    for round in 0..rounds.max(1) {
        let started = Instant::now();
        let pooled = Execution::encode(&mut executor, &inputs);
        let seconds = started.elapsed().as_secs_f64();
        print(json!({
            "model": artifact.provenance().name, "threads": threads, "texts": inputs.len(), "tokens": tokens,
            "tokens_per_s": tokens as f64 / seconds, "texts_per_s": inputs.len() as f64 / seconds,
        }));
        if let (0, Some(path)) = (round, out) {
            let one = f64::from(1u32 << EMBEDDING_FRAC);
            let mut file = BufWriter::new(File::create(path).with_context(|| path.display().to_string())?);
            for (ids, pooled) in ids.iter().zip(&pooled) {
                let vector = embedding(pooled, pooled.len());
                let vector: Vec<f64> = vector.iter().map(|v| f64::from(*v) / one).collect();
                writeln!(file, "{}", json!({"ids": ids, "vector": vector}))?;
            }
            file.flush()?;
        }
    }
    Ok(())
}
