//! Who takes part in a run, with how much, and what they are up to.

use assay_ledger::contracts::Directory::Parameters;

/// A run: everything but its chance, which follows from the seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of every draw.
    pub seed: u64,
    /// Epochs with demand; two more settle what is open.
    pub epochs: u64,
    /// The deployment's numbers.
    pub parameters: Parameters,
    /// What a million gas costs, in units.
    pub gas_price: u64,
    /// What executing a receipt again costs, of what executing it cost, in millionths.
    pub audit_cost_ppm: u64,
    /// How many pay.
    pub payers: u32,
    /// What is served.
    pub models: Vec<Model>,
    /// Who serves.
    pub providers: Vec<Group<Provider>>,
    /// Who audits.
    pub auditors: Vec<Group<Auditor>>,
    /// Who hosts.
    pub hosts: Vec<Group<Host>>,
    /// Who does neither.
    pub griefers: Vec<Group<Grief>>,
}

/// Participants who do the same.
#[derive(Clone, Debug)]
pub struct Group<P> {
    /// Its name, by which results are found.
    pub name: String,
    /// How many.
    pub count: u32,
    /// What each does.
    pub plan: P,
    /// What its twin does, which is asked for the same work: for comparison.
    pub twin: Option<P>,
}

impl<P> Group<P> {
    /// A group without twins.
    pub fn new(name: &str, count: u32, plan: P) -> Group<P> {
        Group { name: name.into(), count, plan, twin: None }
    }

    /// Each with a twin.
    pub fn with_twin(name: &str, count: u32, plan: P, twin: P) -> Group<P> {
        Group { name: name.into(), count, plan, twin: Some(twin) }
    }
}

/// A model that is served.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Its owner's.
    pub royalty_ppm: u32,
    /// What keeping it costs a host an epoch, in units.
    pub storage_cost: u64,
    /// Its size.
    pub bytes: u64,
}

/// Requests of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// How many an epoch, on average.
    pub requests: u64,
    /// Of each, in units.
    pub fee: u64,
    /// What executing one costs, in units.
    pub cost: u64,
}

/// What a provider keeps at stake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing at first; released fees stay until there is this much, and what is more is taken out, as the contracts allow it.
    Grows(u64),
    /// This much in every epoch. What is more leaves at once, which no contract allows: it makes epochs of an experiment alike.
    Fixed(u64),
}

/// What a provider does.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Which model it serves.
    pub model: usize,
    /// What it is asked for.
    pub demand: Vec<Class>,
    /// Payers it has.
    pub lanes: u32,
    /// What it keeps at stake.
    pub backing: Backing,
    /// How it answers.
    pub conduct: Conduct,
    /// What a dishonest answer costs, of an honest one's cost, in millionths.
    pub cheap_ppm: u64,
    /// It is of the colluders' ring: its members of panels see nothing.
    pub ring: bool,
    /// Once the beacon tells that it will be found, it proves its guilt itself, for the reporter's part.
    pub reports_itself: bool,
    /// It has a pledge for its model, whose bytes it has anyway.
    pub pledges: bool,
    /// It signs that it fetched from that pledge what it did not.
    pub signs_for_itself: bool,
    /// Griefers choose it. What they lose is its gain, so that it is compared with nobody.
    pub griefed: bool,
}

/// How a provider answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Everything is executed.
    Honest,
    /// A share of requests, drawn at random, is not, once there is enough at stake that few receipts are drawn.
    Cheap {
        /// In millionths.
        share_ppm: u64,
        /// Stake from which it cheats, in units.
        from: u64,
    },
    /// It stops after so many epochs and comes back under another name when its stake is out. In the last one a share is not executed.
    Exits {
        /// How long it serves.
        every: u64,
        /// Of the last epoch's requests, in millionths; 0 is an honest leave.
        share_ppm: u64,
        /// It begins to take its stake out an epoch before, so that nothing backs the last batch.
        unbonds_first: bool,
    },
    /// It pays itself for so many receipts an epoch, which cost nothing to execute.
    Washes {
        /// How many.
        receipts: u64,
        /// Of each.
        fee: u64,
    },
    /// It adds so many receipts without a fee, which cost nothing to execute.
    Pads {
        /// How many.
        receipts: u64,
    },
}

/// What an auditor does.
#[derive(Clone, Copy, Debug)]
pub struct Auditor {
    /// Its seats.
    pub seats: u32,
    /// How it works.
    pub diligence: Diligence,
    /// Griefers choose it. What they lose is its gain, so that it is compared with nobody.
    pub griefed: bool,
}

/// How an auditor works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diligence {
    /// It executes everything.
    Honest,
    /// It makes up the digests of a share of its receipts.
    Lazy {
        /// In millionths.
        share_ppm: u64,
    },
    /// It reveals nothing.
    Silent,
    /// It executes everything and keeps silent about what the ring's providers did not.
    Ring,
}

/// What a host does.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// What it pledges to keep.
    pub model: usize,
    /// Names on its disk.
    pub names: u32,
    /// What it keeps.
    pub keeps: Keeps,
}

/// What a host keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Everything.
    All,
    /// A share of the chunks, and it gets the others from nobody.
    Share {
        /// In millionths.
        ppm: u64,
    },
    /// Nothing: it fetches the one chunk that it is asked for from another host.
    Nothing,
}

/// What somebody does to harm others, once an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grief {
    /// It disputes a right receipt to the end.
    Dispute,
    /// It demands a leaf of a batch that is in order.
    Demand,
    /// It accuses an auditor that has executed.
    Accusation,
    /// It enrols, posts receipts without a fee that nobody asked for, and goes.
    WorthlessBatch {
        /// How many.
        receipts: u32,
    },
}
