//! Disputes: honest parties never lose, in either seat, against every way to cheat; and what the messages cost.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod eight_billion;
mod miniature;

use std::sync::LazyLock;

use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical as _;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_core::request::{Guide, Sampling};
use assay_engine::replay::ByReference;
use assay_engine::semantics::adjust::Mask;
use assay_verify::dispute::parties::{Challenger, Defender, Player, play};
use assay_verify::dispute::{Claim, Descent, Message, Outcome, Party, Pick, Reason, Referee, Stage, Tree};
use assay_verify::microstep::{Choice, choice_parts, choose, parts};
use assay_verify::trace::part::{Numbers, Part};
use assay_verify::trace::walk::{Block, Subject, Trace};
use miniature::{Small, bind, sampling, statement, subject};
use proptest::prelude::*;

static MODELS: LazyLock<Vec<Small>> = LazyLock::new(miniature::models);
/// One of the models with every operation that decoders have, and an answer of three blocks.
static RICH: LazyLock<(&Small, AnswerRecord)> = LazyLock::new(|| {
    let model = &MODELS[3];
    (model, model.answer(20, 50, sampling()))
});

fn trace<'a>(model: &'a Small, subject: Subject) -> Trace<'a> {
    Trace::new(model.constants.as_ref(), subject, &mut ByReference(model.constants.as_ref()))
}

fn player<'a>(model: &'a Small, record: &AnswerRecord) -> Player<'a> {
    Player::new(trace(model, subject(record)), Box::new(ByReference(model.constants.as_ref())))
}

/// Plays, and says how it ended, in how many rounds, and how many bytes each sent.
fn fight(
    record: &AnswerRecord,
    defender: &mut dyn FnMut(&Referee) -> Option<Claim>,
    challenger: &mut dyn FnMut(&Referee) -> Option<Pick>,
) -> (Outcome, Referee) {
    let mut referee = Referee::new(statement(record)).unwrap();
    let outcome = play(&mut referee, defender, challenger);
    (outcome, referee)
}

/// A cheat with this player, against an honest challenger over the same record.
fn against_honest_challenger(model: &Small, record: &AnswerRecord, cheat: Player<'_>) -> (Outcome, Referee) {
    let mut defender = Defender::new(cheat, record, &model.tree);
    let mut challenger = Challenger::new(player(model, record), record);
    fight(record, &mut |r| defender.answer(r), &mut |r| challenger.answer(r))
}

/// The answer with another token, executed and bound as if it were the model's.
fn with_token(model: &Small, record: &AnswerRecord, at: usize) -> AnswerRecord {
    let mut swapped = record.clone();
    let id = &mut swapped.transcript.output_ids[at];
    *id = (*id + 1) % 83;
    swapped.digests = trace(model, subject(&swapped)).digests();
    bind(&mut swapped);
    swapped
}

/// The same part with one number changed.
fn changed(part: &Part, row: usize, column: usize) -> Part {
    let shape = part.shape();
    let all = (0..shape.rows * shape.columns).map(|i| {
        let v = part.get(i / shape.columns, i % shape.columns);
        if i == row * shape.columns + column { v ^ 1 } else { v }
    });
    let numbers = match shape.width.bytes() {
        1 => Numbers::Byte(all.map(|v| v as i8).collect()),
        4 => Numbers::Word(all.map(|v| v as i32).collect()),
        _ => Numbers::Long(all.collect()),
    };
    Part::new(shape.rows, shape.columns, shape.layout, numbers)
}

/// Parts of a block that have numbers and can be disputed.
fn disputable(block: &Block) -> Vec<(u16, u8)> {
    let mut all = Vec::new();
    for op in 0..block.steps() as u16 {
        for (p, part) in block.parts(op).unwrap().iter().enumerate() {
            if part.shape().leaves() > 0 {
                all.push((op, p as u8));
            }
        }
    }
    all
}

/// A cheat that changes one number of block 1, and one of its hidden vectors so that the block is walked at all.
fn with_one_wrong_number<'a>(
    model: &'a Small,
    record: &AnswerRecord,
    (op, part): (u16, u8),
    (row, column): (usize, usize),
) -> Player<'a> {
    let (hidden, _) = model.constants.program().program().tokens();
    let change = move |parts: &[Part], which: u8, row: usize, column: usize| {
        let mut parts = parts.to_vec();
        parts[usize::from(which)] = changed(&parts[usize::from(which)], row, column);
        parts
    };
    let mut cheat = trace(model, subject(record));
    let other = cheat.carried_parts(1, hidden).map(|p| change(p, 2, 31, 0)).unwrap();
    cheat.replace_carried(1, hidden, other.clone());
    if let Some(parts) = cheat.carried_parts(1, op) {
        let parts = change(parts, part, row, column);
        cheat.replace_carried(1, op, parts);
    }
    Player::new(cheat, Box::new(ByReference(model.constants.as_ref()))).altering(move |block: &mut Block| {
        if block.index == 1 {
            block.replace(hidden, 2, other[2].clone());
            let by = changed(&block.parts(op).unwrap()[usize::from(part)], row, column);
            block.replace(op, part, by);
        }
    })
}

#[test]
fn one_wrong_number_anywhere_loses() {
    let (model, honest) = &*RICH;
    let (hidden, _) = model.constants.program().program().tokens();
    // What follows the hidden vector is bound by the tokens: one of them is another.
    let swapped = with_token(model, honest, 25);
    let (mut most, mut played) = (0, 0);
    for record in [honest, &swapped] {
        let walked = trace(model, subject(record));
        let block = walked.block(&mut ByReference(model.constants.as_ref()), 1);
        for (n, (op, part)) in disputable(&block).into_iter().enumerate() {
            if (op > hidden) != std::ptr::eq(record, &raw const swapped) {
                continue;
            }
            let shape = block.parts(op).unwrap()[usize::from(part)].shape();
            let (row, column) = ((n * 7) % shape.rows, (n * 131) % shape.columns);
            let cheat = if op > hidden {
                let honest = player(model, record);
                honest.altering(move |block: &mut Block| {
                    if block.index == 1 {
                        let by = changed(&block.parts(op).unwrap()[usize::from(part)], row, column);
                        block.replace(op, part, by);
                    }
                })
            } else {
                with_one_wrong_number(model, record, (op, part), (row, column))
            };
            let (outcome, referee) = against_honest_challenger(model, record, cheat);
            let name = format!("step {op}, part {part}, row {row}, column {column}");
            assert_eq!(
                outcome,
                Outcome { winner: Party::Challenger, reason: Reason::StepFails },
                "{name}, at step {}",
                referee.step()
            );
            assert_eq!((referee.step(), referee.part()), (op, part), "{name}");
            most = most.max(referee.rounds());
            played += 1;
        }
    }
    assert!(played > 80, "{played}");
    assert!(most <= 6, "{most} rounds");
}

#[test]
fn a_swapped_token_loses() {
    let (model, record) = &*RICH;
    for at in [0, 1, 13, 48, 49] {
        let swapped = with_token(model, record, at);
        let (outcome, referee) = against_honest_challenger(model, &swapped, player(model, &swapped));
        assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails }, "{at}");
        assert_eq!(referee.step(), choose(model.constants.program().program().ops.len()));
    }
    // The digests of the honest answer do not fit what was executed after the token.
    let mut half = record.clone();
    half.transcript.output_ids[1] ^= 1;
    bind(&mut half);
    let (outcome, _) = against_honest_challenger(model, &half, player(model, &half));
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::DigestFails });
}

#[test]
fn digests_of_another_execution_lose() {
    let (model, record) = &*RICH;
    for at in 0..record.digests.0.len() {
        let mut record = record.clone();
        record.digests.0[at] = Hash::from_bytes([9; 32]);
        bind(&mut record);
        let (outcome, _) = against_honest_challenger(model, &record, player(model, &record));
        assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::DigestFails });
    }
}

#[test]
fn what_is_carried_must_be_what_was_made() {
    let (model, record) = &*RICH;
    for op in model.constants.program().program().carried() {
        let mut cheat = trace(model, subject(record));
        let mut parts = cheat.carried_parts(1, op).unwrap().to_vec();
        parts[2] = changed(&parts[2], 3, 1);
        cheat.replace_carried(1, op, parts);
        let cheat = Player::new(cheat, Box::new(ByReference(model.constants.as_ref())));
        let (outcome, _) = against_honest_challenger(model, record, cheat);
        assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::Contradiction }, "{op}");
    }
}

#[test]
fn an_answer_to_another_prompt_loses() {
    let (model, record) = &*RICH;
    let mut other = subject(record);
    other.tokens[4] = (other.tokens[4] + 1) % 83;
    let cheat = Player::new(trace(model, other), Box::new(ByReference(model.constants.as_ref())));
    let (outcome, _) = against_honest_challenger(model, record, cheat);
    assert_eq!(outcome.winner, Party::Challenger);
}

#[test]
fn an_honest_challenger_finds_nothing_in_an_honest_answer() {
    for model in MODELS.iter() {
        for s in [sampling(), Sampling::GREEDY] {
            let record = model.answer(9, 40, s);
            let mut challenger = Challenger::new(player(model, &record), &record);
            let mut defender = Defender::new(player(model, &record), &record, &model.tree);
            let (outcome, _) = fight(&record, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
            assert_eq!(outcome, Outcome { winner: Party::Defender, reason: Reason::Timeout });
        }
    }
}

#[test]
fn masks_are_nothing_to_dispute_and_executions_of_guided_answers_are() {
    let model = &MODELS[0];
    let mut record = model.answer(20, 40, sampling());
    record.request.guide = Some(Guide::JsonObject);
    bind(&mut record);
    let masked = |mask: Mask| {
        let subject = Subject { masks: vec![mask; 40], ..subject(&record) };
        Player::new(trace(model, subject), Box::new(ByReference(model.constants.as_ref())))
    };
    // The parties hold other masks, and so other tokens to be chosen: there is nothing that the challenger would name.
    let (all, few) = (Mask::from_words(vec![u32::MAX; 3]), Mask::only(&[1, 2]));
    let mut challenger = Challenger::new(masked(few.clone()), &record);
    let mut defender = Defender::new(masked(all.clone()), &record, &model.tree);
    let (outcome, _) = fight(&record, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    assert_eq!(outcome, Outcome { winner: Party::Defender, reason: Reason::Timeout });
    // Another execution is found whatever the masks are.
    let mut other = record.clone();
    other.digests.0[1] = Hash::from_bytes([1; 32]);
    bind(&mut other);
    let mut challenger = Challenger::new(masked(few), &other);
    let mut defender = Defender::new(masked(all), &other, &model.tree);
    let (outcome, _) = fight(&other, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::DigestFails });
}

/// A pick that has a meaning, wherever it leads.
fn any_pick(stage: &Stage, random: u64) -> Option<Pick> {
    let r = random as usize;
    Some(match stage {
        Stage::PickNode(_, nodes) if random % 16 == 15 => {
            Pick::Digest((random >> 8) as u32 % 3 + nodes.len() as u32 / 99)
        }
        Stage::PickNode(_, nodes) => Pick::Node((r % nodes.len().max(1)) as u32),
        Stage::PickPart(_) if random % 16 == 15 => Pick::Carry(vec![Hash::from_bytes([1; 32]); r % 5]),
        Stage::PickPart(lists) => {
            let step = r % lists.len();
            let full: Vec<usize> =
                (0..lists[step].len()).filter(|i| lists[step][*i] != merkle::root([])).collect();
            Pick::Part { step: step as u32, part: *full.get((r >> 8) % full.len().max(1))? as u8 }
        }
        Stage::PickNumber(numbers) => {
            let index = (r % numbers.len()) as u16;
            let partials = match random >> 60 {
                0 => vec![],
                n => (0..n).map(|i| (random.wrapping_mul(i + 1)) as i64 >> (i * 7 % 60)).collect(),
            };
            Pick::Number { index, partials }
        }
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn an_honest_defender_never_loses(randoms in prop::collection::vec(any::<u64>(), 12), m in 0usize..7) {
        let model = &MODELS[m];
        let record = model.answer(20, 50, if randoms[0] % 2 == 0 { sampling() } else { Sampling::GREEDY });
        let mut defender = Defender::new(player(model, &record), &record, &model.tree);
        let mut randoms = randoms.into_iter();
        let mut wild = |r: &Referee| any_pick(r.stage(), randoms.next()?);
        let (outcome, referee) = fight(&record, &mut |r| defender.answer(r), &mut wild);
        prop_assert_eq!(outcome.winner, Party::Defender, "{:?} at {:?}", outcome, referee.stage());
    }

    /// A challenger that walks to a number with the right accumulators but for one run, or with one too many or few.
    #[test]
    fn wrong_accumulators_lose(randoms in prop::collection::vec(any::<u64>(), 12), m in 0usize..7) {
        let model = &MODELS[m];
        let record = model.answer(20, 50, sampling());
        let mut defender = Defender::new(player(model, &record), &record, &model.tree);
        let honest = trace(model, subject(&record));
        let mut random = randoms.clone().into_iter();
        let mut liar = |r: &Referee| {
            let by = random.next()?;
            let Stage::PickNumber(numbers) = r.stage() else { return any_pick(r.stage(), by) };
            let block = honest.block(&mut ByReference(model.constants.as_ref()), r.block());
            let part = &block.parts(r.step())?[usize::from(r.part())];
            let index = (by as usize % numbers.len()) as u16;
            let (leaf, _) = r.picked();
            let cell = part.shape().cell(r.step(), r.part(), block.first(r.step()), leaf as usize, index)?;
            let mut source = assay_verify::trace::walk::Walked { trace: &honest, block: &block };
            let mut partials = assay_verify::microstep::partials(&mut source, cell).unwrap_or_default();
            let runs = partials.len();
            if runs > 0 {
                // From some run on, every accumulator is off: only that run does not follow.
                for p in &mut partials[(by >> 9) as usize % runs..] {
                    *p = p.wrapping_add(1 + (by >> 40) as i64);
                }
            }
            match by % 5 {
                3 => partials.push(5),
                4 => drop(partials.pop()),
                _ => {}
            }
            Some(Pick::Number { index, partials })
        };
        let (outcome, referee) = fight(&record, &mut |r| defender.answer(r), &mut liar);
        prop_assert_eq!(outcome.winner, Party::Defender, "{:?} at {:?}", outcome, referee.step());
    }

    /// Whatever a defender sends that an honest one would not, it loses or is refused; nothing panics.
    #[test]
    fn altered_claims_lose(at in 0usize..8, seed in any::<u64>(), flips in prop::collection::vec(any::<u32>(), 1..4)) {
        let (model, record) = &*RICH;
        let swapped = with_token(model, record, 25);
        let record = if seed % 2 == 0 { record } else { &swapped };
        let mut honest = Defender::new(player(model, record), record, &model.tree);
        let mut challenger = Challenger::new(player(model, record), record);
        let mut random = seed;
        let mut sent = 0;
        let mut altered = false;
        let mut defender = |r: &Referee| {
            let claim = honest.answer(r)?;
            sent += 1;
            if sent - 1 != at {
                return Some(claim);
            }
            let mut bytes = Message::Claim(claim.clone()).to_canonical_bytes();
            for f in &flips {
                let i = *f as usize % bytes.len();
                bytes[i] ^= 1 << (f >> 29);
            }
            match Message::from_canonical_bytes(&bytes) {
                Ok(Message::Claim(c)) => {
                    altered = c != claim;
                    Some(c)
                }
                _ => Some(claim),
            }
        };
        let mut play_on = |r: &Referee| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            challenger.answer(r).or_else(|| any_pick(r.stage(), random >> 3))
        };
        let (outcome, _) = fight(record, &mut defender, &mut play_on);
        if altered {
            prop_assert_eq!(outcome.winner, Party::Challenger, "{:?}", outcome);
        }
    }

    #[test]
    fn foreign_messages_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut tagged = b"\x0fassay/dispute/1".to_vec();
        tagged.extend(&bytes);
        for bytes in [&bytes, &tagged] {
            if let Ok(message) = Message::from_canonical_bytes(bytes) {
                let (_, record) = &*RICH;
                let mut referee = Referee::new(statement(record)).unwrap();
                referee.receive(Party::Defender, &message);
            }
        }
    }
}

#[test]
fn silence_and_speech_out_of_turn() {
    let (model, record) = &*RICH;
    let mut referee = Referee::new(statement(record)).unwrap();
    assert!(!referee.receive(Party::Challenger, &Message::Pick(Pick::Node(0))), "it is not its turn");
    assert_eq!(referee.turn(), Some(Party::Defender));
    let mut silent = referee.clone();
    silent.timeout();
    assert_eq!(silent.outcome(), Some(Outcome { winner: Party::Challenger, reason: Reason::Timeout }));
    let mut defender = Defender::new(player(model, record), record, &model.tree);
    let claim = defender.answer(&referee).unwrap();
    assert!(referee.receive(Party::Defender, &Message::Claim(claim.clone())));
    assert!(!referee.receive(Party::Defender, &Message::Claim(claim)), "once is enough");
    let mut wrong = referee.clone();
    wrong.receive(Party::Challenger, &Message::Pick(Pick::Node(999)));
    assert_eq!(wrong.outcome(), Some(Outcome { winner: Party::Defender, reason: Reason::Malformed }));
    referee.timeout();
    assert_eq!(referee.outcome(), Some(Outcome { winner: Party::Defender, reason: Reason::Timeout }));
    assert!(!referee.receive(Party::Challenger, &Message::Pick(Pick::Node(0))), "it is over");
    let mut empty = statement(record);
    empty.output = 0;
    assert!(Referee::new(empty).is_none(), "nothing was answered");
}

/// Rounds that a walk down a tree takes, and how many nodes are claimed on the way at most.
fn walk(leaves: u64, tree: Tree) -> (u32, u64) {
    let (mut at, mut rounds, mut nodes) = (Descent::top(leaves), 0, 0);
    loop {
        let height = at.next(tree);
        (rounds, nodes) = (rounds + 1, nodes + at.count(height));
        at = at.down(height, 0).unwrap();
        if at.height == 0 {
            return (rounds, nodes);
        }
    }
}

#[test]
fn an_answer_of_512_tokens_by_8_billion_parameters_takes_six_rounds() {
    let checked = eight_billion::program().check().unwrap();
    let ops = checked.program().ops.len();
    let choice = Choice { sampling: sampling(), guided: true, seed: [0; 32] };
    for (positions, limit) in [(512u32, 6), (4096, 6)] {
        let blocks = walk(u64::from(positions.div_ceil(32)), Tree::Blocks);
        let steps = walk(ops as u64 + 2, Tree::Steps);
        let [adjusting, choosing] = choice_parts(&choice, checked.program().vocabulary);
        let program = (0..ops as u16).map(|op| {
            let d = checked.declared(op).unwrap();
            parts(&d.op, d.made, d.attended)
        });
        let (mut most_rounds, mut most_nodes) = (0, 0);
        for spec in program.chain([adjusting, choosing]).flatten() {
            let leaves = spec.shape(32, positions).leaves() as u64;
            if leaves > 0 {
                let (rounds, nodes) = walk(leaves, Tree::Part);
                // The numbers of the leaf are the last claim that is answered.
                most_rounds = most_rounds.max(blocks.0 + steps.0 + rounds + 1);
                most_nodes = most_nodes.max(blocks.1 + steps.1 + nodes);
            }
        }
        assert!(most_rounds <= limit, "{positions} positions: {most_rounds} rounds");
        println!("{positions} positions: {most_rounds} rounds, at most {most_nodes} hashes claimed");
    }
}
