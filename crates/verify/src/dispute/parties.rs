//! The two parties, as they play honestly: each executes the answer itself and answers from its own trace.
//!
//! What a cheat has in place of an honest trace is a parameter: a trace of another model or another prompt, or blocks that
//! were altered after they were made ([`Player::altering`]).

use std::collections::BTreeSet;

use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_engine::artifact::opening::{Item, ModelOpening};
use assay_engine::artifact::tree::ModelTree;
use assay_engine::matrix::TILE_COLS;
use assay_engine::program::{Op, Shape as TensorShape, TensorId, ValueId, ValueType};
use assay_engine::replay::Execution;

use super::proof::{ANGLES_RUN, DigestProof, ENTRIES_RUN, IdsLeaf, Proof, SCALES_RUN, TraceLeaf, ids_leaf};
use super::{Claim, Descent, Message, Outcome, Party, Pick, Referee, Stage, Statement, Tree, cover};
use crate::microstep::{Cell, Choice, Extent, Rule, Source, choose, fold, map, partials, rule};
use crate::trace::part::Part;
use crate::trace::walk::{Block, Trace, Walked};
use crate::trace::{block_of, block_range, carry};

/// How a cheat changes a block.
type Altering<'a> = Box<dyn Fn(&mut Block) + 'a>;

/// A party: its trace, and a way to walk it.
pub struct Player<'a> {
    trace: Trace<'a>,
    execution: Box<dyn Execution + 'a>,
    block: Option<Block>,
    altering: Option<Altering<'a>>,
}

impl<'a> Player<'a> {
    /// With its own trace. `execution` executes the trace's program and constants.
    pub fn new(trace: Trace<'a>, execution: Box<dyn Execution + 'a>) -> Player<'a> {
        Player { trace, execution, block: None, altering: None }
    }

    /// One that alters every block after walking it: what a cheat would do.
    pub fn altering(mut self, altering: impl Fn(&mut Block) + 'a) -> Player<'a> {
        self.altering = Some(Box::new(altering));
        self
    }

    /// Its trace.
    pub fn trace(&self) -> &Trace<'a> {
        &self.trace
    }

    fn walk(&mut self, index: u32) {
        if self.block.as_ref().is_none_or(|b| b.index != index) {
            let mut block = self.trace.block(self.execution.as_mut(), index);
            if let Some(alter) = &self.altering {
                alter(&mut block);
            }
            self.block = Some(block);
        }
    }

    /// Trace and block `index`.
    fn walked(&mut self, index: u32) -> Option<Walked<'_, '_, 'a>> {
        self.walk(index);
        Some(Walked { trace: &self.trace, block: self.block.as_ref()? })
    }

    /// The leaves of the tree that the referee is walking down.
    fn leaves(&mut self, referee: &Referee) -> Option<Vec<Hash>> {
        match referee.tree_step() {
            None if referee.in_blocks() => Some(self.trace.carries()),
            None => Some(self.walked(referee.block())?.block.commitments()),
            Some(step) => {
                let part = referee.part();
                let block = self.walked(referee.block())?.block;
                Some(block.parts(step)?.get(usize::from(part))?.leaves())
            }
        }
    }
}

/// Who signed the receipt.
pub struct Defender<'a> {
    player: Player<'a>,
    record: &'a AnswerRecord,
    model: &'a ModelTree,
}

impl<'a> Defender<'a> {
    /// With the record of its receipt, and the hashes of its model.
    pub fn new(player: Player<'a>, record: &'a AnswerRecord, model: &'a ModelTree) -> Defender<'a> {
        Defender { player, record, model }
    }

    /// What it says now. `None` when it is not its turn, or it has nothing to say and will time out.
    pub fn answer(&mut self, referee: &Referee) -> Option<Claim> {
        let at = referee.at();
        match referee.stage() {
            Stage::Trace => {
                let nodes = at.nodes(referee.below(), &self.player.trace.carries());
                Some(Claim::Trace { facts: self.open(Item::Facts)?, nodes })
            }
            Stage::Steps | Stage::Nodes if referee.tree() == Tree::Steps && referee.below() == 0 => {
                let block = self.player.walked(referee.block())?.block;
                let lists = (at.first(0)..at.first(0).saturating_add(at.count(0)))
                    .map(|step| Some(roots(block.parts(ValueId::try_from(step).ok()?)?)));
                Some(Claim::Steps(lists.collect::<Option<_>>()?))
            }
            Stage::Steps | Stage::Nodes => {
                let leaves = self.player.leaves(referee)?;
                Some(Claim::Nodes(at.nodes(referee.below(), &leaves)))
            }
            Stage::Part => {
                let step = referee.step();
                let program = self.player.trace.constants().program().program();
                let of_program = usize::from(step) < program.ops.len();
                let op = if of_program { Some(self.open(Item::Op(step))?) } else { None };
                let terms = if of_program { None } else { Some(self.record.request.terms()) };
                let block = self.player.walked(referee.block())?.block;
                // A challenger that picks a part that there is not has lost by it.
                let nodes = block.parts(step)?.get(usize::from(referee.part())).map(first_nodes);
                Some(Claim::Part { op, terms, nodes: nodes.unwrap_or_default() })
            }
            Stage::Leaf => {
                let (leaf, _) = referee.picked();
                let block = self.player.walked(referee.block())?.block;
                let part = block.parts(referee.step())?.get(usize::from(referee.part()))?;
                Some(Claim::Leaf(part.leaf(usize::try_from(leaf).ok()?)))
            }
            Stage::Proof => self.prove(referee).map(|p| Claim::Proof(Box::new(p))),
            Stage::Digest(block) => self.digest(*block).map(|p| Claim::Digest(Box::new(p))),
            Stage::PickNode(..) | Stage::PickPart(_) | Stage::PickNumber(_) | Stage::Over(_) => None,
        }
    }

    fn open(&self, item: Item) -> Option<ModelOpening> {
        self.model.open(self.player.trace.constants(), item)
    }

    fn digest(&mut self, block: u32) -> Option<DigestProof> {
        let trace = &self.player.trace;
        let program = trace.constants().program().program();
        let (hidden, _) = program.tokens();
        let digests: Vec<Hash> = self.record.digests.0.iter().map(|d| merkle::leaf(d.as_bytes())).collect();
        let place = program.carried().binary_search(&hidden).ok()?;
        Some(DigestProof {
            hidden: roots(trace.carried_parts(block, hidden)?),
            hidden_path: merkle::prove(&trace.carried_commitments(block), place)?,
            carry_path: merkle::prove(&trace.carries(), block as usize)?,
            digest_path: merkle::prove(&digests, block as usize)?,
        })
    }

    /// Evaluates the last step over its own trace, and opens what that reads.
    fn prove(&mut self, referee: &Referee) -> Option<Proof> {
        let statement = referee.statement().clone();
        let cell = referee.cell()?;
        let chosen = referee.is_chosen();
        let walked = self.player.walked(referee.block())?;
        let mut reading = Reading::new(walked, &statement);
        let mut run = 0;
        match rule(&mut reading, cell)? {
            Rule::Given => {}
            Rule::Map => {
                map(&mut reading, cell);
                if chosen {
                    reading.token(cell.position.checked_add(1)?);
                }
            }
            Rule::Fold { runs, from } => {
                // The first run after which the accumulator is another.
                let mut acc = from;
                for r in 0..runs {
                    let mut dry = Reading::new(Walked { ..reading.walked }, &statement);
                    acc = fold(&mut dry, cell, r, acc)?;
                    if referee.partials().get(r as usize) != Some(&acc) {
                        run = r;
                        break;
                    }
                }
                let before = match run.checked_sub(1) {
                    None => from,
                    Some(last) => *referee.partials().get(last as usize)?,
                };
                fold(&mut reading, cell, run, before);
            }
        }
        let read = reading.read;
        self.collect(referee, run, &read)
    }

    fn collect(&self, referee: &Referee, run: u32, read: &Read) -> Option<Proof> {
        let mut model = Vec::new();
        for item in &read.model {
            model.push(self.open(*item)?);
        }
        let trace = &self.player.trace;
        let block = self.player.block.as_ref()?;
        let steps = block.commitments();
        let carries = trace.carries();
        let program = trace.constants().program().program();
        let wanted = program.carried();
        let mut leaves = Vec::new();
        for (index, step, part, leaf) in read.leaves.iter().copied() {
            let here = index == block.index;
            let parts = if here { block.parts(step)? } else { trace.carried_parts(index, step)? };
            let opened = parts.get(usize::from(part))?;
            let leaf = usize::try_from(leaf).ok()?;
            let (step_path, block_path) = if here {
                (merkle::prove(&steps, usize::from(step))?, None)
            } else {
                let place = wanted.binary_search(&step).ok()?;
                let carried = trace.carried_commitments(index);
                let path = merkle::prove(&carries, index as usize)?;
                (merkle::prove(&carried, place)?, Some(path))
            };
            leaves.push(TraceLeaf {
                block: index,
                step,
                part,
                bytes: opened.leaf(leaf),
                leaf: merkle::prove(&opened.leaves(), leaf)?,
                parts: roots(parts),
                step_path,
                block_path,
            });
        }
        let mut ids = Vec::new();
        for leaf in &read.ids {
            let (ids_of, path) = self.record.transcript.open_ids(*leaf as usize)?;
            ids.push(IdsLeaf { ids: ids_of, path });
        }
        let _ = referee;
        let terms = read.choice.then(|| self.record.request.terms());
        Some(Proof { run, model, leaves, ids, terms })
    }
}

fn roots(parts: &[Part]) -> Vec<Hash> {
    parts.iter().map(Part::root).collect()
}

/// The nodes over a part's leaves that are claimed first.
fn first_nodes(part: &Part) -> Vec<Hash> {
    let top = Descent::top(part.shape().leaves() as u64);
    top.nodes(top.next(Tree::Part), &part.leaves())
}

/// Who says that the receipt is wrong.
pub struct Challenger<'a> {
    player: Player<'a>,
    record: &'a AnswerRecord,
    /// A number that must be the transcript's and is not.
    target: Option<Cell>,
}

impl<'a> Challenger<'a> {
    /// With the record of the receipt.
    pub fn new(player: Player<'a>, record: &'a AnswerRecord) -> Challenger<'a> {
        Challenger { player, record, target: None }
    }

    /// What it picks now. `None` when it is not its turn, or it finds nothing wrong.
    pub fn answer(&mut self, referee: &Referee) -> Option<Pick> {
        match referee.stage() {
            Stage::PickNode(height, nodes) => {
                let at = referee.at();
                let own = at.nodes(*height, &self.player.leaves(referee)?);
                if let Some(i) = first_difference(&own, nodes) {
                    return Some(Pick::Node(i));
                }
                if referee.in_blocks() && referee.given().is_some() {
                    // A trace that is its own is right.
                    return None;
                }
                if referee.in_blocks() && self.target.is_none() {
                    if let Some(block) = self.wrong_digest() {
                        return Some(Pick::Digest(block));
                    }
                    self.target = Some(self.wrong_token()?);
                }
                let wanted = match referee.tree() {
                    Tree::Blocks => u64::from(block_of(self.target?.position)),
                    Tree::Steps if self.carries_otherwise(referee) => return self.carry(referee),
                    Tree::Steps => u64::from(self.target?.op),
                    Tree::Part => self.target_leaf(referee)?,
                };
                let i = (wanted >> height).checked_sub(at.first(*height))?;
                Some(Pick::Node(u32::try_from(i).ok()?))
            }
            Stage::PickPart(lists) => {
                let first = referee.at().first(0);
                let block = self.player.walked(referee.block())?.block;
                for (step, theirs) in (0u32..).zip(lists) {
                    let own = roots(block.parts(ValueId::try_from(first.checked_add(step.into())?).ok()?)?);
                    if own != *theirs {
                        // Where they are not as many, the referee will see it.
                        let part = first_difference(&own, theirs).unwrap_or(0);
                        return Some(Pick::Part { step, part: u8::try_from(part).ok()? });
                    }
                }
                if self.carries_otherwise(referee) {
                    return self.carry(referee);
                }
                let target = self.target?;
                let step = u32::try_from(u64::from(target.op).checked_sub(first)?).ok()?;
                Some(Pick::Part { step, part: target.part })
            }
            Stage::PickNumber(numbers) => {
                let (leaf, _) = referee.picked();
                let walked = self.player.walked(referee.block())?;
                let part = walked.block.parts(referee.step())?.get(usize::from(referee.part()))?;
                let shape = part.shape();
                let first = walked.block.first(referee.step());
                let leaf = usize::try_from(leaf).ok()?;
                let cell = |i: usize| {
                    shape.cell(referee.step(), referee.part(), first, leaf, u16::try_from(i).ok()?)
                };
                let own = |i: usize| walked.block.get(cell(i)?);
                let index = (0..numbers.len()).find(|i| own(*i) != numbers.get(*i).copied());
                let index = index.or_else(|| (0..numbers.len()).find(|i| cell(*i) == self.target))?;
                let mut source = Walked { ..walked };
                let partials = partials(&mut source, cell(index)?).unwrap_or_default();
                Some(Pick::Number { index: u16::try_from(index).ok()?, partials })
            }
            _ => None,
        }
    }

    /// The leaf of the number that must be the transcript's.
    fn target_leaf(&mut self, referee: &Referee) -> Option<u64> {
        let target = self.target?;
        let block = self.player.walked(referee.block())?.block;
        let own = block.parts(target.op)?.get(usize::from(target.part))?;
        let row = target.position.checked_sub(block.first(target.op))? as usize;
        Some(own.shape().place(row, target.column as usize).leaf as u64)
    }

    /// The first block whose digest is not of the hidden vectors of its own trace.
    fn wrong_digest(&self) -> Option<u32> {
        let own = self.player.trace.digests();
        self.record.digests.first_difference(&own).and_then(|i| u32::try_from(i).ok())
    }

    /// The first token of the answer that is not the one its own trace chooses.
    ///
    /// Of a guided answer none is named: which tokens a guide leaves is no matter for a referee, so that such a dispute might be
    /// lost over a mask.
    fn wrong_token(&mut self) -> Option<Cell> {
        if self.record.request.guide.is_some() {
            return None;
        }
        let Player { trace, execution, .. } = &mut self.player;
        wrong_token(trace, self.record, |b| Some(trace.block(execution.as_mut(), b)))
    }

    fn carries_otherwise(&self, referee: &Referee) -> bool {
        carry(&self.player.trace.carried_commitments(referee.block())) != referee.carry()
    }

    /// That the defender's steps, which are the same as its own, do not make what it carries.
    fn carry(&mut self, referee: &Referee) -> Option<Pick> {
        let wanted = self.player.trace.constants().program().program().carried();
        let steps = self.player.walked(referee.block())?.block.commitments();
        cover::show(&steps, &wanted).map(Pick::Carry)
    }
}

fn first_difference(own: &[Hash], theirs: &[Hash]) -> Option<u32> {
    let i = own.iter().zip(theirs).position(|(a, b)| a != b)?;
    u32::try_from(i).ok()
}

/// What a micro-step read.
#[derive(Default)]
struct Read {
    model: BTreeSet<Item>,
    /// Block, step, part, leaf.
    leaves: BTreeSet<(u32, ValueId, u8, u64)>,
    ids: BTreeSet<u32>,
    choice: bool,
}

/// A source that remembers.
struct Reading<'r, 'b, 't, 'a> {
    walked: Walked<'b, 't, 'a>,
    statement: &'r Statement,
    read: Read,
}

impl<'r, 'b, 't, 'a> Reading<'r, 'b, 't, 'a> {
    fn new(walked: Walked<'b, 't, 'a>, statement: &'r Statement) -> Self {
        Reading { walked, statement, read: Read::default() }
    }
}

impl Source for Reading<'_, '_, '_, '_> {
    fn extent(&self) -> Extent {
        self.walked.extent()
    }

    fn choice(&mut self) -> Option<&Choice> {
        self.read.choice = true;
        self.walked.choice()
    }

    fn op(&mut self, op: ValueId) -> Option<(Op, ValueType)> {
        self.read.model.insert(Item::Op(op));
        self.walked.op(op)
    }

    fn shape(&mut self, tensor: TensorId) -> Option<TensorShape> {
        self.read.model.insert(Item::Tensor(tensor));
        self.walked.shape(tensor)
    }

    fn cell(&mut self, cell: Cell) -> Option<i64> {
        let block = block_of(cell.position);
        let of_program = usize::from(cell.op) < self.walked.extent().ops;
        if of_program {
            self.read.model.insert(Item::Op(cell.op));
        } else {
            self.read.choice = true;
        }
        let (parts, first) = if block == self.walked.block.index {
            (self.walked.block.parts(cell.op)?, self.walked.block.first(cell.op))
        } else {
            let first = block_range(self.statement.positions(), block).start;
            (self.walked.trace.carried_parts(block, cell.op)?, first)
        };
        let shape = parts.get(usize::from(cell.part))?.shape();
        let place = shape.place(cell.position.checked_sub(first)? as usize, cell.column as usize);
        self.read.leaves.insert((block, cell.op, cell.part, place.leaf as u64));
        self.walked.cell(cell)
    }

    fn weight(&mut self, tensor: TensorId, row: u32, col: u32) -> Option<i8> {
        let col_tile = col / TILE_COLS as u32;
        self.read.model.insert(Item::Weights { tensor, row, col_tile });
        self.walked.weight(tensor, row, col)
    }

    fn row_scale(&mut self, tensor: TensorId, row: u32) -> Option<u16> {
        self.read.model.insert(Item::Scales { tensor, run: row / SCALES_RUN });
        self.walked.row_scale(tensor, row)
    }

    fn entry(&mut self, tensor: TensorId, index: u32) -> Option<i32> {
        self.read.model.insert(Item::Tensor(tensor));
        let run = match self.walked.shape(tensor)? {
            TensorShape::Rotary { .. } => ANGLES_RUN,
            _ => ENTRIES_RUN,
        };
        self.read.model.insert(Item::Run { tensor, index: index / run });
        self.walked.entry(tensor, index)
    }

    fn token(&mut self, position: u32) -> Option<u32> {
        self.read.ids.insert(ids_leaf(self.statement, position));
        // The last token of an answer is not executed: it is only compared.
        self.walked.token(position)
    }
}

/// Whether a receipt stands before its own provider: an execution of what it says gives its digests and its tokens. A provider
/// for whom it does not has made a mistake, gives the fee back, and need not lose a dispute over it.
pub fn stands_by(own: &Trace<'_>, record: &AnswerRecord, execution: &mut dyn Execution) -> bool {
    own.digests() == record.digests && wrong_token(own, record, |b| Some(own.block(execution, b))).is_none()
}

/// The first token of the answer that is not the one a trace chooses.
fn wrong_token(
    trace: &Trace<'_>,
    record: &AnswerRecord,
    mut walk: impl FnMut(u32) -> Option<Block>,
) -> Option<Cell> {
    let op = choose(trace.extent().ops);
    let from = trace.extent().prompt.saturating_sub(1);
    for index in block_of(from)..trace.blocks() {
        let block = walk(index)?;
        let part = u8::try_from(block.parts(op)?.len().checked_sub(1)?).ok()?;
        for position in block.first(op)..block.positions.end {
            let cell = Cell { op, part, position, column: 0 };
            let given = record.transcript.output_ids.get(position.checked_sub(from)? as usize)?;
            if block.get(cell)? != i64::from(*given) {
                return Some(cell);
            }
        }
    }
    None
}

/// Plays a dispute to its end. Who has nothing to say when it is its turn runs out of time.
pub fn play(
    referee: &mut Referee,
    defender: &mut dyn FnMut(&Referee) -> Option<Claim>,
    challenger: &mut dyn FnMut(&Referee) -> Option<Pick>,
) -> Outcome {
    loop {
        if let Some(outcome) = referee.outcome() {
            return outcome;
        }
        let said = match referee.turn() {
            Some(Party::Defender) => {
                defender(referee).map(|c| referee.receive(Party::Defender, &Message::Claim(c)))
            }
            Some(Party::Challenger) => {
                challenger(referee).map(|p| referee.receive(Party::Challenger, &Message::Pick(p)))
            }
            None => None,
        };
        if said.is_none() {
            referee.timeout();
        }
    }
}
