// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Form, Kind, Op} from "./Programs.sol";
import {Functions} from "./Functions.sol";
import {Integers, Refused} from "./Integers.sol";
import {IMicroSteps, Rule} from "./IMicroSteps.sol";
import {Scale, Scales} from "./Scales.sol";
import {Cell, Extent, Reader, Source, Sources, Strip} from "./Source.sol";
import {Values} from "./Values.sol";

/// @title The micro-steps of attention (semantics 6.6, protocol 9.4)
contract AttentionSteps is IMicroSteps {
    using Integers for int256;
    using Scales for Scale;
    using Sources for Source;

    /// Positions of one run of a fold: those of a leaf by columns.
    uint256 private constant RUN = 32;
    int256 private constant LOWEST = type(int64).min;

    uint256 private constant SCORES = 0;
    uint256 private constant MEASURES = 1;
    uint256 private constant WEIGHTS = 2;
    uint256 private constant SUMS = 3;
    uint256 private constant NUMBERS = 4;

    /// @inheritdoc IMicroSteps
    function rule(bytes calldata items, Extent calldata extent, Cell calldata cell)
        external
        pure
        returns (Rule, uint256, int64)
    {
        Source memory s = Sources.over(items, extent);
        Op memory o = _op(s, cell.op);
        if (cell.part > NUMBERS) revert Refused();
        if (cell.part != MEASURES && cell.part != SUMS) return (Rule.Map, 0, 0);
        (, uint256 to) = _seen(s, o, cell.position);
        bool sums = cell.part == SUMS || cell.column % 3 == 2;
        return (Rule.Fold, (to + RUN - 1) / RUN, sums ? int64(0) : int64(LOWEST));
    }

    function _op(Source memory s, uint256 index) private pure returns (Op memory o) {
        o = s.op(index);
        if (o.kind != Kind.ATTEND) revert Refused();
    }

    /// @dev The positions that a token sees.
    function _seen(Source memory s, Op memory o, uint256 position) private pure returns (uint256 from, uint256 to) {
        unchecked {
            if (o.reach == Form.ALL) return (0, s.extent.positions);
            to = position + 1;
            if (o.reach == Form.WINDOW && to > o.window) from = to - o.window;
        }
    }

    /// @dev The KV head of a head.
    function _kv(Op memory o, uint256 head) private pure returns (uint256) {
        return _over(head, _over(o.heads, o.kvHeads));
    }

    function _over(uint256 a, uint256 b) private pure returns (uint256) {
        if (b == 0) revert Refused();
        return a / b;
    }

    /// @inheritdoc IMicroSteps
    function map(bytes calldata items, Extent calldata extent, Cell calldata cell) external pure returns (int64) {
        unchecked {
            Source memory s = Sources.over(items, extent);
            Op memory o = _op(s, cell.op);
            if (cell.part == NUMBERS) return int64(_number(s, o, cell));
            if (cell.part != SCORES && cell.part != WEIGHTS) revert Refused();
            uint256 span = Sources.blockEnd(s.extent, cell.position);
            uint256 head = _over(cell.column, span);
            uint256 j = cell.column % span;
            (uint256 from, uint256 to) = _seen(s, o, cell.position);
            if (j < from || j >= to) return 0;
            if (cell.part == SCORES) return int64(_score(s, o, cell.position, head, j));
            uint256 e = _weight(s, cell, head, j);
            int256 highest = _highest(s.cell(cell.op, MEASURES, cell.position, head * 3 + 1));
            return int64(int256(Functions.valueWeight(e, s.groupScale(o.v, j, _kv(o, head)), highest)));
        }
    }

    function _score(Source memory s, Op memory o, uint256 position, uint256 head, uint256 j)
        private
        pure
        returns (int256)
    {
        unchecked {
            uint256 kv = _kv(o, head);
            int256 dot = _dot(s, o, position, head * o.headSize, j, kv * o.headSize);
            Scale memory query =
                s.groupScale(o.x, position, head).times(Scale(o.scaleMantissa, o.scaleExponent));
            int256 z = Functions.score(dot, s.groupScale(o.y, j, kv), query);
            return o.capped ? Values.bend(s, o.limit, o.capTable, z) : z;
        }
    }

    function _dot(Source memory s, Op memory o, uint256 position, uint256 q, uint256 j, uint256 k)
        private
        pure
        returns (int256)
    {
        unchecked {
            if (o.headSize == 0) return 0;
            Strip memory queries = Sources.strip(s.numbers(o.x, position), position, q);
            Strip memory keys = Sources.strip(s.numbers(o.y, j), j, k);
            return s.dot(queries, keys, o.headSize);
        }
    }

    /// @dev `e_j` of a head.
    function _weight(Source memory s, Cell memory c, uint256 head, uint256 j) private pure returns (uint256) {
        unchecked {
            int256 top = s.cell(c.op, MEASURES, c.position, head * 3);
            uint256 span = Sources.blockEnd(s.extent, c.position);
            int256 z = s.cell(c.op, SCORES, c.position, head * span + j);
            return Functions.exp2Weight((top - z).unsigned32());
        }
    }

    /// @dev A maximum over nothing is 0.
    function _highest(int256 maximum) private pure returns (int256) {
        if (maximum == LOWEST) return 0;
        return maximum > 32_767 ? int256(32_767) : maximum < -32_768 ? -int256(32_768) : maximum;
    }

    function _number(Source memory s, Op memory o, Cell memory c) private pure returns (int256) {
        if (o.form != Form.FIXED) revert Refused();
        uint256 head = _over(c.column, o.headSize);
        int256 highest = _highest(s.cell(c.op, MEASURES, c.position, head * 3 + 1));
        int256 total = s.cell(c.op, MEASURES, c.position, head * 3 + 2);
        int256 sum = s.cell(c.op, SUMS, c.position, c.column);
        return Functions.share(sum, total, highest, o.madeFrac);
    }

    /// @inheritdoc IMicroSteps
    function fold(bytes calldata items, Extent calldata extent, Cell calldata cell, uint256 run, int64 before)
        external
        pure
        returns (int64)
    {
        Source memory s = Sources.over(items, extent);
        Op memory o = _op(s, cell.op);
        if (cell.part == SUMS) return int64(_sum(s, o, cell, run, before));
        if (cell.part != MEASURES) revert Refused();
        uint256 which = cell.column % 3;
        if (which == 1) return int64(_exponents(s, o, cell, run, before));
        return int64(_scores(s, o, cell, run, before));
    }

    /// @dev The positions seen that a run covers: none if the second is not above the first.
    function _run(Source memory s, Op memory o, uint256 position, uint256 run)
        private
        pure
        returns (uint256 from, uint256 to)
    {
        unchecked {
            (uint256 first, uint256 end) = _seen(s, o, position);
            from = run * RUN;
            to = from + RUN;
            if (from < first) from = first;
            if (to > end) to = end;
        }
    }

    /// @dev The largest score, or the sum of the weights.
    function _scores(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        unchecked {
            uint256 head = c.column / 3;
            _kv(o, head);
            (uint256 j, uint256 to) = _run(s, o, c.position, run);
            if (j >= to) return acc;
            bool sums = c.column % 3 == 2;
            uint256 first = head * Sources.blockEnd(s.extent, c.position);
            int256 top = sums ? s.cell(c.op, MEASURES, c.position, head * 3) : int256(0);
            Strip memory scores = Sources.strip(s.reader(c.op, SCORES, c.position), c.position, first + j);
            for (; j < to; ++j) {
                int256 z = s.next(scores);
                if (sums) acc = acc.add64(int256(Functions.exp2Weight((top - z).unsigned32())));
                else acc = acc.max(z);
            }
            return acc;
        }
    }

    /// @dev The highest exponent of the values' scales that are not zero.
    function _exponents(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        unchecked {
            uint256 kv = _kv(o, c.column / 3);
            (uint256 j, uint256 to) = _run(s, o, c.position, run);
            if (j >= to) return acc;
            // Positions of one run lie in one block. Mantissas and exponents stand in two leaves: each reader holds its own.
            Reader memory mantissas = s.reader(o.v, 1, j);
            Reader memory exponents = s.reader(o.v, 1, j);
            for (; j < to; ++j) {
                int256 mantissa = s.read(mantissas, j, 2 * kv);
                int256 exponent = s.read(exponents, j, 2 * kv + 1);
                if (mantissa < 0 || mantissa > 0xffff || exponent != int16(exponent)) revert Refused();
                if (mantissa != 0) acc = acc.max(exponent);
            }
            return acc;
        }
    }

    /// @dev The weighted sum of one number of the values.
    function _sum(Source memory s, Op memory o, Cell memory c, uint256 run, int256 acc)
        private
        pure
        returns (int256)
    {
        unchecked {
            uint256 head = _over(c.column, o.headSize);
            uint256 column = _kv(o, head) * o.headSize + c.column % o.headSize;
            (uint256 j, uint256 to) = _run(s, o, c.position, run);
            if (j >= to) return acc;
            uint256 first = head * Sources.blockEnd(s.extent, c.position);
            Strip memory weights = Sources.strip(s.reader(c.op, WEIGHTS, c.position), c.position, first + j);
            Reader memory values = s.numbers(o.v, j);
            for (; j < to; ++j) {
                acc = acc.add64(s.next(weights) * s.read(values, j, column));
            }
            return acc;
        }
    }
}
