//! The batch check: all products of a whole trace at once, by someone who has the weights and reads the trace.
//!
//! The verifier stands beside the provider: it reads the inputs and the accumulators of every matrix product at every position ([`Trace`]),
//! committed before a beacon was known ([`Trace::root`]). For a matrix `W` with inputs `Q` and accumulators `A`, a row for each of `T` tokens,
//! it draws `u` of `T` numbers of the field of [`crate::freivalds`] and checks `uᵀA ≡ (uᵀQ)Wᵀ (mod p)`, [`REPETITIONS`] times. `uᵀQ` is cut into int8 digits, so
//! that the engine's own kernel multiplies it: each matrix is multiplied with [`MULTIPLIED_ROWS`] rows however many tokens there are. Everything
//! that is no product is then executed, taking the accumulators from the trace, and checked as by re-execution.
//!
//! **Soundness.** If `A ≠ QWᵀ`, a column of the difference is not zero, its numbers are below `2^32` in size, and with `u` uniform and chosen after `A`
//! and `Q` its combination is 0 with a chance of `1/p`, whatever else is in the trace. All repetitions miss with a chance of at most `p^-3`, below 2^-182.
//!
//! **The beacon.** Nothing here is secret. Challenges drawn from the root alone would let a provider try roots until one suits it; `bits` bits of
//! challenge are then worth `2^bits` tries. A beacon that comes after the root leaves it one try.

use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_core::verdict::{FailureCode, Verdict};
use assay_engine::constants::Constants;
use assay_engine::forward::{Companion, Executor, Values, products};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::{Checked, ValueId};

use crate::freivalds::{Coins, DIGITS, SOUNDNESS_BITS, digits, soundness_of, undigit};
use crate::light::Fed;
use crate::light::form::{Form, Product, Role};
use crate::report::Report;
use crate::subject::Subject;
use crate::trace::part::{Layout, Numbers, Part};

/// Combinations that are checked of every product.
pub const REPETITIONS: u8 = 3;
/// Rows that each matrix is multiplied with, whatever the number of tokens.
pub const MULTIPLIED_ROWS: usize = DIGITS * REPETITIONS as usize;

const TAG: &[u8] = b"assay/batch-u/1";

/// Inputs and accumulators of one matrix product at all positions where it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Traced {
    inputs: Part,
    accumulators: Part,
}

impl Traced {
    fn inputs(&self) -> &[i8] {
        match self.inputs.numbers() {
            Numbers::Byte(v) => v,
            Numbers::Word(_) | Numbers::Long(_) => &[],
        }
    }

    fn accumulators(&self) -> &[i32] {
        match self.accumulators.numbers() {
            Numbers::Word(v) => v,
            Numbers::Byte(_) | Numbers::Long(_) => &[],
        }
    }

    fn rows(&self) -> usize {
        self.inputs.shape().rows
    }
}

/// Inputs and accumulators of every matrix product of an answer's execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace(Vec<Traced>);

impl Trace {
    /// Executes an answer again and keeps its products.
    ///
    /// # Panics
    /// When a token is not below the vocabulary, there are more than the context, or the model is an encoder.
    pub fn of(executor: &mut Executor, fed: &Fed) -> Trace {
        let constants = std::sync::Arc::clone(executor.constants());
        let checked = constants.program();
        let form = Form::new(checked).expect("an encoder gives no answers");
        let mut keeping = Keeping { form: &form, kept: vec![Default::default(); form.products.len()] };
        executor.replay_beside(fed.tokens(), fed.choices_from() as usize, &mut keeping, &mut |_| {});
        Trace::new(checked, fed, keeping.kept).expect("an execution has the program's shapes")
    }

    /// From the inputs and the accumulators of every matrix product up to the logits, in order of operations, row by row: a row for each position, after
    /// the hidden vector for each position that chooses a token. `None` when they have other lengths.
    pub fn new(checked: &Checked, fed: &Fed, numbers: Vec<(Vec<i8>, Vec<i32>)>) -> Option<Trace> {
        let form = Form::new(checked)?;
        let fits = numbers.len() == form.products.len();
        let all = form.products.iter().enumerate().zip(numbers).map(|((i, p), (inputs, accumulators))| {
            let rows = form.rows_of(i, fed);
            let cols = checked.matrix_shape(p.weights).1 as usize;
            let lengths = (rows.checked_mul(cols)?, rows.checked_mul(p.rows)?);
            ((inputs.len(), accumulators.len()) == lengths).then(|| Traced {
                inputs: Part::new(rows, cols, Layout::Rows, Numbers::Byte(inputs)),
                accumulators: Part::new(rows, p.rows, Layout::Rows, Numbers::Word(accumulators)),
            })
        });
        let all: Option<Vec<Traced>> = all.collect();
        all.filter(|_| fits).map(Trace)
    }

    /// Inputs and accumulators of every product, in order: what [`Trace::new`] takes.
    pub fn into_numbers(self) -> Vec<(Vec<i8>, Vec<i32>)> {
        let one = |t: Traced| match (t.inputs.into_numbers(), t.accumulators.into_numbers()) {
            (Numbers::Byte(q), Numbers::Word(a)) => (q, a),
            _ => unreachable!("parts keep their widths"),
        };
        self.0.into_iter().map(one).collect()
    }

    /// The root that is committed to: over the roots of inputs and accumulators (as parts by rows, of 1 and of 4 bytes a number) of
    /// every product in order, each standing as a leaf.
    pub fn root(&self, pool: &Pool) -> Hash {
        let part = |i: usize| {
            self.0.get(i / 2).map(|t| if i.is_multiple_of(2) { &t.inputs } else { &t.accumulators })
        };
        let roots = pool.map(2 * self.0.len(), &|i| part(i).map_or(Hash::ZERO, Part::root));
        merkle::root(roots)
    }

    /// The first product, an operation, whose accumulators are not its matrix times its inputs, if `challenge` finds one. Panics never, but for a
    /// trace of another program.
    pub fn wrong_product(
        &self,
        constants: &dyn Constants,
        kernel: Kernel,
        pool: &Pool,
        challenge: &Challenge,
    ) -> Option<ValueId> {
        let form = Form::new(constants.program())?;
        let pairs: Vec<(&Product, &Traced)> = form.products.iter().zip(&self.0).collect();
        // Without the weights first, a task for each product, then the weights with all threads.
        let combined = pool.map(pairs.len(), &|i| match pairs.get(i) {
            Some((p, t)) => Combined::new(kernel, challenge, p, t),
            None => Combined::default(),
        });
        let wrong = pairs.iter().zip(&combined).find(|((p, _), c)| !c.holds(constants, kernel, pool, p));
        wrong.map(|((p, _), _)| p.op)
    }
}

/// What a trace is checked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The beacon, which nobody knew when the root was committed.
    pub beacon: Hash,
    /// The committed root.
    pub root: Hash,
    repetitions: u8,
    bits: Option<u32>,
}

impl Challenge {
    /// A challenge to a trace that was committed before.
    pub fn new(beacon: Hash, root: Hash) -> Challenge {
        Challenge { beacon, root, repetitions: REPETITIONS, bits: None }
    }

    /// One repetition with numbers of so few bits: to measure what bits are worth, never to check.
    #[must_use]
    pub fn weak(self, bits: u32) -> Challenge {
        Challenge { repetitions: 1, bits: Some(bits), ..self }
    }

    /// `u` of one repetition for one product: the stream with the prefix `"assay/batch-u/1" ‖ beacon ‖ root ‖ operation (2 bytes) ‖ repetition (1 byte)`.
    fn coins(&self, op: ValueId, repetition: u8) -> Coins {
        let root = self.root.as_bytes();
        let coins = Coins::new(&[TAG, self.beacon.as_bytes(), root, &op.to_be_bytes(), &[repetition]]);
        match self.bits {
            Some(bits) => coins.weak(bits),
            None => coins,
        }
    }
}

/// `uᵀQ` in digits and `uᵀA`, repetition by repetition.
#[derive(Default)]
struct Combined {
    digits: Vec<i8>,
    sums: Vec<Vec<u64>>,
}

impl Combined {
    fn new(kernel: Kernel, challenge: &Challenge, p: &Product, t: &Traced) -> Combined {
        let cols = t.inputs.shape().columns;
        let mut all = Combined::default();
        for repetition in 0..challenge.repetitions {
            let u = challenge.coins(p.op, repetition).weights(t.rows());
            all.sums.push(u.combine_rows(kernel, t.accumulators(), p.rows));
            let inputs: Vec<[i8; DIGITS]> =
                u.combine_byte_rows(kernel, t.inputs(), cols).into_iter().map(digits).collect();
            for place in 0..DIGITS {
                all.digits.extend(inputs.iter().filter_map(|d| d.get(place)));
            }
        }
        all
    }

    /// Whether the matrix makes the same of the inputs' combinations.
    fn holds(&self, constants: &dyn Constants, kernel: Kernel, pool: &Pool, p: &Product) -> bool {
        let w = constants.matrix(p.weights);
        let made = products(kernel, pool, &w, &self.digits);
        let by_repetition = made.chunks_exact(p.rows.saturating_mul(DIGITS).max(1));
        self.sums.iter().zip(by_repetition).all(|(sums, made)| {
            let places: Vec<&[i32]> = made.chunks_exact(p.rows.max(1)).collect();
            let number = |j: usize| {
                let mut all = [0i32; DIGITS];
                all.iter_mut().zip(&places).for_each(|(a, p)| *a = p.get(j).copied().unwrap_or_default());
                undigit(all)
            };
            sums.iter().enumerate().all(|(j, sum)| number(j) == *sum)
        })
    }
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
    /// Positions executed.
    pub positions: u64,
    /// Matrix products: one for each multiplication of a program.
    pub products: u64,
    /// Rows that each matrix was multiplied with; an execution multiplies it with one for each position.
    pub multiplied_rows: u64,
    /// Bytes of inputs and accumulators read and hashed.
    pub bytes: u64,
}

/// Checks a record by executing it again with the products that its provider committed to. `executor` must execute the subject's program.
pub fn check_by_batch(
    record: &AnswerRecord,
    subject: &Subject<'_>,
    executor: &mut Executor,
    trace: &Trace,
    challenge: &Challenge,
) -> Audit {
    let mut report = Report::default();
    let mut cost = Cost::default();
    report.bindings(record);
    report.model(record.receipt.receipt.model_root, subject);
    report.prompt(record, subject);
    if report.runnable(record, subject.program) {
        traced(&mut report, &mut cost, record, subject, executor, trace, challenge);
    }
    report.text(record, subject);
    report.unseen("whether the root was committed before the beacon was known: the caller knows");
    Audit { verdict: report.finish(record), cost }
}

fn traced(
    report: &mut Report,
    cost: &mut Cost,
    record: &AnswerRecord,
    subject: &Subject<'_>,
    executor: &mut Executor,
    trace: &Trace,
    challenge: &Challenge,
) {
    let constants = std::sync::Arc::clone(executor.constants());
    let form = Form::new(constants.program());
    let fed = Fed::of(&record.transcript);
    let (Some(form), Some(fed)) = (form, fed) else { return };
    if !trace.fits(constants.program(), &form, &fed) {
        let message = "the trace does not have the shapes of the program and the transcript".to_owned();
        report.fail("opening", FailureCode::Opening, None, message);
        for name in ["commitments", "products", "inputs", "tokens", "execution digests"] {
            report.not_run(name, "the trace is of another execution");
        }
        return;
    }
    let (kernel, pool) = (executor.kernel(), std::sync::Arc::clone(executor.pool()));
    *cost = Cost {
        positions: fed.positions().into(),
        products: trace.0.len() as u64,
        multiplied_rows: (DIGITS * usize::from(challenge.repetitions)) as u64,
        bytes: trace.0.iter().map(|t| (t.inputs().len() + 4 * t.accumulators().len()) as u64).sum(),
    };
    let root = trace.root(&pool);
    if root == challenge.root {
        report.pass("commitments", format!("the trace hashes to {root}"));
    } else {
        let message = format!("the trace hashes to {root}, committed was {}", challenge.root);
        report.fail("commitments", FailureCode::TraceRoot, None, message);
    }
    match trace.wrong_product(constants.as_ref(), kernel, &pool, challenge) {
        None => {
            let once = soundness_of(cost.products);
            let bits = once.saturating_add(SOUNDNESS_BITS * u32::from(challenge.repetitions - 1));
            let detail = format!(
                "{} at {} positions, by {} rows a matrix; a wrong one is missed with a chance below 2^-{bits}",
                cost.products, cost.positions, cost.multiplied_rows
            );
            report.pass("products", detail);
        }
        Some(op) => {
            let message = format!("the accumulators of operation {op} are not its matrix times its inputs");
            report.fail("products", FailureCode::Product, None, message);
        }
    }
    let mut taking =
        Taking { form: &form, fed: &fed, trace, next: vec![0; form.products.len()], wrong: None };
    report.execution(record, subject, &mut |tokens, from, visit| {
        executor.replay_beside(tokens, from, &mut taking, visit);
    });
    match taking.wrong {
        None => report.pass("inputs", "every input of a product is what the execution makes"),
        Some((op, position)) => {
            let message =
                format!("the input of operation {op} at position {position} is not what is executed");
            report.fail("inputs", FailureCode::Input, Some(position), message);
        }
    }
}

impl Trace {
    fn fits(&self, checked: &Checked, form: &Form, fed: &Fed) -> bool {
        let one = |(i, (p, t)): (usize, (&Product, &Traced))| {
            let (inputs, accumulators) = (t.inputs.shape(), t.accumulators.shape());
            let rows = form.rows_of(i, fed);
            (inputs.rows, accumulators.rows) == (rows, rows)
                && inputs.columns == checked.matrix_shape(p.weights).1 as usize
                && accumulators.columns == p.rows
        };
        self.0.len() == form.products.len() && form.products.iter().zip(&self.0).enumerate().all(one)
    }
}

impl Form {
    /// The first position where a product is made.
    fn first_of(&self, product: usize, fed: &Fed) -> usize {
        if product < self.products_always { 0 } else { fed.choices_from() as usize }
    }

    /// At how many positions of an answer's execution a product is made.
    fn rows_of(&self, product: usize, fed: &Fed) -> usize {
        fed.positions() as usize - self.first_of(product, fed)
    }
}

/// Beside the executor: keeps what products read and make.
struct Keeping<'a> {
    form: &'a Form,
    kept: Vec<(Vec<i8>, Vec<i32>)>,
}

impl Companion for Keeping<'_> {
    fn made(&mut self, op: usize, values: &Values<'_>) {
        let Role::Product(i) = self.form.role(op) else { return };
        let p = self.form.products[i];
        let (inputs, accumulators) = &mut self.kept[i];
        (0..values.rows()).for_each(|row| inputs.extend_from_slice(values.int8(p.x, row).0));
        accumulators.extend(values.accumulators(p.weights, p.x));
    }
}

/// Beside the executor: makes products of the trace's accumulators, and compares their inputs.
struct Taking<'a> {
    form: &'a Form,
    fed: &'a Fed,
    trace: &'a Trace,
    /// The next row of each product.
    next: Vec<usize>,
    /// The first operation with another input, and the position.
    wrong: Option<(ValueId, usize)>,
}

impl Companion for Taking<'_> {
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let Role::Product(i) = self.form.role(op) else { return false };
        let rows = values.rows();
        let (Some(p), Some(t), Some(next)) =
            (self.form.products.get(i), self.trace.0.get(i), self.next.get_mut(i))
        else {
            unreachable!("the shapes were checked")
        };
        let (from, cols) = (*next, t.inputs.shape().columns);
        *next += rows;
        let inputs = t.inputs().get(from * cols..(from + rows) * cols).unwrap_or_default();
        for (row, input) in inputs.chunks_exact(cols).enumerate() {
            if self.wrong.is_none() && values.int8(p.x, row).0 != input {
                self.wrong = Some((p.op, self.form.first_of(i, self.fed) + from + row));
            }
        }
        let sums = t.accumulators().get(from * p.rows..(from + rows) * p.rows).unwrap_or_default();
        values.put_product(p.op, p.weights, p.x, &mut |row, _, out| {
            if let Some(sums) = sums.get(row * p.rows..(row + 1) * p.rows) {
                out.copy_from_slice(sums);
            }
        });
        true
    }
}
