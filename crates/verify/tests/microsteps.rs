//! Every number of every part of a trace follows by its micro-step from the numbers before it, whoever executed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use assay_core::request::Sampling;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::Head;
use assay_engine::replay::{ByReference, Execution};
use assay_engine::semantics::adjust::{History, Mask};
use assay_engine::semantics::sample::choose as choose_token;
use assay_engine::vectors;
use assay_verify::microstep::{Cell, Choice, Rule, choose, evaluate, partials, rule};
use assay_verify::trace::walk::{Block, Subject, Trace, Walked};

fn ids(count: u32, vocabulary: u32, seed: u64) -> Vec<u32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % u64::from(vocabulary)) as u32
    };
    (0..count).map(|_| next()).collect()
}

fn plain() -> Choice {
    Choice { sampling: Sampling::GREEDY, guided: false, seed: [7; 32] }
}

fn subject(tokens: Vec<u32>, prompt: u32, choice: Choice, masks: Vec<Mask>) -> Subject {
    Subject { tokens, prompt, choice, masks }
}

/// Evaluates every `stride`-th number of a block and compares.
fn check(trace: &Trace<'_>, block: &Block, stride: usize) -> usize {
    let mut checked = 0;
    for op in 0..block.steps() as u16 {
        for (p, part) in block.parts(op).unwrap().iter().enumerate() {
            let shape = part.shape();
            for i in (0..shape.rows * shape.columns).step_by(stride) {
                let (row, column) = (i / shape.columns, i % shape.columns);
                let cell =
                    Cell { op, part: p as u8, position: block.first(op) + row as u32, column: column as u32 };
                let mut source = Walked { trace, block };
                let rule = rule(&mut source, cell).unwrap();
                if rule == Rule::Given {
                    continue;
                }
                assert_eq!(evaluate(&mut source, cell), Some(part.get(row, column)), "{cell:?} {rule:?}");
                if let Rule::Fold { runs, from } = rule {
                    let partials = partials(&mut source, cell).unwrap();
                    assert_eq!(partials.len(), runs as usize);
                    assert_eq!(partials.last().copied().unwrap_or(from), part.get(row, column));
                }
                checked += 1;
            }
        }
    }
    checked
}

#[test]
fn every_number_of_every_operation_follows() {
    for (i, model) in vectors::models().iter().enumerate() {
        let program = model.program().program();
        let tokens = ids(70, program.vocabulary, 5 + i as u64);
        let mut execution = ByReference(model.as_ref());
        let trace = Trace::new(model.as_ref(), subject(tokens, 40, plain(), vec![]), &mut execution);
        for b in 0..trace.blocks() {
            let block = trace.block(&mut execution, b);
            let checked = check(&trace, &block, if b == 1 { 1 } else { 7 });
            assert!(checked > 500, "model {i}, block {b}: {checked}");
        }
    }
}

#[test]
fn every_engine_gives_the_same_trace() {
    for model in vectors::models() {
        let program = model.program().program();
        let tokens = ids(90, program.vocabulary, 77);
        let walk = |execution: &mut dyn Execution| {
            let subject = subject(tokens.clone(), 30, plain(), vec![]);
            let trace = Trace::new(model.as_ref(), subject, execution);
            let blocks = (0..trace.blocks()).map(|b| trace.block(execution, b).commitments());
            (blocks.collect::<Vec<_>>(), trace.carries(), trace.root())
        };
        let want = walk(&mut ByReference(model.as_ref()));
        for kernel in Kernel::available() {
            let mut executor = Executor::new(Arc::clone(&model), kernel, Arc::new(Pool::new(2)));
            assert_eq!(walk(&mut executor), want, "{kernel:?}");
        }
    }
}

#[test]
fn what_a_block_carries_is_what_it_holds() {
    for model in vectors::models() {
        let program = model.program().program();
        let tokens = ids(66, program.vocabulary, 3);
        let mut execution = ByReference(model.as_ref());
        let trace = Trace::new(model.as_ref(), subject(tokens, 9, plain(), vec![]), &mut execution);
        for b in 0..trace.blocks() {
            let block = trace.block(&mut execution, b);
            for op in program.carried() {
                assert_eq!(trace.carried_parts(b, op).unwrap(), block.parts(op).unwrap(), "block {b}, {op}");
            }
        }
    }
}

/// Ways to choose, each of which keeps other tokens.
fn samplings() -> Vec<Sampling> {
    let base = Sampling { temperature_micro: 1_000_000, top_p_micro: 1_000_000, ..Sampling::GREEDY };
    vec![
        Sampling::GREEDY,
        base.clone(),
        Sampling { top_k: 5, ..base.clone() },
        Sampling { top_k: 1, ..base.clone() },
        Sampling { top_k: 1_000, ..base.clone() },
        Sampling { top_p_micro: 900_000, ..base.clone() },
        Sampling { top_p_micro: 0, ..base.clone() },
        Sampling { top_k: 30, top_p_micro: 500_000, min_p_micro: 100_000, ..base.clone() },
        Sampling { min_p_micro: 999_999, temperature_micro: 2_000_000, ..base.clone() },
        Sampling {
            presence_micro: 500_000,
            frequency_micro: -250_000,
            repetition_micro: 1_300_000,
            bias: vec![(1, 90_000_000), (7, -100_000_000), (50, 3)],
            ..base.clone()
        },
        Sampling { repetition_micro: 500_000, bias: vec![(3, 100_000_000)], ..Sampling::GREEDY },
    ]
}

#[test]
fn every_choice_follows() {
    let models = vectors::models();
    for (m, model) in
        models.iter().enumerate().filter(|(_, m)| matches!(m.program().program().head, Head::Tokens { .. }))
    {
        let program = model.program().program();
        let (_, logits) = program.tokens();
        for (s, sampling) in samplings().into_iter().enumerate() {
            // Masks that leave some, one, none (all), and all tokens.
            let masks: Vec<Mask> = (0..64u32)
                .map(|i| match i % 4 {
                    0 => Mask::only(&[1, 7, 33, 82]),
                    1 => Mask::only(&[i % 83]),
                    2 => Mask::only(&[]),
                    _ => Mask::from_words(vec![u32::MAX; 3]),
                })
                .collect();
            let guided = (s + m) % 2 == 0;
            let prompt = 25;
            let tokens = ids(64, program.vocabulary, 100 + s as u64);
            let choice = Choice { sampling: sampling.clone(), guided, seed: [s as u8; 32] };
            let mut execution = ByReference(model.as_ref());
            let given = if guided { masks.clone() } else { vec![] };
            let subject = subject(tokens.clone(), prompt, choice.clone(), given);
            let trace = Trace::new(model.as_ref(), subject, &mut execution);
            let block = trace.block(&mut execution, 1);
            check(&trace, &block, 11);
            let chosen = choose(program.ops.len());
            let numbers = block.parts(logits).unwrap().last().unwrap();
            for position in 32..64u32 {
                let row = (position - 32) as usize;
                let l: Vec<i32> = (0..numbers.shape().columns).map(|c| numbers.get(row, c) as i32).collect();
                let mut history = History::new(&tokens[..prompt as usize]);
                tokens[prompt as usize..=position as usize].iter().for_each(|t| history.push(*t));
                let index = position + 1 - prompt;
                let mask = guided.then(|| &masks[index as usize]);
                let want = choose_token(&l, &history, mask, &sampling, &choice.seed, index);
                let cell = Cell { op: chosen, part: 4, position, column: 0 };
                assert_eq!(block.get(cell), Some(i64::from(want)), "model {m}, sampling {s}, {position}");
                assert_eq!(evaluate(&mut Walked { trace: &trace, block: &block }, cell), block.get(cell));
            }
        }
    }
}
