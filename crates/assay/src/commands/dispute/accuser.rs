//! Those who say that a receipt is wrong: who knows why, who lies, and who picks blindly.

use assay_core::merkle;
use assay_engine::forward::Executor;
use assay_verify::dispute::parties::Challenger;
use assay_verify::dispute::{Pick, Referee, Stage};
use assay_verify::microstep::partials;
use assay_verify::trace::walk::{Block, Trace, Walked};
use clap::ValueEnum;

use super::cheats::Random;

/// Who accuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// It executed the answer itself, and picks what differs.
    Honest,
    /// It walks to any number and says that it is another.
    False,
    /// It picks and says anything that has the form of an answer.
    Wild,
}

impl Kind {
    /// What it does, in words.
    pub fn does(self) -> &'static str {
        match self {
            Kind::Honest => "executed the answer itself",
            Kind::False => "says that a right number is wrong",
            Kind::Wild => "says anything",
        }
    }
}

/// An honest execution, to look things up in.
pub struct Own<'a> {
    trace: Trace<'a>,
    executor: Executor,
    block: Option<Block>,
}

impl<'a> Own<'a> {
    /// With its trace, which `executor` walks.
    pub fn new(trace: Trace<'a>, executor: Executor) -> Own<'a> {
        Own { trace, executor, block: None }
    }

    /// The trace with one of its blocks.
    pub fn walked(&mut self, index: u32) -> Walked<'_, '_, 'a> {
        if self.block.as_ref().is_none_or(|b| b.index != index) {
            self.block = None;
        }
        let block = self.block.get_or_insert_with(|| self.trace.block(&mut self.executor, index));
        Walked { trace: &self.trace, block }
    }
}

/// Who accuses.
pub enum Accuser<'a> {
    /// Honestly.
    Honest(Box<Challenger<'a>>),
    /// Falsely: right accumulators but for those from some run on.
    False(Random),
    /// Blindly.
    Wild(Random),
}

impl Accuser<'_> {
    /// What it picks.
    pub fn pick(&mut self, referee: &Referee, own: &mut Own<'_>) -> Option<Pick> {
        match self {
            Accuser::Honest(challenger) => challenger.answer(referee),
            Accuser::False(random) => match referee.stage() {
                Stage::PickNumber(numbers) => {
                    let index = u16::try_from(random.below(numbers.len())).ok()?;
                    let partials = wrong(referee, own, index, random).unwrap_or_default();
                    Some(Pick::Number { index, partials })
                }
                stage => any(stage, random),
            },
            Accuser::Wild(random) => match referee.stage() {
                Stage::PickNode(..) if referee.in_blocks() && random.below(8) == 0 => {
                    let blocks = usize::try_from(referee.at().leaves).ok()?;
                    Some(Pick::Digest(u32::try_from(random.below(blocks)).ok()?))
                }
                Stage::PickNumber(numbers) => {
                    let index = u16::try_from(random.below(numbers.len())).ok()?;
                    let runs = random.below(4);
                    let partials = (0..runs).map(|_| random.draw().cast_signed() >> 20).collect();
                    Some(Pick::Number { index, partials })
                }
                stage => any(stage, random),
            },
        }
    }
}

/// Any node of those claimed.
fn any(stage: &Stage, random: &mut Random) -> Option<Pick> {
    match stage {
        Stage::PickNode(_, nodes) => Some(Pick::Node(u32::try_from(random.below(nodes.len())).ok()?)),
        Stage::PickPart(lists) => {
            let step = random.below(lists.len());
            let roots = lists.get(step)?;
            // Parts that the answer's step does not have have no leaves.
            let full: Vec<usize> = (0..roots.len()).filter(|i| roots[*i] != merkle::root([])).collect();
            let part = u8::try_from(*full.get(random.below(full.len()))?).ok()?;
            Some(Pick::Part { step: u32::try_from(step).ok()?, part })
        }
        _ => None,
    }
}

/// The accumulators of a number, all of them off from one run on; `None` if it has none.
fn wrong(referee: &Referee, own: &mut Own<'_>, index: u16, random: &mut Random) -> Option<Vec<i64>> {
    let mut source = own.walked(referee.block());
    let (leaf, _) = referee.picked();
    let (step, part) = (referee.step(), referee.part());
    let shape = *referee.shapes().get(usize::from(part))?;
    let first = source.block.first(step);
    let cell = shape.cell(step, part, first, usize::try_from(leaf).ok()?, index)?;
    let mut partials = partials(&mut source, cell)?;
    let from = random.below(partials.len());
    for p in partials.iter_mut().skip(from) {
        *p = p.wrapping_add(1 + random.below(1000) as i64);
    }
    Some(partials)
}
