//! The referee: takes messages in turn, checks that each is under what was said before, and computes the last step.

use assay_core::id::Hash;
use assay_core::request::Sampling;
use assay_engine::artifact::opening::{Content, Item, ModelOpening};
use assay_engine::program::check::{CONTEXT_MAX, ROWS_MAX};
use assay_engine::program::{Declared, Facts, Head, ValueId};

use super::proof::{Target, check_digest, check_step};
use super::situated::Situated as _;
use super::{Claim, Descent, Message, Outcome, Party, Pick, Reason, Statement, Tree, cover};
use crate::microstep::{Cell, Choice, Extent, PartSpec, adjust, choice_parts, choose, parts};
use crate::trace::part::{Shape, read_leaf};
use crate::trace::{block_count, carry, operation};

/// Whose turn it is, and what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The defender: [`Claim::Trace`].
    Trace,
    /// The defender: [`Claim::Nodes`] over the steps of the picked block, or [`Claim::Steps`].
    Steps,
    /// The defender: [`Claim::Part`] of the picked step.
    Part,
    /// The defender: [`Claim::Nodes`] below the picked node, or [`Claim::Steps`].
    Nodes,
    /// The defender: [`Claim::Leaf`].
    Leaf,
    /// The defender: [`Claim::Proof`].
    Proof,
    /// The defender: [`Claim::Digest`] of this block.
    Digest(u32),
    /// The challenger: [`Pick::Node`], at first [`Pick::Digest`], or among steps [`Pick::Carry`]. The nodes and their height.
    PickNode(u32, Vec<Hash>),
    /// The challenger: [`Pick::Part`] or [`Pick::Carry`]. Of each step the roots of its parts.
    PickPart(Vec<Vec<Hash>>),
    /// The challenger: [`Pick::Number`] of these.
    PickNumber(Vec<i64>),
    /// It is over.
    Over(Outcome),
}

/// Most parts of a step that are read.
const PARTS_MAX: usize = 8;

/// A dispute as the referee knows it.
#[derive(Clone, Debug)]
pub struct Referee {
    statement: Statement,
    stage: Stage,
    tree: Tree,
    at: Descent,
    hash: Hash,
    facts: Option<Facts>,
    given: Option<Hash>,
    trace: Hash,
    block: u32,
    carry: Hash,
    steps: Hash,
    roots: Vec<Hash>,
    step: ValueId,
    declared: Option<Declared>,
    choice: Option<Choice>,
    shapes: Vec<Shape>,
    part: u8,
    leaf: u64,
    numbers: Vec<i64>,
    number: u16,
    partials: Vec<i64>,
    rounds: u32,
    bytes: [usize; 2],
}

impl Referee {
    /// A dispute over what a receipt says; `None` when it is of no answer. The caller has checked the receipt's signature.
    pub fn new(statement: Statement) -> Option<Referee> {
        if statement.prompt == 0 || statement.output == 0 {
            return None;
        }
        let blocks = block_count(statement.positions());
        Some(Referee {
            statement,
            stage: Stage::Trace,
            tree: Tree::Blocks,
            at: Descent::top(u64::from(blocks)),
            hash: Hash::ZERO,
            facts: None,
            given: None,
            trace: Hash::ZERO,
            block: 0,
            carry: Hash::ZERO,
            steps: Hash::ZERO,
            roots: vec![],
            step: 0,
            declared: None,
            choice: None,
            shapes: vec![],
            part: 0,
            leaf: 0,
            numbers: vec![],
            number: 0,
            partials: vec![],
            rounds: 0,
            bytes: [0; 2],
        })
    }

    /// A dispute over a trace root that an auditor's accuser states of what a receipt says: the accuser is the defender. Whether the
    /// receipt's digests and tokens are those of the trace is not asked.
    pub fn of_trace(statement: Statement, trace: Hash) -> Option<Referee> {
        Some(Referee { given: Some(trace), ..Referee::new(statement)? })
    }

    /// The trace root, where that is what is disputed.
    pub fn given(&self) -> Option<Hash> {
        self.given
    }

    /// What is asked for.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// What is disputed.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Whose turn it is; nobody's when it is over.
    pub fn turn(&self) -> Option<Party> {
        match self.stage {
            Stage::Over(_) => None,
            Stage::PickNode(..) | Stage::PickPart(_) | Stage::PickNumber(_) => Some(Party::Challenger),
            _ => Some(Party::Defender),
        }
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.stage {
            Stage::Over(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Rounds so far: claims that the challenger had to answer.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Bytes that the defender and the challenger sent.
    pub fn bytes(&self) -> [usize; 2] {
        self.bytes
    }

    /// The block that was picked.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// The step that was picked.
    pub fn step(&self) -> ValueId {
        self.step
    }

    /// The part that was picked.
    pub fn part(&self) -> u8 {
        self.part
    }

    /// The leaf that was picked, and the number in it.
    pub fn picked(&self) -> (u64, u16) {
        (self.leaf, self.number)
    }

    /// What the challenger says the accumulators are.
    pub fn partials(&self) -> &[i64] {
        &self.partials
    }

    /// Where the walk stands in its tree.
    pub fn at(&self) -> Descent {
        self.at
    }

    /// What the picked block carries, as the defender claims it.
    pub fn carry(&self) -> Hash {
        self.carry
    }

    /// Root over the steps of the picked block, as the defender claims it.
    pub fn steps(&self) -> Hash {
        self.steps
    }

    /// Which tree is walked down.
    pub fn tree(&self) -> Tree {
        self.tree
    }

    /// Height of the nodes that are claimed next.
    pub fn below(&self) -> u32 {
        self.at.next(self.tree)
    }

    /// Roots of the parts of the picked step, once it is picked.
    pub fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// Number of the program's operations, once they are known.
    pub fn operations(&self) -> Option<usize> {
        Some(usize::from(self.facts.as_ref()?.ops))
    }

    /// Shapes of the picked step's parts.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// The party whose turn it is did not answer in time.
    pub fn timeout(&mut self) {
        if let Some(party) = self.turn() {
            self.lose(party, Reason::Timeout);
        }
    }

    /// Takes the next message, as it came from `party`. Messages out of turn change nothing and are refused.
    pub fn receive(&mut self, party: Party, message: &Message) -> bool {
        if self.turn() != Some(party) {
            return false;
        }
        let sent = borsh::object_length(message).unwrap_or(0);
        let which = usize::from(party == Party::Challenger);
        if let Some(bytes) = self.bytes.get_mut(which) {
            *bytes = bytes.saturating_add(sent);
        }
        let taken = match message {
            Message::Claim(claim) if party == Party::Defender => self.claim(claim),
            Message::Pick(pick) if party == Party::Challenger => self.pick(pick),
            _ => Err(Reason::Malformed),
        };
        if let Err(reason) = taken {
            self.lose(party, reason);
        }
        true
    }

    fn lose(&mut self, party: Party, reason: Reason) {
        self.stage = Stage::Over(Outcome { winner: party.other(), reason });
    }

    fn win(&mut self, party: Party, reason: Reason) {
        self.stage = Stage::Over(Outcome { winner: party, reason });
    }

    fn claim(&mut self, claim: &Claim) -> Result<(), Reason> {
        match (&self.stage, claim) {
            (Stage::Trace, Claim::Trace { facts, nodes }) => self.claim_trace(facts, nodes),
            (Stage::Steps | Stage::Nodes, Claim::Nodes(nodes)) => {
                let height = self.below();
                if self.tree == Tree::Steps && height == 0 {
                    return Err(Reason::Malformed);
                }
                self.claimed(height, nodes)?;
                self.asked(Stage::PickNode(height, nodes.clone()))
            }
            (Stage::Steps | Stage::Nodes, Claim::Steps(lists)) => {
                if self.tree != Tree::Steps || self.below() != 0 || lists.iter().any(|l| l.len() > PARTS_MAX)
                {
                    return Err(Reason::Malformed);
                }
                let nodes: Vec<Hash> = lists.iter().map(|roots| operation(roots)).collect();
                self.claimed(0, &nodes)?;
                self.asked(Stage::PickPart(lists.clone()))
            }
            (Stage::Part, Claim::Part { op, terms, nodes }) => {
                self.declare(op.as_ref(), terms.as_ref())?;
                self.claim_part(nodes)
            }
            (Stage::Leaf, Claim::Leaf(bytes)) => self.claim_leaf(bytes),
            (Stage::Proof, Claim::Proof(proof)) => {
                let target = self.target().ok_or(Reason::Malformed)?;
                let (winner, reason) = check_step(proof, &target);
                self.win(winner, reason);
                Ok(())
            }
            (Stage::Digest(block), Claim::Digest(proof)) => {
                let facts = self.facts.as_ref().ok_or(Reason::Malformed)?;
                if !check_digest(proof, &self.statement, facts, self.trace, *block) {
                    return Err(Reason::DigestFails);
                }
                self.win(Party::Defender, Reason::DigestHolds);
                Ok(())
            }
            _ => Err(Reason::Malformed),
        }
    }

    /// The step in whose part the walk is, once it is in one.
    pub fn tree_step(&self) -> Option<ValueId> {
        (self.tree == Tree::Part).then_some(self.step)
    }

    /// Whether the walk is still among blocks.
    pub fn in_blocks(&self) -> bool {
        self.tree == Tree::Blocks
    }

    /// The disputed number.
    pub fn cell(&self) -> Option<Cell> {
        self.target().map(|t| t.cell)
    }

    /// Nodes below the picked one: they must lead to it. Those over a block's steps lead to a root that nobody knew before.
    fn claimed(&mut self, height: u32, nodes: &[Hash]) -> Result<(), Reason> {
        if self.stage == Stage::Steps {
            self.steps = self.at.root(height, nodes).ok_or(Reason::Malformed)?;
            return Ok(());
        }
        if self.at.lead(height, nodes) == Some(self.hash) { Ok(()) } else { Err(Reason::Contradiction) }
    }

    fn asked(&mut self, stage: Stage) -> Result<(), Reason> {
        self.rounds = self.rounds.saturating_add(1);
        self.stage = stage;
        Ok(())
    }

    fn claim_trace(&mut self, facts: &ModelOpening, nodes: &[Hash]) -> Result<(), Reason> {
        let opened = facts.verify(&self.statement.model).ok_or(Reason::Contradiction)?;
        let Content::Facts(facts) = opened.content else { return Err(Reason::Malformed) };
        // No valid program has more: what is computed from these numbers then stays in its ranges.
        let valid = facts.context <= CONTEXT_MAX && facts.vocabulary <= ROWS_MAX;
        if !matches!(facts.head, Head::Tokens { .. }) || !valid {
            return Err(Reason::Malformed);
        }
        if self.statement.positions() > facts.context {
            return Err(Reason::Contradiction);
        }
        self.facts = Some(facts);
        let height = self.below();
        self.trace = self.at.root(height, nodes).ok_or(Reason::Malformed)?;
        if self.given.is_some_and(|given| given != self.trace) {
            return Err(Reason::Contradiction);
        }
        self.asked(Stage::PickNode(height, nodes.to_vec()))
    }

    /// Learns what the picked step is.
    fn declare(
        &mut self,
        op: Option<&ModelOpening>,
        terms: Option<&assay_core::request::Terms>,
    ) -> Result<(), Reason> {
        let extent = self.extent().ok_or(Reason::Malformed)?;
        let specs: Vec<PartSpec> = if usize::from(self.step) < extent.ops {
            let opened = op.and_then(|o| o.verify(&self.statement.model)).ok_or(Reason::Contradiction)?;
            let Content::Op(declared) = opened.content else { return Err(Reason::Malformed) };
            if opened.item != Item::Op(self.step) {
                return Err(Reason::Malformed);
            }
            self.declared = Some(declared);
            parts(&declared.op, declared.made, declared.attended)
        } else {
            let terms = terms.ok_or(Reason::Malformed)?;
            let guided = terms.verify(&self.statement.request).ok_or(Reason::Contradiction)?;
            let sampling: Sampling = terms.sampling.clone();
            let choice = Choice { sampling, guided, seed: self.statement.seed() };
            let [adjusting, choosing] = choice_parts(&choice, extent.vocabulary);
            self.choice = Some(choice);
            if self.step == adjust(extent.ops) { adjusting } else { choosing }
        };
        let (positions, rows) = self.rows(self.step).ok_or(Reason::Malformed)?;
        self.shapes = specs.iter().map(|s| s.shape(rows.len(), positions.end)).collect();
        Ok(())
    }

    fn claim_part(&mut self, nodes: &[Hash]) -> Result<(), Reason> {
        if self.roots.len() != self.shapes.len() {
            return Err(Reason::Contradiction);
        }
        let part = usize::from(self.part);
        let (Some(shape), Some(root)) = (self.shapes.get(part), self.roots.get(part)) else {
            // The challenger picked a part that the step does not have.
            self.win(Party::Defender, Reason::Malformed);
            return Ok(());
        };
        self.tree = Tree::Part;
        self.at = Descent::top(shape.leaves() as u64);
        let height = self.below();
        if self.at.root(height, nodes) != Some(*root) {
            return Err(Reason::Contradiction);
        }
        self.asked(Stage::PickNode(height, nodes.to_vec()))
    }

    fn claim_leaf(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let shape = self.shapes.get(usize::from(self.part)).ok_or(Reason::Malformed)?;
        if assay_core::merkle::leaf(bytes) != self.hash {
            return Err(Reason::Contradiction);
        }
        // A leaf of other numbers than the part has was never an honest one.
        let leaf = usize::try_from(self.leaf).map_err(|_| Reason::Malformed)?;
        let numbers = read_leaf(bytes, shape.width).ok_or(Reason::Malformed)?;
        if numbers.len() != shape.leaf(leaf).2 {
            return Err(Reason::Malformed);
        }
        self.numbers = numbers.clone();
        self.asked(Stage::PickNumber(numbers))
    }

    fn pick(&mut self, pick: &Pick) -> Result<(), Reason> {
        match (&self.stage, pick) {
            (Stage::PickNode(height, nodes), Pick::Node(i)) => {
                let (height, i) = (*height, *i);
                self.hash = *nodes.get(i as usize).ok_or(Reason::Malformed)?;
                self.at = self.at.down(height, u64::from(i)).ok_or(Reason::Malformed)?;
                self.went_down()
            }
            (Stage::PickNode(..), Pick::Digest(block))
                if self.tree == Tree::Blocks && self.given.is_none() =>
            {
                if *block >= block_count(self.statement.positions()) {
                    return Err(Reason::Malformed);
                }
                self.stage = Stage::Digest(*block);
                Ok(())
            }
            (Stage::PickPart(lists), Pick::Part { step, part }) => {
                self.roots = lists.get(*step as usize).ok_or(Reason::Malformed)?.clone();
                self.at = self.at.down(0, u64::from(*step)).ok_or(Reason::Malformed)?;
                self.step = ValueId::try_from(self.at.index).map_err(|_| Reason::Malformed)?;
                self.part = *part;
                self.stage = Stage::Part;
                Ok(())
            }
            (Stage::PickNode(..) | Stage::PickPart(_), Pick::Carry(nodes)) if self.tree == Tree::Steps => {
                let facts = self.facts.as_ref().ok_or(Reason::Malformed)?;
                let (steps, carried) = cover::read(facts, nodes).ok_or(Reason::Malformed)?;
                if steps != self.steps || carry(&carried) == self.carry {
                    return Err(Reason::Malformed);
                }
                self.win(Party::Challenger, Reason::Contradiction);
                Ok(())
            }
            (Stage::PickNumber(numbers), Pick::Number { index, partials }) => {
                let claimed = numbers.get(usize::from(*index)).ok_or(Reason::Malformed)?;
                if partials.last() == Some(claimed) {
                    return Err(Reason::Malformed);
                }
                self.number = *index;
                self.partials = partials.clone();
                self.stage = Stage::Proof;
                Ok(())
            }
            _ => Err(Reason::Malformed),
        }
    }

    fn went_down(&mut self) -> Result<(), Reason> {
        if self.at.height > 0 {
            self.stage = Stage::Nodes;
            return Ok(());
        }
        match self.tree {
            Tree::Blocks => {
                self.block = u32::try_from(self.at.index).map_err(|_| Reason::Malformed)?;
                self.carry = self.hash;
                let ops = self.facts.as_ref().ok_or(Reason::Malformed)?.ops;
                self.tree = Tree::Steps;
                self.at = Descent::top(u64::from(ops).saturating_add(2));
                self.stage = Stage::Steps;
            }
            // A step is picked with one of its parts.
            Tree::Steps => return Err(Reason::Malformed),
            Tree::Part => {
                self.leaf = self.at.index;
                self.stage = Stage::Leaf;
            }
        }
        Ok(())
    }

    /// Whether the picked part holds chosen tokens.
    pub(super) fn is_chosen(&self) -> bool {
        self.facts.as_ref().is_some_and(|f| {
            self.step == choose(usize::from(f.ops)) && usize::from(self.part) + 1 == self.shapes.len()
        })
    }

    fn extent(&self) -> Option<Extent> {
        Some(self.facts.as_ref()?.extent(&self.statement))
    }

    /// Positions of the picked block, and those that a step has rows for.
    fn rows(&self, step: ValueId) -> Option<(std::ops::Range<u32>, std::ops::Range<u32>)> {
        self.facts.as_ref()?.rows(&self.statement, self.block, step)
    }

    /// What the last step is about.
    fn target(&self) -> Option<Target<'_>> {
        let facts = self.facts.as_ref()?;
        let shape = self.shapes.get(usize::from(self.part))?;
        let (_, rows) = self.rows(self.step)?;
        Some(Target {
            statement: &self.statement,
            facts,
            choice: self.choice.as_ref(),
            trace: self.trace,
            block: self.block,
            steps: self.steps,
            cell: shape.cell(
                self.step,
                self.part,
                rows.start,
                usize::try_from(self.leaf).ok()?,
                self.number,
            )?,
            claimed: *self.numbers.get(usize::from(self.number))?,
            partials: &self.partials,
            chosen: self.given.is_none() && self.is_chosen(),
        })
    }
}
