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

/// @title The rules of a dispute: what a message may be, and where it leads (protocol 10)
/// @notice Holds no state: it says what follows from a state and a message. A message that breaks a rule reverts with `Malformed`,
/// `Contradiction` or `Refused`; that its sender loses by it is for `Disputes` to say.
contract Referee {
    using Contexts for Context;
    using Cursors for Cursor;
    using Shapes for Shape;

    /// Levels of a tree that one claim may go down, and in the tree of a part; levels of each part that the first claim of it may.
    uint256 private constant TREE_BITS = 7;
    uint256 private constant PART_BITS = 8;
    uint256 private constant FIRST_PART_BITS = 7;
    /// What another claim and another pick cost, in nodes.
    uint256 private constant ROUND_NODES = 64;
    /// `Walk.top` while the hash that is kept is a step's commitment.
    uint8 private constant OPERATION = 255;

    Adjudicator public immutable adjudicator;

    constructor(Adjudicator adjudicator_) {
        adjudicator = adjudicator_;
    }

    /// @notice Where the first claim is awaited.
    function begin(uint256 positions) external pure returns (Walk memory w) {
        w.stage = Stage.Trace;
        w.leaves = uint24((positions + 31) / 32);
        w.top = uint8(Trees.height(w.leaves));
    }

    /// @notice The defender says something.
    /// @param w Where the dispute stands.
    /// @param context Hash of the context.
    /// @param hash What is known of the node, the step or the number that the dispute walked to.
    /// @return The same three after it, and why the defender has won, if it has.
    function claim(Walk memory w, bytes32 context, bytes32 hash, bytes calldata message)
        external
        view
        returns (Walk memory, bytes32, bytes32, Reason)
    {
        if (w.stage == Stage.Proof) {
            return (w, context, hash, adjudicator.judge(context, _target(w, hash), message));
        }
        if (w.stage == Stage.Digest) {
            adjudicator.checkDigest(context, w.block_, message);
            return (w, context, hash, Reason.DigestHolds);
        }
        Cursor memory c = Cursors.over(message);
        if (w.stage == Stage.Trace) (context, hash) = _trace(w, context, c);
        else if (w.stage == Stage.Steps) (context, hash) = _steps(w, context, hash, c);
        else if (w.stage == Stage.Parts) hash = _parts(w, context, hash, c);
        else if (w.stage == Stage.Nodes) hash = _nodes(w, context, hash, c);
        else if (w.stage == Stage.Leaf) hash = _leaf(w, hash, c);
        else revert Malformed();
        if (!c.done()) revert Malformed();
        return (w, context, hash, Reason.None);
    }

    /// @notice The challenger picks a part or a number. Nodes are picked by `Picks`.
    /// @return Where the dispute stands after it, and what is known of what was picked.
    function pick(Walk memory w, bytes32 hash, bytes calldata message)
        external
        view
        returns (Walk memory, bytes32)
    {
        Cursor memory c = Cursors.over(message);
        if (w.stage == Stage.PickPart) hash = _pickPart(w, hash, c);
        else if (w.stage == Stage.PickNumber) hash = _pickNumber(w, hash, c);
        else revert Malformed();
        if (!c.done()) revert Malformed();
        return (w, hash);
    }

    /// @dev Height of the nodes that are claimed next below a node.
    function _next(uint256 height, uint256 bits) private pure returns (uint256) {
        unchecked {
            if (height == 0) return 0;
            uint256 rounds = (height + bits - 1) / bits;
            return height - (height + rounds - 1) / rounds;
        }
    }

    /// @dev Checks that a node stands at the picked place under what is known.
    function _lead(Walk memory w, bytes32 node, bytes32 hash, Cursor memory c) private pure {
        unchecked {
            uint256 leaves = Picks.leaves(w);
            uint256 next;
            if (w.top != OPERATION) {
                (node, next) = Trees.climb(node, w.index, leaves, w.height, w.top - w.height, c.pos);
                if (node != hash) revert Contradiction();
            } else {
                uint256 parts = c.u8();
                uint256 roots = c.take(32 * parts);
                if (w.part >= parts || Openings.operation(roots, parts) != hash) revert Contradiction();
                (node, next) =
                    Trees.climb(node, w.index, leaves, w.height, Trees.height(leaves) - w.height, c.pos);
                bytes32 root;
                uint256 part = w.part;
                assembly ("memory-safe") {
                    root := calldataload(add(roots, shl(5, part)))
                }
                if (Trees.seal(leaves, node) != root) revert Contradiction();
            }
            c.jump(next);
        }
    }

    /// @dev The context, the facts of the program, nodes over the carries of all blocks.
    function _trace(Walk memory w, bytes32 context, Cursor memory c) private pure returns (bytes32, bytes32 top) {
        Context memory x = Contexts.read(c, context);
        Openings.facts(c, x);
        if (x.positions() > x.facts.context) revert Contradiction();
        top = _claimed(w, c, TREE_BITS);
        x.trace = Trees.seal(w.leaves, top);
        return (x.hash(), top);
    }

    /// @dev Nodes below the top of a tree.
    function _claimed(Walk memory w, Cursor memory c, uint256 bits) private pure returns (bytes32 top) {
        uint256 leaves = w.leaves;
        uint256 height = Trees.height(leaves);
        uint256 below = _next(height, bits);
        uint256 count = Trees.nodesAt(leaves, below);
        top = Trees.leadAt(c.take(32 * count), count);
        w.height = uint8(height);
        w.top = uint8(height);
        w.index = 0;
        w.below = uint8(below);
        w.stage = Stage.PickNode;
    }

    /// @dev The context, the commitments of what the block carries, the way of the carry, nodes over the block's steps, and, if these are its
    /// leaves, that they agree.
    function _steps(Walk memory w, bytes32 context, bytes32 hash, Cursor memory c)
        private
        pure
        returns (bytes32, bytes32 top)
    {
        Context memory x = Contexts.read(c, context);
        uint256 n = x.facts.carried;
        x.carry = Trees.seal(n, Trees.leadAt(c.take(32 * n), n));
        _lead(w, x.carry, hash, c);
        w.tree = Tree.Steps;
        w.leaves = uint24(x.facts.ops + 2);
        uint256 nodes = c.pos;
        top = _claimed(w, c, TREE_BITS);
        x.steps = Trees.seal(w.leaves, top);
        if (w.below == 0) _agree(x, c, nodes, 0, w.leaves);
        return (x.hash(), top);
    }

    /// @dev Checks that what the block carries is what the claimed steps `first` to `first + count` commit to: the siblings of the carried ones
    /// among them under the carry.
    function _agree(Context memory x, Cursor memory c, uint256 nodes, uint256 first, uint256 count) private pure {
        unchecked {
            Facts memory f = x.facts;
            uint256 from = Programs.carriedPlace(f, first);
            uint256 to = Programs.carriedPlace(f, first + count);
            if (from == to) return;
            // Room for siblings before and after.
            bytes32[] memory room = new bytes32[](to - from + 18);
            for (uint256 i = from; i < to; ++i) {
                uint256 place = nodes + 32 * (Programs.carriedOp(f, i) - first);
                bytes32 h;
                assembly ("memory-safe") {
                    h := calldataload(place)
                }
                room[17 + i - from] = h;
            }
            uint256 start;
            assembly ("memory-safe") {
                start := add(room, mul(18, 32))
            }
            (bytes32 top, uint256 next) = Trees.range(start, from, to, f.carried, c.pos);
            c.jump(next);
            if (Trees.seal(f.carried, top) != x.carry) revert Contradiction();
        }
    }

    /// @dev In the tree of steps the context, if leaves are claimed; nodes below the picked one; its way; what is carried as in `_steps`.
    function _nodes(Walk memory w, bytes32 context, bytes32 hash, Cursor memory c)
        private
        pure
        returns (bytes32 node)
    {
        uint256 below = _next(w.height, w.tree == Tree.Part ? PART_BITS : TREE_BITS);
        bool steps = w.tree == Tree.Steps && below == 0;
        Context memory x;
        if (steps) x = Contexts.read(c, context);
        (uint256 first, uint256 count) = Picks.under(Picks.leaves(w), w.height, w.index, below);
        uint256 nodes = c.take(32 * count);
        node = Trees.leadAt(nodes, count);
        _lead(w, node, hash, c);
        if (steps) _agree(x, c, nodes, first, count);
        w.top = w.height;
        w.below = uint8(below);
        w.stage = Stage.PickNode;
    }

    /// @dev The context; the operation as declared, or how the request's tokens are chosen; nodes over the leaves of each part; the step's way.
    function _parts(Walk memory w, bytes32 context, bytes32 hash, Cursor memory c) private pure returns (bytes32) {
        unchecked {
            Context memory x = Contexts.read(c, context);
            Spec[] memory specs = _specs(x, c, w.step);
            (, uint256 first, uint256 end) = Sources.rows(x.extent(), w.step, uint256(w.block_) * 32);
            uint256 n = specs.length;
            Shape[] memory all = new Shape[](n);
            uint256[] memory leaves = new uint256[](n);
            for (uint256 i; i < n; ++i) {
                all[i] = Shapes.inBlock(specs[i], end - first, end);
                // No valid operation has more.
                if (all[i].columns >> 32 > 1) revert Malformed();
                leaves[i] = all[i].leaves();
            }
            uint256[] memory heights = _firstHeights(leaves);
            bytes memory roots = new bytes(32 * n);
            bytes memory shapes;
            for (uint256 i; i < n; ++i) {
                uint256 count = Trees.nodesAt(leaves[i], heights[i]);
                bytes32 root = Trees.seal(leaves[i], Trees.leadAt(c.take(32 * count), count));
                assembly ("memory-safe") {
                    mstore(add(add(roots, 32), shl(5, i)), root)
                }
                shapes = abi.encodePacked(shapes, _packed(all[i]), uint8(heights[i]));
            }
            bytes32 operation = keccak256(roots);
            _lead(w, operation, hash, c);
            w.stage = Stage.PickPart;
            return keccak256(abi.encodePacked(operation, shapes));
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

    /// @dev A shape in 8 bytes: rows, columns (5), bytes of a number, 1 if by columns.
    function _packed(Shape memory shape) private pure returns (bytes8) {
        unchecked {
            return bytes8(
                uint64((shape.rows << 56) | (shape.columns << 16) | (shape.width << 8) | (shape.byColumns ? 1 : 0))
            );
        }
    }

    /// @dev To which height each part is claimed first: to one that costs least, counting the nodes of this claim, those that the next one has
    /// at most, and what a round costs.
    function _firstHeights(uint256[] memory leaves) private pure returns (uint256[] memory heights) {
        unchecked {
            uint256 n = leaves.length;
            heights = new uint256[](n);
            for (uint256 i; i < n; ++i) {
                heights[i] = Trees.height(leaves[i]);
            }
            uint256 best;
            uint256 least = type(uint256).max;
            for (uint256 d; d <= PART_BITS; ++d) {
                uint256 cost = d == 0 ? 0 : (1 << d) + ROUND_NODES;
                for (uint256 i; i < n; ++i) {
                    cost += Trees.nodesAt(leaves[i], _firstHeight(heights[i], d));
                }
                if (cost < least) (least, best) = (cost, d);
            }
            for (uint256 i; i < n; ++i) {
                heights[i] = _firstHeight(heights[i], best);
            }
        }
    }

    function _firstHeight(uint256 height, uint256 d) private pure returns (uint256) {
        unchecked {
            uint256 to = height < d ? height : d;
            return height > to + FIRST_PART_BITS ? height - FIRST_PART_BITS : to;
        }
    }

    /// @dev The bytes of the leaf; its way.
    function _leaf(Walk memory w, bytes32 hash, Cursor memory c) private pure returns (bytes32) {
        unchecked {
            (,, uint256 count) = Picks.shape(w).leafOf(w.index);
            uint256 length = count * w.width;
            uint256 place = c.take(length);
            _lead(w, Trees.leaf(place, length), hash, c);
            w.stage = Stage.PickNumber;
            return Trees.words(place, length);
        }
    }

    /// @dev The part (1 byte), the place of the node in its list (1 byte), the step's commitment, of all parts the shape (8 bytes) and the height
    /// of the nodes that were claimed (1 byte).
    function _pickPart(Walk memory w, bytes32 hash, Cursor memory c) private pure returns (bytes32 operation) {
        unchecked {
            uint256 part = c.u8();
            uint256 i = c.u8();
            operation = c.word();
            uint256 length = c.end - c.pos;
            uint256 shapes = c.take(length);
            bytes32 known;
            uint256 shape;
            assembly ("memory-safe") {
                let m := mload(0x40)
                mstore(m, operation)
                calldatacopy(add(m, 32), shapes, length)
                known := keccak256(m, add(length, 32))
                shape := shr(184, calldataload(add(shapes, mul(9, part))))
            }
            if (known != hash || part * 9 >= length) revert Malformed();
            uint256 below = shape & 0xff;
            shape >>= 8;
            w.part = uint8(part);
            w.rows = uint8(shape >> 56);
            w.columns = uint40(shape >> 16);
            w.width = uint8(shape >> 8);
            w.byColumns = shape & 1 == 1;
            if (i >= Trees.nodesAt(Picks.shape(w).leaves(), below)) revert Malformed();
            w.tree = Tree.Part;
            w.top = OPERATION;
            w.height = uint8(below);
            w.index = uint32(i);
            w.stage = below == 0 ? Stage.Leaf : Stage.Nodes;
        }
    }

    /// @dev The place of the number in the leaf (2 bytes); what the accumulator is after every run (8 bytes each), for a fold.
    function _pickNumber(Walk memory w, bytes32 hash, Cursor memory c) private view returns (bytes32) {
        unchecked {
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
            w.number = uint16(number);
            w.stage = Stage.Proof;
            return adjudicator.said(hash, partials, uint32(length >> 3), int64(uint64(last)));
        }
    }

    function _target(Walk memory w, bytes32 hash) private pure returns (Target memory) {
        return Target(w.block_, w.step, w.part, Picks.shape(w), w.index, w.number, hash);
    }
}
