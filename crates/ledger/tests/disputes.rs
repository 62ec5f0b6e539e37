//! Disputes before the contracts: every message goes to the referee in Rust and to the chain, and both must say the same.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "disputes/costs.rs"]
mod costs;
mod court;
mod deployed;
#[path = "../../verify/tests/eight_billion/mod.rs"]
mod eight_billion;
mod made;
#[path = "../../verify/tests/miniature/mod.rs"]
#[allow(dead_code)]
mod miniature;
#[path = "report/mod.rs"]
mod report;
mod synthetic;

use std::sync::LazyLock;

use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_core::request::Sampling;
use assay_engine::program::Op;
use assay_engine::replay::ByReference;
use assay_verify::dispute::calldata::Encoder;
use assay_verify::dispute::parties::{Challenger, Defender, Player};
use assay_verify::dispute::{Claim, Message, Outcome, Party, Pick, Reason, Referee, Stage, Statement};
use assay_verify::microstep::{Cell, Rule, partials, rule};
use assay_verify::trace::block_of;
use assay_verify::trace::part::{Numbers, Part};
use assay_verify::trace::walk::{Block, Subject, Trace, Walked};
use court::{BOND, CHALLENGER, Court, STAKE};
use miniature::{Small, bind, sampling, statement, subject};

static MODELS: LazyLock<Vec<Small>> = LazyLock::new(miniature::models);

/// How a dispute went.
struct Tried {
    outcome: Outcome,
    referee: Referee,
    /// Gas and bytes of each transaction, with the name of what was asked for.
    moves: Vec<(String, u64, usize)>,
}

impl Tried {
    fn gas(&self) -> u64 {
        self.moves.iter().map(|(_, gas, _)| gas).sum()
    }
}

fn stage(stage: &Stage) -> u8 {
    match stage {
        Stage::Trace => 1,
        Stage::Steps => 2,
        Stage::Part => 3,
        Stage::Nodes => 4,
        Stage::Leaf => 5,
        Stage::Proof => 6,
        Stage::Digest(_) => 7,
        Stage::PickNode(..) => 8,
        Stage::PickPart(_) => 9,
        Stage::PickNumber(_) => 10,
        Stage::Over(_) => 11,
    }
}

fn reason(code: u8) -> Reason {
    [
        Reason::Timeout,
        Reason::Malformed,
        Reason::Contradiction,
        Reason::StepHolds,
        Reason::StepFails,
        Reason::PartialsFail,
        Reason::DigestHolds,
        Reason::DigestFails,
    ][usize::from(code) - 1]
}

impl Court {
    /// Plays before both. Who has nothing to say runs out of time.
    fn try_case(
        &mut self,
        record: &AnswerRecord,
        defender: &mut dyn FnMut(&Referee) -> Option<Claim>,
        challenger: &mut dyn FnMut(&Referee) -> Option<Pick>,
    ) -> Tried {
        let mut referee = Referee::new(statement(record)).unwrap();
        let mut encoder = Encoder::new(statement(record));
        let (receipt, opened) = self.open(record);
        let mut moves = vec![("open".to_owned(), opened.unwrap().gas, 0)];
        loop {
            let court::State { stage: at, reason: why, upheld } = self.state(receipt);
            if let Some(outcome) = referee.outcome() {
                assert_eq!(at, 11, "the chain goes on after {outcome:?}");
                assert_eq!(
                    upheld,
                    outcome.winner == Party::Challenger,
                    "{outcome:?}, on the chain {:?}",
                    reason(why)
                );
                let alike = [Reason::Malformed, Reason::Contradiction];
                let said = reason(why);
                assert!(
                    said == outcome.reason || alike.contains(&said) && alike.contains(&outcome.reason),
                    "{said:?} {outcome:?}"
                );
                return Tried { outcome, referee, moves };
            }
            assert_eq!(at, stage(referee.stage()), "{:?} against reason {why}", referee.stage());
            let name = format!("{:?}", referee.stage());
            let name = name.split(['(', ' ']).next().unwrap().to_owned();
            let (gas, bytes) = match referee.turn().unwrap() {
                Party::Defender => {
                    let said = defender(&referee).and_then(|c| Some((encoder.claim(&referee, &c)?, c)));
                    let Some((bytes, claim)) = said else {
                        self.silence(receipt, &mut referee);
                        continue;
                    };
                    referee.receive(Party::Defender, &Message::Claim(claim));
                    (self.claim(receipt, &bytes), bytes.len())
                }
                Party::Challenger => {
                    let said = challenger(&referee).and_then(|p| Some((encoder.pick(&referee, &p)?, p)));
                    let Some((bytes, pick)) = said else {
                        self.silence(receipt, &mut referee);
                        continue;
                    };
                    referee.receive(Party::Challenger, &Message::Pick(pick));
                    (self.pick(receipt, &bytes), bytes.len())
                }
            };
            let gas = gas.unwrap_or_else(|failure| panic!("{name}: {failure}"));
            moves.push((name, gas, bytes));
        }
    }

    /// A receipt that says this of its execution.
    fn sign_case(&mut self, record: &AnswerRecord, says: &Statement) -> AnswerRecord {
        let mut record = record.clone();
        let r = &mut record.receipt.receipt;
        (r.model_root, r.request_hash, r.transcript_root) = (says.model, says.request, says.transcript);
        (r.digest_root, r.client_nonce) = (says.digests, says.nonce);
        (r.prompt_tokens, r.completion_tokens) = (says.prompt, says.output);
        self.sign(&record)
    }

    fn silence(&mut self, receipt: Hash, referee: &mut Referee) {
        self.timeout(receipt).expect_err("there is time left");
        self.wait();
        self.timeout(receipt).unwrap();
        referee.timeout();
    }
}

fn trace<'a>(model: &'a Small, subject: Subject) -> Trace<'a> {
    Trace::new(model.constants.as_ref(), subject, &mut ByReference(model.constants.as_ref()))
}

fn player<'a>(model: &'a Small, record: &AnswerRecord) -> Player<'a> {
    Player::new(trace(model, subject(record)), Box::new(ByReference(model.constants.as_ref())))
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

/// What a challenger picks that wants to come to a number, whatever the defender says.
fn towards(referee: &Referee, block: &Block, target: Cell) -> Option<Pick> {
    let at = referee.at();
    match referee.stage() {
        Stage::PickNode(height, _) => {
            let wanted = if referee.in_blocks() {
                u64::from(block_of(target.position))
            } else if referee.tree_step().is_none() {
                u64::from(target.op)
            } else {
                place(block, target).0
            };
            Some(Pick::Node(((wanted >> height) - at.first(*height)) as u32))
        }
        Stage::PickPart(_) => {
            let step = (u64::from(target.op) - at.first(0)) as u32;
            Some(Pick::Part { step, part: target.part })
        }
        _ => None,
    }
}

/// Leaf and place in it.
fn place(block: &Block, target: Cell) -> (u64, u16) {
    let shape = block.parts(target.op).unwrap()[usize::from(target.part)].shape();
    let row = (target.position - block.first(target.op)) as usize;
    let place = shape.place(row, target.column as usize);
    (place.leaf as u64, place.at as u16)
}

fn greedy_and_rich() -> [Sampling; 2] {
    [sampling(), Sampling { repetition_micro: 1_100_000, ..Sampling::GREEDY }]
}

/// Honest defenders win over every number that there is, and cheats lose over it.
#[test]
fn every_micro_step_is_adjudicated() {
    let mut court = Court::new();
    let mut tried = 0;
    let only: Option<usize> = std::env::var("ASSAY_MODEL").ok().and_then(|m| m.parse().ok());
    for (m, model) in MODELS.iter().enumerate().filter(|(m, _)| only.is_none_or(|o| o == *m)) {
        for (s, sampling) in greedy_and_rich().into_iter().enumerate() {
            if s == 1 && m != 3 {
                continue;
            }
            let record = model.answer(20, 50, sampling);
            let honest = trace(model, subject(&record));
            let block = honest.block(&mut ByReference(model.constants.as_ref()), 1);
            let ops = model.constants.program().program().ops.len();
            for op in 0..block.steps() as u16 {
                if s == 1 && usize::from(op) < ops {
                    continue;
                }
                for (p, part) in block.parts(op).unwrap().iter().enumerate() {
                    let shape = part.shape();
                    if shape.leaves() == 0 {
                        continue;
                    }
                    let n = usize::from(op) * 7 + p * 3;
                    let (row, column) = (n % shape.rows, (n * 131) % shape.columns);
                    let target = Cell {
                        op,
                        part: p as u8,
                        position: block.first(op) + row as u32,
                        column: column as u32,
                    };
                    over_one(&mut court, model, &record, &honest, &block, target);
                    tried += 1;
                }
            }
        }
    }
    println!("{tried} numbers were disputed by either party");
}

fn over_one(
    court: &mut Court,
    model: &Small,
    record: &AnswerRecord,
    honest: &Trace<'_>,
    block: &Block,
    target: Cell,
) {
    let how = rule(&mut Walked { trace: honest, block }, target).unwrap();
    // A challenger that lies: accumulators that are off from some run on.
    let signed = court.sign(record);
    let mut defender = Defender::new(player(model, &signed), &signed, &model.tree);
    let mut liar = |r: &Referee| {
        let Stage::PickNumber(_) = r.stage() else { return towards(r, block, target) };
        let mut said = partials(&mut Walked { trace: honest, block }, target).unwrap_or_default();
        let from = said.len() * usize::from(target.op) / 97 % said.len().max(1);
        said.iter_mut().skip(from).for_each(|p| *p = p.wrapping_add(3));
        Some(Pick::Number { index: place(block, target).1, partials: said })
    };
    let tried = court.try_case(&signed, &mut |r| defender.answer(r), &mut liar);
    let want = match how {
        Rule::Given => Reason::Malformed,
        Rule::Map => Reason::StepHolds,
        Rule::Fold { .. } => Reason::PartialsFail,
    };
    assert_eq!(tried.outcome, Outcome { winner: Party::Defender, reason: want }, "{target:?} {how:?}");
    if how == Rule::Given {
        return;
    }
    // A defender that lies about this one number, and a challenger that knows it.
    let (row, column) = ((target.position - block.first(target.op)) as usize, target.column as usize);
    let signed = court.sign(record);
    let cheat = player(model, &signed).altering(move |b: &mut Block| {
        if b.index == 1 {
            let by = changed(&b.parts(target.op).unwrap()[usize::from(target.part)], row, column);
            b.replace(target.op, target.part, by);
        }
    });
    let mut defender = Defender::new(cheat, &signed, &model.tree);
    let mut knows = |r: &Referee| {
        let Stage::PickNumber(_) = r.stage() else { return towards(r, block, target) };
        let said = partials(&mut Walked { trace: honest, block }, target).unwrap_or_default();
        Some(Pick::Number { index: place(block, target).1, partials: said })
    };
    let tried = court.try_case(&signed, &mut |r| defender.answer(r), &mut knows);
    assert_eq!(tried.outcome.winner, Party::Challenger, "{target:?} {how:?}");
}

#[test]
fn bonds_and_stakes_go_where_they_should() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let mut court = Court::new();
    let provider = court.provider();
    let [before, owner] = [CHALLENGER, provider].map(|a| court.balance(a));
    // A challenger with nothing to say loses its bond to the provider.
    let signed = court.sign(&record);
    let mut defender = Defender::new(player(model, &signed), &signed, &model.tree);
    let mut challenger = Challenger::new(player(model, &signed), &signed);
    let tried = court.try_case(&signed, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    assert_eq!(tried.outcome, Outcome { winner: Party::Defender, reason: Reason::Timeout });
    assert_eq!(court.balance(CHALLENGER), before - BOND);
    assert_eq!(court.balance(provider), owner + BOND);
    court.open(&signed).1.expect_err("once is enough");
    // A provider whose digests are of another execution is struck.
    let mut other = record.clone();
    other.digests.0[1] = Hash::from_bytes([9; 32]);
    bind(&mut other);
    let other = court.sign(&other);
    let mut defender = Defender::new(player(model, &other), &other, &model.tree);
    let mut challenger = Challenger::new(player(model, &other), &other);
    let tried = court.try_case(&other, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    assert_eq!(tried.outcome, Outcome { winner: Party::Challenger, reason: Reason::DigestFails });
    assert_eq!(court.stake(provider), 0);
    assert_eq!(court.balance(CHALLENGER), before - BOND + STAKE * 3 / 10);
    // Another receipt of another key is nothing to dispute.
    let mut forged = court.sign(&record);
    forged.receipt.receipt.sequence += 1;
    court.open(&forged).1.unwrap_err();
}

#[test]
fn honest_parties_win_on_the_chain() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let mut court = Court::new();
    // An honest defender of an honest digest.
    let signed = court.sign(&record);
    let mut defender = Defender::new(player(model, &signed), &signed, &model.tree);
    let tried = court.try_case(&signed, &mut |r| defender.answer(r), &mut |_| Some(Pick::Digest(1)));
    assert_eq!(tried.outcome, Outcome { winner: Party::Defender, reason: Reason::DigestHolds });
    // Another token than the one that is chosen, executed as if it were the model's.
    for at in [0usize, 25, 49] {
        let mut swapped = record.clone();
        let id = &mut swapped.transcript.output_ids[at];
        *id = (*id + 1) % 83;
        swapped.digests = trace(model, subject(&swapped)).digests();
        bind(&mut swapped);
        let swapped = court.sign(&swapped);
        let mut defender = Defender::new(player(model, &swapped), &swapped, &model.tree);
        let mut challenger = Challenger::new(player(model, &swapped), &swapped);
        let tried = court.try_case(&swapped, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
        assert_eq!(tried.outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails }, "{at}");
        println!("token {at}: {} gas, {} rounds", tried.gas(), tried.referee.rounds());
    }
    // An answer to another prompt.
    let mut other = subject(&record);
    other.tokens[4] = (other.tokens[4] + 1) % 83;
    let signed = court.sign(&record);
    let cheat = Player::new(trace(model, other), Box::new(ByReference(model.constants.as_ref())));
    let mut defender = Defender::new(cheat, &signed, &model.tree);
    let mut challenger = Challenger::new(player(model, &signed), &signed);
    let tried = court.try_case(&signed, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
    assert_eq!(tried.outcome.winner, Party::Challenger);
    // What is carried and is not what was made.
    for op in model.constants.program().program().carried() {
        let mut cheat = trace(model, subject(&record));
        let mut parts = cheat.carried_parts(1, op).unwrap().to_vec();
        parts[2] = changed(&parts[2], 3, 1);
        cheat.replace_carried(1, op, parts);
        let cheat = Player::new(cheat, Box::new(ByReference(model.constants.as_ref())));
        let signed = court.sign(&record);
        let mut defender = Defender::new(cheat, &signed, &model.tree);
        let mut challenger = Challenger::new(player(model, &signed), &signed);
        let tried = court.try_case(&signed, &mut |r| defender.answer(r), &mut |r| challenger.answer(r));
        assert_eq!(
            tried.outcome,
            Outcome { winner: Party::Challenger, reason: Reason::Contradiction },
            "{op}"
        );
    }
}

/// Whatever bit of a message is another, its sender loses or the chain and the referee agree that nothing changed.
#[test]
fn altered_messages_lose() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let mut court = Court::new();
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let honest = trace(model, subject(&record));
    let block = honest.block(&mut ByReference(model.constants.as_ref()), 1);
    for round in 0..60u64 {
        let op = (next() % block.steps() as u64) as u16;
        let part = block.parts(op).unwrap().iter().position(|p| p.shape().leaves() > 0).unwrap();
        let target = Cell { op, part: part as u8, position: block.first(op) + 2, column: 0 };
        let signed = court.sign(&record);
        let (receipt, opened) = court.open(&signed);
        opened.unwrap();
        let mut referee = Referee::new(statement(&signed)).unwrap();
        let mut encoder = Encoder::new(statement(&signed));
        let mut defender = Defender::new(player(model, &signed), &signed, &model.tree);
        let alter_at = round % 5;
        let mut claims = 0;
        loop {
            if referee.outcome().is_some() {
                break;
            }
            if referee.turn() == Some(Party::Challenger) {
                let pick = match referee.stage() {
                    Stage::PickNumber(_) => {
                        let mut said = partials(&mut Walked { trace: &honest, block: &block }, target)
                            .unwrap_or_default();
                        said.iter_mut().for_each(|p| *p = p.wrapping_add(1));
                        Pick::Number { index: place(&block, target).1, partials: said }
                    }
                    _ => towards(&referee, &block, target).unwrap(),
                };
                let bytes = encoder.pick(&referee, &pick).unwrap();
                referee.receive(Party::Challenger, &Message::Pick(pick));
                court.pick(receipt, &bytes).unwrap();
                continue;
            }
            let claim = defender.answer(&referee).unwrap();
            let mut bytes = encoder.claim(&referee, &claim).unwrap();
            referee.receive(Party::Defender, &Message::Claim(claim));
            claims += 1;
            let altered = claims > alter_at;
            if claims - 1 == alter_at {
                let i = next() as usize % bytes.len();
                bytes[i] ^= 1 << (next() % 8);
            }
            court.claim(receipt, &bytes).unwrap();
            let court::State { stage: at, upheld, .. } = court.state(receipt);
            // Nodes over blocks and steps are claims of their own: other ones contradict what comes after them.
            assert_eq!(at == 11 && upheld, altered && (claims > 2 || at == 11), "{round}: claim {claims}");
            if at == 11 {
                break;
            }
        }
        assert_eq!(court.state(receipt).stage, 11, "{round}");
    }
}

/// A step is picked with one of its parts: one that it does not have is the challenger's fault, another number of parts the defender's.
#[test]
fn steps_have_the_parts_that_they_have() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let mut court = Court::new();
    for beyond in [0u8, 7, 200] {
        let signed = court.sign(&record);
        let mut defender = Defender::new(player(model, &signed), &signed, &model.tree);
        let tried = court.try_case(&signed, &mut |r| defender.answer(r), &mut |r| match r.stage() {
            Stage::PickPart(lists) => Some(Pick::Part { step: 1, part: lists[1].len() as u8 + beyond }),
            _ => Some(Pick::Node(0)),
        });
        assert_eq!(tried.outcome, Outcome { winner: Party::Defender, reason: Reason::Malformed }, "{beyond}");
    }
    for more in [false, true] {
        let signed = court.sign(&record);
        let mut defender = Defender::new(player(model, &signed), &signed, &model.tree);
        let mut challenger = Challenger::new(player(model, &signed), &signed);
        let mut cheat = |r: &Referee| {
            let mut claim = defender.answer(r)?;
            if let Claim::Steps(lists) = &mut claim {
                let last = lists.last_mut().unwrap();
                if more {
                    last.push(Hash::from_bytes([3; 32]));
                } else {
                    last.pop();
                }
            }
            Some(claim)
        };
        let tried = court.try_case(&signed, &mut cheat, &mut |r| match r.stage() {
            Stage::PickNode(_, nodes) => Some(Pick::Node(nodes.len() as u32 - 1)),
            _ => challenger.answer(r),
        });
        assert_eq!(tried.outcome.winner, Party::Challenger, "{more}: {:?}", tried.outcome);
    }
}

/// A defender whose block carries other keys than its steps made would like to show the ones that it carries.
#[test]
fn what_the_disputed_block_made_is_read_under_its_steps() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let honest = trace(model, subject(&record));
    let block = honest.block(&mut ByReference(model.constants.as_ref()), 1);
    let program = model.constants.program().program();
    let op = program.ops.iter().position(|o| matches!(o, Op::Attend { .. })).unwrap() as u16;
    // The score of a position with itself.
    let target = Cell { op, part: 0, position: 34, column: 34 };
    let mut court = Court::new();
    let signed = court.sign(&record);
    let mut defender = Defender::new(player(model, &signed), &signed, &model.tree);
    let mut altered = 0;
    let mut by_the_carry = |r: &Referee| {
        let mut claim = defender.answer(r)?;
        if let Claim::Proof(proof) = &mut claim {
            for leaf in &mut proof.leaves {
                let Ok(place) = program.carried().binary_search(&leaf.step) else { continue };
                leaf.step_path = merkle::prove(&honest.carried_commitments(1), place)?;
                leaf.block_path = merkle::prove(&honest.carries(), 1);
                altered += 1;
            }
        }
        Some(claim)
    };
    let mut knows = |r: &Referee| match r.stage() {
        Stage::PickNumber(_) => Some(Pick::Number { index: place(&block, target).1, partials: vec![] }),
        _ => towards(r, &block, target),
    };
    let tried = court.try_case(&signed, &mut by_the_carry, &mut knows);
    assert_eq!(tried.outcome, Outcome { winner: Party::Challenger, reason: Reason::StepFails });
    assert!(altered > 0);
}
