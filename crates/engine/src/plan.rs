//! Where values live while a program runs: a few buffers, used again as soon as their value has been read for the last
//! time. The plan follows from the program alone.

use crate::program::{Checked, Head, Op, ValueId, ValueType};

/// Where one value lives. [`Op::RmsNorm`] changes only the scale, so its integers stay where its input's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A buffer of integers.
    Integers(usize),
    /// A buffer of int8 numbers.
    Int8(usize),
}

/// Places of all values, and how many buffers of each kind there are.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) places: Vec<Place>,
    pub(crate) integer_buffers: usize,
    pub(crate) int8_buffers: usize,
    /// Values made up to the hidden vector and read after it.
    pub(crate) carried: Vec<ValueId>,
}

/// Values that an operation reads.
pub(crate) fn reads(op: &Op) -> Vec<ValueId> {
    match *op {
        Op::Embed { .. } | Op::Position { .. } => vec![],
        Op::RmsNorm { x, .. }
        | Op::Quantise { x, .. }
        | Op::MatMul { x, .. }
        | Op::Rotary { x, .. }
        | Op::Gate { x, .. }
        | Op::Fix { x, .. }
        | Op::Bias { x, .. }
        | Op::Normalise { x, .. }
        | Op::Activate { x, .. }
        | Op::Hadamard { x, .. }
        | Op::Bend { x, .. }
        | Op::Pool { x, .. } => vec![x],
        Op::Add { x, y } => vec![x, y],
        Op::Attend { q, k, v, .. } => vec![q, k, v],
    }
}

impl Plan {
    pub(crate) fn new(checked: &Checked) -> Plan {
        let program = checked.program();
        // The value whose buffer a value uses: itself, but for norms.
        let mut owner: Vec<usize> = Vec::with_capacity(program.ops.len());
        for (i, op) in program.ops.iter().enumerate() {
            owner.push(if let Op::RmsNorm { x, .. } = op { owner[usize::from(*x)] } else { i });
        }
        let mut last = vec![0usize; program.ops.len()];
        for (i, op) in program.ops.iter().enumerate() {
            last[owner[i]] = last[owner[i]].max(i);
            for v in reads(op) {
                last[owner[usize::from(v)]] = i;
            }
        }
        let kept = match program.head {
            Head::Tokens { hidden, logits } => vec![hidden, logits],
            Head::Vector { pooled } => vec![pooled],
        };
        for v in kept {
            last[owner[usize::from(v)]] = usize::MAX;
        }
        let (mut integers, mut int8) = (Free::default(), Free::default());
        let mut places: Vec<Place> = Vec::with_capacity(program.ops.len());
        for i in 0..program.ops.len() {
            let place = if owner[i] != i {
                places[owner[i]]
            } else if matches!(checked.value_types()[i], ValueType::Int8 { .. }) {
                Place::Int8(int8.take())
            } else {
                Place::Integers(integers.take())
            };
            places.push(place);
            for (v, _) in last.iter().enumerate().take(i + 1).filter(|(v, l)| **l == i && owner[*v] == *v) {
                match places[v] {
                    Place::Integers(b) => integers.free.push(b),
                    Place::Int8(b) => int8.free.push(b),
                }
            }
        }
        let mut carried: Vec<ValueId> = match program.head {
            Head::Vector { .. } => vec![],
            Head::Tokens { hidden, logits } => program.ops[usize::from(hidden) + 1..=usize::from(logits)]
                .iter()
                .flat_map(reads)
                .filter(|v| *v <= hidden)
                .collect(),
        };
        carried.sort_unstable();
        carried.dedup();
        Plan { places, integer_buffers: integers.made, int8_buffers: int8.made, carried }
    }
}

#[derive(Default)]
struct Free {
    free: Vec<usize>,
    made: usize,
}

impl Free {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.made += 1;
            self.made - 1
        })
    }
}
