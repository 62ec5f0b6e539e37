//! Random sequences of operations against a model in memory, and what garbage collection may do to versions that share tiles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use assay_hub::blob::{BlobHash, TILE_BYTES, tiles};
use assay_hub::store::{Blob, Collect, Fsck, Materialised, Quota, Store};
use proptest::prelude::*;

use crate::content::{content, hashed, of_tiles};

/// A version of a blob: some of its tiles replaced, perhaps longer.
fn version(number: u64) -> Vec<u8> {
    let mut bytes = content(12 * TILE_BYTES + 500, 1);
    for tile in 0..number % 7 {
        let start = ((tile * 5 + number) % 12 * TILE_BYTES) as usize;
        bytes[start..start + TILE_BYTES as usize].copy_from_slice(&content(TILE_BYTES, 100 + number + tile));
    }
    if number % 3 == 1 {
        // All tiles one place further.
        bytes.splice(0..0, content(TILE_BYTES, number));
    }
    bytes
}

fn read(blob: &Blob) -> Vec<u8> {
    let mut bytes = vec![0; blob.size() as usize];
    blob.read_at(0, &mut bytes).unwrap();
    bytes
}

fn add(store: &Store, bytes: &[u8]) -> Blob {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source");
    fs::write(&path, bytes).unwrap();
    store.add_file(&path, &mut |_, _| {}).unwrap()
}

fn fetch(store: &Store, bytes: &[u8], tiles_to_write: &BTreeSet<u64>, local: bool) -> bool {
    let made = hashed(bytes);
    if store.blob(made.hash).unwrap().is_some() {
        return true;
    }
    let mut arrival = store.arrive(made.hash, bytes.len() as u64).unwrap();
    arrival.set_outboard(&made.outboard).unwrap();
    if local {
        arrival.take_local(&made.tile_list).unwrap();
    }
    for tile in tiles_to_write.iter().filter(|tile| **tile < tiles(bytes.len() as u64)) {
        arrival.write(*tile, of_tiles(bytes, *tile..*tile + 1)).unwrap();
        if tile % 3 == 0 {
            arrival.save().unwrap();
        }
    }
    arrival.finish().is_ok()
}

#[derive(Clone, Debug)]
enum Act {
    Add(u64),
    Fetch(u64, BTreeSet<u64>, bool),
    Index(u64),
    Tag(u8, u64),
    Untag(u8),
    Collect(bool),
    Check,
    Reopen,
}

fn acts() -> impl Strategy<Value = Act> {
    let version = 0u64..6;
    prop_oneof![
        3 => version.clone().prop_map(Act::Add),
        3 => (version.clone(), prop::collection::btree_set(0u64..14, 0..14), any::<bool>())
            .prop_map(|(version, tiles, local)| Act::Fetch(version, tiles, local)),
        1 => version.clone().prop_map(Act::Index),
        3 => (0u8..3, version).prop_map(|(name, version)| Act::Tag(name, version)),
        2 => (0u8..3).prop_map(Act::Untag),
        2 => any::<bool>().prop_map(Act::Collect),
        1 => Just(Act::Check),
        1 => Just(Act::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_store_is_what_its_model_says(acts in prop::collection::vec(acts(), 1..24)) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
        let mut blobs: BTreeMap<BlobHash, Vec<u8>> = BTreeMap::new();
        let mut tags: BTreeMap<String, BlobHash> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Add(number) => {
                    let blob = add(&store, &version(number));
                    blobs.insert(blob.hash(), version(number));
                }
                Act::Fetch(number, tiles, local) => {
                    let bytes = version(number);
                    if fetch(&store, &bytes, &tiles, local) {
                        blobs.insert(BlobHash::of(&bytes), bytes);
                    }
                }
                Act::Index(number) => {
                    let hash = BlobHash::of(&version(number));
                    prop_assert_eq!(store.index(hash).is_ok(), blobs.contains_key(&hash));
                    if let Some(blob) = store.blob(hash).unwrap() {
                        prop_assert_eq!(blob.tile_list().unwrap().unwrap().to_vec(), hashed(&version(number)).tile_list);
                    }
                }
                Act::Tag(name, number) => {
                    let hash = BlobHash::of(&version(number));
                    store.tag(&name.to_string(), hash).unwrap();
                    tags.insert(name.to_string(), hash);
                }
                Act::Untag(name) => {
                    store.untag(&name.to_string()).unwrap();
                    tags.remove(&name.to_string());
                }
                Act::Collect(partials) => {
                    let age = if partials { Duration::ZERO } else { Duration::MAX };
                    let before = store.usage().unwrap().total();
                    let said = store.gc(Collect::DryRun, age).unwrap();
                    prop_assert_eq!(store.usage().unwrap().total(), before);
                    let done = store.gc(Collect::Delete, age).unwrap();
                    prop_assert_eq!(&said, &done);
                    prop_assert_eq!(store.usage().unwrap().total() + done.freed, before);
                    blobs.retain(|hash, _| tags.values().any(|tagged| tagged == hash));
                    let again = store.gc(Collect::Delete, age).unwrap();
                    prop_assert_eq!((again.freed, again.blobs.len()), (0, 0));
                }
                Act::Check => {
                    let checked = store.fsck(Fsck::Check, &mut |_, _| {}).unwrap();
                    prop_assert_eq!(checked.problems, vec![]);
                    prop_assert_eq!(checked.blobs, blobs.len() as u64);
                }
                Act::Reopen => {
                    drop(store);
                    store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
                }
            }
            prop_assert_eq!(store.blobs().unwrap(), blobs.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(store.tags().unwrap().into_iter().collect::<BTreeMap<_, _>>(), tags.clone());
            for (hash, bytes) in &blobs {
                prop_assert!(read(&store.blob(*hash).unwrap().unwrap()) == *bytes, "{}", hash);
            }
        }
    }
}

#[test]
fn a_second_version_costs_what_is_new_and_outlives_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
    let first = content(100 * TILE_BYTES, 1);
    let mut second = first.clone();
    second[40 * TILE_BYTES as usize..42 * TILE_BYTES as usize].copy_from_slice(&content(2 * TILE_BYTES, 2));
    let before = add(&store, &first).hash();
    let one = store.usage().unwrap().total();
    let blob = add(&store, &second);
    assert!(!blob.is_contiguous());
    assert_eq!(blob.segments(0..u64::MAX).len(), 3);
    let overhead = 99 * 64 + 100 * 32;
    assert_eq!(store.usage().unwrap().total(), one + 2 * TILE_BYTES + overhead);
    store.tag("second", blob.hash()).unwrap();

    let used = store.gc(Collect::Delete, Duration::ZERO).unwrap();
    assert_eq!((used.used, used.freed), (vec![before], 0));
    let after = blob.hash();
    drop(blob);
    let done = store.gc(Collect::Delete, Duration::ZERO).unwrap();
    assert_eq!((done.blobs, done.freed), (vec![before], 2 * TILE_BYTES + overhead));
    assert!(store.blob(before).unwrap().is_none());
    assert_eq!(read(&store.blob(after).unwrap().unwrap()), second);
    // The first comes back while its former file is a donor.
    assert_eq!(read(&add(&store, &first)), first);
    assert_eq!(read(&store.blob(after).unwrap().unwrap()), second);
    assert_eq!(store.fsck(Fsck::Check, &mut |_, _| {}).unwrap().problems, []);
}

#[test]
fn a_wrong_tile_list_takes_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
    let here = content(10 * TILE_BYTES + 9, 1);
    let list = hashed(&here).tile_list;
    add(&store, &here);
    let wanted = content(10 * TILE_BYTES + 5, 2);
    let made = hashed(&wanted);
    let mut arrival = store.arrive(made.hash, wanted.len() as u64).unwrap();
    arrival.set_outboard(&made.outboard).unwrap();
    assert_eq!(arrival.take_local(&list).unwrap(), 0);
    assert_eq!(arrival.take_local(&list[1..]).unwrap_err().code(), "tile_list_wrong");
    assert_eq!(arrival.missing().count(), 11);
}

#[test]
fn a_plain_file_is_a_link_or_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store"), Quota::UNLIMITED).unwrap();
    let first = content(9 * TILE_BYTES + 1, 1);
    let second = [first.clone(), content(500, 3)].concat();
    let path = folder.path().join("plain/file");
    for (bytes, how) in
        [(&first, Materialised::Linked), (&second, Materialised::Copied), (&first, Materialised::Linked)]
    {
        let hash = add(&store, bytes).hash();
        for _ in 0..2 {
            assert_eq!(store.materialise(hash, &path).unwrap(), how);
            assert_eq!(fs::read(&path).unwrap(), *bytes);
        }
    }
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    // The file stays whole though nobody keeps its blob and another needs a part of it.
    store.tag("second", BlobHash::of(&second)).unwrap();
    store.gc(Collect::Delete, Duration::ZERO).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);
    assert_eq!(read(&store.blob(BlobHash::of(&second)).unwrap().unwrap()), second);
    assert_eq!(store.materialise(BlobHash::of(&first), &path).unwrap_err().code(), "blob_absent");
}

#[test]
fn tags_have_names_of_a_limited_length() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
    let hash = BlobHash::of(b"");
    store.tag(&"n".repeat(assay_hub::store::TAG_BYTES_MAX), hash).unwrap();
    for wrong in [String::new(), "n".repeat(assay_hub::store::TAG_BYTES_MAX + 1)] {
        assert_eq!(store.tag(&wrong, hash).unwrap_err().code(), "tag_name");
    }
}
