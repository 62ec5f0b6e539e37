// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// What a dispute does to the epoch whose receipt it is about.
interface IHolds {
    /// Keeps a provider's batch from being settled while a dispute about one of its receipts may last. Only the dispute contract.
    /// @param sequence the receipt's sequence number: it stands in that batch and in no other
    /// @return held whether it could be: false once the batch's time for objections is over, or the number is not in it
    function hold(address provider, uint64 epoch, uint64 sequence) external returns (bool held);
}
