// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {BlockHeader} from "@openzeppelin/contracts/utils/BlockHeader.sol";
import {Blockhash} from "@openzeppelin/contracts/utils/Blockhash.sol";
import {Channels, ChannelConfig} from "./Channels.sol";
import {Addresses, Directory, Parameters} from "./Directory.sol";
import {Lottery} from "./Lottery.sol";
import {Merkle, Proof} from "./Merkle.sol";
import {Receipt, Receipts} from "./Receipts.sol";
import {Registry} from "./Registry.sol";
import {Retrieval} from "./Retrieval.sol";
import {Vault} from "./Vault.sol";
import {IHolds} from "./interfaces/IHolds.sol";

/// What a provider posts of one model in an epoch.
/// @param listing whose entry of the model is paid royalty and hosts; 0: none
/// @param total the sum of the fees of this model's receipts
struct Share {
    bytes32 modelRoot;
    address listing;
    uint64 total;
}

/// A leaf of the tree of shares: `modelRoot ‖ listing ‖ total ‖ royalty ‖ hosts`, 32 + 20 + 8 + 8 + 8 bytes.
struct ShareLeaf {
    bytes32 modelRoot;
    address listing;
    uint64 total;
    uint64 royalty;
    uint64 hosts;
}

/// A provider's posted epoch.
/// @param root over the receipts, one leaf per sequence number from `first` on
/// @param tallyRoot over the running totals: leaf `i` has, for each share in order, 8 bytes: the sum of its fees up to receipt `i`
/// @param sharesRoot over the shares, in rising order of model roots
/// @param providerPart of `total`, what the provider earns; the rest is `auditorsPart`, royalties, hosts and protocol
/// @param backing the provider's stake when it posted, in token units: what else it loses, the F of the lottery
/// @param period how many batches the provider had posted before
/// @param previous the provider's posted epoch before this one, plus 1; 0 if there is none
struct Batch {
    bytes32 root;
    bytes32 tallyRoot;
    bytes32 sharesRoot;
    uint64 first;
    uint32 count;
    uint64 total;
    uint64 providerPart;
    uint8 panel;
    uint8 shares;
    uint8 state;
    uint64 auditorsPart;
    uint64 backing;
    uint32 previous;
    uint16 released;
    uint40 heldUntil;
    uint32 period;
}

/// Receipts by epochs: providers post roots, a beacon that nobody knew draws what is audited, and fees are released when no objection
/// stood. Fees are escrowed here from the moment a provider has them settled.
contract Epochs is IHolds {
    using Merkle for bytes32;

    uint256 public constant SHARES_MAX = 16;
    uint256 public constant COUNT_MAX = 1 << 24;
    uint8 public constant OPEN = 1;
    uint8 public constant SETTLED = 2;
    uint256 private constant PPM = 1_000_000;
    uint8 private constant PROVIDER = 1; // Registry.PROVIDER

    Vault private immutable _vault;
    Registry private immutable _registry;
    Channels private immutable _channels;
    Retrieval private immutable _retrieval;
    address private immutable _objections;
    address private immutable _audits;
    address private immutable _disputes;
    address private immutable _treasury;
    uint64 private immutable _genesis;
    uint32 private immutable _epochSeconds;
    uint32 private immutable _postSeconds;
    uint32 private immutable _beaconBlocks;
    uint32 private immutable _auditSeconds;
    uint32 private immutable _disputeSeconds;
    uint32 private immutable _refundSeconds;
    uint32 private immutable _savingsPpm;
    uint32 private immutable _rateMinPpm;
    uint32 private immutable _auditsPerMember;
    uint32 private immutable _hostsPpm;
    uint32 private immutable _protocolPpm;
    uint32 private immutable _auditorsMinPpm;
    uint32 private immutable _auditCostPpm;
    uint8 private immutable _panelMin;
    uint8 private immutable _panelMax;

    /// @param number of the block whose randomness the beacon is; 0 before posting was closed
    /// @param fixedAt when it became known to this contract; 0 before
    struct Beacon {
        bytes32 value;
        uint64 number;
        uint64 fixedAt;
    }

    /// @param pot what was settled and is not yet posted
    /// @param escrow of its open batches, what is not the auditors'; once it is struck, with its pot: what is left to refund
    /// @param nextSequence where its next batch begins, plus 1; 0: anywhere
    /// @param lastPosted epoch of its last batch, plus 1
    /// @param posts how many batches it has posted
    /// @param lastSettled epoch of its last settled batch, plus 1
    struct Account {
        uint128 pot;
        uint128 escrow;
        uint40 forfeitedAt;
        uint72 nextSequence;
        uint32 lastPosted;
        uint32 lastSettled;
        uint32 posts;
    }

    mapping(uint64 epoch => Beacon) private _beacons;
    mapping(address provider => Account) private _accounts;
    mapping(address provider => mapping(uint64 epoch => Batch)) private _batches;
    mapping(bytes32 channelId => mapping(uint256 period => uint256)) private _refundedOf;
    mapping(bytes32 receiptLeaf => bool) public isRefunded;

    event Income(address indexed provider, uint256 amount);
    event Posted(
        address indexed provider, uint64 indexed epoch, Batch batch, Share[] shares
    );
    event Closed(uint64 indexed epoch, uint64 beaconBlock);
    event BeaconFixed(uint64 indexed epoch, bytes32 beacon);
    event Held(address indexed provider, uint64 indexed epoch, uint40 until);
    event Settled(address indexed provider, uint64 indexed epoch, uint256 providerPart, uint256 protocolPart);
    event ShareReleased(address indexed provider, uint64 indexed epoch, uint256 index, uint256 royalty, uint256 hosts);
    event Forfeited(address indexed provider, uint256 escrow);
    event Refunded(address indexed provider, bytes32 indexed channelId, uint64 sequence, uint256 amount);
    event Swept(address indexed provider, uint256 amount);

    error NotAuthorised(address caller);
    error NotProvider(address node);
    error NotNode(address node, address caller);
    /// The epoch is not over yet, or its time for posting is.
    error NotPosting(uint64 epoch);
    error AlreadyPosted(address provider, uint64 epoch);
    /// Sequence numbers go on where the last batch ended.
    error SequenceGap(uint64 expected, uint64 first);
    error BadCount(uint256 count);
    error BadShares();
    /// The total is more than what was settled.
    error TotalTooHigh(uint256 total, uint256 pot);
    /// More audits are expected than a panel can do: the provider has too little at stake for so many receipts.
    error TooManyAudits(uint256 expected, uint256 max);
    error PostingOpen(uint64 epoch);
    error BeaconPending(uint64 epoch);
    error BeaconAlreadyFixed(uint64 epoch);
    /// Not the header of the beacon's block, or its hash is not known to the chain (any more).
    error WrongHeader(uint64 number);
    error NotPosted(address provider, uint64 epoch);
    error NotSettled(address provider, uint64 epoch);
    error AlreadyDone();
    error AuditOpen(uint256 until);
    /// An earlier epoch of this provider is to be settled first.
    error OutOfOrder(uint64 previous);
    error Forfeit(address provider);
    error NotForfeit(address provider);
    error RefundsOpen(uint256 until);
    error BadProof();
    error WrongChannel(bytes32 channelId);

    constructor(Directory directory) {
        Addresses memory a = directory.addresses();
        Parameters memory p = directory.parameters();
        _vault = Vault(a.vault);
        _registry = Registry(a.registry);
        _channels = Channels(a.channels);
        _retrieval = Retrieval(a.retrieval);
        _objections = a.objections;
        _audits = a.audits;
        _disputes = a.disputes;
        _treasury = a.treasury;
        _genesis = p.times.genesis;
        _epochSeconds = p.times.epochSeconds;
        _postSeconds = p.times.postSeconds;
        _beaconBlocks = p.times.beaconBlocks;
        _auditSeconds = p.times.commitSeconds + p.times.revealSeconds + p.times.objectSeconds;
        _disputeSeconds = p.times.disputeSeconds;
        _refundSeconds = p.times.refundSeconds;
        _savingsPpm = p.rates.savingsPpm;
        _rateMinPpm = p.rates.rateMinPpm;
        _auditsPerMember = p.rates.auditsPerMember;
        _hostsPpm = p.split.hostsPpm;
        _protocolPpm = p.split.protocolPpm;
        _auditorsMinPpm = p.split.auditorsMinPpm;
        _auditCostPpm = p.split.auditCostPpm;
        _panelMin = p.rates.panelMin;
        _panelMax = p.rates.panelMax;
    }

    // ---- money in

    /// Books what the channels have just given to this contract for a provider.
    function income(address provider, uint256 amount) external {
        if (msg.sender != address(_channels)) revert NotAuthorised(msg.sender);
        Account storage account = _accounts[provider];
        if (account.forfeitedAt == 0) account.pot += uint128(amount);
        else account.escrow += uint128(amount);
        emit Income(provider, amount);
    }

    // ---- posting

    /// Posts a provider's receipts of an epoch that is over. Sequence numbers go on where its last batch ended; a number for which
    /// nothing was signed has the leaf of 32 zero bytes. A receipt of an earlier epoch may come late, none early.
    /// @param root over the receipts
    /// @param tallyRoot over the running totals of the shares
    /// @param first sequence number of the first leaf
    /// @param count of leaves, 1 to `COUNT_MAX`
    /// @param shares the models with fees, in strictly rising order of roots, at most `SHARES_MAX`
    function post(
        address provider,
        uint64 epoch,
        bytes32 root,
        bytes32 tallyRoot,
        uint64 first,
        uint32 count,
        Share[] calldata shares
    ) external {
        if (!_registry.actsFor(provider, msg.sender)) revert NotNode(provider, msg.sender);
        if (!_registry.serves(provider, PROVIDER)) revert NotProvider(provider);
        if (!isPosting(epoch)) revert NotPosting(epoch);
        if (count == 0 || count > COUNT_MAX) revert BadCount(count);
        if (shares.length > SHARES_MAX) revert BadShares();
        Account storage account = _accounts[provider];
        Batch storage batch = _batches[provider][epoch];
        if (batch.state != 0) revert AlreadyPosted(provider, epoch);
        if (account.nextSequence != 0 && account.nextSequence != uint72(first) + 1) {
            revert SequenceGap(uint64(account.nextSequence - 1), first);
        }

        Batch memory b;
        b.root = root;
        b.tallyRoot = tallyRoot;
        b.first = first;
        b.count = count;
        b.shares = uint8(shares.length);
        b.state = OPEN;
        b.previous = account.lastPosted;
        b.period = account.posts;
        uint256 models;
        (b.sharesRoot, b.total, models) = _share(shares);
        if (b.total > account.pot) revert TotalTooHigh(b.total, account.pot);
        // Fees of open batches do not count: they go back to their payers, and a payer may be the provider itself.
        uint256 backing = _registry.stakeOf(provider);
        b.backing = backing > type(uint64).max ? type(uint64).max : uint64(backing);
        uint256 rate = Lottery.averageRatePpm(b.total, count, b.backing, _savingsPpm, _rateMinPpm);
        b.panel = _panelFor(count, rate);
        uint256 auditorsPpm = rate * _auditCostPpm / PPM;
        if (auditorsPpm < _auditorsMinPpm) auditorsPpm = _auditorsMinPpm;
        // Members of the panel get equal parts; what does not divide stays the provider's.
        b.auditorsPart = uint64(b.total * auditorsPpm / PPM / b.panel * b.panel);
        b.providerPart = uint64(b.total - b.auditorsPart - _protocolPart(b.total) - models);

        _batches[provider][epoch] = b;
        account.pot -= b.total;
        account.escrow += b.total - b.auditorsPart;
        account.nextSequence = uint72(first) + count + 1;
        account.lastPosted = uint32(epoch + 1);
        ++account.posts;
        emit Posted(provider, epoch, b, shares);
    }

    /// Ends an epoch's time for posting and fixes the block whose randomness will be its beacon: `beaconBlocks` after this one, so that
    /// nobody who calls this knows it. Calling again is possible only once the chain has forgotten that block.
    function close(uint64 epoch) external {
        if (block.timestamp < postingEnds(epoch)) revert PostingOpen(epoch);
        Beacon storage beacon = _beacons[epoch];
        if (beacon.fixedAt != 0) revert BeaconAlreadyFixed(epoch);
        if (beacon.number != 0) {
            bool forgotten = block.number > beacon.number && Blockhash.blockHash(beacon.number) == bytes32(0);
            if (!forgotten) revert BeaconPending(epoch);
        }
        beacon.number = uint64(block.number + _beaconBlocks);
        emit Closed(epoch, beacon.number);
    }

    /// Fixes an epoch's beacon: keccak of the `prevRandao` of the block that `close` named, and the epoch.
    /// @param header that block's header in RLP
    function fixBeacon(uint64 epoch, bytes calldata header) external {
        Beacon storage beacon = _beacons[epoch];
        if (beacon.number == 0) revert PostingOpen(epoch);
        if (beacon.fixedAt != 0) revert BeaconAlreadyFixed(epoch);
        bytes32 hash = block.number > beacon.number ? Blockhash.blockHash(beacon.number) : bytes32(0);
        if (hash == bytes32(0) || keccak256(header) != hash) revert WrongHeader(beacon.number);
        beacon.value = keccak256(abi.encodePacked("assay/beacon/1", BlockHeader.getPrevRandao(header), epoch));
        beacon.fixedAt = uint64(block.timestamp);
        emit BeaconFixed(epoch, beacon.value);
    }

    // ---- release

    /// Releases an epoch that nobody objected to: the provider's part becomes its stake, the protocol's part goes to the treasury.
    /// Anyone may call it. Epochs of a provider are settled in order.
    function settle(address provider, uint64 epoch) external {
        Account storage account = _accounts[provider];
        Batch storage batch = _batches[provider][epoch];
        if (batch.state == 0) revert NotPosted(provider, epoch);
        if (batch.state != OPEN) revert AlreadyDone();
        if (account.forfeitedAt != 0) revert Forfeit(provider);
        uint256 until = finalAt(epoch);
        if (batch.heldUntil > until) until = batch.heldUntil;
        if (block.timestamp <= until) revert AuditOpen(until);
        if (batch.previous != account.lastSettled) revert OutOfOrder(uint64(batch.previous) - 1);
        batch.state = SETTLED;
        account.lastSettled = uint32(epoch + 1);
        uint256 providerPart = batch.providerPart;
        account.escrow -= batch.total - batch.auditorsPart;
        _vault.give(address(_registry), providerPart);
        _registry.credit(provider, providerPart);
        uint256 protocolPart = _protocolPart(batch.total);
        _vault.give(_treasury, protocolPart);
        emit Settled(provider, epoch, providerPart, protocolPart);
    }

    /// Pays one model's royalty and its hosts from a settled epoch, by the share's proof. Anyone may call it.
    function release(address provider, uint64 epoch, ShareLeaf calldata share, Proof calldata proof) external {
        Batch storage batch = _batches[provider][epoch];
        if (batch.state != SETTLED) revert NotSettled(provider, epoch);
        if (shareLeaf(share).rootFrom(proof) != batch.sharesRoot) revert BadProof();
        uint16 bit = uint16(1) << uint16(proof.index);
        if (batch.released & bit != 0) revert AlreadyDone();
        batch.released |= bit;
        if (share.royalty > 0) _vault.give(share.listing, share.royalty);
        if (share.hosts > 0) {
            _vault.give(address(_retrieval), share.hosts);
            _retrieval.income(provider, share.modelRoot, share.listing, share.hosts);
        }
        emit ShareReleased(provider, epoch, proof.index, share.royalty, share.hosts);
    }

    /// Hands the audit contract a member's part of a batch.
    function releaseAudit(address provider, uint64 epoch, address to) external returns (uint256 part) {
        if (msg.sender != _audits) revert NotAuthorised(msg.sender);
        Batch storage batch = _batches[provider][epoch];
        part = batch.auditorsPart / batch.panel;
        _vault.give(to, part);
    }

    // ---- objections

    /// Keeps an epoch from being settled until `until`, for an answer that is owed.
    function holdUntil(address provider, uint64 epoch, uint40 until) external {
        if (msg.sender != _objections) revert NotAuthorised(msg.sender);
        _hold(provider, epoch, until);
    }

    /// @inheritdoc IHolds
    function hold(address provider, uint64 epoch, uint64 sequence) external returns (bool held) {
        if (msg.sender != _disputes) revert NotAuthorised(msg.sender);
        Batch storage batch = _batches[provider][epoch];
        if (batch.state != OPEN || block.timestamp > finalAt(epoch)) return false;
        if (sequence < batch.first || sequence - batch.first >= batch.count) return false;
        _hold(provider, epoch, uint40(block.timestamp + _disputeSeconds));
        return true;
    }

    /// Turns a struck provider's open epochs and its pot into refunds. What auditors are owed stays theirs: they did their work.
    function forfeit(address provider) external {
        if (msg.sender != address(_registry)) revert NotAuthorised(msg.sender);
        Account storage account = _accounts[provider];
        account.escrow += account.pot;
        account.pot = 0;
        account.forfeitedAt = uint40(block.timestamp);
        emit Forfeited(provider, account.escrow);
    }

    /// Gives back what a payer paid a struck provider for a receipt that was not settled: of a posted epoch by the receipt's proof, less
    /// the auditors' part; of what was never posted by the provider's signature. A channel gets back at most what was claimed from it
    /// between that post and the one before, so that receipts which a cheat writes to itself return nothing but its own money.
    /// @param epoch of the batch; ignored where `signature` is given
    /// @param signature the provider's, for a receipt beyond its last batch; empty otherwise
    function refund(
        Receipt calldata receipt,
        ChannelConfig calldata config,
        uint64 epoch,
        Proof calldata proof,
        bytes calldata signature
    ) external {
        Account storage account = _accounts[receipt.provider];
        if (account.forfeitedAt == 0) revert NotForfeit(receipt.provider);
        bytes32 separator = receiptDomain();
        bytes32 leaf = Receipts.leaf(receipt, separator);
        if (isRefunded[leaf]) revert AlreadyDone();
        isRefunded[leaf] = true;
        uint256 amount = receipt.feeMicroUsd;
        uint256 period = account.posts;
        if (signature.length == 0) {
            Batch storage batch = _batches[receipt.provider][epoch];
            if (batch.state != OPEN) revert NotPosted(receipt.provider, epoch);
            if (leaf.rootFrom(proof) != batch.root) revert BadProof();
            period = batch.period;
            if (batch.total > 0) amount = amount * (batch.total - batch.auditorsPart) / batch.total;
        } else {
            Receipts.requireSigned(receipt, separator, signature);
            if (account.nextSequence != 0 && receipt.sequence + 1 < account.nextSequence) revert BadProof();
        }
        bytes32 id = _channels.channelId(config);
        if (id != receipt.payerChannel || config.receiver != receipt.provider) revert WrongChannel(id);
        uint256 left = _channels.claimedIn(id, period) - _refundedOf[id][period];
        if (amount > left) amount = left;
        if (amount > account.escrow) amount = account.escrow;
        _refundedOf[id][period] += amount;
        account.escrow -= uint128(amount);
        _vault.give(config.payer, amount);
        emit Refunded(receipt.provider, id, receipt.sequence, amount);
    }

    /// Gives the treasury what nobody asked back within `refundSeconds` of a strike. Anyone may call it.
    function sweep(address provider) external {
        Account storage account = _accounts[provider];
        if (account.forfeitedAt == 0) revert NotForfeit(provider);
        uint256 until = uint256(account.forfeitedAt) + _refundSeconds;
        if (block.timestamp <= until) revert RefundsOpen(until);
        uint256 amount = account.escrow;
        account.escrow = 0;
        _vault.give(_treasury, amount);
        emit Swept(provider, amount);
    }

    // ---- views

    /// The epoch that time is in.
    function current() public view returns (uint64) {
        return uint64((block.timestamp - _genesis) / _epochSeconds);
    }

    /// When an epoch's time for posting ends, unless `close` comes later.
    function postingEnds(uint64 epoch) public view returns (uint256) {
        return uint256(_genesis) + (uint256(epoch) + 1) * _epochSeconds + _postSeconds;
    }

    /// Whether an epoch can be posted now: it is over, its time for posting is not, and posting was not closed.
    function isPosting(uint64 epoch) public view returns (bool) {
        uint256 ends = postingEnds(epoch);
        return block.timestamp >= ends - _postSeconds && block.timestamp < ends && _beacons[epoch].number == 0;
    }

    function beaconOf(uint64 epoch) external view returns (Beacon memory) {
        return _beacons[epoch];
    }

    /// An epoch's beacon and when it was fixed. Reverts with `BeaconPending` before.
    function fixedBeacon(uint64 epoch) external view returns (bytes32 value, uint64 fixedAt) {
        Beacon storage beacon = _beacons[epoch];
        if (beacon.fixedAt == 0) revert BeaconPending(epoch);
        return (beacon.value, beacon.fixedAt);
    }

    /// When objections to an epoch end: commit, reveal and objection windows after its beacon. For ever, while there is no beacon.
    function finalAt(uint64 epoch) public view returns (uint256) {
        uint64 fixedAt = _beacons[epoch].fixedAt;
        return fixedAt == 0 ? type(uint256).max : uint256(fixedAt) + _auditSeconds;
    }

    function batchOf(address provider, uint64 epoch) external view returns (Batch memory) {
        return _batches[provider][epoch];
    }

    function accountOf(address provider) external view returns (Account memory) {
        return _accounts[provider];
    }

    /// How many batches a provider has posted.
    function postsOf(address provider) external view returns (uint256) {
        return _accounts[provider].posts;
    }

    /// Whether no batch of a node for `epoch` or before is open.
    /// @param nextOpen the node's first open epoch; ignored if it has none
    function clear(address node, uint64 epoch, uint64 nextOpen) external view returns (bool) {
        Account storage account = _accounts[node];
        if (account.forfeitedAt != 0 || account.lastPosted == account.lastSettled) return true;
        Batch storage batch = _batches[node][nextOpen];
        return batch.state == OPEN && batch.previous == account.lastSettled && nextOpen > epoch;
    }

    /// Whether the lottery draws a receipt: a chance of `savings · fee / (fee + backing)`, at least the smallest rate.
    function isDrawn(address provider, uint64 epoch, uint64 sequence, uint64 feeMicroUsd) external view returns (bool) {
        Beacon storage beacon = _beacons[epoch];
        if (beacon.fixedAt == 0) revert BeaconPending(epoch);
        uint64 backing = _batches[provider][epoch].backing;
        return Lottery.isDrawn(beacon.value, provider, sequence, feeMicroUsd, backing, _savingsPpm, _rateMinPpm);
    }

    /// Separator of the EIP-712 domain in which receipts are signed.
    function receiptDomain() public view returns (bytes32) {
        return Receipts.domain(address(this));
    }

    /// The leaf of a share.
    function shareLeaf(ShareLeaf memory s) public pure returns (bytes32) {
        return Merkle.leaf(abi.encodePacked(s.modelRoot, s.listing, s.total, s.royalty, s.hosts));
    }

    // ---- inside

    /// The root over the shares, the sum of their totals, and what of it models get.
    function _share(Share[] calldata shares) private view returns (bytes32 root, uint64 total, uint256 models) {
        bytes32[] memory leaves = new bytes32[](shares.length);
        bytes32 before = bytes32(0);
        for (uint256 i = 0; i < shares.length; ++i) {
            Share calldata s = shares[i];
            if (s.modelRoot <= before) revert BadShares();
            before = s.modelRoot;
            ShareLeaf memory l;
            l.modelRoot = s.modelRoot;
            l.listing = s.listing;
            l.total = s.total;
            l.hosts = uint64(uint256(s.total) * _hostsPpm / PPM);
            if (s.listing != address(0)) {
                (uint32 royaltyPpm, bool listed) = _registry.royaltyOf(s.modelRoot, s.listing);
                if (!listed) revert BadShares();
                l.royalty = uint64(uint256(s.total) * royaltyPpm / PPM);
            }
            leaves[i] = shareLeaf(l);
            total += s.total;
            models += uint256(l.royalty) + l.hosts;
        }
        root = Merkle.rootOver(leaves);
    }

    function _protocolPart(uint256 total) private view returns (uint256) {
        return total * _protocolPpm / PPM;
    }

    function _panelFor(uint256 count, uint256 ratePpm) private view returns (uint8) {
        uint256 expected = (count * ratePpm + PPM - 1) / PPM;
        uint256 max = uint256(_panelMax) * _auditsPerMember;
        if (expected > max) revert TooManyAudits(expected, max);
        uint256 panel = (expected + _auditsPerMember - 1) / _auditsPerMember;
        return panel < _panelMin ? _panelMin : uint8(panel);
    }

    function _hold(address provider, uint64 epoch, uint40 until) private {
        Batch storage batch = _batches[provider][epoch];
        if (until > batch.heldUntil) batch.heldUntil = until;
        emit Held(provider, epoch, until);
    }
}
