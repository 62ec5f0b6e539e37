//! Any k of n shards restore a blob and fewer do not; a wrong shard is named and leaves nothing; the record takes what fits together only.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use assay_core::canonical::{Canonical, CanonicalError};
use assay_hub::blob::{BLOB_BYTES_MAX, BlobHash, TILE_BYTES};
use assay_hub::erasure::{
    Code, EncodeError, Geometry, LANE_BYTES, RestoreError, SHARD_SET_BYTES_MAX, SHARDS_MAX, ShardSet,
    ShardSetError, UNIT_BYTES_MAX, encode, repair, restore,
};
use proptest::prelude::*;

const UNIT: u32 = TILE_BYTES as u32;

fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

struct Cut {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    set: ShardSet,
}

impl Cut {
    fn new(size: usize, needed: u8, shards: u8, unit: u32) -> Cut {
        let folder = tempfile::tempdir().unwrap();
        let bytes = bytes(size, 7);
        let source = folder.path().join("blob");
        fs::write(&source, &bytes).unwrap();
        let code = Code::new(needed, shards).unwrap();
        let set = encode(&source, BlobHash::of(&bytes), code, unit, folder.path()).unwrap();
        Cut { folder, bytes, set }
    }

    fn shards(&self, indices: &[u8]) -> Vec<(u8, PathBuf)> {
        indices.iter().map(|i| (*i, self.path(&self.set.name(*i).unwrap().to_string()))).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> usize {
        fs::read_dir(self.folder.path()).unwrap().count()
    }
}

fn code_of(e: &RestoreError) -> &'static str {
    e.code()
}

#[test]
fn every_choice_of_shards_restores_and_repairs() {
    let cut = Cut::new(3 * UNIT as usize * 2 + 12_345, 3, 5, UNIT);
    for choice in 0u8..32 {
        let indices: Vec<u8> = (0..5).filter(|i| choice >> i & 1 == 1).collect();
        let target = cut.path(&format!("restored-{choice}"));
        let restored = restore(&cut.set, &cut.shards(&indices), &target);
        if indices.len() < 3 {
            assert!(
                matches!(restored, Err(RestoreError::TooFew { needed: 3, got }) if usize::from(got) == indices.len())
            );
            assert!(!target.exists());
            continue;
        }
        restored.unwrap();
        assert_eq!(fs::read(&target).unwrap(), cut.bytes, "{indices:?}");
        for lost in (0..5).filter(|i| !indices.contains(i)) {
            let target = cut.path("repaired");
            repair(&cut.set, lost, &cut.shards(&indices), &target).unwrap();
            assert_eq!(BlobHash::of(&fs::read(&target).unwrap()), cut.set.name(lost).unwrap());
        }
    }
}

#[test]
fn the_shard_that_is_repaired_is_not_read() {
    let cut = Cut::new(100_000, 3, 5, UNIT);
    let shards = cut.shards(&[0, 1, 2, 3]);
    fs::write(&shards[1].1, b"damaged").unwrap();
    repair(&cut.set, 1, &shards, &shards[1].1).unwrap();
    restore(&cut.set, &cut.shards(&[0, 1, 2]), &cut.path("restored")).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_k_of_n_restore(
        (needed, shards) in (1u8..12).prop_flat_map(|k| (Just(k), k + 1..=18)),
        stripes in 0usize..3,
        rest in 0usize..200_000,
        near in -2isize..3,
        order in any::<u64>(),
    ) {
        let stripe = UNIT as usize * usize::from(needed);
        let rest = if rest % 2 == 0 { rest % stripe } else { 0 };
        let size = (stripes * stripe + rest).saturating_add_signed(near).max(1);
        let cut = Cut::new(size, needed, shards, UNIT);
        let mut indices: Vec<u8> = (0..shards).collect();
        indices.sort_by_key(|i| BlobHash::of(&[&order.to_le_bytes()[..], &[*i]].concat()));
        let (chosen, left) = indices.split_at(usize::from(needed));
        let target = cut.path("restored");
        restore(&cut.set, &cut.shards(chosen), &target).unwrap();
        prop_assert_eq!(fs::read(&target).unwrap(), &cut.bytes[..]);
        repair(&cut.set, left[0], &cut.shards(chosen), &target).unwrap();
        prop_assert_eq!(BlobHash::of(&fs::read(&target).unwrap()), cut.set.name(left[0]).unwrap());
        let fewer = restore(&cut.set, &cut.shards(&chosen[1..]), &target);
        let too_few = matches!(fewer, Err(RestoreError::TooFew { .. }));
        prop_assert!(too_few);
    }

    #[test]
    fn every_byte_lies_where_the_geometry_says(
        needed in 1u8..12,
        size in 1usize..900_000,
        at in any::<prop::sample::Index>(),
    ) {
        let cut = Cut::new(size, needed, needed + 1, UNIT);
        let geometry = cut.set.geometry();
        let offset = at.index(size);
        let place = geometry.place(offset as u64).unwrap();
        let shard = fs::read(&cut.shards(&[place.shard])[0].1).unwrap();
        prop_assert_eq!(shard.len() as u64, geometry.shard_bytes());
        let (from, bytes) = (place.offset as usize, place.bytes as usize);
        prop_assert_eq!(&shard[from..from + bytes], &cut.bytes[offset..offset + bytes]);
        prop_assert_eq!(geometry.place(size as u64), None);
        // What rounding adds is less than a lane for each shard.
        let needed = u64::from(needed);
        prop_assert!(geometry.shard_bytes() * needed < size as u64 + needed * (LANE_BYTES + 1));
    }

    #[test]
    fn bytes_that_are_no_set_are_refused(cut_at in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), by in 1u8..) {
        let set = set(4, 6);
        let good = set.to_canonical_bytes();
        prop_assert_eq!(&ShardSet::from_canonical_bytes(&good).unwrap(), &set);
        prop_assert!(ShardSet::from_canonical_bytes(&good[..cut_at.index(good.len())]).is_err());
        let mut other = good.clone();
        other[flip.index(good.len())] ^= by;
        // Another set, or none, but never the same one and never bytes that are not its own.
        if let Ok(read) = ShardSet::from_canonical_bytes(&other) {
            prop_assert_ne!(&read, &set);
            prop_assert_eq!(read.to_canonical_bytes(), other);
        }
        let long = [&good[..], &[0]].concat();
        prop_assert!(ShardSet::from_canonical_bytes(&long).is_err());
    }
}

fn set(needed: u8, shards: u8) -> ShardSet {
    let geometry = Geometry::new(1 << 30, Code::new(needed, shards).unwrap(), UNIT).unwrap();
    let names = (0..shards).map(|i| BlobHash::of(&[i])).collect();
    ShardSet::new(BlobHash::of(b"blob"), geometry, names).unwrap()
}

/// A record as its bytes would be, whatever its numbers.
fn record(size: u64, needed: u8, shards: u8, unit: u32, names: usize) -> Vec<u8> {
    let mut bytes = vec![ShardSet::TAG.len() as u8];
    bytes.extend_from_slice(ShardSet::TAG.as_bytes());
    bytes.extend_from_slice(BlobHash::of(b"blob").as_bytes());
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&[needed, shards]);
    bytes.extend_from_slice(&unit.to_le_bytes());
    bytes.extend_from_slice(&(names as u32).to_le_bytes());
    bytes.resize(bytes.len() + 32 * names, 9);
    bytes
}

#[test]
fn limits_hold_at_the_limit_and_not_beyond() {
    let max = usize::from(SHARDS_MAX);
    let good = [
        record(1, 1, 2, UNIT, 2),
        record(BLOB_BYTES_MAX, SHARDS_MAX - 1, SHARDS_MAX, UNIT_BYTES_MAX, max),
        record(5, 4, 6, 3 * UNIT, 6),
    ];
    for bytes in good {
        assert_eq!(ShardSet::from_canonical_bytes(&bytes).unwrap().to_canonical_bytes(), bytes);
        assert!(bytes.len() <= SHARD_SET_BYTES_MAX);
    }
    let wrong = [
        record(0, 1, 2, UNIT, 2),
        record(BLOB_BYTES_MAX + 1, 1, 2, UNIT, 2),
        record(1, 0, 2, UNIT, 2),
        record(1, 2, 2, UNIT, 2),
        record(1, 3, 2, UNIT, 2),
        record(1, 4, SHARDS_MAX + 1, UNIT, max + 1),
        record(1, 1, 2, 0, 2),
        record(1, 1, 2, UNIT + 1, 2),
        record(1, 1, 2, UNIT_BYTES_MAX + UNIT, 2),
        record(1, 4, 6, UNIT, 5),
        record(1, 4, 6, UNIT, 7),
    ];
    for bytes in wrong {
        assert!(matches!(ShardSet::from_canonical_bytes(&bytes), Err(CanonicalError::Malformed { .. })));
    }
    let long = record(1, 4, 6, UNIT, SHARD_SET_BYTES_MAX / 32);
    assert!(matches!(ShardSet::from_canonical_bytes(&long), Err(CanonicalError::TooLong { .. })));
    let other = record(1, 1, 2, UNIT, 2).iter().map(|b| b ^ 1).collect::<Vec<_>>();
    assert!(matches!(ShardSet::from_canonical_bytes(&other), Err(CanonicalError::Tag { .. })));
    // A length that promises more than there is costs no memory.
    let mut promise = record(1, 4, 6, UNIT, 0);
    let at = promise.len() - 4;
    promise[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(ShardSet::from_canonical_bytes(&promise).is_err());

    let codes: Vec<_> = [
        Code::new(0, 2).unwrap_err(),
        Geometry::new(0, Code::new(1, 2).unwrap(), UNIT).unwrap_err(),
        Geometry::new(1, Code::new(1, 2).unwrap(), 1).unwrap_err(),
        ShardSet::new(BlobHash::of(b""), set(4, 6).geometry(), Vec::new()).unwrap_err(),
    ]
    .iter()
    .map(ShardSetError::code)
    .collect();
    assert_eq!(codes, ["shards_code", "shards_size", "shards_unit", "shards_names"]);
}

#[test]
fn a_wrong_shard_is_named_and_nothing_is_left() {
    let cut = Cut::new(200_000, 3, 6, UNIT);
    let shards = cut.shards(&[0, 2, 4, 5]);
    for (damaged, path) in &shards[..3] {
        let right = fs::read(path).unwrap();
        let length = right.len();
        for (at, bytes) in [(0, length), (length / 2, length), (length - 1, length), (0, length - 1)] {
            let mut wrong = right[..bytes].to_vec();
            wrong[at] ^= 1;
            fs::write(path, wrong).unwrap();
            let files = cut.files();
            let target = cut.path("restored");
            let e = restore(&cut.set, &shards, &target).unwrap_err();
            assert!(matches!(&e, RestoreError::WrongShards { indices } if indices == &[*damaged]), "{e}");
            let e = repair(&cut.set, 1, &shards, &target).unwrap_err();
            assert_eq!(code_of(&e), "restore_wrong_shards");
            assert!(!target.exists());
            assert_eq!(cut.files(), files);
            // Without it, the others do.
            let others: Vec<_> = shards.iter().filter(|(i, _)| i != damaged).cloned().collect();
            restore(&cut.set, &others, &target).unwrap();
            assert_eq!(fs::read(&target).unwrap(), cut.bytes);
            fs::remove_file(target).unwrap();
        }
        fs::write(path, right).unwrap();
    }
}

#[test]
fn a_set_whose_shards_do_not_make_its_blob_is_called_false() {
    let cut = Cut::new(100_000, 3, 5, UNIT);
    let other =
        ShardSet::new(BlobHash::of(b"another"), cut.set.geometry(), cut.set.names().to_vec()).unwrap();
    let target = cut.path("restored");
    fs::write(&target, b"as it was").unwrap();
    let e = restore(&other, &cut.shards(&[0, 3, 4]), &target).unwrap_err();
    assert!(matches!(e, RestoreError::FalseSet { .. }));
    assert_eq!(code_of(&e), "restore_false_set");
    // A parity shard that is no parity of the others: right by its own name, and yet it restores nothing.
    let forged = vec![1; cut.set.geometry().shard_bytes() as usize];
    let mut names = cut.set.names().to_vec();
    names[4] = BlobHash::of(&forged);
    fs::write(cut.path(&names[4].to_string()), &forged).unwrap();
    let set = ShardSet::new(cut.set.blob(), cut.set.geometry(), names).unwrap();
    let mut shards = cut.shards(&[0, 1]);
    shards.push((4, cut.path(&set.name(4).unwrap().to_string())));
    assert!(matches!(restore(&set, &shards, &target), Err(RestoreError::FalseSet { .. })));
    assert!(matches!(
        repair(&set, 4, &cut.shards(&[0, 1, 2]), &target),
        Err(RestoreError::FalseSet { expected, .. }) if expected == set.name(4).unwrap()
    ));
    assert_eq!(fs::read(&target).unwrap(), b"as it was");
}

#[test]
fn indices_that_the_set_does_not_have_are_refused() {
    let cut = Cut::new(1000, 2, 3, UNIT);
    let path = |i: u8| cut.shards(&[i])[0].1.clone();
    let target = cut.path("restored");
    for shards in [vec![(0, path(0)), (3, path(1))], vec![(1, path(1)), (1, path(1)), (2, path(2))]] {
        assert_eq!(code_of(&restore(&cut.set, &shards, &target).unwrap_err()), "restore_index");
    }
    let shards = cut.shards(&[0, 1]);
    assert_eq!(code_of(&repair(&cut.set, 3, &shards, &target).unwrap_err()), "restore_index");
    let gone = vec![(0, path(0)), (1, cut.path("gone"))];
    assert_eq!(code_of(&restore(&cut.set, &gone, &target).unwrap_err()), "restore_file");
    assert_eq!(code_of(&restore(&cut.set, &[], &target).unwrap_err()), "restore_too_few");
}

#[test]
fn only_the_named_blob_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("blob");
    fs::write(&source, b"bytes").unwrap();
    let code = Code::new(2, 3).unwrap();
    let cut = |path: &Path, name: &[u8]| encode(path, BlobHash::of(name), code, UNIT, folder.path());
    let e = cut(&source, b"others").unwrap_err();
    assert!(matches!(e, EncodeError::WrongBlob { .. }));
    assert_eq!(e.code(), "encode_wrong_blob");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(cut(&folder.path().join("gone"), b"bytes").unwrap_err().code(), "encode_file");
    fs::write(&source, b"").unwrap();
    assert_eq!(cut(&source, b"").unwrap_err().code(), "shards_size");
}

#[test]
fn the_same_blob_has_the_same_shards_everywhere() {
    let cut = Cut::new(150_000, 4, 6, UNIT);
    let names: Vec<String> = cut.set.names().iter().map(BlobHash::short).collect();
    // A library that computed other parities would make every set that is out there unrepairable.
    assert_eq!(names, ["54d761ee", "8b0e22a8", "a4c7e748", "35a5b827", "71b46b4a", "5fb0a617"]);
}
