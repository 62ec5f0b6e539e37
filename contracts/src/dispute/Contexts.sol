// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Cursor, Cursors} from "./Cursor.sol";
import {Extent} from "./Source.sol";
import {Facts, Programs} from "./Programs.sol";

/// @notice What a dispute is about, and what has been said that later messages rest on. The contract keeps its hash; messages that need
/// it bring it along.
struct Context {
    /// What the receipt says.
    bytes32 model;
    bytes32 request;
    bytes32 transcript;
    bytes32 digests;
    bytes32 nonce;
    uint256 prompt;
    uint256 output;
    /// Root over the statements of the model's program, and the number of its tensors.
    bytes32 program;
    uint256 tensors;
    /// The trace root.
    bytes32 trace;
    /// Carry of the picked block, and root over its steps.
    bytes32 carry;
    bytes32 steps;
    /// The program's facts, and where in calldata they stand.
    Facts facts;
    uint256 factsAt;
    uint256 factsLength;
}

/// @title Contexts
/// @notice In bytes: model, request, transcript, digests, nonce (32 each), prompt and output (4 each), program (32), tensors (2), trace, carry,
/// steps (32 each), the facts in borsh. What is not known yet is zero.
library Contexts {
    using Cursors for Cursor;

    uint256 internal constant BLOCK = 32;

    /// @notice The hash of a context of which only the receipt's statement is known, and the trace root where that is what is disputed.
    function begin(
        bytes32 model,
        bytes32 request,
        bytes32 transcript,
        bytes32 digests,
        bytes32 nonce,
        uint32 prompt,
        uint32 output,
        bytes32 trace
    ) internal pure returns (bytes32) {
        bytes32 none;
        bytes memory statement = abi.encodePacked(model, request, transcript, digests, nonce, prompt, output);
        return keccak256(abi.encodePacked(statement, none, uint16(0), trace, none, none));
    }

    /// @notice What the contract keeps: a hash over that of the context, and what is known of the node or the number walked to.
    function state(bytes32 context, bytes32 known) internal pure returns (bytes32 h) {
        assembly ("memory-safe") {
            mstore(0, context)
            mstore(32, known)
            h := keccak256(0, 64)
        }
    }

    /// @notice What is known of a number: the words of its leaf, and the accumulators that the challenger says lead to it.
    /// @param words Root over the leaf's bytes in words.
    /// @param partials Root over the accumulators' bytes in words; zero for none.
    /// @param runs How many there are.
    /// @param last The last one; 0 for none.
    function said(bytes32 words, bytes32 partials, uint32 runs, int64 last) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(words, partials, runs, last));
    }

    /// @notice Reads a context: its length (2 bytes), its bytes. That its hash is the one that is known is for the caller to check.
    function read(Cursor memory c) internal pure returns (Context memory x, bytes32 h) {
        uint256 length = c.big(2);
        uint256 from = c.take(length);
        assembly ("memory-safe") {
            let m := mload(0x40)
            calldatacopy(m, from, length)
            h := keccak256(m, length)
        }
        unchecked {
            Cursor memory d = Cursor(from, from + length);
            x.model = d.word();
            x.request = d.word();
            x.transcript = d.word();
            x.digests = d.word();
            x.nonce = d.word();
            x.prompt = d.big(4);
            x.output = d.big(4);
            x.program = d.word();
            x.tensors = d.big(2);
            x.trace = d.word();
            x.carry = d.word();
            x.steps = d.word();
            locate(x, d.pos, d.end - d.pos);
        }
    }

    /// @notice Takes facts at a place in calldata; none if there are no bytes.
    function locate(Context memory x, uint256 from, uint256 length) internal pure {
        x.factsAt = from;
        x.factsLength = length;
        if (length != 0) x.facts = Programs.facts(from, length);
    }

    /// @notice The hash of a context.
    function hash(Context memory x) internal pure returns (bytes32) {
        uint256 from = x.factsAt;
        uint256 length = x.factsLength;
        bytes memory facts = new bytes(length);
        assembly ("memory-safe") {
            calldatacopy(add(facts, 32), from, length)
        }
        bytes memory statement = abi.encodePacked(
            x.model, x.request, x.transcript, x.digests, x.nonce, uint32(x.prompt), uint32(x.output)
        );
        return keccak256(
            abi.encodePacked(statement, x.program, uint16(x.tensors), x.trace, x.carry, x.steps, facts)
        );
    }

    /// @notice Positions executed: all tokens but the last of the answer.
    function positions(Context memory x) internal pure returns (uint256) {
        unchecked {
            return x.prompt + x.output - 1;
        }
    }

    /// @notice Blocks executed.
    function blocks(Context memory x) internal pure returns (uint256) {
        unchecked {
            return (positions(x) + BLOCK - 1) / BLOCK;
        }
    }

    /// @notice What holds for the whole trace.
    function extent(Context memory x) internal pure returns (Extent memory e) {
        Facts memory f = x.facts;
        return Extent(f.ops, f.vocabulary, f.residualFrac, true, f.hidden, f.logits, positions(x), x.prompt);
    }
}
