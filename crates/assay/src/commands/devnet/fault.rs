//! What can be wrong with a member of the network.

use std::str::FromStr;
use std::sync::Arc;

use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::matrix::BIAS;
use assay_engine::program::Op;
use assay_engine::program::layers::Layers;
use serde::{Deserialize, Serialize};

/// One kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A provider that executes another model than its receipts name.
    CheapModel,
    /// One that, besides, answers no auditor, and shows only what the ledger makes it show.
    HiddenCheat,
    /// A provider at the end of a slow line.
    Slow,
    /// A provider that is killed and started again.
    Crash,
    /// An auditor that takes seats and does nothing.
    SilentAuditor,
    /// A host that loses what it keeps.
    LostBytes,
}

impl Kind {
    const ALL: [(&'static str, Kind); 6] = [
        ("cheap-model", Kind::CheapModel),
        ("hidden-cheat", Kind::HiddenCheat),
        ("slow", Kind::Slow),
        ("crash", Kind::Crash),
        ("silent-auditor", Kind::SilentAuditor),
        ("lost-bytes", Kind::LostBytes),
    ];

    /// Whether it executes another model than its receipts name.
    pub fn cheats(self) -> bool {
        matches!(self, Kind::CheapModel | Kind::HiddenCheat)
    }

    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
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
        let kinds = || Kind::ALL.map(|(name, _)| name).join(", ");
        let malformed = || format!("a fault is KIND:N with one of {}, or drop:P; got `{text}`", kinds());
        let (kind, how_many) = text.split_once(':').ok_or_else(malformed)?;
        if kind == "drop" {
            let share: f64 = how_many.parse().map_err(|_| malformed())?;
            return match (0.0..=1.0).contains(&share) {
                true => Ok(Fault::Drop(share)),
                false => Err("a share is between 0 and 1".into()),
            };
        }
        let (_, kind) = Kind::ALL.into_iter().find(|(name, _)| *name == kind).ok_or_else(malformed)?;
        Ok(Fault::Some(kind, how_many.parse().map_err(|_| malformed())?))
    }
}

/// A file that says it is this model, and is not: the second half of its layers has no weights but zero, and so hands on what comes in. Who
/// did this in earnest would not execute those layers at all.
pub fn cheapened(artifact: &Arc<Artifact>) -> Vec<u8> {
    let program = artifact.program();
    let layers = Layers::of(program);
    let all = layers.all();
    let mut bytes = artifact.bytes().to_vec();
    let start = artifact.bytes().as_ptr() as usize;
    for layer in all.get(all.len().div_ceil(2)..).unwrap_or_default() {
        for op in program.program().ops.get(layer.ops.clone()).unwrap_or_default() {
            let Op::MatMul { weights, .. } = op else { continue };
            let matrix = artifact.matrix(*weights);
            for tile in (0..matrix.tiles()).map(|t| matrix.tile(t)) {
                let at = tile.as_ptr() as usize - start;
                if let Some(same) = bytes.get_mut(at..at + tile.len()) {
                    same.fill(BIAS);
                }
            }
        }
    }
    bytes
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
    fn a_cheapened_model_says_that_it_is_the_true_one() {
        let artifact = crate::home::built_in().unwrap();
        let cheap = Artifact::from_bytes("cheap", &cheapened(&artifact)).unwrap();
        assert_eq!(cheap.root(), artifact.root());
        assert!(cheap.check_root(&|_| ()).is_err());
    }
}
