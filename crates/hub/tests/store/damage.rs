//! What the check says about damage, and what repair brings back.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use assay_hub::blob::{BlobHash, TILE_BYTES};
use assay_hub::store::{Fsck, Problem, Quota, Store};

use crate::content::{content, hashed, of_tiles};

struct Site {
    folder: tempfile::TempDir,
    store: Store,
    bytes: Vec<u8>,
    hash: BlobHash,
}

fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
    let bytes = content(200 * TILE_BYTES + 3, 9);
    let source = folder.path().join("source");
    fs::write(&source, &bytes).unwrap();
    let hash = store.add_file(&source, &mut |_, _| {}).unwrap().hash();
    Site { folder, store, bytes, hash }
}

impl Site {
    fn path(&self, ending: &str) -> PathBuf {
        self.folder.path().join(format!("data/{}.{ending}", self.hash))
    }

    fn flip(&self, ending: &str, at: u64) {
        let file = fs::File::options().read(true).write(true).open(self.path(ending)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }

    fn problems(&self, act: Fsck) -> Vec<Problem> {
        self.store.fsck(act, &mut |_, _| {}).unwrap().problems
    }

    /// Says `expected`, repairs it, and says nothing more.
    fn repairs(&self, expected: &[Problem]) {
        assert_eq!(self.problems(Fsck::Check), expected);
        assert_eq!(self.problems(Fsck::Repair), expected);
        assert_eq!(self.problems(Fsck::Check), []);
    }

    fn is_right(&self) -> bool {
        let blob = self.store.blob(self.hash).unwrap().unwrap();
        let mut bytes = vec![0; blob.size() as usize];
        blob.read_at(0, &mut bytes).unwrap();
        bytes == self.bytes && blob.outboard() == hashed(&self.bytes).outboard
    }

    /// Fetches what is missing, which are these tiles.
    fn goes_on(&self, missing: &[std::ops::Range<u64>]) {
        assert!(self.store.blob(self.hash).unwrap().is_none());
        let mut arrival = self.store.arrive(self.hash, self.bytes.len() as u64).unwrap();
        if arrival.outboard_needed() {
            arrival.set_outboard(&hashed(&self.bytes).outboard).unwrap();
        }
        assert_eq!(arrival.missing().ranges().collect::<Vec<_>>(), missing);
        for range in missing {
            arrival.write(range.start, of_tiles(&self.bytes, range.clone())).unwrap();
        }
        arrival.finish().unwrap();
        assert!(self.is_right());
        assert_eq!(self.problems(Fsck::Check), []);
    }
}

#[test]
fn flipped_bits_of_a_blob_cost_their_tiles() {
    let site = site();
    let hash = site.hash;
    site.flip("blob", 5 * TILE_BYTES + 77);
    site.flip("blob", 200 * TILE_BYTES + 2);
    site.repairs(&[Problem::Tiles { hash, damaged: 2 }]);
    site.goes_on(&[5..6, 200..201]);
}

#[test]
fn a_damaged_outboard_or_list_is_made_again() {
    let site = site();
    let hash = site.hash;
    site.flip("outboard", 1000);
    site.repairs(&[Problem::Outboard { hash }]);
    fs::remove_file(site.path("outboard")).unwrap();
    assert_eq!(site.store.blob(hash).err().unwrap().code(), "blob_damaged");
    site.repairs(&[Problem::Outboard { hash }]);
    site.flip("tiles", 1000);
    site.repairs(&[Problem::TileList { hash }]);
    assert!(site.is_right());
}

#[test]
fn bytes_and_outboard_may_be_damaged_at_once() {
    let site = site();
    let hash = site.hash;
    site.flip("outboard", 0);
    site.flip("blob", 0);
    site.repairs(&[Problem::Outboard { hash }, Problem::Tiles { hash, damaged: 201 }]);
    site.goes_on(&std::iter::once(0..1).collect::<Vec<_>>());
}

#[test]
fn a_file_cut_short_keeps_its_beginning() {
    let site = site();
    let hash = site.hash;
    let file = fs::File::options().write(true).open(site.path("blob")).unwrap();
    file.set_len(150 * TILE_BYTES + 1).unwrap();
    assert_eq!(site.store.blob(hash).err().unwrap().code(), "blob_damaged");
    site.repairs(&[Problem::Tiles { hash, damaged: 51 }]);
    site.goes_on(&std::iter::once(150..201).collect::<Vec<_>>());
}

#[test]
fn a_lost_file_is_fetched_again() {
    let site = site();
    let hash = site.hash;
    fs::remove_file(site.path("blob")).unwrap();
    assert_eq!(site.store.blob(hash).err().unwrap().code(), "blob_damaged");
    site.repairs(&[Problem::Tiles { hash, damaged: 201 }]);
    site.goes_on(&std::iter::once(0..201).collect::<Vec<_>>());
}

#[test]
fn a_damaged_donor_is_mended_for_both() {
    let site = site();
    let mut second = site.bytes.clone();
    second[3] ^= 1;
    let source = site.folder.path().join("source");
    fs::write(&source, &second).unwrap();
    let other = site.store.add_file(&source, &mut |_, _| {}).unwrap().hash();
    site.flip("blob", 9 * TILE_BYTES);
    let problems = site.problems(Fsck::Repair);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.contains(&Problem::Tiles { hash: other, damaged: 1 }));
    assert_eq!(site.problems(Fsck::Check), []);
    site.goes_on(&std::iter::once(9..10).collect::<Vec<_>>());
    let arrival = site.store.arrive(other, second.len() as u64).unwrap();
    assert_eq!(arrival.missing().count(), 1);
    arrival.write(9, of_tiles(&second, 9..10)).unwrap();
    let blob = arrival.finish().unwrap();
    let mut bytes = vec![0; second.len()];
    blob.read_at(0, &mut bytes).unwrap();
    assert!(bytes == second);
    assert_eq!(site.problems(Fsck::Check), []);
}

#[test]
fn files_that_belong_to_nothing_are_deleted() {
    let site = site();
    let stray = [site.folder.path().join("data/stray"), site.folder.path().join("partial/stray.blob")];
    stray.iter().for_each(|path| fs::write(path, b"stray").unwrap());
    site.repairs(&stray.clone().map(|path| Problem::File { path }));
    assert!(stray.iter().all(|path| !path.exists()));
    assert!(site.is_right());
}

#[test]
fn whole_blobs_outlive_the_index() {
    let Site { folder, store, bytes, hash } = site();
    drop(store);
    fs::remove_file(folder.path().join("index.redb")).unwrap();
    let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
    let site = Site { folder, store, bytes, hash };
    assert_eq!(site.problems(Fsck::Repair).len(), 3);
    assert_eq!(site.problems(Fsck::Check), []);
    assert!(site.is_right());
}

#[test]
fn a_damaged_index_gives_no_wrong_bytes() {
    let Site { folder, store, bytes, hash } = site();
    store.tag("kept", hash).unwrap();
    drop(store);
    let path = folder.path().join("index.redb");
    let good = fs::read(&path).unwrap();
    for round in 0..60u64 {
        let mut damaged = good.clone();
        let at = u64::from_le_bytes(content(8, round).try_into().unwrap()) as usize % damaged.len();
        // Half of the rounds in the first pages, where everything is that a small index holds.
        let at = if round % 2 == 0 { at } else { at % (64 << 10) };
        damaged[at] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        let Ok(store) = Store::open(folder.path(), Quota::UNLIMITED) else { continue };
        let Ok(Some(blob)) = store.blob(hash) else { continue };
        let mut got = vec![0; blob.size() as usize];
        if blob.read_at(0, &mut got).is_ok() {
            assert!(got == bytes, "round {round}, byte {at}");
        }
    }
}
