//! Fuzzing: random mutants of every kind of file are imported, opened or refused; they never panic, hang, leave a partial
//! file or take much memory. `ASSAY_FUZZ_CASES` sets how many of each kind; the seed is fixed and every failure names its
//! case.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::import::{ImportOptions, import, tokenizer_json};
use assay_engine::program::Shape;
use assay_engine::text::Tokenizer;
use tempfile::TempDir;

#[path = "checkpoint/gguf.rs"]
mod gguf;
#[path = "checkpoint/small.rs"]
mod small;

use small::Random;

/// No case may ask for more at once: the largest angles that a program may have are 128 MiB.
const ALLOCATION_MAX: usize = 1 << 30;
/// No case may take longer.
const CASE_MAX: Duration = Duration::from_secs(20);

/// Remembers the largest request for memory.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn cases() -> usize {
    std::env::var("ASSAY_FUZZ_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(1_000)
}

/// One to four changes, half of them in the first `front` bytes.
fn mutate(random: &mut Random, bytes: &[u8], front: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let span = if random.below(2) == 0 { front.min(out.len()) } else { out.len() };
        let at = random.below(span);
        match random.below(8) {
            0 => out.truncate(at),
            1 => out.extend_from_slice(&bytes[..at.min(bytes.len())]),
            2 => {
                let to = (at + random.below(16)).min(out.len());
                out.drain(at.min(to)..to);
            }
            3 => {
                let piece = bytes[random.below(bytes.len())..]
                    .iter()
                    .copied()
                    .take(random.below(32))
                    .collect::<Vec<_>>();
                out.splice(at.min(out.len())..at.min(out.len()), piece);
            }
            4 => {
                let extremes =
                    [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63, u64::from(u32::MAX), random.next()];
                let number = extremes[random.below(extremes.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)];
                out.iter_mut().skip(at).zip(&number[..width]).for_each(|(o, n)| *o = *n);
            }
            5 => {
                // A digit, so that numbers in JSON change and stay numbers.
                let digits: Vec<usize> =
                    (0..span.min(out.len())).filter(|i| out[*i].is_ascii_digit()).collect();
                if !digits.is_empty() {
                    out[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8;
                }
            }
            _ => {
                if let Some(b) = out.get_mut(at) {
                    *b ^= 1 << random.below(8);
                }
            }
        }
    }
    out
}

/// Runs `case` over mutants, watching time and memory.
fn fuzz(kind: &str, seed: u64, whole: &[u8], front: usize, mut case: impl FnMut(&[u8]) -> bool) {
    let mut random = Random(seed);
    let mut accepted = 0;
    for i in 0..cases() {
        let mutant = mutate(&mut random, whole, front);
        LARGEST.store(0, Ordering::Relaxed);
        let started = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&mutant)));
        let Ok(taken) = outcome else { panic!("{kind} case {i} panics") };
        accepted += usize::from(taken);
        let largest = LARGEST.load(Ordering::Relaxed);
        assert!(largest <= ALLOCATION_MAX, "{kind} case {i} asks for {largest} bytes at once");
        assert!(started.elapsed() <= CASE_MAX, "{kind} case {i} takes {:?}", started.elapsed());
    }
    eprintln!("{kind}: {accepted} of {} mutants accepted", cases());
    assert!(accepted < cases(), "some mutants must be refused");
}

/// Imports; what is imported must open and be what its root says, what is refused must leave nothing.
fn try_import(source: &Path, tokenizer: Option<&Path>) -> bool {
    let out = TempDir::new().unwrap();
    let path = out.path().join("x.assay");
    let options =
        ImportOptions { name: Some("x".into()), tokenizer: tokenizer.map(Into::into), ..Default::default() };
    match import(source, &options, &path, &mut |_| {}) {
        Ok(_) => {
            let a = Artifact::open(&path).expect("what was imported opens");
            a.check_root(&|_| {}).expect("the root is the content's");
            let t = Tokenizer::new(a.text(), a.tokenizer_json()).expect("the tokenizer loads");
            let ids = t.encode_text("hello ab <|im_end|> é\n").unwrap_or_default();
            assert!(ids.iter().all(|id| *id < a.program().program().vocabulary));
            t.decode(&ids);
            true
        }
        Err(e) => {
            assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{e}");
            false
        }
    }
}

#[test]
fn mutants_of_a_hugging_face_folder() {
    let d = TempDir::new().unwrap();
    small::write_folder(d.path());
    let tokenizer = small::tokenizer_json();
    small::write(d.path(), "tokenizer.json", &tokenizer);
    let weights = small::safetensors(&small::tensors());
    let header = 8 + usize::from(weights[0]) + 256 * usize::from(weights[1]);
    let files = [
        ("model.safetensors", &weights[..], header),
        ("config.json", small::CONFIG.as_bytes(), 1 << 10),
        ("tokenizer.json", &tokenizer, 1 << 10),
    ];
    for (i, (name, whole, front)) in files.into_iter().enumerate() {
        fuzz(name, 0x1234_5678 + i as u64, whole, front, |mutant| {
            small::write(d.path(), name, mutant);
            try_import(d.path(), None)
        });
        small::write(d.path(), name, whole);
    }
}

#[test]
fn mutants_of_llama2c_files() {
    let d = TempDir::new().unwrap();
    let tokenizer = small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    for (i, whole) in [small::llama2c_v0(), small::llama2c_v1()].iter().enumerate() {
        fuzz("llama2.c", 0xabc0 + i as u64, whole, 256, |mutant| {
            try_import(&small::write(d.path(), "model.bin", mutant), Some(&tokenizer))
        });
    }
    let model = small::write(d.path(), "model.bin", &small::llama2c_v0());
    fuzz("tokenizer.bin", 0xdef0, &small::tokenizer_bin(), 64, |mutant| {
        try_import(&model, Some(&small::write(d.path(), "tok.bin", mutant)))
    });
}

#[test]
fn mutants_of_a_gguf_file() {
    let d = TempDir::new().unwrap();
    let whole = gguf::model();
    // The front without the vocabulary, most of which is bytes and scores.
    fuzz("GGUF", 0x6677, &whole, 600, |mutant| try_import(&small::write(d.path(), "x.gguf", mutant), None));
    // The tensors' entries.
    let data: usize = gguf::tensors().iter().map(|t| t.bytes.len().next_multiple_of(gguf::ALIGNMENT)).sum();
    let (header, weights) = whole.split_at(whole.len() - data);
    let reversed: Vec<u8> = header.iter().rev().copied().collect();
    fuzz("GGUF tensors", 0x7788, &reversed, 1400, |mutant| {
        let mutant: Vec<u8> = mutant.iter().rev().chain(weights).copied().collect();
        try_import(&small::write(d.path(), "x.gguf", &mutant), None)
    });
}

/// Loads a tokenizer of any kind and uses it; ids are the vocabulary's and text comes of them.
fn try_tokenizer(path: &Path) -> bool {
    let Ok(json) = tokenizer_json(path) else { return false };
    let text = assay_engine::artifact::TextModel {
        bos: None,
        add_bos: false,
        end_tokens: Vec::new(),
        chat_template: String::new(),
        has_chat_template: false,
    };
    let Ok(t) = Tokenizer::new(&text, &json) else { return false };
    for text in ["hello ab <|im_end|> é\n", "  12 <s> <0x41> \u{3000}ﬁ e\u{301} ~½\t", "漢字 👩‍👩‍👧"]
    {
        let ids = t.encode_text(text).unwrap_or_default();
        assert!(ids.iter().all(|id| *id < t.id_limit()));
        t.decode(&ids);
        ids.iter().for_each(|id| drop(t.token_bytes(*id)));
        drop(t.encode_for_embedding(text, 8));
    }
    true
}

#[test]
fn mutants_of_vocabularies() {
    let d = TempDir::new().unwrap();
    let files = [
        ("spm.gguf", gguf::file(&gguf::vocabulary(), &[]), 200),
        ("bytes.gguf", gguf::file(&gguf::byte_level(&small::tokenizer_json(), "gpt-2"), &[]), 200),
        ("words.gguf", gguf::file(&gguf::words(), &[]), 600),
        ("unigram.model", include_bytes!("data/tokenizers/unigram.model").to_vec(), 400),
    ];
    for (i, (name, whole, front)) in files.into_iter().enumerate() {
        assert!(try_tokenizer(&small::write(d.path(), name, &whole)), "{name}");
        fuzz(name, 0x9900 + i as u64, &whole, front, |mutant| {
            try_tokenizer(&small::write(d.path(), name, mutant))
        });
    }
    // The table of replacements lies at the end.
    let whole = include_bytes!("data/tokenizers/unigram.model");
    let reversed: Vec<u8> = whole.iter().rev().copied().collect();
    fuzz("table of replacements", 0xaa00, &reversed, 1000, |mutant| {
        let back: Vec<u8> = mutant.iter().rev().copied().collect();
        try_tokenizer(&small::write(d.path(), "x.model", &back))
    });
}

#[test]
fn mutants_of_an_artifact() {
    let d = TempDir::new().unwrap();
    small::write(d.path(), "tok.bin", &small::tokenizer_bin());
    let model = small::write(d.path(), "model.bin", &small::llama2c_v0());
    let path = d.path().join("x.assay");
    import(&model, &ImportOptions::default(), &path, &mut |_| {}).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let manifest = 48 + usize::from(whole[40]) + 256 * usize::from(whole[41]);
    fuzz("artifact", 0x5eed, &whole, manifest, |mutant| {
        let Ok(a) = Artifact::from_bytes("mutant", mutant) else { return false };
        // Opened: everything that the program names is there, whatever it says.
        for (i, t) in a.program().program().tensors.iter().enumerate() {
            let i = i as u16;
            match t.shape {
                Shape::Matrix { rows, cols, .. } => {
                    assert!(a.matrix(i).weight(rows as usize - 1, cols as usize - 1) as i32 >= -128)
                }
                Shape::Table => assert_eq!(a.table(i).len(), assay_engine::program::TABLE_LEN),
                Shape::Vector { len, .. } => assert_eq!(a.vector(i).len(), len as usize),
                Shape::Rotary { positions, pairs } => {
                    assert_eq!(a.rotary(i).len(), 2 * (positions * pairs) as usize)
                }
            }
        }
        if let Ok(t) = Tokenizer::new(a.text(), a.tokenizer_json()) {
            t.decode(&t.encode_text("hello ab").unwrap_or_default());
        }
        let altered = a.bytes() != whole;
        a.check_root(&|_| {}).is_ok() && altered
    });
}
