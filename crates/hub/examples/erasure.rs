//! What cold models cost: processor seconds per GiB to encode, restore and repair, on files, one thread; peak memory beside the bytes of a stripe;
//! bytes read; and by a Markov chain, for several lifetimes and repair times, the chance of a loss in a year and what repairs read.
//!
//!     cargo run --release -p assay-hub --example erasure [MiB]
//!
//! prints tables, then JSON.
#![allow(clippy::unwrap_used)]

mod markov;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use assay_hub::blob::BlobHash;
use assay_hub::erasure::{Code, UNIT_BYTES, encode, repair, restore};
use markov::days_to_loss;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const GIB: f64 = (1u64 << 30) as f64;
const CODES: [(u8, u8); 4] = [(4, 6), (8, 12), (10, 14), (16, 24)];
const LIFETIMES_DAYS: [f64; 4] = [5.0, 30.0, 180.0, 720.0];
const REPAIRS_HOURS: [f64; 3] = [6.5, 12.0, 72.0];

fn main() {
    let mib: u64 = std::env::args().nth(1).map_or(256, |n| n.parse().expect("a number of MiB"));
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("blob");
    let blob = write_blob(&source, mib << 20);

    // The field's tables are made once a process, by the first use.
    let without_kib = memory_kib("VmRSS:");
    let small = folder.path().join("small");
    let name = write_blob(&small, 1 << 20);
    encode(&small, name, Code::new(1, 2).unwrap(), UNIT_BYTES, folder.path()).unwrap();
    let before_kib = memory_kib("VmRSS:");
    println!("tables: {} KiB", before_kib - without_kib);

    println!(
        "seconds of one thread per GiB, {mib} MiB; restore without the first n - k shards; repair of the last shard without the first"
    );
    println!(
        "code | encode | restore, all data | restore, without | repair | stripe, KiB | peak memory above, KiB | read, of the blob"
    );
    let costs: Vec<Value> =
        CODES.iter().map(|code| cost(*code, &source, blob, mib << 20, before_kib)).collect();

    println!(
        "\nlifetime, days | repair, hours | kept as | storage | loss a year | repair reads, blobs a year"
    );
    let mut chances = Vec::new();
    for lifetime in LIFETIMES_DAYS {
        for hours in REPAIRS_HOURS {
            chances.extend((2..=5).map(|copies| chance((1, copies), copies - 1, lifetime, hours)));
            for (needed, shards) in CODES {
                chances.push(chance((needed, shards), shards - 1, lifetime, hours));
                let lazy = needed + (shards - needed - 1) / 2;
                if lazy > needed {
                    chances.push(chance((needed, shards), lazy, lifetime, hours));
                }
            }
        }
    }
    println!(
        "\n{}",
        serde_json::to_string(
            &json!({ "mib": mib, "tables_kib": before_kib - without_kib, "costs": costs, "chances": chances })
        )
        .unwrap()
    );
}

/// Random bytes, written without being held in memory.
fn write_blob(path: &Path, bytes: u64) -> BlobHash {
    let mut content = blake3::Hasher::new().update(b"assay erasure benchmark").finalize_xof();
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        content.fill(&mut piece);
        hasher.update(&piece);
        file.write_all(&piece).unwrap();
    }
    file.flush().unwrap();
    BlobHash::from_bytes(*hasher.finalize().as_bytes())
}

fn cost((needed, shards): (u8, u8), source: &Path, blob: BlobHash, bytes: u64, before_kib: u64) -> Value {
    let code = Code::new(needed, shards).unwrap();
    let folder = tempfile::tempdir_in(source.parent().unwrap()).unwrap();
    let target = folder.path().join("made");
    let gib = bytes as f64 / GIB;

    // Writing 5 there resets the peak, so that each code has its own.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (set, encoded) = measured(|| encode(source, blob, code, UNIT_BYTES, folder.path()).unwrap());
    let path = |i: u8| (i, folder.path().join(set.name(i).unwrap().to_string()));
    let data: Vec<(u8, PathBuf)> = (0..needed).map(path).collect();
    let last: Vec<(u8, PathBuf)> = (shards - needed..shards).map(path).collect();
    let middle: Vec<(u8, PathBuf)> = (1..=needed).map(path).collect();
    let ((), copied) = measured(|| restore(&set, &data, &target).unwrap());
    let ((), restored) = measured(|| restore(&set, &last, &target).unwrap());
    let ((), repaired) = measured(|| repair(&set, shards - 1, &middle, &target).unwrap());
    let peak_kib = memory_kib("VmHWM:") - before_kib;

    let stripe_kib = u64::from(shards) * u64::from(UNIT_BYTES) / 1024;
    let read: u64 = last.iter().map(|(_, path)| fs::metadata(path).unwrap().len()).sum();
    let read = read as f64 / bytes as f64;
    let per_gib = [encoded, copied, restored, repaired].map(|s| s / gib);
    let [encoded, copied, restored, repaired] = per_gib;
    println!(
        "{needed} of {shards} | {encoded:.2} | {copied:.2} | {restored:.2} | {repaired:.2} | {stripe_kib} | {peak_kib} | {read:.4}"
    );
    json!({
        "needed": needed, "shards": shards, "encode_cpu_s_per_gib": encoded, "restore_all_data_cpu_s_per_gib": copied,
        "restore_cpu_s_per_gib": restored, "repair_cpu_s_per_gib": repaired, "stripe_kib": stripe_kib,
        "peak_kib": peak_kib, "read_of_blob": read, "read_for_a_tile_of_a_lost_shard": needed,
    })
}

fn measured<T>(act: impl FnOnce() -> T) -> (T, f64) {
    let begun = cpu_s();
    let made = act();
    (made, cpu_s() - begun)
}

fn cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn memory_kib(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// `needed` of `parts`, repaired from `repair_at` parts on.
fn chance((needed, parts): (u8, u8), repair_at: u8, lifetime: f64, hours: f64) -> Value {
    let loss = -(-365.0 / days_to_loss(needed, parts, repair_at, lifetime, hours / 24.0)).exp_m1();
    // Each part that is made again reads a blob; while some are missing fewer are lost. The time of the repair itself is left out.
    let missing = parts - repair_at;
    let until_repair: f64 = (0..missing).map(|gone| lifetime / f64::from(parts - gone)).sum();
    let reads = 365.0 * f64::from(missing) / until_repair;
    let storage = f64::from(parts) / f64::from(needed);
    let name = match needed {
        1 => format!("{parts} copies"),
        _ => format!("{needed} of {parts}, repair at {repair_at}"),
    };
    println!("{lifetime} | {hours} | {name} | {storage:.2} | {loss:.1e} | {reads:.1}");
    json!({
        "lifetime_days": lifetime, "repair_hours": hours, "needed": needed, "parts": parts, "repair_at": repair_at,
        "storage": storage, "loss_a_year": loss, "repair_reads_blobs_a_year": reads,
    })
}
