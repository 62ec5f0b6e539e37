//! What a host tells whoever watches it, step by step.

use std::sync::Arc;

use assay_core::id::{Hash, NodeAddress};
use assay_hub::blob::BlobHash;

/// What happened in a round.
#[derive(Debug)]
pub enum Event {
    /// What a publisher on this machine left is taken in.
    Taken {
        /// The release's id.
        id: Hash,
        /// Its artifact.
        blob: BlobHash,
    },
    /// A release was heard of.
    Learnt {
        /// Its id.
        id: Hash,
    },
    /// A host could not be asked.
    Silent {
        /// Its URL.
        host: String,
        /// Why.
        reason: String,
    },
    /// An artifact arrives.
    Arriving {
        /// Which.
        blob: BlobHash,
        /// Bytes that are there and verified.
        verified: u64,
        /// Bytes of it.
        size: u64,
    },
    /// An artifact is kept from now on.
    Kept {
        /// Which.
        blob: BlobHash,
        /// Bytes of it.
        size: u64,
    },
    /// An artifact was let go.
    Dropped {
        /// Which.
        blob: BlobHash,
        /// Bytes that the store became less.
        freed: u64,
    },
    /// Known hosts keep too little of a release to restore it.
    Lost {
        /// Which.
        blob: BlobHash,
    },
    /// The ledger knows from now on that this host keeps an artifact.
    Pledged {
        /// Which.
        blob: BlobHash,
    },
    /// A beacon's question was answered.
    Answered {
        /// About which artifact.
        blob: BlobHash,
        /// For which epoch.
        epoch: u64,
        /// With which chunk.
        chunk: u64,
    },
    /// Another host's silence was shown.
    Shown {
        /// Whose.
        host: NodeAddress,
        /// About which epoch.
        epoch: u64,
    },
    /// What a provider said that it fetched from this host is counted on the ledger from now on.
    Counted {
        /// Who fetched.
        downloader: NodeAddress,
        /// How much since ever.
        bytes: u64,
    },
    /// Something failed; the next round tries again.
    Failed {
        /// What was tried.
        what: String,
        /// Stable code.
        code: &'static str,
        /// Why.
        reason: String,
    },
}

impl Event {
    /// A word for its kind, by which events are counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Taken { .. } => "taken",
            Event::Learnt { .. } => "learnt",
            Event::Silent { .. } => "silent",
            Event::Arriving { .. } => "arriving",
            Event::Kept { .. } => "kept",
            Event::Dropped { .. } => "dropped",
            Event::Lost { .. } => "lost",
            Event::Pledged { .. } => "pledged",
            Event::Answered { .. } => "answered",
            Event::Shown { .. } => "shown",
            Event::Counted { .. } => "counted",
            Event::Failed { .. } => "failed",
        }
    }
}

/// Who hears of events.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;
