//! The provider's side: commits to a trace, and opens positions of it, by executing the answer again.
//!
//! One teacher-forced pass, block by block; what is held in memory beyond the opening itself is one block and the caches of
//! the sequence. Nothing has to be kept from when the answer was made.

use std::collections::BTreeMap;

use assay_core::id::Hash;
use assay_core::transcript::Transcript;
use assay_engine::cache::Sequence;
use assay_engine::forward::{Companion, Executor, Segment, Values};
use assay_engine::kernel::keccak;
use assay_engine::program::{Op, Program, TensorId};
use assay_engine::semantics::scale::Scale;

use super::form::{Form, Role, Roots};
use super::key::{KeyError, row_leaves};
use super::opening::{Block, Int8s, Kept, Opening, Packed, Row, Token};
use crate::trace;
use crate::trace::part::{Numbers, Part};

/// The tokens that an answer's execution is fed (semantics 8.1): the prompt and every output id but the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fed {
    tokens: Vec<u32>,
    first: u32,
}

impl Fed {
    /// From prompt and output ids; `None` when either is empty or they are more than 32 bits count.
    pub fn new(prompt: Vec<u32>, output: Vec<u32>) -> Option<Fed> {
        let first = u32::try_from(prompt.len().checked_sub(1)?).ok()?;
        let written = output.len().checked_sub(1)?;
        let mut tokens = prompt;
        tokens.extend(output.into_iter().take(written));
        u32::try_from(tokens.len()).ok()?;
        Some(Fed { tokens, first })
    }

    /// Of a transcript.
    pub fn of(transcript: &Transcript) -> Option<Fed> {
        Fed::new(transcript.prompt_ids.clone(), transcript.output_ids.clone())
    }

    /// The tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many positions the execution has.
    pub fn positions(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX)
    }

    /// The first position whose logits choose an output id.
    pub fn choices_from(&self) -> u32 {
        self.first
    }
}

/// Commits and opens, with the engine that made the answer.
pub struct Prover<'a> {
    executor: &'a mut Executor,
    form: Form,
    /// Leaf hashes of the tables that tokens are embedded by, made when a row is first opened.
    tables: BTreeMap<TensorId, Vec<Hash>>,
}

impl<'a> Prover<'a> {
    /// A prover for the executor's model.
    pub fn new(executor: &'a mut Executor) -> Result<Prover<'a>, KeyError> {
        let form = Form::new(executor.constants().program()).ok_or(KeyError::Encoder)?;
        Ok(Prover { executor, form, tables: BTreeMap::new() })
    }

    /// The root of the trace: what is published before positions are drawn.
    ///
    /// # Panics
    /// When a token is not below the vocabulary or there are more than the context.
    pub fn commit(&mut self, fed: &Fed) -> Hash {
        self.walk(fed, &[]).1
    }

    /// Opens positions, which rise and are below the execution's.
    ///
    /// # Panics
    /// As [`Prover::commit`], and when the positions are others.
    pub fn open(&mut self, fed: &Fed, positions: &[u32]) -> Opening {
        assert!(positions.is_sorted_by(|a, b| a < b), "positions rise");
        assert!(positions.last().is_none_or(|p| *p < fed.positions()), "positions are the execution's");
        self.walk(fed, positions).0
    }

    fn walk(&mut self, fed: &Fed, opened: &[u32]) -> (Opening, Hash) {
        let constants = std::sync::Arc::clone(self.executor.constants());
        let program = constants.program().program();
        let mut sequence = Sequence::new(constants.program().caches(), fed.tokens.len());
        let mut opening = Opening { blocks: vec![], rest: vec![], tokens: vec![] };
        let mut carries = Vec::new();
        for block in 0..trace::blocks(program, fed.positions()) {
            let positions = trace::block_positions(program, fed.positions(), block);
            let mut gathered = vec![Gathered::default(); self.form.carried.len()];
            let here: Vec<u32> = opened.iter().copied().filter(|p| positions.contains(p)).collect();
            let row = |position: u32| (position - positions.start) as usize;
            let tokens = &fed.tokens[positions.start as usize..positions.end as usize];
            let chooses = here.iter().find(|p| **p >= fed.first);
            let mut capture = Capture {
                form: &self.form,
                program,
                positions: tokens.len(),
                gathered: &mut gathered,
                opened: here.iter().map(|p| (row(*p), vec![])).collect(),
            };
            let logits_from = chooses.map_or(tokens.len(), |p| row(*p));
            let segment = Segment { sequence: &mut sequence, tokens, logits_from };
            self.executor.forward_beside(&mut [segment], &mut capture);
            for (position, (_, products)) in here.iter().zip(capture.opened) {
                let token = fed.tokens[*position as usize];
                opening.tokens.push(Token {
                    position: *position,
                    rows: self.rows(token, *position),
                    products,
                });
            }
            let kept = self.keep(gathered, !here.is_empty());
            let roots: Vec<Roots> = kept.iter().map(|(roots, _)| *roots).collect();
            let carry = Roots::carries(&roots, roots.len());
            carries.extend(&carry);
            if opened.last().is_some_and(|p| *p >= positions.start) {
                opening.blocks.push(Block { kept: kept.into_iter().map(|(_, k)| k).collect() });
            } else {
                opening.rest.extend(carry);
            }
        }
        (opening, trace::root(&carries))
    }

    /// Roots of what a block is committed by, and what an opening holds of it.
    fn keep(&self, gathered: Vec<Gathered>, block_is_opened: bool) -> Vec<(Roots, Kept)> {
        let (mut parts, mut scales) = (Vec::new(), Vec::new());
        for (g, carried) in gathered.into_iter().zip(&self.form.carried) {
            parts.extend([carried.largest(g.largest), carried.scales(&g.scales), carried.numbers(g.numbers)]);
            scales.push(g.scales);
        }
        let hashes = Part::roots(&parts.iter().collect::<Vec<_>>());
        let numbers = parts.into_iter().skip(2).step_by(3).map(Part::into_numbers);
        let all = hashes.chunks_exact(3).zip(numbers).zip(scales).enumerate();
        all.map(|(i, ((hashes, numbers), scales))| {
            let roots = Roots { largest: hashes[0], scales: hashes[1], numbers: hashes[2] };
            let kept = match numbers {
                Numbers::Byte(n) if self.form.is_whole(i, block_is_opened) => {
                    Kept::Whole { largest: roots.largest, scales, numbers: Int8s(n) }
                }
                _ => Kept::Roots(roots),
            };
            (roots, kept)
        })
        .collect()
    }

    /// The rows that a token at a position is embedded by.
    fn rows(&mut self, token: u32, position: u32) -> Vec<Row> {
        let constants = std::sync::Arc::clone(self.executor.constants());
        let (embedded, pool) = (&self.form.embedded, self.executor.pool());
        let rows = embedded.iter().map(|e| {
            let w = constants.matrix(e.table);
            let leaves = self.tables.entry(e.table).or_insert_with(|| row_leaves(&w, pool));
            let row = if e.by_position { position } else { token } as usize;
            Row {
                scale: w.scales()[row],
                weights: Int8s((0..w.cols()).map(|c| w.weight(row, c)).collect()),
                proof: keccak::prove(leaves, row).expect("a checked program has a row for every token"),
            }
        });
        rows.collect()
    }
}

/// A carried operation's rows of one block.
#[derive(Clone, Default)]
struct Gathered {
    largest: Vec<i64>,
    scales: Vec<Scale>,
    numbers: Vec<i8>,
}

/// Beside the executor: gathers what blocks are committed by, and the products of opened rows.
struct Capture<'a> {
    form: &'a Form,
    program: &'a Program,
    /// Positions of the pass; rows that have logits are its last.
    positions: usize,
    gathered: &'a mut [Gathered],
    /// Opened rows among the positions, and their products so far.
    opened: Vec<(usize, Vec<Packed>)>,
}

impl Companion for Capture<'_> {
    /// Makes products of opened rows itself: their accumulators are what is opened.
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let Role::Product(i) = self.form.role(op) else { return false };
        let (p, left_out) = (self.form.products[i], self.positions - values.rows());
        let mut opened: Vec<_> = self.opened.iter_mut().filter(|(row, _)| *row >= left_out).collect();
        if opened.is_empty() {
            return false;
        }
        let all = values.accumulators(p.weights, p.x);
        let of = |row: usize| &all[row * p.rows..(row + 1) * p.rows];
        opened.iter_mut().for_each(|(row, products)| products.push(Packed::new(of(*row - left_out))));
        values.put_product(p.op, p.weights, p.x, &mut |row, _, sums| sums.copy_from_slice(of(row)));
        true
    }

    fn made(&mut self, op: usize, values: &Values<'_>) {
        match self.form.role(op) {
            Role::Carried(i) => {
                let (v, into) = (self.form.carried[i].op, &mut self.gathered[i]);
                let Op::Quantise { x, offset, len, groups } = self.program.ops[op] else {
                    unreachable!("int8 values are made by quantise operations")
                };
                let run = (len / groups) as usize;
                for row in 0..values.rows() {
                    let (numbers, scales) = values.int8(v, row);
                    into.numbers.extend_from_slice(numbers);
                    into.scales.extend_from_slice(scales);
                    let input = &values.integers(x, row).0[offset as usize..][..len as usize];
                    let largest = |group: &[i32]| group.iter().map(|v| i64::from(*v).abs()).max();
                    into.largest.extend(input.chunks_exact(run).filter_map(largest));
                }
            }
            Role::Plain | Role::Embedded(_) | Role::Attended(_) | Role::Product(_) => {}
        }
    }
}
