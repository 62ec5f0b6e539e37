//! Random sequences of everything, by many actors: money is conserved to the unit after every step, in the vault and in each part, and at the
//! end everybody leaves with what is theirs. `ASSAY_SEEDS` says how many sequences; a failure names its seed.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256};
use assay_chain::scratch::{CHAIN_ID, header};
use assay_core::id::Hash;
use assay_core::merkle;
use assay_core::receipt::Receipt;
use assay_ledger::audits::{digests_root, revealed_digests};
use assay_ledger::contracts::{Audits, Channels, Epochs, Objections, Registry, Retrieval, Vault};
use assay_ledger::retrieval::Fetch;

use crate::network::{
    AUDITOR, Actor, DOLLAR, HOST, Network, PROVIDER, Posted, audit_tree, b, consent, core_hash, parameters,
    receipt, signed, some, trace_root,
};

const STEPS: usize = 220;
const ROYALTY_PPM: u64 = 50_000;
const HOSTS_PPM: u64 = 30_000;
/// `Retrieval.FRACTION_BITS`.
pub const PARTS_BITS: u32 = 56;

/// SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

struct Batch {
    provider: usize,
    epoch: u64,
    posted: Posted,
    trees: Vec<Vec<(u64, Hash)>>,
    auditors: Vec<Address>,
}

struct Lane {
    config: Channels::ChannelConfig,
    payer: usize,
    provider: usize,
    claimed: u64,
}

/// Everyone, and what they remember.
struct World {
    n: Network,
    draws: Draws,
    payers: Vec<Actor>,
    providers: Vec<Actor>,
    auditors: Vec<Actor>,
    hosts: Vec<Actor>,
    author: Actor,
    anyone: Actor,
    lanes: Vec<Lane>,
    next: Vec<u64>,
    pending: Vec<Vec<Option<Receipt>>>,
    batches: Vec<Batch>,
    demands: Vec<(usize, u64)>,
    accusations: Vec<(B256, usize, usize)>,
    happened: BTreeMap<&'static str, u64>,
}

fn chunks() -> Vec<Vec<u8>> {
    (0..7u8).map(|i| vec![i; 100]).collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut p = parameters();
        p.rates.rateMinPpm = 200_000;
        p.rates.secondPpm = 300_000;
        // Every fourth token takes a fortieth of each transfer.
        let mut n = Network::with(p, if seed % 4 == 3 { 25_000 } else { 0 });
        let make = |n: &mut Network, kind: &str, count: usize, dollars: u64| -> Vec<Actor> {
            (0..count).map(|i| n.rich(&format!("{kind} {i}"), dollars)).collect()
        };
        let payers = make(&mut n, "payer", 2, 10_000);
        let providers = make(&mut n, "provider", 2, 500);
        let auditors = make(&mut n, "auditor", 3, 2000);
        let hosts = make(&mut n, "host", 2, 500);
        let (author, anyone) = (n.rich("author", 0), n.rich("anyone", 2000));
        let (registry, audits) = (n.parts.at.registry, n.parts.at.audits);
        let leaves: Vec<Hash> = chunks().iter().map(|c| merkle::leaf(c)).collect();
        let list = Registry::listCall {
            modelRoot: some("model").into(),
            royaltyPpm: ROYALTY_PPM as u32,
            contentRoot: b(merkle::root(leaves.iter().copied())),
            chunks: leaves.len() as u64,
            manifest: String::new(),
        };
        n.send(&author, registry, list).unwrap();
        for provider in &providers {
            n.enrol(provider, PROVIDER, 20 * DOLLAR);
        }
        for (i, auditor) in auditors.iter().enumerate() {
            n.enrol(auditor, AUDITOR, 1000 * DOLLAR);
            let slots = vec![U256::from(2 * i), U256::from(2 * i + 1)];
            n.send(auditor, audits, Audits::takeSeatsCall { auditor: auditor.address, slots }).unwrap();
        }
        for host in &hosts {
            n.enrol(host, HOST, 200 * DOLLAR);
        }
        let mut lanes = Vec::new();
        for (payer, p) in payers.iter().enumerate() {
            for (provider, v) in providers.iter().enumerate() {
                lanes.push(Lane { config: n.config(p, v, 0), payer, provider, claimed: 0 });
            }
        }
        World {
            n,
            draws: Draws(seed),
            payers,
            providers,
            auditors,
            hosts,
            author,
            anyone,
            lanes,
            next: vec![0; 2],
            pending: vec![Vec::new(); 2],
            batches: Vec::new(),
            demands: Vec::new(),
            accusations: Vec::new(),
            happened: BTreeMap::new(),
        }
    }

    fn call<C: alloy_sol_types::SolCall>(&mut self, by: &Actor, to: Address, call: C) -> bool {
        let done = self.n.send(by, to, call).is_ok();
        if done {
            *self.happened.entry(C::SIGNATURE.split('(').next().unwrap()).or_default() += 1;
        }
        done
    }

    fn account(&mut self, provider: usize) -> Epochs::Account {
        let (epochs, provider) = (self.n.parts.at.epochs, self.providers[provider].address);
        self.n.chain.read(epochs, &Epochs::accountOfCall { provider }).unwrap()
    }

    fn some_batch(&mut self) -> Option<usize> {
        (!self.batches.is_empty()).then(|| {
            // Mostly a recent one.
            let n = self.batches.len();
            let back = self.draws.below(n.min(4));
            n - 1 - back
        })
    }

    // ---- steps

    fn step(&mut self) {
        match self.draws.below(27) {
            0 | 1 => self.fund(),
            2 | 3 => self.claim(),
            4..=6 => self.answer_requests(),
            7 | 8 => self.wait(),
            9..=11 => self.post(),
            12 => self.draw(),
            13 => self.audit(),
            14 => self.pay_auditors(),
            15 => self.settle(),
            16 => self.demand(),
            17 => self.accuse(),
            18 => self.end_accusation(),
            19 => self.stakes(),
            20 => self.exit_channel(),
            21 => self.host(),
            22 => self.cheat(),
            23..=25 => self.fetching(),
            _ => self.money(),
        }
    }

    fn fund(&mut self) {
        let lane = self.draws.below(self.lanes.len());
        let amount = 1 + self.draws.next() % (60 * DOLLAR);
        let (payer, config) = (self.payers[self.lanes[lane].payer].clone(), self.lanes[lane].config.clone());
        let channels = self.n.parts.at.channels;
        self.call(&payer, channels, Channels::depositCall { config, amount: amount.into() });
    }

    fn claim(&mut self) {
        let channels = self.n.parts.at.channels;
        let lane = self.draws.below(self.lanes.len());
        let (payer, provider) = (self.lanes[lane].payer, self.lanes[lane].provider);
        let (payer, provider) = (self.payers[payer].clone(), self.providers[provider].clone());
        let config = self.lanes[lane].config.clone();
        let max = self.lanes[lane].claimed + self.draws.next() % (20 * DOLLAR);
        let claims = vec![self.n.voucher(&payer, &config, max, max)];
        if self.call(&provider, channels, Channels::claimCall { claims }) {
            self.lanes[lane].claimed = max;
        }
        let anyone = self.anyone.clone();
        if self.draws.below(3) > 0 {
            self.call(&anyone, channels, Channels::settleCall { receiver: provider.address });
        }
    }

    /// Signs receipts, with gaps now and then.
    fn answer_requests(&mut self) {
        let lane = self.draws.below(self.lanes.len());
        let (provider, channel) =
            (self.lanes[lane].provider, self.n.channel_id(&self.lanes[lane].config.clone()));
        let epoch = self.n.epoch();
        for _ in 0..=self.draws.below(5) {
            let sequence = self.next[provider];
            self.next[provider] += 1;
            let fee = self.draws.next() % DOLLAR;
            let model = some(if self.draws.below(4) == 0 { "other" } else { "model" });
            let gap = self.draws.below(6) == 0;
            let who = self.providers[provider].clone();
            let signed = receipt(&who, sequence, model, fee, channel, epoch);
            self.pending[provider].push((!gap).then_some(signed));
        }
    }

    fn wait(&mut self) {
        let seconds = [60, 900, 1800, 3600, 3700, 7200][self.draws.below(6)];
        self.n.chain.mine(3, seconds);
    }

    /// Posts what is pending for the epoch before, if it can be posted; goes to where it can be if it must.
    fn post(&mut self) {
        let provider = self.draws.below(2);
        if self.pending[provider].is_empty() {
            return;
        }
        let epochs = self.n.parts.at.epochs;
        let mut epoch = self.n.epoch();
        if epoch == 0 || !self.n.chain.read(epochs, &Epochs::isPostingCall { epoch: epoch - 1 }).unwrap() {
            self.n.end_epoch(epoch);
            epoch += 1;
        }
        // No receipt of a later epoch.
        let early = |r: &Option<Receipt>| r.as_ref().is_some_and(|r| r.epoch >= epoch);
        let count = self.pending[provider].iter().position(early).unwrap_or(self.pending[provider].len());
        if count == 0 {
            return;
        }
        let first = self.next[provider] - self.pending[provider].len() as u64;
        let listings = BTreeMap::from([(some("model"), self.author.address)]);
        let receipts = self.pending[provider][..count].to_vec();
        let posted = Posted::of(&self.n.domain(), first, receipts, &listings);
        let by = self.providers[provider].clone();
        if self.call(&by, epochs, posted.call(by.address, epoch - 1)) {
            self.pending[provider].drain(..count);
            self.batches.push(Batch {
                provider,
                epoch: epoch - 1,
                posted,
                trees: Vec::new(),
                auditors: Vec::new(),
            });
        }
    }

    fn draw(&mut self) {
        let Some(i) = self.some_batch() else { return };
        self.draw_epoch(self.batches[i].epoch);
    }

    fn draw_epoch(&mut self, epoch: u64) {
        let (epochs, anyone) = (self.n.parts.at.epochs, self.anyone.clone());
        self.call(&anyone, epochs, Epochs::closeCall { epoch });
        let number = self.n.chain.read(epochs, &Epochs::beaconOfCall { epoch }).unwrap().number;
        if number == 0 {
            return;
        }
        if number >= self.n.chain.number() {
            self.n.chain.mine(5, 60);
        }
        if self.call(&anyone, epochs, Epochs::fixBeaconCall { epoch, header: header(number).into() }) {
            for host in self.hosts.clone() {
                if self.draws.below(4) > 0 {
                    self.answer_question(&host, epoch);
                }
            }
        }
    }

    fn answer_question(&mut self, by: &Actor, epoch: u64) {
        let retrieval = self.n.parts.at.retrieval;
        let (modelRoot, listing, host): (B256, _, _) =
            (some("model").into(), self.author.address, by.address);
        let question = Retrieval::questionForCall { host, modelRoot, listing, epoch };
        let Ok(question) = self.n.chain.read(retrieval, &question) else { return };
        let leaves: Vec<Hash> = chunks().iter().map(|c| merkle::leaf(c)).collect();
        let index = question.index as usize;
        let call = Retrieval::answerCall {
            host,
            modelRoot,
            listing,
            epoch,
            chunk: chunks()[index].clone().into(),
            proof: (&merkle::prove(&leaves, index).unwrap()).into(),
        };
        self.call(by, retrieval, call);
    }

    /// The panel of a batch with its trees, once there is a beacon.
    fn learn_panel(&mut self, i: usize) -> bool {
        let (epoch, provider) = (self.batches[i].epoch, self.providers[self.batches[i].provider].address);
        if self.n.beacon(epoch).1 == 0 {
            return false;
        }
        if self.batches[i].auditors.is_empty() {
            let audits = self.n.parts.at.audits;
            let receipts: Vec<Receipt> = self.batches[i].posted.receipts.iter().flatten().cloned().collect();
            for member in 0..usize::from(self.n.batch(provider, epoch).panel) {
                let call = Audits::auditorOfCall { provider, epoch, member: U256::from(member) };
                let auditor = self.n.chain.read(audits, &call).unwrap();
                let mut tree = audit_tree(&mut self.n, epoch, member, auditor, &receipts);
                // Now and then a lazy auditor.
                if self.draws.below(4) == 0 {
                    tree.iter_mut().for_each(|(_, leaf)| *leaf = Hash::from_bytes([7; 32]));
                }
                self.batches[i].auditors.push(auditor);
                self.batches[i].trees.push(tree);
            }
        }
        true
    }

    /// Members commit, or reveal, or neither.
    fn audit(&mut self) {
        let Some(i) = self.some_batch() else { return };
        if self.n.beacon(self.batches[i].epoch).1 == 0 {
            self.n.end_epoch(self.batches[i].epoch);
            self.n.chain.mine(1, 900);
            self.draw_epoch(self.batches[i].epoch);
        }
        if !self.learn_panel(i) {
            return;
        }
        self.members(i, true);
        if self.draws.below(3) > 0 {
            self.n.chain.mine(1, 7230);
        }
        self.members(i, false);
        if self.draws.below(2) > 0 {
            self.accuse_in(i);
        }
    }

    fn members(&mut self, i: usize, commit: bool) {
        let audits = self.n.parts.at.audits;
        let (epoch, provider) = (self.batches[i].epoch, self.providers[self.batches[i].provider].address);
        for member in 0..self.batches[i].auditors.len() {
            if self.draws.below(5) == 0 {
                continue;
            }
            let auditor = self.batches[i].auditors[member];
            let own = self.batches[i].trees[member].clone();
            let own = || own.iter().map(|(n, digest)| (*n, digest));
            let root = b(digests_root(own()));
            let (salt, at): (B256, _) = (some("salt").into(), U256::from(member));
            let Some(by) = self.auditors.iter().find(|a| a.address == auditor).cloned() else { continue };
            if commit {
                let call = Audits::commitmentOfCall { auditor, provider, epoch, member: at, root, salt };
                let commitment = self.n.chain.read(audits, &call).unwrap();
                self.call(&by, audits, Audits::commitCall { provider, epoch, member: at, commitment });
            } else {
                let digests = revealed_digests(own());
                self.call(&by, audits, Audits::revealCall { provider, epoch, member: at, digests, salt });
            }
        }
    }

    fn pay_auditors(&mut self) {
        let Some(i) = self.some_batch() else { return };
        self.pay_members(i);
    }

    fn pay_members(&mut self, i: usize) {
        let (audits, anyone) = (self.n.parts.at.audits, self.anyone.clone());
        let (epoch, provider) = (self.batches[i].epoch, self.providers[self.batches[i].provider].address);
        for member in 0..usize::from(self.n.batch(provider, epoch).panel) {
            let member = U256::from(member);
            self.call(&anyone, audits, Audits::collectCall { provider, epoch, member });
            self.call(&anyone, audits, Audits::proveAbsenceCall { provider, epoch, member });
        }
    }

    fn settle(&mut self) {
        let Some(i) = self.some_batch() else { return };
        self.settle_batch(i);
    }

    fn settle_batch(&mut self, i: usize) {
        let (epochs, anyone) = (self.n.parts.at.epochs, self.anyone.clone());
        let (epoch, provider) = (self.batches[i].epoch, self.providers[self.batches[i].provider].address);
        self.call(&anyone, epochs, Epochs::settleCall { provider, epoch });
        let shares = self.batches[i].posted.share_leaves(ROYALTY_PPM, HOSTS_PPM);
        let leaves: Vec<Hash> = shares
            .iter()
            .map(|s| {
                let leaf = self.n.chain.read(epochs, &Epochs::shareLeafCall { s: s.clone() }).unwrap();
                core_hash(leaf)
            })
            .collect();
        for (index, share) in shares.into_iter().enumerate() {
            let proof = (&merkle::prove(&leaves, index).unwrap()).into();
            self.call(&anyone, epochs, Epochs::releaseCall { provider, epoch, share, proof });
        }
    }

    fn demand(&mut self) {
        let Some(i) = self.some_batch() else { return };
        let (objections, anyone) = (self.n.parts.at.objections, self.anyone.clone());
        let (epoch, who) = (self.batches[i].epoch, self.batches[i].provider);
        let provider = self.providers[who].address;
        let index = self.draws.below(self.batches[i].posted.leaves.len()) as u64;
        if self.call(&anyone, objections, Objections::demandLeafCall { provider, epoch, index }) {
            self.demands.push((i, index));
        }
        // Most demands are answered at once, some later, few never.
        if self.draws.below(8) > 0 {
            self.answer_demands(usize::MAX);
        }
    }

    fn answer_demands(&mut self, mut most: usize) {
        let objections = self.n.parts.at.objections;
        for (i, index) in std::mem::take(&mut self.demands) {
            let (epoch, who) = (self.batches[i].epoch, self.batches[i].provider);
            let by = self.providers[who].clone();
            let opening = self.batches[i].posted.opening(index as usize, ROYALTY_PPM, HOSTS_PPM);
            let call = Objections::answerLeafCall { provider: by.address, epoch, index, opening };
            if most == 0 || !self.call(&by, objections, call) {
                self.demands.push((i, index));
            } else {
                most -= 1;
            }
        }
    }

    fn accuse(&mut self) {
        let Some(i) = self.some_batch() else { return };
        self.accuse_in(i);
    }

    fn accuse_in(&mut self, i: usize) {
        if !self.learn_panel(i) {
            return;
        }
        let member = self.draws.below(self.batches[i].auditors.len());
        let Some((sequence, _)) = self.batches[i].trees[member].first().copied() else { return };
        let index = (sequence - self.batches[i].posted.first) as usize;
        let receipt = self.batches[i].posted.receipts[index].clone().unwrap();
        let trace = if self.draws.below(3) == 0 { some("false") } else { trace_root(&receipt) };
        let call = Audits::accuseCall {
            epoch: self.batches[i].epoch,
            member: U256::from(member),
            receipt: (&receipt).into(),
            proof: (&self.batches[i].posted.proof(index)).into(),
            consent: (&consent(&receipt)).into(),
            traceRoot: trace.into(),
        };
        let (audits, anyone) = (self.n.parts.at.audits, self.anyone.clone());
        let Ok(done) = self.n.send(&anyone, audits, call) else { return };
        *self.happened.entry("accuse").or_default() += 1;
        self.accusations.push((done.value, i, member));
        for _ in 0..self.draws.below(4) {
            self.end_accusation();
        }
    }

    fn end_accusation(&mut self) {
        if self.accusations.is_empty() {
            return;
        }
        let at = self.draws.below(self.accusations.len());
        let (id, i, member) = self.accusations[at];
        let (audits, anyone) = (self.n.parts.at.audits, self.anyone.clone());
        let leaves: Vec<Hash> = self.batches[i].trees[member].iter().map(|(_, leaf)| *leaf).collect();
        let proof = (&merkle::prove(&leaves, 0).unwrap()).into();
        let accused = self.auditors.iter().find(|a| a.address == self.batches[i].auditors[member]).cloned();
        match self.draws.below(4) {
            0 => self.call(&anyone, audits, Audits::acquitCall { id, proof }),
            1 => {
                let done = self.n.contest(id, &accused.unwrap()).is_ok();
                *self.happened.entry("contest").or_default() += u64::from(done);
                done
            }
            2 => {
                let disputes = self.n.disputes.clone();
                let accuserIsRight = self.draws.below(2) == 0;
                self.call(&disputes, audits, Audits::ruledCall { id, accuserIsRight })
            }
            _ => self.call(&anyone, audits, Audits::lapseCall { id }),
        };
    }

    fn stakes(&mut self) {
        let everyone: Vec<Actor> = [&self.providers[..], &self.auditors[..], &self.hosts[..]].concat();
        let who = everyone[self.draws.below(everyone.len())].clone();
        let registry = self.n.parts.at.registry;
        let amount = U256::from(self.draws.next() % (30 * DOLLAR));
        match self.draws.below(3) {
            0 => self.call(&who, registry, Registry::bondCall { node: who.address, amount }),
            1 => self.call(&who, registry, Registry::unbondCall { node: who.address, amount }),
            _ => {
                let nextOpen = self.next_open(who.address);
                self.call(&who, registry, Registry::withdrawCall { node: who.address, nextOpen })
            }
        };
    }

    fn next_open(&mut self, node: Address) -> u64 {
        let mut open = u64::MAX;
        for i in 0..self.batches.len() {
            let (epoch, who) = (self.batches[i].epoch, self.batches[i].provider);
            if self.providers[who].address == node && self.n.batch(node, epoch).state == 1 {
                open = open.min(epoch);
            }
        }
        open
    }

    fn exit_channel(&mut self) {
        let channels = self.n.parts.at.channels;
        let lane = self.draws.below(self.lanes.len());
        let (payer, config) = (self.payers[self.lanes[lane].payer].clone(), self.lanes[lane].config.clone());
        match self.draws.below(4) {
            0 => {
                let amount = u128::from(self.draws.next() % (50 * DOLLAR));
                self.call(&payer, channels, Channels::startWithdrawalCall { config, amount })
            }
            1 => {
                let provider = self.providers[self.lanes[lane].provider].clone();
                let amount = u128::from(self.draws.next() % (5 * DOLLAR));
                let call = Channels::refundCall { config, amount, authorizerSignature: Bytes::new() };
                self.call(&provider, channels, call)
            }
            _ => self.call(&payer, channels, Channels::withdrawCall { config }),
        };
    }

    fn host(&mut self) {
        let retrieval = self.n.parts.at.retrieval;
        let (modelRoot, listing): (B256, _) = (some("model").into(), self.author.address);
        let by = self.hosts[self.draws.below(2)].clone();
        let host = by.address;
        match self.draws.below(6) {
            0 | 1 => {
                self.call(&by, retrieval, Retrieval::pledgeCall { host, modelRoot, listing });
            }
            2 => {
                self.call(&by, retrieval, Retrieval::collectCall { host, modelRoot, listing });
            }
            3 if self.draws.below(3) == 0 => {
                self.call(&by, retrieval, Retrieval::unpledgeCall { host, modelRoot, listing });
            }
            other => {
                let Some(i) = self.some_batch() else { return };
                let epoch = self.batches[i].epoch;
                if other == 4 {
                    let anyone = self.anyone.clone();
                    let call = Retrieval::proveFailureCall { host, modelRoot, listing, epoch };
                    self.call(&anyone, retrieval, call);
                } else {
                    self.answer_question(&by, epoch);
                }
            }
        }
    }

    /// A host collects what a provider's fetching has earned it, or the provider signs that it fetched from it, now and then no more
    /// than before.
    fn fetching(&mut self) {
        let (retrieval, anyone) = (self.n.parts.at.retrieval, self.anyone.clone());
        let host = self.hosts[self.draws.below(2)].clone();
        let provider = self.providers[self.draws.below(2)].clone();
        if self.draws.below(2) == 0 {
            let (host, provider) = (host.address, provider.address);
            let (modelRoot, listing): (B256, _) = (some("model").into(), self.author.address);
            let had = self.n.balance(host);
            let call = Retrieval::collectServedCall { host, modelRoot, listing, provider };
            assert!(self.call(&anyone, retrieval, call));
            if self.n.balance(host) > had {
                *self.happened.entry("paid for serving").or_default() += 1;
            }
            return;
        }
        let fetch = Fetch {
            downloader: provider.address,
            host: host.address,
            modelRoot: some("model").into(),
            listing: self.author.address,
            bytesFetched: self.draws.next() >> (8 + self.draws.below(56)),
        };
        let domain = assay_ledger::retrieval::domain(CHAIN_ID, retrieval);
        let signature = provider.sign(assay_ledger::retrieval::fetch_hash(&fetch, &domain));
        self.call(&anyone, retrieval, Retrieval::servedCall { fetch, signature });
    }

    /// What the sources of all providers are owed, in parts of a unit: exactly what the contract has for them.
    fn owed_to_sources(&mut self) -> u128 {
        let at = self.n.parts.at.retrieval;
        let (modelRoot, listing): (B256, _) = (some("model").into(), self.author.address);
        let mut owed = 0;
        for provider in self.providers.clone() {
            let provider = provider.address;
            let all = Retrieval::sourcesOfCall { modelRoot, listing, provider };
            let all = self.n.chain.read(at, &all).unwrap();
            owed += u128::from(all.dust);
            let mut bytes = 0;
            for host in self.hosts.clone() {
                let call = Retrieval::sourceOfCall { host: host.address, modelRoot, listing, provider };
                let source = self.n.chain.read(at, &call).unwrap();
                owed += source.earned + u128::from(source.bytesFetched) * (all.perByte - source.seen);
                bytes += source.bytesFetched;
            }
            assert_eq!(bytes, all.bytesFetched, "bytes");
        }
        owed
    }

    /// Seldom: a provider signs two truths, loses a dispute, or loses part of its stake; then refunds.
    fn cheat(&mut self) {
        let registry = self.n.parts.at.registry;
        let anyone = self.anyone.clone();
        match self.draws.below(27) {
            0 => {
                let who = self.providers[self.draws.below(2)].clone();
                let x = receipt(&who, 1 << 40, some("model"), 1, B256::ZERO, 0);
                let mut y = x.clone();
                y.fee_micro_usd = 2;
                let call = Objections::proveConflictCall {
                    x: (&x).into(),
                    xSignature: signed(&self.n, &who, &x),
                    y: (&y).into(),
                    ySignature: signed(&self.n, &who, &y),
                };
                let objections = self.n.parts.at.objections;
                self.call(&anyone, objections, call);
            }
            1 => {
                let disputes = self.n.disputes.clone();
                let node = self.providers[self.draws.below(2)].address;
                let call = Registry::strikeCall { node, reporter: anyone.address };
                self.call(&disputes, registry, call);
            }
            2 | 3 => {
                let disputes = self.n.disputes.clone();
                let node = self.auditors[self.draws.below(3)].address;
                let amount = U256::from(self.draws.next() % (5 * DOLLAR));
                let call = Registry::slashCall {
                    node,
                    amount,
                    beneficiary: anyone.address,
                    sharePpm: (self.draws.next() % 1_000_001) as u32,
                };
                self.call(&disputes, registry, call);
            }
            _ => self.refund_some(),
        }
    }

    fn refund_some(&mut self) {
        let Some(i) = self.some_batch() else { return };
        let index = self.draws.below(self.batches[i].posted.leaves.len());
        self.refund(i, index);
    }

    fn refund(&mut self, i: usize, index: usize) {
        let Some(receipt) = self.batches[i].posted.receipts[index].clone() else { return };
        let id = B256::from(*receipt.payer_channel.as_bytes());
        let lanes: Vec<Channels::ChannelConfig> = self.lanes.iter().map(|l| l.config.clone()).collect();
        let Some(c) = lanes.into_iter().find(|c| self.n.channel_id(c) == id) else { return };
        let call = Epochs::refundCall {
            receipt: (&receipt).into(),
            config: Epochs::ChannelConfig {
                payer: c.payer,
                payerAuthorizer: c.payerAuthorizer,
                receiver: c.receiver,
                receiverAuthorizer: c.receiverAuthorizer,
                token: c.token,
                withdrawDelay: c.withdrawDelay,
                salt: c.salt,
            },
            epoch: self.batches[i].epoch,
            proof: (&self.batches[i].posted.proof(index)).into(),
            signature: Bytes::new(),
        };
        let (epochs, anyone) = (self.n.parts.at.epochs, self.anyone.clone());
        self.call(&anyone, epochs, call);
    }

    fn money(&mut self) {
        let vault = self.n.parts.at.vault;
        let who = self.anyone.clone();
        let amount = U256::from(self.draws.next() % DOLLAR);
        self.call(&who, vault, Vault::withdrawCall { to: who.address, amount });
    }

    // ---- what must hold

    fn check(&mut self) {
        self.n.check_money();
        let at = self.n.parts.at.clone();
        let nodes: Vec<Address> = [&self.providers[..], &self.auditors[..], &self.hosts[..]]
            .concat()
            .iter()
            .map(|a| a.address)
            .collect();
        let mut stakes = 0u64;
        for node in nodes {
            let node = self.n.node(node);
            stakes += u64::try_from(node.stake + node.unbonding).unwrap();
        }
        assert_eq!(self.n.balance(at.registry), stakes, "stakes");

        let mut deposits = 0u64;
        for lane in 0..self.lanes.len() {
            let id = self.n.channel_id(&self.lanes[lane].config.clone());
            let c = self.n.chain.read(at.channels, &Channels::channelOfCall { id }).unwrap();
            assert!(c.claimed <= c.balance, "claims are covered");
            deposits += c.balance - c.claimed;
        }
        for provider in 0..2 {
            let receiver = self.providers[provider].address;
            let unsettled = self.n.chain.read(at.channels, &Channels::unsettledOfCall { receiver }).unwrap();
            deposits += unsettled.to::<u64>();
        }
        assert_eq!(self.n.balance(at.channels), deposits, "deposits");
        let fees = self.fees();
        assert_eq!(self.n.balance(at.epochs), fees, "fees");

        let bond = self.n.p.stakes.accusationBond;
        let mut bonds = 0u64;
        for (id, ..) in self.accusations.clone() {
            let state = self.n.chain.read(at.audits, &Audits::accusationOfCall { id }).unwrap().state;
            bonds += if state == 3 { 0 } else { u64::from(state) * bond };
        }
        assert_eq!(self.n.balance(at.audits), bonds, "accusations");
        let demands = self.demands.len() as u64 * self.n.p.stakes.demandBond;
        assert_eq!(self.n.balance(at.objections), demands, "demands");

        let (modelRoot, listing): (B256, _) = (some("model").into(), self.author.address);
        let pool = self.n.chain.read(at.retrieval, &Retrieval::poolOfCall { modelRoot, listing }).unwrap();
        let mut earned = u128::from(pool.dust);
        for host in self.hosts.clone() {
            let call = Retrieval::pledgeOfCall { host: host.address, modelRoot, listing };
            let p = self.n.chain.read(at.retrieval, &call).unwrap();
            let open = p.since.to::<u64>() != 0 && p.until.to::<u64>() == 0;
            earned += u128::from(p.earned) + if open { pool.perPledge - p.seen } else { 0 };
        }
        let parts = (earned << PARTS_BITS) + self.owed_to_sources();
        assert_eq!(u128::from(self.n.balance(at.retrieval)) << PARTS_BITS, parts, "hosts");
    }

    /// What the epochs contract owes: pots, open batches or what is left of them to refund, shares and auditors' parts not paid yet.
    fn fees(&mut self) -> u64 {
        let audits = self.n.parts.at.audits;
        let mut sum = 0u64;
        for provider in 0..2 {
            let account = self.account(provider);
            sum += u64::try_from(account.pot + account.escrow).unwrap();
        }
        for i in 0..self.batches.len() {
            let (epoch, provider) = (self.batches[i].epoch, self.providers[self.batches[i].provider].address);
            let batch = self.n.batch(provider, epoch);
            let part = batch.auditorsPart / u64::from(batch.panel);
            for member in 0..batch.panel {
                let call = Audits::memberOfCall { provider, epoch, member: U256::from(member) };
                if self.n.chain.read(audits, &call).unwrap().phase < 3 {
                    sum += part;
                }
            }
            if batch.state == 2 {
                let shares = self.batches[i].posted.share_leaves(ROYALTY_PPM, HOSTS_PPM);
                for (index, share) in shares.iter().enumerate() {
                    if batch.released & (1 << index) == 0 {
                        sum += share.royalty + share.hosts;
                    }
                }
            }
        }
        sum
    }

    // ---- the end

    /// Everybody leaves; nothing of theirs stays behind.
    fn leave(&mut self) {
        let at = self.n.parts.at.clone();
        let anyone = self.anyone.clone();
        for provider in self.providers.clone() {
            self.call(&anyone, at.channels, Channels::settleCall { receiver: provider.address });
        }
        self.answer_demands(usize::MAX);
        assert!(self.demands.is_empty(), "every demand on honest leaves has an answer");
        for i in 0..self.batches.len() {
            let epoch = self.batches[i].epoch;
            self.n.end_epoch(epoch);
            self.n.chain.mine(1, 900);
            self.draw_epoch(epoch);
            assert_ne!(self.n.beacon(epoch).1, 0, "a beacon");
        }
        self.n.chain.mine(1, 30_000);
        let disputes = self.n.disputes.clone();
        for (id, ..) in self.accusations.clone() {
            self.call(&anyone, at.audits, Audits::lapseCall { id });
            // A dispute always ends.
            let accuserIsRight = self.draws.below(2) == 0;
            self.call(&disputes, at.audits, Audits::ruledCall { id, accuserIsRight });
        }
        for i in 0..self.batches.len() {
            self.pay_members(i);
            self.settle_batch(i);
            for index in 0..self.batches[i].posted.leaves.len() {
                self.refund(i, index);
            }
        }
        self.check();
        self.n.chain.mine(1, 86_401);
        for provider in self.providers.clone() {
            self.call(&anyone, at.epochs, Epochs::sweepCall { provider: provider.address });
        }
        for lane in 0..self.lanes.len() {
            let (payer, config) =
                (self.payers[self.lanes[lane].payer].clone(), self.lanes[lane].config.clone());
            let start = Channels::startWithdrawalCall { config: config.clone(), amount: u128::MAX };
            assert!(self.call(&payer, at.channels, start));
            self.n.chain.mine(1, 900);
            assert!(self.call(&payer, at.channels, Channels::withdrawCall { config }));
        }
        let (modelRoot, listing): (B256, _) = (some("model").into(), self.author.address);
        for host in self.hosts.clone() {
            let host = host.address;
            let by = self.hosts.iter().find(|h| h.address == host).unwrap().clone();
            self.call(&by, at.retrieval, Retrieval::collectCall { host, modelRoot, listing });
            self.call(&by, at.retrieval, Retrieval::unpledgeCall { host, modelRoot, listing });
            for provider in self.providers.clone() {
                let provider = provider.address;
                let call = Retrieval::collectServedCall { host, modelRoot, listing, provider };
                assert!(self.call(&by, at.retrieval, call));
            }
        }
        for (i, auditor) in self.auditors.clone().into_iter().enumerate() {
            let slots = vec![U256::from(2 * i), U256::from(2 * i + 1)];
            let call = Audits::leaveSeatsCall { auditor: auditor.address, slots };
            assert!(self.call(&auditor, at.audits, call));
        }
        let nodes: Vec<Actor> = [&self.providers[..], &self.auditors[..], &self.hosts[..]].concat();
        for node in &nodes {
            let amount = U256::from(self.n.node(node.address).stake);
            assert!(self.call(node, at.registry, Registry::unbondCall { node: node.address, amount }));
        }
        let wait = u64::from(self.n.p.times.unbondSeconds);
        self.n.chain.mine(1, wait);
        for node in &nodes {
            if self.n.node(node.address).unbonding > 0 {
                let call = Registry::withdrawCall { node: node.address, nextOpen: 0 };
                assert!(self.call(node, at.registry, call), "a stake left");
            }
        }
        for account in self.n.accounts.clone() {
            let part = [at.registry, at.channels, at.epochs, at.objections, at.audits, at.retrieval];
            let amount = U256::from(self.n.balance(account));
            if !part.contains(&account) {
                self.n.send_from(account, at.vault, Vault::withdrawCall { to: account, amount }).unwrap();
            }
        }
        self.check();
        let mut pots = 0u64;
        for provider in 0..2 {
            let account = self.account(provider);
            assert_eq!(account.escrow, 0, "no fees in between");
            pots += u64::try_from(account.pot).unwrap();
        }
        for part in [at.registry, at.channels, at.objections, at.audits] {
            assert_eq!(self.n.balance(part), 0, "an empty part");
        }
        assert_eq!(self.n.balance(at.epochs), pots, "only pots without receipts");
        // Each source leaves less than a unit, and so does what did not divide.
        let sources = (self.providers.len() * (self.hosts.len() + 1)) as u64;
        assert!(self.n.balance(at.retrieval) < sources, "hosts have theirs");
    }
}

#[test]
fn money_is_conserved_and_everyone_can_leave() {
    let seeds: u64 = std::env::var("ASSAY_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let from: u64 = std::env::var("ASSAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut happened: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in from..from + seeds {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            world.check();
        }
        world.leave();
        for (action, times) in world.happened {
            *happened.entry(action).or_default() += times;
        }
    }
    println!("{happened:?}");
    if seeds >= 60 {
        for action in [
            "deposit",
            "claim",
            "settle",
            "post",
            "close",
            "fixBeacon",
            "commit",
            "reveal",
            "collect",
            "proveAbsence",
            "release",
            "demandLeaf",
            "answerLeaf",
            "accuse",
            "acquit",
            "contest",
            "ruled",
            "lapse",
            "bond",
            "unbond",
            "withdraw",
            "startWithdrawal",
            "refund",
            "pledge",
            "unpledge",
            "answer",
            "proveFailure",
            "served",
            "collectServed",
            "paid for serving",
            "strike",
            "slash",
            "proveConflict",
            "sweep",
        ] {
            assert!(happened.contains_key(action), "{action} never happened");
        }
    }
}
