// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {Contexts} from "./Contexts.sol";
import {Contradiction, Malformed} from "./Merkle.sol";
import {IStakes} from "../interfaces/IStakes.sol";
import {Reason, Stage, Walk} from "./Walk.sol";
import {Receipt, Receipts} from "./Receipts.sol";
import {Referee} from "./Referee.sol";
import {Refused} from "./Integers.sol";

/// @title Disputes over signed receipts (protocol 10)
/// @notice The provider that signed the receipt defends it; the challenger sets a bond aside and picks. Each has `moveSeconds` for a move;
/// silence, a message without a meaning and one that contradicts what was said before lose. Who loses pays: the challenger its
/// bond, to the provider; the provider what stakes say that it forfeits.
/// @dev Nobody has a power over a dispute: there is no owner, nothing can be paused, and parameters are those of the deployment. A receipt
/// may be disputed by several challengers at once, so that nobody can stand in another's way; the provider is slashed once.
contract Disputes {
    /// @param walk Where it stands.
    /// @param context Hash of what was said that later messages rest on.
    /// @param hash What is known of the node, the step or the number that it walked to.
    /// @param defender Who signed the receipt.
    struct Dispute {
        Walk walk;
        bytes32 context;
        bytes32 hash;
        address defender;
    }

    /// @notice A dispute was opened.
    event Opened(bytes32 indexed receipt, address indexed challenger, address indexed defender);
    /// @notice A move was made; what is asked for now. The message itself is the transaction's.
    event Moved(bytes32 indexed receipt, address indexed challenger, Stage stage);
    /// @notice A dispute ended.
    event Ended(bytes32 indexed receipt, address indexed challenger, bool upheld, Reason reason);

    /// The receipt is of no answer, or longer than any model's context.
    error NoAnswer();
    /// The receipt's signature is not its provider's.
    error NotSigned();
    /// There was a dispute of this challenger over this receipt, or its provider has lost one over it.
    error Settled();
    /// There is no such dispute, or it is over, or it is the other party's turn.
    error NotYourTurn();
    /// The time for this move is over.
    error TooLate();
    /// The time for this move is not over.
    error TooEarly();

    /// Positions that any model may have.
    uint256 private constant POSITIONS_MAX = 131_072;

    Referee public immutable referee;
    IStakes public immutable stakes;
    /// @notice Domain of the receipts that can be disputed.
    bytes32 public immutable domain;
    /// @notice What a challenger sets aside.
    uint256 public immutable bond;
    /// @notice Seconds for each move.
    uint40 public immutable moveSeconds;

    /// @notice The disputes, by receipt (the hash that its signature signs) and challenger.
    mapping(bytes32 => mapping(address => Dispute)) public disputes;
    /// @notice Whether the provider of a receipt has lost a dispute over it.
    mapping(bytes32 => bool) public convicted;

    /// @param receipts The contract that receipts name in their domain.
    constructor(Referee referee_, IStakes stakes_, address receipts, uint256 bond_, uint40 moveSeconds_) {
        referee = referee_;
        stakes = stakes_;
        domain = Receipts.domain(receipts);
        bond = bond_;
        moveSeconds = moveSeconds_;
    }

    /// @notice Says that a receipt is wrong. The defender moves next.
    /// @return receipt The hash that the signature signs: the receipt's name from now on.
    function open(Receipt calldata stated, bytes calldata signature) external returns (bytes32 receipt) {
        receipt = Receipts.digest(stated, domain);
        uint256 positions = uint256(stated.promptTokens) + stated.completionTokens;
        if (stated.promptTokens == 0 || stated.completionTokens == 0 || positions - 1 > POSITIONS_MAX) {
            revert NoAnswer();
        }
        (address signer, ECDSA.RecoverError e,) = ECDSA.tryRecover(receipt, signature);
        if (e != ECDSA.RecoverError.NoError || signer != stated.provider) revert NotSigned();
        Dispute storage d = disputes[receipt][msg.sender];
        if (d.walk.stage != Stage.None || convicted[receipt]) revert Settled();
        Walk memory w = referee.begin(positions - 1);
        w.deadline = uint40(block.timestamp) + moveSeconds;
        d.walk = w;
        d.defender = signer;
        d.context = Contexts.begin(
            stated.modelRoot,
            stated.requestHash,
            stated.transcriptRoot,
            stated.digestRoot,
            stated.clientNonce,
            stated.promptTokens,
            stated.completionTokens
        );
        emit Opened(receipt, msg.sender, signer);
        stakes.hold(msg.sender, bond);
    }

    /// @notice The defender's move. The forms of messages are those of protocol 10.8.
    function claim(bytes32 receipt, address challenger, bytes calldata message) external {
        Dispute storage d = disputes[receipt][challenger];
        Walk memory w = d.walk;
        if (msg.sender != d.defender || !_defends(w.stage)) revert NotYourTurn();
        if (block.timestamp > w.deadline) revert TooLate();
        bytes32 context = d.context;
        bytes32 hash = d.hash;
        try referee.claim(w, context, hash, message) returns (
            Walk memory next, bytes32 nextContext, bytes32 nextHash, Reason won
        ) {
            if (won != Reason.None) return _end(receipt, challenger, d, false, won);
            if (nextContext != context) d.context = nextContext;
            if (nextHash != hash) d.hash = nextHash;
            _await(receipt, challenger, d, next);
        } catch (bytes memory why) {
            Reason reason = _reason(why);
            if (w.stage == Stage.Proof) reason = Reason.StepFails;
            if (w.stage == Stage.Digest) reason = Reason.DigestFails;
            _end(receipt, challenger, d, true, reason);
        }
    }

    /// @notice The challenger's move.
    function pick(bytes32 receipt, bytes calldata message) external {
        Dispute storage d = disputes[receipt][msg.sender];
        Walk memory w = d.walk;
        if (!_picks(w.stage)) revert NotYourTurn();
        if (block.timestamp > w.deadline) revert TooLate();
        bytes32 hash = d.hash;
        try referee.pick(w, hash, message) returns (Walk memory next, bytes32 nextHash) {
            if (nextHash != hash) d.hash = nextHash;
            _await(receipt, msg.sender, d, next);
        } catch (bytes memory why) {
            _end(receipt, msg.sender, d, false, _reason(why));
        }
    }

    /// @notice Ends a dispute in which the party whose turn it is was silent. Anyone may call it.
    function timeout(bytes32 receipt, address challenger) external {
        Dispute storage d = disputes[receipt][challenger];
        Walk memory w = d.walk;
        if (!_defends(w.stage) && !_picks(w.stage)) revert NotYourTurn();
        if (block.timestamp <= w.deadline) revert TooEarly();
        _end(receipt, challenger, d, _defends(w.stage), Reason.Timeout);
    }

    /// @notice Ends a dispute over a receipt whose provider has lost another one over it: the challenger has its bond back. Anyone may call
    /// it.
    function dismiss(bytes32 receipt, address challenger) external {
        Dispute storage d = disputes[receipt][challenger];
        Stage stage = d.walk.stage;
        if (!convicted[receipt] || (!_defends(stage) && !_picks(stage))) revert NotYourTurn();
        _end(receipt, challenger, d, true, Reason.None);
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
        next.deadline = uint40(block.timestamp) + moveSeconds;
        d.walk = next;
        emit Moved(receipt, challenger, next.stage);
    }

    /// @param upheld Whether the challenger won.
    function _end(bytes32 receipt, address challenger, Dispute storage d, bool upheld, Reason reason) private {
        Walk memory over;
        over.stage = Stage.Over;
        over.part = uint8(reason);
        over.rows = upheld ? 1 : 0;
        address defender = d.defender;
        d.walk = over;
        delete d.context;
        delete d.hash;
        delete d.defender;
        bool first = upheld && !convicted[receipt];
        if (first) convicted[receipt] = true;
        emit Ended(receipt, challenger, upheld, reason);
        if (!upheld) return stakes.forfeit(challenger, defender, bond);
        stakes.release(challenger, bond);
        if (first) stakes.slash(defender, challenger);
    }
}
