//! What actions cost, from the measured table of `docs/benchmarks/ledger.json`.

use serde_json::Value;

macro_rules! actions {
    ($($name:ident: $action:literal,)*) => {
        /// Gas of the actions that the model takes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Gas {
            $(#[doc = concat!("`", $action, "`.")] pub $name: u64,)*
            /// A whole dispute, both sides.
            pub dispute: u64,
        }

        impl Gas {
            /// The measured numbers.
            pub fn measured() -> Gas {
                let all: Value = serde_json::from_str(include_str!("../../docs/benchmarks/ledger.json"))
                    .expect("the committed table is JSON");
                let number = |v: &Value, what: &str| v.as_u64().unwrap_or_else(|| panic!("no gas of {what}"));
                Gas {
                    $($name: number(&all["gas"][$action], $action),)*
                    dispute: number(&all["dispute"]["gas"], "a dispute"),
                }
            }
        }
    };
}

actions! {
    enrol: "Registry.enrol",
    bond: "Registry.bond",
    unbond: "Registry.unbond",
    withdraw: "Registry.withdraw",
    fund: "Channels.deposit",
    claim: "Channels.claim",
    income: "Channels.settle",
    post: "Epochs.post",
    close: "Epochs.close",
    fix_beacon: "Epochs.fixBeacon",
    settle: "Epochs.settle",
    release: "Epochs.release",
    refund: "Epochs.refund",
    commit: "Audits.commit",
    reveal: "Audits.reveal",
    collect: "Audits.collect",
    accuse: "Audits.accuse",
    acquit: "Audits.acquit",
    lapse: "Audits.lapse",
    absence: "Audits.proveAbsence",
    open_dispute: "Disputes.open",
    timeout: "Disputes.timeout",
    conflict: "Objections.proveConflict",
    demand: "Objections.demandLeaf",
    answer_leaf: "Objections.answerLeaf",
    pledge: "Retrieval.pledge",
    answer: "Retrieval.answer",
    failure: "Retrieval.proveFailure",
    collect_pledge: "Retrieval.collect",
    served: "Retrieval.served",
    collect_served: "Retrieval.collectServed",
}

impl Gas {
    /// What the defender of a dispute pays for its claims: three quarters, the rest being the opening and the picks
    /// (`docs/benchmarks/ledger.md`).
    pub fn defence(&self) -> u64 {
        self.dispute / 4 * 3
    }

    /// What the challenger of a dispute pays that goes on to its end.
    pub fn challenge(&self) -> u64 {
        self.dispute - self.defence()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_action() {
        let gas = Gas::measured();
        assert!(gas.post > 100_000 && gas.dispute > 1_000_000, "{gas:?}");
        assert_eq!(gas.defence() + gas.challenge(), gas.dispute);
    }
}
