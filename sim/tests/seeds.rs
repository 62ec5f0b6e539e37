//! Whole networks under one seed each: two hundred of them hold, the same one gives the same lines, and every bug that is planted is found.
//!
//! `ASSAY_SIM_SEEDS=N` plays N seeds instead of two hundred, `ASSAY_SIM_FROM=S` begins with S.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use assay_core::keccak::keccak256;
use assay_sim::network::{Broken, Mutant, Options, Summary, play};

/// Seeds that a planted bug has to be found in.
const SEEDS_FOR_MUTANTS: u64 = 40;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn quietly(seed: u64, options: Options) -> Result<Summary, Box<Broken>> {
    play(seed, options, &mut |_| {})
}

#[test]
fn networks_hold_whatever_goes_wrong() {
    let (from, seeds) = (number("ASSAY_SIM_FROM", 0), number("ASSAY_SIM_SEEDS", 200));
    // Each network is played by one thread; several are played at a time.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let play_every = |first: u64| {
        (first..from + seeds).step_by(threads as usize).map(|seed| quietly(seed, Options::default()))
    };
    let played = std::thread::scope(|scope| {
        let playing: Vec<_> = (from..from + threads)
            .map(|first| scope.spawn(move || play_every(first).collect::<Vec<_>>()))
            .collect();
        playing.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for summary in played {
        let summary = summary.unwrap_or_else(|broken| panic!("{broken}"));
        summary.numbers.iter().for_each(|(name, n)| *sums.entry(name).or_default() += n);
    }
    println!("{seeds} seeds: {sums:?}");
    // Something did happen in them.
    let of = |name: &str| sums.get(name).copied().unwrap_or(0) / seeds;
    assert!(
        of("answers") > 60 && of("transactions") > 150 && sums["undone"] > 0 && sums["kills"] > 0,
        "{sums:?}"
    );
    if seeds >= 20 {
        assert!(
            sums["liars"] > 0 && sums["struck"] * 20 >= sums["liars"] * 19 && sums["lazy_penalised"] > 0,
            "{sums:?}"
        );
        // Disputes end in every way: by a ruling for either side, and by silence.
        let ways = ["ruled_for_defenders", "ruled_for_challengers", "timed_out"];
        assert!(ways.iter().all(|way| sums[way] > 0) && of("moves") > 10, "{sums:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_lines() {
    let hashed = |seed| {
        let mut lines = String::new();
        let played = play(seed, Options::default(), &mut |line| {
            lines.push_str(line);
            lines.push('\n');
        });
        (keccak256(&[lines.as_bytes()]), lines.lines().count() as u64, played)
    };
    let (first, again, other) = (hashed(7), hashed(7), hashed(8));
    assert_eq!(first, again);
    assert_ne!(first.0, other.0);
    assert_eq!(first.1, first.2.unwrap().events, "an event is one line");
}

/// A network in which nothing goes wrong and nobody lies answers everything.
#[test]
fn nothing_is_lost_where_nothing_goes_wrong() {
    let options = Options { faults: false, liars: false, ..Options::default() };
    let summary = quietly(1, options).unwrap_or_else(|broken| panic!("{broken}"));
    let n = &summary.numbers;
    assert_eq!((n["given_up"], n["struck"], n["undone"], n["kills"]), (0, 0, 0, 0), "{n:?}");
    assert!(n["answers"] > 60 && n["answers"] == n["charges"], "{n:?}");
}

/// Each planted bug is found by the invariant that is about it, says its seed, and is found again at the same event.
#[test]
fn every_planted_bug_is_found_and_replays() {
    let bugs: [(Mutant, &[&str]); 13] = [
        (Mutant::ForgetsTill, &["paid_is_claimed"]),
        (Mutant::SaysBeforeStoring, &["receipts_kept", "honest_unharmed"]),
        (Mutant::PostsTwice, &["nothing_refused"]),
        (Mutant::RevealsWrong, &["nothing_refused", "honest_unharmed"]),
        (Mutant::DisputesNothing, &["cheats_are_struck"]),
        (Mutant::ChargesAgain, &["charged_once"]),
        (Mutant::AsksStruck, &["struck_not_asked"]),
        (Mutant::TakesParts, &["charged_for_whole"]),
        (Mutant::AnswersNothing, &["honest_unharmed"]),
        (Mutant::DefendsWrong, &["honest_unharmed"]),
        (Mutant::DefendsNothing, &["honest_unharmed"]),
        (Mutant::PicksNoFurther, &["honest_unharmed", "cheats_are_struck"]),
        (Mutant::ComparesNothing, &["omissions_are_struck"]),
    ];
    for (mutant, names) in bugs {
        let options = Options { mutant: Some(mutant), ..Options::default() };
        let found = (0..SEEDS_FOR_MUTANTS).find_map(|seed| quietly(seed, options).err());
        let found = found.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?}: {found}");
        assert!(names.contains(&found.name), "{mutant:?} is found as {found}");
        assert!(found.to_string().contains(&format!("replay with: assay-sim network --seed {}", found.seed)));
        let mut last = String::new();
        let again = play(found.seed, options, &mut |line| line.clone_into(&mut last)).unwrap_err();
        assert_eq!((&again, last.as_str()), (&found, found.line.as_str()));
        // Without the bug, the same seed holds.
        quietly(found.seed, Options::default()).unwrap_or_else(|broken| panic!("{broken}"));
    }
}
