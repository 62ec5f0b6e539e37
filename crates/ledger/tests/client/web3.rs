//! web3.py, as it is published, drives a deposit and a claim. It is installed from its registry, in pinned versions, below the build
//! directory; `ASSAY_SKIP_CLIENTS=1` leaves it out, and nothing else does.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use crate::chains::{on_both, parameters};

const NEEDED: &str =
    "\nThis test needs python3 with venv and Python's registry; ASSAY_SKIP_CLIENTS=1 leaves it out.";

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}{NEEDED}"));
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complained}{NEEDED}", output.status);
    said.into_owned()
}

#[test]
fn web3_for_python_deposits_and_claims() {
    if std::env::var_os("ASSAY_SKIP_CLIENTS").is_some_and(|v| v == "1") {
        // Not by `eprintln`: the test runner would keep it to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED web3.py: ASSAY_SKIP_CLIENTS=1").unwrap();
        return;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = here.join("tests/web3/requirements.txt");
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("web3-python");
    let (python, done) = (venv.join("bin/python"), venv.join("installed"));
    let wanted = std::fs::read(&list).unwrap();
    if !std::fs::read(&done).is_ok_and(|held| held == wanted) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run(Command::new(&python).args(pip).arg(&list));
        std::fs::write(done, wanted).unwrap();
    }
    on_both(async |node| {
        let ledger = node.deploy(parameters()).await;
        let said = run(Command::new(&python)
            .arg(here.join("tests/web3/deposit_and_claim.py"))
            .args([&node.url, &ledger.parts().directory.to_string()])
            .arg(here.join("../../contracts/artifacts")));
        assert_eq!(said.lines().last(), Some("all checks passed"), "{said}");
    });
}
