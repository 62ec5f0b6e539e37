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

/// When things happen, in seconds (`beaconBlocks`: blocks).
/// @param genesis when epoch 0 begins, not in the future
struct Times {
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
    uint32 retrievalSeconds;
}

/// How often is checked, in millionths, and by how many.
struct Rates {
    uint32 savingsPpm;
    uint32 rateMinPpm;
    uint32 secondPpm;
    uint32 retrievalPpm;
    uint32 auditsPerMember;
    uint8 panelMin;
    uint8 panelMax;
}

/// Who gets how much, in millionths: of a fee, (`fetchedPpm`) of the hosts' part of a fee, and (`reporterPpm`) of what is slashed.
struct Split {
    uint32 royaltyMaxPpm;
    uint32 hostsPpm;
    uint32 fetchedPpm;
    uint32 protocolPpm;
    uint32 auditorsMinPpm;
    uint32 auditCostPpm;
    uint32 reporterPpm;
}

/// What is put at risk, in token units.
struct Stakes {
    uint64 seatStake;
    uint64 pledgeStake;
    uint64 silencePenalty;
    uint64 lazinessPenalty;
    uint64 accusationBond;
    uint64 disputeBond;
    uint64 demandBond;
}

/// The numbers of one deployment; `docs/economics.md` gives each one's reason.
struct Parameters {
    Times times;
    Rates rates;
    Split split;
    Stakes stakes;
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
    /// @param p its `genesis` may be 0, which means now
    constructor(Addresses memory a, Parameters memory p) {
        if (p.times.genesis == 0) p.times.genesis = uint64(block.timestamp);
        if (p.times.genesis > block.timestamp) revert BadParameter("genesis");
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
        if (p.times.epochSeconds == 0 || p.times.postSeconds == 0 || p.times.postSeconds > p.times.epochSeconds) {
            revert BadParameter("postSeconds");
        }
        if (p.times.beaconBlocks == 0 || p.times.beaconBlocks > 128) revert BadParameter("beaconBlocks");
        if (p.times.commitSeconds == 0 || p.times.revealSeconds == 0 || p.times.objectSeconds == 0 || p.times.answerSeconds == 0) {
            revert BadParameter("windows");
        }
        if (p.times.retrievalSeconds == 0 || p.times.retrievalSeconds > _window(p)) revert BadParameter("retrievalSeconds");
        // Stake must outlive whatever it answers for: two epochs of duty, posting, the audit, an answer, a dispute.
        uint256 duty = 2 * uint256(p.times.epochSeconds) + p.times.postSeconds + _window(p) + 2 * uint256(p.times.answerSeconds)
            + p.times.disputeSeconds;
        if (p.times.unbondSeconds < duty) revert BadParameter("unbondSeconds");
        if (p.times.unbondSeconds > 90 days) revert BadParameter("unbondSeconds max");
        if (p.rates.savingsPpm == 0 || p.rates.savingsPpm > PPM) revert BadParameter("savingsPpm");
        if (p.rates.rateMinPpm > PPM || p.rates.secondPpm > PPM || p.rates.retrievalPpm > PPM) revert BadParameter("rates");
        if (p.rates.panelMin == 0 || p.rates.panelMax < p.rates.panelMin || p.rates.panelMax > 64 || p.rates.auditsPerMember == 0) {
            revert BadParameter("panel");
        }
        uint256 auditors = p.split.auditCostPpm > p.split.auditorsMinPpm ? p.split.auditCostPpm : p.split.auditorsMinPpm;
        if (uint256(p.split.royaltyMaxPpm) + p.split.hostsPpm + p.split.protocolPpm + auditors > PPM) revert BadParameter("split");
        if (p.split.fetchedPpm > PPM) revert BadParameter("fetchedPpm");
        // Whoever reports itself must lose by it.
        if (p.split.reporterPpm > PPM / 2) revert BadParameter("reporterPpm");
        if (p.stakes.seatStake == 0 || p.stakes.pledgeStake == 0) revert BadParameter("stakes");
        if (p.stakes.silencePenalty > p.stakes.seatStake || p.stakes.lazinessPenalty > p.stakes.seatStake) revert BadParameter("penalties");
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
        return uint256(p.times.commitSeconds) + p.times.revealSeconds + p.times.objectSeconds;
    }
}
