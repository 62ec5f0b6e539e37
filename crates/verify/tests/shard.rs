//! Layer shards: honest layers hold and join to a full verdict; every cheat is found by the layer that it lies in, at its place,
//! while the other layers hold.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod honest;

use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

use assay_core::answer::AnswerRecord;
use assay_core::canonical::{Canonical as _, CanonicalError};
use assay_core::digest::DigestBuilder;
use assay_core::id::{DigestRoot, Hash, ModelRoot, Nonce};
use assay_core::limits::BOUNDARY_BYTES_MAX;
use assay_core::merkle;
use assay_core::request::{Guide, Request, sampler_seed};
use assay_core::transcript::Transcript;
use assay_core::verdict::{Check, FailureCode, Outcome, Verdict};
use assay_engine::artifact::layer::{LayerModel, extract};
use assay_engine::artifact::tree::ModelTree;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants;
use assay_engine::forward::{Companion, Executor, LayerOutput, Segment, Values};
use assay_engine::kernel::Kernel;
use assay_engine::matrix::Matrix;
use assay_engine::pool::Pool;
use assay_engine::program::layers::Layers;
use assay_engine::program::{Checked, Op, Reach};
use assay_engine::replay::{ByReference, Execution, LayerExecution, LayerRow, LayerRun};
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::sample::choose;
use assay_engine::semantics::scale::Scale;
use assay_engine::transcribe::{StopRules, Transcriber};
use assay_verify::reexecution::Subject;
use assay_verify::shard::{
    Boundary, Difference, Evidence, Shard, ShardError, ShardVerdict, boundaries, boundary, check_shard, join,
};
use assay_verify::trace::walk::{self, Trace};
use honest::Node;
use proptest::prelude::*;

static NODE: LazyLock<Node> = LazyLock::new(Node::new);
static RECORD: LazyLock<AnswerRecord> = LazyLock::new(|| NODE.answer(NODE.request()));
static LAYERS: LazyLock<Layers> = LazyLock::new(|| Layers::of(NODE.artifact.program()));
static STATES: LazyLock<Vec<Boundary>> = LazyLock::new(|| states(&mut executor(), &fed(&RECORD)));

fn program() -> &'static Checked {
    NODE.artifact.program()
}

fn executor() -> Executor {
    NODE.executor()
}

fn subject() -> Subject<'static> {
    Subject {
        root: NODE.artifact.root(),
        program: program().program(),
        text: NODE.artifact.text(),
        tokenizer: &NODE.tokenizer,
    }
}

/// Prompt and answer without its last id.
fn fed(record: &AnswerRecord) -> Vec<u32> {
    let t = &record.transcript;
    [&t.prompt_ids[..], &t.output_ids[..t.output_ids.len() - 1]].concat()
}

/// What an honest provider tells.
fn states(execution: &mut dyn LayerExecution, tokens: &[u32]) -> Vec<Boundary> {
    let mut all = Vec::new();
    boundaries(program(), execution, tokens, &mut |i, state| {
        assert_eq!(i, all.len());
        all.push(state.clone());
        ControlFlow::Continue(())
    });
    all
}

fn shard(layer: usize) -> Shard<'static> {
    Shard { model: NODE.artifact.root(), program: program(), layers: &LAYERS, layer }
}

/// The verdict of a layer's auditor.
fn check(
    layer: usize,
    record: &AnswerRecord,
    states: &[Boundary],
    execution: &mut dyn LayerExecution,
) -> ShardVerdict {
    let subject = subject();
    let evidence = Evidence {
        input: layer.checked_sub(1).map(|i| &states[i]),
        output: states.get(layer),
        record: Some(record),
        subject: Some(&subject),
    };
    check_shard(&shard(layer), &evidence, execution).unwrap()
}

/// The verdicts of all layers' auditors.
fn audit(record: &AnswerRecord, states: &[Boundary]) -> Vec<ShardVerdict> {
    (0..LAYERS.all().len()).map(|layer| check(layer, record, states, &mut executor())).collect()
}

/// The layers that fail, and where.
fn failing(verdicts: &[ShardVerdict]) -> Vec<(u32, FailureCode, Option<u32>)> {
    let failed = |v: &ShardVerdict| {
        let failure = v.verdict.failure.as_ref()?;
        assert!(!v.verdict.holds);
        Some((v.layer, failure.code, failure.position))
    };
    verdicts.iter().filter_map(failed).collect()
}

fn joined(record: &AnswerRecord, verdicts: &[ShardVerdict]) -> Verdict {
    join(record, &subject(), program(), verdicts)
}

#[test]
fn an_answer_that_was_stopped_is_audited_like_others() {
    let record = NODE.stopped(NODE.request(), 40);
    let states = states(&mut executor(), &fed(&record));
    let verdicts = audit(&record, &states);
    assert_eq!(failing(&verdicts), []);
    let joined = joined(&record, &verdicts);
    assert!(joined.holds, "{joined:?}");
}

/// Index of the tail.
fn tail() -> usize {
    LAYERS.all().len() - 1
}

#[test]
fn honest_layers_hold_and_are_a_full_check_together() {
    let verdicts = audit(&RECORD, &STATES);
    assert_eq!(LAYERS.attending().count(), program().caches().len());
    assert_eq!((verdicts.len(), STATES.len()), (program().caches().len() + 2, program().caches().len() + 1));
    for v in &verdicts {
        assert!(v.verdict.holds && v.difference.is_none(), "{v:?}");
        assert!(v.verdict.checks.iter().all(|c| c.outcome == Outcome::Passed));
        assert_eq!(v.verdict.unchecked.len(), verdicts.len() - 1, "it names the layers that it did not see");
        assert_eq!(v.positions as usize, fed(&RECORD).len());
    }
    let full = NODE.check(&RECORD);
    let joined = joined(&RECORD, &verdicts);
    assert!(full.holds && joined.holds, "{joined:?}");
    let by_layer = |c: &&Check| c.name.starts_with("layer ");
    assert_eq!(joined.checks.iter().filter(by_layer).count(), tail());
    let rest: Vec<_> = joined.checks.iter().filter(|c| !by_layer(c)).cloned().collect();
    assert_eq!(rest, full.checks);
    assert!(joined.unchecked.iter().any(|u| u.contains("believed")));
    assert!(full.unchecked.iter().all(|u| joined.unchecked.contains(u)));
}

#[test]
fn every_kernel_and_the_reference_give_the_same_verdicts() {
    let request = Request { max_tokens: 12, ..NODE.request() };
    let record = NODE.answer(request);
    let honest = states(&mut ByReference(NODE.artifact.as_ref()), &fed(&record));
    let mut wrong = honest.clone();
    wrong[2] = changed(&honest[2], 20, 3);
    for states in [&honest, &wrong] {
        let want: Vec<ShardVerdict> = (0..=tail())
            .map(|l| check(l, &record, states, &mut ByReference(NODE.artifact.as_ref())))
            .collect();
        assert_eq!(joined(&record, &want).holds, *states == honest);
        for kernel in Kernel::available() {
            for threads in [1, 2] {
                let pool = Arc::new(Pool::new(threads));
                let mut executor = Executor::new(NODE.artifact.shared(), kernel, pool);
                let got: Vec<ShardVerdict> =
                    (0..=tail()).map(|l| check(l, &record, states, &mut executor)).collect();
                assert_eq!(got, want, "{kernel:?}");
            }
        }
    }
}

#[test]
fn states_are_the_traces_values() {
    let tokens = &fed(&RECORD)[..40];
    let cuts: Vec<u16> = LAYERS.states().collect();
    let mut traced: Vec<Vec<i32>> = vec![Vec::new(); cuts.len()];
    executor().trace_runs(tokens, 0..40, 32, 40, &mut |made| {
        if let Some(i) = cuts.iter().position(|c| *c == made.op) {
            made.values.iter().for_each(|v| traced[i].extend_from_slice(v.integers().0));
        }
    });
    let told = states(&mut executor(), tokens);
    for (i, (told, traced)) in told.iter().zip(&traced).enumerate() {
        assert_eq!(told.numbers(), traced, "{i}");
        assert_eq!(boundary(program(), &mut executor(), tokens, i).as_ref(), Some(told));
    }
    assert_eq!(told.len(), cuts.len());
    assert_eq!(boundary(program(), &mut executor(), tokens, told.len()), None);
}

/// So that a shard that fails names a step of the trace, which a dispute can walk to.
#[test]
fn a_commitment_is_over_parts_of_the_trace() {
    let walked = walk::Subject::of(&RECORD, &subject()).unwrap();
    let mut execution = executor();
    let trace = Trace::new(NODE.artifact.as_ref(), walked, &mut execution);
    let blocks: Vec<_> = (0..trace.blocks()).map(|b| trace.block(&mut execution, b)).collect();
    for (state, value) in STATES.iter().zip(LAYERS.states()) {
        let roots = blocks.iter().map(|b| b.parts(value).unwrap().last().unwrap().root());
        assert_eq!(state.commitment(program().program()), merkle::root(roots));
    }
}

/// A state with one number changed by one.
fn changed(state: &Boundary, position: usize, element: usize) -> Boundary {
    let mut numbers = state.numbers().to_vec();
    numbers[position * state.width() + element] ^= 1;
    Boundary::new(state.width(), numbers).unwrap()
}

#[test]
fn one_changed_number_fails_the_layer_that_should_have_made_it() {
    let width = STATES[0].width();
    let last = fed(&RECORD).len() - 1;
    for i in 0..STATES.len() {
        for (position, element) in [(0, 0), (33, width / 2), (last, width - 1)] {
            let mut states = STATES.clone();
            states[i] = changed(&STATES[i], position, element);
            // Before it and behind it nothing has changed.
            let near = [i, i + 1].map(|l| check(l, &RECORD, &states, &mut executor()));
            let at = (i as u32, FailureCode::Boundary, Some(position as u32));
            let failed = failing(&near);
            assert_eq!(failed[0], at, "state {i}");
            // The stream goes through a layer, and so does its change; only the tail may round it away.
            assert!(failed.len() == 2 || i + 1 == tail(), "state {i}");
            assert!(failed.iter().skip(1).all(|f| f.1 != FailureCode::Boundary || f.2 == at.2));
            let difference = near[0].difference.unwrap();
            assert_eq!((difference.position, difference.element), (position as u32, element as u32));
            assert_eq!(difference.made ^ 1, difference.told);
        }
    }
}

/// What a provider tells who executed otherwise: its answer, to which all of it fits, and its states.
struct Cheat {
    record: AnswerRecord,
    states: Vec<Boundary>,
}

/// The hidden vectors and last logits that the honest tail makes of a state.
fn tail_of(tokens: &[u32], state: &Boundary) -> (Vec<(Vec<i8>, Scale)>, Vec<i32>) {
    let (mut hidden, mut logits) = (Vec::new(), Vec::new());
    let last = LAYERS.all().last().unwrap();
    let run = LayerRun { layer: last, tokens, state: state.numbers(), logits_from: tokens.len() - 1 };
    executor().execute_layer(&run, &mut |row| {
        if let LayerRow::Token(row) = row {
            hidden.push((row.hidden.0.to_vec(), row.hidden.1));
            logits.extend(row.logits.into_iter().flatten());
        }
    });
    (hidden, logits)
}

/// A provider that makes states as `tell` does, and is honest about all that follows from them.
fn cheat(tell: &dyn Fn(&[u32]) -> Vec<Boundary>) -> Cheat {
    let request = Request { max_tokens: 8, ..NODE.request() };
    let prompt = RECORD.transcript.prompt_ids.clone();
    let seed = sampler_seed(Nonce::ZERO, request.hash(), request.model);
    let mut history = History::new(&prompt);
    let rules = StopRules {
        end_tokens: NODE.artifact.text().end_tokens.clone(),
        stop: vec![],
        max_tokens: request.max_tokens,
        context: program().program().context,
        prompt_tokens: prompt.len() as u32,
    };
    let mut transcriber = Transcriber::new(&NODE.tokenizer, rules);
    let mut tokens = prompt.clone();
    loop {
        let states = tell(&tokens);
        let (hidden, logits) = tail_of(&tokens, states.last().unwrap());
        let index = tokens.len() - prompt.len();
        let id = choose(&logits, &history, None, &request.sampling, &seed, index as u32);
        history.push(id);
        let ended = transcriber.push(id).is_some();
        if !ended {
            tokens.push(id);
            continue;
        }
        let mut digests = DigestBuilder::new();
        for (p, (numbers, scale)) in hidden.iter().enumerate() {
            digests.push(p as u32, numbers, scale.mantissa, scale.exponent);
        }
        let output = [&tokens[prompt.len()..], &[id]].concat();
        let transcript = Transcript {
            output_ids: output,
            text: transcriber.text().to_owned(),
            stop: transcriber.stopped().unwrap(),
            ..RECORD.transcript.clone()
        };
        let mut record = AnswerRecord { request, transcript, digests: digests.finish(), ..RECORD.clone() };
        NODE.sign(&mut record);
        return Cheat { record, states };
    }
}

/// The cheat is found by these layers, from these positions on, and by no other; and the answer does not stand.
fn is_found(name: &str, cheat: &Cheat, wanted: &[(usize, usize)]) {
    let verdicts = audit(&cheat.record, &cheat.states);
    let wanted: Vec<_> =
        wanted.iter().map(|(l, p)| (*l as u32, FailureCode::Boundary, Some(*p as u32))).collect();
    assert_eq!(failing(&verdicts), wanted, "{name}");
    let joined = joined(&cheat.record, &verdicts);
    let failure = joined.failure.unwrap();
    assert!(!joined.holds);
    assert_eq!((failure.code, failure.position), (wanted[0].1, wanted[0].2), "{name}");
    let full = NODE.check(&cheat.record);
    assert!(!full.holds, "{name}: re-execution finds it as well");
}

/// The layers from `from` on executed honestly, after what `states` says.
fn onwards(tokens: &[u32], mut states: Vec<Boundary>, from: usize) -> Vec<Boundary> {
    for layer in &LAYERS.all()[from..tail()] {
        let made = honest_layer(tokens, layer, states.last().unwrap());
        states.push(made);
    }
    states
}

fn honest_layer(tokens: &[u32], layer: &assay_engine::program::layers::Layer, state: &Boundary) -> Boundary {
    let mut numbers = Vec::new();
    let run = LayerRun { layer, tokens, state: state.numbers(), logits_from: tokens.len() };
    executor().execute_layer(&run, &mut |row| {
        if let LayerRow::State { numbers: n, .. } = row {
            numbers.extend_from_slice(n);
        }
    });
    Boundary::new(state.width(), numbers).unwrap()
}

#[test]
fn an_honest_provider_is_no_cheat() {
    let honest = cheat(&|tokens| states(&mut executor(), tokens));
    let verdicts = audit(&honest.record, &honest.states);
    assert!(joined(&honest.record, &verdicts).holds);
    assert!(NODE.check(&honest.record).holds);
}

#[test]
fn skipped_layers_are_found_by_those_layers() {
    for skipped in [1, 2] {
        let first = tail() - skipped;
        let found = cheat(&|tokens| {
            let mut states = states(&mut executor(), tokens);
            states.truncate(first);
            (0..skipped).for_each(|_| states.push(states.last().unwrap().clone()));
            states
        });
        let wanted: Vec<_> = (first..tail()).map(|l| (l, 0)).collect();
        is_found("skipped", &found, &wanted);
    }
}

/// The attend operation of a layer.
fn attend_of(layer: usize) -> usize {
    let ops = LAYERS.all()[layer].ops.clone();
    ops.into_iter().find(|i| matches!(program().program().ops[*i], Op::Attend { .. })).unwrap()
}

/// Replaces what an attend operation makes, and keeps the states that follow.
struct Forger {
    op: usize,
    numbers: Vec<i32>,
    states: Vec<(u16, Vec<i32>)>,
}

impl Companion for Forger {
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let Op::Attend { frac, .. } = program().program().ops[op] else { return false };
        if op != self.op {
            return false;
        }
        let scales = vec![Scale::power(-i16::from(frac)); values.rows()];
        values.put_integers(op as u16, &self.numbers, scales);
        true
    }

    fn made(&mut self, op: usize, values: &Values<'_>) {
        if let Some((_, state)) = self.states.iter_mut().find(|(v, _)| usize::from(*v) == op) {
            (0..values.rows()).for_each(|r| state.extend_from_slice(values.integers(op as u16, r).0));
        }
    }
}

#[test]
fn one_heads_forged_attention_is_found_by_its_layer() {
    let (layer, head, from) = (2, 1, 5);
    let op = attend_of(layer);
    let Op::Attend { head_dim, heads, .. } = program().program().ops[op] else { unreachable!() };
    let (n, width) = (head_dim as usize, (heads * head_dim) as usize);
    let found = cheat(&|tokens| {
        let mut numbers = Vec::new();
        executor().trace(tokens, 0..tokens.len(), tokens.len(), &mut |made| {
            if usize::from(made.op) == op {
                made.values.iter().for_each(|v| numbers.extend_from_slice(v.integers().0));
            }
        });
        // The head says nothing from a position on.
        numbers.chunks_exact_mut(width).skip(from).for_each(|row| row[head * n..][..n].fill(0));
        let states = LAYERS.states().map(|v| (v, Vec::new())).collect();
        let mut forger = Forger { op, numbers, states };
        let mut sequence = Sequence::new(program().caches(), tokens.len());
        let segment = Segment { sequence: &mut sequence, tokens, logits_from: tokens.len() };
        executor().forward_beside(&mut [segment], &mut forger);
        let boundary = |(_, state)| Boundary::new(STATES[0].width(), state).unwrap();
        forger.states.into_iter().map(boundary).collect()
    });
    is_found("forged head", &found, &[(layer, from)]);
}

/// A layer that went on after the cache that it had made of another text's first `prefix` positions.
fn stale_layer(tokens: &[u32], layer: usize, state: &Boundary, other: &Boundary, prefix: usize) -> Boundary {
    let all = &LAYERS.all()[layer];
    let mut sequence = Sequence::with_caches(program().caches(), all.caches.clone(), tokens.len());
    let mut numbers = honest_layer(&tokens[..prefix], all, &front(state, prefix)).numbers().to_vec();
    let mut executor = executor();
    let parts = [
        (&tokens[..prefix], front(other, prefix).numbers().to_vec()),
        (&tokens[prefix..], state.numbers()[prefix * state.width()..].to_vec()),
    ];
    for (i, (tokens, state)) in parts.iter().enumerate() {
        let segment = Segment { sequence: &mut sequence, tokens, logits_from: tokens.len() };
        match executor.forward_layer(&mut [segment], all, state) {
            LayerOutput::State(made) if i == 1 => numbers.extend_from_slice(made),
            _ => {}
        }
    }
    Boundary::new(state.width(), numbers).unwrap()
}

/// The first positions of a state.
fn front(state: &Boundary, positions: usize) -> Boundary {
    Boundary::new(state.width(), state.numbers()[..positions * state.width()].to_vec()).unwrap()
}

#[test]
fn a_stale_cache_of_another_prompt_is_found() {
    let prefix = 6;
    let other = |tokens: &[u32]| tokens.iter().map(|t| (t + 40) % 300).collect::<Vec<u32>>();
    // In one layer only: a cache that was swapped.
    let swapped = cheat(&|tokens| {
        let strange = states(&mut executor(), &other(tokens));
        let mut states = states(&mut executor(), tokens);
        states.truncate(3);
        let next = stale_layer(tokens, 3, &states[2], &strange[2], prefix);
        states.push(next);
        onwards(tokens, states, 4)
    });
    is_found("swapped cache", &swapped, &[(3, prefix)]);
    // In all: a prompt cache that was mistaken for this prompt's.
    let mistaken = cheat(&|tokens| {
        let strange = states(&mut executor(), &other(tokens));
        let mut all = states(&mut executor(), tokens);
        all.truncate(1);
        for (layer, strange) in (1..tail()).zip(&strange) {
            let next = stale_layer(tokens, layer, all.last().unwrap(), strange, prefix);
            all.push(next);
        }
        all
    });
    let wanted: Vec<_> = (1..tail()).map(|l| (l, prefix)).collect();
    is_found("another prompt's cache", &mistaken, &wanted);
}

/// The model with less of its cache.
struct Windowed {
    program: Checked,
}

impl Constants for Windowed {
    fn program(&self) -> &Checked {
        &self.program
    }
    fn matrix(&self, t: u16) -> Matrix<'_> {
        NODE.artifact.matrix(t)
    }
    fn table(&self, t: u16) -> &[i32] {
        NODE.artifact.table(t)
    }
    fn rotary(&self, t: u16) -> &[i16] {
        NODE.artifact.rotary(t)
    }
    fn vector(&self, t: u16) -> &[i32] {
        NODE.artifact.vector(t)
    }
}

#[test]
fn a_truncated_cache_is_found_by_the_layers_that_dropped_it() {
    let window = 9;
    for dropped in [vec![4], (1..tail()).collect::<Vec<_>>()] {
        let mut altered = program().program().clone();
        for layer in &dropped {
            if let Op::Attend { reach, .. } = &mut altered.ops[attend_of(*layer)] {
                *reach = Reach::Window(window);
            }
        }
        let model = Arc::new(Windowed { program: altered.check().unwrap() });
        let found = cheat(&|tokens| {
            let pool = Arc::new(Pool::new(1));
            states(&mut Executor::new(model.clone(), Kernel::from_environment().unwrap(), pool), tokens)
        });
        let wanted: Vec<_> = dropped.iter().map(|l| (*l, window as usize)).collect();
        is_found("truncated cache", &found, &wanted);
    }
}

#[test]
fn an_auditor_with_one_layer_gives_the_same_verdict() {
    let a = &NODE.artifact;
    let tree = ModelTree::new(a.as_ref(), a.text(), a.tokenizer_json());
    let mut wrong = STATES.clone();
    wrong[1] = changed(&STATES[1], 50, 7);
    for layer in 0..=tail() {
        let bytes = extract(a.as_ref(), &tree, layer).unwrap();
        let model = Arc::new(LayerModel::read(&bytes, a.root()).unwrap());
        let subject = subject();
        for states in [&*STATES, &wrong] {
            let evidence = Evidence {
                input: layer.checked_sub(1).map(|i| &states[i]),
                output: states.get(layer),
                // A layer between the first and the last is checked without knowing a single id.
                record: (layer == 0 || layer == tail()).then_some(&RECORD),
                subject: (layer == tail()).then_some(&subject),
            };
            let constants: Arc<dyn Constants> = model.clone();
            let pool = Arc::new(Pool::new(1));
            let mut executor = Executor::new(constants, Kernel::from_environment().unwrap(), pool);
            let got = check_shard(&Shard::of(&model), &evidence, &mut executor).unwrap();
            assert_eq!(got, check(layer, &RECORD, states, &mut self::executor()));
        }
        if layer == 2 {
            let evidence =
                Evidence { input: Some(&STATES[1]), output: Some(&STATES[2]), ..Evidence::default() };
            let got = check_shard(&Shard::of(&model), &evidence, &mut ByReference(model.as_ref())).unwrap();
            assert_eq!(got, check(layer, &RECORD, &STATES, &mut self::executor()));
        }
    }
}

#[test]
fn what_is_not_checked_is_not_said_to_hold() {
    let all = audit(&RECORD, &STATES);
    let without = |layer: usize| {
        let mut some = all.clone();
        some.remove(layer);
        joined(&RECORD, &some)
    };
    for layer in 0..=tail() {
        let verdict = without(layer);
        assert!(!verdict.holds && verdict.failure.is_none(), "nobody is to blame for it");
        let missing: Vec<_> = verdict.checks.iter().filter(|c| c.outcome == Outcome::NotRun).collect();
        assert_eq!(missing[0].name, format!("layer {layer}"));
        assert_eq!(missing.len(), if layer == tail() { 3 } else { 1 });
    }
    assert!(!joined(&RECORD, &[]).holds);
    let not_run = |verdicts: &[ShardVerdict]| {
        let verdict = joined(&RECORD, verdicts);
        assert!(!verdict.holds);
        let count = verdict.checks.iter().filter(|c| c.outcome == Outcome::NotRun).count();
        (count, verdict.failure.map(|f| f.code))
    };
    let altered = |layer: usize, change: &dyn Fn(&mut ShardVerdict)| {
        let mut some = all.clone();
        change(&mut some[layer]);
        some
    };
    // Twice, even if the same; of another model, length, answer or form.
    assert_eq!(not_run(&[all.clone(), vec![all[2].clone()]].concat()), (1, None));
    assert_eq!(not_run(&altered(1, &|v| v.model = ModelRoot::ZERO)), (1, None));
    assert_eq!(not_run(&altered(1, &|v| v.layers += 1)), (1, None));
    assert_eq!(not_run(&altered(1, &|v| v.positions -= 1)), (1, None));
    assert_eq!(not_run(&altered(1, &|v| v.input = None)), (1, None));
    assert_eq!(not_run(&altered(1, &|v| v.output = None)), (1, None));
    assert_eq!(not_run(&altered(0, &|v| v.answer = None)), (1, None));
    assert_eq!(not_run(&altered(0, &|v| v.answer.as_mut().unwrap().digests = DigestRoot::ZERO)), (1, None));
}

#[test]
fn layers_of_two_executions_do_not_join() {
    let mut all = audit(&RECORD, &STATES);
    // Layer 2 was checked for other states, which fit each other as well.
    let strange: Vec<u32> = fed(&RECORD).iter().map(|t| (t + 9) % 400).collect();
    let other = states(&mut executor(), &strange);
    let evidence = Evidence { input: Some(&other[1]), output: Some(&other[2]), ..Evidence::default() };
    all[2] = check_shard(&shard(2), &evidence, &mut executor()).unwrap();
    assert!(all[2].verdict.holds);
    let verdict = joined(&RECORD, &all);
    assert!(!verdict.holds);
    assert_eq!(verdict.failure.unwrap().code, FailureCode::Boundary);
    let failed = |c: &&Check| c.outcome == Outcome::Failed;
    assert_eq!(verdict.checks.iter().filter(failed).count(), 2, "before it and behind it");
}

#[test]
fn changed_answers_fail_at_their_ends() {
    // An id of the answer, resealed: the first layer embeds another, and the last chooses another.
    let mut record = RECORD.clone();
    record.transcript.output_ids[5] ^= 1;
    NODE.sign(&mut record);
    let position = record.transcript.prompt_ids.len() as u32 + 5;
    let verdicts = audit(&record, &STATES);
    let wanted =
        [(0, FailureCode::Boundary, Some(position)), (tail() as u32, FailureCode::OutputId, Some(5))];
    assert_eq!(failing(&verdicts), wanted);
    // A digest.
    let mut record = RECORD.clone();
    record.digests.0[1] = Hash::ZERO;
    NODE.sign(&mut record);
    let verdicts = audit(&record, &STATES);
    assert_eq!(failing(&verdicts), [(tail() as u32, FailureCode::Digest, Some(1))]);
    // Verdicts about the honest answer are none about this one.
    let honest = audit(&RECORD, &STATES);
    let verdict = joined(&record, &honest);
    assert!(!verdict.holds);
    assert!(verdict.checks.iter().any(|c| c.name == "layer 0" && c.outcome == Outcome::NotRun));
    // A transcript that cannot be executed.
    let mut record = RECORD.clone();
    record.transcript.output_ids = vec![5; 4096];
    NODE.sign(&mut record);
    for layer in [0, tail()] {
        let verdict = check(layer, &record, &STATES, &mut executor());
        assert_eq!(verdict.verdict.failure.unwrap().code, FailureCode::Limits);
    }
    assert!(!joined(&record, &honest).holds);
}

#[test]
fn a_guide_needs_its_tokenizer() {
    let guide = Some(Guide::Regex("[A-Z][a-z]+( [a-z]+)*\\.".into()));
    let record = NODE.answer(Request { guide, max_tokens: 20, logprobs: Some(2), ..NODE.request() });
    let states = states(&mut executor(), &fed(&record));
    let mut all = audit(&record, &states);
    let verdict = joined(&record, &all);
    assert!(verdict.holds, "{verdict:?}");
    assert!(verdict.checks.iter().any(|c| c.name == "probabilities"));
    let evidence = Evidence { input: states.last(), record: Some(&record), ..Evidence::default() };
    all[tail()] = check_shard(&shard(tail()), &evidence, &mut executor()).unwrap();
    let checks = &all[tail()].verdict.checks;
    let tokens = checks.iter().find(|c| c.name == "tokens").unwrap();
    assert_eq!(tokens.outcome, Outcome::NotRun);
    assert_eq!(checks.iter().filter(|c| c.outcome == Outcome::Passed).count(), 2, "probabilities, digests");
    let verdict = joined(&record, &all);
    assert!(!verdict.holds && verdict.failure.is_none());
}

#[test]
fn states_of_other_shapes_fail_and_missing_ones_are_the_auditors_own_matter() {
    let width = STATES[0].width();
    let wide = Boundary::new(2 * width, STATES[1].numbers()[..2 * width].to_vec()).unwrap();
    let short = front(&STATES[2], 7);
    let evidence = |input, output| Evidence { input, output, ..Evidence::default() };
    for (input, output) in
        [(&wide, &STATES[2]), (&STATES[1], &wide), (&STATES[1], &short), (&short, &STATES[2])]
    {
        let verdict = check_shard(&shard(2), &evidence(Some(input), Some(output)), &mut executor()).unwrap();
        let failure = verdict.verdict.failure.unwrap();
        assert_eq!((failure.code, failure.position), (FailureCode::Boundary, None));
    }
    // More positions than the model's window.
    let context = program().program().context as usize;
    let long = Boundary::new(width, vec![0; width * (context + 1)]).unwrap();
    let verdict = check_shard(&shard(2), &evidence(Some(&long), Some(&long)), &mut executor()).unwrap();
    assert_eq!(verdict.verdict.failure.unwrap().code, FailureCode::Boundary);

    let missing = |layer: usize, evidence: &Evidence<'_>| {
        let error = check_shard(&shard(layer), evidence, &mut executor()).unwrap_err();
        assert!(matches!(error, ShardError::Missing { .. }));
        error.to_string()
    };
    let with_record = Evidence { record: Some(&RECORD), ..Evidence::default() };
    assert!(missing(2, &evidence(None, Some(&STATES[2]))).contains("state before"));
    assert!(missing(2, &evidence(Some(&STATES[1]), None)).contains("state after"));
    assert!(missing(0, &with_record).contains("state after"));
    assert!(missing(0, &evidence(None, Some(&STATES[0]))).contains("answer"));
    assert!(missing(tail(), &with_record).contains("state before"));
    assert!(missing(tail(), &evidence(STATES.last(), None)).contains("answer"));
    let none = Shard { layer: tail() + 1, ..shard(0) };
    let error = check_shard(&none, &Evidence::default(), &mut executor()).unwrap_err();
    assert_eq!(error, ShardError::NoLayer { layer: tail() + 1, layers: tail() + 1 });
}

#[test]
fn a_commitment_is_over_blocks_of_32_positions() {
    let width = 300;
    let numbers: Vec<i32> = (0..35 * width).map(|i| i * 7_777 - 5_000_000).collect();
    let state = Boundary::new(width as usize, numbers.clone()).unwrap();
    let leaf = |run: &[i32]| merkle::leaf(&run.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>());
    let rows: Vec<&[i32]> = numbers.chunks(width as usize).collect();
    let block = |rows: &[&[i32]]| merkle::root(rows.iter().flat_map(|r| r.chunks(256)).map(leaf));
    let wanted = merkle::root([block(&rows[..32]), block(&rows[32..])]);
    assert_eq!(state.commitment(program().program()), wanted);
    assert_ne!(changed(&state, 34, 299).commitment(program().program()), wanted);
    assert_ne!(front(&state, 34).commitment(program().program()), wanted);
}

#[test]
fn a_boundary_has_one_encoding() {
    let state = front(&STATES[1], 3);
    let bytes = state.to_canonical_bytes();
    assert_eq!(Boundary::from_canonical_bytes(&bytes).as_ref(), Ok(&state));
    let width = state.width() as u32;
    let mut wanted = b"\x10assay/boundary/1".to_vec();
    wanted.extend([width, 3].iter().flat_map(|n| n.to_le_bytes()));
    wanted.extend(state.numbers().iter().flat_map(|n| n.to_le_bytes()));
    assert_eq!(bytes, wanted);
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(Boundary::from_canonical_bytes(&longer).is_err());
    assert!(Boundary::from_canonical_bytes(&bytes[..bytes.len() - 1]).is_err());
    // Shapes at the limits and one past them; a shape alone takes no memory.
    let shaped = |width: u32, positions: u32, numbers: usize| {
        let mut bytes = b"\x10assay/boundary/1".to_vec();
        bytes.extend([width, positions].iter().flat_map(|n| n.to_le_bytes()));
        bytes.resize(bytes.len() + numbers * 4, 0);
        Boundary::from_canonical_bytes(&bytes)
    };
    assert!(shaped(131_072, 1, 131_072).is_ok());
    assert!(shaped(131_073, 1, 131_073).is_err());
    assert!(shaped(1, 131_072, 131_072).is_ok());
    assert!(shaped(1, 131_073, 131_073).is_err());
    assert!(shaped(0, 5, 0).is_err());
    assert!(shaped(5, 0, 0).is_err());
    assert!(shaped(131_072, 131_072, 1000).is_err());
    assert_eq!(Boundary::new(0, vec![]), None);
    assert_eq!(Boundary::new(3, vec![1; 4]), None);
    assert_eq!(Boundary::new(3, vec![]), None);
    assert_eq!(Boundary::new(1, vec![0; 131_073]), None);
    assert_eq!(<Boundary as assay_core::canonical::Canonical>::BYTES_MAX, BOUNDARY_BYTES_MAX);
    assert!(matches!(Boundary::from_canonical_bytes(b"x"), Err(CanonicalError::Tag { .. })));
}

#[test]
fn verdicts_travel_as_json() {
    let verdict = check(2, &RECORD, &STATES, &mut executor());
    let json = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<ShardVerdict>(&json).unwrap(), verdict);
    let mut states = STATES.clone();
    states[2] = changed(&STATES[2], 1, 2);
    let verdict = check(2, &RECORD, &states, &mut executor());
    let Difference { position, element, .. } = verdict.difference.unwrap();
    assert_eq!((position, element), (1, 2));
    let json = serde_json::to_string(&verdict).unwrap();
    assert_eq!(serde_json::from_str::<ShardVerdict>(&json).unwrap(), verdict);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever bytes are changed in a state: it is none any more, or it is another one, and its layer fails.
    #[test]
    fn any_changed_byte_of_a_state_is_found(at in any::<prop::sample::Index>(), change in 1u8..) {
        static SHORT: LazyLock<(Vec<Boundary>, Vec<u8>)> = LazyLock::new(|| {
            let two: Vec<Boundary> = STATES.iter().take(2).map(|s| front(s, 3)).collect();
            let bytes = two[1].to_canonical_bytes();
            (two, bytes)
        });
        let mut bytes = SHORT.1.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(state) = Boundary::from_canonical_bytes(&bytes) {
            prop_assert!(state != SHORT.0[1]);
            let evidence = Evidence { input: Some(&SHORT.0[0]), output: Some(&state), ..Evidence::default() };
            let verdict = check_shard(&shard(1), &evidence, &mut executor()).unwrap();
            prop_assert!(!verdict.verdict.holds);
        }
    }

    #[test]
    fn noise_is_no_state(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), tagged in any::<bool>()) {
        if tagged {
            bytes.splice(0..0, *b"\x10assay/boundary/1");
        }
        if let Ok(state) = Boundary::from_canonical_bytes(&bytes) {
            prop_assert_eq!(state.to_canonical_bytes(), bytes);
        }
    }

    /// States that no execution makes are compared like any others, without a panic and by all alike.
    #[test]
    fn any_numbers_are_executed(numbers in prop::collection::vec(any::<i32>(), 64), size in 0u32..31) {
        let width = STATES[0].width();
        let at = |i: usize| numbers[i % numbers.len()].rotate_left(i as u32 / 64) >> size;
        let state = Boundary::new(width, (0..4 * width).map(at).collect()).unwrap();
        let evidence = Evidence { input: Some(&state), output: Some(&state), ..Evidence::default() };
        let verdict = check_shard(&shard(1), &evidence, &mut executor()).unwrap();
        let by_reference = check_shard(&shard(1), &evidence, &mut ByReference(NODE.artifact.as_ref())).unwrap();
        prop_assert_eq!(verdict, by_reference);
    }
}
