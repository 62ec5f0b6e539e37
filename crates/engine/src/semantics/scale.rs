//! Scales: the 16-bit block-floating numbers that give integer vectors their size (semantics 2).

use borsh::{BorshDeserialize, BorshSerialize};

use super::fixed::{bits64, shift_sat};

/// `mantissa · 2^exponent`. The mantissa is 0 or has its top bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, BorshSerialize, BorshDeserialize)]
pub struct Scale {
    /// 0, or 2^15 to 2^16 - 1.
    pub mantissa: u16,
    /// Binary exponent; 0 when the mantissa is 0.
    pub exponent: i16,
}

impl Scale {
    /// The scale of an all-zero vector.
    pub const ZERO: Scale = Scale { mantissa: 0, exponent: 0 };

    /// `2^e`.
    pub const fn power(e: i16) -> Scale {
        Scale { mantissa: 1 << 15, exponent: e.saturating_sub(15) }
    }

    /// `v · 2^e`, rounded to 16 bits (half up). Exponents saturate at the ends of i16.
    pub const fn from_u64(v: u64, e: i32) -> Scale {
        if v == 0 {
            return Scale::ZERO;
        }
        let b = bits64(v) as i32;
        let (mut mantissa, mut exponent) = if b <= 16 {
            (v << (16 - b) as u32, e - (16 - b))
        } else {
            let s = (b - 16) as u32;
            // Equal to (v + 2^(s-1)) >> s without the overflow at 64 bits.
            (((v >> (s - 1)) + 1) >> 1, e + s as i32)
        };
        if mantissa == 1 << 16 {
            mantissa = 1 << 15;
            exponent += 1;
        }
        let exponent = if exponent > i16::MAX as i32 {
            i16::MAX
        } else if exponent < i16::MIN as i32 {
            i16::MIN
        } else {
            exponent as i16
        };
        Scale { mantissa: mantissa as u16, exponent }
    }

    /// The product, rounded to 16 bits.
    pub const fn times(self, other: Scale) -> Scale {
        Scale::from_u64(
            self.mantissa as u64 * other.mantissa as u64,
            self.exponent as i32 + other.exponent as i32,
        )
    }

    /// The same mantissa at `exponent + e` (saturating).
    pub const fn shifted(self, e: i32) -> Scale {
        Scale::from_u64(self.mantissa as u64, self.exponent as i32 + e)
    }

    /// Whether the mantissa is 0 (with exponent 0) or normalised: foreign scales must be.
    pub const fn is_canonical(self) -> bool {
        if self.mantissa == 0 { self.exponent == 0 } else { self.mantissa >= 1 << 15 }
    }

    /// `v · self` as fixed point with `frac` fraction bits, rounded once and saturated.
    #[inline(always)]
    pub const fn to_fixed(self, v: i32, frac: u32) -> i32 {
        shift_sat(v as i64 * self.mantissa as i64, -(self.exponent as i32) - frac as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_normalised_and_round_half_up() {
        assert_eq!(Scale::from_u64(1, 0), Scale { mantissa: 1 << 15, exponent: -15 });
        assert_eq!(Scale::from_u64(0x1_FFFF, 0), Scale { mantissa: 1 << 15, exponent: 2 });
        assert_eq!(Scale::from_u64(0x1_0001, 0), Scale { mantissa: 0x8001, exponent: 1 });
        assert_eq!(Scale::from_u64(u64::MAX, 0), Scale { mantissa: 1 << 15, exponent: 49 });
        assert_eq!(Scale::power(3).times(Scale::power(-3)), Scale::power(0));
        assert_eq!(Scale::power(0).to_fixed(-7, 4), -112);
        assert_eq!(Scale::ZERO.to_fixed(i32::MIN, 4), 0);
    }
}
