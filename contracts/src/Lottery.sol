// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// Which receipts are audited, and which members of a panel audit them: functions of the beacon alone and of what was posted before it.
library Lottery {
    uint256 private constant PPM = 1_000_000;

    /// Whether a receipt is drawn. With fee `f` and backing `F` the chance is `savings · f / (f + F)`, at least the smallest rate, at most 1.
    function isDrawn(
        bytes32 beacon,
        address provider,
        uint64 sequence,
        uint64 fee,
        uint64 backing,
        uint32 savingsPpm,
        uint32 rateMinPpm
    ) internal pure returns (bool) {
        bytes32 draw = keccak256(abi.encodePacked("assay/draw/1", beacon, provider, sequence));
        uint256 u = uint256(draw) >> 192;
        if (u * PPM < uint256(rateMinPpm) << 64) return true;
        return u * PPM * (uint256(fee) + backing) < (uint256(savingsPpm) * fee) << 64;
    }

    /// The rate of the mean fee of `count` receipts whose fees sum to `total`, in millionths, rounded up. As the rate is concave in the
    /// fee, the mean rate is at most this, or at most `rateMinPpm` more where the smallest rate counts.
    function averageRatePpm(uint256 total, uint256 count, uint256 backing, uint256 savingsPpm, uint256 rateMinPpm)
        internal
        pure
        returns (uint256 ratePpm)
    {
        uint256 whole = total + backing * count;
        ratePpm = whole == 0 ? 0 : (savingsPpm * total + whole - 1) / whole;
        if (ratePpm < rateMinPpm) ratePpm = rateMinPpm;
        if (ratePpm > PPM) ratePpm = PPM;
    }

    /// The member of a panel that audits a drawn receipt, and, for `secondPpm` of them, another one that does so again; equal
    /// numbers mean that there is no second.
    function membersFor(bytes32 beacon, address provider, uint64 sequence, uint8 panel, uint32 secondPpm)
        internal
        pure
        returns (uint256 firstMember, uint256 secondMember)
    {
        uint256 draw = uint256(keccak256(abi.encodePacked("assay/members/1", beacon, provider, sequence)));
        firstMember = uint64(draw) % panel;
        secondMember = firstMember;
        if (panel > 1 && uint64(draw >> 64) % PPM < secondPpm) {
            secondMember = (firstMember + 1 + uint64(draw >> 128) % (panel - 1)) % panel;
        }
    }

    /// A number by which try `attempt` for a member's seat is drawn.
    function seatDraw(bytes32 beacon, address provider, uint64 epoch, uint256 member, uint256 attempt)
        internal
        pure
        returns (uint256)
    {
        return uint256(keccak256(abi.encodePacked("assay/seat/1", beacon, provider, epoch, member, attempt)));
    }
}
