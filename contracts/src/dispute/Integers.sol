// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// Something that a micro-step reads was not opened, or is no number that it could have read.
error Refused();

/// @title Rounding, saturation, bits and roots (semantics 1)
/// @notice Numbers are mathematical integers in 256 bits. Where the referee's integers wrap, the functions here say so; everywhere else
/// their ranges keep every intermediate result exact.
library Integers {
    int256 internal constant MAX32 = type(int32).max;
    int256 internal constant MIN32 = type(int32).min;

    /// @notice `floor((v + 2^(s-1)) / 2^s)`, and `v` for `s = 0`: add half, shift right arithmetically.
    function rsh(int256 v, uint256 s) internal pure returns (int256) {
        unchecked {
            return s == 0 ? v : (v + int256(1 << (s - 1))) >> s;
        }
    }

    /// @notice The nearest 32-bit number.
    function sat32(int256 v) internal pure returns (int256) {
        return v > MAX32 ? MAX32 : v < MIN32 ? MIN32 : v;
    }

    /// @notice The low 32 bits as a signed number: what a cast keeps.
    function low32(int256 v) internal pure returns (int256) {
        return int32(v);
    }

    /// @notice `p · 2^-s`, rounded and saturated to 32 bits, for `|p| < 2^63`.
    function shiftSat(int256 p, int256 s) internal pure returns (int256) {
        unchecked {
            if (s > 62) return 0;
            if (s >= 0) return sat32(rsh(p, uint256(s)));
            if (p == 0) return 0;
            if (s < -31) return p > 0 ? MAX32 : MIN32;
            return sat32(p << uint256(-s));
        }
    }

    /// @notice `|v|`.
    function size(int256 v) internal pure returns (uint256) {
        unchecked {
            return v < 0 ? uint256(-v) : uint256(v);
        }
    }

    /// @notice Binary digits of `v`, below `2^128`; 0 for 0.
    function bits(uint256 v) internal pure returns (uint256 n) {
        assembly ("memory-safe") {
            n := shl(6, lt(0xffffffffffffffff, v))
            n := or(n, shl(5, lt(0xffffffff, shr(n, v))))
            n := or(n, shl(4, lt(0xffff, shr(n, v))))
            n := or(n, shl(3, lt(0xff, shr(n, v))))
            n := or(n, shl(2, lt(0xf, shr(n, v))))
            n := or(n, shl(1, lt(0x3, shr(n, v))))
            n := or(n, lt(0x1, shr(n, v)))
            n := add(n, iszero(iszero(v)))
        }
    }

    /// @notice `floor(sqrt(v))` of a number below `2^64`.
    function isqrt(uint256 v) internal pure returns (uint256 root) {
        unchecked {
            uint256 bit = 1 << 62;
            while (bit > v) bit >>= 2;
            while (bit != 0) {
                if (v >= root + bit) {
                    v -= root + bit;
                    root = (root >> 1) + bit;
                } else {
                    root >>= 1;
                }
                bit >>= 2;
            }
        }
    }

    /// @notice The sum of two accumulators. Reverts with `Refused` when it leaves 64 bits.
    function add64(int256 a, int256 b) internal pure returns (int256 sum) {
        unchecked {
            sum = a + b;
            if (sum != int64(sum)) revert Refused();
        }
    }

    /// @notice The larger one.
    function max(int256 a, int256 b) internal pure returns (int256) {
        return a > b ? a : b;
    }

    /// @notice The number as 32 bits without a sign. Reverts with `Refused` when it is none such.
    function unsigned32(int256 v) internal pure returns (uint256) {
        if (v < 0 || v >= 1 << 32) revert Refused();
        return uint256(v);
    }
}
