//! Attention of a batch: first the caches take in the new keys and values, then every (sequence, KV head, run of
//! tokens) is a task of its own. Scores and weighted sums are int8 products on the same kernel as the matrices.

use std::cell::RefCell;
use std::sync::Arc;

use super::{Executor, Run, Segment};
use crate::cache::HeadCache;
use crate::kernel::{Dot, HeadScales, Kernel, prefetch};
use crate::matrix::{GROUP, TILE_ROWS};
use crate::pool::Parts;
use crate::program::{Op, Reach, SoftCap, ValueId};
use crate::reference::{Share, seen};
use crate::semantics::scale::Scale;

/// Queries that one task answers at once, as near as whole tokens allow.
const QUERIES: usize = 24;

/// The attributes of an attend operation.
pub(super) struct Attention {
    pub(super) layer: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) reach: Reach,
    pub(super) scale: Scale,
    pub(super) cap: Option<SoftCap>,
    pub(super) frac: u32,
}

impl Attention {
    /// The attributes of an operation, and its queries, keys and values; `None` of one that does not attend.
    pub(super) fn of(op: &Op) -> Option<(Attention, [ValueId; 3])> {
        let Op::Attend { q, k, v, layer, heads, kv_heads, head_dim, reach, scale, cap, frac } = *op else {
            return None;
        };
        let attention = Attention {
            layer: usize::from(layer),
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            head_dim: head_dim as usize,
            reach,
            scale,
            cap,
            frac: u32::from(frac),
        };
        Some((attention, [q, k, v]))
    }
}

/// The largest exponent among the scales of a range that are not zero; 0 if all are.
fn highest_exponent(scales: HeadScales<'_>, range: std::ops::Range<usize>) -> i16 {
    let part = scales.part(range);
    let above_zero = part.mantissas.iter().zip(part.exponents).filter(|(m, _)| **m != 0);
    above_zero.map(|(_, e)| *e).max().unwrap_or(0)
}

/// A run of tokens of one sequence at one KV head.
struct Task {
    run: usize,
    kv: usize,
    from: usize,
    tokens: usize,
}

/// Quantised queries, their scales and sums, one per head.
struct Queries<'a> {
    q: &'a [i8],
    stride: usize,
    scales: &'a [Scale],
    sums: &'a [i32],
}

#[derive(Default)]
struct Scratch {
    queries: Vec<i8>,
    scores: Vec<i32>,
    planes: Vec<i8>,
    plane_sums: Vec<(i32, i32)>,
    shares: Vec<Share>,
    sums: Vec<i32>,
}

/// Most bytes that a thread holds to answer queries of batches of up to `rows` rows over caches of up to `positions` positions.
pub(super) fn scratch_bytes(op: &Attention, rows: usize, positions: usize) -> usize {
    let per_kv = op.heads / op.kv_heads;
    let count = QUERIES.max(per_kv).min(rows * per_kv);
    let stride = positions.next_multiple_of(TILE_ROWS);
    let planes = 2 * (stride + TILE_ROWS * size_of::<i32>());
    let each =
        op.head_dim + stride * size_of::<i32>() + planes + size_of::<(i32, i32)>() + size_of::<Share>();
    // They grow with the longest request, and a vector that grows may take twice what it holds.
    2 * count * each
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Executor {
    pub(super) fn attend(&mut self, i: usize, op: &Op, runs: &[Run], segments: &mut [Segment<'_>]) {
        assert_eq!(runs.len(), segments.len(), "whoever places tokens makes what they attend to");
        let Some((op, [q, k, v])) = Attention::of(op) else { unreachable!("this operation attends") };
        self.append(k, v, &op, runs, segments);
        let caches: Vec<&[HeadCache]> =
            segments.iter().map(|s| s.sequence.layer(op.layer, op.kv_heads)).collect();
        self.attend_over(i, q, &op, runs, &caches);
    }

    /// Answers the queries of every run over its caches, which may hold later positions too.
    pub(super) fn attend_over(
        &mut self,
        i: usize,
        q: ValueId,
        op: &Attention,
        runs: &[Run],
        caches: &[&[HeadCache]],
    ) {
        let rows: usize = runs.iter().map(|r| r.rows).sum();
        let mut out = self.take_integers(i, rows);
        {
            let queries = Queries {
                q: self.int8(q),
                stride: self.width(q),
                scales: &self.buffers.scales[usize::from(q)],
                sums: &self.buffers.sums[usize::from(q)],
            };
            let tasks = tasks(runs, op);
            let constants = Arc::clone(&self.constants);
            let cap = op.cap.map(|c| (c.limit, constants.table(c.table)));
            let parts = Parts::new(&mut out);
            let one = |t: &Task| {
                let cache = &caches[t.run][t.kv];
                SCRATCH.with_borrow_mut(|scratch| {
                    answer(self.kernel, op, cap, &runs[t.run], t, cache, &queries, scratch, &parts);
                });
            };
            let work: usize = runs.iter().map(|r| r.rows * (r.position + r.rows)).sum::<usize>() * op.heads;
            if work < 2048 {
                tasks.iter().for_each(one);
            } else {
                // Later tokens see more positions: starting with them evens out the ends.
                self.pool.run(tasks.len(), &|n| one(&tasks[tasks.len() - 1 - n]));
            }
        }
        self.put_integers(i, out);
        self.buffers.scales[i] = vec![Scale::power(-(op.frac as i16)); rows];
    }

    fn append(&self, k: ValueId, v: ValueId, op: &Attention, runs: &[Run], segments: &mut [Segment<'_>]) {
        let n = op.head_dim;
        let (keys, values) = (self.int8(k), self.int8(v));
        let stride = self.width(k);
        let (key_scales, value_scales) =
            (&self.buffers.scales[usize::from(k)], &self.buffers.scales[usize::from(v)]);
        let mut heads: Vec<(usize, usize, &mut HeadCache)> = Vec::new();
        for (run, s) in segments.iter_mut().enumerate() {
            let layer = s.sequence.layer_mut(op.layer, op.kv_heads);
            heads.extend(layer.iter_mut().enumerate().map(|(kv, c)| (run, kv, c)));
        }
        let (count, total) = (heads.len(), runs.iter().map(|r| r.rows).sum::<usize>());
        let parts = Parts::new(&mut heads);
        let one = |t: usize| {
            // SAFETY: each task takes its own head.
            let (run, kv, cache) = unsafe { &mut parts.part(t..t + 1)[0] };
            let run = &runs[*run];
            for row in run.first_row..run.first_row + run.rows {
                let at = row * stride + *kv * n;
                let s = row * op.kv_heads + *kv;
                cache.push((&keys[at..at + n], key_scales[s]), (&values[at..at + n], value_scales[s]));
            }
        };
        if total < 32 { (0..count).for_each(one) } else { self.pool.run(count, &one) }
    }
}

fn tasks(runs: &[Run], op: &Attention) -> Vec<Task> {
    let step = (QUERIES * op.kv_heads / op.heads).max(1);
    let mut tasks = Vec::new();
    for (run, r) in runs.iter().enumerate() {
        for from in (0..r.rows).step_by(step) {
            for kv in 0..op.kv_heads {
                tasks.push(Task { run, kv, from, tokens: step.min(r.rows - from) });
            }
        }
    }
    tasks
}

#[allow(clippy::too_many_arguments)]
fn answer(
    kernel: Kernel,
    op: &Attention,
    cap: Option<(u32, &[i32])>,
    run: &Run,
    task: &Task,
    cache: &HeadCache,
    queries: &Queries<'_>,
    s: &mut Scratch,
    out: &Parts<'_, i32>,
) {
    let f = kernel.functions;
    let n = op.head_dim;
    let per_kv = op.heads / op.kv_heads;
    let count = task.tokens * per_kv;
    let first_row = run.first_row + task.from;
    // Positions in the cache when the run is in it, those that some token of the task sees, and the row length of scores
    // and weights. What lies before them in the first tile is computed and left alone.
    let filled = run.position + run.rows;
    let first = run.position + task.from;
    let range = seen(op.reach, first, filled).start..seen(op.reach, first + task.tokens - 1, filled).end;
    let start = range.start / TILE_ROWS * TILE_ROWS;
    let stride = (range.end - start).next_multiple_of(TILE_ROWS);

    s.queries.clear();
    for row in first_row..first_row + task.tokens {
        let at = row * queries.stride + task.kv * per_kv * n;
        s.queries.extend_from_slice(&queries.q[at..at + per_kv * n]);
    }
    s.scores.resize(count * stride, 0);
    let tiles = start / TILE_ROWS..range.end.div_ceil(TILE_ROWS);
    for tile in tiles.clone() {
        if tile + 1 < tiles.end {
            prefetch(cache.key_tile(tile + 1));
        }
        let d = Dot {
            w: cache.key_tile(tile).as_ptr(),
            stride: TILE_ROWS * GROUP,
            groups: n / GROUP,
            rows_16: (range.end - tile * TILE_ROWS).min(TILE_ROWS).div_ceil(16),
            x: s.queries.as_ptr(),
            x_stride: n,
            m: count,
            out: s.scores[tile * TILE_ROWS - start..].as_mut_ptr(),
            out_stride: stride,
            accumulate: false,
            from_memory: false,
        };
        // SAFETY: the kernel runs here. A key tile has n/4 groups of 64 positions, `queries` has `count` rows of n
        // numbers, and a row of scores has room for whole tiles from `start` on.
        unsafe { (f.dot)(d) };
    }

    s.planes.clear();
    s.planes.resize(2 * count * stride, 0);
    s.plane_sums.clear();
    s.shares.clear();
    for i in 0..count {
        let (token, head) = (i / per_kv, task.kv * per_kv + i % per_kv);
        let row = (first_row + token) * op.heads + head;
        let visible = seen(op.reach, first + token, filled);
        let highest = match visible.start {
            0 => cache.highest(visible.end - 1),
            _ => highest_exponent(cache.value_scales(), visible.clone()),
        };
        let within = visible.start - start..visible.end - start;
        let scores = &mut s.scores[i * stride..][within.clone()];
        let (high, low) = s.planes[2 * i * stride..][..2 * stride].split_at_mut(stride);
        let (high, low) = (&mut high[within.clone()], &mut low[within]);
        let (keys, values) = (cache.key_scales().part(visible.clone()), cache.value_scales().part(visible));
        // SAFETY: the kernel runs here.
        let sums = unsafe {
            let correction = queries.sums[row].wrapping_mul(128);
            let mut top = (f.scores)(scores, correction, keys, queries.scales[row].times(op.scale));
            if let Some((limit, table)) = cap {
                (f.bend)(scores, limit, table);
                top = scores.iter().copied().max().unwrap_or(0);
            }
            (f.weights)(scores, top, values, highest, high, low)
        };
        s.plane_sums.push((sums.high, sums.low));
        s.shares.push(Share::new(sums.total, highest, op.frac));
    }

    for block in cache.value_rows() {
        s.sums.resize(2 * count * block.rows, 0);
        for tile in tiles.clone() {
            if tile + 1 < tiles.end {
                prefetch(cache.value_tile(tile + 1, block));
            }
            let d = Dot {
                w: cache.value_tile(tile, block).as_ptr(),
                stride: block.rows * GROUP,
                groups: (range.end - tile * TILE_ROWS).min(TILE_ROWS).div_ceil(GROUP),
                rows_16: block.rows / 16,
                x: s.planes[tile * TILE_ROWS - start..].as_ptr(),
                x_stride: stride,
                m: 2 * count,
                out: s.sums.as_mut_ptr(),
                out_stride: block.rows,
                accumulate: tile * TILE_ROWS > start,
                from_memory: false,
            };
            // SAFETY: the kernel runs here. A value tile has a group for every 4 of its 64 positions, a plane has whole tiles from `start` on, and
            // `sums` has a row for every plane.
            unsafe { (f.dot)(d) };
        }
        let channels = block.rows.min(n - block.first);
        for i in 0..count {
            let (token, head) = (i / per_kv, task.kv * per_kv + i % per_kv);
            let at = (first_row + token) * op.heads * n + head * n + block.first;
            // SAFETY: each task writes the channels of its own tokens and heads.
            let out = unsafe { out.part(at..at + channels) };
            let (high, low) = s.sums[2 * i * block.rows..][..2 * block.rows].split_at(block.rows);
            let (high_sum, low_sum) = s.plane_sums[i];
            let share = s.shares[i];
            for (o, (h, l)) in out.iter_mut().zip(high.iter().zip(low)) {
                let h = h.wrapping_sub(high_sum.wrapping_mul(128));
                let l = l.wrapping_sub(low_sum.wrapping_mul(128));
                *o = share.apply(i64::from(h) * 256 + i64::from(l));
            }
        }
    }
}
