//! Which receipts an epoch's beacon draws, who executes them, and what an auditor commits to (`docs/ledger.md`, sections 7.4 and 9).
//!
//! Purpose: the contracts' formulas for whoever has to know before it asks: auditors, providers that are asked for records, simulations.
//! Invariant: every function says what `Lottery` and `Audits` say; tests compare them, draw by draw. It refuses to read a chain: beacon,
//! seats and batches are given.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::SolValue as _;
use assay_core::id::Hash;
use assay_core::merkle;

use crate::contracts::Directory::{Parameters, Rates};

const PPM: u64 = 1_000_000;
/// Slots that are tried for a member: `Audits.SEAT_TRIES`.
pub const SEAT_TRIES: u64 = 32;
/// Seats that one call takes: `Audits.SEATS_PER_CALL`.
pub const SEATS_PER_CALL: usize = 64;

/// The rate of the mean fee of `count` receipts with fees that sum to `total`, in millionths.
pub fn average_rate_ppm(total: u64, count: u32, backing: u64, savings_ppm: u32, rate_min_ppm: u32) -> u64 {
    let whole = u128::from(total).saturating_add(u128::from(backing).saturating_mul(count.into()));
    let savings = u128::from(savings_ppm).saturating_mul(total.into());
    let rate = if whole == 0 { 0 } else { savings.div_ceil(whole) };
    u64::try_from(rate).unwrap_or(u64::MAX).max(rate_min_ppm.into()).min(PPM)
}

/// How many receipts of which `count` sum to `total` a panel can audit, at the rate of their mean fee: what may be posted at once.
pub fn receipts_max(total: u64, count: u32, backing: u64, p: &Parameters) -> u64 {
    let rate = average_rate_ppm(total, count, backing, p.rates.savingsPpm, p.rates.rateMinPpm);
    let audits = u64::from(p.rates.panelMax).saturating_mul(p.rates.auditsPerMember.into());
    audits.saturating_mul(PPM).checked_div(rate).unwrap_or(u64::MAX)
}

/// Who executes a drawn receipt, as places on its provider's panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Who always does.
    pub first: u8,
    /// Who does so again, for a few of them.
    pub second: Option<u8>,
}

impl Assigned {
    /// Whether a member is one of them.
    pub fn has(&self, member: u8) -> bool {
        self.first == member || self.second == Some(member)
    }
}

/// A unit of stake that can be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Whose.
    pub auditor: Address,
    /// The first epoch for which it counts.
    pub since: u64,
    /// The first epoch for which it does not; 0: no end.
    pub until: u64,
}

impl Seat {
    /// Whether it counts in an epoch.
    pub fn counts(&self, epoch: u64) -> bool {
        self.since <= epoch && (self.until == 0 || epoch < self.until)
    }
}

/// Whether a receipt is drawn: a chance of `savings · fee / (fee + backing)`, at least the smallest rate.
pub fn is_drawn(
    beacon: &B256,
    provider: Address,
    sequence: u64,
    fee: u64,
    backing: u64,
    rates: &Rates,
) -> bool {
    let draw = keccak256(
        [b"assay/draw/1", beacon.as_slice(), provider.as_slice(), &sequence.to_be_bytes()].concat(),
    );
    let [a, b, c, d, e, f, g, h, ..] = draw.0;
    let u = U256::from(u64::from_be_bytes([a, b, c, d, e, f, g, h])).saturating_mul(U256::from(PPM));
    let whole = |part: U256| part << 64usize;
    // Of numbers below 2^64, 2^20 and 2^65: nothing passes 256 bits.
    u < whole(U256::from(rates.rateMinPpm))
        || u.saturating_mul(U256::from(fee).saturating_add(U256::from(backing)))
            < whole(U256::from(rates.savingsPpm).saturating_mul(U256::from(fee)))
}

/// Which members of a panel execute a receipt, if it is drawn; `None` for a panel without members.
pub fn assigned(
    beacon: &B256,
    provider: Address,
    sequence: u64,
    panel: u8,
    second_ppm: u32,
) -> Option<Assigned> {
    let draw = keccak256(
        [b"assay/members/1", beacon.as_slice(), provider.as_slice(), &sequence.to_be_bytes()].concat(),
    );
    // The contract counts words from the end.
    let word = |i: usize| -> u64 {
        let end = 32usize.saturating_sub(i.saturating_mul(8));
        let bytes = draw.0.get(end.saturating_sub(8)..end).and_then(|b| b.try_into().ok());
        u64::from_be_bytes(bytes.unwrap_or_default())
    };
    assigned_by([word(0), word(1), word(2)], panel, second_ppm)
}

/// The same, from the draw's words: 8 bytes each, from its end.
pub fn assigned_by(words: [u64; 3], panel: u8, second_ppm: u32) -> Option<Assigned> {
    let members = u64::from(panel);
    let [at, doubt, step] = words;
    let first = at.checked_rem(members)?;
    let others = members.saturating_sub(1);
    let again = others > 0 && doubt % PPM < u64::from(second_ppm);
    let second = again.then(|| {
        let step = step.checked_rem(others).unwrap_or(0);
        first.saturating_add(1).saturating_add(step) % members
    });
    let member = |n: u64| u8::try_from(n).unwrap_or(u8::MAX);
    Some(Assigned { first: member(first), second: second.map(member) })
}

/// The slot that a try draws for a member, of `slots`; `None` where there are none.
pub fn seat_draw(
    beacon: &B256,
    provider: Address,
    epoch: u64,
    member: u8,
    attempt: u64,
    slots: u64,
) -> Option<u64> {
    let word = |n: u64| U256::from(n).to_be_bytes::<32>();
    let bytes = [
        b"assay/seat/1".as_slice(),
        beacon.as_slice(),
        provider.as_slice(),
        &epoch.to_be_bytes(),
        &word(member.into()),
        &word(attempt),
    ]
    .concat();
    let drawn = U256::from_be_bytes(keccak256(bytes).0).checked_rem(U256::from(slots))?;
    u64::try_from(drawn).ok()
}

/// Whose seat is drawn for a member of a panel. `seats` are the slots that there were for the epoch, in order.
pub fn auditor_of(
    beacon: &B256,
    provider: Address,
    epoch: u64,
    member: u8,
    seats: &[Seat],
) -> Option<Address> {
    let slots = u64::try_from(seats.len()).ok()?;
    let tries = (0..SEAT_TRIES).filter_map(|attempt| {
        let slot = seat_draw(beacon, provider, epoch, member, attempt, slots)?;
        seats.get(usize::try_from(slot).ok()?)
    });
    tries.into_iter().find(|seat| seat.counts(epoch)).map(|seat| seat.auditor)
}

/// A leaf of a member's digests.
pub fn digest_leaf(sequence: u64, digest: &Hash) -> Hash {
    merkle::leaf(&[sequence.to_be_bytes().as_slice(), digest.as_bytes()].concat())
}

/// The root over a member's digests, which are in rising order of sequence numbers.
pub fn digests_root<'a>(digests: impl IntoIterator<Item = (u64, &'a Hash)>) -> Hash {
    merkle::root(digests.into_iter().map(|(sequence, digest)| digest_leaf(sequence, digest)))
}

/// Bytes of a digest as it is revealed: sequence number and digest.
const DIGEST_BYTES: usize = 40;

/// A member's digests as they are revealed.
pub fn revealed_digests<'a>(digests: impl IntoIterator<Item = (u64, &'a Hash)>) -> Bytes {
    let one = |(sequence, digest): (u64, &Hash)| {
        [sequence.to_be_bytes().as_slice(), digest.as_bytes().as_slice()].concat()
    };
    digests.into_iter().flat_map(one).collect()
}

/// The digests that a member revealed, by sequence number; nothing if these are not rising ones of 40 bytes each, which the contract does not take.
pub fn read_digests(revealed: &[u8]) -> Option<BTreeMap<u64, Hash>> {
    let (digests, rest) = revealed.as_chunks::<DIGEST_BYTES>();
    let mut found: BTreeMap<u64, Hash> = BTreeMap::new();
    for one in digests {
        let (sequence, digest) = one.split_first_chunk::<8>()?;
        let sequence = u64::from_be_bytes(*sequence);
        if found.last_key_value().is_some_and(|(last, _)| *last >= sequence) {
            return None;
        }
        found.insert(sequence, Hash::from_bytes(digest.try_into().ok()?));
    }
    rest.is_empty().then_some(found)
}

/// What a member commits to.
pub fn commitment(
    auditor: Address,
    provider: Address,
    epoch: u64,
    member: u8,
    root: B256,
    salt: B256,
) -> B256 {
    let member = U256::from(member);
    let said = ("assay/commitment/1", auditor, provider, epoch, member, root, salt);
    keccak256(said.abi_encode_params())
}
