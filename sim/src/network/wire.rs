//! Who takes part, what they say to each other, and what happens when.

use std::fmt;

use assay_core::answer::AnswerRecord;
use assay_core::id::{Hash, Nonce};
use assay_core::offer::SignedOffer;
use assay_core::payment::Payment;
use assay_core::request::Request;
use assay_node::auditor::BatchId;

use super::auditor::Leaves;
use super::faults::Fault;
use super::provider::Refused;

/// A participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// Everybody's node of the chain.
    Chain,
    Client(usize),
    Gateway,
    Provider(usize),
    Auditor(usize),
    Host(usize),
    /// Somebody who knows what some receipts should be, and doubts digests that are not of them.
    Canary,
    /// Somebody who doubts what is right.
    Griefer,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Chain => f.write_str("chain"),
            Who::Client(i) => write!(f, "client-{i}"),
            Who::Gateway => f.write_str("gateway"),
            Who::Provider(i) => write!(f, "provider-{i}"),
            Who::Auditor(i) => write!(f, "auditor-{i}"),
            Who::Host(i) => write!(f, "host-{i}"),
            Who::Canary => f.write_str("canary"),
            Who::Griefer => f.write_str("griefer"),
        }
    }
}

/// A request of a client, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ask {
    pub(super) client: usize,
    pub(super) number: u64,
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.client, self.number)
    }
}

/// What an auditor asks a provider for.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Leaves,
    Records(Vec<u64>),
}

/// A leaf of a batch, with its path.
#[derive(Clone, Debug)]
pub(super) struct ShownLeaf {
    pub(super) sequence: u64,
    pub(super) leaf: Hash,
    pub(super) path: Vec<Hash>,
}

/// What somebody says to somebody.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// A client's request; `again` says that it was sent before.
    Request {
        ask: Ask,
        again: bool,
        request: Request,
        nonce: Nonce,
    },
    /// Its answer, whole, or that there is none.
    Answered {
        ask: Ask,
        record: Option<Box<AnswerRecord>>,
    },
    /// What a provider offers.
    WantOffer,
    Offer {
        offer: Box<SignedOffer>,
    },
    /// One attempt of a gateway to have a request answered.
    Order {
        attempt: u64,
        payment: Box<Payment>,
        request: Request,
        nonce: Nonce,
    },
    /// It is taken back.
    Cancel {
        attempt: u64,
    },
    /// What came of it.
    Refused {
        attempt: u64,
        why: Box<Refused>,
    },
    Record {
        attempt: u64,
        record: Box<AnswerRecord>,
    },
    /// What an auditor wants of a batch.
    Audit {
        batch: BatchId,
        wanted: Wanted,
    },
    Leaves {
        batch: BatchId,
        leaves: Option<Leaves>,
    },
    Records {
        batch: BatchId,
        records: Vec<(u64, Option<Box<AnswerRecord>>)>,
    },
    /// What whoever holds receipts wants of a batch.
    WantLeaves {
        batch: BatchId,
        numbers: Vec<u64>,
    },
    ShownLeaves {
        batch: BatchId,
        leaves: Vec<ShownLeaf>,
    },
}

impl Message {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Message::Request { .. } => "request",
            Message::Answered { .. } => "answered",
            Message::WantOffer => "want-offer",
            Message::Offer { .. } => "offer",
            Message::Order { .. } => "order",
            Message::Cancel { .. } => "cancel",
            Message::Refused { .. } => "refused",
            Message::Record { .. } => "record",
            Message::Audit { .. } => "audit",
            Message::Leaves { .. } => "leaves",
            Message::Records { .. } => "records",
            Message::WantLeaves { .. } => "want-leaves",
            Message::ShownLeaves { .. } => "shown-leaves",
        }
    }
}

/// What a participant has set itself to be woken for.
#[derive(Clone, Debug)]
pub(super) enum Alarm {
    /// A round of a daemon.
    Round,
    /// A client's next request.
    Next,
    /// A client has waited for an answer for so long.
    Late { ask: Ask, tries: u32 },
    /// The gateway reads offers and what the ledger says of providers.
    Look,
    /// An attempt has had the time that a provider is waited for before another one is asked.
    Patience { attempt: u64 },
    /// An attempt has had all its time.
    Silence { attempt: u64 },
    /// A lane may be free now.
    Lane { attempt: u64 },
    /// A provider has executed a job.
    Executed { job: u64 },
    /// What was stored is said.
    Say { job: u64 },
    /// An auditor has waited for what it asked for.
    Unheard { batch: BatchId },
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A block.
    Block,
    /// A message arrives.
    Arrives { from: Who, to: Who, message: Box<Message> },
    /// An alarm of a process that was started as the so manieth of its name.
    Rings { who: Who, life: u32, alarm: Alarm },
    /// Something goes wrong, or ends to.
    Fault(Fault),
}

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Runs,
    /// It stands still: what arrives waits for it.
    Paused,
    /// What arrives is lost.
    Dead,
}

/// A process.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) state: State,
    /// How often it was started.
    pub(super) life: u32,
    /// How far its clock is ahead, in milliseconds.
    pub(super) skew_ms: i64,
    /// What happened while it stood still.
    pub(super) missed: Vec<Event>,
}

impl Process {
    pub(super) fn new(skew_ms: i64) -> Process {
        Process { state: State::Runs, life: 1, skew_ms, missed: vec![] }
    }
}
