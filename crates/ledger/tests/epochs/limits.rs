//! Every limit, and one past it.

use assay_core::id::ModelRoot;
use assay_ledger::epochs::limits::{BATCHES_MAX, GROUP_MAX, SEQUENCE_MAX, SHARES_MAX, SPAN_MAX};
use assay_ledger::epochs::{AppendError, Builder, End, SealError, Terms};

use crate::naive::{IDENTITY, POSTING, model, receipt};
use crate::power::Power;

fn builder() -> Builder<Power> {
    Builder::on(Power::default(), IDENTITY).unwrap().0
}

#[test]
fn a_batch_has_sixteen_models_with_fees_and_the_next_epoch_the_seventeenth() {
    let mut b = builder();
    let limit = SHARES_MAX as u64;
    for i in 0..limit {
        b.append(&receipt(i, 0, model(i), 5)).unwrap();
    }
    // Free receipts and models that are there already are no more models.
    b.append(&receipt(limit, 0, model(99), 0)).unwrap();
    b.append(&receipt(limit + 1, 0, model(3), 5)).unwrap();
    b.append(&receipt(limit + 2, 0, model(limit), 5)).unwrap();
    b.append(&receipt(limit + 3, 0, model(0), 5)).unwrap();
    let batch = b.seal(0, &Terms::default()).unwrap();
    assert_eq!((batch.count, batch.shares.len(), batch.end), (limit as u32 + 2, SHARES_MAX, End::Models));
    assert_eq!(batch.total(), 5 * (limit + 1));
    b.posted(0, POSTING).unwrap();
    let late = b.seal(1, &Terms::default()).unwrap();
    assert_eq!((late.first, late.count, late.shares.len(), late.end), (limit + 2, 2, 2, End::All));
}

#[test]
fn a_group_has_its_limit() {
    let mut b = builder();
    let mut receipts: Vec<_> = (0..GROUP_MAX as u64).map(|n| receipt(n, 0, model(0), 1)).collect();
    assert_eq!(b.append_many(&receipts).unwrap().new, GROUP_MAX);
    receipts.push(receipt(GROUP_MAX as u64, 0, model(0), 1));
    assert!(
        matches!(b.append_many(&receipts), Err(AppendError::TooMany { given }) if given == GROUP_MAX + 1)
    );
    assert_eq!(b.append_many(&receipts[1..]).unwrap().new, 1);
    assert_eq!(b.append_many(&[]).unwrap().new, 0);
}

#[test]
fn numbers_keep_together() {
    let mut b = builder();
    let r = |n| receipt(n, 0, model(0), 1);
    b.append(&r(1000)).unwrap();
    let far = 1000 + SPAN_MAX;
    assert!(matches!(b.append(&r(far)), Err(AppendError::TooFar { from: 1000, .. })));
    b.append(&r(far - 1)).unwrap();
    assert!(matches!(b.append(&r(999)), Err(AppendError::TooFar { sequence: 999, .. })));
    // All at once, and nothing of it.
    assert!(b.append_many(&[r(1001), r(999)]).is_err());
    assert_eq!(b.waiting(), 2);
    // A batch cannot reach it, and so the batch is full of gaps and the one after goes on.
    let batch = b.seal(0, &Terms { count_max: 300, ..Terms::default() }).unwrap();
    assert_eq!((batch.count, batch.gaps, batch.end), (300, 299, End::Count));
    b.posted(0, POSTING).unwrap();
    let gaps = b.seal(1, &Terms { count_max: 300, ..Terms::default() }).unwrap();
    assert_eq!((gaps.first, gaps.count, gaps.gaps, gaps.shares.len()), (1300, 300, 300, 0));
    b.append(&r(1600 + SPAN_MAX - 1)).unwrap();
    assert!(matches!(b.append(&r(1600 + SPAN_MAX)), Err(AppendError::TooFar { from: 1600, .. })));
    let proof = b.opening(1301).unwrap();
    assert_eq!((proof.leaf.leaf, proof.tally.tally.len()), (None, 0));
}

#[test]
fn the_largest_number_is_kept_and_sealed() {
    let mut b = builder();
    let r = |n| receipt(n, 0, model(0), 1);
    assert!(matches!(b.append(&r(SEQUENCE_MAX + 1)), Err(AppendError::TooLarge { .. })));
    b.append(&r(SEQUENCE_MAX)).unwrap();
    let batch = b.seal(u64::MAX, &Terms::default()).unwrap();
    assert_eq!((batch.first, batch.count), (SEQUENCE_MAX, 1));
    assert_eq!(b.proof(SEQUENCE_MAX).unwrap().proof.count, 1);
}

#[test]
fn batches_have_their_limit_until_some_are_pruned() {
    let mut b = builder();
    let receipts: Vec<_> = (0..=BATCHES_MAX as u64).map(|n| receipt(n, 0, model(0), 1)).collect();
    b.append_many(&receipts).unwrap();
    let one = Terms { count_max: 1, ..Terms::default() };
    for epoch in 0..BATCHES_MAX as u64 {
        b.seal(epoch, &one).unwrap();
        b.posted(epoch, POSTING).unwrap();
    }
    let epoch = BATCHES_MAX as u64;
    assert!(matches!(b.seal(epoch, &one), Err(SealError::TooManyBatches)));
    b.settled(0).unwrap();
    assert_eq!(b.prune(1).unwrap(), 1);
    b.seal(epoch, &one).unwrap();
}

#[test]
fn fees_stop_at_the_pot_and_at_64_bits() {
    let mut b = builder();
    let m = model(0);
    let fees = [(0, 40), (1, 60), (2, 1), (3, u64::MAX - 1), (4, 1)];
    for (n, fee) in fees {
        b.append(&receipt(n, 0, m, fee)).unwrap();
    }
    let none = b.seal(0, &Terms { total_max: 39, ..Terms::default() });
    assert!(matches!(none, Err(SealError::Nothing { at: 0, end: End::Total })));
    let batch = b.seal(0, &Terms { total_max: 100, ..Terms::default() }).unwrap();
    assert_eq!((batch.count, batch.total(), batch.end), (2, 100, End::Total));
    b.posted(0, POSTING).unwrap();
    let batch = b.seal(1, &Terms::default()).unwrap();
    assert_eq!((batch.count, batch.total(), batch.end), (2, u64::MAX, End::Total));
    let unpaid = receipt(5, 0, ModelRoot::ZERO, 1);
    assert!(matches!(b.append(&unpaid), Err(AppendError::NoModel { sequence: 5 })));
    b.append(&receipt(5, 0, ModelRoot::ZERO, 0)).unwrap();
}
