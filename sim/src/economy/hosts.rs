//! Hosts: disks, questions and answers.

use super::Economy;
use crate::events::Events;
use crate::formulas::PPM;
use crate::plan::Keeps;
use crate::random::Chance;

impl Economy {
    /// The beacon asks pledges for chunks. Who fails pledges again, under another name.
    pub(super) fn ask_hosts(&mut self, events: &mut Events<'_>) {
        let asked_ppm = u64::from(self.ledger.p.rates.retrievalPpm);
        for k in 0..self.keepers.len() {
            let keeper = &self.keepers[k];
            let (who, model, keeps) = (keeper.who, keeper.model, keeper.keeps);
            self.ledger.work(who, keeper.storage_cost);
            for n in 0..self.keepers[k].pledges.len() {
                // As the contract draws it: 8 bytes modulo a million.
                if self.draws.bits() % PPM >= asked_ppm {
                    continue;
                }
                let pledge = self.keepers[k].pledges[n];
                let has_it = match keeps {
                    Keeps::All | Keeps::Nothing => true,
                    Keeps::Share { ppm } => self.draws.happens(Chance::ppm(ppm)),
                };
                if has_it {
                    self.ledger.answer(model, pledge);
                    continue;
                }
                self.ledger.collect(model, pledge);
                self.ledger.fail(model, pledge, self.anyone);
                self.totals.failed += 1;
                events.tell(self.epoch, || format!("failed {} to show a chunk of model {model}", who.0));
                if let Some(again) = self.ledger.pledge(model, who) {
                    self.keepers[k].pledges[n] = again;
                }
            }
        }
    }

    /// Every pledge answers once more, so that what is not confirmed yet is no matter of luck.
    pub(super) fn answer_all(&mut self) {
        for keeper in &self.keepers {
            for pledge in &keeper.pledges {
                self.ledger.answer(keeper.model, *pledge);
            }
        }
    }

    /// Hosts collect what they are owed.
    pub(super) fn collect_all(&mut self) {
        for keeper in &self.keepers {
            for pledge in &keeper.pledges {
                self.ledger.collect(keeper.model, *pledge);
            }
        }
        for server in &self.servers {
            self.ledger.collect_served(server.who);
        }
    }
}
