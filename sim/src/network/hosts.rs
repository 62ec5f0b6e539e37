//! Hosts: each pledges to keep the model's content, answers what beacons ask of it, shows the silence of others, and collects.
//!
//! The rule is that of the daemon's round (`assay_node::host::duties`), which has no state of its own but the ledger and the disk: every question that is open is
//! answered, or shown to have had no answer when its time is over.

use std::sync::LazyLock;

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolCall;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_ledger::contracts::{Registry, Retrieval, b256};

use super::chain::{Actor, Chain};
use super::model;
use super::provider::enrol;
use super::wire::Who;
use super::{Held, Mutant, Options, World};
use crate::random::Random;

/// Leaves of the model's content.
const CHUNKS: u64 = 8;
/// What the model's author takes of its fees, in millionths.
const ROYALTY_PPM: u32 = 50_000;
/// Epochs back for which questions are looked for.
const EPOCHS_BACK: u64 = 16;
/// It is collected when at least so much is there, in millionths of a dollar.
const COLLECT_MIN: u64 = 10_000;

/// A host.
pub(super) struct Host {
    pub(super) actor: Actor,
    /// Whether its disk has lost the content.
    pub(super) has_lost: bool,
    /// Questions that were dealt with.
    settled: std::collections::BTreeSet<(usize, u64)>,
}

static AUTHOR: LazyLock<Address> = LazyLock::new(|| Actor::named("author").address);

/// Who listed the model.
pub(super) fn author() -> Address {
    *AUTHOR
}

fn chunk(index: u64) -> Vec<u8> {
    vec![index as u8; 100]
}

fn leaves() -> Vec<Hash> {
    (0..CHUNKS).map(|i| merkle::leaf(&chunk(i))).collect()
}

fn root() -> B256 {
    B256::from(*model::root().as_bytes())
}

/// All hosts, with their pledges.
pub(super) fn all(chain: &mut Chain, options: &Options, random: &mut Random) -> Vec<Host> {
    let list = Registry::listCall {
        modelRoot: root(),
        royaltyPpm: ROYALTY_PPM,
        contentRoot: b256(&merkle::root(leaves())),
        chunks: CHUNKS,
        manifest: String::new(),
    };
    chain.rich(author(), 1);
    chain.begin(author(), chain.parts.at.registry, &list);
    let lossy = usize::from(options.liars && random.below(2) == 0);
    let host = |i: usize| {
        let actor = Actor::named(&format!("host {i}"));
        enrol(chain, &actor, 2, 60, 0);
        let call = Retrieval::pledgeCall { host: actor.address, modelRoot: root(), listing: author() };
        chain.begin(actor.address, chain.parts.at.retrieval, &call);
        Host { actor, has_lost: i >= 2, settled: Default::default() }
    };
    (0..2 + lossy).map(host).collect()
}

impl World<'_> {
    pub(super) fn host_round(&mut self, i: usize) -> Held {
        let who = Who::Host(i);
        if !self.is_clear(who) {
            return Ok(());
        }
        let at = self.chain.parts.at.retrieval;
        let (me, epoch, now) = (self.hosts[i].actor.address, self.chain.epoch(), self.chain.time_s());
        let (model, listing) = (root(), author());
        let silent = self.hosts[i].has_lost || self.options.mutant == Some(Mutant::AnswersNothing);
        let mut calls: Vec<(String, Vec<u8>)> = Vec::new();
        for epoch in epoch.saturating_sub(EPOCHS_BACK)..epoch {
            for h in 0..self.hosts.len() {
                if self.hosts[i].settled.contains(&(h, epoch)) {
                    continue;
                }
                let host = self.hosts[h].actor.address;
                let call = Retrieval::questionForCall { host, modelRoot: model, listing, epoch };
                // No beacon: it asks nobody yet.
                let Ok(asked) = self.chain.view(at, &call) else { continue };
                let key = self.chain.read(at, &Retrieval::pledgeKeyCall { host, modelRoot: model, listing });
                let call = Retrieval::isAnsweredCall { pledgeKey: key, epoch };
                if !asked.asked || self.chain.read(at, &call) {
                    // What a reorganisation takes back is looked at again after a while.
                    if now > u64::try_from(asked.until).unwrap_or(u64::MAX).saturating_add(3_600)
                        || !asked.asked
                    {
                        self.hosts[i].settled.insert((h, epoch));
                    }
                    continue;
                }
                let until = u64::try_from(asked.until).unwrap_or(u64::MAX);
                if now > until {
                    let call = Retrieval::proveFailureCall { host, modelRoot: model, listing, epoch };
                    calls.push((format!("ProveFailure(host={h}, epoch={epoch})"), call.abi_encode()));
                } else if h == i && !silent {
                    let proof = merkle::prove(&leaves(), asked.index as usize).expect("a chunk of it");
                    let (chunk, proof) = (chunk(asked.index).into(), (&proof).into());
                    let call = Retrieval::answerCall { host, modelRoot: model, listing, epoch, chunk, proof };
                    calls.push((format!("Answer(epoch={epoch}, chunk={})", asked.index), call.abi_encode()));
                }
            }
        }
        let pledge = self.chain.read(at, &Retrieval::pledgeOfCall { host: me, modelRoot: model, listing });
        if U256::from(pledge.earned) >= U256::from(COLLECT_MIN) {
            let call = Retrieval::collectCall { host: me, modelRoot: model, listing };
            calls.push(("Collect".into(), call.abi_encode()));
        }
        for (what, data) in calls {
            self.tell(who, || format!("sends {what}"));
            self.send(who, me, at, data, what);
        }
        Ok(())
    }
}
