//! `assay list`, `show` and `rm`.

use anyhow::{Result, bail};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use clap::Args;
use comfy_table::{Table, presets};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::home::{Home, built_in};
use crate::progress;

#[derive(Args)]
pub struct List {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Show {
    /// Model: a name, root or file.
    model: String,
    /// Recompute the root from the content.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Rm {
    /// Model: a name or root.
    model: String,
}

fn describe(a: &Artifact) -> Value {
    let program = a.program().program();
    json!({
        "name": a.provenance().name,
        "root": a.root(),
        "profile": a.profile().name(),
        "parameters": a.parameters(),
        "bytes": a.len(),
        "context": program.context,
        "vocabulary": program.vocabulary,
        "operations": program.ops.len(),
        "chat_template": a.text().has_chat_template,
        "licence": a.provenance().licence,
        "sources": a.provenance().sources.iter().map(|(name, hash)| json!({"file": name, "blake3": hash})).collect::<Vec<_>>(),
        "path": a.path(),
    })
}

impl List {
    pub fn run(self, home: &Home) -> Result<()> {
        let mut all = home.models()?;
        all.push(built_in()?);
        if self.json {
            println!("{}", Value::Array(all.iter().map(|a| describe(a)).collect()));
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["name", "parameters", "size", "context", "root", "where"]);
        for a in &all {
            table.add_row([
                a.provenance().name.clone(),
                a.parameters().to_string(),
                HumanBytes(a.len() as u64).to_string(),
                a.program().program().context.to_string(),
                a.root().short(),
                a.path().display().to_string(),
            ]);
        }
        println!("{table}");
        Ok(())
    }
}

impl Show {
    pub fn run(self, home: &Home) -> Result<()> {
        let a = home.model(&self.model)?;
        if self.check {
            progress::check_root(&a)?;
        }
        let description = describe(&a);
        if self.json {
            println!("{description}");
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for (key, value) in description.as_object().into_iter().flatten() {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Array(sources) => sources
                    .iter()
                    .map(|s| {
                        format!("{} {}", s["file"].as_str().unwrap_or(""), s["blake3"].as_str().unwrap_or(""))
                    })
                    .collect::<Vec<_>>()
                    .join("\n"),
                other => other.to_string(),
            };
            table.add_row([key.clone(), text]);
        }
        if self.check {
            table.add_row(["content", "equals the root"]);
        }
        println!("{table}");
        Ok(())
    }
}

impl Rm {
    pub fn run(self, home: &Home) -> Result<()> {
        let a = home.model(&self.model)?;
        let path = a.path().to_owned();
        if !home.installed()?.contains(&path) {
            bail!("`{}` is not among the installed models, so it is left alone", self.model);
        }
        std::fs::remove_file(&path)?;
        println!("removed {}", path.display());
        Ok(())
    }
}
