// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Audits} from "./Audits.sol";
import {Addresses, Directory, Parameters} from "./Directory.sol";
import {Batch, Epochs, ShareLeaf} from "./Epochs.sol";
import {Merkle, Proof} from "./Merkle.sol";
import {Receipt, Receipts} from "./Receipts.sol";
import {Vault} from "./Vault.sol";
import {IStakes} from "./interfaces/IStakes.sol";

/// A leaf of a batch with all that shows that it is in order.
/// @param receipt what stands there; ignored where `isVoid`
/// @param isVoid nothing was signed for this sequence number
/// @param proof under the batch's root
/// @param tally the running totals up to this leaf, 8 bytes for each share
/// @param tallyProof under the batch's tally root
/// @param before those up to the leaf before; empty at the first leaf
/// @param beforeProof likewise
/// @param shares all of the batch, in order
struct Opening {
    Receipt receipt;
    bool isVoid;
    Proof proof;
    bytes tally;
    Proof tallyProof;
    bytes before;
    Proof beforeProof;
    ShareLeaf[] shares;
}

/// What anyone can prove of a provider's receipts without executing anything. Whoever is proved to have signed two truths, left a
/// receipt out, miscounted, or not to hold what it posted, is struck (`Registry.strike`).
contract Objections {
    using Merkle for bytes32;

    enum Kind {
        Leaf,
        Record
    }

    /// @param from who asked, and whose bond it is
    /// @param until when the answer is due; 0: nothing is asked
    /// @param drawn whether a member of the panel asks, which has its bond back
    struct Demand {
        address from;
        uint40 until;
        bool drawn;
        bytes32 requestHash;
        bytes32 transcriptRoot;
    }

    Vault private immutable _vault;
    IStakes private immutable _stakes;
    Epochs private immutable _epochs;
    Audits private immutable _audits;
    uint32 private immutable _answerSeconds;
    uint64 private immutable _demandBond;

    mapping(bytes32 key => Demand) private _demands;

    event Conflicted(address indexed provider, uint64 sequence, uint64 otherSequence);
    event LeftOut(address indexed provider, uint64 indexed epoch, uint64 sequence);
    event Miscounted(address indexed provider, uint64 indexed epoch, uint64 count);
    event Demanded(address indexed provider, uint64 indexed epoch, uint64 index, Kind kind, address from, uint40 until);
    event AnsweredLeaf(address indexed provider, uint64 indexed epoch, uint64 index, Opening opening);
    event AnsweredRecord(address indexed provider, uint64 indexed epoch, uint64 index);
    event AnsweredWithheld(address indexed provider, uint64 indexed epoch, uint64 index);
    event Silent(address indexed provider, uint64 indexed epoch, uint64 index, Kind kind);

    error NoConflict();
    error NotLeftOut();
    error NotMiscounted();
    error NotPosted(address provider, uint64 epoch);
    error BadProof();
    error BadIndex(uint64 index, uint64 count);
    error TooLate(uint256 until);
    error TooSoon(uint256 until);
    error AlreadyDemanded();
    error NothingDemanded();
    /// Only the auditor that the draw assigned to this receipt may ask for its record.
    error NotAssigned(address caller);
    /// Only the auditor of this member of the panel may ask as it.
    error NotMember(address caller);
    /// The leaf is not in order; `what` names the first thing that is not.
    error BadOpening(bytes32 what);
    error BadRecord();

    constructor(Directory directory) {
        Addresses memory a = directory.addresses();
        Parameters memory p = directory.parameters();
        _vault = Vault(a.vault);
        _stakes = IStakes(a.registry);
        _epochs = Epochs(a.epochs);
        _audits = Audits(a.audits);
        _answerSeconds = p.times.answerSeconds;
        _demandBond = p.stakes.demandBond;
    }

    // ---- proofs that need no answer

    /// Two receipts that one provider may not both have signed (protocol, 11.1): one sequence number and different receipts, or one
    /// model, request and nonce and different answers of one length. Answers that were stopped are of other lengths, and no conflict.
    function proveConflict(
        Receipt calldata x,
        bytes calldata xSignature,
        Receipt calldata y,
        bytes calldata ySignature
    ) external {
        bytes32 separator = _epochs.receiptDomain();
        Receipts.requireSigned(x, separator, xSignature);
        Receipts.requireSigned(y, separator, ySignature);
        bool twice = x.sequence == y.sequence
            && Receipts.signingHash(x, separator) != Receipts.signingHash(y, separator);
        bool asked = x.modelRoot == y.modelRoot && x.requestHash == y.requestHash && x.clientNonce == y.clientNonce;
        bool differ = x.completionTokens == y.completionTokens
            && (x.transcriptRoot != y.transcriptRoot || x.digestRoot != y.digestRoot);
        if (x.provider != y.provider || !(twice || (asked && differ))) revert NoConflict();
        emit Conflicted(x.provider, x.sequence, y.sequence);
        _stakes.strike(x.provider, msg.sender);
    }

    /// A signed receipt at whose sequence number a batch has another leaf. What is needed is that leaf and its place.
    function proveLeftOut(
        Receipt calldata receipt,
        bytes calldata signature,
        uint64 epoch,
        bytes32 leaf,
        Proof calldata proof
    ) external {
        bytes32 separator = _epochs.receiptDomain();
        Receipts.requireSigned(receipt, separator, signature);
        Batch memory batch = _batch(receipt.provider, epoch);
        bool elsewhere = receipt.sequence >= batch.first && receipt.sequence - batch.first == proof.index;
        if (!elsewhere || leaf == Receipts.leaf(receipt, separator)) revert NotLeftOut();
        if (leaf.rootFrom(proof) != batch.root || proof.index >= batch.count) revert BadProof();
        emit LeftOut(receipt.provider, epoch, receipt.sequence);
        _stakes.strike(receipt.provider, msg.sender);
    }

    /// A leaf under a batch's root whose proof counts other leaves than the batch.
    function proveMiscount(address provider, uint64 epoch, bytes32 leaf, Proof calldata proof) external {
        Batch memory batch = _batch(provider, epoch);
        if (leaf.rootFrom(proof) != batch.root) revert BadProof();
        if (proof.count == batch.count) revert NotMiscounted();
        emit Miscounted(provider, epoch, proof.count);
        _stakes.strike(provider, msg.sender);
    }

    // ---- demands

    /// Asks a provider to open the leaf at `index` of a batch, until its objections end. The caller's bond pays for the answer; without
    /// one it comes back and the provider is struck. This is how data that is withheld, totals that lie and leaves that are no receipts end.
    function demandLeaf(address provider, uint64 epoch, uint64 index) external {
        Batch memory batch = _batch(provider, epoch);
        if (index >= batch.count) revert BadIndex(index, batch.count);
        _demand(provider, epoch, index, Demand(msg.sender, 0, false, bytes32(0), bytes32(0)), Kind.Leaf);
    }

    /// The same by a member of the batch's panel: it has to see the leaves, and has its bond back when it is answered. A provider that shows
    /// its auditors nothing but here must not earn by it.
    function demandLeafAsMember(address provider, uint64 epoch, uint64 index, uint256 member) external {
        Batch memory batch = _batch(provider, epoch);
        if (index >= batch.count) revert BadIndex(index, batch.count);
        if (_audits.auditorOf(provider, epoch, member) != msg.sender) revert NotMember(msg.sender);
        _demand(provider, epoch, index, Demand(msg.sender, 0, true, bytes32(0), bytes32(0)), Kind.Leaf);
    }

    /// Answers `demandLeaf` and `demandLeafAsMember`. Anyone who holds the leaves may; the bond of the first is the provider's.
    function answerLeaf(address provider, uint64 epoch, uint64 index, Opening calldata opening) external {
        Batch memory batch = _batch(provider, epoch);
        bytes32 key = demandKey(provider, epoch, index, Kind.Leaf);
        _requireOpen(key);
        _checkOpening(provider, epoch, index, batch, opening);
        emit AnsweredLeaf(provider, epoch, index, opening);
        _answered(key, provider);
    }

    /// Asks for the request and transcript of a drawn receipt that a provider did not give to its auditor. The answer is public: it is
    /// for providers that refuse. The bond comes back with the answer.
    /// @param member of the panel, whose auditor is the caller, and to which the draw assigned the receipt
    function demandRecord(uint64 epoch, uint256 member, Receipt calldata receipt, Proof calldata proof) external {
        Batch memory batch = _batch(receipt.provider, epoch);
        bytes32 leaf = Receipts.leaf(receipt, _epochs.receiptDomain());
        if (leaf.rootFrom(proof) != batch.root || receipt.sequence != batch.first + proof.index) revert BadProof();
        if (!_audits.isAssigned(epoch, member, receipt) || _audits.auditorOf(receipt.provider, epoch, member) != msg.sender)
        {
            revert NotAssigned(msg.sender);
        }
        Demand memory asked = Demand(msg.sender, 0, true, receipt.requestHash, receipt.transcriptRoot);
        _demand(receipt.provider, epoch, proof.index, asked, Kind.Record);
    }

    /// Answers `demandRecord` with the leaves' bytes of the request (protocol, section 4) and of the transcript (section 5). A request for
    /// embeddings has two items.
    function answerRecord(
        address provider,
        uint64 epoch,
        uint64 index,
        bytes[] calldata request,
        bytes[] calldata transcript
    ) external {
        bytes32 key = demandKey(provider, epoch, index, Kind.Record);
        _requireOpen(key);
        Demand storage d = _demands[key];
        if (_rootOver(request) != d.requestHash) revert BadRecord();
        if (_rootOver(transcript) != d.transcriptRoot) revert BadRecord();
        emit AnsweredRecord(provider, epoch, index);
        _answered(key, provider);
    }

    /// Answers `demandRecord` for a request whose client withheld its consent to audits: that it did is all that anyone is shown.
    function answerWithheld(
        address provider,
        uint64 epoch,
        uint64 index,
        bytes32 modelRoot,
        Proof calldata consent
    ) external {
        bytes32 key = demandKey(provider, epoch, index, Kind.Record);
        _requireOpen(key);
        if (!Receipts.isConsent(_demands[key].requestHash, modelRoot, Receipts.WITHHELD, consent)) revert BadRecord();
        emit AnsweredWithheld(provider, epoch, index);
        _answered(key, provider);
    }

    /// Strikes a provider that owed an answer when its time was over. The bond goes back to who asked, and the reporter's part to the same.
    function proveSilence(address provider, uint64 epoch, uint64 index, Kind kind) external {
        bytes32 key = demandKey(provider, epoch, index, kind);
        Demand storage d = _demands[key];
        if (d.until == 0) revert NothingDemanded();
        if (block.timestamp <= d.until) revert TooSoon(d.until);
        address from = d.from;
        delete _demands[key];
        _vault.give(from, _demandBond);
        emit Silent(provider, epoch, index, kind);
        _stakes.strike(provider, from);
    }

    /// What is asked of a provider; all zero if nothing is.
    function demandOf(bytes32 key) external view returns (Demand memory) {
        return _demands[key];
    }

    /// Names a demand.
    function demandKey(address provider, uint64 epoch, uint64 index, Kind kind) public pure returns (bytes32) {
        return keccak256(abi.encode(provider, epoch, index, kind));
    }

    // ---- inside

    function _batch(address provider, uint64 epoch) private view returns (Batch memory batch) {
        batch = _epochs.batchOf(provider, epoch);
        if (batch.state == 0) revert NotPosted(provider, epoch);
    }

    function _demand(
        address provider,
        uint64 epoch,
        uint64 index,
        Demand memory asked,
        Kind kind
    ) private {
        uint256 finalAt = _epochs.finalAt(epoch);
        if (block.timestamp > finalAt) revert TooLate(finalAt);
        bytes32 key = demandKey(provider, epoch, index, kind);
        if (_demands[key].until != 0) revert AlreadyDemanded();
        uint40 until = uint40(block.timestamp + _answerSeconds);
        _vault.take(msg.sender, _demandBond);
        asked.until = until;
        _demands[key] = asked;
        // As long again to prove the silence, before the fees it is about are released.
        _epochs.holdUntil(provider, epoch, until + _answerSeconds);
        emit Demanded(provider, epoch, index, kind, msg.sender, until);
    }

    /// @dev An answer after its time still counts as long as nobody has proved the silence.
    function _requireOpen(bytes32 key) private view {
        if (_demands[key].until == 0) revert NothingDemanded();
    }

    function _answered(bytes32 key, address provider) private {
        Demand storage d = _demands[key];
        address whose = d.drawn ? d.from : provider;
        delete _demands[key];
        _vault.give(whose, _demandBond);
    }

    function _checkOpening(
        address provider,
        uint64 epoch,
        uint64 index,
        Batch memory batch,
        Opening calldata o
    ) private view {
        bytes32 leaf = o.isVoid ? Receipts.void() : Receipts.leaf(o.receipt, _epochs.receiptDomain());
        if (o.proof.index != index || leaf.rootFrom(o.proof) != batch.root) revert BadOpening("leaf");
        if (o.proof.count != batch.count || o.tallyProof.count != batch.count) revert BadOpening("count");
        uint256 width = uint256(batch.shares) * 8;
        if (o.tally.length != width) revert BadOpening("tally length");
        if (o.tallyProof.index != index || Merkle.leaf(o.tally).rootFrom(o.tallyProof) != batch.tallyRoot) {
            revert BadOpening("tally");
        }
        if (index > 0) {
            if (o.before.length != width || o.beforeProof.index != index - 1) revert BadOpening("before");
            if (Merkle.leaf(o.before).rootFrom(o.beforeProof) != batch.tallyRoot) revert BadOpening("before");
        }
        if (!o.isVoid) {
            if (
                o.receipt.provider != provider || o.receipt.epoch > epoch
                    || o.receipt.sequence != batch.first + index
            ) revert BadOpening("receipt");
        }
        _checkTally(index, batch, o);
    }

    /// One leaf further, the total of its model has grown by its fee and the others not at all; after the last, totals are the shares'.
    function _checkTally(uint64 index, Batch memory batch, Opening calldata o) private view {
        uint256 n = o.shares.length;
        if (n != batch.shares) revert BadOpening("shares");
        bytes32[] memory leaves = new bytes32[](n);
        uint256 fee = o.isVoid ? 0 : o.receipt.feeMicroUsd;
        bool found = fee == 0;
        for (uint256 i = 0; i < n; ++i) {
            ShareLeaf calldata share = o.shares[i];
            leaves[i] = _epochs.shareLeaf(share);
            bool mine = fee > 0 && share.modelRoot == o.receipt.modelRoot;
            found = found || mine;
            uint256 sum = _number(o.tally, i);
            uint256 previous = index == 0 ? 0 : _number(o.before, i);
            if (sum != previous + (mine ? fee : 0)) revert BadOpening("step");
            if (index + 1 == batch.count && sum != share.total) revert BadOpening("total");
        }
        if (!found) revert BadOpening("model");
        if (Merkle.rootOver(leaves) != batch.sharesRoot) revert BadOpening("shares");
    }

    function _number(bytes calldata tally, uint256 i) private pure returns (uint256) {
        return uint64(bytes8(tally[8 * i:8 * i + 8]));
    }

    function _rootOver(bytes[] calldata items) private pure returns (bytes32) {
        bytes32[] memory leaves = new bytes32[](items.length);
        for (uint256 i = 0; i < items.length; ++i) {
            leaves[i] = Merkle.leaf(items[i]);
        }
        return Merkle.rootOver(leaves);
    }
}
