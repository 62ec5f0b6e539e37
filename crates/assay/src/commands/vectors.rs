//! `assay vectors`.

use std::process::ExitCode;

use anyhow::Result;
use assay_engine::kernel::Kernel;
use assay_engine::vectors::{Vector, compute};
use clap::Args;

/// The published vectors: `name hash` a line.
const PUBLISHED: &str = include_str!("../../../../docs/vectors/int8-v1.txt");

#[derive(Args)]
pub struct Vectors {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Whether these are the published vectors.
pub fn are_published(vectors: &[Vector]) -> bool {
    vectors.iter().map(|v| format!("{} {}\n", v.name, v.hash)).collect::<String>() == PUBLISHED
}

impl Vectors {
    pub fn run(self) -> Result<ExitCode> {
        let reference = compute(None);
        let mut all = vec![("reference", are_published(&reference))];
        for kernel in Kernel::available() {
            all.push((kernel.name(), are_published(&compute(Some(kernel)))));
        }
        if self.json {
            let vectors: serde_json::Map<_, _> =
                reference.iter().map(|v| (v.name.clone(), serde_json::json!(v.hash))).collect();
            let equal: serde_json::Map<_, _> =
                all.iter().map(|(name, ok)| ((*name).to_owned(), serde_json::json!(ok))).collect();
            println!("{}", serde_json::json!({"profile": "int8-v1", "vectors": vectors, "equal": equal}));
        } else {
            for v in &reference {
                println!("{} {}", v.name, v.hash);
            }
            for (name, ok) in &all {
                eprintln!("{name}: {}", if *ok { "equals the published vectors" } else { "DIFFERS" });
            }
        }
        Ok(if all.iter().all(|(_, ok)| *ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
