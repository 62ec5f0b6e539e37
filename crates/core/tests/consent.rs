//! The client's consent under a request's hash: golden values, what must be rejected, and properties over any request.
#![allow(clippy::unwrap_used)]

use alloy_primitives::B256;
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_core::answer::AnswerRecord;
use assay_core::canonical::Canonical;
use assay_core::consent::{Consent, EMBEDDING_REQUEST_LEAVES, REQUEST_LEAVES, WithheldError, WithheldRecord};
use assay_core::embedding::{EmbeddingInput, EmbeddingRequest};
use assay_core::id::{
    ChannelId, DigestRoot, Hash, ModelRoot, NodeAddress, Nonce, SignatureBytes, TranscriptRoot,
};
use assay_core::merkle::Proof;
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_core::request::{Message, Prompt, Request, Role, Sampling};
use proptest::prelude::*;

const SECRET: &str = "the prompt that nobody is to see";

fn request(audit: Consent) -> Request {
    Request {
        model: ModelRoot::from_bytes([1; 32]),
        prompt: Prompt::Chat { messages: vec![Message::text(Role::User, SECRET)], tools: vec![] },
        sampling: Sampling { seed: Some(5), ..Sampling::GREEDY },
        max_tokens: 3,
        stop: vec!["\n".into()],
        choice: 0,
        guide: None,
        logprobs: None,
        audit,
    }
}

fn embedding(audit: Consent) -> EmbeddingRequest {
    let inputs = vec![EmbeddingInput::Text(SECRET.into()), EmbeddingInput::Tokens(vec![7, 8])];
    EmbeddingRequest {
        model: ModelRoot::from_bytes([1; 32]),
        inputs,
        dimensions: None,
        truncate: true,
        audit,
    }
}

fn withheld(request: &Request) -> WithheldRecord {
    let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    let receipt = Receipt {
        provider: NodeAddress::from_bytes(key.address().into_array()),
        sequence: 9,
        model_root: request.model,
        request_hash: request.hash(),
        transcript_root: TranscriptRoot::ZERO,
        digest_root: DigestRoot::ZERO,
        prompt_tokens: 130,
        completion_tokens: 3,
        fee_micro_usd: 5,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::ZERO,
        epoch: 0,
    };
    let domain = Domain::DEVELOPMENT;
    let hash = B256::from(*receipt.signing_hash(&domain).as_bytes());
    let signature = SignatureBytes::from_bytes(key.sign_hash_sync(&hash).unwrap().as_bytes());
    let receipt = SignedReceipt { receipt, domain, signature };
    WithheldRecord { receipt, proof: request.consent_proof() }
}

fn lines(hash: &str, proof: &Proof) -> Vec<String> {
    let at = format!("{} of {}", proof.index, proof.count);
    [hash.to_owned(), at].into_iter().chain(proof.path.iter().map(Hash::to_string)).collect()
}

#[test]
fn golden_openings_do_not_move() {
    let mut got = Vec::new();
    for consent in [Consent::Given, Consent::Withheld] {
        let (answer, vectors) = (request(consent), embedding(consent));
        got.extend(lines(&answer.hash().to_string(), &answer.consent_proof()));
        got.extend(lines(&vectors.hash().to_string(), &vectors.consent_proof()));
    }
    let want = include_str!("consent.golden").trim_end();
    assert_eq!(
        got.join("\n"),
        want,
        "the form of request hashes changed: that breaks every receipt ever given"
    );
}

#[test]
fn what_is_shown_of_a_withheld_record_has_nothing_of_the_prompt() {
    let shown = withheld(&request(Consent::Withheld));
    assert_eq!(shown.check(), Ok(()));
    let bytes = shown.to_canonical_bytes();
    assert_eq!(WithheldRecord::from_canonical_bytes(&bytes), Ok(shown));
    assert!(bytes.windows(6).all(|window| !SECRET.as_bytes().windows(6).any(|part| part == window)));
}

#[test]
fn a_consent_that_was_not_withheld_cannot_be_shown_to_be() {
    let given = request(Consent::Given);
    let (hash, model) = (given.hash(), given.model);
    assert!(Consent::Given.is_shown(&given.consent_proof(), &hash, model));
    let private = request(Consent::Withheld);
    // What a provider could show of it: its own place, that of the same request without consent, and other shapes of either.
    let mut rejected =
        vec![given.consent_proof(), private.consent_proof(), embedding(Consent::Withheld).consent_proof()];
    let shapes: [fn(&mut Proof); 7] = [
        |p| p.index = 1,
        |p| p.count = REQUEST_LEAVES + 1,
        |p| p.count = EMBEDDING_REQUEST_LEAVES,
        |p| p.count = 0,
        |p| p.path.clear(),
        |p| p.path.push(Hash::ZERO),
        |p| p.path.reverse(),
    ];
    for shape in shapes {
        for request in [&given, &private] {
            let mut proof = request.consent_proof();
            shape(&mut proof);
            assert!(!Consent::Given.is_shown(&proof, &hash, model), "{proof:?}");
            rejected.push(proof);
        }
    }
    for proof in &rejected {
        assert!(!Consent::Withheld.is_shown(proof, &hash, model), "{proof:?}");
        let shown = WithheldRecord { proof: proof.clone(), ..withheld(&given) };
        assert_eq!(shown.check(), Err(WithheldError::Opening));
    }
    // Nor under the hash of another model, or by somebody who did not sign.
    assert!(!Consent::Withheld.is_shown(&private.consent_proof(), &private.hash(), ModelRoot::ZERO));
    let mut unsigned = withheld(&private);
    unsigned.receipt.receipt.fee_micro_usd += 1;
    assert!(matches!(unsigned.check(), Err(WithheldError::Signature(_))));
}

#[test]
fn a_request_is_read_from_its_leaves_with_its_consent() {
    for consent in [Consent::Given, Consent::Withheld] {
        let request = request(consent);
        let items = request.items();
        let parts: Vec<&[u8]> = items.iter().map(Vec::as_slice).collect();
        assert_eq!(Request::from_items(&parts), Some(request));
        let mut other = items.clone();
        *other[0].last_mut().unwrap() = 2;
        let parts: Vec<&[u8]> = other.iter().map(Vec::as_slice).collect();
        assert_eq!(Request::from_items(&parts), None, "a byte that is no consent");
        other[0].pop();
        let parts: Vec<&[u8]> = other.iter().map(Vec::as_slice).collect();
        assert_eq!(Request::from_items(&parts), None, "none at all");
    }
    // The version before knew none, and is another kind.
    let mut old = request(Consent::Given).to_canonical_bytes();
    let tag = Request::TAG.len();
    old[tag] = b'1';
    assert!(Request::from_canonical_bytes(&old).is_err());
    assert!(AnswerRecord::TAG.ends_with("/2"));
}

proptest! {
    /// One hash, one consent; and the proof of a request is of no use for any other.
    #[test]
    fn consents_are_bound(
        text in "\\PC{0,40}", other in "\\PC{0,40}", max_tokens in any::<u32>(), seed in any::<Option<u64>>(), given in any::<bool>(),
    ) {
        let consent = if given { Consent::Given } else { Consent::Withheld };
        let opposite = if given { Consent::Withheld } else { Consent::Given };
        let one = |text: &str, audit| Request {
            prompt: Prompt::Text(text.into()),
            max_tokens,
            sampling: Sampling { seed, ..Sampling::GREEDY },
            ..request(audit)
        };
        let asked = one(&text, consent);
        prop_assert!(consent.is_shown(&asked.consent_proof(), &asked.hash(), asked.model));
        prop_assert!(!opposite.is_shown(&asked.consent_proof(), &asked.hash(), asked.model));
        prop_assert_ne!(one(&text, opposite).hash(), asked.hash());
        // The rest of the tree is the same, whatever the consent is.
        prop_assert_eq!(one(&text, opposite).consent_proof(), asked.consent_proof());
        if text != other {
            let else_asked = one(&other, consent);
            prop_assert!(!consent.is_shown(&else_asked.consent_proof(), &asked.hash(), asked.model));
        }
        let vectors = |audit| EmbeddingRequest { inputs: vec![EmbeddingInput::Text(text.clone())], ..embedding(audit) };
        let v = vectors(consent);
        prop_assert!(consent.is_shown(&v.consent_proof(), &v.hash(), v.model));
        prop_assert!(!opposite.is_shown(&v.consent_proof(), &v.hash(), v.model));
        prop_assert!(!opposite.is_shown(&vectors(opposite).consent_proof(), &v.hash(), v.model));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), count in any::<u64>(), index in any::<u64>(), path in 0usize..70) {
        let mut tagged = vec![16u8];
        tagged.extend(b"assay/withheld/1");
        tagged.extend(&bytes);
        let _ = WithheldRecord::from_canonical_bytes(&tagged);
        let proof = Proof { index, count, path: vec![Hash::ZERO; path] };
        let asked = request(Consent::Given);
        prop_assert!(!Consent::Withheld.is_shown(&proof, &asked.hash(), asked.model));
        let refused = WithheldRecord { proof, ..withheld(&asked) }.check();
        prop_assert_eq!(refused, Err(WithheldError::Opening));
    }
}
