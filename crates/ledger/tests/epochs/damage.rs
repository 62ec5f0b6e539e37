//! Flipped bits, shortened and missing files: an error that names the file, or the right answer; never another one.

use assay_ledger::epochs::limits::GROUP_MAX;
use assay_ledger::epochs::{Builder, Leaf, ProofError, Remedy, StorageError, Terms};

use crate::naive::{IDENTITY, NaiveBatch, POSTING, choose, model, receipt};
use crate::power::{Draws, Power, Sim};

/// A folder with a batch of 300 numbers, and receipts 300 to 319 waiting, the last one flushed alone.
fn folder() -> (Sim, NaiveBatch) {
    let power = Power::default();
    let (mut b, _) = Builder::on(power.clone(), IDENTITY).unwrap();
    let r = |n: u64| receipt(n, 0, model(n % 3), n % 4);
    let numbers: Vec<u64> = (0..319).filter(|n| n % 11 != 5).collect();
    for run in numbers.chunks(50) {
        b.append_many(&run.iter().map(|n| r(*n)).collect::<Vec<_>>()).unwrap();
    }
    b.append(&r(319)).unwrap();
    let kept = numbers.iter().chain([&319]).map(|n| (*n, Leaf::of(&r(*n)))).collect();
    let terms = Terms { count_max: 300, ..Terms::default() };
    let (first, leaves, end) = choose(&kept, None, 0, &terms).unwrap();
    let naive = NaiveBatch::of(0, first, leaves, end);
    assert_eq!(b.seal(0, &terms).unwrap(), naive.batch);
    b.posted(0, POSTING).unwrap();
    (power.sim(), naive)
}

fn named(e: &StorageError, file: &str) {
    match e {
        StorageError::Damaged { file: found, .. } => assert_eq!(found, file, "{e}"),
        StorageError::Disk { file: found, .. } => assert_eq!(found, file, "{e}"),
        StorageError::Stopped => panic!("nothing was written"),
    }
}

/// What came of a damaged folder.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    /// The last group alone was taken for one that was never acknowledged.
    Torn,
    Whole,
}

fn try_out(sim: Sim, file: &str, naive: &NaiveBatch, draws: &mut Draws) -> Outcome {
    let whole_waiting = (300..320).filter(|n| n % 11 != 5).count() as u64;
    let (mut b, opened) = match Builder::on(Power::of(sim), IDENTITY) {
        Ok(opened) => opened,
        Err(e) => {
            named(&e, file);
            return Outcome::Refused;
        }
    };
    let mut refused = !opened.damaged.is_empty();
    for n in [0, 299, 255, 256, draws.below(300) as u64, draws.below(300) as u64] {
        match naive.check(&b, n) {
            Ok(()) => {}
            Err(ProofError::Storage(e)) => {
                named(&e, file);
                refused = true;
            }
            Err(e) => panic!("{e}"),
        }
    }
    if refused {
        b.repair(0).unwrap();
        for n in [0, 255, 256, 299] {
            naive.check(&b, n).unwrap();
        }
        return Outcome::Refused;
    }
    if let Some(torn) = opened.torn {
        assert_eq!(torn.file, file);
        assert_eq!(b.waiting(), whole_waiting - 1, "only what was flushed alone: {torn:?}");
        assert_eq!(b.append(&receipt(319, 0, model(319 % 3), 319 % 4)).unwrap().new, 1);
        return Outcome::Torn;
    }
    assert_eq!(b.waiting(), whole_waiting);
    Outcome::Whole
}

#[test]
fn a_flipped_bit_is_found_or_does_no_harm() {
    let (sim, naive) = folder();
    let mut draws = Draws(1);
    for (file, bytes) in sim.all() {
        let (mut refused, mut torn, mut whole) = (0, 0, 0);
        for at in (0..bytes.len()).step_by(61).chain([bytes.len() - 1]) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << draws.below(8);
            match try_out(sim.with(&file, bad), &file, &naive, &mut draws) {
                Outcome::Refused => refused += 1,
                Outcome::Torn => torn += 1,
                Outcome::Whole => whole += 1,
            }
        }
        let journal = file.starts_with("journal");
        assert_eq!(torn > 0, journal, "{file}: {torn}");
        // Nodes that no proof asked for.
        assert!(whole <= if file.starts_with("batch") { 2 } else { 0 }, "{file}: {whole}");
        assert!(refused > 3, "{file}: {refused}");
    }
}

#[test]
fn a_shortened_file_is_found_or_was_torn() {
    let (sim, naive) = folder();
    let mut draws = Draws(2);
    for (file, bytes) in sim.all() {
        for size in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            let cut = sim.with(&file, bytes[..size].to_vec());
            if !file.starts_with("journal") {
                assert_eq!(try_out(cut, &file, &naive, &mut draws), Outcome::Refused, "{file} {size}");
                continue;
            }
            // Nothing tells a journal that lost its end from one that was never longer; it says what it cut off a record.
            let Ok((b, opened)) = Builder::on(Power::of(cut), IDENTITY) else { continue };
            assert_eq!(opened.torn.is_some(), size % 100 != 0, "{size}");
            assert!(b.waiting() < 19);
            naive.check(&b, 7).unwrap();
        }
        let missing = Builder::on(Power::of(sim.without(&file)), IDENTITY);
        match missing {
            Err(e) => {
                let names = if file.starts_with("journal") { "the journals" } else { file.as_str() };
                named(&e, names);
            }
            Ok((mut b, opened)) => {
                assert_eq!((file.starts_with("batch"), opened.damaged), (true, vec![0]));
                assert!(matches!(b.proof(3), Err(ProofError::Storage(StorageError::Disk { .. }))));
                b.repair(0).unwrap();
                naive.check(&b, 3).unwrap();
            }
        }
    }
}

#[test]
fn what_lies_before_a_flushed_group_is_never_taken_for_torn() {
    let power = Power::default();
    let (mut b, _) = Builder::on(power.clone(), IDENTITY).unwrap();
    let group: Vec<_> = (0..GROUP_MAX as u64).map(|n| receipt(n, 0, model(0), 1)).collect();
    b.append_many(&group).unwrap();
    b.append(&receipt(GROUP_MAX as u64, 0, model(0), 1)).unwrap();
    let sim = power.sim();
    let file = "journal-0000000001";
    let (_, bytes) = sim.all().into_iter().find(|(name, _)| name == file).unwrap();
    let mut bad = bytes.clone();
    bad[100 * GROUP_MAX + 50] ^= 1;
    let refused = Builder::on(Power::of(sim.with(file, bad)), IDENTITY).unwrap_err();
    assert!(matches!(refused, StorageError::Damaged { remedy: Remedy::Rebuild, .. }), "{refused}");
    assert!(refused.to_string().contains("record 16383"), "{refused}");
    // What is longer than a group was not written by us.
    let long = [bytes.as_slice(), &vec![0; 100 * (GROUP_MAX + 2)]].concat();
    assert!(Builder::on(Power::of(sim.with(file, long)), IDENTITY).is_err());
}
