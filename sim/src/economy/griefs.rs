//! Griefing: what it costs who does it, and whom it is done to.

use super::{Economy, Examiner, Server};
use crate::events::Events;
use crate::ledger::Who;
use crate::plan::Grief;

impl Economy {
    /// Each griefer acts once, against one of those whom the plan leaves to griefers.
    pub(super) fn grieve(&mut self, events: &mut Events<'_>) {
        for g in 0..self.griefers.len() {
            let (who, grief) = (self.griefers[g].who, self.griefers[g].grief);
            let harm = match grief {
                Grief::Dispute | Grief::Demand => {
                    self.victim().map(|victim| self.accuse_provider(who, victim, grief))
                }
                Grief::Accusation => self.griefed_auditor().map(|victim| self.accuse_auditor(who, victim)),
                Grief::WorthlessBatch { receipts } => Some(self.worthless(who, receipts)),
            };
            self.griefers[g].harm += harm.unwrap_or(0);
            events.tell(self.epoch, || format!("grief of {}: {grief:?}, harm {}", who.0, harm.unwrap_or(0)));
        }
    }

    /// A provider with a batch.
    fn victim(&mut self) -> Option<Who> {
        let able = |s: &&Server| s.plan.griefed && !s.posted.is_empty();
        let all = self.servers.iter().filter(able).count() as u64;
        let chosen = (all > 0).then(|| self.draws.below(all) as usize)?;
        self.servers.iter().filter(able).nth(chosen).map(|s| s.who)
    }

    fn griefed_auditor(&mut self) -> Option<Who> {
        let able = |e: &&Examiner| e.plan.griefed;
        let all = self.examiners.iter().filter(able).count() as u64;
        let chosen = (all > 0).then(|| self.draws.below(all) as usize)?;
        self.examiners.iter().filter(able).nth(chosen).map(|e| e.who)
    }

    /// A dispute or a demand: the provider is in the right, and has the bond. Returns what it lost.
    fn accuse_provider(&mut self, who: Who, victim: Who, grief: Grief) -> i64 {
        let (prices, stakes) = (self.ledger.prices, self.ledger.p.stakes.clone());
        let (bond, attack, defence) = match grief {
            Grief::Dispute => (stakes.disputeBond, prices.challenge(), prices.defence()),
            _ => (stakes.demandBond, prices.demand, prices.answer_leaf),
        };
        self.against(who, victim, bond, attack, defence)
    }

    /// An accusation of an auditor that opens its digest.
    fn accuse_auditor(&mut self, who: Who, victim: Who) -> i64 {
        let (prices, bond) = (self.ledger.prices, self.ledger.p.stakes.accusationBond);
        self.against(who, victim, bond, prices.accuse, prices.acquit)
    }

    fn against(&mut self, who: Who, victim: Who, bond: u64, attack: u64, defence: u64) -> i64 {
        if !self.ledger.take_bond(who, bond) {
            return 0;
        }
        self.ledger.burn(who, attack);
        self.ledger.burn(victim, defence);
        self.ledger.return_bond(victim, bond);
        self.ledger.gas_cost(defence) as i64 - bond as i64
    }

    /// A batch of a fresh name, of receipts without fees that are of no execution: the least panel that its count allows must commit and reveal
    /// or be penalised, and is paid nothing. One member disputes; the name has nothing to lose.
    fn worthless(&mut self, who: Who, receipts: u32) -> i64 {
        let prices = self.ledger.prices;
        self.ledger.burn(who, prices.enrol + prices.post);
        let rate = u64::from(self.ledger.p.rates.rateMinPpm);
        let Some(panel) = crate::formulas::panel(receipts, rate, &self.ledger.p) else { return 0 };
        let mut harm = 0;
        for member in 0..panel {
            let Some(auditor) = self.griefed_auditor() else { return 0 };
            let dispute = if member == 0 { prices.open_dispute + prices.timeout } else { 0 };
            let gas = prices.commit + prices.reveal + dispute;
            self.ledger.burn(auditor, gas);
            harm += self.ledger.gas_cost(gas) as i64;
        }
        harm
    }
}
