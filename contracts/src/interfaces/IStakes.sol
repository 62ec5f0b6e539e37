// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// What the contracts that find guilt may do to stakes. The registry does it for the contracts that its deployment fixed, and for nobody else.
interface IStakes {
    /// Takes up to `amount` of a node's stake, what is unbonding included.
    /// @param beneficiary who gets a part of what is taken; the protocol's treasury gets the rest
    /// @param sharePpm that part, in millionths, rounded down
    /// @return taken what there was, at most `amount`
    function slash(address node, uint256 amount, address beneficiary, uint32 sharePpm)
        external
        returns (uint256 taken);

    /// Ends a node that was proved to lie: its whole stake is taken, of which `reporterPpm` go to the reporter and the rest to the
    /// treasury, and its fees that are not yet settled go back to who paid them. Does nothing to a node already struck.
    function strike(address node, address reporter) external returns (uint256 taken);
}
