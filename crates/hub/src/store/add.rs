//! Adding a file: it arrives like any other blob, from a peer that is this disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::StoreError;
use super::folder::write_whole;
use super::{Blob, Store};
use crate::blob::{BLOB_BYTES_MAX, TILE_BYTES};
use crate::crew;
use crate::outboard::{Make, hash_with};

/// Tiles that are read, verified and written at a time: 1 MiB.
const PIECE_TILES: u64 = 64;

pub(super) fn add_file(
    store: &Store,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Blob, StoreError> {
    let error = || StoreError::io("read", path);
    let file = File::open(path).map_err(error())?;
    let size = file.metadata().map_err(error())?.len();
    if size > BLOB_BYTES_MAX {
        return Err(StoreError::TooLarge { got: size });
    }
    let read = |offset: u64, buffer: &mut [u8]| file.read_exact_at(buffer, offset);
    let hashed =
        hash_with(size, Make::OutboardAndList, &read, &mut |done| progress(done, size)).map_err(error())?;
    if let Some(blob) = store.blob(hashed.hash)? {
        if blob.tile_list()?.is_none() {
            write_whole(&store.0.folder.tile_list(blob.hash()), &hashed.tile_list)?;
        }
        return Ok(blob);
    }
    let mut arrival = store.arrive(hashed.hash, size)?;
    arrival.set_outboard(&hashed.outboard)?;
    arrival.take_local(&hashed.tile_list)?;
    let missing = arrival.missing();
    let verifier = arrival.verifier()?;
    let incoming = arrival.incoming();
    let piece = |buffer: &mut Vec<u8>, index: u64| {
        let first = index * PIECE_TILES;
        let tiles = first..(first + PIECE_TILES).min(missing.tiles());
        let mut copied = 0;
        // One read and one write for all neighbours that are missing.
        let mut at = tiles.start;
        while at < tiles.end {
            let end = (at..tiles.end).find(|tile| !missing.contains(*tile)).unwrap_or(tiles.end);
            if end > at {
                let bytes = at * TILE_BYTES..(end * TILE_BYTES).min(size);
                buffer.resize((bytes.end - bytes.start) as usize, 0);
                let changed = |_| StoreError::Changed { path: path.to_owned() };
                file.read_exact_at(buffer, bytes.start).map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => StoreError::Changed { path: path.to_owned() },
                    _ => StoreError::io("read", path)(error),
                })?;
                verifier.check_many(at, buffer).map_err(changed)?;
                incoming.place(at, buffer)?;
                copied += buffer.len() as u64;
            }
            at = end.max(at + 1);
        }
        Ok::<u64, StoreError>(copied)
    };
    crew::work(missing.tiles().div_ceil(PIECE_TILES), &piece, &mut |done| progress(done, size))?;
    let blob = arrival.finish()?;
    write_whole(&store.0.folder.tile_list(blob.hash()), &hashed.tile_list)?;
    Ok(blob)
}
