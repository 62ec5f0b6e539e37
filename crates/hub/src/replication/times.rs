//! The times of the rule. They are a value and no constants for networks of one's own, where four hours of silence are too long.
//!
//! All hosts of a network must have the same: one that counts others as dead earlier than they count each other fetches what nobody
//! misses, and one that leaves without the others' notice leaves before they have seen it.

/// A host is dead after this long without a sign of life.
pub const DEAD_AFTER_S: u64 = 4 * 3600;
/// A host may be relied on for this long after a sign of life: a sixteenth of [`DEAD_AFTER_S`].
pub const FRESH_S: u64 = DEAD_AFTER_S / FRESH_PARTS;
/// How long a host says that it is leaving before it drops a part that others keep.
pub const LEAVE_NOTICE_S: u64 = 24 * 3600;
/// How long those who should keep a release have, before each next host in the ranking stands in.
pub const PATIENCE_S: u64 = 6 * 3600;
/// Longest of any of the times.
pub const TIME_MAX_S: u64 = 366 * 24 * 3600;

const FRESH_PARTS: u64 = 16;

/// When hosts are given up, stood in for, and let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    dead_after_s: u64,
    patience_s: u64,
    leave_notice_s: u64,
}

/// Times with which the rule does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a silence of {dead_after_s} s, a patience of {patience_s} s and a notice of {leave_notice_s} s do not go together: each has at least \
     1 s, none is shorter than the one before, and none is longer than {TIME_MAX_S} s"
)]
pub struct TimesError {
    dead_after_s: u64,
    patience_s: u64,
    leave_notice_s: u64,
}

impl TimesError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        "replication_times"
    }
}

impl Times {
    /// Those that hosts have unless they are told others.
    pub const DEFAULT: Times =
        Times { dead_after_s: DEAD_AFTER_S, patience_s: PATIENCE_S, leave_notice_s: LEAVE_NOTICE_S };

    /// The silence after which a host is dead, the patience with those who should keep a release, and the notice before one leaves.
    ///
    /// The patience is no shorter than the silence, so that a host that died is replaced once, by the ranking, and not stood in for besides.
    /// The notice is no shorter than the patience, so that a copy too many does not go faster than it would be made again.
    pub const fn new(dead_after_s: u64, patience_s: u64, leave_notice_s: u64) -> Result<Times, TimesError> {
        let rising = 1 <= dead_after_s && dead_after_s <= patience_s && patience_s <= leave_notice_s;
        if rising && leave_notice_s <= TIME_MAX_S {
            Ok(Times { dead_after_s, patience_s, leave_notice_s })
        } else {
            Err(TimesError { dead_after_s, patience_s, leave_notice_s })
        }
    }

    /// A host is dead after so many seconds without a sign of life.
    pub const fn dead_after_s(self) -> u64 {
        self.dead_after_s
    }

    /// A host may be relied on for so many seconds after a sign of life.
    pub const fn fresh_s(self) -> u64 {
        self.dead_after_s / FRESH_PARTS
    }

    /// For so many seconds those who should keep a release are waited for.
    pub const fn patience_s(self) -> u64 {
        self.patience_s
    }

    /// For so many seconds a host says that it is leaving.
    pub const fn leave_notice_s(self) -> u64 {
        self.leave_notice_s
    }
}

/// A point in time, by the times of the rule.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) times: Times,
    pub(super) now_s: u64,
}

impl Moment {
    /// Seconds since then.
    pub(super) const fn since(self, then_s: u64) -> u64 {
        self.now_s.saturating_sub(then_s)
    }

    /// Whether a host that was heard of then is not dead.
    pub(super) const fn is_alive(self, seen_s: u64) -> bool {
        self.since(seen_s) <= self.times.dead_after_s
    }

    /// Whether a host that was heard of then may be relied on.
    pub(super) const fn is_fresh(self, seen_s: u64) -> bool {
        self.since(seen_s) <= self.times.fresh_s()
    }
}

impl Default for Times {
    fn default() -> Times {
        Times::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_rise() {
        assert_eq!(Times::new(DEAD_AFTER_S, PATIENCE_S, LEAVE_NOTICE_S), Ok(Times::DEFAULT));
        assert_eq!(Times::DEFAULT.fresh_s(), FRESH_S);
        assert!(Times::new(1, 1, 1).is_ok() && Times::new(1, 2, TIME_MAX_S).is_ok());
        for (dead, patience, notice) in [
            (0, 1, 1),
            (2, 1, 2),
            (2, 2, 1),
            (1, 3, 2),
            (1, 2, TIME_MAX_S + 1),
            (u64::MAX, u64::MAX, u64::MAX),
        ] {
            let e = Times::new(dead, patience, notice).unwrap_err();
            assert_eq!(e.code(), "replication_times");
        }
    }
}
