// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Cursor, Cursors} from "./Cursor.sol";
import {Refused} from "./Integers.sol";
import {Spec} from "./Programs.sol";

/// @notice How tokens are chosen: the request's sampling parameters, whether a guide leaves only some, the sampler's seed. Fractions are in
/// millionths.
struct Choice {
    bool guided;
    bytes32 seed;
    uint256 temperature;
    uint256 topK;
    uint256 topP;
    uint256 minP;
    int256 presence;
    int256 frequency;
    uint256 repetition;
    /// How many biases there are, and where in calldata their list begins: id and bias, 4 bytes each, little-endian.
    uint256 biases;
    uint256 biasesAt;
}

/// @title Sampling parameters: reading their borsh, and the parts of the choice of a token (protocol 4, 9.4)
library Choices {
    using Cursors for Cursor;

    uint256 internal constant GREEDY_BELOW = 10_000;
    uint256 internal constant MILLION = 1_000_000;
    /// Bits of a candidate's key.
    uint256 internal constant KEY_BITS = 52;

    uint256 internal constant SEEN = 0;
    uint256 internal constant MASK = 1;
    uint256 internal constant ADJUSTED = 2;
    uint256 internal constant BEST = 3;

    uint256 internal constant LIKELIHOODS = 0;
    uint256 internal constant KTH = 1;
    uint256 internal constant NUCLEUS = 2;
    uint256 internal constant FOUND = 3;
    uint256 internal constant CHOSEN = 4;

    /// @notice Sampling parameters. Reverts with `Refused` for other bytes, and for parameters beyond the limits of requests.
    function sampling(uint256 pos, uint256 length) internal pure returns (Choice memory s) {
        unchecked {
            Cursor memory c = Cursor(pos, pos + length);
            s.temperature = c.little32();
            s.topK = c.little32();
            s.topP = c.little32();
            s.minP = c.little32();
            if (c.flag()) c.take(8);
            s.presence = int32(uint32(c.little32()));
            s.frequency = int32(uint32(c.little32()));
            s.repetition = c.little32();
            s.biases = c.little32();
            s.biasesAt = c.take(8 * s.biases);
            bool fits = c.done() && s.temperature <= 2 * MILLION && s.topP >= 1 && s.topP <= MILLION && s.minP <= MILLION
                && _within(s.presence, 2_000_000) && _within(s.frequency, 2_000_000) && s.repetition >= 10_000
                && s.repetition <= 10 * MILLION && s.biases <= 1024;
            uint256 least;
            for (uint256 i; fits && i < s.biases; ++i) {
                (uint256 id, int256 bias) = biasAt(s, i);
                fits = id >= least && _within(bias, 100_000_000);
                least = id + 1;
            }
            if (!fits) revert Refused();
        }
    }

    /// @notice The `i`-th bias and its token.
    function biasAt(Choice memory s, uint256 i) internal pure returns (uint256 id, int256 bias) {
        unchecked {
            uint256 pos = s.biasesAt + 8 * i;
            Cursor memory c = Cursor(pos, pos + 8);
            id = c.little32();
            bias = int32(uint32(c.little32()));
        }
    }

    function _within(int256 v, int256 most) private pure returns (bool) {
        return v <= most && v >= -most;
    }

    /// @notice Whether the likeliest token is taken.
    function greedy(Choice memory s) internal pure returns (bool) {
        return s.temperature < GREEDY_BELOW;
    }

    /// @notice Whether tokens seen before are penalised.
    function penalised(Choice memory s) internal pure returns (bool) {
        return s.presence != 0 || s.frequency != 0 || s.repetition != MILLION;
    }

    /// @notice Whether top-k keeps some tokens only.
    function limitsCount(Choice memory s) internal pure returns (bool) {
        return !greedy(s) && s.topK != 0;
    }

    /// @notice Whether top-p keeps some tokens only.
    function limitsMass(Choice memory s) internal pure returns (bool) {
        return !greedy(s) && s.topP < MILLION;
    }

    /// @notice The parts of the step that changes logits.
    function adjusting(Choice memory s, uint256 vocabulary) internal pure returns (Spec[] memory all) {
        all = new Spec[](4);
        all[SEEN] = Spec(penalised(s) ? vocabulary : 0, false, 4, false);
        all[MASK] = Spec(s.guided ? vocabulary : 0, false, 1, false);
        all[ADJUSTED] = Spec(vocabulary, false, 4, false);
        all[BEST] = Spec(2, false, 8, false);
    }

    /// @notice The parts of the step that chooses.
    function choosing(Choice memory s, uint256 vocabulary) internal pure returns (Spec[] memory all) {
        bool draws = !greedy(s);
        all = new Spec[](5);
        all[LIKELIHOODS] = Spec(draws ? vocabulary : 0, false, 8, false);
        all[KTH] = Spec(limitsCount(s) ? KEY_BITS : 0, false, 8, false);
        all[NUCLEUS] = Spec(limitsMass(s) ? KEY_BITS + 1 : 0, false, 8, false);
        all[FOUND] = Spec(draws ? 2 : 0, false, 8, false);
        all[CHOSEN] = Spec(1, false, 4, false);
    }
}
