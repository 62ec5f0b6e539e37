//! Releases stay kept by as many hosts as was asked, without a coordinator: every host applies this rule to public facts.
//!
//! For a release the hosts are ranked by weighted rendezvous hashing (`rank`). The first that are alive, have room and failed no challenge
//! *should* keep it. A host that should and does not fetches; a host that does and should not leaves once enough better ranked hosts keep it.
//! [`Planner::step`] says so of one host; it does no I/O, and time and facts are parameters.
//!
//! What holds, whatever the facts say:
//! - A host drops a part only when [`Drop::relies_on`] have shown, at that moment, that they keep it: the caller must ask them. They
//!   are as many as the copies asked, all ranked better, and none of them is leaving.
//! - Before it drops, a host says for a notice ([`Times`]) that it is leaving. Meanwhile it is not counted, and stays if it is needed again: a host that
//!   comes and goes causes one more copy, not a storm.
//! - A silent host is replaced after [`Times::dead_after_s`], not before.
//! - A host that should keep a release and does not, for whatever reason, is stood in for by the next one after [`Times::patience_s`].
//! - A release that turns cold is cut by those who keep it whole, and they leave when every shard is kept. One that turns hot is asked for in copies
//!   once somebody keeps it whole; shards leave when the copies are there.
//! - A release that nobody asks for any more is left alone: dropping it is the operator's choice, not the planner's.

mod cold;
mod decide;
mod rank;
mod times;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use cold::{
    COLD_BYTES_MIN, COLD_CODE, COLD_COPIES_MAX, COLD_FETCHES_A_YEAR_MAX, Demand, READS_OF_A_STORED_YEAR,
};
pub use decide::should_keep;
pub use rank::{WEIGHT_BYTES, WEIGHT_MAX, weight};
pub use times::{DEAD_AFTER_S, FRESH_S, LEAVE_NOTICE_S, PATIENCE_S, TIME_MAX_S, Times, TimesError};

use times::Moment;

use crate::blob::BlobHash;
use crate::erasure::Code;

/// Most parts that one host fetches at a time.
pub const REPAIRS_MAX: usize = 4;
/// Most whole copies that may be asked.
pub const COPIES_MAX: u8 = 32;
/// Most hosts in the facts.
pub const HOSTS_MAX: usize = 1 << 16;
/// Most releases to keep.
pub const RELEASES_MAX: usize = 1 << 20;

/// A host: the address of its node's key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub [u8; 20]);

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

/// How a release is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// Hot: by this many hosts, whole.
    Copies(u8),
    /// Cold: one shard a host.
    Shards {
        /// Shards needed and shards in all.
        code: Code,
        /// Lost shards are made again when no more than this many are left, and then all of them.
        repair_at: u8,
    },
}

/// A release to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    blob: BlobHash,
    part_bytes: u64,
    keeping: Keeping,
}

/// A way of keeping that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// No copy, or too many.
    #[error("{got} copies: ask for 1 to {COPIES_MAX}")]
    Copies {
        /// Copies asked.
        got: u8,
    },
    /// Repair would begin when it is too late or when nothing is lost.
    #[error("repair at {got} of {code:?}: give at least the shards needed, and fewer than there are")]
    RepairAt {
        /// The code.
        code: Code,
        /// Where repair would begin.
        got: u8,
    },
}

impl ReleaseError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ReleaseError::Copies { .. } => "release_copies",
            ReleaseError::RepairAt { .. } => "release_repair_at",
        }
    }
}

impl Release {
    /// The release whose blob is `blob`. A host that keeps a part of it needs `part_bytes` for that.
    pub fn new(blob: BlobHash, part_bytes: u64, keeping: Keeping) -> Result<Release, ReleaseError> {
        match keeping {
            Keeping::Copies(got) if got == 0 || got > COPIES_MAX => Err(ReleaseError::Copies { got }),
            Keeping::Shards { code, repair_at: got } if got < code.needed() || got >= code.shards() => {
                Err(ReleaseError::RepairAt { code, got })
            }
            _ => Ok(Release { blob, part_bytes, keeping }),
        }
    }

    /// The whole blob's name.
    pub const fn blob(&self) -> BlobHash {
        self.blob
    }

    /// Bytes of a part.
    pub const fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// How it is to be kept.
    pub const fn keeping(&self) -> Keeping {
        self.keeping
    }

    /// How many hosts should keep a part.
    pub const fn hosts(&self) -> u8 {
        match self.keeping {
            Keeping::Copies(copies) => copies,
            Keeping::Shards { code, .. } => code.shards(),
        }
    }
}

/// What a host keeps of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The blob.
    Whole,
    /// The shard with this index.
    Shard(u8),
}

/// What a host says of a part that it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// It goes on keeping it.
    Keeps,
    /// It will drop it, unless it is needed.
    Leaves,
}

/// The public facts about a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Bytes that it offers in all. Ranks depend on this and not on what is left, which changes with every fetch.
    pub capacity: u64,
    /// Bytes of them that nothing it says it keeps occupies. What it is fetching is not subtracted.
    pub left: u64,
    /// When it was last heard of, in seconds.
    pub seen_s: u64,
    /// Which part of which release it says it keeps.
    pub keeps: BTreeMap<BlobHash, (Part, Intent)>,
    /// Releases of which it failed its last retrieval challenge: it is not counted for them, and not asked to keep them.
    pub failed: BTreeSet<BlobHash>,
}

/// Where a part can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From hosts that say they keep it, best ranked first.
    Hosts(Vec<HostId>),
    /// It is a shard that nobody keeps, and these hosts keep the whole blob, of which it is cut.
    Wholes(Vec<HostId>),
    /// It is nowhere: it is made of these shards, as many of them as are needed.
    Shards(Vec<(u8, HostId)>),
}

/// A part to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The release.
    pub release: BlobHash,
    /// Which part.
    pub part: Part,
    /// Where it can be had.
    pub from: Source,
    /// How many hosts may still be lost before nobody can restore the release.
    pub spare: u8,
}

/// A part that may be dropped, as soon as others have shown that they keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// The release.
    pub release: BlobHash,
    /// Which part.
    pub part: Part,
    /// Who must answer a challenge for what it keeps now, and say that it is not leaving, before the part is dropped.
    pub relies_on: Vec<HostId>,
}

/// What a host should do. What it keeps is in exactly one of `keep`, `leave` and `unasked`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To fetch now, most urgent first, at most [`REPAIRS_MAX`]. What is not in here any more may be given up.
    pub fetch: Vec<Fetch>,
    /// To keep, and to say so.
    pub keep: Vec<(BlobHash, Part)>,
    /// To say that it is leaving.
    pub leave: Vec<(BlobHash, Part)>,
    /// Of `leave`, what may be dropped.
    pub drop: Vec<Drop>,
    /// Kept, but no release to keep.
    pub unasked: Vec<BlobHash>,
    /// Releases of which the known live hosts keep too little.
    pub lost: Vec<BlobHash>,
    /// How many copies, or different shards, of each release live hosts say they keep and go on keeping.
    pub counted: BTreeMap<BlobHash, u8>,
}

/// Facts that no plan is made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More hosts than the planner takes.
    #[error("{got} hosts are more than {HOSTS_MAX}: leave out the dead")]
    Hosts {
        /// Hosts given.
        got: usize,
    },
    /// More releases than the planner takes.
    #[error("{got} releases are more than {RELEASES_MAX}")]
    Releases {
        /// Releases given.
        got: usize,
    },
    /// The facts do not say what this host keeps.
    #[error("the facts do not name {me:?}, whose plan this is")]
    Me {
        /// This host.
        me: HostId,
    },
}

impl PlanError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            PlanError::Hosts { .. } => "plan_hosts",
            PlanError::Releases { .. } => "plan_releases",
            PlanError::Me { .. } => "plan_me",
        }
    }
}

/// What one host remembers between steps. Losing it, at a restart, delays and costs nothing else.
#[derive(Clone, Debug)]
pub struct Planner {
    me: HostId,
    times: Times,
    memory: BTreeMap<BlobHash, Memory>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    /// Since when too few keep it, and those who should have been given their chance.
    short_since: Option<u64>,
    /// Since when this host says that it is leaving.
    leaving_since: Option<u64>,
    /// The part that it was told to fetch.
    fetching: Option<Part>,
}

impl Planner {
    /// The planner of host `me`. All hosts of a network must have the same times.
    pub fn new(me: HostId, times: Times) -> Planner {
        Planner { me, times, memory: BTreeMap::new() }
    }

    /// What to do at `now_s`, given all releases to keep and all known hosts, this one included with what it really keeps. The facts may be
    /// shared (`Arc<Host>`).
    pub fn step<H: Borrow<Host>>(
        &mut self,
        now_s: u64,
        releases: &[Release],
        hosts: &BTreeMap<HostId, H>,
    ) -> Result<Plan, PlanError> {
        if hosts.len() > HOSTS_MAX {
            return Err(PlanError::Hosts { got: hosts.len() });
        }
        if releases.len() > RELEASES_MAX {
            return Err(PlanError::Releases { got: releases.len() });
        }
        let me: &Host = hosts.get(&self.me).ok_or(PlanError::Me { me: self.me })?.borrow();

        let at = Moment { times: self.times, now_s };
        let mut plan = Plan::default();
        let mut wanted: Vec<(Fetch, u64, bool)> = Vec::new();
        let mut memory = BTreeMap::new();
        for release in releases {
            if memory.contains_key(&release.blob) {
                continue;
            }
            let mut remembered = self.memory.get(&release.blob).copied().unwrap_or_default();
            let decision = decide::decide(release, hosts, self.me, at, &mut remembered);
            plan.counted.insert(release.blob, decision.counted);
            if decision.lost {
                plan.lost.push(release.blob);
            }
            if let Some((part, _)) = me.keeps.get(&release.blob) {
                match remembered.leaving_since {
                    Some(_) => plan.leave.push((release.blob, *part)),
                    None => plan.keep.push((release.blob, *part)),
                }
            }
            plan.drop.extend(decision.drop);
            if let Some(fetch) = decision.fetch {
                let begun = remembered.fetching == Some(fetch.part);
                wanted.push((fetch, release.part_bytes, begun));
            }
            remembered.fetching = None;
            memory.insert(release.blob, remembered);
        }
        plan.unasked = me.keeps.keys().filter(|blob| !memory.contains_key(*blob)).copied().collect();

        // What was begun goes on: a plan that changes its mind at every step would finish nothing.
        wanted.sort_by_key(|(fetch, _, begun)| (!begun, fetch.spare, fetch.release));
        let mut left = me.left;
        for (fetch, bytes, _) in wanted {
            if plan.fetch.len() == REPAIRS_MAX {
                break;
            }
            let Some(after) = left.checked_sub(bytes) else { continue };
            left = after;
            memory.entry(fetch.release).or_default().fetching = Some(fetch.part);
            plan.fetch.push(fetch);
        }
        plan.fetch.sort_by_key(|fetch| (fetch.spare, fetch.release));
        memory.retain(|_, remembered| *remembered != Memory::default());
        self.memory = memory;
        Ok(plan)
    }
}
