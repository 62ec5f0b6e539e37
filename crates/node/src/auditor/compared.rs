//! What other auditors revealed of receipts that were executed here too.
//!
//! Invariant: a digest is keyed by its auditor and the beacon, so that whoever has a receipt's trace root knows what everybody's digest of it must be, and nobody
//! can say anothers' for its own. Doubted is what is another digest than that; or none at all, where the auditor has not asked the ledger for anything of the
//! batch: one that its provider refused has, and may lack digests without guilt. It refuses to doubt what was not executed here, or
//! what was not read whole.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256};
use assay_core::id::Hash;
use assay_ledger::audits::{assigned, read_digests};
use assay_ledger::contracts::{Audits, node_address};
use assay_verify::receipts::audit_digest;

use super::decide::Doubt;
use super::journal::Done;
use super::told::Draw;
use crate::execution::Verdict;

/// A place of another auditor on a panel, which has revealed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its number.
    pub member: u8,
    /// Whose it is.
    pub auditor: Address,
    /// The root that was revealed.
    pub root: B256,
}

/// What the log has of a batch's reveals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revealed {
    /// Digests by member, with their root.
    digests: BTreeMap<u8, (B256, BTreeMap<u64, Hash>)>,
    /// Who has demanded something of the batch.
    demanders: BTreeSet<Address>,
}

impl Revealed {
    /// Of these events, and who has demanded something.
    pub fn of(events: &[Audits::Revealed], demanders: BTreeSet<Address>) -> Revealed {
        let one =
            |e: &Audits::Revealed| Some((u8::try_from(e.member).ok()?, (e.root, read_digests(&e.digests)?)));
        Revealed { digests: events.iter().filter_map(one).collect(), demanders }
    }

    /// Whether all of these are among them.
    pub fn has(&self, others: &[Other]) -> bool {
        others.iter().all(|other| self.of_root(other).is_some())
    }

    fn of_root(&self, other: &Other) -> Option<&BTreeMap<u64, Hash>> {
        self.digests.get(&other.member).filter(|(root, _)| *root == other.root).map(|(_, digests)| digests)
    }

    /// What is to be doubted, at most one digest of each auditor: of what was `done` here, where one of `others` had to do it too.
    pub fn doubts(&self, draw: &Draw, done: &BTreeMap<u64, Done>, others: &[Other]) -> Vec<Doubt> {
        let mut found: BTreeMap<Address, Doubt> = BTreeMap::new();
        for (sequence, own) in done {
            // What nobody is to see, or can execute, has no digest.
            let Some(trace) = own.trace.filter(|_| own.verdict != Verdict::Withheld) else { continue };
            let who =
                assigned(&draw.beacon, draw.provider, *sequence, draw.batch.panel, draw.rates.secondPpm);
            let Some(who) = who else { continue };
            for other in others.iter().filter(|other| who.has(other.member)) {
                let Some(theirs) = self.of_root(other) else { continue };
                let must = audit_digest(node_address(other.auditor), &draw.beacon.0, own.receipt, &trace);
                let excused = match theirs.get(sequence) {
                    Some(digest) => *digest == must,
                    None => self.demanders.contains(&other.auditor),
                };
                if !excused {
                    let doubt = Doubt { auditor: other.auditor, member: other.member, sequence: *sequence };
                    found.entry(other.auditor).or_insert(doubt);
                }
            }
        }
        found.into_values().collect()
    }
}
