//! The strategies of the whole network, whom each is compared with, and what `docs/economics.md` says of it.

/// Whom a strategy is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// Its own twin, asked for the same work.
    Twin,
    /// Another team, whose draws are its own.
    Team(&'static str),
    /// It is what others are compared with.
    Nobody,
}

/// One strategy.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its team in the scenario.
    pub team: &'static str,
    /// Whom it is compared with.
    pub against: Against,
    /// What the document says of its gain.
    pub predicted: &'static str,
    /// What it needs to pay, should it do so.
    pub condition: &'static str,
}

const fn case(
    team: &'static str,
    against: Against,
    predicted: &'static str,
    condition: &'static str,
) -> Case {
    Case { team, against, predicted, condition }
}

const HONEST_AUDITOR: Against = Against::Team("honest auditor");
const HONEST_HOST: Against = Against::Team("honest host 0");
const CHEAP: &str = "loses: s = 0.57 < q (section 2)";

/// All of them.
pub const CASES: &[Case] = &[
    case("cheap model, 1 in 1000", Against::Twin, CHEAP, ""),
    case("cheap model, 1 %", Against::Twin, CHEAP, ""),
    case("cheap model, 10 %", Against::Twin, CHEAP, ""),
    case("cheap model, everything", Against::Twin, CHEAP, ""),
    case("cheap model once rich, 1 in 1000", Against::Twin, CHEAP, ""),
    case("cheap model once rich, everything", Against::Twin, CHEAP, ""),
    case("cheap model, 1 of 40 large jobs", Against::Twin, CHEAP, ""),
    case(
        "cheap model, reports itself",
        Against::Twin,
        "loses; the reporter's part is not in the inequality",
        "",
    ),
    case(
        "cheats and exits, everything",
        Against::Twin,
        "loses: what is open is settled first (section 2)",
        "",
    ),
    case("cheats and exits, 5 %", Against::Twin, "loses: splitting gains nothing", ""),
    case(
        "cheats and exits, unbonds first",
        Against::Twin,
        "loses: what unbonds backs nothing, so p rises",
        "",
    ),
    case("colluding pair, 10 %", Against::Twin, "loses: s = 0.57 < q = 0.81 at a fifth of the seats", ""),
    case("colluding pair, 1 of 40 large jobs", Against::Twin, "loses: s = 0.57 < q = 0.81", ""),
    case("wash demand", Against::Twin, "loses at least 3 % of what it pays itself (section 8)", ""),
    case(
        "hosts what it serves",
        Against::Twin,
        "(not considered)",
        "A provider has the model on its disk and needs only a pledge's stake: it earns a share of the pool that honest hosts pay a disk for.",
    ),
    case(
        "signs false fetch receipts",
        Against::Twin,
        "gains up to 1.5 % of its fees (section 8)",
        "It needs a pledge of its own; the gain is bounded by `fetchedPpm` of the hosts' part of its own fees, and is what those who did serve it do not get.",
    ),
    case("honest auditor", Against::Nobody, "", ""),
    case("lazy auditor, everything", HONEST_AUDITOR, "loses for fees below 10 dollars (section 6)", ""),
    case("lazy auditor, 10 %", HONEST_AUDITOR, "loses for fees below 10 dollars", ""),
    case("silent auditor", HONEST_AUDITOR, "loses 5 dollars and its part (section 6)", ""),
    case(
        "colluding auditor",
        HONEST_AUDITOR,
        "(the pair's gain is the provider's)",
        "It executes everything, so that nobody can accuse it; the provider shares what it saves.",
    ),
    case("honest host 0", Against::Nobody, "", ""),
    case(
        "hosts nothing",
        HONEST_HOST,
        "gains its disk and loses what follows bytes (section 8)",
        "Somebody else must keep the content and hand out one chunk within `retrievalSeconds`; its disk must cost more than what it would have served.",
    ),
    case("hosts 90 %", HONEST_HOST, "loses: a disk costs less than 10 dollars a day", ""),
    case(
        "ten names on one disk",
        HONEST_HOST,
        "gains: one disk under two names is paid twice (section 8)",
        "Each name needs a pledge's stake and must answer; a name pays as long as its share of the pool is more than the gas of its answers and what the stake would earn elsewhere (which is not counted here).",
    ),
];

/// The heading of a table, and what it shows.
pub(super) fn table_text(name: &str) -> (&'static str, &'static str) {
    match name {
        "audit_pay" => (
            "What an audit is paid, and what it costs",
            "In fees of the audited receipts, summed over batches. Section 5 asks that one audit is paid at least `c · f`, `c` = 20 %, at any rate, and that `c` covers `ρ · cost / fee · (1 + σ)`; with \
             the ρ that was measured (75 % here) and a cost of 60 % of the fee, an audit costs 45 %. *Mixed*: nine of ten receipts are of a tenth of the mean, one is of nine times the mean.",
        ),
        "padding" => (
            "Receipts without a fee",
            "Forty receipts of two dollars a day, two dollars at stake. The auditors' part follows the rate of the **mean** fee, the lottery that of each receipt: free receipts lower the part and leave \
             the work.",
        ),
        "refunds" => (
            "What payers get back",
            "Of the fees of a provider without stake, all of whose batches are found wrong. A refund is asked for receipt by receipt, and costs its gas; of what it brings, the auditors' part is taken off.",
        ),
        "host_names" => (
            "Names on one disk",
            "A listing with 300 dollars of fees a day, a hundred hosts, a disk of five cents an epoch. Stake is not charged for.",
        ),
        "host_chunks" => (
            "Chunks that are not kept",
            "Section 8: keeping half of them pays where the disk costs more than `ρ · pledgeStake` = 10 dollars an epoch; predicted is `(1 - k) (S - ρ · pledgeStake)`.",
        ),
        _ => (
            "Griefing, by the price of gas",
            "Dollars for one act, at 2500 dollars an ether. A negative harm is a gain: the bond is more than the gas.",
        ),
    }
}
