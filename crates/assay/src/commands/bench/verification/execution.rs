//! What it costs to generate an answer, and to execute it again: the two costs that every check is measured beside.
//!
//! One thread. A model that is not made whole is measured as its layers and its head: `head + layers · all / made`.

use std::cell::RefCell;
use std::sync::Arc;

use assay_core::digest::DigestBuilder;
use assay_core::request::Sampling;
use assay_engine::batch::BatchLimits;
use assay_engine::cache::Sequence;
use assay_engine::forward::{Companion, Executor, Segment, Values};
use assay_engine::import::synthetic::memory::InMemory;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::Program;
use assay_engine::replay::Execution as _;
use assay_engine::semantics::adjust::History;
use assay_engine::semantics::scale::Scale;

use super::clock::{core_ms, median};
use super::parts::{Laps, Parts, kind};
use super::shapes::Model;
use crate::commands::bench::tokens;

/// Tokens decoded at each of the places where decoding is sampled, after one that is not counted.
const DECODED: usize = 8;
/// Streams of a provider that is busy.
pub const STREAMS: usize = 16;
/// Scale of keys and values that nobody computed: numbers up to about 5.
const CACHED: Scale = Scale { mantissa: 40_000, exponent: -20 };

/// Tokens are drawn from the whole distribution, as servers do by default.
pub fn sampling() -> Sampling {
    Sampling { temperature_micro: 1_000_000, seed: Some(1), ..Sampling::GREEDY }
}

/// Whether logits are computed where a token is chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    With,
    Without,
}

/// What generation and re-execution of one length cost, each for a position.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// Prompt, then tokens one by one.
    pub generation: f64,
    /// The same, with [`STREAMS`] streams decoding together.
    pub generation_16: f64,
    /// One pass over all positions, logits where tokens are chosen, choice and digests included.
    pub reexecution: Parts,
    /// Generation and re-execution from a single layer, where more were measured.
    pub from_one: Option<(f64, f64)>,
    /// Choosing one token.
    pub choice: Choice,
}

/// The part of an execution in which tokens are chosen.
pub const CHOICE: &str = "choice of tokens";

/// Choosing one token: as servers do, and with the bias that makes the answers of audits certain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    pub plain: f64,
    pub biased: f64,
}

/// The token that audited answers repeat, and a bias that makes it certain: so they are honest without having been generated, which
/// would take hours for the largest models.
pub const REPEATED: (u32, i32) = (3, 100_000_000);

/// Measures a model.
pub struct Bench {
    layers: f64,
    made: (f64, Executor),
    none: Executor,
    one: Option<Executor>,
}

/// An executor on this thread alone.
pub fn executor(model: &Arc<InMemory>, kernel: Kernel) -> Executor {
    Executor::new(Arc::clone(model) as _, kernel, Arc::new(Pool::new(1)))
}

impl Bench {
    pub fn new(model: &Model, kernel: Kernel) -> Bench {
        Bench {
            layers: f64::from(model.size.layers),
            made: (f64::from(model.made.layers()), executor(&model.made, kernel)),
            none: executor(&model.none, kernel),
            one: model.one.as_ref().map(|m| executor(m, kernel)),
        }
    }

    /// Medians of `rounds` rounds over `t` positions.
    pub fn measure(&mut self, t: usize, rounds: usize) -> Base {
        let all: Vec<Base> = (0..rounds.max(1)).map(|_| self.round(t)).collect();
        let middle = |of: &dyn Fn(&Base) -> f64| median(all.iter().map(of).collect());
        let from_one = self.one.as_ref().map(|_| {
            let of = |pick: fn((f64, f64)) -> f64| middle(&|b| b.from_one.map_or(0.0, pick));
            (of(|p| p.0), of(|p| p.1))
        });
        let reexecution: Vec<Parts> = all.iter().map(|b| b.reexecution.clone()).collect();
        Base {
            generation: middle(&|b| b.generation),
            generation_16: middle(&|b| b.generation_16),
            reexecution: Parts::median(&reexecution),
            from_one,
            choice: Choice { plain: middle(&|b| b.choice.plain), biased: middle(&|b| b.choice.biased) },
        }
    }

    fn round(&mut self, t: usize) -> Base {
        let generated = |prefill: f64, decode: f64| (prefill + decode * (t / 2) as f64) / t as f64;
        let prefill = self.whole(&mut |e, head| prefill(e, t / 2, head)).total();
        let alone = self.whole(&mut |e, head| decode(e, t, 1, head)).total();
        let together = self.whole(&mut |e, head| decode(e, t, STREAMS, head)).total();
        let reexecution = self.whole(&mut |e, head| replay(e, t, head)).times(1.0 / t as f64);
        // Where logits were just computed: the same ones over and over would be chosen from faster.
        let plain = reexecution.get(CHOICE) * t as f64 / (t / 2 + 1) as f64;
        let from_one = match (
            self.with_one(&mut |e, head| self::prefill(e, t / 2, head)),
            self.with_one(&mut |e, head| decode(e, t, 1, head)),
            self.with_one(&mut |e, head| replay(e, t, head)),
        ) {
            (Some(p), Some(d), Some(r)) => Some((generated(p, d), r / t as f64)),
            _ => None,
        };
        Base {
            generation: generated(prefill, alone),
            generation_16: generated(prefill, together),
            reexecution,
            from_one,
            choice: Choice { plain, biased: biased_choice(&mut self.none) },
        }
    }

    /// A cost of the whole model, from what is made of it.
    fn whole(&mut self, work: Work<'_>) -> Parts {
        let (made, executor) = &mut self.made;
        if *made >= self.layers {
            return work(executor, Head::With);
        }
        let layers =
            work(executor, Head::Without).beyond(&work(&mut self.none, Head::Without), self.layers / *made);
        layers.plus(&work(&mut self.none, Head::With))
    }

    /// The same from a single layer.
    fn with_one(&mut self, work: Work<'_>) -> Option<f64> {
        let one = self.one.as_mut()?;
        let layers = work(one, Head::Without).beyond(&work(&mut self.none, Head::Without), self.layers);
        Some(layers.total() + work(&mut self.none, Head::With).total())
    }
}

type Work<'a> = &'a mut dyn FnMut(&mut Executor, Head) -> Parts;

fn ids(executor: &Executor, count: usize) -> Vec<u32> {
    tokens(count, executor.constants().program().program().vocabulary)
}

/// Reads a prompt as a provider does: in chunks, with logits at its end.
fn prefill(executor: &mut Executor, prompt: usize, head: Head) -> Parts {
    let tokens = ids(executor, prompt);
    let mut sequence = Sequence::new(executor.constants().program().caches(), prompt);
    let ms = core_ms(|| {
        let mut left = prompt;
        for chunk in tokens.chunks(BatchLimits::default().rows_max) {
            left -= chunk.len();
            let last = left == 0 && head == Head::With;
            let logits_from = chunk.len() - usize::from(last);
            executor.forward(&mut [Segment { sequence: &mut sequence, tokens: chunk, logits_from }]);
        }
    });
    Parts::of("prefill", ms)
}

/// Milliseconds of one stream for a token, at the beginning, the middle and the end of an answer that fills the second half of
/// `t` positions: attention grows linearly in between. Earlier positions hold keys and values that nobody computed.
fn decode(executor: &mut Executor, t: usize, streams: usize, head: Head) -> Parts {
    let places = [t / 2, t * 3 / 4 - DECODED / 2, t - DECODED].map(|p| p.max(t / 2).min(t - DECODED));
    let mut tokens = ids(executor, streams);
    let mut spent = 0.0;
    for place in places {
        let caches = executor.constants().program().caches().to_vec();
        let mut sequences: Vec<Sequence> = (0..streams).map(|_| filled(&caches, place - 1, t)).collect();
        for counted in [1, DECODED].into_iter().zip([0.0, 1.0]) {
            let (steps, weight) = counted;
            spent += weight
                * core_ms(|| {
                    for step in 0..steps {
                        step_all(executor, &mut sequences, &mut tokens, step, head);
                    }
                });
        }
    }
    Parts::of("decode", spent / (places.len() * DECODED * streams) as f64)
}

fn filled(
    caches: &[assay_engine::program::check::CacheShape],
    positions: usize,
    capacity: usize,
) -> Sequence {
    let mut sequence = Sequence::new(caches, capacity);
    for (layer, c) in caches.iter().enumerate() {
        let numbers: Vec<i8> = (0..c.kv_heads * c.head_dim).map(|i| (i * 37) as i8).collect();
        let scales = vec![CACHED; c.kv_heads as usize];
        for _ in 0..positions {
            sequence.restore(layer, (&numbers, &scales), (&numbers, &scales));
        }
    }
    sequence.resume(positions);
    sequence
}

/// The next token of every stream.
fn step_all(
    executor: &mut Executor,
    sequences: &mut [Sequence],
    tokens: &mut [u32],
    step: usize,
    head: Head,
) {
    let logits_from = usize::from(head == Head::Without);
    let mut segments: Vec<Segment<'_>> = sequences
        .iter_mut()
        .zip(tokens.iter())
        .map(|(sequence, token)| Segment { sequence, tokens: std::slice::from_ref(token), logits_from })
        .collect();
    let kernel = executor.kernel();
    let output = executor.forward(&mut segments);
    if head == Head::With {
        let (history, sampling) = (History::new(&[]), sampling());
        for (i, token) in tokens.iter_mut().enumerate() {
            *token = kernel.choose(output.logits(i), &history, None, &sampling, &[i as u8; 32], step as u32);
        }
    }
}

/// One teacher-forced pass over `t` positions, tokens chosen and digests made as a verifier does.
fn replay(executor: &mut Executor, t: usize, head: Head) -> Parts {
    let tokens = ids(executor, t);
    let constants = Arc::clone(executor.constants());
    let (first, sampling) = (t / 2 - 1, sampling());
    let logits_from = if head == Head::With { first } else { t };
    let laps = RefCell::new(Laps::new());
    let ms = core_ms(|| {
        let mut digests = DigestBuilder::new();
        let history = History::new(&tokens[..t / 2]);
        let mut beside = Beside { program: constants.program().program(), laps: &laps };
        executor.replay_beside(&tokens, logits_from, &mut beside, &mut |row| {
            let (numbers, scale) = row.hidden;
            digests.push(row.position as u32, numbers, scale.mantissa, scale.exponent);
            laps.borrow_mut().lap("digests");
            if let Some(logits) = row.logits {
                let index = (row.position - first) as u32;
                std::hint::black_box(row.kernel.choose(logits, &history, None, &sampling, &[7; 32], index));
                laps.borrow_mut().lap(CHOICE);
            }
        });
        digests.finish()
    });
    laps.into_inner().parts.scaled_to(ms)
}

/// Beside an executor: notes what each operation took.
pub struct Beside<'a> {
    pub program: &'a Program,
    pub laps: &'a RefCell<Laps>,
}

impl Companion for Beside<'_> {
    fn made(&mut self, op: usize, _: &Values<'_>) {
        self.laps.borrow_mut().lap(kind(self.program, op));
    }
}

/// Choosing one token with the bias that makes it certain.
fn biased_choice(executor: &mut Executor) -> f64 {
    const TIMES: u32 = 32;
    let mut logits = vec![];
    let token = ids(executor, 1);
    executor.replay(&token, 0, &mut |row| logits = row.logits.unwrap_or(&[]).to_vec());
    let history = History::new(&[]);
    let sampling = Sampling { bias: vec![REPEATED], ..sampling() };
    let chosen = |i| executor.kernel().choose(&logits, &history, None, &sampling, &[7; 32], i);
    core_ms(|| (0..TIMES).map(chosen).max()) / f64::from(TIMES)
}
