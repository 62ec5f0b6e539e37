// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Addresses, Directory} from "./Directory.sol";
import {Epochs} from "./Epochs.sol";
import {Registry} from "./Registry.sol";
import {Signatures} from "./Signatures.sol";
import {Vault} from "./Vault.sol";

/// Between whom a channel is. Its EIP-712 hash is the channel's id; channels that differ in `salt` are lanes of one payer.
/// @param payerAuthorizer key that signs vouchers; 0: the payer itself, which may be a contract (ERC-1271)
/// @param receiverAuthorizer key that signs claims and refunds besides the receiver; 0: none
/// @param token the deployment's
/// @param withdrawDelay seconds from the payer's announcement to its withdrawal, 900 to 2 592 000
struct ChannelConfig {
    address payer;
    address payerAuthorizer;
    address receiver;
    address receiverAuthorizer;
    address token;
    uint40 withdrawDelay;
    bytes32 salt;
}

/// What a payer lets a receiver claim from a channel, all in all.
struct Voucher {
    ChannelConfig channel;
    uint128 maxClaimableAmount;
}

/// A voucher, its signature, and what the receiver says it has charged so far, at most the voucher's amount.
struct VoucherClaim {
    Voucher voucher;
    bytes signature;
    uint128 totalClaimed;
}

/// Deposits by which payers pay receivers with cumulative vouchers, in the shape of x402's `batch-settlement`. A payer loses nothing
/// that it has not signed; a receiver loses nothing that a key has signed and that was deposited, as long as it claims within the channel's delay.
contract Channels is EIP712 {
    uint40 public constant WITHDRAW_DELAY_MIN = 900;
    uint40 public constant WITHDRAW_DELAY_MAX = 30 days;
    uint256 public constant CLAIMS_MAX = 256;

    uint8 private constant PROVIDER = 1; // Registry.PROVIDER
    bytes32 private constant CONFIG_TYPE_HASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 private constant VOUCHER_TYPE_HASH = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 private constant CLAIM_TYPE_HASH = keccak256("ClaimBatch(bytes32 claims)");
    bytes32 private constant REFUND_TYPE_HASH = keccak256("Refund(bytes32 channelId,uint128 totalClaimed,uint128 amount)");

    Vault private immutable _vault;
    Registry private immutable _registry;
    Epochs private immutable _epochs;
    address private immutable _token;

    /// @param balance what was deposited and has not left by withdrawal or refund; never below `claimed`
    /// @param claimed what the receiver has claimed
    /// @param leaving what the payer announced to take back, and `leavesAt` when
    /// @param period how many epochs the receiver had posted at the last claim, and `base` what was claimed before that period; likewise
    ///   the two periods with claims before it
    struct Channel {
        uint64 balance;
        uint64 claimed;
        uint64 leaving;
        uint40 leavesAt;
        uint24 period;
        uint64 base;
        uint64 base1;
        uint64 base2;
        uint24 period1;
        uint24 period2;
    }

    mapping(bytes32 channelId => Channel) private _channels;
    /// What a receiver has claimed from all its channels and not yet had settled.
    mapping(address receiver => uint256) public unsettledOf;

    event Opened(bytes32 indexed channelId, address indexed payer, address indexed receiver, ChannelConfig config);
    event Funded(bytes32 indexed channelId, uint128 amount, uint128 balance);
    event Claimed(bytes32 indexed channelId, uint128 claimed);
    event Settled(address indexed receiver, uint256 amount, bool escrowed);
    event WithdrawalStarted(bytes32 indexed channelId, uint128 amount, uint40 leavesAt);
    event Withdrawn(bytes32 indexed channelId, uint128 amount);
    event Refunded(bytes32 indexed channelId, uint128 amount);

    error WrongToken(address token);
    error BadWithdrawDelay(uint40 delay);
    error BadVoucher(bytes32 channelId);
    /// Neither the receiver nor, by signature or in person, its authorizer.
    error NotReceiver(address caller);
    error NotPayer(address caller);
    /// The claim is above the voucher, or above what the channel holds.
    error ClaimTooHigh(bytes32 channelId, uint128 totalClaimed, uint128 max);
    /// A claim below what was claimed before.
    error ClaimTooLow(bytes32 channelId, uint128 totalClaimed, uint128 claimed);
    error NothingToDo();
    error TooSoon(uint40 leavesAt);
    error TooManyClaims(uint256 claims);
    error AmountTooLarge(uint256 amount);
    error ReceiverIsZero();

    constructor(Directory directory) EIP712("x402 Batch Settlement", "1") {
        Addresses memory a = directory.addresses();
        _vault = Vault(a.vault);
        _registry = Registry(a.registry);
        _epochs = Epochs(a.epochs);
        _token = a.token;
    }

    // ---- the payer

    /// Puts `amount` of the caller's vault balance into a channel. Whose channel it is does not matter: the payer alone gets back what is not claimed.
    function deposit(ChannelConfig calldata config, uint128 amount) external {
        bytes32 id = _check(config);
        _vault.take(msg.sender, amount);
        _fund(id, config, amount);
    }

    /// Puts up to `amount` of the payer's tokens into its channel, by the authorization that x402 clients sign for a deposit: the token's
    /// `ReceiveWithAuthorization(payer, vault, amount, validAfter, validBefore, keccak256(abi.encode(channel id, salt)))`. Anyone may
    /// send it, and can do nothing else with it; the channel gets what arrives.
    function depositWithAuthorization(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 validAfter,
        uint256 validBefore,
        uint256 salt,
        bytes calldata signature
    ) external {
        bytes32 id = _check(config);
        bytes32 nonce = keccak256(abi.encode(id, salt));
        uint256 received = _vault.collect(config.payer, amount, validAfter, validBefore, nonce, signature);
        if (received == 0) revert NothingToDo();
        _fund(id, config, received);
    }

    /// Announces that the payer, or its authorizer, takes back up to `amount`. The receiver has `withdrawDelay` seconds to claim. A
    /// second announcement replaces the first.
    function startWithdrawal(ChannelConfig calldata config, uint128 amount) external {
        if (msg.sender != config.payer && msg.sender != config.payerAuthorizer) revert NotPayer(msg.sender);
        bytes32 id = channelId(config);
        Channel storage c = _channels[id];
        c.leaving = amount > type(uint64).max ? type(uint64).max : uint64(amount);
        c.leavesAt = uint40(block.timestamp) + config.withdrawDelay;
        emit WithdrawalStarted(id, amount, c.leavesAt);
    }

    /// Pays the announced amount, or what claims have left of it, into the payer's vault balance. Anyone may call it.
    function withdraw(ChannelConfig calldata config) external {
        bytes32 id = channelId(config);
        Channel storage c = _channels[id];
        if (c.leavesAt == 0) revert NothingToDo();
        if (block.timestamp < c.leavesAt) revert TooSoon(c.leavesAt);
        uint64 free = c.balance - c.claimed;
        uint64 amount = c.leaving < free ? c.leaving : free;
        c.leaving = 0;
        c.leavesAt = 0;
        c.balance -= amount;
        _vault.give(config.payer, amount);
        emit Withdrawn(id, amount);
    }

    // ---- the receiver

    /// Claims from many channels at once, whole vouchers or parts. The caller is, for every channel, its receiver or the receiver's
    /// authorizer. No payer, hub or authorizer has to agree: this is also what a receiver does when everybody else is gone.
    function claim(VoucherClaim[] calldata claims) external {
        if (claims.length > CLAIMS_MAX) revert TooManyClaims(claims.length);
        for (uint256 i = 0; i < claims.length; ++i) {
            ChannelConfig calldata config = claims[i].voucher.channel;
            if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) {
                revert NotReceiver(msg.sender);
            }
            _claim(claims[i]);
        }
    }

    /// Claims for a receiver whose authorizer signed `ClaimBatch(keccak of the ids and totals in order)`; anyone may send it.
    function claimWithSignature(VoucherClaim[] calldata claims, bytes calldata authorizerSignature) external {
        uint256 n = claims.length;
        if (n > CLAIMS_MAX) revert TooManyClaims(n);
        if (n == 0) revert NothingToDo();
        address authorizer = claims[0].voucher.channel.receiverAuthorizer;
        bytes memory packed;
        for (uint256 i = 0; i < n; ++i) {
            if (claims[i].voucher.channel.receiverAuthorizer != authorizer) revert NotReceiver(authorizer);
            bytes32 id = _claim(claims[i]);
            packed = bytes.concat(packed, id, bytes16(claims[i].totalClaimed));
        }
        bytes32 hash = _hashTypedDataV4(keccak256(abi.encode(CLAIM_TYPE_HASH, keccak256(packed))));
        if (!Signatures.isBy(authorizer, hash, authorizerSignature)) revert NotReceiver(authorizer);
    }

    /// Gives the payer back, at once, what the receiver does not want to claim. The caller is the receiver or its authorizer, or has
    /// the authorizer's signature over `Refund(channelId, what is claimed, amount)`.
    function refund(ChannelConfig calldata config, uint128 amount, bytes calldata authorizerSignature) external {
        bytes32 id = channelId(config);
        Channel storage c = _channels[id];
        if (msg.sender != config.receiver && msg.sender != config.receiverAuthorizer) {
            bytes32 hash = _hashTypedDataV4(keccak256(abi.encode(REFUND_TYPE_HASH, id, c.claimed, amount)));
            if (!Signatures.isBy(config.receiverAuthorizer, hash, authorizerSignature)) revert NotReceiver(msg.sender);
        }
        uint64 free = c.balance - c.claimed;
        if (amount > free) amount = free;
        if (amount == 0) revert NothingToDo();
        c.balance -= uint64(amount);
        _vault.give(config.payer, amount);
        emit Refunded(id, amount);
    }

    /// Pays out what a receiver has claimed: a provider's into its escrow (`Epochs`), anyone else's into its vault balance. Anyone may call it.
    function settle(address receiver) external returns (uint256 amount) {
        amount = unsettledOf[receiver];
        if (amount == 0) revert NothingToDo();
        unsettledOf[receiver] = 0;
        bool escrowed = _registry.hasRole(receiver, PROVIDER);
        if (escrowed) {
            _vault.give(address(_epochs), amount);
            _epochs.income(receiver, amount);
        } else {
            _vault.give(receiver, amount);
        }
        emit Settled(receiver, amount, escrowed);
    }

    // ---- views

    /// A channel's id: bound to this chain and contract.
    function channelId(ChannelConfig calldata config) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(CONFIG_TYPE_HASH, config)));
    }

    function channelOf(bytes32 id) external view returns (Channel memory) {
        return _channels[id];
    }

    /// What was claimed from a channel between the receiver's posts `period` and `period + 1`: 0 also if there were claims in three later
    /// periods.
    function claimedIn(bytes32 id, uint256 period) external view returns (uint256) {
        Channel storage c = _channels[id];
        if (period == c.period) return c.claimed - c.base;
        if (period == c.period1) return c.base - c.base1;
        if (period == c.period2) return c.base1 - c.base2;
        return 0;
    }

    /// What the payer, or its authorizer, signs.
    function voucherHash(bytes32 id, uint128 maxClaimableAmount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPE_HASH, id, maxClaimableAmount)));
    }

    // ---- inside

    /// The id of a channel that may be funded.
    function _check(ChannelConfig calldata config) private view returns (bytes32) {
        if (config.token != _token) revert WrongToken(config.token);
        if (config.receiver == address(0)) revert ReceiverIsZero();
        if (config.withdrawDelay < WITHDRAW_DELAY_MIN || config.withdrawDelay > WITHDRAW_DELAY_MAX) {
            revert BadWithdrawDelay(config.withdrawDelay);
        }
        return channelId(config);
    }

    /// Books what this contract has just got for a channel.
    function _fund(bytes32 id, ChannelConfig calldata config, uint256 amount) private {
        Channel storage c = _channels[id];
        if (amount > type(uint64).max - c.balance) revert AmountTooLarge(amount);
        if (c.balance == 0) emit Opened(id, config.payer, config.receiver, config);
        c.balance += uint64(amount);
        emit Funded(id, uint128(amount), c.balance);
    }

    function _claim(VoucherClaim calldata item) private returns (bytes32 id) {
        ChannelConfig calldata config = item.voucher.channel;
        id = channelId(config);
        uint128 max = item.voucher.maxClaimableAmount;
        address signer = config.payerAuthorizer == address(0) ? config.payer : config.payerAuthorizer;
        bytes32 hash = voucherHash(id, max);
        if (!Signatures.isBy(signer, hash, item.signature)) revert BadVoucher(id);
        Channel storage c = _channels[id];
        if (max > c.balance) max = c.balance;
        uint128 claimed = c.claimed;
        if (item.totalClaimed > max) revert ClaimTooHigh(id, item.totalClaimed, max);
        if (item.totalClaimed < claimed) revert ClaimTooLow(id, item.totalClaimed, claimed);
        if (item.totalClaimed == claimed) return id;
        uint24 period = uint24(_epochs.postsOf(config.receiver));
        if (period != c.period) {
            (c.base2, c.period2) = (c.base1, c.period1);
            (c.base1, c.period1) = (c.base, c.period);
            (c.base, c.period) = (uint64(claimed), period);
        }
        c.claimed = uint64(item.totalClaimed);
        unsettledOf[config.receiver] += item.totalClaimed - claimed;
        emit Claimed(id, item.totalClaimed);
    }
}
