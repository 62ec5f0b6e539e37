//! `assay-sim`: the economy, and the network itself, under one seed, from the command line.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_sim::economy::{Economy, Outcome};
use assay_sim::events::Events;
use assay_sim::{network, report, scenario, sweep};
use clap::{Args, Parser, Subcommand};

/// Plays the network under one seed, and says who gains.
#[derive(Parser)]
#[command(name = "assay-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays one network with every strategy in it, and prints what each gains.
    Economy(Run),
    /// Plays the network, varies audit rate, stake, fee and collusion, and writes docs/benchmarks/economics.*.
    Sweep(Sweep),
    /// Plays networks of the daemons' own decisions over the contracts, with liars and faults; prints every event of one, or a line for each of many.
    Network(Network),
}

#[derive(Args)]
struct Network {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds are played, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    seeds: u64,
    /// Epochs with demand.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    epochs: u64,
    /// Nothing goes wrong.
    #[arg(long)]
    no_faults: bool,
    /// Nobody lies.
    #[arg(long)]
    no_liars: bool,
    /// Plant a bug, to see which invariant finds it.
    #[arg(long, value_enum)]
    mutant: Option<network::Mutant>,
    /// Print a summary as JSON, and no events.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Run {
    /// Participants: three tenths provide, a fifth hosts, a tenth audits, the rest pays.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(250..=100_000))]
    nodes: u32,
    /// Epochs with demand.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    epochs: u64,
    /// What all chance follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write all numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print every event, one a line: the epoch, and what happened.
    #[arg(long)]
    events: bool,
}

#[derive(Args)]
struct Sweep {
    /// Participants of the whole network.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(250..=100_000))]
    nodes: u32,
    /// Its epochs.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    epochs: u64,
    /// What all chance follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the page, its numbers and its charts.
    #[arg(long, default_value = "docs/benchmarks")]
    out: PathBuf,
}

/// One line on a terminal that is written over; nothing elsewhere.
fn progress(line: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        // What cannot be shown is no reason to stop.
        let _ = write!(err, "\r\x1b[K{line}");
        let _ = err.flush();
    }
}

fn play(nodes: u32, epochs: u64, seed: u64, events: &mut Events<'_>) -> Result<Outcome> {
    let all = epochs + 2;
    let outcome = Economy::new(scenario::whole(nodes, epochs, seed)).run(events, |epoch| {
        if epoch.is_multiple_of(10) || epoch == all {
            progress(&format!("epoch {epoch} of {all}"));
        }
    });
    progress("");
    Ok(outcome?)
}

fn write(path: &Path, content: &str) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

impl Run {
    fn run(self) -> Result<()> {
        let mut out = std::io::BufWriter::new(std::io::stdout());
        let mut failed = None;
        let mut sink = |line: &str| {
            if failed.is_none() {
                failed = writeln!(out, "{line}").err();
            }
        };
        let mut events = if self.events { Events::to(&mut sink) } else { Events::none() };
        let outcome = play(self.nodes, self.epochs, self.seed, &mut events)?;
        if let Some(error) = failed {
            return Err(error).context("printing events");
        }
        if let Some(path) = &self.json {
            let numbers = report::run(self.nodes, self.seed, &outcome);
            write(path, &(serde_json::to_string_pretty(&numbers)? + "\n"))?;
        }
        writeln!(out, "{}", report::strategies(&outcome))?;
        Ok(out.flush()?)
    }
}

impl Sweep {
    fn run(self) -> Result<()> {
        let outcome = play(self.nodes, self.epochs, self.seed, &mut Events::none())?;
        let figures = sweep::figures(self.seed, &mut progress)?;
        let tables = sweep::tables(self.seed, &mut progress)?;
        progress("");
        let numbers = report::json(self.nodes, self.seed, &outcome, &figures, &tables);
        write(&self.out.join("economics.json"), &(serde_json::to_string_pretty(&numbers)? + "\n"))?;
        let page = report::page(self.nodes, self.seed, &outcome, &figures, &tables);
        write(&self.out.join("economics.md"), &page)?;
        for figure in &figures {
            write(&self.out.join(format!("{}.svg", figure.name)), &report::svg(figure))?;
        }
        println!("{} written", self.out.join("economics.md").display());
        Ok(())
    }
}

impl Network {
    fn run(self) -> Result<()> {
        let Network { seed, seeds, epochs, no_faults, no_liars, mutant, json } = self;
        let options = network::Options { epochs, faults: !no_faults, liars: !no_liars, mutant };
        let mut out = std::io::BufWriter::new(std::io::stdout());
        for seed in seed..seed.saturating_add(seeds) {
            let mut failed = None;
            let mut sink = |line: &str| {
                if failed.is_none() && seeds == 1 && !json {
                    failed = writeln!(out, "{line}").err();
                }
            };
            let played = network::play(seed, options, &mut sink);
            if let Some(error) = failed {
                return Err(error).context("printing events");
            }
            match played {
                Ok(summary) => writeln!(out, "{}", summary.json())?,
                Err(broken) => {
                    out.flush()?;
                    return Err(broken.into());
                }
            }
            out.flush()?;
        }
        Ok(())
    }
}

/// Whether a reader such as `head` has had enough.
fn nobody_reads(error: &anyhow::Error) -> bool {
    let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(closed))
}

fn main() -> Result<()> {
    let done = match Arguments::parse().command {
        Command::Economy(run) => run.run(),
        Command::Sweep(sweep) => sweep.run(),
        Command::Network(network) => network.run(),
    };
    match done {
        Err(error) if nobody_reads(&error) => Ok(()),
        done => done,
    }
}
