//! What an auditor makes of what others revealed, and of a journal of another beacon.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, U256};
use assay_core::id::{Hash, ReceiptId};
use assay_ledger::audits::{digests_root, revealed_digests};
use assay_ledger::contracts::Directory::Rates;
use assay_ledger::contracts::{Audits, Epochs, b256, node_address};
use assay_node::auditor::{Done, Doubt, Draw, Other, Revealed, Work};
use assay_node::execution::Verdict;
use assay_verify::receipts::audit_digest;

const ME: Address = Address::repeat_byte(1);
const THEY: Address = Address::repeat_byte(2);
const PROVIDER: Address = Address::repeat_byte(3);
const BEACON: B256 = B256::repeat_byte(4);

fn trace(sequence: u64) -> Hash {
    Hash::from_bytes([sequence as u8; 32])
}

fn done(sequence: u64, verdict: Verdict) -> (u64, Done) {
    let receipt = ReceiptId::from_bytes([sequence as u8; 32]);
    (sequence, Done { receipt, members: vec![0], trace: Some(trace(sequence)), verdict })
}

/// What is doubted of the place 1 where it reveals these digests.
fn doubted(digests: &[(u64, Hash)], demanders: &[Address], done: &BTreeMap<u64, Done>) -> Vec<Doubt> {
    let own = || digests.iter().map(|(sequence, digest)| (*sequence, digest));
    let root = b256(&digests_root(own()));
    let event = Audits::Revealed {
        provider: PROVIDER,
        epoch: 5,
        member: U256::ONE,
        root,
        digests: revealed_digests(own()),
    };
    let batch = Epochs::Batch { panel: 2, ..Default::default() };
    let rates = Rates { secondPpm: 1_000_000, ..Default::default() };
    let draw = Draw { provider: PROVIDER, beacon: BEACON, batch: &batch, rates: &rates, members: &[0] };
    let others = [Other { member: 1, auditor: THEY, root }];
    let revealed = Revealed::of(&[event], demanders.iter().copied().collect());
    assert!(revealed.has(&others));
    // Of another root nothing is known, and nobody is doubted.
    let elsewhere = [Other { root: B256::ZERO, ..others[0] }];
    assert!(!revealed.has(&elsewhere));
    assert_eq!(revealed.doubts(&draw, done, &elsewhere), []);
    revealed.doubts(&draw, done, &others)
}

#[test]
fn another_digest_is_doubted_and_a_missing_one_of_who_asked_for_nothing() {
    let honest = |auditor, sequence| {
        let (_, done) = done(sequence, Verdict::Stands);
        (sequence, audit_digest(node_address(auditor), &BEACON.0, done.receipt, &trace(sequence)))
    };
    let both: BTreeMap<u64, Done> = [done(7, Verdict::Stands), done(9, Verdict::Wrong)].into();
    assert_eq!(doubted(&[honest(THEY, 7), honest(THEY, 9)], &[], &both), []);
    let doubt = |sequence| [Doubt { auditor: THEY, member: 1, sequence }];
    // Made up; and copied from the other auditor, whose digest says its name.
    assert_eq!(doubted(&[honest(THEY, 7), (9, Hash::ZERO)], &[], &both), doubt(9));
    assert_eq!(doubted(&[honest(ME, 7), honest(ME, 9)], &[THEY], &both), doubt(7), "one of each auditor");
    // Missing: whoever was refused something has asked the ledger for it.
    assert_eq!(doubted(&[honest(THEY, 7)], &[ME], &both), doubt(9));
    assert_eq!(doubted(&[honest(THEY, 7)], &[THEY], &both), []);
    // What was not executed here says nothing.
    let mut unseen = both.clone();
    unseen.values_mut().for_each(|done| done.trace = None);
    assert_eq!(doubted(&[(7, Hash::ZERO)], &[], &unseen), []);
    let withheld: BTreeMap<u64, Done> = [done(7, Verdict::Withheld)].into();
    assert_eq!(doubted(&[(7, Hash::ZERO)], &[], &withheld), []);
}

#[test]
fn work_of_another_beacon_says_nothing() {
    let (one, two) = (B256::repeat_byte(1), B256::repeat_byte(2));
    let done = Work { disputed: vec![4], ..Work::default() };
    // What was written before beacons were named is taken for the one that stands.
    let work = done.clone().under(one);
    assert_eq!(work, Work { beacon: Some(one), ..done });
    assert_eq!(work.clone().under(one), work);
    assert_eq!(work.under(two), Work { beacon: Some(two), ..Work::default() });
}
