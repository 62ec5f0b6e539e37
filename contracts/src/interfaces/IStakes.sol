// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.30;

/// @title What disputes ask of whoever keeps stakes
/// @notice Only the contract of disputes may call these. `release`, `forfeit` and `slash` end a dispute: they must not revert, whatever
/// the parties have left, and call no party.
interface IStakes {
    /// @notice Sets `amount` of what `party` has aside. Reverts when it has less.
    function hold(address party, uint256 amount) external;

    /// @notice Gives back what was set aside.
    function release(address party, uint256 amount) external;

    /// @notice Gives what `party` set aside to `to`.
    function forfeit(address party, address to, uint256 amount) external;

    /// @notice Takes from a provider that lost a dispute what it forfeits, including what it is about to withdraw, and gives the challenger its
    /// share.
    function slash(address provider, address challenger) external;
}
