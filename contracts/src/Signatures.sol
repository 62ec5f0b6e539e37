// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// Whether an account has signed something. What its key has signed holds for ever: an account that gets code later (EIP-7702) cannot deny
/// it, since its code is not asked. Only a signature that is not the key's is a question for the code, if there is any (ERC-1271).
library Signatures {
    /// Whether `signature` is the account's over `hash`; false for the zero account. The code is called statically.
    function isBy(address account, bytes32 hash, bytes calldata signature) internal view returns (bool) {
        if (account == address(0)) return false;
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(hash, signature);
        if (failure == ECDSA.RecoverError.NoError && signer == account) return true;
        return account.code.length > 0
            && SignatureChecker.isValidERC1271SignatureNowCalldata(account, hash, signature);
    }
}
