//! Whether a key may begin a request now. Pure: what the tables say comes in, what they will say comes out.

use super::{Limits, MicroUsd, Refused};

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;
const MINUTE_MS: i64 = 60_000;

/// The day of a time, since 1970.
pub(super) fn day(now_ms: i64) -> i64 {
    now_ms.div_euclid(DAY_MS)
}

/// What a key has used of its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// When the next request would be due at an even pace.
    pub due_ms: i64,
    /// The day that `day_spent` is of.
    pub day: i64,
    /// Held and charged on it.
    pub day_spent: i64,
    /// Requests that run.
    pub running: i64,
}

/// What it has used if it begins a request of at most `amount` now.
///
/// The limit per minute is a bucket of a minute's requests that fills evenly (the generic cell rate algorithm): a burst of that many is taken
/// at once, and then one each time that it is due.
pub(super) fn admit(limits: &Limits, used: Used, amount: MicroUsd, now_ms: i64) -> Result<Used, Refused> {
    let mut after = used;
    if let Some(most) = limits.at_once
        && used.running >= i64::from(most)
    {
        return Err(Refused::AtOnce { most });
    }
    after.running = used.running.saturating_add(1);
    if let Some(most) = limits.per_minute {
        let due_ms = used.due_ms.max(now_ms).saturating_add(MINUTE_MS / i64::from(most).max(1));
        let early_ms = due_ms.saturating_sub(now_ms).saturating_sub(MINUTE_MS);
        if early_ms > 0 {
            return Err(Refused::PerMinute { most, wait_ms: early_ms.unsigned_abs() });
        }
        after.due_ms = due_ms;
    }
    after.day = day(now_ms);
    let before = if used.day == after.day { used.day_spent } else { 0 };
    after.day_spent = before.saturating_add(amount.column());
    if let Some(most) = limits.per_day
        && after.day_spent > most.column()
    {
        let spent = MicroUsd::from_column(before);
        let wait_ms = ((after.day.saturating_add(1)).saturating_mul(DAY_MS) - now_ms).unsigned_abs();
        return Err(Refused::PerDay { most, spent, needed: amount, wait_ms });
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    #[test]
    fn a_minute_takes_its_burst_and_then_one_at_a_time() {
        let limits = Limits { per_minute: Some(60), ..Limits::default() };
        let mut used = Used::default();
        for _ in 0..60 {
            used = Used { running: 0, ..admit(&limits, used, MicroUsd(0), NOW).unwrap() };
        }
        assert_eq!(
            admit(&limits, used, MicroUsd(0), NOW),
            Err(Refused::PerMinute { most: 60, wait_ms: 1_000 })
        );
        assert!(admit(&limits, used, MicroUsd(0), NOW + 999).is_err());
        used = admit(&limits, used, MicroUsd(0), NOW + 1_000).unwrap();
        assert!(admit(&limits, used, MicroUsd(0), NOW + 1_001).is_err());
        // A minute of silence gives the whole burst again, and no more.
        let mut count = 0;
        while let Ok(next) = admit(&limits, used, MicroUsd(0), NOW + 120_000) {
            (used, count) = (next, count + 1);
        }
        assert_eq!(count, 60);
    }

    #[test]
    fn a_day_ends_at_midnight() {
        let limits = Limits { per_day: Some(MicroUsd(100)), ..Limits::default() };
        let late = day(NOW) * DAY_MS + DAY_MS - 1;
        let used = admit(&limits, Used::default(), MicroUsd(100), late).unwrap();
        let refused = admit(&limits, used, MicroUsd(1), late).unwrap_err();
        assert_eq!(
            refused,
            Refused::PerDay { most: MicroUsd(100), spent: MicroUsd(100), needed: MicroUsd(1), wait_ms: 1 }
        );
        assert_eq!(admit(&limits, used, MicroUsd(100), late + 1).unwrap().day_spent, 100);
    }

    #[test]
    fn as_many_run_as_are_allowed() {
        let limits = Limits { at_once: Some(2), ..Limits::default() };
        let one = admit(&limits, Used::default(), MicroUsd(1), NOW).unwrap();
        let two = admit(&limits, one, MicroUsd(1), NOW).unwrap();
        assert_eq!(admit(&limits, two, MicroUsd(1), NOW), Err(Refused::AtOnce { most: 2 }));
        assert!(admit(&Limits::default(), Used { running: 1_000_000, ..two }, MicroUsd(1), NOW).is_ok());
    }
}
