// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @notice What is asked for. Up to `Digest`, and in `Trace`, the defender moves; then the challenger.
enum Stage {
    None,
    Trace,
    Steps,
    Part,
    Nodes,
    Leaf,
    Proof,
    Digest,
    PickNode,
    PickPart,
    PickNumber,
    Over
}

/// @notice Which tree is walked down.
enum Tree {
    Blocks,
    Steps,
    Part
}

/// @notice Why a dispute ended (protocol 10.6).
enum Reason {
    None,
    Timeout,
    Malformed,
    Contradiction,
    StepHolds,
    StepFails,
    PartialsFail,
    DigestHolds,
    DigestFails
}

/// @notice Where a dispute stands, in one word of storage.
/// @param deadline When the party whose turn it is has lost, in seconds.
/// @param stage What is asked for; when it is over, why it ended is in `part` and who won in `rows` (0 the defender, 1 the challenger).
/// @param tree Which tree is walked down.
/// @param block_ The picked block, or that whose digest is asked for.
/// @param step The picked step.
/// @param part The picked part.
/// @param height Height of the picked node; before a pick, of the node below which nodes were claimed.
/// @param top Height of the node that the contract knows.
/// @param below Height of the nodes that were claimed.
/// @param index Place of the picked node among those of its height.
/// @param leaves Leaves of the tree of blocks or steps.
/// @param rows Rows of the picked part, once its shape is known; likewise its `columns`, the `width` of its numbers, and whether its leaves go `byColumns`.
/// @param number Place of the picked number in its leaf, which has at most 256.
/// @param accused Whether the trace is one that an accuser states of an auditor's receipt, and not a receipt's own.
struct Walk {
    uint40 deadline;
    Stage stage;
    Tree tree;
    uint16 block_;
    uint16 step;
    uint8 part;
    uint8 height;
    uint8 top;
    uint8 below;
    uint32 index;
    uint24 leaves;
    uint8 rows;
    uint40 columns;
    uint8 width;
    bool byColumns;
    uint8 number;
    bool accused;
}
