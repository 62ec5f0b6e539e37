// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Adjudicator, Target} from "./Adjudicator.sol";
import {Choice, Choices} from "./Choices.sol";
import {Context, Contexts} from "./Contexts.sol";
import {Contradiction, Malformed, Trees} from "./Trees.sol";
import {Cursor, Cursors} from "./Cursor.sol";
import {Extent, Sources} from "./Source.sol";
import {Facts, Programs, Spec} from "./Programs.sol";
import {Openings} from "./Openings.sol";
import {Picks} from "./Picks.sol";
import {Reason, Stage, Tree, Walk} from "./Walk.sol";
import {Shape, Shapes} from "./Shapes.sol";

/// @notice Commitments of carried steps, as far as they were found.
/// @param place Place in memory of the first one.
/// @param found How many were.
/// @param leaves Steps of the block.
struct Carried {
    uint256 place;
    uint256 found;
    uint256 leaves;
}

/// @title The rules of a dispute: what a message may be, and where it leads (protocol 10)
/// @notice Holds no state: it says what follows from a state and a message. A message that breaks a rule reverts with `Malformed`,
/// `Contradiction` or `Refused`; that its sender loses by it is for `Disputes` to say.
contract Referee {
    using Contexts for Context;
    using Cursors for Cursor;
    using Shapes for Shape;

    /// Most parts that a step has, as far as its list of roots is read.
    uint256 private constant PARTS_MAX = 8;

    Adjudicator public immutable adjudicator;

    constructor(Adjudicator adjudicator_) {
        adjudicator = adjudicator_;
    }

    /// @notice Where the first claim is awaited.
    /// @param accused Whether the trace is one that an accuser states.
    function begin(uint256 positions, bool accused) external pure returns (Walk memory w) {
        w.stage = Stage.Trace;
        w.accused = accused;
        w.leaves = uint24((positions + 31) / 32);
        w.top = uint8(Trees.height(w.leaves));
    }

    /// @notice The defender says something.
    /// @param w Where the dispute stands.
    /// @param state Hash of the context's hash and of what is known of the node or the number that the dispute walked to.
    /// @return Both after it, and why the defender has won, if it has.
    function claim(Walk memory w, bytes32 state, bytes calldata message)
        external
        view
        returns (Walk memory, bytes32, Reason)
    {
        if (w.stage == Stage.Proof) return (w, state, adjudicator.judge(state, _target(w), message));
        if (w.stage == Stage.Digest) {
            adjudicator.checkDigest(state, w.block_, message);
            return (w, state, Reason.DigestHolds);
        }
        Cursor memory c = Cursors.over(message);
        Reason won;
        if (w.stage == Stage.Trace) state = _trace(w, state, c);
        else if (w.stage == Stage.Steps) state = _steps(w, state, c);
        else if (w.stage == Stage.Part) (state, won) = _part(w, state, c);
        else if (w.stage == Stage.Nodes) state = _nodes(w, state, c);
        else if (w.stage == Stage.Leaf) state = _leaf(w, state, c);
        else revert Malformed();
        if (!c.done()) revert Malformed();
        return (w, state, won);
    }

    /// @notice The challenger picks a number, or shows that what the block carries is not what its steps made. Nodes and parts are picked by
    /// `Picks`.
    /// @return Both after it, and why the challenger has won, if it has.
    function pick(Walk memory w, bytes32 state, bytes calldata message)
        external
        pure
        returns (Walk memory, bytes32, Reason won)
    {
        Cursor memory c = Cursors.over(message);
        if (w.stage == Stage.PickNumber) {
            state = _pickNumber(w, state, c);
        } else if (w.tree == Tree.Steps && (w.stage == Stage.PickNode || w.stage == Stage.PickPart)) {
            _pickCarry(w, state, c);
            won = Reason.Contradiction;
        } else {
            revert Malformed();
        }
        if (!c.done()) revert Malformed();
        return (w, state, won);
    }

    /// @dev The node at the top of what is known, from the picked one, by the way that comes next.
    function _lead(Walk memory w, bytes32 node, Cursor memory c) private pure returns (bytes32) {
        unchecked {
            uint256 next;
            (node, next) = Trees.climb(node, w.index, Picks.leaves(w), w.height, w.top - w.height, c.pos);
            c.jump(next);
            return node;
        }
    }

    function _check(bytes32 context, bytes32 known, bytes32 state) private pure {
        if (Contexts.state(context, known) != state) revert Contradiction();
    }

    /// @dev Begins the walk down a tree whose top is known from now on.
    function _descend(Walk memory w, Tree tree, uint256 leaves) private pure returns (uint256 count) {
        w.tree = tree;
        uint256 height = Trees.height(leaves);
        w.height = uint8(height);
        w.top = uint8(height);
        w.index = 0;
        w.below = uint8(Picks.next(tree, height, height));
        w.stage = tree == Tree.Steps && w.below == 0 ? Stage.PickPart : Stage.PickNode;
        return Trees.nodesAt(leaves, w.below);
    }

    /// @dev The context, the facts of the program, nodes over the carries of all blocks.
    function _trace(Walk memory w, bytes32 state, Cursor memory c) private pure returns (bytes32) {
        (Context memory x, bytes32 context) = Contexts.read(c);
        _check(context, bytes32(0), state);
        Openings.facts(c, x);
        if (x.positions() > x.facts.context) revert Contradiction();
        uint256 count = _descend(w, Tree.Blocks, w.leaves);
        bytes32 top = Trees.leadAt(c.take(32 * count), count);
        bytes32 trace = Trees.seal(w.leaves, top);
        if (w.accused && trace != x.trace) revert Contradiction();
        x.trace = trace;
        return Contexts.state(x.hash(), top);
    }

    /// @dev The context, the carry and its way, nodes over the block's steps.
    function _steps(Walk memory w, bytes32 state, Cursor memory c) private pure returns (bytes32) {
        (Context memory x, bytes32 context) = Contexts.read(c);
        x.carry = c.word();
        _check(context, _lead(w, x.carry, c), state);
        w.leaves = uint24(x.facts.ops + 2);
        uint256 count = _descend(w, Tree.Steps, w.leaves);
        bytes32 top = _claimed(w, c, count);
        x.steps = Trees.seal(w.leaves, top);
        return Contexts.state(x.hash(), top);
    }

    /// @dev The hash of the context, nodes below the picked one, its way.
    function _nodes(Walk memory w, bytes32 state, Cursor memory c) private pure returns (bytes32) {
        bytes32 context = c.word();
        uint256 leaves = Picks.leaves(w);
        uint256 below = Picks.next(w.tree, Trees.height(leaves), w.height);
        (, uint256 count) = Picks.under(leaves, w.height, w.index, below);
        w.below = uint8(below);
        w.stage = w.tree == Tree.Steps && below == 0 ? Stage.PickPart : Stage.PickNode;
        bytes32 node = _claimed(w, c, count);
        _check(context, _lead(w, node, c), state);
        w.top = w.height;
        return Contexts.state(context, node);
    }

    /// @dev The node that claimed ones lead to; steps themselves are claimed by the roots of their parts: how many (1 byte), and these.
    function _claimed(Walk memory w, Cursor memory c, uint256 count) private pure returns (bytes32) {
        unchecked {
            if (w.stage == Stage.PickNode) return Trees.leadAt(c.take(32 * count), count);
            uint256 nodes = Trees.room(count);
            for (uint256 i; i < count; ++i) {
                bytes32 h = _operation(c);
                assembly ("memory-safe") {
                    mstore(add(nodes, shl(5, i)), h)
                }
            }
            return Trees.lead(nodes, count);
        }
    }

    function _operation(Cursor memory c) private pure returns (bytes32) {
        uint256 parts = c.u8();
        if (parts > PARTS_MAX) revert Malformed();
        return Openings.operation(c.take(32 * parts), parts);
    }

    /// @dev The context; the roots of the step's parts as before, their way; the operation as declared, or how the request's tokens are
    /// chosen; nodes over the leaves of the picked part.
    function _part(Walk memory w, bytes32 state, Cursor memory c) private pure returns (bytes32, Reason) {
        unchecked {
            (Context memory x, bytes32 context) = Contexts.read(c);
            uint256 roots = c.pos + 1;
            bytes32 operation = _operation(c);
            uint256 parts = (c.pos - roots) >> 5;
            _check(context, _lead(w, operation, c), state);
            Spec[] memory specs = _specs(x, c, w.step);
            if (specs.length != parts) revert Contradiction();
            if (w.part >= parts) {
                c.jump(c.end);
                return (state, Reason.Malformed);
            }
            (, uint256 first, uint256 end) = Sources.rows(x.extent(), w.step, uint256(w.block_) * 32);
            Shape memory shape = Shapes.inBlock(specs[w.part], end - first, end);
            // No valid operation has more.
            if (shape.columns >> 32 > 1) revert Malformed();
            w.rows = uint8(shape.rows);
            w.columns = uint40(shape.columns);
            w.width = uint8(shape.width);
            w.byColumns = shape.byColumns;
            uint256 leaves = shape.leaves();
            uint256 count = _descend(w, Tree.Part, leaves);
            bytes32 top = Trees.leadAt(c.take(32 * count), count);
            bytes32 root;
            uint256 part = w.part;
            assembly ("memory-safe") {
                root := calldataload(add(roots, shl(5, part)))
            }
            if (Trees.seal(leaves, top) != root) revert Contradiction();
            return (Contexts.state(context, top), Reason.None);
        }
    }

    function _specs(Context memory x, Cursor memory c, uint256 step) private pure returns (Spec[] memory) {
        if (step < x.facts.ops) {
            (uint256 place, uint256 length) = Openings.declaredOp(c, x, step);
            return Programs.parts(Programs.op(place, length));
        }
        (Choice memory choice,,) = Openings.terms(c, x);
        uint256 vocabulary = x.facts.vocabulary;
        return step == x.facts.ops ? Choices.adjusting(choice, vocabulary) : Choices.choosing(choice, vocabulary);
    }

    /// @dev The hash of the context, the bytes of the leaf, its way.
    function _leaf(Walk memory w, bytes32 state, Cursor memory c) private pure returns (bytes32) {
        unchecked {
            bytes32 context = c.word();
            (,, uint256 count) = Picks.shape(w).leafOf(w.index);
            uint256 length = count * w.width;
            uint256 place = c.take(length);
            _check(context, _lead(w, Trees.leaf(place, length), c), state);
            w.stage = Stage.PickNumber;
            return Contexts.state(context, Trees.words(place, length));
        }
    }

    /// @dev The hash of the context; the root over the leaf's words; the place of the number in the leaf (2 bytes); what the accumulator is after
    /// every run (8 bytes each), for a fold.
    function _pickNumber(Walk memory w, bytes32 state, Cursor memory c) private pure returns (bytes32) {
        unchecked {
            bytes32 context = c.word();
            bytes32 words = c.word();
            _check(context, words, state);
            uint256 number = c.big(2);
            (,, uint256 count) = Picks.shape(w).leafOf(w.index);
            uint256 length = c.end - c.pos;
            if (number >= count || length & 7 != 0) revert Malformed();
            uint256 place = c.take(length);
            bytes32 partials;
            uint256 last;
            if (length != 0) {
                partials = Trees.words(place, length);
                assembly ("memory-safe") {
                    last := shr(192, calldataload(sub(add(place, length), 8)))
                }
            }
            w.number = uint8(number);
            w.stage = Stage.Proof;
            return Contexts.state(context, Contexts.said(words, partials, uint32(length >> 3), int64(uint64(last))));
        }
    }

    /// @dev 2 (1 byte), the context, the top of what is known of the steps, the commitments of the carried steps and, wherever there is none of
    /// these below a node, that node: in order. Reverts unless they are under the steps' root and not under the carry.
    function _pickCarry(Walk memory w, bytes32 state, Cursor memory c) private pure {
        unchecked {
            if (c.u8() != 2) revert Malformed();
            (Context memory x, bytes32 context) = Contexts.read(c);
            _check(context, c.word(), state);
            uint256 n = x.facts.carried;
            Carried memory k = Carried(Trees.room(n), 0, w.leaves);
            bytes32 top = _cover(x.facts, c, k, Trees.height(w.leaves), 0);
            if (k.found != n || Trees.seal(w.leaves, top) != x.steps) revert Malformed();
            if (Trees.seal(n, Trees.lead(k.place, n)) == x.carry) revert Malformed();
        }
    }

    /// @dev The node of a height and place, from the next ones.
    function _cover(Facts memory f, Cursor memory c, Carried memory k, uint256 height, uint256 index)
        private
        pure
        returns (bytes32 node)
    {
        unchecked {
            bool none = k.found == f.carried || Programs.carriedOp(f, k.found) >= (index + 1) << height;
            if (none) return c.word();
            if (height == 0) {
                node = c.word();
                uint256 to = k.place + 32 * k.found++;
                assembly ("memory-safe") {
                    mstore(to, node)
                }
                return node;
            }
            node = _cover(f, c, k, height - 1, 2 * index);
            if (2 * index + 1 < Trees.nodesAt(k.leaves, height - 1)) {
                node = Trees.node(node, _cover(f, c, k, height - 1, 2 * index + 1));
            }
        }
    }

    function _target(Walk memory w) private pure returns (Target memory) {
        return Target(w.block_, w.step, w.part, Picks.shape(w), w.index, w.number, !w.accused);
    }
}
