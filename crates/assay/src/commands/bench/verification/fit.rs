//! Power laws fitted to measurements: least squares on logarithms, and how sure the exponent is.

/// Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom (beyond, the normal distribution's is used).
const T_95: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
const NORMAL_95: f64 = 1.960;

/// `y = factor · x^exponent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerLaw {
    pub exponent: f64,
    pub factor: f64,
    /// Half of the exponent's 95 % confidence interval; none of two points.
    pub margin: Option<f64>,
    /// Points that were fitted.
    pub points: usize,
}

impl PowerLaw {
    /// Fits points with positive coordinates; `None` for fewer than two different `x`.
    pub fn fit(points: impl IntoIterator<Item = (f64, f64)>) -> Option<PowerLaw> {
        let logs: Vec<(f64, f64)> =
            points.into_iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
        let n = logs.len() as f64;
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / n;
        let (x_mean, y_mean) = (mean(&|p| p.0), mean(&|p| p.1));
        let spread: f64 = logs.iter().map(|p| (p.0 - x_mean).powi(2)).sum();
        if logs.len() < 2 || spread <= 0.0 {
            return None;
        }
        let exponent = logs.iter().map(|p| (p.0 - x_mean) * (p.1 - y_mean)).sum::<f64>() / spread;
        let left: f64 = logs.iter().map(|p| (p.1 - y_mean - exponent * (p.0 - x_mean)).powi(2)).sum();
        let margin = logs.len().checked_sub(2).filter(|free| *free > 0).map(|free| {
            let quantile = T_95.get(free - 1).copied().unwrap_or(NORMAL_95);
            quantile * (left / free as f64 / spread).sqrt()
        });
        let factor = (y_mean - exponent * x_mean).exp();
        Some(PowerLaw { exponent, factor, margin, points: logs.len() })
    }

    /// `1.23 ± 0.04`.
    pub fn shown(&self) -> String {
        match self.margin {
            Some(margin) => format!("{:.2} ± {margin:.2}", self.exponent),
            None => format!("{:.2}", self.exponent),
        }
    }
}

/// Where two curves through the same `x` cross, linear in logarithms between two points: each place at which the first goes
/// from above the second to below it.
pub fn crossings(first: &[(f64, f64)], second: &[(f64, f64)]) -> Vec<f64> {
    let above: Vec<(f64, f64)> = first
        .iter()
        .filter_map(|(x, y)| {
            let (_, z) = second.iter().find(|(at, _)| at == x)?;
            Some((x.ln(), y.ln() - z.ln()))
        })
        .collect();
    above
        .windows(2)
        .filter(|pair| pair[0].1 > 0.0 && pair[1].1 <= 0.0)
        .map(|pair| {
            let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
            (x0 + (x1 - x0) * y0 / (y0 - y1)).exp()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [f64; 9] = [64.0, 128.0, 288.0, 576.0, 960.0, 2048.0, 3072.0, 4096.0, 8192.0];

    #[test]
    fn exponents_are_recovered() {
        for exponent in [-1.0, 0.0, 0.87, 2.0] {
            let law = PowerLaw::fit(WIDTHS.map(|d| (d, 3e-4 * d.powf(exponent)))).unwrap();
            assert!((law.exponent - exponent).abs() < 1e-9 && (law.factor - 3e-4).abs() < 1e-9, "{law:?}");
            assert!(law.margin.unwrap() < 1e-6 && law.points == 9);
        }
    }

    /// With noise of a known size, intervals hold the true exponent about 95 times in 100.
    #[test]
    fn intervals_hold_the_exponent_as_often_as_they_say() {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        // Sums of uniform numbers are close enough to normal.
        let mut noise = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
        let held = (0..2000)
            .filter(|_| {
                let law = PowerLaw::fit(WIDTHS.map(|d| (d, d.powf(1.5) * (0.2 * noise()).exp()))).unwrap();
                (law.exponent - 1.5).abs() <= law.margin.unwrap()
            })
            .count();
        assert!((1860..1940).contains(&held), "{held} of 2000");
    }

    #[test]
    fn too_little_is_not_fitted() {
        assert_eq!(PowerLaw::fit([]), None);
        assert_eq!(PowerLaw::fit([(2.0, 1.0), (2.0, 3.0)]), None);
        assert_eq!(PowerLaw::fit([(1.0, 1.0), (0.0, 3.0)]), None);
        let two = PowerLaw::fit([(1.0, 1.0), (4.0, 16.0)]).unwrap();
        assert_eq!((two.shown().as_str(), two.margin), ("2.00", None));
    }

    #[test]
    fn crossings_lie_between_points() {
        let first: Vec<_> = WIDTHS.map(|d| (d, 100.0 * d)).into();
        let second: Vec<_> = WIDTHS.map(|d| (d, d * d / 5.0)).into();
        let found = crossings(&first, &second);
        assert!(found.len() == 1 && (found[0] - 500.0).abs() < 1.0, "{found:?}");
        assert!(crossings(&second, &first).is_empty());
    }
}
