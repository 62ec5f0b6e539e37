//! Openings: every item of a model opens under its root, and whatever is altered proves nothing.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use assay_core::canonical::Canonical as _;
use assay_core::id::{Hash, ModelRoot};
use assay_core::keccak::keccak256;
use assay_core::merkle::{self, Proof};
use assay_engine::artifact::opening::{Content, Item, ModelOpening, Opened, Part, STATEMENT_BYTES_MAX, Way};
use assay_engine::artifact::root::model_root;
use assay_engine::artifact::tree::ModelTree;
use assay_engine::artifact::{Artifact, TextModel};
use assay_engine::constants::Constants;
use assay_engine::matrix::{Matrix, store};
use assay_engine::program::check::NAME_BYTES_MAX;
use assay_engine::program::{Checked, Head, Op, Program, Shape, TABLE_LEN, Tensor};
use proptest::prelude::*;

const MODEL: &[u8] = include_bytes!("../../../models/stories-1.7m.assay");
const ROWS: u32 = 150;
const COLS: u32 = 261;
const POSITIONS: u32 = 23;

/// Two matrices of one shape, angles, a table and a gain; every kind of run ends in a shorter one.
struct Model {
    program: Checked,
    matrices: [(Vec<u8>, Vec<u16>); 2],
    rotary: Vec<i16>,
    table: Vec<i32>,
    gain: Vec<i32>,
    /// Rows, columns and lengths of constants may be less than declared by so many.
    missing: [usize; 3],
}

fn weight(matrix: usize, row: usize, col: usize) -> i8 {
    (matrix * 77 + row * 31 + col * 7) as i8
}

impl Model {
    fn new(missing: [usize; 3]) -> Model {
        let shape = Shape::Matrix { rows: ROWS, cols: COLS, shift: 20 };
        let tensor = |name: &str, shape| Tensor { name: name.into(), shape };
        let tensors = vec![
            tensor("embed", shape),
            tensor(&"h".repeat(NAME_BYTES_MAX), shape),
            tensor("rotary", Shape::Rotary { positions: POSITIONS, pairs: 6 }),
            tensor("logistic", Shape::Table),
            tensor("gain", Shape::Vector { len: COLS, frac: 20 }),
        ];
        let ops = vec![
            Op::Embed { table: 0 },
            Op::Normalise { x: 0, groups: 1, center: false, epsilon: 1, gain: 4, bias: None, frac: 16 },
            Op::Quantise { x: 1, offset: 0, len: COLS, groups: 1 },
            Op::MatMul { weights: 1, x: 2 },
            Op::Fix { x: 3, offset: 0, len: ROWS, frac: 16 },
        ];
        let head = Head::Tokens { hidden: 2, logits: 4 };
        let program = Program { context: 9, vocabulary: ROWS, residual_frac: 16, tensors, ops, head };
        let (rows, cols) = (ROWS as usize - missing[0], COLS as usize - missing[1]);
        let matrices = [0, 1].map(|m| {
            let weights: Vec<i8> = (0..rows * cols).map(|i| weight(m, i / cols, i % cols)).collect();
            (store(rows, cols, &weights), (0..rows).map(|r| 40_000 + (m + r) as u16).collect())
        });
        let short = |numbers: usize| 0..numbers - missing[2];
        Model {
            program: program.check().unwrap(),
            matrices,
            rotary: short(POSITIONS as usize * 12).map(|i| i as i16 - 300).collect(),
            table: short(TABLE_LEN).map(|i| 32_768 + i as i32).collect(),
            gain: short(COLS as usize).map(|i| -(i as i32) * 65_537).collect(),
            missing,
        }
    }

    fn tree(&self) -> ModelTree {
        ModelTree::new(self, &text(), b"{}")
    }
}

impl Constants for Model {
    fn program(&self) -> &Checked {
        &self.program
    }
    fn matrix(&self, t: u16) -> Matrix<'_> {
        let (bytes, scales) = &self.matrices[usize::from(t)];
        let (rows, cols) = (ROWS as usize - self.missing[0], COLS as usize - self.missing[1]);
        Matrix::new(rows, cols, 20, bytes, scales).unwrap()
    }
    fn table(&self, _: u16) -> &[i32] {
        &self.table
    }
    fn rotary(&self, _: u16) -> &[i16] {
        &self.rotary
    }
    fn vector(&self, _: u16) -> &[i32] {
        &self.gain
    }
}

fn text() -> TextModel {
    TextModel {
        bos: None,
        add_bos: false,
        end_tokens: vec![2],
        chat_template: "x".into(),
        has_chat_template: true,
    }
}

/// All items that a program's declarations say there are.
fn items(program: &Program) -> Vec<Item> {
    let mut all = vec![Item::Facts];
    all.extend((0..program.ops.len() as u16).map(Item::Op));
    for (i, t) in program.tensors.iter().enumerate() {
        let tensor = i as u16;
        all.push(Item::Tensor(tensor));
        let runs =
            |count: u32, each: u32| (0..count.div_ceil(each)).map(move |index| Item::Run { tensor, index });
        match t.shape {
            Shape::Matrix { rows, cols, .. } => {
                all.extend((0..rows).flat_map(|row| {
                    (0..cols.div_ceil(256)).map(move |col_tile| Item::Weights { tensor, row, col_tile })
                }));
                all.extend((0..rows.div_ceil(128)).map(|run| Item::Scales { tensor, run }));
            }
            Shape::Table => all.extend(runs(TABLE_LEN as u32, 64)),
            Shape::Vector { len, .. } => all.extend(runs(len, 64)),
            Shape::Rotary { positions, pairs } => all.extend(runs(positions * pairs * 2, 128)),
        }
    }
    all
}

/// What the model has there, read without any tree.
fn content(c: &dyn Constants, item: Item) -> Content {
    fn run<T: Copy>(all: &[T], each: usize, index: u32) -> Vec<T> {
        all.chunks(each).nth(index as usize).unwrap().to_vec()
    }
    let p = c.program().program();
    let declaration = |t: u16| p.tensors[usize::from(t)].clone();
    match item {
        Item::Facts => Content::Facts(p.facts()),
        Item::Op(op) => Content::Op(c.program().declared(op).unwrap()),
        Item::Tensor(t) => Content::Tensor(declaration(t)),
        Item::Weights { tensor, row, col_tile } => {
            let w = c.matrix(tensor);
            let cols = (256 * col_tile as usize..w.cols()).take(256);
            let weights = cols.map(|col| w.weight(row as usize, col)).collect();
            Content::Weights { declaration: declaration(tensor), weights }
        }
        Item::Scales { tensor, run: index } => {
            let scales = run(c.matrix(tensor).scales(), 128, index);
            Content::Scales { declaration: declaration(tensor), scales }
        }
        Item::Run { tensor, index } => {
            let declaration = declaration(tensor);
            match declaration.shape {
                Shape::Rotary { .. } => {
                    Content::Angles { declaration, angles: run(c.rotary(tensor), 128, index) }
                }
                Shape::Table => Content::Integers { declaration, numbers: run(c.table(tensor), 64, index) },
                _ => Content::Integers { declaration, numbers: run(c.vector(tensor), 64, index) },
            }
        }
    }
}

struct Subject {
    model: Model,
    tree: ModelTree,
    root: ModelRoot,
}

impl Subject {
    fn open(&self, item: Item) -> ModelOpening {
        self.tree.open(&self.model, item).unwrap()
    }
}

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| {
    let model = Model::new([0; 3]);
    let tree = model.tree();
    let root = tree.root();
    Subject { model, tree, root }
});

/// One of every kind, of tensors and runs in the middle and at the end.
const KINDS: [Item; 11] = [
    Item::Facts,
    Item::Op(0),
    Item::Op(4),
    Item::Tensor(1),
    Item::Weights { tensor: 0, row: 70, col_tile: 0 },
    Item::Weights { tensor: 1, row: 149, col_tile: 1 },
    Item::Scales { tensor: 0, run: 1 },
    Item::Run { tensor: 2, index: 1 },
    Item::Run { tensor: 3, index: 16 },
    Item::Run { tensor: 3, index: 0 },
    Item::Run { tensor: 4, index: 4 },
];

#[test]
fn every_item_of_a_model_opens() {
    let s = &*SUBJECT;
    assert_eq!(s.root, model_root(&s.model, &text(), b"{}", &|_| {}));
    let items = items(s.model.program.program());
    assert_eq!(items.len(), 1 + 5 + 5 + 2 * (2 * 150 + 2) + 3 + 17 + 5);
    for item in items {
        let opening = s.open(item);
        let want = Opened { item, content: content(&s.model, item) };
        assert_eq!(opening.verify(&s.root), Some(want), "{item:?}");
        let bytes = opening.to_canonical_bytes();
        assert!(bytes.len() < 2500, "{item:?}: {} bytes", bytes.len());
        assert_eq!(ModelOpening::from_canonical_bytes(&bytes).unwrap(), opening);
        assert_eq!(opening.verify(&ModelRoot::ZERO), None);
    }
}

#[test]
fn the_built_in_model_opens() {
    let a = Artifact::from_bytes("stories", MODEL).unwrap();
    let tree = ModelTree::new(&a, a.text(), a.tokenizer_json());
    assert_eq!(tree.open_text(a.text()).unwrap().verified(a.root()), Ok(a.text().clone()));
    let root = "0x322eee2d0188e754f50fe57131fd1d4cbab3bdfdc23d74e0cf0f8bdedb27d092".parse().unwrap();
    assert_eq!(tree.root(), root);
    let items = items(a.program().program());
    for item in items.iter().step_by(97).chain(items.last()).copied() {
        let opened = tree.open(&a, item).unwrap().verify(&root);
        assert_eq!(opened, Some(Opened { item, content: content(&a, item) }), "{item:?}");
    }
}

#[test]
fn what_a_model_does_not_have_does_not_open() {
    let s = &*SUBJECT;
    let none = [
        Item::Op(5),
        Item::Op(u16::MAX),
        Item::Tensor(5),
        Item::Weights { tensor: 0, row: ROWS, col_tile: 0 },
        Item::Weights { tensor: 0, row: 0, col_tile: 2 },
        Item::Weights { tensor: 0, row: u32::MAX, col_tile: u32::MAX },
        Item::Weights { tensor: 2, row: 0, col_tile: 0 },
        Item::Weights { tensor: 9, row: 0, col_tile: 0 },
        Item::Scales { tensor: 1, run: 2 },
        Item::Scales { tensor: 4, run: 0 },
        Item::Run { tensor: 0, index: 0 },
        Item::Run { tensor: 2, index: 3 },
        Item::Run { tensor: 3, index: 17 },
        Item::Run { tensor: 4, index: u32::MAX },
    ];
    for item in none {
        assert_eq!(s.tree.open(&s.model, item), None, "{item:?}");
    }
}

/// The proofs of an opening.
fn proofs(o: &mut ModelOpening) -> Vec<&mut Proof> {
    let mut all = vec![&mut o.statement_proof, &mut o.program_proof];
    if let Some(part) = &mut o.part {
        all.push(&mut part.tensor_proof);
        match &mut part.way {
            Way::Weights { row, tile, .. } => all.extend([row, tile]),
            Way::Scales { run, .. } | Way::Run(run) => all.push(run),
        }
    }
    all
}

#[test]
fn an_altered_proof_proves_nothing() {
    let changes: [fn(&mut Proof); 11] = [
        |p| p.index ^= 1,
        |p| p.index = p.index.wrapping_add(1),
        |p| p.index = p.count,
        |p| p.index = u64::MAX,
        |p| p.count += 1,
        |p| p.count -= 1,
        |p| p.count = u64::MAX,
        |p| p.path.push(Hash::ZERO),
        |p| p.path.push(p.path.last().copied().unwrap_or(Hash::ZERO)),
        |p| p.path = vec![Hash::ZERO; 1000],
        |p| p.path.insert(0, Hash::ZERO),
    ];
    for item in KINDS {
        let good = SUBJECT.open(item);
        for at in 0..proofs(&mut good.clone()).len() {
            let refused = |change: &dyn Fn(&mut Proof), what: &str| {
                let mut other = good.clone();
                change(proofs(&mut other)[at]);
                assert_eq!(other.verify(&SUBJECT.root), None, "{item:?}, proof {at}: {what}");
            };
            for (i, change) in changes.iter().enumerate() {
                refused(change, &format!("change {i}"));
            }
            for entry in 0..proofs(&mut good.clone())[at].path.len() {
                refused(&|p| p.path[entry] = Hash::ZERO, "another sibling");
                refused(
                    &|p| {
                        p.path.remove(entry);
                    },
                    "a sibling less",
                );
                refused(&|p| p.path.truncate(entry), "a shorter path");
            }
        }
    }
}

#[test]
fn other_content_or_another_tensor_proves_nothing() {
    let root = SUBJECT.root;
    let open = |item| SUBJECT.open(item);
    for item in KINDS {
        let good = open(item);
        let refused = |change: &dyn Fn(&mut ModelOpening), what: &str| {
            let mut other = good.clone();
            change(&mut other);
            assert_eq!(other.verify(&root), None, "{item:?}: {what}");
        };
        refused(&|o| o.statement.push(0), "a longer statement");
        refused(&|o| o.statement.truncate(o.statement.len() - 1), "a shorter statement");
        refused(&|o| o.statement.clear(), "no statement");
        refused(&|o| o.statement.resize(STATEMENT_BYTES_MAX + 1, 0), "a statement above the limit");
        if good.part.is_none() {
            refused(&|o| o.part = open(KINDS[4]).part, "the part of another statement");
            continue;
        }
        fn part(o: &mut ModelOpening) -> &mut Part {
            o.part.as_mut().unwrap()
        }
        refused(&|o| part(o).bytes.push(0), "a longer leaf");
        refused(
            &|o| {
                part(o).bytes.pop();
            },
            "a shorter leaf",
        );
        refused(&|o| part(o).bytes.clear(), "an empty leaf");
        for other in KINDS.into_iter().filter(|other| *other != item) {
            let other = open(other);
            let Some(theirs) = &other.part else { continue };
            if other.statement != good.statement {
                refused(&|o| o.part = Some(theirs.clone()), "the part of another tensor");
            }
            refused(&|o| part(o).way = theirs.way.clone(), "another way");
            refused(&|o| part(o).bytes = theirs.bytes.clone(), "other bytes");
        }
        let ways: [fn(Proof) -> Way; 3] = [
            Way::Run,
            |run| Way::Scales { run, weights: Hash::ZERO },
            |run| Way::Weights { row: run.clone(), tile: run, scales: Hash::ZERO },
        ];
        for way in ways {
            let run = match &good.part.as_ref().unwrap().way {
                Way::Weights { tile, .. } => tile.clone(),
                Way::Scales { run, .. } | Way::Run(run) => run.clone(),
            };
            let forged = way(run);
            if forged != good.part.as_ref().unwrap().way {
                refused(&|o| part(o).way = forged.clone(), "a way of another kind");
            }
        }
    }
    // The same place of the other matrix, which is declared alike.
    let (mut one, other) = (
        open(Item::Weights { tensor: 0, row: 3, col_tile: 1 }),
        open(Item::Weights { tensor: 1, row: 3, col_tile: 1 }),
    );
    one.part = other.part;
    assert_eq!(one.verify(&root), None);
}

#[test]
fn a_statement_holds_at_the_limit_and_not_one_past() {
    let longest = STATEMENT_BYTES_MAX - 15;
    for (bytes, holds) in [(longest, true), (longest + 1, false)] {
        let name = "n".repeat(bytes);
        let shape = Shape::Matrix { rows: 1, cols: 1, shift: 0 };
        let (opening, root, _) = declaring(Tensor { name, shape }, Hash::ZERO);
        assert_eq!(opening.statement.len() <= STATEMENT_BYTES_MAX, holds);
        assert_eq!(opening.verify(&root).is_some(), holds);
    }
}

/// Statements are only where they belong: neither an operation nor the numbers pass for a declaration.
#[test]
fn a_statement_is_what_its_place_says() {
    let root = SUBJECT.root;
    let (declared, operation) = (SUBJECT.open(Item::Tensor(4)), SUBJECT.open(Item::Op(0)));
    assert_eq!((declared.statement_proof.index, operation.statement_proof.index), (5, 6));
    for (one, other) in [(&declared, &operation), (&operation, &declared)] {
        let swapped = ModelOpening { statement: other.statement.clone(), ..one.clone() };
        assert_eq!(swapped.verify(&root), None);
        let swapped = ModelOpening { statement_proof: other.statement_proof.clone(), ..one.clone() };
        assert_eq!(swapped.verify(&root), None);
    }
}

/// A root over constants of other shapes than declared, which no artifact has: a leaf opens only where the declaration puts
/// as many numbers under as many leaves.
#[test]
fn a_tree_of_another_shape_than_declared_opens_as_far_as_it_fits() {
    let fits = |declared: u32, missing: usize, each: usize, index: u32| {
        let runs = |count: usize| -> Vec<usize> {
            (0..count).step_by(each).map(|at| each.min(count - at)).collect()
        };
        let (declared, actual) = (runs(declared as usize), runs(declared as usize - missing));
        declared.len() == actual.len() && declared[index as usize] == actual[index as usize]
    };
    for missing in [[1, 0, 0], [22, 0, 0], [23, 0, 0], [0, 1, 0], [0, 5, 0], [0, 0, 1], [0, 0, 64]] {
        let model = Model::new(missing);
        let tree = model.tree();
        let root = tree.root();
        for item in items(model.program.program()) {
            let want = match item {
                Item::Facts | Item::Op(_) | Item::Tensor(_) => true,
                Item::Weights { row, col_tile, .. } => {
                    fits(ROWS, missing[0], 64, row / 64) && fits(COLS, missing[1], 256, col_tile)
                }
                Item::Scales { run, .. } => fits(ROWS, missing[0], 128, run),
                Item::Run { tensor: 2, index } => fits(POSITIONS * 12, missing[2], 128, index),
                Item::Run { tensor: 3, index } => fits(TABLE_LEN as u32, missing[2], 64, index),
                Item::Run { index, .. } => fits(COLS, missing[2], 64, index),
            };
            let opened = tree.open(&model, item).and_then(|o| o.verify(&root));
            assert_eq!(opened.is_some(), want, "{missing:?}: {item:?}");
            assert!(opened.is_none_or(|o| o.item == item));
        }
    }
}

#[test]
fn every_altered_byte_is_found() {
    for item in KINDS {
        let bytes = borsh::to_vec(&SUBJECT.open(item)).unwrap();
        for at in 0..bytes.len() {
            for flip in [1, 0x80] {
                let mut other = bytes.clone();
                other[at] ^= flip;
                if let Ok(opening) = borsh::from_slice::<ModelOpening>(&other) {
                    assert_eq!(opening.verify(&SUBJECT.root), None, "{item:?}: byte {at}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn mutated_bytes_never_panic_and_never_prove(
        kind in 0..KINDS.len(),
        from in any::<prop::sample::Index>(),
        cut in 0usize..80,
        put in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let bytes = borsh::to_vec(&SUBJECT.open(KINDS[kind])).unwrap();
        let from = from.index(bytes.len());
        let to = (from + cut).min(bytes.len());
        let other = [&bytes[..from], &put, &bytes[to..]].concat();
        if let Ok(opening) = borsh::from_slice::<ModelOpening>(&other) {
            prop_assert_eq!(opening.verify(&SUBJECT.root).is_some(), other == bytes);
        }
    }

    /// Declarations and places at the ends of their types under roots that hold them.
    #[test]
    fn foreign_shapes_never_panic(
        (rows, cols) in (extreme(), extreme()), shape in 0usize..4, way in 0usize..3,
        (index, count) in place(), (inner, inner_count) in place(), len in 0usize..600,
    ) {
        let shape = [
            Shape::Matrix { rows, cols, shift: 0 },
            Shape::Rotary { positions: rows, pairs: cols },
            Shape::Vector { len: rows, frac: 0 },
            Shape::Table,
        ][shape];
        let (proof, bytes) = (fitting(index, count), vec![0; len]);
        let hash = merkle::root_from(merkle::leaf(&bytes), &proof).unwrap();
        let join = |a: &Hash, b: &Hash| keccak256(&[a.as_bytes(), b.as_bytes()]);
        let (way, hash) = match way {
            0 => {
                let tile = fitting(inner, inner_count);
                let hash = join(&merkle::root_from(hash, &tile).unwrap(), &Hash::ZERO);
                (Way::Weights { row: proof, tile, scales: Hash::ZERO }, hash)
            }
            1 => (Way::Scales { run: proof, weights: Hash::ZERO }, join(&Hash::ZERO, &hash)),
            _ => (Way::Run(proof), hash),
        };
        let (mut opening, root, tensor_proof) = declaring(Tensor { name: "x".into(), shape }, hash);
        prop_assert_eq!(opening.verify(&root).unwrap().item, Item::Tensor(0));
        opening.part = Some(Part { bytes, way, tensor_proof });
        prop_assert!(opening.verify(&root).is_none() || (1..=256).contains(&len));
    }
}

fn extreme() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(64), Just(u32::MAX), any::<u32>()]
}

/// An opening of the only declaration under a root, and the proof of its tensor.
fn declaring(tensor: Tensor, hash: Hash) -> (ModelOpening, ModelRoot, Proof) {
    let statement = borsh::to_vec(&tensor).unwrap();
    let statements = [Hash::ZERO, merkle::leaf(&statement)];
    let component = |name: &str, hash: Hash| {
        merkle::leaf(&[&[name.len() as u8], name.as_bytes(), hash.as_bytes()].concat())
    };
    let program = component("program", merkle::root(statements));
    let components = [Hash::ZERO, program, Hash::ZERO, Hash::ZERO, component("tensor", hash)];
    let opening = ModelOpening {
        statement,
        statement_proof: merkle::prove(&statements, 1).unwrap(),
        program_proof: merkle::prove(&components, 1).unwrap(),
        part: None,
    };
    let root = ModelRoot::from_bytes(*merkle::root(components).as_bytes());
    (opening, root, merkle::prove(&components, 4).unwrap())
}

/// Index and count of a leaf.
fn place() -> impl Strategy<Value = (u64, u64)> {
    let count = prop_oneof![1u64..4, Just(1 << 26), Just(u64::MAX), 1..u64::MAX];
    count.prop_flat_map(|count| (prop_oneof![Just(0), Just(count - 1), 0..count], Just(count)))
}

/// A proof with as many siblings as its place has.
fn fitting(index: u64, count: u64) -> Proof {
    let (mut at, mut width, mut path) = (index, count, vec![]);
    while width > 1 {
        path.extend((at ^ 1 < width).then_some(Hash::ZERO));
        at /= 2;
        width = width.div_ceil(2);
    }
    Proof { index, count, path }
}
