//! Panels: who is drawn, what it executes, what it finds, and what that costs whom.

use super::{Economy, Server, Work};
use crate::events::Events;
use crate::formulas;
use crate::ledger::Who;
use crate::plan::{Backing, Conduct, Diligence};
use crate::random::{Chance, Random};

/// A member of a panel, on its way through a batch.
#[derive(Clone, Copy, Debug)]
struct Member {
    auditor: Option<usize>,
    does: Does,
    /// Of what it executed.
    cost: u64,
    /// It found a wrong receipt.
    found: bool,
    /// The member that has executed what it made up.
    doubted_by: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Everything.
    All,
    /// All but a share, for which it makes digests up.
    AllBut(Chance),
    /// Everything, and it says nothing of what is wrong: its digests are right, so that nobody can accuse it.
    Hides,
    /// It reveals nothing.
    Nothing,
}

impl Does {
    fn executes(self, random: &mut Random) -> bool {
        match self {
            Does::All | Does::Hides => true,
            Does::AllBut(share) => !random.happens(share),
            Does::Nothing => false,
        }
    }

    fn reveals(self) -> bool {
        self != Does::Nothing
    }
}

impl Economy {
    /// A provider's batch of this epoch is audited.
    pub(super) fn audit(&mut self, i: usize, events: &mut Events<'_>) {
        let who = self.servers[i].who;
        if self.servers[i].posted.is_empty() {
            return;
        }
        let Some((panel, backing)) = self.ledger.posted(who).map(|b| (b.panel, b.backing)) else { return };
        let mut members: Vec<Member> = (0..panel).map(|_| self.seat(i)).collect();
        let posted = std::mem::take(&mut self.servers[i].posted);
        for work in &posted {
            self.examine(work, backing, &mut members);
        }
        self.servers[i].posted = posted;
        for (m, member) in members.iter().enumerate() {
            self.reward(i, m, member, &members, events);
        }
        if let Some(finder) = members.iter().find(|m| m.found).and_then(|m| m.auditor) {
            self.convict(i, self.examiners[finder].who, events);
        }
    }

    /// The auditor of a member: of a seat drawn evenly, since every seat counts from the beginning on.
    fn seat(&mut self, server: usize) -> Member {
        let seats = self.seats.len() as u64;
        let auditor = (seats > 0).then(|| self.seats[self.draws.below(seats) as usize]);
        let diligence = auditor.map(|a| self.examiners[a].plan.diligence);
        let does = match diligence {
            None | Some(Diligence::Silent) => Does::Nothing,
            Some(Diligence::Ring) if self.servers[server].plan.ring => Does::Hides,
            Some(Diligence::Honest | Diligence::Ring) => Does::All,
            Some(Diligence::Lazy { share_ppm }) => Does::AllBut(Chance::ppm(share_ppm)),
        };
        Member { auditor, does, cost: 0, found: false, doubted_by: None }
    }

    /// The lottery over receipts of one fee, and what members do with those that are drawn.
    fn examine(&mut self, work: &Work, backing: u64, members: &mut [Member]) {
        let rates = &self.ledger.p.rates;
        let chance = formulas::chance(work.fee, backing, rates.savingsPpm, rates.rateMinPpm);
        let (second_ppm, panel) = (rates.secondPpm, members.len() as u8);
        let right = self.draws.binomial(work.right, chance);
        let wrong = self.draws.binomial(work.wrong, chance);
        let cost = work.cost * self.plan.audit_cost_ppm / formulas::PPM;
        self.totals.drawn += right + wrong;
        for receipt in 0..right + wrong {
            let draw = [self.draws.bits(), self.draws.bits(), self.draws.bits()];
            let (first, second) = formulas::members(draw, panel, second_ppm);
            let executed = |m: usize, members: &mut [Member], random: &mut Random| {
                let executes = members[m].does.executes(random);
                if executes {
                    members[m].cost += cost;
                    members[m].found |= receipt >= right && members[m].does != Does::Hides;
                }
                executes
            };
            let by_first = executed(first, members, &mut self.draws);
            let Some(second) = second else { continue };
            let by_second = executed(second, members, &mut self.draws);
            if by_first && !by_second && members[second].does.reveals() {
                members[second].doubted_by.get_or_insert(first);
            }
            if by_second && !by_first && members[first].does.reveals() {
                members[first].doubted_by.get_or_insert(second);
            }
        }
    }

    /// What becomes of a member: it is paid later, or penalised now.
    fn reward(&mut self, i: usize, m: usize, member: &Member, all: &[Member], events: &mut Events<'_>) {
        let Some(auditor) = member.auditor else { return };
        let (who, provider) = (self.examiners[auditor].who, self.servers[i].who);
        let (prices, stakes) = (self.ledger.prices, self.ledger.p.stakes.clone());
        self.totals.audit_cost += member.cost;
        self.ledger.work(who, member.cost);
        if !member.does.reveals() {
            let taken = self.ledger.slash(who, stakes.silencePenalty, self.anyone);
            self.ledger.burn(self.anyone, prices.absence);
            self.totals.silent += 1;
            events.tell(self.epoch, || format!("silent {} about {}: {taken} taken", who.0, provider.0));
        } else {
            self.ledger.burn(who, prices.commit + prices.reveal);
            let accuser = member.doubted_by.and_then(|d| all[d].auditor).map(|a| self.examiners[a].who);
            match accuser.filter(|a| self.ledger.take_bond(*a, stakes.accusationBond)) {
                Some(accuser) => {
                    self.ledger.burn(accuser, prices.accuse + prices.lapse);
                    self.ledger.return_bond(accuser, stakes.accusationBond);
                    let taken = self.ledger.slash(who, stakes.lazinessPenalty, accuser);
                    self.totals.lazy += 1;
                    events.tell(self.epoch, || {
                        format!(
                            "lazy {} about {}: {taken} taken, accused by {}",
                            who.0, provider.0, accuser.0
                        )
                    });
                }
                None => self.ledger.did_work(provider, m, Some(who)),
            }
        }
        self.ledger.cover(who);
    }

    /// A provider has lost: by the dispute of who found it, in which it does not move, or by its own hand.
    fn convict(&mut self, i: usize, finder: Who, events: &mut Events<'_>) {
        let Server { who, plan, .. } = &self.servers[i];
        let (who, prices) = (*who, self.ledger.prices);
        let reporter = if plan.reports_itself {
            self.ledger.burn(who, prices.conflict);
            who
        } else {
            let bond = self.ledger.p.stakes.disputeBond;
            if !self.ledger.take_bond(finder, bond) {
                return;
            }
            self.ledger.burn(finder, prices.open_dispute + prices.timeout);
            self.ledger.return_bond(finder, bond);
            finder
        };
        let taken = self.ledger.strike(who, reporter);
        self.totals.struck += 1;
        self.servers[i].posted.clear();
        // Who would have left comes back when it would have.
        let exits = matches!(self.servers[i].plan.conduct, Conduct::Exits { .. });
        (self.servers[i].age, self.servers[i].leaving) = (0, exits.then(|| self.back_again()));
        if matches!(self.servers[i].plan.backing, Backing::Fixed(_)) {
            self.manage(i);
        }
        events.tell(self.epoch, || format!("struck {}: {taken} taken, reported by {}", who.0, reporter.0));
    }
}
