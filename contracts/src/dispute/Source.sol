// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Choice, Choices} from "./Choices.sol";
import {Form, Kind, Op, Programs, Spec} from "./Programs.sol";
import {Refused} from "./Integers.sol";
import {Scale, Scales} from "./Scales.sol";
import {Shape, Shapes} from "./Shapes.sol";

/// @notice What holds for a whole trace.
/// @param ops Operations of the program; the two steps that choose a token follow them.
/// @param tokens Whether the program makes tokens. If not, a sequence is one block, and `hidden`, `logits` and `prompt` say nothing.
/// @param positions Positions executed.
struct Extent {
    uint256 ops;
    uint256 vocabulary;
    uint256 residualFrac;
    bool tokens;
    uint256 hidden;
    uint256 logits;
    uint256 positions;
    uint256 prompt;
}

/// @notice A number of a trace.
struct Cell {
    uint256 op;
    uint256 part;
    uint256 position;
    uint256 column;
}

/// @notice Names of items. An item is its name (32 bytes), its length (32 bytes), its bytes; items stand one after the other.
library Item {
    /// @notice A leaf of a part.
    function leaf(uint256 block_, uint256 step, uint256 part, uint256 index) internal pure returns (uint256) {
        return (1 << 248) | (block_ << 128) | (step << 96) | (part << 64) | index;
    }

    /// @notice An operation as declared, in borsh.
    function op(uint256 index) internal pure returns (uint256) {
        return (2 << 248) | index;
    }

    /// @notice The shape of a tensor: kind (1 byte), two numbers (4 bytes each), shift or fraction bits (2 bytes).
    function shape(uint256 tensor) internal pure returns (uint256) {
        return (3 << 248) | tensor;
    }

    /// @notice Up to 256 weights of a row.
    function weights(uint256 tensor, uint256 row, uint256 columnTile) internal pure returns (uint256) {
        return (4 << 248) | (tensor << 64) | (row << 32) | columnTile;
    }

    /// @notice Up to 128 row scales, 2 bytes each.
    function scales(uint256 tensor, uint256 index) internal pure returns (uint256) {
        return (5 << 248) | (tensor << 64) | index;
    }

    /// @notice Up to 64 numbers of 4 bytes, or 128 angles of 2.
    function run(uint256 tensor, uint256 index) internal pure returns (uint256) {
        return (6 << 248) | (tensor << 64) | index;
    }

    /// @notice Up to 64 token ids, 4 bytes each; leaf 0 has the first ones of the prompt.
    function ids(uint256 index) internal pure returns (uint256) {
        return (7 << 248) | index;
    }

    /// @notice How tokens are chosen: whether a guide leaves only some (1 byte), the sampler's seed (32 bytes), sampling parameters in borsh.
    function choice() internal pure returns (uint256) {
        return 8 << 248;
    }
}

/// @notice Where a micro-step reads: items in calldata, from `pos` to `end`.
struct Source {
    uint256 pos;
    uint256 end;
    Extent extent;
    /// How tokens are chosen, once it has been read.
    bool known;
    Choice choice;
}

/// @notice The numbers of one part in one block, with the leaf that was read last.
struct Reader {
    uint256 op;
    uint256 part;
    uint256 block_;
    /// Position of the first row.
    uint256 first;
    Shape shape;
    /// One more than the index of the leaf that was read last.
    uint256 held;
    uint256 pos;
    uint256 length;
}

/// @notice Numbers of one row of a part, one column after the other.
struct Strip {
    /// Where the next one stands, and how many follow it in its leaf, itself included.
    uint256 pos;
    uint256 left;
    uint256 width;
    /// The column after those in the leaf.
    uint256 column;
    uint256 position;
    Reader reader;
}

/// @title Reading what was opened
/// @notice Whatever is not there reverts with `Refused`: it is for the opener to have opened it.
library Sources {
    using Choices for Choice;
    using Programs for Op;
    using Shapes for Shape;
    using Sources for Source;

    uint256 internal constant BLOCK = 32;

    /// @notice Over items in calldata.
    function over(bytes calldata items, Extent calldata extent) internal pure returns (Source memory s) {
        assembly ("memory-safe") {
            mstore(s, items.offset)
            mstore(add(s, 32), add(items.offset, items.length))
        }
        s.extent = extent;
    }

    /// @notice Place and length of an item.
    function find(Source memory s, uint256 name) internal pure returns (uint256 pos, uint256 length) {
        assembly ("memory-safe") {
            let p := mload(s)
            let end := mload(add(s, 32))
            for {} lt(p, end) {} {
                length := calldataload(add(p, 32))
                if eq(calldataload(p), name) {
                    pos := add(p, 64)
                    break
                }
                p := add(add(p, 64), length)
            }
        }
        if (pos == 0) revert Refused();
    }

    /// @notice An operation.
    function op(Source memory s, uint256 index) internal pure returns (Op memory) {
        (uint256 pos, uint256 length) = s.find(Item.op(index));
        return Programs.op(pos, length);
    }

    /// @notice How tokens are chosen.
    function chosen(Source memory s) internal pure returns (Choice memory) {
        if (!s.known) {
            (uint256 pos, uint256 length) = s.find(Item.choice());
            unchecked {
                if (length < 33) revert Refused();
                s.choice = Choices.sampling(pos + 33, length - 33);
            }
            bytes32 seed;
            uint256 guided;
            assembly ("memory-safe") {
                guided := byte(0, calldataload(pos))
                seed := calldataload(add(pos, 1))
            }
            s.choice.guided = guided == 1;
            s.choice.seed = seed;
            s.known = true;
        }
        return s.choice;
    }

    /// @notice A tensor's shape.
    function shape(Source memory s, uint256 tensor)
        internal
        pure
        returns (uint256 kind, uint256 a, uint256 b, int256 detail)
    {
        (uint256 pos,) = s.find(Item.shape(tensor));
        uint256 w;
        assembly ("memory-safe") {
            w := calldataload(pos)
        }
        return (w >> 248, uint32(w >> 216), uint32(w >> 184), int16(uint16(w >> 168)));
    }

    /// @notice Columns and shift of a matrix.
    function matrix(Source memory s, uint256 tensor) internal pure returns (uint256 columns, int256 shift) {
        uint256 kind;
        (kind,, columns, shift) = s.shape(tensor);
        if (kind != Form.MATRIX) revert Refused();
    }

    /// @notice A weight.
    function weight(Source memory s, uint256 tensor, uint256 row, uint256 column) internal pure returns (int256) {
        (uint256 pos, uint256 length) = s.find(Item.weights(tensor, row, column >> 8));
        return number(pos, length, 1, column & 255);
    }

    /// @notice The scale of a row.
    function rowScale(Source memory s, uint256 tensor, uint256 row) internal pure returns (uint256) {
        (uint256 pos, uint256 length) = s.find(Item.scales(tensor, row >> 7));
        return uint256(number(pos, length, 2, row & 127)) & 0xffff;
    }

    /// @notice An entry of a table or a vector that is within `-most` and `most`.
    function entry(Source memory s, uint256 tensor, uint256 index, int256 least, int256 most)
        internal
        pure
        returns (int256 v)
    {
        (uint256 kind,,,) = s.shape(tensor);
        if (kind == Form.ROTARY) {
            (uint256 pos, uint256 length) = s.find(Item.run(tensor, index >> 7));
            v = number(pos, length, 2, index & 127);
        } else {
            (uint256 pos, uint256 length) = s.find(Item.run(tensor, index >> 6));
            v = number(pos, length, 4, index & 63);
        }
        if (v < least || v > most) revert Refused();
    }

    /// @notice The token at a position.
    function token(Source memory s, uint256 position) internal pure returns (uint256) {
        unchecked {
            uint256 prompt = s.extent.prompt;
            uint256 leaf;
            if (position < prompt) {
                leaf = position >> 6;
            } else {
                leaf = (prompt + 63) >> 6;
                position -= prompt;
                leaf += position >> 6;
            }
            (uint256 pos, uint256 length) = s.find(Item.ids(leaf));
            return uint256(number(pos, length, 4, position & 63)) & 0xffffffff;
        }
    }

    /// @notice Number `i` of `width` bytes in `length` bytes in calldata, in two's complement.
    function number(uint256 pos, uint256 length, uint256 width, uint256 i) internal pure returns (int256 v) {
        unchecked {
            if ((i + 1) * width > length) revert Refused();
        }
        assembly ("memory-safe") {
            v := sar(sub(256, shl(3, width)), calldataload(add(pos, mul(i, width))))
        }
    }

    /// @notice The part of a step in the block of a position.
    function reader(Source memory s, uint256 step, uint256 part, uint256 position)
        internal
        pure
        returns (Reader memory)
    {
        return _reader(s, step, part, position, s.specs(step));
    }

    /// @notice The parts of a step.
    function specs(Source memory s, uint256 step) internal pure returns (Spec[] memory) {
        unchecked {
            Extent memory e = s.extent;
            if (step < e.ops) return s.op(step).parts();
            if (step == e.ops) return s.chosen().adjusting(e.vocabulary);
            if (step == e.ops + 1) return s.chosen().choosing(e.vocabulary);
            revert Refused();
        }
    }

    function _reader(Source memory s, uint256 step, uint256 part, uint256 position, Spec[] memory all)
        private
        pure
        returns (Reader memory r)
    {
        if (part >= all.length) revert Refused();
        r.op = step;
        r.part = part;
        uint256 first;
        uint256 end;
        (r.block_, first, end) = rows(s.extent, step, position);
        r.first = first;
        unchecked {
            r.shape = Shapes.inBlock(all[part], end - first, end);
        }
    }

    /// @notice The block of a position, and the first position and the end of the rows that a step has in it.
    function rows(Extent memory e, uint256 step, uint256 position)
        internal
        pure
        returns (uint256 block_, uint256 first, uint256 end)
    {
        unchecked {
            if (!e.tokens) return (0, 0, e.positions);
            block_ = position / BLOCK;
            end = blockEnd(e, position);
            first = block_ * BLOCK;
            if (first > e.positions) first = e.positions;
            if (step > e.hidden) {
                uint256 from = e.prompt == 0 ? 0 : e.prompt - 1;
                if (from > first) first = from;
                if (first > end) first = end;
            }
        }
    }

    /// @notice End of the block that a position lies in.
    function blockEnd(Extent memory e, uint256 position) internal pure returns (uint256 end) {
        unchecked {
            if (!e.tokens) return e.positions;
            end = (position / BLOCK + 1) * BLOCK;
            if (end > e.positions) end = e.positions;
        }
    }

    /// @notice A number of a part, at a position of the reader's block.
    function read(Source memory s, Reader memory r, uint256 position, uint256 column)
        internal
        pure
        returns (int256)
    {
        unchecked {
            Shape memory form = r.shape;
            uint256 row = position - r.first;
            if (position < r.first || row >= form.rows || column >= form.columns || column >> 32 != 0) {
                revert Refused();
            }
            (uint256 leaf, uint256 pos) = form.place(row, column);
            if (r.held != leaf + 1) {
                (r.pos, r.length) = s.find(Item.leaf(r.block_, r.op, r.part, leaf));
                r.held = leaf + 1;
            }
            return number(r.pos, r.length, form.width, pos);
        }
    }

    /// @notice The numbers of a row from a column on.
    function strip(Reader memory r, uint256 position, uint256 column) internal pure returns (Strip memory t) {
        t.width = r.shape.width;
        t.column = column;
        t.position = position;
        t.reader = r;
    }

    /// @notice The next number of a row.
    function next(Source memory s, Strip memory t) internal pure returns (int256 v) {
        if (t.left == 0) _refill(s, t);
        assembly ("memory-safe") {
            let pos := mload(t)
            let width := mload(add(t, 64))
            v := sar(sub(256, shl(3, width)), calldataload(pos))
            mstore(t, add(pos, width))
            mstore(add(t, 32), sub(mload(add(t, 32)), 1))
        }
    }

    /// @notice The sum of the products of the next `n` numbers of two rows.
    function dot(Source memory s, Strip memory a, Strip memory b, uint256 n) internal pure returns (int256 sum) {
        unchecked {
            while (n != 0) {
                if (a.left == 0) _refill(s, a);
                if (b.left == 0) _refill(s, b);
                uint256 count = a.left < b.left ? a.left : b.left;
                if (count > n) count = n;
                assembly ("memory-safe") {
                    let wideA := mload(add(a, 64))
                    let wideB := mload(add(b, 64))
                    let shiftA := sub(256, shl(3, wideA))
                    let shiftB := sub(256, shl(3, wideB))
                    let p := mload(a)
                    let q := mload(b)
                    let end := add(p, mul(count, wideA))
                    for {} lt(p, end) {} {
                        sum := add(sum, mul(sar(shiftA, calldataload(p)), sar(shiftB, calldataload(q))))
                        p := add(p, wideA)
                        q := add(q, wideB)
                    }
                    mstore(a, p)
                    mstore(b, q)
                }
                a.left -= count;
                b.left -= count;
                n -= count;
            }
        }
    }

    function _refill(Source memory s, Strip memory t) private pure {
        unchecked {
            Reader memory r = t.reader;
            uint256 column = t.column;
            s.read(r, t.position, column);
            Shape memory form = r.shape;
            (, uint256 i) = form.place(t.position - r.first, column);
            uint256 band = form.band();
            uint256 left = form.byColumns ? form.wide(column - column % band) - column % band : form.columns - column;
            if (!form.byColumns && left > 256 - i) left = 256 - i;
            // A leaf that is too short is refused where it ends.
            uint256 held = r.length / t.width - i;
            t.left = left < held ? left : held;
            t.pos = r.pos + i * t.width;
            t.column = column + t.left;
        }
    }

    /// @notice A number of any part.
    function cell(Source memory s, uint256 step, uint256 part, uint256 position, uint256 column)
        internal
        pure
        returns (int256)
    {
        return s.read(s.reader(step, part, position), position, column);
    }

    /// @notice The numbers of a value in the block of a position. A norm's are its input's.
    function numbers(Source memory s, uint256 value, uint256 position) internal pure returns (Reader memory) {
        Op memory o = s.op(value);
        while (o.kind == Kind.NORM) {
            if (o.x >= value) revert Refused();
            value = o.x;
            o = s.op(value);
        }
        return _reader(s, value, Programs.numbersPart(o.kind), position, o.parts());
    }

    /// @notice One of a value's numbers.
    function numberOf(Source memory s, uint256 value, uint256 position, uint256 column)
        internal
        pure
        returns (int256)
    {
        return s.read(s.numbers(value, position), position, column);
    }

    /// @notice The scale in columns `2 · group` and the one after it.
    function scaleIn(Source memory s, Reader memory r, uint256 position, uint256 group)
        internal
        pure
        returns (Scale memory)
    {
        unchecked {
            int256 mantissa = s.read(r, position, 2 * group);
            int256 exponent = s.read(r, position, 2 * group + 1);
            if (mantissa < 0 || mantissa > 0xffff || exponent != int16(exponent)) revert Refused();
            return Scale(uint256(mantissa), exponent);
        }
    }

    /// @notice The scale of a group of an int8 value: in its part 1.
    function groupScale(Source memory s, uint256 value, uint256 position, uint256 group)
        internal
        pure
        returns (Scale memory)
    {
        return s.scaleIn(s.reader(value, 1, position), position, group);
    }
}
