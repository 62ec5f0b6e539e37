//! What a pass must read and multiply, computed from the program, and how fast this machine can do that.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use assay_engine::constants::Constants;
use assay_engine::kernel::Kernel;
use assay_engine::matrix::{packed, stored_len};
use assay_engine::peak::{Memory, multiply};
use assay_engine::pool::Pool;
use assay_engine::program::{Checked, Head, Op, Shape};
use assay_engine::reference::seen;

/// Many times the caches of any processor that this runs on.
const MEMORY_BYTES: usize = 1 << 30;
/// Products of a measurement: some hundredths of a second with AVX-512.
const TIMES: usize = 1 << 14;
/// Of so many measurements the best one counts.
const ATTEMPTS: usize = 4;
/// Bytes of a row scale.
const ROW_SCALE: u64 = 2;
/// Bytes of the scales of a position in one KV head: of its key and of its value, and the largest exponent so far.
const POSITION_SCALES: u64 = 12;

/// What a pass reads from memory and multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights, row scales and caches, each read once.
    pub bytes: u64,
    /// int8 multiplications with the addition of the product, which attention's 16-bit weights need two of.
    pub multiply_adds: u64,
}

impl Work {
    /// Of a pass that executes `rows` tokens from `position` on, and logits of the last `logits` of them.
    pub fn of_pass(c: &dyn Constants, position: usize, rows: usize, logits: usize) -> Work {
        let (program, packed) = (c.program(), c.profile().packed(c.program().program()));
        let mut work = Work::default();
        let hidden = match program.program().head {
            Head::Tokens { hidden, .. } => usize::from(hidden),
            Head::Vector { .. } => usize::MAX,
        };
        for (i, op) in program.program().ops.iter().enumerate() {
            let rows = if i > hidden { logits } else { rows };
            match *op {
                Op::MatMul { weights, .. } if rows > 0 => {
                    let (outputs, inputs, _) = program.matrix_shape(weights);
                    let stored = if packed[usize::from(weights)] { packed::stored_len } else { stored_len };
                    work.bytes += stored(outputs as usize, inputs as usize) as u64;
                    work.bytes += ROW_SCALE * u64::from(outputs);
                    work.multiply_adds += u64::from(outputs) * u64::from(inputs) * rows as u64;
                }
                Op::Attend { heads, kv_heads, head_dim, reach, .. } => {
                    let end = position + rows;
                    let visible: u64 = (position..end).map(|p| seen(reach, p, end).len() as u64).sum();
                    // Scores are one product, sums of values two: by the high and by the low byte of their weights.
                    work.multiply_adds += 3 * u64::from(heads) * u64::from(head_dim) * visible;
                    let read = (end - seen(reach, position, end).start) as u64;
                    let per_position = 2 * u64::from(head_dim) + POSITION_SCALES;
                    work.bytes += u64::from(kv_heads) * per_position * read;
                }
                _ => {}
            }
        }
        work
    }

    /// Both.
    pub fn and(self, other: Work) -> Work {
        Work { bytes: self.bytes + other.bytes, multiply_adds: self.multiply_adds + other.multiply_adds }
    }

    /// Seconds that it takes at least.
    pub fn least_seconds(&self, peaks: &Peaks) -> f64 {
        let reading = self.bytes as f64 / peaks.bytes_per_s;
        reading.max(self.multiply_adds as f64 / peaks.multiply_adds_per_s)
    }
}

/// Weights of matrices.
pub fn weights(program: &Checked) -> u64 {
    let matrices = program.program().tensors.iter().filter(|t| matches!(t.shape, Shape::Matrix { .. }));
    matrices.map(|t| t.shape.parameters()).sum()
}

/// What this machine does at most, with so many threads.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Bytes read from memory.
    pub bytes_per_s: f64,
    /// int8 multiplications and additions of numbers in the nearest cache.
    pub multiply_adds_per_s: f64,
}

/// Measures peaks again and again, over the same memory.
pub struct Machine {
    kernel: Kernel,
    pool: Arc<Pool>,
    memory: Memory,
}

impl Machine {
    pub fn new(kernel: Kernel, pool: Arc<Pool>) -> Result<Machine> {
        Ok(Machine { kernel, pool, memory: Memory::new(MEMORY_BYTES)? })
    }

    /// The best of a few measurements: whatever else runs on the machine makes them worse, nothing makes them better.
    pub fn peaks(&self) -> Peaks {
        let best = |work: &dyn Fn() -> u64| {
            let attempt = |_| {
                let started = Instant::now();
                work() as f64 / started.elapsed().as_secs_f64()
            };
            (0..ATTEMPTS).map(attempt).fold(0.0, f64::max)
        };
        Peaks {
            bytes_per_s: best(&|| self.memory.read(&self.pool)),
            multiply_adds_per_s: best(&|| multiply(self.kernel, &self.pool, TIMES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use assay_engine::import::synthetic::Size;
    use assay_engine::import::synthetic::memory::InMemory;

    use super::*;

    const SIZE: Size =
        Size { name: "small", dim: 64, layers: 2, heads: 8, kv_heads: 4, hidden: 128, vocabulary: 320 };

    #[test]
    fn work_is_what_the_program_says() {
        let model = InMemory::new(&SIZE, 2, 32, 1);
        let (layers, head) = (2 * SIZE.layer_weights(), SIZE.head_weights());
        assert_eq!(weights(model.program()), layers + 2 * head);
        let rows_of_matrices = 2 * (64 + 2 * 32 + 64 + 2 * 128 + 64);
        // Every matrix has whole tiles here.
        let prompt = Work::of_pass(&model, 0, 3, 0);
        let attended = 2 * 64 * (1 + 2 + 3);
        assert_eq!(prompt.multiply_adds, 3 * layers + 3 * attended);
        assert_eq!(prompt.bytes, layers + 2 * rows_of_matrices + 2 * 4 * (16 + 12) * 3);
        let token = Work::of_pass(&model, 9, 1, 1);
        assert_eq!(token.multiply_adds, layers + head + 3 * 2 * 64 * 10);
        assert_eq!(token.bytes, layers + head + 2 * (rows_of_matrices + 320) + 2 * 4 * (16 + 12) * 10);
        assert_eq!(token.and(prompt).bytes, token.bytes + prompt.bytes);
        let peaks = Peaks { bytes_per_s: 1e3, multiply_adds_per_s: 1e6 };
        assert!((token.least_seconds(&peaks) - token.bytes as f64 / 1e3).abs() < 1e-9, "it waits for memory");
    }
}
