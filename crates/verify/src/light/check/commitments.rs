//! What an opening holds of blocks: whether it has the shape that was drawn, and whether it hashes to what was committed.

use std::ops::Range;

use assay_core::digest::block_digest;
use assay_core::id::Hash;
use assay_core::verdict::FailureCode;
use assay_engine::constants::Constants;
use assay_engine::semantics::scale::Scale;

use super::{Audited, Cost, Mistake};
use crate::light::form::{Carried, Form, Roots};
use crate::light::key::Expanded;
use crate::light::opening::{Block, Kept, Opening, Row};
use crate::trace;
use crate::trace::part::{Numbers, Part};

/// A carried operation in one block, laid out to be hashed.
enum Laid {
    Roots(Roots),
    Whole { largest: Hash, scales: Vec<Scale>, hashed: [Part; 2] },
}

impl Laid {
    fn new(kept: Kept, carried: &Carried) -> Laid {
        match kept {
            Kept::Roots(roots) => Laid::Roots(roots),
            Kept::Whole { largest, scales, numbers } => {
                let hashed = [carried.scales(&scales), carried.numbers(numbers.0)];
                Laid::Whole { largest, scales, hashed }
            }
        }
    }

    /// The parts that are hashed: of scales and of numbers.
    fn parts(&self) -> &[Part] {
        match self {
            Laid::Roots(_) => &[],
            Laid::Whole { hashed, .. } => hashed,
        }
    }

    /// The roots, taking those of the parts.
    fn roots(&self, hashes: &mut impl Iterator<Item = Hash>) -> Roots {
        match self {
            Laid::Roots(roots) => *roots,
            Laid::Whole { largest, .. } => {
                let mut next = || hashes.next().unwrap_or(Hash::ZERO);
                Roots { largest: *largest, scales: next(), numbers: next() }
            }
        }
    }

    fn rows(self) -> Option<Rows> {
        let Laid::Whole { scales, hashed: [_, numbers], .. } = self else { return None };
        match numbers.into_numbers() {
            Numbers::Byte(numbers) => Some(Rows { scales, numbers }),
            Numbers::Word(_) | Numbers::Long(_) => None,
        }
    }
}

/// A carried operation's rows of one block, as they were opened.
pub(super) struct Rows {
    scales: Vec<Scale>,
    numbers: Vec<i8>,
}

impl Rows {
    /// Numbers and scales of some rows.
    pub(super) fn rows(&self, rows: Range<usize>, carried: &Carried) -> Option<(&[i8], &[Scale])> {
        let of = |width: usize| rows.start * width..rows.end * width;
        Some((self.numbers.get(of(carried.len))?, self.scales.get(of(carried.groups))?))
    }
}

/// Whether everything has the shape that program, draw and transcript ask for. What this lets pass is never out of bounds below.
pub(super) fn shapes(
    held: &Expanded,
    audited: &Audited<'_>,
    drawn: &[u32],
    opening: &Opening,
) -> Result<(), Mistake> {
    let (form, fed, program) = (&held.form, &audited.fed, held.program().program());
    let opened: Vec<u32> = opening.tokens.iter().map(|t| t.position).collect();
    let last = drawn.last().copied().unwrap_or(0);
    if opened != drawn {
        return Err(Mistake::shape(last, format!("opens positions {opened:?}, drawn were {drawn:?}")));
    }
    let all = trace::blocks(program, fed.positions());
    let whole = last / assay_core::digest::DIGEST_TOKENS + 1;
    if opening.blocks.len() != whole as usize || opening.rest.len() != (all - whole) as usize {
        let (blocks, rest) = (opening.blocks.len(), opening.rest.len());
        let message = format!("has {blocks} blocks and {rest} carries, not {whole} and {}", all - whole);
        return Err(Mistake::shape(whole - 1, message));
    }
    for (b, block) in (0u32..).zip(&opening.blocks) {
        let positions = trace::block_positions(program, fed.positions(), b);
        let open = drawn.iter().any(|p| positions.contains(p));
        if !is_block(form, block, positions.len(), open) {
            let message = format!("block {b} does not hold what the program carries");
            return Err(Mistake::shape(b, message));
        }
    }
    for token in &opening.tokens {
        let fits = |row: &Row, cols: usize| row.weights.0.len() == cols;
        let rows = token.rows.len() == form.embedded.len()
            && token.rows.iter().zip(&form.embedded).all(|(r, e)| fits(r, e.cols));
        let products = form.products_of(token.position >= fed.choices_from());
        if !rows || token.products.len() != products {
            let message = "the token does not hold the rows and products of the program";
            return Err(Mistake::shape(token.position, message));
        }
    }
    Ok(())
}

fn is_block(form: &Form, block: &Block, rows: usize, open: bool) -> bool {
    let one = |(i, kept): (usize, &Kept)| match kept {
        Kept::Roots(_) => !form.is_whole(i, open),
        Kept::Whole { scales, numbers, .. } => {
            let Some(c) = form.carried.get(i) else { return false };
            form.is_whole(i, open)
                && scales.len() == rows * c.groups
                && numbers.0.len() == rows * c.len
                // No execution makes other scales or numbers.
                && scales.iter().all(|s| s.is_canonical())
                && !numbers.0.contains(&i8::MIN)
        }
    };
    block.kept.len() == form.carried.len() && block.kept.iter().enumerate().all(one)
}

/// Hashes the blocks to the trace root and to the receipted digests; gives back what they hold.
pub(super) fn commitments(
    form: &Form,
    audited: &Audited<'_>,
    blocks: Vec<Block>,
    rest: Vec<Hash>,
    cost: &mut Cost,
) -> Result<Vec<Vec<Option<Rows>>>, Mistake> {
    let held: Vec<Vec<Laid>> = blocks
        .into_iter()
        .map(|block| block.kept.into_iter().zip(&form.carried).map(|(kept, c)| Laid::new(kept, c)).collect())
        .collect();
    let parts: Vec<&Part> = held.iter().flatten().flat_map(Laid::parts).collect();
    let mut hashes = Part::roots(&parts).into_iter();
    let roots: Vec<Roots> = held.iter().flatten().map(|laid| laid.roots(&mut hashes)).collect();
    cost.block_bytes += parts.iter().map(|p| p.shape().bytes() as u64).sum::<u64>();
    let mut carries = Roots::carries(&roots, form.carried.len());
    let digests = roots.chunks(form.carried.len().max(1)).filter_map(|block| block.get(form.hidden));
    carries.extend(rest);
    let got = trace::root(&carries);
    if got != audited.challenge.trace {
        let message = format!("the opened blocks hash to {got}, committed was {}", audited.challenge.trace);
        return Err(Mistake { check: "commitments", code: FailureCode::TraceRoot, position: None, message });
    }
    let receipted = &audited.record.digests.0;
    if receipted.len() != carries.len() {
        let message = format!("there are {} digests for {} blocks", receipted.len(), carries.len());
        let at = receipted.len().min(carries.len());
        return Err(Mistake { check: "commitments", code: FailureCode::Digest, position: Some(at), message });
    }
    for (b, (roots, digest)) in (0u32..).zip(digests.zip(receipted)) {
        if block_digest(u64::from(b), &roots.scales, &roots.numbers) != *digest {
            let message = format!("digest {b} is not of the committed hidden vectors");
            return Err(Mistake::new("commitments", FailureCode::Digest, b, message));
        }
    }
    Ok(held.into_iter().map(|block| block.into_iter().map(Laid::rows).collect()).collect())
}
