//! `assay doctor`: looks at everything that can be wrong with an installation.

use std::process::ExitCode;

use anyhow::Result;
use assay_engine::artifact::Artifact;
use assay_engine::kernel::Kernel;
use assay_engine::vectors::compute;
use assay_node::key::NodeKey;
use clap::Args;

use super::up::DEFAULT_LISTEN;
use super::vectors::are_published;
use crate::home::{Home, built_in};
use crate::progress;

#[derive(Args)]
pub struct Doctor {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

struct Finding {
    what: String,
    ok: bool,
    detail: String,
}

impl Doctor {
    pub fn run(self, home: &Home) -> Result<ExitCode> {
        let mut all = Vec::new();
        let mut find = |what: &str, result: Result<String, String>| {
            let (ok, detail) = match result {
                Ok(detail) => (true, detail),
                Err(detail) => (false, detail),
            };
            all.push(Finding { what: what.to_owned(), ok, detail });
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        find("processor", Ok(format!("{threads} threads, kernels {:?}", Kernel::available())));
        find("kernel", Kernel::from_environment().map(|k| k.name().to_owned()).map_err(|e| e.to_string()));
        for kernel in Kernel::available() {
            let same = are_published(&compute(Some(kernel)));
            let result = if same {
                Ok("equals the published vectors")
            } else {
                Err("computes other numbers: do not serve with it")
            };
            find(&format!("vectors {}", kernel.name()), result.map(str::to_owned).map_err(str::to_owned));
        }
        find("data directory", writable(home));
        find(
            "key",
            NodeKey::load_or_create(&home.key()).map(|k| k.address().to_string()).map_err(|e| e.to_string()),
        );
        find("built-in model", built_in().map_err(|e| e.to_string()).and_then(|a| check(&a)));
        for path in home.installed()? {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            find(&name, Artifact::open(&path).map_err(|e| e.to_string()).and_then(|a| check(&a)));
        }
        let listen = std::net::TcpListener::bind(DEFAULT_LISTEN);
        find(
            "port",
            listen
                .map(|_| format!("{DEFAULT_LISTEN} is free"))
                .map_err(|e| format!("{DEFAULT_LISTEN}: {e}; a node may be running, or use --listen")),
        );
        let ok = all.iter().all(|f| f.ok);
        if self.json {
            let rows: Vec<_> = all
                .iter()
                .map(|f| serde_json::json!({"what": f.what, "ok": f.ok, "detail": f.detail}))
                .collect();
            println!("{}", serde_json::json!({"ok": ok, "findings": rows}));
        } else {
            for f in &all {
                println!("{} {:<18} {}", if f.ok { "✓" } else { "✗" }, f.what, f.detail);
            }
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn writable(home: &Home) -> Result<String, String> {
    let test = || -> std::io::Result<()> {
        std::fs::create_dir_all(home.path())?;
        tempfile::NamedTempFile::new_in(home.path())?;
        Ok(())
    };
    test().map(|()| home.path().display().to_string()).map_err(|e| format!("{}: {e}", home.path().display()))
}

fn check(a: &Artifact) -> Result<String, String> {
    progress::check_root(a)
        .map(|()| format!("{} {}", a.provenance().name, a.root()))
        .map_err(|e| e.to_string())
}
