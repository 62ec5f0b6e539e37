// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Choice, Choices} from "./Choices.sol";
import {Context, Contexts} from "./Contexts.sol";
import {Contradiction, Malformed, Trees} from "./Trees.sol";
import {Cursor, Cursors} from "./Cursor.sol";
import {Form, Programs} from "./Programs.sol";
import {Item} from "./Source.sol";
import {Refused} from "./Integers.sol";

/// @notice What was opened, by name: where its bytes stand, in calldata or, with the highest bit of the place set, in memory.
struct Opened {
    uint256 count;
    uint256[] names;
    uint256[] places;
    uint256[] lengths;
}

/// @title Openings: that what a micro-step reads stands under the roots that it must stand under (protocol 10.4)
/// @notice Ways up have no indices: each thing says where it stands, and the way follows from it.
library Openings {
    using Contexts for Context;
    using Cursors for Cursor;

    uint256 private constant IN_MEMORY = 1 << 255;
    /// Leaves of the model root before the tensors, and which of them is the program.
    uint256 private constant BEFORE_TENSORS = 4;
    uint256 private constant PROGRAM = 1;
    uint256 private constant STATEMENT_MAX = 16_404;
    /// Most things that one proof opens.
    uint256 private constant OPENED_MAX = 1024;

    uint256 private constant OP = 1;
    uint256 private constant TENSOR = 2;
    uint256 private constant WEIGHTS = 3;
    uint256 private constant SCALES = 4;
    uint256 private constant RUN = 5;
    uint256 private constant STEP = 6;
    uint256 private constant IDS = 7;
    uint256 private constant TERMS = 8;

    /// @notice Reads and checks openings to the end of a message: how many things they open (2 bytes), then each with its kind (1 byte).
    /// @param block_ The disputed block: its steps are under the steps' root, those of others under their carries.
    function read(Cursor memory c, Context memory x, uint256 block_) internal pure returns (Opened memory o) {
        uint256 most = c.big(2);
        if (most > OPENED_MAX) revert Refused();
        o.names = new uint256[](most);
        o.places = new uint256[](most);
        o.lengths = new uint256[](most);
        while (!c.done()) {
            uint256 kind = c.u8();
            if (kind == OP) _op(o, c, x);
            else if (kind == TENSOR) _tensor(o, c, x);
            else if (kind >= WEIGHTS && kind <= RUN) _content(o, c, x, kind);
            else if (kind == STEP) _step(o, c, x, block_);
            else if (kind == IDS) _ids(o, c, x);
            else if (kind == TERMS) _terms(o, c, x);
            else revert Refused();
        }
        if (o.count != most) revert Refused();
    }

    function _add(Opened memory o, uint256 name, uint256 place, uint256 length) private pure {
        uint256 i = o.count;
        if (i >= o.names.length) revert Refused();
        o.names[i] = name;
        o.places[i] = place;
        o.lengths[i] = length;
        o.count = i + 1;
    }

    /// @notice Place in calldata and length of what was opened. Reverts with `Refused` when it was not.
    function find(Opened memory o, uint256 name) internal pure returns (uint256 place, uint256 length) {
        unchecked {
            for (uint256 i; i < o.count; ++i) {
                if (o.names[i] == name) return (o.places[i], o.lengths[i]);
            }
        }
        revert Refused();
    }

    /// @notice Everything opened, as the micro-steps read it.
    function items(Opened memory o) internal pure returns (bytes memory all) {
        unchecked {
            uint256 total;
            for (uint256 i; i < o.count; ++i) {
                total += 64 + o.lengths[i];
            }
            assembly ("memory-safe") {
                all := mload(0x40)
                mstore(all, total)
                mstore(0x40, add(all, and(add(total, 63), not(31))))
            }
            uint256 to;
            assembly ("memory-safe") {
                to := add(all, 32)
            }
            for (uint256 i; i < o.count; ++i) {
                uint256 name = o.names[i];
                uint256 place = o.places[i];
                uint256 length = o.lengths[i];
                assembly ("memory-safe") {
                    mstore(to, name)
                    mstore(add(to, 32), length)
                    to := add(to, 64)
                    switch shr(255, place)
                    case 0 { calldatacopy(to, place, length) }
                    default { mcopy(to, and(place, 0xffffffff), length) }
                    to := add(to, length)
                }
            }
        }
    }

    /// @notice Reads a statement of the program (length, 2 bytes; bytes; its way) and checks that it stands at `index`.
    function statement(Cursor memory c, Context memory x, uint256 index)
        internal
        pure
        returns (uint256 place, uint256 length)
    {
        unchecked {
            length = c.big(2);
            if (length > STATEMENT_MAX) revert Refused();
            place = c.take(length);
            uint256 count = 1 + x.tensors + x.facts.ops;
            if (under(c, Trees.leaf(place, length), index, count) != x.program) revert Contradiction();
        }
    }

    /// @notice Reads the operation `op` as declared.
    function declaredOp(Cursor memory c, Context memory x, uint256 op)
        internal
        pure
        returns (uint256 place, uint256 length)
    {
        unchecked {
            if (op >= x.facts.ops) revert Refused();
            return statement(c, x, 1 + x.tensors + op);
        }
    }

    /// @notice Reads the facts of the model's program: the number of tensors (2 bytes), the way of the program under the model; the facts
    /// (length, 2 bytes; bytes), their way under the program. The ways are read after what they lead from is known.
    function facts(Cursor memory c, Context memory x) internal pure {
        unchecked {
            x.tensors = c.big(2);
            uint256 length = c.big(2);
            if (length > STATEMENT_MAX) revert Refused();
            uint256 place = c.take(length);
            x.locate(place, length);
            x.program = under(c, Trees.leaf(place, length), 0, 1 + x.tensors + x.facts.ops);
            bytes32 leaf = Trees.leaf(abi.encodePacked(uint8(7), "program", x.program));
            if (under(c, leaf, PROGRAM, x.tensors + BEFORE_TENSORS) != x.model) revert Contradiction();
        }
    }

    /// @notice The root under which a leaf hash stands by the way that comes next.
    function under(Cursor memory c, bytes32 leaf, uint256 index, uint256 count) internal pure returns (bytes32 root) {
        uint256 next;
        (root, next) = Trees.rootFrom(leaf, index, count, c.pos);
        c.jump(next);
    }

    /// @notice The trace root under which what a block carries of a step stands, by the step's way under the carry and the carry's that come next.
    function carried(Cursor memory c, Context memory x, bytes32 h, uint256 step, uint256 block_)
        internal
        pure
        returns (bytes32)
    {
        uint256 place = Programs.carriedPlace(x.facts, step);
        if (place >= x.facts.carried || Programs.carriedOp(x.facts, place) != step) revert Refused();
        return under(c, under(c, h, place, x.facts.carried), block_, x.blocks());
    }

    /// @dev Operation (2 bytes), its statement.
    function _op(Opened memory o, Cursor memory c, Context memory x) private pure {
        uint256 op = c.big(2);
        (uint256 place, uint256 length) = declaredOp(c, x, op);
        Programs.op(place, length);
        _add(o, Item.op(op), place, length);
    }

    /// @dev Tensor (2 bytes), its statement.
    function _tensor(Opened memory o, Cursor memory c, Context memory x) private pure {
        uint256 tensor = c.big(2);
        if (tensor >= x.tensors) revert Refused();
        (uint256 place, uint256 length) = statement(c, x, 1 + tensor);
        (uint256 kind, uint256 a, uint256 b, int256 detail) = Programs.tensor(place, length);
        uint256 form = (kind << 248) | (a << 216) | (b << 184) | (uint256(uint16(int16(detail))) << 168);
        uint256 room;
        assembly ("memory-safe") {
            room := mload(0x40)
            mstore(room, form)
            mstore(0x40, add(room, 32))
        }
        _add(o, Item.shape(tensor), IN_MEMORY | room, 32);
    }

    /// @dev A leaf of a tensor that was declared before it.
    function _content(Opened memory o, Cursor memory c, Context memory x, uint256 kind) private pure {
        uint256 tensor = c.big(2);
        uint256 form;
        {
            (uint256 room,) = find(o, Item.shape(tensor));
            room ^= IN_MEMORY;
            assembly ("memory-safe") {
                form := mload(room)
            }
        }
        bytes32 h = kind == WEIGHTS ? _weights(o, c, tensor, form) : _run(o, c, tensor, form, kind);
        bytes32 leaf = Trees.leaf(abi.encodePacked(uint8(6), "tensor", h));
        if (under(c, leaf, BEFORE_TENSORS + tensor, x.tensors + BEFORE_TENSORS) != x.model) revert Contradiction();
    }

    /// @dev Row (4 bytes), column tile (2 bytes), weights, the row's way under its tile, the tile's way, the root of the scales.
    function _weights(Opened memory o, Cursor memory c, uint256 tensor, uint256 form) private pure returns (bytes32) {
        unchecked {
            if (form >> 248 != Form.MATRIX) revert Refused();
            uint256 rows = uint32(form >> 216);
            uint256 columns = uint32(form >> 184);
            uint256 row = c.big(4);
            uint256 tile = c.big(2);
            if (row >= rows || tile << 8 >= columns) revert Refused();
            uint256 length = _least(columns - (tile << 8), 256);
            uint256 place = c.take(length);
            _add(o, Item.weights(tensor, row, tile), place, length);
            uint256 tiles = (columns + 255) >> 8;
            bytes32 h = under(c, Trees.leaf(place, length), row & 63, _least(rows - (row & ~uint256(63)), 64));
            h = under(c, h, (row >> 6) * tiles + tile, ((rows + 63) >> 6) * tiles);
            return keccak256(abi.encodePacked(h, c.word()));
        }
    }

    /// @dev Index (4 bytes), numbers, the run's way; of scales, the root of the weights.
    function _run(Opened memory o, Cursor memory c, uint256 tensor, uint256 form, uint256 kind)
        private
        pure
        returns (bytes32 h)
    {
        unchecked {
            uint256 sort = form >> 248;
            if ((kind == SCALES) != (sort == Form.MATRIX)) revert Refused();
            uint256 count = uint32(form >> 216);
            uint256 each = 64;
            uint256 width = 4;
            if (sort == Form.TABLE) count = 1025;
            if (sort == Form.ROTARY) count *= 2 * uint256(uint32(form >> 184));
            if (sort == Form.ROTARY || sort == Form.MATRIX) (each, width) = (128, 2);
            uint256 index = c.big(4);
            if (index * each >= count) revert Refused();
            uint256 length = _least(count - index * each, each) * width;
            uint256 place = c.take(length);
            uint256 name = kind == SCALES ? Item.scales(tensor, index) : Item.run(tensor, index);
            _add(o, name, place, length);
            h = under(c, Trees.leaf(place, length), index, (count + each - 1) / each);
            if (kind == SCALES) h = keccak256(abi.encodePacked(c.word(), h));
        }
    }

    function _least(uint256 a, uint256 b) private pure returns (uint256) {
        return a < b ? a : b;
    }

    /// @dev Leaves of a step: block (2 bytes), step (2 bytes), number of parts (1 byte), their roots, the step's way; of another block than the
    /// disputed one, the way of its carry; number of leaves (1 byte); of each the part (1 byte), its index and the number of the part's
    /// leaves (4 bytes each), its length (2 bytes), its bytes, its way.
    function _step(Opened memory o, Cursor memory c, Context memory x, uint256 disputed) private pure {
        unchecked {
            uint256 block_ = c.big(2);
            uint256 step = c.big(2);
            uint256 parts = c.u8();
            uint256 roots = c.take(32 * parts);
            bytes32 h = operation(roots, parts);
            if (block_ == disputed) {
                if (under(c, h, step, x.facts.ops + 2) != x.steps) revert Contradiction();
            } else {
                if (carried(c, x, h, step, block_) != x.trace) revert Contradiction();
            }
            for (uint256 leaves = c.u8(); leaves != 0; --leaves) {
                _leaf(o, c, roots, parts, (block_ << 16) | step);
            }
        }
    }

    function _leaf(Opened memory o, Cursor memory c, uint256 roots, uint256 parts, uint256 where) private pure {
        unchecked {
            uint256 part = c.u8();
            uint256 index = c.big(4);
            uint256 count = c.big(4);
            uint256 length = c.big(2);
            uint256 place = c.take(length);
            if (part >= parts) revert Refused();
            bytes32 root;
            assembly ("memory-safe") {
                root := calldataload(add(roots, shl(5, part)))
            }
            if (under(c, Trees.leaf(place, length), index, count) != root) revert Contradiction();
            _add(o, Item.leaf(where >> 16, where & 0xffff, part, index), place, length);
        }
    }

    /// @notice A step's commitment, from the roots of its parts in calldata.
    function operation(uint256 roots, uint256 parts) internal pure returns (bytes32 h) {
        assembly ("memory-safe") {
            let m := mload(0x40)
            calldatacopy(m, roots, shl(5, parts))
            h := keccak256(m, shl(5, parts))
        }
    }

    /// @dev Leaf (4 bytes), number of ids (1 byte), ids, the leaf's way under the transcript.
    function _ids(Opened memory o, Cursor memory c, Context memory x) private pure {
        unchecked {
            uint256 index = c.big(4);
            uint256 length = c.u8();
            uint256 leaves = ((x.prompt + 63) >> 6) + ((x.output + 63) >> 6);
            if (length > 64 || index >= leaves) revert Refused();
            length *= 4;
            uint256 place = c.take(length);
            // A header before the ids, text and probabilities after them.
            if (under(c, Trees.leaf(place, length), index + 1, leaves + 3) != x.transcript) revert Contradiction();
            _add(o, Item.ids(index), place, length);
        }
    }

    /// @dev How tokens are chosen.
    function _terms(Opened memory o, Cursor memory c, Context memory x) private pure {
        (Choice memory choice, uint256 place, uint256 length) = terms(c, x);
        bytes memory all = new bytes(33 + length);
        bytes32 seed = choice.seed;
        bool guided = choice.guided;
        uint256 room;
        assembly ("memory-safe") {
            room := add(all, 32)
            mstore8(room, guided)
            mstore(add(room, 1), seed)
            calldatacopy(add(room, 33), place, length)
        }
        _add(o, Item.choice(), IN_MEMORY | room, 33 + length);
    }

    /// @notice Reads how the request's tokens are chosen: length (2 bytes) and bytes of the sampling parameters, the request's leaves but that
    /// one (4 hashes).
    function terms(Cursor memory c, Context memory x)
        internal
        pure
        returns (Choice memory choice, uint256 place, uint256 length)
    {
        length = c.big(2);
        place = c.take(length);
        bytes32[5] memory leaves = [c.word(), c.word(), Trees.leaf(place, length), c.word(), c.word()];
        bool guided = leaves[3] != keccak256(hex"0000");
        uint256 nodes;
        assembly ("memory-safe") {
            nodes := leaves
        }
        if (Trees.seal(5, Trees.lead(nodes, 5)) != x.request) revert Contradiction();
        choice = Choices.sampling(place, length);
        choice.guided = guided;
        choice.seed = keccak256(abi.encodePacked("assay/seed/1", x.nonce, x.request, x.model));
    }
}
