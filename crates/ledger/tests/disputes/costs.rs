//! What disputes over answers of a large model cost.

use assay_verify::dispute::{Outcome, Party, Reason, Tree};
use assay_verify::microstep::Cell;

use crate::court::Court;
use crate::miniature::sampling;
use crate::synthetic::Synthetic;
use crate::{MODELS, eight_billion, report};

/// What a dispute of an 8B-shaped model over an answer of 512 tokens costs both sides together, for every kind of number.
#[test]
fn an_eight_billion_dispute_costs_little() {
    let program = eight_billion::program();
    let record = MODELS[3].answer(20, 50, sampling());
    let mut request = record.request.clone();
    request.sampling.bias = (0..4).map(|i| (i * 1000, 50_000)).collect();
    let (prompt, output) = (256, 257);
    let position = Synthetic::late(prompt, output);
    let ops = program.ops.len() as u16;
    // The last layer, the end, and the choice of a token.
    let mut steps: Vec<u16> = vec![0];
    steps.extend(ops - 23..ops + 2);
    let mut worst = (0, String::new());
    let mut most_rounds = 0;
    for op in steps {
        for part in 0..5u8 {
            let make = |right: Party, column: u32, seed: u64| {
                let target = Cell { op, part, position, column };
                Synthetic::new(program.clone(), &request, (prompt, output), target, right, seed)
            };
            // The last column that the part has, of some that are tried.
            let column = [128_000, 16_000, 14_000, 4_000, 1_000, 95, 52, 51, 31, 1, 0];
            let seeded = |column: u32| (1..9).map(move |s| (column, s * 977));
            let mut tries = column.into_iter().flat_map(seeded);
            let Some((column, seed)) = tries.find(|(c, s)| make(Party::Defender, *c, *s).is_some()) else {
                continue;
            };
            let name = match program.ops.get(usize::from(op)) {
                Some(o) => o.name(),
                None if op == ops => "adjust",
                None => "choose",
            };
            let mut gas = [0, 0];
            for right in [Party::Defender, Party::Challenger] {
                let case = make(right, column, seed).unwrap();
                // A provider is struck once.
                let mut court = Court::new();
                let record = court.sign_case(&record, &case.statement);
                let tried = court.try_case(&record, &mut |r| case.claim(r), &mut |r| case.pick(r));
                // The token that is chosen must be the transcript's, too, which was not made up.
                let chosen = (name, part) == ("choose", 4);
                let winner = if chosen { Party::Challenger } else { right };
                assert_eq!(tried.outcome.winner, winner, "{name} {part}: {:?}", tried.outcome);
                assert!(tried.referee.rounds() <= 6, "{name} {part}");
                most_rounds = most_rounds.max(tried.referee.rounds());
                gas[usize::from(right == Party::Challenger)] = tried.gas();
                if tried.gas() > worst.0 {
                    worst = (tried.gas(), format!("{name} {part}, {right:?}: {:?}", tried.moves));
                }
                if right == Party::Challenger {
                    let bytes: usize = tried.moves.iter().map(|m| m.2).sum();
                    let (rounds, moves) = (tried.referee.rounds(), tried.moves.len());
                    println!(
                        "| {name} {part} | {:?} | {} | {} | {rounds} | {moves} | {bytes}",
                        case.rule, gas[0], gas[1]
                    );
                }
            }
        }
    }
    println!("at most {} gas: {}", worst.0, worst.1);
    assert!(worst.0 <= 1_500_000, "{}", worst.1);
    report::merge("dispute", serde_json::json!({"rounds": most_rounds, "gas": worst.0}));
}

/// What a block carries was claimed before its steps: that it is not what they make is shown at once, and cannot be shown of an honest block.
#[test]
fn what_is_carried_is_shown_to_be_made() {
    let record = MODELS[3].answer(20, 50, sampling());
    let program = eight_billion::program();
    let mut court = Court::new();
    for honest in [false, true] {
        let target = Cell { op: 6, part: 2, position: Synthetic::late(256, 257), column: 1000 };
        let mut case =
            Synthetic::new(program.clone(), &record.request, (256, 257), target, Party::Defender, 9).unwrap();
        if !honest {
            case.carry_otherwise();
        }
        let signed = court.sign_case(&record, &case.statement);
        let tried = court.try_case(&signed, &mut |r| case.claim(r), &mut |r| match r.tree() {
            Tree::Steps => Some(case.carry_pick()),
            _ => case.pick(r),
        });
        let want = match honest {
            true => Outcome { winner: Party::Defender, reason: Reason::Malformed },
            false => Outcome { winner: Party::Challenger, reason: Reason::Contradiction },
        };
        assert_eq!(tried.outcome, want);
        println!("carried: {} gas, {:?}", tried.gas(), tried.moves);
        assert!(tried.gas() <= 1_500_000);
    }
}
