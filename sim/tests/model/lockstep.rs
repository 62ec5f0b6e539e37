//! Random histories, played by the model and by the contracts: everybody has the same in the end, to the unit.

use std::collections::BTreeMap;

use alloy_primitives::{B256, Bytes, U256};
use assay_chain::scratch::CHAIN_ID;
use assay_core::merkle;
use assay_ledger::audits::{digests_root, revealed_digests};
use assay_ledger::contracts::{Audits, Channels, Directory, Epochs, Registry, Retrieval};
use assay_ledger::retrieval::{self, Fetch};
use assay_sim::ledger::{ChannelId, Ledger, Lot, PledgeId, Who};
use assay_sim::random::Random;

use crate::network::{AUDITOR, Actor, DOLLAR, HOST, Network, PROVIDER, Posted, b, core_hash, receipt, some};

const EPOCHS: u64 = 6;
const ROYALTY_PPM: u32 = 50_000;

/// The windows of the defaults in small: an epoch is final just after the next one was posted, and unbonding takes five.
fn parameters() -> Directory::Parameters {
    let mut p = crate::network::parameters();
    (p.times.epochSeconds, p.times.postSeconds) = (14_000, 900);
    (p.times.commitSeconds, p.times.revealSeconds, p.times.objectSeconds) = (5000, 2000, 6000);
    (p.times.unbondSeconds, p.times.retrievalSeconds) = (70_000, 5000);
    (p.times.answerSeconds, p.times.disputeSeconds) = (3600, 7200);
    p.rates.retrievalPpm = 1_000_000;
    p
}

struct Lane {
    payer: Actor,
    config: Channels::ChannelConfig,
    id: ChannelId,
    claimed: u64,
}

struct Server {
    actor: Actor,
    who: Who,
    lanes: Vec<Lane>,
    next: u64,
    struck: bool,
    posted: Vec<(u64, Posted)>,
    fetched: [u64; 2],
}

/// The model and the contracts.
struct Both {
    n: Network,
    model: Ledger,
    random: Random,
    people: Vec<(Actor, Who)>,
    author: Actor,
    servers: Vec<Server>,
    auditor: (Actor, Who),
    hosts: Vec<(Actor, Who, PledgeId)>,
    reporter: (Actor, Who),
    strikes: u64,
    silences: u64,
}

impl Both {
    fn new(seed: u64) -> Both {
        let p = parameters();
        let mut n = Network::with(p.clone(), 0);
        // Gas costs nothing, so that payers ask back every receipt.
        let mut model = Ledger::new(p, 0);
        let mut people = Vec::new();
        let mut person = |n: &mut Network, model: &mut Ledger, name: &str| {
            let pair = (n.rich(name, 1000), model.join(1000 * DOLLAR));
            people.push(pair.clone());
            pair
        };
        let (author, owner) = person(&mut n, &mut model, "author");
        let reporter = person(&mut n, &mut model, "reporter");
        let at = n.parts.at.clone();
        let chunk = merkle::leaf(&[7; 100]);
        let list = Registry::listCall {
            modelRoot: some("model").into(),
            royaltyPpm: ROYALTY_PPM,
            contentRoot: b(merkle::root([chunk])),
            chunks: 1,
            manifest: String::new(),
        };
        n.send(&author, at.registry, list).unwrap();
        assert_eq!(model.list(owner, ROYALTY_PPM), 0);
        let auditor = person(&mut n, &mut model, "auditor");
        n.enrol(&auditor.0, AUDITOR, 300 * DOLLAR);
        model.bond(auditor.1, 300 * DOLLAR);
        let slots = (0..2).map(U256::from).collect();
        n.send(&auditor.0, at.audits, Audits::takeSeatsCall { auditor: auditor.0.address, slots }).unwrap();
        assert!(model.reserve(auditor.1, 200 * DOLLAR));
        let hosts = (0..2)
            .map(|i| {
                let (actor, who) = person(&mut n, &mut model, &format!("host {i}"));
                n.enrol(&actor, HOST, 60 * DOLLAR);
                model.bond(who, 60 * DOLLAR);
                let (host, modelRoot) = (actor.address, some("model").into());
                let call = Retrieval::pledgeCall { host, modelRoot, listing: author.address };
                n.send(&actor, at.retrieval, call).unwrap();
                (actor, who, model.pledge(0, who).unwrap())
            })
            .collect();
        let payers: Vec<(Actor, Who)> =
            (0..2).map(|i| person(&mut n, &mut model, &format!("payer {i}"))).collect();
        let servers = (0..3)
            .map(|i| {
                let (actor, who) = person(&mut n, &mut model, &format!("provider {i}"));
                n.enrol(&actor, PROVIDER, i * DOLLAR);
                model.bond(who, i * DOLLAR);
                let lanes = payers
                    .iter()
                    .map(|(payer, purse)| {
                        let config = n.config(payer, &actor, 0);
                        n.fund(payer, &config, 40 * DOLLAR).unwrap();
                        let id = model.open_channel(*purse, who);
                        model.fund(id, 4 * DOLLAR);
                        Lane { payer: payer.clone(), config, id, claimed: 0 }
                    })
                    .collect();
                Server { actor, who, lanes, next: 0, struck: false, posted: Vec::new(), fetched: [0; 2] }
            })
            .collect();
        // Seats and pledges count from the next epoch on.
        n.end_epoch(0);
        n.draw(0);
        let random = Random::stream(seed, "lockstep", &[]);
        Both { n, model, random, people, author, servers, auditor, hosts, reporter, strikes: 0, silences: 0 }
    }

    /// Receipts of one fee in each lane, claimed and posted.
    fn serve(&mut self, i: usize, epoch: u64) {
        let server = &mut self.servers[i];
        if server.struck {
            return;
        }
        let mut receipts = Vec::new();
        let mut lots = Vec::new();
        for lane in &mut server.lanes {
            let (fee, count) = (self.random.between(1, 150_000), self.random.between(1, 8));
            let channel = self.n.channel_id(&lane.config);
            for _ in 0..count {
                let number = server.next + receipts.len() as u64;
                receipts.push(Some(receipt(&server.actor, number, some("model"), fee, channel, epoch)));
            }
            lots.push(Lot { channel: lane.id, fee, count });
            lane.claimed += fee * count;
            self.n.earn(&lane.payer, &server.actor, &lane.config, lane.claimed).unwrap();
            self.model.claim(lane.id, fee * count);
        }
        let listings = BTreeMap::from([(some("model"), self.author.address)]);
        let posted = Posted::of(&self.n.domain(), server.next, receipts, &listings);
        server.next += posted.leaves.len() as u64;
        self.n.post(&server.actor, epoch, &posted).unwrap();
        let batch = self.model.post(server.who, 0, lots).unwrap();
        let there = self.n.batch(server.actor.address, epoch);
        assert_eq!((there.total, there.panel, there.backing), (batch.total, batch.panel, batch.backing));
        server.posted.push((epoch, posted));
    }

    /// The panel of a batch commits and reveals, or one of its members is silent.
    fn audit(&mut self, i: usize, epoch: u64, fixed: u64) {
        let audits = self.n.parts.at.audits;
        let provider = self.servers[i].actor.address;
        let panel = self.n.batch(provider, epoch).panel;
        let silent = self.random.below(6);
        let digest = core_hash(some("digest").into());
        let (root, salt): (B256, B256) = (b(digests_root([(0, &digest)])), some("salt").into());
        let digests = revealed_digests([(0, &digest)]);
        let (auditor, who) = self.auditor.clone();
        for m in (0..panel).filter(|m| u64::from(*m) != silent) {
            let member = U256::from(m);
            let call =
                Audits::commitmentOfCall { auditor: auditor.address, provider, epoch, member, root, salt };
            let commitment = self.n.chain.read(audits, &call).unwrap();
            self.n
                .send(&auditor, audits, Audits::commitCall { provider, epoch, member, commitment })
                .unwrap();
        }
        self.n.chain.warp(fixed + 5001);
        for m in (0..panel).filter(|m| u64::from(*m) != silent) {
            let (member, digests) = (U256::from(m), digests.clone());
            let call = Audits::revealCall { provider, epoch, member, digests, salt };
            self.n.send(&auditor, audits, call).unwrap();
            self.model.did_work(self.servers[i].who, usize::from(m), Some(who));
        }
    }

    fn punish_silence(&mut self, i: usize, epoch: u64) {
        let audits = self.n.parts.at.audits;
        let provider = self.servers[i].actor.address;
        let silent: Vec<u8> = (0..self.n.batch(provider, epoch).panel)
            .filter(|m| {
                let call = Audits::memberOfCall { provider, epoch, member: U256::from(*m) };
                self.n.chain.read(audits, &call).unwrap().phase == 0
            })
            .collect();
        for m in silent {
            let call = Audits::proveAbsenceCall { provider, epoch, member: U256::from(m) };
            self.n.send(&self.reporter.0, audits, call).unwrap();
            let penalty = self.model.p.stakes.silencePenalty;
            assert_eq!(self.model.slash(self.auditor.1, penalty, self.reporter.1), penalty);
            self.silences += 1;
        }
    }

    fn strike(&mut self, i: usize, epoch: u64) {
        let (registry, epochs) = (self.n.parts.at.registry, self.n.parts.at.epochs);
        let disputes = self.n.disputes.clone();
        let node = self.servers[i].actor.address;
        let call = Registry::strikeCall { node, reporter: self.reporter.0.address };
        self.n.send(&disputes, registry, call).unwrap();
        self.model.strike(self.servers[i].who, self.reporter.1);
        let server = &mut self.servers[i];
        server.struck = true;
        let (_, posted) = server.posted.iter().find(|(e, _)| *e == epoch).unwrap();
        for (index, receipt) in posted.receipts.iter().flatten().enumerate() {
            let id = B256::from(*receipt.payer_channel.as_bytes());
            let lane = server.lanes.iter().find(|l| self.n.channel_id(&l.config) == id).unwrap();
            let c = &lane.config;
            let config = Epochs::ChannelConfig {
                payer: c.payer,
                payerAuthorizer: c.payerAuthorizer,
                receiver: c.receiver,
                receiverAuthorizer: c.receiverAuthorizer,
                token: c.token,
                withdrawDelay: c.withdrawDelay,
                salt: c.salt,
            };
            let (receipt, proof) = (receipt.into(), (&posted.proof(index)).into());
            let call = Epochs::refundCall { receipt, config, epoch, proof, signature: Bytes::new() };
            self.n.send(&lane.payer, epochs, call).unwrap();
        }
        // Payers take back what was not claimed.
        let channels = self.n.parts.at.channels;
        for lane in &self.servers[i].lanes {
            let config = lane.config.clone();
            let start = Channels::startWithdrawalCall { config: config.clone(), amount: u128::MAX };
            self.n.send(&lane.payer, channels, start).unwrap();
        }
        self.n.chain.mine(1, 900);
        for lane in &self.servers[i].lanes {
            let call = Channels::withdrawCall { config: lane.config.clone() };
            self.n.send(&lane.payer, channels, call).unwrap();
        }
        self.strikes += 1;
    }

    fn settle(&mut self, i: usize, epoch: u64) {
        let (epochs, audits, anyone) =
            (self.n.parts.at.epochs, self.n.parts.at.audits, self.reporter.0.clone());
        let server = &self.servers[i];
        let provider = server.actor.address;
        let Some((_, posted)) = server.posted.iter().find(|(e, _)| *e == epoch) else { return };
        for m in 0..self.n.batch(provider, epoch).panel {
            let member = U256::from(m);
            let call = Audits::memberOfCall { provider, epoch, member };
            if self.n.chain.read(audits, &call).unwrap().phase == 2 {
                self.n.send(&anyone, audits, Audits::collectCall { provider, epoch, member }).unwrap();
            }
        }
        if server.struck {
            return;
        }
        self.n.send(&anyone, epochs, Epochs::settleCall { provider, epoch }).unwrap();
        let share = posted.share_leaves(ROYALTY_PPM.into(), self.n.p.split.hostsPpm.into())[0].clone();
        let leaf = self.n.chain.read(epochs, &Epochs::shareLeafCall { s: share.clone() }).unwrap();
        let proof = (&merkle::prove(&[core_hash(leaf)], 0).unwrap()).into();
        self.n.send(&anyone, epochs, Epochs::releaseCall { provider, epoch, share, proof }).unwrap();
    }

    /// Providers sign for bytes, hosts answer and collect.
    fn host(&mut self, epoch: u64) {
        let at = self.n.parts.at.retrieval;
        let (modelRoot, listing): (B256, _) = (some("model").into(), self.author.address);
        for server in self.servers.iter_mut().filter(|s| !s.struck) {
            let h = self.random.below(2) as usize;
            server.fetched[h] += self.random.between(1, 1 << 40);
            let (downloader, host) = (server.actor.address, self.hosts[h].0.address);
            let fetch = Fetch { downloader, host, modelRoot, listing, bytesFetched: server.fetched[h] };
            let signature =
                server.actor.sign(retrieval::fetch_hash(&fetch, &retrieval::domain(CHAIN_ID, at)));
            self.n.send(&self.reporter.0, at, Retrieval::servedCall { fetch, signature }).unwrap();
            self.model.served(server.who, self.hosts[h].1, server.fetched[h]);
        }
        let proof = merkle::prove(&[merkle::leaf(&[7; 100])], 0).unwrap();
        for (actor, _, pledge) in self.hosts.clone() {
            let host = actor.address;
            // Who is slow answers the next time.
            if self.random.below(3) > 0 {
                let (chunk, proof) = (vec![7; 100].into(), (&proof).into());
                let call = Retrieval::answerCall { host, modelRoot, listing, epoch, chunk, proof };
                self.n.send(&actor, at, call).unwrap();
                self.model.answer(0, pledge);
            }
            self.n.send(&actor, at, Retrieval::collectCall { host, modelRoot, listing }).unwrap();
            self.model.collect(0, pledge);
        }
        for server in self.servers.iter().filter(|s| !s.struck) {
            let provider = server.actor.address;
            for (actor, ..) in &self.hosts {
                let call = Retrieval::collectServedCall { host: actor.address, modelRoot, listing, provider };
                self.n.send(actor, at, call).unwrap();
            }
            self.model.collect_served(server.who);
        }
    }

    /// The fractions that a struck provider's sources have left can be collected on the ledger; the model's hosts do so when it is struck.
    fn collect_from_struck(&mut self) {
        let at = self.n.parts.at.retrieval;
        let (modelRoot, listing): (B256, _) = (some("model").into(), self.author.address);
        for server in self.servers.iter().filter(|s| s.struck) {
            for (actor, ..) in &self.hosts {
                let (host, provider) = (actor.address, server.actor.address);
                let call = Retrieval::collectServedCall { host, modelRoot, listing, provider };
                self.n.send(actor, at, call).unwrap();
            }
        }
    }

    /// The treasury has parts of silent members at once on the ledger, with the release in the model: it is compared at the end.
    fn compare(&mut self, seed: u64, epoch: u64, last: bool) {
        self.model.check().unwrap();
        self.n.check_money();
        let treasury = self.n.treasury;
        for (actor, who) in self.people.clone() {
            let there = self.n.node(actor.address);
            let (stake, free) = (self.model.stake_of(who), self.n.balance(actor.address));
            let name = format!("seed {seed}, epoch {epoch}: participant {}", who.0);
            assert_eq!(self.model.free(who), free, "{name}: vault");
            assert_eq!(u128::from(stake.stake), there.stake, "{name}: stake");
            assert_eq!(u128::from(stake.unbonding), there.unbonding, "{name}: unbonding");
            assert_eq!(u128::from(stake.reserved), there.reserved, "{name}: reserved");
        }
        if last {
            assert_eq!(self.model.treasury(), self.n.balance(treasury), "seed {seed}: treasury");
        }
    }
}

#[test]
fn everybody_has_the_same_in_the_model_and_in_the_contracts() {
    let (mut strikes, mut silences) = (0, 0);
    for seed in 0..8 {
        let mut both = Both::new(seed);
        for epoch in 1..=EPOCHS {
            both.model.begin(epoch);
            both.n.end_epoch(epoch);
            for i in 0..both.servers.len() {
                both.serve(i, epoch);
            }
            let (_, fixed) = both.n.draw(epoch);
            // The epoch before has its objections behind it.
            for i in 0..both.servers.len() {
                both.settle(i, epoch - 1);
                let who = both.servers[i].who;
                both.model.finish(who);
            }
            both.host(epoch);
            let open: Vec<usize> = (0..both.servers.len()).filter(|i| !both.servers[*i].struck).collect();
            // One batch in an epoch is audited, so that windows are kept.
            let audited = open[both.random.below(open.len() as u64) as usize];
            both.audit(audited, epoch, fixed);
            both.n.chain.warp(fixed + 7001);
            for i in &open {
                both.punish_silence(*i, epoch);
            }
            if open.len() > 1 && both.random.below(4) == 0 {
                let struck = open[both.random.below(open.len() as u64) as usize];
                both.strike(struck, epoch);
                both.collect_from_struck();
            }
            both.model.cover(both.auditor.1);
            let (auditor, short) = (both.auditor.0.clone(), 200 * DOLLAR);
            let lacks = u128::from(short).saturating_sub(both.n.node(auditor.address).stake);
            if lacks > 0 {
                both.n.bond(&auditor, lacks as u64).unwrap();
            }
            let last = epoch == EPOCHS;
            if last {
                both.n.chain.warp(fixed + 13_001);
                for i in 0..both.servers.len() {
                    both.settle(i, epoch);
                }
                both.model.begin(epoch + 1);
                for server in &both.servers {
                    both.model.finish(server.who);
                }
            }
            // A panel of a struck provider is paid with its strike in the model, after the objections on the ledger.
            if last || both.servers.iter().all(|s| !s.struck) {
                both.compare(seed, epoch, last);
            }
        }
        (strikes, silences) = (strikes + both.strikes, silences + both.silences);
    }
    assert!(strikes > 2 && silences > 20, "{strikes} strikes, {silences} silent members");
}
