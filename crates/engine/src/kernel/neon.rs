//! NEON, alone and with the dot product extension.
//!
//! Both multiply signed by signed: the bias is taken off the stored weights (`w ^ 0x80`), and 128 times the sum of a
//! vector, which it would have added to each of that vector's sums, is added once at the end. Sums wrap, so the order does
//! not matter.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::Dot;
use crate::matrix::{BIAS, GROUP};

pub(super) use baseline::FUNCTIONS as NEON;
pub(super) use dotprod::FUNCTIONS as NEON_DOT;

/// Whether the processor runs [`NEON_DOT`].
pub(super) fn has_dotprod() -> bool {
    has_neon() && is_aarch64_feature_detected!("dotprod")
}

/// Whether the processor runs [`NEON`].
pub(super) fn has_neon() -> bool {
    is_aarch64_feature_detected!("neon")
}

mod dotprod {
    crate::kernel::body::instantiate!(
        #[target_feature(enable = "neon,dotprod")]
        super::dot_dotprod,
        crate::kernel::keccak::scalar,
        None
    );
}

mod baseline {
    crate::kernel::body::instantiate!(
        #[target_feature(enable = "neon")]
        super::dot_neon,
        crate::kernel::keccak::scalar,
        None
    );
}

/// # Safety
/// The dot product extension is present and the pointers are as [`Dot`] describes.
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_dotprod(mut d: Dot) {
    // SAFETY: each block takes its own vectors and moves on by as many.
    unsafe {
        while d.m >= 6 {
            rows_dotprod::<6>(&d);
            d = d.skip(6);
        }
        match d.m {
            5 => rows_dotprod::<5>(&d),
            4 => rows_dotprod::<4>(&d),
            3 => rows_dotprod::<3>(&d),
            2 => rows_dotprod::<2>(&d),
            1 => rows_dotprod::<1>(&d),
            _ => {}
        }
    }
}

/// # Safety
/// As [`dot_dotprod`], with at least `M` vectors.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn rows_dotprod<const M: usize>(d: &Dot) {
    // SAFETY: same contract; the blocks cover the rows there are.
    unsafe {
        let bias = biases::<M>(d);
        if M == 1 && d.rows_16 == 4 {
            // One vector alone: all rows at once, so that no sum waits for the one before it.
            block_dotprod::<4, M>(d, 0, bias);
        } else {
            for n in 0..d.rows_16 {
                block_dotprod::<1, M>(d, n, bias);
            }
        }
    }
}

/// `16 · N` rows from row `16 · first` on, 4 sums to an accumulator; `bias` is that of [`biases`].
///
/// # Safety
/// As [`dot_dotprod`], with at least `M` vectors and `first + N` at most `rows_16`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn block_dotprod<const N: usize, const M: usize>(d: &Dot, first: usize, bias: [i32; M]) {
    let mut acc = [[[vdupq_n_s32(0); 4]; N]; M];
    // SAFETY: all reads and writes are within what `Dot` describes.
    unsafe {
        for g in 0..d.groups {
            for n in 0..N {
                let w = weights(d, first + n, g);
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = four(d, r, g);
                    for (a, w) in acc[n].iter_mut().zip(w) {
                        *a = sdot(*a, w, x);
                    }
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (n, acc) in acc.into_iter().enumerate() {
                finish(d, r, first + n, acc, bias[r]);
            }
        }
    }
}

/// Adds to each of 4 sums the products of its 4 pairs of numbers. The intrinsic is not stable yet.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot(mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only, and the features of this function include it.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// # Safety
/// NEON is present and the pointers are as [`Dot`] describes.
#[target_feature(enable = "neon")]
unsafe fn dot_neon(mut d: Dot) {
    // SAFETY: each block takes its own vectors and moves on by as many.
    unsafe {
        while d.m >= 2 {
            rows_neon::<2>(&d);
            d = d.skip(2);
        }
        if d.m == 1 {
            rows_neon::<1>(&d);
        }
    }
}

/// # Safety
/// As [`dot_neon`], with at least `M` vectors.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn rows_neon<const M: usize>(d: &Dot) {
    // SAFETY: same contract; `n` is below `rows_16`.
    unsafe {
        let bias = biases::<M>(d);
        for n in 0..d.rows_16 {
            block_neon::<M>(d, n, bias);
        }
    }
}

/// 16 rows, as four times two accumulators of 2 rows × 2 sums per vector: two products of -128 by -128 do not fit 16
/// bits, so each is widened before it is added.
///
/// # Safety
/// As [`dot_neon`], with at least `M` vectors and `n` below `rows_16`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn block_neon<const M: usize>(d: &Dot, n: usize, bias: [i32; M]) {
    let mut acc = [[[vdupq_n_s32(0); 2]; 4]; M];
    // SAFETY: all reads and writes are within what `Dot` describes.
    unsafe {
        for g in 0..d.groups {
            let w = weights(d, n, g);
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = four(d, r, g);
                for ([low, high], w) in acc.iter_mut().zip(w) {
                    *low = vpadalq_s16(*low, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
                    *high = vpadalq_s16(*high, vmull_high_s8(w, x));
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            finish(d, r, n, acc.map(|[low, high]| vpaddq_s32(low, high)), bias[r]);
        }
    }
}

/// The weights of 16 rows in column group `g`, without their bias, 4 rows to a register.
///
/// # Safety
/// `n` is below `rows_16` and `g` below `groups` of what [`Dot`] describes.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn weights(d: &Dot, n: usize, g: usize) -> [int8x16_t; 4] {
    let mut w = [vdupq_n_s8(0); 4];
    for (i, w) in w.iter_mut().enumerate() {
        // SAFETY: 64 bytes of each group are these rows'.
        let biased = unsafe { vld1q_u8(d.w.add(g * d.stride + n * 64 + i * 16)) };
        *w = vreinterpretq_s8_u8(veorq_u8(biased, vdupq_n_u8(BIAS)));
    }
    w
}

/// The 4 numbers of vector `r` in column group `g`, four times.
///
/// # Safety
/// `r` is below `m` and `g` below `groups` of what [`Dot`] describes.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn four(d: &Dot, r: usize, g: usize) -> int8x16_t {
    // SAFETY: a vector has 4 numbers for every group.
    let x = unsafe { d.x.add(r * d.x_stride + g * GROUP).cast::<i32>().read_unaligned() };
    vreinterpretq_s8_s32(vdupq_n_s32(x))
}

/// What the bias of the weights adds to the sums of each of the first `M` vectors.
///
/// # Safety
/// There are at least `M` vectors as [`Dot`] describes.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn biases<const M: usize>(d: &Dot) -> [i32; M] {
    let mut bias = [0; M];
    for (r, bias) in bias.iter_mut().enumerate() {
        // SAFETY: a vector has 4 numbers for every group.
        let x = unsafe { std::slice::from_raw_parts(d.x.add(r * d.x_stride), d.groups * GROUP) };
        let sum = x.iter().fold(0i32, |sum, x| sum.wrapping_add(i32::from(*x)));
        *bias = sum.wrapping_mul(i32::from(BIAS));
    }
    bias
}

/// Puts out the sums of 16 rows and vector `r`.
///
/// # Safety
/// `r` is below `m` and `n` below `rows_16` of what [`Dot`] describes.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn finish(d: &Dot, r: usize, n: usize, sums: [int32x4_t; 4], bias: i32) {
    for (i, sums) in sums.into_iter().enumerate() {
        let sums = vaddq_s32(sums, vdupq_n_s32(bias));
        // SAFETY: within the output that `Dot` describes.
        unsafe {
            let out = d.out.add(r * d.out_stride + n * 16 + i * 4);
            vst1q_s32(out, if d.accumulate { vaddq_s32(sums, vld1q_s32(out)) } else { sums });
        }
    }
}
