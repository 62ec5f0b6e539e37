//! Honest answers hold; every single change is found and placed, whether or not the provider signs it.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod honest;

use std::sync::LazyLock;

use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical as _;
use assay_core::id::{Hash, ModelRoot, Nonce, SignatureBytes};
use assay_core::receipt::Receipt;
use assay_core::request::{Guide, Prompt, Request, Sampling, Tool};
use assay_core::transcript::{NonceSource, StopReason};
use assay_core::verdict::{FailureCode, Outcome, Verdict};
use assay_engine::artifact::Artifact;
use assay_engine::constants::Constants as _;
use assay_engine::replay::ByReference;
use assay_verify::reexecution::{Subject, check_by_reexecution, check_record};
use honest::Node;
use proptest::prelude::*;

static NODE: LazyLock<Node> = LazyLock::new(Node::new);
static RECORD: LazyLock<AnswerRecord> = LazyLock::new(|| NODE.answer(NODE.request()));

/// The verdicts on the record altered by `change`: as it is, and signed again by the provider.
fn altered(change: impl Fn(&mut AnswerRecord)) -> [Verdict; 2] {
    let mut record = RECORD.clone();
    change(&mut record);
    assert_ne!(record, *RECORD);
    let unsigned = NODE.check(&record);
    NODE.sign(&mut record);
    let signed = NODE.check(&record);
    assert!(record.broken_bindings().is_empty(), "signing again makes the hashes fit");
    [unsigned, signed]
}

fn assert_fails(verdict: &Verdict, code: FailureCode, position: Option<u32>) {
    assert!(!verdict.holds);
    let failure = verdict.failure.as_ref().unwrap();
    assert_eq!((failure.code, failure.position), (code, position), "{verdict:?}");
}

#[test]
fn an_honest_answer_holds() {
    let verdict = NODE.check(&RECORD);
    assert!(verdict.holds, "{verdict:?}");
    assert!(verdict.checks.iter().all(|c| c.outcome == Outcome::Passed));
    assert!(!verdict.unchecked.is_empty(), "it says what it does not check");
    assert_eq!(RECORD.transcript.output_ids.len(), 80);
}

#[test]
fn the_reference_gives_the_same_verdicts() {
    let request = Request { max_tokens: 12, ..NODE.request() };
    let mut record = NODE.answer(request);
    let subject = Subject {
        root: NODE.artifact.root(),
        program: NODE.artifact.program().program(),
        text: NODE.artifact.text(),
        tokenizer: &NODE.tokenizer,
    };
    let by_reference =
        |r: &AnswerRecord| check_by_reexecution(r, &subject, &mut ByReference(NODE.artifact.as_ref()));
    assert_eq!(by_reference(&record), NODE.check(&record));
    assert!(by_reference(&record).holds);
    record.transcript.output_ids[5] ^= 1;
    assert_eq!(by_reference(&record), NODE.check(&record));
    assert!(!by_reference(&record).holds);
}

#[test]
fn every_kind_of_sampling_and_ending_holds() {
    let greedy = Sampling { seed: Some(1), ..Sampling::GREEDY };
    for sampling in [greedy, Sampling { top_k: 3, ..NODE.request().sampling }] {
        for (max_tokens, stop) in
            [(1, vec![]), (40, vec![]), (0, vec![]), (0, vec![" the".to_owned(), ".".to_owned()])]
        {
            let request = Request { sampling: sampling.clone(), max_tokens, stop, ..NODE.request() };
            let record = NODE.answer(request);
            let verdict = NODE.check(&record);
            assert!(verdict.holds, "{verdict:?}");
        }
    }
}

#[test]
fn one_output_id() {
    for at in [0, 37, 79] {
        let [unsigned, signed] = altered(|r| r.transcript.output_ids[at] ^= 1);
        assert_fails(&unsigned, FailureCode::OutputId, Some(at as u32));
        assert_fails(&signed, FailureCode::OutputId, Some(at as u32));
    }
}

#[test]
fn an_output_id_beyond_the_vocabulary() {
    for verdict in altered(|r| r.transcript.output_ids[3] = u32::MAX) {
        assert_fails(&verdict, FailureCode::OutputId, Some(3));
    }
}

#[test]
fn the_seed() {
    let [unsigned, signed] = altered(|r| r.request.sampling.seed = Some(8));
    // Which token falls first depends on the other seed's draws; that one falls, and is named, is the point.
    for verdict in [unsigned, signed] {
        assert!(verdict.failure.as_ref().unwrap().position.is_some());
        assert_eq!(verdict.failure.unwrap().code, FailureCode::OutputId);
    }
}

#[test]
fn each_sampling_parameter() {
    let changes: [fn(&mut Sampling); 4] = [
        |s| s.temperature_micro = 0,
        |s| s.top_k = 1,
        |s| s.top_p_micro = 10_000,
        |s| s.min_p_micro = 990_000,
    ];
    for change in changes {
        for verdict in altered(|r| change(&mut r.request.sampling)) {
            assert!(verdict.failure.as_ref().unwrap().position.is_some());
            assert_eq!(verdict.failure.unwrap().code, FailureCode::OutputId);
        }
    }
}

/// A request that uses everything which decides about tokens.
fn rich() -> Request {
    let request = NODE.request();
    let tool = Tool {
        name: "tell".into(),
        description: Some("Tells a story".into()),
        parameters: r#"{"type":"object","properties":{"story":{"type":"string","maxLength":40}},"required":["story"]}"#.into(),
    };
    let Prompt::Chat { messages, .. } = request.prompt else { unreachable!() };
    Request {
        prompt: Prompt::Chat { messages, tools: vec![tool] },
        sampling: Sampling {
            presence_micro: 300_000,
            frequency_micro: -200_000,
            repetition_micro: 1_100_000,
            bias: vec![(300, 2_000_000), (301, -100_000_000)],
            ..request.sampling
        },
        guide: Some(Guide::Tools { required: true, only: None, parallel: true }),
        logprobs: Some(3),
        choice: 2,
        max_tokens: 60,
        ..request
    }
}

#[test]
fn everything_that_decides_about_tokens_is_replayed() {
    let record = NODE.answer(rich());
    let verdict = NODE.check(&record);
    assert!(verdict.holds, "{verdict:?}");
    assert!(verdict.checks.iter().any(|c| c.name == "probabilities" && c.outcome == Outcome::Passed));
    assert!(record.transcript.text.starts_with("<tool_call>"), "{}", record.transcript.text);
    let fails = |change: &dyn Fn(&mut AnswerRecord)| {
        let mut other = record.clone();
        change(&mut other);
        NODE.sign(&mut other);
        let verdict = NODE.check(&other);
        assert!(!verdict.holds);
        verdict.failure.unwrap().code
    };
    let token = FailureCode::OutputId;
    assert_eq!(fails(&|r| r.request.choice = 0), token);
    assert_eq!(fails(&|r| r.request.guide = None), token);
    assert_eq!(fails(&|r| r.request.sampling.repetition_micro = 1_000_000), token);
    assert_eq!(fails(&|r| r.request.sampling.bias.clear()), token);
    assert_eq!(fails(&|r| r.transcript.logprobs[7].chosen += 1), FailureCode::Logprobs);
    assert_eq!(fails(&|r| r.transcript.logprobs[3].top[1].0 ^= 1), FailureCode::Logprobs);
    assert_eq!(fails(&|r| r.transcript.logprobs.truncate(9)), FailureCode::Logprobs);
    // A form that cannot be followed is no reason to believe the tokens.
    assert_eq!(fails(&|r| r.request.guide = Some(Guide::Regex("(".into()))), FailureCode::Limits);
}

#[test]
fn one_prompt_character() {
    let change = |r: &mut AnswerRecord| {
        let Prompt::Chat { messages, .. } = &mut r.request.prompt else { unreachable!() };
        messages[0].content = messages[0].content.replace("dog", "fog");
    };
    for verdict in altered(change) {
        let failure = verdict.failure.as_ref().unwrap();
        assert_eq!(failure.code, FailureCode::PromptIds);
        let at = failure.position.unwrap() as usize;
        assert!(
            at > 0 && at < RECORD.transcript.prompt_ids.len(),
            "the beginning of the prompt is as it was"
        );
    }
}

#[test]
fn a_prompt_id() {
    for verdict in altered(|r| r.transcript.prompt_ids[4] ^= 1) {
        assert_fails(&verdict, FailureCode::PromptIds, Some(4));
    }
}

#[test]
fn the_model_named() {
    let other = ModelRoot::from_bytes([9; 32]);
    let mut record = RECORD.clone();
    record.receipt.receipt.model_root = other;
    record.request.model = other;
    // The sampler's seed covers the root: the first token that would be another is named as well.
    assert!(!NODE.check(&record).holds);
    NODE.sign(&mut record);
    let verdict = NODE.check(&record);
    assert!(!verdict.holds);
    assert!(verdict.checks.iter().any(|c| c.name == "model" && c.outcome == Outcome::Failed));
}

#[test]
fn another_model_executed() {
    // One bit of one weight in the middle of the model.
    let mut bytes = std::fs::read(NODE.artifact.path()).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x40;
    let other = Artifact::from_bytes("altered", &bytes).unwrap();
    assert!(other.check_root(&|_| {}).is_err(), "its root is another");
    let subject = Subject {
        root: NODE.artifact.root(),
        program: other.program().program(),
        text: other.text(),
        tokenizer: &NODE.tokenizer,
    };
    let verdict = check_by_reexecution(&RECORD, &subject, &mut ByReference(&other));
    assert!(!verdict.holds);
    assert!(verdict.checks.iter().any(|c| c.name == "execution digests" && c.outcome == Outcome::Failed));
}

#[test]
fn a_digest_byte() {
    for at in 0..RECORD.digests.0.len() {
        for verdict in altered(|r| r.digests.0[at] = flip(r.digests.0[at])) {
            assert_fails(&verdict, FailureCode::Digest, Some(at as u32));
        }
    }
    for verdict in altered(|r| r.digests.0.truncate(RECORD.digests.0.len() - 1)) {
        assert_fails(&verdict, FailureCode::Digest, Some(RECORD.digests.0.len() as u32 - 1));
    }
}

fn flip(hash: Hash) -> Hash {
    let mut bytes = *hash.as_bytes();
    bytes[31] ^= 1;
    Hash::from_bytes(bytes)
}

#[test]
fn the_signature() {
    let honest = *RECORD.receipt.signature.as_bytes();
    for at in [0, 31, 40, 64] {
        let mut bytes = honest;
        bytes[at] ^= 1;
        let mut record = RECORD.clone();
        record.receipt.signature = SignatureBytes::from_bytes(bytes);
        let verdict = NODE.check(&record);
        assert_fails(&verdict, FailureCode::Signature, None);
        assert!(
            verdict.checks.iter().filter(|c| c.name != "signature").all(|c| c.outcome == Outcome::Passed)
        );
    }
}

#[test]
fn a_character_of_the_text() {
    for verdict in altered(|r| r.transcript.text.replace_range(5..6, "#")) {
        assert_fails(&verdict, FailureCode::Text, Some(5));
    }
}

/// It holds exactly where the execution agrees and no rule of the request ends it before; who asked for its end is nothing that an execution shows.
#[test]
fn an_answer_that_was_stopped_holds_as_far_as_it_goes() {
    for tokens in [1, 20, 33, 79] {
        let mut stopped = NODE.stopped(NODE.request(), tokens);
        assert_eq!(stopped.transcript.stop, StopReason::Cancelled);
        assert_eq!(stopped.transcript.output_ids, RECORD.transcript.output_ids[..tokens]);
        let verdict = NODE.check(&stopped);
        assert!(verdict.holds, "{verdict:?}");
        assert!(verdict.unchecked.iter().any(|u| u.contains("asked for its end")), "{verdict:?}");
        let subject = Subject {
            root: NODE.artifact.root(),
            program: NODE.artifact.program().program(),
            text: NODE.artifact.text(),
            tokenizer: &NODE.tokenizer,
        };
        assert_eq!(
            check_by_reexecution(&stopped, &subject, &mut ByReference(NODE.artifact.as_ref())),
            verdict
        );
        // It is none of the other ends, and has no token, character or number more or less than were executed.
        for stop in [StopReason::EndToken, StopReason::Length, StopReason::Window, StopReason::StopString(0)]
        {
            let mut other = stopped.clone();
            other.transcript.stop = stop;
            NODE.sign(&mut other);
            let last = u32::try_from(tokens - 1).unwrap();
            assert_fails(&NODE.check(&other), FailureCode::StopReason, Some(last));
        }
        let mut shorter = stopped.clone();
        shorter.transcript.output_ids.pop();
        NODE.sign(&mut shorter);
        assert!(!NODE.check(&shorter).holds);
        stopped.transcript.output_ids[tokens - 1] ^= 1;
        NODE.sign(&mut stopped);
        assert!(!NODE.check(&stopped).holds);
    }
    // What its request has ended was not stopped.
    for verdict in altered(|r| r.transcript.stop = StopReason::Cancelled) {
        assert_fails(&verdict, FailureCode::StopReason, Some(79));
    }
    // Text that was held back for a stop string, and characters in the middle of their bytes, are in the text.
    for stop in [" ", "the ", ". A long stop string that begins as a sentence ends"] {
        let request = Request { stop: vec![stop.into()], ..NODE.request() };
        for tokens in 1..12 {
            let record = NODE.stopped(request.clone(), tokens);
            let verdict = NODE.check(&record);
            assert!(verdict.holds, "{stop:?} {tokens}: {verdict:?}");
        }
    }
}

#[test]
fn an_answer_cut_short_or_drawn_out() {
    for verdict in altered(|r| r.transcript.output_ids.truncate(79)) {
        assert!(!verdict.holds);
    }
    for verdict in altered(|r| r.transcript.output_ids.push(5)) {
        assert!(!verdict.holds);
    }
    for verdict in altered(|r| r.transcript.stop = StopReason::EndToken) {
        assert_fails(&verdict, FailureCode::StopReason, Some(79));
    }
}

#[test]
fn the_nonce() {
    let mut record = RECORD.clone();
    record.transcript.nonce = Nonce::from_bytes([1; 32]);
    for verdict in [NODE.check(&record), {
        NODE.sign(&mut record);
        NODE.check(&record)
    }] {
        assert_eq!(
            verdict.failure.unwrap().code,
            FailureCode::OutputId,
            "the nonce is in the sampler's seed"
        );
    }
    // A provider that draws nonces until it likes the answer may not say that the seed fixed it.
    let mut record = RECORD.clone();
    record.transcript.nonce_source = NonceSource::Provider;
    assert!(!NODE.check(&record).holds, "the source is part of the transcript");
    NODE.sign(&mut record);
    let verdict = NODE.check(&record);
    assert!(verdict.unchecked.iter().any(|u| u.contains("nonce")), "{verdict:?}");
}

#[test]
fn token_counts_and_other_receipt_fields() {
    let changes: [fn(&mut Receipt); 5] = [
        |r| r.completion_tokens += 1,
        |r| r.prompt_tokens -= 1,
        |r| r.sequence += 1,
        |r| r.fee_micro_usd += 1,
        |r| r.epoch += 1,
    ];
    for change in changes {
        let mut record = RECORD.clone();
        change(&mut record.receipt.receipt);
        assert!(!NODE.check(&record).holds);
    }
}

#[test]
fn without_the_model_nothing_is_said_to_be_executed() {
    let verdict = check_record(&RECORD);
    assert!(verdict.holds);
    assert!(verdict.checks.iter().any(|c| c.name == "tokens" && c.outcome == Outcome::NotRun));
    let mut record = RECORD.clone();
    record.transcript.output_ids[0] ^= 1;
    assert!(!check_record(&record).holds);
}

#[test]
fn a_transcript_that_cannot_be_executed_is_refused_without_executing() {
    let long = |r: &mut AnswerRecord| r.transcript.output_ids = vec![5; 4096];
    let empty = |r: &mut AnswerRecord| r.transcript.output_ids.clear();
    for verdict in altered(long).into_iter().chain(altered(empty)) {
        assert!(verdict.checks.iter().any(|c| c.name == "execution digests" && c.outcome == Outcome::NotRun));
        assert!(!verdict.holds);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever byte of the stored record is changed, wherever: either it is no record any more, or the check fails. Only what
    /// the provider says about its own speed is free.
    #[test]
    fn any_changed_byte_is_found(at in any::<prop::sample::Index>(), change in 1u8..) {
        let honest = RECORD.to_canonical_bytes();
        let mut bytes = honest.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok(record) = AnswerRecord::from_canonical_bytes(&bytes) {
            let said = AnswerRecord { generation: None, ..record.clone() } == *RECORD;
            prop_assert_eq!(NODE.check(&record).holds, said, "byte {} of {}", at, honest.len());
        }
    }

    /// Bytes that are no record are refused without a panic.
    #[test]
    fn noise_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(AnswerRecord::from_canonical_bytes(&bytes).is_err());
        prop_assert!(serde_json::from_slice::<AnswerRecord>(&bytes).is_err());
    }
}
