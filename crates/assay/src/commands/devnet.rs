//! `assay devnet`: the whole network on this machine, each part a process of its own, with faults if they are asked for.

mod apart;
mod chaos;
mod falsified;
mod fault;
mod liar;
mod load;
mod member;
mod network;
mod report;
mod suffered;
mod watch;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use assay_core::price::Price;
use assay_ledger::contracts::node_address;
use clap::{Args, Subcommand};

use self::chaos::Chaos;
use self::fault::{Fault, Kind};
use self::liar::Liar;
use self::network::{Network, State};
use self::report::Found;
use super::ledger::connection::block_on;
use super::up::stop_signal;
use crate::home::Home;

/// Run a whole network on this machine: a chain, a ledger, hosts, providers, auditors and a gateway, each a process of its own.
///
/// Everything is as it would be between machines, but that the chain is one for development and its money worth nothing. What the
/// processes say is in log files beside their data.
#[derive(Args)]
pub struct Devnet {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a new network, show what happens in it, and stop it with Ctrl-C. An earlier one's data goes.
    Up(Up),
    /// Say what everyone gained and lost, and who was found out.
    Report(Report),
    #[command(hide = true)]
    Liar(Liar),
}

#[derive(Args)]
struct Up {
    /// Who answers.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    providers: u8,
    /// Who checks.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=64))]
    auditors: u8,
    /// Who keeps models.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=64))]
    hosts: u8,
    /// What is wrong with whom; may be given several times. Providers that cheat: cheap-model:N, half of the model's layers do nothing; hidden-cheat:N, likewise,
    /// and they show auditors only what the ledger makes them show; four-bit-weights:N, wrong-rotary-table:N, forged-head:N, the model is another one;
    /// other-temperature:N, other-seed:N, swapped-token:N, tokens are not those that were drawn; left-out-receipt:N, likewise, and another receipt is posted
    /// in place of the client's; hidden-system-prompt:N, the model reads more than was said;
    /// early-stop:N, answers end too soon. Others: slow:N are reached over a slow line; crash:N are killed every half minute and started again;
    /// drop:P, a share P of all connections to providers breaks. silent-auditor:N take seats and do nothing; false-challenge:N, auditors execute another model
    /// and dispute what is right. lost-bytes:N, hosts lose what they keep. Where providers cheat, the clients of --load execute their answers again.
    #[arg(long = "fault", value_name = "KIND:HOWMANY")]
    faults: Vec<Fault>,
    /// Seconds of an epoch. Windows of audits and disputes are as long, or follow from it.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(15..=86_400))]
    epoch: u32,
    /// Least share of answers that are audited, in percent.
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    audit_rate: u32,
    /// What providers ask, in dollars for a million tokens.
    #[arg(long, default_value = "100/400", value_name = "IN/OUT")]
    price: Price,
    /// Requests a second that are sent through the gateway.
    #[arg(long, default_value_t = 0.0, value_name = "N")]
    load: f64,
    /// Stop after so many seconds.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Seconds after those of --for in which nothing is asked any more, and what was earned is audited and paid out.
    #[arg(long, default_value_t = 0, value_name = "SECONDS", requires = "seconds")]
    quiet_for: u64,
    /// Kill, hold and cut off processes at random, fill their disks, set their clocks wrong, ask them twice, hold the chain and take its blocks back,
    /// until --for is over. What happens follows from the seed. At the end it is said what clients saw of it. Where this machine lets members
    /// have networks of their own, nothing outside reaches them: --load asks.
    #[arg(long, value_name = "SEED")]
    chaos: Option<u64>,
    /// Where the gateway listens.
    #[arg(long, default_value = "127.0.0.1:11731", value_name = "ADDR:PORT")]
    listen: SocketAddr,
}

#[derive(Args)]
struct Report {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where a network's data is.
fn folder(home: &Home) -> PathBuf {
    home.path().join("devnet")
}

impl Devnet {
    pub fn run(self, home: &Home) -> Result<()> {
        match self.command {
            Command::Up(up) => {
                if up.chaos.is_some() {
                    apart::enter()?;
                }
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                runtime.block_on(up.run(home))
            }
            Command::Liar(liar) => liar.run(home),
            Command::Report(report) => {
                block_on(async {
                    let state = State::read(&folder(home))?;
                    let state = state.context("there is no network here; `assay devnet up` starts one")?;
                    let found = match (report::read(&state).await, Found::kept(&folder(home))?) {
                        (Ok(found), _) => found,
                        (Err(_), Some(kept)) => {
                            eprintln!("The network is stopped; this is how it ended.");
                            kept
                        }
                        (Err(e), None) => {
                            return Err(e.context("the network's chain does not answer, and no report was kept: `assay devnet up`"));
                        }
                    };
                    if report.json { found.print_json() } else { found.print() }
                })
            }
        }
    }
}

impl Up {
    async fn run(self, home: &Home) -> Result<()> {
        if !(0.0..=1000.0).contains(&self.load) {
            bail!("--load is between 0 and 1000 requests a second");
        }
        let folder = folder(home);
        let plan = network::Plan {
            providers: self.providers,
            auditors: self.auditors,
            hosts: self.hosts,
            faults: self.faults,
            epoch_s: self.epoch,
            audit_ppm: self.audit_rate * 10_000,
            price: self.price,
            listen: self.listen,
            chaos: self.chaos.is_some(),
        };
        plan.check()?;
        let mut network = Network::start(&folder, plan).await?;
        println!("OPENAI_BASE_URL=http://{}/v1", network.state.gateway);
        println!("OPENAI_API_KEY={}", network.state.secret);
        if network.ground.networks.is_ok() {
            println!("Members have networks of their own: nothing outside reaches them, and --load asks.");
        }
        println!("metrics: prometheus --config.file={}", network::scraped(&folder).display());
        let asked = load::Asked::default();
        let cheats = network.state.members.iter().any(|m| m.fault.is_some_and(Kind::cheats));
        let check = cheats.then(load::Check::new).transpose()?;
        let mut chaos = self.chaos.map(Chaos::new);
        let used = network.used();
        let begun = report::open(&network.state).await?.client().head().await?;
        let asking = load::run(load::Clients::of(&network.state, check), self.load, asked.clone());
        let over = async {
            match self.seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        let stopped = tokio::select! {
            ended = network.watch(&asked, chaos.as_mut()) => ended.map(|()| true),
            () = asking => Ok(true),
            () = over => Ok(false),
            () = stop_signal() => Ok(true),
        };
        if let Some(chaos) = &mut chaos {
            chaos.over(&mut network).await?;
        }
        let stopped = match stopped {
            Ok(false) => tokio::select! {
                ended = network.watch(&asked, None) => ended,
                () = tokio::time::sleep(Duration::from_secs(self.quiet_for)) => Ok(()),
                () = stop_signal() => Ok(()),
            },
            ended => ended.map(drop),
        };
        let found = report::read(&network.state).await;
        let suffered = match &chaos {
            Some(chaos) => Some(chaos.suffered(&network, &asked).await),
            None => None,
        };
        let gas = report::gas(&network.state, begun).await;
        let used_since = network.used();
        network.stop().await;
        stopped?;
        let (mut found, gas) = (found?, gas?);
        found.requests = Some(asked.now());
        found.chaos = suffered.transpose()?;
        let refuted = asked.now().refuted;
        for line in &mut found.lines {
            line.gas = Some(gas.get(&line.account).copied().unwrap_or_default());
            line.refuted = refuted.get(&node_address(line.account).to_string()).copied().unwrap_or_default();
        }
        for (line, (before, after)) in found.lines.iter_mut().zip(used.into_iter().zip(used_since)) {
            line.processor_s = Some(after.saturating_sub(before).as_secs_f64());
        }
        println!("{asked}");
        found.write(&folder)?;
        found.print()
    }
}
