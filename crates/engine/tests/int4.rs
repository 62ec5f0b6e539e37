//! Models of the profile `int4-v1`: a stored form of int8 matrices, which nothing but the file knows of.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use assay_engine::artifact::layer::{LayerModel, extract};
use assay_engine::artifact::opening::{Content, Item};
use assay_engine::artifact::tree::ModelTree;
use assay_engine::artifact::{Artifact, Profile};
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::import::{ImportOptions, import};
use assay_engine::kernel::Kernel;
use assay_engine::matrix::{Matrix, store};
use assay_engine::pool::Pool;
use assay_engine::program::{Checked, Head, Op, Shape};
use assay_engine::replay::{ByReference, Execution};
use tempfile::TempDir;

#[path = "checkpoint/family.rs"]
mod family;
#[path = "checkpoint/small.rs"]
mod small;

use family::Family;

const FAMILIES: [&str; 3] = ["llama", "gemma2", "bert"];

fn imported(name: &str, profile: Profile) -> Arc<Artifact> {
    let family = Family::read(name);
    let d = TempDir::new().unwrap();
    let folder = d.path().join("model");
    family.write(&folder, &family.config());
    let tokenizer = small::write(d.path(), "tokenizer.json", &small::tokenizer_json());
    let options = ImportOptions { tokenizer: Some(tokenizer), profile, ..Default::default() };
    let out = d.path().join("x.assay");
    let report = import(&folder, &options, &out, &mut |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
    let artifact = opened(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((artifact.root(), artifact.profile()), (report.root, profile));
    Arc::new(artifact)
}

fn opened(bytes: &[u8]) -> Result<Artifact, &'static str> {
    let artifact = Artifact::from_bytes("x", bytes).map_err(|e| e.code())?;
    artifact.check_root(&|_| ()).map_err(|e| e.code())?;
    Ok(artifact)
}

/// The same model with a byte for each weight.
struct Plain {
    inner: Arc<Artifact>,
    matrices: Vec<Option<Vec<u8>>>,
}

impl Plain {
    fn of(inner: &Arc<Artifact>) -> Arc<Plain> {
        let tensors = inner.program().program().tensors.iter().enumerate();
        let matrices = tensors.map(|(t, tensor)| {
            let Shape::Matrix { .. } = tensor.shape else { return None };
            let w = inner.matrix(t as u16);
            let all = (0..w.rows()).flat_map(|r| (0..w.cols()).map(move |c| (r, c)));
            Some(store(w.rows(), w.cols(), &all.map(|(r, c)| w.weight(r, c)).collect::<Vec<i8>>()))
        });
        Arc::new(Plain { matrices: matrices.collect(), inner: Arc::clone(inner) })
    }
}

impl Constants for Plain {
    fn program(&self) -> &Checked {
        self.inner.program()
    }
    fn profile(&self) -> Profile {
        self.inner.profile()
    }
    fn matrix(&self, t: u16) -> Matrix<'_> {
        let w = self.inner.matrix(t);
        let bytes = self.matrices[usize::from(t)].as_ref().unwrap();
        Matrix::new(w.rows(), w.cols(), w.shift(), bytes, w.scales()).unwrap()
    }
    fn table(&self, t: u16) -> &[i32] {
        self.inner.table(t)
    }
    fn rotary(&self, t: u16) -> &[i16] {
        self.inner.rotary(t)
    }
    fn vector(&self, t: u16) -> &[i32] {
        self.inner.vector(t)
    }
}

/// Every number that an execution shows.
fn shown(execution: &mut dyn Execution, head: Head, tokens: &[u32]) -> Vec<i32> {
    let mut all = Vec::new();
    match head {
        Head::Tokens { .. } => execution.replay(tokens, 0, &mut |row| {
            let (q, s) = row.hidden;
            all.extend(q.iter().map(|q| i32::from(*q)));
            all.extend([i32::from(s.mantissa), i32::from(s.exponent)]);
            all.extend_from_slice(row.logits.unwrap());
        }),
        Head::Vector { .. } => all.extend(execution.encode(&[tokens]).into_iter().flatten()),
    }
    all
}

#[test]
fn packed_models_are_the_plain_ones_with_their_weights() {
    for name in FAMILIES {
        let artifact = imported(name, Profile::Int4);
        let program = artifact.program().program();
        let packed = Profile::Int4.packed(program);
        let matrices =
            || program.tensors.iter().enumerate().filter(|(_, t)| matches!(t.shape, Shape::Matrix { .. }));
        assert!(packed.iter().filter(|p| **p).count() > 3, "{name}");
        assert!(matrices().all(|(t, _)| artifact.matrix(t as u16).is_packed() == packed[t]));
        let plain = Plain::of(&artifact);
        let tokens: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % program.vocabulary.min(50)).collect();
        let wanted = shown(&mut ByReference(plain.as_ref()), program.head, &tokens);
        assert_eq!(shown(&mut ByReference(artifact.as_ref()), program.head, &tokens), wanted, "{name}");
        for kernel in Kernel::available() {
            for threads in [1, 3] {
                let mut executor = Executor::new(artifact.shared(), kernel, Arc::new(Pool::new(threads)));
                assert!(
                    shown(&mut executor, program.head, &tokens) == wanted,
                    "{name}, {kernel:?}, {threads}"
                );
            }
        }
        let tree = |c: &dyn Constants| ModelTree::new(c, artifact.text(), artifact.tokenizer_json());
        assert_eq!(tree(artifact.as_ref()).root(), artifact.root());
        assert_eq!(tree(plain.as_ref()).leaves(), tree(artifact.as_ref()).leaves());
        let other = imported(name, Profile::Int8);
        assert_ne!(other.root(), artifact.root());
        assert!(other.len() > artifact.len(), "{} and {}", other.len(), artifact.len());
    }
}

#[test]
fn packed_weights_open_as_what_they_are_worth() {
    let artifact = imported("llama", Profile::Int4);
    let tree = ModelTree::new(artifact.as_ref(), artifact.text(), artifact.tokenizer_json());
    let products = artifact.program().program().ops.iter().filter_map(|op| match op {
        Op::MatMul { weights, .. } => Some(*weights),
        _ => None,
    });
    for tensor in products {
        let w = artifact.matrix(tensor);
        for row in [0, w.rows() - 1] {
            let opening =
                tree.open(artifact.as_ref(), Item::Weights { tensor, row: row as u32, col_tile: 0 }).unwrap();
            let opened = opening.verify(&artifact.root()).unwrap();
            let Content::Weights { weights, .. } = opened.content else { panic!("weights") };
            let expected: Vec<i8> = (0..w.cols().min(256)).map(|c| w.weight(row, c)).collect();
            assert_eq!(weights, expected);
        }
    }
}

#[test]
fn layers_of_a_packed_model_are_read_by_who_has_only_its_root() {
    let artifact = imported("llama", Profile::Int4);
    let tree = ModelTree::new(artifact.as_ref(), artifact.text(), artifact.tokenizer_json());
    let bytes = extract(artifact.as_ref(), &tree, 1).unwrap();
    let layer = LayerModel::read(&bytes, artifact.root()).unwrap();
    assert_eq!(layer.profile(), Profile::Int4);
    let mut altered = bytes;
    let last = altered.len() - 1;
    altered[last] ^= 1;
    assert!(LayerModel::read(&altered, artifact.root()).is_err());
}

#[test]
fn what_is_altered_is_refused() {
    let artifact = imported("llama", Profile::Int4);
    let bytes = artifact.bytes().to_vec();
    let at = |part: &[u8]| part.as_ptr() as usize - bytes_at(&artifact);
    let product = |op: &Op| match op {
        Op::MatMul { weights, .. } => Some(*weights),
        _ => None,
    };
    let first = artifact.program().program().ops.iter().find_map(product).unwrap();
    let w = artifact.matrix(first);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        opened(&bytes).err()
    };
    assert_eq!(with(&|_| ()), None);
    // A scale of a group, and a weight that is not where it was.
    assert_eq!(with(&|b| b[at(w.tile(0))] ^= 64), Some("artifact_root"));
    assert_eq!(with(&|b| b[at(w.tile(0)) + 64] ^= 8), Some("artifact_root"));
    // The head of an artifact of the other profile: places differ.
    assert_eq!(with(&|b| b[7] = 2), Some("artifact_length"));
    assert_eq!(with(&|b| b[7] = 4), Some("artifact_magic"));
    assert_eq!(with(&|b| b.truncate(bytes.len() - 64)), Some("artifact_length"));
    // Weights where the matrix has no rows or columns.
    let unused = artifact.program().program().ops.iter().filter_map(product).find(|t| {
        let w = artifact.matrix(*t);
        w.rows() % 64 != 0
    });
    let w = artifact.matrix(unused.expect("a small model has a matrix of few rows"));
    let tile = at(w.tile(w.tiles() - 1));
    // A scale without weights is worth nothing.
    assert_eq!(with(&|b| b[tile + 63] = 60), None);
    let both = |b: &mut Vec<u8>| {
        b[tile + 63] = 60;
        b[tile + 64 + 4 * 63] = 0;
    };
    assert_eq!(with(&both), Some("artifact_content"));
}

fn bytes_at(artifact: &Artifact) -> usize {
    artifact.bytes().as_ptr() as usize
}

/// Four bits cost a little of what was said, not most of it: the largest logit stays where it was at most positions that are clear.
#[test]
fn packed_models_say_nearly_the_same() {
    let choices = |profile| {
        let artifact = imported("llama", profile);
        let tokens = Family::ids(Family::read("llama").result("ids"));
        let mut executor = Executor::new(artifact.shared(), Kernel::available()[0], Arc::new(Pool::new(2)));
        let mut all = Vec::new();
        executor.replay(&tokens, 0, &mut |row| {
            let l = row.logits.unwrap();
            all.push((0..l.len()).max_by_key(|i| l[*i]).unwrap());
        });
        all
    };
    let (whole, packed) = (choices(Profile::Int8), choices(Profile::Int4));
    let same = whole.iter().zip(&packed).filter(|(a, b)| a == b).count();
    assert!(same * 2 > whole.len(), "{same} of {}", whole.len());
}
