//! The batch check: honest traces hold; one altered number among millions is found; challenges come after commitments for a
//! reason.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod honest;
mod small;

use std::sync::{Arc, LazyLock};

use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_core::request::Request;
use assay_core::verdict::{FailureCode, Outcome, Verdict};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::Reach;
use assay_verify::batch::{Audit, Challenge, MULTIPLIED_ROWS, Trace, check_by_batch};
use assay_verify::light::Fed;
use assay_verify::reexecution::Subject;
use honest::Node;
use proptest::prelude::*;
use small::{Plan, Random, Small, VOCABULARY, plans, small};

const BEACON: Hash = Hash::from_bytes([0xbe; 32]);

/// Inputs and accumulators of each product.
type Numbers = Vec<(Vec<i8>, Vec<i32>)>;

static NODE: LazyLock<Node> = LazyLock::new(Node::new);
static RECORD: LazyLock<AnswerRecord> =
    LazyLock::new(|| NODE.answer(Request { max_tokens: 30, logprobs: Some(2), ..NODE.request() }));
static NUMBERS: LazyLock<Numbers> =
    LazyLock::new(|| Trace::of(&mut NODE.executor(), &fed(&RECORD)).into_numbers());

fn fed(record: &AnswerRecord) -> Fed {
    Fed::of(&record.transcript).unwrap()
}

fn pool() -> Pool {
    Pool::new(1)
}

/// The audit of a trace with these numbers, committed to as they are.
fn audit(record: &AnswerRecord, numbers: Numbers) -> Audit {
    let trace = Trace::new(NODE.artifact.program(), &fed(record), numbers).unwrap();
    let challenge = Challenge::new(BEACON, trace.root(&pool()));
    audit_of(record, &trace, &challenge)
}

fn audit_of(record: &AnswerRecord, trace: &Trace, challenge: &Challenge) -> Audit {
    let subject = Subject {
        root: NODE.artifact.root(),
        program: NODE.artifact.program().program(),
        text: NODE.artifact.text(),
        tokenizer: &NODE.tokenizer,
    };
    check_by_batch(record, &subject, &mut NODE.executor(), trace, challenge)
}

fn failed(verdict: &Verdict) -> Vec<&str> {
    let failed = verdict.checks.iter().filter(|c| c.outcome == Outcome::Failed);
    failed.map(|c| c.name.as_str()).collect()
}

#[test]
fn an_honest_trace_holds() {
    let audit = audit(&RECORD, NUMBERS.clone());
    assert!(audit.verdict.holds, "{audit:?}");
    assert!(audit.verdict.checks.iter().all(|c| c.outcome == Outcome::Passed));
    for name in [
        "commitments",
        "products",
        "inputs",
        "prompt",
        "tokens",
        "probabilities",
        "execution digests",
        "text",
    ] {
        assert!(audit.verdict.checks.iter().any(|c| c.name == name), "{name}");
    }
    let products = audit.verdict.checks.iter().find(|c| c.name == "products").unwrap();
    assert!(
        products.detail.contains("by 24 rows a matrix") && products.detail.contains("2^-17"),
        "{products:?}"
    );
    assert_eq!(audit.cost.multiplied_rows, MULTIPLIED_ROWS as u64);
    assert!(audit.cost.positions > audit.cost.multiplied_rows, "fewer rows than an execution");
    assert!(audit.verdict.unchecked.iter().any(|u| u.contains("beacon")));
}

#[test]
fn one_accumulator() {
    for i in 0..NUMBERS.len() {
        let count = NUMBERS[i].1.len();
        for (at, by) in [(0, 1), (count / 2, -1), (count - 1, 1 << 30)] {
            let mut numbers = NUMBERS.clone();
            numbers[i].1[at] = numbers[i].1[at].wrapping_add(by);
            let audit = audit(&RECORD, numbers);
            assert!(failed(&audit.verdict).contains(&"products"), "product {i}, number {at}: {audit:?}");
            assert!(!failed(&audit.verdict).contains(&"commitments"));
        }
    }
}

#[test]
fn one_input() {
    for i in 0..NUMBERS.len() {
        let (count, rows) = (NUMBERS[i].0.len(), fed(&RECORD).positions() as usize);
        let cols = count / if i + 1 == NUMBERS.len() { 30 } else { rows };
        for at in [0, count / 2, count - 1] {
            let mut numbers = NUMBERS.clone();
            numbers[i].0[at] ^= 1;
            let audit = audit(&RECORD, numbers);
            assert!(failed(&audit.verdict).contains(&"products"));
            assert!(failed(&audit.verdict).contains(&"inputs"));
            let failure = audit.verdict.failure.unwrap();
            let first = if i + 1 == NUMBERS.len() { rows - 30 } else { 0 };
            assert_eq!(
                (failure.code, failure.position),
                (FailureCode::Input, Some((first + at / cols) as u32))
            );
        }
    }
}

#[test]
fn what_was_not_committed() {
    let trace = Trace::new(NODE.artifact.program(), &fed(&RECORD), NUMBERS.clone()).unwrap();
    let other = audit_of(&RECORD, &trace, &Challenge::new(BEACON, Hash::ZERO));
    assert_eq!(failed(&other.verdict), ["commitments"]);
    assert_eq!(other.verdict.failure.unwrap().code, FailureCode::TraceRoot);
    for change in [
        |n: &mut Numbers| n.truncate(3),
        |n: &mut Numbers| n[0].0.truncate(5),
        |n: &mut Numbers| n[4].1.push(0),
        |n: &mut Numbers| n.swap(1, 2),
    ] {
        let mut numbers = NUMBERS.clone();
        change(&mut numbers);
        assert_eq!(Trace::new(NODE.artifact.program(), &fed(&RECORD), numbers), None);
    }
    // A trace of a shorter answer.
    let mut record = RECORD.clone();
    record.transcript.output_ids.truncate(20);
    let short = Trace::of(&mut NODE.executor(), &fed(&record));
    let audit = audit_of(&RECORD, &short, &Challenge::new(BEACON, short.root(&pool())));
    assert_eq!(failed(&audit.verdict), ["opening"]);
}

#[test]
fn another_model_executed() {
    let mut bytes = NODE.artifact.bytes().to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x40;
    let other = Arc::new(Artifact::from_bytes("altered", &bytes).unwrap());
    let mut executor = Executor::new(other.shared(), Kernel::available()[0], Arc::new(pool()));
    let numbers = Trace::of(&mut executor, &fed(&RECORD)).into_numbers();
    // Its inputs are what its accumulators make: only the products tell.
    let audit = audit(&RECORD, numbers);
    assert!(failed(&audit.verdict).contains(&"products"), "{audit:?}");
    assert!(!failed(&audit.verdict).contains(&"inputs"));
}

#[test]
fn what_is_no_product_is_executed() {
    let fails = |change: fn(&mut AnswerRecord)| {
        let mut record = RECORD.clone();
        change(&mut record);
        NODE.sign(&mut record);
        audit(&record, NUMBERS.clone()).verdict
    };
    let verdict = fails(|r| r.transcript.output_ids[29] ^= 1);
    assert_eq!(verdict.failure.unwrap().code, FailureCode::OutputId);
    assert_eq!(fails(|r| r.digests.0[1] = Hash::ZERO).failure.unwrap().code, FailureCode::Digest);
    assert_eq!(fails(|r| r.transcript.logprobs[3].chosen += 1).failure.unwrap().code, FailureCode::Logprobs);
    let mut empty = RECORD.clone();
    empty.transcript.output_ids.clear();
    NODE.sign(&mut empty);
    let trace = Trace::new(NODE.artifact.program(), &fed(&RECORD), NUMBERS.clone()).unwrap();
    let audit = audit_of(&empty, &trace, &Challenge::new(BEACON, Hash::ZERO));
    assert!(failed(&audit.verdict).contains(&"limits"));
}

fn trace_of(model: &Arc<Small>, fed: &Fed) -> Trace {
    Trace::of(&mut model.executor(Kernel::available()[0]), fed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn random_models(
        plan in plans(),
        prompt in 1usize..60,
        count in 1usize..6,
        at in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        by in any::<i32>().prop_filter("a change", |by| *by != 0),
    ) {
        let model = Arc::new(small(&plan));
        let mut random = Random(plan.seed);
        let mut id = || (random.next() % u64::from(VOCABULARY)) as u32;
        let (prompt, output) = ((0..prompt).map(|_| id()).collect(), (0..count).map(|_| id()).collect());
        let fed = Fed::new(prompt, output).unwrap();
        let honest = trace_of(&model, &fed);
        let mut numbers = honest.clone().into_numbers();
        let product = at.0.index(numbers.len());
        let number = at.1.index(numbers[product].1.len());
        numbers[product].1[number] = numbers[product].1[number].wrapping_add(by);
        let altered = Trace::new(model.program(), &fed, numbers.clone()).unwrap();
        let (inputs, sums) = &mut numbers[product];
        sums[number] = sums[number].wrapping_sub(by);
        let number = at.1.index(inputs.len());
        inputs[number] ^= 1;
        let other_input = Trace::new(model.program(), &fed, numbers).unwrap();
        for kernel in Kernel::available() {
            let wrong = |trace: &Trace| {
                let challenge = Challenge::new(BEACON, trace.root(&pool()));
                trace.wrong_product(model.as_ref(), kernel, &pool(), &challenge)
            };
            prop_assert_eq!(wrong(&honest), None, "{:?}", kernel);
            prop_assert!(wrong(&altered).is_some(), "{:?}", kernel);
            // An input whose column of the matrix is zero does not change the product.
            let _ = wrong(&other_input);
        }
    }
}

/// Challenges drawn from the root alone, with 8 bits: a provider that alters one accumulator tries roots until one suits it, and needs
/// about 2^8. With a beacon that comes after the root it has one try, which succeeds once in 2^8.
#[test]
fn challenges_before_the_beacon_can_be_ground() {
    const BITS: u32 = 8;
    let plan = Plan {
        d: 8,
        heads: 1,
        per_kv: 1,
        head_dim: 4,
        ff: 4,
        layers: 1,
        reach: Reach::Past,
        positions: false,
        tied: false,
        vocabulary: VOCABULARY,
        context: small::CONTEXT,
        packed: false,
        alike: false,
        seed: 5,
    };
    let model = Arc::new(small(&plan));
    let fed = Fed::new(vec![1, 2, 3], vec![4]).unwrap();
    let honest = trace_of(&model, &fed).into_numbers();
    let (kernel, pool) = (Kernel::available()[0], pool());
    // The forgeries: one accumulator of the last product, altered by more and more.
    let forged = |by: i32| {
        let mut numbers = honest.clone();
        let last = numbers.last_mut().unwrap();
        last.1[7] = last.1[7].wrapping_add(by);
        Trace::new(model.program(), &fed, numbers).unwrap()
    };
    let passes = |beacon: Hash, trace: &Trace| {
        let challenge = Challenge::new(beacon, trace.root(&pool)).weak(BITS);
        trace.wrong_product(model.as_ref(), kernel, &pool, &challenge).is_none()
    };
    let mut tries = 0;
    let mut found = Vec::new();
    while found.len() < 12 {
        tries += 1;
        let trace = forged(tries);
        if passes(Hash::ZERO, &trace) {
            found.push(trace);
        }
    }
    // 12 · 256 tries are expected, with a standard deviation of 887.
    assert!((600..6600).contains(&tries), "{tries} tries for 12 forgeries");
    // The forgeries that were ground out are worth nothing once the beacon is another; neither is any other.
    let mut passed = 0;
    for attempt in 0..2560u32 {
        let mut beacon = [1; 32];
        beacon[..4].copy_from_slice(&attempt.to_be_bytes());
        passed += u32::from(passes(Hash::from_bytes(beacon), &found[attempt as usize % found.len()]));
    }
    // 10 are expected, with a standard deviation of 3.2.
    assert!((1..27).contains(&passed), "{passed} of 2560");
    // With all bits none does.
    let full = |t: &Trace| trace_passes(&model, t, &Challenge::new(Hash::ZERO, t.root(&pool)));
    assert!(found.iter().all(|t| !full(t)));
}

fn trace_passes(model: &Arc<Small>, trace: &Trace, challenge: &Challenge) -> bool {
    trace.wrong_product(model.as_ref(), Kernel::available()[0], &pool(), challenge).is_none()
}

/// Whoever answers by one row a time gives the same trace: sampling is checked by the execution, not by the trace.
#[test]
fn every_kernel_gives_one_trace_and_one_verdict() {
    let traces: Vec<Numbers> = Kernel::available()
        .into_iter()
        .map(|kernel| {
            let mut executor = Executor::new(NODE.artifact.shared(), kernel, Arc::new(pool()));
            Trace::of(&mut executor, &fed(&RECORD)).into_numbers()
        })
        .collect();
    assert!(traces.iter().all(|t| *t == *NUMBERS));
}
