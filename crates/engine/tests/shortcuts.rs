//! What a batcher saves is invisible: requests that go on after what others have executed, and tokens that are executed before they are chosen, leave
//! answers as each request gets alone without either, to the last bit of their digests.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use assay_core::request::{Guide, Sampling};
use assay_core::transcript::StopReason;
use assay_engine::artifact::Artifact;
use assay_engine::batch::{
    Answer, BatchLimits, Batcher, Draft, DraftError, Event, Job, JobId, Load, SubmitError,
};
use assay_engine::cache::{BLOCK_TOKENS, Block};
use assay_engine::constants::Constants;
use assay_engine::forward::Executor;
use assay_engine::import::synthetic::Size;
use assay_engine::import::synthetic::memory::InMemory;
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::text::Tokenizer;
use assay_engine::text::guide::Guided;
use proptest::prelude::*;

static MODEL: LazyLock<(Arc<Artifact>, Tokenizer)> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/stories-1.7m.assay");
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let tokenizer = Tokenizer::new(artifact.text(), artifact.tokenizer_json()).unwrap();
    (artifact, tokenizer)
});

/// Nothing is saved.
const PLAIN: BatchLimits = BatchLimits {
    running_max: 64,
    waiting_max: 256,
    cache_bytes_max: 2 << 30,
    prefix_bytes_max: 0,
    rows_max: 256,
    draft_rows_max: 0,
};

fn executor(constants: Arc<dyn Constants>) -> Executor {
    static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Arc::new(Pool::new(1)));
    Executor::new(constants, Kernel::available()[0], Arc::clone(&POOL))
}

fn batcher(limits: BatchLimits) -> Batcher<'static> {
    let (artifact, tokenizer) = &*MODEL;
    Batcher::new(executor(artifact.shared()), tokenizer, artifact.text().end_tokens.clone(), limits)
}

/// Who proposes what the text itself does not.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drafts {
    Nobody,
    /// The model that answers: right, as far as nothing but it decides.
    Itself,
    /// Random weights: hardly ever right. Its window has so many positions.
    Chance(u32),
}

impl Drafts {
    fn for_(self, limits: BatchLimits) -> Batcher<'static> {
        match self {
            Drafts::Nobody => batcher(limits),
            Drafts::Itself => batcher(limits).drafting(executor(MODEL.0.shared())),
            Drafts::Chance(context) => {
                let vocabulary = MODEL.0.program().program().vocabulary;
                let size =
                    Size { name: "tiny", dim: 32, layers: 1, heads: 2, kv_heads: 1, hidden: 64, vocabulary };
                batcher(limits).drafting(executor(Arc::new(InMemory::new(&size, 1, context, 5))))
            }
        }
    }
}

/// A request as it comes, and what becomes of it.
#[derive(Clone, Debug)]
struct Coming {
    job: Job,
    /// Steps after the one before.
    after: usize,
    leaves: Leaves,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leaves {
    Never,
    /// Its client goes so many steps after it came.
    Cancelled(usize),
    /// It is asked to end so many steps after it came.
    Stopped(usize),
}

/// Some of a long text that many requests begin with, and then an own end.
fn prompt(text: usize, shared: usize, own: usize, salt: u32) -> Vec<u32> {
    const TEXTS: [&str; 3] = [
        "Once upon a time there was a little girl who loved her small red ball and the big brown dog next door. ",
        "One day a boy named Tim went to the park with his mom. They saw a bird, a bird, a bird in the tree. ",
        "The sun was hot. The sun was hot. The cat sat on the mat and the cat sat on the mat and looked up. ",
    ];
    static LONG: LazyLock<Vec<Vec<u32>>> =
        LazyLock::new(|| TEXTS.iter().map(|t| MODEL.1.encode_text(&t.repeat(20)).unwrap()).collect());
    let own = (0..own as u32).map(|i| 300 + (i * 37 + salt * 101) % 700);
    LONG[text][..shared].iter().copied().chain(own).collect()
}

/// A form in which the same is said many times.
fn list() -> Guided {
    static LIST: LazyLock<Mutex<Guided>> = LazyLock::new(|| {
        let item = r#"{"type":"object","properties":{"cat":{"type":"boolean"}},"required":["cat"],"additionalProperties":false}"#;
        let schema = format!(r#"{{"type":"array","items":{item},"minItems":9,"maxItems":9}}"#);
        Mutex::new(MODEL.1.guide(&Guide::JsonSchema(schema), &[]).unwrap())
    });
    LIST.lock().unwrap().clone()
}

fn job() -> impl Strategy<Value = Job> {
    let prompt = (0..3usize, 0..200usize, 0..24usize, 0..3u32)
        .prop_map(|(text, shared, own, salt)| prompt(text, shared, own + usize::from(shared == 0), salt));
    let sampling = prop_oneof![
        Just(Sampling::GREEDY),
        Just(Sampling { temperature_micro: 900_000, top_k: 40, top_p_micro: 900_000, ..Sampling::GREEDY }),
        Just(Sampling { temperature_micro: 300_000, repetition_micro: 1_200_000, ..Sampling::GREEDY }),
        Just(Sampling {
            presence_micro: 400_000,
            frequency_micro: 300_000,
            bias: vec![(9, 3_000_000)],
            ..Sampling::GREEDY
        }),
    ];
    let stop = prop_oneof![3 => Just(vec![]), 1 => Just(vec![" the".to_owned(), ".".to_owned()])];
    let guided = prop::bool::weighted(0.3);
    (prompt, sampling, 0..4u8, 1..48u32, stop, prop::option::of(0..3u8), guided).prop_map(
        |(prompt, sampling, seed, max_tokens, stop, logprobs, guided)| Job {
            id: 0,
            prompt,
            sampling,
            seed: [seed; 32],
            max_tokens,
            stop,
            guide: guided.then(list),
            logprobs,
        },
    )
}

fn coming() -> impl Strategy<Value = Coming> {
    let leaves = prop_oneof![
        6 => Just(Leaves::Never),
        1 => (1..12usize).prop_map(Leaves::Cancelled),
        1 => (1..12usize).prop_map(Leaves::Stopped),
    ];
    (job(), 0..6usize, leaves).prop_map(|(job, after, leaves)| Coming { job, after, leaves })
}

fn alone(job: Job) -> Answer {
    let mut batcher = batcher(PLAIN);
    let id = job.id;
    batcher.submit(job).unwrap();
    run(&mut batcher).remove(&id).unwrap().0
}

fn run(batcher: &mut Batcher<'_>) -> BTreeMap<JobId, (Answer, String)> {
    let mut heard = Heard::default();
    while !batcher.is_idle() {
        batcher.step(&mut |id, event| heard.hear(id, event));
    }
    heard.answers
}

#[derive(Default)]
struct Heard {
    /// Tokens of prompts that were not executed.
    cached: BTreeMap<JobId, u32>,
    texts: BTreeMap<JobId, String>,
    answers: BTreeMap<JobId, (Answer, String)>,
}

impl Heard {
    fn hear(&mut self, id: JobId, event: Event) {
        match event {
            Event::Admitted => {}
            Event::Started { cached_tokens } => drop(self.cached.insert(id, cached_tokens)),
            Event::Token { text, .. } | Event::Rest(text) => {
                self.texts.entry(id).or_default().push_str(&text)
            }
            Event::Done(answer) => {
                let told = self.texts.remove(&id).unwrap_or_default();
                self.answers.insert(id, (*answer, told));
            }
        }
    }
}

/// Plays requests as they come and leave, and compares each answer with what the request gets alone.
fn play(limits: BatchLimits, drafts: Drafts, all: &[Coming]) {
    let mut batcher = drafts.for_(limits);
    let mut heard = Heard::default();
    let (mut next, mut due) = (0, all[0].after);
    let mut leaving: BTreeMap<usize, Vec<(JobId, Leaves)>> = BTreeMap::new();
    let (mut asked, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for step in 0.. {
        while next < all.len() && due <= step {
            let Coming { job, leaves, .. } = &all[next];
            let id = next as JobId;
            batcher.submit(Job { id, ..job.clone() }).unwrap();
            if let Leaves::Cancelled(after) | Leaves::Stopped(after) = leaves {
                leaving.entry(step + after).or_default().push((id, *leaves));
            }
            next += 1;
            due += all.get(next).map_or(0, |c| c.after);
        }
        for (id, leaves) in leaving.remove(&step).unwrap_or_default() {
            let done = heard.answers.contains_key(&id);
            match leaves {
                Leaves::Cancelled(_) => {
                    if batcher.cancel(id) {
                        gone.insert(id);
                    }
                }
                _ if done => {}
                _ => {
                    asked.insert(id);
                    if !batcher.stop(id, &mut |id, event| heard.hear(id, event)) {
                        gone.insert(id);
                    }
                }
            }
        }
        batcher.step(&mut |id, event| heard.hear(id, event));
        assert!(batcher.spared().prefix_bytes <= limits.prefix_bytes_max, "the budget holds");
        if batcher.is_idle() && next == all.len() {
            break;
        }
    }
    assert_eq!(batcher.load(), Load::default(), "everything was given back");
    for (id, coming) in all.iter().enumerate() {
        let id = id as JobId;
        if gone.contains(&id) {
            continue;
        }
        let whole = alone(Job { id, ..coming.job.clone() });
        let (answer, told) = &heard.answers[&id];
        assert_eq!(*told, answer.text);
        if !asked.contains(&id) || answer.stop != StopReason::Cancelled {
            assert_eq!(*answer, whole);
            continue;
        }
        let n = answer.output.len();
        assert_eq!(answer.output, whole.output[..n]);
        assert_eq!(answer.logprobs, whole.logprobs[..answer.logprobs.len()]);
        let cut = alone(Job { id, max_tokens: n as u32, ..coming.job.clone() });
        assert_eq!(answer.digests, cut.digests, "digests of what was executed, and of nothing else");
    }
}

fn block_bytes() -> usize {
    Block::bytes(MODEL.0.program().caches())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn requests_that_share_beginnings_answer_as_each_does_alone(
        blocks in prop_oneof![Just(1usize), Just(2), Just(5), Just(1000)],
        running_max in 1usize..6,
        rows_max in prop_oneof![Just(5usize), Just(33), Just(64), Just(256)],
        draft_rows_max in prop_oneof![Just(0usize), Just(4), Just(16), Just(64)],
        all in prop::collection::vec(coming(), 1..14),
    ) {
        // Keys and places come to less than half of a block.
        let prefix_bytes_max = blocks * block_bytes() * 3 / 2;
        play(BatchLimits { running_max, rows_max, prefix_bytes_max, draft_rows_max, ..PLAIN }, Drafts::Nobody, &all);
    }

    /// Proposals of every length, of requests that end in every way, beside one another and alone.
    #[test]
    fn proposals_leave_no_trace(
        running_max in 1usize..4,
        draft_rows_max in 2usize..40,
        all in prop::collection::vec(coming(), 1..6),
    ) {
        play(BatchLimits { running_max, draft_rows_max, ..PLAIN }, Drafts::Nobody, &all);
    }

    /// Another model's proposals, right and wrong ones, beside those of the text and of blocks that are kept, with windows that end before the requests'.
    #[test]
    fn proposals_of_a_draft_model_leave_no_trace(
        drafts in prop_oneof![2 => Just(Drafts::Itself), 1 => (1..300u32).prop_map(Drafts::Chance)],
        running_max in 1usize..5,
        rows_max in prop_oneof![Just(33usize), Just(256)],
        blocks in prop_oneof![Just(0usize), Just(1000)],
        draft_rows_max in 2usize..40,
        all in prop::collection::vec(coming(), 1..7),
    ) {
        let prefix_bytes_max = blocks * block_bytes() * 3 / 2;
        play(BatchLimits { running_max, rows_max, prefix_bytes_max, draft_rows_max, ..PLAIN }, drafts, &all);
    }
}

fn plain_job(id: JobId, prompt: Vec<u32>) -> Job {
    Job {
        id,
        prompt,
        sampling: Sampling::GREEDY,
        seed: [0; 32],
        max_tokens: 40,
        stop: vec![],
        guide: None,
        logprobs: None,
    }
}

/// What is counted as spared was not executed: the passes that a request takes, one row each, tell.
#[test]
fn a_beginning_that_was_executed_is_not_executed_again() {
    let limits = BatchLimits { rows_max: 1, prefix_bytes_max: 1 << 30, ..PLAIN };
    let mut batcher = batcher(limits);
    let steps = |batcher: &mut Batcher<'_>, job: Job| {
        let whole = alone(job.clone());
        let id = job.id;
        batcher.submit(job).unwrap();
        let (mut count, mut heard) = (0, Heard::default());
        while !batcher.is_idle() {
            batcher.step(&mut |id, event| heard.hear(id, event));
            count += 1;
        }
        assert_eq!(heard.answers[&id].0, whole);
        (count, heard.cached[&id], whole)
    };
    let first = plain_job(1, prompt(0, 140, 3, 0));
    let (count, cached, answer) = steps(&mut batcher, first.clone());
    assert_eq!((count, cached, batcher.spared().prefix_hits), (143 + 40 - 1, 0, 0));
    let (count, cached, _) = steps(&mut batcher, Job { id: 2, ..first.clone() });
    assert_eq!((count, cached), (143 - 128 + 40 - 1, 128));
    // What a request wrote is the beginning of the next turn.
    let turn: Vec<u32> = answer.prompt.iter().chain(&answer.output).copied().chain([5, 6, 7, 8]).collect();
    assert!(turn.len() / BLOCK_TOKENS == 2 && turn.len() < 193 && answer.stop == StopReason::Length);
    let (count, cached, _) = steps(&mut batcher, plain_job(3, turn.clone()));
    assert_eq!((count, cached), (turn.len() - 128 + 40 - 1, 128));
    // A prompt that ends where a block ends leaves its last token to be executed.
    let (count, cached, _) = steps(&mut batcher, plain_job(4, first.prompt[..128].to_vec()));
    assert_eq!((count, cached), (64 + 40 - 1, 64));
    let spared = batcher.spared();
    assert_eq!((spared.prefix_hits, spared.prefix_tokens), (3, 128 + 128 + 64));
    assert!(spared.prefix_bytes > 3 * block_bytes());
}

/// Of many that come at once, the first one executes for all.
#[test]
fn requests_that_come_together_share_too() {
    let mut batcher = batcher(BatchLimits { rows_max: 64, prefix_bytes_max: 1 << 30, ..PLAIN });
    let jobs: Vec<Job> = (0..8).map(|i| plain_job(i, prompt(1, 150, 4, i as u32))).collect();
    jobs.iter().for_each(|job| batcher.submit(job.clone()).unwrap());
    let answers = run(&mut batcher);
    for job in jobs {
        assert_eq!(answers[&job.id].0, alone(job));
    }
    assert_eq!(batcher.spared().prefix_hits, 7);
    assert_eq!(batcher.spared().prefix_tokens, 7 * 128);
}

/// Greedy answers of this model go round in circles, which proposals find: passes are spared, and exactly as many as are counted.
#[test]
fn tokens_that_were_proposed_and_chosen_need_no_pass() {
    let mut batcher = batcher(BatchLimits { draft_rows_max: 16, ..PLAIN });
    let (mut chosen, mut drafted) = (0, 0);
    for text in 0..3 {
        let job = Job { max_tokens: 0, ..plain_job(text as JobId, prompt(text, 60, 0, 0)) };
        let whole = alone(job.clone());
        let (mut passes, mut heard) = (0, Heard::default());
        batcher.submit(job).unwrap();
        while !batcher.is_idle() {
            batcher.step(&mut |id, event| heard.hear(id, event));
            passes += 1;
        }
        assert_eq!(heard.answers[&(text as JobId)].0, whole);
        let spared = batcher.spared();
        assert_eq!(passes + spared.drafts_chosen - chosen, whole.output.len() as u64);
        assert!(spared.drafted >= spared.drafts_chosen);
        (chosen, drafted) = (spared.drafts_chosen, spared.drafted);
    }
    assert!(chosen > 20 && drafted > chosen, "{chosen} of {drafted}");
}

/// An answer that must have a form repeats it: proposals are chosen under the masks that the form leaves at each position.
#[test]
fn guided_answers_are_proposed_too() {
    let mut batcher = batcher(BatchLimits { draft_rows_max: 16, ..PLAIN });
    let job =
        Job { max_tokens: 0, guide: Some(list()), logprobs: Some(2), ..plain_job(1, prompt(0, 20, 0, 0)) };
    batcher.submit(job.clone()).unwrap();
    let answer = run(&mut batcher).remove(&1).unwrap().0;
    assert_eq!(answer.stop, StopReason::EndToken, "{}", answer.text);
    assert!(batcher.spared().drafts_chosen > 20, "{:?}", batcher.spared());
    assert_eq!(answer, alone(job));
}

/// A draft model that is the model itself foresees what is drawn as well as what is likeliest, in texts that repeat nothing: passes are spared,
/// exactly as many as are counted.
#[test]
fn what_a_draft_model_foresees_needs_no_pass() {
    let warm = Sampling { temperature_micro: 900_000, ..Sampling::GREEDY };
    for sampling in [Sampling::GREEDY, warm] {
        let mut batcher = Drafts::Itself.for_(BatchLimits { draft_rows_max: 16, ..PLAIN });
        let job = Job { sampling, seed: [3; 32], max_tokens: 60, ..plain_job(1, prompt(0, 150, 2, 0)) };
        let whole = alone(job.clone());
        let (mut passes, mut heard) = (0, Heard::default());
        batcher.submit(job).unwrap();
        while !batcher.is_idle() {
            batcher.step(&mut |id, event| heard.hear(id, event));
            passes += 1;
        }
        assert_eq!(heard.answers[&1].0, whole);
        let spared = batcher.spared();
        assert_eq!(passes + spared.drafts_chosen, whole.output.len() as u64);
        assert!(spared.model_drafts_chosen * 2 > whole.output.len() as u64, "{spared:?}");
        assert_eq!(spared.model_drafts_chosen, spared.model_drafted, "nothing else decides");
    }
}

/// Proposals that are wrong become rare.
#[test]
fn a_draft_model_that_is_wrong_is_asked_less() {
    let mut batcher = Drafts::Chance(256).for_(BatchLimits { draft_rows_max: 16, ..PLAIN });
    let warm = Sampling { temperature_micro: 1_000_000, ..Sampling::GREEDY };
    let job = Job { sampling: warm, max_tokens: 180, ..plain_job(1, prompt(1, 20, 0, 0)) };
    batcher.submit(job.clone()).unwrap();
    assert_eq!(run(&mut batcher).remove(&1).unwrap().0, alone(job));
    let spared = batcher.spared();
    assert!(spared.model_drafted > 0 && spared.model_drafted < 60, "{spared:?}");
}

/// Many requests at once leave no row for proposals, and then nobody makes any.
#[test]
fn a_draft_model_rests_while_many_requests_write() {
    let mut batcher = Drafts::Itself.for_(BatchLimits { draft_rows_max: 16, ..PLAIN });
    let jobs: Vec<Job> = (0..9).map(|i| plain_job(i, prompt(2, 10 + i as usize, 3, i as u32))).collect();
    jobs.iter().for_each(|job| batcher.submit(job.clone()).unwrap());
    let mut heard = Heard::default();
    while batcher.load().running + batcher.load().waiting == 9 || heard.answers.is_empty() {
        batcher.step(&mut |id, event| heard.hear(id, event));
    }
    assert_eq!(batcher.spared().drafted, 0);
}

/// What a draft model keeps of a request counts as that request's.
#[test]
fn the_caches_of_a_draft_model_are_counted() {
    let job = plain_job(1, prompt(0, 70, 0, 0));
    let bytes = |mut batcher: Batcher<'_>| {
        batcher.submit(job.clone()).unwrap();
        batcher.step(&mut |_, _| {});
        batcher.load().cache_bytes
    };
    let alone = bytes(batcher(PLAIN));
    assert_eq!(bytes(Drafts::Itself.for_(PLAIN)), 2 * alone);
    let mut batcher = Drafts::Itself.for_(BatchLimits { cache_bytes_max: 2 * alone - 1, ..PLAIN });
    let refused = SubmitError::CacheTooSmall { needed: 2 * alone, limit: 2 * alone - 1 };
    assert_eq!(batcher.submit(job.clone()), Err(refused));
}

#[test]
fn only_a_model_of_the_same_tokens_drafts() {
    let model = &MODEL.0;
    assert!(Arc::ptr_eq(Draft::of(model, model).unwrap().artifact(), model));
    let mut bytes = model.bytes().to_vec();
    let json = model.tokenizer_json();
    let at = bytes.windows(json.len()).position(|window| window == json).unwrap();
    bytes[at + json.len() - 1] = b' ';
    let other = Arc::new(Artifact::from_bytes("other", &bytes).unwrap());
    let error = Draft::of(&other, model).err().unwrap();
    assert!(matches!(error, DraftError::OtherTokenizer { .. }), "{error}");
    assert_eq!(error.code(), "draft_other_tokenizer");
}
