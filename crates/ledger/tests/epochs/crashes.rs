//! The power is cut in every step of a script, and again while what was left is opened: whoever tries again gets what an uninterrupted run gets.

use std::collections::BTreeMap;

use assay_core::receipt::SignedReceipt;
use assay_ledger::epochs::limits::{GROUP_MAX, JOURNAL_RECORDS};
use assay_ledger::epochs::{
    AppendError, Batch, Builder, Leaf, ProgressError, RepairError, SealError, StorageError, Terms,
};

use crate::naive::{IDENTITY, NaiveBatch, POSTING, choose, model, receipt};
use crate::power::{Draws, Power, Sim};

#[derive(Clone, Debug)]
pub enum Act {
    Append(Vec<SignedReceipt>),
    Seal(u64, Terms),
    Posted(u64),
    Unposted(u64),
    Missed(u64),
    Settled(u64),
    Prune(u64),
    Repair(u64),
}

/// What an act did, if the disk let it.
#[derive(Debug)]
pub enum Done {
    Fine,
    /// It had been done already, before the power was cut.
    Already,
    /// There was nothing to seal.
    Nothing,
}

fn storage_only(e: impl std::fmt::Debug) -> ! {
    panic!("{e:?}")
}

/// Does one thing; only the disk may refuse.
pub fn perform(b: &mut Builder<Power>, act: &Act) -> Result<Done, StorageError> {
    match act {
        Act::Append(receipts) => match b.append_many(receipts) {
            Ok(a) if a.new == 0 => Ok(Done::Already),
            Ok(a) => {
                assert_eq!(a.new + a.known, receipts.len());
                Ok(Done::Fine)
            }
            Err(AppendError::Storage(e)) => Err(e),
            Err(e) => storage_only(e),
        },
        Act::Seal(epoch, terms) => match b.seal(*epoch, terms) {
            Ok(_) => Ok(Done::Fine),
            Err(SealError::Nothing { .. }) => Ok(Done::Nothing),
            Err(SealError::Storage(e)) => Err(e),
            Err(e) => storage_only(e),
        },
        Act::Repair(epoch) => match b.repair(*epoch) {
            Ok(()) => Ok(Done::Fine),
            Err(RepairError::Storage(e)) => Err(e),
            Err(e) => storage_only(e),
        },
        Act::Prune(before) => b.prune(*before).map(|n| if n == 0 { Done::Already } else { Done::Fine }),
        Act::Posted(e) => turned(b.posted(*e, POSTING)),
        Act::Unposted(e) => turned(b.unposted(*e)),
        Act::Settled(e) => turned(b.settled(*e)),
        Act::Missed(e) => match b.missed(*e) {
            Err(ProgressError::NoBatch { .. }) => Ok(Done::Already),
            other => turned(other),
        },
    }
}

fn turned(result: Result<(), ProgressError>) -> Result<Done, StorageError> {
    match result {
        Ok(()) => Ok(Done::Fine),
        Err(ProgressError::Storage(e)) => Err(e),
        Err(e) => storage_only(e),
    }
}

/// Opens what a power cut left, or the end of the process alone; the power may be cut again while it does.
pub fn recover(power: &Power, draws: &mut Draws) -> Builder<Power> {
    loop {
        if draws.one_in(3) {
            power.kill();
        } else {
            power.cycle(draws);
        }
        power.cut_after(draws.one_in(2).then(|| draws.below(6) as u64));
        match Builder::on(power.clone(), IDENTITY) {
            Ok((b, opened)) => {
                assert!(opened.damaged.is_empty());
                power.cut_after(None);
                return b;
            }
            Err(StorageError::Disk { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

fn group(numbers: impl IntoIterator<Item = u64>, epoch: u64) -> Vec<SignedReceipt> {
    numbers.into_iter().map(|n| receipt(n, epoch, model(n % 3), n % 5 * 100)).collect()
}

fn script() -> Vec<Act> {
    let all = Terms::default();
    vec![
        Act::Append(group([12, 10, 11], 0)),
        Act::Append(group(14..320, 0)),
        Act::Append(group([322, 321], 1)),
        Act::Seal(0, all),
        Act::Append(group([330], 1)),
        Act::Missed(0),
        Act::Seal(0, Terms { count_max: 300, ..all }),
        Act::Append(group([323, 324], 0)),
        Act::Posted(0),
        Act::Unposted(0),
        Act::Posted(0),
        Act::Append(group(340..420, 1)),
        Act::Seal(1, Terms { in_flight: Some(400), ..all }),
        Act::Repair(0),
        Act::Posted(1),
        Act::Settled(0),
        Act::Append(group(430..432, 2)),
        Act::Prune(1),
        Act::Settled(1),
        Act::Seal(3, all),
        Act::Append(group([433], 3)),
    ]
}

/// Runs a script; the power is cut once, in the step after `cut_after`.
fn run(script: &[Act], start: &Sim, cut_after: Option<u64>, draws: &mut Draws) -> (Builder<Power>, Power) {
    let power = Power::of(start.clone());
    power.cut_after(cut_after);
    let mut b = match Builder::on(power.clone(), IDENTITY) {
        Ok((b, _)) => b,
        Err(_) => recover(&power, draws),
    };
    let mut again = false;
    for act in script {
        while let Err(e) = perform(&mut b, act) {
            assert!(matches!(e, StorageError::Disk { .. }), "{e}");
            assert!(matches!(perform(&mut b, act), Err(StorageError::Stopped)), "{act:?}");
            b = recover(&power, draws);
            again = draws.one_in(2);
        }
        // What was done again is done, even if the power is cut right after.
        if std::mem::take(&mut again) {
            power.cycle(draws);
            b = Builder::on(power.clone(), IDENTITY).unwrap().0;
        }
    }
    (b, power)
}

/// The batches of the script, by the naive rules.
fn expected() -> Vec<NaiveBatch> {
    let mut leaves: BTreeMap<u64, Leaf> = BTreeMap::new();
    for act in script() {
        if let Act::Append(receipts) = act {
            leaves.extend(receipts.iter().map(|r| (r.receipt.sequence, Leaf::of(r))));
        }
    }
    let mut batches: Vec<NaiveBatch> = Vec::new();
    let all = Terms::default();
    let of_epoch =
        [(0, Terms { count_max: 300, ..all }), (1, Terms { in_flight: Some(400), ..all }), (3, all)];
    for (epoch, terms) in of_epoch {
        let next = batches.last().map(|b| b.batch.next());
        // The last receipt comes after the last sealing.
        let known: BTreeMap<u64, Leaf> =
            leaves.iter().filter(|(n, _)| **n != 433).map(|(n, l)| (*n, *l)).collect();
        let (first, leaves, end) = choose(&known, next, epoch, &terms).unwrap();
        batches.push(NaiveBatch::of(epoch, first, leaves, end));
    }
    batches
}

/// As on a disk that is full for a while, under a process that goes on.
#[test]
fn whoever_reads_a_failed_disk_again_gets_the_same() {
    let (script, start) = (script(), Sim::default());
    let (whole, power) = run(&script, &start, None, &mut Draws(0));
    let (entries, steps) = (whole.batches().to_vec(), power.steps());
    let mut failed = 0;
    for fails_after in 0..steps {
        let power = Power::of(start.clone());
        let (mut b, _) = Builder::on(power.clone(), IDENTITY).unwrap();
        power.cut_after(Some(fails_after));
        for act in &script {
            while perform(&mut b, act).is_err() {
                failed += 1;
                assert!(b.is_stopped() && b.reopen().is_err() && b.is_stopped(), "it fails still");
                power.cut_after(None);
                b.reopen().unwrap();
                assert!(!b.is_stopped());
            }
        }
        assert_eq!((b.batches(), b.waiting(), b.next()), (&entries[..], 1, Some(432)), "{fails_after}");
    }
    assert!(failed > 60, "{failed}");
}

#[test]
fn whoever_tries_again_after_a_power_cut_gets_the_same() {
    let (script, start) = (script(), Sim::default());
    let (whole, power) = run(&script, &start, None, &mut Draws(0));
    let (entries, steps) = (whole.batches().to_vec(), power.steps());
    let expected = expected();
    let batches: Vec<Batch> = entries.iter().map(|e| e.batch.clone()).collect();
    let of_naive: Vec<Batch> = expected[1..].iter().map(|b| b.batch.clone()).collect();
    assert_eq!(batches, of_naive, "the first is pruned");
    assert!(steps > 60, "{steps}");
    for cut_after in 0..steps {
        for seed in 0..6 {
            let mut draws = Draws(cut_after << 8 | seed);
            let (b, _) = run(&script, &start, Some(cut_after), &mut draws);
            assert_eq!(b.batches(), entries, "cut after {cut_after}, seed {seed}");
            assert_eq!((b.waiting(), b.next()), (1, Some(432)), "cut after {cut_after}, seed {seed}");
            for batch in &expected[1..] {
                for n in [batch.batch.first, batch.batch.next() - 1, batch.batch.first + 3] {
                    batch.check(&b, n).unwrap();
                }
            }
        }
    }
}

fn files(power: &Power) -> Vec<String> {
    power.sim().all().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_journal_that_is_full_is_followed_by_another() {
    let per_group = GROUP_MAX as u64;
    let groups = u64::from(JOURNAL_RECORDS) / per_group;
    let power = Power::default();
    let (mut b, _) = Builder::on(power.clone(), IDENTITY).unwrap();
    for g in 0..groups {
        b.append_many(&group(g * per_group..(g + 1) * per_group, 0)).unwrap();
    }
    assert_eq!(files(&power), ["journal-0000000001", "state"]);
    let start = power.sim();
    let opening = power.steps();
    let end = groups * per_group;
    let script = [
        Act::Append(group([end], 0)),
        Act::Seal(0, Terms::default()),
        Act::Posted(0),
        Act::Settled(0),
        Act::Append(group([end + 1], 1)),
        Act::Prune(1),
    ];
    let (whole, power) = run(&script[..2], &start, None, &mut Draws(0));
    assert_eq!(u64::from(whole.batches()[0].batch.count), end + 1);
    assert_eq!(whole.proof(end).unwrap().proof.count, end + 1);
    let names = ["batch-00000000000000000000", "journal-0000000001", "journal-0000000002", "state"];
    assert_eq!(files(&power), names);
    let sealed = power.steps() - opening;
    let (_, power) = run(&script, &start, None, &mut Draws(0));
    let all = power.steps() - opening;
    // Blocks of the batch's file are many and alike.
    for cut_after in (0..5).chain(sealed - 5..sealed + 1).chain(all - 9..all) {
        let mut draws = Draws(cut_after);
        let (b, power) = run(&script, &start, Some(cut_after), &mut draws);
        assert_eq!((b.batches().len(), b.waiting(), b.next()), (0, 1, Some(end + 1)), "{cut_after}");
        assert_eq!(files(&power), ["journal-0000000002", "state"], "what was pruned is gone");
    }
}
