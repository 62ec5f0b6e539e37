// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// The parts of one deployment. Fixed for ever.
struct Addresses {
    address token;
    address vault;
    address registry;
    address channels;
    address epochs;
    address objections;
    address audits;
    address retrieval;
    address disputes;
    address treasury;
}

/// The numbers of one deployment; `docs/economics.md` gives each one's reason. Seconds, millionths (ppm), token units.
struct Parameters {
    // time
    uint64 genesis;
    uint32 epochSeconds;
    uint32 postSeconds;
    uint32 beaconBlocks;
    uint32 commitSeconds;
    uint32 revealSeconds;
    uint32 objectSeconds;
    uint32 answerSeconds;
    uint32 disputeSeconds;
    uint32 refundSeconds;
    uint32 unbondSeconds;
    // lottery
    uint32 savingsPpm;
    uint32 rateMinPpm;
    uint32 secondPpm;
    uint32 auditsPerMember;
    uint8 panelMin;
    uint8 panelMax;
    // fee split
    uint32 royaltyMaxPpm;
    uint32 hostsPpm;
    uint32 protocolPpm;
    uint32 auditorsMinPpm;
    uint32 auditCostPpm;
    // bonds and penalties
    uint32 reporterPpm;
    uint64 seatStake;
    uint64 silencePenalty;
    uint64 lazinessPenalty;
    uint64 accusationBond;
    uint64 demandBond;
    // retrieval
    uint64 pledgeStake;
    uint32 retrievalPpm;
    uint32 retrievalSeconds;
}

/// Where the parts of a deployment are and by which numbers they run. It is deployed first, with the addresses that the others
/// will have; they read it once, in their constructors. Nobody can change it.
contract Directory {
    uint256 private constant PPM = 1_000_000;

    Addresses private _addresses;
    Parameters private _parameters;

    /// A number outside its range, or numbers that do not fit each other.
    /// @param what the number, or the inequality
    error BadParameter(bytes32 what);

    /// @param a every address non-zero
    /// @param p a `genesis` of 0 means now
    constructor(Addresses memory a, Parameters memory p) {
        if (p.genesis == 0) p.genesis = uint64(block.timestamp);
        if (p.genesis > block.timestamp) revert BadParameter("genesis");
        if (
            a.token == address(0) || a.vault == address(0) || a.registry == address(0) || a.channels == address(0)
                || a.epochs == address(0) || a.objections == address(0) || a.audits == address(0)
                || a.retrieval == address(0) || a.disputes == address(0) || a.treasury == address(0)
        ) revert BadParameter("address");
        // The treasury is an account, not a part: what it gets must be able to leave.
        if (
            a.treasury == a.vault || a.treasury == a.registry || a.treasury == a.channels || a.treasury == a.epochs
                || a.treasury == a.objections || a.treasury == a.audits || a.treasury == a.retrieval
                || a.treasury == a.disputes
        ) revert BadParameter("treasury");
        if (p.epochSeconds == 0 || p.postSeconds == 0 || p.postSeconds > p.epochSeconds) {
            revert BadParameter("postSeconds");
        }
        if (p.beaconBlocks == 0 || p.beaconBlocks > 128) revert BadParameter("beaconBlocks");
        if (p.commitSeconds == 0 || p.revealSeconds == 0 || p.objectSeconds == 0 || p.answerSeconds == 0) {
            revert BadParameter("windows");
        }
        if (p.retrievalSeconds == 0 || p.retrievalSeconds > _window(p)) revert BadParameter("retrievalSeconds");
        // Stake must outlive whatever it answers for: two epochs of duty, posting, the audit, an answer, a dispute.
        uint256 duty = 2 * uint256(p.epochSeconds) + p.postSeconds + _window(p) + 2 * uint256(p.answerSeconds)
            + p.disputeSeconds;
        if (p.unbondSeconds < duty) revert BadParameter("unbondSeconds");
        if (p.unbondSeconds > 90 days) revert BadParameter("unbondSeconds max");
        if (p.savingsPpm == 0 || p.savingsPpm > PPM) revert BadParameter("savingsPpm");
        if (p.rateMinPpm > PPM || p.secondPpm > PPM || p.retrievalPpm > PPM) revert BadParameter("rates");
        if (p.panelMin == 0 || p.panelMax < p.panelMin || p.panelMax > 64 || p.auditsPerMember == 0) {
            revert BadParameter("panel");
        }
        uint256 auditors = p.auditCostPpm > p.auditorsMinPpm ? p.auditCostPpm : p.auditorsMinPpm;
        if (uint256(p.royaltyMaxPpm) + p.hostsPpm + p.protocolPpm + auditors > PPM) revert BadParameter("split");
        // Whoever reports itself must lose by it.
        if (p.reporterPpm > PPM / 2) revert BadParameter("reporterPpm");
        if (p.seatStake == 0 || p.pledgeStake == 0) revert BadParameter("stakes");
        if (p.silencePenalty > p.seatStake || p.lazinessPenalty > p.seatStake) revert BadParameter("penalties");
        _addresses = a;
        _parameters = p;
    }

    /// Where the parts are.
    function addresses() external view returns (Addresses memory) {
        return _addresses;
    }

    /// By which numbers they run.
    function parameters() external view returns (Parameters memory) {
        return _parameters;
    }

    function _window(Parameters memory p) private pure returns (uint256) {
        return uint256(p.commitSeconds) + p.revealSeconds + p.objectSeconds;
    }
}
