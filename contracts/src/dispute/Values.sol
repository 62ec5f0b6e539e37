// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Form, Kind, Op, Programs} from "./Programs.sol";
import {Functions} from "./Functions.sol";
import {Integers, Refused} from "./Integers.sol";
import {Scale, Scales} from "./Scales.sol";
import {Source, Sources} from "./Source.sol";

/// @title Values: their scales, and functions that are looked up in tables
library Values {
    using Integers for int256;
    using Scales for Scale;
    using Sources for Source;

    int256 internal constant TABLE_LEAST = 32_768;
    int256 internal constant TABLE_MOST = 65_536;

    /// @notice The scale of a value of integers at a position.
    function scaleOf(Source memory s, uint256 value, uint256 position) internal pure returns (Scale memory) {
        unchecked {
            Op memory o = s.op(value);
            if (o.form == Form.FIXED) return Scales.power(-int256(o.madeFrac));
            if (o.kind == Kind.NORM) return s.groupScale(value, position, 0);
            if (o.x >= value) revert Refused();
            if (o.kind == Kind.MATMUL) {
                (uint256 columns, int256 shift) = s.matrix(o.tensor);
                return s.groupScale(o.x, position, 0).shifted(int256(Integers.bits(columns)) - shift);
            }
            if (o.kind == Kind.ROTARY) return scaleOf(s, o.x, position);
            if (o.kind == Kind.GATE) {
                int256 k = int256(shiftOf(s, value, position));
                return scaleOf(s, o.x, position).shifted(k - 6);
            }
            if (o.kind == Kind.HADAMARD) {
                int256 k = int256(shiftOf(s, value, position));
                return scaleOf(s, o.x, position).shifted(k);
            }
            revert Refused();
        }
    }

    /// @notice A largest absolute value: in part 0 of its operation.
    function largestOf(Source memory s, uint256 op, uint256 position, uint256 column) internal pure returns (uint256) {
        return s.cell(op, 0, position, column).unsigned32();
    }

    /// @notice The normalising shift of an operation whose first number is a largest absolute value.
    function shiftOf(Source memory s, uint256 op, uint256 position) internal pure returns (uint256) {
        return Functions.normalShift(largestOf(s, op, position, 0));
    }

    /// @notice A function between two entries of its table, at `a` below `2^32`.
    function tableAt(Source memory s, uint256 table, uint256 a) internal pure returns (int256) {
        unchecked {
            uint256 i = a >> 10;
            if (i > 1024) i = 1024;
            int256 here = s.entry(table, i, TABLE_LEAST, TABLE_MOST);
            int256 next = s.entry(table, i < 1024 ? i + 1 : 1024, TABLE_LEAST, TABLE_MOST);
            return Functions.between(here, next, a);
        }
    }

    /// @notice An activation at a fixed-point number with 16 fraction bits.
    function activation(Source memory s, uint256 table, int256 g) internal pure returns (int256) {
        return Functions.activation(g, tableAt(s, table, g.size()));
    }

    /// @notice A bent number.
    function bend(Source memory s, uint256 limit, uint256 table, int256 z) internal pure returns (int256) {
        return Functions.bend(z, limit, tableAt(s, table, Functions.bendAt(z, limit)));
    }
}
