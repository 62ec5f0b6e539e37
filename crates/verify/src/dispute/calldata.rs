//! Messages as the ledger's contract reads them (protocol 10.8).
//!
//! The same claims and picks as those of [`super::Message`], in fewer bytes: what follows from the state is left out, what several
//! openings share is said once, and what the contract forgot, since it keeps hashes only, is said again. Numbers are
//! big-endian; ways up are siblings alone.

use assay_core::id::Hash;
use assay_core::keccak::keccak256;
use assay_core::merkle::{self, Proof as Path};
use assay_core::request::Terms;
use assay_engine::artifact::opening::{Item, ModelOpening, Part, Way};

use super::proof::TraceLeaf;
use super::{Claim, DigestProof, Pick, Proof, Referee, Stage, Statement};
use crate::trace::operation;

/// Leaves of a model root before the tensors.
const BEFORE_TENSORS: u64 = 4;
/// Bytes of the words over which numbers are committed to.
const WORD: usize = 32;

/// Writes the messages of one dispute, in their order: it remembers what later ones must say again.
#[derive(Clone, Debug)]
pub struct Encoder {
    statement: Statement,
    program: Hash,
    tensors: u16,
    trace: Hash,
    carry: Hash,
    steps: Hash,
    facts: Vec<u8>,
    /// The nodes among which was picked last, and the place of the one picked.
    nodes: Vec<Hash>,
    picked: usize,
    /// The top of the nodes over blocks, if a digest was doubted.
    known: Hash,
    leaf: Vec<u8>,
}

impl Encoder {
    /// For a dispute over what a receipt says.
    pub fn new(statement: Statement) -> Encoder {
        Encoder {
            statement,
            program: Hash::ZERO,
            tensors: 0,
            trace: Hash::ZERO,
            carry: Hash::ZERO,
            steps: Hash::ZERO,
            facts: vec![],
            nodes: vec![],
            picked: 0,
            known: Hash::ZERO,
            leaf: vec![],
        }
    }

    /// For a dispute over a trace root that an accuser states of it.
    pub fn of_trace(statement: Statement, trace: Hash) -> Encoder {
        Encoder { trace, ..Encoder::new(statement) }
    }

    /// The bytes of what the defender says, before `referee` takes it. `None` for what has no such form: the referee would refuse it.
    pub fn claim(&mut self, referee: &Referee, claim: &Claim) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match claim {
            Claim::Trace { facts, nodes } => self.trace(&mut out, referee, facts, nodes)?,
            Claim::Nodes(nodes) => self.below(&mut out, referee, nodes, |out| {
                hashes(out, nodes);
                Some(())
            })?,
            Claim::Steps(lists) => {
                let nodes: Vec<Hash> = lists.iter().map(|roots| operation(roots)).collect();
                self.below(&mut out, referee, &nodes, |out| lists.iter().try_for_each(|r| listed(out, r)))?;
            }
            Claim::Part { op, terms, nodes } => {
                self.context(&mut out)?;
                listed(&mut out, referee.roots())?;
                self.way(&mut out)?;
                match (op, terms) {
                    (Some(op), _) => statement(&mut out, op)?,
                    (None, Some(t)) => write_terms(&mut out, t)?,
                    (None, None) => return None,
                }
                hashes(&mut out, nodes);
            }
            Claim::Leaf(bytes) => {
                hashes(&mut out, &[self.context_hash()]);
                out.extend_from_slice(bytes);
                self.way(&mut out)?;
                self.leaf = bytes.clone();
            }
            Claim::Proof(proof) => self.proof(&mut out, referee, proof)?,
            Claim::Digest(proof) => self.digest(&mut out, proof)?,
        }
        Some(out)
    }

    /// The bytes of what the challenger picks, before `referee` takes it.
    pub fn pick(&mut self, referee: &Referee, pick: &Pick) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match (pick, referee.stage()) {
            (Pick::Node(i), Stage::PickNode(_, nodes)) => {
                out.push(0);
                out.extend(u16::try_from(*i).ok()?.to_be_bytes());
                self.nodes = nodes.clone();
                self.picked = *i as usize;
            }
            (Pick::Digest(block), _) => {
                out.push(1);
                out.extend(u16::try_from(*block).ok()?.to_be_bytes());
                self.known = known(referee)?;
            }
            (Pick::Carry(nodes), Stage::PickNode(..) | Stage::PickPart(_)) => {
                out.push(2);
                self.context(&mut out)?;
                hashes(&mut out, &[known(referee)?]);
                hashes(&mut out, nodes);
            }
            (Pick::Part { step, part }, Stage::PickPart(lists)) => {
                out.push(3);
                out.extend(u16::try_from(*step).ok()?.to_be_bytes());
                out.push(*part);
                self.nodes = lists.iter().map(|roots| operation(roots)).collect();
                self.picked = *step as usize;
            }
            (Pick::Number { index, partials }, _) => {
                hashes(&mut out, &[self.context_hash(), merkle::root(words(&self.leaf))]);
                out.extend(index.to_be_bytes());
                out.extend(partials.iter().flat_map(|p| p.to_be_bytes()));
            }
            _ => return None,
        }
        Some(out)
    }

    /// What later messages rest on.
    fn context(&self, out: &mut Vec<u8>) -> Option<()> {
        long(out, &self.context_bytes())
    }

    fn context_hash(&self) -> Hash {
        keccak256(&[&self.context_bytes()])
    }

    fn context_bytes(&self) -> Vec<u8> {
        let s = &self.statement;
        let mut bytes = Vec::new();
        for h in [s.model.as_bytes(), s.request.as_bytes(), s.transcript.as_bytes(), s.digests.as_bytes()] {
            bytes.extend_from_slice(h);
        }
        bytes.extend_from_slice(s.nonce.as_bytes());
        bytes.extend(s.prompt.to_be_bytes());
        bytes.extend(s.output.to_be_bytes());
        hashes(&mut bytes, &[self.program]);
        bytes.extend(self.tensors.to_be_bytes());
        hashes(&mut bytes, &[self.trace, self.carry, self.steps]);
        bytes.extend_from_slice(&self.facts);
        bytes
    }

    /// Bytes of the way of the picked node; none where nothing was picked yet.
    pub(super) fn way_bytes(&self) -> Option<usize> {
        if self.nodes.is_empty() {
            return Some(0);
        }
        merkle::prove(&self.nodes, self.picked)?.path.len().checked_mul(WORD)
    }

    /// The way of the picked node under what the contract knows.
    fn way(&self, out: &mut Vec<u8>) -> Option<()> {
        hashes(out, &merkle::prove(&self.nodes, self.picked)?.path);
        Some(())
    }

    fn trace(
        &mut self,
        out: &mut Vec<u8>,
        referee: &Referee,
        facts: &ModelOpening,
        nodes: &[Hash],
    ) -> Option<()> {
        self.context(out)?;
        self.tensors = u16::try_from(facts.program_proof.count.checked_sub(BEFORE_TENSORS)?).ok()?;
        out.extend(self.tensors.to_be_bytes());
        long(out, &facts.statement)?;
        hashes(out, &facts.statement_proof.path);
        hashes(out, &facts.program_proof.path);
        hashes(out, nodes);
        self.facts = facts.statement.clone();
        self.program = merkle::root_from(merkle::leaf(&facts.statement), &facts.statement_proof)?;
        self.trace = referee.at().root(referee.below(), nodes)?;
        Some(())
    }

    /// Nodes below the picked one, as `write` writes them.
    fn below(
        &mut self,
        out: &mut Vec<u8>,
        referee: &Referee,
        nodes: &[Hash],
        write: impl Fn(&mut Vec<u8>) -> Option<()>,
    ) -> Option<()> {
        if *referee.stage() == Stage::Steps {
            self.context(out)?;
            hashes(out, &[referee.carry()]);
            self.way(out)?;
            write(out)?;
            self.carry = referee.carry();
            self.steps = referee.at().root(referee.below(), nodes)?;
            return Some(());
        }
        hashes(out, &[self.context_hash()]);
        write(out)?;
        self.way(out)
    }

    fn proof(&self, out: &mut Vec<u8>, referee: &Referee, proof: &Proof) -> Option<()> {
        let (_, number) = referee.picked();
        let shape = referee.shapes().get(usize::from(referee.part()))?;
        self.context(out)?;
        word(out, &self.leaf, usize::from(number).checked_mul(shape.width.bytes())?)?;
        let partials: Vec<u8> = referee.partials().iter().flat_map(|p| p.to_be_bytes()).collect();
        let root = if partials.is_empty() { Hash::ZERO } else { merkle::root(words(&partials)) };
        hashes(out, &[root]);
        out.extend(u32::try_from(referee.partials().len()).ok()?.to_be_bytes());
        out.extend(referee.partials().last().copied().unwrap_or(0).to_be_bytes());
        if !partials.is_empty() {
            let run = proof.run as usize;
            out.extend(proof.run.to_be_bytes());
            word(out, &partials, run.checked_mul(8)?)?;
            if let Some(before) = run.checked_sub(1) {
                word(out, &partials, before.checked_mul(8)?)?;
            }
        }
        self.openings(out, proof)
    }

    fn openings(&self, out: &mut Vec<u8>, proof: &Proof) -> Option<()> {
        let mut all = Vec::new();
        let mut count = 0u16;
        let mut declared = Vec::new();
        for opening in &proof.model {
            let opened = opening.verify(&self.statement.model)?;
            if let Item::Op(op) = opened.item {
                all.push(1);
                all.extend(op.to_be_bytes());
                statement(&mut all, opening)?;
                count = count.checked_add(1)?;
                continue;
            }
            let (tensor, content) = match opened.item {
                Item::Facts | Item::Op(_) => continue,
                Item::Tensor(t) => (t, None),
                Item::Weights { tensor, row, col_tile } => (tensor, Some((3u8, row, col_tile))),
                Item::Scales { tensor, run } => (tensor, Some((4, run, 0))),
                Item::Run { tensor, index } => (tensor, Some((5, index, 0))),
            };
            if !declared.contains(&tensor) {
                declared.push(tensor);
                all.push(2);
                all.extend(tensor.to_be_bytes());
                statement(&mut all, opening)?;
                count = count.checked_add(1)?;
            }
            if let (Some(content), Some(part)) = (content, &opening.part) {
                write_content(&mut all, tensor, content, part)?;
                count = count.checked_add(1)?;
            }
        }
        let mut leaves: Vec<&TraceLeaf> = proof.leaves.iter().collect();
        leaves.sort_by_key(|l| (l.block, l.step));
        for step in leaves.chunk_by(|a, b| (a.block, a.step) == (b.block, b.step)) {
            write_step(&mut all, step)?;
            count = count.checked_add(u16::try_from(step.len()).ok()?)?;
        }
        for ids in &proof.ids {
            all.push(7);
            all.extend(u32::try_from(ids.path.index.checked_sub(1)?).ok()?.to_be_bytes());
            all.push(u8::try_from(ids.ids.len()).ok()?);
            all.extend(ids.ids.iter().flat_map(|id| id.to_be_bytes()));
            hashes(&mut all, &ids.path.path);
            count = count.checked_add(1)?;
        }
        if let Some(terms) = &proof.terms {
            all.push(8);
            write_terms(&mut all, terms)?;
            count = count.checked_add(1)?;
        }
        out.extend(count.to_be_bytes());
        out.extend(all);
        Some(())
    }

    fn digest(&self, out: &mut Vec<u8>, proof: &DigestProof) -> Option<()> {
        self.context(out)?;
        hashes(out, &[self.known]);
        hashes(out, &proof.hidden);
        hashes(out, &proof.hidden_path.path);
        hashes(out, &proof.carry_path.path);
        hashes(out, &proof.digest_path.path);
        Some(())
    }
}

/// The node that the nodes among which is picked lead to.
fn known(referee: &Referee) -> Option<Hash> {
    match referee.stage() {
        Stage::PickNode(height, nodes) => referee.at().lead(*height, nodes),
        Stage::PickPart(lists) => {
            let nodes: Vec<Hash> = lists.iter().map(|roots| operation(roots)).collect();
            referee.at().lead(0, &nodes)
        }
        _ => None,
    }
}

/// Hashes behind how many there are, in 1 byte.
fn listed(out: &mut Vec<u8>, all: &[Hash]) -> Option<()> {
    out.push(u8::try_from(all.len()).ok()?);
    hashes(out, all);
    Some(())
}

fn hashes(out: &mut Vec<u8>, hashes: &[Hash]) {
    hashes.iter().for_each(|h| out.extend_from_slice(h.as_bytes()));
}

/// Bytes behind their length in 2 bytes.
fn long(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    out.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
    out.extend_from_slice(bytes);
    Some(())
}

/// A statement of the program and its way under the program.
fn statement(out: &mut Vec<u8>, opening: &ModelOpening) -> Option<()> {
    long(out, &opening.statement)?;
    hashes(out, &opening.statement_proof.path);
    Some(())
}

fn write_terms(out: &mut Vec<u8>, terms: &Terms) -> Option<()> {
    let [model, prompt, _, guide, rest] = terms.leaves;
    long(out, &borsh::to_vec(&terms.sampling).ok()?)?;
    hashes(out, &[model, prompt, guide, rest]);
    Some(())
}

fn words(bytes: &[u8]) -> Vec<Hash> {
    bytes.chunks(WORD).map(merkle::leaf).collect()
}

/// The word in which a byte stands, and its way.
fn word(out: &mut Vec<u8>, bytes: &[u8], at: usize) -> Option<()> {
    let i = at / WORD;
    out.extend_from_slice(bytes.chunks(WORD).nth(i)?);
    let Path { path, .. } = merkle::prove(&words(bytes), i)?;
    hashes(out, &path);
    Some(())
}

fn write_content(out: &mut Vec<u8>, tensor: u16, item: (u8, u32, u32), part: &Part) -> Option<()> {
    let (kind, index, tile) = item;
    out.push(kind);
    out.extend(tensor.to_be_bytes());
    out.extend(index.to_be_bytes());
    if kind == 3 {
        out.extend(u16::try_from(tile).ok()?.to_be_bytes());
    }
    out.extend_from_slice(&part.bytes);
    match &part.way {
        Way::Weights { row, tile, scales } => {
            hashes(out, &row.path);
            hashes(out, &tile.path);
            hashes(out, &[*scales]);
        }
        Way::Scales { run, weights } => {
            hashes(out, &run.path);
            hashes(out, &[*weights]);
        }
        Way::Run(run) => hashes(out, &run.path),
    }
    hashes(out, &part.tensor_proof.path);
    Some(())
}

/// Leaves of one step.
fn write_step(out: &mut Vec<u8>, leaves: &[&TraceLeaf]) -> Option<()> {
    let first = leaves.first()?;
    out.push(6);
    out.extend(u16::try_from(first.block).ok()?.to_be_bytes());
    out.extend(first.step.to_be_bytes());
    out.push(u8::try_from(first.parts.len()).ok()?);
    hashes(out, &first.parts);
    hashes(out, &first.step_path.path);
    if let Some(block) = &first.block_path {
        hashes(out, &block.path);
    }
    out.push(u8::try_from(leaves.len()).ok()?);
    for leaf in leaves {
        out.push(leaf.part);
        out.extend(u32::try_from(leaf.leaf.index).ok()?.to_be_bytes());
        out.extend(u32::try_from(leaf.leaf.count).ok()?.to_be_bytes());
        long(out, &leaf.bytes)?;
        hashes(out, &leaf.leaf.path);
    }
    Some(())
}
