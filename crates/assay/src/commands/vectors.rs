//! `assay vectors`.

use std::process::ExitCode;

use anyhow::Result;
use assay_engine::artifact::Profile;
use assay_engine::kernel::Kernel;
use assay_engine::vectors::{Vector, compute};
use clap::Args;

use super::import::ProfileArg;

/// The published vectors of a profile: `name hash` a line.
const fn published(profile: Profile) -> &'static str {
    match profile {
        Profile::Int8 => include_str!("../../../../docs/vectors/int8-v1.txt"),
        Profile::Int4 => include_str!("../../../../docs/vectors/int4-v1.txt"),
    }
}

#[derive(Args)]
pub struct Vectors {
    /// Of which profile.
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileArg,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Whether a kernel, or the reference, gives the published vectors of every profile.
pub fn gives_what_is_published(kernel: Option<Kernel>) -> bool {
    Profile::ALL.into_iter().all(|profile| are_published(profile, &compute(profile, kernel)))
}

fn are_published(profile: Profile, vectors: &[Vector]) -> bool {
    vectors.iter().map(|v| format!("{} {}\n", v.name, v.hash)).collect::<String>() == published(profile)
}

impl Vectors {
    pub fn run(self) -> Result<ExitCode> {
        let profile = Profile::from(self.profile);
        let reference = compute(profile, None);
        let mut all = vec![("reference", are_published(profile, &reference))];
        for kernel in Kernel::available() {
            all.push((kernel.name(), are_published(profile, &compute(profile, Some(kernel)))));
        }
        if self.json {
            let vectors: serde_json::Map<_, _> =
                reference.iter().map(|v| (v.name.clone(), serde_json::json!(v.hash))).collect();
            let equal: serde_json::Map<_, _> =
                all.iter().map(|(name, ok)| ((*name).to_owned(), serde_json::json!(ok))).collect();
            println!(
                "{}",
                serde_json::json!({"profile": profile.name(), "vectors": vectors, "equal": equal})
            );
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
