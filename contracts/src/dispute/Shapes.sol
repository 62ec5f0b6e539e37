// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Spec} from "./Programs.sol";

/// @notice The shape of a part in a block.
struct Shape {
    uint256 rows;
    uint256 columns;
    uint256 width;
    bool byColumns;
}

/// @title How the numbers of a part become leaves (protocol 9.2)
library Shapes {
    /// @notice A part's shape in a block that ends before position `end`.
    function inBlock(Spec memory spec, uint256 rows, uint256 end) internal pure returns (Shape memory) {
        unchecked {
            return Shape(rows, spec.perPosition ? spec.columns * end : spec.columns, spec.width, spec.byColumns);
        }
    }

    /// @notice Columns that share leaves.
    function band(Shape memory s) internal pure returns (uint256) {
        return s.byColumns && s.width == 1 ? 4 : 1;
    }

    /// @notice Leaves along a row, or along the columns that share leaves.
    function perLine(Shape memory s) internal pure returns (uint256) {
        unchecked {
            return s.byColumns ? (s.rows + 31) >> 5 : (s.columns + 255) >> 8;
        }
    }

    /// @notice Number of leaves.
    function leaves(Shape memory s) internal pure returns (uint256) {
        unchecked {
            uint256 b = band(s);
            return (s.byColumns ? (s.columns + b - 1) / b : s.rows) * perLine(s);
        }
    }

    /// @notice Leaf and place in it of a number of the part.
    function place(Shape memory s, uint256 row, uint256 column) internal pure returns (uint256 leaf, uint256 pos) {
        unchecked {
            if (!s.byColumns) return (row * perLine(s) + (column >> 8), column & 255);
            uint256 b = band(s);
            uint256 within = column % b;
            leaf = (column / b) * perLine(s) + (row >> 5);
            pos = (row & 31) * wide(s, column - within) + within;
        }
    }

    /// @notice Numbers of one row in a leaf by columns whose first column is `column`.
    function wide(Shape memory s, uint256 column) internal pure returns (uint256) {
        unchecked {
            uint256 left = s.columns - column;
            uint256 b = band(s);
            return left < b ? left : b;
        }
    }

    /// @notice Row and column of the first number of a leaf, and how many numbers it has; 0 beyond the last.
    function leafOf(Shape memory s, uint256 leaf) internal pure returns (uint256 row, uint256 column, uint256 count) {
        unchecked {
            uint256 per = perLine(s);
            if (leaf >= leaves(s)) return (0, 0, 0);
            uint256 line = leaf / per;
            if (!s.byColumns) {
                row = line;
                column = (leaf % per) << 8;
                count = s.columns - column;
                if (count > 256) count = 256;
            } else {
                row = (leaf % per) << 5;
                column = line * band(s);
                count = s.rows - row;
                if (count > 32) count = 32;
                count *= wide(s, column);
            }
        }
    }

    /// @notice Row and column of number `pos` of a leaf that has it.
    function cell(Shape memory s, uint256 leaf, uint256 pos) internal pure returns (uint256 row, uint256 column) {
        unchecked {
            (row, column,) = leafOf(s, leaf);
            uint256 w = s.byColumns ? wide(s, column) : 256;
            row += pos / w;
            column += pos % w;
        }
    }
}
