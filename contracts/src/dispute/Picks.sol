// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Shape, Shapes} from "./Shapes.sol";
import {Stage, Tree, Walk} from "./Walk.sol";
import {Trees} from "./Trees.sol";

/// @title Picking a node, and what a walk says of its tree
library Picks {
    using Shapes for Shape;

    /// @notice Shape of the picked part.
    function shape(Walk memory w) internal pure returns (Shape memory) {
        return Shape(w.rows, w.columns, w.width, w.byColumns);
    }

    /// @notice Leaves of the tree that is walked down.
    function leaves(Walk memory w) internal pure returns (uint256) {
        return w.tree == Tree.Part ? shape(w).leaves() : w.leaves;
    }

    /// @notice Place of the first node of height `below` under node `index` of height `height`, and how many there are.
    function under(uint256 count, uint256 height, uint256 index, uint256 below)
        internal
        pure
        returns (uint256 first, uint256 nodes)
    {
        unchecked {
            first = index << (height - below);
            nodes = Trees.nodesAt(count, below) - first;
            uint256 most = 1 << (height - below);
            if (nodes > most) nodes = most;
        }
    }

    /// @notice Height of the nodes that are claimed next below a node of height `height` in a tree of height `whole` (protocol 10.2): a walk takes
    /// as few claims as cost least, and each goes down as far. A step is claimed by the roots of its parts, which weighs as two levels.
    function next(Tree tree, uint256 whole, uint256 height) internal pure returns (uint256) {
        unchecked {
            uint256 claims = tree == Tree.Part ? (whole + 7) / 8 : (whole + 6) / 7;
            if (claims < 2 && (tree == Tree.Part ? whole > 6 : tree == Tree.Steps && whole > 5)) claims = 2;
            if (claims == 0) return 0;
            uint256 levels = (whole + (tree == Tree.Steps ? 2 : 0) + claims - 1) / claims;
            return height > levels ? height - levels : 0;
        }
    }

    /// @notice Takes a pick: 0 and the place of a node (2 bytes); before a block is picked, 1 and the block whose digest is doubted (2
    /// bytes); among steps, 3, the place of the step (2 bytes) and the part (1 byte).
    /// @return Whether it has a meaning.
    function take(Walk memory w, bytes calldata message) internal pure returns (bool) {
        unchecked {
            if (message.length != (w.stage == Stage.PickPart ? 4 : 3)) return false;
            uint256 i = uint16(bytes2(message[1:]));
            if (message[0] == 0x01 && w.tree == Tree.Blocks) {
                // Whether a receipt is right is not asked where an auditor is accused.
                if (i >= w.leaves || w.accused) return false;
                w.block_ = uint16(i);
                w.stage = Stage.Digest;
                return true;
            }
            (uint256 first, uint256 count) = under(leaves(w), w.top, w.index, w.below);
            if (message[0] != (w.stage == Stage.PickPart ? bytes1(0x03) : bytes1(0)) || i >= count) return false;
            w.index = uint32(first + i);
            w.height = w.below;
            if (w.stage == Stage.PickPart) {
                w.step = uint16(w.index);
                w.part = uint8(message[3]);
                w.stage = Stage.Part;
            } else if (w.height != 0) {
                w.stage = Stage.Nodes;
            } else if (w.tree == Tree.Blocks) {
                w.block_ = uint16(w.index);
                w.stage = Stage.Steps;
            } else {
                w.stage = Stage.Leaf;
            }
            return true;
        }
    }
}
