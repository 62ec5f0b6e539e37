//! Profit as one number changes and everything else stays: each point is a run of its own.
//!
//! A sweep's providers keep the same stake in every epoch ([`Backing::Fixed`]), so that epochs are alike and the mean of many is the expectation
//! that the document's inequality is about. What is reported is what cheating gains over an honest twin that is asked for the same.

use assay_ledger::contracts::Directory::Parameters;
use assay_ledger::deployment::parameters;

use crate::economy::{Economy, Outcome};
use crate::events::{Events, Failure};
use crate::plan::{Auditor, Backing, Class, Conduct, Diligence, Group, Host, Keeps, Model, Plan, Provider};
use crate::prediction;
use crate::scenario::{AUDIT_COST_PPM, CHEAP_PPM, COST_PPM, DOLLAR, GAS_PRICE, honest};
use crate::statistics::Mean;

mod figures;
mod tables;

pub use figures::figures;
pub use tables::{Table, tables};

/// One curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it is of.
    pub label: String,
    /// Measured, by the number that changes.
    pub points: Vec<(f64, Mean)>,
}

impl Curve {
    /// Where it changes sign for the first time, between two points that are surely on different sides, on straight lines between points; none
    /// where all that are sure are on one side.
    pub fn crossing(&self) -> Option<f64> {
        let sure: Vec<(usize, bool)> =
            self.points.iter().enumerate().filter_map(|(i, (_, m))| Some((i, m.sign()?))).collect();
        let (from, to) = sure.windows(2).find(|w| w[0].1 != w[1].1).map(|w| (w[0].0, w[1].0))?;
        self.points[from..=to].windows(2).find_map(|w| {
            let ((x0, y0), (x1, y1)) = ((w[0].0, w[0].1.mean), (w[1].0, w[1].1.mean));
            ((y0 > 0.0) != (y1 > 0.0)).then(|| x0 + (x1 - x0) * y0 / (y0 - y1))
        })
    }

    /// Whether it gains at some point, surely.
    pub fn pays(&self) -> bool {
        self.points.iter().any(|(_, m)| m.sign() == Some(true))
    }
}

/// Curves over one number.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What is looked at.
    pub title: String,
    /// What is measured.
    pub y_label: String,
    /// The curves.
    pub curves: Vec<Curve>,
    /// Where the document says that 0 is crossed, and by which formula; none where it says that it never is.
    pub predicted: Option<f64>,
    /// The formula.
    pub formula: String,
}

/// One chart.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its file, without an end.
    pub name: &'static str,
    /// Its heading.
    pub title: String,
    /// The number that changes.
    pub x_label: String,
    /// Whether that number runs by powers of ten.
    pub by_tens: bool,
    /// Side by side.
    pub panels: Vec<Panel>,
}

/// What cheating saves of a provider's part: the difference of costs, over what is left of a fee at the least rate.
pub fn saved(cheap_ppm: u64) -> f64 {
    saved_cost(cheap_ppm) / 0.94
}

/// What cheating saves, of the fee.
pub fn saved_cost(cheap_ppm: u64) -> f64 {
    COST_PPM as f64 * (1.0 - cheap_ppm as f64 / 1e6) / 1e6
}

/// A cheat and its surroundings.
#[derive(Clone, Debug)]
struct Trial {
    parameters: Parameters,
    class: Class,
    backing: u64,
    share_ppm: u64,
    cheap_ppm: u64,
    /// Share of the seats that collude with it, in percent.
    ring: u32,
    reports_itself: bool,
    gas_price: u64,
    pairs: u32,
    epochs: u64,
}

impl Trial {
    /// `requests` of `fee`, all wrong.
    fn new(requests: u64, fee: u64, backing: u64) -> Trial {
        let class = Class { requests, fee, cost: fee * COST_PPM / 1_000_000 };
        Trial {
            parameters: parameters(),
            class,
            backing,
            share_ppm: 1_000_000,
            cheap_ppm: CHEAP_PPM,
            ring: 0,
            reports_itself: false,
            gas_price: GAS_PRICE,
            pairs: 100,
            epochs: 100,
        }
    }

    fn plan(&self, seed: u64) -> Plan {
        let twin = honest(vec![self.class], Backing::Fixed(self.backing));
        let cheat = Provider {
            conduct: Conduct::Cheap { share_ppm: self.share_ppm, from: 0 },
            cheap_ppm: self.cheap_ppm,
            ring: self.ring > 0,
            reports_itself: self.reports_itself,
            ..twin.clone()
        };
        let auditor = |diligence| Auditor { seats: 1, diligence, griefed: false };
        let mut plan = small(seed, self.epochs, self.parameters.clone());
        plan.gas_price = self.gas_price;
        plan.providers = vec![Group::with_twin("cheat", self.pairs, cheat, twin)];
        plan.auditors = vec![
            Group::new("honest", 100 - self.ring, auditor(Diligence::Honest)),
            Group::new("ring", self.ring, auditor(Diligence::Ring)),
        ];
        plan
    }

    /// The mean gain of an epoch over the twin's, in fees of one receipt for each wrong one.
    fn run(&self, seed: u64) -> Result<Mean, Failure> {
        let gain = play(self.plan(seed))?.advantage("cheat");
        let wrong = self.class.requests as f64 * self.share_ppm as f64 / 1e6;
        let unit = self.class.fee as f64 * wrong;
        Ok(Mean { mean: gain.mean / unit, spread: gain.spread / unit, count: gain.count })
    }
}

/// A plan with payers and one model, for those who are added.
fn small(seed: u64, epochs: u64, parameters: Parameters) -> Plan {
    Plan {
        seed,
        epochs,
        parameters,
        gas_price: GAS_PRICE,
        audit_cost_ppm: AUDIT_COST_PPM,
        payers: 200,
        models: vec![Model { royalty_ppm: 0, storage_cost: 50_000, bytes: 16 << 30 }],
        providers: Vec::new(),
        auditors: Vec::new(),
        hosts: Vec::new(),
        griefers: Vec::new(),
    }
}

fn play(plan: Plan) -> Result<Outcome, Failure> {
    Economy::new(plan).run(&mut Events::none(), |_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_cross_between_points() {
        let mean = |mean| Mean { mean, spread: 0.1, count: 1 };
        let curve = |ys: [f64; 3]| Curve {
            label: String::new(),
            points: ys.iter().enumerate().map(|(i, y)| (i as f64, mean(*y))).collect(),
        };
        assert_eq!(curve([1.0, 0.5, -0.5]).crossing(), Some(1.5));
        assert_eq!(curve([1.0, 0.05, -0.15]).crossing(), Some(1.25));
        let (above, below) = (curve([-0.05, 2.0, 3.0]), curve([0.05, -2.0, -3.0]));
        assert_eq!((above.crossing(), below.crossing()), (None, None), "what is not sure is no crossing");
        assert!(above.pays() && !below.pays());
    }
}
