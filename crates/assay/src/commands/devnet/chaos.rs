//! Chaos: what goes wrong on machines and between them, at random, and what must hold all the same.
//!
//! Processes are killed (SIGKILL) and started again, and held (SIGSTOP) and let go; disks are full, clocks are wrong; lines to providers, hosts and the
//! chain carry nothing, are slow or say things twice, and whole machines are cut off from all others; the chain stands still and takes blocks back, with
//! the transactions in them. What happens follows from a seed; when the processes get their turns does not, so a seed plays the same troubles and not the
//! same run. Where this machine does not permit a kind ([`super::apart`]), it is left out, and said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use assay_core::keccak::keccak256;
use serde_json::{Value, json};

use super::load::Asked;
use super::network::{Network, Part};
use super::suffered::{Health, Ill, Suffered};

/// A trouble begins after one of these times, in milliseconds.
const AFTER_MS: std::ops::Range<u64> = 300..2_500;
/// And lasts for one of these.
const LASTS_MS: std::ops::Range<u64> = 1_000..6_000;
/// Blocks that are taken back, at most.
const BACK_MAX: u64 = 3;
/// How slow a slow line is.
const SLOW: Duration = Duration::from_millis(200);
/// Seconds by which clocks are wrong: as two may differ, ...
const OFF_S: [i64; 2] = [-25, 25];
/// ... and further than they may.
const FAR_OFF_S: [i64; 4] = [-1_000, -70, 70, 1_000];

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A member's process is killed, and started again when it is over.
    Killed,
    /// A member's process does not run.
    Held,
    /// Nothing that is said to a member by its line reaches it.
    Cut,
    /// What reaches a member takes its time.
    Slow,
    /// What is asked of a member, and what it asks of the chain, is asked again later.
    Twice,
    /// A member does not reach the chain.
    Blind,
    /// A member can write nothing.
    Full,
    /// A member's clock is wrong, within what is tolerated.
    Off,
    /// A member's clock is wrong.
    FarOff,
    /// A member is cut off from everyone, in the midst of whatever is on its way.
    Severed,
    /// Several are.
    Parted,
    /// The chain's process is killed.
    ChainKilled,
    /// The chain stands still.
    ChainHeld,
    /// The chain takes blocks back.
    Back,
}

impl Kind {
    /// All of them, with their names and how often each is in a deck.
    const ALL: [(Kind, &'static str, u8); 14] = [
        (Kind::Killed, "killed", 5),
        (Kind::Held, "held", 3),
        (Kind::Cut, "line cut", 2),
        (Kind::Slow, "line slow", 1),
        (Kind::Twice, "asked twice", 2),
        (Kind::Blind, "cut off from the chain", 2),
        (Kind::Full, "disk full", 4),
        (Kind::Off, "clock a little wrong", 2),
        (Kind::FarOff, "clock wrong", 2),
        (Kind::Severed, "cut off from everyone", 2),
        (Kind::Parted, "network parted", 1),
        (Kind::ChainKilled, "chain killed", 1),
        (Kind::ChainHeld, "chain held", 1),
        (Kind::Back, "blocks taken back", 2),
    ];

    fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, name, _)| name)
    }

    /// Whether it befalls the chain.
    fn of_chain(self) -> bool {
        matches!(self, Kind::ChainKilled | Kind::ChainHeld | Kind::Back)
    }

    /// Whether it must not be noticed by whoever asks the member.
    fn is_harmless(self) -> bool {
        matches!(self, Kind::Twice | Kind::Off)
    }

    /// Why it cannot be played here.
    fn hindered(self, network: &Network) -> Option<String> {
        let ground = &network.ground;
        match self {
            Kind::Full => ground.disks.as_ref().err().cloned(),
            Kind::Off | Kind::FarOff => ground.clocks.as_ref().err().cloned(),
            Kind::Severed | Kind::Parted => ground.networks.as_ref().err().cloned(),
            _ => None,
        }
    }
}

/// A trouble, and whose it is by the place of the process; nobody's is the chain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trouble {
    kind: Kind,
    place: Option<usize>,
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

    fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len() as u64) as usize).copied()
    }
}

/// The troubles of a run.
pub struct Chaos {
    dice: Dice,
    /// Kinds that are still to come before any comes again.
    deck: Vec<Kind>,
    next: Instant,
    now: Vec<(Trouble, Instant)>,
    health: Health,
    counts: BTreeMap<Kind, u64>,
    ended: u64,
}

impl Chaos {
    pub fn new(seed: u64) -> Chaos {
        Chaos {
            dice: Dice { seed, drawn: 0 },
            deck: Vec::new(),
            next: Instant::now(),
            now: Vec::new(),
            health: Health::default(),
            counts: BTreeMap::new(),
            ended: 0,
        }
    }

    /// The next kind that can be played here.
    fn draw(&mut self, network: &Network) -> Kind {
        loop {
            if self.deck.is_empty() {
                let cards = Kind::ALL.iter().flat_map(|(kind, _, times)| vec![*kind; usize::from(*times)]);
                self.deck = cards.collect();
            }
            let card = self.dice.below(self.deck.len() as u64) as usize;
            let kind = self.deck.swap_remove(card);
            if kind.hindered(network).is_none() {
                return kind;
            }
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
            let killed = Trouble { kind: Kind::Killed, place: Some(place) };
            let killed = self.now.iter().any(|(trouble, _)| *trouble == killed);
            let process = network.process(place)?;
            if !killed && process.ended() {
                process.revive()?;
                self.health.of(Some(place)).push(Ill { from: now, until: Some(now) });
                self.ended += 1;
                println!("{}: ended by itself", network.named(Some(place)));
            }
        }
        if self.next > now {
            return Ok(());
        }
        self.next = now + self.dice.within(AFTER_MS);
        let kind = self.draw(network);
        let lasts = self.dice.within(LASTS_MS);
        let members = network.processes.len();
        let troubles = match kind {
            // Anyone may be on either side.
            Kind::Parted => (0..members)
                .filter(|_| self.dice.below(3) == 0)
                .map(|place| Trouble { kind: Kind::Severed, place: Some(place) })
                .collect(),
            _ if kind.of_chain() => vec![Trouble { kind, place: None }],
            _ => vec![Trouble { kind, place: Some(self.dice.below(members as u64) as usize) }],
        };
        if kind == Kind::Parted {
            *self.counts.entry(kind).or_default() += 1;
        }
        for trouble in troubles {
            // Nobody has two at a time: each is ended by undoing it.
            if self.now.iter().any(|(other, _)| other.place == trouble.place) {
                continue;
            }
            *self.counts.entry(trouble.kind).or_default() += 1;
            if !kind.is_harmless() {
                self.health.of(trouble.place).push(Ill { from: now, until: None });
            }
            println!("{}: {}", network.named(trouble.place), trouble.kind.name());
            // Noted before it begins, so that it is ended whenever this is cut off.
            self.now.push((trouble, now + lasts));
            self.begin(trouble, network).await?;
        }
        Ok(())
    }

    async fn begin(&mut self, trouble: Trouble, network: &mut Network) -> Result<()> {
        let Some(m) = trouble.place else {
            return self.begin_of_chain(trouble.kind, network).await;
        };
        match trouble.kind {
            Kind::Killed => network.process(m)?.kill().await,
            Kind::Held => network.process(m)?.signal("STOP").await?,
            Kind::Cut => network.lines(m)?.reached(|line| line.cut = true),
            Kind::Slow => network.lines(m)?.reached(|line| line.delay = SLOW),
            Kind::Blind => network.lines(m)?.chain(|line| line.cut = true),
            Kind::Twice => {
                network.lines(m)?.reached(|line| line.twice = true);
                network.lines(m)?.chain(|line| line.twice = true);
            }
            Kind::Full => network.process(m)?.place().fill()?,
            Kind::Off | Kind::FarOff => {
                let by: &[i64] = if trouble.kind == Kind::Off { &OFF_S } else { &FAR_OFF_S };
                let off = self.dice.one(by).unwrap_or_default();
                network.process(m)?.place().clock(off)?;
            }
            Kind::Severed => network.process(m)?.place().joined(false)?,
            Kind::Parted | Kind::ChainKilled | Kind::ChainHeld | Kind::Back => {}
        }
        Ok(())
    }

    async fn begin_of_chain(&mut self, kind: Kind, network: &mut Network) -> Result<()> {
        match kind {
            Kind::ChainKilled => network.chain.kill().await,
            Kind::ChainHeld => network.chain.signal("STOP").await?,
            _ => {
                let blocks = 1 + self.dice.below(BACK_MAX);
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
        match (trouble.kind, trouble.place) {
            (Kind::Killed, Some(m)) => network.process(m)?.revive()?,
            (Kind::Held, Some(m)) => network.process(m)?.signal("CONT").await?,
            (Kind::Cut | Kind::Slow | Kind::Blind | Kind::Twice, Some(m)) => {
                network.lines(m)?.reached(|_| ());
                network.lines(m)?.chain(|_| ());
            }
            (Kind::Full, Some(m)) => network.process(m)?.place().free()?,
            (Kind::Off | Kind::FarOff, Some(m)) => network.process(m)?.place().clock(0)?,
            (Kind::Severed, Some(m)) => network.process(m)?.place().joined(true)?,
            (Kind::ChainKilled, _) => network.chain.revive()?,
            (Kind::ChainHeld, _) => network.chain.signal("CONT").await?,
            _ => {}
        }
        if let Some(ill) = self.health.of(trouble.place).iter_mut().rev().find(|ill| ill.until.is_none()) {
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
        let mut found = Suffered {
            seed: self.dice.seed,
            ended: self.ended,
            repeated: network.repeated(),
            ..Suffered::default()
        };
        for (kind, name, _) in Kind::ALL {
            match kind.hindered(network) {
                Some(why) => drop(found.not_played.insert(name.to_owned(), why)),
                None => {
                    let count = self.counts.get(&kind).copied().unwrap_or_default();
                    found.troubles.insert(name.to_owned(), count);
                }
            }
        }
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
        found.charged = booked.iter().map(|(_, charged)| charged).sum();
        // Every request is sent once: what lines said twice was charged, if there are more.
        found.charged_twice = (booked.len() as u64).saturating_sub(asked.now().sent);
        let booked: BTreeSet<String> = booked.into_iter().map(|(receipt, _)| receipt).collect();
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
