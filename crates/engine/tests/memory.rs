//! What a batcher says that it takes of memory is what it takes: nobody who sizes a machine by it is surprised.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use assay_core::request::Sampling;
use assay_engine::artifact::Artifact;
use assay_engine::batch::{BatchLimits, Batcher, Event, Job, Memory};
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::import::synthetic::Size;
use assay_engine::import::synthetic::memory::InMemory;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;

/// Beside what is stated: tokens, texts, what was chosen, for each request.
const REQUEST_BYTES: usize = 64 << 10;

/// Counts the bytes that are held, and the most that were.
struct Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    let held = HELD.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(held, Relaxed);
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Requests as long as the window, more than run at once, each with a beginning of its own; the most that was held while they ran, beside what was before.
fn run(mut batcher: Batcher<'_>, context: u32, vocabulary: u32) -> usize {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    for id in 0..20u64 {
        let prompt = (0..context / 2 + id as u32).map(|i| (i * 31 + id as u32 * 977) % vocabulary).collect();
        let sampling = Sampling::GREEDY;
        batcher
            .submit(Job {
                id,
                prompt,
                sampling,
                seed: [0; 32],
                max_tokens: 0,
                stop: vec![],
                guide: None,
                logprobs: None,
            })
            .unwrap();
    }
    let mut ended = 0;
    while !batcher.is_idle() {
        batcher.step(&mut |_, event| ended += usize::from(matches!(event, Event::Done(_))));
    }
    assert_eq!(ended, 20);
    MOST.load(Relaxed) - before
}

#[test]
fn a_batcher_takes_what_it_states() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
    let artifact = Artifact::open(&path).unwrap();
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let vocabulary = artifact.program().program().vocabulary;
    // The same tokens in another shape: many heads, whose caches are most of it, and numbers that a pass has many of.
    let size = Size { name: "wide", dim: 256, layers: 3, heads: 8, kv_heads: 4, hidden: 1024, vocabulary };
    let limits = BatchLimits {
        running_max: 12,
        waiting_max: 64,
        cache_bytes_max: 1 << 30,
        prefix_bytes_max: 1 << 20,
        rows_max: 96,
        draft_rows_max: 16,
    };
    let context = 512;
    for threads in [1, 3] {
        for cache_bytes_max in [1 << 30, 4 << 20] {
            for drafts in [false, true] {
                let pool = Arc::new(Pool::new(threads));
                let constants: Arc<dyn Constants> = Arc::new(InMemory::new(&size, 3, context, 7));
                let executor =
                    || Executor::new(Arc::clone(&constants), Kernel::available()[0], Arc::clone(&pool));
                let limits = BatchLimits { cache_bytes_max, ..limits };
                let mut batcher = Batcher::new(executor(), &tokenizer, vec![], limits);
                if drafts {
                    batcher = batcher.drafting(executor());
                }
                let draft = executor();
                let stated = Memory::of(&limits, batcher.executor(), drafts.then_some(&draft));
                let taken = run(batcher, context, vocabulary);
                let most = stated.total() + limits.running_max * REQUEST_BYTES;
                let case = format!(
                    "{threads} threads, caches of {cache_bytes_max}, drafts {drafts}: {stated:?}, taken {taken}"
                );
                eprintln!("{case}");
                assert!(taken <= most, "more is taken than stated: {case}");
                // A statement that everything fits would be none.
                assert!(taken * 2 >= stated.total(), "half of what is stated is not taken: {case}");
            }
        }
    }
}
