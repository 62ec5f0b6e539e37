//! `assay publish`: a release of an installed model, signed by this node's key and handed to the store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context as _, Result, bail};
use assay_core::id::NodeAddress;
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_hub::blob::BlobHash;
use assay_hub::content::ContentTree;
use assay_hub::cut::Cut;
use assay_hub::erasure::{Code, UNIT_BYTES, encode};
use assay_hub::exchange::Records;
use assay_hub::inbox::{Inbox, Parcel};
use assay_hub::name::{LATEST, Label, ModelName, Version};
use assay_hub::outboard::{Make, hash_with};
use assay_hub::release::{CARD_BYTES_MAX, LabelRecord, Release, Signed};
use assay_hub::replication::COLD_BYTES_MIN;
use assay_hub::store::{Quota, Store, StoreError};
use assay_ledger::retrieval::Content;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::hub::catalogue;
use super::ledger::connection::{KeyArgs, LedgerArgs, block_on, open_sender};
use crate::home::Home;
use crate::progress;

/// Publish an installed model: sign what it is, and hand it to this machine's store, from which hosts take it.
#[derive(Args)]
#[command(disable_version_flag = true)]
pub struct Publish {
    /// Model: a name, root or file.
    model: String,
    /// The version. It stays what it is: what changes is another version.
    #[arg(long)]
    version: Version,
    /// Name to publish it under [default: the model's name].
    #[arg(long)]
    name: Option<ModelName>,
    /// The label that shall stand for this version from now on.
    #[arg(long, default_value = LATEST)]
    label: Label,
    /// Licence of the weights [default: the model's].
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// Your share of each fee, in percent.
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    royalty: f64,
    /// How many hosts should keep it.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    copies: u8,
    /// Keep it in shards of which some restore it (8 of 12 unless said otherwise), one a host, and in no whole copy. For large models that few
    /// fetch. A release that was cut stays cut.
    #[arg(long, value_name = "KofN", num_args = 0..=1, default_missing_value = "8of12", value_parser = code)]
    cold: Option<Code>,
    /// Markdown file that tells people about it.
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,
    /// URLs of hosts to tell of it at once.
    #[arg(long, value_name = "URL")]
    to: Vec<String>,
    /// List it on the ledger too, so that hosts are paid for keeping it and you for its use. A listing's content stays what it is: each
    /// version has its own root.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn code(text: &str) -> Result<Code, String> {
    let numbers = text.split_once("of").and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    let (needed, shards) = numbers.ok_or("write KofN, as in 8of12")?;
    Code::new(needed, shards).map_err(|e| e.to_string())
}

impl Publish {
    pub fn run(self, home: &Home) -> Result<()> {
        let artifact = home.model(&self.model)?;
        if !artifact.path().is_file() {
            bail!(
                "`{}` has no file of its own; install a model with `assay pull` or `assay import`",
                self.model
            );
        }
        progress::check_root(&artifact)?;
        let key = self.key.load(home)?;
        let publisher = NodeAddress::from_bytes(key.address().into_array());
        let release = Signed::by(&key, self.release(&artifact, publisher)?)?;
        let known = catalogue(home)?;
        let sequence =
            known.label(publisher, &release.record.name, &self.label).map_or(1, |l| l.record.sequence + 1);
        let label = LabelRecord {
            publisher,
            name: release.record.name.clone(),
            label: self.label.clone(),
            version: self.version.clone(),
            sequence,
        };
        let label = Signed::by(&key, label)?;
        // A version that is taken is refused before anything is left for the store.
        known.add(release.clone())?;
        let inbox = Inbox::at(&home.hub().join("inbox"));
        let artifact_path = std::fs::canonicalize(artifact.path())?;
        let cut = self.cut(&key, &release, &inbox, &artifact_path)?;
        inbox.leave(&Parcel {
            release: release.clone(),
            label: Some(label.clone()),
            artifact: artifact_path,
            cut: cut.clone(),
        })?;
        let taken = take_in(home, &inbox)?;
        let told = block_on(async {
            if self.list {
                self.list(home, key, &release).await?;
            }
            let (records, mut told) = (Records::new(), Vec::new());
            for host in &self.to {
                let host = host.trim_end_matches('/');
                records.tell(host, &release).await.with_context(|| format!("{host} took nothing"))?;
                records.tell_label(host, &label).await?;
                if let Some(cut) = &cut {
                    records.tell_cut(host, cut).await?;
                }
                told.push(host.to_owned());
            }
            Ok(told)
        })?;
        let r = &release.record;
        if self.json {
            let said = json!({
                "id": release.id(), "publisher": publisher, "name": r.name, "version": r.version, "root": r.root,
                "blob": r.blob, "bytes": r.size, "content_root": r.content_root, "in_store": taken, "told": told,
            });
            println!("{said}");
            return Ok(());
        }
        println!("{publisher}/{}@{} is root {}", r.name, r.version, r.root);
        match &cut {
            Some(cut) => {
                let (code, bytes) =
                    (cut.record.set.geometry().code(), cut.record.set.geometry().shard_bytes());
                let (needed, shards) = (code.needed(), code.shards());
                println!(
                    "blob {} of {} bytes, in {shards} shards of {bytes}, any {needed} of which restore it",
                    r.blob, r.size
                );
            }
            None => println!("blob {} of {} bytes, kept by {} hosts", r.blob, r.size, r.copies),
        }
        if taken {
            println!("Serve it to hosts with `assay host`.");
        } else {
            println!("The running `assay host` takes it in.");
        }
        Ok(())
    }

    /// Cuts the artifact and signs how, if it is to be kept cold.
    fn cut(
        &self,
        key: &PrivateKeySigner,
        release: &Signed<Release>,
        inbox: &Inbox,
        artifact: &Path,
    ) -> Result<Option<Signed<Cut>>> {
        let Some(code) = self.cold else { return Ok(None) };
        let r = &release.record;
        if r.size < COLD_BYTES_MIN {
            eprintln!(
                "note: {} are small for shards; below {} copies cost less than so many hosts",
                HumanBytes(r.size),
                HumanBytes(COLD_BYTES_MIN)
            );
        }
        let folder = inbox.shards(release.id());
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let spinner = progress::spinner("cutting");
        let set = encode(artifact, r.blob, code, UNIT_BYTES, &folder)?;
        spinner.finish_and_clear();
        let cut = Cut { publisher: r.publisher, release: release.id(), set };
        Ok(Some(Signed::by(key, cut)?))
    }

    async fn list(&self, home: &Home, key: PrivateKeySigner, release: &Signed<Release>) -> Result<()> {
        let ledger = self.ledger.ledger(home).await?;
        let sender = open_sender(home, ledger.client(), key).await?;
        let r = &release.record;
        let content = Content { root: r.content_root, chunks: r.chunks() };
        ledger
            .publish(&sender, r.root, r.royalty_ppm, Some(content), format!("assay:{}", release.id()))
            .await?;
        Ok(())
    }

    fn release(&self, artifact: &Artifact, publisher: NodeAddress) -> Result<Release> {
        let provenance = artifact.provenance();
        let name = match &self.name {
            Some(name) => name.clone(),
            None => provenance.name.parse().context("give a name with --name")?,
        };
        let card = match &self.card {
            Some(path) => {
                let length = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
                if length > CARD_BYTES_MAX as u64 {
                    bail!("{} has {length} bytes; a card has at most {CARD_BYTES_MAX}", path.display());
                }
                std::fs::read_to_string(path).with_context(|| path.display().to_string())?
            }
            None => String::new(),
        };
        if !(0.0..=100.0).contains(&self.royalty) {
            bail!("a royalty of {} % cannot be; give 0 to 100", self.royalty);
        }
        let size = artifact.len() as u64;
        let file = std::fs::File::open(artifact.path())?;
        let read = |at: u64, out: &mut [u8]| {
            use std::os::unix::fs::FileExt as _;
            file.read_exact_at(out, at)
        };
        let bar = progress::bar("hashing {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_length(2 * size);
        let hashed = hash_with(size, Make::Outboard, &read, &mut |done| bar.set_position(done))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let tree = ContentTree::of(size, threads, read, |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        let published_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let sources = provenance
            .sources
            .iter()
            .map(|(name, hash)| (name.clone(), BlobHash::from_bytes(*hash.as_bytes())));
        Ok(Release {
            publisher,
            name,
            version: self.version.clone(),
            root: artifact.root(),
            blob: hashed.hash,
            size,
            content_root: tree.root(),
            profile: artifact.profile().name().to_owned(),
            parameters: artifact.parameters(),
            context: artifact.program().program().context,
            licence: self.licence.clone().unwrap_or_else(|| provenance.licence.clone()),
            // Millionths of a fee, of which a percent has ten thousand.
            royalty_ppm: (self.royalty * 10_000.0).round() as u32,
            copies: self.copies,
            card,
            sources: sources.collect(),
            published_at,
        })
    }
}

/// Takes what was left into the store, unless a host has it open and does so itself.
fn take_in(home: &Home, inbox: &Inbox) -> Result<bool> {
    let store = match Store::open(&home.hub().join("store"), Quota::UNLIMITED) {
        Ok(store) => store,
        Err(StoreError::Busy { .. }) => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    let records = Arc::new(catalogue(home)?);
    for path in inbox.waiting()? {
        let bar = progress::bar("storing {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        let shown = bar.clone();
        let taken = inbox.take(&path, &store, &records, &mut |done, total| {
            shown.set_length(total);
            shown.set_position(done);
        });
        bar.finish_and_clear();
        store.index(taken?.record.blob)?;
    }
    Ok(true)
}
