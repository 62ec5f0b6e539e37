//! The light audit: opened positions, checked with a key.
//!
//! The answer that is audited repeats one token, made certain by a bias: so it is honest without having been generated, which would
//! take hours for the largest models. Choosing from biased logits costs something else than choosing from the whole distribution, and is
//! replaced by the latter.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use assay_core::answer::{AnswerRecord, Format};
use assay_core::canonical::Canonical as _;
use assay_core::digest::{DigestBuilder, ExecutionDigests};
use assay_core::id::{ChannelId, Hash, ModelRoot, Nonce};
use assay_core::receipt::{Domain, Receipt};
use assay_core::request::{Prompt, Request, Sampling};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::import::synthetic::memory::InMemory;
use assay_engine::pool::Pool;
use assay_engine::replay::Execution as _;
use assay_node::key::NodeKey;
use assay_verify::freivalds::soundness_of;
use assay_verify::light::{Challenge, Checker, Fed, Key, Known, Model, Opening, Prover, Secret, Seed, Stage};

use super::{Measured, cache_bytes};
use crate::commands::bench::tokens;
use crate::commands::bench::verification::Setup;
use crate::commands::bench::verification::clock::{core_ms, median};
use crate::commands::bench::verification::execution::{Base, executor, sampling};
use crate::commands::bench::verification::row::Tier;
use crate::commands::bench::verification::shapes;

/// Most multiplications of a pass of the prover: more layers than this allows are multiples of those that were executed.
const PASS: u64 = 10_000_000_000_000;
/// The token that an answer repeats, and what makes it certain.
const REPEATED: (u32, i32) = (3, 100_000_000);
/// Beacons among which a typical draw is looked for.
const BEACONS: u8 = 64;

/// What an audit of a model of some layers took: milliseconds for an opened token, and sizes.
#[derive(Clone, Debug, Default)]
struct Run {
    parts: BTreeMap<&'static str, f64>,
    opening_bytes: f64,
    key_bytes: f64,
    /// Bytes of a key in memory, beside those of the file.
    expanded_bytes: f64,
    products: f64,
    /// Prover's milliseconds for a position.
    prover: f64,
}

impl Run {
    fn total(&self) -> f64 {
        self.parts.values().sum()
    }

    /// `none + (self - none) · factor`: what more of the same layers would make of it.
    fn extended(&self, none: &Run, factor: f64) -> Run {
        let line = |some: f64, none: f64| none + (some - none) * factor;
        let part = |(name, ms): (&&'static str, &f64)| {
            (*name, line(*ms, none.parts.get(name).copied().unwrap_or(0.0)))
        };
        Run {
            parts: self.parts.iter().map(part).collect(),
            opening_bytes: line(self.opening_bytes, none.opening_bytes),
            key_bytes: line(self.key_bytes, none.key_bytes),
            expanded_bytes: line(self.expanded_bytes, none.expanded_bytes),
            products: line(self.products, none.products),
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
        true => Some(auditor.run(model.single())?.extended(&none, all).total()),
        false => None,
    };
    let opened = setup.opened;
    Ok(Measured {
        tier: Tier::Light,
        core_ms_per_token: run.total(),
        parts: run.parts.iter().map(|(name, ms)| (*name, *ms)).collect(),
        from_one_layer,
        layers: Some(layers),
        prover_core_ms_per_token: run.prover,
        bytes_per_token: run.opening_bytes / f64::from(opened),
        key_bytes: run.key_bytes as u64,
        memory_bytes: (run.key_bytes + run.expanded_bytes + 2.0 * run.opening_bytes) as u64
            + cache_bytes(model, t),
        checked: opened,
        soundness_bits: soundness_of(run.products as u64),
    })
}

struct Auditor<'a> {
    t: u32,
    setup: &'a Setup,
    base: &'a Base,
}

/// An answer, and what its provider opened of it.
struct Audited {
    record: AnswerRecord,
    challenge: Challenge,
    opening: Vec<u8>,
    prover: f64,
}

impl Auditor<'_> {
    fn run(&self, model: &Arc<InMemory>) -> Result<Run> {
        let (root, kernel) = (ModelRoot::from_bytes([1; 32]), self.setup.kernel);
        let audited = self.audited(model, root)?;
        let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from));
        let secret = Secret { seed: Seed::from_bytes([2; 32]), epoch: 1 };
        let of = Model { constants: model.as_ref(), root, kernel, pool: &pool };
        let key = Key::make(&of, secret, self.t)?;
        let key_bytes = key.to_canonical_bytes().len() as f64;
        let products = model.program().program().tensors.iter().filter_map(|tensor| match tensor.shape {
            assay_engine::program::Shape::Matrix { rows, .. } => Some(f64::from(rows)),
            _ => None,
        });
        let expanded_bytes = key_bytes + 8.0 * products.sum::<f64>();
        let mut checker = Checker::new(&key, kernel, Arc::new(Pool::new(1)))?;
        drop(key);
        let (mut decoding, mut checking, mut choices, mut checked) = (vec![], vec![], 0, 0);
        for _ in 0..self.setup.rounds {
            let mut opening = None;
            decoding.push(core_ms(|| opening = Opening::from_canonical_bytes(&audited.opening).ok()));
            let mut audit = None;
            checking.push(core_ms(|| audit = self.check(&mut checker, &audited, opening.take())));
            let audit = audit.ok_or_else(|| anyhow!("an honest opening is refused"))?;
            if !audit.verdict.holds {
                bail!("an honest opening does not hold: {:?}", audit.verdict);
            }
            (choices, checked) = (audit.cost.choices, audit.cost.products);
        }
        let stages = self.stages(checker, &audited)?;
        let (decoding, checking) = (median(decoding), median(checking));
        Ok(Run {
            parts: self.parts(decoding, checking, &stages, choices),
            opening_bytes: audited.opening.len() as f64,
            key_bytes,
            expanded_bytes,
            products: checked as f64,
            prover: audited.prover,
        })
    }

    fn check(
        &self,
        checker: &mut Checker,
        audited: &Audited,
        opening: Option<Opening>,
    ) -> Option<assay_verify::light::Audit> {
        checker.check(&audited.record, &audited.challenge, opening?, Known::default()).ok()
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
    fn parts(
        &self,
        decoding: f64,
        checking: f64,
        stages: &BTreeMap<Stage, f64>,
        choices: u64,
    ) -> BTreeMap<&'static str, f64> {
        let opened = f64::from(self.setup.opened);
        let watched: f64 = stages.values().sum();
        let unit = if watched > 0.0 { checking / watched / opened } else { 0.0 };
        let mut parts: BTreeMap<&'static str, f64> =
            stages.iter().map(|(stage, ms)| (label(*stage), ms * unit)).collect();
        parts.insert("decoding", decoding / opened);
        // What choosing from the whole distribution costs, for as many tokens as were chosen.
        let chosen_of_all = (f64::from(self.t) / 2.0 + 1.0) / f64::from(self.t);
        parts.insert(label(Stage::Choices), self.base.choosing / chosen_of_all * choices as f64 / opened);
        parts
    }

    fn audited(&self, model: &Arc<InMemory>, root: ModelRoot) -> Result<Audited> {
        let (half, vocabulary) = ((self.t / 2) as usize, model.program().program().vocabulary);
        let request = Request {
            model: root,
            prompt: Prompt::Tokens(tokens(half, vocabulary)),
            sampling: Sampling { bias: vec![REPEATED], ..sampling() },
            max_tokens: self.t / 2 + 1,
            stop: vec![],
            choice: 0,
            guide: None,
            logprobs: None,
        };
        let transcript = Transcript {
            request_hash: request.hash(),
            nonce: Nonce::ZERO,
            nonce_source: NonceSource::Seed,
            prompt_ids: tokens(half, vocabulary),
            output_ids: vec![REPEATED.0; half + 1],
            text: String::new(),
            stop: StopReason::Length,
            logprobs: vec![],
        };
        let fed = Fed::of(&transcript).ok_or_else(|| anyhow!("an answer without tokens"))?;
        let mut executor = executor(model, self.setup.kernel);
        let record = signed(request, transcript, digests(&mut executor, &fed))?;
        let mut prover = Prover::new(&mut executor)?;
        // The leaves of the embedding are hashed once for a model, not for an audit.
        let short = Fed::new(vec![0], vec![0]).ok_or_else(|| anyhow!("an answer without tokens"))?;
        prover.open(&short, &[0]);
        let mut trace = Hash::ZERO;
        let committing = core_ms(|| trace = prover.commit(&fed));
        let (challenge, drawn) = self.typical(trace, &record, &fed);
        let mut opening = vec![];
        let opens = core_ms(|| opening = prover.open(&fed, &drawn).to_canonical_bytes());
        Ok(Audited { record, challenge, opening, prover: (committing + opens) / f64::from(self.t) })
    }

    /// A draw whose mean, last position and number of choices are near those of all draws.
    fn typical(&self, trace: Hash, record: &AnswerRecord, fed: &Fed) -> (Challenge, Vec<u32>) {
        let all: Vec<(Challenge, Vec<u32>)> = (0..BEACONS)
            .map(|b| {
                let beacon = Hash::from_bytes([b; 32]);
                let challenge = Challenge { beacon, trace, tokens: self.setup.opened };
                (challenge, challenge.draw(record.receipt.receipt.id(), fed))
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

fn digests(executor: &mut Executor, fed: &Fed) -> ExecutionDigests {
    let mut builder = DigestBuilder::new();
    executor.replay(fed.tokens(), fed.tokens().len(), &mut |row| {
        let (numbers, scale) = row.hidden;
        builder.push(row.position as u32, numbers, scale.mantissa, scale.exponent);
    });
    builder.finish()
}

fn signed(request: Request, transcript: Transcript, digests: ExecutionDigests) -> Result<AnswerRecord> {
    let folder = tempfile::tempdir()?;
    let key = NodeKey::load_or_create(&folder.path().join("key"))?;
    let usage = transcript.usage();
    let receipt = Receipt {
        provider: key.address(),
        sequence: 1,
        model_root: request.model,
        request_hash: request.hash(),
        transcript_root: transcript.root(),
        digest_root: digests.root(),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: transcript.nonce,
        epoch: 0,
    };
    let receipt = key.sign(receipt, Domain::DEVELOPMENT)?;
    Ok(AnswerRecord { format: Format::V1, receipt, request, transcript, digests, generation: None })
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
        Stage::Choices => "choice of tokens",
    }
}
