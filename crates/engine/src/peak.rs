//! The most that this machine does of what executions are made of: reading memory, and multiplying int8 numbers in its nearest cache. For whoever
//! says what share of it an execution reaches; nothing that is executed depends on it.
//!
//! There is no clock here: each function does an amount of work and says how much it was, and who calls it takes the time.

use std::io;

use memmap2::MmapMut;

use crate::kernel::{Dot, Kernel};
use crate::matrix::{GROUP, TILE_ROWS};
use crate::pool::Pool;

/// Bytes that are read side by side.
const LINE: usize = 64;
/// Pieces that each thread has of a piece of work, so that none waits long for another at its end.
const PIECES: usize = 64;

/// Memory to read.
pub struct Memory(MmapMut);

impl Memory {
    /// So many bytes, in huge pages where the system has them: many times what the caches hold, or it is they that are measured.
    pub fn new(bytes: usize) -> io::Result<Memory> {
        let mut map = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        // A kernel without huge pages reads small ones.
        let _ = map.advise(memmap2::Advice::HugePage);
        // A page is there once it was written.
        map.fill(1);
        Ok(Memory(map))
    }

    /// Reads all whole lines once, each thread pieces in a row; gives back the bytes read.
    pub fn read(&self, pool: &Pool) -> u64 {
        let (lines, _) = self.0.as_chunks::<LINE>();
        let pieces = pool.threads() * PIECES;
        let piece = lines.len().div_ceil(pieces).max(1);
        pool.run(lines.len().div_ceil(piece), &|t| {
            std::hint::black_box(sum(&lines[t * piece..((t + 1) * piece).min(lines.len())]));
        });
        (lines.len() * LINE) as u64
    }
}

/// The sum of all words, which takes no longer than to read them.
fn sum(lines: &[[u8; LINE]]) -> u64 {
    let mut sums = [0u64; LINE / 8];
    for line in lines {
        let (words, _) = line.as_chunks::<8>();
        sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(u64::from_ne_bytes(*word)));
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Column groups and vectors of a product that stays in the nearest cache: 16 KiB of weights, 6 KiB of numbers, 6 KiB of sums.
const GROUPS: usize = 64;
const VECTORS: usize = 24;

/// A run of bytes that begins where a cache line does.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Aligned([u8; LINE]);

/// Multiplies a row tile by a few vectors, `times` times on every thread; gives back how many numbers were multiplied with weights.
pub fn multiply(kernel: Kernel, pool: &Pool, times: usize) -> u64 {
    let weights = vec![Aligned([129; LINE]); GROUPS * TILE_ROWS * GROUP / LINE];
    let numbers = vec![Aligned([3; LINE]); VECTORS * GROUPS * GROUP / LINE];
    let tasks = pool.threads() * PIECES;
    let each = times.div_ceil(PIECES);
    pool.run(tasks, &|_| {
        let mut sums = [0i32; VECTORS * TILE_ROWS];
        for _ in 0..each {
            let dot = Dot {
                w: weights.as_ptr().cast(),
                stride: TILE_ROWS * GROUP,
                groups: GROUPS,
                rows_16: TILE_ROWS / 16,
                x: numbers.as_ptr().cast(),
                x_stride: GROUPS * GROUP,
                m: VECTORS,
                out: sums.as_mut_ptr(),
                out_stride: TILE_ROWS,
                accumulate: false,
                from_memory: false,
            };
            // SAFETY: the kernel runs here. There are `GROUPS` groups of 64 rows, as many numbers of each vector, and 64 sums for each.
            unsafe { (kernel.functions.dot)(dot) };
        }
        std::hint::black_box(sums);
    });
    (tasks * each * VECTORS * GROUPS * GROUP * TILE_ROWS) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_read() {
        let memory = Memory::new(5 * LINE + 3).unwrap();
        let (lines, rest) = memory.0.as_chunks::<LINE>();
        assert_eq!(sum(lines), 40 * u64::from_ne_bytes([1; 8]));
        assert_eq!((rest.len(), memory.read(&Pool::new(2))), (3, 320));
    }

    #[test]
    fn work_is_counted_by_threads() {
        let once = (VECTORS * GROUPS * GROUP * TILE_ROWS) as u64;
        for (threads, times, each) in [(1, 1, 1), (1, 65, 2), (2, 128, 2)] {
            let made = multiply(Kernel::SCALAR, &Pool::new(threads), times);
            assert_eq!(made, once * (threads * PIECES * each) as u64);
        }
    }
}
