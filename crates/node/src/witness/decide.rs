//! What a witness has to do now, from what stands on the ledger and in its book: no clock, no chain, no disk.
//!
//! Invariant: as in [`crate::settlement::due`], a duty that was done is not due any more, and the order of duties is the order in which they are done. What
//! needs no answer of anybody comes first. A demand costs its bond where the provider shows on the ledger what it did not show otherwise: so there is at
//! most one for a batch, and the more of them were in vain with a provider, the rarer they are.

use alloy_primitives::Address;
use assay_ledger::docket::DemandId;
use assay_ledger::ledger::Phase;

use crate::auditor::BatchId;

/// After what part of the time for commitments a provider that shows nothing is asked on the ledger.
pub const PATIENCE_PART: u64 = 4;
/// Demands that are open at once.
pub const DEMANDS_MAX: usize = 4;
/// After `v` demands in vain a provider is asked again when 2^v epochs have passed, and this is the largest `v`.
pub const VAIN_MAX: u32 = 6;

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Time of the chain's newest block.
    pub now: u64,
    /// What the witness has in the vault, for bonds.
    pub vault: u128,
    /// What a demand takes.
    pub bond: u128,
    /// Batches of providers whose receipts are in the book.
    pub batches: Vec<BatchView>,
    /// Demands of this witness that are open, with the time at which the answer is due.
    pub demands: Vec<(DemandId, u64)>,
    /// Providers that are not struck, and of whom the book has two receipts that exclude each other.
    pub conflicts: Vec<Address>,
}

/// A batch on the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchView {
    /// Which.
    pub id: BatchId,
    /// Where its epoch stands.
    pub phase: Phase,
    /// When its beacon was fixed; 0 before.
    pub fixed_at: u64,
    /// The last second in which auditors commit.
    pub commit_until: u64,
    /// Whether its provider was struck.
    pub struck: bool,
    /// Receipts of the book that are to be compared with it, and were not.
    pub left: usize,
    /// One of those that the provider did not show when it was asked last.
    pub refused: Option<u64>,
    /// A receipt that is proved not to stand in it.
    pub found: Option<u64>,
    /// Whether something of this batch was demanded, whatever came of it.
    pub demanded: bool,
    /// How often this provider showed on the ledger what it had not shown otherwise, and what was right; and for which epoch last.
    pub vain: Option<(u32, u64)>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Show that a receipt was left out.
    ProveLeftOut(BatchId, u64),
    /// Show two receipts that exclude each other.
    ProveConflict(Address),
    /// Show that a demand was not answered.
    ProveSilence(DemandId),
    /// Ask on the ledger for the leaf at a sequence number.
    Demand(BatchId, u64),
    /// Have the provider show what it posted, and compare.
    Compare(BatchId),
}

/// What to do now, in this order.
pub fn due(view: &View) -> Vec<Duty> {
    let mut duties = Vec::new();
    let mut accused: Vec<Address> = view.conflicts.clone();
    for batch in view.batches.iter().filter(|batch| !batch.struck) {
        // The first proof takes all there is to take.
        if let Some(sequence) = batch.found.filter(|_| !accused.contains(&batch.id.provider)) {
            accused.push(batch.id.provider);
            duties.push(Duty::ProveLeftOut(batch.id, sequence));
        }
    }
    duties.extend(view.conflicts.iter().map(|provider| Duty::ProveConflict(*provider)));
    let silent = view.demands.iter().filter(|(_, until)| view.now > *until);
    duties.extend(silent.map(|(id, _)| Duty::ProveSilence(*id)));
    let working = || view.batches.iter().filter(|b| !b.struck && !accused.contains(&b.id.provider));
    let (mut vault, mut open) = (view.vault, view.demands.len());
    for batch in working() {
        if let Some(sequence) = demand(batch, view.now)
            && let Some(left) = vault.checked_sub(view.bond)
            && open < DEMANDS_MAX
        {
            (vault, open) = (left, open + 1);
            duties.push(Duty::Demand(batch.id, sequence));
        }
    }
    duties.extend(working().filter(|batch| batch.left > 0).map(|batch| Duty::Compare(batch.id)));
    duties
}

/// What to ask for on the ledger, after the provider had some time to show it.
fn demand(batch: &BatchView, now: u64) -> Option<u64> {
    let open = matches!(batch.phase, Phase::Committing | Phase::Revealing | Phase::Objecting);
    let window = batch.commit_until.saturating_sub(batch.fixed_at);
    let patient = now < batch.fixed_at.saturating_add(window / PATIENCE_PART);
    let rests = batch
        .vain
        .is_some_and(|(times, epoch)| batch.id.epoch.saturating_sub(epoch) < 1u64 << times.min(VAIN_MAX));
    batch.refused.filter(|_| open && !patient && !rests && !batch.demanded)
}

#[cfg(test)]
mod tests {
    use assay_ledger::docket::DemandKind;

    use super::*;

    const PROVIDER: Address = Address::repeat_byte(1);

    fn batch() -> BatchView {
        BatchView {
            id: BatchId { epoch: 9, provider: PROVIDER },
            phase: Phase::Committing,
            fixed_at: 1_000,
            commit_until: 1_400,
            struck: false,
            left: 3,
            refused: None,
            found: None,
            demanded: false,
            vain: None,
        }
    }

    fn view(batches: Vec<BatchView>) -> View {
        View { now: 1_100, vault: 10, bond: 5, batches, demands: vec![], conflicts: vec![] }
    }

    #[test]
    fn what_is_posted_is_compared_and_what_was_compared_is_not() {
        let id = batch().id;
        for phase in [Phase::Posting, Phase::Committing, Phase::Final] {
            assert_eq!(due(&view(vec![BatchView { phase, ..batch() }])), [Duty::Compare(id)]);
        }
        assert_eq!(due(&view(vec![BatchView { left: 0, ..batch() }])), []);
        assert_eq!(due(&view(vec![BatchView { struck: true, found: Some(4), ..batch() }])), []);
    }

    #[test]
    fn who_shows_nothing_is_asked_on_the_ledger_once_a_batch_and_in_time() {
        let refused = BatchView { refused: Some(7), ..batch() };
        let id = refused.id;
        assert_eq!(due(&view(vec![refused])), [Duty::Demand(id, 7), Duty::Compare(id)]);
        let only = [Duty::Compare(id)];
        assert_eq!(due(&View { now: 1_099, ..view(vec![refused]) }), only);
        assert_eq!(due(&View { vault: 4, ..view(vec![refused]) }), only);
        assert_eq!(due(&view(vec![BatchView { demanded: true, ..refused }])), only);
        assert_eq!(due(&view(vec![BatchView { phase: Phase::Final, ..refused }])), only);
        assert_eq!(due(&view(vec![BatchView { phase: Phase::Closing, ..refused }])), only);
        // Bonds are not promised twice, and only so many are open.
        let others = || (0..9u8).map(|n| BatchId { epoch: 9, provider: Address::repeat_byte(n) });
        let many: Vec<_> = others().map(|id| BatchView { id, ..refused }).collect();
        let demands = |view: &View| due(view).iter().filter(|d| matches!(d, Duty::Demand(..))).count();
        assert_eq!(demands(&view(many.clone())), 2);
        assert_eq!(demands(&View { vault: 1_000, ..view(many.clone()) }), DEMANDS_MAX);
        let demand = DemandId { provider: PROVIDER, epoch: 9, index: 0, kind: DemandKind::Leaf };
        let open = View { vault: 1_000, demands: vec![(demand, 1_100); 3], ..view(many) };
        assert_eq!(demands(&open), 1);
        assert!(!due(&open).contains(&Duty::ProveSilence(demand)));
        assert!(due(&View { now: 1_101, ..open }).contains(&Duty::ProveSilence(demand)));
    }

    #[test]
    fn who_answers_on_the_ledger_alone_is_asked_ever_more_rarely() {
        let asked = |vain: u32, since: u64| {
            let id = BatchId { epoch: 100 + since, provider: PROVIDER };
            let one = BatchView { id, refused: Some(7), vain: Some((vain, 100)), ..batch() };
            due(&view(vec![one])).contains(&Duty::Demand(id, 7))
        };
        for (vain, pause) in [(1, 2), (2, 4), (6, 64), (7, 64), (u32::MAX, 64)] {
            assert!(!asked(vain, pause - 1) && asked(vain, pause), "{vain}");
        }
    }

    #[test]
    fn a_provider_is_accused_once_and_by_the_first_proof() {
        let found = BatchView { found: Some(3), refused: Some(5), ..batch() };
        let later = BatchView { id: BatchId { epoch: 10, provider: PROVIDER }, ..found };
        assert_eq!(due(&view(vec![found, later])), [Duty::ProveLeftOut(found.id, 3)]);
        let conflict = View { conflicts: vec![PROVIDER], ..view(vec![found, later]) };
        assert_eq!(due(&conflict), [Duty::ProveConflict(PROVIDER)]);
    }
}
