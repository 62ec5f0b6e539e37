//! The mean time until a release is lost, of a Markov chain: each part is lost once in a host's lifetime, each missing one comes back after a
//! mean repair time, all independent and exponentially distributed. Hosts that fail together are not in it.

/// Days until fewer than `needed` of `parts` are left, on average. Repair begins when no more than `repair_at` are left and
/// goes on until none is missing; `parts - 1` is eager repair.
pub(crate) fn days_to_loss(
    needed: u8,
    parts: u8,
    repair_at: u8,
    lifetime_days: f64,
    repair_days: f64,
) -> f64 {
    let (lost, repaired) = (1.0 / lifetime_days, 1.0 / repair_days);
    let down = |missing: u8| f64::from(parts - missing) * lost;
    let begins = parts - repair_at;

    // While it repairs, time(m) = a(m) + (1 - c(m)) time(m - 1). Only sums of positive terms, so that nothing cancels.
    let (mut a, mut c) = (0.0, 1.0);
    let mut repairing = Vec::new();
    for missing in (1..=parts - needed).rev() {
        let out = f64::from(missing) * repaired + down(missing) * c;
        (a, c) = ((1.0 + down(missing) * a) / out, down(missing) * c / out);
        repairing.push((a, c));
    }
    // From `begins` down to none missing: time(begins) = a + (1 - c) time(0).
    let (mut time, mut never_back, mut reached) = (0.0, 0.0, 1.0);
    for (a, c) in &repairing[usize::from(parts - needed - begins)..] {
        time += reached * a;
        never_back += reached * c;
        reached *= 1.0 - c;
    }
    let until_repair: f64 = (0..begins).map(|missing| 1.0 / down(missing)).sum();
    (until_repair + time) / never_back
}
