//! A process that appends is killed; what it had acknowledged is there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use assay_ledger::epochs::{Builder, Terms};

use crate::naive::{IDENTITY, NaiveBatch, choose, model, receipt};

const FOLDER: &str = "ASSAY_TEST_EPOCHS_FOLDER";
const ROUNDS: usize = 6;

/// A path for a folder of this process.
pub fn folder(name: &str) -> PathBuf {
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("epochs-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn made(n: u64) -> assay_core::receipt::SignedReceipt {
    receipt(n, 0, model(n % 2), n % 7)
}

/// Appends in groups of rising size and says after each how far it is.
#[test]
#[ignore = "the child of the next test: appends until it is killed"]
fn appends_until_it_is_killed() {
    let folder = std::env::var(FOLDER).unwrap();
    let (mut b, _) = Builder::open(folder.as_ref(), IDENTITY).unwrap();
    let mut next = b.next().map_or(0, |first| first + b.waiting());
    for size in (1..40).cycle() {
        let group: Vec<_> = (next..next + size).rev().map(made).collect();
        b.append_many(&group).unwrap();
        next += size;
        writeln!(std::io::stdout(), "\nacknowledged {next}").unwrap();
    }
}

#[test]
fn nothing_that_was_acknowledged_is_lost_when_the_process_is_killed() {
    let path = folder("killed");
    let mut acknowledged = 0u64;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["killed::appends_until_it_is_killed", "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        for line in lines {
            let Some(n) = line.unwrap().strip_prefix("acknowledged ").and_then(|n| n.parse().ok()) else {
                continue;
            };
            acknowledged = acknowledged.max(n);
            heard += 1;
            if heard == 20 + 13 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let (b, _) = Builder::open(&path, IDENTITY).unwrap();
        assert!(heard > 10 && b.waiting() >= acknowledged, "{} of {acknowledged}", b.waiting());
    }
    let (mut b, _) = Builder::open(&path, IDENTITY).unwrap();
    let count = b.waiting();
    assert!(
        (0..count).all(|n| b.append(&made(n)).unwrap().known == 1),
        "every number up to the last is there"
    );
    let kept = (0..count).map(|n| (n, assay_ledger::epochs::Leaf::of(&made(n)))).collect();
    let (first, leaves, end) = choose(&kept, None, 0, &Terms::default()).unwrap();
    let naive = NaiveBatch::of(0, first, leaves, end);
    assert_eq!(b.seal(0, &Terms::default()).unwrap(), naive.batch);
    drop(b);
    let (b, _) = Builder::open(&path, IDENTITY).unwrap();
    naive.check(&b, count - 1).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
}
