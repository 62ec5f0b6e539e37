//! Disputes: two parties, a referee, and at the end one operation that settles who is wrong.
//!
//! The *defender* signed a receipt. It claims a trace for it, from the roots down; the *challenger*, who executed the same
//! answer, picks at every level the first node that it has another hash for. So everything before the number that they
//! reach is the same for both, and that number follows from it by a micro-step ([`crate::microstep`]), which the referee
//! computes from openings under the claimed trace, the model root and the receipt. Only the defender claims; the challenger
//! needs no trust and no deposit of hashes.
//!
//! | round | the defender claims | the challenger picks |
//! |---|---|---|
//! | 1 | carries of all blocks: the trace root | a block |
//! | 2, 3 | nodes over its steps; at last the roots of their parts | a part of a step |
//! | 4, 5 | nodes over the part's leaves | a leaf |
//! | 6 | the leaf's numbers | a number; for a fold, the accumulator after every run |
//! | end | the openings of one micro-step | |
//!
//! So many rounds are enough for 4096 positions, 16 384 steps and parts of 65 536 leaves; larger ones take more. When the number
//! is a fold, the challenger's accumulators are the claim and the defender refutes one run of it: that saves a round.
//!
//! What a block carries was claimed before its steps were. If all of these are as they should be and what it carries is not, the
//! challenger shows it from the carried steps ([`Pick::Carry`]).
//!
//! The trace must be the receipt's. The referee binds it at three places: tokens are read from the transcript; the chosen
//! token must be the transcript's; and the challenger may ask instead that a block's hidden vectors be those of its digest.
//!
//! Whoever sends a message that is malformed, that contradicts what it said before, or none in time, loses. An honest
//! defender's openings always hold, and an honest challenger's pick always leads to a number that does not follow: neither
//! can lose, whatever the other does.
//!
//! Nothing here knows a clock or a network. [`Referee`] is what the ledger's contract computes; it reads only messages.

use assay_core::canonical::Canonical;
use assay_core::id::{DigestRoot, Hash, ModelRoot, Nonce, RequestHash, TranscriptRoot};
use assay_core::receipt::Receipt;
use assay_core::request::{Terms, sampler_seed};
use assay_engine::artifact::opening::ModelOpening;
use borsh::{BorshDeserialize, BorshSerialize};

pub mod calldata;
pub mod cover;
mod descent;
pub mod heard;
pub mod parties;
pub mod proof;
mod referee;
mod situated;

pub use descent::{Descent, Tree};
pub use proof::{DigestProof, Proof};
pub use referee::{Referee, Stage};

/// What a receipt says of its execution.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Statement {
    /// The model.
    pub model: ModelRoot,
    /// The request.
    pub request: RequestHash,
    /// The answer.
    pub transcript: TranscriptRoot,
    /// The execution digests.
    pub digests: DigestRoot,
    /// Nonce of the sampler's seed.
    pub nonce: Nonce,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of the answer.
    pub output: u32,
}

impl Statement {
    /// What a receipt of an answer says.
    pub fn of(receipt: &Receipt) -> Statement {
        Statement {
            model: receipt.model_root,
            request: receipt.request_hash,
            transcript: receipt.transcript_root,
            digests: receipt.digest_root,
            nonce: receipt.client_nonce,
            prompt: receipt.prompt_tokens,
            output: receipt.completion_tokens,
        }
    }

    /// Positions executed: all tokens but the last of the answer.
    pub fn positions(&self) -> u32 {
        self.prompt.saturating_add(self.output).saturating_sub(1)
    }

    /// Seed of the sampler.
    pub fn seed(&self) -> [u8; 32] {
        sampler_seed(self.nonce, self.request, self.model)
    }
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// Who signed the receipt.
    Defender,
    /// Who says that it is wrong.
    Challenger,
}

impl Party {
    /// The other one.
    pub fn other(self) -> Party {
        match self {
            Party::Defender => Party::Challenger,
            Party::Challenger => Party::Defender,
        }
    }
}

/// What the defender says.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[expect(clippy::large_enum_variant, reason = "messages come one at a time")]
pub enum Claim {
    /// Nodes over the carries of all blocks, and the facts of the model's program.
    Trace {
        /// Opens the program's numbers.
        facts: ModelOpening,
        /// The nodes.
        nodes: Vec<Hash>,
    },
    /// Nodes below the one picked; over the steps of a block if that was picked.
    Nodes(Vec<Hash>),
    /// The same where the nodes are the steps themselves: of each, the roots of its parts.
    Steps(Vec<Vec<Hash>>),
    /// Nodes over the leaves of the picked part.
    Part {
        /// Opens the operation; nothing for the choice of a token.
        op: Option<ModelOpening>,
        /// How tokens are chosen; only for the choice of a token.
        terms: Option<Terms>,
        /// The nodes.
        nodes: Vec<Hash>,
    },
    /// The numbers of the leaf picked, in their canonical bytes.
    Leaf(Vec<u8>),
    /// That the number picked follows, or that a run of the challenger's accumulators does not.
    Proof(Box<Proof>),
    /// That the hidden vectors of a block are those of its digest.
    Digest(Box<DigestProof>),
}

/// What the challenger says.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Pick {
    /// One of the nodes, by its place in the list.
    Node(u32),
    /// A part of one of the steps.
    Part {
        /// The step's place in the list.
        step: u32,
        /// Which part.
        part: u8,
    },
    /// A number of the leaf.
    Number {
        /// Its place in the leaf.
        index: u16,
        /// For a fold, what the accumulator is after every run; the last is the number as it should be.
        partials: Vec<i64>,
    },
    /// Instead of a block: that the digest of this block is of other hidden vectors.
    Digest(u32),
    /// Instead of a step: that what the block carries is not what its steps made. In order the commitments of the carried steps and, wherever
    /// there is none of these below a node, that node: together they lead to the root over the steps.
    Carry(Vec<Hash>),
}

/// Either.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[expect(clippy::large_enum_variant, reason = "messages come one at a time")]
pub enum Message {
    /// By the defender.
    Claim(Claim),
    /// By the challenger.
    Pick(Pick),
}

impl Canonical for Message {
    const TAG: &'static str = "assay/dispute/1";
}

/// How a dispute ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Who is right.
    pub winner: Party,
    /// Why.
    pub reason: Reason,
}

/// Why a dispute ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The loser was silent.
    Timeout,
    /// The loser sent something that has no meaning here.
    Malformed,
    /// What the loser sent is not under what it, or the receipt, said before.
    Contradiction,
    /// The number follows.
    StepHolds,
    /// The number does not follow, or was not shown to.
    StepFails,
    /// The challenger's accumulators do not follow.
    PartialsFail,
    /// The digest is that of the hidden vectors.
    DigestHolds,
    /// The digest is not, or was not shown to be.
    DigestFails,
}

impl Reason {
    /// Stable code.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Timeout => "timeout",
            Reason::Malformed => "malformed",
            Reason::Contradiction => "contradiction",
            Reason::StepHolds => "step_holds",
            Reason::StepFails => "step_fails",
            Reason::PartialsFail => "partials_fail",
            Reason::DigestHolds => "digest_holds",
            Reason::DigestFails => "digest_fails",
        }
    }
}
