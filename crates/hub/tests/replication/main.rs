//! Without a coordinator, releases end with exactly the copies asked, whatever came before; nobody drops the last one; newcomers move
//! only their share.
#![allow(clippy::unwrap_used)]

mod trouble;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use assay_hub::blob::BlobHash;
use assay_hub::erasure::Code;
use assay_hub::replication::{
    COPIES_MAX, DEAD_AFTER_S, FRESH_S, HOSTS_MAX, Host, HostId, Intent, Keeping, LEAVE_NOTICE_S, PATIENCE_S,
    Part, PlanError, Planner, RELEASES_MAX, REPAIRS_MAX, Release, Source, Times, should_keep,
};
use trouble::check_settled;
use world::{Random, STEP_S, Trust, World};

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) fn blob(i: u64) -> BlobHash {
    BlobHash::of(&i.to_le_bytes())
}

pub(crate) fn copies(i: u64, copies: u8) -> Release {
    Release::new(blob(i), GIB, Keeping::Copies(copies)).unwrap()
}

pub(crate) fn shards(i: u64, needed: u8, shards: u8, repair_at: u8) -> Release {
    let code = Code::new(needed, shards).unwrap();
    Release::new(blob(i), GIB, Keeping::Shards { code, repair_at }).unwrap()
}

#[test]
fn a_host_that_comes_and_goes_causes_one_more_copy() {
    let mut world = World::new(1, Trust::Asks);
    world.releases = vec![copies(0, 3)];
    for _ in 0..10 {
        world.join(20 * GIB);
    }
    let publisher = world.any();
    world.give(publisher, blob(0), Part::Whole);
    assert!(world.settle(|_| ()));
    let holder = *world.nodes.iter().find(|(_, node)| node.truth.contains_key(&blob(0))).unwrap().0;
    let before = world.fetched;
    for _ in 0..10 {
        for up in [false, true] {
            world.nodes.get_mut(&holder).unwrap().up = up;
            for _ in 0..2 * DEAD_AFTER_S / STEP_S {
                world.step();
            }
        }
    }
    assert_eq!(world.fetched - before, 1);
    // Shorter silences cause nothing.
    assert!(world.settle(|_| ()));
    let before = (world.fetched, world.dropped);
    for _ in 0..10 {
        for up in [false, true] {
            world.nodes.get_mut(&holder).unwrap().up = up;
            for _ in 0..DEAD_AFTER_S / STEP_S - 1 {
                world.step();
            }
        }
    }
    assert_eq!((world.fetched, world.dropped), before);
}

#[test]
fn what_turns_cold_or_hot_is_kept_all_the_while() {
    let mut world = World::new(2, Trust::Asks);
    world.releases = vec![copies(0, 3)];
    for _ in 0..12 {
        world.join(20 * GIB);
    }
    let publisher = world.any();
    world.give(publisher, blob(0), Part::Whole);
    let settle = |world: &mut World| {
        assert!(world.settle(|world| assert!(world.restorable(&world.releases[0]))));
        check_settled(world, &world.releases[0], 2);
    };
    settle(&mut world);
    world.releases = vec![shards(0, 4, 6, 5)];
    settle(&mut world);
    assert_eq!(world.parts(blob(0)).len(), 6);
    // Somebody fetched it whole: now it can be asked for in copies.
    let host = world.join(20 * GIB);
    world.give(host, blob(0), Part::Whole);
    world.releases = vec![copies(0, 2)];
    settle(&mut world);
    assert_eq!(world.parts(blob(0)), BTreeMap::from([(Part::Whole, 2)]));
}

fn host(capacity: u64, seen_s: u64) -> Host {
    Host { capacity, left: capacity, seen_s, keeps: BTreeMap::new(), failed: BTreeSet::new() }
}

fn id(i: u32) -> HostId {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&i.to_le_bytes());
    HostId(bytes)
}

#[test]
fn a_newcomer_moves_only_its_share() {
    for n in [5u32, 20, 60] {
        let mut hosts: BTreeMap<HostId, Host> = (0..n).map(|i| (id(i), host(4096 * GIB, 0))).collect();
        let releases: Vec<Release> = (0..1000).map(|i| copies(i, 3)).collect();
        let before: Vec<_> =
            releases.iter().map(|release| should_keep(release, &hosts, Times::DEFAULT, 0)).collect();
        hosts.insert(id(n), host(4096 * GIB, 0));
        let mut moved = 0;
        for (release, before) in releases.iter().zip(before) {
            let after = should_keep(release, &hosts, Times::DEFAULT, 0);
            let new: Vec<_> = after.iter().filter(|host| !before.contains(host)).collect();
            assert!(new.is_empty() || new == [&id(n)], "only the newcomer gains");
            moved += new.len();
        }
        let share = 3000.0 / f64::from(n + 1);
        assert!((moved as f64 - share).abs() < 5.0 * share.sqrt(), "{moved} of 3000 moved to 1 of {}", n + 1);
    }
}

#[test]
fn hosts_are_asked_by_their_capacity() {
    let mut hosts: BTreeMap<HostId, Host> = (0..30).map(|i| (id(i), host(1000 * GIB, 0))).collect();
    hosts.insert(id(30), host(3000 * GIB, 0));
    let count =
        |host| (0..1000).filter(|i| should_keep(&copies(*i, 1), &hosts, Times::DEFAULT, 0) == [host]).count();
    let large = count(id(30));
    // Three of thirty-three.
    assert!((60..125).contains(&large), "{large}");
}

#[test]
fn the_most_endangered_comes_first_and_only_so_many_at_once() {
    let mut hosts: BTreeMap<HostId, Host> = (0..9).map(|i| (id(i), host(0, 0))).collect();
    let me = id(9);
    hosts.insert(me, host(100 * GIB, 0));
    let releases: Vec<Release> = (0..8).map(|i| copies(i, 9)).collect();
    for i in 0..8 {
        for holder in 0..=(i as u32 * 5 % 8) {
            let holder = hosts.get_mut(&id(holder)).unwrap();
            holder.keeps.insert(blob(i), (Part::Whole, Intent::Keeps));
        }
    }
    let plan = Planner::new(me, Times::DEFAULT).step(0, &releases, &hosts).unwrap();
    assert_eq!(plan.fetch.iter().map(|fetch| fetch.spare).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(plan.fetch.len(), REPAIRS_MAX);
    assert_eq!(plan.fetch[0].from, Source::Hosts(vec![id(0)]));
    // What does not fit is left out, at the byte.
    hosts.get_mut(&me).unwrap().left = 2 * GIB;
    assert_eq!(Planner::new(me, Times::DEFAULT).step(0, &releases, &hosts).unwrap().fetch.len(), 2);
    hosts.get_mut(&me).unwrap().left = 2 * GIB - 1;
    assert_eq!(Planner::new(me, Times::DEFAULT).step(0, &releases, &hosts).unwrap().fetch.len(), 1);
}

#[test]
fn times_hold_at_the_second() {
    // Three hosts, two copies asked: the third is needed when one has been silent for too long.
    let release = copies(0, 2);
    let all: BTreeMap<HostId, Host> = (0..3).map(|i| (id(i), host(9 * GIB, 0))).collect();
    let order = should_keep(&copies(0, 3), &all, Times::DEFAULT, 0);
    let mut hosts = all.clone();
    for holder in &order[..2] {
        hosts.get_mut(holder).unwrap().keeps.insert(blob(0), (Part::Whole, Intent::Keeps));
    }
    hosts.get_mut(&order[1]).unwrap().seen_s = DEAD_AFTER_S;
    let fetches = |now_s| {
        !Planner::new(order[2], Times::DEFAULT).step(now_s, &[release], &hosts).unwrap().fetch.is_empty()
    };
    assert!(!fetches(DEAD_AFTER_S) && fetches(DEAD_AFTER_S + 1));

    // It stands in for one that does not fetch.
    hosts = all.clone();
    hosts.get_mut(&order[0]).unwrap().keeps.insert(blob(0), (Part::Whole, Intent::Keeps));
    let mut planner = Planner::new(order[2], Times::DEFAULT);
    let mut fetches = |now_s| {
        hosts.values_mut().for_each(|host| host.seen_s = now_s);
        !planner.step(now_s, &[release], &hosts).unwrap().fetch.is_empty()
    };
    assert!(!fetches(5) && !fetches(4 + PATIENCE_S) && fetches(5 + PATIENCE_S));

    // One too many leaves after its notice, relying on fresh hosts only.
    hosts = all;
    for holder in &order {
        hosts.get_mut(holder).unwrap().keeps.insert(blob(0), (Part::Whole, Intent::Keeps));
    }
    let mut planner = Planner::new(order[2], Times::DEFAULT);
    let mut drops = |now_s: u64, age| {
        hosts.values_mut().for_each(|host| host.seen_s = now_s - age);
        let plan = planner.step(now_s, &[release], &hosts).unwrap();
        assert_eq!(plan.leave, [(blob(0), Part::Whole)]);
        plan.drop
    };
    let from = DEAD_AFTER_S;
    assert!(drops(from, 0).is_empty() && drops(from + LEAVE_NOTICE_S - 1, 0).is_empty());
    assert!(drops(from + LEAVE_NOTICE_S, FRESH_S + 1).is_empty());
    let drop = drops(from + LEAVE_NOTICE_S, FRESH_S);
    assert_eq!(drop[0].relies_on, order[..2]);
}

#[test]
fn while_somebody_keeps_the_whole_no_shard_is_waited_for() {
    let release = shards(0, 4, 6, 4);
    let mut hosts: BTreeMap<HostId, Host> = (0..7).map(|i| (id(i), host(9 * GIB, 0))).collect();
    let order = should_keep(&copies(0, 7), &hosts, Times::DEFAULT, 0);
    for index in 0..5 {
        let holder = hosts.get_mut(&order[usize::from(index)]).unwrap();
        holder.keeps.insert(blob(0), (Part::Shard(index), Intent::Keeps));
    }
    let fetch = |hosts: &BTreeMap<HostId, Host>| {
        Planner::new(order[5], Times::DEFAULT).step(0, &[release], hosts).unwrap().fetch
    };
    assert!(fetch(&hosts).is_empty(), "five are more than four: it waits");
    hosts.get_mut(&order[6]).unwrap().keeps.insert(blob(0), (Part::Whole, Intent::Leaves));
    let fetch = fetch(&hosts);
    assert_eq!(fetch[0].part, Part::Shard(5));
    assert_eq!(fetch[0].from, Source::Wholes(vec![order[6]]));
}

#[test]
fn facts_beyond_the_limits_are_refused() {
    let code = Code::new(4, 6).unwrap();
    let try_new = |keeping| Release::new(blob(0), GIB, keeping).map_err(|e| e.code());
    assert_eq!(try_new(Keeping::Copies(0)), Err("release_copies"));
    assert!(try_new(Keeping::Copies(COPIES_MAX)).is_ok());
    assert_eq!(try_new(Keeping::Copies(COPIES_MAX + 1)), Err("release_copies"));
    assert_eq!(try_new(Keeping::Shards { code, repair_at: 3 }), Err("release_repair_at"));
    assert!(try_new(Keeping::Shards { code, repair_at: 4 }).is_ok());
    assert!(try_new(Keeping::Shards { code, repair_at: 5 }).is_ok());
    assert_eq!(try_new(Keeping::Shards { code, repair_at: 6 }), Err("release_repair_at"));

    let mut hosts: BTreeMap<HostId, Host> = (0..HOSTS_MAX as u32).map(|i| (id(i), host(0, 0))).collect();
    let mut planner = Planner::new(id(0), Times::DEFAULT);
    assert!(planner.step(0, &[], &hosts).is_ok());
    hosts.insert(id(HOSTS_MAX as u32), host(0, 0));
    assert_eq!(planner.step(0, &[], &hosts), Err(PlanError::Hosts { got: HOSTS_MAX + 1 }));
    let few = BTreeMap::from([(id(0), host(0, 0))]);
    let releases = vec![copies(0, 1); RELEASES_MAX + 1];
    assert!(planner.step(0, &releases[1..], &few).is_ok());
    assert_eq!(planner.step(0, &releases, &few), Err(PlanError::Releases { got: RELEASES_MAX + 1 }));
    let e = Planner::new(id(1), Times::DEFAULT).step(0, &[], &few).unwrap_err();
    assert_eq!((e.clone(), e.code()), (PlanError::Me { me: id(1) }, "plan_me"));
}

#[test]
fn claims_that_make_no_sense_count_for_nothing() {
    // Shards beyond the code, wholes and shards mixed, times in the future: no panic, and nothing is relied on that is not there.
    let mut random = Random(9);
    for _ in 0..2000 {
        let releases = [copies(0, 2), shards(1, 4, 6, 4), shards(2, 1, 2, 1)];
        let mut hosts = BTreeMap::new();
        for i in 0..8 {
            let mut one = host(random.below(3) * GIB, random.0 << random.below(64));
            for release in 0..4 {
                let part = match random.below(3) {
                    0 => continue,
                    1 => Part::Whole,
                    _ => Part::Shard(random.below(256) as u8),
                };
                let intent = if random.below(2) == 0 { Intent::Keeps } else { Intent::Leaves };
                one.keeps.insert(blob(release), (part, intent));
            }
            hosts.insert(id(i), one);
        }
        let mut planner = Planner::new(id(0), Times::DEFAULT);
        for now_s in [0, 1, LEAVE_NOTICE_S + 1, u64::MAX] {
            let plan = planner.step(now_s, &releases, &hosts).unwrap();
            for drop in plan.drop {
                for other in &drop.relies_on {
                    assert_ne!(*other, id(0));
                    let (part, intent) = hosts[other].keeps[&drop.release];
                    assert_eq!(intent, Intent::Keeps);
                    assert!(!matches!(part, Part::Shard(index) if index >= 6));
                }
            }
            assert!(hosts[&id(0)].keeps.contains_key(&blob(3)) == plan.unasked.contains(&blob(3)));
        }
    }
}
