//! What comes in which order, and what is refused.

use assay_core::id::NodeAddress;
use assay_core::receipt::Domain;
use assay_ledger::epochs::{
    AppendError, Appended, Builder, End, Folder, Identity, OpenError, Posting, Progress, ProgressError,
    ProofError, Remedy, SealError, StorageError, Terms,
};

use crate::killed::folder;
use crate::naive::{IDENTITY, POSTING, model, receipt};
use crate::power::Power;

fn with(numbers: impl IntoIterator<Item = u64>) -> (Builder<Power>, Power) {
    let power = Power::default();
    let (mut b, _) = Builder::on(power.clone(), IDENTITY).unwrap();
    for n in numbers {
        b.append(&receipt(n, 0, model(n % 2), 10)).unwrap();
    }
    (b, power)
}

#[test]
fn what_is_there_is_known_and_what_contradicts_it_is_refused() {
    let (mut b, _) = with([3, 5]);
    let r = |n| receipt(n, 0, model(n % 2), 10);
    assert_eq!(b.append_many(&[r(3), r(4), r(4), r(5)]).unwrap(), Appended { new: 1, known: 3 });
    let other = receipt(3, 0, model(1), 11);
    assert!(matches!(b.append(&other), Err(AppendError::Conflict { sequence: 3, .. })));
    let twice = [r(9), receipt(9, 1, model(1), 10)];
    assert!(matches!(b.append_many(&twice), Err(AppendError::Conflict { sequence: 9, .. })));
    assert_eq!(b.waiting(), 3, "nothing of a call that is refused");
    let mut foreign = r(6);
    foreign.domain.chain_id += 1;
    assert!(matches!(b.append(&foreign), Err(AppendError::Foreign { sequence: 6 })));
    let mut foreign = r(6);
    foreign.receipt.provider = NodeAddress::ZERO;
    assert!(matches!(b.append(&foreign), Err(AppendError::Foreign { sequence: 6 })));

    // The same after sealing.
    b.append(&r(7)).unwrap();
    b.seal(0, &Terms::default()).unwrap();
    assert_eq!(b.append(&r(3)).unwrap(), Appended { new: 0, known: 1 });
    assert!(matches!(b.append(&other), Err(AppendError::Conflict { sequence: 3, .. })));
    assert!(matches!(b.append(&r(6)), Err(AppendError::GivenUp { sequence: 6, epoch: 0 })));
    assert!(matches!(b.append(&r(2)), Err(AppendError::Passed { sequence: 2, next: 8 })));
    b.posted(0, POSTING).unwrap();
    b.settled(0).unwrap();
    b.prune(1).unwrap();
    assert!(matches!(b.append(&r(3)), Err(AppendError::Passed { sequence: 3, next: 8 })));
    assert!(matches!(b.proof(3), Err(ProofError::NotHeld { sequence: 3 })));
    b.append(&r(8)).unwrap();
}

#[test]
fn no_receipt_stands_in_an_earlier_epoch_and_none_is_taken_that_may_still_come() {
    let (mut b, _) = with([0, 1]);
    b.append(&receipt(2, 1, model(0), 10)).unwrap();
    b.append(&receipt(3, 0, model(0), 10)).unwrap();
    let waits = b.seal(0, &Terms { in_flight: Some(0), ..Terms::default() });
    assert!(matches!(waits, Err(SealError::Nothing { at: 0, end: End::InFlight })));
    let batch = b.seal(0, &Terms::default()).unwrap();
    assert_eq!((batch.count, batch.end), (2, End::LaterEpoch));
    assert!(matches!(b.seal(1, &Terms::default()), Err(SealError::Unposted { epoch: 0 })));
    b.posted(0, POSTING).unwrap();
    let elsewhere = b.seal(1, &Terms { first: Some(3), ..Terms::default() });
    assert!(matches!(elsewhere, Err(SealError::First { builder: 2, ledger: 3 })));
    let batch = b.seal(1, &Terms { first: Some(2), ..Terms::default() }).unwrap();
    assert_eq!((batch.first, batch.count, batch.end), (2, 2, End::All));
    b.posted(1, POSTING).unwrap();
    assert!(matches!(b.seal(2, &Terms::default()), Err(SealError::Nothing { at: 4, end: End::All })));
    b.append(&receipt(4, 0, model(0), 10)).unwrap();
    b.seal(5, &Terms::default()).unwrap();
    assert!(matches!(b.seal(4, &Terms::default()), Err(SealError::Passed { epoch: 4, last: 5 })));
}

#[test]
fn the_first_batch_begins_where_the_ledger_says() {
    let (mut b, _) = with([10, 11]);
    let batch = b.seal(0, &Terms { first: Some(7), ..Terms::default() }).unwrap();
    assert_eq!((batch.first, batch.count, batch.gaps), (7, 5, 3));
    let (mut b, _) = with([10, 11]);
    let batch = b.seal(0, &Terms { first: Some(11), ..Terms::default() }).unwrap();
    assert_eq!((batch.first, batch.count), (11, 1));
}

#[test]
fn what_the_ledger_did_comes_in_its_order() {
    let (mut b, power) = with([0]);
    let elsewhere = Posting { block: 10, ..POSTING };
    assert!(matches!(b.posted(0, POSTING), Err(ProgressError::NoBatch { epoch: 0 })));
    let first = b.seal(0, &Terms::default()).unwrap();
    assert!(matches!(b.settled(0), Err(ProgressError::OutOfOrder { other: 0, .. })));
    b.posted(0, POSTING).unwrap();
    b.posted(0, elsewhere).unwrap();
    assert_eq!(b.batches()[0].progress, Progress::Posted(elsewhere));
    assert!(matches!(b.missed(0), Err(ProgressError::OutOfOrder { other: 0, .. })));
    b.append(&receipt(1, 1, model(0), 10)).unwrap();
    let second = b.seal(1, &Terms::default()).unwrap();
    b.posted(1, POSTING).unwrap();
    assert!(matches!(b.settled(1), Err(ProgressError::OutOfOrder { other: 0, .. })));
    // A reorganisation takes both away.
    b.unposted(0).unwrap();
    assert!(b.batches().iter().all(|e| e.progress == Progress::Sealed));
    assert!(matches!(b.posted(1, POSTING), Err(ProgressError::OutOfOrder { other: 0, .. })));
    assert!(matches!(b.missed(0), Err(ProgressError::OutOfOrder { other: 1, .. })));
    assert_eq!(b.seal(0, &Terms::default()).unwrap(), first);
    b.posted(0, POSTING).unwrap();
    b.posted(1, POSTING).unwrap();
    b.settled(0).unwrap();
    assert!(matches!(b.unposted(0), Err(ProgressError::OutOfOrder { other: 0, .. })));
    b.unposted(1).unwrap();
    b.missed(1).unwrap();
    assert_eq!((b.waiting(), b.next()), (1, Some(1)));
    let later = b.seal(2, &Terms::default()).unwrap();
    assert_eq!((later.root, later.epoch), (second.root, 2));
    let (again, _) = Builder::on(power, IDENTITY).unwrap();
    assert_eq!(again.batches(), b.batches());
}

#[test]
fn another_folder_is_not_opened() {
    let (_, power) = with([0]);
    let other = Identity { provider: NodeAddress::ZERO, ..IDENTITY };
    let refused = Builder::on(power.clone(), other).unwrap_err();
    assert!(matches!(refused, StorageError::Damaged { remedy: Remedy::OtherFolder, .. }), "{refused}");
    let other = Identity { domain: Domain { chain_id: 1, ..IDENTITY.domain }, ..IDENTITY };
    assert!(Builder::on(power, other).is_err());

    let path = folder("in-use");
    let (b, _) = Builder::open(&path, IDENTITY).unwrap();
    assert!(matches!(Builder::open(&path, IDENTITY), Err(OpenError::InUse { .. })));
    drop(b);
    let (mut b, _): (Builder<Folder>, _) = Builder::open(&path, IDENTITY).unwrap();
    b.append(&receipt(0, 0, model(0), 1)).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
}

/// What the remedy of a lost folder says.
#[test]
fn a_lost_folder_is_built_again_from_the_nodes_own_receipts() {
    let (mut b, _) = with((0..900).filter(|n| n % 9 != 4));
    let cuts = [
        Terms { in_flight: Some(300), ..Terms::default() },
        Terms { total_max: 2500, ..Terms::default() },
        Terms::default(),
    ];
    for (epoch, terms) in (0..).zip(cuts) {
        b.seal(epoch, &terms).unwrap();
        b.posted(epoch, POSTING).unwrap();
    }
    let (mut again, _) = with((0..900).rev().filter(|n| n % 9 != 4));
    for entry in b.batches() {
        let was = &entry.batch;
        let terms = Terms { first: Some(was.first), count_max: was.count, ..Terms::default() };
        let built = again.seal(was.epoch, &terms).unwrap();
        assert_eq!((built.root, built.tally_root, &built.shares), (was.root, was.tally_root, &was.shares));
        again.posted(was.epoch, POSTING).unwrap();
    }
    assert_eq!(again.proof(455).unwrap(), b.proof(455).unwrap());
}
