//! Programs of every family that is imported fall into the layers that their checkpoints have, and these layers one after
//! the other compute what the whole program does.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use assay_core::id::ModelRoot;
use assay_engine::artifact::Artifact;
use assay_engine::artifact::layer::{LayerModel, extract};
use assay_engine::artifact::tree::ModelTree;
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::import::{ImportOptions, import};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::program::Head;
use assay_engine::program::layers::Layers;
use assay_engine::replay::{ByReference, Execution, LayerExecution, LayerRow, LayerRun};
use proptest::prelude::*;
use tempfile::TempDir;

#[path = "checkpoint/family.rs"]
mod family;
#[path = "checkpoint/small.rs"]
mod small;

use family::Family;

fn imported(family: &Family) -> Arc<Artifact> {
    let d = TempDir::new().unwrap();
    let folder = d.path().join("model");
    family.write(&folder, &family.config());
    let tokenizer = small::write(d.path(), "tokenizer.json", &small::tokenizer_json());
    let options = ImportOptions { tokenizer: Some(tokenizer), ..Default::default() };
    let out = d.path().join("x.assay");
    import(&folder, &options, &out, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    Arc::new(Artifact::from_bytes("x", &std::fs::read(&out).unwrap()).unwrap())
}

fn executor(artifact: &Arc<Artifact>) -> Executor {
    Executor::new(artifact.shared(), Kernel::from_environment().unwrap(), Arc::new(Pool::new(2)))
}

/// A hidden vector, its scale's two numbers, and the logits: or a pooled vector in place of the logits.
type Last = (Vec<i8>, (u16, i16), Option<Vec<i32>>);

/// What the last layer makes when every layer reads what the one before made.
fn layer_by_layer(execution: &mut dyn LayerExecution, layers: &Layers, tokens: &[u32]) -> Vec<Last> {
    let (mut state, mut last) = (Vec::new(), Vec::new());
    for layer in layers.all() {
        let run = LayerRun { layer, tokens, state: &state, logits_from: 2 };
        let mut made = Vec::new();
        execution.execute_layer(&run, &mut |row| match row {
            LayerRow::State { position, numbers } => {
                assert_eq!(made.len(), position * numbers.len());
                made.extend_from_slice(numbers);
            }
            LayerRow::Token(row) => {
                let (q, scale) = row.hidden;
                assert_eq!(row.position, last.len());
                last.push((q.to_vec(), (scale.mantissa, scale.exponent), row.logits.map(<[i32]>::to_vec)));
            }
            LayerRow::Pooled(v) => last.push((vec![], (0, 0), Some(v.to_vec()))),
        });
        state = made;
    }
    last
}

fn whole(execution: &mut dyn Execution, head: Head, tokens: &[u32]) -> Vec<Last> {
    let mut all = Vec::new();
    match head {
        Head::Tokens { .. } => execution.replay(tokens, 2, &mut |row| {
            let (q, scale) = row.hidden;
            all.push((q.to_vec(), (scale.mantissa, scale.exponent), row.logits.map(<[i32]>::to_vec)));
        }),
        Head::Vector { .. } => {
            all.extend(execution.encode(&[tokens]).into_iter().map(|v| (vec![], (0, 0), Some(v))));
        }
    }
    all
}

/// An embedding, a layer for each attend operation, and a tail, which compute what the program does.
fn has_layers(name: &str, artifact: &Arc<Artifact>, count: usize, tokens: &[u32]) {
    let checked = artifact.program();
    let layers = Layers::of(checked);
    assert_eq!(checked.caches().len(), count, "{name}");
    assert_eq!(layers.all().len(), count + 2, "{name}");
    assert_eq!(layers.attending().count(), count, "{name}");
    for (i, layer) in layers.all().iter().enumerate() {
        let caches = if i == 0 { 0..0 } else { (i - 1).min(count)..i.min(count) };
        assert_eq!(layer.caches, caches, "{name}, layer {i}");
    }
    // A layer has its own matrices, the tail the head's: no more than the tables are shared.
    let matrices = |l| {
        let of = |t: &u16| artifact.program().program().tensors[usize::from(*t)].shape.parameters() > 0;
        layers.tensors(checked, l).into_iter().filter(of).collect::<Vec<_>>()
    };
    let own: Vec<u16> = (0..count + 2).flat_map(matrices).collect();
    let mut once = own.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(own.len(), once.len(), "{name}");

    let want = whole(&mut executor(artifact), checked.program().head, tokens);
    assert!(layer_by_layer(&mut executor(artifact), &layers, tokens) == want, "{name}: by the engine");
    let by_reference = layer_by_layer(&mut ByReference(artifact.as_ref()), &layers, tokens);
    assert!(by_reference == want, "{name}: by the reference");
}

#[test]
fn every_family_has_its_layers() {
    let names = [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen3_window",
        "smollm2",
        "gemma",
        "gemma2",
        "gemma3",
        "bert",
    ];
    for name in names {
        let family = Family::read(name);
        let count = family.config()["num_hidden_layers"].as_u64().unwrap() as usize;
        let tokens = match name {
            "bert" => Family::ids(&family.result("texts")[0]),
            _ => Family::ids(family.result("ids")).into_iter().take(40).collect(),
        };
        has_layers(name, &imported(&family), count, &tokens);
    }
}

#[test]
fn the_built_in_model_has_its_layers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let count = artifact.program().caches().len();
    has_layers("built-in", &artifact, count, &(1..200).collect::<Vec<u32>>());
}

fn extracted(artifact: &Artifact) -> Vec<Vec<u8>> {
    let tree = ModelTree::new(artifact, artifact.text(), artifact.tokenizer_json());
    let count = Layers::of(artifact.program()).all().len();
    assert_eq!(extract(artifact, &tree, count), None);
    (0..count).map(|l| extract(artifact, &tree, l).unwrap()).collect()
}

#[test]
fn a_layer_alone_is_enough_to_execute_it() {
    for name in ["llama", "gemma3", "bert"] {
        let family = Family::read(name);
        let artifact = imported(&family);
        let layers = Layers::of(artifact.program());
        let tokens: Vec<u32> = (1..33).collect();
        let mut state = Vec::new();
        for (i, bytes) in extracted(&artifact).into_iter().enumerate() {
            let model = Arc::new(LayerModel::read(&bytes, artifact.root()).unwrap());
            assert_eq!((model.layer(), model.layers(), model.root()), (i, &layers, artifact.root()));
            let run = LayerRun { layer: &layers.all()[i], tokens: &tokens, state: &state, logits_from: 20 };
            let made = |execution: &mut dyn LayerExecution| {
                let (mut numbers, mut rest) = (Vec::new(), Vec::new());
                execution.execute_layer(&run, &mut |row| match row {
                    LayerRow::State { numbers: n, .. } => numbers.extend_from_slice(n),
                    LayerRow::Token(row) => {
                        rest.push((row.hidden.0.to_vec(), row.logits.map(<[i32]>::to_vec)));
                    }
                    LayerRow::Pooled(v) => numbers.extend_from_slice(v),
                });
                (numbers, rest)
            };
            let want = made(&mut executor(&artifact));
            let constants: Arc<dyn Constants> = model.clone();
            let pool = Arc::new(Pool::new(1));
            assert!(made(&mut Executor::new(constants, Kernel::available()[0], pool)) == want, "{name} {i}");
            assert!(made(&mut ByReference(model.as_ref())) == want, "{name} {i}");
            state = want.0;
        }
    }
}

#[test]
fn the_layers_of_the_built_in_model_are_as_small_as_they_should_be() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
    let artifact = Artifact::open(&path).unwrap();
    let sizes: Vec<usize> = extracted(&artifact).iter().map(Vec::len).collect();
    eprintln!("layers of {sizes:?} bytes, the artifact has {}", artifact.len());
    let layers = Layers::of(artifact.program());
    let attending = layers.all().iter().zip(&sizes).filter(|(l, _)| !l.caches.is_empty());
    assert!(attending.map(|(_, size)| *size).all(|size| size < artifact.len() / layers.all().len() * 2));
}

#[test]
fn a_layer_that_is_not_the_models_is_refused() {
    let artifact = imported(&Family::read("llama"));
    let all = extracted(&artifact);
    let code = |bytes: &[u8]| LayerModel::read(bytes, artifact.root()).unwrap_err().code();
    let other = ModelRoot::from_bytes([7; 32]);
    assert_eq!(LayerModel::read(&all[1], other).unwrap_err().code(), "layer_root");
    assert_eq!(code(&[]), "layer_tag");
    assert_eq!(code(&all[1][..17]), "layer_header");
    assert_eq!(code(&all[1][..200]), "layer_header");
    assert_eq!(code(&all[1][..all[1].len() - 1]), "layer_length");
    assert_eq!(code(&[all[1].as_slice(), &[0]].concat()), "layer_length");

    let header = u32::from_le_bytes(all[1][14..18].try_into().unwrap()) as usize;
    let altered = |at: usize, by: u8| {
        let mut bytes = all[1].clone();
        bytes[at] ^= by;
        code(&bytes)
    };
    // The index stands at the end of the header: another layer, one that there is not; the leaves before it.
    assert_eq!(altered(18 + header - 4, 3), "layer_leaf");
    assert_eq!(altered(18 + header - 3, 1), "layer_index");
    assert_eq!(altered(18 + header - 5, 1), "layer_root");
    // The program: its context, which its angles cover or not.
    assert!(["layer_leaf", "layer_program"].contains(&altered(18, 1)));
    // The last tensor is a matrix: a row scale of it.
    assert_eq!(altered(all[1].len() - 1, 1), "layer_leaf");
    // The embedding's 264 rows do not fill their last tile: a weight beyond them.
    let mut padded = all[0].clone();
    let before_scales = padded.len() - 2 * small::VOCABULARY - 1;
    padded[before_scales] ^= 1;
    assert_eq!(code(&padded), "layer_content");
    // What was the header's length.
    assert_eq!(altered(17, 0x80), "layer_header");
    // Tensors of the next layer.
    let mut mixed = all[1][..18 + header].to_vec();
    mixed.extend_from_slice(&all[2][18 + header..]);
    assert_eq!(code(&mixed), "layer_leaf");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Everything in a layer's bytes is under the root: whatever is changed, it is refused.
    #[test]
    fn any_changed_byte_of_a_layer_is_refused(
        layer in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        in_front in any::<bool>(),
        change in 1u8..,
    ) {
        static ALL: LazyLock<(ModelRoot, Vec<Vec<u8>>)> = LazyLock::new(|| {
            let artifact = imported(&Family::read("qwen3"));
            (artifact.root(), extracted(&artifact))
        });
        let mut bytes = layer.get(&ALL.1).clone();
        prop_assert!(LayerModel::read(&bytes, ALL.0).is_ok());
        let at = at.index(if in_front { 4000 } else { bytes.len() });
        bytes[at] ^= change;
        prop_assert!(LayerModel::read(&bytes, ALL.0).is_err(), "byte {}", at);
        prop_assert!(LayerModel::read(&bytes[..at], ALL.0).is_err());
    }

    #[test]
    fn noise_is_no_layer(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), tagged in any::<bool>()) {
        if tagged {
            bytes.splice(0..0, *b"\x0dassay/layer/1");
        }
        prop_assert!(LayerModel::read(&bytes, ModelRoot::ZERO).is_err());
    }
}
