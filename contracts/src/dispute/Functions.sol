// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Integers, Refused} from "./Integers.sol";
import {Scale, Scales} from "./Scales.sol";

/// @title The functions of one number that operations are made of (semantics 3, 4, 5.7, 6)
/// @notice Pure arithmetic: nothing here knows where its inputs come from.
library Functions {
    using Integers for int256;

    /// @notice The largest epsilon of a norm.
    uint256 internal constant EPSILON_MAX = 1 << 44;

    /// @notice `65024 · 2^(-f / 65536)` for `f` below `2^16`.
    function exp2Fraction(uint256 f) internal pure returns (uint256) {
        unchecked {
            uint256 t = 3437 - ((431 * f + 32768) >> 16);
            t = 15559 - ((t * f + 32768) >> 16);
            t = 45065 - ((t * f + 32768) >> 16);
            return 65024 - ((t * f + 32768) >> 16);
        }
    }

    /// @notice The weight of an attention score that lies `d` below the largest; `d` has 32 bits.
    function exp2Weight(uint256 d) internal pure returns (uint256) {
        unchecked {
            return rshSmall(exp2Fraction(d & 0xffff), d >> 16);
        }
    }

    /// @notice The likelihood of a token whose exponent lies `d` below the largest; `d` has 32 bits.
    function exp2Likelihood(uint256 d) internal pure returns (uint256) {
        unchecked {
            return (exp2Fraction(d & 0xffff) << 16) >> (d >> 16);
        }
    }

    /// @notice The rounding shift of a 32-bit number without a sign: 0 beyond 32.
    function rshSmall(uint256 v, uint256 s) internal pure returns (uint256) {
        unchecked {
            if (s == 0) return v;
            return s > 32 ? 0 : (v + (1 << (s - 1))) >> s;
        }
    }

    /// @notice The right shift that brings numbers up to `largest` to at most `2^15` in size.
    function normalShift(uint256 largest) internal pure returns (uint256) {
        unchecked {
            uint256 b = Integers.bits(largest);
            return b > 15 ? b - 15 : 0;
        }
    }

    /// @notice What one unit of a quantised number is worth, in units of the input (4.3).
    /// @param largest The largest absolute value of the group, 32 bits.
    function quantisedUnit(uint256 largest) internal pure returns (Scale memory s) {
        unchecked {
            if (largest == 0) return s;
            uint256 k = normalShift(largest);
            uint256 top = uint256(int256(largest).rsh(k));
            return Scales.nearest((top << 32) / 127, int256(k) - 32);
        }
    }

    /// @notice One number of a group as int8 (4.2). Of numbers larger than `largest`, what wrapping leaves.
    function quantise(int256 v, uint256 largest) internal pure returns (int256) {
        unchecked {
            if (largest == 0) return 0;
            uint256 k = normalShift(largest);
            int256 factor = int256((127 << 24) / uint256(int256(largest).rsh(k)));
            int256 y = v.rsh(k).low32();
            return int8((y * factor + (1 << 23)).low32() >> 24);
        }
    }

    /// @notice The square of a number after its normalising shift, below `2^63`.
    function square(int256 v, uint256 shift) internal pure returns (int256) {
        unchecked {
            int256 y = v.rsh(shift);
            return y * y;
        }
    }

    /// @notice The scale of a norm from the sum of squares of its `n` numbers (6.2).
    function normScale(int256 sum, uint256 shift, uint256 n, uint256 epsilon) internal pure returns (Scale memory s) {
        unchecked {
            if (sum < 0 || uint256(sum) > n << 30 || n == 0 || epsilon > EPSILON_MAX) revert Refused();
            uint256 total = uint256(sum) + ((n * epsilon) >> (2 * shift));
            if (total == 0) return s;
            uint256 up = 2 * ((Integers.bits(total) + 35 - Integers.bits(n)) / 2);
            uint256 root = Integers.isqrt((n << up) / total);
            return Scales.nearest(root, -int256(up / 2) - int256(shift));
        }
    }

    /// @notice The mean of `n` 32-bit numbers from their sum, halves away from zero (6.12).
    function mean(int256 sum, uint256 n) internal pure returns (int256) {
        unchecked {
            uint256 whole = sum.size();
            if (n == 0 || whole > n << 31) revert Refused();
            int256 m = int256((whole + n / 2) / n);
            return (sum < 0 ? -m : m).low32();
        }
    }

    /// @notice A function between two entries of its table, at `a` below `2^32` (5.7).
    function between(int256 here, int256 next, uint256 a) internal pure returns (int256) {
        unchecked {
            return here + ((next - here) * int256(a & 1023)).rsh(10);
        }
    }

    /// @notice `g · t`, or `g · (1 - t)` for negative `g`, with 16 fraction bits (6.7).
    /// @param t The table at `|g|`.
    function activation(int256 g, int256 t) internal pure returns (int256) {
        unchecked {
            return (g * (g < 0 ? 65536 - t : t)).rsh(16);
        }
    }

    /// @notice Activated gate times normalised `u` (6.7).
    function gate(int256 act, int256 u, uint256 shift) internal pure returns (int256) {
        unchecked {
            return (act * u.rsh(shift)).rsh(10).sat32();
        }
    }

    /// @notice Where a bent number reads the logistic table (6.15). The limit is from `2^16` to `2^30`.
    function bendAt(int256 z, uint256 limit) internal pure returns (uint256 a) {
        unchecked {
            if (limit < 1 << 16 || limit > 1 << 30) revert Refused();
            a = (z.size() * ((1 << 33) / limit)) >> 16;
            if (a > 1 << 20) a = 1 << 20;
        }
    }

    /// @notice A bent number from the table at `bendAt`.
    function bend(int256 z, uint256 limit, int256 t) internal pure returns (int256) {
        unchecked {
            int256 y = (int256(limit) * (2 * t - 65536)).rsh(16);
            return z < 0 ? -y : y;
        }
    }

    /// @notice A row's accumulator times its scale, with `headroom` bits taken off (6.4); 32 bits of it.
    function rowScaled(int256 acc, uint256 mantissa, uint256 headroom) internal pure returns (int256) {
        unchecked {
            return (acc * int256(mantissa)).rsh(headroom).low32();
        }
    }

    /// @notice One number of a turned pair (6.5): `a·c - b·s` or, with `s` negated and swapped inputs, its partner.
    function turned(int256 a, int256 b, int256 c, int256 s) internal pure returns (int256) {
        unchecked {
            return (a * c - b * s).rsh(14).sat32();
        }
    }

    /// @notice A score as an exponent of two with 16 fraction bits (6.6, step 2).
    function score(int256 dot, Scale memory key, Scale memory query) internal pure returns (int256) {
        unchecked {
            return Integers.shiftSat(
                dot * int256(key.mantissa * query.mantissa), -(key.exponent + query.exponent + 16)
            );
        }
    }

    /// @notice Attention weight times value scale (6.6, step 5). Reverts with `Refused` when `highest` is not the highest exponent.
    function valueWeight(uint256 e, Scale memory value, int256 highest) internal pure returns (uint256) {
        unchecked {
            if (value.mantissa == 0) return 0;
            if (value.exponent > highest) revert Refused();
            return rshSmall(e * value.mantissa, 17 + uint256(highest - value.exponent));
        }
    }

    /// @notice A head's weighted sum over the sum of its weights (6.6, step 7).
    function share(int256 sum, int256 total, int256 highest, uint256 frac) internal pure returns (int256) {
        unchecked {
            if (total < 1 || total >= 1 << 34 || sum.size() >= 1 << 40) revert Refused();
            uint256 b = Integers.bits(uint256(total));
            int256 reciprocal = int256((1 << (b + 15)) / uint256(total));
            return Integers.shiftSat(sum * reciprocal, int256(b) - 2 - highest - int256(frac));
        }
    }

    /// @notice Millionths as fixed point with 16 fraction bits, halves away from zero (7.3).
    function sixteen(int256 micro) internal pure returns (int256) {
        unchecked {
            int256 whole = int256((micro.size() * 65536 + 500_000) / 1_000_000);
            return micro < 0 ? -whole : whole;
        }
    }

    /// @notice A logit of a token that was there before (7.3). The penalty is at least 10 000 millionths.
    function repeated(int256 logit, uint256 micro) internal pure returns (int256) {
        unchecked {
            if (logit > 0) return int256(uint256(logit) * 1_000_000 / micro).sat32();
            return (-int256(logit.size() * micro / 1_000_000)).sat32();
        }
    }

    /// @notice A logit at a temperature of at least 10 000 millionths, as an exponent of two with 16 fraction bits (7.6).
    function exponent(int256 logit, uint256 temperature) internal pure returns (int256) {
        unchecked {
            if (temperature < 10_000) revert Refused();
            return Integers.shiftSat(logit * int256(1_512_775_395_195 / temperature), 20);
        }
    }
}
