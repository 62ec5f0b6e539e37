//! Outboards: the inner nodes of a blob's BLAKE3 tree, with which every tile can be verified alone.
//!
//! The format is bao's, without the length in front and with chunk groups of 16 chunks (`.obao4`): for every inner node above the
//! tiles the hashes of its two children, 64 bytes, parents before children, left before right. A blob of one tile has an empty
//! outboard: its tile's hash is its name.
//!
//! An [`Outboard`] cannot be wrong: it is made only by hashing a blob or by checking foreign bytes from the root down. It says how
//! many tiles the blob has; the length of the last one is proven only by that tile.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use blake3::hazmat::{self, HasherExt, Mode};
use memmap2::Mmap;

use crate::blob::{BLOB_BYTES_MAX, BlobHash, TILE_BYTES, tiles};
use crate::crew;

/// Bytes of a node: the hashes of its two children.
pub const NODE_BYTES: u64 = 64;
/// Bytes that one thread reads and hashes at a time while an outboard is made.
const PIECE_BYTES: u64 = 1 << 20;

type Subtree = [u8; 32];

/// Bytes of the outboard of a blob of `size` bytes.
pub const fn outboard_bytes(size: u64) -> u64 {
    NODE_BYTES * (tiles(size) - 1)
}

/// Where the bytes of `tile` lie in a blob of `size` bytes; empty beyond its end.
pub const fn tile_bytes(size: u64, tile: u64) -> Range<u64> {
    let start = tile.saturating_mul(TILE_BYTES);
    let end = start.saturating_add(TILE_BYTES);
    if start > size { size..size } else { start..if end < size { end } else { size } }
}

/// Bytes that are not the outboard of the named blob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboardError {
    /// A blob of that size has an outboard of another length.
    #[error("the outboard of a blob of {size} bytes has {expected} bytes, not {got}")]
    Length {
        /// Bytes of the blob.
        size: u64,
        /// Bytes that its outboard must have.
        expected: u64,
        /// Bytes that it has.
        got: u64,
    },
    /// A node does not hash to what its parent, or the blob's name, says.
    #[error("node {node} of the outboard of blob {hash} does not hash to what is above it")]
    Node {
        /// The blob that was asked for.
        hash: BlobHash,
        /// The node's place in the outboard, from 0.
        node: u64,
    },
}

/// Bytes that are not the tile that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongTile {
    /// The blob has no such tile.
    #[error("blob {hash} has {tiles} tiles and none with index {tile}")]
    Index {
        /// The blob.
        hash: BlobHash,
        /// How many tiles it has.
        tiles: u64,
        /// The index that was asked about.
        tile: u64,
    },
    /// Too few or too many bytes.
    #[error("tile {tile} of blob {hash} has {expected} bytes, not {got}")]
    Length {
        /// The blob.
        hash: BlobHash,
        /// The tile.
        tile: u64,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that came.
        got: u64,
    },
    /// Other bytes.
    #[error("bytes that are not tile {tile} of blob {hash}")]
    Content {
        /// The blob.
        hash: BlobHash,
        /// The tile.
        tile: u64,
    },
}

impl WrongTile {
    /// The index of the tile.
    pub fn tile(&self) -> u64 {
        match self {
            WrongTile::Index { tile, .. }
            | WrongTile::Length { tile, .. }
            | WrongTile::Content { tile, .. } => *tile,
        }
    }
}

enum Bytes {
    Owned(Vec<u8>),
    Mapped(Mmap),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

/// A checked outboard.
pub struct Outboard {
    hash: BlobHash,
    size: u64,
    bytes: Bytes,
}

impl Outboard {
    /// Checks that `bytes` are the outboard of the blob `hash`, were it `size` bytes long.
    pub fn check(hash: BlobHash, size: u64, bytes: Vec<u8>) -> Result<Outboard, OutboardError> {
        check(hash, size, &bytes)?;
        Ok(Outboard { hash, size, bytes: Bytes::Owned(bytes) })
    }

    /// As [`check`](Outboard::check), for a mapped file.
    pub(crate) fn check_mapped(hash: BlobHash, size: u64, map: Mmap) -> Result<Outboard, OutboardError> {
        check(hash, size, &map)?;
        Ok(Outboard { hash, size, bytes: Bytes::Mapped(map) })
    }

    /// The blob that it belongs to.
    pub fn hash(&self) -> BlobHash {
        self.hash
    }

    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The outboard's own bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// What `tile` must hash to as a part of the blob; none for a blob of one tile, which must hash to the blob's name, and beyond
    /// the blob's end.
    fn expected(&self, tile: u64) -> Option<&[u8]> {
        let (mut node, mut first, mut count) = (0u64, 0u64, tiles(self.size));
        if tile >= count {
            return None;
        }
        while count > 1 {
            let left = left_tiles(count);
            let place = usize::try_from(node * NODE_BYTES).ok()?;
            let in_left = tile < first + left;
            if in_left {
                if left == 1 {
                    return self.bytes().get(place..place + 32);
                }
                (node, count) = (node + 1, left);
            } else {
                if count - left == 1 {
                    return self.bytes().get(place + 32..place + 64);
                }
                (node, first, count) = (node + left, first + left, count - left);
            }
        }
        None
    }
}

/// Checks tiles of one blob; cheap to clone, and pure: any thread may ask.
#[derive(Clone)]
pub struct TileVerifier(Arc<Outboard>);

impl TileVerifier {
    /// Over a checked outboard.
    pub fn new(outboard: Arc<Outboard>) -> TileVerifier {
        TileVerifier(outboard)
    }

    /// The blob.
    pub fn hash(&self) -> BlobHash {
        self.0.hash
    }

    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Whether `bytes` are tile `tile` of the blob.
    pub fn check(&self, tile: u64, bytes: &[u8]) -> Result<(), WrongTile> {
        let (hash, size) = (self.0.hash, self.0.size);
        let count = tiles(size);
        if tile >= count {
            return Err(WrongTile::Index { hash, tiles: count, tile });
        }
        let place = tile_bytes(size, tile);
        let expected = place.end - place.start;
        if bytes.len() as u64 != expected {
            return Err(WrongTile::Length { hash, tile, expected, got: bytes.len() as u64 });
        }
        let right = match self.0.expected(tile) {
            Some(expected) => tile_subtree(tile, bytes) == *expected,
            None => blake3::hash(bytes) == *hash.as_bytes(),
        };
        if right { Ok(()) } else { Err(WrongTile::Content { hash, tile }) }
    }

    /// Whether `bytes` are the tiles from `first_tile` on, however many they are; at the first that is not, its error.
    pub fn check_many(&self, first_tile: u64, bytes: &[u8]) -> Result<(), WrongTile> {
        if bytes.is_empty() {
            return self.check(first_tile, bytes);
        }
        let mut tile = first_tile;
        for piece in bytes.chunks(TILE_BYTES as usize) {
            self.check(tile, piece)?;
            tile = tile.saturating_add(1);
        }
        Ok(())
    }
}

/// What hashing a blob gives.
pub struct Hashed {
    /// The blob's name.
    pub hash: BlobHash,
    /// Its outboard.
    pub outboard: Vec<u8>,
    /// Its tile list: the BLAKE3 of every tile alone, 32 bytes each. Empty unless it was asked for.
    pub tile_list: Vec<u8>,
}

/// What shall be made while a blob is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// Name and outboard.
    Outboard,
    /// Name, outboard and tile list, which hashes every byte twice.
    OutboardAndList,
}

/// Hashes `size` bytes on several threads. `read(offset, buffer)` fills the buffer; `progress` hears how many bytes are done.
pub fn hash_with(
    size: u64,
    make: Make,
    read: &(dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync),
    progress: &mut dyn FnMut(u64),
) -> io::Result<Hashed> {
    if size > BLOB_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes of {BLOB_BYTES_MAX}")));
    }
    let count = tiles(size);
    let length = usize::try_from(count).map_err(io::Error::other)?;
    let mut subtrees = vec![[0u8; 32]; length];
    let mut list = vec![[0u8; 32]; if make == Make::OutboardAndList { length } else { 0 }];
    let per_piece = (PIECE_BYTES / TILE_BYTES) as usize;
    let mut lists = list.chunks_mut(per_piece);
    let pieces = Mutex::new(
        subtrees
            .chunks_mut(per_piece)
            .enumerate()
            .map(|(at, subtrees)| (at as u64, subtrees, lists.next()))
            .collect::<Vec<_>>(),
    );
    if let Ok(mut pieces) = pieces.lock() {
        pieces.reverse();
    }
    crew::work::<io::Error>(
        count.div_ceil(per_piece as u64),
        &|buffer: &mut Vec<u8>, _| {
            let taken =
                pieces.lock().map_err(|_| io::Error::other("a thread that hashes has panicked"))?.pop();
            let Some((at, subtrees, list)) = taken else { return Ok(0) };
            let start = at * PIECE_BYTES;
            let bytes = (size - start).min(PIECE_BYTES);
            buffer.resize(bytes as usize, 0);
            read(start, buffer)?;
            for (index, piece) in buffer.chunks(TILE_BYTES as usize).enumerate() {
                subtrees[index] = if count == 1 {
                    *blake3::hash(piece).as_bytes()
                } else {
                    tile_subtree(at * per_piece as u64 + index as u64, piece)
                };
            }
            if let Some(list) = list {
                for (hash, piece) in list.iter_mut().zip(buffer.chunks(TILE_BYTES as usize)) {
                    *hash = *blake3::hash(piece).as_bytes();
                }
                if bytes == 0 {
                    list[0] = *blake3::hash(&[]).as_bytes();
                }
            }
            Ok(bytes)
        },
        progress,
    )?;
    if size == 0 {
        subtrees[0] = *blake3::hash(&[]).as_bytes();
    }
    let mut outboard = vec![0; NODE_BYTES as usize * (length - 1)];
    let hash =
        BlobHash::from_bytes(if length == 1 { subtrees[0] } else { join_root(&subtrees, &mut outboard) });
    Ok(Hashed { hash, outboard, tile_list: list.into_flattened() })
}

/// Hashes bytes in memory.
pub fn hash_bytes(bytes: &[u8], make: Make) -> Hashed {
    let read = |offset: u64, buffer: &mut [u8]| {
        let start = offset as usize;
        buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
        Ok(())
    };
    hash_with(bytes.len() as u64, make, &read, &mut |_| {})
        .expect("bytes in memory are read without an error")
}

/// The hash of a tile as a part of a blob of several.
fn tile_subtree(tile: u64, bytes: &[u8]) -> Subtree {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(tile * TILE_BYTES).update(bytes).finalize_non_root()
}

/// How many of `count` tiles, at least two, are below the left child: the largest power of two that leaves one for the right.
fn left_tiles(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// Writes the nodes over `subtrees`, at least two, and gives the root.
fn join_root(subtrees: &[Subtree], outboard: &mut [u8]) -> Subtree {
    let (left, right) = join_pair(subtrees, outboard);
    *hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
}

fn join(subtrees: &[Subtree], outboard: &mut [u8]) -> Subtree {
    if let [single] = subtrees {
        return *single;
    }
    let (left, right) = join_pair(subtrees, outboard);
    hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
}

fn join_pair(subtrees: &[Subtree], outboard: &mut [u8]) -> (Subtree, Subtree) {
    let left_count = left_tiles(subtrees.len() as u64) as usize;
    let (node, below) = outboard.split_at_mut(NODE_BYTES as usize);
    let (left_nodes, right_nodes) = below.split_at_mut(NODE_BYTES as usize * (left_count - 1));
    let left = join(&subtrees[..left_count], left_nodes);
    let right = join(&subtrees[left_count..], right_nodes);
    node[..32].copy_from_slice(&left);
    node[32..].copy_from_slice(&right);
    (left, right)
}

fn check(hash: BlobHash, size: u64, bytes: &[u8]) -> Result<(), OutboardError> {
    let expected = outboard_bytes(size.min(BLOB_BYTES_MAX));
    let got = bytes.len() as u64;
    if size > BLOB_BYTES_MAX || got != expected {
        return Err(OutboardError::Length { size, expected, got });
    }
    // What is still to be checked: a node, how many tiles are below it, and what it must hash to. A right child waits while its
    // left brother's subtree is checked, so that no more wait than the tree is high.
    let mut waiting = vec![(0u64, tiles(size), *hash.as_bytes())];
    while let Some((node, count, expected)) = waiting.pop() {
        if count == 1 {
            continue;
        }
        let place = (node * NODE_BYTES) as usize;
        let wrong = OutboardError::Node { hash, node };
        let pair = bytes.get(place..place + NODE_BYTES as usize).ok_or_else(|| wrong.clone())?;
        let mut children = [[0; 32]; 2];
        children[0].copy_from_slice(&pair[..32]);
        children[1].copy_from_slice(&pair[32..]);
        let [left, right] = children;
        let made = if node == 0 {
            *hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
        } else {
            hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
        };
        if made != expected {
            return Err(wrong);
        }
        let below = left_tiles(count);
        waiting.push((node + below, count - below, right));
        waiting.push((node + 1, below, left));
    }
    Ok(())
}
