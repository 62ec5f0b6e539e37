//! How fast a store is: `cargo run --release -p assay-hub --example store [MiB] [folder]` prints JSON, with GiB a second and
//! seconds of all cores a GiB for each step. The content is the same in every run.

use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

use assay_hub::blob::TILE_BYTES;
use assay_hub::outboard::{Make, hash_bytes};
use assay_hub::store::{Fsck, Quota, Store};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

type Failure = Box<dyn std::error::Error>;

/// Tiles that are verified and written at a time: 4 MiB.
const WRITE_TILES: u64 = 256;

fn cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn measured<T>(
    results: &mut Map<String, Value>,
    name: &str,
    bytes: usize,
    act: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (clock, cpu) = (Instant::now(), cpu_s());
    let made = act()?;
    let gib = bytes as f64 / (1u64 << 30) as f64;
    let (seconds, cpu) = (clock.elapsed().as_secs_f64(), cpu_s() - cpu);
    results.insert(name.to_owned(), json!({ "gib_per_s": gib / seconds, "cpu_s_per_gib": cpu / gib }));
    Ok(made)
}

fn main() -> Result<(), Failure> {
    let mut arguments = env::args().skip(1);
    let mib: usize = arguments.next().map_or(Ok(256), |mib| mib.parse())?;
    let parent = arguments.next().map_or_else(env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(parent)?;
    let mut bytes = vec![0; mib << 20];
    blake3::Hasher::new().update(b"assay store benchmark").finalize_xof().fill(&mut bytes);
    let source = folder.path().join("source");
    fs::write(&source, &bytes)?;
    let mut results = Map::new();

    let made = measured(&mut results, "hash", bytes.len(), || Ok(hash_bytes(&bytes, Make::Outboard)))?;
    let store = Store::open(&folder.path().join("arriving"), Quota::UNLIMITED)?;
    let mut arrival = store.arrive(made.hash, bytes.len() as u64)?;
    arrival.set_outboard(&made.outboard)?;
    let verifier = arrival.verifier()?;
    let piece = (WRITE_TILES * TILE_BYTES) as usize;
    measured(&mut results, "verify_one_thread", bytes.len(), || {
        for (index, bytes) in bytes.chunks(piece).enumerate() {
            verifier.check_many(index as u64 * WRITE_TILES, bytes)?;
        }
        Ok(())
    })?;
    measured(&mut results, "write", bytes.len(), || {
        for (index, bytes) in bytes.chunks(piece).enumerate() {
            arrival.write(index as u64 * WRITE_TILES, bytes)?;
        }
        Ok(())
    })?;
    let blob = measured(&mut results, "finish", bytes.len(), || Ok(arrival.finish()?))?;
    measured(&mut results, "index", bytes.len(), || Ok(store.index(blob.hash())?))?;
    let checked =
        measured(&mut results, "fsck", bytes.len(), || Ok(store.fsck(Fsck::Check, &mut |_, _| {})?))?;
    if !checked.problems.is_empty() {
        return Err(format!("{:?}", checked.problems).into());
    }
    let adding = Store::open(&folder.path().join("adding"), Quota::UNLIMITED)?;
    measured(&mut results, "add_file", bytes.len(), || Ok(adding.add_file(&source, &mut |_, _| {})?))?;
    for start in (0..bytes.len()).step_by(64 * TILE_BYTES as usize) {
        bytes[start] ^= 1;
    }
    fs::write(&source, &bytes)?;
    measured(&mut results, "add_second_version", bytes.len(), || {
        Ok(adding.add_file(&source, &mut |_, _| {})?)
    })?;
    println!("{}", serde_json::to_string_pretty(&json!({ "mib": mib, "steps": results }))?);
    Ok(())
}
