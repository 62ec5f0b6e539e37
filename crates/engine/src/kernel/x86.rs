//! AVX2 and AVX-512 VNNI.

use std::arch::x86_64::*;

use super::{AHEAD, Dot, DotPacked, PACKED_AHEAD};
use crate::matrix::packed::{EIGHT, GROUP_SCALE_MAX, PACKED_BLOCK, PACKED_GROUP};
use crate::matrix::{GROUP, TILE_ROWS};

pub(super) use avx2::FUNCTIONS as AVX2;
pub(super) use avx512::FUNCTIONS as AVX512;

/// Whether the processor runs [`AVX512`].
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
}

/// Whether the processor runs [`AVX2`].
pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

mod avx512 {
    crate::kernel::body::instantiate!(
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        super::dot_avx512,
        crate::kernel::keccak::x86::keccak_avx512,
        Some(super::dot_packed_avx512)
    );
}

mod avx2 {
    crate::kernel::body::instantiate!(
        #[target_feature(enable = "avx2")]
        super::dot_avx2,
        crate::kernel::keccak::x86::keccak_avx2,
        None
    );
}

/// # Safety
/// AVX-512 VNNI is present and the pointers are as [`Dot`] describes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_avx512(d: Dot) {
    // SAFETY: same contract.
    unsafe {
        match d.rows_16 {
            1 => dot_avx512_rows::<1>(d),
            2 => dot_avx512_rows::<2>(d),
            3 => dot_avx512_rows::<3>(d),
            _ => dot_avx512_rows::<4>(d),
        }
    }
}

/// # Safety
/// As [`dot_avx512`], `N` being `rows_16`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn dot_avx512_rows<const N: usize>(mut d: Dot) {
    let mut ahead = Ahead::of(&d);
    // SAFETY: each block takes its own vectors and moves on by as many.
    unsafe {
        while d.m >= 6 {
            block_avx512::<N, 6>(&d, &ahead);
            d = d.skip(6);
            ahead.first += 1;
        }
        match d.m {
            5 => block_avx512::<N, 5>(&d, &ahead),
            4 => block_avx512::<N, 4>(&d, &ahead),
            3 => block_avx512::<N, 3>(&d, &ahead),
            2 => block_avx512::<N, 2>(&d, &ahead),
            1 => block_avx512::<N, 1>(&d, &ahead),
            _ => {}
        }
    }
}

/// Which registers of weights a block of vectors asks memory for, in each group of columns, and how far ahead: all that is read soon is asked for once, by
/// all blocks in turn, so that memory never waits for the multipliers.
struct Ahead {
    first: usize,
    step: usize,
    bytes: usize,
}

impl Ahead {
    #[inline(always)]
    fn of(d: &Dot) -> Ahead {
        match d.m.div_ceil(6) {
            0 | 1 => Ahead { first: 0, step: 1, bytes: AHEAD },
            // Further vectors meet these groups before memory is read again.
            step => Ahead { first: 0, step, bytes: d.groups * d.stride },
        }
    }
}

/// # Safety
/// As [`dot_avx512`], with at least `M` vectors and `N` being `rows_16`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn block_avx512<const N: usize, const M: usize>(d: &Dot, ahead: &Ahead) {
    let mut acc = [[_mm512_setzero_si512(); N]; M];
    // SAFETY: all reads and writes are within what `Dot` describes.
    unsafe {
        if d.accumulate {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (n, a) in acc.iter_mut().enumerate() {
                    *a = _mm512_loadu_si512(d.out.add(r * d.out_stride + n * 16).cast());
                }
            }
        }
        for g in 0..d.groups {
            let ask = |n: usize| {
                _mm_prefetch::<_MM_HINT_T0>(d.w.wrapping_add(g * d.stride + n * 64 + ahead.bytes).cast());
            };
            match ahead.step {
                _ if !d.from_memory => {}
                1 => (0..N).for_each(ask),
                step => (ahead.first..N).step_by(step).for_each(ask),
            }
            let mut w = [_mm512_setzero_si512(); N];
            for (n, w) in w.iter_mut().enumerate() {
                *w = _mm512_loadu_si512(d.w.add(g * d.stride + n * 64).cast());
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(d.x.add(r * d.x_stride + g * 4).cast::<i32>().read_unaligned());
                for (n, a) in acc.iter_mut().enumerate() {
                    *a = _mm512_dpbusd_epi32(*a, w[n], x);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (n, a) in acc.iter().enumerate() {
                _mm512_storeu_si512(d.out.add(r * d.out_stride + n * 16).cast(), *a);
            }
        }
    }
}

/// A weight is made in 16-bit lanes as in `body::unpack_weights`, and never leaves the registers.
///
/// # Safety
/// AVX-512 VNNI is present and the pointers are as [`DotPacked`] describes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_packed_avx512(d: DotPacked) {
    const GROUPS: usize = PACKED_GROUP / GROUP;
    const ODD: u32 = 0xaaaa_aaaa;
    // The first operand, or else both others: the low bytes of one with the high bytes of another.
    const MERGE: i32 = 0xf8;
    let most = _mm_set1_epi8(GROUP_SCALE_MAX as i8);
    let least = _mm_set1_epi8(-GROUP_SCALE_MAX as i8);
    let (nibble, high) = (_mm512_set1_epi16(15), _mm512_set1_epi16(0xff00_u16 as i16));
    let bias = _mm512_set1_epi16((2 * 64 + (1 << 15)) as u16 as i16);
    let mut acc = [_mm512_setzero_si512(); 4];
    // SAFETY: all reads and writes are within what `DotPacked` describes; hints neither read nor fault.
    unsafe {
        for first in (0..d.groups).step_by(GROUPS) {
            let block = d.w.add(first / GROUPS * PACKED_BLOCK);
            for line in (0..PACKED_BLOCK).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(line + PACKED_AHEAD).cast());
            }
            let mut factor = [_mm512_setzero_si512(); 4];
            let mut offset = [_mm512_setzero_si512(); 4];
            for n in 0..4 {
                let g = _mm_loadu_si128(block.add(n * 16).cast());
                let g = _mm_max_epi8(_mm_min_epi8(g, most), least);
                // 64 · g in both halves of a row's lane.
                let g = _mm512_slli_epi32::<6>(_mm512_cvtepi8_epi32(g));
                factor[n] = _mm512_mask_blend_epi16(ODD, g, _mm512_slli_epi32::<16>(g));
                offset[n] = _mm512_sub_epi16(bias, _mm512_slli_epi16::<3>(factor[n]));
            }
            let here = (d.groups - first).min(GROUPS);
            for pair in 0..here.div_ceil(2) {
                let x = d.x.add((first + 2 * pair) * GROUP).cast::<i32>();
                let x_first = _mm512_set1_epi32(x.read_unaligned());
                // What only fills a block is met by nothing.
                let second = if 2 * pair + 1 < here { x.add(1).read_unaligned() } else { 0 };
                let x_second = _mm512_set1_epi32(second);
                let words = block.add(TILE_ROWS + pair * EIGHT);
                for n in 0..4 {
                    let q = _mm512_loadu_si512(words.add(n * 64).cast());
                    let weight = |q| _mm512_add_epi16(_mm512_mullo_epi16(q, factor[n]), offset[n]);
                    let both = |low, other| {
                        let low = _mm512_srli_epi16::<8>(weight(low));
                        _mm512_ternarylogic_epi32::<MERGE>(low, weight(other), high)
                    };
                    let first = both(
                        _mm512_and_si512(q, nibble),
                        _mm512_and_si512(_mm512_srli_epi16::<4>(q), nibble),
                    );
                    let second =
                        both(_mm512_and_si512(_mm512_srli_epi16::<8>(q), nibble), _mm512_srli_epi16::<12>(q));
                    acc[n] = _mm512_dpbusd_epi32(acc[n], first, x_first);
                    acc[n] = _mm512_dpbusd_epi32(acc[n], second, x_second);
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            _mm512_storeu_si512(d.out.add(n * 16).cast(), *acc);
        }
    }
}

/// # Safety
/// AVX2 is present and the pointers are as [`Dot`] describes.
#[target_feature(enable = "avx2")]
unsafe fn dot_avx2(mut d: Dot) {
    // SAFETY: each block takes its own vectors and moves on by as many.
    unsafe {
        while d.m >= 2 {
            for n in 0..d.rows_16 {
                block_avx2::<2>(&d, n);
            }
            d = d.skip(2);
        }
        if d.m == 1 {
            for n in 0..d.rows_16 {
                block_avx2::<1>(&d, n);
            }
        }
    }
}

/// 16 rows, as four accumulators of 4 rows × 2 sums per vector.
///
/// # Safety
/// As [`dot_avx2`], with at least `M` vectors and `n` below `rows_16`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn block_avx2<const M: usize>(d: &Dot, n: usize) {
    let mut acc = [[_mm256_setzero_si256(); 4]; M];
    // SAFETY: all reads and writes are within what `Dot` describes.
    unsafe {
        for g in 0..d.groups {
            let base = d.w.add(g * d.stride + n * 64);
            let mut w = [_mm256_setzero_si256(); 4];
            for (i, w) in w.iter_mut().enumerate() {
                *w = _mm256_cvtepu8_epi16(_mm_loadu_si128(base.add(i * 16).cast()));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = d.x.add(r * d.x_stride + g * 4).cast::<i32>().read_unaligned();
                let x = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(x)));
                for (i, a) in acc.iter_mut().enumerate() {
                    *a = _mm256_add_epi32(*a, _mm256_madd_epi16(w[i], x));
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for half in 0..2 {
                // hadd works within 128-bit lanes: rows 0 1 4 5 | 2 3 6 7, put in order by the permutation.
                let sums = _mm256_hadd_epi32(acc[2 * half], acc[2 * half + 1]);
                let sums = _mm256_permute4x64_epi64(sums, 0b11_01_10_00);
                let out: *mut __m256i = d.out.add(r * d.out_stride + n * 16 + half * 8).cast();
                let sums = if d.accumulate { _mm256_add_epi32(sums, _mm256_loadu_si256(out)) } else { sums };
                _mm256_storeu_si256(out, sums);
            }
        }
    }
}
