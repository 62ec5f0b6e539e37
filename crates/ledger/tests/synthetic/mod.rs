//! A dispute over one number of a model too large to execute in a test.
//!
//! What the micro-step reads is made up, so that it can be read; every other leaf of every tree is a random hash. The trees have the shapes
//! that the model and the answer give them, so messages are as long as real ones.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::collections::BTreeMap;

use assay_core::id::{DigestRoot, Hash, ModelRoot, Nonce, TranscriptRoot};
use assay_core::keccak::keccak256;
use assay_core::merkle;
use assay_core::request::Request;
use assay_engine::artifact::opening::{ModelOpening, Part as Content, Way};
use assay_engine::program::{Checked, Declared, Program, Shape as TensorShape};
use assay_verify::dispute::proof::{IdsLeaf, Proof, TraceLeaf};
use assay_verify::dispute::{Claim, Descent, Party, Pick, Referee, Stage, Statement, Tree, cover};
use assay_verify::microstep::{Cell, Choice, Extent, Rule, choice_parts, fold, map, parts, parts_of, rule};
use assay_verify::trace::part::Shape;
use assay_verify::trace::{block_count, block_of, block_range, carry, operation};

use crate::made::{Made, Random, name};

/// A dispute over one number.
pub struct Synthetic {
    pub statement: Statement,
    pub target: Cell,
    pub rule: Rule,
    checked: Checked,
    request: Request,
    made: Made,
    random: Random,
    components: Vec<Hash>,
    program_leaves: Vec<Hash>,
    statements: Vec<Vec<u8>>,
    tensors: BTreeMap<u16, Vec<Vec<Hash>>>,
    /// Of the steps that are read: leaves of each part.
    steps: BTreeMap<(u32, u16), Vec<Vec<Hash>>>,
    /// Of each step of the disputed block the roots of its parts, and its commitment.
    step_roots: Vec<Vec<Hash>>,
    step_leaves: Vec<Hash>,
    carried: BTreeMap<u32, Vec<Hash>>,
    carries: Vec<Hash>,
    transcript: Vec<Hash>,
    partials: Vec<i64>,
    run: u32,
}

fn hash(random: &mut Random) -> Hash {
    keccak256(&[&random.next().to_be_bytes()])
}

/// As many random leaves, of which some are known.
fn leaves(random: &mut Random, count: usize, known: impl Iterator<Item = (usize, Hash)>) -> Vec<Hash> {
    let mut all: Vec<Hash> = (0..count).map(|_| hash(random)).collect();
    known.for_each(|(i, h)| all[i] = h);
    all
}

impl Synthetic {
    /// Over a number of `program` in an answer to `request` of so many tokens, about which `right` is right; `None` if what was made up has no
    /// number there.
    pub fn new(
        program: Program,
        request: &Request,
        (prompt, output): (u32, u32),
        target: Cell,
        right: Party,
        seed: u64,
    ) -> Option<Synthetic> {
        let checked = program.check().unwrap();
        let p = checked.program().clone();
        let (hidden, logits) = p.tokens();
        let extent = Extent {
            ops: p.ops.len(),
            vocabulary: p.vocabulary,
            residual_frac: p.residual_frac,
            logits: Some(logits),
            positions: prompt + output - 1,
            prompt,
        };
        let mut random = Random(seed | 1);
        let made_random = Random(random.next() | 1);
        let made = Made {
            random: made_random,
            extent,
            hidden,
            choice: Choice {
                sampling: request.sampling.clone(),
                guided: request.guide.is_some(),
                seed: [0; 32],
            },
            ops: (0..p.ops.len() as u16).map(|i| (i, checked.declared(i).unwrap())).collect(),
            shapes: (0..).zip(&p.tensors).map(|(i, t): (u16, _)| (i, t.shape)).collect(),
            items: BTreeMap::new(),
            size: 32,
            wild: false,
        };
        let zero = Hash::ZERO;
        let mut s = Synthetic {
            statement: Statement {
                model: ModelRoot::from_bytes(*zero.as_bytes()),
                request: request.hash(),
                transcript: TranscriptRoot::from_bytes(*zero.as_bytes()),
                digests: DigestRoot::from_bytes(*zero.as_bytes()),
                nonce: Nonce::ZERO,
                prompt,
                output,
            },
            target,
            rule: Rule::Map,
            checked,
            request: request.clone(),
            made,
            random,
            components: vec![],
            program_leaves: vec![],
            statements: vec![],
            tensors: BTreeMap::new(),
            steps: BTreeMap::new(),
            step_roots: vec![],
            step_leaves: vec![],
            carried: BTreeMap::new(),
            carries: vec![],
            transcript: vec![],
            partials: vec![],
            run: 0,
        };
        s.rule = rule(&mut s.made, target)?;
        s.read()?;
        s.model();
        s.made.choice.seed = s.statement.seed();
        s.made.items.remove(&name(8, [0; 4]));
        let value = s.read()?;
        match right {
            Party::Defender => s.write(value),
            Party::Challenger => {
                s.write(value ^ 1);
                // The run that the defender opens follows.
                if let Some(after) = s.partials.get_mut(s.run as usize) {
                    *after = value;
                }
            }
        }
        s.trace();
        s.transcribe();
        Some(s)
    }

    /// Evaluates, and so makes up what is read.
    fn read(&mut self) -> Option<i64> {
        use assay_verify::microstep::Source as _;
        // The leaf that is disputed.
        self.made.cell(self.target)?;
        match self.rule {
            Rule::Given => Some(1),
            Rule::Map => map(&mut self.made, self.target),
            Rule::Fold { runs, .. } => {
                self.run = runs / 2;
                let before = 1 << 40;
                if self.partials.is_empty() {
                    self.partials = (0..runs).map(|r| before + i64::from(r)).collect();
                }
                let before = match self.run.checked_sub(1) {
                    Some(last) => self.partials[last as usize],
                    None => return fold(&mut self.made, self.target, 0, 0),
                };
                fold(&mut self.made, self.target, self.run, before)
            }
        }
    }

    fn shape(&mut self, block: u32, step: u16, part: usize) -> Shape {
        let attended = self.made.ops.get(&step).is_some_and(|d: &Declared| d.attended);
        let specs = parts_of(&mut self.made, step, attended).unwrap();
        let (all, rows) = self.made.rows(step, block);
        specs[part].shape(rows.len(), all.end)
    }

    /// Puts the number where it is claimed.
    fn write(&mut self, value: i64) {
        let (block, c) = (block_of(self.target.position), self.target);
        let shape = self.shape(block, c.op, usize::from(c.part));
        let first = self.made.rows(c.op, block).1.start;
        let place = shape.place((c.position - first) as usize, c.column as usize);
        let key = name(1, [block.into(), c.op.into(), c.part.into(), place.leaf as u64]);
        let width = shape.width.bytes();
        let bytes = self.made.items.get_mut(&key).unwrap();
        bytes[place.at * width..][..width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }

    /// Leaves that were made up: block, step, part, index.
    fn made_leaves(&self) -> Vec<(u32, u16, u8, u64, Vec<u8>)> {
        let number = |w: &[u8]| w.iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let of_trace = self.made.items.iter().filter(|(n, _)| n[0] == 1);
        of_trace
            .map(|(n, bytes)| {
                let leaf = number(&n[24..32]);
                (
                    number(&n[12..16]) as u32,
                    number(&n[16..20]) as u16,
                    number(&n[20..24]) as u8,
                    leaf,
                    bytes.clone(),
                )
            })
            .collect()
    }

    /// Items of a kind: tensor, the rest of the name, bytes.
    fn contents(&self, kind: u8) -> Vec<(u16, u64, Vec<u8>)> {
        let of_kind = self.made.items.iter().filter(|(n, _)| n[0] == kind);
        of_kind
            .map(|(n, bytes)| {
                let rest = u64::from_be_bytes(n[24..32].try_into().unwrap());
                (u16::from_be_bytes([n[22], n[23]]), rest, bytes.clone())
            })
            .collect()
    }

    fn model(&mut self) {
        let p = self.checked.program().clone();
        let mut statements = vec![borsh::to_vec(&p.facts()).unwrap()];
        statements.extend(p.tensors.iter().map(|t| borsh::to_vec(t).unwrap()));
        statements.extend(
            (0..p.ops.len() as u16).map(|i| borsh::to_vec(&self.checked.declared(i).unwrap()).unwrap()),
        );
        self.program_leaves = statements.iter().map(|s| merkle::leaf(s)).collect();
        self.statements = statements;
        let mut hashes: Vec<Hash> = p.tensors.iter().map(|_| hash(&mut self.random)).collect();
        let (weights, scales, runs) = (self.contents(4), self.contents(5), self.contents(6));
        for t in 0..p.tensors.len() as u16 {
            let any = weights.iter().chain(&scales).chain(&runs).any(|(of, ..)| *of == t);
            if !any {
                continue;
            }
            let random = &mut self.random;
            let known = |all: &[(u16, u64, Vec<u8>)]| -> Vec<(usize, Hash)> {
                all.iter()
                    .filter(|(of, ..)| *of == t)
                    .map(|(_, i, b)| (*i as usize, merkle::leaf(b)))
                    .collect()
            };
            let (trees, hash) = match p.tensors[usize::from(t)].shape {
                TensorShape::Matrix { rows, cols, .. } => {
                    let col_tiles = cols.div_ceil(256);
                    let mut rows_of = vec![];
                    let mut tiles = vec![];
                    for (_, at, bytes) in weights.iter().filter(|(of, ..)| *of == t) {
                        let (row, tile) = ((at >> 32) as u32, *at as u32);
                        let in_tile = (rows - row / 64 * 64).min(64) as usize;
                        let row_leaves =
                            leaves(random, in_tile, [((row % 64) as usize, merkle::leaf(bytes))].into_iter());
                        let root = merkle::root(row_leaves.iter().copied());
                        tiles.push(((row / 64 * col_tiles + tile) as usize, root));
                        rows_of.push(row_leaves);
                    }
                    let count = (rows.div_ceil(64) * col_tiles) as usize;
                    let tiles = leaves(random, count, tiles.into_iter());
                    let scales = leaves(random, rows.div_ceil(128) as usize, known(&scales).into_iter());
                    let [w, s] = [&tiles, &scales].map(|l| merkle::root(l.iter().copied()));
                    let hash = keccak256(&[w.as_bytes(), s.as_bytes()]);
                    let mut trees = vec![tiles, scales];
                    trees.extend(rows_of);
                    (trees, hash)
                }
                shape => {
                    let count = match shape {
                        TensorShape::Table => 1025u32.div_ceil(64),
                        TensorShape::Rotary { positions, pairs } => (2 * positions * pairs).div_ceil(128),
                        TensorShape::Vector { len, .. } => len.div_ceil(64),
                        TensorShape::Matrix { .. } => unreachable!(),
                    };
                    let all = leaves(random, count as usize, known(&runs).into_iter());
                    let root = merkle::root(all.iter().copied());
                    (vec![all], root)
                }
            };
            self.tensors.insert(t, trees);
            hashes[usize::from(t)] = hash;
        }
        let component = |name: &str, hash: &Hash| {
            merkle::leaf(&[&[name.len() as u8][..], name.as_bytes(), hash.as_bytes()].concat())
        };
        let program = merkle::root(self.program_leaves.iter().copied());
        let mut components = vec![hash(&mut self.random), component("program", &program)];
        components.extend([hash(&mut self.random), hash(&mut self.random)]);
        components.extend(hashes.iter().map(|h| component("tensor", h)));
        self.statement.model = ModelRoot::from_bytes(*merkle::root(components.iter().copied()).as_bytes());
        self.components = components;
    }

    /// The parts of a step of a block, random but for what was made up.
    fn step(&mut self, block: u32, step: u16) {
        let attended = self.made.ops.get(&step).is_some_and(|d| d.attended);
        let count = parts_of(&mut self.made, step, attended).unwrap().len();
        let made = self.made_leaves();
        let mut parts = Vec::new();
        for part in 0..count {
            let shape = self.shape(block, step, part);
            let known = made
                .iter()
                .filter(|(b, s, p, ..)| (*b, *s, usize::from(*p)) == (block, step, part))
                .map(|(_, _, _, leaf, bytes)| (*leaf as usize, merkle::leaf(bytes)));
            parts.push(leaves(&mut self.random, shape.leaves(), known));
        }
        self.steps.insert((block, step), parts);
    }

    fn roots(&self, block: u32, step: u16) -> Vec<Hash> {
        self.steps[&(block, step)].iter().map(|l| merkle::root(l.iter().copied())).collect()
    }

    fn trace(&mut self) {
        let here = block_of(self.target.position);
        let mut wanted: Vec<(u32, u16)> = self.made_leaves().iter().map(|(b, s, ..)| (*b, *s)).collect();
        wanted.push((here, self.target.op));
        wanted.sort_unstable();
        wanted.dedup();
        for (block, step) in &wanted {
            self.step(*block, *step);
        }
        let ops = self.checked.program().ops.len();
        let mut counts: Vec<usize> = (0..ops as u16)
            .map(|op| self.checked.declared(op).unwrap())
            .map(|d| parts(&d.op, d.made, d.attended).len())
            .collect();
        counts.extend(choice_parts(&self.made.choice, self.made.extent.vocabulary).map(|specs| specs.len()));
        for (step, count) in (0u16..).zip(counts) {
            self.step_roots.push(match self.steps.contains_key(&(here, step)) {
                true => self.roots(here, step),
                false => (0..count).map(|_| hash(&mut self.random)).collect(),
            });
        }
        self.step_leaves = self.step_roots.iter().map(|roots| operation(roots)).collect();
        let carried = self.checked.program().carried();
        for block in 0..block_count(self.statement.positions()) {
            let all: Vec<Hash> = carried
                .iter()
                .map(|op| match block == here {
                    true => self.step_leaves[usize::from(*op)],
                    false if self.steps.contains_key(&(block, *op)) => operation(&self.roots(block, *op)),
                    false => hash(&mut self.random),
                })
                .collect();
            self.carries.push(carry(&all));
            self.carried.insert(block, all);
        }
    }

    /// Carries something else than the steps make.
    pub fn carry_otherwise(&mut self) {
        let here = block_of(self.target.position);
        let all = self.carried.get_mut(&here).unwrap();
        all[0] = hash(&mut self.random);
        self.carries[here as usize] = carry(all);
    }

    /// What shows that it does.
    pub fn carry_pick(&self) -> Pick {
        Pick::Carry(cover::show(&self.step_leaves, &self.checked.program().carried()).unwrap())
    }

    fn transcribe(&mut self) {
        let count = self.statement.prompt.div_ceil(64) + self.statement.output.div_ceil(64) + 3;
        let known: Vec<(usize, Hash)> =
            self.contents(7).iter().map(|(_, i, bytes)| (*i as usize + 1, merkle::leaf(bytes))).collect();
        self.transcript = leaves(&mut self.random, count as usize, known.into_iter());
        let root = merkle::root(self.transcript.iter().copied());
        self.statement.transcript = TranscriptRoot::from_bytes(*root.as_bytes());
    }

    fn opening(&self, leaf: usize, part: Option<Content>) -> ModelOpening {
        ModelOpening {
            statement: self.statements[leaf].clone(),
            statement_proof: merkle::prove(&self.program_leaves, leaf).unwrap(),
            program_proof: merkle::prove(&self.components, 1).unwrap(),
            part,
        }
    }

    fn declared_op(&self, op: u16) -> ModelOpening {
        self.opening(1 + self.checked.program().tensors.len() + usize::from(op), None)
    }

    /// What the defender says.
    pub fn claim(&self, referee: &Referee) -> Option<Claim> {
        let at = referee.at();
        let here = block_of(self.target.position);
        let part = || &self.steps[&(here, self.target.op)][usize::from(self.target.part)];
        Some(match referee.stage() {
            Stage::Trace => {
                Claim::Trace { facts: self.opening(0, None), nodes: at.nodes(referee.below(), &self.carries) }
            }
            Stage::Steps | Stage::Nodes if referee.tree() == Tree::Steps && referee.below() == 0 => {
                let first = at.first(0) as usize;
                Claim::Steps(self.step_roots[first..][..at.count(0) as usize].to_vec())
            }
            Stage::Steps | Stage::Nodes => {
                let leaves = match referee.tree() {
                    Tree::Part => part(),
                    Tree::Blocks => &self.carries,
                    Tree::Steps => &self.step_leaves,
                };
                Claim::Nodes(at.nodes(referee.below(), leaves))
            }
            Stage::Part => {
                let of_program = usize::from(self.target.op) < self.checked.program().ops.len();
                let top = Descent::top(part().len() as u64);
                Claim::Part {
                    op: of_program.then(|| self.declared_op(self.target.op)),
                    terms: (!of_program).then(|| self.request.terms()),
                    nodes: top.nodes(top.next(Tree::Part), part()),
                }
            }
            Stage::Leaf => {
                let (leaf, _) = referee.picked();
                let key = name(1, [here.into(), self.target.op.into(), self.target.part.into(), leaf]);
                Claim::Leaf(self.made.items[&key].clone())
            }
            Stage::Proof => Claim::Proof(Box::new(self.proof())),
            _ => return None,
        })
    }

    fn proof(&self) -> Proof {
        let mut model = Vec::new();
        let tensor_proof = |t: u16| merkle::prove(&self.components, 4 + usize::from(t)).unwrap();
        let opened = |t: u16, bytes: &[u8], way: Way| {
            let part = Content { bytes: bytes.to_vec(), way, tensor_proof: tensor_proof(t) };
            self.opening(1 + usize::from(t), Some(part))
        };
        for (_, op, _) in self.contents(2) {
            model.push(self.declared_op(op as u16));
        }
        for (_, t, _) in self.contents(3) {
            model.push(self.opening(1 + t as usize, None));
        }
        let mut seen = BTreeMap::new();
        for (t, at, bytes) in self.contents(4) {
            let TensorShape::Matrix { cols, .. } = self.made.shapes[&t] else { unreachable!() };
            let (row, tile) = ((at >> 32) as u32, at as u32);
            let trees = &self.tensors[&t];
            let n: &mut usize = seen.entry(t).or_default();
            let row_leaves = &trees[2 + *n];
            *n += 1;
            let way = Way::Weights {
                row: merkle::prove(row_leaves, (row % 64) as usize).unwrap(),
                tile: merkle::prove(&trees[0], (row / 64 * cols.div_ceil(256) + tile) as usize).unwrap(),
                scales: merkle::root(trees[1].iter().copied()),
            };
            model.push(opened(t, &bytes, way));
        }
        for (t, run, bytes) in self.contents(5) {
            let trees = &self.tensors[&t];
            let way = Way::Scales {
                run: merkle::prove(&trees[1], run as usize).unwrap(),
                weights: merkle::root(trees[0].iter().copied()),
            };
            model.push(opened(t, &bytes, way));
        }
        for (t, run, bytes) in self.contents(6) {
            let way = Way::Run(merkle::prove(&self.tensors[&t][0], run as usize).unwrap());
            model.push(opened(t, &bytes, way));
        }
        Proof {
            run: self.run,
            model,
            leaves: self.trace_leaves(),
            ids: self
                .contents(7)
                .iter()
                .map(|(_, i, bytes)| IdsLeaf {
                    ids: bytes.chunks(4).map(|b| u32::from_be_bytes(b.try_into().unwrap())).collect(),
                    path: merkle::prove(&self.transcript, *i as usize + 1).unwrap(),
                })
                .collect(),
            terms: self.made.items.contains_key(&name(8, [0; 4])).then(|| self.request.terms()),
        }
    }

    fn trace_leaves(&self) -> Vec<TraceLeaf> {
        let here = block_of(self.target.position);
        let carried = self.checked.program().carried();
        let mut all = Vec::new();
        for (block, step, part, leaf, bytes) in self.made_leaves() {
            // The disputed leaf was made up so that it could be claimed; a map seldom reads it.
            let parts = &self.steps[&(block, step)];
            let (step_path, block_path) = if block == here {
                (merkle::prove(&self.step_leaves, usize::from(step)).unwrap(), None)
            } else {
                let place = carried.binary_search(&step).unwrap();
                let path = merkle::prove(&self.carries, block as usize);
                (merkle::prove(&self.carried[&block], place).unwrap(), path)
            };
            all.push(TraceLeaf {
                block,
                step,
                part,
                bytes,
                leaf: merkle::prove(&parts[usize::from(part)], leaf as usize).unwrap(),
                parts: self.roots(block, step),
                step_path,
                block_path,
            });
        }
        all
    }

    /// What the challenger picks.
    pub fn pick(&self, referee: &Referee) -> Option<Pick> {
        let at = referee.at();
        let c = self.target;
        let here = block_of(c.position);
        let shape = || referee.shapes()[usize::from(c.part)];
        let place = || {
            let first = self.made.rows(c.op, here).1.start;
            shape().place((c.position - first) as usize, c.column as usize)
        };
        Some(match referee.stage() {
            Stage::PickNode(height, _) => {
                let wanted = if referee.in_blocks() {
                    u64::from(here)
                } else if referee.tree_step().is_none() {
                    u64::from(c.op)
                } else {
                    place().leaf as u64
                };
                Pick::Node(((wanted >> height) - at.first(*height)) as u32)
            }
            Stage::PickPart(_) => Pick::Part { step: (u64::from(c.op) - at.first(0)) as u32, part: c.part },
            Stage::PickNumber(_) => {
                Pick::Number { index: place().at as u16, partials: self.partials.clone() }
            }
            _ => return None,
        })
    }

    /// Positions of the block before the last.
    pub fn late(prompt: u32, output: u32) -> u32 {
        let positions = prompt + output - 1;
        block_range(positions, block_count(positions) - 1).start + 3
    }
}
