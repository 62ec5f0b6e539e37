// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.30;

/// @notice What a provider signs of an answer (protocol 7).
struct Receipt {
    address provider;
    uint64 sequence;
    bytes32 modelRoot;
    bytes32 requestHash;
    bytes32 transcriptRoot;
    bytes32 digestRoot;
    uint32 promptTokens;
    uint32 completionTokens;
    uint64 feeMicroUsd;
    bytes32 payerChannel;
    bytes32 clientNonce;
    uint64 epoch;
}

/// @title The hash that a receipt's signature signs
library Receipts {
    bytes32 internal constant TYPE = keccak256(
        "Receipt(address provider,uint64 sequence,bytes32 modelRoot,bytes32 requestHash,bytes32 transcriptRoot,bytes32 digestRoot,uint32 promptTokens,uint32 completionTokens,uint64 feeMicroUsd,bytes32 payerChannel,bytes32 clientNonce,uint64 epoch)"
    );

    /// @notice The domain of receipts of which `verifier` is the contract, on this chain.
    function domain(address verifier) internal view returns (bytes32) {
        bytes32 kind =
            keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        return keccak256(abi.encode(kind, keccak256("Assay"), keccak256("1"), block.chainid, verifier));
    }

    /// @notice What the signature signs.
    function digest(Receipt calldata receipt, bytes32 domain_) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domain_, keccak256(abi.encode(TYPE, receipt))));
    }
}
