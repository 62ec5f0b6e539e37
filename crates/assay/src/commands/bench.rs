//! `assay bench`: measurements. Floats here are for printing.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use assay_engine::batch::Draft;
use assay_engine::import::synthetic;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::import::ProfileArg;
use super::up::EngineArgs;
use crate::home::Home;

mod embeddings;
mod engine;
mod loss;
mod receipts;
mod reexecution;
mod spared;
mod verification;

#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
    /// Print one JSON object a line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// Write a model of a known shape with random weights, for the other measurements.
    Synthetic {
        /// 135M (SmolLM2-135M), 360M (SmolLM2-360M) or 1B (Llama-3.2-1B).
        shape: String,
        /// The artifact to write.
        out: PathBuf,
        /// How to store weights.
        #[arg(long, value_enum, default_value_t)]
        profile: ProfileArg,
    },
    /// Speed of prefill and decode, and the share that it is of what this machine can read and multiply: each round measures the machine, reads 512
    /// tokens, then writes 64 one by one.
    Engine {
        /// Model: a name, root or file.
        #[arg(required_unless_present = "render")]
        model: Option<String>,
        /// Measure nothing: draw engine.svg from the engine.json of this folder.
        #[arg(long, value_name = "FOLDER", conflicts_with = "model")]
        render: Option<PathBuf>,
        /// How often.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// Speed of an encoder on the lines of a text.
    Embeddings {
        /// Model: a name, root or file.
        model: String,
        /// One text a line.
        texts: PathBuf,
        /// Write each line's ids and vector as JSON.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// How often.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// What digests, transcript, signature and storing cost beside the generation of an answer.
    Receipts {
        /// Model: a name, root or file.
        model: String,
        /// Tokens of the prompt.
        #[arg(long, default_value_t = 512)]
        prompt: u32,
        /// Tokens of the answer.
        #[arg(long, default_value_t = 64)]
        answer: u32,
        /// How often.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// What checking an answer by re-execution costs beside generating it.
    Reexecution {
        /// Model: a name, root or file.
        model: String,
        /// Tokens of the prompt.
        #[arg(long, default_value_t = 64)]
        prompt: u32,
        /// Tokens of the answers.
        #[arg(long, value_delimiter = ',', default_value = "64,512")]
        answers: Vec<u32>,
        /// How often.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// What is spared: time to the first token of a prompt that begins like another's, and speed of answers with likely tokens executed ahead; each
    /// beside the same without.
    Spared {
        /// Model: a name, root or file.
        model: String,
        /// A small model with the same tokenizer whose proposals are measured too.
        #[arg(long, value_name = "MODEL")]
        draft: Option<String>,
        /// Tokens that prompts begin with alike.
        #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        shared: u32,
        /// Tokens of the answers.
        #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=100_000))]
        answer: u32,
        /// How often.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// What every way to check an answer costs as models grow: writes numbers, a report and a chart.
    Verification(verification::Verification),
    /// Loss of a model on a text, in nats per token: windows as long as the model's, each beginning with BOS.
    Loss {
        /// Model: a name, root or file.
        model: String,
        /// The text.
        text: PathBuf,
        /// Write the windows here, a JSON array of ids a line, so that another engine can be measured on the same ones.
        #[arg(long, value_name = "FILE")]
        windows: Option<PathBuf>,
    },
}

impl Bench {
    pub fn run(self, home: &Home) -> Result<()> {
        let mut print = |line: Value| {
            if self.json {
                println!("{line}");
            } else {
                println!("{}", readable(&line));
            }
        };
        match self.what {
            What::Synthetic { shape, out, profile } => {
                let names: Vec<_> = synthetic::SHAPES.iter().map(|s| s.name).collect();
                let made = synthetic::write(&shape, profile.into(), 1, &out)
                    .with_context(|| format!("no shape `{shape}`; there are {}", names.join(", ")))?;
                print(json!({"root": made?, "path": out}));
                Ok(())
            }
            What::Embeddings { model, texts, out, rounds, engine } => {
                embeddings::run(&home.model(&model)?, &texts, out.as_deref(), engine, rounds, &mut print)
            }
            What::Engine { model, render, rounds, engine } => match (model, render) {
                (Some(model), None) => engine::run(&home.model(&model)?, engine, rounds, &mut print),
                (None, Some(folder)) => engine::render(&folder),
                _ => bail!("name a model to measure, or a folder with --render"),
            },
            What::Receipts { model, prompt, answer, rounds, engine } => {
                receipts::run(&home.model(&model)?, engine, prompt, answer, rounds, &mut print)
            }
            What::Reexecution { model, prompt, answers, rounds, engine } => {
                reexecution::run(&home.model(&model)?, engine, prompt, &answers, rounds, &mut print)
            }
            What::Spared { model, draft, shared, answer, rounds, engine } => {
                let model = home.model(&model)?;
                let draft = match draft {
                    Some(draft) => Some(Draft::of(&home.model(&draft)?, &model)?),
                    None => None,
                };
                spared::run(&model, draft.as_ref(), engine, (shared, answer), rounds, &mut print)
            }
            What::Verification(verification) => verification.run(&mut print),
            What::Loss { model, text, windows } => {
                loss::run(&home.model(&model)?, &text, windows.as_deref(), &mut print)
            }
        }
    }
}

/// `key value` pairs for people, numbers with four digits.
fn readable(line: &Value) -> String {
    let show = |v: &Value| match (v.as_str(), v.is_f64(), v.as_f64()) {
        (Some(text), ..) => text.to_owned(),
        (None, true, Some(number)) => {
            let whole_digits = number.abs().log10().floor().max(0.0) as usize + 1;
            format!("{number:.*}", 4usize.saturating_sub(whole_digits).min(4))
        }
        _ => v.to_string(),
    };
    let pairs =
        line.as_object().into_iter().flatten().map(|(k, v)| format!("{} {}", k.replace('_', " "), show(v)));
    pairs.collect::<Vec<_>>().join("  ")
}

fn milliseconds(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// Token ids without meaning, the same each time: below `vocabulary`, none of them the first three, which are often special.
fn tokens(count: usize, vocabulary: u32) -> Vec<u32> {
    (0..count as u32).map(|i| 3 + i.wrapping_mul(7919) % vocabulary.saturating_sub(3).max(1)).collect()
}
