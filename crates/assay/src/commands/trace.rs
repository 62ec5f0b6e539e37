//! `assay trace`: what an execution computed on its way.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use assay_core::id::Hash;
use assay_engine::replay::Execution;
use assay_verify::trace::block_range;
use assay_verify::trace::walk::Trace as Walk;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::record::{Answer, AnswerArgs};
use super::steps::{step_name, step_named};
use crate::home::Home;
use crate::progress;

mod block;

use block::Inside;

#[derive(Args)]
pub struct Trace {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Show(Show),
}

/// Execute an answer again and show every number that was computed on the way, and what commits to it.
///
/// Without options: the trace root, and each block's carry and digest. A block has 32 positions; its steps are the operations of
/// the model's program and, at the end, `adjust` and `choose`, which choose the tokens. A step has parts, each a table with a row for
/// each position.
///
/// Exit status: 0 if the execution digests are the receipt's, 1 if not, 2 if the answer could not be executed.
#[derive(Args)]
struct Show {
    #[command(flatten)]
    answer: AnswerArgs,
    /// List the steps of this block, with their parts and commitments.
    #[arg(long, value_name = "B")]
    block: Option<u32>,
    /// List the parts of this step: its index, or `hidden`, `logits`, `adjust` or `choose`.
    #[arg(long, value_name = "S", requires = "block")]
    step: Option<String>,
    /// Print numbers of this part: its index or name.
    #[arg(long, value_name = "P", requires = "step")]
    part: Option<String>,
    /// Which row of the part; 0 is the first.
    #[arg(long, value_name = "R", requires = "part", default_value_t = 0)]
    row: usize,
    /// Print JSON, with all numbers of a row.
    #[arg(long)]
    json: bool,
}

impl Trace {
    pub fn run(self, home: &Home) -> Result<ExitCode> {
        let What::Show(show) = self.what;
        show.run(home)
    }
}

impl Show {
    fn run(self, home: &Home) -> Result<ExitCode> {
        let answer = self.answer.load(home)?;
        let subject = answer.subject(&answer.record).context("the answer cannot be executed")?;
        let mut executor = answer.executor();
        let wait = progress::spinner("executing again");
        let walk = Walk::new(answer.artifact.as_ref(), subject, &mut executor);
        let shown = Shown::new(&answer, &walk);
        let text = match self.block {
            None => shown.blocks(self.json),
            Some(index) => {
                if index >= walk.blocks() {
                    bail!("there is no block {index}: the answer has {}", walk.blocks());
                }
                self.block(&shown, &walk, &mut executor, index)
            }
        };
        wait.finish_and_clear();
        println!("{}", text?);
        Ok(if shown.holds { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn block(
        &self,
        shown: &Shown<'_>,
        walk: &Walk<'_>,
        executor: &mut dyn Execution,
        index: u32,
    ) -> Result<String> {
        let program = walk.constants().program().program();
        let step = self.step.as_ref().map(|s| step_named(program, s)).transpose()?;
        let block = walk.block(executor, index);
        let inside = Inside { program, walk, block: &block };
        let Some(step) = step else { return inside.steps(shown, self.json) };
        let (specs, parts) = inside.step(step)?;
        let Some(name) = &self.part else { return inside.parts(shown, step, self.json) };
        let found = specs.iter().position(|s| s.name == name.as_str());
        let part = found.or(name.parse().ok()).filter(|p| *p < parts.len()).with_context(|| {
            let names: Vec<&str> = specs.iter().map(|s| s.name).collect();
            format!("{} has no part `{name}`: it has {}", step_name(program, step), names.join(", "))
        })?;
        inside.row(shown, step, part, self.row, self.json)
    }
}

/// What the whole trace is, for its head.
struct Shown<'a> {
    answer: &'a Answer,
    root: Hash,
    carries: Vec<Hash>,
    digests: Vec<Hash>,
    extent: (u32, u32),
    holds: bool,
}

impl<'a> Shown<'a> {
    fn new(answer: &'a Answer, walk: &Walk<'_>) -> Shown<'a> {
        let digests = walk.digests();
        Shown {
            answer,
            root: walk.root(),
            carries: walk.carries(),
            holds: digests.root() == answer.record.receipt.receipt.digest_root,
            digests: digests.0,
            extent: (walk.extent().positions, walk.extent().prompt),
        }
    }

    /// What every view says as JSON.
    fn json(&self) -> Value {
        let (positions, prompt) = self.extent;
        json!({
            "receipt": self.answer.record.receipt.receipt.id(),
            "model": self.answer.artifact.root(),
            "trace_root": self.root,
            "positions": positions,
            "prompt_tokens": prompt,
            "digests_hold": self.holds,
        })
    }

    fn receipted(&self, block: usize) -> bool {
        self.answer.record.digests.0.get(block) == self.digests.get(block)
    }

    fn end(&self) -> &'static str {
        match self.holds {
            true => "The execution digests are the receipt's.",
            false => "THE EXECUTION DIGESTS ARE NOT THE RECEIPT'S.",
        }
    }

    fn blocks(&self, as_json: bool) -> Result<String> {
        let (positions, prompt) = self.extent;
        let of = |b: usize| block_range(positions, u32::try_from(b).unwrap_or(u32::MAX));
        let all = self.carries.iter().zip(&self.digests).enumerate();
        if as_json {
            let block = |(b, (carry, digest)): (usize, (&Hash, &Hash))| {
                json!({
                    "block": b, "positions": [of(b).start, of(b).end], "carry": carry, "digest": digest,
                    "digest_is_receipted": self.receipted(b),
                })
            };
            let mut json = self.json();
            json["blocks"] = all.map(block).collect();
            return Ok(serde_json::to_string_pretty(&json)?);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["block", "positions", "carry", "execution digest", ""]);
        for (b, (carry, digest)) in all {
            let (range, mark) =
                (of(b), if self.receipted(b) { "= the receipt's" } else { "≠ THE RECEIPT'S" });
            table.add_row([
                b.to_string(),
                format!("{} to {}", range.start, range.end - 1),
                carry.to_string(),
                digest.short(),
                mark.to_owned(),
            ]);
        }
        let receipt = &self.answer.record.receipt.receipt;
        let model = self.answer.artifact.provenance().name.as_str();
        let answered = receipt.completion_tokens;
        let end = self.end();
        Ok(format!(
            "receipt     {}\nmodel       {model} {}\npositions   {positions}: {prompt} tokens of the prompt, then the answer's {answered} \
             without the last\ntrace root  {}\n\n{table}\n\n{end}",
            receipt.id(),
            self.answer.artifact.root(),
            self.root,
        ))
    }
}
