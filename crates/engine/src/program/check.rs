//! The check of a foreign program: after it, no operation can meet a missing value, a wrong shape or an overflow.

use borsh::{BorshDeserialize, BorshSerialize};

use super::{Declared, Head, LOGIT_FRAC, Op, Program, Reach, Shape, SoftCap, Tensor, TensorId, ValueId};

/// Largest dimension of any value or matrix: keeps every accumulator within i32 (semantics 5.5).
pub const DIMENSION_MAX: u32 = 131_072;
/// Most rows of a matrix: vocabularies are longer than other dimensions.
pub const ROWS_MAX: u32 = 1 << 20;
/// Most operations of a program.
pub const OPS_MAX: usize = 8_192;
/// Most constants of a program.
pub const TENSORS_MAX: usize = 8_192;
/// Most bytes of a constant's name.
pub const NAME_BYTES_MAX: usize = 256;
/// Most positions of a sequence.
pub const CONTEXT_MAX: u32 = 131_072;
/// Largest head.
pub const HEAD_DIM_MAX: u32 = 512;
/// Most fraction bits of a fixed-point value.
pub const FRAC_MAX: u8 = 28;
/// Largest epsilon of a norm.
pub const EPSILON_MAX: u64 = 1 << 44;
/// Fraction bits of a normalised number before its gain (semantics 6.12).
pub const NORMAL_FRAC: u8 = 16;
/// Longest run that a Hadamard transform mixes: sums of so many numbers of 15 bits stay below 2^27.
pub const HADAMARD_MAX: u32 = 4096;
/// Most tokens of a sequence that is read as a whole: what one batch of the engine holds.
pub const WHOLE_CONTEXT_MAX: u32 = 4096;

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ValueType {
    /// Integers with a constant scale of `2^-frac`.
    Fixed {
        /// How many numbers.
        len: u32,
        /// Fraction bits.
        frac: u8,
    },
    /// Integers with one scale made at run time.
    Integers(u32),
    /// int8 numbers with one scale for each of `groups` runs.
    Int8 {
        /// How many numbers.
        len: u32,
        /// How many scales.
        groups: u32,
    },
}

impl ValueType {
    /// Length of a value of 32-bit integers.
    pub fn integers(self) -> Option<u32> {
        match self {
            ValueType::Fixed { len, .. } | ValueType::Integers(len) => Some(len),
            ValueType::Int8 { .. } => None,
        }
    }
}

/// Why a program cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// A number of the program is out of its range.
    #[error("program: {what} is {got}, but must be {expected}")]
    Range {
        /// Which number.
        what: String,
        /// Its value.
        got: u64,
        /// What is allowed.
        expected: String,
    },
    /// An operation does not fit what it names.
    #[error("program: operation {op} {reason}")]
    Op {
        /// Index of the operation.
        op: usize,
        /// What does not fit.
        reason: String,
    },
}

/// A program whose every operation fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    program: Program,
    types: Vec<ValueType>,
    attends: Vec<CacheShape>,
}

/// Shape of one layer's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Key and value heads.
    pub kv_heads: u32,
    /// Numbers per head.
    pub head_dim: u32,
}

impl Checked {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// An operation as a model root declares it.
    pub fn declared(&self, op: ValueId) -> Option<Declared> {
        let i = usize::from(op);
        let attended = self.program.is_attended(op);
        Some(Declared { op: *self.program.ops.get(i)?, made: *self.types.get(i)?, attended })
    }

    /// Type of a value.
    pub fn value_type(&self, v: ValueId) -> ValueType {
        self.types[usize::from(v)]
    }

    /// Types of all values, in order.
    pub fn value_types(&self) -> &[ValueType] {
        &self.types
    }

    /// The KV caches, in order of layers.
    pub fn caches(&self) -> &[CacheShape] {
        &self.attends
    }

    /// Rows, columns and shift of a tensor that a checked operation names as a matrix.
    pub fn matrix_shape(&self, t: TensorId) -> (u32, u32, i16) {
        match self.program.tensors[usize::from(t)].shape {
            Shape::Matrix { rows, cols, shift } => (rows, cols, shift),
            _ => unreachable!("checked programs name matrices as matrices"),
        }
    }

    /// Fraction bits of a value that a checked operation reads as fixed point.
    pub fn frac(&self, v: ValueId) -> u32 {
        match self.value_type(v) {
            ValueType::Fixed { frac, .. } => u32::from(frac),
            _ => unreachable!("checked programs read fixed point where fixed point is"),
        }
    }

    /// Length and groups of a value that a checked operation reads as int8.
    pub fn int8_shape(&self, v: ValueId) -> (u32, u32) {
        match self.value_type(v) {
            ValueType::Int8 { len, groups } => (len, groups),
            _ => unreachable!("checked programs read int8 where int8 is"),
        }
    }

    /// Fraction bits of a tensor that a checked operation names as a vector.
    pub fn vector_frac(&self, t: TensorId) -> u32 {
        match self.program.tensors[usize::from(t)].shape {
            Shape::Vector { frac, .. } => u32::from(frac),
            _ => unreachable!("checked programs name vectors as vectors"),
        }
    }
}

impl Program {
    /// Checks every operation; see the limits in this module.
    pub fn check(self) -> Result<Checked, ProgramError> {
        range("context", u64::from(self.context), 1, u64::from(CONTEXT_MAX))?;
        range("vocabulary", u64::from(self.vocabulary), 1, u64::from(ROWS_MAX))?;
        range("residual_frac", u64::from(self.residual_frac), 0, u64::from(FRAC_MAX))?;
        range("operation count", self.ops.len() as u64, 1, OPS_MAX as u64)?;
        range("tensor count", self.tensors.len() as u64, 1, TENSORS_MAX as u64)?;
        for t in &self.tensors {
            check_tensor(t)?;
        }
        let mut names: Vec<_> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(ProgramError::Op { op: 0, reason: format!("has two tensors named `{}`", pair[0]) });
        }
        let mut types = Vec::with_capacity(self.ops.len());
        let mut attends = Vec::new();
        for (i, op) in self.ops.iter().enumerate() {
            let view = View { program: &self, types: &types };
            let made = view.type_of(op, &mut attends).map_err(|reason| ProgramError::Op { op: i, reason })?;
            types.push(made);
        }
        self.check_head(&types)?;
        Ok(Checked { program: self, types, attends })
    }
}

impl Program {
    fn check_head(&self, types: &[ValueType]) -> Result<(), ProgramError> {
        let fail = |op: usize, reason: &str| Err(ProgramError::Op { op, reason: reason.into() });
        let value = |v: ValueId| types.get(usize::from(v)).copied();
        match self.head {
            Head::Tokens { hidden, logits } => {
                let wanted = ValueType::Fixed { len: self.vocabulary, frac: LOGIT_FRAC };
                let one_group = matches!(value(hidden), Some(ValueType::Int8 { groups: 1, .. }));
                if !one_group || value(logits) != Some(wanted) || hidden >= logits {
                    let reason =
                        "does not end in one int8 hidden vector and logits of the vocabulary's length";
                    return fail(usize::from(logits), reason);
                }
                for (i, op) in self.ops.iter().enumerate() {
                    let whole = matches!(op, Op::Pool { .. } | Op::Attend { reach: Reach::All, .. });
                    if whole {
                        return fail(i, "reads the whole sequence, where tokens come one by one");
                    }
                    // Operations after the hidden vector run only where a token is chosen: none may depend on token or
                    // position.
                    let here = matches!(
                        op,
                        Op::Attend { .. } | Op::Embed { .. } | Op::Rotary { .. } | Op::Position { .. }
                    );
                    if here && i > usize::from(hidden) {
                        return fail(i, "embeds, rotates or attends after the hidden vector");
                    }
                }
            }
            Head::Vector { pooled } => {
                range("context", u64::from(self.context), 1, u64::from(WHOLE_CONTEXT_MAX))?;
                let pools = self.ops.iter().filter(|op| matches!(op, Op::Pool { .. })).count();
                let last = usize::from(pooled) + 1 == self.ops.len();
                if pools != 1 || !last || !matches!(self.ops.last(), Some(Op::Pool { .. })) {
                    return fail(usize::from(pooled), "does not end in its one pooled vector");
                }
            }
        }
        Ok(())
    }
}

fn range(what: &str, got: u64, min: u64, max: u64) -> Result<(), ProgramError> {
    if (min..=max).contains(&got) {
        return Ok(());
    }
    Err(ProgramError::Range { what: what.into(), got, expected: format!("{min} to {max}") })
}

fn check_tensor(t: &Tensor) -> Result<(), ProgramError> {
    let what = |part: &str| format!("{part} of tensor `{}`", t.name);
    range(&what("name length"), t.name.len() as u64, 1, NAME_BYTES_MAX as u64)?;
    match t.shape {
        Shape::Matrix { rows, cols, shift } => {
            range(&what("rows"), u64::from(rows), 1, u64::from(ROWS_MAX))?;
            range(&what("columns"), u64::from(cols), 1, u64::from(DIMENSION_MAX))?;
            range(&what("shift (plus 256)"), (i64::from(shift) + 256).max(0) as u64, 0, 512)
        }
        Shape::Table => Ok(()),
        Shape::Rotary { positions, pairs } => {
            range(&what("positions"), u64::from(positions), 1, u64::from(CONTEXT_MAX))?;
            range(&what("pairs"), u64::from(pairs), 1, u64::from(HEAD_DIM_MAX / 2))
        }
        Shape::Vector { len, frac } => {
            range(&what("length"), u64::from(len), 1, u64::from(DIMENSION_MAX))?;
            range(&what("fraction bits"), u64::from(frac), 0, u64::from(FRAC_MAX))
        }
    }
}

/// What an operation can see: the constants and the values made before it.
struct View<'a> {
    program: &'a Program,
    types: &'a [ValueType],
}

impl View<'_> {
    fn value(&self, v: ValueId) -> Result<ValueType, String> {
        self.types
            .get(usize::from(v))
            .copied()
            .ok_or_else(|| format!("reads value {v}, which is not made yet"))
    }

    fn integers(&self, v: ValueId) -> Result<u32, String> {
        self.value(v)?
            .integers()
            .ok_or_else(|| format!("needs integers, but value {v} is {:?}", self.types[usize::from(v)]))
    }

    fn fixed(&self, v: ValueId) -> Result<(u32, u8), String> {
        match self.value(v)? {
            ValueType::Fixed { len, frac } => Ok((len, frac)),
            other => Err(format!("needs fixed point, but value {v} is {other:?}")),
        }
    }

    fn int8(&self, v: ValueId, len: u64, groups: u32) -> Result<(), String> {
        match self.value(v)? {
            ValueType::Int8 { len: l, groups: g } if u64::from(l) == len && g == groups => Ok(()),
            other => Err(format!("needs {len} int8 numbers in {groups} groups, but value {v} is {other:?}")),
        }
    }

    fn shape(&self, t: TensorId) -> Result<Shape, String> {
        self.program
            .tensors
            .get(usize::from(t))
            .map(|t| t.shape)
            .ok_or_else(|| format!("names tensor {t}, which does not exist"))
    }

    fn matrix(&self, t: TensorId) -> Result<(u32, u32), String> {
        match self.shape(t)? {
            Shape::Matrix { rows, cols, .. } => Ok((rows, cols)),
            _ => Err(format!("needs a matrix, but tensor {t} is none")),
        }
    }

    fn vector(&self, t: TensorId, len: u32) -> Result<u8, String> {
        match self.shape(t)? {
            Shape::Vector { len: n, frac } if n == len => Ok(frac),
            _ => Err(format!("needs a vector of {len}, but tensor {t} is none")),
        }
    }

    fn table(&self, t: TensorId) -> Result<(), String> {
        if self.shape(t)? == Shape::Table {
            return Ok(());
        }
        Err(format!("needs a table, but tensor {t} is none"))
    }

    fn cap(&self, cap: SoftCap) -> Result<(), String> {
        if !(1 << 16..=1 << 30).contains(&cap.limit) {
            return Err(format!("bends at {}, which is not from 2^16 to 2^30", cap.limit));
        }
        self.table(cap.table)
    }

    fn frac(&self, frac: u8) -> Result<(), String> {
        if frac <= FRAC_MAX { Ok(()) } else { Err(format!("has {frac} fraction bits, more than {FRAC_MAX}")) }
    }

    fn epsilon(&self, epsilon: u64) -> Result<(), String> {
        if epsilon <= EPSILON_MAX {
            return Ok(());
        }
        Err(format!("has epsilon {epsilon}, more than {EPSILON_MAX}"))
    }

    fn run(&self, x: ValueId, offset: u32, len: u64) -> Result<(), String> {
        let have = self.integers(x)?;
        if len == 0 || u64::from(offset) + len > u64::from(have) {
            return Err(format!("reads {len} numbers at {offset} of value {x}, which has {have}"));
        }
        Ok(())
    }

    fn type_of(&self, op: &Op, attends: &mut Vec<CacheShape>) -> Result<ValueType, String> {
        match *op {
            Op::Embed { table } => {
                let (rows, cols) = self.matrix(table)?;
                if rows != self.program.vocabulary {
                    return Err(format!("embeds with {rows} rows for {} token ids", self.program.vocabulary));
                }
                Ok(ValueType::Fixed { len: cols, frac: self.program.residual_frac })
            }
            Op::Position { table } => {
                let (rows, cols) = self.matrix(table)?;
                if rows < self.program.context {
                    return Err(format!("has {rows} positions for a context of {}", self.program.context));
                }
                Ok(ValueType::Fixed { len: cols, frac: self.program.residual_frac })
            }
            Op::RmsNorm { x, epsilon } => {
                let (n, _) = self.fixed(x)?;
                self.epsilon(epsilon)?;
                Ok(ValueType::Integers(n))
            }
            Op::Quantise { x, offset, len, groups } => {
                self.run(x, offset, u64::from(len))?;
                if groups == 0 || !len.is_multiple_of(groups) {
                    return Err(format!("cuts {len} numbers into {groups} groups"));
                }
                Ok(ValueType::Int8 { len, groups })
            }
            Op::MatMul { weights, x } => {
                let (rows, cols) = self.matrix(weights)?;
                self.int8(x, u64::from(cols), 1)?;
                Ok(ValueType::Integers(rows))
            }
            Op::Rotary { x, offset, heads, head_dim, table } => {
                self.head(heads, head_dim)?;
                self.run(x, offset, u64::from(heads) * u64::from(head_dim))?;
                match self.shape(table)? {
                    Shape::Rotary { positions, pairs }
                        if positions >= self.program.context && pairs.checked_mul(2) == Some(head_dim) =>
                    {
                        Ok(ValueType::Integers(heads * head_dim))
                    }
                    other => Err(format!("needs a rotary table for its heads and context, not {other:?}")),
                }
            }
            Op::Attend { q, k, v, layer, heads, kv_heads, head_dim, reach, scale, cap, frac } => {
                self.head(heads, head_dim)?;
                self.head(kv_heads, head_dim)?;
                if !heads.is_multiple_of(kv_heads)
                    || usize::from(layer) != attends.len()
                    || reach == Reach::Window(0)
                    || !scale.is_canonical()
                {
                    return Err("has heads, a layer, a window or a scale out of range".into());
                }
                self.frac(frac)?;
                cap.map_or(Ok(()), |c| self.cap(c))?;
                self.int8(q, u64::from(heads) * u64::from(head_dim), heads)?;
                self.int8(k, u64::from(kv_heads) * u64::from(head_dim), kv_heads)?;
                self.int8(v, u64::from(kv_heads) * u64::from(head_dim), kv_heads)?;
                attends.push(CacheShape { kv_heads, head_dim });
                Ok(ValueType::Fixed { len: heads * head_dim, frac })
            }
            Op::Gate { x, gate, up, len, table } => {
                self.run(x, gate, u64::from(len))?;
                self.run(x, up, u64::from(len))?;
                self.table(table)?;
                Ok(ValueType::Integers(len))
            }
            Op::Add { x, y } => {
                let (len, frac) = self.fixed(x)?;
                if self.integers(y)? != len {
                    return Err(format!("adds value {y} to value {x} of another length"));
                }
                Ok(ValueType::Fixed { len, frac })
            }
            Op::Fix { x, offset, len, frac } => {
                self.run(x, offset, u64::from(len))?;
                self.frac(frac)?;
                Ok(ValueType::Fixed { len, frac })
            }
            Op::Bias { x, bias } => {
                let len = self.integers(x)?;
                let frac = self.vector(bias, len)?;
                Ok(ValueType::Fixed { len, frac })
            }
            Op::Normalise { x, groups, center: _, epsilon, gain, bias, frac } => {
                let (len, _) = self.fixed(x)?;
                if groups == 0 || !len.is_multiple_of(groups) {
                    return Err(format!("cuts {len} numbers into {groups} groups"));
                }
                self.epsilon(epsilon)?;
                self.frac(frac)?;
                let gain_frac = self.vector(gain, len / groups)?;
                if frac > NORMAL_FRAC + gain_frac {
                    return Err(format!("has {frac} fraction bits, more than its factors give"));
                }
                if let Some(bias) = bias
                    && self.vector(bias, len / groups)? != frac
                {
                    return Err(format!("adds tensor {bias} of other fraction bits"));
                }
                Ok(ValueType::Fixed { len, frac })
            }
            Op::Activate { x, table } => {
                self.table(table)?;
                Ok(ValueType::Fixed { len: self.integers(x)?, frac: LOGIT_FRAC })
            }
            Op::Hadamard { x, block } => {
                let len = self.integers(x)?;
                if !block.is_power_of_two()
                    || !(4..=HADAMARD_MAX).contains(&block)
                    || !len.is_multiple_of(block)
                {
                    return Err(format!("mixes {len} numbers in runs of {block}"));
                }
                Ok(ValueType::Integers(len))
            }
            Op::Bend { x, cap } => {
                self.cap(cap)?;
                match self.fixed(x)? {
                    (len, LOGIT_FRAC) => Ok(ValueType::Fixed { len, frac: LOGIT_FRAC }),
                    (_, frac) => Err(format!("bends numbers with {frac} fraction bits instead of 16")),
                }
            }
            Op::Pool { x, .. } => {
                let (len, frac) = self.fixed(x)?;
                Ok(ValueType::Fixed { len, frac })
            }
        }
    }

    fn head(&self, heads: u32, head_dim: u32) -> Result<(), String> {
        if heads == 0
            || head_dim == 0
            || !head_dim.is_multiple_of(4)
            || head_dim > HEAD_DIM_MAX
            || heads > DIMENSION_MAX / head_dim
        {
            return Err(format!("has {heads} heads of {head_dim}"));
        }
        Ok(())
    }
}
