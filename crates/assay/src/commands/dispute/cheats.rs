//! What defenders do who cheat: the receipt they sign, what they execute, and what they alter.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_engine::constants::Constants;
use assay_engine::program::{Checked, Op, Program, Reach, ValueId};
use assay_verify::trace::part::{Numbers, Part, Width};
use assay_verify::trace::walk::{Block, Subject, Trace};
use clap::ValueEnum;

use super::models::{Replaced, four_bits, last_layer, products};
use crate::commands::record::Answer;
use crate::commands::steps::{step_name, step_parts};

/// What the defender does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cheat {
    /// Nothing wrong: it defends the receipt as it is.
    Honest,
    /// It executes with one matrix rounded to 4 bits.
    Weights,
    /// It leaves out the last layer.
    Layers,
    /// It executes another prompt.
    Prompt,
    /// It swaps one token of the answer.
    Token,
    /// It signs another execution digest.
    Digest,
    /// It alters one number of one block.
    Number,
    /// It attends to other keys than those of an earlier block.
    Cache,
    /// It stops answering.
    Silent,
    /// It sends a message that has no meaning.
    Garbage,
}

/// Numbers drawn from a seed: the same dispute again.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if that is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % (n.max(1) as u64)) as usize
    }
}

/// A number that is altered in a block.
#[derive(Clone, Copy)]
struct Altered {
    block: u32,
    op: ValueId,
    part: u8,
    row: usize,
    column: usize,
}

/// A defender: what it signed, and what it has to show for it.
pub struct Scheme {
    /// What it does, in words.
    pub what: String,
    /// The record of its receipt. Only an honest defender's is signed.
    pub record: AnswerRecord,
    /// What it executes.
    pub constants: Arc<dyn Constants>,
    cheat: Cheat,
    subject: Subject,
    altered: Option<Altered>,
}

impl Scheme {
    /// A defender of an answer. Which matrix, token or number it is about follows from `random`.
    pub fn new(cheat: Cheat, answer: &Answer, random: &mut Random) -> Result<Scheme> {
        let constants = answer.artifact.shared();
        let mut scheme = Scheme {
            what: "defends what it honestly executed".into(),
            record: answer.record.clone(),
            subject: answer.subject(&answer.record)?,
            constants: Arc::clone(&constants),
            cheat,
            altered: None,
        };
        let checked = constants.program();
        let program = checked.program();
        match cheat {
            Cheat::Honest => {}
            Cheat::Weights => {
                let t = products(program)[random.below(products(program).len())];
                scheme.constants = Arc::new(Replaced::new(constants.clone(), &[t], four_bits));
                let name = &program.tensors[usize::from(t)].name;
                scheme.what = format!("executes with `{name}` rounded to 4 bits");
            }
            Cheat::Layers => {
                let (layer, last) = last_layer(program).context("the model has no layer to leave out")?;
                scheme.constants = Arc::new(Replaced::new(constants.clone(), &last, |_| 0));
                scheme.what = format!("leaves out layer {layer}, the last");
            }
            Cheat::Prompt => {
                let at = random.below(scheme.subject.prompt as usize);
                let id = other(scheme.subject.tokens[at], program.vocabulary, random);
                scheme.subject.tokens[at] = id;
                scheme.what = format!("executes a prompt whose token {at} is {id}");
            }
            Cheat::Token => {
                let ids = &mut scheme.record.transcript.output_ids;
                let at = random.below(ids.len());
                ids[at] = other(ids[at], program.vocabulary, random);
                scheme.what = format!("says {} for output token {at}", ids[at]);
                // The seed follows from the request, which stays.
                scheme.subject = answer.subject(&scheme.record)?;
            }
            Cheat::Digest => {
                let digests = &mut scheme.record.digests.0;
                let at = random.below(digests.len());
                let digest = digests.get_mut(at).context("the record has no digests")?;
                let mut bytes = *digest.as_bytes();
                bytes[random.below(32)] ^= 1;
                *digest = Hash::from_bytes(bytes);
                scheme.what = format!("signs another digest for block {at}");
                bind(&mut scheme.record);
            }
            Cheat::Number => scheme.alters_a_number(checked, random),
            Cheat::Cache => scheme.alters_a_score(program, random)?,
            Cheat::Silent => scheme.what = "stops answering".into(),
            Cheat::Garbage => scheme.what = "sends what has no meaning".into(),
        }
        Ok(scheme)
    }

    fn blocks(&self) -> usize {
        self.subject.tokens.len().div_ceil(assay_core::digest::DIGEST_TOKENS as usize)
    }

    fn rows(&self, block: usize) -> usize {
        let positions = u32::try_from(self.subject.tokens.len()).unwrap_or(u32::MAX);
        assay_verify::trace::block_range(positions, block as u32).len()
    }

    fn alters_a_number(&mut self, checked: &Checked, random: &mut Random) {
        let program = checked.program();
        let (hidden, _) = program.tokens();
        let block = random.below(self.blocks());
        let op = random.below(usize::from(hidden) + 1) as ValueId;
        let specs = step_parts(checked, &self.subject.choice, op);
        let part = random.below(specs.len());
        let end = (block * 32 + self.rows(block)) as u32;
        let (row, column) = (random.below(self.rows(block)), random.below(specs[part].columns.count(end)));
        let (name, of) = (specs[part].name, step_name(program, op));
        self.what = format!("alters one of the {name} of step {op} ({of}) in block {block}");
        self.altered = Some(Altered { block: block as u32, op, part: part as u8, row, column });
    }

    fn alters_a_score(&mut self, program: &Program, random: &mut Random) -> Result<()> {
        let reads_earlier = |op: &Op| match op {
            Op::Attend { reach, heads, .. } if !matches!(reach, Reach::Window(1)) => Some(*heads as usize),
            _ => None,
        };
        let all = program.ops.iter().enumerate();
        let attends: Vec<(usize, usize)> = all.filter_map(|(i, op)| Some((i, reads_earlier(op)?))).collect();
        if attends.is_empty() || self.blocks() < 2 {
            bail!("no block of this answer attends to an earlier one: take one with more than 32 tokens");
        }
        let (op, heads) = attends[random.below(attends.len())];
        let block = 1 + random.below(self.blocks() - 1);
        let first = block * 32;
        let (head, end) = (random.below(heads), first + self.rows(block));
        let layer = step_name(program, op as ValueId);
        self.what =
            format!("takes another key for position {} in block {block}, head {head} of {layer}", first - 1);
        // The score of the block's first position with the last one before the block.
        let column = head * end + first - 1;
        self.altered = Some(Altered { block: block as u32, op: op as ValueId, part: 0, row: 0, column });
        Ok(())
    }

    /// The trace that it defends with, `constants` being its own. From here on `record` says what it would have signed.
    pub fn trace<'a>(&mut self, constants: &'a Arc<dyn Constants>, answer: &Answer) -> Trace<'a> {
        let mut execution = answer.executor_of(Arc::clone(constants));
        let mut trace = Trace::new(constants.as_ref(), self.subject.clone(), &mut execution);
        if let Some(a) = self.altered {
            let (hidden, _) = constants.program().program().tokens();
            for (op, part, row, column) in a.carried(hidden) {
                if let Some(parts) = trace.carried_parts(a.block, op) {
                    let mut parts = parts.to_vec();
                    parts[usize::from(part)] = changed(&parts[usize::from(part)], row, column);
                    trace.replace_carried(a.block, op, parts);
                }
            }
        }
        let signs_its_own = match self.cheat {
            Cheat::Weights | Cheat::Layers | Cheat::Prompt | Cheat::Token | Cheat::Number | Cheat::Cache => {
                true
            }
            Cheat::Honest | Cheat::Digest | Cheat::Silent | Cheat::Garbage => false,
        };
        if signs_its_own {
            self.record.digests = trace.digests();
            bind(&mut self.record);
        }
        trace
    }

    /// What it does to each block that it walks.
    pub fn alteration(&self) -> impl Fn(&mut Block) + use<> {
        let altered = self.altered;
        let hidden = self.constants.program().program().tokens().0;
        move |block: &mut Block| {
            for (op, part, row, column) in
                altered.filter(|a| a.block == block.index).iter().flat_map(|a| a.carried(hidden))
            {
                let made = block.parts(op).and_then(|p| p.get(usize::from(part)));
                if let Some(by) = made.map(|p| changed(p, row, column)) {
                    block.replace(op, part, by);
                }
            }
        }
    }
}

impl Altered {
    /// The numbers to alter: the one that is meant, and one of the block's first hidden vector, so that its digest is another
    /// and the block is walked at all.
    fn carried(&self, hidden: ValueId) -> Vec<(ValueId, u8, usize, usize)> {
        let one = (self.op, self.part, self.row, self.column);
        if self.op == hidden { vec![one] } else { vec![one, (hidden, 2, 0, 0)] }
    }
}

/// Makes the receipt fit what the record says: what a provider who cheats would sign.
fn bind(record: &mut AnswerRecord) {
    let receipt = &mut record.receipt.receipt;
    receipt.transcript_root = record.transcript.root();
    receipt.digest_root = record.digests.root();
}

/// Another id.
fn other(id: u32, vocabulary: u32, random: &mut Random) -> u32 {
    let step = 1 + random.below(vocabulary.saturating_sub(1) as usize) as u32;
    (id + step) % vocabulary.max(1)
}

/// The same part with one number changed.
fn changed(part: &Part, row: usize, column: usize) -> Part {
    let shape = part.shape();
    let all = (0..shape.rows * shape.columns).map(|i| {
        let v = part.get(i / shape.columns, i % shape.columns);
        if i == row * shape.columns + column { v ^ 1 } else { v }
    });
    let numbers = match shape.width {
        Width::Byte => Numbers::Byte(all.map(|v| v as i8).collect()),
        Width::Word => Numbers::Word(all.map(|v| v as i32).collect()),
        Width::Long => Numbers::Long(all.collect()),
    };
    Part::new(shape.rows, shape.columns, shape.layout, numbers)
}
