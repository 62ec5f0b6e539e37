//! Operations that treat every row, head or number alike: norms, rotation, gates, sums.

use std::sync::Arc;

use super::{Batch, Executor, Run};
use crate::pool::Parts;
use crate::program::check::NORMAL_FRAC;
use crate::program::{Pooling, SoftCap, TensorId, ValueId};
use crate::reference::{Affine, GATE_FRAC};
use crate::semantics::norm::{mean_of, rms_scale_of};
use crate::semantics::quantise::normal_shift;
use crate::semantics::scale::Scale;

/// The attributes of a normalise operation.
pub(super) struct Norm {
    pub(super) groups: usize,
    pub(super) center: bool,
    pub(super) epsilon: u64,
    pub(super) gain: TensorId,
    pub(super) bias: Option<TensorId>,
    pub(super) frac: u8,
}

impl Executor {
    pub(super) fn rms_norm(&mut self, i: usize, x: ValueId, epsilon: u64, rows: usize) {
        let width = self.width(x);
        let mut scales = std::mem::take(&mut self.buffers.scales[i]);
        scales.resize(rows, Scale::ZERO);
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let parts = Parts::new(&mut scales);
            self.for_rows(rows, width, &|r| {
                let row = &v[r * width..(r + 1) * width];
                // SAFETY: the kernel runs here; each task writes the scale of its own row.
                let (sum, shift, out) = unsafe {
                    let shift = normal_shift((f.max_abs)(row));
                    ((f.sum_squares)(row, shift), shift, parts.part(r..r + 1))
                };
                out[0] = rms_scale_of(sum, shift, width as u64, epsilon);
            });
        }
        self.buffers.scales[i] = scales;
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn rotary(
        &mut self,
        i: usize,
        x: ValueId,
        offset: usize,
        heads: usize,
        head_dim: usize,
        table: u16,
        batch: &Batch,
    ) {
        let constants = Arc::clone(&self.constants);
        let angles = constants.rotary(table);
        let (width, made) = (self.width(x), heads * head_dim);
        let positions = batch.positions();
        let mut out = self.take_integers(i, positions.len());
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let parts = Parts::new(&mut out);
            self.for_rows(positions.len(), made, &|r| {
                // SAFETY: each task writes its own row.
                let row = unsafe { parts.part(r * made..(r + 1) * made) };
                let at = positions[r] as usize * head_dim;
                let angles = &angles[at..at + head_dim];
                let v = &v[r * width + offset..][..made];
                for (v, o) in v.chunks_exact(head_dim).zip(row.chunks_exact_mut(head_dim)) {
                    // SAFETY: the kernel runs here.
                    unsafe { (f.rotate)(v, angles, o) };
                }
            });
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = self.buffers.scales[usize::from(x)].clone();
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn gate(
        &mut self,
        i: usize,
        x: ValueId,
        gate: usize,
        up: usize,
        len: usize,
        table: u16,
        rows: usize,
    ) {
        let constants = Arc::clone(&self.constants);
        let table = constants.table(table);
        let width = self.width(x);
        let mut out = self.take_integers(i, rows);
        let mut scales = std::mem::take(&mut self.buffers.scales[i]);
        scales.resize(rows, Scale::ZERO);
        {
            let (v, f) = (self.integers(x), self.kernel.functions);
            let units = &self.buffers.scales[usize::from(x)];
            let (o, s) = (Parts::new(&mut out), Parts::new(&mut scales));
            self.for_rows(rows, len, &|r| {
                let row = &v[r * width..(r + 1) * width];
                let (g, u) = (&row[gate..gate + len], &row[up..up + len]);
                // SAFETY: the kernel runs here; each task writes its own row.
                unsafe {
                    let shift = normal_shift((f.max_abs)(u));
                    (f.gate)(g, u, units[r], table, shift, o.part(r * len..(r + 1) * len));
                    s.part(r..r + 1)[0] = units[r].shifted(shift as i32 - GATE_FRAC as i32 + 10);
                }
            });
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = scales;
    }

    pub(super) fn add(&mut self, i: usize, x: ValueId, y: ValueId, rows: usize) {
        let frac = self.constants.program().frac(x);
        let width = self.width(x);
        let mut out = self.take_integers(i, rows);
        {
            let (a, b, f) = (self.integers(x), self.integers(y), self.kernel.functions);
            let units = &self.buffers.scales[usize::from(y)];
            let parts = Parts::new(&mut out);
            self.for_rows(rows, width, &|r| {
                let run = r * width..(r + 1) * width;
                // SAFETY: the kernel runs here; each task writes its own row.
                unsafe { (f.add_scaled)(&a[run.clone()], &b[run.clone()], units[r], frac, parts.part(run)) };
            });
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = self.buffers.scales[usize::from(x)].clone();
    }

    /// Makes the `width` numbers of every row of value `i` by `each(row, out)`, with the constant scale `2^-frac`.
    fn make_fixed(
        &mut self,
        i: usize,
        width: usize,
        frac: u32,
        rows: usize,
        each: &(dyn Fn(&Executor, usize, &mut [i32]) + Sync),
    ) {
        let mut out = self.take_integers(i, rows);
        {
            let parts = Parts::new(&mut out);
            self.for_rows(rows, width, &|r| {
                // SAFETY: each task writes its own row.
                each(self, r, unsafe { parts.part(r * width..(r + 1) * width) });
            });
        }
        self.put_integers(i, out);
        self.buffers.scales[i].clear();
        self.buffers.scales[i].resize(rows, Scale::power(-(frac as i16)));
    }

    /// Row `r` of a value of integers, and its scale.
    pub(super) fn row(&self, x: ValueId, r: usize) -> (&[i32], Scale) {
        let width = self.width(x);
        (&self.integers(x)[r * width..(r + 1) * width], self.buffers.scales[usize::from(x)][r])
    }

    pub(super) fn fix(&mut self, i: usize, x: ValueId, offset: usize, len: usize, frac: u32, rows: usize) {
        self.make_fixed(i, len, frac, rows, &|e, r, out| {
            let (v, scale) = e.row(x, r);
            // SAFETY: the kernel runs here.
            unsafe { (e.kernel.functions.to_fixed)(&v[offset..offset + len], scale, frac, out) };
        });
    }

    pub(super) fn bias(&mut self, i: usize, x: ValueId, bias: TensorId, rows: usize) {
        let constants = Arc::clone(&self.constants);
        let (bias, frac) = (constants.vector(bias), constants.program().vector_frac(bias));
        self.make_fixed(i, bias.len(), frac, rows, &|e, r, out| {
            let (v, scale) = e.row(x, r);
            // SAFETY: the kernel runs here.
            unsafe { (e.kernel.functions.add_scaled)(bias, v, scale, frac, out) };
        });
    }

    pub(super) fn normalise(&mut self, i: usize, x: ValueId, norm: &Norm, rows: usize) {
        let constants = Arc::clone(&self.constants);
        let frac = u32::from(norm.frac);
        let affine = Affine {
            gain: constants.vector(norm.gain),
            shift: u32::from(NORMAL_FRAC) + constants.program().vector_frac(norm.gain) - frac,
            bias: norm.bias.map(|b| constants.vector(b)),
        };
        let width = self.width(x);
        let run = width / norm.groups;
        self.make_fixed(i, width, frac, rows, &|e, r, out| {
            let f = e.kernel.functions;
            for (v, out) in e.row(x, r).0.chunks_exact(run).zip(out.chunks_exact_mut(run)) {
                // SAFETY: the kernel runs here.
                unsafe {
                    let mean = if norm.center { mean_of((f.sum)(v), run as u64) } else { 0 };
                    (f.shift_by)(v, mean, out);
                    let shift = normal_shift((f.max_abs)(out));
                    let sum = (f.sum_squares)(out, shift);
                    let scale = rms_scale_of(sum, shift, run as u64, norm.epsilon);
                    (f.affine)(out, scale, affine);
                }
            }
        });
    }

    pub(super) fn activate(&mut self, i: usize, x: ValueId, table: TensorId, rows: usize) {
        let constants = Arc::clone(&self.constants);
        let table = constants.table(table);
        self.make_fixed(i, self.width(x), GATE_FRAC, rows, &|e, r, out| {
            let (v, scale) = e.row(x, r);
            // SAFETY: the kernel runs here.
            unsafe { (e.kernel.functions.activate)(v, scale, table, out) };
        });
    }

    pub(super) fn bend(&mut self, i: usize, x: ValueId, cap: SoftCap, rows: usize) {
        let constants = Arc::clone(&self.constants);
        let table = constants.table(cap.table);
        let frac = u32::from(crate::program::LOGIT_FRAC);
        self.make_fixed(i, self.width(x), frac, rows, &|e, r, out| {
            out.copy_from_slice(e.row(x, r).0);
            // SAFETY: the kernel runs here.
            unsafe { (e.kernel.functions.bend)(out, cap.limit, table) };
        });
    }

    pub(super) fn hadamard(&mut self, i: usize, x: ValueId, block: usize, rows: usize) {
        let width = self.width(x);
        let mut shifts = vec![0u32; rows];
        {
            let parts = Parts::new(&mut shifts);
            self.make_fixed(i, width, 0, rows, &|e, r, out| {
                let f = e.kernel.functions;
                let v = e.row(x, r).0;
                // SAFETY: the kernel runs here; each task writes the shift of its own row.
                unsafe {
                    let k = normal_shift((f.max_abs)(v));
                    (f.hadamard)(v, k, block, out);
                    parts.part(r..r + 1)[0] = k;
                }
            });
        }
        for (r, k) in shifts.into_iter().enumerate() {
            self.buffers.scales[i][r] = self.buffers.scales[usize::from(x)][r].shifted(k as i32);
        }
    }

    /// The pooled vector of one run.
    pub(super) fn pool_run(&self, x: ValueId, pooling: Pooling, run: &Run) -> Vec<i32> {
        let row = |r: usize| self.row(x, r).0;
        match pooling {
            Pooling::First => row(run.first_row).to_vec(),
            Pooling::Last => row(run.first_row + run.rows - 1).to_vec(),
            Pooling::Mean => {
                let mut sums = vec![0i64; self.width(x)];
                for r in run.first_row..run.first_row + run.rows {
                    sums.iter_mut().zip(row(r)).for_each(|(s, v)| *s += i64::from(*v));
                }
                sums.into_iter().map(|s| mean_of(s, run.rows as u64)).collect()
            }
        }
    }
}
