//! `assay key`: the secret keys of light audits.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use assay_core::canonical::Canonical as _;
use assay_core::id::Hash;
use assay_core::limits::LIGHT_KEY_BYTES_MAX;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_node::secret;
use assay_verify::light::{Key as LightKey, KeyError, Model, Secret, Seed};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::up::EngineArgs;
use crate::home::Home;
use crate::progress;

/// Make, check and reveal the secret keys of light audits.
///
/// A light audit checks a few tokens of an answer without the model: the auditor holds a key of a few megabytes, made from the model and
/// a secret seed. Who knows the key can forge what it checks, so it is used for one epoch: its commitment is published before, its seed
/// after, and then anyone with the model makes the same key and repeats the checks.
#[derive(Args)]
pub struct Key {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a key for light audits of a model, and print its commitment.
    Make(Make),
    /// Check that a key was made from a model's weights and its own seed: exit status 0 if so, 1 if not, 2 if it could not be checked.
    Check(Check),
    /// Print the secret seed of a key, after its epoch.
    Reveal(Reveal),
}

#[derive(Args)]
struct Make {
    /// Model: a name, root or file.
    model: String,
    /// The epoch that it is used in.
    #[arg(long, default_value_t = 0, value_name = "N")]
    epoch: u64,
    /// `random`, or the 64 hex digits of a seed that was revealed. Others on this machine can read command lines: a seed that is
    /// given here is no secret.
    #[arg(long, default_value = "random", value_name = "HEX")]
    seed: String,
    /// Longest answer that it can check, prompt included [default: the model's window].
    #[arg(long, value_name = "TOKENS")]
    positions: Option<u32>,
    /// Write it here [default: keys/MODEL-EPOCH.key in the data directory].
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Args)]
struct Check {
    /// The key's file.
    #[arg(value_name = "KEY")]
    key: PathBuf,
    /// Model: a name, root or file [default: the installed one that the key says it is of].
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Args)]
struct Reveal {
    /// The key's file.
    #[arg(value_name = "KEY")]
    key: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Key {
    /// Whether this is a verification, whose failure to happen is no verdict.
    pub fn checks(&self) -> bool {
        matches!(self.what, What::Check(_))
    }

    pub fn run(self, home: &Home) -> Result<ExitCode> {
        match self.what {
            What::Make(make) => make.run(home),
            What::Check(check) => check.run(home),
            What::Reveal(reveal) => reveal.run(),
        }
    }
}

/// Makes a key of a model whose content was just hashed.
pub fn make(
    artifact: &Artifact,
    secret: Secret,
    positions: u32,
    kernel: Kernel,
    pool: &Pool,
) -> Result<LightKey, KeyError> {
    let model = Model { constants: artifact, root: artifact.root(), kernel, pool };
    LightKey::make(&model, secret, positions)
}

/// Reads a key's file. What it says is not trusted to be of any model.
pub fn read(path: &Path) -> Result<LightKey> {
    let shown = || path.display().to_string();
    let length = std::fs::metadata(path).with_context(shown)?.len();
    if length > LIGHT_KEY_BYTES_MAX as u64 {
        bail!("{}: {length} bytes are more than any key has", shown());
    }
    let bytes = std::fs::read(path).with_context(shown)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if std::fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            eprintln!(
                "warning: {} can be read by others; while its epoch lasts it is a secret (chmod 600)",
                shown()
            );
        }
    }
    LightKey::from_canonical_bytes(&bytes).with_context(|| format!("{} is no key of a light audit", shown()))
}

/// What may be said of a key: nothing secret.
fn described(key: &LightKey) -> Value {
    json!({
        "model": key.model(), "epoch": key.reveal().epoch, "positions": key.positions(), "commitment": key.commitment(),
    })
}

/// As lines for people.
fn lines(key: &LightKey) -> String {
    format!(
        "model       {}\nepoch       {}\npositions   {}\ncommitment  {}",
        key.model(),
        key.reveal().epoch,
        key.positions(),
        key.commitment()
    )
}

impl Make {
    fn run(self, home: &Home) -> Result<ExitCode> {
        let artifact = home.model(&self.model)?;
        let seed = match self.seed.as_str() {
            "random" => secret::draw(),
            // What was typed is not repeated: it may be a secret with one digit too many.
            hex => *hex.parse::<Hash>().ok().context("--seed takes `random` or 64 hex digits")?.as_bytes(),
        };
        let path = self.out.clone().unwrap_or_else(|| home.key_path(&artifact.provenance().name, self.epoch));
        if path.exists() {
            bail!(
                "{} is there already, and is not replaced: choose another --epoch or --out",
                path.display()
            );
        }
        progress::check_root(&artifact)?;
        let started = Instant::now();
        let positions = self.positions.unwrap_or(artifact.program().program().context);
        let secret = Secret { seed: Seed::from_bytes(seed), epoch: self.epoch };
        let key = make(&artifact, secret, positions, Kernel::from_environment()?, &self.engine.pool())?;
        let made = started.elapsed();
        let bytes = key.to_canonical_bytes();
        if bytes.len() > LIGHT_KEY_BYTES_MAX {
            bail!("the key would have {} bytes, more than the {LIGHT_KEY_BYTES_MAX} allowed", bytes.len());
        }
        if !secret::write_new(&path, &bytes).with_context(|| path.display().to_string())? {
            bail!("{} was made by someone else meanwhile, and is not replaced", path.display());
        }
        if self.json {
            let mut json = described(&key);
            json["path"] = json!(path);
            json["bytes"] = bytes.len().into();
            json["make_ns"] = json!(made.as_nanos() as u64);
            println!("{json}");
            return Ok(ExitCode::SUCCESS);
        }
        println!("{}", lines(&key));
        println!(
            "key         {}: {} bytes, made in {:.1} s",
            path.display(),
            bytes.len(),
            made.as_secs_f64()
        );
        println!(
            "Publish the commitment before epoch {0} begins, keep the file to yourself until it is over, then `assay key reveal` it.",
            self.epoch
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl Check {
    fn run(self, home: &Home) -> Result<ExitCode> {
        let key = read(&self.key)?;
        let artifact = match &self.model {
            Some(name) => home.model(name)?,
            None => home.model_by_root(key.model())?.with_context(|| {
                format!("model {} is not installed; import it, or name a file with --model", key.model())
            })?,
        };
        progress::check_root(&artifact)?;
        let (kernel, pool) = (Kernel::from_environment()?, self.engine.pool());
        let model = Model { constants: artifact.as_ref(), root: artifact.root(), kernel, pool: &pool };
        let checked = key.check_against(&model);
        if self.json {
            let mut json = described(&key);
            json["holds"] = checked.is_ok().into();
            json["failure"] = json!(checked.as_ref().err().map(ToString::to_string));
            println!("{json}");
        } else {
            println!("{}", lines(&key));
            match &checked {
                Ok(()) => println!(
                    "The key holds: it was made from {} and its own seed.",
                    artifact.provenance().name
                ),
                Err(e) => println!("THE KEY DOES NOT HOLD: {e}"),
            }
        }
        Ok(if checked.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

impl Reveal {
    fn run(self) -> Result<ExitCode> {
        let key = read(&self.key)?;
        let seed = Hash::from_bytes(*key.reveal().seed.as_bytes());
        if self.json {
            let mut json = described(&key);
            json["seed"] = json!(seed);
            println!("{json}");
        } else {
            println!("{}\nseed        {seed}", lines(&key));
            eprintln!("Before the epoch is over, whoever sees the seed can forge what the key checks.");
        }
        Ok(ExitCode::SUCCESS)
    }
}
