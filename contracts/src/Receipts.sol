// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Merkle, Proof} from "./Merkle.sol";

/// What a provider signs for one answer (protocol, section 7). `feeMicroUsd` is in the token's units, which are millionths.
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

/// Hashes and signatures of receipts. The domain is `Assay`, version `1`, this chain, and the Epochs contract.
library Receipts {
    using Merkle for bytes32;

    bytes32 internal constant TYPE_HASH = keccak256(
        "Receipt(address provider,uint64 sequence,bytes32 modelRoot,bytes32 requestHash,bytes32 transcriptRoot,bytes32 digestRoot,uint32 promptTokens,uint32 completionTokens,uint64 feeMicroUsd,bytes32 payerChannel,bytes32 clientNonce,uint64 epoch)"
    );
    bytes32 private constant DOMAIN_TYPE_HASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    /// Leaves of the hash of a request for an answer, and of one for vectors (protocol, sections 4 and 5).
    uint64 private constant REQUEST_LEAVES = 5;
    uint64 private constant EMBEDDING_REQUEST_LEAVES = 2;
    /// What the first of them says of the client's consent to audits.
    uint8 internal constant WITHHELD = 0;
    uint8 internal constant GIVEN = 1;

    /// Positions that any model may have.
    uint256 private constant POSITIONS_MAX = 131_072;

    /// The signature is not the provider's.
    error NotSignedByProvider();

    /// Separator of the domain in which receipts are signed, `ledger` being the Epochs contract.
    function domain(address ledger) internal view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPE_HASH, keccak256("Assay"), keccak256("1"), block.chainid, ledger));
    }

    /// What a provider signs.
    function signingHash(Receipt calldata receipt, bytes32 separator) internal pure returns (bytes32 hash) {
        bytes32 structHash = keccak256(abi.encode(TYPE_HASH, receipt));
        return keccak256(abi.encodePacked(hex"1901", separator, structHash));
    }

    /// The receipt as a leaf of its epoch's tree (protocol, 11.2).
    function leaf(Receipt calldata receipt, bytes32 separator) internal pure returns (bytes32) {
        return Merkle.leaf(signingHash(receipt, separator));
    }

    /// The leaf of a sequence number for which nothing was signed.
    function void() internal pure returns (bytes32) {
        return Merkle.leaf(bytes32(0));
    }

    /// The receipt's name (protocol, section 7).
    function id(Receipt calldata receipt) internal pure returns (bytes32) {
        return keccak256(
            abi.encodePacked("assay/receipt-id/1", receipt.provider, receipt.sequence, receipt.requestHash)
        );
    }

    /// Whether the receipt is of an answer that can be disputed: tokens that were chosen one after the other, and no more than any model's context.
    function isAnswer(Receipt calldata receipt) internal pure returns (bool) {
        if (receipt.promptTokens == 0 || receipt.completionTokens == 0) return false;
        return uint256(receipt.promptTokens) + receipt.completionTokens - 1 <= POSITIONS_MAX;
    }

    /// Whether `proof` shows that the request with this hash, for this model, says so of its client's consent: nothing else of it is shown.
    function isConsent(bytes32 requestHash, bytes32 modelRoot, uint8 consent, Proof calldata proof)
        internal
        pure
        returns (bool)
    {
        bytes memory tag;
        if (proof.count == REQUEST_LEAVES) tag = "assay/request/2";
        else if (proof.count == EMBEDDING_REQUEST_LEAVES) tag = "assay/embedding-request/2";
        else return false;
        bytes32 leafHash = Merkle.leaf(abi.encodePacked(tag, modelRoot, consent));
        return proof.index == 0 && leafHash.rootFrom(proof) == requestHash;
    }

    /// Reverts unless `signature` (r ‖ s ‖ v, s in the lower half, v 27 or 28) is the provider's.
    function requireSigned(Receipt calldata receipt, bytes32 separator, bytes calldata signature) internal pure {
        (address signer, ECDSA.RecoverError failure,) =
            ECDSA.tryRecoverCalldata(signingHash(receipt, separator), signature);
        if (failure != ECDSA.RecoverError.NoError || signer != receipt.provider) revert NotSignedByProvider();
    }
}
