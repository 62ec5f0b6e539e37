//! What can be wrong with a member of the network.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::network::Part;

/// One kind. Those that [attacks.md](../../../../../docs/attacks.md) knows have its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A provider whose model lacks its last layers.
    CheapModel,
    /// One that, besides, answers no auditor, and shows only what the ledger makes it show.
    HiddenCheat,
    /// One whose weights have four bits.
    FourBitWeights,
    /// One that turns later positions the wrong way.
    WrongRotaryTable,
    /// One that leaves out a head's attention.
    ForgedHead,
    /// One that says more to the model than its client did.
    HiddenSystemPrompt,
    /// One that ends answers where no rule ends them.
    EarlyStop,
    /// One that draws tokens at another temperature.
    OtherTemperature,
    /// One that draws them by another seed.
    OtherSeed,
    /// One that signs another token than it has drawn.
    SwappedToken,
    /// One that draws them by another seed, and posts a receipt of a request that nobody made in place of the one that it gave.
    LeftOutReceipt,
    /// A provider at the end of a slow line.
    Slow,
    /// A provider that is killed and started again.
    Crash,
    /// An auditor that takes seats and does nothing.
    SilentAuditor,
    /// An auditor that executes another model, commits to digests of that, and disputes what is right.
    FalseChallenge,
    /// An auditor whose digests are of no execution of the model, and that keeps nothing with which it could dispute.
    LazyAuditor,
    /// A host that loses what it keeps.
    LostBytes,
}

impl Kind {
    const ALL: [(&'static str, Kind); 17] = [
        ("cheap-model", Kind::CheapModel),
        ("hidden-cheat", Kind::HiddenCheat),
        ("four-bit-weights", Kind::FourBitWeights),
        ("wrong-rotary-table", Kind::WrongRotaryTable),
        ("forged-head", Kind::ForgedHead),
        ("hidden-system-prompt", Kind::HiddenSystemPrompt),
        ("early-stop", Kind::EarlyStop),
        ("other-temperature", Kind::OtherTemperature),
        ("other-seed", Kind::OtherSeed),
        ("swapped-token", Kind::SwappedToken),
        ("left-out-receipt", Kind::LeftOutReceipt),
        ("slow", Kind::Slow),
        ("crash", Kind::Crash),
        ("silent-auditor", Kind::SilentAuditor),
        ("false-challenge", Kind::FalseChallenge),
        ("lazy-auditor", Kind::LazyAuditor),
        ("lost-bytes", Kind::LostBytes),
    ];

    /// Whose fault it is.
    pub fn part(self) -> Part {
        match self {
            Kind::SilentAuditor | Kind::FalseChallenge | Kind::LazyAuditor => Part::Auditor,
            Kind::LostBytes => Part::Host,
            _ => Part::Provider,
        }
    }

    /// Whether it is a provider whose answers are not what their receipts say.
    pub fn cheats(self) -> bool {
        self.part() == Part::Provider && !matches!(self, Kind::Slow | Kind::Crash)
    }

    /// Whether it is an auditor that executes another model than it has hashed.
    pub fn is_deceived(self) -> bool {
        matches!(self, Kind::FalseChallenge | Kind::LazyAuditor)
    }

    /// Whether its process lies about what the engine did.
    pub fn lies(self) -> bool {
        use Kind::{LeftOutReceipt, OtherSeed, OtherTemperature, SwappedToken};
        matches!(self, OtherTemperature | OtherSeed | SwappedToken | LeftOutReceipt)
    }

    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let found = Kind::ALL.into_iter().find(|(name, _)| *name == text);
        let known = || Kind::ALL.map(|(name, _)| name).join(", ");
        found.map(|(_, kind)| kind).ok_or_else(|| format!("`{text}` is none of {}", known()))
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// So many members have it.
    Some(Kind, u8),
    /// A share of all connections to providers breaks.
    Drop(f64),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let malformed = |why: &str| format!("a fault is KIND:N or drop:P; got `{text}`{why}");
        let (kind, how_many) = text.split_once(':').ok_or_else(|| malformed(""))?;
        if kind == "drop" {
            let share: f64 = how_many.parse().map_err(|_| malformed(""))?;
            return match (0.0..=1.0).contains(&share) {
                true => Ok(Fault::Drop(share)),
                false => Err("a share is between 0 and 1".into()),
            };
        }
        let kind = kind.parse().map_err(|e: String| malformed(&format!(": {e}")))?;
        Ok(Fault::Some(kind, how_many.parse().map_err(|_| malformed(""))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        assert_eq!("cheap-model:2".parse(), Ok(Fault::Some(Kind::CheapModel, 2)));
        assert_eq!("hidden-cheat:1".parse(), Ok(Fault::Some(Kind::HiddenCheat, 1)));
        assert_eq!("drop:0.05".parse(), Ok(Fault::Drop(0.05)));
        for bad in ["", "slow", "slow:", "slow:x", "slow:-1", "drop:2", "fast:1"] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds_have_the_names_that_reports_write() {
        for (name, kind) in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
    }
}
