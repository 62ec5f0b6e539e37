// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
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

/// What a provider signs for a host from which it fetched a listed model.
/// @param downloader the provider, whose key signs
/// @param bytesFetched from this host of this listing, since ever: a later receipt contains the earlier ones
struct Fetch {
    address downloader;
    address host;
    bytes32 modelRoot;
    address listing;
    uint64 bytesFetched;
}

/// From whom one provider fetched a listing, all hosts together. Parts of a unit are counted in `1 / 2^FRACTION_BITS`.
/// @param perByte income of one byte from the beginning on, in parts
/// @param bytesFetched the sum over its hosts
/// @param dust parts that did not divide, for the next time; below `bytesFetched`
struct Sources {
    uint128 perByte;
    uint64 bytesFetched;
    uint64 dust;
}

/// One host among a provider's sources.
/// @param seen the sources' income per byte that this host was credited with
/// @param earned parts credited and not yet collected
/// @param bytesFetched from this host
struct Source {
    uint128 seen;
    uint128 earned;
    uint64 bytesFetched;
}

/// Who hosts what, and proofs that it can still be had. Every epoch's beacon asks a part of all pledges for one chunk. An answer confirms what
/// the pledge has earned so far; silence costs its stake and what was not confirmed.
///
/// A part of a model's income follows bytes that were served. Nobody can see bytes from here, so that a provider's word directs its own
/// fees and nobody else's: who signs for bytes that it did not fetch gives away, or keeps, a part of what it paid itself.
contract Retrieval is EIP712 {
    using Merkle for bytes32;

    uint256 private constant PPM = 1_000_000;
    uint256 public constant CHUNK_BYTES_MAX = 4096;
    /// What a provider can sign for of one listing, all hosts together: 64 PiB.
    uint64 public constant FETCHED_BYTES_MAX = 1 << 56;
    /// Income per byte has parts of a unit, since a byte earns less than one: as many as bytes can be, so that what does not divide is
    /// less than a unit. `perByte` then holds 2^72 units even where all of them are one byte's.
    uint256 public constant FRACTION_BITS = 56;
    uint8 private constant PROVIDER = 1; // Registry.PROVIDER
    uint8 private constant HOST = 2; // Registry.HOST
    bytes32 private constant FETCH_TYPE_HASH =
        keccak256("Fetch(address downloader,address host,bytes32 modelRoot,address listing,uint64 bytesFetched)");

    Vault private immutable _vault;
    Registry private immutable _registry;
    Epochs private immutable _epochs;
    address private immutable _treasury;
    uint64 private immutable _pledgeStake;
    uint32 private immutable _retrievalPpm;
    uint32 private immutable _retrievalSeconds;
    uint32 private immutable _reporterPpm;
    uint32 private immutable _fetchedPpm;
    uint64 private immutable _restEpochs;

    mapping(bytes32 listingKey => Pool) private _pools;
    mapping(bytes32 pledgeKey => Pledge) private _pledges;
    mapping(bytes32 pledgeKey => mapping(uint64 epoch => bool)) public isAnswered;
    mapping(bytes32 listingKey => mapping(address provider => Sources)) private _sources;
    mapping(bytes32 pledgeKey => mapping(address provider => Source)) private _sourceOf;

    event Pledged(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint40 since);
    event Unpledged(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint40 until);
    event Income(
        bytes32 indexed modelRoot, address indexed listing, address indexed provider, uint256 amount, uint256 fetched
    );
    event Answered(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint64 epoch, uint256 confirmed);
    event Failed(address indexed host, bytes32 indexed modelRoot, address indexed listing, uint64 epoch, uint256 taken);
    event Collected(address indexed host, uint256 amount);
    event Served(
        address indexed downloader, address indexed host, bytes32 indexed modelRoot, address listing, uint64 bytesFetched
    );
    event CollectedServed(address indexed host, address indexed provider, uint256 amount);

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
    /// No provider, or one that was struck.
    error NotProvider(address node);
    error NotSignedByDownloader(address downloader);
    /// The receipt has no more bytes than were counted before.
    error NothingNew(uint64 bytesFetched, uint64 counted);
    error TooManyBytes(uint256 bytesFetched, uint256 max);

    constructor(Directory directory) EIP712("Assay Retrieval", "1") {
        Addresses memory a = directory.addresses();
        Parameters memory p = directory.parameters();
        _vault = Vault(a.vault);
        _registry = Registry(a.registry);
        _epochs = Epochs(a.epochs);
        _treasury = a.treasury;
        _pledgeStake = p.stakes.pledgeStake;
        _retrievalPpm = p.rates.retrievalPpm;
        _retrievalSeconds = p.times.retrievalSeconds;
        _reporterPpm = p.split.reporterPpm;
        _fetchedPpm = p.split.fetchedPpm;
        _restEpochs = uint64(p.times.unbondSeconds / p.times.epochSeconds + 2);
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

    /// Counts what a provider signed that it fetched from a host. Anyone may post it. Only what it says beyond the last receipt counts,
    /// from now on: income before it is not shared again. What was counted stays when the pledge ends, since those bytes were served.
    /// @param signature the downloader's key's
    function served(Fetch calldata fetch, bytes calldata signature) external {
        if (!_registry.serves(fetch.downloader, PROVIDER)) revert NotProvider(fetch.downloader);
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(fetchHash(fetch), signature);
        if (failure != ECDSA.RecoverError.NoError || signer != fetch.downloader) {
            revert NotSignedByDownloader(fetch.downloader);
        }
        bytes32 key = pledgeKey(fetch.host, fetch.modelRoot, fetch.listing);
        Pledge storage p = _pledges[key];
        if (p.since == 0 || p.until != 0) revert NotPledged();
        Sources storage all = _sources[listingKey(fetch.modelRoot, fetch.listing)][fetch.downloader];
        Source storage source = _sourceOf[key][fetch.downloader];
        uint64 counted = source.bytesFetched;
        if (fetch.bytesFetched <= counted) revert NothingNew(fetch.bytesFetched, counted);
        uint256 sum = uint256(all.bytesFetched) + fetch.bytesFetched - counted;
        if (sum > FETCHED_BYTES_MAX) revert TooManyBytes(sum, FETCHED_BYTES_MAX);
        source.earned = uint128(_earned(all, source));
        source.seen = all.perByte;
        source.bytesFetched = fetch.bytesFetched;
        all.bytesFetched = uint64(sum);
        emit Served(fetch.downloader, fetch.host, fetch.modelRoot, fetch.listing, fetch.bytesFetched);
    }

    /// Pays what a host has earned as one provider's source into its owner's vault balance, whole units. Anyone may call it.
    function collectServed(address host, bytes32 modelRoot, address listing, address provider) external {
        Sources storage all = _sources[listingKey(modelRoot, listing)][provider];
        Source storage source = _sourceOf[pledgeKey(host, modelRoot, listing)][provider];
        uint256 earned = _earned(all, source);
        uint256 amount = earned >> FRACTION_BITS;
        source.earned = uint128(earned - (amount << FRACTION_BITS));
        source.seen = all.perByte;
        _vault.give(_registry.ownerOf(host), amount);
        emit CollectedServed(host, provider, amount);
    }

    /// Books what the epochs contract has just given to this one for a listing's hosts, from one provider's fees. `fetchedPpm` of it go to
    /// those from whom that provider fetched, by bytes; the rest, or all if there are none, to the pledges. Without any it goes to
    /// the treasury.
    function income(address provider, bytes32 modelRoot, address listing, uint256 amount) external {
        if (msg.sender != address(_epochs)) revert NotAuthorised(msg.sender);
        bytes32 key = listingKey(modelRoot, listing);
        Sources storage all = _sources[key][provider];
        uint256 weight = all.bytesFetched;
        uint256 fetched = 0;
        if (weight > 0) {
            fetched = amount * _fetchedPpm / PPM;
            // Amounts are those of a share, below 2^64, so that parts fit.
            uint256 whole = (fetched << FRACTION_BITS) + all.dust;
            all.perByte += uint128(whole / weight);
            all.dust = uint64(whole % weight);
        }
        _share(_pools[key], amount - fetched);
        emit Income(modelRoot, listing, provider, amount, fetched);
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

    function sourcesOf(bytes32 modelRoot, address listing, address provider) external view returns (Sources memory) {
        return _sources[listingKey(modelRoot, listing)][provider];
    }

    function sourceOf(address host, bytes32 modelRoot, address listing, address provider)
        external
        view
        returns (Source memory)
    {
        return _sourceOf[pledgeKey(host, modelRoot, listing)][provider];
    }

    /// What `collectServed` would pay, in whole units.
    function servedFor(address host, bytes32 modelRoot, address listing, address provider) external view returns (uint256) {
        Sources storage all = _sources[listingKey(modelRoot, listing)][provider];
        return _earned(all, _sourceOf[pledgeKey(host, modelRoot, listing)][provider]) >> FRACTION_BITS;
    }

    /// What a downloader's key signs (EIP-712).
    function fetchHash(Fetch calldata fetch) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(FETCH_TYPE_HASH, fetch)));
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
        // After the last pledge, what did not divide goes with it.
        if (unconfirmed > 0 || pool.pledges == 0) _share(pool, unconfirmed);
    }

    /// Parts that a source has earned and not collected. Its bytes are part of the sum that divided the income, so that they fit.
    function _earned(Sources storage all, Source storage source) private view returns (uint256) {
        return source.earned + uint256(source.bytesFetched) * (all.perByte - source.seen);
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
