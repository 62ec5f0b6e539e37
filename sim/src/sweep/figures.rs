//! The charts: audit rate, stake, fee, and seats in the hands of colluders.

use super::*;

/// Every chart. `progress` hears of each point.
pub fn figures(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Vec<Figure>, Failure> {
    Ok(vec![
        rate(seed, progress)?,
        flat(seed, progress)?,
        stake(seed, progress)?,
        fee(seed, progress)?,
        seats(seed, progress)?,
        share(seed, progress)?,
    ])
}

/// A point of a trial for each number.
fn curve(
    label: &str,
    xs: &[f64],
    seed: u64,
    progress: &mut dyn FnMut(&str),
    trial: impl Fn(f64) -> Trial,
) -> Result<Curve, Failure> {
    let mut points = Vec::new();
    for x in xs {
        points.push((*x, trial(*x).run(seed)?));
        progress(&format!("{label}: {x}"));
    }
    Ok(Curve { label: label.into(), points })
}

/// A single receipt of a cent does not pay for gas; what it would without shows the lottery alone.
fn without_gas(trial: Trial) -> Trial {
    Trial { gas_price: 0, ..trial }
}

const PER_WRONG: &str = "gain for each wrong receipt, in fees";

/// The lottery's scale, for two savings. Receipts of a cent, a hundred cents at stake.
fn rate(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Figure, Failure> {
    let xs = [5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0];
    let mut panels = Vec::new();
    for cheap_ppm in [400_000, CHEAP_PPM] {
        let trial = |percent: f64, requests: u64, share_ppm: u64| {
            let mut t = Trial::new(requests, DOLLAR / 100, DOLLAR);
            t.parameters.rates.savingsPpm = (percent * 10_000.0) as u32;
            t.parameters.rates.rateMinPpm = 0;
            (t.share_ppm, t.cheap_ppm) = (share_ppm, cheap_ppm);
            t
        };
        let one = |x: f64| Trial { pairs: 400, epochs: 500, ..without_gas(trial(x, 1, 1_000_000)) };
        let curves = vec![
            curve("one alone", &xs, seed, progress, one)?,
            curve("reports itself", &xs, seed, progress, |x| Trial { reports_itself: true, ..one(x) })?,
            curve("1 of 100", &xs, seed, progress, |x| Trial {
                pairs: 400,
                epochs: 250,
                ..trial(x, 100, 10_000)
            })?,
            curve("all of 100", &xs, seed, progress, |x| trial(x, 100, 1_000_000))?,
        ];
        let s = saved(cheap_ppm);
        panels.push(Panel {
            title: format!("cheating saves {:.0} % of the provider's part", 100.0 * s),
            y_label: PER_WRONG.into(),
            curves,
            predicted: Some(100.0 * prediction::savings(s, 1.0)),
            formula: "savings = s / q".into(),
        });
    }
    Ok(Figure {
        name: "economics-rate",
        title: "Profit against the audit rate".into(),
        x_label: "savingsPpm, the scale of the lottery's rate, in %".into(),
        by_tens: false,
        panels,
    })
}

/// A rate that is the same for all, `rateMinPpm` with a lottery whose scale is next to nothing. Receipts of a dollar.
fn flat(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Figure, Failure> {
    let xs = [0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0];
    let s = saved(CHEAP_PPM);
    let mut panels = Vec::new();
    for fees in [20u64, 100] {
        let trial = |percent: f64, requests: u64| {
            let mut t = Trial::new(requests, DOLLAR, fees * DOLLAR);
            t.parameters.rates.savingsPpm = 1;
            t.parameters.rates.rateMinPpm = (percent * 10_000.0) as u32;
            Trial { pairs: 400, epochs: 500 / requests, ..t }
        };
        panels.push(Panel {
            title: format!("{fees} fees at stake"),
            y_label: PER_WRONG.into(),
            curves: vec![
                curve("one alone", &xs, seed, progress, |x| trial(x, 1))?,
                curve("reports itself", &xs, seed, progress, |x| Trial {
                    reports_itself: true,
                    ..trial(x, 1)
                })?,
                curve("all of ten", &xs, seed, progress, |x| trial(x, 10))?,
            ],
            predicted: Some(100.0 * prediction::rate(s, 1.0, fees as f64)),
            formula: "p = (s / q) f / (f + F)".into(),
        });
    }
    Ok(Figure {
        name: "economics-flat",
        title: "Profit against a rate that is the same for all".into(),
        x_label: "rateMinPpm, in % of receipts".into(),
        by_tens: true,
        panels,
    })
}

/// Stake, at a rate that is the same for all and with the lottery's. One receipt of a dollar.
fn stake(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Figure, Failure> {
    let xs = [1.0, 3.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0];
    let trial = |x: f64, flat: bool, requests: u64| {
        let mut t = Trial::new(requests, DOLLAR, x as u64 * DOLLAR);
        if flat {
            t.parameters.rates.savingsPpm = 1;
        }
        Trial { pairs: 400, epochs: 500 / requests, ..t }
    };
    let s = saved(CHEAP_PPM);
    let mut panels = Vec::new();
    for (flat, title) in [(true, "1 % of receipts, whatever the fee"), (false, "the lottery's rate")] {
        let curves = vec![
            curve("one receipt", &xs, seed, progress, |x| trial(x, flat, 1))?,
            curve("all of ten", &xs, seed, progress, |x| trial(x, flat, 10))?,
        ];
        panels.push(Panel {
            title: title.into(),
            y_label: PER_WRONG.into(),
            curves,
            predicted: flat.then(|| prediction::backing(s, 1.0, 0.01)),
            formula: if flat { "F / f = s / p - 1".into() } else { "never".into() },
        });
    }
    Ok(Figure {
        name: "economics-stake",
        title: "Profit against what is at stake".into(),
        x_label: "stake, in fees".into(),
        by_tens: false,
        panels,
    })
}

/// Fees: of a provider with a hundred dollars at stake, and of auditors that execute nothing.
fn fee(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Figure, Failure> {
    let xs = [0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0];
    let trial = |x: f64, flat: bool| {
        let mut t = Trial::new(1, (x * DOLLAR as f64) as u64, 100 * DOLLAR);
        if flat {
            t.parameters.rates.savingsPpm = 1;
        }
        Trial { pairs: 400, epochs: 500, ..t }
    };
    let s = saved(CHEAP_PPM);
    let provider = Panel {
        title: "a provider with 100 dollars at stake".into(),
        y_label: PER_WRONG.into(),
        curves: vec![
            curve("1 % for all", &xs, seed, progress, |x| trial(x, true))?,
            curve("lottery", &xs, seed, progress, |x| trial(x, false))?,
        ],
        predicted: Some(100.0 * prediction::fee(s, 1.0, 0.01)),
        formula: "f = F / (s / p - 1), at 1 % for all".into(),
    };
    let mut curves = Vec::new();
    for (label, diligence, newcomers) in [
        ("idle, new", Diligence::Lazy { share_ppm: 1_000_000 }, true),
        ("skips, new", Diligence::Lazy { share_ppm: 10_000 }, true),
        ("silent, new", Diligence::Silent, true),
        ("idle, 1 %", Diligence::Lazy { share_ppm: 1_000_000 }, false),
    ] {
        let mut points = Vec::new();
        for x in xs {
            points.push((x, idle(x, diligence, newcomers, seed)?));
            progress(&format!("{label}: {x}"));
        }
        curves.push(Curve { label: label.into(), points });
    }
    let auditors = Panel {
        title: "auditors of newcomers, and at a rate of 1 %".into(),
        y_label: "gain for each place on a panel, in fees".into(),
        curves,
        predicted: Some(50.0 * prediction::lazy_fee(0.05, 0.8, 0.2)),
        formula: "f = L / 4.8, for digests that are made up".into(),
    };
    Ok(Figure {
        name: "economics-fee",
        title: "Profit against the fee of a receipt".into(),
        x_label: "fee of a receipt, dollars".into(),
        by_tens: true,
        panels: vec![provider, auditors],
    })
}

/// What an auditor gains over an honest one, for each place on a panel that it is drawn for, in fees: 512 expected audits on two members, either of
/// everything a provider without stake posts, or of 1 % of what one with much stake posts. A fifth of the second auditors is not honest.
fn idle(fee: f64, diligence: Diligence, newcomers: bool, seed: u64) -> Result<Mean, Failure> {
    let mut parameters = parameters();
    let requests = if newcomers { 512 } else { 51_200 };
    parameters.rates.rateMinPpm = if newcomers { 1_000_000 } else { 10_000 };
    let units = (fee * DOLLAR as f64) as u64;
    let (epochs, batches) = (100, 20);
    let mut plan = small(seed, epochs, parameters);
    plan.payers = 400;
    let class = Class { requests, fee: units, cost: units * COST_PPM / 1_000_000 };
    // Demand of classes varies by a fifth: what would ask for a third member is left out.
    let class = Class { requests: class.requests * 5 / 6, ..class };
    plan.providers =
        vec![Group::new("served", batches, honest(vec![class], Backing::Fixed(100_000 * DOLLAR)))];
    let auditor = |diligence| Auditor { seats: 1, diligence, griefed: false };
    plan.auditors = vec![
        Group::new("honest", 80, auditor(Diligence::Honest)),
        Group::new("idle", 20, auditor(diligence)),
    ];
    let gain = play(plan)?.advantage_over("idle", "honest");
    // Two members of each batch, drawn from a hundred seats.
    let unit = f64::from(batches) * 2.0 / 100.0 * units as f64;
    Ok(Mean { mean: gain.mean / unit, spread: gain.spread / unit, count: gain.count })
}

/// Seats that collude, for two savings: one receipt whose fee is a tenth of the stake.
fn seats(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Figure, Failure> {
    let xs = [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0];
    let mut panels = Vec::new();
    for cheap_ppm in [CHEAP_PPM, 0] {
        let trial = |x: f64, requests: u64| {
            let t = Trial::new(requests, DOLLAR, 10 * DOLLAR);
            Trial { ring: x as u32, cheap_ppm, pairs: 400, epochs: 200 / requests, ..t }
        };
        let s = saved(cheap_ppm);
        panels.push(Panel {
            title: format!("cheating saves {:.0} % of the provider's part", 100.0 * s),
            y_label: PER_WRONG.into(),
            curves: vec![
                curve("one receipt", &xs, seed, progress, |x| trial(x, 1))?,
                curve("all of twenty", &xs, seed, progress, |x| trial(x, 20))?,
                curve("reports itself", &xs, seed, progress, |x| Trial {
                    reports_itself: true,
                    ..trial(x, 1)
                })?,
            ],
            predicted: prediction::seats(s, 1.0, 0.05).map(|a| 100.0 * a),
            formula: "q(a) = s".into(),
        });
    }
    Ok(Figure {
        name: "economics-seats",
        title: "Profit against the share of seats that collude".into(),
        x_label: "share of seats that collude, in %".into(),
        by_tens: false,
        panels,
    })
}

/// The share of wrong receipts, where the lottery's scale is right and where it is too low: a thousand receipts of a cent, a dollar at stake.
fn share(seed: u64, progress: &mut dyn FnMut(&str)) -> Result<Figure, Failure> {
    let xs = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];
    let mut panels = Vec::new();
    for percent in [100, 20] {
        let trial = |x: f64, fees: u64| {
            let mut t = Trial::new(1000, DOLLAR / 100, fees * DOLLAR / 100);
            t.parameters.rates.savingsPpm = percent * 10_000;
            t.parameters.rates.rateMinPpm = 0;
            Trial {
                share_ppm: (x * 10_000.0) as u64,
                pairs: 200,
                epochs: if x < 2.0 { 1000 } else { 100 },
                ..t
            }
        };
        panels.push(Panel {
            title: format!("savingsPpm = {percent} %"),
            y_label: PER_WRONG.into(),
            curves: vec![
                curve("F = 100 f", &xs, seed, progress, |x| trial(x, 100))?,
                curve("F = 1000 f", &xs, seed, progress, |x| trial(x, 1000))?,
                curve("F = 10 000 f", &xs, seed, progress, |x| trial(x, 10_000))?,
            ],
            predicted: None,
            formula: if percent == 100 { "never".into() } else { "at every share".into() },
        });
    }
    Ok(Figure {
        name: "economics-share",
        title: "Profit against the share of wrong receipts".into(),
        x_label: "share of receipts that are wrong, in %".into(),
        by_tens: true,
        panels,
    })
}
