//! What clients saw of chaos, and whether what they were told is still there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use assay_ledger::amount::Amount;
use serde::{Deserialize, Serialize};

/// After a trouble, so long may pass until a member is itself again.
const RECOVERS: Duration = Duration::from_secs(8);

/// A time in which somebody was not well; open while it lasts.
#[derive(Clone, Copy, Debug)]
pub struct Ill {
    pub from: Instant,
    pub until: Option<Instant>,
}

impl Ill {
    fn touches(&self, from: Instant, until: Instant) -> bool {
        self.from <= until && self.until.is_none_or(|end| end + RECOVERS >= from)
    }
}

/// Who was not well when.
#[derive(Debug, Default)]
pub struct Health {
    members: BTreeMap<usize, Vec<Ill>>,
    /// The chain's troubles are everybody's.
    chain: Vec<Ill>,
}

impl Health {
    /// Times of a member, by its place; or the chain's.
    pub fn of(&mut self, place: Option<usize>) -> &mut Vec<Ill> {
        match place {
            Some(member) => self.members.entry(member).or_default(),
            None => &mut self.chain,
        }
    }

    /// Whether neither a member nor the chain was unwell in between.
    pub fn well(&self, member: usize, from: Instant, until: Instant) -> bool {
        let ill = self.members.get(&member).into_iter().flatten().chain(&self.chain);
        !ill.into_iter().any(|ill| ill.touches(from, until))
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Suffered {
    pub seed: u64,
    /// How often each kind was played.
    pub troubles: BTreeMap<String, u64>,
    /// Kinds that this machine does not permit, and why.
    pub not_played: BTreeMap<String, String>,
    /// Requests between members, and to the chain, that were sent a second time.
    pub repeated: u64,
    /// Members that ended by themselves and were started again.
    pub ended: u64,
    /// Requests that failed for clients while the gateway, the chain and a provider were well all the time: each with its code.
    pub unexplained: Vec<String>,
    /// Requests that failed for clients otherwise.
    pub explained: u64,
    /// Receipts of answers, as clients were told them, that their providers or the gateway's books do not have.
    pub vanished: Vec<String>,
    /// Answers whose receipts were looked for.
    pub receipts: u64,
    /// What clients were charged, in millionths of a dollar.
    pub charged: u64,
    /// Charges beyond one for each request.
    pub charged_twice: u64,
}

impl Suffered {
    /// Says it, and fails if something must not be.
    pub fn print(&self) -> Result<()> {
        let troubles: Vec<String> =
            self.troubles.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        println!("chaos {}: {}", self.seed, troubles.join(", "));
        println!("{} requests were sent twice; {} times a member ended by itself", self.repeated, self.ended);
        for (kind, why) in &self.not_played {
            println!("not played here: {kind}: {why}");
        }
        println!(
            "{} requests failed while nobody could answer them; the receipts of {} answers were looked for",
            self.explained, self.receipts
        );
        println!("clients were charged {} dollars", Amount(self.charged.into()));
        if !self.unexplained.is_empty() {
            bail!(
                "{} requests failed for no reason: {}",
                self.unexplained.len(),
                self.unexplained.join(", ")
            );
        }
        if self.charged_twice > 0 {
            bail!("{} requests were charged twice", self.charged_twice);
        }
        if !self.vanished.is_empty() {
            bail!("{} receipts are gone: {}", self.vanished.len(), self.vanished.join(", "));
        }
        Ok(())
    }
}
