//! A deployment with money in many hands, and short words for what they do.

use std::cell::RefCell;
use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolCall;
use assay_chain::scratch::{CHAIN_ID, Done, Failure, Scratch, header};
use assay_core::id::{DigestRoot, Hash, ModelRoot, NodeAddress, Nonce, RequestHash, TranscriptRoot};
use assay_core::merkle::{self, Proof};
use assay_core::receipt::{Domain, Receipt};
use assay_ledger::contracts::{
    Audits, Channels, Directory, Epochs, Objections, Registry, TestToken, Vault, channel_id, node_address,
};
use assay_ledger::deployment::Deployment;
use assay_ledger::voucher;

use crate::deployed::{deploy, deploy_test_token};

pub const DOLLAR: u64 = 1_000_000;
pub const START: u64 = 1_800_000_000;
pub const PROVIDER: u8 = 1;
pub const HOST: u8 = 2;
pub const AUDITOR: u8 = 4;

thread_local! {
    /// The most that an action has cost on this thread.
    pub static GAS: RefCell<BTreeMap<String, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// A key and its address.
#[derive(Clone, Debug)]
pub struct Actor {
    pub key: PrivateKeySigner,
    pub address: Address,
}

impl Actor {
    pub fn named(name: &str) -> Self {
        let key = PrivateKeySigner::from_bytes(&keccak256(name)).unwrap();
        Actor { address: key.address(), key }
    }

    pub fn sign(&self, hash: B256) -> Bytes {
        self.key.sign_hash_sync(&hash).unwrap().as_bytes().to_vec().into()
    }

    pub fn node(&self) -> NodeAddress {
        node_address(self.address)
    }
}

/// Windows of the tests: hours instead of days.
pub fn parameters() -> Directory::Parameters {
    let mut p = assay_ledger::deployment::parameters();
    p.times = Directory::Times {
        genesis: START,
        epochSeconds: 3600,
        postSeconds: 900,
        beaconBlocks: 4,
        commitSeconds: 7200,
        revealSeconds: 3600,
        objectSeconds: 3600,
        answerSeconds: 3600,
        disputeSeconds: 7200,
        refundSeconds: 86_400,
        unbondSeconds: 40_000,
        retrievalSeconds: 7200,
    };
    p.rates.retrievalPpm = 1_000_000;
    p
}

/// A chain with a deployment.
pub struct Network {
    pub chain: Scratch,
    pub parts: Deployment,
    pub p: Directory::Parameters,
    pub treasury: Address,
    pub disputes: Actor,
    /// Everyone who may have a balance.
    pub accounts: Vec<Address>,
}

impl Network {
    pub fn new() -> Self {
        Self::with(parameters(), 0)
    }

    /// An account stands for the dispute contract.
    pub fn with(p: Directory::Parameters, token_fee_ppm: u32) -> Self {
        let mut chain = Scratch::new(START);
        let deployer = Actor::named("deployer").address;
        let token = deploy_test_token(&mut chain, deployer, token_fee_ppm).unwrap();
        Self::over(chain, token, p, Some(Actor::named("disputes").address))
    }

    /// With the contracts of disputes.
    pub fn with_disputes(p: Directory::Parameters) -> Self {
        let mut chain = Scratch::new(START);
        let token = deploy_test_token(&mut chain, Actor::named("deployer").address, 0).unwrap();
        Self::over(chain, token, p, None)
    }

    /// On a chain that has the token.
    pub fn over(
        mut chain: Scratch,
        token: Address,
        p: Directory::Parameters,
        disputes: Option<Address>,
    ) -> Self {
        let deployer = Actor::named("deployer").address;
        let (treasury, stand_in) = (Actor::named("treasury").address, Actor::named("disputes"));
        let parts = deploy(&mut chain, deployer, token, treasury, disputes, p.clone()).unwrap();
        let disputes = stand_in;
        let at = &parts.at;
        let accounts = vec![
            treasury,
            at.disputes,
            at.registry,
            at.channels,
            at.epochs,
            at.objections,
            at.audits,
            at.retrieval,
        ];
        Network { chain, parts, p, treasury, disputes, accounts }
    }

    pub fn send<C: SolCall>(
        &mut self,
        from: &Actor,
        to: Address,
        call: C,
    ) -> Result<Done<C::Return>, Failure> {
        self.send_from(from.address, to, call)
    }

    pub fn send_from<C: SolCall>(
        &mut self,
        from: Address,
        to: Address,
        call: C,
    ) -> Result<Done<C::Return>, Failure> {
        let done = self.chain.send(from, to, &call)?;
        self.note(to, C::SIGNATURE.split('(').next().unwrap(), done.gas);
        Ok(done)
    }

    fn note(&self, to: Address, action: &str, gas: u64) {
        let at = &self.parts.at;
        let parts = [
            (at.vault, "Vault"),
            (at.registry, "Registry"),
            (at.channels, "Channels"),
            (at.epochs, "Epochs"),
            (at.objections, "Objections"),
            (at.audits, "Audits"),
            (at.retrieval, "Retrieval"),
            (at.disputes, "Disputes"),
        ];
        let Some((_, part)) = parts.iter().find(|(part, _)| *part == to) else { return };
        GAS.with_borrow_mut(|all| {
            let most = all.entry(format!("{part}.{action}")).or_default();
            *most = gas.max(*most);
        });
    }

    /// An actor with `dollars` in the vault, and none elsewhere.
    pub fn rich(&mut self, name: &str, dollars: u64) -> Actor {
        let actor = Actor::named(name);
        let amount = U256::from(dollars * DOLLAR);
        let (token, vault) = (self.parts.at.token, self.parts.at.vault);
        self.send(&actor, token, TestToken::mintCall { to: actor.address, amount }).unwrap();
        self.send(&actor, token, TestToken::approveCall { spender: vault, value: U256::MAX }).unwrap();
        self.send(&actor, vault, Vault::depositCall { account: actor.address, amount }).unwrap();
        self.accounts.push(actor.address);
        actor
    }

    pub fn balance(&mut self, account: Address) -> u64 {
        let vault = self.parts.at.vault;
        self.chain.read(vault, &Vault::balanceOfCall { account }).unwrap().to()
    }

    /// The sum of all balances is what the vault says, and the vault has it.
    pub fn check_money(&mut self) {
        let sum: u64 = self.accounts.clone().into_iter().map(|a| self.balance(a)).sum();
        let (vault, token) = (self.parts.at.vault, self.parts.at.token);
        let total: u64 = self.chain.read(vault, &Vault::totalCall {}).unwrap().to();
        let held: u64 = self.chain.read(token, &TestToken::balanceOfCall { account: vault }).unwrap().to();
        assert_eq!(sum, total, "balances and their total");
        assert_eq!(total, held, "the total and the vault's tokens");
    }

    // ---- accusations

    /// What the dispute contract does when an accused contests, done by the account that stands for it.
    pub fn contest(&mut self, id: B256, by: &Actor) -> Result<(), Failure> {
        let (vault, audits, disputes) = (self.parts.at.vault, self.parts.at.audits, self.disputes.clone());
        let amount = U256::from(self.p.stakes.accusationBond);
        self.send(&disputes, audits, Audits::contestCall { id, caller: by.address })?;
        self.send(&disputes, vault, Vault::takeCall { from: by.address, amount })?;
        self.send(&disputes, vault, Vault::giveCall { to: audits, amount }).map(|_| ())
    }

    // ---- nodes

    /// Enrols a node that is its own owner, with stake.
    pub fn enrol(&mut self, actor: &Actor, roles: u8, stake: u64) {
        let registry = self.parts.at.registry;
        let call = Registry::enrolCall {
            node: actor.address,
            roles,
            endpoint: "https://node.example".into(),
            priceList: B256::ZERO,
            signature: Bytes::new(),
        };
        self.send(actor, registry, call).unwrap();
        if stake > 0 {
            self.bond(actor, stake).unwrap();
        }
    }

    pub fn bond(&mut self, actor: &Actor, amount: u64) -> Result<(), Failure> {
        let registry = self.parts.at.registry;
        let call = Registry::bondCall { node: actor.address, amount: U256::from(amount) };
        self.send(actor, registry, call).map(|_| ())
    }

    pub fn node(&mut self, node: Address) -> Registry::Node {
        let registry = self.parts.at.registry;
        self.chain.read(registry, &Registry::nodeOfCall { node }).unwrap()
    }

    // ---- channels

    pub fn config(&self, payer: &Actor, receiver: &Actor, lane: u64) -> Channels::ChannelConfig {
        Channels::ChannelConfig {
            payer: payer.address,
            payerAuthorizer: Address::ZERO,
            receiver: receiver.address,
            receiverAuthorizer: Address::ZERO,
            token: self.parts.at.token,
            withdrawDelay: alloy_primitives::Uint::from(900u64),
            salt: B256::from(U256::from(lane)),
        }
    }

    pub fn channel_id(&self, config: &Channels::ChannelConfig) -> B256 {
        voucher::channel_id(config, &voucher::domain(CHAIN_ID, self.parts.at.channels))
    }

    pub fn fund(
        &mut self,
        payer: &Actor,
        config: &Channels::ChannelConfig,
        amount: u64,
    ) -> Result<(), Failure> {
        let channels = self.parts.at.channels;
        let call = Channels::depositCall { config: config.clone(), amount: amount.into() };
        self.send(payer, channels, call).map(|_| ())
    }

    pub fn voucher(
        &self,
        payer: &Actor,
        config: &Channels::ChannelConfig,
        max: u64,
        total: u64,
    ) -> Channels::VoucherClaim {
        let domain = voucher::domain(CHAIN_ID, self.parts.at.channels);
        let hash = voucher::voucher_hash(voucher::channel_id(config, &domain), max.into(), &domain);
        voucher::claim(config, max.into(), payer.sign(hash), total.into())
    }

    /// Claims `total` from a channel and has it settled.
    pub fn earn(
        &mut self,
        payer: &Actor,
        receiver: &Actor,
        config: &Channels::ChannelConfig,
        total: u64,
    ) -> Result<(), Failure> {
        let channels = self.parts.at.channels;
        let claims = vec![self.voucher(payer, config, total, total)];
        self.send(receiver, channels, Channels::claimCall { claims })?;
        self.send(receiver, channels, Channels::settleCall { receiver: receiver.address }).map(|_| ())
    }

    // ---- epochs

    pub fn epoch(&mut self) -> u64 {
        let epochs = self.parts.at.epochs;
        self.chain.read(epochs, &Epochs::currentCall {}).unwrap()
    }

    /// Sets the clock to the first second in which `epoch` can be posted.
    pub fn end_epoch(&mut self, epoch: u64) {
        let t = &self.p.times;
        let time = t.genesis + (epoch + 1) * u64::from(t.epochSeconds);
        self.chain.warp(time);
    }

    pub fn domain(&self) -> Domain {
        Domain { chain_id: CHAIN_ID, contract: node_address(self.parts.at.epochs) }
    }

    /// Closes an epoch's posting and fixes its beacon.
    pub fn draw(&mut self, epoch: u64) -> (B256, u64) {
        let t = self.p.times.clone();
        let epochs = self.parts.at.epochs;
        let anyone = Actor::named("anyone");
        let ends = t.genesis + (epoch + 1) * u64::from(t.epochSeconds) + u64::from(t.postSeconds);
        self.chain.warp(ends);
        self.send(&anyone, epochs, Epochs::closeCall { epoch }).unwrap();
        let number = self.chain.read(epochs, &Epochs::beaconOfCall { epoch }).unwrap().number;
        self.chain.mine(u64::from(t.beaconBlocks) + 1, 60);
        self.send(&anyone, epochs, Epochs::fixBeaconCall { epoch, header: header(number).into() }).unwrap();
        self.beacon(epoch)
    }

    pub fn beacon(&mut self, epoch: u64) -> (B256, u64) {
        let epochs = self.parts.at.epochs;
        let beacon = self.chain.read(epochs, &Epochs::beaconOfCall { epoch }).unwrap();
        (beacon.value, beacon.fixedAt)
    }

    pub fn batch(&mut self, provider: Address, epoch: u64) -> Epochs::Batch {
        let epochs = self.parts.at.epochs;
        self.chain.read(epochs, &Epochs::batchOfCall { provider, epoch }).unwrap()
    }

    pub fn post(&mut self, by: &Actor, epoch: u64, posted: &Posted) -> Result<(), Failure> {
        let epochs = self.parts.at.epochs;
        self.send(by, epochs, posted.call(by.address, epoch)).map(|_| ())
    }
}

/// Some 32 bytes that stand for a hash.
pub fn some(text: &str) -> [u8; 32] {
    keccak256(text).0
}

/// Leaves of a request's hash, of which only the first says something: that its client gave its consent to audits.
fn asked(provider: NodeAddress, sequence: u64, model: [u8; 32]) -> [Hash; 5] {
    let first = [b"assay/request/2".as_slice(), &model, &[1]].concat();
    let rest = |i: u8| merkle::leaf(&some(&format!("request {provider} {sequence} {i}")));
    [merkle::leaf(&first), rest(1), rest(2), rest(3), rest(4)]
}

/// That the client of a receipt's request gave its consent.
pub fn consent(receipt: &Receipt) -> Proof {
    let leaves = asked(receipt.provider, receipt.sequence, *receipt.model_root.as_bytes());
    merkle::prove(&leaves, 0).unwrap()
}

/// A receipt of one provider, whose fee `config` pays.
pub fn receipt(
    provider: &Actor,
    sequence: u64,
    model: [u8; 32],
    fee: u64,
    channel: B256,
    epoch: u64,
) -> Receipt {
    let s = |what: &str| some(&format!("{what} {} {sequence}", provider.address));
    Receipt {
        provider: provider.node(),
        sequence,
        model_root: ModelRoot::from_bytes(model),
        request_hash: RequestHash::from_bytes(
            *merkle::root(asked(provider.node(), sequence, model)).as_bytes(),
        ),
        transcript_root: TranscriptRoot::from_bytes(s("transcript")),
        digest_root: DigestRoot::from_bytes(s("digest")),
        prompt_tokens: 10,
        completion_tokens: 20,
        fee_micro_usd: fee,
        payer_channel: channel_id(channel),
        client_nonce: Nonce::from_bytes(s("nonce")),
        epoch,
    }
}

/// What a provider posts, with everything to open it.
#[derive(Clone, Debug)]
pub struct Posted {
    pub first: u64,
    pub receipts: Vec<Option<Receipt>>,
    pub leaves: Vec<Hash>,
    pub tallies: Vec<Vec<u8>>,
    pub shares: Vec<Epochs::Share>,
}

impl Posted {
    /// Receipts from `first` on, `None` where nothing was signed; `listings` says who is paid for which model.
    pub fn of(
        domain: &Domain,
        first: u64,
        receipts: Vec<Option<Receipt>>,
        listings: &BTreeMap<[u8; 32], Address>,
    ) -> Self {
        let mut totals: BTreeMap<[u8; 32], u64> = BTreeMap::new();
        for r in receipts.iter().flatten().filter(|r| r.fee_micro_usd > 0) {
            *totals.entry(*r.model_root.as_bytes()).or_default() += r.fee_micro_usd;
        }
        let leaf = |r: &Option<Receipt>| {
            let hash = r.as_ref().map_or(Hash::ZERO, |r| r.signing_hash(domain));
            merkle::leaf(hash.as_bytes())
        };
        let leaves = receipts.iter().map(leaf).collect();
        let mut running: BTreeMap<[u8; 32], u64> = totals.keys().map(|m| (*m, 0)).collect();
        let tallies = receipts
            .iter()
            .map(|r| {
                if let Some(r) = r.as_ref().filter(|r| r.fee_micro_usd > 0) {
                    *running.get_mut(r.model_root.as_bytes()).unwrap() += r.fee_micro_usd;
                }
                running.values().flat_map(|t| t.to_be_bytes()).collect()
            })
            .collect();
        let shares = totals
            .iter()
            .map(|(model, total)| Epochs::Share {
                modelRoot: model.into(),
                listing: listings.get(model).copied().unwrap_or(Address::ZERO),
                total: *total,
            })
            .collect();
        Posted { first, receipts, leaves, tallies, shares }
    }

    pub fn call(&self, provider: Address, epoch: u64) -> Epochs::postCall {
        Epochs::postCall {
            provider,
            epoch,
            root: b(merkle::root(self.leaves.iter().copied())),
            tallyRoot: b(merkle::root(self.tallies.iter().map(|t| merkle::leaf(t)))),
            first: self.first,
            count: self.leaves.len() as u32,
            shares: self.shares.clone(),
        }
    }

    pub fn total(&self) -> u64 {
        self.shares.iter().map(|s| s.total).sum()
    }

    pub fn proof(&self, index: usize) -> Proof {
        merkle::prove(&self.leaves, index).unwrap()
    }

    /// The share's leaves, as the contract makes them.
    pub fn share_leaves(&self, royalty_ppm: u64, hosts_ppm: u64) -> Vec<Epochs::ShareLeaf> {
        let part = |total: u64, ppm: u64| total * ppm / 1_000_000;
        self.shares
            .iter()
            .map(|s| Epochs::ShareLeaf {
                modelRoot: s.modelRoot,
                listing: s.listing,
                total: s.total,
                royalty: if s.listing == Address::ZERO { 0 } else { part(s.total, royalty_ppm) },
                hosts: part(s.total, hosts_ppm),
            })
            .collect()
    }

    pub fn opening(&self, index: usize, royalty_ppm: u64, hosts_ppm: u64) -> Objections::Opening {
        let tally_leaves: Vec<Hash> = self.tallies.iter().map(|t| merkle::leaf(t)).collect();
        let before = index.saturating_sub(1);
        let receipt = self.receipts[index].clone();
        let blank = self.receipts.iter().flatten().next().cloned();
        Objections::Opening {
            receipt: receipt.as_ref().or(blank.as_ref()).map(Into::into).unwrap_or_default(),
            isVoid: receipt.is_none(),
            proof: (&self.proof(index)).into(),
            tally: self.tallies[index].clone().into(),
            tallyProof: (&merkle::prove(&tally_leaves, index).unwrap()).into(),
            before: if index == 0 { Bytes::new() } else { self.tallies[before].clone().into() },
            beforeProof: (&merkle::prove(&tally_leaves, before).unwrap()).into(),
            shares: self
                .share_leaves(royalty_ppm, hosts_ppm)
                .into_iter()
                .map(|s| Objections::ShareLeaf {
                    modelRoot: s.modelRoot,
                    listing: s.listing,
                    total: s.total,
                    royalty: s.royalty,
                    hosts: s.hosts,
                })
                .collect(),
        }
    }
}

pub fn b(hash: Hash) -> B256 {
    B256::from(*hash.as_bytes())
}

pub fn core_hash(hash: B256) -> Hash {
    Hash::from_bytes(hash.0)
}

/// Signs a receipt in the deployment's domain.
pub fn signed(network: &Network, by: &Actor, receipt: &Receipt) -> Bytes {
    by.sign(b(receipt.signing_hash(&network.domain())))
}

/// The digests of a member, by sequence number.
pub fn audit_tree(
    network: &mut Network,
    epoch: u64,
    member: usize,
    auditor: Address,
    receipts: &[Receipt],
) -> Vec<(u64, Hash)> {
    let audits = network.parts.at.audits;
    let (beacon, _) = network.beacon(epoch);
    let mut leaves = Vec::new();
    for r in receipts {
        let call = Audits::isAssignedCall { epoch, member: U256::from(member), receipt: r.into() };
        if network.chain.read(audits, &call).unwrap() {
            let digest = digest(auditor, beacon, r, &trace_root(r));
            leaves.push((r.sequence, core_hash(digest)));
        }
    }
    leaves
}

/// Protocol 11.3.
pub fn digest(auditor: Address, beacon: B256, receipt: &Receipt, trace: &[u8; 32]) -> B256 {
    keccak256(
        [
            b"assay/audit/1".as_slice(),
            auditor.as_slice(),
            beacon.as_slice(),
            receipt.id().as_bytes(),
            trace.as_slice(),
        ]
        .concat(),
    )
}

/// What stands for a receipt's true trace root here.
pub fn trace_root(receipt: &Receipt) -> [u8; 32] {
    some(&format!("trace {}", receipt.id()))
}
