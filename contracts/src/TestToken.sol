// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {IAuthorizedToken} from "./interfaces/IAuthorizedToken.sol";

/// A worthless token for development chains. Anyone mints any amount. Never name it in a deployment that holds value.
contract TestToken is ERC20, EIP712, IAuthorizedToken {
    bytes32 private constant TRANSFER_TYPE_HASH = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 private constant RECEIVE_TYPE_HASH = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );

    /// What a transfer loses on its way, in millionths; 0 but where tests need a token that takes a fee.
    uint256 public immutable feePpm;

    /// Which authorizations were used (EIP-3009).
    mapping(address authorizer => mapping(bytes32 nonce => bool)) public authorizationState;

    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    error BadAuthorization();

    /// @param feePpm_ 0 to 1 000 000
    constructor(uint256 feePpm_) ERC20("Assay test dollars", "TEST") EIP712("Assay test dollars", "1") {
        require(feePpm_ <= 1_000_000);
        feePpm = feePpm_;
    }

    /// Six, like USDC.
    function decimals() public pure override returns (uint8) {
        return 6;
    }

    /// Makes `amount` for `to`.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @inheritdoc IAuthorizedToken
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        bytes32 hash = keccak256(abi.encode(RECEIVE_TYPE_HASH, from, to, value, validAfter, validBefore, nonce));
        if (to != msg.sender) revert BadAuthorization();
        _use(hash, from, validAfter, validBefore, nonce, signature);
        _transfer(from, to, value);
    }

    /// Moves tokens by their holder's signature, whoever calls (EIP-3009).
    /// @param nonce any number that `from` has not used; the signature is over all the others
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        bytes32 hash = keccak256(abi.encode(TRANSFER_TYPE_HASH, from, to, value, validAfter, validBefore, nonce));
        _use(hash, from, validAfter, validBefore, nonce, abi.encodePacked(r, s, v));
        _transfer(from, to, value);
    }

    /// Uses an authorization up, if it is in time, was not used before, and is signed.
    function _use(
        bytes32 structHash,
        address from,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) private {
        bool inTime = block.timestamp > validAfter && block.timestamp < validBefore;
        if (!inTime || authorizationState[from][nonce]) revert BadAuthorization();
        if (!SignatureChecker.isValidSignatureNow(from, _hashTypedDataV4(structHash), signature)) revert BadAuthorization();
        authorizationState[from][nonce] = true;
        emit AuthorizationUsed(from, nonce);
    }

    function _update(address from, address to, uint256 value) internal override {
        uint256 fee = from == address(0) || to == address(0) ? 0 : value * feePpm / 1_000_000;
        if (fee > 0) super._update(from, address(0), fee);
        super._update(from, to, value - fee);
    }
}
