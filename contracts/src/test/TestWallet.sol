// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// FOR TESTS ONLY: a wallet that is a contract (ERC-1271) and says of signatures what it was told to.
contract TestWallet {
    /// What it says.
    enum Way {
        Checks,
        Agrees,
        Denies,
        BurnsGas,
        Reverts,
        ReturnsNothing,
        WritesState
    }

    address public immutable owner;
    Way public way;
    uint256 public asked;

    constructor(address owner_) {
        owner = owner_;
    }

    /// Says this from now on.
    function behave(Way way_) external {
        way = way_;
    }

    /// ERC-1271, but for that it may try to write: who asks it statically sees that fail.
    function isValidSignature(bytes32 hash, bytes calldata signature) external returns (bytes4) {
        if (way == Way.Agrees) return 0x1626ba7e;
        if (way == Way.Denies) return 0xffffffff;
        if (way == Way.Reverts) revert();
        if (way == Way.BurnsGas) while (true) {}
        if (way == Way.WritesState) ++asked;
        if (way == Way.ReturnsNothing) {
            assembly {
                return(0, 0)
            }
        }
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(hash, signature);
        return failure == ECDSA.RecoverError.NoError && signer == owner ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}
