//! What `docs/economics.md` predicts: its inequalities, solved for the number at which honesty begins to pay. Floats: nothing here pays.

/// The chance that a drawn wrong receipt is found, with a share `seats` of the seats colluding and a second auditor for `second` of the drawn
/// (section 2): `1 - a + a σ (1 - a)`.
pub fn found(seats: f64, second: f64) -> f64 {
    1.0 - seats + seats * second * (1.0 - seats)
}

/// The lottery's scale (`savingsPpm`, as a share) from which cheating does not pay: `s / q`.
pub fn savings(saved: f64, found: f64) -> f64 {
    saved / found
}

/// The rate from which cheating does not pay, with so many fees at stake: `p = (s / q) f / (f + F)`.
pub fn rate(saved: f64, found: f64, fees: f64) -> f64 {
    saved / found / (1.0 + fees)
}

/// The share of seats up to which cheating does not pay at a given scale: where [`found`] falls to `s / savings`. None where it never does.
pub fn seats(saved: f64, savings: f64, second: f64) -> Option<f64> {
    let enough = |a: f64| savings * found(a, second) >= saved;
    (0..=1000).map(|i| f64::from(i) / 1000.0).find(|a| !enough(*a))
}

/// What must be at stake, in fees, so that cheating does not pay at a rate that is the same for all: `p q (f + F) = s f`.
pub fn backing(saved: f64, found: f64, rate: f64) -> f64 {
    saved / (rate * found) - 1.0
}

/// The fee, in units of what is at stake, up to which cheating does not pay at a rate that is the same for all.
pub fn fee(saved: f64, found: f64, rate: f64) -> f64 {
    1.0 / backing(saved, found, rate)
}

/// The fee up to which making a digest up does not pay (section 6), in units of the penalty: `σ h L = c f (1 - σ h)`.
pub fn lazy_fee(second: f64, honest: f64, audit_cost: f64) -> f64 {
    let doubted = second * honest;
    doubted / (audit_cost * (1.0 - doubted))
}

/// What a host must save by not keeping a model, an epoch, so that it pays (section 8), in units of the pledge's stake.
pub fn storage(asked: f64) -> f64 {
    asked
}

/// What the contracts' arithmetic says of one epoch of a provider, beyond the document's inequality: it loses all that is at stake and its part of the
/// whole batch, once, however many are found.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    /// Receipts, of one fee.
    pub receipts: f64,
    /// The chance that one of them is wrong.
    pub wrong: f64,
    /// That the lottery draws one.
    pub drawn: f64,
    /// That a drawn wrong one is found.
    pub found: f64,
    /// What a wrong one saves.
    pub saved: f64,
    /// What is lost when one is found.
    pub lost: f64,
}

impl Epoch {
    /// The chance that the provider is found.
    pub fn struck(&self) -> f64 {
        1.0 - (1.0 - self.wrong * self.drawn * self.found).powf(self.receipts)
    }

    /// What cheating gains on average.
    pub fn gain(&self) -> f64 {
        self.receipts * self.wrong * self.saved - self.struck() * self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_own_numbers() {
        assert!((found(0.2, 0.05) - 0.808).abs() < 1e-12);
        assert!((lazy_fee(0.05, 0.8, 0.2) * 4.8 - 1.0).abs() < 0.001);
        // At p = 1 % a provider needs about 80 fees.
        assert!((backing(0.8, 1.0, 0.01) - 79.0).abs() < 1e-9);
        assert!((seats(0.8, 1.0, 0.05).unwrap() - 0.209).abs() < 0.002);
        assert_eq!(seats(0.0, 1.0, 0.05), None);
        assert!((fee(0.8, 1.0, 0.01) * 79.0 - 1.0).abs() < 1e-9);
        assert!((rate(1.0, 1.0, 99.0) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn one_receipt_is_the_documents_inequality() {
        // p = f / (f + F), q = 1: the gain is s f - f.
        let epoch = Epoch { receipts: 1.0, wrong: 1.0, drawn: 0.01, found: 1.0, saved: 0.5, lost: 100.0 };
        assert!((epoch.gain() + 0.5).abs() < 1e-12);
    }
}
