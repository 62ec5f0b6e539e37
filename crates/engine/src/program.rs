//! A model as a program of integer operations (semantics 5 and 6), and the check that makes a foreign program safe to run.
//!
//! A [`Program`] is a straight line of [`Op`]s executed for every token of a sequence. Each operation makes one value;
//! operations name values by the index of the operation that made them. Tokens meet only in [`Op::Attend`], through its
//! KV cache, and in [`Op::Pool`]. A program says what is computed, never how: the engine, the reference and the verifier
//! are three readers of it.

use assay_core::canonical::Canonical;
use borsh::{BorshDeserialize, BorshSerialize};

use crate::semantics::scale::Scale;

pub mod check;
pub mod layers;

pub use check::{Checked, ProgramError, ValueType};

/// Index into [`Program::tensors`].
pub type TensorId = u16;
/// Index of the operation that made a value.
pub type ValueId = u16;

/// Entries of an activation table: values at 0, 1/64, … 16 inclusive.
pub const TABLE_LEN: usize = 1025;
/// Fraction bits of rotary tables: 1.0 is 2^14.
pub const ROTARY_FRAC: u32 = 14;
/// Fraction bits of logits, and of what activations and soft caps read.
pub const LOGIT_FRAC: u8 = 16;
/// Numbers of a vector constant stay below this size, so that a product with any 32-bit number is below 2^61.
pub const VECTOR_MAX: i32 = 1 << 30;

/// A model's program.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Program {
    /// Most positions a sequence may have.
    pub context: u32,
    /// Number of token ids; logits have this length.
    pub vocabulary: u32,
    /// Fraction bits of the residual stream.
    pub residual_frac: u8,
    /// The model's constants.
    pub tensors: Vec<Tensor>,
    /// What is done with each token.
    pub ops: Vec<Op>,
    /// What comes out.
    pub head: Head,
}

/// What holds for a whole program: what stands under a model root before its tensors and operations.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Facts {
    /// [`Program::context`].
    pub context: u32,
    /// [`Program::vocabulary`].
    pub vocabulary: u32,
    /// [`Program::residual_frac`].
    pub residual_frac: u8,
    /// [`Program::head`].
    pub head: Head,
    /// How many operations there are.
    pub ops: u16,
    /// [`Program::carried`].
    pub carried: Vec<ValueId>,
}

/// What stands under a model root of an operation: enough to execute it without the rest of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Declared {
    /// The operation.
    pub op: Op,
    /// Type of its value.
    pub made: ValueType,
    /// Whether attention reads its value as values.
    pub attended: bool,
}

/// What a program computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Head {
    /// The next token. Values up to the hidden vector are computed for every token, later ones only where a next token is
    /// chosen.
    Tokens {
        /// The final int8 hidden vector, which execution digests hash.
        hidden: ValueId,
        /// The logits: fixed point with [`LOGIT_FRAC`] fraction bits, one for each token id.
        logits: ValueId,
    },
    /// One vector for a whole sequence.
    Vector {
        /// The pooled vector.
        pooled: ValueId,
    },
}

impl Program {
    /// What holds for all of it.
    pub fn facts(&self) -> Facts {
        let Program { context, vocabulary, residual_frac, head, .. } = *self;
        let ops = u16::try_from(self.ops.len()).unwrap_or(u16::MAX);
        Facts { context, vocabulary, residual_frac, head, ops, carried: self.carried() }
    }

    /// Operations that later tokens or the receipt depend on: keys and values of every attend operation, and the hidden vector;
    /// in rising order.
    pub fn carried(&self) -> Vec<ValueId> {
        let cached = |op: &Op| match op {
            Op::Attend { k, v, .. } => Some([*k, *v]),
            _ => None,
        };
        let mut all: Vec<ValueId> = self.ops.iter().filter_map(cached).flatten().collect();
        if let Head::Tokens { hidden, .. } = self.head {
            all.push(hidden);
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether attention reads a value as values.
    pub fn is_attended(&self, value: ValueId) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Attend { v, .. } if *v == value))
    }

    /// Hidden vector and logits.
    ///
    /// # Panics
    /// When the program makes no tokens: whoever generates has checked [`Program::head`].
    pub fn tokens(&self) -> (ValueId, ValueId) {
        match self.head {
            Head::Tokens { hidden, logits } => (hidden, logits),
            Head::Vector { .. } => panic!("an encoder makes no tokens"),
        }
    }
}

impl Canonical for Program {
    const TAG: &'static str = "assay/program/1";
}

/// Name and shape of a constant.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Tensor {
    /// For people and error messages; unique within a program.
    pub name: String,
    /// Kind and shape.
    pub shape: Shape,
}

/// Kind and shape of a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Shape {
    /// int8 weights with one u16 scale per row: `w[r][c] · scale[r] · 2^-shift`.
    Matrix {
        /// Outputs.
        rows: u32,
        /// Inputs.
        cols: u32,
        /// Binary exponent shared by all rows.
        shift: i16,
    },
    /// [`TABLE_LEN`] values of a rising function with f(-x) = 1 - f(x), as i32 with 16 fraction bits (1.0 is 65 536),
    /// each between 32 768 and 65 536.
    Table,
    /// Cosine and sine per position and pair, i16 with [`ROTARY_FRAC`] fraction bits: `[position][pair][cos, sin]`.
    Rotary {
        /// Positions, at least [`Program::context`].
        positions: u32,
        /// Pairs per head: half the head's size.
        pairs: u32,
    },
    /// Fixed-point numbers, each smaller than [`VECTOR_MAX`]: gains and biases.
    Vector {
        /// How many.
        len: u32,
        /// Fraction bits.
        frac: u8,
    },
}

impl Shape {
    /// Number of weights.
    pub fn parameters(self) -> u64 {
        match self {
            Shape::Matrix { rows, cols, .. } => u64::from(rows) * u64::from(cols),
            Shape::Vector { len, .. } => u64::from(len),
            Shape::Table | Shape::Rotary { .. } => 0,
        }
    }
}

/// Which positions a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Reach {
    /// Those up to its own.
    Past,
    /// The last so many up to its own, at least 1.
    Window(u32),
    /// All of the sequence.
    All,
}

/// `limit · tanh(z / limit)` for fixed-point numbers with [`LOGIT_FRAC`] fraction bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SoftCap {
    /// The limit, with 16 fraction bits: 2^16 to 2^30.
    pub limit: u32,
    /// The logistic table.
    pub table: TensorId,
}

/// How the vectors of a sequence become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Pooling {
    /// The first token's.
    First,
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
}

/// One operation. `x`, `q`, … are values made by earlier operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Op {
    /// The token's row of `table` as fixed point with the program's fraction bits.
    Embed {
        /// A matrix with one row per token id.
        table: TensorId,
    },
    /// `x / rms(x)`: the integers stay, the scale changes.
    RmsNorm {
        /// Fixed point.
        x: ValueId,
        /// Added to the mean square, in units of the square of one unit of `x`.
        epsilon: u64,
    },
    /// int8 numbers from `x[offset..offset + len]`, each of `groups` equal runs with its own scale.
    Quantise {
        /// An integer vector.
        x: ValueId,
        /// First number.
        offset: u32,
        /// How many.
        len: u32,
        /// Number of runs.
        groups: u32,
    },
    /// Matrix times int8 vector.
    MatMul {
        /// The weights.
        weights: TensorId,
        /// An int8 vector with one scale.
        x: ValueId,
    },
    /// Rotates pairs `(i, i + half)` of each head by the position's angles.
    Rotary {
        /// An integer vector.
        x: ValueId,
        /// First number of the first head.
        offset: u32,
        /// Heads, one after the other.
        heads: u32,
        /// Numbers per head, a multiple of 4.
        head_dim: u32,
        /// The angles.
        table: TensorId,
    },
    /// Appends `k` and `v` to cache `layer` and attends to all positions so far with `q`.
    Attend {
        /// int8 queries, one scale per head.
        q: ValueId,
        /// int8 keys, one scale per KV head.
        k: ValueId,
        /// int8 values, one scale per KV head.
        v: ValueId,
        /// Which cache: each number below the count of attend operations, in order.
        layer: u16,
        /// Which positions are seen.
        reach: Reach,
        /// Query heads, a multiple of `kv_heads`.
        heads: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// Numbers per head.
        head_dim: u32,
        /// What a score is multiplied with before it is an exponent of two: log2(e) / sqrt(head_dim).
        scale: Scale,
        /// Bends scores, in units of the exponent of two.
        cap: Option<SoftCap>,
        /// Fraction bits of the result.
        frac: u8,
    },
    /// `act(g) · u` with `act(g) = g · table(g)`, g and u being two runs of `x`.
    Gate {
        /// An integer vector.
        x: ValueId,
        /// First number of g.
        gate: u32,
        /// First number of u.
        up: u32,
        /// Length of each.
        len: u32,
        /// The table: the logistic function for SiLU.
        table: TensorId,
    },
    /// Fixed point plus integers.
    Add {
        /// Fixed point: the result has its fraction bits.
        x: ValueId,
        /// An integer vector of the same length.
        y: ValueId,
    },
    /// `x[offset..offset + len]` as fixed point.
    Fix {
        /// An integer vector.
        x: ValueId,
        /// First number.
        offset: u32,
        /// How many.
        len: u32,
        /// Fraction bits of the result.
        frac: u8,
    },
    /// The position's row of `table` as fixed point with the program's fraction bits.
    Position {
        /// A matrix with one row per position.
        table: TensorId,
    },
    /// Integers plus a constant, as fixed point with the constant's fraction bits.
    Bias {
        /// An integer vector.
        x: ValueId,
        /// A vector of the same length.
        bias: TensorId,
    },
    /// Each of `groups` equal runs over its root mean square, times `gain`, plus `bias`: layer and head norms.
    Normalise {
        /// Fixed point.
        x: ValueId,
        /// Number of runs.
        groups: u32,
        /// Whether the mean of a run is taken off first.
        center: bool,
        /// Added to the mean square, in units of the square of one unit of `x`.
        epsilon: u64,
        /// A vector as long as a run.
        gain: TensorId,
        /// A vector as long as a run, with `frac` fraction bits.
        bias: Option<TensorId>,
        /// Fraction bits of the result.
        frac: u8,
    },
    /// `x · table(x)`, as fixed point with [`LOGIT_FRAC`] fraction bits: an activation that gates itself.
    Activate {
        /// An integer vector.
        x: ValueId,
        /// The table: the normal distribution's for GELU.
        table: TensorId,
    },
    /// The Walsh-Hadamard transform of each run of `block` numbers: sums and differences that spread outliers.
    Hadamard {
        /// An integer vector.
        x: ValueId,
        /// A power of two from 4 to 4096 that divides the length.
        block: u32,
    },
    /// Bends fixed-point numbers with [`LOGIT_FRAC`] fraction bits to stay below a limit.
    Bend {
        /// Fixed point.
        x: ValueId,
        /// The limit.
        cap: SoftCap,
    },
    /// One vector from those of all tokens.
    Pool {
        /// Fixed point.
        x: ValueId,
        /// How.
        pooling: Pooling,
    },
}

impl Op {
    /// What the protocol's list of operations calls it, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "norm",
            Op::Quantise { .. } => "quantise",
            Op::MatMul { .. } => "matmul",
            Op::Rotary { .. } => "rotary",
            Op::Attend { .. } => "attend",
            Op::Gate { .. } => "gate",
            Op::Add { .. } => "add",
            Op::Fix { .. } => "fix",
            Op::Position { .. } => "position",
            Op::Bias { .. } => "bias",
            Op::Normalise { .. } => "normalise",
            Op::Activate { .. } => "activate",
            Op::Hadamard { .. } => "hadamard",
            Op::Bend { .. } => "bend",
            Op::Pool { .. } => "pool",
        }
    }
}
