// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Form, Kind, Op, Programs} from "./Programs.sol";
import {Functions} from "./Functions.sol";
import {Integers, Refused} from "./Integers.sol";
import {IMicroSteps, Rule} from "./IMicroSteps.sol";
import {Scale, Scales} from "./Scales.sol";
import {Cell, Extent, Item, Reader, Source, Sources, Strip} from "./Source.sol";
import {Values} from "./Values.sol";

/// @title The micro-steps of all operations but attention (semantics 6, protocol 9.4)
contract OperationSteps is IMicroSteps {
    using Integers for int256;
    using Scales for Scale;
    using Sources for Source;

    /// Inputs of one run of a fold.
    uint256 private constant RUN = 256;
    int256 private constant ANGLE_MOST = 16_384;
    int256 private constant VECTOR_MOST = (1 << 30) - 1;
    /// Fraction bits of a normalised number before its gain.
    uint256 private constant NORMAL_FRAC = 16;

    /// @inheritdoc IMicroSteps
    function rule(bytes calldata items, Extent calldata extent, Cell calldata cell)
        external
        pure
        returns (Rule, uint256 runs, int64)
    {
        Source memory s = Sources.over(items, extent);
        Op memory o = s.op(cell.op);
        uint256 part = cell.part;
        uint256 kind = o.kind;
        if (kind == Kind.POOL && part == 0) return (Rule.Fold, extent.positions, 0);
        if (part == 0) {
            uint256 length = _folded(s, o);
            if (length != type(uint256).max) return (Rule.Fold, (length + RUN - 1) / RUN, 0);
        }
        if (kind == Kind.HADAMARD && part == 1) return (Rule.Fold, (o.length + RUN - 1) / RUN, 0);
        if (part > 1 && part > Programs.numbersPart(kind)) revert Refused();
        return (Rule.Map, 0, 0);
    }

    /// @dev Inputs of the fold of part 0; the largest number where part 0 is a map.
    function _folded(Source memory s, Op memory o) private pure returns (uint256 length) {
        uint256 kind = o.kind;
        if (kind == Kind.NORM || kind == Kind.HADAMARD) return o.made;
        if (kind == Kind.QUANTISE) return _over(o.length, o.groups);
        if (kind == Kind.GATE) return o.length;
        if (kind == Kind.NORMALISE) return _over(o.made, o.groups);
        if (kind == Kind.MATMUL) {
            (length,) = s.matrix(o.tensor);
            return length;
        }
        return type(uint256).max;
    }

    function _over(uint256 a, uint256 b) private pure returns (uint256) {
        if (b == 0) revert Refused();
        return a / b;
    }

    /// @inheritdoc IMicroSteps
    function map(bytes calldata items, Extent calldata extent, Cell calldata cell) external pure returns (int64) {
        Source memory s = Sources.over(items, extent);
        return int64(_map(s, s.op(cell.op), cell));
    }

    function _map(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        uint256 kind = o.kind;
        if (c.part == 0) {
            if (kind == Kind.EMBED) return _embed(s, o.tensor, s.token(c.position), c.column);
            if (kind == Kind.POSITION) return _embed(s, o.tensor, c.position, c.column);
            if (kind == Kind.ROTARY) return _rotary(s, o, c);
            if (kind == Kind.ADD) return _add(s, o, c);
            if (kind == Kind.FIX) return _fixed(s, o.x, o.frac, c.position, o.offset + c.column);
            if (kind == Kind.BIAS) return _bias(s, o, c);
            if (kind == Kind.ACTIVATE) {
                return Values.activation(s, o.tensor, _fixed(s, o.x, 16, c.position, c.column));
            }
            if (kind == Kind.BEND) {
                return Values.bend(s, o.limit, o.capTable, s.numberOf(o.x, c.position, c.column));
            }
        } else if (c.part == 1) {
            if (kind == Kind.NORM) return _normScale(s, c, 0, o.made, o.epsilon);
            if (kind == Kind.QUANTISE) return _quantisedScale(s, o, c);
            if (kind == Kind.MATMUL) return _matmul(s, o, c);
            if (kind == Kind.GATE) return _gate(s, o, c);
            if (kind == Kind.NORMALISE) {
                return _normScale(s, c, (c.column >> 1) * 3 + 1, _over(o.made, o.groups), o.epsilon);
            }
            if (kind == Kind.POOL) {
                int256 sum = s.cell(c.op, 0, c.position, c.column);
                return o.reach == Form.MEAN ? Functions.mean(sum, s.extent.positions) : sum;
            }
        } else if (c.part == 2) {
            if (kind == Kind.QUANTISE) return _quantised(s, o, c);
            if (kind == Kind.NORMALISE) return _normalised(s, o, c);
        }
        revert Refused();
    }

    function _embed(Source memory s, uint256 table, uint256 row, uint256 column) private pure returns (int256) {
        unchecked {
            (, int256 shift) = s.matrix(table);
            int256 w = s.weight(table, row, column);
            int256 m = int256(s.rowScale(table, row));
            return Integers.shiftSat(w * m, shift - int256(s.extent.residualFrac));
        }
    }

    /// @dev A number of a value as fixed point.
    function _fixed(Source memory s, uint256 value, uint256 frac, uint256 position, uint256 column)
        private
        pure
        returns (int256)
    {
        Scale memory unit = Values.scaleOf(s, value, position);
        return unit.toFixed(s.numberOf(value, position, column), frac);
    }

    function _rotary(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        unchecked {
            uint256 half = o.headSize >> 1;
            if (half == 0) revert Refused();
            uint256 i = c.column % o.headSize;
            uint256 pair = i % half;
            uint256 first = o.offset + c.column - i + pair;
            Reader memory x = s.numbers(o.x, c.position);
            int256 a = s.read(x, c.position, first);
            int256 b = s.read(x, c.position, first + half);
            uint256 pos = (c.position * half + pair) * 2;
            if (pos >> 32 != 0) revert Refused();
            int256 cosine = s.entry(o.tensor, pos, -ANGLE_MOST, ANGLE_MOST);
            int256 sine = s.entry(o.tensor, pos + 1, -ANGLE_MOST, ANGLE_MOST);
            return i >= half ? Functions.turned(b, a, cosine, -sine) : Functions.turned(a, b, cosine, sine);
        }
    }

    function _add(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        if (o.form != Form.FIXED) revert Refused();
        int256 y = _fixed(s, o.y, o.madeFrac, c.position, c.column);
        return (s.numberOf(o.x, c.position, c.column) + y).sat32();
    }

    function _bias(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        if (o.form != Form.FIXED) revert Refused();
        int256 v = _fixed(s, o.x, o.madeFrac, c.position, c.column);
        return (s.entry(o.tensor, c.column, -VECTOR_MOST, VECTOR_MOST) + v).sat32();
    }

    /// @dev A norm's scale from two numbers of its measures: the largest, and after it the sum of squares.
    function _normScale(Source memory s, Cell memory c, uint256 column, uint256 n, uint256 epsilon)
        private
        pure
        returns (int256)
    {
        Reader memory measures = s.reader(c.op, 0, c.position);
        uint256 shift = Functions.normalShift(s.read(measures, c.position, column).unsigned32());
        int256 sum = s.read(measures, c.position, column + 1);
        return _half(Functions.normScale(sum, shift, n, epsilon), c.column);
    }

    /// @dev Mantissa or exponent, for an even or odd column.
    function _half(Scale memory unit, uint256 column) private pure returns (int256) {
        return column & 1 == 0 ? int256(unit.mantissa) : unit.exponent;
    }

    function _quantisedScale(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        uint256 largest = Values.largestOf(s, c.op, c.position, c.column >> 1);
        Scale memory unit = Values.scaleOf(s, o.x, c.position);
        return _half(unit.times(Functions.quantisedUnit(largest)), c.column);
    }

    function _quantised(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        uint256 group = _over(c.column, _over(o.length, o.groups));
        uint256 largest = Values.largestOf(s, c.op, c.position, group);
        return Functions.quantise(s.numberOf(o.x, c.position, o.offset + c.column), largest);
    }

    function _matmul(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        (uint256 columns,) = s.matrix(o.tensor);
        int256 acc = s.cell(c.op, 0, c.position, c.column);
        return Functions.rowScaled(acc, s.rowScale(o.tensor, c.column), Integers.bits(columns));
    }

    function _gate(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        int256 g = _fixed(s, o.x, 16, c.position, o.offset + c.column);
        int256 u = s.numberOf(o.x, c.position, o.up + c.column);
        uint256 k = Values.shiftOf(s, c.op, c.position);
        return Functions.gate(Values.activation(s, o.tensor, g), u, k);
    }

    function _normalised(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        unchecked {
            uint256 n = _over(o.made, o.groups);
            uint256 group = _over(c.column, n);
            uint256 i = c.column % n;
            int256 v = s.numberOf(o.x, c.position, group * n + i);
            v = (v - _mean(s, o, c, group, n)).sat32();
            int256 u = s.groupScale(c.op, c.position, group).toFixed(v, NORMAL_FRAC);
            (uint256 kind,,, int256 gainFrac) = s.shape(o.tensor);
            int256 shift = int256(NORMAL_FRAC) + gainFrac - int256(o.frac);
            if (kind != Form.VECTOR || shift < 0 || shift > 62) revert Refused();
            int256 y = (u * s.entry(o.tensor, i, -VECTOR_MOST, VECTOR_MOST)).rsh(uint256(shift)).sat32();
            return o.biased ? (y + s.entry(o.bias, i, -VECTOR_MOST, VECTOR_MOST)).sat32() : y;
        }
    }

    /// @dev What is taken off the numbers of a group before they are normalised.
    function _mean(Source memory s, Op memory o, Cell memory c, uint256 group, uint256 n)
        private
        pure
        returns (int256)
    {
        return o.centred ? Functions.mean(s.cell(c.op, 0, c.position, group * 3), n) : int256(0);
    }

    /// @inheritdoc IMicroSteps
    function fold(bytes calldata items, Extent calldata extent, Cell calldata cell, uint256 run, int64 before)
        external
        pure
        returns (int64)
    {
        Source memory s = Sources.over(items, extent);
        Op memory o = s.op(cell.op);
        uint256 kind = o.kind;
        if (kind == Kind.HADAMARD && cell.part == 1) return int64(_mix(s, o, cell, run, before));
        if (cell.part != 0) revert Refused();
        if (kind == Kind.MATMUL) return int64(_dot(s, o, cell, run, before));
        if (kind == Kind.NORMALISE) return int64(_measure(s, o, cell, run, before));
        if (kind == Kind.POOL) return int64(_pool(s, o, cell, run, before));
        uint256 length = _folded(s, o);
        if (length == type(uint256).max) revert Refused();
        if (kind == Kind.NORM && cell.column != 0) {
            return int64(_squares(s, o, cell, run, before));
        }
        uint256 first;
        if (kind == Kind.QUANTISE) first = o.offset + cell.column * length;
        if (kind == Kind.GATE) first = o.up;
        return int64(_largest(s, o.x, cell.position, first, length, run, before));
    }

    /// @dev The part of `0..length` that a run covers.
    function _run(uint256 run, uint256 length) private pure returns (uint256 from, uint256 to) {
        unchecked {
            from = run * RUN;
            if (from > length) from = length;
            to = from + RUN;
            if (to > length) to = length;
        }
    }

    function _largest(
        Source memory s,
        uint256 x,
        uint256 position,
        uint256 first,
        uint256 length,
        uint256 run,
        int256 acc
    ) private pure returns (int256) {
        unchecked {
            (uint256 i, uint256 to) = _run(run, length);
            if (i == to) return acc;
            Strip memory t = Sources.strip(s.numbers(x, position), position, first + i);
            for (; i < to; ++i) {
                acc = acc.max(int256(s.next(t).size()));
            }
            return acc;
        }
    }

    function _squares(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        unchecked {
            uint256 shift = Values.shiftOf(s, c.op, c.position);
            (uint256 i, uint256 to) = _run(run, o.made);
            if (i == to) return acc;
            Strip memory t = Sources.strip(s.numbers(o.x, c.position), c.position, i);
            for (; i < to; ++i) {
                acc = acc.add64(Functions.square(s.next(t), shift));
            }
            return acc;
        }
    }

    function _dot(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        unchecked {
            (uint256 columns,) = s.matrix(o.tensor);
            (uint256 i, uint256 to) = _run(run, columns);
            if (i == to) return acc;
            Strip memory t = Sources.strip(s.numbers(o.x, c.position), c.position, i);
            // A run is as long as a column tile.
            (uint256 pos, uint256 length) = s.find(Item.weights(o.tensor, c.column, i >> 8));
            if (to - i > length) revert Refused();
            Strip memory w;
            w.pos = pos;
            w.left = length;
            w.width = 1;
            // Products are below 2^38: far from the ends of 64 bits no sum of 256 leaves them.
            if (acc.size() < 1 << 62) return acc + s.dot(w, t, to - i);
            for (; i < to; ++i) {
                acc = acc.add64(s.next(w) * s.next(t));
            }
            return acc;
        }
    }

    function _mix(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        unchecked {
            uint256 k = Values.shiftOf(s, c.op, c.position);
            if (o.length == 0) revert Refused();
            uint256 i = c.column % o.length;
            (uint256 j, uint256 to) = _run(run, o.length);
            if (j == to) return acc;
            Strip memory t = Sources.strip(s.numbers(o.x, c.position), c.position, c.column - i + j);
            for (; j < to; ++j) {
                int256 v = s.next(t).rsh(k);
                acc = acc.add64(_odd(i & j) ? -v : v);
            }
            return acc;
        }
    }

    /// @dev Whether a number below `2^32` has an odd number of ones.
    function _odd(uint256 v) private pure returns (bool) {
        v ^= v >> 16;
        v ^= v >> 8;
        v ^= v >> 4;
        return (0x6996 >> (v & 0xf)) & 1 == 1;
    }

    function _measure(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        unchecked {
            uint256 n = _over(o.made, o.groups);
            uint256 group = c.column / 3;
            uint256 which = c.column % 3;
            uint256 shift;
            if (which == 2) shift = Functions.normalShift(Values.largestOf(s, c.op, c.position, c.column - 1));
            (uint256 i, uint256 to) = _run(run, n);
            if (i == to || (which == 0 && !o.centred)) return acc;
            Strip memory t = Sources.strip(s.numbers(o.x, c.position), c.position, group * n + i);
            int256 mean = which == 0 ? int256(0) : _mean(s, o, c, group, n);
            for (; i < to; ++i) {
                int256 v = s.next(t);
                if (which != 0) v = (v - mean).sat32();
                if (which == 0) acc = acc.add64(v);
                else if (which == 1) acc = acc.max(int256(v.size()));
                else acc = acc.add64(Functions.square(v, shift));
            }
            return acc;
        }
    }

    function _pool(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        uint256 last = s.extent.positions == 0 ? 0 : s.extent.positions - 1;
        bool counts = o.reach == Form.MEAN || run == (o.reach == Form.FIRST ? 0 : last);
        return counts ? acc.add64(s.numberOf(o.x, run, c.column)) : acc;
    }
}
