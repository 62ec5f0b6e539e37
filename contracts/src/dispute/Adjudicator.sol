// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Context, Contexts} from "./Contexts.sol";
import {Contradiction, Malformed, Trees} from "./Trees.sol";
import {Cursor, Cursors} from "./Cursor.sol";
import {IMicroSteps, Rule} from "./IMicroSteps.sol";
import {Choices} from "./Choices.sol";
import {Kind, Programs} from "./Programs.sol";
import {Opened, Openings} from "./Openings.sol";
import {Refused} from "./Integers.sol";
import {Cell, Extent, Item, Sources} from "./Source.sol";
import {Shape, Shapes} from "./Shapes.sol";
import {Reason} from "./Walk.sol";

/// @notice The number that a dispute walked to.
/// @param shape Of its part in the disputed block.
/// @param leaf Index of its leaf.
/// @param number Its place in the leaf.
/// @param answered Whether a chosen token must be the transcript's.
struct Target {
    uint256 block_;
    uint256 step;
    uint256 part;
    Shape shape;
    uint256 leaf;
    uint256 number;
    bool answered;
}

/// @title The last step: what was opened, and what follows from it (protocol 10.4, 10.5)
/// @notice Holds no state and calls nobody but the contracts of micro-steps. A proof that is not one reverts with `Refused`,
/// `Contradiction` or `Malformed`: its sender has shown nothing.
contract Adjudicator {
    using Contexts for Context;
    using Cursors for Cursor;
    using Openings for Opened;
    using Shapes for Shape;

    IMicroSteps public immutable operations;
    IMicroSteps public immutable attention;
    IMicroSteps public immutable sampling;

    constructor(IMicroSteps operations_, IMicroSteps attention_, IMicroSteps sampling_) {
        operations = operations_;
        attention = attention_;
        sampling = sampling_;
    }

    /// @dev What the parties said of the number.
    struct Said {
        int256 claimed;
        uint256 runs;
        int256 last;
        uint256 run;
        int256 before;
        int256 after_;
    }

    /// @notice Who is right about a number, and why: `StepHolds`, or `PartialsFail` or `Malformed` of the challenger. The defender has shown
    /// nothing if this reverts with `StepFails`' reasons.
    /// @param message The context; the word of the leaf that the number stands in, its way; root (32 bytes), number (4) and
    /// last (8) of the challenger's accumulators; where there are some, the run that does not follow (4), the word that its
    /// accumulator stands in, its way, and unless it is the first run the same for the one before; openings.
    function judge(bytes32 state, Target calldata target, bytes calldata message) external view returns (Reason) {
        Cursor memory c = Cursors.over(message);
        (Context memory x, bytes32 context) = Contexts.read(c);
        Said memory t;
        {
            bytes32 known;
            (t, known) = _said(c, target);
            if (Contexts.state(context, known) != state) revert Contradiction();
        }
        // The accumulators must lead elsewhere.
        if (t.runs != 0 && t.last == t.claimed) return Reason.Malformed;
        return _judge(c, x, target, t);
    }

    function _said(Cursor memory c, Target calldata target) private pure returns (Said memory t, bytes32 known) {
        unchecked {
            Shape memory shape = target.shape;
            (,, uint256 count) = shape.leafOf(target.leaf);
            uint256 width = shape.width;
            bytes32 numbers;
            (t.claimed, numbers) = _worded(c, target.number * width, width, count * width);
            bytes32 partials = c.word();
            t.runs = c.big(4);
            t.last = int64(uint64(c.big(8)));
            known = Contexts.said(numbers, partials, uint32(t.runs), int64(t.last));
            if (t.runs == 0) return (t, known);
            t.run = c.big(4);
            if (t.run >= t.runs) revert Refused();
            bytes32 root;
            (t.after_, root) = _worded(c, 8 * t.run, 8, 8 * t.runs);
            if (root != partials) revert Contradiction();
            if (t.run == 0) return (t, known);
            (t.before, root) = _worded(c, 8 * (t.run - 1), 8, 8 * t.runs);
            if (root != partials) revert Contradiction();
        }
    }

    /// @dev The number of `width` bytes at byte `offset` of `length` bytes that stand under the root in words.
    function _worded(Cursor memory c, uint256 offset, uint256 width, uint256 length)
        private
        pure
        returns (int256 v, bytes32 root)
    {
        unchecked {
            uint256 index = offset >> 5;
            uint256 rest = length - (index << 5);
            if (rest > 32) rest = 32;
            uint256 place = c.take(rest);
            root = Openings.under(c, Trees.leaf(place, rest), index, (length + 31) >> 5);
            v = Sources.number(place, rest, width, (offset & 31) / width);
        }
    }

    function _judge(Cursor memory c, Context memory x, Target calldata target, Said memory t)
        private
        view
        returns (Reason)
    {
        Opened memory o = Openings.read(c, x, target.block_);
        Extent memory e = x.extent();
        Cell memory cell = _cell(e, target);
        bytes memory items = o.items();
        IMicroSteps steps = _steps(o, e, cell.op);
        (Rule rule, uint256 runs, int64 from) = steps.rule(items, e, cell);
        // What a contract cannot compute is no matter for it.
        if (rule == Rule.Given) return Reason.Malformed;
        if (rule == Rule.Fold) {
            if (t.runs != runs) return Reason.Malformed;
            int256 before = t.run == 0 ? int256(from) : t.before;
            if (runs == 0 || steps.fold(items, e, cell, t.run, int64(before)) == t.after_) revert Refused();
            return Reason.PartialsFail;
        }
        if (t.runs != 0) return Reason.Malformed;
        if (steps.map(items, e, cell) != t.claimed) revert Refused();
        bool chosen = target.answered && cell.op == e.ops + 1 && cell.part == Choices.CHOSEN;
        if (chosen && _answer(o, e, cell.position) != t.claimed) revert Refused();
        return Reason.StepHolds;
    }

    function _cell(Extent memory e, Target calldata target) private pure returns (Cell memory cell) {
        unchecked {
            (, uint256 first,) = Sources.rows(e, target.step, target.block_ * 32);
            (uint256 row, uint256 column) = Shapes.cell(target.shape, target.leaf, target.number);
            return Cell(target.step, target.part, first + row, column);
        }
    }

    function _steps(Opened memory o, Extent memory e, uint256 op) private view returns (IMicroSteps) {
        if (op >= e.ops) return sampling;
        (uint256 place,) = o.find(Item.op(op));
        uint256 kind;
        assembly ("memory-safe") {
            kind := byte(0, calldataload(place))
        }
        return kind == Kind.ATTEND ? attention : operations;
    }

    /// @dev The token of the answer that is chosen at a position.
    function _answer(Opened memory o, Extent memory e, uint256 position) private pure returns (int256) {
        unchecked {
            if (position + 1 < e.prompt) revert Refused();
            uint256 index = position + 1 - e.prompt;
            (uint256 place, uint256 length) = o.find(Item.ids(((e.prompt + 63) >> 6) + (index >> 6)));
            return int256(uint256(Sources.number(place, length, 4, index & 63)) & 0xffffffff);
        }
    }

    /// @notice Reverts unless a block's hidden vectors are those of its digest.
    /// @param message The context; the top of the nodes over the blocks; the roots of the three parts of the hidden vector; their way under the
    /// carry; the carry's way; the way of the digest.
    function checkDigest(bytes32 state, uint256 block_, bytes calldata message) external pure {
        Cursor memory c = Cursors.over(message);
        (Context memory x, bytes32 context) = Contexts.read(c);
        if (Contexts.state(context, c.word()) != state) revert Contradiction();
        uint256 roots = c.take(96);
        if (Openings.carried(c, x, Openings.operation(roots, 3), x.facts.hidden, block_) != x.trace) revert Contradiction();
        bytes32 scales;
        bytes32 numbers;
        assembly ("memory-safe") {
            scales := calldataload(add(roots, 32))
            numbers := calldataload(add(roots, 64))
        }
        bytes32 digest = keccak256(abi.encodePacked("assay/digest/1", uint64(block_), scales, numbers));
        bytes32 leaf = Trees.leaf(abi.encodePacked(digest));
        if (Openings.under(c, leaf, block_, x.blocks()) != x.digests) revert Contradiction();
        if (!c.done()) revert Malformed();
    }
}
