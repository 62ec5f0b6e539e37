//! The layer-shard audit: an answer checked layer by layer, by auditors who hold one layer of the model each.
//!
//! A program falls into layers that hand on one value ([`assay_engine::program::layers`]). The provider tells the *state* at each
//! boundary between them: that value at all positions ([`Boundary`]), with a commitment to it. Whoever holds a layer's tensors
//! executes the layer again over the state before it, for all tokens, attention included, and compares every number with the
//! state after it ([`check_shard`]). The first layer begins with the ids; the last ends with the execution digests and the ids
//! that were answered.
//!
//! **Invariant.** Layers that all hold, each begun with what the one before handed on, are one execution of the whole model:
//! [`join`] says so only if every layer was checked once and the commitments meet, and then its verdict is that of a full check
//! ([`crate::reexecution`]). A wrong number in a state fails the layer that should have made it, at its position.
//!
//! **What a layer's auditor cannot see**: the other layers; between the first and the last layer not even the ids. States are as
//! private as the text that they are made of.
//!
//! It refuses to judge what it was not given (an error, not a verdict), and to call an answer checked while a layer is not. States,
//! records and verdicts are foreign: they never panic here.

mod boundary;
mod check;
#[cfg(feature = "native")]
mod join;

pub use boundary::{Boundary, boundaries, boundary};
pub use check::{AnswerHashes, Difference, Evidence, Shard, ShardError, ShardVerdict, check_shard};
#[cfg(feature = "native")]
pub use join::join;
