//! What a program asks of an opening: which values blocks are committed by, which products and embedded rows a token has.

use assay_core::id::Hash;
use assay_engine::kernel::keccak;
use assay_engine::program::{Checked, Head, Op, TensorId, ValueId};
use assay_engine::semantics::scale::Scale;
use borsh::{BorshDeserialize, BorshSerialize};

use crate::trace;
use crate::trace::part::{Layout, Numbers, Part};

/// Roots of the three parts of a quantise operation in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Roots {
    /// Of the largest absolute values of its groups.
    pub largest: Hash,
    /// Of its scales.
    pub scales: Hash,
    /// Of its int8 numbers.
    pub numbers: Hash,
}

impl Roots {
    /// The commitment of the operation.
    pub fn commitment(&self) -> Hash {
        trace::operation(&[self.largest, self.scales, self.numbers])
    }

    /// The carries of blocks of `width` operations each, from the roots of all of them in order.
    pub(crate) fn carries(all: &[Roots], width: usize) -> Vec<Hash> {
        let parts = all.iter().flat_map(|r| [r.largest, r.scales, r.numbers]);
        let bytes: Vec<u8> = parts.flat_map(|h| *h.as_bytes()).collect();
        keccak::roots(keccak::keccak_equal(&bytes, 3 * size_of::<Hash>()), width)
    }
}

/// A value that blocks are committed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) op: ValueId,
    /// int8 numbers of a row.
    pub(crate) len: usize,
    /// Scales of a row.
    pub(crate) groups: usize,
    /// Whether attention reads it through the cache.
    pub(crate) cached: bool,
    pub(crate) layout: Layout,
}

impl Carried {
    /// The part of largest absolute values of some rows.
    pub(crate) fn largest(&self, largest: Vec<i64>) -> Part {
        let rows = largest.len() / self.groups.max(1);
        Part::new(rows, self.groups, Layout::Columns, Numbers::Long(largest))
    }

    /// The part of scales of some rows.
    pub(crate) fn scales(&self, scales: &[Scale]) -> Part {
        let rows = scales.len() / self.groups.max(1);
        let words = scales.iter().flat_map(|s| [i32::from(s.mantissa), i32::from(s.exponent)]).collect();
        Part::new(rows, 2 * self.groups, Layout::Columns, Numbers::Word(words))
    }

    /// The part of numbers of some rows.
    pub(crate) fn numbers(&self, numbers: Vec<i8>) -> Part {
        let rows = numbers.len() / self.len.max(1);
        Part::new(rows, self.len, self.layout, Numbers::Byte(numbers))
    }
}

/// Where a value is read from at one attend operation: indices into [`Form::carried`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attended {
    pub(crate) keys: usize,
    pub(crate) values: usize,
}

/// A matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) op: ValueId,
    pub(crate) weights: TensorId,
    pub(crate) x: ValueId,
    pub(crate) rows: usize,
}

/// A row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Embedded {
    pub(crate) op: ValueId,
    pub(crate) table: TensorId,
    pub(crate) cols: usize,
    /// Whether it is the row of the position rather than of the token.
    pub(crate) by_position: bool,
}

/// What an operation is to an opening; the index is into the list of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is executed, and nothing else.
    Plain,
    Carried(usize),
    Product(usize),
    Embedded(usize),
    Attended(usize),
}

/// The shapes of a decoder's openings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) carried: Vec<Carried>,
    pub(crate) attended: Vec<Attended>,
    pub(crate) products: Vec<Product>,
    pub(crate) embedded: Vec<Embedded>,
    /// Index of the hidden vector in `carried`.
    pub(crate) hidden: usize,
    /// Products made at every position; those after them only where a token is chosen.
    pub(crate) products_always: usize,
    roles: Vec<Role>,
}

impl Form {
    /// Of a program; `None` for encoders, whose tokens cannot be checked one by one.
    pub(crate) fn new(checked: &Checked) -> Option<Form> {
        let program = checked.program();
        let Head::Tokens { hidden, logits } = program.head else { return None };
        let attends: Vec<[ValueId; 2]> = program
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Attend { k, v, .. } => Some([*k, *v]),
                _ => None,
            })
            .collect();
        let carried: Vec<Carried> = program
            .carried()
            .into_iter()
            .map(|op| {
                let (len, groups) = checked.int8_shape(op);
                let attended = program.is_attended(op);
                Carried {
                    op,
                    len: len as usize,
                    groups: groups as usize,
                    cached: attends.iter().flatten().any(|v| *v == op),
                    layout: if attended { Layout::Columns } else { Layout::Rows },
                }
            })
            .collect();
        let index = |op: ValueId| carried.iter().position(|c| c.op == op);
        let attended: Option<Vec<Attended>> =
            attends.iter().map(|[k, v]| Some(Attended { keys: index(*k)?, values: index(*v)? })).collect();
        let hidden_index = index(hidden)?;
        let mut form = Form {
            attended: attended?,
            hidden: hidden_index,
            products: vec![],
            products_always: 0,
            embedded: vec![],
            roles: vec![Role::Plain; program.ops.len()],
            carried,
        };
        let mut attends = 0..;
        for (op, o) in (0u16..=logits).zip(&program.ops) {
            let role = match *o {
                Op::MatMul { weights, x } => {
                    let rows = checked.matrix_shape(weights).0 as usize;
                    form.products.push(Product { op, weights, x, rows });
                    form.products_always += usize::from(op < hidden);
                    Role::Product(form.products.len() - 1)
                }
                Op::Embed { table } | Op::Position { table } => {
                    let cols = checked.matrix_shape(table).1 as usize;
                    let by_position = matches!(o, Op::Position { .. });
                    form.embedded.push(Embedded { op, table, cols, by_position });
                    Role::Embedded(form.embedded.len() - 1)
                }
                Op::Attend { .. } => Role::Attended(attends.next().unwrap_or_default()),
                _ => form.carried.iter().position(|c| c.op == op).map_or(Role::Plain, Role::Carried),
            };
            if let Some(r) = form.roles.get_mut(usize::from(op)) {
                *r = role;
            }
        }
        Some(form)
    }

    /// What an operation is.
    pub(crate) fn role(&self, op: usize) -> Role {
        self.roles.get(op).copied().unwrap_or(Role::Plain)
    }

    /// Number of products of a token.
    pub(crate) fn products_of(&self, chooses: bool) -> usize {
        if chooses { self.products.len() } else { self.products_always }
    }

    /// Whether an opening holds all numbers of a carried value in a block, and not only their roots.
    pub(crate) fn is_whole(&self, index: usize, block_is_opened: bool) -> bool {
        self.carried.get(index).is_some_and(|c| c.cached) || (index == self.hidden && block_is_opened)
    }
}
