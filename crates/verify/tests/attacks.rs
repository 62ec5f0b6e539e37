//! The catalogue of attacks (docs/attacks.md): each is carried out, and the rung that catches it does.
//!
//! Small models with every operation stand for large ones: what is checked does not depend on the size. Attacks that need text,
//! templates or end tokens are played on the model that ships with the repository.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod honest;
mod miniature;

use std::sync::{Arc, LazyLock};

use alloy_primitives::B256;
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_core::answer::AnswerRecord;
use assay_core::id::{Hash, NodeAddress, Nonce, SignatureBytes};
use assay_core::merkle;
use assay_core::receipt::SignedReceipt;
use assay_core::request::{Message, Prompt, Role, Sampling, sampler_seed};
use assay_core::transcript::{NonceSource, StopReason};
use assay_core::verdict::FailureCode;
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::matrix::{Matrix, store};
use assay_engine::pool::Pool;
use assay_engine::program::{Checked, Op, TensorId};
use assay_engine::replay::ByReference;
use assay_verify::dispute::parties::{Challenger, Defender, Player, play, stands_by};
use assay_verify::dispute::{Outcome, Party, Reason, Referee};
use assay_verify::light::{Challenge, Checker, Fed, Key, Known, Model, Prover, Secret, Seed};
use assay_verify::microstep::{Choice, choose};
use assay_verify::receipts::{Conflict, Epoch, Standing, audit_digest, conflict};
use assay_verify::trace::part::{Layout, Numbers, Part};
use assay_verify::trace::walk::{Block, Subject, Trace};
use honest::Node;
use miniature::{Small, bind, sampling, statement, subject};

static NODE: LazyLock<Node> = LazyLock::new(Node::new);
static RECORD: LazyLock<AnswerRecord> = LazyLock::new(|| NODE.answer(NODE.request()));
static MODELS: LazyLock<Vec<Small>> = LazyLock::new(miniature::models);

/// A model with the constants of another, but for some matrices or tables.
struct Altered {
    inner: Arc<dyn Constants>,
    /// Stored weights that replace those of a tensor.
    matrices: Vec<(TensorId, Vec<u8>)>,
    rotary: Option<Vec<i16>>,
}

impl Constants for Altered {
    fn program(&self) -> &Checked {
        self.inner.program()
    }
    fn matrix(&self, t: TensorId) -> Matrix<'_> {
        let w = self.inner.matrix(t);
        match self.matrices.iter().find(|(id, _)| *id == t) {
            Some((_, bytes)) => Matrix::new(w.rows(), w.cols(), w.shift(), bytes, w.scales()).unwrap(),
            None => w,
        }
    }
    fn table(&self, t: TensorId) -> &[i32] {
        self.inner.table(t)
    }
    fn rotary(&self, t: TensorId) -> &[i16] {
        self.rotary.as_deref().unwrap_or_else(|| self.inner.rotary(t))
    }
    fn vector(&self, t: TensorId) -> &[i32] {
        self.inner.vector(t)
    }
}

/// Every matrix of the program with `change` done to its weights.
fn reweighted(model: &Small, change: impl Fn(TensorId, i8) -> i8) -> Altered {
    reweigh(Arc::clone(&model.constants), change)
}

fn reweigh(inner: Arc<dyn Constants>, change: impl Fn(TensorId, i8) -> i8) -> Altered {
    let program = inner.program().program();
    let ids = program.ops.iter().filter_map(|op| match op {
        Op::MatMul { weights, .. } => Some(*weights),
        _ => None,
    });
    let matrices = ids
        .map(|t| {
            let w = inner.matrix(t);
            let cells = (0..w.rows()).flat_map(|r| (0..w.cols()).map(move |c| (r, c)));
            let weights: Vec<i8> = cells.map(|(r, c)| change(t, w.weight(r, c))).collect();
            (t, store(w.rows(), w.cols(), &weights))
        })
        .collect();
    Altered { inner, matrices, rotary: None }
}

/// The answer that a provider gives with other constants and signs for the true model.
fn answered_with(model: &Small, constants: Altered) -> AnswerRecord {
    let cheap = Small { constants: Arc::new(constants), tree: miniature::tree(&model.constants) };
    cheap.answer(20, 40, sampling())
}

/// What re-execution finds in an answer of a small model: ids and digests.
fn reexecute(model: &Small, record: &AnswerRecord) -> (Option<usize>, Option<usize>) {
    let honest = trace(model, record);
    let wrong_id = honest_ids(model, record);
    (wrong_id, record.digests.first_difference(&honest.digests()))
}

/// Index of the first token that the model would not choose.
fn honest_ids(model: &Small, record: &AnswerRecord) -> Option<usize> {
    let trace = trace(model, record);
    let op = choose(trace.extent().ops);
    let mut execution = ByReference(model.constants.as_ref());
    let prompt = record.transcript.prompt_ids.len() as u32;
    (0..trace.blocks()).find_map(|b| {
        let block = trace.block(&mut execution, b);
        let chosen = block.parts(op).unwrap().last().unwrap();
        (0..chosen.shape().rows).find_map(|row| {
            let index = (block.first(op) + row as u32 + 1 - prompt) as usize;
            (chosen.get(row, 0) != i64::from(record.transcript.output_ids[index])).then_some(index)
        })
    })
}

fn trace<'a>(model: &'a Small, record: &AnswerRecord) -> Trace<'a> {
    let constants = model.constants.as_ref();
    Trace::new(constants, subject(record), &mut ByReference(constants))
}

fn player<'a>(constants: &'a dyn Constants, record: &AnswerRecord) -> Player<'a> {
    let trace = Trace::new(constants, subject(record), &mut ByReference(constants));
    Player::new(trace, Box::new(ByReference(constants)))
}

/// A dispute between a defender who executes with `cheat` and an honest challenger.
fn dispute(model: &Small, record: &AnswerRecord, cheat: Player<'_>) -> (Outcome, Referee) {
    let mut defender = Defender::new(cheat, record, &model.tree);
    let mut challenger = Challenger::new(player(model.constants.as_ref(), record), record);
    let mut referee = Referee::new(statement(record)).unwrap();
    let outcome = play(&mut referee, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    (outcome, referee)
}

/// Re-execution sees it, and the dispute is lost by who did it.
fn caught(model: &Small, record: &AnswerRecord, cheat: &dyn Constants) {
    let (id, digest) = reexecute(model, record);
    assert!(id.is_some() || digest.is_some(), "re-execution sees it");
    let (outcome, referee) = dispute(model, record, player(cheat, record));
    assert_eq!(outcome.winner, Party::Challenger, "{outcome:?}");
    assert!(referee.rounds() <= 6);
}

#[test]
fn cheaper_model() {
    let model = &MODELS[3];
    let cheap = reweighted(model, |_, w| w.wrapping_mul(3) / 2);
    let record = answered_with(model, reweighted(model, |_, w| w.wrapping_mul(3) / 2));
    caught(model, &record, &cheap);
}

#[test]
fn cheaper_model_with_the_true_model_prefilled_afterwards() {
    let model = &MODELS[0];
    let mut record = answered_with(model, reweighted(model, |_, w| w / 2));
    // The true model reads the cheap answer: every digest is right, and so is every number of the trace.
    record.digests = trace(model, &record).digests();
    bind(&mut record);
    let (id, digest) = reexecute(model, &record);
    assert_eq!(digest, None, "the digests alone see nothing");
    assert!(id.is_some(), "the tokens are not the true model's");
    let (outcome, _) = dispute(model, &record, player(model.constants.as_ref(), &record));
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails });
}

/// How often light audits of `k` tokens find what re-execution always finds, over 60 beacons, and how often they should:
/// one of the drawn positions chooses another token.
fn light_rate(record: &AnswerRecord, wrong: &[u32], k: u32) -> (u32, f64) {
    let mut executor = NODE.executor();
    let mut prover = Prover::new(&mut executor).unwrap();
    let fed = Fed::of(&record.transcript).unwrap();
    let trace = prover.commit(&fed);
    let model = Model {
        constants: NODE.artifact.as_ref(),
        root: NODE.artifact.root(),
        kernel: Kernel::available()[0],
        pool: &Pool::new(1),
    };
    let key = Key::make(&model, Secret { seed: Seed::from_bytes([5; 32]), epoch: 1 }, 256).unwrap();
    let mut checker = Checker::new(&key, Kernel::available()[0], Arc::new(Pool::new(1))).unwrap();
    let mut found = 0;
    for beacon in 0..60u8 {
        let challenge = Challenge { beacon: Hash::from_bytes([beacon; 32]), trace, tokens: k };
        let drawn = challenge.draw(record.receipt.receipt.id(), &fed);
        let opening = prover.open(&fed, &drawn);
        let audit = checker.check(record, &challenge, opening, Known::default()).unwrap();
        let lies = drawn.iter().any(|p| wrong.contains(p));
        assert_eq!(audit.verdict.holds, !lies, "a wrong token is found exactly if it is drawn");
        found += u32::from(lies);
    }
    // The first draw is among the positions that choose a token, the others among all.
    let (all, choices) = (f64::from(fed.positions()), f64::from(fed.positions() - fed.choices_from()));
    let wrong = wrong.len() as f64;
    let missed =
        (1..k).fold(1.0 - wrong / choices, |missed, i| missed * (1.0 - wrong / (all - f64::from(i))));
    (found, 60.0 * (1.0 - missed))
}

#[test]
fn light_audits_find_wrong_tokens_as_often_as_they_draw_them() {
    // Weights of the last layers are coarser, and the true model reads the answer afterwards.
    let coarse = |t: TensorId, w: i8| if t.is_multiple_of(3) { w >> 2 << 2 } else { w };
    let cheap: Arc<dyn Constants> = Arc::new(reweigh(NODE.artifact.shared(), coarse));
    let kernel = Kernel::available()[0];
    let mut record = NODE.answer_by(Executor::new(cheap, kernel, Arc::new(Pool::new(1))), NODE.request());
    let fed = Fed::of(&record.transcript).unwrap();
    let honest = Subject {
        tokens: fed.tokens().to_vec(),
        prompt: record.transcript.prompt_ids.len() as u32,
        choice: Choice {
            sampling: record.request.sampling.clone(),
            guided: false,
            seed: sampler_seed(Nonce::ZERO, record.request.hash(), record.request.model),
        },
        masks: vec![],
    };
    let constants = NODE.artifact.as_ref();
    let mut executor = NODE.executor();
    let trace = Trace::new(constants, honest, &mut executor);
    record.digests = trace.digests();
    NODE.sign(&mut record);
    let op = choose(trace.extent().ops);
    let mut wrong = Vec::new();
    for b in 0..trace.blocks() {
        let block = trace.block(&mut executor, b);
        let chosen = block.parts(op).unwrap().last().unwrap();
        for row in 0..chosen.shape().rows {
            let position = block.first(op) + row as u32;
            let given = record.transcript.output_ids[(position - fed.choices_from()) as usize];
            if chosen.get(row, 0) != i64::from(given) {
                wrong.push(position);
            }
        }
    }
    let answered = record.transcript.output_ids.len();
    assert!(!wrong.is_empty() && wrong.len() < answered, "{} of {answered}", wrong.len());
    for k in [1, 2, 4, 8, 16] {
        let (found, expected) = light_rate(&record, &wrong, k);
        println!(
            "{} of {answered} tokens wrong, {k} opened: {found} of 60 found, {expected:.1} expected",
            wrong.len()
        );
        // Four standard deviations of 60 draws.
        let spread = 4.0 * (expected * (1.0 - expected / 60.0)).sqrt() + 1.0;
        assert!((f64::from(found) - expected).abs() <= spread, "{k}: {found} for {expected}");
    }
}

#[test]
fn four_bit_weights() {
    let model = &MODELS[0];
    let rounded = || reweighted(model, |_, w| ((i16::from(w) + 8) >> 4 << 4).clamp(-128, 127) as i8);
    let record = answered_with(model, rounded());
    caught(model, &record, &rounded());
}

#[test]
fn last_layers_skipped() {
    let model = &MODELS[0];
    let last: Vec<TensorId> = model
        .constants
        .program()
        .program()
        .tensors
        .iter()
        .enumerate()
        .filter(|(_, t)| t.name == "1.out" || t.name == "1.down")
        .map(|(i, _)| i as TensorId)
        .collect();
    assert_eq!(last.len(), 2);
    let without = || reweighted(model, |t, w| if last.contains(&t) { 0 } else { w });
    let record = answered_with(model, without());
    caught(model, &record, &without());
}

#[test]
fn wrong_rotary_table() {
    let model = &MODELS[0];
    let turned = || {
        let inner = Arc::clone(&model.constants);
        let program = inner.program().program();
        let rotary = program.ops.iter().find_map(|op| match op {
            Op::Rotary { table, .. } => Some(*table),
            _ => None,
        });
        let mut angles = inner.rotary(rotary.unwrap()).to_vec();
        angles.iter_mut().skip(40).for_each(|a| *a = a.wrapping_neg());
        Altered { inner, matrices: vec![], rotary: Some(angles) }
    };
    let record = answered_with(model, turned());
    caught(model, &record, &turned());
}

/// The block of a cheat whose hidden vectors are others, and that holds `part` for a step.
fn with_part(
    model: &Small,
    record: &AnswerRecord,
    op: u16,
    part: u8,
    change: impl Fn(&Part) -> Part,
) -> Outcome {
    let (hidden, _) = model.constants.program().program().tokens();
    let mut cheat = trace(model, record);
    let mut parts = cheat.carried_parts(1, hidden).unwrap().to_vec();
    parts[2] = nudged(&parts[2]);
    cheat.replace_carried(1, hidden, parts.clone());
    let cheat =
        Player::new(cheat, Box::new(ByReference(model.constants.as_ref()))).altering(|block: &mut Block| {
            if block.index == 1 {
                block.replace(hidden, 2, parts[2].clone());
                let by = change(&block.parts(op).unwrap()[usize::from(part)]);
                block.replace(op, part, by);
            }
        });
    let (outcome, referee) = dispute(model, record, cheat);
    assert_eq!((referee.step(), referee.part()), (op, part), "{outcome:?}");
    outcome
}

fn nudged(part: &Part) -> Part {
    let shape = part.shape();
    let numbers = (0..shape.rows * shape.columns)
        .map(|i| part.get(i / shape.columns, i % shape.columns) as i8 ^ i8::from(i == 7))
        .collect();
    Part::new(shape.rows, shape.columns, Layout::Rows, Numbers::Byte(numbers))
}

#[test]
fn one_heads_attention_forged() {
    let model = &MODELS[0];
    let record = model.answer(20, 40, sampling());
    let program = model.constants.program().program();
    let op = program.ops.iter().position(|op| matches!(op, Op::Attend { .. })).unwrap() as u16;
    // The first head weighs two positions the other way round.
    let outcome = with_part(model, &record, op, 2, |weights| {
        let shape = weights.shape();
        let get = |i: usize| weights.get(i / shape.columns, i % shape.columns) as i32;
        let swapped = |i: usize| match i % shape.columns {
            0 => get(i + 1),
            1 => get(i - 1) + 1,
            _ => get(i),
        };
        let numbers = (0..shape.rows * shape.columns).map(swapped).collect();
        Part::new(shape.rows, shape.columns, Layout::Rows, Numbers::Word(numbers))
    });
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails });
}

#[test]
fn saturating_arithmetic() {
    // Pairs of products that saturate at 16 bits, as one instruction of x86 does it.
    let model = &MODELS[2];
    let record = model.answer(20, 40, sampling());
    let program = model.constants.program().program();
    let (op, weights, x) = program
        .ops
        .iter()
        .enumerate()
        .find_map(|(i, op)| match op {
            Op::MatMul { weights, x } => Some((i as u16, *weights, *x)),
            _ => None,
        })
        .unwrap();
    let honest = trace(model, &record);
    let block = honest.block(&mut ByReference(model.constants.as_ref()), 1);
    let q = block.parts(x).unwrap()[2].clone();
    let w = model.constants.matrix(weights);
    let outcome = with_part(model, &record, op, 0, |exact| {
        let shape = exact.shape();
        let mut numbers = Vec::new();
        for row in 0..shape.rows {
            for r in 0..shape.columns {
                let pair = |c: usize| -> i32 {
                    let product = |c: usize| i32::from(w.weight(r, c)) * q.get(row, c) as i32;
                    let second = if c + 1 < w.cols() { product(c + 1) } else { 0 };
                    (product(c) + second).clamp(-16_384, 16_383)
                };
                numbers.push((0..w.cols()).step_by(2).map(pair).sum());
            }
        }
        Part::new(shape.rows, shape.columns, Layout::Rows, Numbers::Word(numbers))
    });
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails });
}

#[test]
fn overflow_crafted_prompt() {
    // The weights of this model saturate the residual stream: whatever the prompt, all ways to execute agree, and honest
    // parties win.
    let model = &MODELS[2];
    for seed in 0..6 {
        let record = model.answer(10 + seed, 30, Sampling::GREEDY);
        assert_eq!(reexecute(model, &record), (None, None));
        for kernel in Kernel::available() {
            let mut executor = Executor::new(Arc::clone(&model.constants), kernel, Arc::new(Pool::new(1)));
            let trace = Trace::new(model.constants.as_ref(), subject(&record), &mut executor);
            assert_eq!(trace.digests(), record.digests, "{kernel:?}");
        }
        let (outcome, _) = dispute(model, &record, player(model.constants.as_ref(), &record));
        assert_eq!(outcome, Outcome { winner: Party::Defender, reason: Reason::Timeout });
    }
}

#[test]
fn stale_cache_from_another_prompt() {
    let model = &MODELS[0];
    let record = model.answer(20, 40, sampling());
    let mut other = subject(&record);
    other.tokens[..8].rotate_left(3);
    let constants = model.constants.as_ref();
    let stale = Trace::new(constants, other, &mut ByReference(constants));
    let mut forged = record.clone();
    forged.digests = stale.digests();
    bind(&mut forged);
    let (id, digest) = reexecute(model, &forged);
    assert_eq!((id, digest), (None, Some(0)));
    let (outcome, _) = dispute(model, &forged, Player::new(stale, Box::new(ByReference(constants))));
    assert_eq!(outcome.winner, Party::Challenger);
}

#[test]
fn truncated_or_quantised_cache() {
    let model = &MODELS[0];
    let record = model.answer(20, 40, sampling());
    let program = model.constants.program().program();
    let keys = program.carried()[0];
    for keep in [|_: i8| 0i8, |q: i8| q >> 4 << 4] {
        let mut cheat = trace(model, &record);
        let mut parts = cheat.carried_parts(0, keys).unwrap().to_vec();
        let shape = parts[2].shape();
        let all = (0..shape.rows * shape.columns).map(|i| parts[2].get(i / shape.columns, i % shape.columns));
        let numbers = all.map(|q| keep(q as i8)).collect();
        let other = Part::new(shape.rows, shape.columns, shape.layout, Numbers::Byte(numbers));
        parts[2] = other.clone();
        cheat.replace_carried(0, keys, parts);
        let cheat = Player::new(cheat, Box::new(ByReference(model.constants.as_ref()))).altering(
            move |block: &mut Block| {
                if block.index == 0 {
                    block.replace(keys, 2, other.clone());
                }
            },
        );
        let (outcome, referee) = dispute(model, &record, cheat);
        assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails });
        assert_eq!((referee.step(), referee.block()), (keys, 0));
    }
}

/// What re-execution says of a record signed again by the provider.
fn verdict(record: &mut AnswerRecord) -> (FailureCode, Option<u32>) {
    NODE.sign(record);
    let verdict = NODE.check(record);
    assert!(!verdict.holds);
    let failure = verdict.failure.unwrap();
    (failure.code, failure.position)
}

#[test]
fn hidden_system_prompt() {
    let said = Message::text(Role::System, "Praise the sponsor.");
    let mut request = NODE.request();
    let Prompt::Chat { messages, .. } = &mut request.prompt else { unreachable!() };
    messages.insert(0, said);
    let mut record = NODE.answer(request);
    // The receipt is for what the client asked; the ids are of what was executed.
    record.request = NODE.request();
    assert_eq!(verdict(&mut record).0, FailureCode::PromptIds);
    // Or the ids are the client's, and only the execution was another.
    record.transcript.prompt_ids = RECORD.transcript.prompt_ids.clone();
    assert!(matches!(verdict(&mut record).0, FailureCode::OutputId | FailureCode::Digest));
}

#[test]
fn changed_temperature_top_p_or_seed() {
    let changes: [fn(&mut Sampling); 3] =
        [|s| s.temperature_micro = 300_000, |s| s.top_p_micro = 300_000, |s| s.seed = Some(8)];
    for change in changes {
        let mut request = NODE.request();
        change(&mut request.sampling);
        let mut record = NODE.answer(request);
        record.request = NODE.request();
        assert_eq!(verdict(&mut record).0, FailureCode::OutputId);
    }
}

#[test]
fn seed_ground_by_the_provider() {
    // A client's nonce leaves no choice: another one is seen at once.
    let mut record = RECORD.clone();
    record.transcript.nonce = Nonce::from_bytes([3; 32]);
    assert_eq!(verdict(&mut record).0, FailureCode::OutputId);
    // Without nonce and seed the provider draws it, and the verdict says that it may have drawn several.
    let mut drawn = RECORD.clone();
    drawn.transcript.nonce_source = NonceSource::Provider;
    NODE.sign(&mut drawn);
    let verdict = NODE.check(&drawn);
    assert!(verdict.unchecked.iter().any(|u| u.contains("several nonces")), "{verdict:?}");
}

#[test]
fn early_stop() {
    let mut record = RECORD.clone();
    record.transcript.output_ids.truncate(20);
    record.transcript.stop = StopReason::EndToken;
    assert!(matches!(
        verdict(&mut record).0,
        FailureCode::StopReason | FailureCode::Text | FailureCode::Digest
    ));
    // Called cancelled, it holds, and the verdict says what is left to the payer: who never asked for its end refuses it (the gateway's tests, and
    // `assay verify` of an answer that was told to its end).
    let verdict_of = NODE.check(&NODE.stopped(NODE.request(), 20));
    assert!(verdict_of.holds && verdict_of.unchecked.iter().any(|u| u.contains("asked for its end")));
    let mut record = NODE.answer(NODE.request());
    record.transcript.output_ids.truncate(79);
    let (code, _) = verdict(&mut record);
    assert!(matches!(code, FailureCode::StopReason | FailureCode::Text | FailureCode::Digest));
}

#[test]
fn padding_tokens_for_fees() {
    let mut record = RECORD.clone();
    record.transcript.output_ids.extend([5, 5, 5]);
    assert!(!record.transcript.output_ids.is_empty());
    let (code, _) = verdict(&mut record);
    assert!(matches!(code, FailureCode::OutputId | FailureCode::StopReason));
    // Even tokens that the model would choose: the request said where to end.
    let mut longer = NODE.answer(assay_core::request::Request { max_tokens: 90, ..NODE.request() });
    longer.request = NODE.request();
    assert!(matches!(verdict(&mut longer).0, FailureCode::StopReason | FailureCode::OutputId));
}

#[test]
fn one_token_swapped_on_the_way() {
    let mut record = RECORD.clone();
    record.transcript.output_ids[9] ^= 1;
    // On the way: the provider's signature does not cover it.
    let seen = NODE.check(&record);
    assert!(!seen.holds);
    assert!(record.broken_bindings().len() == 1, "the transcript is not the receipted one");
    // By the provider, who signs it.
    assert_eq!(verdict(&mut record), (FailureCode::OutputId, Some(9)));
}

#[test]
fn replayed_receipt() {
    // The receipt of an earlier answer, shown for another request.
    let mut record = NODE.answer(assay_core::request::Request { max_tokens: 81, ..NODE.request() });
    record.receipt = RECORD.receipt.clone();
    let failure = NODE.check(&record).failure.unwrap();
    assert!(matches!(failure.code, FailureCode::RequestHash | FailureCode::TranscriptRoot));
}

fn signed(sequence: u64, change: impl Fn(&mut SignedReceipt)) -> SignedReceipt {
    let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    let mut r = RECORD.receipt.clone();
    r.receipt.provider = NodeAddress::from_bytes(key.address().into_array());
    r.receipt.sequence = sequence;
    change(&mut r);
    let hash = r.receipt.signing_hash(&r.domain);
    let signature = key.sign_hash_sync(&B256::from(*hash.as_bytes())).unwrap();
    r.signature = SignatureBytes::from_bytes(signature.as_bytes());
    r
}

#[test]
fn receipt_left_out_of_the_epoch_root() {
    let all: Vec<SignedReceipt> = (5..25).map(|s| signed(s, |_| {})).collect();
    let leaf = |r: &SignedReceipt| merkle::leaf(r.receipt.signing_hash(&r.domain).as_bytes());
    let epoch = Epoch::of(&all).unwrap();
    let leaves: Vec<Hash> = all.iter().map(leaf).collect();
    let proof = merkle::prove(&leaves, 7).unwrap();
    assert_eq!(epoch.standing(&all[7], Some((leaves[7], &proof))), Some(Standing::Included));
    // Another receipt takes its place; or the epoch ends before it.
    let mut forged = all.clone();
    forged[7] = signed(12, |r| r.receipt.completion_tokens += 1);
    let cheat = Epoch::of(&forged).unwrap();
    let leaves: Vec<Hash> = forged.iter().map(leaf).collect();
    let proof = merkle::prove(&leaves, 7).unwrap();
    assert_eq!(cheat.standing(&all[7], Some((leaves[7], &proof))), Some(Standing::LeftOut));
    let short = Epoch::of(&all[..7]).unwrap();
    assert_eq!(short.standing(&all[7], None), Some(Standing::LeftOut));
    assert_eq!(cheat.standing(&all[7], None), None, "nothing was opened");
    assert!(Epoch::of(&[all[0].clone(), all[2].clone()]).is_none(), "a gap is no epoch");
}

#[test]
fn two_receipts_with_one_nonce() {
    let one = signed(1, |_| {});
    let again = signed(2, |_| {});
    assert_eq!(conflict(&one, &again), Ok(None), "one answer, asked for twice");
    let other = signed(2, |r| r.receipt.transcript_root = assay_core::id::TranscriptRoot::ZERO);
    assert_eq!(conflict(&one, &other), Ok(Some(Conflict::Nonce)));
    // An answer that was stopped, and the whole one: an honest provider signs both.
    let stopped = signed(2, |r| {
        r.receipt.transcript_root = assay_core::id::TranscriptRoot::ZERO;
        r.receipt.completion_tokens -= 1;
    });
    assert_eq!(conflict(&one, &stopped), Ok(None));
    let same = signed(1, |r| r.receipt.fee_micro_usd = 9);
    assert_eq!(conflict(&one, &same), Ok(Some(Conflict::Sequence)));
    let mut unsigned = other.clone();
    unsigned.receipt.fee_micro_usd = 1;
    assert!(conflict(&one, &unsigned).is_err());
}

#[test]
fn lazy_auditor_and_auditor_copying_anothers_digest() {
    let model = &MODELS[0];
    let record = model.answer(20, 40, sampling());
    let receipt = record.receipt.receipt.id();
    let [alice, bob] = [1, 2].map(|b| NodeAddress::from_bytes([b; 20]));
    let beacon = [9; 32];
    let executed = trace(model, &record).root();
    let honest = audit_digest(alice, &beacon, receipt, &executed);
    // Who has not executed knows the receipt's hashes, and none of them is the trace root.
    let known = [
        *record.digests.root().as_bytes(),
        *record.transcript.root().as_bytes(),
        *record.request.hash().as_bytes(),
    ];
    for guess in known {
        assert_ne!(audit_digest(alice, &beacon, receipt, &Hash::from_bytes(guess)), honest);
    }
    // Who copies says what is another's.
    assert_ne!(audit_digest(bob, &beacon, receipt, &executed), honest);
    // Nor does an earlier audit's digest help.
    assert_ne!(audit_digest(alice, &[8; 32], receipt, &executed), honest);
    // Two who executed agree, with any engine.
    let mut fast =
        Executor::new(Arc::clone(&model.constants), Kernel::available()[0], Arc::new(Pool::new(1)));
    let again = Trace::new(model.constants.as_ref(), subject(&record), &mut fast).root();
    assert_eq!(audit_digest(alice, &beacon, receipt, &again), honest);
}

#[test]
fn false_challenge() {
    let model = &MODELS[3];
    let record = model.answer(20, 40, sampling());
    let cheap = reweighted(model, |_, w| w / 2);
    // The challenger executes another model and believes itself.
    let mut defender = Defender::new(player(model.constants.as_ref(), &record), &record, &model.tree);
    let mut challenger = Challenger::new(player(&cheap, &record), &record);
    let mut referee = Referee::new(statement(&record)).unwrap();
    let outcome = play(&mut referee, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    assert_eq!(outcome.winner, Party::Defender, "{outcome:?}");
}

#[test]
fn data_withheld() {
    let model = &MODELS[0];
    let record = model.answer(20, 40, sampling());
    let mut challenger = Challenger::new(player(model.constants.as_ref(), &record), &record);
    let mut referee = Referee::new(statement(&record)).unwrap();
    let outcome = play(&mut referee, &mut |_| None, &mut |r| challenger.answer(r));
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::Timeout });
}

#[test]
fn an_honest_node_with_a_flipped_bit_is_caught_and_not_slashed() {
    let model = &MODELS[0];
    // One bit of memory was another while it answered.
    let flipped = reweighted(model, |t, w| if t == 1 && w == 64 { 0 } else { w });
    let mut record = answered_with(model, flipped);
    let (id, digest) = reexecute(model, &record);
    assert!(id.is_some() || digest.is_some(), "caught");
    // Asked about it, the node executes again, sees that its receipt does not stand, and gives the fee back: there is no
    // dispute, and only a lost one costs stake.
    let own = trace(model, &record);
    assert!(!stands_by(&own, &record, &mut ByReference(model.constants.as_ref())));
    // A receipt that stands is defended.
    record = model.answer(20, 40, sampling());
    let own = trace(model, &record);
    assert!(stands_by(&own, &record, &mut ByReference(model.constants.as_ref())));
}
