//! What is no curve: what auditors are paid for their work, what padding saves, what hosts earn by names, and what griefing costs as gas grows dear.

use super::*;
use crate::plan::Grief;

/// Rows of numbers under headings.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its key in the report.
    pub name: &'static str,
    /// What stands above the columns.
    pub columns: Vec<&'static str>,
    /// Numbers, as many as columns.
    pub rows: Vec<Vec<f64>>,
}

/// Every table.
pub fn tables(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Vec<Table>, Failure> {
    Ok(vec![
        audit_pay(seed, progress)?,
        padding(seed, progress)?,
        refunds(seed, progress)?,
        names(seed, progress)?,
        chunks(seed, progress)?,
        griefing(seed, progress)?,
    ])
}

fn auditors(count: u32) -> Vec<Group<Auditor>> {
    vec![Group::new("honest", count, Auditor { seats: 1, diligence: Diligence::Honest, griefed: true })]
}

/// What one audit is paid and costs, in fees of the audited receipt, by stake; for receipts of one fee and for a mixture.
fn audit_pay(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Table, Failure> {
    let mut rows = Vec::new();
    for fees in [0u64, 1, 9, 99, 999, 9999] {
        let mut row = vec![fees as f64];
        for mixed in [false, true] {
            let class = |requests, fee| Class { requests, fee, cost: fee * COST_PPM / 1_000_000 };
            // The mean fee is a cent in both.
            let demand = match mixed {
                false => vec![class(400, 10_000)],
                true => vec![class(360, 1000), class(40, 91_000)],
            };
            let mut plan = small(seed, 100, parameters());
            plan.providers = vec![Group::new("honest", 50, honest(demand, Backing::Fixed(fees * 10_000)))];
            plan.auditors = auditors(100);
            let totals = play(plan)?.totals;
            let audits = totals.audit_cost as f64 / AUDIT_COST_PPM as f64 * 1e12 / COST_PPM as f64;
            // Pay and cost for each fee that was audited.
            row.extend([totals.audit_pay as f64 / audits, totals.audit_cost as f64 / audits]);
        }
        progress(&format!("audits at a stake of {fees} fees"));
        rows.push(row);
    }
    let columns = vec!["stake, fees", "one fee: pay", "one fee: cost", "mixed fees: pay", "mixed fees: cost"];
    Ok(Table { name: "audit_pay", columns, rows })
}

/// Receipts without a fee beside forty of two dollars with two dollars at stake: what auditors are paid for what they do, and what it brings.
fn padding(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Table, Failure> {
    let mut rows = Vec::new();
    for receipts in [0u64, 40, 120, 360, 1000, 3000] {
        let demand = vec![Class { requests: 40, fee: 2 * DOLLAR, cost: 2 * COST_PPM }];
        let twin = honest(demand, Backing::Fixed(2 * DOLLAR));
        let pads = Provider { conduct: Conduct::Pads { receipts }, ..twin.clone() };
        let mut plan = small(seed, 100, parameters());
        plan.providers = vec![Group::with_twin("pads", 50, pads.clone(), twin)];
        plan.auditors = auditors(100);
        let gain = play(plan.clone())?.advantage("pads");
        plan.providers = vec![Group::new("pads", 50, pads)];
        let totals = play(plan)?.totals;
        let fees = totals.fees as f64;
        rows.push(vec![
            receipts as f64,
            100.0 * totals.audit_pay as f64 / fees,
            100.0 * totals.audit_cost as f64 / fees,
            gain.mean / 1e6,
            gain.spread / 1e6,
        ]);
        progress(&format!("{receipts} receipts without a fee"));
    }
    let columns = vec![
        "free receipts",
        "auditors' part, % of fees",
        "their work, % of fees",
        "gain an epoch, dollars",
        "±",
    ];
    Ok(Table { name: "padding", columns, rows })
}

/// What payers get back of the fees of a provider that is struck with every batch, by the fee of a receipt.
fn refunds(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Table, Failure> {
    let mut rows = Vec::new();
    for fee in [500u64, 2000, 6000, 10_000, 50_000, 1_000_000] {
        let trial = Trial { pairs: 1, ..Trial::new(100, fee, 0) };
        let mut plan = trial.plan(seed);
        plan.providers[0].twin = None;
        let totals = play(plan)?.totals;
        rows.push(vec![fee as f64 / 1e6, 100.0 * totals.refunded as f64 / totals.fees as f64]);
        progress(&format!("refunds of {fee}"));
    }
    Ok(Table { name: "refunds", columns: vec!["fee, dollars", "back to payers, %"], rows })
}

/// A listing with 300 dollars of fees a day and a hundred honest hosts: a host's profit by the number of its names.
fn names(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Table, Failure> {
    let mut rows = Vec::new();
    for names in [1u32, 2, 5, 10, 50, 200] {
        let mut plan = small(seed, 200, parameters());
        let demand = vec![Class { requests: 3000, fee: 10_000, cost: 10 * COST_PPM / 1000 }];
        plan.providers = vec![Group::new("honest", 10, honest(demand, Backing::Fixed(100 * DOLLAR)))];
        plan.auditors = auditors(20);
        let host = |names, keeps| Host { model: 0, names, keeps };
        plan.hosts = vec![
            Group::new("honest hosts", 99, host(1, Keeps::All)),
            Group::new("many names", 1, host(names, Keeps::All)),
        ];
        let outcome = play(plan)?;
        let (many, one) = (outcome.profit("many names").mean, outcome.profit("honest hosts").mean);
        rows.push(vec![f64::from(names), many / 1e6, one / 1e6, f64::from(names) * 50.0]);
        progress(&format!("{names} names"));
    }
    let columns =
        vec!["names", "profit an epoch, dollars", "an honest host's beside it", "its stake, dollars"];
    Ok(Table { name: "host_names", columns, rows })
}

/// A host that keeps half of the chunks, by what keeping all of them costs.
fn chunks(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Table, Failure> {
    let mut rows = Vec::new();
    for dollars in [0.1, 1.0, 5.0, 9.0, 11.0, 20.0] {
        let mut plan = small(seed, 400, parameters());
        plan.models[0].storage_cost = (dollars * DOLLAR as f64) as u64;
        let host = |keeps| Host { model: 0, names: 1, keeps };
        plan.hosts = vec![
            Group::new("all", 100, host(Keeps::All)),
            Group::new("half", 100, host(Keeps::Share { ppm: 500_000 })),
            Group::new("nothing", 100, host(Keeps::Nothing)),
        ];
        let outcome = play(plan)?;
        let half = outcome.advantage_over("half", "all");
        let nothing = outcome.advantage_over("nothing", "all");
        let stake = parameters().stakes.pledgeStake as f64;
        let predicted = 0.5 * (dollars - prediction::storage(0.2) * stake / 1e6);
        rows.push(vec![dollars, half.mean / 1e6, half.spread / 1e6, predicted, nothing.mean / 1e6]);
        progress(&format!("a disk of {dollars} dollars"));
    }
    let columns =
        vec!["disk, dollars an epoch", "keeps half: gain", "±", "predicted", "keeps nothing, fetches: gain"];
    Ok(Table { name: "host_chunks", columns, rows })
}

/// What an act of griefing costs who does it, and what others lose by it, in dollars, by the price of gas.
fn griefing(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Table, Failure> {
    let mut rows = Vec::new();
    for gwei in [0.02, 0.5, 5.0, 9.7, 20.0] {
        let mut plan = small(seed, 20, parameters());
        // At 2500 dollars an ether.
        plan.gas_price = (gwei * 2.5 * DOLLAR as f64) as u64;
        let demand = vec![Class { requests: 100, fee: 10_000, cost: 10 * COST_PPM / 1000 }];
        let griefed = Provider { griefed: true, ..honest(demand, Backing::Fixed(100 * DOLLAR)) };
        plan.providers = vec![Group::new("honest", 10, griefed)];
        plan.auditors = auditors(50);
        let kinds = [
            ("dispute", Grief::Dispute),
            ("demand", Grief::Demand),
            ("accusation", Grief::Accusation),
            ("worthless", Grief::WorthlessBatch { receipts: 1 }),
            ("large", Grief::WorthlessBatch { receipts: 409_600 }),
        ];
        plan.griefers = kinds.iter().map(|(name, grief)| Group::new(name, 5, *grief)).collect();
        let outcome = play(plan)?;
        let mut row = vec![gwei];
        for (name, _) in kinds {
            row.extend([-outcome.profit(name).mean / 1e6, outcome.harm(name).mean / 1e6]);
        }
        rows.push(row);
        progress(&format!("griefing at {gwei} gwei"));
    }
    let columns = vec![
        "gwei",
        "false dispute: costs",
        "harms",
        "false demand: costs",
        "harms",
        "false accusation: costs",
        "harms",
        "worthless batch: costs",
        "harms",
        "large one: costs",
        "harms",
    ];
    Ok(Table { name: "griefing", columns, rows })
}
