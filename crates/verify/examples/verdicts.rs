//! What this machine finds in some answers, in lines to compare with those of another: trace roots, disputes won and lost, and the
//! verdicts of layer shards and light audits, for the reference and every kernel that runs here.
//!
//! A line is an engine's name, what was checked, and what came out. But for the name, all engines of all machines must print the
//! same lines; `.ci/cross` sees to it. In WebAssembly the lines are the bytes at `report_start`, `report_len` of them.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../tests/miniature/mod.rs"]
mod miniature;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_core::verdict::Outcome;
use assay_engine::artifact::layer::{LayerModel, extract};
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::replay::{ByReference, Execution, LayerExecution};
use assay_verify::dispute::Referee;
use assay_verify::dispute::parties::{Challenger, Defender, Player, play};
use assay_verify::light::{Challenge, Checker, Fed, Key, Known, Model, Prover, Secret, Seed};
use assay_verify::shard::{Boundary, Evidence, Shard, boundaries, check_shard};
use assay_verify::trace::walk::Trace;
use miniature::{Small, bind, sampling, statement, subject};

fn main() -> io::Result<()> {
    report(&mut io::stdout().lock())
}

fn report(out: &mut dyn Write) -> io::Result<()> {
    for (i, model) in miniature::models().iter().enumerate() {
        let honest = model.answer(20, 40, sampling());
        let mut swapped = honest.clone();
        swapped.transcript.output_ids[25] ^= 1;
        let mut execution = ByReference(model.constants.as_ref());
        swapped.digests = Trace::new(model.constants.as_ref(), subject(&swapped), &mut execution).digests();
        bind(&mut swapped);
        for kernel in std::iter::once(None).chain(Kernel::available().into_iter().map(Some)) {
            let name = kernel.map_or("reference", |k| k.name());
            for (what, record) in [("honest", &honest), ("swapped", &swapped)] {
                let trace =
                    Trace::new(model.constants.as_ref(), subject(record), &mut *engine(model, kernel));
                writeln!(out, "{name} {i} {what} trace {}", trace.root())?;
                writeln!(out, "{name} {i} {what} dispute {}", dispute(model, record, kernel))?;
                writeln!(out, "{name} {i} {what} shards {}", shards(model, record, kernel))?;
                let by = kernel.unwrap_or(Kernel::available()[Kernel::available().len() - 1]);
                writeln!(out, "{name} {i} {what} light {}", light(model, record, by))?;
            }
        }
    }
    Ok(())
}

fn engine(model: &Small, kernel: Option<Kernel>) -> Box<dyn Execution + '_> {
    match kernel {
        None => Box::new(ByReference(model.constants.as_ref())),
        Some(kernel) => Box::new(Executor::new(Arc::clone(&model.constants), kernel, Arc::new(Pool::new(1)))),
    }
}

/// An honest challenger against a provider that stands by its receipt.
fn dispute(model: &Small, record: &AnswerRecord, kernel: Option<Kernel>) -> String {
    let player = || {
        let trace = Trace::new(model.constants.as_ref(), subject(record), &mut *engine(model, kernel));
        Player::new(trace, engine(model, kernel))
    };
    let mut defender = Defender::new(player(), record, &model.tree);
    let mut challenger = Challenger::new(player(), record);
    let mut referee = Referee::new(statement(record)).unwrap();
    let outcome = play(&mut referee, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    format!("{outcome:?} after {} rounds and {:?} bytes", referee.rounds(), referee.bytes())
}

/// Every layer checked by an auditor who holds nothing else.
fn shards(model: &Small, record: &AnswerRecord, kernel: Option<Kernel>) -> String {
    let program = model.constants.program();
    let fed = Fed::of(&record.transcript).unwrap();
    let tokens = fed.tokens();
    let mut states: Vec<Boundary> = Vec::new();
    boundaries(program, &mut *layer_engine(&model.constants, kernel), tokens, &mut |_, state| {
        states.push(state.clone());
        ControlFlow::Continue(())
    });
    let verdict = |layer: usize| {
        let bytes = extract(model.constants.as_ref(), &model.tree, layer).unwrap();
        let held = Arc::new(LayerModel::read(&bytes, model.tree.root()).unwrap());
        let evidence = Evidence {
            input: layer.checked_sub(1).and_then(|i| states.get(i)),
            output: states.get(layer),
            record: Some(record),
            subject: None,
        };
        let constants: Arc<dyn Constants> = held.clone();
        check_shard(&Shard::of(&held), &evidence, &mut *layer_engine(&constants, kernel)).unwrap()
    };
    let found = (0..=states.len()).map(verdict).map(|v| {
        let failed = v.verdict.failure.map_or(String::new(), |f| f.message);
        format!("{} {failed}", v.output.map_or("-".to_owned(), |o| o.to_string()))
    });
    found.collect::<Vec<_>>().join(" | ")
}

fn layer_engine(constants: &Arc<dyn Constants>, kernel: Option<Kernel>) -> Box<dyn LayerExecution + '_> {
    match kernel {
        None => Box::new(ByReference(constants.as_ref())),
        Some(kernel) => Box::new(Executor::new(Arc::clone(constants), kernel, Arc::new(Pool::new(1)))),
    }
}

/// A light audit of five tokens, and of five with an accumulator changed.
fn light(model: &Small, record: &AnswerRecord, kernel: Kernel) -> String {
    let pool = Arc::new(Pool::new(1));
    let constants = model.constants.as_ref();
    let of = Model { constants, root: model.tree.root(), kernel, pool: &pool };
    let secret = Secret { seed: Seed::from_bytes([3; 32]), epoch: 1 };
    let key = Key::make(&of, secret, 96).unwrap();
    let mut executor = Executor::new(Arc::clone(&model.constants), kernel, Arc::clone(&pool));
    let mut prover = Prover::new(&mut executor).unwrap();
    let fed = Fed::of(&record.transcript).unwrap();
    let challenge = Challenge { beacon: Hash::from_bytes([7; 32]), trace: prover.commit(&fed), tokens: 30 };
    let opening = prover.open(&fed, &challenge.draw(record.receipt.receipt.id(), &fed));
    let mut forged = opening.clone();
    forged.tokens[2].products[1].bytes[0] ^= 1;
    let mut checker = Checker::new(&key, kernel, pool).unwrap();
    let mut found = Vec::new();
    for opening in [opening, forged] {
        let verdict = checker.check(record, &challenge, opening, Known::default()).unwrap().verdict;
        let checks: Vec<String> =
            verdict.checks.iter().map(|c| format!("{}={:?}", c.name, c.outcome)).collect();
        // Nobody signs these receipts.
        let failed = verdict.checks.iter().find(|c| c.outcome == Outcome::Failed && c.name != "signature");
        found.push(format!("{} {}", checks.join(" "), failed.map_or("", |c| &c.detail)));
    }
    found.join(" | ")
}

#[cfg(target_family = "wasm")]
mod exports {
    use std::sync::LazyLock;

    static REPORT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut lines = Vec::new();
        super::report(&mut lines).expect("memory takes text");
        lines
    });

    // SAFETY: no other symbol has this name.
    #[unsafe(no_mangle)]
    extern "C" fn report_start() -> *const u8 {
        REPORT.as_ptr()
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn report_len() -> usize {
        REPORT.len()
    }
}
