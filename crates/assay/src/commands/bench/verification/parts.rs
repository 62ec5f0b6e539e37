//! Work divided into what it was spent on.

use std::collections::BTreeMap;
use std::time::Instant;

use assay_engine::program::{Head, Op, Program};

use super::clock::median;

/// Milliseconds by what they were spent on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts(BTreeMap<&'static str, f64>);

impl Parts {
    /// All of it on one thing.
    pub fn of(name: &'static str, ms: f64) -> Parts {
        Parts(BTreeMap::from([(name, ms)]))
    }

    pub fn add(&mut self, name: &'static str, ms: f64) {
        *self.0.entry(name).or_default() += ms;
    }

    /// Replaces what a thing took.
    pub fn set(&mut self, name: &'static str, ms: f64) {
        self.0.insert(name, ms);
    }

    /// Takes a thing out, and says what it took.
    pub fn take(&mut self, name: &str) -> f64 {
        self.0.remove(name).unwrap_or(0.0)
    }

    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    pub fn total(&self) -> f64 {
        self.0.values().sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.0.iter().map(|(name, ms)| (*name, *ms))
    }

    pub fn times(&self, factor: f64) -> Parts {
        Parts(self.iter().map(|(name, ms)| (name, ms * factor)).collect())
    }

    /// In the same proportions, with another sum.
    pub fn scaled_to(&self, total: f64) -> Parts {
        let now = self.total();
        if now > 0.0 { self.times(total / now) } else { Parts::of("all", total) }
    }

    pub fn plus(mut self, other: &Parts) -> Parts {
        other.iter().for_each(|(name, ms)| self.add(name, ms));
        self
    }

    /// `(self - less) · factor`, no part below nothing: what is measured is never quite the same twice.
    pub fn beyond(&self, less: &Parts, factor: f64) -> Parts {
        Parts(self.iter().map(|(name, ms)| (name, ((ms - less.get(name)) * factor).max(0.0))).collect())
    }

    /// The median of the sums, divided as the medians of the parts are.
    pub fn median(rounds: &[Parts]) -> Parts {
        let mut middle = Parts::default();
        for name in rounds.iter().flat_map(|r| r.0.keys().copied()) {
            middle.set(name, median(rounds.iter().map(|r| r.get(name)).collect()));
        }
        middle.scaled_to(median(rounds.iter().map(Parts::total).collect()))
    }
}

/// A stopwatch. It runs by the clock, which costs least to ask: what it says are proportions.
pub struct Laps {
    last: Instant,
    pub parts: Parts,
}

impl Laps {
    pub fn new() -> Laps {
        Laps { last: Instant::now(), parts: Parts::default() }
    }

    /// What was done since the last lap was this.
    pub fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.parts.add(name, (now - self.last).as_secs_f64() * 1e3);
        self.last = now;
    }
}

/// What an operation is, for people.
pub fn kind(program: &Program, op: usize) -> &'static str {
    let in_head = matches!(program.head, Head::Tokens { hidden, .. } if op > usize::from(hidden));
    match program.ops[op] {
        _ if in_head => "head",
        Op::MatMul { .. } => "products",
        Op::Attend { .. } => "attention",
        Op::Embed { .. } | Op::Position { .. } => "embedding",
        _ => "elementwise",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(a: f64, b: f64) -> Parts {
        Parts::of("a", a).plus(&Parts::of("b", b))
    }

    #[test]
    fn layers_are_multiplied_and_the_rest_is_not() {
        let (some, none) = (parts(30.0, 5.0), parts(10.0, 6.0));
        assert_eq!(some.beyond(&none, 4.0), parts(80.0, 0.0));
        assert_eq!(some.beyond(&none, 4.0).plus(&none), parts(90.0, 6.0));
        assert_eq!(parts(1.0, 3.0).scaled_to(8.0), parts(2.0, 6.0));
    }

    #[test]
    fn medians_keep_their_sum() {
        let rounds = [parts(1.0, 9.0), parts(2.0, 2.0), parts(9.0, 2.0)];
        let middle = Parts::median(&rounds);
        assert!((middle.total() - 10.0).abs() < 1e-9 && (middle.get("a") - 5.0).abs() < 1e-9, "{middle:?}");
    }
}
