//! What provider and auditor do in each kind of audit of a whole answer.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use assay_core::canonical::Canonical as _;
use assay_core::id::Hash;
use assay_core::limits::LIGHT_OPENING_BYTES_MAX;
use assay_core::verdict::Verdict;
use assay_node::secret;
use assay_verify::batch::{self, REPETITIONS};
use assay_verify::freivalds::{SOUNDNESS_BITS, soundness_of};
use assay_verify::light::{Challenge, Checker, Fed, Known, Opening, Prover, Secret, Seed};
use assay_verify::reexecution::check_by_reexecution;
use serde_json::{Value, json};

use crate::commands::key;
use crate::commands::record::Answer;
use crate::progress;

/// What one side did.
pub struct Side {
    /// `provider` or `auditor`.
    pub who: &'static str,
    /// What, in words.
    pub what: String,
    /// How long it took.
    pub time: Option<Duration>,
    /// Bytes sent, read or held.
    pub bytes: Option<u64>,
}

impl Side {
    /// Of the provider.
    pub fn provider(what: impl Into<String>, time: Option<Duration>, bytes: Option<usize>) -> Side {
        Side { who: "provider", what: what.into(), time, bytes: bytes.map(|b| b as u64) }
    }

    /// Of the auditor.
    pub fn auditor(what: impl Into<String>, time: Option<Duration>, bytes: Option<usize>) -> Side {
        Side { who: "auditor", what: what.into(), time, bytes: bytes.map(|b| b as u64) }
    }
}

/// An audit that was done.
pub struct Audited {
    /// What came out.
    pub verdict: Verdict,
    /// How sure that is, in words.
    pub sure: String,
    /// A mistake in what was checked is missed with a chance below two to minus this; none where it cannot be missed.
    pub soundness_bits: Option<u32>,
    /// What both sides did.
    pub sides: Vec<Side>,
    /// What was drawn.
    pub challenge: Value,
    /// What holds, if it does: the answer, or what was looked at of it.
    pub held: String,
}

impl Audited {
    /// A verdict without costs.
    pub fn of(verdict: Verdict, sure: impl Into<String>, soundness_bits: Option<u32>) -> Audited {
        Audited {
            verdict,
            sure: sure.into(),
            soundness_bits,
            sides: vec![],
            challenge: Value::Null,
            held: "The answer".into(),
        }
    }
}

/// What someone has to keep in mind who played the provider's side, too.
pub const BOTH: &str = "what the provider itself would open: this machine opened in its place";

/// Does something, and says how long it took.
pub fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let done = act();
    (done, started.elapsed())
}

/// Everything is executed again.
pub fn reexec(answer: &Answer) -> Result<Audited> {
    let (root, hashing) = timed(|| progress::check_root(&answer.artifact));
    root?;
    let mut executor = answer.executor();
    let (verdict, check) = timed(|| check_by_reexecution(&answer.record, &answer.model(), &mut executor));
    let sure = "certain: two executions are equal to the bit, or the answer is wrong.";
    Ok(Audited {
        sides: vec![
            Side::auditor("has the model; hashes it, once", Some(hashing), Some(answer.artifact.len())),
            Side::auditor("reads the record", None, Some(answer.record.to_canonical_bytes().len())),
            Side::auditor("executes again", Some(check), None),
        ],
        ..Audited::of(verdict, sure, None)
    })
}

/// A few tokens are checked with a key.
pub fn light(answer: &Answer, key: Option<&Path>, tokens: u32, beacon: Option<Hash>) -> Result<Audited> {
    let record = &answer.record;
    let fed = Fed::of(&record.transcript).context("the transcript has no prompt or no answer")?;
    let mut sides = Vec::new();
    let key = match key {
        Some(path) => key::read(path)?,
        None => {
            progress::check_root(&answer.artifact)?;
            let secret = Secret { seed: Seed::from_bytes(secret::draw()), epoch: 0 };
            let make = || key::make(&answer.artifact, secret, fed.positions(), answer.kernel, &answer.pool);
            let (key, time) = timed(make);
            sides.push(Side::auditor("makes a key, from the model, once an epoch", Some(time), None));
            key?
        }
    };
    sides.push(Side::auditor("holds the key, and no model", None, Some(key.to_canonical_bytes().len())));
    let mut checker = Checker::new(&key, answer.kernel, answer.pool.clone())?;

    let mut executor = answer.executor();
    let mut prover = Prover::new(&mut executor)?;
    let (trace, time) = timed(|| prover.commit(&fed));
    sides.push(Side::provider("executes again and commits to the trace", Some(time), Some(32)));
    let beacon = beacon.unwrap_or_else(|| Hash::from_bytes(secret::draw()));
    let challenge = Challenge { beacon, trace, tokens };
    let drawn = challenge.draw(record.receipt.receipt.id(), &fed);
    let (opening, time) = timed(|| prover.open(&fed, &drawn).to_canonical_bytes());
    let sent = opening.len();
    let what = format!("executes again and opens {} of {} positions", drawn.len(), fed.positions());
    sides.push(Side::provider(what, Some(time), Some(sent)));

    let subject = answer.model();
    let check = || -> Result<_> {
        let opening = Opening::from_canonical_bytes(&opening)
            .with_context(|| format!("openings have at most {LIGHT_OPENING_BYTES_MAX} bytes"))?;
        Ok(checker.check(record, &challenge, opening, Known { subject: Some(&subject), mask: None })?)
    };
    let (audit, time) = timed(check);
    let audit = audit?;
    sides.push(Side::auditor("reads the opening and checks it", Some(time), Some(sent)));
    let bits = soundness_of(audit.cost.products);
    let sure = format!(
        "a wrong product at the opened positions is missed with a chance below 2^-{bits}; a provider that computed one of {} \
         positions otherwise is found with a chance of about {} in {}, one that computed all of them otherwise always.",
        fed.positions(),
        drawn.len(),
        fed.positions()
    );
    let mut verdict = audit.verdict;
    verdict.unchecked.insert(0, BOTH.into());
    verdict
        .unchecked
        .insert(1, "that the key was made from the model's weights: see `assay key check`".into());
    let challenge = json!({
        "beacon": beacon, "trace_root": trace, "positions": drawn, "key_commitment": key.commitment(),
    });
    let held = format!("What {} of {} positions show of the answer", drawn.len(), fed.positions());
    Ok(Audited { sides, challenge, held, ..Audited::of(verdict, sure, Some(bits)) })
}

/// All products are checked by sums of them.
pub fn batch(answer: &Answer, beacon: Option<Hash>) -> Result<Audited> {
    let (root, hashing) = timed(|| progress::check_root(&answer.artifact));
    root?;
    let record = &answer.record;
    let fed = Fed::of(&record.transcript).context("the transcript has no prompt or no answer")?;
    let mut executor = answer.executor();
    let ((trace, root), committing) = timed(|| {
        let trace = batch::Trace::of(&mut executor, &fed);
        let root = trace.root(&answer.pool);
        (trace, root)
    });
    let beacon = beacon.unwrap_or_else(|| Hash::from_bytes(secret::draw()));
    let challenge = batch::Challenge::new(beacon, root);
    let mut own = answer.executor();
    let check = || batch::check_by_batch(record, &answer.model(), &mut own, &trace, &challenge);
    let (audit, checking) = timed(check);
    let bits = soundness_of(audit.cost.products) + SOUNDNESS_BITS * u32::from(REPETITIONS - 1);
    let sure = format!(
        "a wrong product at any position is missed with a chance below 2^-{bits}; everything else was executed again."
    );
    let bytes = audit.cost.bytes as usize;
    let sides = vec![
        Side::provider("executes again and commits to all products", Some(committing), Some(32)),
        Side::provider("shows the inputs and accumulators of all products", None, Some(bytes)),
        Side::auditor("has the model; hashes it, once", Some(hashing), Some(answer.artifact.len())),
        Side::auditor("reads and checks them", Some(checking), Some(bytes)),
    ];
    let mut verdict = audit.verdict;
    verdict.unchecked.insert(0, BOTH.into());
    let challenge = json!({"beacon": beacon, "products_root": root});
    Ok(Audited { sides, challenge, ..Audited::of(verdict, sure, Some(bits)) })
}
