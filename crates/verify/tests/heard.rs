//! Messages as a ledger has them, read by the party that did not write them: what it reads is what was said, over whole disputes.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod miniature;

use assay_core::answer::AnswerRecord;
use assay_engine::artifact::opening::Item;
use assay_engine::replay::ByReference;
use assay_verify::dispute::calldata::Encoder;
use assay_verify::dispute::heard::Known;
use assay_verify::dispute::parties::{Challenger, Defender, Player};
use assay_verify::dispute::{Claim, Message, Outcome, Party, Pick, Referee, Stage};
use assay_verify::trace::walk::Trace;
use miniature::{Small, bind, models, sampling, statement, subject};

fn player<'a>(model: &'a Small, record: &AnswerRecord) -> Player<'a> {
    let constants = model.constants.as_ref();
    let trace = Trace::new(constants, subject(record), &mut ByReference(constants));
    Player::new(trace, Box::new(ByReference(constants)))
}

/// Reads every message of a dispute with encoders that did not write it, and has altered ones refused. Returns how it ended, and how many were read.
fn overhear(
    model: &Small,
    record: &AnswerRecord,
    mut claims: impl FnMut(&Referee) -> Option<Claim>,
    mut picks: impl FnMut(&Referee) -> Option<Pick>,
) -> (Outcome, usize) {
    let mut referee = Referee::new(statement(record)).unwrap();
    let (mut writer, mut reader) = (Encoder::new(statement(record)), Encoder::new(statement(record)));
    let open = |item: Item| model.tree.open(model.constants.as_ref(), item);
    let terms = || record.request.terms();
    let known = Known { open: &open, terms: &terms };
    let mut read = 0;
    while let Some(turn) = referee.turn() {
        let last = matches!(referee.stage(), Stage::Proof | Stage::Digest(_));
        let (said, bytes) = match turn {
            Party::Defender => {
                let claim = claims(&referee).unwrap();
                let bytes = writer.claim(&referee, &claim).unwrap();
                (Message::Claim(claim), bytes)
            }
            Party::Challenger => {
                let pick = picks(&referee).unwrap();
                let bytes = writer.pick(&referee, &pick).unwrap();
                (Message::Pick(pick), bytes)
            }
        };
        let hear = |encoder: &mut Encoder, bytes: &[u8]| match turn {
            Party::Defender => encoder.heard_claim(&referee, &known, bytes).map(Message::Claim),
            Party::Challenger => encoder.heard_pick(&referee, bytes).map(Message::Pick),
        };
        let ends = last || matches!(said, Message::Pick(Pick::Carry(_)));
        if !ends {
            for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                let heard = hear(&mut reader.clone(), &bytes[..cut]);
                assert!(heard.is_none_or(|heard| heard != said), "{cut} of {} bytes", bytes.len());
            }
            let longer = [bytes.as_slice(), &[0]].concat();
            assert!(hear(&mut reader.clone(), &longer).is_none_or(|heard| heard != said));
            assert_eq!(hear(&mut reader, &bytes).as_ref(), Some(&said), "{:?}", referee.stage());
            read += 1;
        }
        referee.receive(turn, &said);
    }
    (referee.outcome().unwrap(), read)
}

#[test]
fn what_is_read_is_what_was_said() {
    for (number, model) in models().iter().enumerate() {
        let honest = model.answer(20, 50, sampling());
        // A token that the model did not choose, executed as if it had.
        let mut swapped = honest.clone();
        let vocabulary = model.constants.program().program().vocabulary;
        swapped.transcript.output_ids[25] = (swapped.transcript.output_ids[25] + 1) % vocabulary;
        let constants = model.constants.as_ref();
        swapped.digests = Trace::new(constants, subject(&swapped), &mut ByReference(constants)).digests();
        bind(&mut swapped);
        // Digests of another execution.
        let mut other = honest.clone();
        other.digests.0[1] = assay_core::id::Hash::from_bytes([9; 32]);
        bind(&mut other);
        for (what, record) in [("token", &swapped), ("digest", &other)] {
            let mut defender = Defender::new(player(model, record), record, &model.tree);
            let mut challenger = Challenger::new(player(model, record), record);
            let (outcome, read) = overhear(model, record, |r| defender.answer(r), |r| challenger.answer(r));
            assert_eq!(outcome.winner, Party::Challenger, "model {number}, {what}: {outcome:?}");
            assert!(read >= 2, "model {number}, {what}: {read}");
        }
        // A defender that executed another prompt: the walk goes down into numbers.
        let mut elsewhere = honest.clone();
        elsewhere.transcript.prompt_ids[3] = (elsewhere.transcript.prompt_ids[3] + 1) % vocabulary;
        let mut defender = Defender::new(player(model, &elsewhere), &honest, &model.tree);
        let mut challenger = Challenger::new(player(model, &honest), &honest);
        let (outcome, read) = overhear(model, &honest, |r| defender.answer(r), |r| challenger.answer(r));
        assert_eq!(outcome.winner, Party::Challenger, "model {number}: {outcome:?}");
        assert!(read >= 8, "model {number}: {read}");
    }
}
