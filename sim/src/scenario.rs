//! The whole network at once: 10 000 nodes of every kind and size, most of them honest, and every strategy beside its honest twin.

use assay_ledger::deployment::parameters;

use crate::plan::{
    Auditor, Backing, Class, Conduct, Diligence, Grief, Group, Host, Keeps, Model, Plan, Provider,
};

/// A dollar in units.
pub const DOLLAR: u64 = 1_000_000;
/// What executing a request costs, of its fee, in millionths.
pub const COST_PPM: u64 = 600_000;
/// What a cheap model costs, of the true one, in millionths.
pub const CHEAP_PPM: u64 = 100_000;
/// What executing again costs, of execution: between the 63 and 92 % that `docs/benchmarks/verification.md` has beside 16 streams.
pub const AUDIT_COST_PPM: u64 = 750_000;
/// A million gas, in units: 0.02 gwei at 2500 dollars an ether.
pub const GAS_PRICE: u64 = 50_000;
/// Share of seats that the ring holds, in the whole network.
pub const RING_SEATS: f64 = 0.2;

/// Tokens of a request and its share of requests, in millionths.
const SIZES: [(u64, u64); 3] = [(256, 500_000), (1024, 400_000), (4096, 100_000)];
/// Price per million tokens in units, royalty in millionths, what keeping it costs an epoch in units, gibibytes.
const MODELS: [(u64, u32, u64, u64); 12] = [
    (1_000_000, 0, 50_000, 16),
    (100_000, 0, 5_000, 1),
    (150_000, 0, 5_000, 2),
    (200_000, 0, 20_000, 8),
    (200_000, 20_000, 20_000, 8),
    (400_000, 0, 30_000, 14),
    (600_000, 0, 50_000, 30),
    (900_000, 50_000, 100_000, 70),
    (1_200_000, 0, 100_000, 70),
    (3_000_000, 0, 200_000, 140),
    (5_000_000, 100_000, 300_000, 240),
    (10_000_000, 0, 500_000, 400),
];

/// Requests of a class, whose cost is the usual part of its fee.
pub fn class(requests: u64, fee: u64) -> Class {
    Class { requests, fee, cost: fee * COST_PPM / 1_000_000 }
}

/// An honest provider of the first model.
pub fn honest(demand: Vec<Class>, backing: Backing) -> Provider {
    Provider {
        model: 0,
        demand,
        lanes: 2,
        backing,
        conduct: Conduct::Honest,
        cheap_ppm: CHEAP_PPM,
        ring: false,
        reports_itself: false,
        pledges: false,
        signs_for_itself: false,
        griefed: false,
    }
}

fn requests(model: usize, each: u64) -> Vec<Class> {
    SIZES
        .iter()
        .map(|(tokens, ppm)| class(each * ppm / 1_000_000, tokens * MODELS[model].0 / 1_000_000))
        .collect()
}

/// 4000 requests a day for 3.8 dollars, and a month of them at stake.
fn usual() -> Provider {
    honest(requests(0, 4000), Backing::Grows(114 * DOLLAR))
}

/// 40 requests a day of two dollars, and fifty of them at stake.
fn jobs() -> Provider {
    honest(vec![class(40, 2 * DOLLAR)], Backing::Grows(100 * DOLLAR))
}

fn group(name: &str, count: u32, plan: Provider, twin: &Provider) -> Group<Provider> {
    Group::with_twin(name, count, plan, twin.clone())
}

/// A tenth auditors, a fifth hosts, three tenths providers, the rest payers. At least 250 nodes.
pub fn whole(nodes: u32, epochs: u64, seed: u64) -> Plan {
    let some = (nodes / 250).max(1);
    let mut providers = strategies(some);
    let honest_ones = (nodes * 3 / 10).saturating_sub(providers.iter().map(|g| 2 * g.count).sum());
    let kinds: Vec<(usize, u32)> =
        (0..MODELS.len()).flat_map(|m| (5..=17).map(move |size| (m, size))).collect();
    for (i, (model, size)) in kinds.iter().enumerate() {
        // What does not divide goes to the first kinds.
        let (each, rest) = (honest_ones as usize / kinds.len(), honest_ones as usize % kinds.len());
        let demand = requests(*model, 1 << size);
        let daily: u64 = demand.iter().map(|c| c.requests * c.fee).sum();
        let mut plan = honest(demand, Backing::Grows(30 * daily));
        (plan.model, plan.griefed) = (*model, true);
        let count = each + usize::from(i < rest);
        providers.push(Group::new(&format!("honest provider {model}/{size}"), count as u32, plan));
    }
    Plan {
        seed,
        epochs,
        parameters: parameters(),
        gas_price: GAS_PRICE,
        audit_cost_ppm: AUDIT_COST_PPM,
        payers: nodes * 2 / 5,
        models: MODELS
            .iter()
            .map(|(_, royalty_ppm, storage_cost, size)| Model {
                royalty_ppm: *royalty_ppm,
                storage_cost: *storage_cost,
                bytes: size << 30,
            })
            .collect(),
        providers,
        auditors: auditors(nodes / 10, some),
        hosts: hosts(nodes / 5, some),
        griefers: [
            ("false disputes", Grief::Dispute),
            ("false demands", Grief::Demand),
            ("false accusations", Grief::Accusation),
            ("worthless batches", Grief::WorthlessBatch { receipts: 1 }),
            ("large worthless batches", Grief::WorthlessBatch { receipts: 409_600 }),
        ]
        .into_iter()
        .map(|(name, grief)| Group::new(name, some, grief))
        .collect(),
    }
}

fn strategies(some: u32) -> Vec<Group<Provider>> {
    let (usual, jobs) = (usual(), jobs());
    let cheap =
        |of: &Provider, share_ppm| Provider { conduct: Conduct::Cheap { share_ppm, from: 0 }, ..of.clone() };
    let later =
        |share_ppm| Provider { conduct: Conduct::Cheap { share_ppm, from: 100 * DOLLAR }, ..usual.clone() };
    let leave = |share_ppm, unbonds_first| Provider {
        conduct: Conduct::Exits { every: 60, share_ppm, unbonds_first },
        ..usual.clone()
    };
    let pledged = Provider { pledges: true, ..usual.clone() };
    vec![
        group("cheap model, 1 in 1000", some, cheap(&usual, 1000), &usual),
        group("cheap model, 1 %", some, cheap(&usual, 10_000), &usual),
        group("cheap model, 10 %", some, cheap(&usual, 100_000), &usual),
        group("cheap model, everything", some, cheap(&usual, 1_000_000), &usual),
        group("cheap model once rich, 1 in 1000", some, later(1000), &usual),
        group("cheap model once rich, everything", some, later(1_000_000), &usual),
        group("cheap model, 1 of 40 large jobs", some, cheap(&jobs, 25_000), &jobs),
        group(
            "cheap model, reports itself",
            some,
            Provider { reports_itself: true, ..cheap(&jobs, 25_000) },
            &jobs,
        ),
        group("cheats and exits, everything", some, leave(1_000_000, false), &leave(0, false)),
        group("cheats and exits, 5 %", some, leave(50_000, false), &leave(0, false)),
        group("cheats and exits, unbonds first", some, leave(1_000_000, true), &leave(0, true)),
        group("colluding pair, 10 %", some, Provider { ring: true, ..cheap(&usual, 100_000) }, &usual),
        group(
            "colluding pair, 1 of 40 large jobs",
            some,
            Provider { ring: true, ..cheap(&jobs, 25_000) },
            &jobs,
        ),
        group(
            "wash demand",
            some,
            Provider { conduct: Conduct::Washes { receipts: 100, fee: 10_000 }, ..usual.clone() },
            &usual,
        ),
        group("hosts what it serves", some, pledged.clone(), &usual),
        group(
            "signs false fetch receipts",
            some,
            Provider { signs_for_itself: true, ..pledged.clone() },
            &pledged,
        ),
    ]
}

fn auditors(count: u32, some: u32) -> Vec<Group<Auditor>> {
    let of = |diligence| Auditor { seats: 4, diligence, griefed: false };
    let ring = (f64::from(count) * RING_SEATS) as u32;
    let honest = count.saturating_sub(ring + 4 * some);
    vec![
        Group::new("honest auditor", honest, of(Diligence::Honest)),
        Group::new("lazy auditor, everything", some, of(Diligence::Lazy { share_ppm: 1_000_000 })),
        Group::new("lazy auditor, 10 %", some, of(Diligence::Lazy { share_ppm: 100_000 })),
        Group::new("silent auditor", some, of(Diligence::Silent)),
        Group::new("colluding auditor", ring, of(Diligence::Ring)),
        Group::new("griefed auditor", some, Auditor { griefed: true, ..of(Diligence::Honest) }),
    ]
}

fn hosts(count: u32, some: u32) -> Vec<Group<Host>> {
    let mut groups = vec![
        Group::new("hosts nothing", some, Host { model: 0, names: 1, keeps: Keeps::Nothing }),
        Group::new("hosts 90 %", some, Host { model: 0, names: 1, keeps: Keeps::Share { ppm: 900_000 } }),
        Group::new(
            "ten names on one disk",
            (some / 4).max(1),
            Host { model: 0, names: 10, keeps: Keeps::All },
        ),
    ];
    let rest = count.saturating_sub(groups.iter().map(|g| g.count).sum()) as usize;
    for model in 0..MODELS.len() {
        let n = rest / MODELS.len() + usize::from(model < rest % MODELS.len());
        groups.push(Group::new(
            &format!("honest host {model}"),
            n as u32,
            Host { model, names: 1, keeps: Keeps::All },
        ));
    }
    groups
}
