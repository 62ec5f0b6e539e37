//! Receipts against an independent EIP-712 implementation and real keys; records that were tampered with.
#![allow(clippy::unwrap_used)]

use alloy_primitives::{Address, B256, U256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{Eip712Domain, SolStruct, sol};
use assay_core::answer::{AnswerRecord, BindingError, Format};
use assay_core::canonical::Canonical;
use assay_core::consent::Consent;
use assay_core::digest::DigestBuilder;
use assay_core::id::{ChannelId, ModelRoot, NodeAddress, Nonce, SignatureBytes};
use assay_core::receipt::{Domain, Receipt as Ours, SignedReceipt};
use assay_core::request::{Prompt, Request, Sampling};
use assay_core::transcript::{NonceSource, StopReason, Transcript};
use proptest::prelude::*;
use serde_json::json;

sol! {
    struct Receipt {
        address provider;
        uint64 sequence;
        bytes32 modelRoot;
        bytes32 requestHash;
        bytes32 transcriptRoot;
        bytes32 digestRoot;
        uint32 promptTokens;
        uint32 completionTokens;
        uint64 feeMicroUsd;
        bytes32 payerChannel;
        bytes32 clientNonce;
        uint64 epoch;
    }
}

fn signer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap()
}

fn sign(receipt: Ours) -> SignedReceipt {
    let domain = Domain::DEVELOPMENT;
    let hash = B256::from(*receipt.signing_hash(&domain).as_bytes());
    let signature = signer().sign_hash_sync(&hash).unwrap();
    SignedReceipt { receipt, domain, signature: SignatureBytes::from_bytes(signature.as_bytes()) }
}

fn record() -> AnswerRecord {
    let request = Request {
        model: ModelRoot::from_bytes([1; 32]),
        prompt: Prompt::Text("Once upon a time".into()),
        sampling: Sampling { seed: Some(5), ..Sampling::GREEDY },
        max_tokens: 3,
        stop: vec!["\n".into()],
        choice: 0,
        guide: None,
        logprobs: None,
        audit: Consent::Given,
    };
    let transcript = Transcript {
        logprobs: vec![],
        request_hash: request.hash(),
        nonce: Nonce::ZERO,
        nonce_source: NonceSource::Seed,
        prompt_ids: (0..130).collect(),
        output_ids: vec![4, 5, 6],
        text: "there was".into(),
        stop: StopReason::Length,
    };
    let mut digests = DigestBuilder::new();
    for p in 0..132 {
        digests.push(p, &[p as i8; 40], 40_000, -9);
    }
    let digests = digests.finish();
    let receipt = sign(Ours {
        provider: NodeAddress::from_bytes(signer().address().into_array()),
        sequence: 9,
        model_root: request.model,
        request_hash: request.hash(),
        transcript_root: transcript.root(),
        digest_root: digests.root(),
        prompt_tokens: 130,
        completion_tokens: 3,
        fee_micro_usd: 0,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::ZERO,
        epoch: 0,
    });
    AnswerRecord { format: Format::V2, receipt, request, transcript, digests, generation: None }
}

#[test]
fn the_signing_hash_is_what_other_eip712_implementations_compute() {
    let ours = record().receipt.receipt;
    let theirs = Receipt {
        provider: Address::from(*ours.provider.as_bytes()),
        sequence: ours.sequence,
        modelRoot: B256::from(*ours.model_root.as_bytes()),
        requestHash: B256::from(*ours.request_hash.as_bytes()),
        transcriptRoot: B256::from(*ours.transcript_root.as_bytes()),
        digestRoot: B256::from(*ours.digest_root.as_bytes()),
        promptTokens: ours.prompt_tokens,
        completionTokens: ours.completion_tokens,
        feeMicroUsd: ours.fee_micro_usd,
        payerChannel: B256::from(*ours.payer_channel.as_bytes()),
        clientNonce: B256::from(*ours.client_nonce.as_bytes()),
        epoch: ours.epoch,
    };
    let (name, version) = (Some("Assay".into()), Some("1".into()));
    let domain = Eip712Domain::new(name, version, Some(U256::from(31_337)), Some(Address::ZERO), None);
    assert_eq!(theirs.eip712_signing_hash(&domain).0, *ours.signing_hash(&Domain::DEVELOPMENT).as_bytes());
}

#[test]
fn golden_hashes_do_not_move() {
    let r = record();
    let got = [
        r.request.hash().to_string(),
        r.transcript.root().to_string(),
        r.digests.root().to_string(),
        r.receipt.receipt.id().to_string(),
        r.receipt.signature.to_string(),
    ]
    .join("\n");
    let want = include_str!("receipt.golden").trim_end();
    assert_eq!(got, want, "canonical bytes changed: that breaks every receipt ever given");
}

#[test]
fn every_end_of_an_answer_has_its_two_bytes() {
    let ends = [
        (StopReason::EndToken, [0, 0], json!("end_token")),
        (StopReason::StopString(3), [1, 3], json!({"stop_string": 3})),
        (StopReason::Length, [2, 0], json!("length")),
        (StopReason::Window, [3, 0], json!("window")),
        (StopReason::Cancelled, [4, 0], json!("cancelled")),
    ];
    let mut roots = std::collections::BTreeSet::new();
    for (stop, bytes, name) in ends {
        let transcript = Transcript { stop, ..record().transcript };
        let mut items = transcript.items();
        // The tag, request hash, nonce, its source.
        let at = b"assay/transcript/1".len() + 32 + 32 + 1;
        assert_eq!(items[0][at..at + 2], bytes);
        let read = |items: &[Vec<u8>]| {
            let items: Vec<&[u8]> = items.iter().map(Vec::as_slice).collect();
            Transcript::from_items(&items)
        };
        assert_eq!(read(&items), Some(Transcript { text: String::new(), ..transcript.clone() }));
        assert_eq!(serde_json::to_value(stop).unwrap(), name);
        assert_eq!(borsh::to_vec(&stop).unwrap()[0], bytes[0]);
        roots.insert(transcript.root());
        if !matches!(stop, StopReason::StopString(_)) {
            items[0][at + 1] = 1;
            assert_eq!(read(&items), None);
        }
        items[0][at] = 5;
        assert_eq!(read(&items), None, "a sixth end");
    }
    assert_eq!(roots.len(), 5);
}

#[test]
fn a_whole_record_holds_and_every_change_breaks_its_binding() {
    assert_eq!(record().broken_bindings(), []);
    let broken = |change: &dyn Fn(&mut AnswerRecord), want: BindingError| {
        let mut r = record();
        change(&mut r);
        assert!(r.broken_bindings().contains(&want), "{want:?} not in {:?}", r.broken_bindings());
    };
    broken(&|r| r.request.sampling.seed = Some(6), BindingError::RequestHash);
    broken(&|r| r.request.max_tokens = 4, BindingError::RequestHash);
    broken(&|r| r.request.prompt = Prompt::Text("Once upon a tine".into()), BindingError::RequestHash);
    broken(&|r| r.request.model = ModelRoot::ZERO, BindingError::ModelRoot);
    broken(&|r| r.transcript.output_ids[1] = 7, BindingError::TranscriptRoot);
    broken(&|r| r.transcript.text.push('.'), BindingError::TranscriptRoot);
    broken(&|r| r.transcript.stop = StopReason::EndToken, BindingError::TranscriptRoot);
    broken(&|r| r.transcript.nonce_source = NonceSource::Client, BindingError::TranscriptRoot);
    broken(&|r| r.transcript.nonce = Nonce::from_bytes([1; 32]), BindingError::Nonce);
    broken(&|r| r.digests.0.swap(0, 1), BindingError::DigestRoot);
    broken(&|r| r.receipt.receipt.completion_tokens = 2, BindingError::TokenCounts);
    let signed: [fn(&mut AnswerRecord); 4] = [
        |r| r.receipt.receipt.fee_micro_usd = 1,
        |r| r.receipt.receipt.sequence = 1,
        |r| r.receipt.domain.chain_id = 1,
        |r| r.receipt.receipt.provider = NodeAddress::ZERO,
    ];
    for change in signed {
        let mut r = record();
        change(&mut r);
        assert!(matches!(r.broken_bindings()[0], BindingError::Signature(_)));
    }
}

#[test]
fn signatures_have_one_accepted_form() {
    let good = record().receipt;
    assert!(good.verify().is_ok());
    let bytes = *good.signature.as_bytes();
    let with = |b: [u8; 65]| SignedReceipt { signature: SignatureBytes::from_bytes(b), ..good.clone() };
    for v in [0, 1, 26, 29, 37, 255] {
        let mut b = bytes;
        b[64] = v;
        assert!(with(b).verify().is_err(), "v = {v}");
    }
    // The same point with the other s: valid mathematically, refused here.
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    let n = U256::from_str_radix(order, 16).unwrap();
    let mut b = bytes;
    b[32..64].copy_from_slice(&(n - U256::from_be_slice(&bytes[32..64])).to_be_bytes::<32>());
    b[64] = 55 - b[64];
    assert!(with(b).verify().is_err());
    assert!(with([0; 65]).verify().is_err());
    assert!(with([255; 65]).verify().is_err());
}

#[test]
fn records_survive_json_and_canonical_bytes() {
    let r = record();
    let json = serde_json::to_string(&r).unwrap();
    assert_eq!(serde_json::from_str::<AnswerRecord>(&json).unwrap(), r);
    assert!(serde_json::from_str::<AnswerRecord>(&json.replacen('{', "{\"more\":1,", 1)).is_err());
    assert!(serde_json::from_str::<AnswerRecord>(&json.replace("assay-answer/2", "assay-answer/1")).is_err());
    let bytes = r.to_canonical_bytes();
    assert_eq!(AnswerRecord::from_canonical_bytes(&bytes).unwrap(), r);
}

proptest! {
    #[test]
    fn changed_bytes_never_panic_and_never_decode_to_the_same_record(
        at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let r = record();
        let mut bytes = r.to_canonical_bytes();
        let i = at.index(bytes.len());
        bytes[i] ^= 1 << bit;
        if let Ok(other) = AnswerRecord::from_canonical_bytes(&bytes) {
            prop_assert_ne!(&other, &r);
            prop_assert_eq!(other.to_canonical_bytes(), bytes);
            let _ = other.broken_bindings();
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut tagged = vec![14u8];
        tagged.extend(b"assay/answer/2");
        tagged.extend(&bytes);
        let _ = AnswerRecord::from_canonical_bytes(&tagged);
        let _ = AnswerRecord::from_canonical_bytes(&bytes);
        let _ = Request::from_canonical_bytes(&bytes);
    }
}
