//! `assay audit`: every rung of the ladder, both sides played on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use assay_core::embedding::Record;
use assay_core::id::Hash;
use assay_core::limits::LIGHT_TOKENS_MAX;
use assay_verify::reexecution::check_by_reexecution;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::record::{Answer, AnswerArgs};
use super::verdict;
use super::verify::answer::compare;
use crate::home::Home;
use crate::progress;

mod shard;
mod tiers;

use tiers::{Audited, Side};

/// How an answer is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Everything is executed again, as `assay verify` does; the auditor has the model.
    Reexec,
    /// Layer by layer, all tokens; each auditor has one layer of the model.
    Shard,
    /// A few tokens, drawn by a beacon; the auditor has a key of a few megabytes instead of the model.
    Light,
    /// All products at once, by random sums; the auditor has the model and reads the whole trace.
    Batch,
}

/// Check an answer as an auditor would who executes all of it, one layer, a few tokens, or sums of all products.
///
/// An audit has two sides. The provider executes the answer again, commits to what it computed and opens what it is asked for; the
/// auditor checks that without trusting it. Here this machine plays both, so that you see what each side has to do, send and hold, and
/// what a verdict of that kind is worth.
///
/// Exit status: 0 if what was checked holds, 1 if not, 2 if it could not be checked.
#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    answer: AnswerArgs,
    /// How it is checked.
    #[arg(long, value_enum)]
    tier: Tier,
    /// Light: the auditor's key [default: one that is made for this audit and forgotten].
    #[arg(long, value_name = "KEY")]
    key: Option<PathBuf>,
    /// Light: how many tokens are opened [default: 8].
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=i64::from(LIGHT_TOKENS_MAX)))]
    tokens: Option<u32>,
    /// Light and batch: 32 bytes that nobody knew when the trace was committed [default: drawn after that].
    #[arg(long, value_name = "HEX")]
    beacon: Option<Hash>,
    /// Shard: check this layer alone; 0 embeds the tokens, the last one chooses them.
    #[arg(long, value_name = "L")]
    layer: Option<usize>,
    /// Print the verdict as JSON.
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub fn run(self, home: &Home) -> Result<ExitCode> {
        self.check_options()?;
        let answer = self.answer.load(home)?;
        let wait = progress::spinner("auditing");
        let audited = self.audit(&answer);
        wait.finish_and_clear();
        let mut audited = audited?;
        let record = Record::Answer(Box::new(answer.record.clone()));
        let syntax = Some(answer.tokenizer.call_syntax());
        compare(answer.around.as_ref(), &record, syntax, &mut audited.verdict);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.to_json(&answer, &audited)?)?);
        } else {
            self.print(&answer, &audited);
        }
        Ok(if audited.verdict.holds { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Options that mean nothing here are refused, so that nobody believes they did.
    fn check_options(&self) -> Result<()> {
        let light = self.tier == Tier::Light;
        for (given, allowed, option, of) in [
            (self.key.is_some(), light, "--key", "light"),
            (self.tokens.is_some(), light, "--tokens", "light"),
            (self.beacon.is_some(), light || self.tier == Tier::Batch, "--beacon", "light or --tier batch"),
            (self.layer.is_some(), self.tier == Tier::Shard, "--layer", "shard"),
        ] {
            if given && !allowed {
                bail!("{option} is for --tier {of}");
            }
        }
        Ok(())
    }

    fn audit(&self, answer: &Answer) -> Result<Audited> {
        let executed = match answer.subject(&answer.record) {
            Ok(executed) => executed,
            Err(e) => {
                // Then there is nothing to commit to, but the record may well be at fault for that.
                let verdict = check_by_reexecution(&answer.record, &answer.model(), &mut answer.executor());
                if verdict.holds {
                    bail!("the answer cannot be executed: {e}");
                }
                return Ok(Audited::of(verdict, "certain: what the record holds cannot be executed.", None));
            }
        };
        match self.tier {
            Tier::Reexec => tiers::reexec(answer),
            Tier::Shard => shard::shard(answer, &executed.tokens, self.layer),
            Tier::Light => tiers::light(answer, self.key.as_deref(), self.tokens.unwrap_or(8), self.beacon),
            Tier::Batch => tiers::batch(answer, self.beacon),
        }
    }

    fn to_json(&self, answer: &Answer, audited: &Audited) -> Result<Value> {
        let mut json = serde_json::to_value(&audited.verdict)?;
        let side = |s: &Side| {
            let ns = s.time.map(|t| t.as_nanos() as u64);
            json!({"side": s.who, "what": s.what, "ns": ns, "bytes": s.bytes})
        };
        json["receipt"] = json!(answer.record.receipt.receipt.id());
        json["tier"] = json!(self.tier.to_possible_value().map(|v| v.get_name().to_owned()));
        json["both_sides_played_here"] = (self.tier != Tier::Reexec).into();
        json["soundness_bits"] = json!(audited.soundness_bits);
        json["sure"] = json!(audited.sure);
        json["challenge"] = audited.challenge.clone();
        json["cost"] = audited.sides.iter().map(side).collect();
        Ok(json)
    }

    fn print(&self, answer: &Answer, audited: &Audited) {
        verdict::print_checks(&audited.verdict);
        println!("How sure: {}", audited.sure);
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["cost of", "", "time", "bytes"]);
        let generated = answer.record.generation.as_ref().map(|g| Side {
            who: "provider",
            what: "generates the answer, by its own clock".into(),
            time: Some(Duration::from_nanos(g.prefill_ns.saturating_add(g.decode_ns))),
            bytes: None,
        });
        for s in generated.iter().chain(&audited.sides) {
            table.add_row([
                s.who.to_owned(),
                s.what.clone(),
                s.time.map_or(String::new(), |t| format!("{:.1} ms", t.as_secs_f64() * 1e3)),
                s.bytes.map_or(String::new(), |b| HumanBytes(b).to_string()),
            ]);
        }
        println!("{table}");
        if self.tier != Tier::Reexec {
            println!(
                "This machine played both sides. Between two, each bears its own cost, and the auditor believes nothing that it did not check."
            );
        }
        let id = answer.record.receipt.receipt.id();
        println!("{}", verdict::conclusion(&audited.held, &audited.verdict, id));
    }
}
