//! Lanes: the channels by which a gateway pays one provider, one request at a time on each.
//!
//! Pure: who deposits, signs and reads the chain is [`payer`]. Invariants: a voucher allows what was charged on its lane and the most of the one
//! request that it is signed for, never more, and never more than the lane holds; what is believed to be charged never falls, and never exceeds
//! what was signed. Nothing of this is stored: after a restart a lane is what the chain says, and its provider shows the last voucher to prove
//! what it charged since.

pub mod payer;

/// How long a lane is left alone that was given back without a receipt, in milliseconds: its provider may not know yet that the request is over.
pub const REST_MS: u64 = 50;
/// How long nothing is deposited for a provider after a deposit failed, in milliseconds.
pub const DEPOSIT_REST_MS: u64 = 30_000;

/// The lanes to one provider.
#[derive(Clone, Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    terms: LaneTerms,
    /// No deposit before this time.
    deposit_from_ms: u64,
}

/// How many lanes there may be, and what is put into each. In units of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneTerms {
    /// Lanes to one provider, at most.
    pub lanes_max: usize,
    /// What is deposited at a time.
    pub deposit: u64,
}

/// One channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// What the chain holds of it.
    balance: u128,
    /// What is believed to have been charged, all in all.
    charged: u128,
    /// The highest ceiling that was signed, as far as that is known.
    signed: u128,
    /// The most that the request under way can cost.
    running: Option<u64>,
    /// A deposit is on its way.
    depositing: bool,
    /// Its withdrawal was announced.
    closing: bool,
    rests_until_ms: u64,
}

/// What the chain says of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnChain {
    /// What was deposited and has not left.
    pub balance: u64,
    /// What was claimed.
    pub claimed: u64,
    /// Whether its withdrawal was announced.
    pub closing: bool,
}

/// Lanes as they are shown: how many, and what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// With a request.
    pub running: usize,
    /// Without one.
    pub idle: usize,
    /// Whose withdrawal was announced.
    pub leaving: usize,
    /// Those with a deposit on its way.
    pub depositing: usize,
    /// What was put in and did not leave.
    pub balance: u128,
    /// What is believed to have been charged, all in all.
    pub charged: u128,
    /// Requests that wait for a lane.
    pub waiting: usize,
}

/// A lane that was taken for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its number.
    pub index: usize,
    /// The most that the request may cost.
    pub most: u64,
    /// What the voucher must allow.
    pub ceiling: u128,
}

/// What is to be put into a lane, which may be a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deposit {
    /// Its number.
    pub index: usize,
    /// How much.
    pub amount: u64,
}

/// Why a provider's word about a lane is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistrust {
    /// It shows no voucher of ours for what it says it charged.
    #[error("it says that {charged} were charged, and shows no voucher of ours that allows it")]
    Unproven {
        /// What it says.
        charged: u128,
    },
    /// What it refused covers what it says.
    #[error("it refuses a voucher that covers what it says it charged")]
    Contradicts,
    /// The lane cannot pay for the request any more.
    #[error("the lane holds {balance}, and {needed} are needed")]
    Short {
        /// What it holds.
        balance: u128,
        /// What is needed.
        needed: u128,
    },
}

impl Lane {
    fn free(&self) -> u128 {
        self.balance.saturating_sub(self.charged)
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && !self.closing
    }

    /// What the chain says holds, but for what was charged since.
    fn read(&mut self, seen: OnChain) {
        self.balance = seen.balance.into();
        self.closing = seen.closing;
        self.charged = self.charged.max(seen.claimed.into());
        self.signed = self.signed.max(self.charged);
    }
}

impl Lanes {
    /// Lanes as the chain has them, by their numbers. Those after the last one that was ever used need not be named.
    pub fn new(terms: LaneTerms, seen: &[OnChain]) -> Lanes {
        let used = seen.iter().rposition(|s| *s != OnChain::default()).map_or(0, |last| last + 1);
        let lane = |seen: &OnChain| {
            let mut lane = Lane::default();
            lane.read(*seen);
            lane
        };
        Lanes { lanes: seen.iter().take(used).map(lane).collect(), terms, deposit_from_ms: 0 }
    }

    /// Takes a lane for a request that costs `most` at the most, if one is free and holds that.
    pub fn take(&mut self, most: u64, now_ms: u64) -> Option<Taken> {
        let able =
            |lane: &Lane| lane.is_idle() && lane.rests_until_ms <= now_ms && lane.free() >= most.into();
        let index = self.lanes.iter().position(able)?;
        self.sign(index, most)
    }

    /// The ceiling of a voucher for the request that takes the lane.
    fn sign(&mut self, index: usize, most: u64) -> Option<Taken> {
        let lane = self.lanes.get_mut(index)?;
        lane.running = Some(most);
        let ceiling = lane.charged.saturating_add(most.into());
        lane.signed = lane.signed.max(ceiling);
        Some(Taken { index, most, ceiling })
    }

    /// What should be deposited now, so that requests that cost `most` find a lane: `waiting` of them have none. Whoever is told so must say how it
    /// ended: [`Lanes::deposited`] or [`Lanes::deposit_failed`].
    pub fn deposit(&mut self, most: u64, waiting: usize, now_ms: u64) -> Option<Deposit> {
        if now_ms < self.deposit_from_ms {
            return None;
        }
        let able = |lane: &Lane| lane.is_idle() && lane.free() >= most.into();
        let coming = self.lanes.iter().filter(|lane| lane.depositing || able(lane)).count();
        // One more than those that wait, so that who comes next does not.
        if coming > waiting {
            return None;
        }
        let short = |lane: &Lane| !lane.depositing && !lane.closing && lane.free() < most.into();
        let index = match self.lanes.iter().position(|lane| short(lane) && lane.running.is_none()) {
            Some(index) => index,
            None if self.lanes.len() < self.terms.lanes_max => {
                self.lanes.push(Lane::default());
                self.lanes.len() - 1
            }
            // All there may be are in use: those that run out are filled up meanwhile.
            None => self.lanes.iter().position(short)?,
        };
        let lane = self.lanes.get_mut(index)?;
        lane.depositing = true;
        let lacks = u128::from(most).saturating_sub(lane.free());
        let amount = u64::try_from(lacks).unwrap_or(u64::MAX).max(self.terms.deposit);
        Some(Deposit { index, amount })
    }

    /// What the chain says of a lane now.
    pub fn read(&mut self, index: usize, seen: OnChain) {
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.read(seen);
        }
    }

    /// A deposit arrived: what the lane holds now.
    pub fn deposited(&mut self, index: usize, balance: u64) {
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.balance = balance.into();
            lane.depositing = false;
        }
    }

    /// A deposit did not arrive.
    pub fn deposit_failed(&mut self, index: usize, now_ms: u64) {
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.depositing = false;
        }
        self.deposit_from_ms = now_ms.saturating_add(DEPOSIT_REST_MS);
    }

    /// A receipt was accepted: the request on this lane cost `fee`, which is at most what was taken for it.
    pub fn settle(&mut self, index: usize, fee: u64) {
        let Some(lane) = self.lanes.get_mut(index) else { return };
        let Some(most) = lane.running.take() else { return };
        assert!(fee <= most, "a receipt of {fee} was accepted, and at most {most} was taken for it");
        lane.charged = lane.charged.saturating_add(fee.into());
    }

    /// The request on this lane ended without a receipt. Its provider may have charged it all the same, and shows that when it is asked next.
    pub fn release(&mut self, index: usize, now_ms: u64) {
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.running = None;
            lane.rests_until_ms = now_ms.saturating_add(REST_MS);
        }
    }

    /// The provider did not take the voucher of the request under way: it says that `charged` were charged and that the request may cost `most`. `shown`
    /// is the ceiling of the voucher of ours that it proves this with. The ceiling of another voucher, if that is to be signed.
    pub fn correct(
        &mut self,
        index: usize,
        charged: u128,
        shown: Option<u128>,
        most: u64,
    ) -> Result<Taken, Mistrust> {
        let contradicts = Mistrust::Contradicts;
        let lane = self.lanes.get_mut(index).ok_or(contradicts)?;
        let running = lane.running.ok_or(contradicts)?;
        let allowed = lane.charged.max(shown.unwrap_or(0));
        if charged > allowed {
            return Err(Mistrust::Unproven { charged });
        }
        let before = lane.charged.saturating_add(running.into());
        let charged = lane.charged.max(charged);
        let most = running.max(most);
        let needed = charged.saturating_add(most.into());
        if needed <= before {
            return Err(contradicts);
        }
        // It was proven, whether or not the lane can pay for more; and what was signed before a restart is known again.
        lane.charged = charged;
        lane.signed = lane.signed.max(allowed);
        if lane.balance < needed {
            return Err(Mistrust::Short { balance: lane.balance, needed });
        }
        self.sign(index, most).ok_or(contradicts)
    }

    /// All lanes: what each holds, what was charged, and what was signed.
    pub fn sums(&self) -> impl Iterator<Item = (u128, u128, u128)> + '_ {
        self.lanes.iter().map(|lane| (lane.balance, lane.charged, lane.signed))
    }

    /// Adds these lanes to what is shown.
    pub fn show(&self, seen: &mut Seen) {
        for lane in &self.lanes {
            match lane {
                Lane { running: Some(_), .. } => seen.running += 1,
                Lane { closing: true, .. } => seen.leaving += 1,
                _ => seen.idle += 1,
            }
            seen.depositing += usize::from(lane.depositing);
            seen.balance = seen.balance.saturating_add(lane.balance);
            seen.charged = seen.charged.saturating_add(lane.charged);
        }
    }

    /// Lanes with a request.
    pub fn running(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.running.is_some()).count()
    }
}

#[cfg(test)]
mod tests;
