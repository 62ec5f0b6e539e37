//! Layers: a program cut where its whole execution goes through one value, found from the program alone.
//!
//! A *cut* lies after operation `i` when exactly one of the values made up to `i` is read later, and that value is fixed
//! point: the residual stream. What comes after a cut follows from that value, ids and positions, and from nothing else that came
//! before. The hidden vector, the logits and the pooled vector count as read at the end; cuts lie before the hidden or the pooled
//! vector.
//!
//! A program is cut at the last cut before each attend operation, and at its last cut. So its layers are, in order: the
//! *embedding*; one layer for each attend operation, with what follows it up to the next; and the *tail*, which makes the
//! hidden vector (and with it the head: the operations after the hidden vector) or the pooled one.
//!
//! Layers between which there is no cut are one layer: where a layer reads the keys of an earlier one, say. The first value that
//! anything reads is always a cut, so that every program has an embedding, which does not attend, and something after it; a
//! program with no other cut is these two. No program is refused, and nothing here knows the name of an architecture.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Checked, Head, Op, TensorId, ValueId, ValueType};
use crate::plan::reads;

/// A run of operations between two cuts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its operations. Those of the last layer end with the hidden or the pooled vector.
    pub ops: Range<usize>,
    /// The one value made before them that they read, fixed point; the first layer has none.
    pub input: Option<ValueId>,
    /// What it hands on: the input of the next layer, or the hidden or pooled vector.
    pub output: ValueId,
    /// The caches of its attend operations.
    pub caches: Range<usize>,
}

/// The layers of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    all: Vec<Layer>,
    head: Range<usize>,
}

impl Layers {
    /// Of a program. The same program always has the same layers.
    pub fn of(checked: &Checked) -> Layers {
        let program = checked.program();
        let (last, head) = match program.head {
            Head::Tokens { hidden, logits } => (hidden, usize::from(hidden) + 1..usize::from(logits) + 1),
            Head::Vector { pooled } => (pooled, usize::from(pooled) + 1..usize::from(pooled) + 1),
        };
        let end = usize::from(last) + 1;
        let cuts = cuts(checked, last, head.end);
        let mut chosen: Vec<Cut> = Vec::new();
        let attends =
            program.ops.iter().enumerate().take(end).filter(|(_, op)| matches!(op, Op::Attend { .. }));
        for place in attends.map(|(i, _)| i).chain([end]) {
            chosen.extend(cuts.iter().rev().find(|c| c.after < place));
        }
        chosen.dedup();
        let mut all = Vec::with_capacity(chosen.len() + 1);
        let (mut from, mut input, mut cache) = (0, None, 0);
        let ends = chosen.iter().map(|c| (c.after + 1, c.value)).chain([(end, last)]);
        for (to, output) in ends {
            let ops = program.ops.iter().take(to).skip(from);
            let caches = cache..cache + ops.filter(|op| matches!(op, Op::Attend { .. })).count();
            cache = caches.end;
            all.push(Layer { ops: from..to, input, output, caches });
            (from, input) = (to, Some(output));
        }
        Layers { all, head }
    }

    /// All of them, in order; there is at least one, and they hold every operation up to the hidden or pooled vector once.
    pub fn all(&self) -> &[Layer] {
        &self.all
    }

    /// Those that attend. As many as there are attend operations, unless some have no cut between them.
    pub fn attending(&self) -> impl Iterator<Item = &Layer> {
        self.all.iter().filter(|l| !l.caches.is_empty())
    }

    /// The operations after the hidden vector, up to the logits: they go with the last layer. None in encoders.
    pub fn head(&self) -> Range<usize> {
        self.head.clone()
    }

    /// The values at the cuts, in order: what each layer but the last hands on.
    pub fn states(&self) -> impl Iterator<Item = ValueId> {
        self.all.iter().skip(1).filter_map(|l| l.input)
    }

    /// The operations of a layer, with the head for the last; none where there is no such layer.
    pub fn operations<'a>(
        &self,
        checked: &'a Checked,
        layer: usize,
    ) -> impl Iterator<Item = &'a Op> + use<'a> {
        let own = self.all.get(layer).map_or(0..0, |l| l.ops.clone());
        let head = if layer + 1 == self.all.len() { self.head.clone() } else { 0..0 };
        let ops = &checked.program().ops;
        let of = |r: Range<usize>| ops.get(r).unwrap_or_default().iter();
        of(own).chain(of(head))
    }

    /// The tensors that a layer's operations name, with those of the head for the last layer.
    pub fn tensors(&self, checked: &Checked, layer: usize) -> BTreeSet<TensorId> {
        self.operations(checked, layer).flat_map(named).collect()
    }
}

/// A place between two operations.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// The operation before it.
    after: usize,
    /// The one value that is read later.
    value: ValueId,
}

/// The cuts before operation `last`, of a program of which `end` operations are executed.
fn cuts(checked: &Checked, last: ValueId, end: usize) -> Vec<Cut> {
    let ops = checked.program().ops.iter().take(end);
    // The operation that reads each value last.
    let mut read_by = vec![0usize; end];
    let reads = ops.enumerate().flat_map(|(i, op)| reads(op).into_iter().map(move |v| (i, v)));
    for (i, v) in reads.chain([(usize::MAX, last)]) {
        if let Some(by) = read_by.get_mut(usize::from(v)) {
            *by = i;
        }
    }
    let mut live: BTreeSet<ValueId> = BTreeSet::new();
    let mut cuts = Vec::new();
    for (i, v) in (0..last).enumerate() {
        live.insert(v);
        live.retain(|v| read_by.get(usize::from(*v)).is_some_and(|by| *by > i));
        if let (1, Some(value)) = (live.len(), live.first().copied())
            && matches!(checked.value_type(value), ValueType::Fixed { .. })
        {
            cuts.push(Cut { after: i, value });
        }
    }
    cuts
}

/// The tensors that an operation names.
pub(crate) fn named(op: &Op) -> Vec<TensorId> {
    match *op {
        Op::Embed { table } | Op::Position { table } | Op::Rotary { table, .. } => vec![table],
        Op::Gate { table, .. } | Op::Activate { table, .. } => vec![table],
        Op::MatMul { weights, .. } => vec![weights],
        Op::Attend { cap, .. } => cap.iter().map(|c| c.table).collect(),
        Op::Bend { cap, .. } => vec![cap.table],
        Op::Bias { bias, .. } => vec![bias],
        Op::Normalise { gain, bias, .. } => [gain].into_iter().chain(bias).collect(),
        Op::RmsNorm { .. } | Op::Quantise { .. } | Op::Add { .. } | Op::Fix { .. } => vec![],
        Op::Hadamard { .. } | Op::Pool { .. } => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Pooling, Program, Reach, Shape, Tensor};
    use crate::semantics::scale::Scale;
    use proptest::prelude::*;

    const EMBED: Op = Op::Embed { table: 0 };

    fn int8(x: ValueId) -> Op {
        Op::Quantise { x, offset: 0, len: 4, groups: 1 }
    }

    fn attend(layer: u16, [q, k, v]: [ValueId; 3], reach: Reach) -> Op {
        let scale = Scale::from_u64(1, 0);
        Op::Attend { q, k, v, layer, reach, heads: 1, kv_heads: 1, head_dim: 4, scale, cap: None, frac: 8 }
    }

    fn tensors() -> Vec<Tensor> {
        let tensor =
            |name: &str| Tensor { name: name.into(), shape: Shape::Matrix { rows: 5, cols: 4, shift: 0 } };
        vec![tensor("embed"), tensor("head")]
    }

    /// A program with `ops` up to the hidden vector, which the last of them is.
    fn decoder(mut ops: Vec<Op>) -> Checked {
        let hidden = ops.len() as ValueId - 1;
        ops.push(Op::MatMul { weights: 1, x: hidden });
        ops.push(Op::Fix { x: hidden + 1, offset: 0, len: 5, frac: 16 });
        let head = Head::Tokens { hidden, logits: hidden + 2 };
        let program = Program { context: 9, vocabulary: 5, residual_frac: 16, tensors: tensors(), ops, head };
        program.check().unwrap()
    }

    /// Embedding, `layers` attend operations on the residual stream, norm and hidden vector.
    fn plain(layers: u16) -> Vec<Op> {
        let mut ops = vec![EMBED];
        for l in 0..layers {
            let x = ops.len() as ValueId - 1;
            ops.extend([int8(x), attend(l, [x + 1; 3], Reach::Past), Op::Add { x, y: x + 2 }]);
        }
        let x = ops.len() as ValueId - 1;
        ops.extend([Op::RmsNorm { x, epsilon: 1 }, int8(x + 1)]);
        ops
    }

    fn shape(checked: &Checked) -> Vec<(Range<usize>, Option<ValueId>, ValueId, usize)> {
        let layers = Layers::of(checked);
        layers.all().iter().map(|l| (l.ops.clone(), l.input, l.output, l.caches.len())).collect()
    }

    #[test]
    fn a_decoder_is_embedding_layers_and_tail() {
        let checked = decoder(plain(2));
        let wanted =
            [(0..1, None, 0, 0), (1..4, Some(0), 3, 1), (4..7, Some(3), 6, 1), (7..9, Some(6), 8, 0)];
        assert_eq!(shape(&checked), wanted);
        let layers = Layers::of(&checked);
        assert_eq!(layers.head(), 9..11);
        assert_eq!(layers.attending().count(), 2);
        assert_eq!(layers.states().collect::<Vec<_>>(), [0, 3, 6]);
        let tensors = |l| layers.tensors(&checked, l).into_iter().collect::<Vec<_>>();
        assert_eq!([tensors(0), tensors(1), tensors(3), tensors(4)], [vec![0], vec![], vec![1], vec![]]);
    }

    #[test]
    fn a_model_without_attention_is_embedding_and_tail() {
        assert_eq!(shape(&decoder(plain(0))), [(0..1, None, 0, 0), (1..3, Some(0), 2, 0)]);
    }

    #[test]
    fn layers_that_share_keys_are_one() {
        let mut ops = plain(3);
        // The second layer attends to the first one's keys and values.
        ops[5] = attend(1, [4, 1, 1], Reach::Past);
        let wanted =
            [(0..1, None, 0, 0), (1..7, Some(0), 6, 2), (7..10, Some(6), 9, 1), (10..12, Some(9), 11, 0)];
        assert_eq!(shape(&decoder(ops)), wanted);
    }

    #[test]
    fn without_other_cuts_all_after_the_embedding_is_one_layer() {
        // The embedded row is read until the very end, after which there is one value again.
        let mut ops = plain(2);
        ops.truncate(ops.len() - 2);
        ops.extend([Op::Add { x: 6, y: 0 }, int8(7)]);
        let wanted = [(0..1, None, 0, 0), (1..8, Some(0), 7, 2), (8..9, Some(7), 8, 0)];
        assert_eq!(shape(&decoder(ops)), wanted);

        // Integers that are no fixed point are read beside it.
        let norm = Op::RmsNorm { x: 0, epsilon: 1 };
        let ops = vec![EMBED, norm, int8(1), attend(0, [2; 3], Reach::Past), Op::Add { x: 3, y: 0 }, int8(1)];
        assert_eq!(shape(&decoder(ops)), [(0..1, None, 0, 0), (1..6, Some(0), 5, 1)]);
    }

    #[test]
    fn what_nothing_reads_is_no_cut() {
        let mut ops = vec![EMBED, EMBED, Op::Add { x: 1, y: 1 }];
        ops.extend([Op::RmsNorm { x: 2, epsilon: 1 }, int8(3)]);
        assert_eq!(shape(&decoder(ops)), [(0..3, None, 2, 0), (3..5, Some(2), 4, 0)]);
    }

    #[test]
    fn an_encoder_ends_with_its_pooled_vector() {
        let mut ops = plain(2);
        ops.truncate(ops.len() - 2);
        for op in &mut ops {
            if let Op::Attend { reach, .. } = op {
                *reach = Reach::All;
            }
        }
        ops.push(Op::Pool { x: 6, pooling: Pooling::Mean });
        let head = Head::Vector { pooled: 7 };
        let program = Program { context: 9, vocabulary: 5, residual_frac: 16, tensors: tensors(), ops, head };
        let checked = program.check().unwrap();
        let wanted =
            [(0..1, None, 0, 0), (1..4, Some(0), 3, 1), (4..7, Some(3), 6, 1), (7..8, Some(6), 7, 0)];
        assert_eq!(shape(&checked), wanted);
        assert!(Layers::of(&checked).head().is_empty());
    }

    /// Straight lines of operations over four numbers, each reading any earlier values of its kind.
    fn any_program() -> impl Strategy<Value = Vec<Op>> {
        let one = (0u8..8, any::<[prop::sample::Index; 3]>());
        prop::collection::vec(one, 0..40).prop_map(|choices| {
            let (mut ops, mut fixed, mut whole, mut bytes) =
                (vec![EMBED, int8(0)], vec![0], vec![0], vec![1]);
            let mut attends = 0;
            for (kind, at) in choices {
                let i = ops.len() as ValueId;
                let pick = |from: &[ValueId], n: usize| *at[n].get(from);
                let op = match kind {
                    0 | 1 => Op::Add { x: pick(&fixed, 0), y: pick(&whole, 1) },
                    2 => Op::RmsNorm { x: pick(&fixed, 0), epsilon: 1 },
                    3 => Op::Hadamard { x: pick(&whole, 0), block: 4 },
                    4 => Op::Fix { x: pick(&whole, 0), offset: 0, len: 4, frac: 12 },
                    5 => EMBED,
                    6 => int8(pick(&whole, 0)),
                    _ => {
                        attends += 1;
                        let qkv = [0, 1, 2].map(|n| pick(&bytes, n));
                        attend(attends - 1, qkv, Reach::Past)
                    }
                };
                match kind {
                    6 => bytes.push(i),
                    2 | 3 => whole.push(i),
                    _ => [&mut fixed, &mut whole].into_iter().for_each(|to| to.push(i)),
                }
                ops.push(op);
            }
            let x = *whole.last().unwrap_or(&0);
            ops.push(int8(x));
            ops
        })
    }

    proptest! {
        #[test]
        fn layers_hold_every_operation_once_and_meet_in_one_value(ops in any_program()) {
            let checked = decoder(ops);
            let layers = Layers::of(&checked);
            let program = checked.program();
            let (hidden, _) = program.tokens();
            let all = layers.all();
            prop_assert_eq!(all[0].ops.start, 0);
            prop_assert_eq!(all[all.len() - 1].ops.end, usize::from(hidden) + 1);
            prop_assert_eq!(all[all.len() - 1].output, hidden);
            prop_assert_eq!(all[all.len() - 1].caches.end, checked.caches().len());
            prop_assert!(all.windows(2).all(|w| w[0].ops.end == w[1].ops.start && !w[0].ops.is_empty()));
            prop_assert!(all.windows(2).all(|w| w[1].input == Some(w[0].output) && w[0].caches.end == w[1].caches.start));
            for (i, l) in all.iter().enumerate() {
                let own = |v: &ValueId| l.ops.contains(&usize::from(*v)) || Some(*v) == l.input;
                let fixed = |v| matches!(checked.value_type(v), ValueType::Fixed { .. });
                prop_assert!(l.input.is_none_or(fixed));
                for op in program.ops[l.ops.clone()].iter() {
                    prop_assert!(reads(op).iter().all(own), "layer {} reads elsewhere", i);
                }
                let read_later: BTreeSet<ValueId> =
                    program.ops[l.ops.end..].iter().flat_map(reads).filter(|v| usize::from(*v) < l.ops.end).collect();
                let last = i + 1 == all.len();
                prop_assert!(last || read_later == BTreeSet::from([l.output]), "layer {} hands on more", i);
            }
            prop_assert_eq!(Layers::of(&checked), layers);
        }
    }
}
