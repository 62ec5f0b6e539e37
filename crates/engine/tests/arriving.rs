//! A model that is executed while it arrives answers as the same model does from a whole file, in whatever order its bytes come.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use assay_core::request::Sampling;
use assay_engine::artifact::{Artifact, ArtifactError};
use assay_engine::batch::{Answer, BatchLimits, Batcher, Event, Job, JobId, Stepped};
use assay_engine::constants::Constants as _;
use assay_engine::forward::Executor;
use assay_engine::import::{ImportOptions, import};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::presence::{Lack, Presence};
use assay_engine::program::{Op, Shape};
use assay_engine::text::Tokenizer;

#[path = "checkpoint/family.rs"]
mod family;
#[path = "checkpoint/small.rs"]
mod small;

use small::Random;

fn stories() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay")).unwrap()
}

/// A small model of a family with constants of every kind.
fn small_model(name: &str) -> Vec<u8> {
    let d = tempfile::tempdir().unwrap();
    let family = family::Family::read(name);
    family.write(&d.path().join("model"), &family.config());
    let tokenizer = small::write(d.path(), "tokenizer.json", &small::tokenizer_json());
    let options = ImportOptions { tokenizer: Some(tokenizer), ..Default::default() };
    let out = d.path().join("x.assay");
    import(&d.path().join("model"), &options, &out, &mut |_| {}).unwrap();
    std::fs::read(out).unwrap()
}

/// A file that arrives: what it will be, and what of it is there.
struct Arrival {
    bytes: Vec<u8>,
    file: File,
    presence: Arc<Presence>,
}

impl Arrival {
    fn of(bytes: Vec<u8>) -> Arrival {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        let presence = Arc::new(Presence::new(bytes.len() as u64));
        Arrival { bytes, file, presence }
    }

    fn give(&self, range: Range<u64>) {
        let end = range.end.min(self.bytes.len() as u64);
        self.file.write_all_at(&self.bytes[range.start as usize..end as usize], range.start).unwrap();
        self.presence.announce(range);
    }

    fn open(&self) -> Result<Option<Artifact>, ArtifactError> {
        Artifact::open_arriving(Path::new("arriving"), &self.file, &self.presence)
    }

    /// Bytes before the constants.
    fn head(&self) -> u64 {
        let manifest = u64::from_le_bytes(self.bytes[40..48].try_into().unwrap());
        let tokenizer = Artifact::from_bytes("x", &self.bytes).unwrap().tokenizer_json().len() as u64;
        48 + manifest + tokenizer
    }

    /// Pieces of everything behind the head, of different lengths, shuffled.
    fn pieces(&self, random: &mut Random) -> Vec<Range<u64>> {
        let (mut at, end) = (self.head(), self.bytes.len() as u64);
        let mut pieces = Vec::new();
        while at < end {
            let next = (at + 1 + random.below(end as usize / 40) as u64).min(end);
            pieces.push(at..next);
            at = next;
        }
        for i in (1..pieces.len()).rev() {
            pieces.swap(i, random.below(i + 1));
        }
        pieces
    }
}

fn batcher<'t>(artifact: &Arc<Artifact>, tokenizer: &'t Tokenizer) -> Batcher<'t> {
    let kernel = Kernel::from_environment().unwrap();
    let executor = Executor::new(artifact.shared(), kernel, Arc::new(Pool::new(2)));
    let limits = BatchLimits { rows_max: 7, ..BatchLimits::default() };
    Batcher::new(executor, tokenizer, artifact.text().end_tokens.clone(), limits)
}

fn jobs(vocabulary: u32) -> impl Iterator<Item = Job> {
    (0..3u64).map(move |id| Job {
        id,
        prompt: (0..4 + 5 * id as u32).map(|i| (i * 7919 + id as u32 * 31) % vocabulary).collect(),
        sampling: Sampling { temperature_micro: 700_000, ..Sampling::GREEDY },
        seed: [id as u8; 32],
        max_tokens: 6,
        stop: vec![],
        guide: None,
        logprobs: None,
    })
}

/// Answers of all jobs; `lacking` does something about what a step lacks.
fn answers(artifact: &Arc<Artifact>, mut lacking: impl FnMut(Vec<Range<u64>>)) -> BTreeMap<JobId, Answer> {
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let mut batcher = batcher(artifact, &tokenizer);
    jobs(artifact.program().program().vocabulary).for_each(|job| batcher.submit(job).unwrap());
    let (mut all, mut reached) = (BTreeMap::new(), 0);
    while !batcher.is_idle() {
        let stepped = batcher.step(&mut |id, event| {
            if let Event::Done(answer) = event {
                all.insert(id, *answer);
            }
        });
        match stepped {
            Stepped::Done => reached = 0,
            Stepped::Lacks { op, lack: Lack::Bytes(missing) } => {
                assert!(op >= reached, "a pass goes on where it stopped, and executes nothing twice");
                reached = op;
                lacking(missing);
            }
            Stepped::Lacks { lack: Lack::Gone(gone), .. } => panic!("{gone}"),
        }
    }
    all
}

fn whole(bytes: &[u8]) -> BTreeMap<JobId, Answer> {
    let artifact = Arc::new(Artifact::from_bytes("whole", bytes).unwrap());
    answers(&artifact, |missing| panic!("a whole file lacks {missing:?}"))
}

#[test]
fn answers_do_not_depend_on_the_order_in_which_bytes_come() {
    let mut kinds = [false; 4];
    for bytes in [stories(), small_model("gemma3"), small_model("qwen2"), small_model("qwen3")] {
        let expected = whole(&bytes);
        assert_eq!(expected.len(), 3);
        for seed in 1..5 {
            let arrival = Arrival::of(bytes.clone());
            let mut random = Random(seed * 0x9e37_79b9);
            let mut pieces = arrival.pieces(&mut random);
            arrival.give(0..arrival.head());
            let artifact = Arc::new(arrival.open().unwrap().unwrap());
            let mut waits = 0;
            let got = answers(&artifact, |missing| {
                waits += 1;
                assert_eq!(arrival.presence.lack(&missing), Some(Lack::Bytes(missing)));
                arrival.give(pieces.pop().unwrap());
            });
            assert_eq!(got, expected, "seed {seed}");
            assert!(waits > 10, "{waits}");
            pieces.into_iter().for_each(|piece| arrival.give(piece));
            artifact.check_arrived(&|_| {}).unwrap();
            assert!(artifact.presence().unwrap().is_settled());
            for t in &artifact.program().program().tensors {
                kinds[match t.shape {
                    Shape::Matrix { .. } => 0,
                    Shape::Table => 1,
                    Shape::Rotary { .. } => 2,
                    Shape::Vector { .. } => 3,
                }] = true;
            }
        }
    }
    assert_eq!(kinds, [true; 4], "constants of every kind arrived late");
}

#[test]
fn the_first_token_comes_before_bytes_that_it_does_not_need() {
    let bytes = stories();
    let expected = whole(&bytes);
    let arrival = Arrival::of(bytes);
    arrival.give(0..arrival.head());
    let artifact = Arc::new(arrival.open().unwrap().unwrap());
    // Only what a pass asks for is given.
    let got = answers(&artifact, |missing| missing.into_iter().for_each(|r| arrival.give(r)));
    assert_eq!(got, expected);
    let program = artifact.program().program();
    let Op::Embed { table } = program.ops[0] else { panic!("the program begins with the embedding") };
    let embedding = program.tensors[usize::from(table)].shape.parameters();
    let missing = arrival.presence.size() - arrival.presence.bytes();
    assert!(missing > embedding / 2, "{missing} of {} bytes were never asked for", arrival.presence.size());
    // What any batch needs is announced as the order to fetch in, without the rows.
    let mut order = artifact.order();
    order.sort_unstable_by_key(|r| r.start);
    assert!(order.windows(2).all(|w| w[0].end <= w[1].start), "{order:?}");
    let ordered: u64 = order.iter().map(|r| r.end - r.start).sum();
    assert!(ordered + embedding <= arrival.presence.size() && ordered * 2 > embedding);
}

#[test]
fn another_thread_may_bring_the_bytes() {
    let bytes = small_model("gemma2");
    let expected = whole(&bytes);
    for seed in 1..4 {
        let arrival = Arrival::of(bytes.clone());
        let pieces = arrival.pieces(&mut Random(seed * 77));
        arrival.give(0..arrival.head());
        let artifact = Arc::new(arrival.open().unwrap().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| pieces.into_iter().for_each(|piece| arrival.give(piece)));
            let got = answers(&artifact, |missing| {
                assert_eq!(arrival.presence.wait(&missing, Duration::MAX), None);
            });
            assert_eq!(got, expected);
        });
    }
}

#[test]
fn an_arrival_that_fails_ends_the_pass_with_its_reason() {
    let arrival = Arrival::of(stories());
    arrival.give(0..arrival.head());
    let artifact = Arc::new(arrival.open().unwrap().unwrap());
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    let mut batcher = batcher(&artifact, &tokenizer);
    jobs(100).for_each(|job| batcher.submit(job).unwrap());
    assert!(matches!(batcher.step(&mut |_, _| {}), Stepped::Lacks { lack: Lack::Bytes(_), .. }));
    // Who is gone frees his place at once, or with the pass.
    assert_eq!(batcher.load().running, 3);
    assert!(batcher.cancel(1) && !batcher.cancel(1));
    assert_eq!(batcher.load().running, 2);
    assert!(matches!(batcher.step(&mut |_, _| {}), Stepped::Lacks { lack: Lack::Bytes(_), .. }));
    arrival.presence.fail("nobody has the rest");
    let Stepped::Lacks { op: 0, lack: Lack::Gone(gone) } = batcher.step(&mut |_, _| {}) else {
        panic!("the pass ends where it waited")
    };
    assert_eq!(gone.to_string(), "nobody has the rest");
    assert!(batcher.cancel(0) && batcher.cancel(2) && batcher.is_idle());
    assert_eq!(batcher.load().cache_bytes, 0);
}

#[test]
fn a_file_is_opened_with_its_head_and_not_before() {
    let arrival = Arrival::of(stories());
    for there in [0, 7, 47, 48, 1000, arrival.head() - 1] {
        arrival.give(0..there);
        assert!(arrival.open().unwrap().is_none(), "{there}");
    }
    arrival.give(0..arrival.head());
    assert!(arrival.open().unwrap().is_some());
    // What cannot be an artifact is refused with its first bytes.
    let altered = |at: usize, byte: u8| {
        let mut bytes = stories();
        bytes[at] = byte;
        let arrival = Arrival::of(bytes);
        arrival.give(0..48);
        arrival.open().map(|a| a.is_some()).unwrap_err().code()
    };
    assert_eq!(altered(0, 0), "artifact_magic");
    assert_eq!(altered(47, 1), "artifact_length");
    let longer = Arrival::of([stories(), vec![0; 16_384]].concat());
    longer.give(0..longer.presence.size() - 16_384);
    assert_eq!(longer.open().unwrap_err().code(), "artifact_length");
}

#[test]
fn what_is_not_the_model_is_found_before_it_is_settled() {
    let bytes = stories();
    let artifact = Artifact::from_bytes("x", &bytes).unwrap();
    // A table whose numbers the arithmetic does not allow ends the first pass that would read it.
    let program = artifact.program().program();
    let table = program.tensors.iter().position(|t| t.shape == Shape::Table).unwrap();
    let at = artifact.table(table as u16).as_ptr() as usize - artifact.bytes().as_ptr() as usize;
    let mut wrong = bytes.clone();
    wrong[at..at + 4].copy_from_slice(&70_000i32.to_le_bytes());
    let arrival = Arrival::of(wrong);
    arrival.give(0..arrival.presence.size());
    let opened = Arc::new(arrival.open().unwrap().unwrap());
    let tokenizer = Tokenizer::new(opened.text(), opened.tokenizer_json()).unwrap();
    let mut batcher = batcher(&opened, &tokenizer);
    jobs(100).for_each(|job| batcher.submit(job).unwrap());
    let Stepped::Lacks { lack: Lack::Gone(gone), .. } = batcher.step(&mut |_, _| {}) else {
        panic!("a wrong table is not used")
    };
    assert!(gone.to_string().contains("outside 32768 to 65536"), "{gone}");
    assert_eq!(opened.check_arrived(&|_| {}).unwrap_err().code(), "artifact_content");
    // A weight is a number like any other: only the root tells.
    let mut wrong = bytes.clone();
    let last = wrong.len() - 1000;
    wrong[last] ^= 1;
    let arrival = Arrival::of(wrong);
    arrival.give(0..arrival.presence.size());
    let opened = Arc::new(arrival.open().unwrap().unwrap());
    assert_eq!(answers(&opened, |missing| panic!("{missing:?}")).len(), 3);
    assert_eq!(opened.check_arrived(&|_| {}).unwrap_err().code(), "artifact_root");
    assert!(!arrival.presence.is_settled());
}
