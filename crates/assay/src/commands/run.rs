//! `assay run`: a model in the terminal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Result, bail};
use assay_api::{Caller, Event, Inference as _, Order};
use assay_core::answer::AnswerRecord;
use assay_core::consent::Consent;
use assay_core::request::{Message, Prompt, Request, Role, Sampling};
use assay_engine::batch::BatchLimits;
use assay_node::provider::Provider;
use clap::Args;

use super::up::EngineArgs;
use crate::home::{Home, built_in};

#[derive(Args)]
pub struct Run {
    /// Model: a name, root or file [default: the only installed one, or the built-in one].
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Say this, print the answer and stop; without it, talk.
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// Most tokens of an answer; 0 for as many as fit.
    #[arg(long, default_value_t = 0, value_name = "N")]
    max_tokens: u32,
    /// How freely to choose words: 0 always takes the likeliest.
    #[arg(long, default_value = "0.7", value_name = "T", value_parser = millionths)]
    temperature: u32,
    /// The same seed and words give the same answer.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print the answer's record as JSON instead of its text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A decimal as millionths.
fn millionths(s: &str) -> Result<u32, String> {
    let v: f64 = s.parse().map_err(|_| "expected a number such as 0.7".to_owned())?;
    if !(0.0..=2.0).contains(&v) {
        return Err("expected a number from 0 to 2".into());
    }
    Ok((v * 1e6).round() as u32)
}

impl Run {
    pub fn run(self, home: &Home) -> Result<()> {
        let model = match &self.model {
            Some(name) => home.model(name)?,
            None => {
                let mut all = home.models()?;
                match all.len() {
                    0 => built_in()?,
                    1 => all.remove(0),
                    n => bail!("{n} models are installed; name one (see `assay list`)"),
                }
            }
        };
        let root = model.root();
        let provider = self.engine.provider(home, vec![model], BatchLimits::default())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut messages: Vec<Message> = Vec::new();
        let ask = |text: &str, messages: &mut Vec<Message>| -> Result<()> {
            messages.push(Message::text(Role::User, text));
            let request = Request {
                model: root,
                prompt: Prompt::Chat { messages: messages.clone(), tools: vec![] },
                sampling: Sampling {
                    temperature_micro: self.temperature,
                    seed: self.seed,
                    ..Sampling::GREEDY
                },
                max_tokens: self.max_tokens,
                stop: vec![],
                choice: 0,
                guide: None,
                logprobs: None,
                audit: Consent::Given,
            };
            let record = runtime.block_on(answer(&provider, request, !self.json))?;
            if self.json {
                println!("{}", serde_json::to_string_pretty(&record)?);
            }
            let content = record.transcript.text.clone();
            messages.push(Message::text(Role::Assistant, content));
            Ok(())
        };
        if let Some(prompt) = &self.prompt {
            return ask(prompt, &mut messages);
        }
        let stdin = std::io::stdin();
        let talking = stdin.is_terminal();
        if talking {
            eprintln!("Talk to the model; an empty line or Ctrl-D ends it.");
        }
        loop {
            if talking {
                eprint!("> ");
            }
            let mut line = String::new();
            if stdin.lock().read_line(&mut line)? == 0 || line.trim().is_empty() {
                return Ok(());
            }
            if let Err(e) = ask(line.trim_end(), &mut messages) {
                // A conversation that fills the window starts anew rather than ending.
                eprintln!("{e:#} (starting a new conversation)");
                messages.clear();
            }
        }
    }
}

async fn answer(provider: &Provider, request: Request, print: bool) -> Result<AnswerRecord> {
    let order = Order { request, nonce: None, request_id: "terminal".into(), caller: Caller::default() };
    let mut generation = provider.generate(order).await.map_err(|r| anyhow::anyhow!("{r}"))?;
    while let Some(event) = generation.events.recv().await {
        match event {
            Event::Call { .. } | Event::Arguments { .. } => {}
            Event::Text { text, .. } => {
                if print {
                    print!("{text}");
                    std::io::stdout().flush()?;
                }
            }
            Event::End { record, usage, .. } => {
                if print {
                    println!();
                    eprintln!(
                        "[{} tokens, receipt {}; check it with `assay verify {}`]",
                        usage.completion_tokens,
                        generation.receipt_id.short(),
                        generation.receipt_id
                    );
                }
                return Ok(record.as_ref().clone());
            }
            Event::Failed(refusal) => bail!("{refusal}"),
        }
    }
    bail!("the engine stopped")
}
