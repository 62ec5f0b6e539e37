//! The last step: what is opened, and what follows from it.

use std::collections::BTreeMap;

use assay_core::digest::block_digest;
use assay_core::id::Hash;
use assay_core::merkle::{self, Proof as Path};
use assay_core::request::Terms;
use assay_core::transcript::LEAF_IDS;
use assay_engine::artifact::opening::{Content, Item, ModelOpening};
use assay_engine::matrix::TILE_COLS;
use assay_engine::program::{Declared, Facts, Head, Op, Shape as TensorShape, TensorId, ValueId, ValueType};
use borsh::{BorshDeserialize, BorshSerialize};

use super::situated::Situated as _;
use super::{Party, Reason, Statement};
use crate::microstep::{Cell, Choice, Extent, Rule, Source, fold, map, parts_of, rule};
use crate::trace::part::number_at;
use crate::trace::{block_count, block_of, operation};

/// Row scales in one leaf of a model.
pub(super) const SCALES_RUN: u32 = 128;
/// Numbers of a table or a vector in one leaf of a model.
pub(super) const ENTRIES_RUN: u32 = 64;
/// Numbers of a rotary table in one leaf of a model.
pub(super) const ANGLES_RUN: u32 = 128;

/// What opens a micro-step.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Proof {
    /// For a fold, the run of the challenger's accumulators that does not follow.
    pub run: u32,
    /// Operations, tensors, weights, scales, tables.
    pub model: Vec<ModelOpening>,
    /// Leaves of the trace.
    pub leaves: Vec<TraceLeaf>,
    /// Leaves of the transcript.
    pub ids: Vec<IdsLeaf>,
    /// How tokens are chosen.
    pub terms: Option<Terms>,
}

/// A leaf of a part, under the trace.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct TraceLeaf {
    /// The block.
    pub block: u32,
    /// The step.
    pub step: ValueId,
    /// The part.
    pub part: u8,
    /// The numbers.
    pub bytes: Vec<u8>,
    /// The leaf under its part's root.
    pub leaf: Path,
    /// Roots of all parts of the step.
    pub parts: Vec<Hash>,
    /// The step under the steps of the disputed block, or under what an earlier block carries.
    pub step_path: Path,
    /// The earlier block under the trace.
    pub block_path: Option<Path>,
}

/// Token ids, under the transcript.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct IdsLeaf {
    /// The ids.
    pub ids: Vec<u32>,
    /// The leaf.
    pub path: Path,
}

/// That a block's hidden vectors are those of its digest.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct DigestProof {
    /// Roots of the parts of the hidden vector.
    pub hidden: Vec<Hash>,
    /// The hidden vector under what the block carries.
    pub hidden_path: Path,
    /// The carry under the trace.
    pub carry_path: Path,
    /// The digest under the receipt's digests.
    pub digest_path: Path,
}

/// What the last step is about.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The receipt.
    pub statement: &'a Statement,
    /// The program.
    pub facts: &'a Facts,
    /// How tokens are chosen, where it is known already.
    pub choice: Option<&'a Choice>,
    /// The trace root.
    pub trace: Hash,
    /// The disputed block.
    pub block: u32,
    /// Root over its steps.
    pub steps: Hash,
    /// The disputed number.
    pub cell: Cell,
    /// What the defender says it is.
    pub claimed: i64,
    /// What the challenger says the accumulators are.
    pub partials: &'a [i64],
    /// Whether the number must be the transcript's token, too.
    pub chosen: bool,
}

/// Who is right about the number, and why.
pub(super) fn check_step(proof: &Proof, target: &Target<'_>) -> (Party, Reason) {
    let lost = (Party::Challenger, Reason::StepFails);
    let Some(mut opened) = Opened::new(proof, target) else { return lost };
    match rule(&mut opened, target.cell) {
        // What a contract cannot compute is no matter for it.
        Some(Rule::Given) => (Party::Defender, Reason::Malformed),
        Some(Rule::Map) if !target.partials.is_empty() => (Party::Defender, Reason::Malformed),
        Some(Rule::Map) => {
            let follows = proof.run == 0 && map(&mut opened, target.cell) == Some(target.claimed);
            if follows && (!target.chosen || opened.answers(target)) {
                (Party::Defender, Reason::StepHolds)
            } else {
                lost
            }
        }
        Some(Rule::Fold { runs, from }) => {
            if target.partials.len() as u64 != u64::from(runs) {
                return (Party::Defender, Reason::Malformed);
            }
            let before = match proof.run.checked_sub(1) {
                None => Some(&from),
                Some(last) => target.partials.get(last as usize),
            };
            let (Some(before), Some(after)) = (before, target.partials.get(proof.run as usize)) else {
                return lost;
            };
            match fold(&mut opened, target.cell, proof.run, *before) {
                Some(v) if v != *after => (Party::Defender, Reason::PartialsFail),
                _ => lost,
            }
        }
        None => lost,
    }
}

/// Whether a block's hidden vectors are those of its digest.
pub(super) fn check_digest(
    proof: &DigestProof,
    statement: &Statement,
    facts: &Facts,
    trace: Hash,
    block: u32,
) -> bool {
    let check = || {
        let blocks = u64::from(block_count(statement.positions()));
        let here = |path: &Path| path.index == u64::from(block) && path.count == blocks;
        let hidden = facts.carried.iter().position(|op| Some(*op) == hidden_of(facts))?;
        let [_, scales, numbers] = proof.hidden.as_slice() else { return None };
        let digest = block_digest(u64::from(block), scales, numbers);
        let root = Hash::from_bytes(*statement.digests.as_bytes());
        let carry = merkle::root_from(operation(&proof.hidden), &proof.hidden_path)?;
        let holds = proof.hidden_path.index == hidden as u64
            && proof.hidden_path.count == facts.carried.len() as u64
            && here(&proof.carry_path)
            && merkle::verify(&trace, carry, &proof.carry_path)
            && here(&proof.digest_path)
            && merkle::verify(&root, merkle::leaf(digest.as_bytes()), &proof.digest_path);
        Some(holds)
    };
    check() == Some(true)
}

fn hidden_of(facts: &Facts) -> Option<ValueId> {
    match facts.head {
        Head::Tokens { hidden, .. } => Some(hidden),
        Head::Vector { .. } => None,
    }
}

/// Name of a leaf of the trace: block, step, part, index.
type LeafName = (u32, ValueId, u8, u64);

/// What was opened, all of it checked: the referee's source.
struct Opened<'a> {
    statement: &'a Statement,
    extent: Extent,
    facts: &'a Facts,
    choice: Option<Choice>,
    ops: BTreeMap<ValueId, Declared>,
    shapes: BTreeMap<TensorId, TensorShape>,
    /// By tensor and run: weights by row and column tile, the others by run.
    weights: BTreeMap<(TensorId, u32, u32), Vec<i8>>,
    scales: BTreeMap<(TensorId, u32), Vec<u16>>,
    entries: BTreeMap<(TensorId, u32), Vec<i32>>,
    leaves: BTreeMap<LeafName, &'a [u8]>,
    ids: BTreeMap<u32, &'a [u32]>,
}

impl<'a> Opened<'a> {
    /// `None` when anything opened is not under the roots.
    fn new(proof: &'a Proof, target: &Target<'a>) -> Option<Opened<'a>> {
        let statement = target.statement;
        let choice = match (&proof.terms, target.choice) {
            (Some(terms), _) => {
                let guided = terms.verify(&statement.request)?;
                Some(Choice { sampling: terms.sampling.clone(), guided, seed: statement.seed() })
            }
            (None, known) => known.cloned(),
        };
        let mut opened = Opened {
            statement,
            extent: target.facts.extent(statement),
            facts: target.facts,
            choice,
            ops: BTreeMap::new(),
            shapes: BTreeMap::new(),
            weights: BTreeMap::new(),
            scales: BTreeMap::new(),
            entries: BTreeMap::new(),
            leaves: BTreeMap::new(),
            ids: BTreeMap::new(),
        };
        for opening in &proof.model {
            opened.model(opening)?;
        }
        for leaf in &proof.leaves {
            opened.leaf(leaf, target)?;
        }
        for leaf in &proof.ids {
            opened.transcript(leaf)?;
        }
        Some(opened)
    }

    fn model(&mut self, opening: &ModelOpening) -> Option<()> {
        let opened = opening.verify(&self.statement.model)?;
        match (opened.item, opened.content) {
            (Item::Op(op), Content::Op(declared)) => {
                self.ops.insert(op, declared);
            }
            (Item::Tensor(tensor), Content::Tensor(declaration)) => {
                self.shapes.insert(tensor, declaration.shape);
            }
            (Item::Weights { tensor, row, col_tile }, Content::Weights { weights, .. }) => {
                self.weights.insert((tensor, row, col_tile), weights);
            }
            (Item::Scales { tensor, run }, Content::Scales { scales, .. }) => {
                self.scales.insert((tensor, run), scales);
            }
            (Item::Run { tensor, index }, Content::Integers { numbers, .. }) => {
                self.entries.insert((tensor, index), numbers);
            }
            (Item::Run { tensor, index }, Content::Angles { angles, .. }) => {
                self.entries.insert((tensor, index), angles.into_iter().map(i32::from).collect());
            }
            _ => {}
        }
        Some(())
    }

    fn leaf(&mut self, leaf: &'a TraceLeaf, target: &Target<'_>) -> Option<()> {
        let root = leaf.parts.get(usize::from(leaf.part))?;
        let step = operation(&leaf.parts);
        let in_part = merkle::verify(root, merkle::leaf(&leaf.bytes), &leaf.leaf);
        let under_trace = match &leaf.block_path {
            None => {
                leaf.block == target.block
                    && leaf.step_path.index == u64::from(leaf.step)
                    && leaf.step_path.count == u64::from(self.facts.ops) + 2
                    && merkle::verify(&target.steps, step, &leaf.step_path)
            }
            // What the disputed block made is under its steps: what it carries might be something else.
            Some(_) if leaf.block == target.block => false,
            Some(block) => {
                let place = self.facts.carried.iter().position(|op| *op == leaf.step)?;
                let carry = merkle::root_from(step, &leaf.step_path);
                leaf.step_path.index == place as u64
                    && leaf.step_path.count == self.facts.carried.len() as u64
                    && block.index == u64::from(leaf.block)
                    && block.count == u64::from(block_count(self.statement.positions()))
                    && merkle::verify(&target.trace, carry?, block)
            }
        };
        if !in_part || !under_trace {
            return None;
        }
        self.leaves.insert((leaf.block, leaf.step, leaf.part, leaf.leaf.index), leaf.bytes.as_slice());
        Some(())
    }

    fn transcript(&mut self, leaf: &'a IdsLeaf) -> Option<()> {
        let bytes: Vec<u8> = leaf.ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let root = Hash::from_bytes(*self.statement.transcript.as_bytes());
        let [prompt, output] = [self.statement.prompt, self.statement.output].map(leaves_of);
        // A header before the ids, text and probabilities after them.
        let whole = leaf.path.count == u64::from(prompt) + u64::from(output) + 3;
        let index = u32::try_from(leaf.path.index.checked_sub(1)?).ok()?;
        let holds = whole
            && index < prompt.checked_add(output)?
            && leaf.ids.len() <= LEAF_IDS
            && merkle::verify(&root, merkle::leaf(&bytes), &leaf.path);
        holds.then(|| self.ids.insert(index, leaf.ids.as_slice()))?;
        Some(())
    }

    /// Whether the number is the token that the answer has.
    fn answers(&mut self, target: &Target<'_>) -> bool {
        let index = target.cell.position.checked_add(1).and_then(|p| p.checked_sub(self.statement.prompt));
        let id = index.and_then(|i| self.output(i));
        id.is_some_and(|id| i64::from(id) == target.claimed)
    }

    fn prompt_id(&self, i: u32) -> Option<u32> {
        self.ids.get(&(i / LEAF_IDS as u32))?.get((i % LEAF_IDS as u32) as usize).copied()
    }

    fn output(&self, i: u32) -> Option<u32> {
        let leaf = leaves_of(self.statement.prompt).checked_add(i / LEAF_IDS as u32)?;
        self.ids.get(&leaf)?.get((i % LEAF_IDS as u32) as usize).copied()
    }
}

/// Leaves that so many ids take.
fn leaves_of(ids: u32) -> u32 {
    ids.div_ceil(LEAF_IDS as u32)
}

/// The leaf of the transcript that holds the token at a position.
pub(super) fn ids_leaf(statement: &Statement, position: u32) -> u32 {
    match position.checked_sub(statement.prompt) {
        None => position / LEAF_IDS as u32,
        Some(i) => leaves_of(statement.prompt).saturating_add(i / LEAF_IDS as u32),
    }
}

impl Source for Opened<'_> {
    fn extent(&self) -> Extent {
        self.extent
    }

    fn choice(&mut self) -> Option<&Choice> {
        self.choice.as_ref()
    }

    fn op(&mut self, op: ValueId) -> Option<(Op, ValueType)> {
        self.ops.get(&op).map(|d| (d.op, d.made))
    }

    fn shape(&mut self, tensor: TensorId) -> Option<TensorShape> {
        self.shapes.get(&tensor).copied()
    }

    fn cell(&mut self, cell: Cell) -> Option<i64> {
        let attended = self.ops.get(&cell.op).is_some_and(|d| d.attended);
        let spec = *parts_of(self, cell.op, attended)?.get(usize::from(cell.part))?;
        let block = block_of(cell.position);
        let (positions, rows) = self.facts.rows(self.statement, block, cell.op)?;
        let shape = spec.shape(rows.len(), positions.end);
        let row = cell.position.checked_sub(rows.start)? as usize;
        if row >= shape.rows || cell.column as usize >= shape.columns {
            return None;
        }
        let place = shape.place(row, cell.column as usize);
        let bytes = self.leaves.get(&(block, cell.op, cell.part, place.leaf as u64))?;
        number_at(bytes, shape.width, place.at)
    }

    fn weight(&mut self, tensor: TensorId, row: u32, col: u32) -> Option<i8> {
        let tile = col / TILE_COLS as u32;
        self.weights.get(&(tensor, row, tile))?.get((col % TILE_COLS as u32) as usize).copied()
    }

    fn row_scale(&mut self, tensor: TensorId, row: u32) -> Option<u16> {
        self.scales.get(&(tensor, row / SCALES_RUN))?.get((row % SCALES_RUN) as usize).copied()
    }

    fn entry(&mut self, tensor: TensorId, index: u32) -> Option<i32> {
        let run = match self.shape(tensor)? {
            TensorShape::Rotary { .. } => ANGLES_RUN,
            _ => ENTRIES_RUN,
        };
        self.entries.get(&(tensor, index / run))?.get((index % run) as usize).copied()
    }

    fn token(&mut self, position: u32) -> Option<u32> {
        match position.checked_sub(self.statement.prompt) {
            None => self.prompt_id(position),
            Some(i) => self.output(i),
        }
    }
}
