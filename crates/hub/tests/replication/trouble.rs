//! Random trouble under a seed. `ASSAY_SEEDS` says how many worlds; a failure names its seed.

use assay_hub::replication::{DEAD_AFTER_S, HostId, Intent, Keeping, Part, Release};

use crate::world::{IDLE_MAX, STEP_S, Trust, World};
use crate::{GIB, blob, copies, shards};

const RELEASES: u64 = 6;

/// The seeds to try from `first`: `usual` of them, or as many as `ASSAY_SEEDS` says.
fn seeds(first: u64, usual: u64) -> std::ops::Range<u64> {
    first..first + std::env::var("ASSAY_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(usual)
}

/// What is there in the end is what was asked, once each, and nobody is on the way.
pub(crate) fn check_settled(world: &World, release: &Release, seed: u64) {
    let parts = world.parts(release.blob());
    let holders: usize = parts.values().sum();
    match release.keeping() {
        Keeping::Copies(asked) => {
            assert_eq!(parts.get(&Part::Whole), Some(&usize::from(asked)), "seed {seed}: {release:?}")
        }
        Keeping::Shards { code, repair_at } => {
            assert!(holders > usize::from(repair_at), "seed {seed}: {parts:?}");
            assert_eq!(holders, parts.len(), "seed {seed}: {parts:?}");
            assert!(
                holders <= usize::from(code.shards()) && !parts.contains_key(&Part::Whole),
                "seed {seed}"
            );
        }
    }
}

fn random_world(seed: u64, trust: Trust) -> World {
    let mut world = World::new(seed, trust);
    world.releases = (0..3).map(|i| copies(i, 2 + i as u8)).collect();
    world.releases.extend([shards(3, 2, 4, 3), shards(4, 3, 6, 4), shards(5, 1, 2, 1)]);
    assert_eq!(world.releases.len() as u64, RELEASES);
    let hosts: Vec<HostId> = (0..12)
        .map(|_| {
            let capacity = (2 + world.random.below(12)) * GIB;
            world.join(capacity)
        })
        .collect();
    // Everything begins with a publisher who keeps it whole.
    for (i, host) in (0..RELEASES).zip(hosts) {
        world.give(host, blob(i), Part::Whole);
    }
    world
}

/// Now and then one thing goes wrong, or right again.
fn trouble(world: &mut World, lies: &mut u64) {
    match world.random.below(400) {
        0..10 => {
            let capacity = world.random.below(12) * GIB;
            world.join(capacity);
        }
        10..12 if world.nodes.len() > 10 => {
            let host = world.any();
            world.die(host);
        }
        20..50 => {
            let host = world.any();
            world.nodes.get_mut(&host).unwrap().up ^= true;
        }
        50..60 => {
            let host = world.any();
            let idle = world.nodes.values().filter(|node| node.idle).count();
            let node = world.nodes.get_mut(&host).unwrap();
            node.idle = !node.idle && idle < IDLE_MAX;
        }
        60..65 => world.nodes.values_mut().for_each(|node| node.side = 0),
        65..68 => {
            let mut sides = world.random.below(u64::MAX);
            for node in world.nodes.values_mut() {
                node.side = (sides & 1) as u8;
                sides = sides.rotate_right(1);
            }
        }
        70..90 => {
            // It says that it keeps what it never had.
            let host = world.any();
            let i = world.random.below(RELEASES);
            let part = match world.releases[i as usize].keeping() {
                Keeping::Copies(_) => Part::Whole,
                Keeping::Shards { code, .. } => {
                    Part::Shard(world.random.below(u64::from(code.shards())) as u8)
                }
            };
            let node = world.nodes.get_mut(&host).unwrap();
            if !node.truth.contains_key(&blob(i)) {
                node.says.insert(blob(i), (part, Intent::Keeps));
                *lies += 1;
            }
        }
        90..94 => {
            // It goes on saying that it keeps what its disk lost, unless that was all there is: such a loss is nobody's fault.
            let host = world.any();
            let release = world.releases[world.random.below(RELEASES) as usize];
            let lost = world.nodes.get_mut(&host).unwrap().truth.remove(&release.blob());
            match lost {
                Some(part) if !world.restorable(&release) => {
                    world.nodes.get_mut(&host).unwrap().truth.insert(release.blob(), part);
                }
                lost => *lies += u64::from(lost.is_some()),
            }
        }
        100..102 => world.challenge(),
        _ => {}
    }
    world.step();
}

#[test]
fn after_any_trouble_every_release_has_exactly_its_copies() {
    let seeds = seeds(0, 14);
    let tried = seeds.end - seeds.start;
    let (mut checked, mut lies, mut fetched, mut dropped) = (0, 0, 0, 0);
    let (mut refused_lies, mut refused_silence) = (0, 0);
    for seed in seeds {
        let mut world = random_world(seed, Trust::Asks);
        world.arrive = 60 + world.random.below(41);
        for _ in 0..70 {
            world.step();
        }
        for _ in 0..400 {
            trouble(&mut world, &mut lies);
        }

        // Changes stop: lies are found, silence ends, enough hosts have room.
        for node in world.nodes.values_mut() {
            (node.up, node.side) = (true, 0);
        }
        world.arrive = 100;
        for _ in 0..8 {
            world.join(20 * GIB);
        }
        assert!(world.settle(|_| ()), "seed {seed} does not settle");
        for release in world.releases.iter().filter(|release| world.restorable(release)) {
            check_settled(&world, release, seed);
            checked += 1;
        }
        (fetched, dropped) = (fetched + world.fetched, dropped + world.dropped);
        refused_lies += world.refused_lies;
        refused_silence += world.refused_silence;
    }
    // The seeds have tried what they should: losses are few; moves, lies and refused drops many.
    println!(
        "{tried} worlds: {checked} releases, {fetched} fetched, {dropped} dropped, {lies} lies, refused {refused_lies} {refused_silence}"
    );
    assert!(checked >= 5 * tried, "{checked} of {RELEASES} x {tried}");
    assert!(fetched >= 40 * tried && dropped >= 10 * tried, "{fetched} {dropped}");
    assert!(lies >= 5 * tried, "{lies}");
    assert!(refused_lies >= 4 * tried && refused_silence >= tried / 4, "{refused_lies} {refused_silence}");
}

#[test]
fn one_death_at_a_time_loses_nothing_even_if_facts_are_believed() {
    for seed in seeds(100, 4) {
        let mut world = random_world(seed, Trust::Believes);
        for _ in 0..6 {
            world.join(20 * GIB);
        }
        assert!(world.settle(|_| ()), "seed {seed} does not settle");
        for _ in 0..5 {
            let host = world.any();
            world.die(host);
            world.join(20 * GIB);
            for _ in 0..2 * DEAD_AFTER_S / STEP_S + world.random.below(60) {
                world.step();
            }
            assert!(world.releases.iter().all(|release| world.restorable(release)), "seed {seed}");
        }
        assert!(world.settle(|_| ()), "seed {seed} does not settle");
        for release in &world.releases {
            check_settled(&world, release, seed);
        }
    }
}
