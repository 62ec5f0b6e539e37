//! Blobs that arrive: in any order, with crashes, twice at once, within the quota.

use std::fs;

use assay_hub::blob::{BLOB_BYTES_MAX, BlobHash, TILE_BYTES, tiles};
use assay_hub::store::{Blob, Quota, Store, StoreError, footprint};

use crate::content::{content, hashed, of_tiles};

fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(folder.path(), Quota::UNLIMITED).unwrap()
}

fn read(blob: &Blob) -> Vec<u8> {
    let mut bytes = vec![0; blob.size() as usize];
    blob.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_is_added_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for size in [0, 1, TILE_BYTES - 1, TILE_BYTES, TILE_BYTES + 1, 7 * TILE_BYTES + 5, 200 * TILE_BYTES] {
        let bytes = content(size, size);
        let path = folder.path().join("source");
        fs::write(&path, &bytes).unwrap();
        let mut told = Vec::new();
        let blob = store.add_file(&path, &mut |done, all| told.push((done, all))).unwrap();
        assert_eq!(blob.hash(), BlobHash::of(&bytes));
        assert_eq!((blob.size(), blob.tiles()), (size, tiles(size)));
        assert_eq!(read(&blob), bytes);
        assert_eq!(blob.outboard(), hashed(&bytes).outboard);
        assert!(told.iter().all(|(done, all)| done <= all && *all == size), "{told:?}");
        let again = store.add_file(&path, &mut |_, _| {}).unwrap();
        assert_eq!(again.hash(), blob.hash());
        assert!(blob.read_at(size, &mut [0]).is_err());
        assert!(blob.read_at(u64::MAX, &mut [0]).is_err());
        let segments = blob.segments(0..u64::MAX);
        assert_eq!(segments.iter().map(|segment| segment.len).sum::<u64>(), size);
        let mapped: Vec<u8> =
            segments.iter().flat_map(|segment| segment.mapped().unwrap().to_vec()).collect();
        assert_eq!(mapped, bytes);
    }
    assert_eq!(store.blobs().unwrap().len(), 7);
    drop(store);
    assert_eq!(open(&folder).blobs().unwrap().len(), 7);
}

#[test]
fn tiles_arrive_in_any_order_and_are_readable_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let bytes = content(10 * TILE_BYTES + 77, 3);
    let made = hashed(&bytes);
    let mut arrival = store.arrive(made.hash, bytes.len() as u64).unwrap();
    assert!(arrival.outboard_needed());
    assert_eq!(arrival.verifier().err().unwrap().code(), "outboard_needed");
    assert_eq!(arrival.write(0, of_tiles(&bytes, 0..1)).unwrap_err().code(), "outboard_needed");
    assert_eq!(arrival.set_outboard(&made.outboard[1..]).unwrap_err().code(), "outboard_wrong");
    assert_eq!(
        arrival.set_outboard(&made.outboard.iter().rev().copied().collect::<Vec<_>>()).unwrap_err().code(),
        "outboard_wrong"
    );
    arrival.set_outboard(&made.outboard).unwrap();
    assert!(!arrival.outboard_needed());
    let partial = store.arriving(made.hash).unwrap();
    assert_eq!(partial.outboard().unwrap().bytes(), made.outboard);
    for range in [9..11, 2..3, 4..6, 0..5] {
        assert!(partial.segments(range.start * TILE_BYTES..range.end * TILE_BYTES).is_none());
        arrival.write(range.start, of_tiles(&bytes, range.clone())).unwrap();
        let mut got = vec![0; of_tiles(&bytes, range.clone()).len()];
        partial.read_at(range.start * TILE_BYTES, &mut got).unwrap();
        assert_eq!(got, of_tiles(&bytes, range));
    }
    assert!(arrival.missing().ranges().eq(std::iter::once(6..9)));
    assert_eq!(partial.have(), arrival.missing().complement());
    let error = arrival.finish().unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { missing: 3, .. }), "{error}");
    assert!(store.arriving(made.hash).is_none());
    assert!(store.blob(made.hash).unwrap().is_none());

    drop(partial);
    drop(store);
    let store = open(&folder);
    let arrival = store.arrive(made.hash, bytes.len() as u64).unwrap();
    assert!(!arrival.outboard_needed());
    assert!(arrival.missing().ranges().eq(std::iter::once(6..9)));
    arrival.write(6, of_tiles(&bytes, 6..9)).unwrap();
    assert_eq!(read(&arrival.finish().unwrap()), bytes);
    assert_eq!(store.arrive(made.hash, bytes.len() as u64).err().unwrap().code(), "blob_whole");
    assert!(store.partials().unwrap().is_empty());
}

#[test]
fn bytes_that_are_no_whole_tiles_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let bytes = content(3 * TILE_BYTES + 10, 4);
    let made = hashed(&bytes);
    let mut arrival = store.arrive(made.hash, bytes.len() as u64).unwrap();
    arrival.set_outboard(&made.outboard).unwrap();
    let wrong: [(u64, &[u8]); 8] = [
        (0, &[]),
        (0, &bytes[..10]),
        (0, &bytes[..TILE_BYTES as usize + 1]),
        (3, &bytes[..9]),
        (3, &bytes[..11]),
        (4, &[]),
        (4, &bytes[..10]),
        (u64::MAX, &bytes[..TILE_BYTES as usize]),
    ];
    for (first, bytes) in wrong {
        assert_eq!(
            arrival.write(first, bytes).unwrap_err().code(),
            "tiles_not_whole",
            "{first} {}",
            bytes.len()
        );
    }
    arrival.write(3, &bytes[3 * TILE_BYTES as usize..]).unwrap();
    arrival.write(0, &bytes).unwrap();
    assert_eq!(read(&arrival.finish().unwrap()), bytes);
}

#[test]
fn a_blob_has_one_arrival() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let hash = BlobHash::of(b"one");
    let first = store.arrive(hash, 3).unwrap();
    assert_eq!(store.arrive(hash, 3).err().unwrap().code(), "blob_arriving");
    drop(first);
    let second = store.clone().arrive(hash, 3).unwrap();
    assert!(!second.outboard_needed());
    assert!(second.verifier().unwrap().check(0, b"two").is_err());
    second.write(0, b"one").unwrap();
    assert_eq!(read(&second.finish().unwrap()), b"one");
}

#[test]
fn only_a_verified_last_tile_proves_a_size() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let bytes = content(2 * TILE_BYTES + 100, 5);
    let made = hashed(&bytes);
    let right = bytes.len() as u64;
    for wrong in [right + 1, 10 * TILE_BYTES, 1, 0] {
        drop(store.arrive(made.hash, wrong).unwrap());
    }
    let mut arrival = store.arrive(made.hash, right).unwrap();
    arrival.set_outboard(&made.outboard).unwrap();
    arrival.write(2, of_tiles(&bytes, 2..3)).unwrap();
    arrival.save().unwrap();
    drop(arrival);
    let error = store.arrive(made.hash, right + 1).err().unwrap();
    assert!(
        matches!(error, StoreError::Size { expected, got, .. } if (expected, got) == (right, right + 1)),
        "{error}"
    );
    assert_eq!(store.arrive(made.hash, right).unwrap().missing().count(), 2);
}

#[test]
fn the_quota_holds_to_the_byte() {
    let size = 5 * TILE_BYTES + 1;
    let bytes = content(size, 6);
    let hash = BlobHash::of(&bytes);
    let needed = footprint(size);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Quota::bytes(needed - 1)).unwrap();
    let error = store.arrive(hash, size).err().unwrap();
    assert!(
        matches!(error, StoreError::Quota { wanted, free, quota } if (wanted, free, quota) == (needed, needed - 1, needed - 1)),
        "{error}"
    );
    assert_eq!(store.usage().unwrap().total(), 0);
    drop(store);
    let store = Store::open(folder.path(), Quota::bytes(needed)).unwrap();
    let arrival = store.arrive(hash, size).unwrap();
    assert_eq!((store.usage().unwrap().partials, store.usage().unwrap().free()), (needed, 0));
    assert_eq!(store.arrive(BlobHash::of(b""), 0).err().unwrap().code(), "quota_exceeded");
    drop(arrival);
    let path = folder.path().join("source");
    fs::write(&path, &bytes).unwrap();
    let blob = store.add_file(&path, &mut |_, _| {}).unwrap();
    assert_eq!(store.usage().unwrap().blobs, needed);
    assert_eq!(read(&blob), bytes);
}

#[test]
fn longer_blobs_than_any_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for size in [BLOB_BYTES_MAX + 1, u64::MAX] {
        assert_eq!(store.arrive(BlobHash::of(b"long"), size).err().unwrap().code(), "blob_too_large");
    }
}

#[test]
fn a_store_is_open_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    assert_eq!(Store::open(folder.path(), Quota::UNLIMITED).err().unwrap().code(), "store_busy");
    drop(store);
    open(&folder);
}
