// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Refused} from "./Integers.sol";

/// @notice A place in calldata, and where what is read ends.
struct Cursor {
    uint256 pos;
    uint256 end;
}

/// @title Reading bytes in calldata
/// @notice Numbers are big-endian; those of statements, which are borsh, little-endian. Whoever reads beyond the end is refused.
library Cursors {
    /// @notice From the beginning of some bytes.
    function over(bytes calldata data) internal pure returns (Cursor memory c) {
        assembly ("memory-safe") {
            mstore(c, data.offset)
            mstore(add(c, 32), add(data.offset, data.length))
        }
    }

    /// @notice The place of the next `n` bytes, which are passed.
    function take(Cursor memory c, uint256 n) internal pure returns (uint256 pos) {
        unchecked {
            pos = c.pos;
            if (n > c.end - pos) revert Refused();
            c.pos = pos + n;
        }
    }

    /// @notice Goes on at a place that was reached otherwise.
    function jump(Cursor memory c, uint256 pos) internal pure {
        if (pos > c.end) revert Refused();
        c.pos = pos;
    }

    /// @notice Whether nothing is left.
    function done(Cursor memory c) internal pure returns (bool) {
        return c.pos == c.end;
    }

    /// @notice The next word.
    function word(Cursor memory c) internal pure returns (bytes32 w) {
        uint256 pos = take(c, 32);
        assembly ("memory-safe") {
            w := calldataload(pos)
        }
    }

    /// @notice The next `n` bytes, at most 32, as a number.
    function big(Cursor memory c, uint256 n) internal pure returns (uint256 v) {
        uint256 pos = take(c, n);
        assembly ("memory-safe") {
            v := shr(sub(256, shl(3, n)), calldataload(pos))
        }
    }

    /// @notice The next byte.
    function u8(Cursor memory c) internal pure returns (uint256) {
        return big(c, 1);
    }

    /// @notice The next byte, which is 0 or 1.
    function flag(Cursor memory c) internal pure returns (bool) {
        uint256 v = big(c, 1);
        if (v > 1) revert Refused();
        return v == 1;
    }

    /// @notice The next 2 bytes, little-endian.
    function little16(Cursor memory c) internal pure returns (uint256 v) {
        v = big(c, 2);
        return (v >> 8) | ((v & 0xff) << 8);
    }

    /// @notice The next 4 bytes, little-endian.
    function little32(Cursor memory c) internal pure returns (uint256 v) {
        v = big(c, 4);
        v = ((v & 0xff00ff00) >> 8) | ((v & 0x00ff00ff) << 8);
        return (v >> 16) | ((v & 0xffff) << 16);
    }

    /// @notice The next 8 bytes, little-endian.
    function little64(Cursor memory c) internal pure returns (uint256 v) {
        v = little32(c);
        return v | (little32(c) << 32);
    }
}
