//! What happened, one line for each, where somebody listens; and how a run says that it failed.

use std::fmt;

/// Hears of everything that happens. Lines begin with the epoch and the word for what happened; the same seed gives the same lines.
pub struct Events<'a> {
    sink: Option<&'a mut dyn FnMut(&str)>,
}

impl<'a> Events<'a> {
    /// Nobody listens: lines are not even made.
    pub fn none() -> Events<'a> {
        Events { sink: None }
    }

    /// Every line goes to `sink`.
    pub fn to(sink: &'a mut dyn FnMut(&str)) -> Events<'a> {
        Events { sink: Some(sink) }
    }

    /// Tells what happened in an epoch.
    pub fn tell(&mut self, epoch: u64, what: impl FnOnce() -> String) {
        if let Some(sink) = &mut self.sink {
            sink(&format!("{epoch} {}", what()));
        }
    }
}

/// Something that must always hold did not. It says how to see it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of the run.
    pub seed: u64,
    /// When.
    pub epoch: u64,
    /// What did not hold.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { seed, epoch, what } = self;
        write!(
            f,
            "seed {seed}, epoch {epoch}: {what}. The same arguments with --seed {seed} --events replay it"
        )
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_made_for_listeners_only() {
        Events::none().tell(1, || panic!("nobody listens"));
        let mut lines = Vec::new();
        let mut sink = |line: &str| lines.push(line.to_owned());
        Events::to(&mut sink).tell(7, || "posted by 3".into());
        assert_eq!(lines, ["7 posted by 3"]);
    }

    #[test]
    fn failures_say_how_to_see_them_again() {
        let failure = Failure { seed: 5, epoch: 17, what: "stakes: held 1, owed 2".into() };
        assert!(failure.to_string().contains("--seed 5"), "{failure}");
    }
}
