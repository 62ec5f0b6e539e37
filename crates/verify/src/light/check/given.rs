//! The execution of the opened tokens, of what was opened.

use assay_core::merkle;
use assay_core::verdict::FailureCode;
use assay_engine::cache::Sequence;
use assay_engine::constants::Constants;
use assay_engine::forward::{Companion, Placed, Values};
use assay_engine::kernel::Kernel;
use assay_engine::program::ValueId;
use assay_engine::program::check::CacheShape;
use assay_engine::semantics::fixed::shift_sat;
use assay_engine::semantics::scale::Scale;

use super::commitments::Rows;
use super::{BLOCK, Cost, Mistake};
use crate::light::form::Role;
use crate::light::key::{Expanded, row_leaf};
use crate::light::opening::{Row, Token};
use crate::light::watch::{Stage, Watch};

/// Beside the executor: makes products, embedded rows and attention of what was opened, and compares what comes out with what was
/// committed. After a mistake it goes on with zeros, which nobody reads.
pub(super) struct Given<'a> {
    pub(super) held: &'a Expanded,
    pub(super) kernel: Kernel,
    pub(super) tokens: &'a [Token],
    pub(super) placed: &'a [Placed],
    pub(super) positions: &'a [u32],
    pub(super) blocks: &'a [Vec<Option<Rows>>],
    /// Keys and values of the attend operation at hand; the memory serves all of one shape.
    pub(super) cache: Option<(CacheShape, Sequence)>,
    pub(super) watch: &'a Watch,
    pub(super) cost: &'a mut Cost,
    pub(super) mistake: Option<Mistake>,
}

impl Companion for Given<'_> {
    fn make(&mut self, op: usize, values: &mut Values<'_>) -> bool {
        let made = match self.held.form.role(op) {
            Role::Embedded(i) => self.embedded(i, values),
            Role::Product(i) => self.product(i, values),
            Role::Attended(layer) => {
                self.attended(op, layer, values);
                Ok(())
            }
            Role::Plain | Role::Carried(_) => return false,
        };
        if let Err(mistake) = made {
            self.mistake.get_or_insert(mistake);
        }
        true
    }

    fn made(&mut self, op: usize, values: &Values<'_>) {
        let role = self.held.form.role(op);
        self.watch.done(stage(role));
        if let Role::Carried(i) = role
            && self.mistake.is_none()
        {
            self.mistake = self.carried(i, values).err();
            self.watch.done(Stage::States);
        }
    }
}

fn stage(role: Role) -> Stage {
    match role {
        Role::Embedded(_) => Stage::Rows,
        Role::Product(_) => Stage::Products,
        Role::Attended(_) => Stage::Attention,
        Role::Plain | Role::Carried(_) => Stage::Elementwise,
    }
}

impl Given<'_> {
    /// Makes the embedded rows of all tokens, and checks that they are the model's.
    fn embedded(&self, i: usize, values: &mut Values<'_>) -> Result<(), Mistake> {
        let Some(e) = self.held.form.embedded.get(i) else { return Ok(()) };
        let (_, _, shift) = self.held.program().matrix_shape(e.table);
        let frac = self.held.program().program().residual_frac;
        let shift = i32::from(shift) - i32::from(frac);
        let rows: Vec<&Row> = self.tokens.iter().filter_map(|t| t.rows.get(i)).collect();
        let fixed = |row: &&Row| -> Vec<i32> {
            row.weights.0.iter().map(|w| shift_sat(i64::from(*w) * i64::from(row.scale), shift)).collect()
        };
        let made: Vec<i32> = rows.iter().flat_map(fixed).collect();
        values.put_integers(e.op, &made, vec![Scale::power(-i16::from(frac)); rows.len()]);
        let root = self.held.rows_of(e.table);
        for (row, placed) in rows.into_iter().zip(self.placed) {
            let index = u64::from(if e.by_position { placed.position } else { placed.token });
            let leaf = row_leaf(row.scale, &row.weights.0);
            let stands =
                row.proof.index == index && root.is_some_and(|root| merkle::verify(root, leaf, &row.proof));
            if !stands {
                let position = placed.position;
                let message =
                    format!("the row opened for position {position} is not row {index} of the model's table");
                return Err(Mistake::new("products", FailureCode::Row, position, message));
            }
        }
        Ok(())
    }

    /// Unpacks the accumulators of a product for all tokens that have it, and checks that they are the product.
    fn product(&mut self, i: usize, values: &mut Values<'_>) -> Result<(), Mistake> {
        let Some(p) = self.held.form.products.get(i) else { return Ok(()) };
        let check = self.held.check_of(p.weights);
        // Behind the hidden vector only the last tokens are left: those that choose.
        let tokens = self.tokens.get(self.tokens.len() - values.rows()..).unwrap_or_default();
        let (kernel, cost, mut wrong) = (self.kernel, &mut *self.cost, None);
        let mut in_vain = self.mistake.is_some();
        values.put_product(p.op, p.weights, p.x, &mut |row, q, sums| {
            let Some((token, packed)) = tokens.get(row).and_then(|t| Some((t, t.products.get(i)?))) else {
                unreachable!("the shapes were checked")
            };
            cost.products += 1;
            cost.accumulators += p.rows as u64;
            cost.token_bytes += packed.bytes.len() as u64;
            if !in_vain && packed.unpack(kernel, sums) && check.is_some_and(|c| c.holds(kernel, q, sums)) {
                return;
            }
            sums.fill(0);
            if !std::mem::replace(&mut in_vain, true) {
                wrong = Some(token.position);
            }
        });
        let Some(position) = wrong else { return Ok(()) };
        let names = &self.held.program().program().tensors;
        let name = names.get(usize::from(p.weights)).map_or("", |t| t.name.as_str());
        let message = format!("the accumulators of `{name}` at position {position} are not its products");
        Err(Mistake::new("products", FailureCode::Product, position, message))
    }

    /// Makes an attend operation of the committed keys and values.
    fn attended(&mut self, op: usize, layer: usize, values: &mut Values<'_>) {
        let (form, last) = (&self.held.form, self.positions.last().map_or(0, |p| *p as usize));
        let (Some(attended), Some(shape)) =
            (form.attended.get(layer), self.held.program().caches().get(layer).copied())
        else {
            unreachable!("attend operations have caches")
        };
        let held = self.cache.take().filter(|(of, _)| *of == shape);
        let mut cache = held.map_or_else(|| Sequence::new(&[shape], last + 1), |(_, cache)| cache);
        cache.clear();
        for (b, block) in self.blocks.iter().enumerate() {
            let rows = (last + 1).saturating_sub(b * BLOCK).min(BLOCK);
            let of = |index: usize| block.get(index)?.as_ref()?.rows(0..rows, form.carried.get(index)?);
            let (Some(keys), Some(values)) = (of(attended.keys), of(attended.values)) else {
                unreachable!("the shapes were checked")
            };
            cache.restore(0, keys, values);
        }
        self.watch.done(Stage::Caches);
        values.put_attended(op as ValueId, self.positions, &cache);
        self.cache = Some((shape, cache));
    }

    /// Whether a value that blocks are committed by comes out as committed, for every token.
    fn carried(&self, i: usize, values: &Values<'_>) -> Result<(), Mistake> {
        let Some(c) = self.held.form.carried.get(i) else { return Ok(()) };
        for (row, position) in self.positions.iter().enumerate() {
            let at = *position as usize;
            let block = self.blocks.get(at / BLOCK).and_then(|b| b.get(i)?.as_ref());
            let committed = block.and_then(|r| r.rows(at % BLOCK..at % BLOCK + 1, c));
            if committed == Some(values.int8(c.op, row)) {
                continue;
            }
            let (code, what) = match i == self.held.form.hidden {
                true => (FailureCode::Hidden, "hidden vector"),
                false => (FailureCode::KeyValue, "keys or values"),
            };
            let message =
                format!("the {what} of position {position} (operation {}) are not those committed", c.op);
            return Err(Mistake::new("states", code, *position, message));
        }
        Ok(())
    }
}
