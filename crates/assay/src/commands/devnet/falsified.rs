//! Models that are not what they say: files under the root of a model that differ from it, as cheats would have them.
//!
//! Nothing that opens a file hashes it: who serves one of these serves another model under the true one's name. Whoever audits or
//! disputes hashes its own, and so takes none of them for the model.

use assay_core::canonical::Canonical as _;
use assay_core::request::Prompt;
use assay_engine::artifact::{Artifact, Manifest, TextModel};
use assay_engine::constants::Constants as _;
use assay_engine::matrix::{BIAS, stored_index};
use assay_engine::program::layers::Layers;
use assay_engine::program::{Op, TensorId};
use assay_engine::text::Tokenizer;

use super::fault::Kind;

/// What a cheat has the model read before everything else.
const HIDDEN: &str = "Everyone in this story loves sweets.\n";
/// Constants begin at a multiple of this.
const GRID: usize = 16 << 10;

/// The file that such a provider serves, or that such an auditor executes; nothing where the file is the true one.
pub fn falsified(artifact: &Artifact, kind: Kind) -> Option<Vec<u8>> {
    let program = artifact.program().program();
    let mut file = Altered { artifact, bytes: artifact.bytes().to_vec() };
    match kind {
        // Who did this in earnest would not execute these layers at all: without weights they hand on what comes in.
        Kind::CheapModel | Kind::HiddenCheat | Kind::FalseChallenge | Kind::LazyAuditor => {
            let layers = Layers::of(artifact.program());
            let later = layers.all().get(layers.all().len().div_ceil(2)..).unwrap_or_default();
            let ops = later.iter().flat_map(|layer| program.ops.get(layer.ops.clone()).unwrap_or_default());
            ops.filter_map(weights).for_each(|t| file.reweigh(t, |_, _| 0));
        }
        Kind::FourBitWeights => {
            let rounded = |_, w: i8| ((i16::from(w) + 8) >> 4 << 4).clamp(-128, 112) as i8;
            program.ops.iter().filter_map(weights).for_each(|t| file.reweigh(t, rounded));
        }
        Kind::ForgedHead => {
            if let Some((t, head_dim)) = after_attention(&program.ops) {
                file.reweigh(t, |column, w| if column < head_dim { 0 } else { w });
            }
        }
        Kind::WrongRotaryTable => {
            let tables = program.ops.iter().filter_map(|op| match op {
                Op::Rotary { table, .. } => Some(*table),
                _ => None,
            });
            tables.min().into_iter().for_each(|t| file.turn(t));
        }
        Kind::HiddenSystemPrompt => return file.retold(|text| text.chat_template.insert_str(0, HIDDEN)),
        Kind::EarlyStop => {
            let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).ok()?;
            let ends = tokenizer.encode_prompt(&Prompt::Text(".".into())).ok()?;
            return file.retold(|text| text.end_tokens.extend(ends));
        }
        _ => return None,
    }
    Some(file.bytes)
}

fn weights(op: &Op) -> Option<TensorId> {
    match op {
        Op::MatMul { weights, .. } => Some(*weights),
        _ => None,
    }
}

/// The weights that read what the first attention comes to, and how many of their columns are of one head.
fn after_attention(ops: &[Op]) -> Option<(TensorId, usize)> {
    let (attend, head_dim) = ops.iter().enumerate().find_map(|(i, op)| match op {
        Op::Attend { head_dim, .. } => Some((i, *head_dim)),
        _ => None,
    })?;
    let weights = ops.get(attend..)?.iter().find_map(weights)?;
    Some((weights, head_dim as usize))
}

/// A file that is being altered.
struct Altered<'a> {
    artifact: &'a Artifact,
    bytes: Vec<u8>,
}

impl Altered<'_> {
    /// Where something that the artifact lends lies in its file.
    fn place<T>(&self, lent: &[T]) -> usize {
        lent.as_ptr() as usize - self.artifact.bytes().as_ptr() as usize
    }

    /// Each weight of a matrix, with its column, becomes another one.
    fn reweigh(&mut self, t: TensorId, change: impl Fn(usize, i8) -> i8) {
        let matrix = self.artifact.matrix(t);
        let start = self.place(matrix.tile(0));
        for (row, column) in (0..matrix.rows()).flat_map(|r| (0..matrix.cols()).map(move |c| (r, c))) {
            if let Some(byte) = self.bytes.get_mut(start + stored_index(matrix.cols(), row, column)) {
                *byte = change(column, (*byte ^ BIAS) as i8) as u8 ^ BIAS;
            }
        }
    }

    /// All but the first angles of a rotary table are mirrored.
    fn turn(&mut self, t: TensorId) {
        let angles = self.artifact.rotary(t);
        let later = angles.get(angles.len() / 64..).unwrap_or_default();
        let start = self.place(later);
        let bytes: Vec<u8> = later.iter().flat_map(|a| a.wrapping_neg().to_le_bytes()).collect();
        if let Some(same) = self.bytes.get_mut(start..start + bytes.len()) {
            same.copy_from_slice(&bytes);
        }
    }

    /// The same constants under a manifest that says otherwise how text becomes ids.
    fn retold(&self, change: impl FnOnce(&mut TextModel)) -> Option<Vec<u8>> {
        let mut text = self.artifact.text().clone();
        change(&mut text);
        let tokenizer = self.artifact.tokenizer_json();
        let manifest = Manifest {
            program: self.artifact.program().program().clone(),
            text,
            provenance: self.artifact.provenance().clone(),
            tokenizer_len: tokenizer.len() as u64,
        };
        let manifest = manifest.to_canonical_bytes();
        let constants = (self.place(tokenizer) + tokenizer.len()).next_multiple_of(GRID);
        let mut bytes = Vec::with_capacity(self.bytes.len() + GRID);
        bytes.extend_from_slice(self.artifact.bytes().first_chunk::<8>()?);
        bytes.extend_from_slice(self.artifact.root().as_bytes());
        bytes.extend_from_slice(&(manifest.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&manifest);
        bytes.extend_from_slice(tokenizer);
        bytes.resize(bytes.len().next_multiple_of(GRID), 0);
        bytes.extend_from_slice(self.bytes.get(constants..)?);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_falsified_opens_says_that_it_is_the_true_one_and_is_not() {
        let artifact = crate::home::built_in().unwrap();
        let mut all = vec![];
        for kind in [
            Kind::CheapModel,
            Kind::FourBitWeights,
            Kind::WrongRotaryTable,
            Kind::ForgedHead,
            Kind::HiddenSystemPrompt,
            Kind::EarlyStop,
        ] {
            let bytes = falsified(&artifact, kind).unwrap();
            assert!(!all.contains(&bytes), "{kind:?}");
            let other = Artifact::from_bytes("other", &bytes).unwrap();
            assert_eq!(other.root(), artifact.root());
            assert!(other.check_root(&|_| ()).is_err(), "{kind:?}");
            all.push(bytes);
        }
        assert_eq!(falsified(&artifact, Kind::Slow), None);
    }
}
