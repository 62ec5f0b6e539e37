//! What makes an answer checkable, beside what it costs to give it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use assay_core::digest::DigestBuilder;
use assay_core::embedding::Record;
use assay_core::receipt::Domain;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::program::ValueType;
use assay_node::key::NodeKey;
use assay_node::store::ReceiptStore;
use serde_json::{Value, json};

use super::milliseconds;
use super::reexecution::Generator;
use crate::commands::up::EngineArgs;

pub fn run(
    artifact: &Arc<Artifact>,
    engine: EngineArgs,
    prompt: u32,
    answer: u32,
    rounds: usize,
    print: &mut dyn FnMut(Value),
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let generator = Generator::new(artifact, engine, &folder.path().join("node"))?;
    let key = NodeKey::load_or_create(&folder.path().join("key"))?;
    let store = ReceiptStore::open(&folder.path().join("store"))?;
    let program = artifact.program();
    let width = match program.value_type(program.program().tokens().0) {
        ValueType::Int8 { len, .. } => len as usize,
        _ => 0,
    };
    for seed in 0..rounds as u64 {
        let record = generator.answer(prompt, answer, seed)?;
        let generation = generator.last();
        let positions = record.transcript.prompt_ids.len() + record.transcript.output_ids.len() - 1;
        // As many hidden vectors as the execution had, as long as they were.
        let hidden: Vec<Vec<i8>> = (0..positions).map(|p| vec![p as i8; width]).collect();
        let timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<Duration> {
            let started = Instant::now();
            work()?;
            Ok(started.elapsed())
        };
        let digests = timed(&mut || {
            let mut builder = DigestBuilder::new();
            for (position, numbers) in hidden.iter().enumerate() {
                builder.push(position as u32, numbers, 40_000, -20);
            }
            std::hint::black_box(builder.finish().root());
            Ok(())
        })?;
        let sign = timed(&mut || {
            std::hint::black_box((record.request.hash(), record.transcript.root(), record.digests.root()));
            std::hint::black_box(key.sign(record.receipt.receipt.clone(), Domain::DEVELOPMENT)?);
            Ok(())
        })?;
        let stored = Record::Answer(Box::new(record.clone()));
        let keep = timed(&mut || Ok(store.put(&stored)?))?;
        let total = digests + sign + keep;
        print(json!({
            "model": artifact.provenance().name, "threads": generator.threads(),
            "prompt_tokens": record.receipt.receipt.prompt_tokens,
            "completion_tokens": record.receipt.receipt.completion_tokens,
            "generation_ms": milliseconds(generation), "digests_ms": milliseconds(digests),
            "receipt_ms": milliseconds(sign), "store_ms": milliseconds(keep),
            "share_percent": 100.0 * total.as_secs_f64() / generation.as_secs_f64(),
        }));
    }
    Ok(())
}
