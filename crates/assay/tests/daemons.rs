//! One process of a kind uses a data directory at a time, and lets go of it however it ends.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod harness;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use harness::{Node, assay, command, stderr};

/// A daemon that needs no ledger, on a free port.
fn start(home: &Path, args: &[&str]) -> Child {
    let mut daemon = command(home);
    daemon.args(args).args(["--listen", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(Stdio::null());
    daemon.spawn().unwrap()
}

/// What a daemon says that may not start.
fn refused(home: &Path, args: &[&str]) -> String {
    let output = assay(home, &[args, &["--listen", "127.0.0.1:0"]].concat());
    assert!(!output.status.success(), "{args:?} starts");
    stderr(&output)
}

/// Waits until a daemon holds its data directory, as its lock says.
fn holds(home: &Path, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let lock = std::fs::File::open(home.join("locks").join(name));
        if lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_data_directory_has_one_daemon_of_a_kind() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let home = homes[0].path();
    let provider = Node::up(homes[1].path(), false, &[]);
    let gateway = ["gateway", "--open", "--provider", &provider.url];
    for (name, first, second, said) in [
        ("provider", &["up"][..], &["serve", harness::MODEL][..], "another `assay up` uses"),
        ("host", &["host"][..], &["host"][..], "another `assay host` uses"),
        ("gateway", &gateway[..], &gateway[..], "another `assay gateway` uses"),
    ] {
        let mut running = start(home, first);
        holds(home, name);
        let told = refused(home, second);
        assert!(told.contains(said) && told.contains("--data-dir"), "{told}");
        // Killed, it lets go at once: what starts next is not refused.
        running.kill().unwrap();
        running.wait().unwrap();
        let mut next = start(home, first);
        holds(home, name);
        next.kill().unwrap();
        next.wait().unwrap();
    }
}

#[test]
fn an_auditor_is_the_only_one_of_its_data_directory() {
    let home = tempfile::tempdir().unwrap();
    let locks = home.path().join("locks");
    std::fs::create_dir_all(&locks).unwrap();
    let held = std::fs::File::create(locks.join("auditor")).unwrap();
    held.try_lock().unwrap();
    let told = refused(home.path(), &["auditor"]);
    assert!(told.contains("another `assay auditor` uses"), "{told}");
    drop(held);
    // It asks for the ledger next, and there is none.
    let told = refused(home.path(), &["auditor", "--rpc", "http://127.0.0.1:1"]);
    assert!(!told.contains("another"), "{told}");
}
