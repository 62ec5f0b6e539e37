//! A model as a program of integer operations (semantics 5 and 6), and the check that makes a foreign program safe to run.
//!
//! A [`Program`] is a straight line of [`Op`]s executed once per token, in order of positions. Each operation makes one
//! value; operations name values by the index of the operation that made them. The only state between tokens is the
//! KV cache that [`Op::Attend`] appends to. A program says what is computed, never how: the engine, the reference and the
//! verifier are three readers of it.

use assay_core::canonical::Canonical;
use borsh::{BorshDeserialize, BorshSerialize};

use crate::semantics::scale::Scale;

pub mod check;

pub use check::{Checked, ProgramError, ValueType};

/// Index into [`Program::tensors`].
pub type TensorId = u16;
/// Index of the operation that made a value.
pub type ValueId = u16;

/// Entries of an activation table: values at 0, 1/64, … 16 inclusive.
pub const TABLE_LEN: usize = 1025;
/// Fraction bits of rotary tables: 1.0 is 2^14.
pub const ROTARY_FRAC: u32 = 14;

/// A model's program. Values made up to and including [`Program::hidden`] are computed for every token, later ones only
/// where a next token is chosen.
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
    /// The final int8 hidden vector, which execution digests hash.
    pub hidden: ValueId,
    /// The logits.
    pub logits: ValueId,
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
}

/// One operation. `x`, `q`, … are values made by earlier operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Op {
    /// The token's row of `table` as a residual vector.
    Embed {
        /// A matrix with one row per token id.
        table: TensorId,
    },
    /// `x / rms(x)`: the integers stay, the scale changes.
    RmsNorm {
        /// A residual vector.
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
        /// Query heads, a multiple of `kv_heads`.
        heads: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// Numbers per head.
        head_dim: u32,
        /// What a score is multiplied with before it is an exponent of two: log2(e) / sqrt(head_dim).
        scale: Scale,
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
    /// Residual vector plus integer vector.
    Add {
        /// A residual vector.
        x: ValueId,
        /// An integer vector of the same length.
        y: ValueId,
    },
    /// An integer vector as fixed point with 16 fraction bits.
    Logits {
        /// An integer vector as long as the vocabulary.
        x: ValueId,
    },
}
