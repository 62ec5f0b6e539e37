// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Addresses, Directory, Parameters} from "./Directory.sol";
import {Epochs} from "./Epochs.sol";
import {Vault} from "./Vault.sol";
import {IStakes} from "./interfaces/IStakes.sol";

/// A node: the address of its signing key is its name, in receipts as here. A key serves one node for ever; another key is another node.
/// @param owner who may move its stake, and whom it pays
/// @param roles a sum of `PROVIDER`, `HOST`, `AUDITOR`
/// @param heartbeat when it last said that it is there
/// @param struck whether it was proved to lie
/// @param stake what answers for it, in token units
/// @param reserved of the stake, what seats and pledges need
/// @param unbonding what is on its way out and can still be slashed
/// @param unbondedAt when it may leave
struct Node {
    address owner;
    uint8 roles;
    uint40 heartbeat;
    bool struck;
    uint128 stake;
    uint128 reserved;
    uint128 unbonding;
    uint40 unbondedAt;
    uint64 unbondEpoch;
    bytes32 priceList;
    string endpoint;
}

/// A model's entry by one owner. Entries are per root and owner, so that nobody can take a root from others by being first.
/// @param royaltyPpm of each fee, in millionths; it can only fall
/// @param contentRoot root over the chunks that hosts keep (`Retrieval`); 0 if none are asked to
/// @param chunks how many
struct Listing {
    uint32 royaltyPpm;
    uint40 listedAt;
    uint64 chunks;
    bytes32 contentRoot;
    string manifest;
}

/// Nodes with their roles and stakes, and models with their owners.
contract Registry is EIP712, IStakes {
    uint8 public constant PROVIDER = 1;
    uint8 public constant HOST = 2;
    uint8 public constant AUDITOR = 4;
    uint256 public constant ENDPOINT_BYTES_MAX = 256;
    uint256 public constant MANIFEST_BYTES_MAX = 512;
    uint256 private constant PPM = 1_000_000;
    bytes32 private constant ENROL_TYPE_HASH = keccak256("Enrol(address node,address owner,uint8 roles)");

    Vault private immutable _vault;
    Epochs private immutable _epochs;
    address private immutable _objections;
    address private immutable _audits;
    address private immutable _retrieval;
    address private immutable _disputes;
    address private immutable _treasury;
    uint32 private immutable _unbondSeconds;
    uint32 private immutable _reporterPpm;
    uint32 private immutable _royaltyMaxPpm;

    mapping(address node => Node) private _nodes;
    mapping(bytes32 modelRoot => mapping(address owner => Listing)) private _listings;

    event Enrolled(address indexed node, address indexed owner, uint8 roles);
    event Described(address indexed node, string endpoint, bytes32 priceList);
    event RolesChanged(address indexed node, uint8 roles);
    event Heartbeat(address indexed node);
    event Bonded(address indexed node, uint256 amount);
    event Unbonding(address indexed node, uint256 amount, uint256 unbondedAt);
    event Left(address indexed node, uint256 amount);
    event Slashed(address indexed node, uint256 taken, address indexed beneficiary, uint256 share);
    event Struck(address indexed node, address indexed reporter);
    event Listed(
        bytes32 indexed modelRoot,
        address indexed owner,
        uint32 royaltyPpm,
        bytes32 contentRoot,
        uint64 chunks,
        string manifest
    );

    error AlreadyEnrolled(address node);
    error NotEnrolled(address node);
    /// Only the node's owner may do this.
    error NotOwner(address node, address caller);
    /// Only the node's key or its owner may do this.
    error NotNode(address node, address caller);
    /// The key did not agree to be this owner's node.
    error KeyDidNotSign(address node);
    error NodeStruck(address node);
    /// No bits, or others than the three roles.
    error BadRoles(uint8 roles);
    error TooLong(uint256 bytesGiven, uint256 bytesMax);
    /// More than what is staked and not reserved.
    error StakeReserved(uint256 free, uint256 amount);
    error StillUnbonding(uint256 unbondedAt);
    /// An epoch for which this stake answers is not settled (`Epochs.clear`).
    error EpochsOpen(address node);
    error NothingUnbonding(address node);
    error NotAuthorised(address caller);
    error RoyaltyTooHigh(uint32 royaltyPpm, uint32 max);
    error AmountTooLarge(uint256 amount);

    constructor(Directory directory) EIP712("Assay Registry", "1") {
        Addresses memory a = directory.addresses();
        Parameters memory p = directory.parameters();
        _vault = Vault(a.vault);
        _epochs = Epochs(a.epochs);
        _objections = a.objections;
        _audits = a.audits;
        _retrieval = a.retrieval;
        _disputes = a.disputes;
        _treasury = a.treasury;
        _unbondSeconds = p.unbondSeconds;
        _reporterPpm = p.reporterPpm;
        _royaltyMaxPpm = p.royaltyMaxPpm;
    }

    modifier onlyOwner(address node) {
        if (_nodes[node].owner != msg.sender) revert NotOwner(node, msg.sender);
        _;
    }

    modifier onlyNode(address node) {
        if (!actsFor(node, msg.sender)) revert NotNode(node, msg.sender);
        _;
    }

    // ---- nodes

    /// Makes `node` a node of the caller. Its key signs `Enrol(node, owner, roles)`, unless it is the caller.
    function enrol(address node, uint8 roles, string calldata endpoint, bytes32 priceList, bytes calldata signature)
        external
    {
        Node storage n = _nodes[node];
        if (n.owner != address(0)) revert AlreadyEnrolled(node);
        if (n.struck) revert NodeStruck(node);
        if (node != msg.sender) {
            bytes32 hash = _hashTypedDataV4(keccak256(abi.encode(ENROL_TYPE_HASH, node, msg.sender, roles)));
            (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(hash, signature);
            if (failure != ECDSA.RecoverError.NoError || signer != node) revert KeyDidNotSign(node);
        }
        _checkRoles(roles);
        n.owner = msg.sender;
        n.roles = roles;
        n.heartbeat = uint40(block.timestamp);
        emit Enrolled(node, msg.sender, roles);
        _describe(n, node, endpoint, priceList);
    }

    /// Says where a node answers and at what prices (the hash of its price list). Also a heartbeat.
    function describe(address node, string calldata endpoint, bytes32 priceList) external onlyNode(node) {
        Node storage n = _nodes[node];
        n.heartbeat = uint40(block.timestamp);
        _describe(n, node, endpoint, priceList);
    }

    /// Adds roles. None is ever taken away: a provider that could stop being one could have its fees without an audit. Who is done
    /// gives up seats and pledges, and unbonds.
    function addRoles(address node, uint8 roles) external onlyOwner(node) {
        _checkRoles(roles);
        Node storage n = _nodes[node];
        n.roles |= roles;
        emit RolesChanged(node, n.roles);
    }

    /// Says that a node is there.
    function heartbeat(address node) external onlyNode(node) {
        _nodes[node].heartbeat = uint40(block.timestamp);
        emit Heartbeat(node);
    }

    // ---- stake

    /// Stakes `amount` of the caller's vault balance for a node. It belongs to the node's owner from then on.
    function bond(address node, uint256 amount) external {
        Node storage n = _enrolled(node);
        if (n.struck) revert NodeStruck(node);
        _vault.take(msg.sender, amount);
        _addStake(n, node, amount);
    }

    /// Starts taking out stake that no seat or pledge needs. It can be slashed until it has left. A second call adds to the first
    /// and starts its time again.
    function unbond(address node, uint256 amount) external onlyOwner(node) {
        Node storage n = _nodes[node];
        uint256 free = n.stake > n.reserved ? n.stake - n.reserved : 0;
        if (amount > free) revert StakeReserved(free, amount);
        n.stake -= uint128(amount);
        n.unbonding += uint128(amount);
        n.unbondedAt = uint40(block.timestamp + _unbondSeconds);
        n.unbondEpoch = _epochs.current();
        emit Unbonding(node, amount, n.unbondedAt);
    }

    /// Pays what has finished unbonding into the owner's vault balance. Anyone may call it.
    /// @param nextOpen the node's first epoch that is not settled, if there is one (`Epochs.clear`)
    function withdraw(address node, uint64 nextOpen) external {
        Node storage n = _enrolled(node);
        uint256 amount = n.unbonding;
        if (amount == 0) revert NothingUnbonding(node);
        if (block.timestamp < n.unbondedAt) revert StillUnbonding(n.unbondedAt);
        if (!_epochs.clear(node, n.unbondEpoch, nextOpen)) revert EpochsOpen(node);
        n.unbonding = 0;
        _vault.give(n.owner, amount);
        emit Left(node, amount);
    }

    /// Credits stake that the calling part has just given to this contract: a provider's earnings.
    function credit(address node, uint256 amount) external {
        if (msg.sender != address(_epochs)) revert NotAuthorised(msg.sender);
        _addStake(_nodes[node], node, amount);
    }

    /// Sets stake aside for a seat or a pledge.
    function reserve(address node, uint256 amount) external {
        _onlyDuties();
        Node storage n = _enrolled(node);
        if (n.struck) revert NodeStruck(node);
        uint256 free = n.stake > n.reserved ? n.stake - n.reserved : 0;
        if (amount > free) revert StakeReserved(free, amount);
        n.reserved += uint128(amount);
    }

    /// Frees stake that a seat or a pledge needed.
    function unreserve(address node, uint256 amount) external {
        _onlyDuties();
        _nodes[node].reserved -= uint128(amount);
    }

    /// @inheritdoc IStakes
    function slash(address node, uint256 amount, address beneficiary, uint32 sharePpm)
        external
        returns (uint256 taken)
    {
        if (msg.sender != _audits && msg.sender != _retrieval && msg.sender != _disputes) {
            revert NotAuthorised(msg.sender);
        }
        return _slash(node, amount, beneficiary, sharePpm);
    }

    /// @inheritdoc IStakes
    function strike(address node, address reporter) external returns (uint256 taken) {
        if (msg.sender != _objections && msg.sender != _disputes) revert NotAuthorised(msg.sender);
        Node storage n = _nodes[node];
        // A key that never enrolled has nothing to lose, and must not be able to enrol later.
        if (n.struck) return 0;
        n.struck = true;
        emit Struck(node, reporter);
        taken = _slash(node, uint256(n.stake) + n.unbonding, reporter, _reporterPpm);
        _epochs.forfeit(node);
    }

    // ---- models

    /// Lists a model under the caller's name, or changes the entry: a royalty can only fall, a content root that is set stays.
    function list(
        bytes32 modelRoot,
        uint32 royaltyPpm,
        bytes32 contentRoot,
        uint64 chunks,
        string calldata manifest
    ) external {
        if (bytes(manifest).length > MANIFEST_BYTES_MAX) revert TooLong(bytes(manifest).length, MANIFEST_BYTES_MAX);
        Listing storage l = _listings[modelRoot][msg.sender];
        uint32 max = l.listedAt == 0 ? _royaltyMaxPpm : l.royaltyPpm;
        if (royaltyPpm > max) revert RoyaltyTooHigh(royaltyPpm, max);
        l.royaltyPpm = royaltyPpm;
        l.manifest = manifest;
        if (l.contentRoot == bytes32(0)) {
            l.contentRoot = contentRoot;
            l.chunks = chunks;
        }
        if (l.listedAt == 0) l.listedAt = uint40(block.timestamp);
        emit Listed(modelRoot, msg.sender, royaltyPpm, l.contentRoot, l.chunks, manifest);
    }

    // ---- views

    function nodeOf(address node) external view returns (Node memory) {
        return _nodes[node];
    }

    function listingOf(bytes32 modelRoot, address owner) external view returns (Listing memory) {
        return _listings[modelRoot][owner];
    }

    /// The royalty of a listing, in millionths, and whether there is one.
    function royaltyOf(bytes32 modelRoot, address owner) external view returns (uint32 royaltyPpm, bool listed) {
        Listing storage l = _listings[modelRoot][owner];
        return (l.royaltyPpm, l.listedAt != 0);
    }

    function ownerOf(address node) external view returns (address) {
        return _nodes[node].owner;
    }

    /// Stake that is not on its way out.
    function stakeOf(address node) external view returns (uint256) {
        return _nodes[node].stake;
    }

    function isStruck(address node) external view returns (bool) {
        return _nodes[node].struck;
    }

    /// Whether a node is enrolled for a role, struck or not.
    function hasRole(address node, uint8 role) external view returns (bool) {
        return _nodes[node].roles & role != 0;
    }

    /// Whether a node is enrolled for a role and was not struck.
    function serves(address node, uint8 role) external view returns (bool) {
        Node storage n = _nodes[node];
        return n.owner != address(0) && n.roles & role != 0 && !n.struck;
    }

    /// Whether the stake is less than seats and pledges need, which happens by slashing alone.
    function isShort(address node) external view returns (bool) {
        Node storage n = _nodes[node];
        return n.stake < n.reserved || n.struck;
    }

    /// Whether `caller` is a node's key or its owner.
    function actsFor(address node, address caller) public view returns (bool) {
        address owner = _nodes[node].owner;
        return owner != address(0) && (caller == owner || caller == node);
    }

    // ---- inside

    function _enrolled(address node) private view returns (Node storage n) {
        n = _nodes[node];
        if (n.owner == address(0)) revert NotEnrolled(node);
    }

    function _onlyDuties() private view {
        if (msg.sender != _audits && msg.sender != _retrieval) revert NotAuthorised(msg.sender);
    }

    function _checkRoles(uint8 roles) private pure {
        if (roles == 0 || roles > PROVIDER + HOST + AUDITOR) revert BadRoles(roles);
    }

    function _describe(Node storage n, address node, string calldata endpoint, bytes32 priceList) private {
        if (bytes(endpoint).length > ENDPOINT_BYTES_MAX) revert TooLong(bytes(endpoint).length, ENDPOINT_BYTES_MAX);
        n.endpoint = endpoint;
        n.priceList = priceList;
        emit Described(node, endpoint, priceList);
    }

    function _addStake(Node storage n, address node, uint256 amount) private {
        if (amount > type(uint64).max) revert AmountTooLarge(amount);
        n.stake += uint128(amount);
        emit Bonded(node, amount);
    }

    /// Takes from the stake first, then from what is unbonding.
    function _slash(address node, uint256 amount, address beneficiary, uint32 sharePpm)
        private
        returns (uint256 taken)
    {
        Node storage n = _nodes[node];
        uint256 fromStake = amount < n.stake ? amount : n.stake;
        uint256 rest = amount - fromStake;
        uint256 fromUnbonding = rest < n.unbonding ? rest : n.unbonding;
        n.stake -= uint128(fromStake);
        n.unbonding -= uint128(fromUnbonding);
        taken = fromStake + fromUnbonding;
        uint256 share = taken * sharePpm / PPM;
        if (share > 0) _vault.give(beneficiary, share);
        if (taken > share) _vault.give(_treasury, taken - share);
        emit Slashed(node, taken, beneficiary, share);
    }
}
