//! The state at a boundary between two layers: its numbers, its commitment, its bytes, and how a provider makes it.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use assay_core::canonical::Canonical;
use assay_core::id::Hash;
use assay_core::limits::BOUNDARY_BYTES_MAX;
use assay_core::merkle;
use assay_engine::program::check::{CONTEXT_MAX, DIMENSION_MAX};
use assay_engine::program::layers::Layers;
use assay_engine::program::{Checked, Program};
use assay_engine::replay::{LayerExecution, LayerRow, LayerRun};
use borsh::{BorshDeserialize, BorshSerialize};

use crate::trace::part::{Layout, Numbers, Part};
use crate::trace::{block_positions, blocks};

/// What a layer hands on: as many fixed-point numbers for each position as the value is long. It has a position and a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    width: u32,
    numbers: Vec<i32>,
}

impl Boundary {
    /// From its numbers, position by position; `None` when they are not whole rows of `width`, or none, or more than a program can
    /// have.
    pub fn new(width: usize, numbers: Vec<i32>) -> Option<Boundary> {
        let positions = numbers.len().checked_div(width)?;
        let whole = positions.checked_mul(width) == Some(numbers.len());
        let width = u32::try_from(width).ok()?;
        (whole && shape(width, u32::try_from(positions).ok()?).is_some())
            .then_some(Boundary { width, numbers })
    }

    /// Numbers of a position.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// How many positions it has.
    pub fn positions(&self) -> usize {
        self.numbers.len().checked_div(self.width()).unwrap_or(0)
    }

    /// All numbers, position by position.
    pub fn numbers(&self) -> &[i32] {
        &self.numbers
    }

    /// The numbers of a position; none where there is none.
    pub fn row(&self, position: usize) -> &[i32] {
        let row = |p: usize| p.checked_mul(self.width());
        let range = row(position).zip(position.checked_add(1).and_then(row));
        range.and_then(|(from, to)| self.numbers.get(from..to)).unwrap_or_default()
    }

    /// The commitment: the root over the roots of the blocks, each a part with a row for every position. With the length of the
    /// value, which follows from the program, it fixes the number of positions.
    pub fn commitment(&self, program: &Program) -> Hash {
        let positions = u32::try_from(self.positions()).unwrap_or(u32::MAX);
        merkle::root((0..blocks(program, positions)).map(|block| {
            let rows = block_positions(program, positions, block);
            let numbers: Vec<i32> = rows.clone().flat_map(|p| self.row(p as usize)).copied().collect();
            Part::new(rows.len(), self.width(), Layout::Rows, Numbers::Word(numbers)).root()
        }))
    }
}

/// How many numbers there are, if there may be so many.
fn shape(width: u32, positions: u32) -> Option<usize> {
    let within = (1..=DIMENSION_MAX).contains(&width) && (1..=CONTEXT_MAX).contains(&positions);
    within.then_some((width as usize).checked_mul(positions as usize)?)
}

/// Length of the value, number of positions, and the numbers.
impl BorshSerialize for Boundary {
    fn serialize<W: Write>(&self, writer: &mut W) -> io::Result<()> {
        let positions = u32::try_from(self.positions()).map_err(io::Error::other)?;
        (self.width, positions).serialize(writer)?;
        for row in self.numbers.chunks(self.width().max(1)) {
            let bytes: Vec<u8> = row.iter().flat_map(|n| n.to_le_bytes()).collect();
            writer.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// Takes memory as the numbers come, whatever their number is said to be.
impl BorshDeserialize for Boundary {
    fn deserialize_reader<R: Read>(reader: &mut R) -> io::Result<Self> {
        let (width, positions) = <(u32, u32)>::deserialize_reader(reader)?;
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        shape(width, positions)
            .ok_or_else(|| invalid(format!("{positions} positions of {width} numbers")))?;
        let mut row = vec![0u8; width as usize * 4];
        let mut numbers = Vec::new();
        for _ in 0..positions {
            reader.read_exact(&mut row)?;
            numbers.extend(row.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)));
        }
        Ok(Boundary { width, numbers })
    }
}

impl Canonical for Boundary {
    const TAG: &'static str = "assay/boundary/1";
    const BYTES_MAX: usize = BOUNDARY_BYTES_MAX;
}

/// Executes `tokens` layer by layer with `execution`, which must execute the program, and tells the state at each boundary, in
/// order with its index, until `visit` breaks. Together it costs one prefill; memory is two states and one layer's cache.
///
/// # Panics
/// As [`LayerExecution::execute_layer`]: callers check ids and lengths.
pub fn boundaries(
    program: &Checked,
    execution: &mut dyn LayerExecution,
    tokens: &[u32],
    visit: &mut dyn FnMut(usize, &Boundary) -> ControlFlow<()>,
) {
    let layers = Layers::of(program);
    let Some((_, but_last)) = layers.all().split_last() else { return };
    let mut state: Option<Boundary> = None;
    for (i, layer) in but_last.iter().enumerate() {
        let before = state.as_ref().map_or(&[][..], Boundary::numbers);
        let run = LayerRun { layer, tokens, state: before, logits_from: tokens.len() };
        let width = program.value_type(layer.output).integers().unwrap_or(0) as usize;
        let mut numbers = Vec::with_capacity(tokens.len().saturating_mul(width));
        execution.execute_layer(&run, &mut |row| {
            if let LayerRow::State { numbers: row, .. } = row {
                numbers.extend_from_slice(row);
            }
        });
        state = Boundary::new(width, numbers);
        let Some(state) = &state else { return };
        if visit(i, state).is_break() {
            return;
        }
    }
}

/// The state at one boundary, or `None` when there is none of this index. Executes the layers before it.
///
/// # Panics
/// As [`boundaries`].
pub fn boundary(
    program: &Checked,
    execution: &mut dyn LayerExecution,
    tokens: &[u32],
    index: usize,
) -> Option<Boundary> {
    let mut found = None;
    boundaries(program, execution, tokens, &mut |i, state| {
        if i == index {
            found = Some(state.clone());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    found
}
