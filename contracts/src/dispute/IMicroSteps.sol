// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Cell, Extent} from "./Source.sol";

/// @notice How a number follows from those before it: it is taken as it is, it is a function of a few, or runs of numbers go into an
/// accumulator.
enum Rule {
    Given,
    Map,
    Fold
}

/// @title Micro-steps: how one number of a trace follows from others (protocol 9.4)
/// @notice What was opened comes as items (see `Item`): whether it stands under its roots is somebody else's question. Every function
/// reverts with `Refused` where the numbers that it reads are not among the items, or are none that it could read.
interface IMicroSteps {
    /// @notice How a number follows.
    /// @return rule The rule.
    /// @return runs Of a fold, how many runs.
    /// @return from Of a fold, the accumulator before the first run.
    function rule(bytes calldata items, Extent calldata extent, Cell calldata cell)
        external
        pure
        returns (Rule rule, uint256 runs, int64 from);

    /// @notice A number that follows by a map.
    function map(bytes calldata items, Extent calldata extent, Cell calldata cell) external pure returns (int64);

    /// @notice The accumulator after run `run` of a number that follows by a fold, from that before it.
    function fold(bytes calldata items, Extent calldata extent, Cell calldata cell, uint256 run, int64 before)
        external
        pure
        returns (int64);
}
