//! Light audits: honest openings hold; whatever is altered is found and named; keys are secret for a reason.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod honest;
mod small;

use std::sync::{Arc, LazyLock};

use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical as _;
use assay_core::id::{Hash, ModelRoot};
use assay_core::request::{Guide, Request, Sampling};
use assay_core::verdict::{FailureCode, Outcome, Verdict};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::Op;
use assay_engine::semantics::adjust::Mask;
use assay_engine::semantics::scale::Scale;
use assay_engine::text::guide::Guided;
use assay_verify::freivalds::{Coins, PRIME, Weights};
use assay_verify::light::{
    Audit, Challenge, Checker, Fed, Kept, Key, KeyError, Known, Model, Opening, Packed, Prover, Refusal,
    Roots, Secret, Seed,
};
use assay_verify::reexecution::Subject;
use assay_verify::trace;
use assay_verify::trace::part::{Layout, Numbers, Part};
use honest::Node;
use proptest::prelude::*;
use small::{Plan, Random, Small, VOCABULARY, digests, plans, small};

const SECRET: Secret = Secret { seed: Seed::from_bytes([3; 32]), epoch: 9 };
const BEACON: Hash = Hash::from_bytes([0xbe; 32]);

static NODE: LazyLock<Node> = LazyLock::new(Node::new);
static KEY: LazyLock<Key> =
    LazyLock::new(|| key_of(NODE.artifact.as_ref(), NODE.artifact.root(), SECRET, 256));
static CASE: LazyLock<Case> = LazyLock::new(|| Case::new(NODE.request(), 6));
/// So short that every position is drawn, whatever the trace root is.
static FULL: LazyLock<Case> = LazyLock::new(|| Case::new(Request { max_tokens: 40, ..NODE.request() }, 64));

fn key_of(constants: &dyn Constants, root: ModelRoot, secret: Secret, positions: u32) -> Key {
    let (kernel, pool) = (Kernel::available()[0], &Pool::new(2));
    Key::make(&Model { constants, root, kernel, pool }, secret, positions).unwrap()
}

fn checker(key: &Key) -> Checker {
    Checker::new(key, Kernel::from_environment().unwrap(), Arc::new(Pool::new(1))).unwrap()
}

fn subject() -> Subject<'static> {
    Subject {
        root: NODE.artifact.root(),
        program: NODE.artifact.program().program(),
        text: NODE.artifact.text(),
        tokenizer: &NODE.tokenizer,
    }
}

/// An answer of the built-in model and an honest opening of it.
#[derive(Clone)]
struct Case {
    record: AnswerRecord,
    challenge: Challenge,
    opening: Opening,
}

impl Case {
    fn new(request: Request, tokens: u32) -> Case {
        Case::of(NODE.answer(request), tokens)
    }

    fn of(record: AnswerRecord, tokens: u32) -> Case {
        let mut executor = NODE.executor();
        let fed = Fed::of(&record.transcript).unwrap();
        let mut prover = Prover::new(&mut executor).unwrap();
        let challenge = Challenge { beacon: BEACON, trace: prover.commit(&fed), tokens };
        let opening = prover.open(&fed, &challenge.draw(record.receipt.receipt.id(), &fed));
        Case { record, challenge, opening }
    }

    fn check(&self) -> Verdict {
        self.audit(Known::default()).verdict
    }

    fn audit(&self, known: Known<'_>) -> Audit {
        checker(&KEY).check(&self.record, &self.challenge, self.opening.clone(), known).unwrap()
    }

    /// As a provider would who alters what it commits to: the trace root and the digests are those of the altered blocks.
    fn commit_again(&mut self) {
        let program = NODE.artifact.program();
        let hidden = program.program().tokens().0;
        let ops = program.program().carried();
        let mut carries = Vec::new();
        for (b, block) in self.opening.blocks.iter().enumerate() {
            let mut all = Vec::new();
            for (op, kept) in ops.iter().zip(&block.kept) {
                let roots = match kept {
                    Kept::Roots(roots) => *roots,
                    Kept::Whole { largest, scales, numbers } => {
                        let (len, groups) = program.int8_shape(*op);
                        let rows = scales.len() / groups as usize;
                        let attended = program.program().is_attended(*op);
                        let layout = if attended { Layout::Columns } else { Layout::Rows };
                        let words = |s: &Scale| [i32::from(s.mantissa), i32::from(s.exponent)];
                        let scales = Numbers::Word(scales.iter().flat_map(words).collect());
                        let numbers = Numbers::Byte(numbers.0.clone());
                        Roots {
                            largest: *largest,
                            scales: Part::new(rows, 2 * groups as usize, Layout::Columns, scales).root(),
                            numbers: Part::new(rows, len as usize, layout, numbers).root(),
                        }
                    }
                };
                if *op == hidden {
                    let digest = assay_core::digest::block_digest(b as u64, &roots.scales, &roots.numbers);
                    self.record.digests.0[b] = digest;
                }
                all.push(roots.commitment());
            }
            carries.push(trace::carry(&all));
        }
        carries.extend(&self.opening.rest);
        self.challenge.trace = trace::root(&carries);
        NODE.sign(&mut self.record);
    }
}

#[test]
fn an_answer_that_was_stopped_is_opened_like_others() {
    for tokens in [1, 40] {
        let case = Case::of(NODE.stopped(NODE.request(), tokens), 64);
        let verdict = case.check();
        assert!(verdict.holds, "{verdict:?}");
    }
}

/// The verdict on the built-in case, altered.
fn altered(change: impl FnOnce(&mut Case)) -> Verdict {
    let mut case = CASE.clone();
    change(&mut case);
    case.check()
}

fn code(verdict: &Verdict) -> FailureCode {
    assert!(!verdict.holds, "{verdict:?}");
    verdict.failure.as_ref().unwrap().code
}

fn flip(hash: &mut Hash) {
    let mut bytes = *hash.as_bytes();
    bytes[7] ^= 1;
    *hash = Hash::from_bytes(bytes);
}

#[test]
fn an_honest_opening_holds() {
    let audit = CASE.audit(Known::default());
    assert!(audit.verdict.holds, "{audit:?}");
    assert!(audit.verdict.checks.iter().all(|c| c.outcome == Outcome::Passed), "{audit:?}");
    assert_eq!(audit.cost.tokens, 6);
    assert!(audit.cost.choices >= 1);
    let unseen = audit.verdict.unchecked.join("\n");
    for what in ["were not drawn", "committed before the beacon", "no tokenizer"] {
        assert!(unseen.contains(what), "{unseen}");
    }
    let with_text = CASE.audit(Known { subject: Some(&subject()), mask: None }).verdict;
    assert!(with_text.holds && with_text.checks.iter().any(|c| c.name == "prompt"), "{with_text:?}");
    assert!(!with_text.unchecked.join("\n").contains("no tokenizer"));
}

#[test]
fn all_positions_can_be_opened() {
    let fed = Fed::of(&FULL.record.transcript).unwrap();
    assert!((34..64).contains(&fed.positions()), "{}", fed.positions());
    let audit = FULL.audit(Known::default());
    assert!(audit.verdict.holds, "{audit:?}");
    let all = u64::from(fed.positions());
    assert_eq!((audit.cost.tokens, audit.cost.restored), (all, all));
    assert_eq!(audit.cost.choices, 40);
}

#[test]
fn an_opening_survives_its_bytes_and_a_key_its_own() {
    let bytes = CASE.opening.to_canonical_bytes();
    assert_eq!(Opening::from_canonical_bytes(&bytes).unwrap(), CASE.opening);
    let bytes = KEY.to_canonical_bytes();
    assert_eq!(Key::from_canonical_bytes(&bytes).unwrap(), *KEY);
    assert!(bytes.len() < 300_000, "{} bytes for a model of 1.7 million weights", bytes.len());
    assert!(!format!("{:?}", *KEY).contains("columns"), "nothing secret is printed");
}

#[test]
fn scalar_and_the_fastest_kernel_give_the_same_verdicts() {
    let mut wrong = CASE.clone();
    wrong.opening.tokens[2].products[3] = {
        let n = NODE.artifact.program().matrix_shape(4).0 as usize;
        Packed::new(&vec![5; n])
    };
    for case in [&*CASE, &wrong] {
        let audits: Vec<Audit> = Kernel::available()
            .into_iter()
            .map(|kernel| {
                let mut checker = Checker::new(&KEY, kernel, Arc::new(Pool::new(1))).unwrap();
                checker.check(&case.record, &case.challenge, case.opening.clone(), Known::default()).unwrap()
            })
            .collect();
        assert!(audits.windows(2).all(|a| a[0] == a[1]), "{audits:?}");
    }
}

#[test]
fn a_form_needs_its_masks() {
    let guide = Guide::Regex("[a-z ]{5,40}\\.".into());
    let case = Case::new(Request { guide: Some(guide.clone()), ..NODE.request() }, 6);
    let blind = case.audit(Known::default());
    assert!(blind.verdict.holds);
    assert!(blind.verdict.unchecked.iter().any(|u| u.contains("mask")), "{blind:?}");
    assert!(blind.verdict.checks.iter().any(|c| c.name == "choices" && c.outcome == Outcome::NotRun));
    let seen = case.audit(Known { subject: Some(&subject()), mask: None });
    assert!(seen.verdict.holds && seen.cost.choices >= 1, "{seen:?}");
    assert!(!seen.verdict.unchecked.iter().any(|u| u.contains("mask")));
    let mask = |index: usize| -> Option<Mask> {
        let mut guided: Guided = NODE.tokenizer.guide(&guide, &[]).ok()?;
        case.record.transcript.output_ids[..index].iter().for_each(|id| guided.push(*id));
        Some(guided.mask())
    };
    let given = case.audit(Known { subject: None, mask: Some(&mask) });
    assert!(given.verdict.holds);
    assert_eq!(given.cost.choices, seen.cost.choices);
    let other = |_: usize| Some(Mask::only(&[7]));
    let wrong = case.audit(Known { subject: None, mask: Some(&other) });
    assert_eq!(code(&wrong.verdict), FailureCode::OutputId);
}

#[test]
fn every_field_of_a_block() {
    let hidden = CASE.opening.blocks[0].kept.len() - 1;
    for b in 0..CASE.opening.blocks.len() {
        for i in 0..=hidden {
            let parts = match &CASE.opening.blocks[b].kept[i] {
                Kept::Whole { .. } => 4,
                Kept::Roots(_) => 3,
            };
            for part in 0..parts {
                let change = |case: &mut Case| match (&mut case.opening.blocks[b].kept[i], part) {
                    (Kept::Whole { largest, .. }, 0) => flip(largest),
                    (Kept::Whole { scales, .. }, 1) => scales[0].exponent ^= 1,
                    (Kept::Whole { scales, .. }, 2) => scales[0].mantissa ^= 1,
                    (Kept::Whole { numbers, .. }, _) => numbers.0[5] = if numbers.0[5] == 1 { 2 } else { 1 },
                    (Kept::Roots(r), 0) => flip(&mut r.largest),
                    (Kept::Roots(r), 1) => flip(&mut r.scales),
                    (Kept::Roots(r), _) => flip(&mut r.numbers),
                };
                assert_eq!(code(&altered(change)), FailureCode::TraceRoot, "block {b}, operation {i}");
            }
        }
    }
    assert_eq!(code(&altered(|c| c.challenge.beacon = Hash::ZERO)), FailureCode::Opening, "other positions");
    assert_eq!(code(&altered(|c| flip(&mut c.challenge.trace))), FailureCode::Opening, "other positions");
}

#[test]
fn every_shape_of_an_opening() {
    let changes: [fn(&mut Opening); 15] = [
        |o| o.blocks.truncate(0),
        |o| drop(o.blocks.pop()),
        |o| o.rest.push(Hash::ZERO),
        |o| drop(o.blocks[0].kept.pop()),
        |o| o.tokens.clear(),
        |o| o.tokens.swap(0, 1),
        |o| o.tokens[0].position += 1,
        |o| o.tokens[0].rows.clear(),
        |o| o.tokens[0].rows[0].weights.0.push(0),
        |o| drop(o.tokens[1].products.pop()),
        |o| {
            if let Kept::Whole { scales, .. } = &mut o.blocks[0].kept[0] {
                scales.pop();
            }
        },
        |o| {
            if let Kept::Whole { numbers, .. } = &mut o.blocks[0].kept[1] {
                numbers.0.push(0);
            }
        },
        |o| {
            if let Kept::Whole { numbers, .. } = &mut o.blocks[0].kept[1] {
                numbers.0[0] = i8::MIN;
            }
        },
        |o| {
            if let Kept::Whole { scales, .. } = &mut o.blocks[0].kept[0] {
                scales[0] = Scale { mantissa: 1, exponent: 0 };
            }
        },
        |o| {
            o.blocks[0].kept[0] =
                Kept::Roots(Roots { largest: Hash::ZERO, scales: Hash::ZERO, numbers: Hash::ZERO });
        },
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert_eq!(code(&altered(|c| change(&mut c.opening))), FailureCode::Opening, "change {i}");
    }
}

#[test]
fn every_embedded_row_and_every_product() {
    let tokens = CASE.opening.tokens.len();
    for t in 0..tokens {
        let position = CASE.opening.tokens[t].position;
        let rows: [fn(&mut Opening, usize); 5] = [
            |o, t| o.tokens[t].rows[0].scale ^= 1,
            |o, t| o.tokens[t].rows[0].weights.0[9] ^= 1,
            |o, t| o.tokens[t].rows[0].proof.index ^= 1,
            |o, t| o.tokens[t].rows[0].proof.count += 1,
            |o, t| flip(&mut o.tokens[t].rows[0].proof.path[2]),
        ];
        for change in rows {
            let verdict = altered(|c| change(&mut c.opening, t));
            assert_eq!(code(&verdict), FailureCode::Row);
            assert_eq!(verdict.failure.unwrap().position, Some(position));
        }
        for p in 0..CASE.opening.tokens[t].products.len() {
            let packed = &CASE.opening.tokens[t].products[p];
            let numbers = packed.bytes.len() / usize::from(packed.width);
            for at in [0, packed.bytes.len() / 2, packed.bytes.len() - 1] {
                let verdict = altered(|c| c.opening.tokens[t].products[p].bytes[at] ^= 1);
                assert_eq!(code(&verdict), FailureCode::Product);
                assert_eq!(verdict.failure.unwrap().position, Some(position));
            }
            for change in [
                |p: &mut Packed| p.width ^= 1,
                |p: &mut Packed| p.bytes.truncate(p.bytes.len() - 1),
                |p: &mut Packed| p.bytes.clear(),
            ] {
                let verdict = altered(|c| change(&mut c.opening.tokens[t].products[p]));
                assert_eq!(code(&verdict), FailureCode::Product, "{numbers} numbers");
            }
        }
    }
}

#[test]
fn rows_of_other_tokens_are_refused() {
    // A row with a proof that holds, but of another token.
    let (a, b) = (0, 1);
    assert_ne!(CASE.opening.tokens[a].rows, CASE.opening.tokens[b].rows);
    let verdict = altered(|c| c.opening.tokens[a].rows = c.opening.tokens[b].rows.clone());
    assert_eq!(code(&verdict), FailureCode::Row);
}

#[test]
fn what_is_committed_wrongly_is_found_where_it_is_opened() {
    let hidden = FULL.opening.blocks[0].kept.len() - 1;
    for position in [0, 17, 33] {
        let (b, row) = (position / 32, position % 32);
        for i in 0..=hidden {
            for scale in [false, true] {
                let mut case = FULL.clone();
                let (_, groups) = NODE.artifact.program().int8_shape(subject().program.carried()[i]);
                let Kept::Whole { scales, numbers, .. } = &mut case.opening.blocks[b].kept[i] else {
                    panic!("every block is opened")
                };
                let rows = scales.len() / groups as usize;
                if scale {
                    scales[row * groups as usize].exponent += 1;
                } else {
                    let at = row * numbers.0.len() / rows;
                    numbers.0[at] = if numbers.0[at] == 1 { 2 } else { 1 };
                }
                case.commit_again();
                let verdict = case.check();
                let want = if i == hidden { FailureCode::Hidden } else { FailureCode::KeyValue };
                assert_eq!(code(&verdict), want, "operation {i}");
                assert_eq!(verdict.failure.unwrap().position, Some(position as u32));
            }
        }
    }
}

#[test]
fn every_field_of_the_record() {
    let fails = |change: fn(&mut AnswerRecord)| {
        let mut case = FULL.clone();
        change(&mut case.record);
        NODE.sign(&mut case.record);
        code(&case.check())
    };
    let last = FULL.record.transcript.output_ids.len() - 1;
    assert_eq!(last, 39);
    assert_eq!(fails(|r| r.transcript.output_ids[39] ^= 1), FailureCode::OutputId);
    // The row of a token that is read again, or was chosen by nobody, is another's.
    assert_eq!(fails(|r| r.transcript.output_ids[3] ^= 1), FailureCode::Row);
    assert_eq!(fails(|r| r.transcript.prompt_ids[0] ^= 1), FailureCode::Row);
    assert_eq!(fails(|r| r.transcript.output_ids[7] = u32::MAX), FailureCode::OutputId);
    assert_eq!(fails(|r| r.request.sampling.top_k = 1), FailureCode::OutputId);
    assert_eq!(
        fails(|r| r.transcript.nonce = assay_core::id::Nonce::from_bytes([1; 32])),
        FailureCode::OutputId
    );
    assert_eq!(fails(|r| flip(&mut r.digests.0[1])), FailureCode::Digest);
    assert_eq!(fails(|r| r.digests.0.truncate(1)), FailureCode::Digest);
    assert_eq!(fails(|r| r.digests.0.push(Hash::ZERO)), FailureCode::Digest);
    assert_eq!(fails(|r| r.transcript.output_ids.clear()), FailureCode::Limits);
    let mut unsigned = FULL.clone();
    unsigned.record.transcript.text.push('!');
    assert_eq!(code(&unsigned.check()), FailureCode::TranscriptRoot);
    // Text and end need a tokenizer.
    NODE.sign(&mut unsigned.record);
    assert!(unsigned.check().holds);
    let with_text = unsigned.audit(Known { subject: Some(&subject()), mask: None });
    assert_eq!(code(&with_text.verdict), FailureCode::Text);
}

#[test]
fn probabilities_are_recomputed() {
    let case = Case::new(Request { logprobs: Some(3), max_tokens: 12, ..NODE.request() }, 64);
    assert!(case.check().holds);
    let mut other = case.clone();
    other.record.transcript.logprobs[4].chosen += 1;
    NODE.sign(&mut other.record);
    let verdict = other.check();
    assert_eq!(code(&verdict), FailureCode::Logprobs);
    assert_eq!(verdict.failure.unwrap().position, Some(4));
}

#[test]
fn another_model_executed() {
    let mut bytes = NODE.artifact.bytes().to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x40;
    let other = Arc::new(Artifact::from_bytes("altered", &bytes).unwrap());
    let mut executor =
        assay_engine::forward::Executor::new(other.shared(), Kernel::available()[0], Arc::new(Pool::new(1)));
    let mut case = FULL.clone();
    let fed = Fed::of(&case.record.transcript).unwrap();
    case.record.digests = digests(&mut executor, fed.tokens());
    NODE.sign(&mut case.record);
    let mut prover = Prover::new(&mut executor).unwrap();
    case.challenge.trace = prover.commit(&fed);
    case.opening = prover.open(&fed, &case.challenge.draw(case.record.receipt.receipt.id(), &fed));
    assert_eq!(code(&case.check()), FailureCode::Product);
    // The key says so as well, to who has the weights.
    let (kernel, pool) = (Kernel::available()[0], &Pool::new(2));
    let honest = Model { constants: NODE.artifact.as_ref(), root: NODE.artifact.root(), kernel, pool };
    assert_eq!(KEY.check_against(&honest), Ok(()));
    let altered = Model { constants: other.as_ref(), ..honest };
    assert_eq!(KEY.check_against(&altered), Err(KeyError::Content));
    let got = honest.root;
    let expected = ModelRoot::from_bytes([1; 32]);
    let named = Model { root: expected, ..honest };
    assert_eq!(KEY.check_against(&named), Err(KeyError::Model { got, expected }));
}

#[test]
fn keys_are_made_again_from_what_is_revealed() {
    let revealed = KEY.reveal();
    assert_eq!(revealed.commitment(&NODE.artifact.root()), KEY.commitment());
    assert_eq!(key_of(NODE.artifact.as_ref(), NODE.artifact.root(), revealed, 256), *KEY);
    for other in [Secret { epoch: 10, ..SECRET }, Secret { seed: Seed::from_bytes([4; 32]), ..SECRET }] {
        assert_ne!(other.commitment(&KEY.model()), KEY.commitment());
    }
    assert_ne!(SECRET.commitment(&ModelRoot::ZERO), KEY.commitment());
}

#[test]
fn what_is_the_verifiers_own_is_refused_and_blames_nobody() {
    let check = |key: &Key, challenge: Challenge, known: Known<'_>| {
        checker(key).check(&CASE.record, &challenge, CASE.opening.clone(), known).unwrap_err()
    };
    let other = ModelRoot::from_bytes([1; 32]);
    let foreign = key_of(NODE.artifact.as_ref(), other, SECRET, 256);
    let receipt = NODE.artifact.root();
    let none = Known::default();
    assert_eq!(check(&foreign, CASE.challenge, none), Refusal::Model { receipt, held: other });
    let text = Subject { root: other, ..subject() };
    let known = Known { subject: Some(&text), mask: None };
    assert_eq!(check(&KEY, CASE.challenge, known), Refusal::Model { receipt, held: other });
    let short = key_of(NODE.artifact.as_ref(), receipt, SECRET, 8);
    assert!(matches!(check(&short, CASE.challenge, none), Refusal::Positions { covered: 8, .. }));
    for tokens in [0, 65] {
        let challenge = Challenge { tokens, ..CASE.challenge };
        assert_eq!(check(&KEY, challenge, none), Refusal::Tokens { got: tokens });
    }
    let (kernel, pool) = (Kernel::available()[0], &Pool::new(1));
    let model = Model { constants: NODE.artifact.as_ref(), root: receipt, kernel, pool };
    for positions in [0, 257] {
        let error = Key::make(&model, SECRET, positions).unwrap_err();
        assert_eq!(error, KeyError::Positions { got: positions, context: 256 });
    }
}

/// The attack that keys are secret against: who knows `r` adds to two accumulators what cancels out under it. Here the last choice of
/// an answer is bent to another token, and nothing else has to be changed.
#[test]
fn a_leaked_key_is_worth_a_forgery_and_another_key_finds_it() {
    let mut case = Case::new(
        Request {
            sampling: Sampling { seed: Some(1), ..Sampling::GREEDY },
            max_tokens: 20,
            ..NODE.request()
        },
        64,
    );
    let head = subject().program.ops.iter().rev().find_map(|op| match op {
        Op::MatMul { weights, .. } => Some(*weights),
        _ => None,
    });
    let head = head.unwrap();
    let rows = NODE.artifact.program().matrix_shape(head).0 as usize;
    let leaked = Coins::new(&[
        b"assay/light-r/1",
        SECRET.seed.as_bytes(),
        NODE.artifact.root().as_bytes(),
        &head.to_be_bytes(),
    ]);
    let r = leaked.weights(rows);
    let last = case.record.transcript.output_ids.last_mut().unwrap();
    let wanted = if *last == 300 { 301 } else { 300 };
    *last = wanted;
    NODE.sign(&mut case.record);
    assert_eq!(code(&case.check()), FailureCode::OutputId, "said, but not computed");
    let packed = case.opening.tokens.last().unwrap().products.last().unwrap();
    let mut sums = vec![0; rows];
    assert!(packed.unpack(Kernel::available()[0], &mut sums));
    // x more for the wanted token, y less for some other, with x r_wanted = y r_other. Of such pairs one makes the wanted token
    // the likeliest.
    let believed = (0..rows).filter(|i| *i != wanted as usize).find(|other| {
        let Some((x, y)) = relation(&r, wanted as usize, *other) else { return false };
        let mut sums = sums.clone();
        let (Some(more), Some(less)) = (sums[wanted as usize].checked_add(x), sums[*other].checked_sub(y))
        else {
            return false;
        };
        (sums[wanted as usize], sums[*other]) = (more, less);
        *case.opening.tokens.last_mut().unwrap().products.last_mut().unwrap() = Packed::new(&sums);
        let verdict = case.check();
        assert_ne!(
            verdict.failure.as_ref().map(|f| f.code),
            Some(FailureCode::Product),
            "the key is satisfied"
        );
        verdict.holds
    });
    assert!(believed.is_some(), "whoever knows the key is believed");
    let fresh = Secret { seed: Seed::from_bytes([8; 32]), ..SECRET };
    let key = key_of(NODE.artifact.as_ref(), NODE.artifact.root(), fresh, 256);
    let audit = checker(&key).check(&case.record, &case.challenge, case.opening.clone(), Known::default());
    assert_eq!(code(&audit.unwrap().verdict), FailureCode::Product);
}

/// `x, y` of at most 31 bits with `x r_i = y r_j` in the field, by Euclid's algorithm cut short; `None` where there are none.
fn relation(r: &Weights, i: usize, j: usize) -> Option<(i32, i32)> {
    let number = |k: usize| {
        let (low, high) = r.get(k);
        i128::from(low) + (i128::from(high) << 31)
    };
    let p = i128::from(PRIME);
    let inverse = |v: i128| {
        (0..61).rev().fold(1i128, |acc, bit| {
            let square = acc * acc % p;
            if (p - 2) >> bit & 1 == 1 { square * v % p } else { square }
        })
    };
    let ratio = number(i) * inverse(number(j)) % p;
    // Every step keeps remainder = factor * ratio mod p.
    let (mut a, mut b) = ((p, 0i128), (ratio, 1i128));
    while b.0 >= 1 << 30 {
        let q = a.0 / b.0;
        (a, b) = (b, (a.0 - q * b.0, a.1 - q * b.1));
    }
    let (y, x) = b;
    let fits = (1..1 << 31).contains(&x) && y > 0;
    fits.then_some((x as i32, y as i32))
}

fn samplings() -> impl Strategy<Value = Sampling> {
    let penalties = (0i32..1_500_000, -1_000_000i32..1_000_000, 500_000u32..2_000_000);
    let bias = prop_oneof![Just(vec![]), Just(vec![(2, 3_000_000), (7, -100_000_000)])];
    (0u32..2_000_000, 0u32..25, 1u32..1_000_001, 0u32..300_000, penalties, bias).prop_map(
        |(temperature_micro, top_k, top_p_micro, min_p_micro, (presence, frequency, repetition), bias)| {
            Sampling {
                temperature_micro,
                top_k,
                top_p_micro,
                min_p_micro,
                presence_micro: presence,
                frequency_micro: frequency,
                repetition_micro: repetition,
                bias,
                ..Sampling::GREEDY
            }
        },
    )
}

/// An honest answer of a random model, with key and opening.
fn honest(
    plan: &Plan,
    sampling: Sampling,
    prompt: usize,
    count: usize,
    tokens: u32,
) -> (Arc<Small>, Key, Case) {
    let model = Arc::new(small(plan));
    let mut random = Random(plan.seed ^ 0xabcd);
    let prompt = (0..prompt).map(|_| (random.next() % u64::from(VOCABULARY)) as u32).collect();
    let record = model.answer(prompt, count, sampling, Some(2));
    let key = key_of(model.as_ref(), model.root(), SECRET, small::CONTEXT);
    let fed = Fed::of(&record.transcript).unwrap();
    let mut executor = model.executor(Kernel::available()[0]);
    let mut prover = Prover::new(&mut executor).unwrap();
    let challenge = Challenge { beacon: BEACON, trace: prover.commit(&fed), tokens };
    let opening = prover.open(&fed, &challenge.draw(record.receipt.receipt.id(), &fed));
    (model, key, Case { record, challenge, opening })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn honest_openings_of_random_models_hold(
        plan in plans(),
        sampling in samplings(),
        prompt in 1usize..90,
        count in 1usize..12,
        tokens in 1u32..10,
    ) {
        let (_, key, case) = honest(&plan, sampling, prompt, count, tokens);
        for kernel in Kernel::available() {
            let mut checker = Checker::new(&key, kernel, Arc::new(Pool::new(1))).unwrap();
            let audit = checker.check(&case.record, &case.challenge, case.opening.clone(), Known::default());
            let audit = audit.unwrap();
            prop_assert!(audit.verdict.holds, "{:?}: {:?}", kernel, audit);
        }
    }

    /// Whatever byte of an opening is changed: it is no opening any more, or the check fails. Nothing panics.
    #[test]
    fn any_changed_byte_of_an_opening_is_found(at in any::<prop::sample::Index>(), change in 1u8.., cut in any::<bool>()) {
        let mut bytes = SMALL.2.opening.to_canonical_bytes();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= change;
        }
        if let Ok(opening) = Opening::from_canonical_bytes(&bytes) {
            let case = &SMALL.2;
            let audit = checker(&SMALL.1).check(&case.record, &case.challenge, opening, Known::default()).unwrap();
            prop_assert!(!audit.verdict.holds, "byte {} of {}", at, bytes.len());
        }
    }

    /// Whatever byte of a key is changed: it is refused, or it is another key. Nothing panics, and a check by it does not either.
    #[test]
    fn any_changed_byte_of_a_key_is_survived(at in any::<prop::sample::Index>(), change in 1u8..) {
        let mut bytes = SMALL.1.to_canonical_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(key) = Key::from_canonical_bytes(&bytes) {
            prop_assert_ne!(&key, &SMALL.1);
            if let Ok(mut checker) = Checker::new(&key, Kernel::available()[0], Arc::new(Pool::new(1))) {
                let case = &SMALL.2;
                let _ = checker.check(&case.record, &case.challenge, case.opening.clone(), Known::default());
            }
        }
    }

    #[test]
    fn noise_is_neither_key_nor_opening(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(Key::from_canonical_bytes(&bytes).is_err());
        prop_assert!(Opening::from_canonical_bytes(&bytes).is_err());
        for tag in ["assay/light-key/1", "assay/light-opening/1"] {
            let mut tagged = vec![tag.len() as u8];
            tagged.extend(tag.as_bytes());
            tagged.extend(&bytes);
            let _ = Key::from_canonical_bytes(&tagged).map(|k| Checker::new(&k, Kernel::available()[0], Arc::new(Pool::new(1))).is_ok());
            if let Ok(opening) = Opening::from_canonical_bytes(&tagged) {
                let case = &SMALL.2;
                let audit = checker(&SMALL.1).check(&case.record, &case.challenge, opening, Known::default());
                prop_assert!(!audit.unwrap().verdict.holds);
            }
        }
    }
}

static SMALL: LazyLock<(Arc<Small>, Key, Case)> = LazyLock::new(|| {
    let plan = Plan {
        d: 24,
        heads: 2,
        per_kv: 2,
        head_dim: 8,
        ff: 20,
        layers: 1,
        reach: assay_engine::program::Reach::Past,
        positions: true,
        tied: true,
        vocabulary: VOCABULARY,
        context: small::CONTEXT,
        packed: false,
        alike: false,
        seed: 77,
    };
    honest(&plan, Sampling { temperature_micro: 800_000, ..Sampling::GREEDY }, 30, 9, 3)
});
