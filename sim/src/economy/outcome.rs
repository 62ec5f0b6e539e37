//! What a run came to.

use super::{Economy, Work};
use crate::ledger::{Flow, Ledger, Who};
use crate::statistics::Mean;

/// Who shares a purse, and whom it is compared with.
#[derive(Clone, Debug)]
pub struct Player {
    /// Its accounts.
    pub whos: Vec<Who>,
    /// Its twin's; empty if it has none.
    pub twin: Vec<Who>,
}

impl Player {
    /// One account, no twin.
    pub fn alone(who: Who) -> Player {
        Player { whos: vec![who], twin: Vec::new() }
    }
}

/// A group of the plan.
#[derive(Clone, Debug)]
pub struct Team {
    /// Its name.
    pub name: String,
    /// Who is in it.
    pub players: Vec<Player>,
    /// Where its griefers begin, if they are some.
    pub griefers: Option<usize>,
}

fn profit(ledger: &Ledger, whos: &[Who]) -> i64 {
    whos.iter().map(|w| ledger.profit(*w)).sum()
}

impl Team {
    /// In units, over all epochs so far.
    pub(super) fn mean_profit(&self, ledger: &Ledger) -> f64 {
        let all: Vec<f64> = self.players.iter().map(|p| profit(ledger, &p.whos) as f64).collect();
        Mean::of(&all).mean
    }
}

/// Sums over everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Receipts that honest or dishonest work was done for.
    pub receipts: u64,
    /// Their fees, in units.
    pub fees: u64,
    /// Of them, not executed.
    pub wrong: u64,
    /// What executing all of them costs, in units.
    pub execution: u64,
    /// Batches.
    pub posted: u64,
    /// Receipts that the lottery drew.
    pub drawn: u64,
    /// What auditors' work cost, in units.
    pub audit_cost: u64,
    /// What auditors were paid, in units.
    pub audit_pay: u64,
    /// Providers that were struck.
    pub struck: u64,
    /// Members that revealed nothing.
    pub silent: u64,
    /// Members that made digests up and were found.
    pub lazy: u64,
    /// Pledges that failed.
    pub failed: u64,
    /// What the treasury has in the end, in units.
    pub treasury: u64,
    /// Fees that payers got back, in units.
    pub refunded: u64,
}

impl Totals {
    pub(super) fn answered(&mut self, work: &Work) {
        let n = work.right + work.wrong;
        self.receipts += n;
        self.fees += n * work.fee;
        self.wrong += work.wrong;
        self.execution += n * work.cost;
    }
}

/// One team's numbers, a number for each player: units over the whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gains {
    /// The team.
    pub name: String,
    /// What each gained.
    pub profits: Vec<i64>,
    /// What its twin gained; empty if there are none.
    pub twins: Vec<i64>,
    /// What others lost by it; empty if it is no griefer.
    pub harms: Vec<i64>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Epochs with demand.
    pub epochs: u64,
    /// By team, in the plan's order: hosts, providers, auditors, griefers.
    pub teams: Vec<Gains>,
    /// Over everybody.
    pub totals: Totals,
    /// After so many epochs, the mean profit of each team so far, in units.
    pub notes: Vec<(u64, Vec<f64>)>,
}

impl Outcome {
    /// A team by its name.
    pub fn team(&self, name: &str) -> Option<&Gains> {
        self.teams.iter().find(|t| t.name == name)
    }

    /// Mean profit per epoch, in units.
    pub fn profit(&self, name: &str) -> Mean {
        let team = self.team(name);
        Mean::of(&team.map(|t| self.per_epoch(&t.profits)).unwrap_or_default())
    }

    /// Mean profit per epoch above that of the twins, in units: of pairs that were asked for the same work.
    pub fn advantage(&self, name: &str) -> Mean {
        let Some(team) = self.team(name) else { return Mean::default() };
        let differences: Vec<i64> = team.profits.iter().zip(&team.twins).map(|(a, b)| a - b).collect();
        Mean::of(&self.per_epoch(&differences))
    }

    /// Mean profit per epoch above that of another team, in units.
    pub fn advantage_over(&self, name: &str, other: &str) -> Mean {
        self.profit(name).less(self.profit(other))
    }

    /// Mean harm per epoch, in units.
    pub fn harm(&self, name: &str) -> Mean {
        let team = self.team(name);
        Mean::of(&team.map(|t| self.per_epoch(&t.harms)).unwrap_or_default())
    }

    fn per_epoch(&self, amounts: &[i64]) -> Vec<f64> {
        amounts.iter().map(|a| *a as f64 / self.epochs.max(1) as f64).collect()
    }
}

impl Economy {
    pub(super) fn outcome(self) -> Outcome {
        let ledger = &self.ledger;
        let result = |team: &Team| Gains {
            name: team.name.clone(),
            profits: team.players.iter().map(|p| profit(ledger, &p.whos)).collect(),
            twins: team
                .players
                .iter()
                .filter(|p| !p.twin.is_empty())
                .map(|p| profit(ledger, &p.twin))
                .collect(),
            harms: match team.griefers {
                Some(first) => {
                    self.griefers[first..].iter().take(team.players.len()).map(|g| g.harm).collect()
                }
                None => Vec::new(),
            },
        };
        let teams = self.teams.iter().map(result).collect();
        let sum = |flow: Flow| ledger.everyone().map(|w| ledger.flow_of(w, flow)).sum::<i64>() as u64;
        let totals = Totals {
            treasury: ledger.treasury(),
            audit_pay: sum(Flow::Audits),
            refunded: sum(Flow::Refunded),
            ..self.totals
        };
        Outcome { epochs: self.plan.epochs, teams, totals, notes: self.notes }
    }
}
