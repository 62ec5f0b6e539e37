//! The verifier's side: an opening, a record and a key become a verdict.
//!
//! In this order: the record's own bindings, the shapes of the opening, the commitments, then operation by operation for all
//! opened tokens together: embedded rows, products, keys, values and hidden vectors; last the choices. So the random weights of
//! a product, and the keys and values of a layer, are read once for all tokens. The first mistake in an opening ends its check,
//! since what comes after it would be computed from numbers that nobody vouches for.

use std::sync::Arc;

use assay_core::answer::AnswerRecord;
use assay_core::id::ModelRoot;
use assay_core::limits::LIGHT_TOKENS_MAX;
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::constants::Constants;
use assay_engine::forward::{Executor, Placed};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::semantics::adjust::Mask;

use super::draw::Challenge;
use super::key::{Expanded, Key, KeyError};
use super::open::Fed;
use super::opening::{Opening, Token};
use super::watch::{Stage, Watch};
use crate::freivalds::{SOUNDNESS_BITS, soundness_of};
use crate::report::Report;
use crate::subject::Subject;

mod choices;
mod commitments;
mod given;

use choices::{Choices, Tokens};
use commitments::{Rows, commitments, shapes};
use given::Given;

/// Why a record is not checked at all: nothing that its provider did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key, or the model that the text is checked with, is of another model than the receipt.
    #[error("the receipt is for model {receipt}, but the key or the text model is of {held}")]
    Model {
        /// The receipt's.
        receipt: ModelRoot,
        /// The verifier's.
        held: ModelRoot,
    },
    /// The answer is longer than the key covers.
    #[error("the answer has {got} positions, the key covers {covered}: make a longer key")]
    Positions {
        /// The answer's.
        got: u64,
        /// The key's.
        covered: u32,
    },
    /// The challenge asks for no token, or for too many.
    #[error("a light audit opens 1 to {LIGHT_TOKENS_MAX} tokens, not {got}")]
    Tokens {
        /// Tokens asked for.
        got: u32,
    },
}

/// What a verifier knows beside the key.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// Text settings and tokenizer: with them prompt, text, end and guides are replayed.
    pub subject: Option<&'a Subject<'a>>,
    /// Without these, the ids that a guide left for the output token of an index, if the caller knows them.
    pub mask: Option<&'a dyn Fn(usize) -> Option<Mask>>,
}

/// A verdict, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The verdict.
    pub verdict: Verdict,
    /// The work.
    pub cost: Cost,
}

/// Counts of what was read and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens executed.
    pub tokens: u64,
    /// Matrix products checked.
    pub products: u64,
    /// Accumulators in them.
    pub accumulators: u64,
    /// Bytes of packed accumulators and embedded rows read.
    pub token_bytes: u64,
    /// Bytes of keys, values and hidden vectors read and hashed, with their scales.
    pub block_bytes: u64,
    /// Positions whose keys and values were taken from the opening: all up to the last one drawn.
    pub restored: u64,
    /// Choices of output ids computed again.
    pub choices: u64,
}

/// A mistake in an opening, or in what it opens.
#[derive(Clone, Debug)]
struct Mistake {
    check: &'static str,
    code: FailureCode,
    position: Option<usize>,
    message: String,
}

impl Mistake {
    fn new(check: &'static str, code: FailureCode, position: u32, message: impl Into<String>) -> Mistake {
        Mistake { check, code, position: Some(position as usize), message: message.into() }
    }

    fn shape(position: u32, message: impl Into<String>) -> Mistake {
        Mistake::new("opening", FailureCode::Opening, position, message)
    }
}

const CHECKS: [&str; 5] = ["opening", "commitments", "products", "states", "choices"];

/// Checks openings with one key.
pub struct Checker {
    held: Arc<Expanded>,
    executor: Executor,
    watch: Watch,
}

impl Checker {
    /// A checker: checks the shape of the key and expands its randomness.
    pub fn new(key: &Key, kernel: Kernel, pool: Arc<Pool>) -> Result<Checker, KeyError> {
        let held = Arc::new(Expanded::new(key)?);
        let constants: Arc<dyn Constants> = held.clone();
        Ok(Checker { held, executor: Executor::new(constants, kernel, pool), watch: Watch::default() })
    }

    /// The same checker, with someone beside it who is told of every stage as it ends.
    #[must_use]
    pub fn watched(self, tell: impl Fn(Stage) + Send + Sync + 'static) -> Checker {
        Checker { watch: Watch::new(tell), ..self }
    }

    /// Checks a record by what its provider opened for a challenge.
    pub fn check(
        &mut self,
        record: &AnswerRecord,
        challenge: &Challenge,
        opening: Opening,
        known: Known<'_>,
    ) -> Result<Audit, Refusal> {
        self.refuse(record, challenge, known)?;
        let mut report = Report::default();
        let mut cost = Cost::default();
        report.bindings(record);
        report.pass("model", format!("{}, by a key", self.held.model));
        if let Some(subject) = known.subject {
            report.prompt(record, subject);
        }
        let runnable = report.runnable(record, self.held.program().program());
        if let Some(fed) = Fed::of(&record.transcript).filter(|_| runnable) {
            let audited = Audited { record, challenge, known, fed };
            self.opened(&mut report, &mut cost, &audited, opening);
        } else {
            CHECKS.iter().for_each(|name| report.not_run(name, "the transcript cannot be executed"));
        }
        match known.subject {
            Some(subject) => report.text(record, subject),
            None => report.unseen("prompt rendering, text and end of the answer: no tokenizer was given"),
        }
        report.unseen("whether the trace was committed before the beacon was known: the caller knows");
        report
            .unseen("whether the key's commitment was published before its epoch, and the key's seed secret");
        Ok(Audit { verdict: report.finish(record), cost })
    }

    fn refuse(&self, record: &AnswerRecord, challenge: &Challenge, known: Known<'_>) -> Result<(), Refusal> {
        let receipt = record.receipt.receipt.model_root;
        for held in std::iter::once(self.held.model).chain(known.subject.map(|s| s.root())) {
            if held != receipt {
                return Err(Refusal::Model { receipt, held });
            }
        }
        if !(1..=LIGHT_TOKENS_MAX).contains(&challenge.tokens) {
            return Err(Refusal::Tokens { got: challenge.tokens });
        }
        let t = &record.transcript;
        let got = t.prompt_ids.len().saturating_add(t.output_ids.len()).saturating_sub(1) as u64;
        if got > u64::from(self.held.positions) && got <= u64::from(self.held.program().program().context) {
            return Err(Refusal::Positions { got, covered: self.held.positions });
        }
        Ok(())
    }

    /// Everything that the opening is needed for.
    fn opened(&mut self, report: &mut Report, cost: &mut Cost, audited: &Audited<'_>, opening: Opening) {
        let held = Arc::clone(&self.held);
        let drawn = audited.challenge.draw(audited.record.receipt.receipt.id(), &audited.fed);
        let mut done = 0;
        let steps = || -> Result<Tokens, Mistake> {
            shapes(&held, audited, &drawn, &opening)?;
            self.watch.done(Stage::Record);
            done = 1;
            let Opening { blocks, rest, tokens } = opening;
            let blocks = commitments(&held.form, audited, blocks, rest, cost)?;
            self.watch.done(Stage::Commitments);
            done = 2;
            self.tokens(&held, audited, &blocks, &tokens, cost)
        };
        match steps() {
            Ok(tokens) => {
                let blocks = drawn.last().map_or(0, |p| p / assay_core::digest::DIGEST_TOKENS + 1);
                let of = audited.fed.positions();
                report.pass("opening", format!("positions {drawn:?} of {of}, drawn by the beacon"));
                report.pass(
                    "commitments",
                    format!("{blocks} blocks hash to the trace root and to their digests"),
                );
                report.pass(
                    "products",
                    format!(
                        "{} in {} tokens, {} numbers; each wrong one is missed with a chance below 2^-{SOUNDNESS_BITS}, any with one \
                         below 2^-{}",
                        cost.products,
                        cost.tokens,
                        cost.accumulators,
                        soundness_of(cost.products)
                    ),
                );
                report.pass(
                    "states",
                    "keys, values and hidden vectors come out as committed; all else was recomputed",
                );
                tokens.report(report, cost);
            }
            Err(m) => {
                for (i, name) in CHECKS.iter().enumerate() {
                    if *name == m.check {
                        report.fail(name, m.code, m.position, m.message.clone());
                    } else if i < done {
                        report.pass(name, "as drawn and as committed".to_owned());
                    } else {
                        report.not_run(name, "the opening holds a mistake");
                    }
                }
            }
        }
        let unopened = (audited.fed.positions() as usize).saturating_sub(drawn.len());
        report.unseen(format!(
            "{unopened} of {} positions, which were not drawn: their keys and values are the committed ones, right or wrong",
            audited.fed.positions()
        ));
    }

    fn tokens(
        &mut self,
        held: &Expanded,
        audited: &Audited<'_>,
        blocks: &[Vec<Option<Rows>>],
        tokens: &[Token],
        cost: &mut Cost,
    ) -> Result<Tokens, Mistake> {
        let mut choices = Choices::new(audited, self.executor.kernel())?;
        let id = |p: u32| audited.fed.tokens().get(p as usize).copied().unwrap_or_default();
        let placed: Vec<Placed> =
            tokens.iter().map(|t| Placed { token: id(t.position), position: t.position }).collect();
        let first = audited.fed.choices_from();
        let choosing = placed.partition_point(|p| p.position < first);
        let positions: Vec<u32> = placed.iter().map(|p| p.position).collect();
        cost.restored += positions.last().map_or(0, |p| u64::from(*p) + 1);
        cost.tokens += tokens.len() as u64;
        let mut given = Given {
            held,
            kernel: self.executor.kernel(),
            tokens,
            placed: &placed,
            positions: &positions,
            blocks,
            cache: None,
            watch: &self.watch,
            cost,
            mistake: None,
        };
        let output = self.executor.forward_placed(&placed, choosing, &mut given);
        if let Some(mistake) = given.mistake {
            return Err(mistake);
        }
        for (i, p) in placed.iter().skip(choosing).enumerate() {
            choices.check((p.position - first) as usize, output.logits(i), cost)?;
        }
        self.watch.done(Stage::Choices);
        Ok(choices.done())
    }
}

/// Positions of a block.
const BLOCK: usize = assay_core::digest::DIGEST_TOKENS as usize;

/// What is checked.
struct Audited<'a> {
    record: &'a AnswerRecord,
    challenge: &'a Challenge,
    known: Known<'a>,
    fed: Fed,
}
