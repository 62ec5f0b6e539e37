//! An answer is the same to the bit alone or in a batch, in one prefill chunk or many, on one thread or two, on any kernel.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use assay_core::request::Sampling;
use assay_core::transcript::StopReason;
use assay_engine::artifact::Artifact;
use assay_engine::batch::{Answer, BatchLimits, Batcher, Event, Job, JobId, SubmitError};
use assay_engine::forward::Executor;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;

static MODEL: LazyLock<(Arc<Artifact>, Tokenizer)> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    (artifact, tokenizer)
});

fn scalar() -> Kernel {
    Kernel::named("scalar").unwrap()
}

fn idle(kernel: Kernel, threads: usize, limits: BatchLimits) -> Batcher<'static> {
    let (artifact, tokenizer) = &*MODEL;
    let executor = Executor::new(artifact.shared(), kernel, Arc::new(Pool::new(threads)));
    Batcher::new(executor, tokenizer, artifact.text().end_tokens.clone(), limits)
}

/// Sixteen requests of different lengths, ways to choose and ends.
fn jobs() -> Vec<Job> {
    let story = "Once upon a time there was a little girl who loved her small red ball and the big brown dog next door. ";
    (0..16u64)
        .map(|i| {
            let prompt = MODEL.1.encode_text(&story.repeat(1 + i as usize % 5)[i as usize..]).unwrap();
            let sampling = match i % 4 {
                0 => Sampling::GREEDY,
                1 => Sampling { temperature_micro: 1_000_000, ..Sampling::GREEDY },
                2 => Sampling {
                    temperature_micro: 800_000,
                    top_k: 40,
                    top_p_micro: 900_000,
                    ..Sampling::GREEDY
                },
                _ => Sampling { temperature_micro: 1_300_000, min_p_micro: 50_000, ..Sampling::GREEDY },
            };
            let stop = if i % 5 == 0 { vec![" and".to_owned(), "!".to_owned()] } else { vec![] };
            Job {
                id: i,
                prompt,
                sampling,
                seed: [i as u8; 32],
                max_tokens: 20 + 3 * i as u32,
                stop,
                guide: None,
                logprobs: None,
            }
        })
        .collect()
}

fn run(batcher: &mut Batcher<'_>) -> BTreeMap<JobId, (Answer, String)> {
    let (mut answers, mut texts) = (BTreeMap::new(), BTreeMap::<JobId, String>::new());
    while !batcher.is_idle() {
        batcher.step(&mut |id, event| match event {
            Event::Admitted | Event::Started { .. } => {}
            Event::Token { text, .. } | Event::Rest(text) => texts.entry(id).or_default().push_str(&text),
            Event::Done(answer) => {
                answers.insert(id, (*answer, texts.remove(&id).unwrap_or_default()));
            }
        });
    }
    answers
}

/// Each alone, on one thread, by the scalar kernel.
static ALONE: LazyLock<BTreeMap<JobId, (Answer, String)>> = LazyLock::new(|| {
    let mut all = BTreeMap::new();
    for job in jobs() {
        let mut batcher = idle(scalar(), 1, BatchLimits::default());
        batcher.submit(job).unwrap();
        all.extend(run(&mut batcher));
    }
    all
});

#[test]
fn what_was_streamed_is_the_answer() {
    assert_eq!(ALONE.len(), 16);
    for (answer, streamed) in ALONE.values() {
        assert_eq!(answer.text, *streamed);
        assert!(!answer.output.is_empty());
    }
    let by_stop = ALONE.values().filter(|(a, _)| matches!(a.stop, StopReason::StopString(_)));
    assert!(by_stop.count() > 0, "some of the answers end by a stop string");
}

#[test]
fn alone_or_in_a_batch_of_sixteen_with_any_kernel_threads_and_chunks() {
    for kernel in Kernel::available() {
        for threads in [1, 2] {
            for rows_max in [1, 7, 64, 256] {
                let limits = BatchLimits { rows_max, ..BatchLimits::default() };
                let mut batcher = idle(kernel, threads, limits);
                jobs().into_iter().for_each(|job| batcher.submit(job).unwrap());
                assert_eq!(run(&mut batcher), *ALONE, "{kernel:?}, {threads} threads, {rows_max} rows");
            }
        }
    }
}

#[test]
fn neighbours_that_come_and_go_leave_no_trace() {
    let limits = BatchLimits { running_max: 3, rows_max: 33, ..BatchLimits::default() };
    let mut batcher = idle(scalar(), 1, limits);
    let mut answers = BTreeMap::new();
    let mut jobs = jobs().into_iter();
    for step in 0.. {
        if step % 4 == 0
            && let Some(job) = jobs.next()
        {
            // Each has a neighbour that is cancelled some steps later.
            batcher.submit(Job { id: job.id + 100, ..job.clone() }).unwrap();
            batcher.submit(job).unwrap();
        }
        if step % 4 == 3 {
            batcher.cancel(100 + step / 4);
        }
        batcher.step(&mut |id, event| {
            if let Event::Done(answer) = event {
                answers.insert(id, *answer);
            }
        });
        if batcher.is_idle() && jobs.len() == 0 {
            break;
        }
    }
    for (id, (answer, _)) in &*ALONE {
        assert_eq!(answers.get(id), Some(answer));
    }
    assert_eq!(batcher.load(), assay_engine::batch::Load::default(), "everything was given back");
}

/// Wherever an answer is stopped, it is what the whole one begins with, and its neighbours go on as if nothing had been.
#[test]
fn an_answer_that_is_stopped_is_the_beginning_of_the_whole() {
    for after in [1usize, 2, 7, 15] {
        let mut batcher = idle(scalar(), 1, BatchLimits::default());
        jobs().into_iter().for_each(|job| batcher.submit(job).unwrap());
        let (mut answers, mut texts) = (BTreeMap::<JobId, Answer>::new(), BTreeMap::<JobId, String>::new());
        let mut tokens = BTreeMap::<JobId, usize>::new();
        let mut asked = std::collections::BTreeSet::new();
        while !batcher.is_idle() {
            let mut report = |id, event| match event {
                Event::Admitted | Event::Started { .. } => {}
                Event::Token { text, .. } => {
                    *tokens.entry(id).or_default() += 1;
                    texts.entry(id).or_default().push_str(&text);
                }
                Event::Rest(text) => texts.entry(id).or_default().push_str(&text),
                Event::Done(answer) => drop(answers.insert(id, *answer)),
            };
            batcher.step(&mut report);
            for id in (0..16).step_by(2) {
                if tokens.get(&id) >= Some(&after) && !answers.contains_key(&id) {
                    assert!(batcher.stop(id, &mut |id, event| match event {
                        Event::Rest(text) => texts.entry(id).or_default().push_str(&text),
                        Event::Done(answer) => drop(answers.insert(id, *answer)),
                        other => panic!("{other:?}"),
                    }));
                    // Its place is free at once, and it cannot be asked again.
                    assert!(
                        answers.contains_key(&id) && !batcher.stop(id, &mut |_, event| panic!("{event:?}"))
                    );
                    asked.insert(id);
                }
            }
        }
        assert!(!asked.is_empty());
        assert_eq!(batcher.load(), assay_engine::batch::Load::default(), "everything was given back");
        for (id, (whole, _)) in &*ALONE {
            let answer = &answers[id];
            assert_eq!(answer.text, texts.get(id).cloned().unwrap_or_default());
            if !asked.contains(id) {
                assert_eq!(answer, whole);
                continue;
            }
            assert_eq!((answer.output.len(), answer.stop), (after, StopReason::Cancelled));
            assert_eq!(answer.output, whole.output[..after]);
            assert_eq!(answer.prompt, whole.prompt);
            let blocks = (answer.prompt.len() + after - 1) / 32;
            assert_eq!(answer.digests.0[..blocks], whole.digests.0[..blocks]);
        }
    }
}

/// Who waits is dropped; whose prompt is being read ends with its first token.
#[test]
fn an_answer_can_be_stopped_before_it_begins() {
    let limits = BatchLimits { running_max: 1, rows_max: 4, ..BatchLimits::default() };
    let mut batcher = idle(scalar(), 1, limits);
    let job = |id| Job { id, ..jobs()[1].clone() };
    assert!(job(1).prompt.len() > 4, "the prompt takes several passes");
    batcher.submit(job(1)).unwrap();
    batcher.submit(job(2)).unwrap();
    batcher.step(&mut |id, event| assert!(id == 1 && matches!(event, Event::Admitted)));
    let nothing = &mut |_, event| panic!("{event:?}");
    assert!(!batcher.stop(2, nothing) && batcher.stop(1, nothing) && !batcher.stop(3, nothing));
    let answers = run(&mut batcher);
    let [(1, (answer, text))] = &answers.into_iter().collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!((answer.output.len(), answer.stop, text), (1, StopReason::Cancelled, &answer.text));
    assert_eq!(answer.output[0], ALONE[&1].0.output[0]);
}

#[test]
fn what_cannot_run_is_refused() {
    let limits = BatchLimits { waiting_max: 1, cache_bytes_max: 1 << 20, ..BatchLimits::default() };
    let mut batcher = idle(scalar(), 1, limits);
    let job = |prompt: Vec<u32>, max_tokens| Job { id: 0, prompt, max_tokens, ..jobs()[0].clone() };
    assert!(matches!(batcher.submit(job(vec![], 1)), Err(SubmitError::PromptEmpty)));
    assert!(matches!(
        batcher.submit(job(vec![1; 256], 1)),
        Err(SubmitError::PromptTooLong { window: 256, .. })
    ));
    assert!(matches!(batcher.submit(job(vec![u32::MAX], 1)), Err(SubmitError::TokenUnknown { .. })));
    batcher.submit(job(vec![1], 1)).unwrap();
    assert!(matches!(batcher.submit(job(vec![1], 1)), Err(SubmitError::QueueFull { waiting: 1 })));
    // 256 positions of this model's cache fit a megabyte, but not a few kilobytes.
    let limits = BatchLimits { cache_bytes_max: 4096, ..BatchLimits::default() };
    let mut batcher = idle(scalar(), 1, limits);
    assert!(matches!(batcher.submit(job(vec![1], 0)), Err(SubmitError::CacheTooSmall { limit: 4096, .. })));
}

/// Stop strings end an answer wherever tokens happen to be cut, and nothing of them is ever streamed.
#[test]
fn stop_strings_across_tokens() {
    let job = Job { stop: vec![], max_tokens: 60, ..jobs()[0].clone() };
    let mut free = idle(scalar(), 1, BatchLimits::default());
    free.submit(job.clone()).unwrap();
    let whole = run(&mut free)[&0].0.text.clone();
    let ends: Vec<usize> = whole.char_indices().map(|(i, _)| i).collect();
    for from in (1..ends.len() - 8).step_by(3) {
        let stop = whole[ends[from]..ends[from + 7]].to_owned();
        let mut batcher = idle(scalar(), 1, BatchLimits::default());
        batcher.submit(Job { stop: vec!["never written".into(), stop.clone()], ..job.clone() }).unwrap();
        let (answer, streamed) = run(&mut batcher).remove(&0).unwrap();
        assert_eq!(answer.stop, StopReason::StopString(1), "{stop:?}");
        assert_eq!(answer.text, whole[..whole.find(&stop).unwrap()]);
        assert_eq!(streamed, answer.text);
    }
}
