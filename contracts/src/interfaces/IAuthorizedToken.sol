// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// A token that moves by its holder's signature (EIP-3009, with the signature as bytes, as USDC has it).
interface IAuthorizedToken {
    /// Moves tokens to the caller, which must be `to`.
    /// @param nonce any number that `from` has not used; the signature is over all the others
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}
