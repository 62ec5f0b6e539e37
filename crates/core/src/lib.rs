//! The vocabulary of Assay: identities, canonical bytes, Merkle trees, requests, transcripts, receipts and verdicts.
//!
//! Everything that is hashed, signed or sent between parties has its one definition here. No I/O, no async, no clock, no
//! randomness and no keys: the same code runs in the node, the verifier, the browser and beside a contract.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::as_conversions,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

pub mod answer;
pub mod authorization;
pub mod canonical;
pub mod consent;
pub mod digest;
pub mod embedding;
pub mod id;
pub mod keccak;
pub mod limits;
pub mod merkle;
pub mod offer;
pub mod payment;
pub mod price;
pub mod receipt;
pub mod request;
pub mod signature;
pub mod text;
pub mod transcript;
pub mod verdict;
