//! The light audit: opened positions, checked with a key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use assay_core::canonical::Canonical as _;
use assay_core::id::Hash;
use assay_engine::constants::Constants as _;
use assay_engine::import::synthetic::memory::InMemory;
use assay_engine::pool::Pool;
use assay_engine::program::Shape;
use assay_verify::freivalds::SOUNDNESS_BITS;
use assay_verify::light::{Challenge, Checker, Fed, Key, Known, Model, Opening, Prover, Secret, Seed, Stage};

use super::answer::{Answer, ROOT};
use super::{Measured, cache_bytes};
use crate::commands::bench::verification::Setup;
use crate::commands::bench::verification::clock::{core_ms, median};
use crate::commands::bench::verification::execution::{Base, CHOICE, executor};
use crate::commands::bench::verification::parts::Parts;
use crate::commands::bench::verification::row::Tier;
use crate::commands::bench::verification::shapes;

/// Most multiplications of a pass of the prover: more layers than this allows are multiples of those that were executed.
const PASS: u64 = 4_000_000_000_000;
/// Beacons among which a typical draw is looked for.
const BEACONS: u8 = 64;

/// What an audit of a model of some layers took: milliseconds for an opened token, and sizes.
#[derive(Clone, Debug, Default)]
struct Run {
    parts: Parts,
    opening_bytes: f64,
    key_bytes: f64,
    /// Bytes of a key in memory, beside those of the file.
    expanded_bytes: f64,
    /// Prover's milliseconds for a position.
    prover: f64,
}

impl Run {
    /// What more of the same layers would make of it.
    fn extended(&self, none: &Run, factor: f64) -> Run {
        let line = |some: f64, none: f64| none + (some - none) * factor;
        Run {
            parts: self.parts.beyond(&none.parts, factor).plus(&none.parts),
            opening_bytes: line(self.opening_bytes, none.opening_bytes),
            key_bytes: line(self.key_bytes, none.key_bytes),
            expanded_bytes: line(self.expanded_bytes, none.expanded_bytes),
            prover: line(self.prover, none.prover),
        }
    }
}

/// Measures the tier.
pub fn measure(model: &shapes::Model, t: u32, setup: &Setup, base: &Base) -> Result<Measured> {
    let size = model.size;
    let affordable = PASS / (size.layer_weights() * u64::from(t));
    let layers = size.layers.min(u32::try_from(affordable).unwrap_or(u32::MAX)).max(1);
    let auditor = Auditor { t, setup, base };
    let some = auditor.run(&Arc::new(model.made.with_layers(layers)))?;
    let none = auditor.run(&model.none)?;
    let all = f64::from(size.layers);
    let run = some.extended(&none, all / f64::from(layers));
    let from_one_layer = match layers == size.layers && layers > 1 {
        true => Some(auditor.run(model.single())?.extended(&none, all).parts.total()),
        false => None,
    };
    let opened = setup.opened;
    Ok(Measured {
        tier: Tier::Light,
        parts: run.parts,
        from_one_layer,
        layers,
        prover_core_ms_per_token: run.prover,
        bytes_per_token: run.opening_bytes / f64::from(opened),
        key_bytes: run.key_bytes,
        memory_bytes: run.key_bytes
            + run.expanded_bytes
            + 2.0 * run.opening_bytes
            + cache_bytes(model, t) * all,
        checked: opened,
        soundness_bits: SOUNDNESS_BITS,
    })
}

struct Auditor<'a> {
    t: u32,
    setup: &'a Setup,
    base: &'a Base,
}

/// An answer, and what its provider opened of it.
struct Audited {
    answer: Answer,
    challenge: Challenge,
    opening: Vec<u8>,
    prover: f64,
}

impl Auditor<'_> {
    fn run(&self, model: &Arc<InMemory>) -> Result<Run> {
        let kernel = self.setup.kernel;
        let audited = self.audited(model)?;
        let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from));
        let secret = Secret { seed: Seed::from_bytes([2; 32]), epoch: 1 };
        let of = Model { constants: model.as_ref(), root: ROOT, kernel, pool: &pool };
        let key = Key::make(&of, secret, self.t)?;
        let key_bytes = key.to_canonical_bytes().len() as f64;
        let products = model.program().program().tensors.iter().filter_map(|tensor| match tensor.shape {
            Shape::Matrix { rows, .. } => Some(f64::from(rows)),
            _ => None,
        });
        let expanded_bytes = key_bytes + 8.0 * products.sum::<f64>();
        let mut checker = Checker::new(&key, kernel, Arc::new(Pool::new(1)))?;
        drop(key);
        let (mut decoding, mut checking, mut choices) = (vec![], vec![], 0);
        for _ in 0..self.setup.rounds {
            let mut opening = None;
            decoding.push(core_ms(|| opening = Opening::from_canonical_bytes(&audited.opening).ok()));
            let mut audit = None;
            checking.push(core_ms(|| audit = self.check(&mut checker, &audited, opening.take())));
            let audit = audit.ok_or_else(|| anyhow!("an honest opening is refused"))?;
            if !audit.verdict.holds {
                bail!("an honest opening does not hold: {:?}", audit.verdict);
            }
            choices = audit.cost.choices;
        }
        let stages = self.stages(checker, &audited)?;
        let (decoding, checking) = (median(decoding), median(checking));
        Ok(Run {
            parts: self.parts(decoding, checking, &stages, choices),
            opening_bytes: audited.opening.len() as f64,
            key_bytes,
            expanded_bytes,
            prover: audited.prover,
        })
    }

    fn check(
        &self,
        checker: &mut Checker,
        audited: &Audited,
        opening: Option<Opening>,
    ) -> Option<assay_verify::light::Audit> {
        checker.check(&audited.answer.record, &audited.challenge, opening?, Known::default()).ok()
    }

    /// Milliseconds of each stage, by a stopwatch that costs something itself: only their proportions count.
    fn stages(&self, checker: Checker, audited: &Audited) -> Result<BTreeMap<Stage, f64>> {
        type Laps = (Instant, BTreeMap<Stage, f64>);
        let laps: Arc<Mutex<Laps>> = Arc::new(Mutex::new((Instant::now(), BTreeMap::new())));
        let lock = |laps: &Mutex<Laps>, act: &mut dyn FnMut(&mut Laps)| {
            act(&mut laps.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        };
        let told = Arc::clone(&laps);
        let mut checker = checker.watched(move |stage| {
            lock(&told, &mut |(last, all)| {
                let now = Instant::now();
                *all.entry(stage).or_default() += (now - *last).as_secs_f64() * 1e3;
                *last = now;
            });
        });
        let mut rounds: Vec<BTreeMap<Stage, f64>> = vec![];
        for _ in 0..self.setup.rounds {
            let opening = Opening::from_canonical_bytes(&audited.opening)?;
            lock(&laps, &mut |l| *l = (Instant::now(), BTreeMap::new()));
            self.check(&mut checker, audited, Some(opening));
            lock(&laps, &mut |l| rounds.push(std::mem::take(&mut l.1)));
        }
        let stages = rounds.iter().flat_map(|r| r.keys().copied()).collect::<std::collections::BTreeSet<_>>();
        let middle = |s: Stage| median(rounds.iter().map(|r| r.get(&s).copied().unwrap_or(0.0)).collect());
        Ok(stages.into_iter().map(|s| (s, middle(s))).collect())
    }

    /// The parts of an audit for an opened token.
    fn parts(&self, decoding: f64, checking: f64, stages: &BTreeMap<Stage, f64>, choices: u64) -> Parts {
        let mut parts = Parts::default();
        stages.iter().for_each(|(stage, ms)| parts.add(label(*stage), *ms));
        let mut parts = parts.scaled_to(checking);
        // The choice is of biased logits: the usual one costs something else.
        parts.set(label(Stage::Choices), self.base.choice.plain * choices as f64);
        parts.add("decoding", decoding);
        parts.times(1.0 / f64::from(self.setup.opened))
    }

    fn audited(&self, model: &Arc<InMemory>) -> Result<Audited> {
        let mut executor = executor(model, self.setup.kernel);
        let answer = Answer::new(&mut executor, self.t)?;
        let mut prover = Prover::new(&mut executor)?;
        // The leaves of the embedding are hashed once for a model, not for an audit.
        let short = Fed::new(vec![0], vec![0]).ok_or_else(|| anyhow!("an answer without tokens"))?;
        prover.open(&short, &[0]);
        let mut trace = Hash::ZERO;
        let committing = core_ms(|| trace = prover.commit(&answer.fed));
        let (challenge, drawn) = self.typical(trace, &answer);
        let mut opening = vec![];
        let opens = core_ms(|| opening = prover.open(&answer.fed, &drawn).to_canonical_bytes());
        Ok(Audited { answer, challenge, opening, prover: (committing + opens) / f64::from(self.t) })
    }

    /// A draw whose mean, last position and number of choices are near those of all draws.
    fn typical(&self, trace: Hash, answer: &Answer) -> (Challenge, Vec<u32>) {
        let fed = &answer.fed;
        let all: Vec<(Challenge, Vec<u32>)> = (0..BEACONS)
            .map(|b| {
                let beacon = Hash::from_bytes([b; 32]);
                let challenge = Challenge { beacon, trace, tokens: self.setup.opened };
                (challenge, challenge.draw(answer.record.receipt.receipt.id(), fed))
            })
            .collect();
        let (positions, first) = (f64::from(fed.positions()), fed.choices_from());
        let look = |drawn: &[u32]| {
            let n = drawn.len().max(1) as f64;
            let chosen = drawn.iter().filter(|p| **p >= first).count() as f64;
            let mean = drawn.iter().map(|p| f64::from(*p)).sum::<f64>() / n;
            [mean / positions, f64::from(drawn.last().copied().unwrap_or(0)) / positions, chosen / n]
        };
        let mean = |i: usize| all.iter().map(|(_, d)| look(d)[i]).sum::<f64>() / all.len() as f64;
        let usual = [mean(0), mean(1), mean(2)];
        let distance = |drawn: &[u32]| -> f64 {
            look(drawn).iter().zip(usual).map(|(got, want)| (got - want).abs()).sum()
        };
        let nearest = all.into_iter().min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1)));
        nearest.expect("there are beacons")
    }
}

fn label(stage: Stage) -> &'static str {
    match stage {
        Stage::Record => "record and shapes",
        Stage::Commitments => "hashing keys and values",
        Stage::Caches => "filling caches",
        Stage::Rows => "embedded rows",
        Stage::Products => "Freivalds",
        Stage::Attention => "attention",
        Stage::Elementwise => "elementwise",
        Stage::States => "comparing states",
        Stage::Choices => CHOICE,
    }
}
