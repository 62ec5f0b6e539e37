// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Choice, Choices} from "./Choices.sol";
import {Functions} from "./Functions.sol";
import {Integers, Refused} from "./Integers.sol";
import {IMicroSteps, Rule} from "./IMicroSteps.sol";
import {Cell, Extent, Reader, Source, Sources, Strip} from "./Source.sol";

/// @title The micro-steps of the choice of a token, without sorting (semantics 7, protocol 9.4 and 9.5)
/// @notice A candidate's key is its likelihood above its id turned round. What top-k and top-p keep is every key from a threshold on,
/// which is found bit by bit.
contract SamplingSteps is IMicroSteps {
    using Choices for Choice;
    using Integers for int256;
    using Sources for Source;

    /// Inputs of one run of a fold over token ids of the vocabulary.
    uint256 private constant RUN = 256;
    /// Token ids of one run of a fold over a transcript: those of a leaf.
    uint256 private constant IDS_RUN = 64;
    /// Bits of an id in a key.
    uint256 private constant ID_BITS = 20;
    uint256 private constant ID_MASK = (1 << ID_BITS) - 1;
    int256 private constant LOWEST = type(int64).min;
    /// The likelihood of the best token.
    uint256 private constant LIKELIEST = 65_024 << 16;
    uint256 private constant MILLION = 1_000_000;

    /// @dev What a run of a fold over the vocabulary is about.
    struct Fold {
        Cell cell;
        uint256 from;
        uint256 to;
        /// Keys below it are left out.
        uint256 threshold;
        /// Likelihoods below it, in millionths of the best one, are left out.
        uint256 minP;
    }

    /// @inheritdoc IMicroSteps
    function rule(bytes calldata, Extent calldata extent, Cell calldata cell)
        external
        pure
        returns (Rule, uint256, int64)
    {
        unchecked {
            uint256 runs = (extent.vocabulary + RUN - 1) / RUN;
            if (cell.op == extent.ops) {
                if (cell.part == Choices.SEEN) return (Rule.Fold, (cell.position + IDS_RUN) / IDS_RUN, 0);
                if (cell.part == Choices.MASK) return (Rule.Given, 0, 0);
                if (cell.part == Choices.ADJUSTED) return (Rule.Map, 0, 0);
                if (cell.part == Choices.BEST) {
                    return (Rule.Fold, runs, cell.column == 0 ? int64(0) : int64(LOWEST));
                }
            } else {
                if (cell.part == Choices.LIKELIHOODS || cell.part == Choices.CHOSEN) return (Rule.Map, 0, 0);
                if (cell.part <= Choices.FOUND) return (Rule.Fold, runs, 0);
            }
            revert Refused();
        }
    }

    /// @inheritdoc IMicroSteps
    function map(bytes calldata items, Extent calldata extent, Cell calldata cell) external pure returns (int64) {
        unchecked {
            Source memory s = Sources.over(items, extent);
            if (cell.op == extent.ops) {
                if (cell.part == Choices.ADJUSTED) return int64(_adjusted(s, cell));
            } else if (cell.part == Choices.LIKELIHOODS) {
                return int64(int256(_likelihood(s, cell)));
            } else if (cell.part == Choices.CHOSEN) {
                if (s.chosen().greedy()) {
                    (, uint256 id) = _best(s, cell);
                    return int64(int256(id));
                }
                int256 found = s.cell(cell.op, Choices.FOUND, cell.position, 1);
                if (found >= 0 || found == LOWEST) revert Refused();
                return int64(-found - 1);
            }
            revert Refused();
        }
    }

    function _adjusted(Source memory s, Cell memory c) private pure returns (int256 logit) {
        unchecked {
            logit = s.numberOf(s.extent.logits, c.position, c.column);
            Choice memory choice = s.chosen();
            int256 seen = choice.penalised() ? s.cell(c.op, Choices.SEEN, c.position, c.column) : int256(0);
            if (seen != 0 && choice.repetition != MILLION) logit = Functions.repeated(logit, choice.repetition);
            int256 count = seen >> 1;
            if (count > 0) {
                int256 frequency = count * Functions.sixteen(choice.frequency);
                logit = (logit - Functions.sixteen(choice.presence) - frequency).sat32();
            }
            // Biases rise with the ids.
            uint256 low;
            uint256 high = choice.biases;
            while (low < high) {
                uint256 middle = (low + high) >> 1;
                (uint256 id, int256 bias) = choice.biasAt(middle);
                if (id == c.column) return (logit + Functions.sixteen(bias)).sat32();
                if (id < c.column) low = middle + 1;
                else high = middle;
            }
        }
    }

    /// @dev Logit and id of the best token.
    function _best(Source memory s, Cell memory c) private pure returns (int256 logit, uint256 id) {
        unchecked {
            int256 rank = s.cell(s.extent.ops, Choices.BEST, c.position, 1);
            id = ID_MASK - (uint256(rank) & ID_MASK);
            logit = rank >> (ID_BITS + 1);
            if (logit != int32(logit)) revert Refused();
        }
    }

    function _likelihood(Source memory s, Cell memory c) private pure returns (uint256) {
        unchecked {
            Choice memory choice = s.chosen();
            uint256 adjust = s.extent.ops;
            if (choice.guided && s.cell(adjust, Choices.BEST, c.position, 0) != 0) {
                if (s.cell(adjust, Choices.MASK, c.position, c.column) != 1) return 0;
            }
            (int256 most,) = _best(s, c);
            int256 logit = s.cell(adjust, Choices.ADJUSTED, c.position, c.column);
            int256 distance =
                Functions.exponent(most, choice.temperature) - Functions.exponent(logit, choice.temperature);
            return Functions.exp2Likelihood(uint256(distance) & 0xffffffff);
        }
    }

    /// @inheritdoc IMicroSteps
    function fold(bytes calldata items, Extent calldata extent, Cell calldata cell, uint256 run, int64 before)
        external
        pure
        returns (int64)
    {
        unchecked {
            Source memory s = Sources.over(items, extent);
            if (cell.op == extent.ops && cell.part == Choices.SEEN) {
                return int64(_seen(s, cell, run, before));
            }
            Fold memory f;
            f.cell = cell;
            (f.from, f.to) = _run(run, RUN, extent.vocabulary);
            if (cell.op == extent.ops) {
                if (cell.part == Choices.BEST) return int64(_bestOf(s, f, before));
            } else if (cell.part == Choices.KTH) {
                return int64(_count(s, f, before));
            } else if (cell.part == Choices.NUCLEUS) {
                _afterTopK(s, f);
                if (cell.column != 0) {
                    uint256 threshold = _threshold(s, cell, Choices.NUCLEUS, cell.column - 1)
                        | _bit(cell.column - 1);
                    if (threshold > f.threshold) f.threshold = threshold;
                }
                return int64(_mass(s, f, before));
            } else if (cell.part == Choices.FOUND) {
                _kept(s, f);
                return int64(cell.column == 0 ? _mass(s, f, before) : _find(s, f, before));
            }
            revert Refused();
        }
    }

    function _run(uint256 run, uint256 size, uint256 length) private pure returns (uint256 from, uint256 to) {
        unchecked {
            from = run * size;
            if (from > length) from = length;
            to = from + size;
            if (to > length) to = length;
        }
    }

    /// @dev 2 for every time the answer has the token, 1 if the prompt has it.
    function _seen(Source memory s, Cell memory c, uint256 run, int256 acc) private pure returns (int256) {
        unchecked {
            (uint256 p, uint256 to) = _run(run, IDS_RUN, c.position + 1);
            for (; p < to; ++p) {
                if (s.token(p) == c.column) acc = p < s.extent.prompt ? acc | 1 : acc.add64(2);
            }
            return acc;
        }
    }

    /// @dev How many tokens the mask leaves, or the best of them.
    function _bestOf(Source memory s, Fold memory f, int256 acc) private pure returns (int256) {
        unchecked {
            Cell memory c = f.cell;
            bool guided = s.chosen().guided;
            Strip memory mask = Sources.strip(s.reader(c.op, Choices.MASK, c.position), c.position, f.from);
            if (c.column == 0) {
                for (uint256 id = f.from; id < f.to; ++id) {
                    if (!guided || s.next(mask) == 1) acc = acc.add64(1);
                }
                return acc;
            }
            if (f.from == f.to) return acc;
            if (guided) guided = s.cell(c.op, Choices.BEST, c.position, 0) != 0;
            Reader memory logits = s.reader(c.op, Choices.ADJUSTED, c.position);
            Strip memory all = Sources.strip(logits, c.position, f.from);
            for (uint256 id = f.from; id < f.to; ++id) {
                // Of what the mask does not leave nothing is read: it need not have been opened.
                if (guided && s.next(mask) != 1) continue;
                int256 logit = guided ? s.read(logits, c.position, id) : s.next(all);
                acc = acc.max((logit << (ID_BITS + 1)) + int256(ID_MASK) - int256(id));
            }
            return acc;
        }
    }

    /// @dev The bit of a key that is searched as number `bit`, the highest being 0.
    function _bit(uint256 bit) private pure returns (uint256) {
        unchecked {
            if (bit >= Choices.KEY_BITS) revert Refused();
            return 1 << (Choices.KEY_BITS - 1 - bit);
        }
    }

    /// @dev The threshold that the first `bits` bits of a search give.
    function _threshold(Source memory s, Cell memory c, uint256 part, uint256 bits)
        private
        pure
        returns (uint256 found)
    {
        unchecked {
            if (bits == 0) return 0;
            if (bits > Choices.KEY_BITS) revert Refused();
            Choice memory choice = s.chosen();
            Reader memory r = s.reader(c.op, part, c.position);
            int256 wanted = int256(choice.topK);
            uint256 first;
            if (part == Choices.NUCLEUS) {
                first = 1;
                wanted = (int256(choice.topP) * s.read(r, c.position, 0)).max(1);
            }
            uint256 scale = part == Choices.NUCLEUS ? MILLION : 1;
            Strip memory t = Sources.strip(r, c.position, first);
            for (uint256 bit; bit < bits; ++bit) {
                if (s.next(t) * int256(scale) >= wanted) found |= 1 << (Choices.KEY_BITS - 1 - bit);
            }
        }
    }

    /// @dev What top-k keeps.
    function _afterTopK(Source memory s, Fold memory f) private pure {
        if (s.chosen().limitsCount()) f.threshold = _threshold(s, f.cell, Choices.KTH, Choices.KEY_BITS);
    }

    /// @dev What top-k, top-p and min-p keep.
    function _kept(Source memory s, Fold memory f) private pure {
        _afterTopK(s, f);
        Choice memory choice = s.chosen();
        if (choice.limitsMass()) {
            uint256 threshold = _threshold(s, f.cell, Choices.NUCLEUS, Choices.KEY_BITS);
            if (threshold > f.threshold) f.threshold = threshold;
        }
        f.minP = choice.minP;
    }

    /// @dev The likelihoods, which have 32 bits each, of a fold's tokens.
    function _likelihoods(Source memory s, Fold memory f) private pure returns (Strip memory) {
        Cell memory c = f.cell;
        return Sources.strip(s.reader(c.op, Choices.LIKELIHOODS, c.position), c.position, f.from);
    }

    /// @dev A candidate's key; 0 for what is no candidate.
    function _key(uint256 likelihood, uint256 id) private pure returns (uint256) {
        unchecked {
            return likelihood == 0 ? 0 : (likelihood << ID_BITS) | (ID_MASK - id);
        }
    }

    /// @dev How many keys are not below the threshold that this bit tries.
    function _count(Source memory s, Fold memory f, int256 acc) private pure returns (int256) {
        unchecked {
            Cell memory c = f.cell;
            uint256 threshold = _threshold(s, c, Choices.KTH, c.column) | _bit(c.column);
            if (f.from == f.to) return acc;
            Strip memory t = _likelihoods(s, f);
            for (uint256 id = f.from; id < f.to; ++id) {
                if (_key(s.next(t).unsigned32(), id) >= threshold) acc = acc.add64(1);
            }
            return acc;
        }
    }

    /// @dev The sum of the likelihoods kept.
    function _mass(Source memory s, Fold memory f, int256 acc) private pure returns (int256) {
        unchecked {
            if (f.from == f.to) return acc;
            Strip memory t = _likelihoods(s, f);
            // Likelihoods have 32 bits: far from the ends of 64 bits no sum of 256 leaves them.
            bool near = acc.size() >= 1 << 62;
            uint256 threshold = f.threshold;
            uint256 least = LIKELIEST * f.minP;
            uint256 key = ID_MASK - f.from;
            for (uint256 n = f.to - f.from; n != 0; --n) {
                uint256 likelihood = uint256(s.next(t));
                if (likelihood >> 32 != 0) revert Refused();
                if (likelihood != 0 && ((likelihood << ID_BITS) | key) >= threshold && likelihood * MILLION >= least) {
                    acc += int256(likelihood);
                    if (near && acc != int64(acc)) revert Refused();
                }
                --key;
            }
            return acc;
        }
    }

    /// @dev The running sum of the likelihoods kept, until it exceeds the target; from then on `-1 - id`.
    function _find(Source memory s, Fold memory f, int256 acc) private pure returns (int256) {
        unchecked {
            Cell memory c = f.cell;
            int256 total = s.cell(c.op, Choices.FOUND, c.position, 0);
            if (total < 0 || c.position + 1 < s.extent.prompt) revert Refused();
            bytes32 seed = s.chosen().seed;
            uint64 index = uint64(c.position + 1 - s.extent.prompt);
            uint256 drawn = uint256(keccak256(abi.encodePacked("assay/draw/1", seed, index))) >> 192;
            int256 target = int256((drawn * uint256(total)) >> 64);
            if (f.from == f.to) return acc;
            Strip memory t = _likelihoods(s, f);
            uint256 threshold = f.threshold;
            uint256 least = LIKELIEST * f.minP;
            for (uint256 id = f.from; id < f.to; ++id) {
                uint256 likelihood = uint256(s.next(t));
                if (likelihood >> 32 != 0) revert Refused();
                if (acc < 0 || likelihood == 0 || ((likelihood << ID_BITS) | (ID_MASK - id)) < threshold) continue;
                if (likelihood * MILLION < least) continue;
                acc = acc.add64(int256(likelihood));
                if (acc > target) acc = -1 - int256(id);
            }
            return acc;
        }
    }
}
