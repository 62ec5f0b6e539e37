//! The same integers faster: one table of functions per instruction set, chosen at run time.
//!
//! Every function computes exactly what the reference computes; `tests/kernels.rs` drives each table against it. The
//! products of int8 numbers are written with intrinsics; elementwise passes are plain loops (`body`) compiled once per
//! instruction set, so that they cannot differ.

mod body;
pub mod keccak;
#[cfg(target_arch = "aarch64")]
mod neon;
mod sample;
mod scalar;
pub mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::LazyLock;

use crate::reference::Affine;
use crate::semantics::quantise::Quantiser;
use crate::semantics::sample::Against;
use crate::semantics::scale::Scale;

/// Environment variable that forces a kernel by name.
pub const KERNEL_VARIABLE: &str = "ASSAY_KERNEL";

/// int8 products of `rows` stored matrix rows with `m` vectors.
///
/// `w` points to column groups of `stride` bytes, `groups` of them, the first `rows_16 · 64` bytes of each being rows ×
/// 4 biased weights. `x` points to `m` vectors, `x_stride` bytes apart, each of `4 · groups` int8 numbers. `out`
/// receives (or, with `accumulate`, is added) `m` rows of `16 · rows_16` sums of biased weight times number,
/// `out_stride` apart; sums wrap.
#[derive(Clone, Copy)]
pub(crate) struct Dot {
    pub(crate) w: *const u8,
    pub(crate) stride: usize,
    pub(crate) groups: usize,
    pub(crate) rows_16: usize,
    pub(crate) x: *const i8,
    pub(crate) x_stride: usize,
    pub(crate) m: usize,
    pub(crate) out: *mut i32,
    pub(crate) out_stride: usize,
    pub(crate) accumulate: bool,
    /// Whether rows come from memory, and the next groups follow these: then what is read soon is asked for.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only kernels of x86-64 ask ahead"))]
    pub(crate) from_memory: bool,
}

/// int8 products of a packed row tile (`matrix::packed`) with one vector.
///
/// `w` points to the tile's blocks of 8 column groups, as many as hold `groups`, `x` to a vector of `4 · groups` int8 numbers. `out` receives 64 sums of biased
/// weight times number, which wrap.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "other kernels unpack first"))]
pub(crate) struct DotPacked {
    pub(crate) w: *const u8,
    pub(crate) groups: usize,
    pub(crate) x: *const i8,
    pub(crate) out: *mut i32,
}

/// How far ahead of a product its weights are asked for, in bytes: two threads that only read memory read it a fifth faster so.
#[cfg(target_arch = "x86_64")]
pub(crate) const AHEAD: usize = 2048;
/// The same of packed weights, which take longer to multiply.
#[cfg(target_arch = "x86_64")]
pub(crate) const PACKED_AHEAD: usize = 4096;

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
impl Dot {
    /// The same products for the vectors after the first `n`.
    ///
    /// # Safety
    /// There are at least `n` vectors.
    #[inline(always)]
    unsafe fn skip(self, n: usize) -> Dot {
        // SAFETY: the caller's promise.
        unsafe {
            Dot {
                x: self.x.add(n * self.x_stride),
                out: self.out.add(n * self.out_stride),
                m: self.m - n,
                ..self
            }
        }
    }
}

/// Asks for bytes that are read soon. Pages of caches lie apart, and processors foresee no further than the end of one.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint neither reads nor faults, and every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Key or value scales of one head, one entry per position.
#[derive(Clone, Copy)]
pub(crate) struct HeadScales<'a> {
    pub(crate) mantissas: &'a [u16],
    pub(crate) exponents: &'a [i16],
}

/// One instruction set's functions.
///
/// # Safety
/// Each function needs the processor features of its table; [`Kernel`] hands out a table only where they are present.
/// [`Functions::dot`] also needs the pointers that [`Dot`] describes.
pub(crate) struct Functions {
    pub(crate) dot: unsafe fn(Dot),
    /// Largest absolute value.
    pub(crate) max_abs: unsafe fn(&[i32]) -> u32,
    /// Sum of squares after a normalising shift.
    pub(crate) sum_squares: unsafe fn(&[i32], u32) -> u64,
    /// Quantises and returns the sum of the results.
    pub(crate) quantise: unsafe fn(Quantiser, &[i32], &mut [i8]) -> i32,
    /// `rsh((acc - correction) · scale, headroom)`.
    pub(crate) apply_row_scales: unsafe fn(&[i32], i32, &[u16], u32, &mut [i32]),
    /// Saturating `x + y · scale` at the given fraction bits.
    pub(crate) add_scaled: unsafe fn(&[i32], &[i32], Scale, u32, &mut [i32]),
    /// `x · scale` at the given fraction bits.
    pub(crate) to_fixed: unsafe fn(&[i32], Scale, u32, &mut [i32]),
    /// Rotates one head: input, angles (cosines, sines), output.
    pub(crate) rotate: unsafe fn(&[i32], &[i16], &mut [i32]),
    /// The sum.
    pub(crate) sum: unsafe fn(&[i32]) -> i64,
    /// Saturating `x - mean`.
    pub(crate) shift_by: unsafe fn(&[i32], i32, &mut [i32]),
    /// Normalised numbers times gain plus bias, in place.
    pub(crate) affine: unsafe fn(&mut [i32], Scale, Affine<'_>),
    /// Activation of numbers with a scale.
    pub(crate) activate: unsafe fn(&[i32], Scale, &[i32], &mut [i32]),
    /// Soft cap, in place.
    pub(crate) bend: unsafe fn(&mut [i32], u32, &[i32]),
    /// Normalising shift, then the transform of each run.
    pub(crate) hadamard: unsafe fn(&[i32], u32, usize, &mut [i32]),
    /// Activated gate times `u`: g, u, scale of g, table, normalising shift of u, output.
    pub(crate) gate: Gate,
    /// Attention scores in place of dot products; returns the largest. Correction is subtracted from each product.
    pub(crate) scores: unsafe fn(&mut [i32], i32, HeadScales<'_>, Scale) -> i32,
    /// From scores and the largest: the high and low byte of each value weight.
    pub(crate) weights: Weights,
    /// Hashes of many messages.
    pub(crate) keccak: keccak::Keccak,
    /// Sums of numbers below 2^23 in size, times two weights each.
    pub(crate) weigh: Weigh,
    /// From low and high bytes of a number: the number, and all bits in which numbers differ from their signs.
    pub(crate) unpack: Unpack,
    /// Likelihoods of logits.
    pub(crate) likelihoods: Likelihoods,
    /// The same for int8 numbers.
    pub(crate) weigh_bytes: WeighBytes,
    /// Sums of rows of numbers, each row times two weights, into two rows of sums as long as a row.
    pub(crate) weigh_rows: WeighRows,
    /// Adds the rows of a stored row tile, times two weights each, to sums by column. Weights stand four times, once for each
    /// column of a group.
    pub(crate) fold_tile: FoldTile,
    /// Blocks of packed weights as plain ones: as many as both slices hold.
    pub(crate) unpack_weights: unsafe fn(&[u8], &mut [u8]),
    /// Products of packed weights with one vector, where that is faster than to unpack them first.
    pub(crate) dot_packed: Option<unsafe fn(DotPacked)>,
}

impl<'a> HeadScales<'a> {
    /// The scales of some positions.
    pub(crate) fn part(self, range: std::ops::Range<usize>) -> HeadScales<'a> {
        HeadScales { mantissas: &self.mantissas[range.clone()], exponents: &self.exponents[range] }
    }
}

type Weigh = unsafe fn(&[i32], &[i32], &[i32]) -> (i128, i128);
type WeighBytes = unsafe fn(&[i8], &[i32], &[i32]) -> (i64, i64);
type Likelihoods = unsafe fn(&[i32], Against, &mut [u32]);
type Unpack = unsafe fn(&[u8], &[u8], usize, &mut [i32]) -> u32;
type WeighRows = unsafe fn(&[i32], &[i32], &[i32], &mut [i64], &mut [i64]);
type FoldTile = unsafe fn(&[u8], &[i32], &[i32], &mut [i64], &mut [i64]);
type Gate = unsafe fn(&[i32], &[i32], Scale, &[i32], u32, &mut [i32]);
type Weights = unsafe fn(&[i32], i32, HeadScales<'_>, i16, &mut [i8], &mut [i8]) -> WeightSums;

/// Sums over one query's attention weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightSums {
    /// Of the weights.
    pub(crate) total: u64,
    /// Of the high bytes of the value weights.
    pub(crate) high: i32,
    /// Of the low bytes.
    pub(crate) low: i32,
}

/// An instruction set that this processor has.
#[derive(Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    pub(crate) functions: &'static Functions,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A kernel was asked for that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{asked}` is not available here; choose one of: {available} (or unset {KERNEL_VARIABLE})")]
pub struct KernelError {
    /// The name asked for.
    pub asked: String,
    /// Names that this processor can run.
    pub available: String,
}

impl Kernel {
    /// The one that every processor runs.
    pub const SCALAR: Kernel = Kernel { name: "scalar", functions: &scalar::FUNCTIONS };

    /// Kernels that this processor can run, fastest first. The last is always `scalar`.
    pub fn available() -> Vec<Kernel> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx512() {
                all.push(Kernel { name: "avx512", functions: &x86::AVX512 });
            }
            if x86::has_avx2() {
                all.push(Kernel { name: "avx2", functions: &x86::AVX2 });
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if neon::has_dotprod() {
                all.push(Kernel { name: "neon-dot", functions: &neon::NEON_DOT });
            }
            if neon::has_neon() {
                all.push(Kernel { name: "neon", functions: &neon::NEON });
            }
        }
        all.push(Kernel::SCALAR);
        all
    }

    /// The kernel called `name`.
    pub fn named(name: &str) -> Result<Kernel, KernelError> {
        let all = Kernel::available();
        all.iter().find(|k| k.name == name).copied().ok_or_else(|| KernelError {
            asked: name.to_owned(),
            available: all.iter().map(|k| k.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The kernel that [`KERNEL_VARIABLE`] names, or the fastest.
    pub fn from_environment() -> Result<Kernel, KernelError> {
        match std::env::var(KERNEL_VARIABLE) {
            Ok(name) if !name.is_empty() => Kernel::named(&name),
            _ => Ok(Kernel::available()[0]),
        }
    }

    /// Its name: `scalar`; on x86-64 `avx2` or `avx512`; on aarch64 `neon` or `neon-dot`.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// The kernel that [`KERNEL_VARIABLE`] names, or the fastest: for what is hashed, where whoever executes a model refuses an
/// unknown name.
pub(crate) static USUAL: LazyLock<Kernel> =
    LazyLock::new(|| Kernel::from_environment().unwrap_or_else(|_| Kernel::available()[0]));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::GROUP;

    #[test]
    fn every_kernel_unpacks_every_byte_to_what_it_is_worth() {
        use crate::matrix::Matrix;
        use crate::matrix::packed::{PACKED_BLOCK, PACKED_GROUP, PLAIN_BLOCK};

        // Every scale meets every number: in block b, byte i of the scales is b + i, and weights' bytes run on.
        const BLOCKS: usize = 256;
        let block = |b: usize| (0..PACKED_BLOCK).map(move |i| (b + i * 7) as u8);
        let packed: Vec<u8> = (0..BLOCKS).flat_map(block).collect();
        let w = Matrix::packed(64, BLOCKS * PACKED_GROUP, 0, &packed, &[0; 64]).unwrap();
        let weight = |at: usize| w.weight(at / GROUP % 64, at / (64 * GROUP) * GROUP + at % GROUP);
        let expected: Vec<u8> = (0..BLOCKS * PLAIN_BLOCK).map(|at| weight(at) as u8 ^ 128).collect();
        for kernel in Kernel::available() {
            let mut plain = vec![0; BLOCKS * PLAIN_BLOCK];
            // SAFETY: the kernel runs here.
            unsafe { (kernel.functions.unpack_weights)(&packed, &mut plain) };
            assert!(plain == expected, "{kernel:?}");
        }
    }

    #[test]
    fn products_of_packed_weights_are_those_of_what_they_unpack_to() {
        use crate::matrix::TILE_ROWS;
        use crate::matrix::packed::{PACKED_BLOCK, PLAIN_BLOCK};

        for groups in [1usize, 2, 7, 8, 9, 16, 31, 130] {
            let blocks = groups.div_ceil(8);
            let packed: Vec<u8> = (0..blocks * PACKED_BLOCK).map(|i| (i * i / 7 + i * 13) as u8).collect();
            for x in [|_| -128i8, |i: usize| (i * 37 + 5) as i8] {
                let x: Vec<i8> = (0..groups * GROUP).map(x).collect();
                let mut plain = vec![0; blocks * PLAIN_BLOCK];
                // SAFETY: every processor runs it.
                unsafe { (Kernel::SCALAR.functions.unpack_weights)(&packed, &mut plain) };
                let mut expected = [7; TILE_ROWS];
                let d = Dot {
                    w: plain.as_ptr(),
                    stride: TILE_ROWS * GROUP,
                    groups,
                    rows_16: 4,
                    x: x.as_ptr(),
                    x_stride: x.len(),
                    m: 1,
                    out: expected.as_mut_ptr(),
                    out_stride: TILE_ROWS,
                    accumulate: false,
                    from_memory: false,
                };
                // SAFETY: every processor runs it, and the vectors have the lengths that `d` says.
                unsafe { (Kernel::SCALAR.functions.dot)(d) };
                for kernel in Kernel::available() {
                    let Some(dot_packed) = kernel.functions.dot_packed else { continue };
                    let mut sums = [7; TILE_ROWS];
                    // SAFETY: the kernel runs here, and there are as many blocks, numbers and sums.
                    unsafe {
                        dot_packed(DotPacked {
                            w: packed.as_ptr(),
                            groups,
                            x: x.as_ptr(),
                            out: sums.as_mut_ptr(),
                        })
                    };
                    assert!(sums == expected, "{kernel:?}: {groups} groups");
                }
            }
        }
    }

    /// Any products of any bytes: -128 by -128 everywhere, which no model comes to, and random ones.
    #[test]
    fn every_kernel_multiplies_as_scalar_does() {
        let mut state = 1u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for (rows_16, groups) in [(1, 1), (2, 3), (3, 128), (4, 5), (4, 40)] {
            for m in 1..=13 {
                for lowest in [false, true] {
                    let mut byte = |low: u8| if lowest { low } else { random() as u8 };
                    let (stride, x_stride, out_stride) = (256, groups * GROUP + 3, 70);
                    let w: Vec<u8> = (0..groups * stride).map(|_| byte(0)).collect();
                    let x: Vec<i8> = (0..m * x_stride).map(|_| byte(128) as i8).collect();
                    let sums = |kernel: &Kernel| {
                        let mut out = vec![7i32; m * out_stride];
                        for accumulate in [false, true] {
                            let d = Dot {
                                w: w.as_ptr(),
                                stride,
                                groups,
                                rows_16,
                                x: x.as_ptr(),
                                x_stride,
                                m,
                                out: out.as_mut_ptr(),
                                out_stride,
                                accumulate,
                                from_memory: m % 2 == 1,
                            };
                            // SAFETY: the kernel runs here; the vectors have the lengths that `d` says.
                            unsafe { (kernel.functions.dot)(d) };
                        }
                        out
                    };
                    let all = Kernel::available();
                    let want = sums(&all[all.len() - 1]);
                    for kernel in &all {
                        assert!(
                            sums(kernel) == want,
                            "{kernel:?}: {rows_16}·16 rows, {groups} groups, {m} vectors"
                        );
                    }
                }
            }
        }
    }
}
