//! anvil, as it is published, in a pinned version: installed from its registry below the build directory.
//! `ASSAY_SKIP_CLIENTS=1` leaves it out, and nothing else does.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A running anvil, which ends with this.
pub struct Anvil {
    pub url: String,
    child: Child,
    /// Holds the states that it moves out of memory: killed, it would leave gigabytes of them where it keeps them.
    _states: tempfile::TempDir,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Anvil {
    /// Starts one on a port of its own; none if clients are left out, which is said.
    pub fn start() -> Option<Anvil> {
        if skipped("the client") {
            return None;
        }
        let states = tempfile::tempdir().unwrap();
        let mut child = Command::new(program())
            .args(["--host", "127.0.0.1", "--port", "0"])
            .arg("--cache-path")
            .arg(states.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|e| panic!("anvil: {e}{NEEDED}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said =
            |line: &String| line.split_once("Listening on ").map(|(_, at)| format!("http://{}", at.trim()));
        let url = lines.by_ref().find_map(|line| said(&line.unwrap())).expect("anvil says where it listens");
        // It writes a line for each request, and stops when nobody reads them.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Anvil { url, child, _states: states })
    }
}

const NEEDED: &str =
    "\nThis test needs node, npm and the npm registry; ASSAY_SKIP_CLIENTS=1 leaves anvil out.";

/// Whether clients are left out, which is said.
pub fn skipped(test: &str) -> bool {
    let skip = std::env::var_os("ASSAY_SKIP_CLIENTS").is_some_and(|v| v == "1");
    if skip {
        // Not by `eprintln`: the test runner would keep it to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED {test} beside anvil: ASSAY_SKIP_CLIENTS=1").unwrap();
    }
    skip
}

/// A folder below the build directory. Examples, which are not told where it is, lie two folders below it.
fn build_folder() -> PathBuf {
    match option_env!("CARGO_TARGET_TMPDIR") {
        Some(folder) => folder.into(),
        None => std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("tmp"),
    }
}

/// The program of the package, without the script around it: that one would outlive its parent.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let folder = build_folder().join("anvil");
        let lists = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chain/tests/anvil");
        let wanted = std::fs::read(lists.join("package-lock.json")).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        // Test binaries run one after the other, but nothing promises it.
        let lock = std::fs::File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        if !std::fs::read(folder.join("installed")).is_ok_and(|held| held == wanted) {
            for list in ["package.json", "package-lock.json"] {
                std::fs::copy(lists.join(list), folder.join(list)).unwrap();
            }
            // Not `npm ci`: it wants the packages of all platforms in the list, and not every registry has them.
            let options = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"];
            let output = Command::new("npm").args(options).current_dir(&folder).output();
            let output = output.unwrap_or_else(|e| panic!("npm: {e}{NEEDED}"));
            assert!(output.status.success(), "{output:?}{NEEDED}");
            std::fs::write(folder.join("installed"), &wanted).unwrap();
        }
        let packages = std::fs::read_dir(folder.join("node_modules/@foundry-rs")).unwrap();
        let mut programs = packages.map(|p| p.unwrap().path().join("bin").join("anvil"));
        programs.find(|program| program.exists()).expect("the package of this platform has the program")
    })
}
