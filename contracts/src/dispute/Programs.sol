// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Cursor, Cursors} from "./Cursor.sol";
import {Refused} from "./Integers.sol";

/// @notice The kinds of operations, as protocol 3 numbers them.
library Kind {
    uint256 internal constant EMBED = 0;
    uint256 internal constant NORM = 1;
    uint256 internal constant QUANTISE = 2;
    uint256 internal constant MATMUL = 3;
    uint256 internal constant ROTARY = 4;
    uint256 internal constant ATTEND = 5;
    uint256 internal constant GATE = 6;
    uint256 internal constant ADD = 7;
    uint256 internal constant FIX = 8;
    uint256 internal constant POSITION = 9;
    uint256 internal constant BIAS = 10;
    uint256 internal constant NORMALISE = 11;
    uint256 internal constant ACTIVATE = 12;
    uint256 internal constant HADAMARD = 13;
    uint256 internal constant BEND = 14;
    uint256 internal constant POOL = 15;
}

/// @notice The kinds of types, of tensors and of reaches, likewise.
library Form {
    uint256 internal constant FIXED = 0;
    uint256 internal constant INTEGERS = 1;
    uint256 internal constant INT8 = 2;

    uint256 internal constant MATRIX = 0;
    uint256 internal constant TABLE = 1;
    uint256 internal constant ROTARY = 2;
    uint256 internal constant VECTOR = 3;

    uint256 internal constant PAST = 0;
    uint256 internal constant WINDOW = 1;
    uint256 internal constant ALL = 2;

    uint256 internal constant FIRST = 0;
    uint256 internal constant MEAN = 1;
    uint256 internal constant LAST = 2;
}

/// @notice An operation as a model root declares it. Fields that its kind does not have are zero.
struct Op {
    uint256 kind;
    /// Type of its value.
    uint256 form;
    uint256 made;
    /// Fraction bits of a fixed-point value.
    uint256 madeFrac;
    /// Groups of an int8 value; 1 of others.
    uint256 madeGroups;
    /// Whether attention reads its value as values.
    bool attended;
    /// Values read: `x`, or `q`.
    uint256 x;
    /// `y`, or `k`.
    uint256 y;
    /// `v` of attention.
    uint256 v;
    /// The tensor: weights, table, gain or bias.
    uint256 tensor;
    uint256 offset;
    uint256 length;
    uint256 groups;
    uint256 heads;
    uint256 kvHeads;
    uint256 headSize;
    uint256 reach;
    uint256 window;
    uint256 scaleMantissa;
    int256 scaleExponent;
    bool capped;
    uint256 limit;
    uint256 capTable;
    uint256 frac;
    uint256 epsilon;
    bool centred;
    bool biased;
    uint256 bias;
    uint256 up;
}

/// @notice A part: numbers of a row, whether these are for each position up to the end of the block, bytes of a number, whether leaves go
/// by columns.
struct Spec {
    uint256 columns;
    bool perPosition;
    uint256 width;
    bool byColumns;
}

/// @notice What holds for a whole program that makes tokens.
struct Facts {
    uint256 context;
    uint256 vocabulary;
    uint256 residualFrac;
    uint256 hidden;
    uint256 logits;
    uint256 ops;
    /// How many operations are carried, and where in calldata their list begins: 2 bytes each, little-endian.
    uint256 carried;
    uint256 carriedAt;
}

/// @title Statements of a program: reading their borsh, and the parts of operations (protocol 3, 9.4)
library Programs {
    using Cursors for Cursor;

    uint256 internal constant CONTEXT_MAX = 131_072;
    uint256 internal constant VOCABULARY_MAX = 1 << 20;

    /// @notice The facts of a program. Reverts with `Refused` for other bytes, and for a program that makes no tokens or has a larger context
    /// or vocabulary than any valid one.
    function facts(uint256 pos, uint256 length) internal pure returns (Facts memory f) {
        unchecked {
            Cursor memory c = Cursor(pos, pos + length);
            f.context = c.little32();
            f.vocabulary = c.little32();
            f.residualFrac = c.u8();
            if (c.u8() != 0 || f.context > CONTEXT_MAX || f.vocabulary > VOCABULARY_MAX) revert Refused();
            f.hidden = c.little16();
            f.logits = c.little16();
            f.ops = c.little16();
            f.carried = c.little32();
            f.carriedAt = c.take(2 * f.carried);
            if (!c.done()) revert Refused();
        }
    }

    /// @notice The `i`-th carried operation.
    function carriedOp(Facts memory f, uint256 i) internal pure returns (uint256 step) {
        unchecked {
            uint256 pos = f.carriedAt + 2 * i;
            assembly ("memory-safe") {
                step := calldataload(pos)
            }
            return (step >> 248) | ((step >> 232) & 0xff00);
        }
    }

    /// @notice Where operation `step`, or the first one after it, stands in the list of those carried.
    function carriedPlace(Facts memory f, uint256 step) internal pure returns (uint256 low) {
        unchecked {
            uint256 high = f.carried;
            while (low < high) {
                uint256 middle = (low + high) >> 1;
                if (carriedOp(f, middle) < step) low = middle + 1;
                else high = middle;
            }
        }
    }

    /// @notice The shape in a tensor's declaration: kind, two numbers, and the shift of a matrix or the fraction bits of a vector. Its name is
    /// passed over. Reverts with `Refused` for other bytes.
    function tensor(uint256 pos, uint256 length)
        internal
        pure
        returns (uint256 kind, uint256 a, uint256 b, int256 detail)
    {
        unchecked {
            Cursor memory c = Cursor(pos, pos + length);
            c.take(c.little32());
            kind = c.u8();
            if (kind == Form.MATRIX) {
                a = c.little32();
                b = c.little32();
                detail = int16(uint16(c.little16()));
            } else if (kind == Form.ROTARY) {
                a = c.little32();
                b = c.little32();
            } else if (kind == Form.VECTOR) {
                a = c.little32();
                detail = int256(c.u8());
            } else if (kind != Form.TABLE) {
                revert Refused();
            }
            if (!c.done()) revert Refused();
        }
    }

    /// @notice An operation as declared. Reverts with `Refused` for other bytes.
    function op(uint256 pos, uint256 length) internal pure returns (Op memory o) {
        unchecked {
            Cursor memory c = Cursor(pos, pos + length);
            uint256 kind = c.u8();
            o.kind = kind;
            if (kind == Kind.EMBED || kind == Kind.POSITION) {
                o.tensor = c.little16();
            } else if (kind == Kind.NORM) {
                o.x = c.little16();
                o.epsilon = c.little64();
            } else if (kind == Kind.QUANTISE) {
                o.x = c.little16();
                o.offset = c.little32();
                o.length = c.little32();
                o.groups = c.little32();
            } else if (kind == Kind.MATMUL) {
                o.tensor = c.little16();
                o.x = c.little16();
            } else if (kind == Kind.ROTARY) {
                o.x = c.little16();
                o.offset = c.little32();
                o.heads = c.little32();
                o.headSize = c.little32();
                o.tensor = c.little16();
            } else if (kind == Kind.ATTEND) {
                _attend(o, c);
            } else if (kind == Kind.GATE) {
                o.x = c.little16();
                o.offset = c.little32();
                o.up = c.little32();
                o.length = c.little32();
                o.tensor = c.little16();
            } else if (kind == Kind.ADD) {
                o.x = c.little16();
                o.y = c.little16();
            } else if (kind == Kind.FIX) {
                o.x = c.little16();
                o.offset = c.little32();
                o.length = c.little32();
                o.frac = c.u8();
            } else if (kind == Kind.BIAS || kind == Kind.ACTIVATE) {
                o.x = c.little16();
                o.tensor = c.little16();
            } else if (kind == Kind.NORMALISE) {
                o.x = c.little16();
                o.groups = c.little32();
                o.centred = c.flag();
                o.epsilon = c.little64();
                o.tensor = c.little16();
                o.biased = c.flag();
                if (o.biased) o.bias = c.little16();
                o.frac = c.u8();
            } else if (kind == Kind.HADAMARD) {
                o.x = c.little16();
                o.length = c.little32();
            } else if (kind == Kind.BEND) {
                o.x = c.little16();
                o.limit = c.little32();
                o.capTable = c.little16();
            } else if (kind == Kind.POOL) {
                o.x = c.little16();
                o.reach = c.u8();
                if (o.reach > Form.LAST) revert Refused();
            } else {
                revert Refused();
            }
            _made(o, c);
        }
    }

    function _attend(Op memory o, Cursor memory c) private pure {
        o.x = c.little16();
        o.y = c.little16();
        o.v = c.little16();
        c.take(2);
        o.reach = c.u8();
        if (o.reach > Form.ALL) revert Refused();
        if (o.reach == Form.WINDOW) o.window = c.little32();
        o.heads = c.little32();
        o.kvHeads = c.little32();
        o.headSize = c.little32();
        o.scaleMantissa = c.little16();
        o.scaleExponent = int16(uint16(c.little16()));
        o.capped = c.flag();
        if (o.capped) {
            o.limit = c.little32();
            o.capTable = c.little16();
        }
        o.frac = c.u8();
    }

    function _made(Op memory o, Cursor memory c) private pure {
        o.form = c.u8();
        if (o.form > Form.INT8) revert Refused();
        o.made = c.little32();
        o.madeGroups = 1;
        if (o.form == Form.FIXED) o.madeFrac = c.u8();
        if (o.form == Form.INT8) o.madeGroups = c.little32();
        o.attended = c.flag();
        if (!c.done()) revert Refused();
    }

    /// @notice The part that holds an operation's numbers; a norm's are its input's.
    function numbersPart(uint256 kind) internal pure returns (uint256) {
        if (kind == Kind.ATTEND) return 4;
        if (kind == Kind.QUANTISE || kind == Kind.NORMALISE) return 2;
        if (kind == Kind.MATMUL || kind == Kind.GATE || kind == Kind.HADAMARD || kind == Kind.POOL) return 1;
        return 0;
    }

    /// @notice The parts of an operation.
    function parts(Op memory o) internal pure returns (Spec[] memory all) {
        unchecked {
            Spec memory numbers = Spec(o.made, false, 4, false);
            uint256 kind = o.kind;
            if (kind == Kind.NORM) {
                all = new Spec[](2);
                all[0] = Spec(2, false, 8, true);
                all[1] = Spec(2, false, 4, true);
            } else if (kind == Kind.QUANTISE) {
                all = new Spec[](3);
                all[0] = Spec(o.madeGroups, false, 8, true);
                all[1] = Spec(_saturated(2 * o.madeGroups), false, 4, true);
                all[2] = Spec(o.made, false, 1, o.attended);
            } else if (kind == Kind.MATMUL) {
                all = new Spec[](2);
                all[0] = numbers;
                all[1] = numbers;
            } else if (kind == Kind.GATE || kind == Kind.HADAMARD) {
                all = new Spec[](2);
                all[0] = Spec(1, false, 8, true);
                all[1] = numbers;
            } else if (kind == Kind.NORMALISE) {
                all = new Spec[](3);
                all[0] = Spec(_saturated(3 * o.groups), false, 8, true);
                all[1] = Spec(_saturated(2 * o.groups), false, 4, true);
                all[2] = numbers;
            } else if (kind == Kind.ATTEND) {
                all = new Spec[](5);
                all[0] = Spec(o.heads, true, 4, false);
                all[1] = Spec(_saturated(3 * o.heads), false, 8, true);
                all[2] = all[0];
                all[3] = Spec(o.made, false, 8, false);
                all[4] = numbers;
            } else if (kind == Kind.POOL) {
                all = new Spec[](2);
                all[0] = Spec(o.made, false, 8, false);
                all[1] = numbers;
            } else {
                all = new Spec[](1);
                all[0] = numbers;
            }
        }
    }

    function _saturated(uint256 v) private pure returns (uint256) {
        return v > type(uint32).max ? type(uint32).max : v;
    }
}
