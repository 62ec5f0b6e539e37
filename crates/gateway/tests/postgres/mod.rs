//! A Postgres of this test's own: Debian's server over a fresh folder, reached through a socket in it. Ends with the value.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NEEDED: &str = "this test needs a Postgres server (Debian: apt-get install postgresql); ASSAY_SKIP_POSTGRES=1 leaves it out";

pub struct Postgres {
    folder: tempfile::TempDir,
    programs: PathBuf,
    server: Child,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Not kill: its children would stay.
        let data = self.folder.path().join("data");
        let stop =
            as_user(&self.programs.join("pg_ctl")).args(["stop", "-m", "immediate", "-D"]).arg(data).output();
        if !stop.is_ok_and(|done| done.status.success()) {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
    }
}

/// Postgres refuses to run as root: then it runs as the user that Debian's package made for it.
fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]).arg(program);
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.trim_ascii() == b"0"
}

fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = installed.map(|entry| entry.path().join("bin")).collect();
    // The newest first.
    folders.sort();
    folders.reverse();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let complete = |folder: &PathBuf| {
        ["initdb", "postgres", "pg_ctl", "pg_isready", "createdb"].iter().all(|p| folder.join(p).exists())
    };
    folders.into_iter().find(complete).expect(NEEDED)
}

impl Postgres {
    /// Starts one; none if it is left out, which is said.
    pub fn start() -> Option<Postgres> {
        if std::env::var_os("ASSAY_SKIP_POSTGRES").is_some_and(|v| v == "1") {
            // Not by `eprintln`: the test runner would keep it to itself.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED the books on Postgres: ASSAY_SKIP_POSTGRES=1").unwrap();
            return None;
        }
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(folder.path()).status().unwrap();
            assert!(owned.success(), "{NEEDED}");
        }
        let data = folder.path().join("data");
        let made = as_user(&programs.join("initdb"))
            .args(["--auth=trust", "--username=assay", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let server = as_user(&programs.join("postgres"))
            .args(["-c", "listen_addresses=", "-c", "max_connections=100", "-c"])
            .arg(format!("unix_socket_directories={}", folder.path().display()))
            .arg("-D")
            .arg(&data)
            .stderr(Stdio::inherit())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let postgres = Postgres { folder, programs, server };
        for _ in 0..600 {
            let ready =
                as_user(&postgres.programs.join("pg_isready")).arg("-h").arg(postgres.folder.path()).output();
            if ready.unwrap().status.success() {
                return Some(postgres);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("Postgres did not start within a minute");
    }

    /// The URL of a new, empty database.
    pub fn database(&self, name: &str) -> String {
        let folder = self.folder.path();
        let created = as_user(&self.programs.join("createdb"))
            .args(["-U", "assay", "-h"])
            .arg(folder)
            .arg(name)
            .output();
        let created = created.unwrap();
        assert!(created.status.success(), "createdb: {}", String::from_utf8_lossy(&created.stderr));
        format!("postgres://assay@localhost/{name}?host={}", folder.display())
    }
}
