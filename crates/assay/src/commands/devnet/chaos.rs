//! Chaos: what goes wrong on machines and between them, at random, and what must hold all the same.
//!
//! Processes are killed (SIGKILL) and started again, and held (SIGSTOP) and let go; lines to providers, hosts and the chain carry nothing or are slow
//! for a while; the chain stands still and takes blocks back, with the transactions in them. What happens follows from a seed; when the processes get their
//! turns does not, so a seed plays the same troubles and not the same run.
//!
//! What is not played here: a full disk and a clock that is wrong.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use assay_core::keccak::keccak256;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::load::Asked;
use super::network::{Network, Part};
use super::wire::Manner;

/// A trouble begins after one of these times, in milliseconds.
const AFTER_MS: std::ops::Range<u64> = 500..4_000;
/// And lasts for one of these.
const LASTS_MS: std::ops::Range<u64> = 1_000..6_000;
/// Blocks that are taken back, at most.
const BACK_MAX: u64 = 3;
/// How slow a slow line is.
const SLOW: Duration = Duration::from_millis(200);
/// After a trouble, so long may pass until a member is itself again.
const RECOVERS: Duration = Duration::from_secs(8);

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// A member's process is killed, and started again when it is over.
    Killed(usize),
    /// A member's process does not run.
    Held(usize),
    /// Nothing reaches a member.
    Cut(usize),
    /// What reaches a member takes its time.
    Slow(usize),
    /// A member does not reach the chain.
    Blind(usize),
    /// The chain's process is killed.
    ChainKilled,
    /// The chain stands still.
    ChainHeld,
    /// The chain takes blocks back.
    Back(u64),
}

/// A sequence of numbers that follows from a seed.
#[derive(Debug)]
struct Dice {
    seed: u64,
    drawn: u64,
}

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.drawn += 1;
        let hash = keccak256(&[b"assay/chaos/1", &self.seed.to_be_bytes(), &self.drawn.to_be_bytes()]);
        let bytes = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(bytes) % end.max(1)
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.below(range.end - range.start))
    }
}

/// A time in which somebody was not well; open while it lasts.
#[derive(Clone, Copy, Debug)]
struct Ill {
    from: Instant,
    until: Option<Instant>,
}

impl Ill {
    fn touches(&self, from: Instant, until: Instant) -> bool {
        self.from <= until && self.until.is_none_or(|end| end + RECOVERS >= from)
    }
}

/// Who was not well when.
#[derive(Debug, Default)]
struct Health {
    members: BTreeMap<usize, Vec<Ill>>,
    /// The chain's troubles are everybody's.
    chain: Vec<Ill>,
}

impl Health {
    fn of(&mut self, trouble: Trouble) -> &mut Vec<Ill> {
        match trouble {
            Trouble::Killed(m)
            | Trouble::Held(m)
            | Trouble::Cut(m)
            | Trouble::Slow(m)
            | Trouble::Blind(m) => self.members.entry(m).or_default(),
            Trouble::ChainKilled | Trouble::ChainHeld | Trouble::Back(_) => &mut self.chain,
        }
    }

    fn well(&self, member: usize, from: Instant, until: Instant) -> bool {
        let ill = self.members.get(&member).into_iter().flatten().chain(&self.chain);
        !ill.into_iter().any(|ill| ill.touches(from, until))
    }
}

/// The troubles of a run.
pub struct Chaos {
    dice: Dice,
    next: Instant,
    now: Vec<(Trouble, Instant)>,
    health: Health,
    counts: BTreeMap<&'static str, u64>,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Suffered {
    pub seed: u64,
    /// By kind.
    pub troubles: BTreeMap<String, u64>,
    /// Requests that failed for clients while the gateway, the chain and a provider were well all the time: each with its code.
    pub unexplained: Vec<String>,
    /// Requests that failed for clients otherwise.
    pub explained: u64,
    /// Receipts of answers, as clients were told them, that their providers or the gateway's books do not have.
    pub vanished: Vec<String>,
    /// Answers whose receipts were looked for.
    pub receipts: u64,
}

impl Suffered {
    /// Says it, and fails if something must not be.
    pub fn print(&self) -> Result<()> {
        let troubles: Vec<String> =
            self.troubles.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        println!("chaos {}: {}", self.seed, troubles.join(", "));
        println!(
            "{} requests failed while nobody could answer them; the receipts of {} answers were looked for",
            self.explained, self.receipts
        );
        if !self.unexplained.is_empty() {
            bail!(
                "{} requests failed for no reason: {}",
                self.unexplained.len(),
                self.unexplained.join(", ")
            );
        }
        if !self.vanished.is_empty() {
            bail!("{} receipts are gone: {}", self.vanished.len(), self.vanished.join(", "));
        }
        Ok(())
    }
}

impl Trouble {
    fn kind(self) -> &'static str {
        match self {
            Trouble::Killed(_) => "killed",
            Trouble::Held(_) => "held",
            Trouble::Cut(_) => "cut off",
            Trouble::Slow(_) => "slow",
            Trouble::Blind(_) => "cut off from the chain",
            Trouble::ChainKilled => "chain killed",
            Trouble::ChainHeld => "chain held",
            Trouble::Back(_) => "blocks taken back",
        }
    }
}

impl Chaos {
    pub fn new(seed: u64) -> Chaos {
        let dice = Dice { seed, drawn: 0 };
        Chaos {
            dice,
            next: Instant::now(),
            now: Vec::new(),
            health: Health::default(),
            counts: BTreeMap::new(),
        }
    }

    fn draw(&mut self, members: usize) -> Trouble {
        let member = self.dice.below(members as u64) as usize;
        match self.dice.below(20) {
            0..5 => Trouble::Killed(member),
            5..9 => Trouble::Held(member),
            9..12 => Trouble::Cut(member),
            12..14 => Trouble::Slow(member),
            14..16 => Trouble::Blind(member),
            16 => Trouble::ChainKilled,
            17 => Trouble::ChainHeld,
            _ => Trouble::Back(1 + self.dice.below(BACK_MAX)),
        }
    }

    /// Ends what is over, and begins something if it is time.
    pub async fn step(&mut self, network: &mut Network) -> Result<()> {
        let now = Instant::now();
        while let Some(&(trouble, until)) = self.now.iter().find(|(_, until)| *until <= now) {
            self.end(trouble, network).await?;
            self.now.retain(|of| *of != (trouble, until));
        }
        // Whoever ended by itself, as it may where it finds no chain, is started again.
        for place in 0..network.processes.len() {
            let killed = self.now.iter().any(|(trouble, _)| *trouble == Trouble::Killed(place));
            let process = network.process(place)?;
            if !killed && process.ended() {
                process.revive()?;
                self.health.members.entry(place).or_default().push(Ill { from: now, until: Some(now) });
                *self.counts.entry("ended by itself").or_default() += 1;
            }
        }
        if self.next > now {
            return Ok(());
        }
        self.next = now + self.dice.within(AFTER_MS);
        let trouble = self.draw(network.processes.len());
        let lasts = self.dice.within(LASTS_MS);
        // Nobody has two at a time: each is ended by undoing it.
        let place = |trouble: Trouble| match trouble {
            Trouble::Killed(m)
            | Trouble::Held(m)
            | Trouble::Cut(m)
            | Trouble::Slow(m)
            | Trouble::Blind(m) => Some(m),
            Trouble::ChainKilled | Trouble::ChainHeld | Trouble::Back(_) => None,
        };
        if self.now.iter().any(|(other, _)| place(*other) == place(trouble)) {
            return Ok(());
        }
        *self.counts.entry(trouble.kind()).or_default() += 1;
        self.health.of(trouble).push(Ill { from: now, until: None });
        println!("{}: {}", network.named(place(trouble)), trouble.kind());
        // Noted before it begins, so that it is ended whenever this is cut off.
        self.now.push((trouble, now + lasts));
        self.begin(trouble, network).await
    }

    async fn begin(&mut self, trouble: Trouble, network: &mut Network) -> Result<()> {
        let manner = |cut, delay| Manner { cut, delay, drop: 0.0 };
        match trouble {
            Trouble::Killed(m) => network.process(m)?.kill().await,
            Trouble::Held(m) => network.process(m)?.signal("STOP").await?,
            Trouble::Cut(m) => network.lines(m)?.reached(manner(true, Duration::ZERO)),
            Trouble::Slow(m) => network.lines(m)?.reached(manner(false, SLOW)),
            Trouble::Blind(m) => network.lines(m)?.chain(manner(true, Duration::ZERO)),
            Trouble::ChainKilled => network.chain.kill().await,
            Trouble::ChainHeld => network.chain.signal("STOP").await?,
            Trouble::Back(blocks) => {
                let call = json!({"jsonrpc": "2.0", "id": 1, "method": "anvil_rollback", "params": [blocks]});
                let chain = format!("http://{}", network.chain_at);
                let answer = reqwest::Client::new().post(chain).json(&call).send().await;
                let answer: Value = answer.context("the chain")?.json().await.context("the chain")?;
                if !answer["error"].is_null() {
                    bail!("the chain does not take blocks back: {}", answer["error"]);
                }
            }
        }
        Ok(())
    }

    async fn end(&mut self, trouble: Trouble, network: &mut Network) -> Result<()> {
        match trouble {
            Trouble::Killed(m) => network.process(m)?.revive()?,
            Trouble::Held(m) => network.process(m)?.signal("CONT").await?,
            Trouble::Cut(m) | Trouble::Slow(m) => network.lines(m)?.reached(Manner::default()),
            Trouble::Blind(m) => network.lines(m)?.chain(Manner::default()),
            Trouble::ChainKilled => network.chain.revive()?,
            Trouble::ChainHeld => network.chain.signal("CONT").await?,
            Trouble::Back(_) => {}
        }
        if let Some(ill) = self.health.of(trouble).iter_mut().rev().find(|ill| ill.until.is_none()) {
            ill.until = Some(Instant::now());
        }
        Ok(())
    }

    /// Ends everything, and waits until everyone is there again.
    pub async fn over(&mut self, network: &mut Network) -> Result<()> {
        for (trouble, _) in std::mem::take(&mut self.now) {
            self.end(trouble, network).await?;
        }
        network.chain.ready().await?;
        for (_, process) in &mut network.processes {
            if process.ended() {
                process.revive()?;
            }
            process.ready().await?;
        }
        Ok(())
    }

    /// What clients saw of it, and whether what they were told is still there. Everyone must be well again.
    pub async fn suffered(&self, network: &Network, asked: &Asked) -> Result<Suffered> {
        let counts = self.counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count));
        let mut found = Suffered { seed: self.dice.seed, troubles: counts.collect(), ..Suffered::default() };
        let of = |part| {
            let members = network.processes.iter().enumerate();
            let of_part = members.filter(move |(_, (m, _))| network.state.members[*m].part == part);
            of_part.map(|(place, _)| place).collect::<Vec<_>>()
        };
        let (gateway, providers) = (of(Part::Gateway), of(Part::Provider));
        for failure in asked.failures() {
            let well = |place: &usize| self.health.well(*place, failure.began, failure.ended);
            if gateway.iter().all(well) && providers.iter().any(well) {
                found.unexplained.push(failure.code);
            } else {
                found.explained += 1;
            }
        }
        let booked = network.booked().await?;
        let client = reqwest::Client::new();
        for (receipt, provider) in asked.receipts() {
            found.receipts += 1;
            let member =
                network.state.members.iter().find(|m| m.account.to_string().eq_ignore_ascii_case(&provider));
            let at = member.and_then(|m| m.at).with_context(|| format!("{provider} is no provider"))?;
            let shown = client.get(format!("http://{at}/v1/receipts/{receipt}")).send().await?;
            if !shown.status().is_success() {
                found.vanished.push(format!("{receipt} of {provider}"));
            }
            if !booked.contains(&receipt) {
                found.vanished.push(format!("{receipt} in the gateway's books"));
            }
        }
        Ok(found)
    }
}
