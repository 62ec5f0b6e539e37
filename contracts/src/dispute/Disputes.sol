// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Addresses, Directory, Parameters} from "../Directory.sol";
import {Contexts} from "./Contexts.sol";
import {Contradiction, Malformed} from "./Trees.sol";
import {IHolds} from "../interfaces/IHolds.sol";
import {IStakes} from "../interfaces/IStakes.sol";
import {Picks} from "./Picks.sol";
import {Reason, Stage, Walk} from "./Walk.sol";
import {Receipt, Receipts} from "../Receipts.sol";
import {Referee} from "./Referee.sol";
import {Refused} from "./Integers.sol";
import {Registry} from "../Registry.sol";
import {Vault} from "../Vault.sol";

/// @title Disputes over signed receipts (protocol 10)
/// @notice The provider that signed the receipt defends it; the challenger sets a bond aside and picks. Each has `moveSeconds` for a move;
/// silence, a message without a meaning and one that contradicts what was said before lose. Who loses pays: the challenger its
/// bond, to the provider's owner; the provider is struck (`IStakes.strike`).
/// @dev Nobody has a power over a dispute: there is no owner, nothing can be paused, and parameters are those of the deployment. Nothing of
/// the provider's is set aside, and a receipt may be disputed by several challengers at once: a provider that disputes itself stands in
/// nobody's way, and no number of disputes blocks an exit.
contract Disputes {
    /// @param walk Where it stands.
    /// @param context Hash of what was said that later messages rest on.
    /// @param hash What is known of the node, the step or the number that it walked to.
    struct Dispute {
        Walk walk;
        bytes32 context;
        bytes32 hash;
    }

    /// @notice A dispute was opened.
    event Opened(bytes32 indexed receipt, address indexed challenger, address indexed defender);
    /// @notice A move was made; what is asked for now. The message itself is the transaction's.
    event Moved(bytes32 indexed receipt, address indexed challenger, Stage stage);
    /// @notice A dispute ended.
    event Ended(bytes32 indexed receipt, address indexed challenger, bool upheld, Reason reason);

    /// The receipt is of no answer, or longer than any model's context.
    error NoAnswer();
    /// There was a dispute of this challenger over this receipt.
    error AlreadyDisputed();
    /// There is no such dispute, or it is over, or it is the other party's turn.
    error NotYourTurn();
    /// The time for this move is over.
    error TooLate(uint256 deadline);
    /// The time for this move is not over.
    error TooEarly(uint256 deadline);

    /// Positions that any model may have.
    uint256 private constant POSITIONS_MAX = 131_072;
    /// Moves of the longest dispute: ten claims, nine picks, and one more that nobody makes.
    uint256 private constant MOVES_MAX = 20;

    Vault private immutable _vault;
    Registry private immutable _registry;
    IHolds private immutable _epochs;

    /// The rules.
    Referee public immutable referee;
    /// What a challenger sets aside, in token units.
    uint256 public immutable bond;
    /// Seconds for each move: the longest dispute ends within `disputeSeconds` of the deployment's parameters.
    uint256 public immutable moveSeconds;

    /// @dev By receipt, challenger and defender: who takes part need not be stored.
    mapping(bytes32 key => Dispute) private _disputes;

    constructor(Directory directory, Referee referee_) {
        Addresses memory a = directory.addresses();
        Parameters memory p = directory.parameters();
        _vault = Vault(a.vault);
        _registry = Registry(a.registry);
        _epochs = IHolds(a.epochs);
        referee = referee_;
        bond = p.stakes.accusationBond;
        moveSeconds = p.times.disputeSeconds / MOVES_MAX;
    }

    /// @notice A dispute. It is over when `walk.stage` is `Over`; then `walk.part` is the reason and `walk.rows` 1 if the challenger won.
    function disputeOf(bytes32 receipt, address challenger, address defender) external view returns (Dispute memory) {
        return _at(receipt, challenger, defender);
    }

    function _at(bytes32 receipt, address challenger, address defender) private view returns (Dispute storage) {
        return _disputes[keccak256(abi.encode(receipt, challenger, defender))];
    }

    /// @notice Says that a receipt is wrong. The caller is the challenger and its bond is taken; the defender moves next. The epoch in which
    /// the receipt was posted is not settled before the dispute can have ended, if it is open.
    /// @return receipt The hash that the signature signs: the receipt's name from now on.
    function open(Receipt calldata stated, bytes calldata signature) external returns (bytes32 receipt) {
        bytes32 separator = Receipts.domain(address(_epochs));
        Receipts.requireSigned(stated, separator, signature);
        receipt = Receipts.signingHash(stated, separator);
        uint256 positions = uint256(stated.promptTokens) + stated.completionTokens;
        if (stated.promptTokens == 0 || stated.completionTokens == 0 || positions - 1 > POSITIONS_MAX) {
            revert NoAnswer();
        }
        address defender = stated.provider;
        Dispute storage d = _at(receipt, msg.sender, defender);
        if (d.walk.stage != Stage.None) revert AlreadyDisputed();
        Walk memory w = referee.begin(positions - 1);
        w.deadline = uint40(block.timestamp + moveSeconds);
        d.walk = w;
        d.context = Contexts.begin(
            stated.modelRoot,
            stated.requestHash,
            stated.transcriptRoot,
            stated.digestRoot,
            stated.clientNonce,
            stated.promptTokens,
            stated.completionTokens
        );
        emit Opened(receipt, msg.sender, defender);
        _vault.take(msg.sender, bond);
        _epochs.hold(defender, stated.epoch);
    }

    /// @notice A move of the defender, by its key or its owner. The forms of messages are those of protocol 10.8.
    function claim(bytes32 receipt, address challenger, address defender, bytes calldata message) external {
        Dispute storage d = _at(receipt, challenger, defender);
        Walk memory w = d.walk;
        if (!_defends(w.stage) || !_actsFor(defender)) revert NotYourTurn();
        if (block.timestamp > w.deadline) revert TooLate(w.deadline);
        bytes32 context = d.context;
        bytes32 hash = d.hash;
        try referee.claim(w, context, hash, message) returns (
            Walk memory next, bytes32 nextContext, bytes32 nextHash, Reason won
        ) {
            if (won != Reason.None) return _end(receipt, challenger, defender, false, won);
            if (nextContext != context) d.context = nextContext;
            if (nextHash != hash) d.hash = nextHash;
            _await(receipt, challenger, d, next);
        } catch (bytes memory why) {
            Reason reason = _reason(why);
            if (w.stage == Stage.Proof) reason = Reason.StepFails;
            if (w.stage == Stage.Digest) reason = Reason.DigestFails;
            _end(receipt, challenger, defender, true, reason);
        }
    }

    /// @notice The challenger's move.
    function pick(bytes32 receipt, address defender, bytes calldata message) external {
        Dispute storage d = _at(receipt, msg.sender, defender);
        Walk memory w = d.walk;
        if (!_picks(w.stage)) revert NotYourTurn();
        if (block.timestamp > w.deadline) revert TooLate(w.deadline);
        if (w.stage == Stage.PickNode) {
            // The most frequent move needs no hash and no other contract.
            if (!Picks.node(w, message)) return _end(receipt, msg.sender, defender, false, Reason.Malformed);
            return _await(receipt, msg.sender, d, w);
        }
        try referee.pick(w, d.hash, message) returns (Walk memory next, bytes32 nextHash) {
            d.hash = nextHash;
            _await(receipt, msg.sender, d, next);
        } catch (bytes memory why) {
            _end(receipt, msg.sender, defender, false, _reason(why));
        }
    }

    /// @notice Ends a dispute in which the party whose turn it is was silent. Anyone may call it.
    function timeout(bytes32 receipt, address challenger, address defender) external {
        Walk memory w = _at(receipt, challenger, defender).walk;
        if (!_defends(w.stage) && !_picks(w.stage)) revert NotYourTurn();
        if (block.timestamp <= w.deadline) revert TooEarly(w.deadline);
        _end(receipt, challenger, defender, _defends(w.stage), Reason.Timeout);
    }

    function _actsFor(address defender) private view returns (bool) {
        return msg.sender == defender || _registry.actsFor(defender, msg.sender);
    }

    function _defends(Stage stage) private pure returns (bool) {
        return stage >= Stage.Trace && stage <= Stage.Digest;
    }

    function _picks(Stage stage) private pure returns (bool) {
        return stage >= Stage.PickNode && stage <= Stage.PickNumber;
    }

    /// @dev What a message was that was not taken. One that failed for another reason, as lack of gas, counts as not sent.
    function _reason(bytes memory why) private pure returns (Reason) {
        bytes4 kind = bytes4(why);
        if (why.length == 4) {
            if (kind == Contradiction.selector) return Reason.Contradiction;
            if (kind == Malformed.selector || kind == Refused.selector) return Reason.Malformed;
        }
        assembly ("memory-safe") {
            revert(add(why, 32), mload(why))
        }
    }

    function _await(bytes32 receipt, address challenger, Dispute storage d, Walk memory next) private {
        next.deadline = uint40(block.timestamp + moveSeconds);
        d.walk = next;
        emit Moved(receipt, challenger, next.stage);
    }

    /// @param upheld Whether the challenger won.
    function _end(bytes32 receipt, address challenger, address defender, bool upheld, Reason reason) private {
        Dispute storage d = _at(receipt, challenger, defender);
        Walk memory over;
        over.stage = Stage.Over;
        over.part = uint8(reason);
        over.rows = upheld ? 1 : 0;
        d.walk = over;
        delete d.context;
        delete d.hash;
        emit Ended(receipt, challenger, upheld, reason);
        // A key that is no node has no owner, and may be struck all the same: it can never become one.
        address owner = _registry.ownerOf(defender);
        _vault.give(upheld ? challenger : owner == address(0) ? defender : owner, bond);
        if (upheld) IStakes(address(_registry)).strike(defender, challenger);
    }
}
