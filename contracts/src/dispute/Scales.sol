// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Integers} from "./Integers.sol";

/// @notice `mantissa · 2^exponent`: 16 bits without a sign, 16 bits with one.
struct Scale {
    uint256 mantissa;
    int256 exponent;
}

/// @title Scales (semantics 2)
library Scales {
    using Scales for Scale;

    /// @notice `2^e`. The exponent saturates at the lower end.
    function power(int256 e) internal pure returns (Scale memory) {
        unchecked {
            return Scale(1 << 15, _exponent(e - 15));
        }
    }

    /// @notice The scale nearest to `v · 2^e` for a `v` below `2^64`; exponents saturate.
    function nearest(uint256 v, int256 e) internal pure returns (Scale memory s) {
        unchecked {
            if (v == 0) return s;
            uint256 b = Integers.bits(v);
            if (b <= 16) {
                s.mantissa = v << (16 - b);
            } else {
                s.mantissa = ((v >> (b - 17)) + 1) >> 1;
            }
            e += int256(b) - 16;
            if (s.mantissa == 1 << 16) {
                s.mantissa = 1 << 15;
                e += 1;
            }
            s.exponent = _exponent(e);
        }
    }

    /// @notice The product, rounded to 16 bits.
    function times(Scale memory a, Scale memory b) internal pure returns (Scale memory) {
        unchecked {
            return nearest(a.mantissa * b.mantissa, a.exponent + b.exponent);
        }
    }

    /// @notice The scale times `2^e`.
    function shifted(Scale memory s, int256 e) internal pure returns (Scale memory) {
        unchecked {
            return nearest(s.mantissa, s.exponent + e);
        }
    }

    /// @notice The 32-bit number `v`, worth `v` times the scale, as fixed point with `frac` fraction bits.
    function toFixed(Scale memory s, int256 v, uint256 frac) internal pure returns (int256) {
        unchecked {
            return Integers.shiftSat(v * int256(s.mantissa), -s.exponent - int256(frac));
        }
    }

    function _exponent(int256 e) private pure returns (int256) {
        return e > type(int16).max ? int256(type(int16).max) : e < type(int16).min ? int256(type(int16).min) : e;
    }
}
