//! What a model root says of text beside the tokenizer, and how anyone who knows the root can be shown it.
//!
//! Invariant: what [`TextOpening::verified`] gives stands under the root. It says which ids end an answer and how a conversation is rendered; whether an answer
//! was rendered so, only who has the tokenizer can tell.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use crate::id::{Hash, ModelRoot};
use crate::merkle::{self, Proof};

/// Longest chat template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// Most ids that end an answer.
pub const END_TOKENS_MAX: usize = 64;
/// Which of a root's leaves it is.
const INDEX: u64 = 2;

/// How text becomes ids, beside the tokenizer itself.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextModel {
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// Whether text prompts begin with it.
    pub add_bos: bool,
    /// Ids that end an answer.
    pub end_tokens: Vec<u32>,
    /// Jinja template that renders a conversation.
    pub chat_template: String,
    /// Whether the template came with the model; otherwise it joins the messages.
    pub has_chat_template: bool,
}

impl Canonical for TextModel {
    const TAG: &'static str = "assay/text/1";
}

/// A leaf of a model root: a name, and the hash of what has it.
pub fn component(name: &str, hash: &Hash) -> Hash {
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    merkle::leaf(&[&[length], name.as_bytes(), hash.as_bytes()].concat())
}

/// Why a text model is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextOpeningError {
    /// It is longer than any model's.
    #[error(
        "it has more than {END_TOKENS_MAX} end tokens, or a chat template above {TEMPLATE_BYTES_MAX} bytes"
    )]
    Limit,
    /// It is another model's, or nobody's.
    #[error("it does not stand under {root}")]
    Root {
        /// Under which it should.
        root: ModelRoot,
    },
}

/// A model's text model, with its place under the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextOpening {
    /// What is shown.
    pub text: TextModel,
    /// The way to the root.
    pub proof: Proof,
}

impl TextOpening {
    /// The opening from the leaves of a root.
    pub fn of(text: &TextModel, leaves: &[Hash]) -> Option<TextOpening> {
        let proof = merkle::prove(leaves, usize::try_from(INDEX).ok()?)?;
        Some(TextOpening { text: text.clone(), proof })
    }

    /// The text model, if it is that of `root`.
    pub fn verified(self, root: ModelRoot) -> Result<TextModel, TextOpeningError> {
        let TextOpening { text, proof } = self;
        if text.end_tokens.len() > END_TOKENS_MAX || text.chat_template.len() > TEMPLATE_BYTES_MAX {
            return Err(TextOpeningError::Limit);
        }
        let leaf = component("text", &text.canonical_hash());
        let stands =
            proof.index == INDEX && merkle::verify(&Hash::from_bytes(*root.as_bytes()), leaf, &proof);
        if stands { Ok(text) } else { Err(TextOpeningError::Root { root }) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::keccak::keccak256;

    fn text() -> TextModel {
        TextModel {
            bos: Some(1),
            add_bos: true,
            end_tokens: vec![2, 7],
            chat_template: "{{ messages }}".into(),
            has_chat_template: true,
        }
    }

    #[test]
    fn what_stands_under_the_root_is_believed_and_nothing_else() {
        let other = |name: &str| component(name, &keccak256(&[name.as_bytes()]));
        let mut leaves =
            vec![other("profile"), other("program"), other("text"), other("tokenizer"), other("tensor")];
        leaves[2] = component("text", &text().canonical_hash());
        let root = ModelRoot::from_bytes(*merkle::root(leaves.iter().copied()).as_bytes());
        let opening = TextOpening::of(&text(), &leaves).unwrap();
        assert_eq!(opening.clone().verified(root), Ok(text()));
        let refused = Err(TextOpeningError::Root { root });
        let mut more = opening.clone();
        more.text.end_tokens.push(9);
        assert_eq!(more.verified(root), refused);
        let mut elsewhere = opening.clone();
        elsewhere.proof = merkle::prove(&leaves, 3).unwrap();
        assert_eq!(elsewhere.verified(root), refused);
        let mut long = opening.clone();
        long.text.chat_template = "x".repeat(TEMPLATE_BYTES_MAX + 1);
        assert_eq!(long.verified(root), Err(TextOpeningError::Limit));
        // The same leaf at another place is another component.
        leaves.swap(2, 3);
        let root = ModelRoot::from_bytes(*merkle::root(leaves.iter().copied()).as_bytes());
        let moved = TextOpening { text: text(), proof: merkle::prove(&leaves, 3).unwrap() };
        assert_eq!(moved.verified(root), Err(TextOpeningError::Root { root }));
        assert!(opening.verified(root).is_err());
    }
}
