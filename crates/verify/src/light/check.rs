//! The verifier's side: an opening, a record and a key become a verdict.
//!
//! In this order: the record's own bindings, the shapes of the opening, the commitments, then operation by operation for all
//! opened tokens together: embedded rows, products, keys, values and hidden vectors; last the choices. So the random weights of
//! a product, and the keys and values of a layer, are read once for all tokens. The first mistake in an opening ends its check,
//! since what comes after it would be computed from numbers that nobody vouches for.

use std::ops::Range;
use std::sync::Arc;

use assay_core::answer::AnswerRecord;
use assay_core::digest::block_digest;
use assay_core::id::{Hash, ModelRoot};
use assay_core::limits::LIGHT_TOKENS_MAX;
use assay_core::merkle;
use assay_core::request::sampler_seed;
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants;
use assay_engine::forward::{Companion, Executor, Placed, Values};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::ValueId;
use assay_engine::program::check::CacheShape;
use assay_engine::semantics::adjust::{History, Mask};
use assay_engine::semantics::fixed::shift_sat;
use assay_engine::semantics::logprobs::logprobs;
use assay_engine::semantics::scale::Scale;

use super::draw::Challenge;
use super::form::{Carried, Form, Role, Roots};
use super::key::{Expanded, Key, KeyError, row_leaf};
use super::open::Fed;
use super::opening::{Block, Kept, Opening, Row, Token};
use super::watch::{Stage, Watch};
use crate::freivalds::{SOUNDNESS_BITS, soundness_of};
use crate::report::Report;
use crate::subject::{Guided, Subject, guided};
use crate::trace;
use crate::trace::part::{Numbers, Part};

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

/// A carried operation in one block, laid out to be hashed.
enum Laid {
    Roots(Roots),
    Whole { largest: Hash, scales: Vec<Scale>, hashed: [Part; 2] },
}

impl Laid {
    fn new(kept: Kept, carried: &Carried) -> Laid {
        match kept {
            Kept::Roots(roots) => Laid::Roots(roots),
            Kept::Whole { largest, scales, numbers } => {
                let hashed = [carried.scales(&scales), carried.numbers(numbers.0)];
                Laid::Whole { largest, scales, hashed }
            }
        }
    }

    /// The parts that are hashed: of scales and of numbers.
    fn parts(&self) -> &[Part] {
        match self {
            Laid::Roots(_) => &[],
            Laid::Whole { hashed, .. } => hashed,
        }
    }

    /// The roots, taking those of the parts.
    fn roots(&self, hashes: &mut impl Iterator<Item = Hash>) -> Roots {
        match self {
            Laid::Roots(roots) => *roots,
            Laid::Whole { largest, .. } => {
                let mut next = || hashes.next().unwrap_or(Hash::ZERO);
                Roots { largest: *largest, scales: next(), numbers: next() }
            }
        }
    }

    fn rows(self) -> Option<Rows> {
        let Laid::Whole { scales, hashed: [_, numbers], .. } = self else { return None };
        match numbers.into_numbers() {
            Numbers::Byte(numbers) => Some(Rows { scales, numbers }),
            Numbers::Word(_) | Numbers::Long(_) => None,
        }
    }
}

/// A carried operation's rows of one block, as they were opened.
struct Rows {
    scales: Vec<Scale>,
    numbers: Vec<i8>,
}

impl Rows {
    /// Numbers and scales of some rows.
    fn rows(&self, rows: Range<usize>, carried: &Carried) -> Option<(&[i8], &[Scale])> {
        let of = |width: usize| rows.start * width..rows.end * width;
        Some((self.numbers.get(of(carried.len))?, self.scales.get(of(carried.groups))?))
    }
}

/// Whether everything has the shape that program, draw and transcript ask for. What this lets pass is never out of bounds below.
fn shapes(held: &Expanded, audited: &Audited<'_>, drawn: &[u32], opening: &Opening) -> Result<(), Mistake> {
    let (form, fed, program) = (&held.form, &audited.fed, held.program().program());
    let opened: Vec<u32> = opening.tokens.iter().map(|t| t.position).collect();
    let last = drawn.last().copied().unwrap_or(0);
    if opened != drawn {
        return Err(Mistake::shape(last, format!("opens positions {opened:?}, drawn were {drawn:?}")));
    }
    let all = trace::blocks(program, fed.positions());
    let whole = last / assay_core::digest::DIGEST_TOKENS + 1;
    if opening.blocks.len() != whole as usize || opening.rest.len() != (all - whole) as usize {
        let (blocks, rest) = (opening.blocks.len(), opening.rest.len());
        let message = format!("has {blocks} blocks and {rest} carries, not {whole} and {}", all - whole);
        return Err(Mistake::shape(whole - 1, message));
    }
    for (b, block) in (0u32..).zip(&opening.blocks) {
        let positions = trace::block_positions(program, fed.positions(), b);
        let open = drawn.iter().any(|p| positions.contains(p));
        if !is_block(form, block, positions.len(), open) {
            let message = format!("block {b} does not hold what the program carries");
            return Err(Mistake::shape(b, message));
        }
    }
    for token in &opening.tokens {
        let fits = |row: &Row, cols: usize| row.weights.0.len() == cols;
        let rows = token.rows.len() == form.embedded.len()
            && token.rows.iter().zip(&form.embedded).all(|(r, e)| fits(r, e.cols));
        let products = form.products_of(token.position >= fed.choices_from());
        if !rows || token.products.len() != products {
            let message = "the token does not hold the rows and products of the program";
            return Err(Mistake::shape(token.position, message));
        }
    }
    Ok(())
}

fn is_block(form: &Form, block: &Block, rows: usize, open: bool) -> bool {
    let one = |(i, kept): (usize, &Kept)| match kept {
        Kept::Roots(_) => !form.is_whole(i, open),
        Kept::Whole { scales, numbers, .. } => {
            let Some(c) = form.carried.get(i) else { return false };
            form.is_whole(i, open)
                && scales.len() == rows * c.groups
                && numbers.0.len() == rows * c.len
                // No execution makes other scales or numbers.
                && scales.iter().all(|s| s.is_canonical())
                && !numbers.0.contains(&i8::MIN)
        }
    };
    block.kept.len() == form.carried.len() && block.kept.iter().enumerate().all(one)
}

/// Hashes the blocks to the trace root and to the receipted digests; gives back what they hold.
fn commitments(
    form: &Form,
    audited: &Audited<'_>,
    blocks: Vec<Block>,
    rest: Vec<Hash>,
    cost: &mut Cost,
) -> Result<Vec<Vec<Option<Rows>>>, Mistake> {
    let held: Vec<Vec<Laid>> = blocks
        .into_iter()
        .map(|block| block.kept.into_iter().zip(&form.carried).map(|(kept, c)| Laid::new(kept, c)).collect())
        .collect();
    let parts: Vec<&Part> = held.iter().flatten().flat_map(Laid::parts).collect();
    let mut hashes = Part::roots(&parts).into_iter();
    let roots: Vec<Roots> = held.iter().flatten().map(|laid| laid.roots(&mut hashes)).collect();
    cost.block_bytes += parts.iter().map(|p| p.shape().bytes() as u64).sum::<u64>();
    let mut carries = Roots::carries(&roots, form.carried.len());
    let digests = roots.chunks(form.carried.len().max(1)).filter_map(|block| block.get(form.hidden));
    carries.extend(rest);
    let got = trace::root(&carries);
    if got != audited.challenge.trace {
        let message = format!("the opened blocks hash to {got}, committed was {}", audited.challenge.trace);
        return Err(Mistake { check: "commitments", code: FailureCode::TraceRoot, position: None, message });
    }
    let receipted = &audited.record.digests.0;
    if receipted.len() != carries.len() {
        let message = format!("there are {} digests for {} blocks", receipted.len(), carries.len());
        let at = receipted.len().min(carries.len());
        return Err(Mistake { check: "commitments", code: FailureCode::Digest, position: Some(at), message });
    }
    for (b, (roots, digest)) in (0u32..).zip(digests.zip(receipted)) {
        if block_digest(u64::from(b), &roots.scales, &roots.numbers) != *digest {
            let message = format!("digest {b} is not of the committed hidden vectors");
            return Err(Mistake::new("commitments", FailureCode::Digest, b, message));
        }
    }
    Ok(held.into_iter().map(|block| block.into_iter().map(Laid::rows).collect()).collect())
}

/// Beside the executor: makes products, embedded rows and attention of what was opened, and compares what comes out with what was
/// committed. After a mistake it goes on with zeros, which nobody reads.
struct Given<'a> {
    held: &'a Expanded,
    kernel: Kernel,
    tokens: &'a [Token],
    placed: &'a [Placed],
    positions: &'a [u32],
    blocks: &'a [Vec<Option<Rows>>],
    /// Keys and values of the attend operation at hand; the memory serves all of one shape.
    cache: Option<(CacheShape, Sequence)>,
    watch: &'a Watch,
    cost: &'a mut Cost,
    mistake: Option<Mistake>,
}

impl Companion for Given<'_> {
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let made = match self.held.form.role(op) {
            Role::Embedded(i) => self.embedded(i, values),
            Role::Product(i) => self.product(i, values),
            Role::Attended(layer) => {
                self.attended(op, layer, values);
                Ok(())
            }
            Role::Plain | Role::Carried(_) => return false,
        };
        if let Err(mistake) = made {
            self.mistake.get_or_insert(mistake);
        }
        true
    }

    fn made(&mut self, op: usize, values: &Values<'_>) {
        let role = self.held.form.role(op);
        self.watch.done(stage(role));
        if let Role::Carried(i) = role
            && self.mistake.is_none()
        {
            self.mistake = self.carried(i, values).err();
            self.watch.done(Stage::States);
        }
    }
}

fn stage(role: Role) -> Stage {
    match role {
        Role::Embedded(_) => Stage::Rows,
        Role::Product(_) => Stage::Products,
        Role::Attended(_) => Stage::Attention,
        Role::Plain | Role::Carried(_) => Stage::Elementwise,
    }
}

impl Given<'_> {
    /// Makes the embedded rows of all tokens, and checks that they are the model's.
    fn embedded(&self, i: usize, values: &mut Values<'_>) -> Result<(), Mistake> {
        let Some(e) = self.held.form.embedded.get(i) else { return Ok(()) };
        let (_, _, shift) = self.held.program().matrix_shape(e.table);
        let frac = self.held.program().program().residual_frac;
        let shift = i32::from(shift) - i32::from(frac);
        let rows: Vec<&Row> = self.tokens.iter().filter_map(|t| t.rows.get(i)).collect();
        let fixed = |row: &&Row| -> Vec<i32> {
            row.weights.0.iter().map(|w| shift_sat(i64::from(*w) * i64::from(row.scale), shift)).collect()
        };
        let made: Vec<i32> = rows.iter().flat_map(fixed).collect();
        values.put_integers(e.op, &made, vec![Scale::power(-i16::from(frac)); rows.len()]);
        let root = self.held.rows_of(e.table);
        for (row, placed) in rows.into_iter().zip(self.placed) {
            let index = u64::from(if e.by_position { placed.position } else { placed.token });
            let leaf = row_leaf(row.scale, &row.weights.0);
            let stands =
                row.proof.index == index && root.is_some_and(|root| merkle::verify(root, leaf, &row.proof));
            if !stands {
                let position = placed.position;
                let message =
                    format!("the row opened for position {position} is not row {index} of the model's table");
                return Err(Mistake::new("products", FailureCode::Row, position, message));
            }
        }
        Ok(())
    }

    /// Unpacks the accumulators of a product for all tokens that have it, and checks that they are the product.
    fn product(&mut self, i: usize, values: &mut Values<'_>) -> Result<(), Mistake> {
        let Some(p) = self.held.form.products.get(i) else { return Ok(()) };
        let check = self.held.check_of(p.weights);
        // Behind the hidden vector only the last tokens are left: those that choose.
        let tokens = self.tokens.get(self.tokens.len() - values.rows()..).unwrap_or_default();
        let (kernel, cost, mut wrong) = (self.kernel, &mut *self.cost, None);
        let mut in_vain = self.mistake.is_some();
        values.put_product(p.op, p.weights, p.x, &mut |row, q, sums| {
            let Some((token, packed)) = tokens.get(row).and_then(|t| Some((t, t.products.get(i)?))) else {
                unreachable!("the shapes were checked")
            };
            cost.products += 1;
            cost.accumulators += p.rows as u64;
            cost.token_bytes += packed.bytes.len() as u64;
            if !in_vain && packed.unpack(kernel, sums) && check.is_some_and(|c| c.holds(kernel, q, sums)) {
                return;
            }
            sums.fill(0);
            if !std::mem::replace(&mut in_vain, true) {
                wrong = Some(token.position);
            }
        });
        let Some(position) = wrong else { return Ok(()) };
        let names = &self.held.program().program().tensors;
        let name = names.get(usize::from(p.weights)).map_or("", |t| t.name.as_str());
        let message = format!("the accumulators of `{name}` at position {position} are not its products");
        Err(Mistake::new("products", FailureCode::Product, position, message))
    }

    /// Makes an attend operation of the committed keys and values.
    fn attended(&mut self, op: usize, layer: usize, values: &mut Values<'_>) {
        let (form, last) = (&self.held.form, self.positions.last().map_or(0, |p| *p as usize));
        let (Some(attended), Some(shape)) =
            (form.attended.get(layer), self.held.program().caches().get(layer).copied())
        else {
            unreachable!("attend operations have caches")
        };
        let held = self.cache.take().filter(|(of, _)| *of == shape);
        let mut cache = held.map_or_else(|| Sequence::new(&[shape], last + 1), |(_, cache)| cache);
        cache.clear();
        for (b, block) in self.blocks.iter().enumerate() {
            let rows = (last + 1).saturating_sub(b * BLOCK).min(BLOCK);
            let of = |index: usize| block.get(index)?.as_ref()?.rows(0..rows, form.carried.get(index)?);
            let (Some(keys), Some(values)) = (of(attended.keys), of(attended.values)) else {
                unreachable!("the shapes were checked")
            };
            cache.restore(0, keys, values);
        }
        self.watch.done(Stage::Caches);
        values.put_attended(op as ValueId, self.positions, &cache);
        self.cache = Some((shape, cache));
    }

    /// Whether a value that blocks are committed by comes out as committed, for every token.
    fn carried(&self, i: usize, values: &Values<'_>) -> Result<(), Mistake> {
        let Some(c) = self.held.form.carried.get(i) else { return Ok(()) };
        for (row, position) in self.positions.iter().enumerate() {
            let at = *position as usize;
            let block = self.blocks.get(at / BLOCK).and_then(|b| b.get(i)?.as_ref());
            let committed = block.and_then(|r| r.rows(at % BLOCK..at % BLOCK + 1, c));
            if committed == Some(values.int8(c.op, row)) {
                continue;
            }
            let (code, what) = match i == self.held.form.hidden {
                true => (FailureCode::Hidden, "hidden vector"),
                false => (FailureCode::KeyValue, "keys or values"),
            };
            let message =
                format!("the {what} of position {position} (operation {}) are not those committed", c.op);
            return Err(Mistake::new("states", code, *position, message));
        }
        Ok(())
    }
}

/// The choices of output ids.
struct Choices<'a> {
    audited: &'a Audited<'a>,
    kernel: Kernel,
    seed: [u8; 32],
    history: History,
    guide: Option<Guided>,
    /// Output ids that history and guide have taken in.
    taken: usize,
    without_mask: u64,
}

/// How the choices came out.
struct Tokens {
    without_mask: u64,
    probabilities: bool,
}

impl<'a> Choices<'a> {
    fn new(audited: &'a Audited<'a>, kernel: Kernel) -> Result<Choices<'a>, Mistake> {
        let (record, known) = (audited.record, audited.known);
        let t = &record.transcript;
        let guide = match known.subject.map(|s| guided(record, s)).transpose() {
            Ok(guide) => guide.flatten(),
            Err(message) => {
                return Err(Mistake { check: "choices", code: FailureCode::Limits, position: None, message });
            }
        };
        let seed = sampler_seed(t.nonce, record.request.hash(), record.receipt.receipt.model_root);
        let history = History::new(&t.prompt_ids);
        Ok(Choices { audited, kernel, seed, history, guide, taken: 0, without_mask: 0 })
    }

    /// Whether `logits` choose the answer's token `index`.
    fn check(&mut self, index: usize, logits: &[i32], cost: &mut Cost) -> Result<(), Mistake> {
        let record = self.audited.record;
        let (t, request) = (&record.transcript, &record.request);
        for id in t.output_ids.iter().take(index).skip(self.taken) {
            self.history.push(*id);
            if let Some(guide) = &mut self.guide {
                guide.push(*id);
            }
        }
        self.taken = index;
        let Some(got) = t.output_ids.get(index).copied() else { return Ok(()) };
        let at = u32::try_from(index).unwrap_or(u32::MAX);
        if let Some(count) = request.logprobs
            && t.logprobs.get(index) != Some(&logprobs(logits, got, count))
        {
            let message = format!("the probabilities of output token {index} are not the model's");
            return Err(Mistake::new("choices", FailureCode::Logprobs, at, message));
        }
        let mask = match (&mut self.guide, self.audited.known.mask) {
            (Some(guide), _) => Some(guide.mask()),
            (None, Some(mask)) if request.guide.is_some() => mask(index),
            (None, _) => None,
        };
        if request.guide.is_some() && mask.is_none() {
            self.without_mask += 1;
            return Ok(());
        }
        cost.choices += 1;
        let want =
            self.kernel.choose(logits, &self.history, mask.as_ref(), &request.sampling, &self.seed, at);
        if want == got {
            return Ok(());
        }
        let message = format!("output token {index}: the model chooses {want}, the transcript has {got}");
        Err(Mistake::new("choices", FailureCode::OutputId, at, message))
    }

    fn done(self) -> Tokens {
        Tokens {
            without_mask: self.without_mask,
            probabilities: self.audited.record.request.logprobs.is_some(),
        }
    }
}

impl Tokens {
    fn report(self, report: &mut Report, cost: &Cost) {
        let probabilities = if self.probabilities { ", probabilities included" } else { "" };
        let detail =
            format!("{} follow from the logits, the request and the seed{probabilities}", cost.choices);
        if self.without_mask == 0 {
            report.pass("choices", detail);
            return;
        }
        let message = format!("{detail}; {} depend on a mask, which was not checked", self.without_mask);
        match cost.choices {
            0 => report.not_run("choices", &message),
            _ => report.pass("choices", message),
        }
        report.unseen("the mask of the guide was not checked: neither a tokenizer nor masks were given");
    }
}
