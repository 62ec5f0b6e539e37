//! What the messages of a dispute say, for people.

use assay_engine::program::{Checked, ValueId};
use assay_verify::dispute::{Claim, Message, Party, Pick, Reason, Referee, Stage};
use assay_verify::microstep::Choice;
use assay_verify::trace::block_range;
use serde_json::{Value, json};

use crate::commands::steps::{plural, step_name, step_parts};

/// A message, as it was taken.
pub struct Told {
    /// The round; none for what ends the dispute.
    pub round: Option<u32>,
    /// Who said it.
    pub by: Party,
    /// Its kind.
    pub kind: &'static str,
    /// What it says.
    pub says: String,
    /// What is picked by it.
    pub picked: Value,
    /// Its bytes.
    pub bytes: usize,
}

/// Knows the model's words for what is claimed and picked.
#[derive(Clone, Copy)]
pub struct Teller<'a> {
    /// The model's program.
    pub checked: &'a Checked,
    /// How the answer's tokens are chosen.
    pub choice: &'a Choice,
}

/// Who that is.
pub fn name(party: Party) -> &'static str {
    match party {
        Party::Defender => "defender",
        Party::Challenger => "challenger",
    }
}

/// Why it ended, in a sentence.
pub fn reason(reason: Reason, loser: Party) -> String {
    let loser = name(loser);
    match reason {
        Reason::Timeout => format!("the {loser} said nothing in time"),
        Reason::Malformed => format!("what the {loser} sent has no meaning here"),
        Reason::Contradiction => {
            format!("what the {loser} sent is not under what it, or the receipt, said before")
        }
        Reason::StepHolds => "the number follows from what was opened".into(),
        Reason::StepFails => "the number does not follow, or was not shown to".into(),
        Reason::PartialsFail => "the challenger's accumulators do not follow".into(),
        Reason::DigestHolds => "the digest is that of the block's hidden vectors".into(),
        Reason::DigestFails => "the digest is not that of the block's hidden vectors".into(),
    }
}

/// `first` to `last` of what is called `one` and `many`.
fn span(one: &str, many: &str, first: u64, last: u64) -> String {
    if first == last { format!("{one} {first}") } else { format!("{many} {first} to {last}") }
}

impl Teller<'_> {
    /// A step with its name.
    pub fn step(&self, step: ValueId) -> String {
        format!("step {step} ({})", step_name(self.checked.program(), step))
    }

    /// The name of a step's part.
    pub fn part(&self, step: ValueId, part: u8) -> &'static str {
        step_parts(self.checked, self.choice, step).get(usize::from(part)).map_or("", |p| p.name)
    }

    /// Nobody spoke.
    pub fn silence(&self, referee: &Referee, by: Party) -> Told {
        let says = "says nothing".into();
        Told { round: self.round(referee), by, kind: "silence", says, picked: Value::Null, bytes: 0 }
    }

    fn round(&self, before: &Referee) -> Option<u32> {
        match before.stage() {
            Stage::Proof | Stage::Digest(_) | Stage::Over(_) => None,
            Stage::PickNode(..) | Stage::PickPart(_) | Stage::PickNumber(_) => Some(before.rounds()),
            _ => Some(before.rounds().saturating_add(1)),
        }
    }

    /// A message, from what the referee knew before it and after it.
    pub fn message(&self, before: &Referee, after: &Referee, by: Party, message: &Message) -> Told {
        let which = usize::from(by == Party::Challenger);
        let bytes = after.bytes()[which] - before.bytes()[which];
        let (kind, says, picked) = match message {
            Message::Claim(claim) => {
                let (kind, says) = self.claim(before, claim);
                (kind, says, Value::Null)
            }
            Message::Pick(pick) => self.pick(before, after, pick),
        };
        Told { round: self.round(before), by, kind, says, picked, bytes }
    }

    fn claim(&self, before: &Referee, claim: &Claim) -> (&'static str, String) {
        let asked = matches!(
            (before.stage(), claim),
            (Stage::Trace, Claim::Trace { .. })
                | (Stage::Steps | Stage::Nodes, Claim::Nodes(_) | Claim::Steps(_))
                | (Stage::Part, Claim::Part { .. })
                | (Stage::Leaf, Claim::Leaf(_))
                | (Stage::Proof, Claim::Proof(_))
                | (Stage::Digest(_), Claim::Digest(_))
        );
        if !asked {
            return ("unasked", "what was not asked for".into());
        }
        let blocks = before.at().leaves;
        match claim {
            Claim::Trace { nodes, .. } => (
                "trace",
                format!(
                    "the program's facts; {} hashes over the carries of {}",
                    nodes.len(),
                    plural(blocks as usize, "block")
                ),
            ),
            Claim::Nodes(nodes) if *before.stage() == Stage::Steps => {
                ("steps", format!("block {}: {} hashes over its steps", before.block(), nodes.len()))
            }
            Claim::Nodes(nodes) => ("nodes", format!("{} hashes below", nodes.len())),
            Claim::Steps(lists) => {
                let n = lists.iter().map(Vec::len).sum::<usize>();
                let (steps, block) = (plural(lists.len(), "step"), before.block());
                ("steps", format!("block {block}: {} of {steps}", plural(n, "root")))
            }
            Claim::Part { nodes, .. } => {
                let (step, part) = (before.step(), self.part(before.step(), before.part()));
                ("part", format!("{}: {} hashes over leaves of {part}", self.step(step), nodes.len()))
            }
            Claim::Leaf(_) => ("leaf", "the numbers of the leaf".into()),
            Claim::Proof(p) => {
                let terms = if p.terms.is_some() { ", how tokens are chosen" } else { "" };
                let says = format!(
                    "opens {} items of the model, {} leaves of the trace, {} of the transcript{terms}",
                    p.model.len(),
                    p.leaves.len(),
                    p.ids.len()
                );
                let run =
                    if before.partials().is_empty() { String::new() } else { format!("; run {}", p.run) };
                ("proof", says + &run)
            }
            Claim::Digest(_) => ("digest", "opens the block's hidden vectors and its digest".into()),
        }
    }

    fn pick(&self, before: &Referee, after: &Referee, pick: &Pick) -> (&'static str, String, Value) {
        let (kind, what, picked) = match pick {
            Pick::Digest(block) => {
                let says = format!("doubts the digest of block {block}");
                return ("digest", says, json!({"digest_of_block": block}));
            }
            Pick::Carry(nodes) => {
                let says = format!("what is carried is not what was made: {} hashes", nodes.len());
                return ("carry", says, json!({"carry": before.block()}));
            }
            Pick::Number { index, partials } => {
                let Stage::PickNumber(numbers) = before.stage() else { return self.unasked() };
                let claimed = numbers.get(usize::from(*index)).copied();
                let says = match partials.len() {
                    0 => format!("number {index} is not {}", claimed.unwrap_or_default()),
                    runs => format!(
                        "number {index} is not {} but {}: accumulators of {}",
                        claimed.unwrap_or_default(),
                        partials.last().copied().unwrap_or_default(),
                        plural(runs, "run")
                    ),
                };
                return (
                    "number",
                    says,
                    json!({"number": index, "claimed": claimed, "accumulators": partials}),
                );
            }
            Pick::Node(_) if before.in_blocks() => ("block", ("block", "blocks"), "block"),
            Pick::Node(_) if before.tree_step().is_none() => ("step", ("step", "steps"), "step"),
            Pick::Node(_) => ("leaf", ("leaf", "leaves"), "leaf"),
            Pick::Part { part, .. } => {
                let step = after.step();
                let says = format!("{}, part {part} ({})", self.step(step), self.part(step, *part));
                return ("part", says, json!({"step": step, "part": part}));
            }
        };
        let (first, last) = covered(before, pick);
        let mut says = span(what.0, what.1, first, last);
        if first == last && kind == "block" {
            let range = block_range(after.statement().positions(), after.block());
            says = format!("{says} (positions {} to {})", range.start, range.end.saturating_sub(1));
        }
        (kind, says, json!({picked: [first, last]}))
    }

    fn unasked(&self) -> (&'static str, String, Value) {
        ("unasked", "what was not asked for".into(), Value::Null)
    }
}

/// The leaves of the tree that are below a picked node.
fn covered(before: &Referee, pick: &Pick) -> (u64, u64) {
    let (Stage::PickNode(height, _), Pick::Node(i)) = (before.stage(), pick) else { return (0, 0) };
    let node = before.at().first(*height).saturating_add(u64::from(*i));
    let first = node.checked_shl(*height).unwrap_or(u64::MAX);
    let last = node.saturating_add(1).checked_shl(*height).unwrap_or(u64::MAX).min(before.at().leaves);
    (first, last.saturating_sub(1).max(first))
}
