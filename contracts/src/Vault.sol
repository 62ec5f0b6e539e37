// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20Metadata} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Addresses, Directory} from "./Directory.sol";
import {IAuthorizedToken} from "./interfaces/IAuthorizedToken.sol";

/// All tokens of a deployment, and whose they are. Only this contract calls the token. What it holds is never less than the sum
/// of all balances; the other parts move balances and nothing else. Nothing here can stop `withdraw`.
contract Vault is ReentrancyGuardTransient {
    using SafeERC20 for IERC20Metadata;

    /// The token, with 6 decimals: a unit is a millionth of a dollar.
    IERC20Metadata public immutable token;

    /// What an account may withdraw now, in token units.
    mapping(address account => uint256) public balanceOf;
    /// The sum of all balances.
    uint256 public total;

    mapping(address part => bool) private _isPart;

    event Deposited(address indexed from, address indexed account, uint256 amount);
    event Withdrawn(address indexed account, address indexed to, uint256 amount);

    error InsufficientBalance(address account, uint256 balance, uint256 amount);
    /// Only another part of the deployment may do this.
    error NotAPart(address caller);
    /// The token does not count in millionths.
    error WrongDecimals(uint8 decimals);
    /// A withdrawal cost the vault more than its amount: the token charges its sender.
    error TokenOvercharges(uint256 amount, uint256 cost);

    constructor(Directory directory) {
        Addresses memory a = directory.addresses();
        token = IERC20Metadata(a.token);
        uint8 decimals = token.decimals();
        if (decimals != 6) revert WrongDecimals(decimals);
        _isPart[a.registry] = true;
        _isPart[a.channels] = true;
        _isPart[a.epochs] = true;
        _isPart[a.objections] = true;
        _isPart[a.audits] = true;
        _isPart[a.retrieval] = true;
        _isPart[a.disputes] = true;
    }

    modifier onlyPart() {
        if (!_isPart[msg.sender]) revert NotAPart(msg.sender);
        _;
    }

    /// Brings in up to `amount` of the caller's tokens, approved before, for `account`.
    /// @return received what arrived, which is what is credited: less than `amount` where the token takes a fee
    function deposit(address account, uint256 amount) external nonReentrant returns (uint256 received) {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        received = token.balanceOf(address(this)) - before;
        if (received > amount) received = amount;
        balanceOf[account] += received;
        total += received;
        emit Deposited(msg.sender, account, received);
    }

    /// Brings in up to `amount` of `from`'s tokens for the calling part, by an authorization that `from` signed for this contract (EIP-3009). The
    /// token checks signature, times and nonce, and lets nobody but this contract use it; what else the nonce stands for is the
    /// part's to check. A token without such authorizations reverts.
    /// @return received what arrived, which is what is credited
    function collect(
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external onlyPart nonReentrant returns (uint256 received) {
        uint256 before = token.balanceOf(address(this));
        IAuthorizedToken(address(token)).receiveWithAuthorization(
            from, address(this), amount, validAfter, validBefore, nonce, signature
        );
        received = token.balanceOf(address(this)) - before;
        if (received > amount) received = amount;
        balanceOf[msg.sender] += received;
        total += received;
        emit Deposited(from, msg.sender, received);
    }

    /// Sends `amount` of the caller's balance to `to`, who gets less where the token takes a fee.
    function withdraw(address to, uint256 amount) external nonReentrant {
        _debit(msg.sender, amount);
        total -= amount;
        uint256 before = token.balanceOf(address(this));
        token.safeTransfer(to, amount);
        uint256 cost = before - token.balanceOf(address(this));
        if (cost > amount) revert TokenOvercharges(amount, cost);
        emit Withdrawn(msg.sender, to, amount);
    }

    /// Moves a part's own balance.
    function give(address to, uint256 amount) external onlyPart {
        _debit(msg.sender, amount);
        balanceOf[to] += amount;
    }

    /// Moves an account's balance to the calling part. Parts do this only for the account that called them, or signed.
    function take(address from, uint256 amount) external onlyPart {
        _debit(from, amount);
        balanceOf[msg.sender] += amount;
    }

    function _debit(address account, uint256 amount) private {
        uint256 balance = balanceOf[account];
        if (balance < amount) revert InsufficientBalance(account, balance, amount);
        unchecked {
            balanceOf[account] = balance - amount;
        }
    }
}
