//! Comparing: what a provider shows of its batch, beside its route or on the ledger, and what that says of receipts.
//!
//! Invariant: nothing is believed that does not stand under the root on the ledger. What a provider shows beside it counts as not shown, whatever it is.

use alloy_eips::BlockId;
use alloy_primitives::B256;
use assay_api::audits::AuditError;
use assay_api::leaves::{LeavesRequest, NUMBERS_MAX, PostedLeaf};
use assay_core::id::Hash;
use assay_core::merkle::{self, Proof};
use assay_core::receipt::{Receipt, SignedReceipt};
use assay_ledger::contracts::{Epochs, Objections, node_address};
use assay_ledger::docket::{DemandId, DemandKind};
use assay_verify::receipts::{Epoch, Standing};

use super::book::Omission;
use super::{Event, Undone, Witness, WitnessError};
use crate::auditor::BatchId;

/// Requests of a round for one batch: the rest waits for the next one, so that no provider has the others wait for long.
const REQUESTS_MAX: usize = 8;

/// What a leaf says of a receipt, if it stands at the receipt's number under the batch's root.
fn judge(
    batch: &Epochs::Batch,
    signed: &SignedReceipt,
    leaf: Hash,
    path: Vec<Hash>,
) -> Option<(Standing, Proof)> {
    let index = signed.receipt.sequence.checked_sub(batch.first)?;
    let proof = Proof { index, count: batch.count.into(), path };
    let root = Hash::from_bytes(batch.root.0);
    let epoch = Epoch { first: batch.first, count: batch.count.into(), root };
    Some((epoch.standing(signed, Some((leaf, &proof)))?, proof))
}

impl Witness {
    /// Has the provider show what it posted at the numbers of receipts, and compares.
    pub(super) async fn compare(&mut self, id: BatchId) -> Result<Option<Event>, Undone> {
        let provider = id.provider;
        let Some(held) = self.held.get(&id) else { return Ok(None) };
        let (batch, left) = (held.batch.clone(), held.left.clone());
        if let Some((code, reason)) = self.unreached.get(&provider).cloned() {
            self.not_shown(id, left.first().copied(), code, reason);
            return Ok(None);
        }
        let endpoint = match (self.endpoints)(provider) {
            Some(known) => known,
            None => self.ledger.node(provider).await?.map(|node| node.endpoint).unwrap_or_default(),
        };
        if endpoint.is_empty() {
            let first = left.first().copied();
            self.not_shown(id, first, "provider_unreachable", "nobody names an endpoint of it".into());
            return Ok(None);
        }
        let mut receipts = 0;
        for some in left.chunks(NUMBERS_MAX).take(REQUESTS_MAX) {
            let mut numbers = some.to_vec();
            numbers.sort_unstable();
            let request =
                LeavesRequest { provider: node_address(provider), epoch: id.epoch, numbers: numbers.clone() };
            match self.http.ask(&endpoint, &request).await {
                Ok(leaves) => receipts += self.see(id, &batch, &numbers, leaves)?,
                Err(e) => {
                    if let AuditError::Unreachable { .. } = e {
                        self.unreached.insert(provider, (e.code(), e.to_string()));
                    }
                    self.not_shown(id, some.first().copied(), e.code(), e.to_string());
                    break;
                }
            }
        }
        Ok((receipts > 0).then_some(Event::Compared { batch: id, receipts }))
    }

    /// Takes what a provider showed for these numbers. How many of the receipts stand.
    fn see(
        &mut self,
        id: BatchId,
        batch: &Epochs::Batch,
        numbers: &[u64],
        leaves: Vec<PostedLeaf>,
    ) -> Result<usize, Undone> {
        let (mut stand, mut gone, mut wrong) = (Vec::new(), Vec::new(), None);
        for (sequence, shown) in numbers.iter().copied().zip(leaves) {
            let Some(signed) = self.book.receipt(id.provider, sequence)? else {
                gone.push(sequence);
                continue;
            };
            match judge(batch, &signed, shown.leaf, shown.path) {
                Some((Standing::Included, _)) => stand.push(sequence),
                Some((Standing::LeftOut, proof)) => {
                    let root = batch.root;
                    let omission = Omission { epoch: id.epoch, root, leaf: shown.leaf, proof };
                    self.found(id, sequence, &omission)?;
                    gone.push(sequence);
                }
                None => wrong = wrong.or(Some(sequence)),
            }
        }
        self.book.mark(id.provider, &stand, batch.root)?;
        if let Some(held) = self.held.get_mut(&id) {
            held.left.retain(|n| !stand.contains(n) && !gone.contains(n));
            held.refused = held.refused.filter(|n| held.left.contains(n));
        }
        if wrong.is_some() {
            let reason = "what it shows does not stand under the root that it posted".into();
            self.not_shown(id, wrong, "leaves_root", reason);
        }
        Ok(stand.len())
    }

    fn found(&self, id: BatchId, sequence: u64, omission: &Omission) -> Result<(), Undone> {
        self.book.find(id.provider, sequence, omission)?;
        self.say(Event::LeftOut { batch: id, sequence });
        Ok(())
    }

    /// Notes that a provider did not show the leaf at a number, and says so once.
    fn not_shown(&mut self, id: BatchId, sequence: Option<u64>, code: &'static str, reason: String) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let new = held.refused.is_none();
        held.refused = held.refused.or(sequence);
        if new {
            self.say(Event::NotShown { batch: id, code, reason });
        }
    }

    /// Reads what was shown on the ledger because this witness demanded it. Whether something of the batch is demanded, or was and it was in vain.
    pub(super) async fn read_shown(
        &mut self,
        block: BlockId,
        id: BatchId,
        batch: &Epochs::Batch,
    ) -> Result<bool, WitnessError> {
        let mut demanded = self.book.vain(id.provider)?.contains(&id.epoch);
        let of = |demand: &DemandId| {
            (demand.provider, demand.epoch, demand.kind) == (id.provider, id.epoch, DemandKind::Leaf)
        };
        let named = self.docket.entries().demands.iter().filter(|(demand, _)| of(demand));
        let named: Vec<(DemandId, u64)> = named.map(|(demand, from)| (*demand, *from)).collect();
        for (demand, from) in named {
            if demanded {
                break;
            }
            if self.demand_of(block, &demand).await?.until.to::<u64>() != 0 {
                return Ok(true);
            }
            // None, where a reorganisation took the demand back: then there is none.
            if let Some(opening) = self.ledger.opened(&demand, from).await? {
                demanded = true;
                self.learn(id, batch, demand, &opening)?;
            }
        }
        Ok(demanded)
    }

    /// Learns from a leaf that was opened what stands at its number.
    fn learn(
        &mut self,
        id: BatchId,
        batch: &Epochs::Batch,
        demand: DemandId,
        opening: &Objections::Opening,
    ) -> Result<(), WitnessError> {
        let sequence = batch.first.saturating_add(demand.index);
        let Some(signed) = self.book.receipt(id.provider, sequence)? else { return Ok(()) };
        let signs = match opening.isVoid {
            true => Hash::ZERO,
            false => Receipt::from(&opening.receipt).signing_hash(&signed.domain),
        };
        let leaf = merkle::leaf(signs.as_bytes());
        let path = opening.proof.path.iter().map(|node: &B256| Hash::from_bytes(node.0)).collect();
        match judge(batch, &signed, leaf, path) {
            Some((Standing::Included, _)) => {
                self.book.note_vain(id, sequence, batch.root)?;
                self.held.remove(&id);
                self.say(Event::InVain { demand });
            }
            Some((Standing::LeftOut, proof)) => {
                let known = self.book.found(id.provider)?;
                let omission = Omission { epoch: id.epoch, root: batch.root, leaf, proof };
                if !known.contains(&(sequence, omission.clone())) {
                    self.book.find(id.provider, sequence, &omission)?;
                    self.say(Event::LeftOut { batch: id, sequence });
                }
            }
            // Of a batch that is not the one on the ledger any more.
            None => {}
        }
        Ok(())
    }
}
