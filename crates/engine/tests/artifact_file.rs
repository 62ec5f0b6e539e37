//! The artifact: what it holds comes back, what was altered is refused.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use assay_core::canonical::Canonical as _;
use assay_engine::artifact::writer::Writer;
use assay_engine::artifact::{Artifact, Manifest, Profile, Provenance, TextModel};
use assay_engine::constants::Constants as _;
use assay_engine::matrix::store;
use assay_engine::program::{Head, Op, Program, Shape, TABLE_LEN, Tensor};
use tempfile::TempDir;

#[path = "checkpoint/small.rs"]
mod small;

const ROWS: u32 = 70;
const COLS: u32 = 261;

fn weight(row: usize, col: usize) -> i8 {
    ((row * 31 + col * 7) % 255) as i8
}

/// One embedding, one head, a table and angles.
fn manifest(rotary: u32) -> Manifest {
    let matrix =
        |name: &str| Tensor { name: name.into(), shape: Shape::Matrix { rows: ROWS, cols: COLS, shift: 20 } };
    let table = Tensor { name: "logistic".into(), shape: Shape::Table };
    let rotary = Tensor { name: "rotary".into(), shape: Shape::Rotary { positions: rotary, pairs: 2 } };
    let ops = vec![
        Op::Embed { table: 0 },
        Op::RmsNorm { x: 0, epsilon: 1 },
        Op::Quantise { x: 1, offset: 0, len: COLS, groups: 1 },
        Op::MatMul { weights: 1, x: 2 },
        Op::Fix { x: 3, offset: 0, len: ROWS, frac: 16 },
    ];
    let tensors = vec![matrix("embed"), matrix("head"), rotary, table];
    let program = Program {
        context: 9,
        vocabulary: ROWS,
        residual_frac: 16,
        tensors,
        ops,
        head: Head::Tokens { hidden: 2, logits: 4 },
    };
    let text = TextModel {
        bos: Some(1),
        add_bos: true,
        end_tokens: vec![2],
        chat_template: "x".into(),
        has_chat_template: true,
    };
    let provenance = Provenance { name: "m".into(), licence: "MIT".into(), sources: vec![] };
    Manifest { program, text, provenance, tokenizer_len: 0 }
}

fn write(path: &Path, manifest: Manifest) {
    let Shape::Rotary { positions, .. } = manifest.program.tensors[2].shape else {
        panic!("angles come third")
    };
    let mut writer = Writer::create(path, Profile::Int8, manifest, b"{}".to_vec()).unwrap();
    let (rows, cols) = (ROWS as usize, COLS as usize);
    let weights: Vec<i8> = (0..rows * cols).map(|i| weight(i / cols, i % cols)).collect();
    let scales: Vec<u16> = (0..ROWS as u16).map(|r| 40_000 + r).collect();
    writer.matrix(&store(rows, cols, &weights), &scales).unwrap();
    writer.matrix(&store(rows, cols, &weights), &scales).unwrap();
    writer.rotary(&vec![16_384; 4 * positions as usize]).unwrap();
    writer.table(&[40_000; TABLE_LEN]).unwrap();
    writer.finish().unwrap();
}

fn file() -> Vec<u8> {
    let d = TempDir::new().unwrap();
    write(&d.path().join("x.assay"), manifest(9));
    std::fs::read(d.path().join("x.assay")).unwrap()
}

#[test]
fn what_was_written_comes_back() {
    fn shared<T: Send + Sync>(_: &T) {}
    let d = TempDir::new().unwrap();
    let path = d.path().join("deep/er/x.assay");
    write(&path, manifest(9));
    let mapped = Artifact::open(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let copied = Artifact::from_bytes("memory", &bytes).unwrap();
    for a in [mapped, copied] {
        shared(&a);
        a.check_root(&|_| {}).unwrap();
        assert_eq!(a.bytes(), bytes);
        assert_eq!((a.text(), a.tokenizer_json()), (&manifest(9).text, &b"{}"[..]));
        assert_eq!(a.provenance().licence, "MIT");
        let w = a.matrix(1);
        assert_eq!((w.rows(), w.cols(), w.shift(), w.scales()[69]), (70, 261, 20, 40_069));
        assert_eq!(w.weight(69, 260), weight(69, 260));
        assert_eq!(w.tile(0).as_ptr().align_offset(64), 0);
        assert_eq!((a.rotary(2).len(), a.table(3)[7]), (36, 40_000));
        let constants = Arc::new(a).shared();
        assert_eq!(constants.program().program().vocabulary, ROWS);
    }
}

#[test]
fn the_root_is_of_the_content_and_not_of_the_file() {
    let d = TempDir::new().unwrap();
    let root = |m: Manifest| {
        write(&d.path().join("x.assay"), m);
        Artifact::open(&d.path().join("x.assay")).unwrap().root()
    };
    let first = root(manifest(9));
    let mut other = manifest(9);
    other.provenance = Provenance { name: "another".into(), licence: "none".into(), sources: vec![] };
    assert_eq!(root(other), first);
    let changes: [fn(&mut Manifest); 5] = [
        |m| m.text.add_bos = false,
        |m| m.text.chat_template = "y".into(),
        |m| m.program.context = 8,
        |m| m.program.tensors[1].name = "other".into(),
        |m| m.program.ops[1] = Op::RmsNorm { x: 0, epsilon: 2 },
    ];
    for change in changes {
        let mut m = manifest(9);
        change(&mut m);
        assert_ne!(root(m), first);
    }
    assert_ne!(root(manifest(10)), first);
}

#[test]
fn every_altered_byte_of_content_is_found() {
    let whole = file();
    let at = |a: &Artifact, bytes: &[u8]| bytes.as_ptr() as usize - a.bytes().as_ptr() as usize;
    let a = Artifact::from_bytes("x", &whole).unwrap();
    let root_at = 8;
    let places = [
        (root_at, "artifact_root"),
        (at(&a, a.tokenizer_json()), "artifact_root"),
        (at(&a, a.matrix(0).tile(0)) + 999, "artifact_root"),
        (at(&a, a.matrix(1).tile(1)) + 8, "artifact_root"),
        (whole.len() - 4 * TABLE_LEN, "artifact_root"),
        (whole.len() - 1, "artifact_content"),
        // Between the tokenizer and the first constant, where no root reaches.
        (at(&a, a.matrix(0).tile(0)) - 1, "artifact_content"),
        // Row 70 of 70, and column 261 of 261.
        (at(&a, a.matrix(1).tile(1)) + 6 * 4, "artifact_content"),
        (at(&a, a.matrix(0).tile(1)) - 1, "artifact_content"),
    ];
    for (i, code) in places {
        let mut bytes = whole.clone();
        bytes[i] ^= 1;
        let found = Artifact::from_bytes("x", &bytes).and_then(|a| a.check_root(&|_| {}));
        assert_eq!(found.map_err(|e| e.code()), Err(code), "byte {i}");
    }
}

#[test]
fn damaged_files_are_refused_with_one_error() {
    let d = TempDir::new().unwrap();
    let whole = file();
    let open = |bytes: &[u8]| {
        let path = d.path().join("x.assay");
        std::fs::write(&path, bytes).unwrap();
        Artifact::open(&path).map(drop).map_err(|e| e.code())
    };
    assert_eq!(open(&whole), Ok(()));
    for cut in [0, 1, 47] {
        assert_eq!(open(&whole[..cut]), Err("artifact_magic"), "{cut}");
    }
    for cut in [48, 100, 5000, whole.len() - 1] {
        assert_eq!(open(&whole[..cut]), Err("artifact_length"), "{cut}");
    }
    assert_eq!(open(&[&whole[..], &[0]].concat()), Err("artifact_length"));
    let mut version = whole.clone();
    version[7] = 9;
    assert_eq!(open(&version), Err("artifact_magic"));
    let mut length = whole.clone();
    length[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(open(&length), Err("artifact_length"));
    let mut tag = whole.clone();
    tag[50] ^= 1;
    assert_eq!(open(&tag), Err("artifact_manifest"));
    assert_eq!(Artifact::open(&d.path().join("none")).map(drop).map_err(|e| e.code()), Err("artifact_io"));
    assert_eq!(Artifact::open(d.path()).map(drop).map_err(|e| e.code()), Err("artifact_io"));

    // Manifests that lie: rewritten in place of the true one.
    let relabel = |change: fn(&mut Manifest)| {
        let mut m = manifest(9);
        m.tokenizer_len = 2;
        change(&mut m);
        let manifest = m.to_canonical_bytes();
        let mut bytes = whole[..40].to_vec();
        bytes.extend((manifest.len() as u64).to_le_bytes());
        bytes.extend(manifest);
        bytes.extend(&whole[bytes.len()..]);
        open(&bytes)
    };
    assert_eq!(relabel(|_| {}), Ok(()));
    assert_eq!(relabel(|m| m.tokenizer_len = u64::MAX), Err("artifact_content"));
    assert_eq!(relabel(|m| m.text.bos = Some(ROWS)), Err("artifact_content"));
    assert_eq!(relabel(|m| m.text.end_tokens = vec![ROWS]), Err("artifact_content"));
    assert_eq!(relabel(|m| m.provenance.name.clear()), Err("artifact_content"));
    assert_eq!(relabel(|m| m.program.head = Head::Tokens { hidden: 3, logits: 4 }), Err("artifact_program"));
    let huge = |m: &mut Manifest| {
        m.program.tensors[1].shape = Shape::Matrix { rows: u32::MAX, cols: u32::MAX, shift: 0 }
    };
    assert_eq!(relabel(huge), Err("artifact_program"));
    let large =
        |m: &mut Manifest| m.program.tensors[2].shape = Shape::Rotary { positions: 131_072, pairs: 256 };
    assert_eq!(relabel(large), Err("artifact_length"));
}
