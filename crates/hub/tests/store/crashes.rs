//! kill -9 at random moments, and a disk that is full: a child process writes, this one kills it and looks.

use std::env;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use assay_hub::blob::{TILE_BYTES, tiles};
use assay_hub::store::{Fsck, Quota, Store};

use crate::content::{content, hashed, of_tiles};

const FOLDER: &str = "ASSAY_HUB_TEST_FOLDER";
/// Blobs that the child writes in turn; the odd ones share most tiles with those before them.
const BLOBS: u64 = 40;

fn blob(number: u64) -> Vec<u8> {
    let mut bytes = content(20 * TILE_BYTES + 100, number / 2);
    if number % 2 == 1 {
        bytes[0] ^= 1;
    }
    bytes
}

/// Not a test of its own: what the child does.
#[test]
fn child_writes_until_it_is_killed() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else { return };
    let store = Store::open(&folder, Quota::UNLIMITED).unwrap();
    for number in 0..BLOBS {
        let bytes = blob(number);
        let made = hashed(&bytes);
        if store.blob(made.hash).unwrap().is_some() {
            continue;
        }
        let mut arrival = store.arrive(made.hash, bytes.len() as u64).unwrap();
        arrival.set_outboard(&made.outboard).unwrap();
        arrival.take_local(&made.tile_list).unwrap();
        let missing: Vec<u64> = arrival.missing().iter().collect();
        for tile in missing {
            arrival.write(tile, of_tiles(&bytes, tile..tile + 1)).unwrap();
            if tile % 4 == 0 {
                arrival.save().unwrap();
                println!("saved");
            }
        }
        arrival.finish().unwrap();
        println!("whole");
        store.index(made.hash).unwrap();
    }
    println!("end");
}

fn child(folder: &std::path::Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "crashes::child_writes_until_it_is_killed", "--nocapture"]);
    command.env(FOLDER, folder).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
fn a_killed_writer_leaves_whole_blobs_and_parts_that_go_on() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0u64..25 {
        let mut child = child(folder.path()).spawn().unwrap();
        // Killed after it has said some bytes more than the rounds before, whatever it does then.
        let mut said = vec![0; 200 + (round * 37 % 90) as usize];
        let _ = child.stdout.take().unwrap().read_exact(&mut said);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
        let checked = store.fsck(Fsck::Check, &mut |_, _| {}).unwrap();
        assert_eq!(checked.problems, [], "round {round}");
        for (hash, size) in store.partials().unwrap() {
            assert!(store.blob(hash).unwrap().is_none());
            assert!(store.arrive(hash, size).unwrap().missing().count() <= tiles(size));
        }
    }
    let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
    for number in 0..BLOBS {
        let bytes = blob(number);
        let made = hashed(&bytes);
        if store.blob(made.hash).unwrap().is_none() {
            let mut arrival = store.arrive(made.hash, bytes.len() as u64).unwrap();
            arrival.set_outboard(&made.outboard).unwrap();
            arrival.write(0, &bytes).unwrap();
            arrival.finish().unwrap();
        }
        let mut got = vec![0; bytes.len()];
        store.blob(made.hash).unwrap().unwrap().read_at(0, &mut got).unwrap();
        assert!(got == bytes, "{number}");
    }
    assert!(store.partials().unwrap().is_empty());
}

const FULL: &str = "ASSAY_HUB_TEST_FULL";

/// Not a test of its own: what the child does that may write files of a few MiB at most.
#[test]
fn child_writes_more_than_it_may() {
    let Some(folder) = env::var_os(FULL).map(PathBuf::from) else { return };
    let store = Store::open(&folder, Quota::UNLIMITED).unwrap();
    let error = store.arrive(hashed(&content(16 << 20, 1)).hash, 16 << 20).err().unwrap();
    assert_eq!(error.code(), "disk_full", "{error}");
    assert_eq!((store.usage().unwrap().total(), store.partials().unwrap().len()), (0, 0));
    println!("refused as it should be");
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" --exact crashes::child_writes_more_than_it_may --nocapture";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(env::current_exe().unwrap())
        .env(FULL, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("refused as it should be"), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let store = Store::open(folder.path(), Quota::UNLIMITED).unwrap();
    assert_eq!(store.fsck(Fsck::Check, &mut |_, _| {}).unwrap().problems, []);
}
