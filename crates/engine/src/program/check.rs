//! The check of a foreign program: after it, no operation can meet a missing value, a wrong shape or an overflow.

use super::{Op, Program, Shape, Tensor, TensorId, ValueId};

/// Largest dimension of any value or matrix: keeps every accumulator within i32 (semantics 5.4).
pub const DIMENSION_MAX: u32 = 131_072;
/// Most rows of a matrix: vocabularies are longer than other dimensions.
pub const ROWS_MAX: u32 = 1 << 20;
/// Most operations of a program.
pub const OPS_MAX: usize = 8_192;
/// Most constants of a program.
pub const TENSORS_MAX: usize = 8_192;
/// Most positions of a sequence.
pub const CONTEXT_MAX: u32 = 131_072;
/// Largest head.
pub const HEAD_DIM_MAX: u32 = 512;
/// Most fraction bits of a fixed-point value.
pub const FRAC_MAX: u8 = 28;
/// Largest epsilon of a norm.
pub const EPSILON_MAX: u64 = 1 << 44;

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Integers with a fixed scale of `2^-residual_frac`.
    Residual(u32),
    /// Integers with one scale made at run time.
    Integers(u32),
    /// int8 numbers with one scale for each of `groups` runs.
    Int8 {
        /// How many numbers.
        len: u32,
        /// How many scales.
        groups: u32,
    },
    /// Fixed point with 16 fraction bits.
    Logits(u32),
}

impl ValueType {
    /// Length of a value of 32-bit integers.
    pub fn integers(self) -> Option<u32> {
        match self {
            ValueType::Residual(n) | ValueType::Integers(n) => Some(n),
            ValueType::Int8 { .. } | ValueType::Logits(_) => None,
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
            Shape::Table | Shape::Rotary { .. } => unreachable!("checked programs name matrices as matrices"),
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
        let last = |v: ValueId| types.get(usize::from(v)).copied();
        match (last(self.hidden), last(self.logits)) {
            (Some(ValueType::Int8 { groups: 1, .. }), Some(ValueType::Logits(n)))
                if n == self.vocabulary && self.hidden < self.logits => {}
            _ => {
                return Err(ProgramError::Op {
                    op: usize::from(self.logits),
                    reason: "does not end in one int8 hidden vector and logits of the vocabulary's length"
                        .into(),
                });
            }
        }
        // Operations after the hidden vector run only where a token is chosen: none may depend on token or position.
        for (i, op) in self.ops.iter().enumerate().skip(usize::from(self.hidden)) {
            if matches!(op, Op::Attend { .. } | Op::Embed { .. } | Op::Rotary { .. }) {
                let reason = "embeds, rotates or attends after the hidden vector".into();
                return Err(ProgramError::Op { op: i, reason });
            }
        }
        Ok(Checked { program: self, types, attends })
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
    range(&what("name length"), t.name.len() as u64, 1, 256)?;
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

    fn residual(&self, v: ValueId) -> Result<u32, String> {
        match self.value(v)? {
            ValueType::Residual(n) => Ok(n),
            other => Err(format!("needs a residual vector, but value {v} is {other:?}")),
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
            Shape::Table | Shape::Rotary { .. } => Err(format!("needs a matrix, but tensor {t} is none")),
        }
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
                Ok(ValueType::Residual(cols))
            }
            Op::RmsNorm { x, epsilon } => {
                let n = self.residual(x)?;
                if epsilon > EPSILON_MAX {
                    return Err(format!("has epsilon {epsilon}, more than {EPSILON_MAX}"));
                }
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
            Op::Attend { q, k, v, layer, heads, kv_heads, head_dim, scale, frac } => {
                self.head(heads, head_dim)?;
                self.head(kv_heads, head_dim)?;
                if !heads.is_multiple_of(kv_heads)
                    || usize::from(layer) != attends.len()
                    || frac > FRAC_MAX
                    || !scale.is_canonical()
                {
                    return Err("has heads, a layer, fraction bits or a scale out of range".into());
                }
                self.int8(q, u64::from(heads) * u64::from(head_dim), heads)?;
                self.int8(k, u64::from(kv_heads) * u64::from(head_dim), kv_heads)?;
                self.int8(v, u64::from(kv_heads) * u64::from(head_dim), kv_heads)?;
                attends.push(CacheShape { kv_heads, head_dim });
                Ok(ValueType::Integers(heads * head_dim))
            }
            Op::Gate { x, gate, up, len, table } => {
                self.run(x, gate, u64::from(len))?;
                self.run(x, up, u64::from(len))?;
                if self.shape(table)? != Shape::Table {
                    return Err(format!("needs a table, but tensor {table} is none"));
                }
                Ok(ValueType::Integers(len))
            }
            Op::Add { x, y } => {
                let n = self.residual(x)?;
                if self.integers(y)? != n {
                    return Err(format!("adds value {y} to value {x} of another length"));
                }
                Ok(ValueType::Residual(n))
            }
            Op::Logits { x } => Ok(ValueType::Logits(self.integers(x)?)),
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
