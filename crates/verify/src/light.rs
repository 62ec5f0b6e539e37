//! The light audit: whole tokens of an answer are checked by someone who does not have the weights.
//!
//! The verifier holds a [`Key`] of a few megabytes: for each matrix `W` a secret random combination `rᵀW` of its rows, and everything of
//! the model that is small. The provider first commits to a trace of its execution ([`crate::trace`]); a beacon that comes later
//! draws a few positions ([`Challenge::draw`]); the provider opens them: the accumulators of every matrix product at these
//! positions, and the keys and values of all positions before ([`Opening`], made by a [`Prover`]). The [`Checker`] then executes these tokens
//! with the engine's own kernels, taking the accumulators as they were opened:
//!
//! - every product is checked against the key ([`crate::freivalds`]: a wrong one passes with a chance below 2^-60);
//! - everything that is no product (norms, rotation, attention, gates, sums, quantisation, sampling) is computed, not believed;
//! - embedded rows are checked against Merkle roots in the key;
//! - keys, values and hidden vectors come out as they were committed, and the committed hidden vectors are those of the
//!   receipt's digests;
//! - the token that was answered is the one that the logits, the request and the seed choose.
//!
//! **Invariant.** An answer whose opened tokens were computed otherwise than the model computes them, from the committed keys and values,
//! fails but for a chance of 2^-60 per product. A key belongs to one model; a checker refuses receipts of another.
//!
//! **What it cannot see.** Positions that were not drawn: their keys and values are the committed ones, right or wrong, so a light audit
//! of `k` of `n` tokens finds a provider that computed one token wrongly with a chance of about `k/n`, and one that computed them all wrongly with
//! certainty. Whether the trace was committed before the beacon: the caller knows that. Masks of guides, unless a tokenizer or the masks are
//! given.
//!
//! **Secrecy.** Who knows a key makes accumulators that it believes: a key is secret until its epoch is over. Its commitment is published
//! before, its seed after ([`Key::commitment`], [`Key::reveal`]); from the seed anyone with the model makes the same key and checks
//! the verdicts again.
//!
//! It refuses to hold weights, to read a clock, a file or a network, and to call a provider wrong for what is the verifier's own
//! (a key of another model, too short a key): that is an error, not a verdict.

mod check;
mod draw;
pub(crate) mod form;
mod key;
mod open;
mod opening;
mod watch;

pub use check::{Audit, Checker, Cost, Known, Refusal};
pub use draw::Challenge;
pub use form::Roots;
pub use key::{Key, KeyError, Model, Secret, Seed};
pub use open::{Fed, Prover};
pub use opening::{Block, Int8s, Kept, Opening, Packed, Row, Token};
pub use watch::Stage;
