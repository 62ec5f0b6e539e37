//! Means of samples, and how far off they may be. Floats: nothing here pays.

/// A mean with half the width of its interval of 95 %.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// Of the sample.
    pub mean: f64,
    /// The true one is within this of it with 95 %, by the normal approximation; 0 for fewer than two numbers.
    pub spread: f64,
    /// How many numbers.
    pub count: usize,
}

impl Mean {
    /// Of independent numbers.
    pub fn of(sample: &[f64]) -> Mean {
        let n = sample.len() as f64;
        if sample.is_empty() {
            return Mean::default();
        }
        let mean = sample.iter().sum::<f64>() / n;
        let squares: f64 = sample.iter().map(|x| (x - mean).powi(2)).sum();
        let spread = if sample.len() < 2 { 0.0 } else { 1.96 * (squares / (n - 1.0) / n).sqrt() };
        Mean { mean, spread, count: sample.len() }
    }

    /// The difference of two independent means.
    pub fn less(self, other: Mean) -> Mean {
        Mean {
            mean: self.mean - other.mean,
            spread: self.spread.hypot(other.spread),
            count: self.count.min(other.count),
        }
    }

    /// `Some(true)` where the mean is above 0 and its interval does not reach it, `Some(false)` likewise below, else none.
    pub fn sign(self) -> Option<bool> {
        (self.mean.abs() > self.spread).then_some(self.mean > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_of_small_samples() {
        let mean = Mean::of(&[1.0, 2.0, 3.0, 4.0]);
        // Variance 5/3, of the mean 5/12.
        assert!(
            (mean.mean - 2.5).abs() < 1e-12 && (mean.spread - 1.96 * (5.0f64 / 12.0).sqrt()).abs() < 1e-12
        );
        assert_eq!((mean.sign(), Mean::of(&[-1.0, 1.0]).sign()), (Some(true), None));
        assert_eq!((Mean::of(&[7.0]).spread, Mean::of(&[]).count), (0.0, 0));
        let difference = Mean::of(&[1.0, 1.0]).less(Mean::of(&[4.0, 4.0]));
        assert_eq!((difference.mean, difference.sign()), (-3.0, Some(false)));
    }
}
