//! Matrix products of a batch: row tiles of the matrix are shared among threads, columns go by in blocks that stay in
//! the nearest cache while all rows of the batch meet them.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::{Executor, PutRow};
use crate::kernel::{Dot, DotPacked, Functions, Kernel};
use crate::matrix::packed::{self, PACKED_BLOCK, PACKED_GROUP, PLAIN_BLOCK};
use crate::matrix::{GROUP, Matrix, TILE_ROWS, Weights};
use crate::pool::{Parts, Pool};
use crate::program::{TensorId, ValueId};
use crate::reference::headroom;

/// Column groups of a block: 128 groups × 256 bytes are 32 KiB of weights.
const BLOCK_GROUPS: usize = 128;
/// Column groups of a block of packed weights where few rows meet it: 8 KiB unpacked, which leave the nearest cache to what
/// comes from memory.
const PACKED_BLOCK_GROUPS: usize = 32;
/// Rows that are few.
const FEW_ROWS: usize = 6;
/// Rows up to which a product waits for memory as much as for the multipliers.
const WAITING_ROWS: usize = 64;
/// Batch rows whose sums are kept at once: 64 KiB of accumulators.
const BLOCK_ROWS: usize = 256;

/// Most bytes that a thread holds to multiply: sums, and the unpacked weights of a block.
pub(super) const SCRATCH_BYTES: usize =
    BLOCK_ROWS * TILE_ROWS * size_of::<i32>() + BLOCK_GROUPS * TILE_ROWS * GROUP;

thread_local! {
    static SUMS: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
    /// Unpacked weights of a block: column groups of 64 × 4 bytes.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// int8 rows with the sum of each.
pub(super) struct Rows<'a> {
    pub(super) q: &'a [i8],
    pub(super) stride: usize,
    pub(super) sums: &'a [i32],
    pub(super) count: usize,
}

impl Executor {
    pub(super) fn matmul(&mut self, i: usize, weights: TensorId, x: ValueId, rows: usize) {
        let constants = Arc::clone(&self.constants);
        let w = constants.matrix(weights);
        let h = headroom(w.cols());
        let mut out = self.take_integers(i, rows);
        {
            let x_rows = Rows {
                q: self.int8(x),
                stride: self.width(x),
                sums: &self.buffers.sums[usize::from(x)],
                count: rows,
            };
            let parts = Parts::new(&mut out);
            let threads = self.pool.threads();
            // Few large runs of tiles: each thread reads its own stretch of memory in order.
            let piece = w.tiles().div_ceil(threads * if w.tiles() >= threads * 16 { 4 } else { 1 });
            let kernel = self.kernel;
            let scaled = |sums: &[i32], correction: i32, rows: Range<usize>, out: &mut [i32]| {
                // SAFETY: the kernel runs here.
                unsafe {
                    (kernel.functions.apply_row_scales)(sums, correction, &w.scales()[rows], h, out);
                }
            };
            self.pool.run(w.tiles().div_ceil(piece), &|t| {
                for tile in t * piece..((t + 1) * piece).min(w.tiles()) {
                    multiply_tile(kernel, &w, tile, &x_rows, &scaled, &parts);
                }
            });
        }
        self.put_integers(i, out);
        self.scale_product(i, &w, x, rows);
    }

    /// The accumulators of a matrix product (semantics 6.4) for the first `rows` rows of `x`: `rows × W.rows`, row by row.
    pub(super) fn accumulators(&self, weights: TensorId, x: ValueId, rows: usize) -> Vec<i32> {
        let x = Rows {
            q: self.int8(x),
            stride: self.width(x),
            sums: &self.buffers.sums[usize::from(x)],
            count: rows,
        };
        multiply(self.kernel, &self.pool, &self.constants.matrix(weights), &x)
    }

    /// Makes value `i`, a matrix product, row by row of accumulators that someone else puts.
    pub(super) fn finish_product(
        &mut self,
        i: usize,
        weights: TensorId,
        x: ValueId,
        rows: usize,
        put: PutRow<'_>,
    ) {
        let constants = Arc::clone(&self.constants);
        let w = constants.matrix(weights);
        let h = headroom(w.cols());
        let mut sums = std::mem::take(&mut self.sums);
        sums.resize(sums.len().max(w.rows()), 0);
        let mut out = self.take_integers(i, rows);
        let stride = self.width(x);
        for (row, out) in out.chunks_exact_mut(w.rows()).take(rows).enumerate() {
            let sums = &mut sums[..w.rows()];
            put(row, &self.int8(x)[row * stride..][..w.cols()], sums);
            // SAFETY: the kernel runs here.
            unsafe { (self.kernel.functions.apply_row_scales)(sums, 0, w.scales(), h, out) };
        }
        self.sums = sums;
        self.put_integers(i, out);
        self.scale_product(i, &w, x, rows);
    }

    fn scale_product(&mut self, i: usize, w: &Matrix<'_>, x: ValueId, rows: usize) {
        let change = headroom(w.cols()) as i32 - i32::from(w.shift());
        let scales = self.buffers.scales[usize::from(x)][..rows].iter().map(|s| s.shifted(change)).collect();
        self.buffers.scales[i] = scales;
    }
}

/// The accumulators of `w` times rows of int8 numbers, each row as long as `w` has columns: as many rows of `w.rows()` sums.
///
/// # Panics
/// When `rows` is no whole number of rows.
pub fn products(kernel: Kernel, pool: &Pool, w: &Matrix<'_>, rows: &[i8]) -> Vec<i32> {
    let (cols, stride) = (w.cols(), w.cols().next_multiple_of(GROUP));
    assert!(rows.len().is_multiple_of(cols), "rows are as long as the matrix has columns");
    let count = rows.len() / cols;
    let mut q = vec![0i8; count * stride];
    q.chunks_exact_mut(stride)
        .zip(rows.chunks_exact(cols))
        .for_each(|(q, row)| q[..cols].copy_from_slice(row));
    let sums: Vec<i32> = rows.chunks_exact(cols).map(|r| r.iter().map(|v| i32::from(*v)).sum()).collect();
    multiply(kernel, pool, w, &Rows { q: &q, stride, sums: &sums, count })
}

fn multiply(kernel: Kernel, pool: &Pool, w: &Matrix<'_>, x: &Rows<'_>) -> Vec<i32> {
    let mut out = vec![0; x.count * w.rows()];
    let parts = Parts::new(&mut out);
    let plain = |sums: &[i32], correction: i32, _: Range<usize>, out: &mut [i32]| {
        out.iter_mut().zip(sums).for_each(|(o, s)| *o = s.wrapping_sub(correction));
    };
    pool.run(w.tiles(), &|tile| multiply_tile(kernel, w, tile, x, &plain, &parts));
    out
}

/// One row tile for all rows of `x`; `finish` makes outputs of sums of biased products, their correction and the tile's rows.
fn multiply_tile(
    kernel: Kernel,
    w: &Matrix<'_>,
    tile: usize,
    x: &Rows<'_>,
    finish: &impl Fn(&[i32], i32, Range<usize>, &mut [i32]),
    out: &Parts<'_, i32>,
) {
    let groups = w.cols().div_ceil(GROUP);
    assert!(x.q.len() >= x.count * x.stride && x.stride == groups * GROUP, "rows are as wide as the matrix");
    let first = tile * TILE_ROWS;
    let tile_rows = (w.rows() - first).min(TILE_ROWS);
    let f = kernel.functions;
    let multiply = |sums: &mut Vec<i32>, plain: &mut Vec<u8>| {
        for from in (0..x.count).step_by(BLOCK_ROWS) {
            let count = (x.count - from).min(BLOCK_ROWS);
            sums.resize(sums.len().max(count * TILE_ROWS), 0);
            let some = Rows { q: &x.q[from * x.stride..][..count * x.stride], count, ..*x };
            sum_tile(f, w.stored_tile(tile), tile_rows, &some, sums, plain);
            for r in 0..count {
                let at = (from + r) * w.rows() + first;
                // SAFETY: each tile writes its own columns of each row.
                let out = unsafe { out.part(at..at + tile_rows) };
                let correction = x.sums[from + r].wrapping_mul(128);
                finish(&sums[r * TILE_ROWS..][..tile_rows], correction, first..first + tile_rows, out);
            }
        }
    };
    SUMS.with_borrow_mut(|sums| PLAIN.with_borrow_mut(|plain| multiply(sums, plain)));
}

/// The sums of biased products of a row tile for some rows of `x`: as many rows of 64.
fn sum_tile(
    f: &Functions,
    stored: Weights<'_>,
    tile_rows: usize,
    x: &Rows<'_>,
    sums: &mut [i32],
    plain: &mut Vec<u8>,
) {
    let groups = x.stride / GROUP;
    assert!(
        x.q.len() == x.count * x.stride && sums.len() >= x.count * TILE_ROWS,
        "there is room for all rows"
    );
    if let (Weights::Packed(bytes), 1, Some(dot_packed)) = (stored, x.count, f.dot_packed) {
        assert!(bytes.len() >= packed::tile_len(x.stride), "a tile has all blocks");
        let d = DotPacked { w: bytes.as_ptr(), groups, x: x.q.as_ptr(), out: sums.as_mut_ptr() };
        // SAFETY: the kernel runs here, and there are as many blocks, numbers and sums (asserted above).
        unsafe { dot_packed(d) };
        return;
    }
    let block = match stored {
        Weights::Packed(_) if x.count <= FEW_ROWS => PACKED_BLOCK_GROUPS,
        _ => BLOCK_GROUPS,
    };
    for g in (0..groups).step_by(block) {
        let groups = (groups - g).min(block);
        let weights = match stored {
            Weights::Plain(bytes) => &bytes[g * TILE_ROWS * GROUP..],
            Weights::Packed(bytes) => {
                let blocks = groups.div_ceil(PACKED_GROUP / GROUP);
                let bytes = &bytes[g * GROUP / PACKED_GROUP * PACKED_BLOCK..][..blocks * PACKED_BLOCK];
                plain.resize(plain.len().max(blocks * PLAIN_BLOCK), 0);
                // SAFETY: the kernel runs here.
                unsafe { (f.unpack_weights)(bytes, plain) };
                &plain[..]
            }
        };
        let d = Dot {
            w: weights[..groups * TILE_ROWS * GROUP].as_ptr(),
            stride: TILE_ROWS * GROUP,
            groups,
            rows_16: tile_rows.div_ceil(16),
            x: x.q[g * GROUP..].as_ptr(),
            x_stride: x.stride,
            m: x.count,
            out: sums.as_mut_ptr(),
            out_stride: TILE_ROWS,
            accumulate: g > 0,
            from_memory: matches!(stored, Weights::Plain(_)) && x.count <= WAITING_ROWS,
        };
        // SAFETY: the kernel runs here. There are `groups` groups of 64 rows, `x` has `count` rows of that many groups from
        // `g` on, and `sums` has `count` rows of 64 (asserted above).
        unsafe { (f.dot)(d) };
    }
}
