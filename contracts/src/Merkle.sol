// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// A leaf's place in a tree (protocol, section 2).
/// @param index of the leaf, below `count`
/// @param count number of leaves of the tree
/// @param path siblings from the leaf upwards; none for a level at which the node moves up unchanged
struct Proof {
    uint64 index;
    uint64 count;
    bytes32[] path;
}

/// The protocol's Merkle trees (section 2): a leaf is keccak(0x00 ‖ bytes), a node keccak(0x01 ‖ left ‖ right), a root
/// keccak(0x02 ‖ number of leaves, 8 bytes ‖ top). The last of an odd number of nodes moves up unchanged. Leaves cannot pass for
/// nodes, and a tree has one number of leaves.
library Merkle {
    /// The path has more or fewer siblings than index and count ask for, or the index is not below the count.
    error MalformedProof();

    /// Hash of a leaf's bytes.
    function leaf(bytes memory content) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(bytes1(0x00), content));
    }

    /// Hash of a leaf that is itself one hash.
    function leaf(bytes32 content) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            mstore8(0x00, 0)
            mstore(0x01, content)
            hash := keccak256(0x00, 33)
        }
    }

    /// Hash of a node.
    function node(bytes32 left, bytes32 right) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let at := mload(0x40)
            mstore8(at, 1)
            mstore(add(at, 1), left)
            mstore(add(at, 33), right)
            hash := keccak256(at, 65)
        }
    }

    /// The root of a tree of `count` leaves from its top node (32 zero bytes if there are none).
    function seal(uint64 count, bytes32 top) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(bytes1(0x02), count, top));
    }

    /// The root under which `proof` puts a leaf with the hash `hash`.
    /// @dev Reverts with `MalformedProof` where the path does not fit index and count.
    function rootFrom(bytes32 hash, Proof calldata proof) internal pure returns (bytes32) {
        uint256 index = proof.index;
        uint256 width = proof.count;
        uint256 used = 0;
        bytes32[] calldata path = proof.path;
        if (index >= width) revert MalformedProof();
        while (width > 1) {
            if (index ^ 1 < width) {
                if (used == path.length) revert MalformedProof();
                bytes32 sibling = path[used++];
                hash = index & 1 == 0 ? node(hash, sibling) : node(sibling, hash);
            }
            index >>= 1;
            width = (width + 1) >> 1;
        }
        if (used != path.length) revert MalformedProof();
        return seal(proof.count, hash);
    }

    /// Hashes of leaves of `width` bytes each, which follow each other in `content`; bytes that are left over are not looked at.
    function leavesOf(bytes calldata content, uint256 width) internal pure returns (bytes32[] memory hashes) {
        uint256 count = content.length / width;
        hashes = new bytes32[](count);
        assembly ("memory-safe") {
            // Behind what was allocated, and not allocated: one leaf after the other stands there.
            let buffer := mload(0x40)
            mstore8(buffer, 0)
            let from := content.offset
            let to := add(hashes, 0x20)
            for { let end := add(to, shl(5, count)) } lt(to, end) { to := add(to, 0x20) } {
                calldatacopy(add(buffer, 1), from, width)
                mstore(to, keccak256(buffer, add(width, 1)))
                from := add(from, width)
            }
        }
    }

    /// The root over leaf hashes, which are overwritten.
    function rootOver(bytes32[] memory hashes) internal pure returns (bytes32) {
        uint64 count = uint64(hashes.length);
        uint256 width = count;
        if (width == 0) return seal(0, bytes32(0));
        while (width > 1) {
            uint256 pairs = width >> 1;
            for (uint256 i = 0; i < pairs; ++i) {
                hashes[i] = node(hashes[2 * i], hashes[2 * i + 1]);
            }
            if (width & 1 == 1) hashes[pairs] = hashes[width - 1];
            width = (width + 1) >> 1;
        }
        return seal(count, hashes[0]);
    }
}
