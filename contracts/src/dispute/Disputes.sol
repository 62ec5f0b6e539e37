// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Addresses, Directory, Parameters} from "../Directory.sol";
import {Audits} from "../Audits.sol";
import {Batch, Epochs} from "../Epochs.sol";
import {Contexts} from "./Contexts.sol";
import {Contradiction, Malformed} from "./Trees.sol";
import {IHolds} from "../interfaces/IHolds.sol";
import {IStakes} from "../interfaces/IStakes.sol";
import {Merkle, Proof} from "../Merkle.sol";
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
/// bond, to the provider's owner; the provider is struck (`IStakes.strike`). A contested accusation of an auditor is decided in the same way.
/// @dev Nobody has a power over a dispute: there is no owner, nothing can be paused, and parameters are those of the deployment. Nothing of
/// the provider's is set aside, and a receipt may be disputed by several challengers at once: a provider that disputes itself stands in
/// nobody's way, and no number of disputes blocks an exit.
contract Disputes {
    using Merkle for bytes32;

    /// @param walk Where it stands.
    /// @param state Hash of what was said that later messages rest on, and of what is known of the node or the number that it walked to.
    struct Dispute {
        Walk walk;
        bytes32 state;
    }

    /// @notice A dispute was opened.
    event Opened(bytes32 indexed receipt, address indexed challenger, address indexed defender);
    /// @notice A move was made; what is asked for now. The message itself is the transaction's.
    event Moved(bytes32 indexed receipt, address indexed challenger, Stage stage);
    /// @notice A dispute ended.
    event Ended(bytes32 indexed receipt, address indexed challenger, bool upheld, Reason reason);

    /// The receipt is of no answer, or longer than any model's context.
    error NoAnswer();
    /// The receipt does not stand at its place under the batch's root.
    error BadProof();
    /// The receipt is not the one that the accusation is about.
    error WrongReceipt();
    /// There is no such dispute, or it is over.
    error NotDisputed();
    /// There was a dispute of this challenger over this receipt.
    error AlreadyDisputed();
    /// There is no such dispute, or it is over, or it is the other party's turn.
    error NotYourTurn();
    /// The time for this move is over.
    error TooLate(uint256 deadline);
    /// The time for this move is not over.
    error TooEarly(uint256 deadline);

    /// Moves of the longest dispute: eleven claims, ten picks, and one more that nobody makes.
    uint256 private constant MOVES_MAX = 22;

    Vault private immutable _vault;
    Registry private immutable _registry;
    IHolds private immutable _epochs;
    Audits private immutable _audits;

    /// The rules.
    Referee public immutable referee;
    /// What a challenger sets aside, in token units.
    uint256 public immutable bond;
    /// What an accused auditor sets aside, as its accuser has.
    uint256 public immutable contestBond;
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
        _audits = Audits(a.audits);
        referee = referee_;
        bond = p.stakes.disputeBond;
        contestBond = p.stakes.accusationBond;
        moveSeconds = p.times.disputeSeconds / MOVES_MAX;
    }

    /// @notice A dispute. It is over when `walk.stage` is `Over`; then `walk.part` is the reason and `walk.rows` 1 if the challenger won.
    function disputeOf(bytes32 receipt, address challenger, address defender) external view returns (Dispute memory) {
        return _at(receipt, challenger, defender);
    }

    function _at(bytes32 receipt, address challenger, address defender) private view returns (Dispute storage) {
        return _disputes[keccak256(abi.encode(receipt, challenger, defender))];
    }

    /// @notice Says that a receipt is wrong. The caller is the challenger and its bond is taken; the defender moves next.
    /// @param epoch Where the receipt was posted: that batch is not settled before the dispute can have ended, if it is open and its objections
    /// are. Any number, if it was not posted (see `hold`).
    /// @return receipt The hash that the signature signs: the dispute's name.
    function open(Receipt calldata stated, bytes calldata signature, uint64 epoch) external returns (bytes32 receipt) {
        bytes32 separator = Receipts.domain(address(_epochs));
        Receipts.requireSigned(stated, separator, signature);
        receipt = Receipts.signingHash(stated, separator);
        _open(receipt, stated, epoch);
    }

    /// @notice The same for a receipt that its provider has posted, by its place under the batch's root: who posts a leaf answers for it, whether it shows
    /// its signature to anybody or not.
    /// @param epoch Of the batch.
    function openPosted(Receipt calldata stated, uint64 epoch, Proof calldata proof) external returns (bytes32 receipt) {
        bytes32 separator = Receipts.domain(address(_epochs));
        Batch memory batch = Epochs(address(_epochs)).batchOf(stated.provider, epoch);
        if (
            batch.root == bytes32(0) || stated.sequence != batch.first + proof.index
                || Receipts.leaf(stated, separator).rootFrom(proof) != batch.root
        ) revert BadProof();
        receipt = Receipts.signingHash(stated, separator);
        _open(receipt, stated, epoch);
    }

    function _open(bytes32 receipt, Receipt calldata stated, uint64 epoch) private {
        _begin(receipt, stated, stated.provider, bytes32(0), false);
        _vault.take(msg.sender, bond);
        _epochs.hold(stated.provider, epoch, stated.sequence);
    }

    /// @notice Holds the batch in which a disputed receipt was posted after the dispute had begun. Anyone may call it.
    function hold(Receipt calldata stated, address challenger, uint64 epoch) external {
        bytes32 receipt = Receipts.signingHash(stated, Receipts.domain(address(_epochs)));
        Stage stage = _at(receipt, challenger, stated.provider).walk.stage;
        if (stage == Stage.None || stage == Stage.Over) revert NotDisputed();
        _epochs.hold(stated.provider, epoch, stated.sequence);
    }

    /// @notice Says that the trace root which an accuser states of an audited receipt is wrong (`Audits.accuse`). The caller acts for the accused,
    /// and is the challenger; the accuser is the defender of that trace root and moves next. What the receipt says of its digests and of
    /// the tokens chosen is not asked. Both parties' bonds are in `Audits`, to which the ruling is told.
    /// @param id The accusation: the dispute's name.
    /// @param stated The receipt whose execution it is about.
    function contest(bytes32 id, Receipt calldata stated) external {
        (address accuser, bytes32 receipt, bytes32 traceRoot) = _audits.contest(id, msg.sender);
        if (Receipts.signingHash(stated, Receipts.domain(address(_epochs))) != receipt) revert WrongReceipt();
        _begin(id, stated, accuser, traceRoot, true);
        _vault.take(msg.sender, contestBond);
        _vault.give(address(_audits), contestBond);
    }

    /// @param name What the dispute is called.
    /// @param traceRoot The trace root that is disputed, of an accusation.
    function _begin(bytes32 name, Receipt calldata stated, address defender, bytes32 traceRoot, bool accused)
        private
    {
        if (!Receipts.isAnswer(stated)) revert NoAnswer();
        Dispute storage d = _at(name, msg.sender, defender);
        if (d.walk.stage != Stage.None) revert AlreadyDisputed();
        Walk memory w = referee.begin(uint256(stated.promptTokens) + stated.completionTokens - 1, accused);
        w.deadline = uint40(block.timestamp + moveSeconds);
        d.walk = w;
        bytes32 context = Contexts.begin(
            stated.modelRoot,
            stated.requestHash,
            stated.transcriptRoot,
            stated.digestRoot,
            stated.clientNonce,
            stated.promptTokens,
            stated.completionTokens,
            traceRoot
        );
        d.state = Contexts.state(context, bytes32(0));
        emit Opened(name, msg.sender, defender);
    }

    /// @notice A move of the defender, by its key or its owner. The forms of messages are those of protocol 10.8.
    function claim(bytes32 receipt, address challenger, address defender, bytes calldata message) external {
        Dispute storage d = _at(receipt, challenger, defender);
        Walk memory w = d.walk;
        if (!_defends(w.stage) || !_actsFor(defender)) revert NotYourTurn();
        if (block.timestamp > w.deadline) revert TooLate(w.deadline);
        try referee.claim(w, d.state, message) returns (Walk memory next, bytes32 state, Reason won) {
            if (won != Reason.None) return _end(receipt, challenger, defender, false, won);
            d.state = state;
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
        if (w.stage != Stage.PickNumber && (message.length == 0 || message[0] != 0x02)) {
            // The most frequent moves need no hash and no other contract.
            if (!Picks.take(w, message)) return _end(receipt, msg.sender, defender, false, Reason.Malformed);
            return _await(receipt, msg.sender, d, w);
        }
        try referee.pick(w, d.state, message) returns (Walk memory next, bytes32 state, Reason won) {
            if (won != Reason.None) return _end(receipt, msg.sender, defender, true, won);
            d.state = state;
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
        bool accused = d.walk.accused;
        d.walk = over;
        delete d.state;
        emit Ended(receipt, challenger, upheld, reason);
        // The challenger is the accused, the dispute's name the accusation's.
        if (accused) return _audits.ruled(receipt, !upheld);
        // A key that is no node has no owner, and may be struck all the same: it can never become one.
        address owner = _registry.ownerOf(defender);
        _vault.give(upheld ? challenger : owner == address(0) ? defender : owner, bond);
        if (upheld) IStakes(address(_registry)).strike(defender, challenger);
    }
}
