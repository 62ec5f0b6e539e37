//! Beacons' questions, each asked of the chain until its end is known.
//!
//! Invariant: what is remembered as settled was read at a block that the roll has read too, and is forgotten when the roll sees a block taken
//! back. So a question is settled here only while it is so on the chain.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::roll::Roll;
use super::{PledgeId, Question};
use crate::client::ClientError;

/// A question without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Who is asked, about what.
    pub pledge: PledgeId,
    /// By which epoch's beacon.
    pub epoch: u64,
    /// For which chunk.
    pub chunk: u64,
    /// The last second in which an answer is taken.
    pub until: u64,
    /// Whether there is time left.
    pub time: Time,
}

/// Whether an answer would still be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// It would.
    Left,
    /// It would not: the silence can be shown.
    Over,
}

/// What is known of questions.
#[derive(Clone, Debug, Default)]
pub struct Questions {
    /// Pledges of which an epoch asks nothing more.
    settled: BTreeMap<u64, BTreeSet<PledgeId>>,
    undone: u64,
}

impl Questions {
    /// The questions of some epochs that have no answer, as far as the roll has read. Earlier epochs are forgotten.
    pub async fn open(&mut self, roll: &Roll, epochs: RangeInclusive<u64>) -> Result<Vec<Open>, ClientError> {
        if self.undone != roll.undone() {
            self.settled.clear();
            self.undone = roll.undone();
        }
        self.settled.retain(|epoch, _| epochs.contains(epoch));
        let (mut open, mut now) = (Vec::new(), None);
        let Some(block) = roll.block() else { return Ok(open) };
        for epoch in epochs {
            let settled = self.settled.entry(epoch).or_default();
            for pledge in
                roll.names().pledges.iter().filter(|id| !settled.contains(id)).copied().collect::<Vec<_>>()
            {
                match roll.ledger().question_at(block, pledge, epoch).await? {
                    // No beacon: it asks nobody yet.
                    Question::Pending => break,
                    Question::NotAsked | Question::Closed => {
                        settled.insert(pledge);
                    }
                    Question::Asked { chunk, until } => {
                        let time = match now {
                            Some(time) => time,
                            None => roll.ledger().client().latest().await?.timestamp,
                        };
                        now = Some(time);
                        let time = if time <= until { Time::Left } else { Time::Over };
                        open.push(Open { pledge, epoch, chunk, until, time });
                    }
                }
            }
        }
        Ok(open)
    }
}
