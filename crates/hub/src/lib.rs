//! Models that stay available, arrive fast and cannot be altered: a store of blobs named by their BLAKE3, their transfer between
//! many hosts, and who says what a name means.
//!
//! Nothing here executes a model or links what does. What comes from elsewhere is verified tile by tile while it arrives: bytes
//! that are not the named blob's are never stored.

pub mod blob;
pub mod catalogue;
pub mod cold;
pub mod content;
mod crew;
pub mod cut;
pub mod discovery;
pub mod erasure;
pub mod exchange;
pub mod fetch;
pub mod inbox;
pub mod keeping;
pub mod lasting;
pub mod limits;
pub mod name;
pub mod outboard;
pub mod peer;
pub mod rate;
pub mod release;
pub mod replication;
pub mod server;
pub mod sources;
pub mod store;
pub mod tile_set;
