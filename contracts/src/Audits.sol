// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Checkpoints} from "@openzeppelin/contracts/utils/structs/Checkpoints.sol";
import {Addresses, Directory, Parameters} from "./Directory.sol";
import {Batch, Epochs} from "./Epochs.sol";
import {Lottery} from "./Lottery.sol";
import {Merkle, Proof} from "./Merkle.sol";
import {Receipt, Receipts} from "./Receipts.sol";
import {Registry} from "./Registry.sol";
import {Vault} from "./Vault.sol";

/// A unit of stake that can be drawn. It counts for epochs from `since` on and before `until` (0: no end).
struct Seat {
    address auditor;
    uint48 since;
    uint48 until;
}

/// What a member of a panel has done.
/// @param commitment keccak of auditor, provider, epoch, member, root and salt
/// @param root over its digests, revealed
/// @param accusations that are open
struct Member {
    bytes32 commitment;
    bytes32 root;
    address auditor;
    uint8 phase;
    uint16 accusations;
}

/// Somebody's claim that a member's digest is not that of the execution whose trace root it states.
/// @param accuser who states the trace root, and has put down a bond
/// @param until when the accused must have acquitted itself or contested
struct Accusation {
    address accuser;
    uint8 state;
    uint40 until;
    uint64 epoch;
    uint8 member;
    address accused;
    address provider;
    uint64 sequence;
    bytes32 receiptHash;
    bytes32 receiptId;
    bytes32 traceRoot;
}

/// Panels of auditors, drawn by stake for every posted epoch. Each member executes the receipts that the lottery assigns to it, commits
/// to the root of its digests, and reveals it when nobody can commit any more. A digest that is doubted must be opened; only silence or a
/// lost dispute costs stake.
contract Audits {
    using Merkle for bytes32;
    using Checkpoints for Checkpoints.Trace208;

    uint256 public constant SEAT_TRIES = 32;
    uint256 public constant SEATS_PER_CALL = 64;
    uint256 private constant LEAF_BYTES = 40;
    // phases of a member
    uint8 public constant COMMITTED = 1;
    uint8 public constant REVEALED = 2;
    uint8 public constant PENALISED = 3;
    uint8 public constant PAID = 4;
    // states of an accusation
    uint8 public constant ACCUSED = 1;
    uint8 public constant CONTESTED = 2;
    uint8 public constant CLOSED = 3;
    uint8 private constant AUDITOR = 4; // Registry.AUDITOR

    Vault private immutable _vault;
    Registry private immutable _registry;
    Epochs private immutable _epochs;
    address private immutable _disputes;
    address private immutable _treasury;
    uint32 private immutable _commitSeconds;
    uint32 private immutable _revealSeconds;
    uint32 private immutable _answerSeconds;
    uint32 private immutable _secondPpm;
    uint32 private immutable _reporterPpm;
    uint64 private immutable _seatStake;
    uint64 private immutable _silencePenalty;
    uint64 private immutable _lazinessPenalty;
    uint64 private immutable _accusationBond;
    uint64 private immutable _seatRestEpochs;

    Seat[] private _seats;
    Checkpoints.Trace208 private _seatCounts;
    mapping(bytes32 key => Member) private _members;
    mapping(bytes32 id => Accusation) private _accusations;

    event SeatTaken(address indexed auditor, uint256 slot, uint48 since);
    event SeatLeft(address indexed auditor, uint256 slot, uint48 until);
    event Committed(address indexed provider, uint64 indexed epoch, uint256 member, address indexed auditor);
    /// @param digests as they were revealed: whoever executed the same receipt compares
    event Revealed(address indexed provider, uint64 indexed epoch, uint256 member, bytes32 root, bytes digests);
    event Penalised(address indexed provider, uint64 indexed epoch, uint256 member, address indexed auditor, uint256 taken);
    event Paid(address indexed provider, uint64 indexed epoch, uint256 member, address indexed auditor, uint256 amount);
    event Accused(bytes32 indexed id, address indexed auditor, address indexed accuser, Receipt receipt, bytes32 traceRoot);
    event Acquitted(bytes32 indexed id);
    event Contested(bytes32 indexed id, address indexed by);
    event Ruled(bytes32 indexed id, bool accuserIsRight);
    event Lapsed(bytes32 indexed id);

    error NotAuditor(address node);
    error NotNode(address node, address caller);
    error SlotTaken(uint256 slot);
    error NotYourSeat(uint256 slot);
    error TooManySeats(uint256 seats);
    error NotPosted(address provider, uint64 epoch);
    error BadMember(uint256 member, uint256 panel);
    error WrongPhase(uint8 phase);
    error TooSoon(uint256 from);
    error TooLate(uint256 until);
    error WrongReveal();
    error NotAssigned();
    error BadProof();
    error NoAnswer();
    /// What is shown is not that the receipt's client gave its consent to audits.
    error NoConsent();
    error WrongDigest();
    error AlreadyAccused(bytes32 id);
    error AccusationsOpen(uint256 accusations);
    error NotAuthorised(address caller);

    constructor(Directory directory) {
        Addresses memory a = directory.addresses();
        Parameters memory p = directory.parameters();
        _vault = Vault(a.vault);
        _registry = Registry(a.registry);
        _epochs = Epochs(a.epochs);
        _disputes = a.disputes;
        _treasury = a.treasury;
        _commitSeconds = p.times.commitSeconds;
        _revealSeconds = p.times.revealSeconds;
        _answerSeconds = p.times.answerSeconds;
        _secondPpm = p.rates.secondPpm;
        _reporterPpm = p.split.reporterPpm;
        _seatStake = p.stakes.seatStake;
        _silencePenalty = p.stakes.silencePenalty;
        _lazinessPenalty = p.stakes.lazinessPenalty;
        _accusationBond = p.stakes.accusationBond;
        _seatRestEpochs = uint64(p.times.unbondSeconds / p.times.epochSeconds + 2);
    }

    // ---- seats

    /// Takes seats for an auditor, from the next epoch on; each reserves `seatStake`.
    /// @param slots each either the number of slots so far, which adds one, or a slot that was left long enough ago
    function takeSeats(address auditor, uint256[] calldata slots) external {
        if (!_registry.actsFor(auditor, msg.sender)) revert NotNode(auditor, msg.sender);
        if (!_registry.serves(auditor, AUDITOR)) revert NotAuditor(auditor);
        if (slots.length > SEATS_PER_CALL) revert TooManySeats(slots.length);
        uint64 epoch = _epochs.current();
        _registry.reserve(auditor, slots.length * _seatStake);
        for (uint256 i = 0; i < slots.length; ++i) {
            Seat memory seat = Seat(auditor, uint48(epoch + 1), 0);
            if (slots[i] == _seats.length) {
                _seats.push(seat);
            } else {
                // A slot that earlier draws may still ask for keeps its auditor.
                Seat storage old = _seat(slots[i]);
                if (old.until == 0 || old.until + _seatRestEpochs > epoch) revert SlotTaken(slots[i]);
                _seats[slots[i]] = seat;
            }
            emit SeatTaken(auditor, slots[i], seat.since);
        }
        _seatCounts.push(uint48(epoch + 1), uint208(_seats.length));
    }

    /// Leaves seats: they are drawn for no epoch after this one. Anyone may empty, one by one, the seats of an auditor whose
    /// stake no longer covers them.
    function leaveSeats(address auditor, uint256[] calldata slots) external {
        if (!_registry.actsFor(auditor, msg.sender) && (slots.length != 1 || !_registry.isShort(auditor))) {
            revert NotNode(auditor, msg.sender);
        }
        uint48 until = uint48(_epochs.current() + 1);
        for (uint256 i = 0; i < slots.length; ++i) {
            Seat storage seat = _seat(slots[i]);
            if (seat.auditor != auditor || seat.until != 0) revert NotYourSeat(slots[i]);
            seat.until = until;
            emit SeatLeft(auditor, slots[i], until);
        }
        _registry.unreserve(auditor, slots.length * _seatStake);
    }

    // ---- the audit

    /// Commits to the digests of what the draw assigned to a member, in the commit window after the beacon. The caller acts for the auditor
    /// whose seat was drawn. A second call replaces the first.
    function commit(address provider, uint64 epoch, uint256 member, bytes32 commitment) external {
        (, uint64 fixedAt) = _epochs.fixedBeacon(epoch);
        uint256 until = uint256(fixedAt) + _commitSeconds;
        if (block.timestamp > until) revert TooLate(until);
        address auditor = auditorOf(provider, epoch, member);
        if (!_registry.actsFor(auditor, msg.sender)) revert NotNode(auditor, msg.sender);
        Member storage m = _members[memberKey(provider, epoch, member)];
        m.commitment = commitment;
        m.auditor = auditor;
        m.phase = COMMITTED;
        emit Committed(provider, epoch, member, auditor);
    }

    /// Reveals a member's digests, in the window after the last commitment. Whoever knows them and the salt may. They are logged, so that nobody
    /// who sends them through another contract can hide them.
    /// @param digests `sequence (8) ‖ digest (32)` of each receipt, in rising order of sequence numbers; the digest is that of protocol 11.3
    function reveal(address provider, uint64 epoch, uint256 member, bytes calldata digests, bytes32 salt) external {
        (, uint64 fixedAt) = _epochs.fixedBeacon(epoch);
        uint256 from = uint256(fixedAt) + _commitSeconds;
        if (block.timestamp <= from) revert TooSoon(from);
        if (block.timestamp > from + _revealSeconds) revert TooLate(from + _revealSeconds);
        Member storage m = _members[memberKey(provider, epoch, member)];
        if (m.phase != COMMITTED) revert WrongPhase(m.phase);
        bytes32 root = digestsRoot(digests);
        if (commitmentOf(m.auditor, provider, epoch, member, root, salt) != m.commitment) revert WrongReveal();
        m.root = root;
        m.phase = REVEALED;
        emit Revealed(provider, epoch, member, root, digests);
    }

    /// Penalises a member that has revealed nothing when its time was over. Its part of the fees goes to the treasury, of its
    /// penalty `reporterPpm` to the caller and the rest to the treasury. A place for which no seat was found has no auditor to penalise.
    function proveAbsence(address provider, uint64 epoch, uint256 member) external {
        (, uint64 fixedAt) = _epochs.fixedBeacon(epoch);
        uint256 until = uint256(fixedAt) + _commitSeconds + _revealSeconds;
        if (block.timestamp <= until) revert TooSoon(until);
        address auditor = auditorOf(provider, epoch, member);
        Member storage m = _members[memberKey(provider, epoch, member)];
        if (m.phase > COMMITTED) revert WrongPhase(m.phase);
        m.auditor = auditor;
        _penalise(provider, epoch, member, m, _silencePenalty, msg.sender);
    }

    /// Pays a member its part when objections are over and no accusation is open, into its owner's vault balance. Anyone may call it.
    function collect(address provider, uint64 epoch, uint256 member) external {
        uint256 finalAt = _epochs.finalAt(epoch);
        if (block.timestamp <= finalAt) revert TooSoon(finalAt);
        Member storage m = _members[memberKey(provider, epoch, member)];
        if (m.phase != REVEALED) revert WrongPhase(m.phase);
        if (m.accusations != 0) revert AccusationsOpen(m.accusations);
        m.phase = PAID;
        uint256 amount = _epochs.releaseAudit(provider, epoch, _registry.ownerOf(m.auditor));
        emit Paid(provider, epoch, member, m.auditor, amount);
    }

    // ---- doubts

    /// States the trace root of a drawn receipt's execution and that a member's digest is of another one, or missing. Second auditors, whoever
    /// knows a receipt as a canary, and the provider all do it this way, with a bond, once digests are revealed and before objections end.
    function accuse(
        uint64 epoch,
        uint256 member,
        Receipt calldata receipt,
        Proof calldata proof,
        Proof calldata consent,
        bytes32 traceRoot
    ) external returns (bytes32 id) {
        uint256 finalAt = _epochs.finalAt(epoch);
        if (block.timestamp > finalAt) revert TooLate(finalAt);
        // An execution that no dispute can be about: the accused could not contest.
        if (!Receipts.isAnswer(receipt)) revert NoAnswer();
        // One that no auditor was to see: the accused has no digest of it.
        if (!Receipts.isConsent(receipt.requestHash, receipt.modelRoot, Receipts.GIVEN, consent)) revert NoConsent();
        bytes32 separator = _epochs.receiptDomain();
        bytes32 receiptHash = Receipts.signingHash(receipt, separator);
        Batch memory batch = _epochs.batchOf(receipt.provider, epoch);
        if (Merkle.leaf(receiptHash).rootFrom(proof) != batch.root || receipt.sequence != batch.first + proof.index) {
            revert BadProof();
        }
        if (!isAssigned(epoch, member, receipt)) revert NotAssigned();
        Member storage m = _members[memberKey(receipt.provider, epoch, member)];
        if (m.phase != REVEALED) revert WrongPhase(m.phase);
        // Of each accuser its own: one that the accused has arranged, and wins, does not keep others from being right.
        id = keccak256(abi.encode(epoch, member, receiptHash, traceRoot, msg.sender));
        Accusation storage c = _accusations[id];
        if (c.state != 0) revert AlreadyAccused(id);
        _vault.take(msg.sender, _accusationBond);
        c.accuser = msg.sender;
        c.state = ACCUSED;
        c.until = uint40(block.timestamp + _answerSeconds);
        c.epoch = epoch;
        c.member = uint8(member);
        c.accused = m.auditor;
        c.provider = receipt.provider;
        c.sequence = receipt.sequence;
        c.receiptHash = receiptHash;
        c.receiptId = Receipts.id(receipt);
        c.traceRoot = traceRoot;
        ++m.accusations;
        emit Accused(id, m.auditor, msg.sender, receipt, traceRoot);
    }

    /// Shows that the accused member's digest is that of the stated trace root. The accuser's bond is the accused's. Anyone may call it.
    function acquit(bytes32 id, Proof calldata proof) external {
        Accusation storage c = _accusations[id];
        if (c.state != ACCUSED) revert WrongPhase(c.state);
        Member storage m = _members[memberKey(c.provider, c.epoch, c.member)];
        (bytes32 beacon,) = _epochs.fixedBeacon(c.epoch);
        bytes32 digest =
            keccak256(abi.encodePacked("assay/audit/1", c.accused, beacon, c.receiptId, c.traceRoot));
        if (Merkle.leaf(abi.encodePacked(c.sequence, digest)).rootFrom(proof) != m.root) revert WrongDigest();
        _close(c, m);
        _vault.give(_registry.ownerOf(c.accused), _accusationBond);
        emit Acquitted(id);
    }

    /// Notes that the accused says that the stated trace root is wrong: a dispute about it has begun, which rules (`ruled`). The dispute
    /// contract has given this one a bond as large as the accuser's.
    /// @param caller who contests: the accused's key or owner
    /// @return accuser who must defend the trace root
    /// @return receiptHash of the receipt whose execution it states
    /// @return traceRoot what it states
    function contest(bytes32 id, address caller)
        external
        returns (address accuser, bytes32 receiptHash, bytes32 traceRoot)
    {
        if (msg.sender != _disputes) revert NotAuthorised(msg.sender);
        Accusation storage c = _accusations[id];
        if (c.state != ACCUSED) revert WrongPhase(c.state);
        if (block.timestamp > c.until) revert TooLate(c.until);
        if (!_registry.actsFor(c.accused, caller)) revert NotNode(c.accused, caller);
        c.state = CONTESTED;
        emit Contested(id, caller);
        return (c.accuser, c.receiptHash, c.traceRoot);
    }

    /// The ruling of the dispute contract on a contested accusation. The loser's bond goes to the winner.
    function ruled(bytes32 id, bool accuserIsRight) external {
        if (msg.sender != _disputes) revert NotAuthorised(msg.sender);
        Accusation storage c = _accusations[id];
        if (c.state != CONTESTED) revert WrongPhase(c.state);
        Member storage m = _members[memberKey(c.provider, c.epoch, c.member)];
        _close(c, m);
        uint256 bonds = 2 * uint256(_accusationBond);
        emit Ruled(id, accuserIsRight);
        if (accuserIsRight) {
            _vault.give(c.accuser, bonds);
            if (m.phase == REVEALED) _penalise(c.provider, c.epoch, c.member, m, _lazinessPenalty, c.accuser);
        } else {
            _vault.give(_registry.ownerOf(c.accused), bonds);
        }
    }

    /// Ends an accusation that nobody answered in time: it was right. Anyone may call it. One that was contested ends when its dispute does,
    /// which anyone can end when a move is late.
    function lapse(bytes32 id) external {
        Accusation storage c = _accusations[id];
        if (c.state != ACCUSED) revert WrongPhase(c.state);
        if (block.timestamp <= c.until) revert TooSoon(c.until);
        Member storage m = _members[memberKey(c.provider, c.epoch, c.member)];
        _close(c, m);
        emit Lapsed(id);
        _vault.give(c.accuser, _accusationBond);
        if (m.phase == REVEALED) _penalise(c.provider, c.epoch, c.member, m, _lazinessPenalty, c.accuser);
    }

    // ---- views

    /// Whose seat was drawn for a member of a panel: of `SEAT_TRIES` draws the first that finds a seat which counted in that epoch. 0: none
    /// did.
    function auditorOf(address provider, uint64 epoch, uint256 member) public view returns (address) {
        Batch memory batch = _epochs.batchOf(provider, epoch);
        if (batch.state == 0) revert NotPosted(provider, epoch);
        if (member >= batch.panel) revert BadMember(member, batch.panel);
        (bytes32 beacon,) = _epochs.fixedBeacon(epoch);
        uint256 count = _seatCounts.upperLookup(uint48(epoch));
        if (count == 0) return address(0);
        for (uint256 attempt = 0; attempt < SEAT_TRIES; ++attempt) {
            Seat storage seat = _seats[Lottery.seatDraw(beacon, provider, epoch, member, attempt) % count];
            if (seat.since <= epoch && (seat.until == 0 || epoch < seat.until)) return seat.auditor;
        }
        return address(0);
    }

    /// Whether a receipt was drawn and a member is to execute it, first or second.
    function isAssigned(uint64 epoch, uint256 member, Receipt calldata receipt) public view returns (bool) {
        if (!_epochs.isDrawn(receipt.provider, epoch, receipt.sequence, receipt.feeMicroUsd)) return false;
        (bytes32 beacon,) = _epochs.fixedBeacon(epoch);
        uint8 panel = _epochs.batchOf(receipt.provider, epoch).panel;
        (uint256 first, uint256 second) =
            Lottery.membersFor(beacon, receipt.provider, receipt.sequence, panel, _secondPpm);
        return member == first || member == second;
    }

    function memberOf(address provider, uint64 epoch, uint256 member) external view returns (Member memory) {
        return _members[memberKey(provider, epoch, member)];
    }

    function accusationOf(bytes32 id) external view returns (Accusation memory) {
        return _accusations[id];
    }

    function seatOf(uint256 slot) external view returns (Seat memory) {
        return _seats[slot];
    }

    /// How many slots there are, empty ones included.
    function slotCount() external view returns (uint256) {
        return _seats.length;
    }

    /// The root over a member's digests: leaves of 40 bytes.
    function digestsRoot(bytes calldata digests) public pure returns (bytes32) {
        if (digests.length % LEAF_BYTES != 0) revert WrongReveal();
        // Of one receipt one digest: a second one would be another to open.
        uint64 last;
        for (uint256 i = 0; i < digests.length; i += LEAF_BYTES) {
            uint64 sequence;
            assembly ("memory-safe") {
                sequence := shr(192, calldataload(add(digests.offset, i)))
            }
            if (i != 0 && sequence <= last) revert WrongReveal();
            last = sequence;
        }
        return Merkle.rootOver(Merkle.leavesOf(digests, LEAF_BYTES));
    }

    /// What a member commits to.
    function commitmentOf(
        address auditor,
        address provider,
        uint64 epoch,
        uint256 member,
        bytes32 root,
        bytes32 salt
    ) public pure returns (bytes32) {
        return keccak256(abi.encode("assay/commitment/1", auditor, provider, epoch, member, root, salt));
    }

    /// Names a member of a panel.
    function memberKey(address provider, uint64 epoch, uint256 member) public pure returns (bytes32) {
        return keccak256(abi.encode(provider, epoch, member));
    }

    // ---- inside

    function _seat(uint256 slot) private view returns (Seat storage) {
        if (slot >= _seats.length) revert NotYourSeat(slot);
        return _seats[slot];
    }

    function _close(Accusation storage c, Member storage m) private {
        c.state = CLOSED;
        --m.accusations;
    }

    function _penalise(
        address provider,
        uint64 epoch,
        uint256 member,
        Member storage m,
        uint256 penalty,
        address reporter
    ) private {
        m.phase = PENALISED;
        uint256 taken = 0;
        if (m.auditor != address(0)) taken = _registry.slash(m.auditor, penalty, reporter, _reporterPpm);
        _epochs.releaseAudit(provider, epoch, _treasury);
        emit Penalised(provider, epoch, member, m.auditor, taken);
    }
}
