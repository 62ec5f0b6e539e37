//! Loss of a model on a text.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::LOGIT_FRAC;
use assay_engine::replay::Execution as _;
use assay_engine::text::Tokenizer;
use serde_json::{Value, json};

pub fn run(
    artifact: &Arc<Artifact>,
    text: &Path,
    windows: Option<&Path>,
    print: &mut dyn FnMut(Value),
) -> Result<()> {
    let text = std::fs::read_to_string(text).with_context(|| text.display().to_string())?;
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json())?;
    let ids = tokenizer.encode_text(&text)?;
    let pool = Arc::new(Pool::new(std::thread::available_parallelism().map_or(1, usize::from)));
    let mut executor = Executor::new(artifact.shared(), Kernel::from_environment()?, pool);
    let context = artifact.program().program().context as usize;
    let bos = artifact.text().bos;
    let body = if bos.is_some_and(|b| ids.first() == Some(&b)) { &ids[1..] } else { &ids[..] };
    let mut out = windows.map(|path| File::create(path).map(BufWriter::new)).transpose()?;
    let (mut sum, mut count) = (0f64, 0usize);
    for run in body.chunks(context - usize::from(bos.is_some())) {
        let window: Vec<u32> = bos.into_iter().chain(run.iter().copied()).collect();
        if let Some(out) = &mut out {
            writeln!(out, "{}", json!(window))?;
        }
        executor.replay(&window, 0, &mut |row| {
            if let (Some(logits), Some(next)) = (row.logits, window.get(row.position + 1)) {
                sum += negative_log_likelihood(logits, *next);
                count += 1;
            }
        });
    }
    if let Some(mut out) = out {
        out.flush()?;
    }
    if count == 0 {
        bail!("the text has no token to predict");
    }
    let name = &artifact.provenance().name;
    print(json!({"model": name, "tokens": count, "window": context, "nats_per_token": sum / count as f64}));
    Ok(())
}

fn negative_log_likelihood(logits: &[i32], id: u32) -> f64 {
    let unit = f64::from(1u32 << LOGIT_FRAC);
    let top = f64::from(logits.iter().copied().max().unwrap_or(0));
    let total: f64 = logits.iter().map(|l| ((f64::from(*l) - top) / unit).exp()).sum();
    total.ln() - (f64::from(logits[id as usize]) - top) / unit
}
