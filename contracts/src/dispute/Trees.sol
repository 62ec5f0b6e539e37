// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// What was sent is not under what was said before.
error Contradiction();
/// What was sent has no meaning here.
error Malformed();

/// @title Binary Keccak Merkle trees (protocol 2)
/// @notice A leaf is `keccak(0 ‖ bytes)`, a node `keccak(1 ‖ left ‖ right)`; the last of an odd number of nodes moves up unchanged; the root
/// is `keccak(2 ‖ count (8) ‖ top)`. Ways up are runs of siblings in calldata, without indices: which there are follows from
/// the place of the node and the number of leaves.
library Trees {
    /// @notice Hash of a leaf in calldata.
    function leaf(uint256 pos, uint256 length) internal pure returns (bytes32 h) {
        assembly ("memory-safe") {
            let m := mload(0x40)
            mstore8(m, 0)
            calldatacopy(add(m, 1), pos, length)
            h := keccak256(m, add(length, 1))
        }
    }

    /// @notice Hash of a leaf in memory.
    function leaf(bytes memory data) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0), data));
    }

    /// @notice Hash of a node.
    function node(bytes32 left, bytes32 right) internal pure returns (bytes32 h) {
        assembly ("memory-safe") {
            let m := mload(0x40)
            mstore8(m, 1)
            mstore(add(m, 1), left)
            mstore(add(m, 33), right)
            h := keccak256(m, 65)
        }
    }

    /// @notice The root of a tree of `count` leaves from its top.
    function seal(uint256 count, bytes32 top) internal pure returns (bytes32 h) {
        assembly ("memory-safe") {
            let m := mload(0x40)
            mstore8(m, 2)
            mstore(add(m, 1), shl(192, count))
            mstore(add(m, 9), top)
            h := keccak256(m, 41)
        }
    }

    /// @notice How many times `count` leaves are paired until one node is left.
    function height(uint256 count) internal pure returns (uint256 h) {
        unchecked {
            while ((1 << h) < count) ++h;
        }
    }

    /// @notice Nodes of height `h` of a tree of `count` leaves.
    function nodesAt(uint256 count, uint256 h) internal pure returns (uint256) {
        unchecked {
            return (count + (1 << h) - 1) >> h;
        }
    }

    /// @notice The node `levels` levels above node `index` of height `low`, in a tree of `count` leaves, and the place in calldata after its
    /// siblings.
    function climb(bytes32 h, uint256 index, uint256 count, uint256 low, uint256 levels, uint256 pos)
        internal
        pure
        returns (bytes32, uint256)
    {
        unchecked {
            uint256 width = nodesAt(count, low);
            for (; levels != 0; --levels) {
                if (index ^ 1 < width) {
                    bytes32 sibling;
                    assembly ("memory-safe") {
                        sibling := calldataload(pos)
                    }
                    pos += 32;
                    h = index & 1 == 0 ? node(h, sibling) : node(sibling, h);
                }
                index >>= 1;
                width = (width + 1) >> 1;
            }
            return (h, pos);
        }
    }

    /// @notice The root under which leaf hash `h` stands at `index` of `count`, and the place in calldata after its siblings. Reverts with
    /// `Contradiction` when there is no such leaf.
    function rootFrom(bytes32 h, uint256 index, uint256 count, uint256 pos) internal pure returns (bytes32, uint256) {
        if (index >= count) revert Contradiction();
        (h, pos) = climb(h, index, count, 0, height(count), pos);
        return (seal(count, h), pos);
    }

    /// @notice The node that `n` neighbours in memory lead to, the first of which stands at a multiple of a power of two not below `n`; zero
    /// for none. The neighbours are overwritten.
    function lead(uint256 nodes, uint256 n) internal pure returns (bytes32 h) {
        assembly ("memory-safe") {
            let m := mload(0x40)
            mstore8(m, 1)
            for {} gt(n, 1) {} {
                let to := nodes
                let from := nodes
                let end := add(nodes, shl(5, and(n, not(1))))
                for {} lt(from, end) { from := add(from, 64) } {
                    mstore(add(m, 1), mload(from))
                    mstore(add(m, 33), mload(add(from, 32)))
                    mstore(to, keccak256(m, 65))
                    to := add(to, 32)
                }
                if and(n, 1) { mstore(to, mload(from)) }
                n := shr(1, add(n, 1))
            }
            if n { h := mload(nodes) }
        }
    }

    /// @notice `lead` for neighbours in calldata.
    function leadAt(uint256 pos, uint256 n) internal pure returns (bytes32) {
        uint256 nodes = room(n);
        assembly ("memory-safe") {
            calldatacopy(nodes, pos, shl(5, n))
        }
        return lead(nodes, n);
    }

    /// @notice The root over `length` bytes in calldata in leaves of 32, the last of which may be shorter: numbers that one of them is shown
    /// from later.
    function words(uint256 pos, uint256 length) internal pure returns (bytes32) {
        unchecked {
            uint256 n = (length + 31) >> 5;
            uint256 nodes = room(n);
            for (uint256 i; i < n; ++i) {
                uint256 rest = length - (i << 5);
                bytes32 h = leaf(pos + (i << 5), rest < 32 ? rest : 32);
                assembly ("memory-safe") {
                    mstore(add(nodes, shl(5, i)), h)
                }
            }
            return seal(n, lead(nodes, n));
        }
    }

    /// @notice Allocates `n` words.
    function room(uint256 n) internal pure returns (uint256 nodes) {
        assembly ("memory-safe") {
            nodes := mload(0x40)
            mstore(0x40, add(nodes, shl(5, n)))
        }
    }
}
