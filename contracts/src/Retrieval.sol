// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Addresses, Directory, Parameters} from "./Directory.sol";
import {Epochs} from "./Epochs.sol";
import {Merkle, Proof} from "./Merkle.sol";
import {Listing, Registry} from "./Registry.sol";
import {Vault} from "./Vault.sol";

/// A host's promise to keep a listed model's content.
/// @param since first epoch in which it can be asked
/// @param until first epoch in which it cannot any more; 0: no end
/// @param seen the listing's income per pledge that this pledge was credited with
/// @param earned what answers have confirmed, not yet collected
struct Pledge {
    uint40 since;
    uint40 until;
    uint128 seen;
    uint64 earned;
}

/// Hosts of a listing, and what they share equally.
/// @param perPledge income of one pledge from the beginning on
/// @param pledges how many are in force
/// @param dust what did not divide, for the next time
struct Pool {
    uint128 perPledge;
    uint64 pledges;
    uint64 dust;
}

/// Who hosts what, and proofs that it can still be had. Every epoch's beacon asks a part of all pledges for one chunk. An answer confirms what
/// the pledge has earned so far; silence costs its stake and what was not confirmed.
contract Retrieval {
    using Merkle for bytes32;

    uint256 private constant PPM = 1_000_000;
    uint256 public constant CHUNK_BYTES_MAX = 4096;
    uint8 private constant HOST = 2; // Registry.HOST

    Vault private immutable _vault;
    Registry private immutable _registry;
    Epochs private immutable _epochs;
    address private immutable _treasury;
    uint64 private immutable _pledgeStake;
    uint32 private immutable _retrievalPpm;
    uint32 private immutable _retrievalSeconds;
    uint32 private immutable _reporterPpm;
    uint64 private immutable _restEpochs;

    mapping(bytes32 listingKey => Pool) private _pools;
    mapping(bytes32 pledgeKey => Pledge) private _pledges;
    mapping(bytes32 pledgeKey => mapping(uint64 epoch => bool)) public isAnswered;

    event Pledged(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint40 since);
    event Unpledged(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint40 until);
    event Income(bytes32 indexed modelRoot, address indexed listing, uint256 amount);
    event Answered(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint64 epoch, uint256 confirmed);
    event Failed(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint64 epoch, uint256 taken);
    event Collected(address indexed host, uint256 amount);

    error NotHost(address node);
    error NotNode(address node, address caller);
    error NothingToHost(bytes32 modelRoot, address listing);
    error AlreadyPledged();
    error NotPledged();
    error NotAsked(uint64 epoch);
    error AlreadyAnswered(uint64 epoch);
    error TooLate(uint256 until);
    error TooSoon(uint256 until);
    error WrongChunk(uint64 expected, uint64 index);
    error ChunkTooLong(uint256 bytesGiven);
    error BadProof();
    error NotAuthorised(address caller);

    constructor(Directory directory) {
        Addresses memory a = directory.addresses();
        Parameters memory p = directory.parameters();
        _vault = Vault(a.vault);
        _registry = Registry(a.registry);
        _epochs = Epochs(a.epochs);
        _treasury = a.treasury;
        _pledgeStake = p.pledgeStake;
        _retrievalPpm = p.retrievalPpm;
        _retrievalSeconds = p.retrievalSeconds;
        _reporterPpm = p.reporterPpm;
        _restEpochs = uint64(p.unbondSeconds / p.epochSeconds + 2);
    }

    /// Promises to keep a listing's content, from the next epoch on. Reserves `pledgeStake` of the host's stake.
    function pledge(address host, bytes32 modelRoot, address listing) external {
        if (!_registry.actsFor(host, msg.sender)) revert NotNode(host, msg.sender);
        if (!_registry.serves(host, HOST)) revert NotHost(host);
        Listing memory l = _registry.listingOf(modelRoot, listing);
        if (l.contentRoot == bytes32(0) || l.chunks == 0) revert NothingToHost(modelRoot, listing);
        Pledge storage p = _pledges[pledgeKey(host, modelRoot, listing)];
        uint64 epoch = _epochs.current();
        // A pledge that ended can still be asked about its last epochs.
        if (p.since != 0 && (p.until == 0 || p.until + _restEpochs > epoch)) revert AlreadyPledged();
        _registry.reserve(host, _pledgeStake);
        Pool storage pool = _pools[listingKey(modelRoot, listing)];
        ++pool.pledges;
        p.since = uint40(epoch + 1);
        p.until = 0;
        p.seen = pool.perPledge;
        emit Pledged(host, modelRoot, listing, p.since);
    }

    /// Ends a promise with this epoch. What no answer has confirmed goes to the other hosts. Anyone may end a pledge that its stake no longer covers.
    function unpledge(address host, bytes32 modelRoot, address listing) external {
        if (!_registry.actsFor(host, msg.sender) && !_registry.isShort(host)) revert NotNode(host, msg.sender);
        Pledge storage p = _pledges[pledgeKey(host, modelRoot, listing)];
        if (p.since == 0 || p.until != 0) revert NotPledged();
        uint40 until = uint40(_epochs.current() + 1);
        _end(host, modelRoot, listing, p, until);
        emit Unpledged(host, modelRoot, listing, until);
    }

    /// Answers an epoch's question with the chunk that the beacon drew. Anyone who has it may.
    /// @param chunk its bytes, at most `CHUNK_BYTES_MAX`; a leaf of the listing's content root
    function answer(
        address host,
        bytes32 modelRoot,
        address listing,
        uint64 epoch,
        bytes calldata chunk,
        Proof calldata proof
    ) external {
        if (chunk.length > CHUNK_BYTES_MAX) revert ChunkTooLong(chunk.length);
        bytes32 key = pledgeKey(host, modelRoot, listing);
        Listing memory l = _registry.listingOf(modelRoot, listing);
        (uint64 index, uint256 until) = _question(key, epoch, l.chunks);
        if (block.timestamp > until) revert TooLate(until);
        if (isAnswered[key][epoch]) revert AlreadyAnswered(epoch);
        if (proof.index != index) revert WrongChunk(index, proof.index);
        if (proof.count != l.chunks || Merkle.leaf(chunk).rootFrom(proof) != l.contentRoot) revert BadProof();
        isAnswered[key][epoch] = true;
        Pledge storage p = _pledges[key];
        uint256 confirmed = 0;
        if (p.until == 0) {
            uint128 perPledge = _pools[listingKey(modelRoot, listing)].perPledge;
            confirmed = perPledge - p.seen;
            p.seen = perPledge;
            p.earned += uint64(confirmed);
        }
        emit Answered(host, modelRoot, listing, epoch, confirmed);
    }

    /// Ends a pledge that left an epoch's question without an answer: `pledgeStake` is taken, of which `reporterPpm` go to the
    /// caller and the rest to the treasury.
    function proveFailure(address host, bytes32 modelRoot, address listing, uint64 epoch) external {
        bytes32 key = pledgeKey(host, modelRoot, listing);
        Listing memory l = _registry.listingOf(modelRoot, listing);
        (, uint256 until) = _question(key, epoch, l.chunks);
        if (block.timestamp <= until) revert TooSoon(until);
        if (isAnswered[key][epoch]) revert AlreadyAnswered(epoch);
        isAnswered[key][epoch] = true; // asked once, paid for once
        Pledge storage p = _pledges[key];
        if (p.until == 0) _end(host, modelRoot, listing, p, uint40(epoch + 1));
        uint256 taken = _registry.slash(host, _pledgeStake, msg.sender, _reporterPpm);
        emit Failed(host, modelRoot, listing, epoch, taken);
    }

    /// Pays what answers have confirmed into the owner's vault balance. Anyone may call it.
    function collect(address host, bytes32 modelRoot, address listing) external {
        Pledge storage p = _pledges[pledgeKey(host, modelRoot, listing)];
        uint256 amount = p.earned;
        p.earned = 0;
        _vault.give(_registry.ownerOf(host), amount);
        emit Collected(host, amount);
    }

    /// Books what the epochs contract has just given to this one for a listing's hosts. Without any it goes to the treasury.
    function income(bytes32 modelRoot, address listing, uint256 amount) external {
        if (msg.sender != address(_epochs)) revert NotAuthorised(msg.sender);
        _share(_pools[listingKey(modelRoot, listing)], amount);
        emit Income(modelRoot, listing, amount);
    }

    // ---- views

    /// Whether a pledge is asked in an epoch, for which chunk, and until when it can answer. Reverts with `BeaconPending` before the beacon.
    function questionFor(address host, bytes32 modelRoot, address listing, uint64 epoch)
        external
        view
        returns (bool asked, uint64 index, uint256 until)
    {
        return _draw(pledgeKey(host, modelRoot, listing), epoch, _registry.listingOf(modelRoot, listing).chunks);
    }

    function pledgeOf(address host, bytes32 modelRoot, address listing) external view returns (Pledge memory) {
        return _pledges[pledgeKey(host, modelRoot, listing)];
    }

    function poolOf(bytes32 modelRoot, address listing) external view returns (Pool memory) {
        return _pools[listingKey(modelRoot, listing)];
    }

    function pledgeKey(address host, bytes32 modelRoot, address listing) public pure returns (bytes32) {
        return keccak256(abi.encode(host, modelRoot, listing));
    }

    function listingKey(bytes32 modelRoot, address listing) public pure returns (bytes32) {
        return keccak256(abi.encode(modelRoot, listing));
    }

    // ---- inside

    function _draw(bytes32 key, uint64 epoch, uint64 chunks)
        private
        view
        returns (bool asked, uint64 index, uint256 until)
    {
        Pledge storage p = _pledges[key];
        (bytes32 beacon, uint64 fixedAt) = _epochs.fixedBeacon(epoch);
        bool inForce = p.since != 0 && p.since <= epoch && (p.until == 0 || epoch < p.until);
        uint256 draw = uint256(keccak256(abi.encodePacked("assay/retrieval/1", beacon, key)));
        asked = inForce && uint64(draw) % PPM < _retrievalPpm;
        index = chunks == 0 ? 0 : uint64(draw >> 64) % chunks;
        until = uint256(fixedAt) + _retrievalSeconds;
    }

    function _question(bytes32 key, uint64 epoch, uint64 chunks) private view returns (uint64 index, uint256 until) {
        bool asked;
        (asked, index, until) = _draw(key, epoch, chunks);
        if (!asked) revert NotAsked(epoch);
    }

    function _end(address host, bytes32 modelRoot, address listing, Pledge storage p, uint40 until) private {
        Pool storage pool = _pools[listingKey(modelRoot, listing)];
        --pool.pledges;
        p.until = until;
        uint256 unconfirmed = pool.perPledge - p.seen;
        p.seen = pool.perPledge;
        _registry.unreserve(host, _pledgeStake);
        if (unconfirmed > 0) _share(pool, unconfirmed);
    }

    function _share(Pool storage pool, uint256 amount) private {
        if (pool.pledges == 0) {
            _vault.give(_treasury, amount + pool.dust);
            pool.dust = 0;
            return;
        }
        uint256 whole = amount + pool.dust;
        pool.perPledge += uint128(whole / pool.pledges);
        pool.dust = uint64(whole % pool.pledges);
    }
}
