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

    /// @notice Takes a pick: 0 and the place of a node (2 bytes); or, before a block is picked, 1 and the block whose digest is doubted (2
    /// bytes).
    /// @return Whether it has a meaning.
    function node(Walk memory w, bytes calldata message) internal pure returns (bool) {
        unchecked {
            if (message.length != 3) return false;
            uint256 i = uint16(bytes2(message[1:]));
            if (message[0] == 0x01 && w.tree == Tree.Blocks) {
                if (i >= w.leaves) return false;
                w.block_ = uint16(i);
                w.stage = Stage.Digest;
                return true;
            }
            (uint256 first, uint256 count) = under(leaves(w), w.top, w.index, w.below);
            if (message[0] != 0 || i >= count) return false;
            w.index = uint32(first + i);
            w.height = w.below;
            if (w.height != 0) {
                w.stage = Stage.Nodes;
            } else if (w.tree == Tree.Blocks) {
                w.block_ = uint16(w.index);
                w.stage = Stage.Steps;
            } else if (w.tree == Tree.Steps) {
                w.step = uint16(w.index);
                w.stage = Stage.Parts;
            } else {
                w.stage = Stage.Leaf;
            }
            return true;
        }
    }
}
