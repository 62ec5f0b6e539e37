//! Reading the other party's messages from a ledger: what [`super::calldata`] writes, the other way round.
//!
//! Who takes part in a dispute has the model and the record, so that most of a message is known before it is read: what the contract took
//! was under the model root, the request or what was claimed before. Only what its sender chose is taken out of it. Invariant: what was read is
//! written again and is the message, byte for byte. Messages that end a dispute (micro-steps, digests, carries) are not read: nobody
//! answers them.

use assay_core::id::Hash;
use assay_core::request::Terms;
use assay_engine::artifact::opening::{Item, ModelOpening};

use super::calldata::Encoder;
use super::{Claim, Pick, Referee, Stage, Tree};

/// Bytes of a hash.
const HASH: usize = 32;
/// Bytes of an accumulator.
const ACCUMULATOR: usize = 8;

/// What a party knows of the model and the request itself.
pub struct Known<'a> {
    /// Opens an item of the model.
    pub open: &'a dyn Fn(Item) -> Option<ModelOpening>,
    /// How the request's tokens are chosen.
    pub terms: &'a dyn Fn() -> Terms,
}

impl Encoder {
    /// What the defender said, as the contract took it, before `referee` takes it. The encoder remembers it as if it had written it. `None` if
    /// it is no such message here.
    pub fn heard_claim(&mut self, referee: &Referee, known: &Known<'_>, message: &[u8]) -> Option<Claim> {
        let claim = self.claim_of(referee, known, message)?;
        (self.claim(referee, &claim)?.as_slice() == message).then_some(claim)
    }

    /// What the challenger said, likewise.
    pub fn heard_pick(&mut self, referee: &Referee, message: &[u8]) -> Option<Pick> {
        let pick = pick_of(referee, message)?;
        (self.pick(referee, &pick)?.as_slice() == message).then_some(pick)
    }

    fn claim_of(&self, referee: &Referee, known: &Known<'_>, message: &[u8]) -> Option<Claim> {
        let way = self.way_bytes()?;
        let count = || usize::try_from(referee.at().count(referee.below())).ok();
        match referee.stage() {
            Stage::Trace => {
                let facts = (known.open)(Item::Facts)?;
                let nodes = tail(message, count()?.checked_mul(HASH)?)?;
                Some(Claim::Trace { facts, nodes: hashes(nodes)? })
            }
            Stage::Steps | Stage::Nodes => {
                let said = if *referee.stage() == Stage::Steps {
                    // The context behind its length, the carry, the way.
                    let (length, rest) = message.split_first_chunk::<2>()?;
                    let before =
                        usize::from(u16::from_be_bytes(*length)).checked_add(HASH)?.checked_add(way)?;
                    rest.get(before..)?
                } else {
                    message.get(HASH..message.len().checked_sub(way)?)?
                };
                if referee.tree() == Tree::Steps && referee.below() == 0 {
                    return Some(Claim::Steps(lists(said, count()?)?));
                }
                Some(Claim::Nodes(hashes(said)?))
            }
            Stage::Part => {
                let of_program = usize::from(referee.step()) < referee.operations()?;
                let op = if of_program { Some((known.open)(Item::Op(referee.step()))?) } else { None };
                let terms = (!of_program).then(|| (known.terms)());
                // Everything before the nodes is what it must be: written without any, it is what the message begins with.
                let without = Claim::Part { op: op.clone(), terms: terms.clone(), nodes: vec![] };
                let before = self.clone().claim(referee, &without)?;
                let nodes = message.strip_prefix(before.as_slice())?;
                Some(Claim::Part { op, terms, nodes: hashes(nodes)? })
            }
            Stage::Leaf => Some(Claim::Leaf(message.get(HASH..message.len().checked_sub(way)?)?.to_vec())),
            _ => None,
        }
    }
}

fn pick_of(referee: &Referee, message: &[u8]) -> Option<Pick> {
    let two = |at: usize| {
        let bytes = message.get(at..at.checked_add(2)?)?;
        Some(u32::from(u16::from_be_bytes(bytes.try_into().ok()?)))
    };
    if let Stage::PickNumber(_) = referee.stage() {
        let at = HASH.checked_mul(2)?;
        let index = u16::try_from(two(at)?).ok()?;
        let said = message.get(at.checked_add(2)?..)?;
        let partial = |bytes: &[u8]| Some(i64::from_be_bytes(bytes.try_into().ok()?));
        let partials = said.chunks(ACCUMULATOR).map(partial).collect::<Option<_>>()?;
        return Some(Pick::Number { index, partials });
    }
    match message.first()? {
        0 => Some(Pick::Node(two(1)?)),
        1 => Some(Pick::Digest(two(1)?)),
        3 => Some(Pick::Part { step: two(1)?, part: *message.get(3)? }),
        _ => None,
    }
}

fn tail(bytes: &[u8], length: usize) -> Option<&[u8]> {
    bytes.get(bytes.len().checked_sub(length)?..)
}

fn hashes(bytes: &[u8]) -> Option<Vec<Hash>> {
    bytes.chunks(HASH).map(|b| Some(Hash::from_bytes(b.try_into().ok()?))).collect()
}

/// Lists of hashes, each behind its number in 1 byte, and nothing more.
fn lists(mut bytes: &[u8], count: usize) -> Option<Vec<Vec<Hash>>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let (number, rest) = bytes.split_first()?;
        let (list, rest) = rest.split_at_checked(usize::from(*number).checked_mul(HASH)?)?;
        all.push(hashes(list)?);
        bytes = rest;
    }
    bytes.is_empty().then_some(all)
}
