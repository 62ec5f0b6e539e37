// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// What a dispute does to the epoch whose receipt it is about.
interface IHolds {
    /// Keeps a provider's epoch from being settled while a dispute about one of its receipts may last. Only the dispute contract.
    /// @return held whether it could be: false once the epoch's time for objections is over, or nothing was posted
    function hold(address provider, uint64 epoch) external returns (bool held);
}
