//! `assay hub`: what this machine keeps for others, and whether it is in order.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use assay_hub::blob::BlobHash;
use assay_hub::catalogue::Catalogue;
use assay_hub::sources::abandoned;
use assay_hub::store::{Collect, Fsck, Materialised, Problem, Quota, Store, StoreError};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use indicatif::{HumanBytes, ProgressBar};
use serde_json::json;

use crate::home::Home;
use crate::progress;

/// Look after what this machine keeps: blobs, the releases that name them, and the disk they lie on.
#[derive(Args)]
pub struct Hub {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Add(Add),
    Pin(Pin),
    Unpin(Unpin),
    Export(Export),
    Gc(Gc),
    Fsck(FsckArgs),
}

/// List the blobs, what keeps them, and what arrives.
#[derive(Args)]
struct List {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Add a file, and keep it under a pin.
#[derive(Args)]
struct Add {
    /// The file.
    file: PathBuf,
    /// Name of the pin [default: the file's name].
    #[arg(long)]
    pin: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Keep a blob whatever the rule of replication says.
#[derive(Args)]
struct Pin {
    /// Name of the pin.
    name: String,
    /// The blob: 64 hex digits.
    blob: BlobHash,
}

/// Let go of a blob that was pinned. `assay hub gc` frees what nothing keeps.
#[derive(Args)]
struct Unpin {
    /// Name of the pin.
    name: String,
}

/// Write a blob to a file, without a copy where the file system can share it.
#[derive(Args)]
struct Export {
    /// The blob: 64 hex digits.
    blob: BlobHash,
    /// The file.
    file: PathBuf,
}

/// Free what nothing keeps.
#[derive(Args)]
struct Gc {
    /// Only say what would be freed.
    #[arg(long)]
    dry_run: bool,
    /// Delete arrivals and pulls that nobody went on with for this many days.
    #[arg(long, default_value_t = 7, value_name = "DAYS")]
    partials: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Read everything and check it: exit status 0 if all is in order, 1 if not.
#[derive(Args)]
struct FsckArgs {
    /// Mend what can be: a damaged blob becomes an arrival that has its good parts, so that fetching it again goes on there.
    #[arg(long)]
    repair: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The pin's tag.
fn pin_tag(name: &str) -> String {
    format!("pin/{name}")
}

/// The store of this machine.
pub fn store(home: &Home, quota: Quota) -> Result<Store> {
    match Store::open(&home.hub().join("store"), quota) {
        Err(e @ StoreError::Busy { .. }) => {
            Err(e).context("`assay host` has the store open; stop it first, or ask it over HTTP")
        }
        opened => Ok(opened?),
    }
}

/// The records of this machine.
pub fn catalogue(home: &Home) -> Result<Catalogue> {
    let catalogue = Catalogue::open(&home.hub().join("records"))?;
    for path in catalogue.damaged() {
        eprintln!("warning: {} holds no believed record; remove it, and it is fetched again", path.display());
    }
    Ok(catalogue)
}

impl Hub {
    pub fn run(self, home: &Home) -> Result<ExitCode> {
        match self.command {
            Command::List(c) => c.run(home)?,
            Command::Add(c) => c.run(home)?,
            Command::Pin(c) => c.run(home)?,
            Command::Unpin(c) => c.run(home)?,
            Command::Export(c) => c.run(home)?,
            Command::Gc(c) => c.run(home)?,
            Command::Fsck(c) => return c.run(home),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A bar over bytes, and what moves it.
fn bytes_bar(what: &str) -> (ProgressBar, impl FnMut(u64, u64)) {
    let bar = progress::bar("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_message(what.to_owned());
    let shown = bar.clone();
    let moved = move |done, total| {
        shown.set_length(total);
        shown.set_position(done);
    };
    (bar, moved)
}

impl List {
    fn run(self, home: &Home) -> Result<()> {
        let store = store(home, Quota::UNLIMITED)?;
        let (tags, usage, partials) = (store.tags()?, store.usage()?, store.partials()?);
        let mut blobs = Vec::new();
        for hash in store.blobs()? {
            let size = store.blob(hash)?.map_or(0, |blob| blob.size());
            let kept: Vec<&str> =
                tags.iter().filter(|(_, h)| *h == hash).map(|(tag, _)| tag.as_str()).collect();
            blobs.push((hash, size, kept));
        }
        if self.json {
            let blobs: Vec<_> = blobs
                .iter()
                .map(|(h, size, tags)| json!({"blob": h, "bytes": size, "kept_by": tags}))
                .collect();
            let partials: Vec<_> =
                partials.iter().map(|(h, size)| json!({"blob": h, "bytes": size})).collect();
            let said = json!({
                "blobs": blobs, "arriving": partials,
                "bytes": {"blobs": usage.blobs, "donors": usage.donors, "arriving": usage.partials},
            });
            println!("{said}");
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["blob", "size", "kept by"]);
        for (hash, size, kept) in &blobs {
            let kept = if kept.is_empty() { "nothing: gc frees it".to_owned() } else { kept.join("\n") };
            table.add_row([hash.to_string(), HumanBytes(*size).to_string(), kept]);
        }
        for (hash, size) in &partials {
            table.add_row([hash.to_string(), HumanBytes(*size).to_string(), "arriving".to_owned()]);
        }
        println!("{table}");
        println!("{} on disk", HumanBytes(usage.total()));
        Ok(())
    }
}

impl Add {
    fn run(self, home: &Home) -> Result<()> {
        let store = store(home, Quota::UNLIMITED)?;
        let name = match (&self.pin, self.file.file_name()) {
            (Some(pin), _) => pin.clone(),
            (None, Some(name)) => name.to_string_lossy().into_owned(),
            (None, None) => bail!("{} has no name; give one with --pin", self.file.display()),
        };
        let (bar, mut moved) = bytes_bar("adding");
        let blob = store.add_file(&self.file, &mut moved)?;
        bar.finish_and_clear();
        store.tag(&pin_tag(&name), blob.hash())?;
        store.index(blob.hash())?;
        if self.json {
            println!("{}", json!({"blob": blob.hash(), "bytes": blob.size(), "pin": name}));
        } else {
            println!("{} {} pinned as {name}", blob.hash(), HumanBytes(blob.size()));
        }
        Ok(())
    }
}

impl Pin {
    fn run(self, home: &Home) -> Result<()> {
        let store = store(home, Quota::UNLIMITED)?;
        if store.blob(self.blob)?.is_none() {
            bail!("{} is not here; `assay hub list` says what is", self.blob);
        }
        store.tag(&pin_tag(&self.name), self.blob)?;
        println!("{} is kept as {}", self.blob, self.name);
        Ok(())
    }
}

impl Unpin {
    fn run(self, home: &Home) -> Result<()> {
        let store = store(home, Quota::UNLIMITED)?;
        let tag = pin_tag(&self.name);
        if !store.tags()?.iter().any(|(known, _)| *known == tag) {
            bail!("nothing is pinned as {}; `assay hub list` says what is", self.name);
        }
        store.untag(&tag)?;
        println!("{} is no longer a pin", self.name);
        Ok(())
    }
}

impl Export {
    fn run(self, home: &Home) -> Result<()> {
        let how = store(home, Quota::UNLIMITED)?.materialise(self.blob, &self.file)?;
        let how = match how {
            Materialised::Linked => "the store's own file under another name: do not change it in place",
            Materialised::Copied => "a copy",
        };
        println!("{}: {how}", self.file.display());
        Ok(())
    }
}

impl Gc {
    fn run(self, home: &Home) -> Result<()> {
        let store = store(home, Quota::UNLIMITED)?;
        let collect = if self.dry_run { Collect::DryRun } else { Collect::Delete };
        let age = Duration::from_secs(self.partials.saturating_mul(24 * 3600));
        let found = store.gc(collect, age)?;
        // So many days that there was no such time: nothing is that old.
        let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let pulls = abandoned(&home.path().join("pulls"), before, collect)?;
        if self.json {
            let said = json!({
                "dry_run": self.dry_run, "freed": found.freed, "blobs": found.blobs, "arrivals": found.partials,
                "donors": found.donors, "in_use": found.used,
                "pulls": pulls.iter().map(|p| json!({"path": p.path, "bytes": p.bytes})).collect::<Vec<_>>(),
            });
            println!("{said}");
            return Ok(());
        }
        let did = if self.dry_run { "would free" } else { "freed" };
        for hash in &found.blobs {
            println!("{did} {hash}");
        }
        for hash in &found.partials {
            println!("{did} the arrival of {hash}");
        }
        for pull in &pulls {
            println!("{did} the pull in {}", pull.path.display());
        }
        let of_pulls: u64 = pulls.iter().map(|pull| pull.bytes).sum();
        println!("{did} {}", HumanBytes(found.freed + of_pulls));
        Ok(())
    }
}

/// What is wrong, and what a repair makes of it.
fn said(problem: &Problem) -> (String, &'static str) {
    match problem {
        Problem::Tiles { hash, damaged } => {
            (format!("{hash}: {damaged} damaged tiles"), "fetch it again: what is good stays")
        }
        Problem::Outboard { hash } => (format!("{hash}: its outboard is wrong"), "it is made again"),
        Problem::TileList { hash } => (format!("{hash}: its tile list is wrong"), "it is made again"),
        Problem::PartialOutboard { hash } => {
            (format!("{hash}, arriving: its outboard is wrong"), "it is fetched again")
        }
        Problem::Row { table, hash } => {
            (format!("{hash}: its row of {table} cannot be read"), "it is deleted")
        }
        Problem::File { path } => {
            (format!("{}: belongs to nothing", path.display()), "it is a blob if it is one, else deleted")
        }
    }
}

impl FsckArgs {
    fn run(self, home: &Home) -> Result<ExitCode> {
        let store = store(home, Quota::UNLIMITED)?;
        let (bar, mut moved) = bytes_bar("checking");
        let act = if self.repair { Fsck::Repair } else { Fsck::Check };
        let checked = store.fsck(act, &mut moved)?;
        bar.finish_and_clear();
        let records = damaged_records(home)?;
        let fine = checked.problems.is_empty() && records.is_empty();
        if self.json {
            let problems: Vec<String> = checked.problems.iter().map(|p| said(p).0).collect();
            let said = json!({
                "blobs": checked.blobs, "bytes": checked.bytes, "problems": problems, "records": records,
                "repaired": self.repair,
            });
            println!("{said}");
        } else {
            for problem in &checked.problems {
                let (what, then) = said(problem);
                println!("{what}; {}", if self.repair { then } else { "mend with --repair" });
            }
            for path in &records {
                println!("{}: holds no believed record; remove it", path.display());
            }
            println!(
                "{} blobs, {}: {}",
                checked.blobs,
                HumanBytes(checked.bytes),
                if fine { "all in order" } else { "not in order" }
            );
        }
        Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn damaged_records(home: &Home) -> Result<Vec<PathBuf>> {
    let folder: &Path = &home.hub().join("records");
    Ok(Catalogue::open(folder)?.damaged().to_vec())
}
