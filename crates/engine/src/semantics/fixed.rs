//! Rounding shifts and saturation: the one rounding rule (semantics 1).

/// `floor((v + 2^(s-1)) / 2^s)`: add half, shift right arithmetically. `s = 0` returns `v`; `s` is at most 62 and
/// `|v| < 2^62`, so that the sum cannot overflow.
#[inline(always)]
pub const fn rsh(v: i64, s: u32) -> i64 {
    if s == 0 { v } else { (v + (1i64 << (s - 1))) >> s }
}

/// [`rsh`] for non-negative 32-bit numbers of full width, shifts up to 63.
#[inline(always)]
pub const fn rsh_u32(v: u32, s: u32) -> u32 {
    if s == 0 {
        v
    } else if s > 32 {
        0
    } else {
        (((v as u64) + (1u64 << (s - 1))) >> s) as u32
    }
}

/// Nearest i32: numbers beyond the ends become the ends.
#[inline(always)]
pub const fn sat32(v: i64) -> i32 {
    if v > i32::MAX as i64 {
        i32::MAX
    } else if v < i32::MIN as i64 {
        i32::MIN
    } else {
        v as i32
    }
}

/// `p · 2^-s` rounded and saturated to i32, for any `s` and `|p| < 2^62`: right shifts beyond 62 give 0, left shifts
/// saturate.
#[inline(always)]
pub const fn shift_sat(p: i64, s: i32) -> i32 {
    if s > 62 {
        0
    } else if s >= 0 {
        sat32(rsh(p, s as u32))
    } else if p == 0 {
        0
    } else if s < -31 {
        if p > 0 { i32::MAX } else { i32::MIN }
    } else {
        // |p| beyond i32 saturates at once, so the shift works on at most 32 + 31 bits.
        sat32((sat32(p) as i64) << (-s) as u32)
    }
}

/// Number of bits of `v`: 0 for 0, 1 for 1, 32 for the largest.
#[inline(always)]
pub const fn bits32(v: u32) -> u32 {
    32 - v.leading_zeros()
}

/// Number of bits of `v`.
#[inline(always)]
pub const fn bits64(v: u64) -> u32 {
    64 - v.leading_zeros()
}

/// `floor(sqrt(v))`.
pub const fn isqrt(v: u64) -> u32 {
    let mut root = 0u64;
    let mut rest = v;
    let mut bit = 1u64 << 62;
    while bit > rest {
        bit >>= 2;
    }
    while bit != 0 {
        if rest >= root + bit {
            rest -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
        bit >>= 2;
    }
    root as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_up_and_ends_saturate() {
        for (v, s, want) in [(5, 1, 3), (-5, 1, -2), (3, 2, 1), (-2, 2, 0), (-3, 2, -1), (7, 0, 7)] {
            assert_eq!(rsh(v, s), want, "{v} >> {s}");
        }
        assert_eq!(shift_sat(1 << 40, 3), i32::MAX);
        assert_eq!(shift_sat(-(1 << 40), 3), i32::MIN);
        assert_eq!(shift_sat(3, -2), 12);
        assert_eq!(shift_sat(-1, -31), i32::MIN);
        assert_eq!(shift_sat(1, -31), i32::MAX);
        assert_eq!(shift_sat(1, -32), i32::MAX);
        assert_eq!(shift_sat((1 << 62) - 1, 63), 0);
        assert_eq!(shift_sat(1 << 40, -40), i32::MAX);
        assert_eq!(rsh_u32(u32::MAX, 32), 1);
        assert_eq!(rsh_u32(u32::MAX, 33), 0);
    }

    #[test]
    fn isqrt_is_the_floor_of_the_root() {
        for r in [0u64, 1, 2, 3, 255, 65_535, 65_536, 123_456_789, u32::MAX as u64] {
            assert_eq!(isqrt(r * r) as u64, r);
            if r > 0 {
                assert_eq!(isqrt(r * r - 1) as u64, r - 1);
                assert_eq!(isqrt(r * r + 2 * r) as u64, r);
            }
        }
        assert_eq!(isqrt(u64::MAX), u32::MAX);
    }
}
