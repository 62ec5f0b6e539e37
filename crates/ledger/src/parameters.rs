//! The numbers of a deployment by name: for people who read them, and for files that change some of them.
//!
//! `docs/economics.md` gives each its reason, `Directory.sol` its range. Invariant: every number of the contracts' `Parameters` is
//! here once; a test compares with the artifact.

use crate::contracts::Directory::Parameters;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds of the chain.
    Seconds,
    /// A time in seconds since 1970.
    Time,
    /// Blocks of the chain.
    Blocks,
    /// Millionths.
    Ppm,
    /// Units of the token, millionths of a dollar.
    Money,
    /// Things.
    Count,
}

impl Unit {
    /// The unit in words.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Time => "time",
            Unit::Blocks => "blocks",
            Unit::Ppm => "ppm",
            Unit::Money => "micro-dollars",
            Unit::Count => "count",
        }
    }
}

/// One number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `times`, `rates`, `split` or `stakes`.
    pub section: &'static str,
    /// Its name in the contracts.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Its value.
    pub value: u64,
}

/// Why a number cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// There is none of this name.
    #[error("there is no parameter {section}.{name}; `assay ledger params` lists them")]
    Unknown {
        /// Where it was looked for.
        section: String,
        /// What was looked for.
        name: String,
    },
    /// It is larger than its type.
    #[error("{section}.{name} is at most {max}")]
    TooLarge {
        /// Its section.
        section: &'static str,
        /// Its name.
        name: &'static str,
        /// The largest value.
        max: u64,
    },
}

macro_rules! numbers {
    ($($section:ident { $($name:ident: $type:ty, $unit:ident;)* })*) => {
        /// All numbers, in the contracts' order.
        pub fn entries(p: &Parameters) -> Vec<Entry> {
            vec![$($(Entry {
                section: stringify!($section),
                name: stringify!($name),
                unit: Unit::$unit,
                value: u64::from(p.$section.$name),
            },)*)*]
        }

        /// Changes one number. The contracts refuse what is outside its range.
        pub fn set(p: &mut Parameters, section: &str, name: &str, value: u64) -> Result<(), ParameterError> {
            match (section, name) {
                $($((stringify!($section), stringify!($name)) => {
                    p.$section.$name = <$type>::try_from(value).map_err(|_| ParameterError::TooLarge {
                        section: stringify!($section),
                        name: stringify!($name),
                        max: u64::from(<$type>::MAX),
                    })?;
                })*)*
                _ => return Err(ParameterError::Unknown { section: section.to_owned(), name: name.to_owned() }),
            }
            Ok(())
        }
    };
}

numbers! {
    times {
        genesis: u64, Time;
        epochSeconds: u32, Seconds;
        postSeconds: u32, Seconds;
        beaconBlocks: u32, Blocks;
        commitSeconds: u32, Seconds;
        revealSeconds: u32, Seconds;
        objectSeconds: u32, Seconds;
        answerSeconds: u32, Seconds;
        disputeSeconds: u32, Seconds;
        refundSeconds: u32, Seconds;
        unbondSeconds: u32, Seconds;
        retrievalSeconds: u32, Seconds;
    }
    rates {
        savingsPpm: u32, Ppm;
        rateMinPpm: u32, Ppm;
        secondPpm: u32, Ppm;
        retrievalPpm: u32, Ppm;
        auditsPerMember: u32, Count;
        panelMin: u8, Count;
        panelMax: u8, Count;
    }
    split {
        royaltyMaxPpm: u32, Ppm;
        hostsPpm: u32, Ppm;
        fetchedPpm: u32, Ppm;
        protocolPpm: u32, Ppm;
        auditorsMinPpm: u32, Ppm;
        auditCostPpm: u32, Ppm;
        reporterPpm: u32, Ppm;
    }
    stakes {
        seatStake: u64, Money;
        pledgeStake: u64, Money;
        silencePenalty: u64, Money;
        lazinessPenalty: u64, Money;
        accusationBond: u64, Money;
        disputeBond: u64, Money;
        demandBond: u64, Money;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contracts::Directory;
    use crate::deployment::parameters;

    #[test]
    fn every_number_of_the_contracts_has_a_name() {
        let artifact: serde_json::Value =
            serde_json::from_str(include_str!("../../../contracts/artifacts/Directory.json")).unwrap();
        let abi = artifact["abi"].as_array().unwrap();
        let function = abi.iter().find(|f| f["name"] == "parameters").unwrap();
        let mut names = Vec::new();
        for section in function["outputs"][0]["components"].as_array().unwrap() {
            for number in section["components"].as_array().unwrap() {
                names.push((section["name"].as_str().unwrap(), number["name"].as_str().unwrap()));
            }
        }
        let ours: Vec<_> = entries(&parameters()).iter().map(|e| (e.section, e.name)).collect();
        assert_eq!(ours, names);
    }

    #[test]
    fn every_number_can_be_set_and_read() {
        let mut p: Directory::Parameters = parameters();
        for (i, entry) in entries(&parameters()).iter().enumerate() {
            set(&mut p, entry.section, entry.name, i as u64).unwrap();
        }
        assert!(entries(&p).iter().enumerate().all(|(i, e)| e.value == i as u64));
        let unknown = set(&mut p, "times", "epoch", 1).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "there is no parameter times.epoch; `assay ledger params` lists them"
        );
        let large = set(&mut p, "rates", "panelMax", 256);
        assert_eq!(large, Err(ParameterError::TooLarge { section: "rates", name: "panelMax", max: 255 }));
    }
}
