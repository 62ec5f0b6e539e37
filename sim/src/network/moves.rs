//! Moves in disputes: what was said stands in transactions of the branch that stands, and what is said next follows from it.
//!
//! Honest parties say what `assay_node::disputes` does; liars and accusers the same over what they pretend was executed ([`By`]), for as many moves as they
//! are willing to make. It refuses to remember anything: who was killed reads what was said.

use alloy_primitives::{B256, Bytes};
use alloy_sol_types::SolCall;
use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_ledger::contracts::Disputes;
use assay_ledger::docket::DisputeId;
use assay_node::disputes::{Case, name_of, next_of};
use assay_verify::dispute::Party;

use super::World;
use super::chain::Chain;
use super::model::{self, By};
use super::wire::Who;

/// Who plays a dispute, and how.
pub(super) struct Playing<'a> {
    pub(super) who: Who,
    pub(super) id: DisputeId,
    /// The block in which it began.
    pub(super) from: u64,
    pub(super) party: Party,
    /// The trace root that an accuser has stated.
    pub(super) stated: Option<Hash>,
    pub(super) record: &'a AnswerRecord,
    /// What it says was executed.
    pub(super) by: By,
    /// After so many moves of its own it is silent.
    pub(super) moves_max: usize,
}

/// The messages that the contract took, in order.
fn said(chain: &Chain, id: &DisputeId, from: u64) -> Vec<Bytes> {
    let moved = chain.logs_from(from).filter(|logged| {
        logged
            .as_event::<Disputes::Moved>()
            .is_some_and(|e| (e.receipt, e.challenger) == (id.name, id.challenger))
    });
    moved.filter_map(|logged| message(&chain.txs[logged.tx].data, id)).collect()
}

fn message(data: &[u8], id: &DisputeId) -> Option<Bytes> {
    let claim = Disputes::claimCall::abi_decode(data).ok();
    let claim = claim.filter(|c| (c.receipt, c.defender) == (id.name, id.defender)).map(|c| c.message);
    let pick = || Disputes::pickCall::abi_decode(data).ok();
    claim.or_else(|| pick().filter(|c| (c.receipt, c.defender) == (id.name, id.defender)).map(|c| c.message))
}

impl World<'_> {
    /// The call of a party's next move. None if it is not its turn, it has nothing to say, or will say nothing any more.
    pub(super) fn next_move(&mut self, playing: Playing<'_>) -> Option<Vec<u8>> {
        let Playing { who, id, from, party, stated, record, by, moves_max } = playing;
        let said = said(&self.chain, &id, from);
        // They move in turns, the defender first.
        let own = match party {
            Party::Defender => said.len().div_ceil(2),
            Party::Challenger => said.len() / 2,
        };
        if own >= moves_max {
            return None;
        }
        let case = Case { id, from, stated, record: record.clone() };
        let model = model::served();
        let player = || Ok(model::player(by, record));
        let next = next_of(&case, (&model.tree, model.constants.as_ref()), player, &said, party);
        let message: Bytes = match next {
            Ok(message) => message?.into(),
            Err(e) => {
                self.tell(who, || format!("cannot move in {}: {e}", id.name));
                return None;
            }
        };
        let DisputeId { name: receipt, challenger, defender } = id;
        self.truth.moves += 1;
        Some(match party {
            Party::Defender => Disputes::claimCall { receipt, challenger, defender, message }.abi_encode(),
            Party::Challenger => Disputes::pickCall { receipt, defender, message }.abi_encode(),
        })
    }

    /// The record of the receipt with this name, among all that were stored: who disputes something has it.
    pub(super) fn record_named(&self, name: B256) -> Option<AnswerRecord> {
        let mut all = self.providers.iter().flat_map(|p| p.store.values());
        all.find(|record| name_of(record) == name).cloned()
    }
}
