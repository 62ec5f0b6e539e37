//! Playing disputes on the ledger, as provider or as auditor, by oneself.
//!
//! Invariant: what is said next follows from the record, the model and what the chain says was said before; nothing else is remembered. So a
//! party that was killed at any moment goes on, and one that says the same twice is refused the second time by the contract. It refuses
//! to play over a record that is not the receipt's.

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy_primitives::{B256, Bytes};
use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_engine::artifact::opening::Item;
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::Disputes;
use assay_ledger::docket::{DisputeId, SaidError};
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::{SendError, Sender};
use assay_verify::dispute::calldata::Encoder;
use assay_verify::dispute::heard::Known;
use assay_verify::dispute::parties::{Challenger, Defender, Player};
use assay_verify::dispute::{Message, Party, Referee, Statement};
use assay_verify::trace::NotExecutable;

use crate::execution::{Executable, Library, LibraryError};

/// Stages of `Walk.sol`, as the contract numbers them.
mod stage {
    pub(super) const TRACE: u8 = 1;
    pub(super) const DIGEST: u8 = 7;
    pub(super) const PICK_NODE: u8 = 8;
    pub(super) const PICK_NUMBER: u8 = 10;
    pub(super) const OVER: u8 = 11;
}

/// Where a dispute stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    None,
    /// A party is to move.
    Turn {
        /// Which.
        of: Party,
        /// The last second in which it may.
        until: u64,
    },
    /// It is over.
    Over {
        /// Who has won.
        winner: Party,
    },
}

/// Seconds for which a dispute that has ended is looked at still: a chain that turns back may take its end away, and then it has to be ended again.
const OVER_KEPT_S: u64 = 3600;

/// Disputes that have ended, with the time at which that was seen.
#[derive(Clone, Debug, Default)]
pub struct Ended(BTreeMap<DisputeId, u64>);

impl Ended {
    /// Takes where a dispute stands. Whether its end is new.
    pub fn see(&mut self, id: DisputeId, standing: Standing, now: u64) -> bool {
        match standing {
            Standing::Over { .. } => self.0.insert(id, now.min(*self.0.get(&id).unwrap_or(&now))).is_none(),
            Standing::None | Standing::Turn { .. } => {
                self.0.remove(&id);
                false
            }
        }
    }

    /// Those that can be forgotten, once.
    pub fn forgotten(&mut self, now: u64) -> Vec<DisputeId> {
        let old = |seen: &u64| now.saturating_sub(*seen) > OVER_KEPT_S;
        let ids = self.0.iter().filter(|(_, seen)| old(seen)).map(|(id, _)| *id).collect();
        self.0.retain(|_, seen| !old(seen));
        ids
    }
}

/// Why a move was not made.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// What was said before cannot be read.
    #[error(transparent)]
    Said(#[from] SaidError),
    /// The model is not here.
    #[error(transparent)]
    Model(#[from] LibraryError),
    /// Nobody can execute what the receipt is of.
    #[error("the answer cannot be executed: {0}")]
    Not(#[from] NotExecutable),
    /// The record is of another receipt, or of no answer.
    #[error("the record is not that of the disputed receipt")]
    Record,
    /// What the chain took is not what the rules as this node knows them take.
    #[error("message {number} of the dispute, as the chain has it, is not understood by this version")]
    NotUnderstood {
        /// Which, the first being 0.
        number: usize,
    },
    /// The transaction failed, or waits.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl From<ClientError> for MoveError {
    fn from(error: ClientError) -> Self {
        MoveError::Said(error.into())
    }
}

impl MoveError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            MoveError::Said(SaidError::Client(_)) => "ledger_unread",
            MoveError::Said(SaidError::Hidden { .. }) => "dispute_message_hidden",
            MoveError::Model(e) => e.code(),
            MoveError::Not(_) => "answer_not_executable",
            MoveError::Record => "dispute_record",
            MoveError::NotUnderstood { .. } => "dispute_not_understood",
            MoveError::Send(_) => "transaction_failed",
        }
    }
}

/// Where a dispute stands now.
pub async fn standing(ledger: &Ledger, id: &DisputeId) -> Result<Standing, ClientError> {
    let call = Disputes::disputeOfCall { receipt: id.name, challenger: id.challenger, defender: id.defender };
    let walk = ledger.client().read(ledger.parts().at.disputes, &call).await?.walk;
    let until = walk.deadline.to::<u64>();
    Ok(match walk.stage {
        stage::TRACE..=stage::DIGEST => Standing::Turn { of: Party::Defender, until },
        stage::PICK_NODE..=stage::PICK_NUMBER => Standing::Turn { of: Party::Challenger, until },
        stage::OVER => {
            let winner = if walk.rows == 1 { Party::Challenger } else { Party::Defender };
            Standing::Over { winner }
        }
        _ => Standing::None,
    })
}

/// What is disputed.
#[derive(Clone, Debug)]
pub struct Case {
    /// Which dispute.
    pub id: DisputeId,
    /// The block in which it began.
    pub from: u64,
    /// The trace root that is disputed, where that is what is stated.
    pub stated: Option<Hash>,
    /// What the receipt is of.
    pub record: AnswerRecord,
}

/// What a party says after `said`; nothing if it is not its turn, or it finds nothing wrong.
pub fn next(
    case: &Case,
    model: &Executable,
    said: &[Bytes],
    party: Party,
) -> Result<Option<Vec<u8>>, MoveError> {
    let player = || model.player(&case.record);
    next_of(case, (model.tree(), model.artifact()), player, said, party)
}

/// The same over the hashes and constants of any model, and a party that is made when it is needed.
pub fn next_of<'a>(
    case: &Case,
    (tree, constants): (&ModelTree, &dyn Constants),
    player: impl FnOnce() -> Result<Player<'a>, NotExecutable>,
    said: &[Bytes],
    party: Party,
) -> Result<Option<Vec<u8>>, MoveError> {
    let record = &case.record;
    if tree.root() != record.receipt.receipt.model_root {
        return Err(MoveError::Record);
    }
    let statement = Statement::of(&record.receipt.receipt);
    let (referee, mut encoder) = match case.stated {
        Some(trace) => (Referee::of_trace(statement.clone(), trace), Encoder::of_trace(statement, trace)),
        None => (Referee::new(statement.clone()), Encoder::new(statement)),
    };
    let mut referee = referee.ok_or(MoveError::Record)?;
    let open = |item: Item| tree.open(constants, item);
    let terms = || record.request.terms();
    let known = Known { open: &open, terms: &terms };
    let (mut player, mut challenger) = (Some(player), None);
    if party == Party::Challenger
        && let Some(player) = player.take()
    {
        challenger = Some(Challenger::new(player()?, record));
    }
    for (number, message) in said.iter().enumerate() {
        let not_understood = MoveError::NotUnderstood { number };
        let turn = referee.turn();
        let heard = match turn {
            Some(Party::Defender) => encoder.heard_claim(&referee, &known, message).map(Message::Claim),
            Some(Party::Challenger) => {
                // It finds again what it looked for when it said this.
                if let Some(challenger) = &mut challenger {
                    challenger.answer(&referee);
                }
                encoder.heard_pick(&referee, message).map(Message::Pick)
            }
            None => None,
        };
        let (Some(turn), Some(heard)) = (turn, heard) else { return Err(not_understood) };
        referee.receive(turn, &heard);
        if referee.outcome().is_some() {
            return Err(not_understood);
        }
    }
    if referee.turn() != Some(party) {
        return Ok(None);
    }
    Ok(match (challenger, player) {
        (Some(mut challenger), _) => {
            challenger.answer(&referee).and_then(|pick| encoder.pick(&referee, &pick))
        }
        (None, Some(player)) => {
            let mut defender = Defender::new(player()?, record, tree);
            defender.answer(&referee).and_then(|claim| encoder.claim(&referee, &claim))
        }
        (None, None) => None,
    })
}

/// Sends a party's next message. Says whether there was one.
pub async fn move_on(
    ledger: &Ledger,
    sender: &Sender,
    case: Case,
    library: Arc<Library>,
    party: Party,
) -> Result<bool, MoveError> {
    let said = ledger.said(&case.id, case.from).await?;
    let id = case.id;
    let worked = tokio::task::spawn_blocking(move || {
        let model = library.model(case.record.receipt.receipt.model_root)?;
        next(&case, &model, &said, party)
    });
    let worked = worked.await;
    let Some(message) = worked.expect("playing a dispute does not panic")? else { return Ok(false) };
    let disputes = ledger.parts().at.disputes;
    let DisputeId { name: receipt, challenger, defender } = id;
    let message = Bytes::from(message);
    match party {
        Party::Defender => {
            let call = Disputes::claimCall { receipt, challenger, defender, message };
            sender.send("answer in a dispute", disputes, &call).await?;
        }
        Party::Challenger => {
            let call = Disputes::pickCall { receipt, defender, message };
            sender.send("pick in a dispute", disputes, &call).await?;
        }
    }
    Ok(true)
}

/// Ends a dispute in which a move is late.
pub async fn time_out(ledger: &Ledger, sender: &Sender, id: &DisputeId) -> Result<(), SendError> {
    let DisputeId { name: receipt, challenger, defender } = *id;
    let call = Disputes::timeoutCall { receipt, challenger, defender };
    sender.send("end a dispute in which a move is late", ledger.parts().at.disputes, &call).await.map(drop)
}

/// The name of a dispute over a receipt.
pub fn name_of(record: &AnswerRecord) -> B256 {
    assay_ledger::contracts::b256(&record.receipt.receipt.signing_hash(&record.receipt.domain))
}
