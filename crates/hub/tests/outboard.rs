//! Outboards: equal to bao-tree's byte for byte, and checked against anything that a peer might send.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use assay_hub::blob::{BlobHash, TILE_BYTES, tiles};
use assay_hub::outboard::{
    Make, Outboard, OutboardError, TileVerifier, WrongTile, hash_bytes, outboard_bytes, tile_bytes,
};
use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use proptest::prelude::*;

fn content(size: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..3 * TILE_BYTES,
        (1u64..70, -2i64..3).prop_map(|(tiles, around)| (tiles * TILE_BYTES).saturating_add_signed(around)),
        0u64..150 * TILE_BYTES,
    ]
}

fn verifier(bytes: &[u8]) -> TileVerifier {
    let made = hash_bytes(bytes, Make::Outboard);
    TileVerifier::new(Arc::new(Outboard::check(made.hash, bytes.len() as u64, made.outboard).unwrap()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_we_make_is_what_bao_tree_makes(size in sizes(), seed: u64) {
        let bytes = content(size, seed);
        let made = hash_bytes(&bytes, Make::OutboardAndList);
        let theirs = PreOrderMemOutboard::create(&bytes, BlockSize::from_chunk_log(4));
        prop_assert_eq!(made.hash, BlobHash::of(&bytes));
        prop_assert_eq!(made.hash.as_bytes(), theirs.root.as_bytes());
        prop_assert_eq!(&made.outboard, &theirs.data);
        prop_assert_eq!(made.outboard.len() as u64, outboard_bytes(size));
        let mut list: Vec<u8> = Vec::new();
        for tile in 0..tiles(size) {
            let place = tile_bytes(size, tile);
            list.extend(blake3::hash(&bytes[place.start as usize..place.end as usize]).as_bytes());
        }
        prop_assert_eq!(made.tile_list, list);
    }

    #[test]
    fn every_tile_is_checked_alone(size in sizes(), seed: u64, flip: prop::sample::Index, at: prop::sample::Index) {
        let bytes = content(size, seed);
        let verifier = verifier(&bytes);
        prop_assert_eq!(verifier.check_many(0, &bytes), Ok(()));
        let tile = at.index(tiles(size) as usize) as u64;
        let place = tile_bytes(size, tile);
        let mut right = bytes[place.start as usize..place.end as usize].to_vec();
        prop_assert_eq!(verifier.check(tile, &right), Ok(()));
        let longer = [right.clone(), vec![0]].concat();
        let is_length = matches!(verifier.check(tile, &longer), Err(WrongTile::Length { .. }));
        prop_assert!(is_length);
        if tiles(size) > 1 {
            let other = (tile + 1) % tiles(size);
            prop_assert!(verifier.check(other, &right).is_err());
        }
        if !right.is_empty() {
            let flip = flip.index(right.len() * 8);
            right[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(verifier.check(tile, &right), Err(WrongTile::Content { hash: verifier.hash(), tile }));
        }
    }

    #[test]
    fn one_wrong_bit_of_an_outboard_is_refused(size in TILE_BYTES + 1..150 * TILE_BYTES, seed: u64, flip: prop::sample::Index) {
        let made = hash_bytes(&content(size, seed), Make::Outboard);
        let mut wrong = made.outboard.clone();
        let flip = flip.index(wrong.len() * 8);
        wrong[flip / 8] ^= 1 << (flip % 8);
        let refused = Outboard::check(made.hash, size, wrong).err();
        let is_node = matches!(refused, Some(OutboardError::Node { .. }));
        prop_assert!(is_node);
    }

    #[test]
    fn foreign_outboards_are_refused(size: u64, bytes in prop::collection::vec(any::<u8>(), 0..2000), small in 0u64..40 * TILE_BYTES) {
        let hash = BlobHash::of(b"somebody's blob");
        for size in [size, small] {
            prop_assert_eq!(Outboard::check(hash, size, bytes.clone()).is_ok(), tiles(size) == 1 && bytes.is_empty());
            let fitting = vec![7; outboard_bytes(small) as usize];
            prop_assert_eq!(Outboard::check(hash, small, fitting).is_ok(), tiles(small) == 1);
        }
    }
}

#[test]
fn tiles_that_there_are_none_of_are_refused() {
    for size in [0, 1, TILE_BYTES, 5 * TILE_BYTES + 1] {
        let bytes = content(size, 1);
        let verifier = verifier(&bytes);
        for tile in [tiles(size), tiles(size) + 1, u64::MAX / TILE_BYTES, u64::MAX] {
            assert!(matches!(verifier.check(tile, &[]), Err(WrongTile::Index { .. })), "{size} {tile}");
            assert!(verifier.check_many(tile, &[0; 20_000]).is_err(), "{size} {tile}");
        }
    }
}
