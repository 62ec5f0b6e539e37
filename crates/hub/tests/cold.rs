//! Copies are the default; shards are chosen exactly where the numbers of docs/hub.md say so.
#![allow(clippy::unwrap_used)]

use assay_hub::blob::BlobHash;
use assay_hub::replication::{
    COLD_BYTES_MIN, COLD_CODE, COLD_COPIES_MAX, COLD_FETCHES_A_YEAR_MAX, COPIES_MAX, Demand, Keeping,
    READS_OF_A_STORED_YEAR, Release,
};

const COLD: Keeping = Keeping::Shards { code: COLD_CODE, repair_at: 11 };
/// A release as cold as may be, in a network whose hosts are silent once in two years.
const STILL: Demand = Demand {
    bytes: COLD_BYTES_MIN,
    copies: COLD_COPIES_MAX,
    fetches_a_year: COLD_FETCHES_A_YEAR_MAX,
    silent_every_days: 730,
};

#[test]
fn each_limit_holds_at_it_and_one_past_it() {
    assert_eq!(STILL.keeping(), Ok(COLD));
    assert_eq!(Demand { bytes: COLD_BYTES_MIN - 1, ..STILL }.keeping(), Ok(Keeping::Copies(3)));
    assert_eq!(Demand { copies: COLD_COPIES_MAX + 1, ..STILL }.keeping(), Ok(Keeping::Copies(4)));
    let often = Demand { fetches_a_year: COLD_FETCHES_A_YEAR_MAX + 1, ..STILL };
    assert_eq!(often.keeping(), Ok(Keeping::Copies(3)));
    assert_eq!(Demand { copies: COPIES_MAX, ..STILL }.keeping(), Ok(Keeping::Copies(COPIES_MAX)));
    for copies in [0, COPIES_MAX + 1] {
        assert_eq!(Demand { copies, ..STILL }.keeping().unwrap_err().code(), "release_copies");
    }
    let most = Demand { bytes: u64::MAX, silent_every_days: u32::MAX, fetches_a_year: 0, copies: 3 };
    assert_eq!(most.keeping(), Ok(COLD));
}

#[test]
fn shards_are_chosen_where_they_cost_less_and_nowhere_else() {
    for copies in 1..=COLD_COPIES_MAX {
        for silent_every_days in 0..3000 {
            let demand = Demand { copies, silent_every_days, ..STILL };
            let year = 365.0 / f64::from(silent_every_days.max(1));
            let cost = |storage: f64, parts: f64| storage * f64::from(READS_OF_A_STORED_YEAR) + parts * year;
            let (whole, cut) = (cost(f64::from(copies), f64::from(copies)), cost(1.5, 12.0));
            if (whole - cut).abs() > 1e-9 {
                let expected = if cut < whole { COLD } else { Keeping::Copies(copies) };
                assert_eq!(demand.keeping(), Ok(expected), "{demand:?}");
            }
        }
    }
    // With hosts that are silent twice a year nothing is cold.
    assert_eq!(Demand { silent_every_days: 180, ..STILL }.keeping(), Ok(Keeping::Copies(3)));
}

#[test]
fn what_is_chosen_is_a_way_to_keep_a_release() {
    for silent_every_days in [0, 180, 730] {
        let keeping = Demand { silent_every_days, ..STILL }.keeping().unwrap();
        assert!(Release::new(BlobHash::of(b"cold"), COLD_BYTES_MIN / 8, keeping).is_ok());
    }
}
