//! What keeping releases costs, simulated over the planner itself: repair traffic, time below what is asked, losses.
//!
//!     cargo run --release -p assay-hub --example replication [years] [seed] [five | frequent | usual]
//!
//! prints tables, then JSON.
//! Hosts die for good after exponentially distributed lifetimes, and each dead one is replaced by an empty one at once. In the second case they are
//! also away now and then, with their disks. All see the same facts, an hour old at most. A lost release is counted and published again.
#![allow(clippy::unwrap_used)]

mod markov;
mod replication_world;

use std::env;

use assay_hub::erasure::Code;
use assay_hub::replication::Keeping;
use markov::days_to_loss;
use replication_world::{Costs, DAY_S, HOUR_S, Hosts, World};
use serde_json::{Value, json};

const HOSTS: usize = 24;
const RELEASES: u64 = 8;
/// A silence is noticed at the first hour after four, and a fetch takes two: six and a half hours on average after a death.
const REPAIR_DAYS: f64 = 6.5 / 24.0;

const FREQUENT: Hosts =
    Hosts { lifetime_s: 5 * DAY_S, away_every_s: None, away_s: 0, tick_s: HOUR_S, fetch_s: 2 * HOUR_S };
const USUAL: Hosts = Hosts {
    lifetime_s: 180 * DAY_S,
    away_every_s: Some(20 * DAY_S),
    away_s: 12 * HOUR_S,
    tick_s: HOUR_S,
    fetch_s: 2 * HOUR_S,
};
const FIVE: Hosts =
    Hosts { lifetime_s: u64::MAX / 1000, away_every_s: None, away_s: 0, tick_s: 600, fetch_s: 1800 };

fn keepings() -> Vec<(String, Keeping)> {
    let mut keepings: Vec<_> =
        (2..=4).map(|copies| (format!("{copies} copies"), Keeping::Copies(copies))).collect();
    for (needed, shards) in [(4, 6), (8, 12), (10, 14)] {
        let code = Code::new(needed, shards).unwrap();
        for (how, repair_at) in [("eager", shards - 1), ("lazy", needed + (shards - needed - 1) / 2)] {
            let name = format!("{needed} of {shards}, {how} at {repair_at}");
            keepings.push((name, Keeping::Shards { code, repair_at }));
        }
    }
    keepings
}

/// Losses of a release in a year by the Markov chain.
fn expected(keeping: Keeping, hosts: Hosts) -> f64 {
    let lifetime = hosts.lifetime_s as f64 / DAY_S as f64;
    let days = match keeping {
        Keeping::Copies(copies) => days_to_loss(1, copies, copies - 1, lifetime, REPAIR_DAYS),
        Keeping::Shards { code, repair_at } => {
            days_to_loss(code.needed(), code.shards(), repair_at, lifetime, REPAIR_DAYS)
        }
    };
    365.0 / days
}

fn years(case: &str, hosts: Hosts, years: u64, seed: u64) -> Vec<Value> {
    println!("\n{case}: {HOSTS} hosts, {RELEASES} releases, {years} years");
    println!("kept as | read, blobs a year | short, % of time | losses | expected by the chain");
    let mut rows = Vec::new();
    for (name, keeping) in keepings() {
        let mut world = World::new(seed, hosts, HOSTS, RELEASES, keeping);
        let until_s = years * 365 * DAY_S;
        while world.now_s() < until_s {
            world.tick(until_s);
        }
        let release_years = (RELEASES * years) as f64;
        let Costs { read, short_s, losses } = world.costs;
        let read = read / release_years;
        let short = short_s as f64 / (release_years * 365.0 * DAY_S as f64);
        let chain = expected(keeping, hosts) * release_years;
        println!("{name} | {read:.1} | {:.2} | {losses} | {chain:.2e}", short * 100.0);
        rows.push(json!({
            "case": case, "kept_as": name, "release_years": release_years, "read_blobs_a_year": read, "short_share": short, "losses": losses, "losses_by_chain": chain,
        }));
    }
    rows
}

/// Hours until everything is whole again after two of five hosts disappeared at once.
fn two_of_five(seed: u64) -> Vec<Value> {
    println!("\ntwo of five hosts disappear, 20 releases, a fetch takes half an hour");
    println!("kept as | lost | hours until the last release is whole");
    let two_of_three = Keeping::Shards { code: Code::new(2, 3).unwrap(), repair_at: 2 };
    let mut rows = Vec::new();
    for (name, keeping) in
        [("2 copies", Keeping::Copies(2)), ("3 copies", Keeping::Copies(3)), ("2 of 3", two_of_three)]
    {
        let mut world = World::new(seed, FIVE, 5, 20, keeping);
        world.tick(FIVE.tick_s);
        world.lose_two();
        let begun = world.now_s();
        while !world.all_whole() {
            assert!(world.now_s() < begun + 5 * DAY_S, "not whole after five days");
            world.tick(world.now_s() + FIVE.tick_s);
        }
        let (hours, lost) = ((world.now_s() - begun) as f64 / HOUR_S as f64, world.costs.losses);
        println!("{name} | {lost} | {hours:.1}");
        rows.push(
            json!({ "case": "two of five", "kept_as": name, "losses": lost, "hours_until_whole": hours }),
        );
    }
    rows
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize, usual: u64| arguments.get(at).map_or(usual, |n| n.parse().expect("a number"));
    let (count, seed) = (number(0, 1).max(1), number(1, 1));
    let wants = |case: &str| arguments.get(2).is_none_or(|wanted| wanted == case);
    let mut rows = Vec::new();
    if wants("five") {
        rows.extend(two_of_five(seed));
    }
    if wants("frequent") {
        rows.extend(years("hosts live 5 days", FREQUENT, count, seed));
    }
    if wants("usual") {
        let case = "hosts live 180 days and are away for 12 hours each 20 days";
        rows.extend(years(case, USUAL, count, seed));
    }
    println!("\n{}", serde_json::to_string(&json!({ "seed": seed, "rows": rows })).unwrap());
}
