//! Starts a network: first the chain and the ledger, then everyone at once, each by the commands that its owner would give.

use std::net::{SocketAddr, TcpListener as Port};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use alloy_primitives::Address;
use anyhow::{Context as _, Result, bail};
use assay_core::price::Price;
use assay_ledger::amount::{Amount, DOLLAR};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use super::super::ledger::connection::{read_json, write_json};
use super::apart::{Ground, Place};
use super::falsified::falsified;
use super::fault::{Fault, Kind};
use super::member::{Machine, Process};
use super::wire::{Line, Manner, line};
use crate::home::{BUILT_IN, Home, built_in};
use crate::progress;

/// The chain makes a block this often, in seconds.
const BLOCK_S: &str = "0.2";
/// How long a slow line waits before each piece.
const SLOW: Duration = Duration::from_millis(100);
/// What each account gets.
const FUNDED: Amount = Amount(1_000 * DOLLAR);
/// What of it goes into the ledger.
const DEPOSITED: &str = "900";

/// What kind of member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    Operator,
    Gateway,
    Provider,
    Auditor,
    Host,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::Operator => "operator",
            Part::Gateway => "gateway",
            Part::Provider => "provider",
            Part::Auditor => "auditor",
            Part::Host => "host",
        }
    }

    /// Its stake in dollars.
    fn stake(self) -> Option<&'static str> {
        match self {
            Part::Operator | Part::Gateway => None,
            Part::Provider => Some("20"),
            Part::Auditor => Some("100"),
            Part::Host => Some("60"),
        }
    }
}

/// Someone in the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub name: String,
    pub part: Part,
    pub fault: Option<Kind>,
    pub home: PathBuf,
    /// Its account and, where it is a node, its name.
    pub account: Address,
    /// Where it listens.
    pub at: Option<SocketAddr>,
    /// What it was given.
    pub funded: Amount,
}

/// What is known of a running network.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub rpc: String,
    pub directory: Address,
    pub gateway: SocketAddr,
    pub secret: String,
    pub model: String,
    pub members: Vec<Member>,
}

impl State {
    pub fn read(folder: &Path) -> Result<Option<State>> {
        read_json(&folder.join("network.json"))
    }

    /// What Prometheus scrapes of it, as its configuration.
    fn prometheus(&self) -> String {
        let mut text =
            "global:\n  scrape_interval: 5s\nscrape_configs:\n  - job_name: assay\n    static_configs:\n"
                .to_owned();
        for member in &self.members {
            let (daemon, at) = match member.part {
                Part::Gateway => ("gateway", Some(self.gateway)),
                Part::Operator => ("host", member.at),
                part => (part.name(), member.at),
            };
            if let Some(at) = at {
                let labels = format!("daemon: {daemon}, member: {}", member.name);
                text.push_str(&format!("      - targets: [\"{at}\"]\n        labels: {{ {labels} }}\n"));
            }
        }
        text
    }
}

/// Where the configuration of Prometheus for a network is.
pub fn scraped(folder: &Path) -> PathBuf {
    folder.join("prometheus.yml")
}

/// What is wanted.
pub struct Plan {
    pub providers: u8,
    pub auditors: u8,
    pub hosts: u8,
    pub faults: Vec<Fault>,
    pub epoch_s: u32,
    pub audit_ppm: u32,
    pub price: Price,
    pub listen: SocketAddr,
    /// Whether lines to everyone and from everyone to the chain can go bad.
    pub chaos: bool,
}

impl Plan {
    fn count(&self, part: Part) -> u8 {
        match part {
            Part::Provider => self.providers,
            Part::Auditor => self.auditors,
            Part::Host => self.hosts,
            Part::Operator | Part::Gateway => 1,
        }
    }

    /// Whether there are enough members for the faults.
    pub fn check(&self) -> Result<()> {
        for part in [Part::Provider, Part::Auditor, Part::Host] {
            let faulty = self.faulty(part).len();
            if faulty > usize::from(self.count(part)) {
                bail!("{faulty} faults are asked for, and there are {} {}s", self.count(part), part.name());
            }
        }
        Ok(())
    }

    /// The faults of members of a part, each with another one.
    fn faulty(&self, part: Part) -> Vec<Kind> {
        let asked = self.faults.iter().flat_map(|fault| match fault {
            Fault::Some(kind, count) => vec![*kind; usize::from(*count)],
            Fault::Drop(_) => vec![],
        });
        asked.filter(|kind| kind.part() == part).collect()
    }

    fn drop(&self) -> f64 {
        let share = |fault: &Fault| match fault {
            Fault::Drop(share) => *share,
            Fault::Some(..) => 0.0,
        };
        self.faults.iter().map(share).fold(0.0, f64::max)
    }

    /// The ledger's numbers that differ from the defaults: days become epochs of seconds.
    fn parameters(&self) -> String {
        let epoch = self.epoch_s;
        let third = (epoch / 3).max(5);
        // A dispute has 22 moves. All processes share this machine, and auditors have the least of it: none has less time than this.
        let dispute = 22 * (epoch / 3).max(20);
        let unbond = 8 * epoch + dispute;
        format!(
            "[times]\nepochSeconds = {epoch}\npostSeconds = {third}\nbeaconBlocks = 2\ncommitSeconds = {epoch}\nrevealSeconds = {third}\n\
             objectSeconds = {epoch}\nanswerSeconds = {epoch}\ndisputeSeconds = {dispute}\nunbondSeconds = {unbond}\n\
             retrievalSeconds = {epoch}\n[rates]\nrateMinPpm = {}\n",
            self.audit_ppm
        )
    }
}

/// A running network.
pub struct Network {
    pub state: State,
    pub epoch_s: u32,
    /// Processes by the member's place in the state.
    pub processes: Vec<(usize, Process)>,
    pub chain: Process,
    pub chain_at: SocketAddr,
    pub ground: Ground,
    /// Of each member.
    lines: Vec<Lines>,
    _wires: JoinSet<()>,
}

/// How a member is reached, and reaches the chain, where that is by lines that may go bad.
#[derive(Default)]
pub struct Lines {
    reached: Option<Line>,
    chain: Option<Line>,
}

impl Lines {
    /// Makes the line to it otherwise than it usually is.
    pub fn reached(&self, change: impl FnOnce(&mut Manner)) {
        if let Some(line) = &self.reached {
            line.change(change);
        }
    }

    /// Likewise the one from it to the chain.
    pub fn chain(&self, change: impl FnOnce(&mut Manner)) {
        if let Some(line) = &self.chain {
            line.change(change);
        }
    }
}

impl Network {
    /// Starts everything; what was in the folder goes.
    pub async fn start(folder: &Path, mut plan: Plan) -> Result<Network> {
        // Nothing but an earlier network of ours is taken away.
        if folder.join("network.json").exists() || folder.join("operator").exists() {
            std::fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut ground = if plan.chaos { Ground::find(folder) } else { Ground::common(folder) };
        let gateway = ground.place(Part::Gateway.name())?;
        plan.listen = match gateway.address() {
            Some(at) => at,
            None if plan.listen.port() == 0 => ground.free()?,
            None => {
                Port::bind(plan.listen).with_context(|| {
                    format!(
                        "cannot listen on {}; another program may use it: choose one with --listen",
                        plan.listen
                    )
                })?;
                plan.listen
            }
        };
        let spinner = progress::spinner("starting the chain");
        let chain_at = ground.free()?;
        let rpc = format!("http://{chain_at}");
        let machine = |place: Place| Machine { place, rpc: rpc.clone() };
        let listen = chain_at.to_string();
        let chain_args = ["chain", "--listen", &listen, "--block-time", BLOCK_S];
        let chain = machine(Place::plain(folder.join("chain")));
        let chain = Process::start(chain, &chain_args, Some(chain_at)).await?;

        spinner.set_message("deploying the ledger");
        let operator = machine(ground.place(Part::Operator.name())?);
        let parameters = operator.place.home.join("parameters.toml");
        std::fs::write(&parameters, plan.parameters())?;
        let file = parameters.display().to_string();
        let deployed: Value = serde_json::from_str(
            &operator.run(&["ledger", "deploy", "--parameters", &file, "--json"]).await?,
        )?;
        let directory =
            deployed["directory"].as_str().context("the deployment names no directory")?.to_owned();

        spinner.set_message("enrolling everyone");
        let mut wires = JoinSet::new();
        let (mut enrolments, mut lines, mut machines) = (Vec::new(), Vec::new(), Vec::new());
        for part in [Part::Operator, Part::Gateway, Part::Provider, Part::Auditor, Part::Host] {
            let faulty = plan.faulty(part);
            for i in 0..plan.count(part) {
                let name = match part {
                    Part::Operator | Part::Gateway => part.name().to_owned(),
                    _ => format!("{}-{}", part.name(), i + 1),
                };
                let fault = faulty.get(usize::from(i)).copied();
                let place = match part {
                    Part::Operator => operator.place.clone(),
                    Part::Gateway => gateway.clone(),
                    _ => ground.place(&name)?,
                };
                let at = match (part, place.address()) {
                    (Part::Gateway, _) => plan.listen,
                    (_, Some(at)) => at,
                    (_, None) => ground.free()?,
                };
                let own = lines_of(&plan, part, at, fault, chain_at, &ground, &mut wires).await?;
                // Nobody asks an auditor for anything.
                let reached = own.reached.as_ref().map_or(at, |line| line.at);
                let reached = (part != Part::Auditor).then_some(reached);
                let chain = own.chain.as_ref().map_or(chain_at, |line| line.at);
                let machine = Machine { place, rpc: format!("http://{chain}") };
                machines.push(machine.clone());
                lines.push(own);
                enrolments.push(enrol(machine, name, part, fault, Some(at), reached, &directory));
            }
        }
        let members = try_join_all(enrolments).await?;

        spinner.set_message("starting everyone");
        let operator_at = members.iter().find(|m| m.part == Part::Operator).and_then(|m| m.at);
        let publisher = format!("http://{}", operator_at.context("the operator listens nowhere")?);
        let mut processes = Vec::new();
        let model = publish(&operator, folder, &plan, operator_at, &mut processes).await?;
        for (i, (member, machine)) in members.iter().zip(machines).enumerate() {
            if let Some(args) = command(member, &plan, &publisher) {
                install(member)?;
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                processes.push((i, Process::start(machine, &args, member.at).await?));
            }
        }
        let at = members.iter().position(|m| m.part == Part::Gateway).context("there is no gateway")?;
        let line = lines.get(at).and_then(|lines| lines.chain.as_ref()).map_or(chain_at, |line| line.at);
        let gateway = Machine { place: gateway, rpc: format!("http://{line}") };
        let key = gateway.run(&["keys", "create", "devnet", "--credit", "1000", "--json"]).await?;
        let key: Value = serde_json::from_str(&key)?;
        let secret = key["secret"].as_str().context("the key has no secret")?.to_owned();
        let args = ["gateway", "--listen", &plan.listen.to_string(), "--pay", "--witness-every", "3"];
        processes.push((at, Process::start(gateway, &args, Some(plan.listen)).await?));
        spinner.finish_and_clear();

        let directory = directory.parse().context("the directory is no address")?;
        let state = State { rpc: rpc.clone(), directory, gateway: plan.listen, secret, model, members };
        std::fs::write(scraped(folder), state.prometheus())?;
        write_json(&folder.join("network.json"), &state)?;
        Ok(Network { state, epoch_s: plan.epoch_s, processes, chain, chain_at, ground, lines, _wires: wires })
    }

    /// The process of a place.
    pub fn process(&mut self, place: usize) -> Result<&mut Process> {
        self.processes.get_mut(place).map(|(_, process)| process).context("there is no such process")
    }

    /// The lines of the member whose process has this place.
    pub fn lines(&self, place: usize) -> Result<&Lines> {
        let member = self.processes.get(place).map(|(member, _)| *member);
        member.and_then(|member| self.lines.get(member)).context("there is no such member")
    }

    /// Requests that lines said twice.
    pub fn repeated(&self) -> u64 {
        let lines = self.lines.iter().flat_map(|lines| [&lines.reached, &lines.chain]).flatten();
        lines.map(|line| line.repeated.load(Relaxed)).sum()
    }

    /// The name of the member whose process has this place.
    pub fn named(&self, place: Option<usize>) -> &str {
        let member = place.and_then(|place| self.processes.get(place)).map(|(member, _)| *member);
        member.and_then(|member| self.state.members.get(member)).map_or("chain", |member| &member.name)
    }

    /// What the gateway's books say was charged: receipts and millionths of a dollar.
    pub async fn booked(&self) -> Result<Vec<(String, u64)>> {
        let gateway =
            self.state.members.iter().find(|m| m.part == Part::Gateway).context("there is no gateway")?;
        let machine = Machine { place: Place::plain(gateway.home.clone()), rpc: self.state.rpc.clone() };
        let charges = machine.run(&["keys", "usage", "--csv"]).await?;
        let charge = |line: &str| -> Option<(String, u64)> {
            let columns: Vec<&str> = line.split(',').collect();
            Some(((*columns.get(5)?).to_owned(), columns.get(8)?.parse().ok()?))
        };
        // After the names of the columns.
        let charges = charges.lines().skip(1).map(charge).collect::<Option<Vec<_>>>();
        charges.context("the gateway's books cannot be read")
    }

    /// Processor time that each member's process has used.
    pub fn used(&self) -> Vec<Duration> {
        let mut used = vec![Duration::ZERO; self.state.members.len()];
        for (member, process) in &self.processes {
            if let Some(of) = used.get_mut(*member) {
                *of += process.used();
            }
        }
        used
    }

    /// Stops everyone at once: what they acknowledged is on their disks.
    pub async fn stop(&mut self) {
        for (_, process) in &mut self.processes {
            process.kill().await;
        }
    }
}

/// Lines of a member: to it, if it is a provider whose line is bad; and all there are, where they may go bad. The gateway is reached as clients are told.
async fn lines_of(
    plan: &Plan,
    part: Part,
    at: SocketAddr,
    fault: Option<Kind>,
    chain_at: SocketAddr,
    ground: &Ground,
    wires: &mut JoinSet<()>,
) -> Result<Lines> {
    let manner = match part {
        Part::Provider => {
            let delay = if fault == Some(Kind::Slow) { SLOW } else { Duration::ZERO };
            Manner {
                delay,
                drop: plan.drop(),
                unaudited: fault == Some(Kind::HiddenCheat),
                ..Manner::default()
            }
        }
        _ => Manner::default(),
    };
    let mut lines = Lines::default();
    if part != Part::Gateway && (plan.chaos || manner != Manner::default()) {
        lines.reached = Some(line(ground, at, manner, wires).await?);
    }
    if plan.chaos {
        lines.chain = Some(line(ground, chain_at, Manner::default(), wires).await?);
    }
    Ok(lines)
}

async fn enrol(
    machine: Machine,
    name: String,
    part: Part,
    fault: Option<Kind>,
    at: Option<SocketAddr>,
    reached: Option<SocketAddr>,
    directory: &str,
) -> Result<Member> {
    if part != Part::Operator {
        machine.run(&["ledger", "use", directory]).await?;
    }
    machine.run(&["ledger", "faucet", "--amount", &FUNDED.to_string()]).await?;
    let stake = part.stake();
    // Without bonds nobody disputes.
    let deposit = stake.filter(|_| fault == Some(Kind::LazyAuditor)).unwrap_or(DEPOSITED);
    machine.run(&["deposit", deposit]).await?;
    if let Some(stake) = stake {
        let endpoint = reached.map(|at| format!("http://{at}")).unwrap_or_default();
        machine.run(&["stake", stake, "--role", part.name(), "--endpoint", &endpoint]).await?;
    }
    let balance: Value = serde_json::from_str(&machine.run(&["balance", "--json"]).await?)?;
    let account = balance["account"].as_str().context("the balance names no account")?.parse()?;
    Ok(Member { name, part, fault, home: machine.place.home, account, at, funded: FUNDED })
}

/// Publishes the built-in model from the operator's own host. Its name.
async fn publish(
    operator: &Machine,
    folder: &Path,
    plan: &Plan,
    at: Option<SocketAddr>,
    processes: &mut Vec<(usize, Process)>,
) -> Result<String> {
    let name = built_in()?.provenance().name.clone();
    if plan.hosts == 0 {
        return Ok(name);
    }
    let file = folder.join("model.assay");
    std::fs::write(&file, BUILT_IN)?;
    operator.run(&["pull", &file.display().to_string()]).await?;
    let copies = plan.hosts.min(3).to_string();
    let release = ["publish", &name, "--version", "1.0.0", "--copies", &copies, "--royalty", "2", "--list"];
    operator.run(&release).await?;
    let listen = at.context("the operator listens nowhere")?.to_string();
    let host = ["host", "--listen", &listen, "--every", "2"];
    // The operator is the first member.
    processes.push((0, Process::start(operator.clone(), &host, at).await?));
    Ok(name)
}

/// What a member runs; the operator and the gateway are started otherwise.
fn command(member: &Member, plan: &Plan, publisher: &str) -> Option<Vec<String>> {
    let listen = member.at.map(|at| at.to_string()).unwrap_or_default();
    let price = plan.price.to_string();
    let liar = member.fault.filter(|kind| kind.lies()).map(Kind::name);
    let daemon: &[&str] = match (member.part, &liar) {
        (Part::Operator | Part::Gateway, _) => return None,
        (Part::Provider, None) => &["up"],
        (Part::Provider, Some(kind)) => &["devnet", "liar", kind],
        (Part::Auditor, _) => &["auditor"],
        (Part::Host, _) => &["host"],
    };
    let options: &[&str] = match member.part {
        Part::Operator | Part::Gateway => &[],
        Part::Provider => &["--price", &price, "--settle", "--settle-every", "1"],
        Part::Auditor => &["--seats", "1", "--every", "1"],
        Part::Host => &["--every", "2", "--pledge", "--collect", "0", "--peer", publisher],
    };
    let listen = ["--listen", &listen];
    let args = daemon.iter().chain(&listen).chain(options);
    Some(args.map(|&arg| arg.to_owned()).collect())
}

/// Installs the model that a faulty member has in place of the true one; of an auditor, at first the true one, which it hashes.
fn install(member: &Member) -> Result<()> {
    let artifact = built_in()?;
    let Some(false_one) = member.fault.and_then(|kind| falsified(&artifact, kind)) else { return Ok(()) };
    let path = Home::open(Some(&member.home))?.model_path(&artifact.provenance().name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let bytes = if member.part == Part::Auditor { BUILT_IN } else { &false_one };
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())
}
