//! What the builder makes, before the contracts themselves.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes};
use assay_core::id::{ModelRoot, SignatureBytes};
use assay_core::receipt::{Receipt, SignedReceipt};
use assay_ledger::contracts::{Channels, Epochs, Objections, Registry, b256};
use assay_ledger::epochs::{Batch, Builder, End, Identity, Listing, Posting, Terms};

use crate::naive::POSTING;
use crate::network::{Actor, DOLLAR, Network, PROVIDER, Posted, core_hash, receipt, signed, some};
use crate::power::Power;

const LEAF: u8 = 0;
const ROYALTY_PPM: u32 = 50_000;
const HOSTS_PPM: u32 = 30_000;

struct Market {
    n: Network,
    payer: Actor,
    provider: Actor,
    config: Channels::ChannelConfig,
    channel: B256,
    listed: [u8; 32],
    free: [u8; 32],
    listings: BTreeMap<ModelRoot, Listing>,
}

fn market() -> Market {
    let mut n = Network::new();
    let (payer, provider, author) = (n.rich("payer", 1000), n.rich("provider", 1000), n.rich("author", 0));
    n.enrol(&provider, PROVIDER, 10 * DOLLAR);
    let listed = some("model");
    let registry = n.parts.at.registry;
    let list = Registry::listCall {
        modelRoot: listed.into(),
        royaltyPpm: ROYALTY_PPM,
        contentRoot: B256::ZERO,
        chunks: 0,
        manifest: String::new(),
    };
    n.send(&author, registry, list).unwrap();
    let config = n.config(&payer, &provider, 0);
    n.fund(&payer, &config, 500 * DOLLAR).unwrap();
    n.earn(&payer, &provider, &config, 20 * DOLLAR).unwrap();
    let channel = n.channel_id(&config);
    let listing = Listing { owner: author.address, royalty_ppm: ROYALTY_PPM };
    let listings = BTreeMap::from([(ModelRoot::from_bytes(listed), listing)]);
    Market { n, payer, provider, config, channel, listed, free: some("another model"), listings }
}

impl Market {
    fn builder(&self) -> Builder<Power> {
        let identity = Identity { provider: self.provider.node(), domain: self.n.domain() };
        Builder::on(Power::default(), identity).unwrap().0
    }

    fn receipt(&self, sequence: u64, epoch: u64) -> Receipt {
        let (model, fee) = match sequence % 4 {
            0 => (self.free, 7),
            1 => (self.listed, 0),
            _ => (self.listed, 100_000),
        };
        receipt(&self.provider, sequence, model, fee, self.channel, epoch)
    }

    fn sign(&self, receipt: &Receipt) -> SignedReceipt {
        let signature =
            SignatureBytes::from_bytes(signed(&self.n, &self.provider, receipt)[..].try_into().unwrap());
        let signed = SignedReceipt { receipt: receipt.clone(), domain: self.n.domain(), signature };
        signed.verify().unwrap();
        signed
    }

    fn post(&mut self, batch: &Batch) {
        let epochs = self.n.parts.at.epochs;
        let call = batch.post_call(self.provider.node(), &self.listings);
        self.n.send(&self.provider, epochs, call).unwrap();
    }
}

#[test]
fn a_built_batch_is_posted_opened_settled_and_released() {
    let mut m = market();
    let mut b = m.builder();
    let provider = m.provider.node();
    let mut stored: BTreeMap<u64, SignedReceipt> = BTreeMap::new();
    // 300 leaves: more than one block. The last but one is signed in the next epoch.
    for sequence in (20..320).rev().filter(|n| n % 50 != 7) {
        let epoch = u64::from(sequence == 318);
        stored.insert(sequence, m.sign(&m.receipt(sequence, epoch)));
    }
    b.append_many(&stored.values().rev().cloned().collect::<Vec<_>>()).unwrap();
    m.n.end_epoch(0);
    let pot = m.n.chain.read(m.n.parts.at.epochs, &Epochs::accountOfCall { provider: m.provider.address });
    let pot = u64::try_from(pot.unwrap().pot).unwrap();
    let batch = b.seal(0, &Terms { total_max: pot, ..Terms::default() }).unwrap();
    assert_eq!((batch.first, batch.count, batch.gaps, batch.end), (20, 298, 6, End::LaterEpoch));

    // The same as the contracts' own tests make, and as the contract takes it.
    let listings: BTreeMap<[u8; 32], Address> =
        m.listings.iter().map(|(root, l)| (*root.as_bytes(), l.owner)).collect();
    let receipts = (20..318).map(|n| stored.get(&n).map(|r| r.receipt.clone())).collect();
    let posted = Posted::of(&m.n.domain(), 20, receipts, &listings);
    let call = batch.post_call(provider, &m.listings);
    assert_eq!(call, posted.call(m.provider.address, 0));
    m.post(&batch);
    b.posted(0, POSTING).unwrap();
    let shares = batch.share_tree(&m.listings, HOSTS_PPM);
    assert_eq!(b256(&shares.root()), m.n.batch(m.provider.address, 0).sharesRoot);

    // Every kind of leaf is opened: first, last, beside ends of blocks, gaps, without fee.
    let objections = m.n.parts.at.objections;
    for sequence in [20, 21, 57, 58, 107, 275, 276, 277, 316, 317] {
        let index = sequence - 20;
        let ask = Objections::demandLeafCall { provider: m.provider.address, epoch: 0, index };
        m.n.send(&m.payer, objections, ask).unwrap();
        let opening = b.opening(sequence).unwrap();
        let other = stored.get(&(sequence + 1));
        assert!(opening.answer(other, &shares).is_err());
        let opening = opening.answer(stored.get(&sequence), &shares).unwrap();
        let answer = Objections::answerLeafCall { provider: m.provider.address, epoch: 0, index, opening };
        m.n.send(&m.provider, objections, answer).unwrap();
    }

    // What was left goes into the next batch, late.
    m.n.end_epoch(1);
    let late = b.seal(1, &Terms { first: Some(318), ..Terms::default() }).unwrap();
    assert_eq!((late.first, late.count), (318, 2));
    m.post(&late);
    b.posted(1, Posting { block: 2, ..POSTING }).unwrap();

    let (_, fixed) = m.n.draw(1);
    m.n.chain.warp(fixed + 1);
    let (_, fixed) = if m.n.beacon(0).1 == 0 { m.n.draw(0) } else { m.n.beacon(0) };
    m.n.chain.warp(fixed + 14_401);
    let epochs = m.n.parts.at.epochs;
    m.n.send(&m.provider, epochs, Epochs::settleCall { provider: m.provider.address, epoch: 0 }).unwrap();
    b.settled(0).unwrap();
    for model in [m.free, m.listed] {
        let release = shares.release_call(provider, 0, &ModelRoot::from_bytes(model)).unwrap();
        m.n.send(&m.payer, epochs, release).unwrap();
    }
    let owner = m.listings[&ModelRoot::from_bytes(m.listed)].owner;
    let fees: u64 = posted.shares.iter().find(|s| s.modelRoot.0 == m.listed).unwrap().total;
    assert_eq!(m.n.balance(owner), fees / 20);
    m.n.check_money();
}

#[test]
fn a_payer_is_refunded_by_the_builders_proof() {
    let mut m = market();
    let mut b = m.builder();
    for sequence in 0..30 {
        b.append(&m.sign(&m.receipt(sequence, 0))).unwrap();
    }
    m.n.end_epoch(0);
    let batch = b.seal(0, &Terms::default()).unwrap();
    m.post(&batch);
    // The provider is struck, for a demand that it does not answer.
    let (objections, epochs) = (m.n.parts.at.objections, m.n.parts.at.epochs);
    let ask = Objections::demandLeafCall { provider: m.provider.address, epoch: 0, index: 1 };
    m.n.send(&m.payer, objections, ask).unwrap();
    m.n.chain.mine(1, 3601);
    let silence =
        Objections::proveSilenceCall { provider: m.provider.address, epoch: 0, index: 1, kind: LEAF };
    m.n.send(&m.payer, objections, silence).unwrap();
    let refund = |sequence: u64, of: u64| Epochs::refundCall {
        receipt: (&m.receipt(of, 0)).into(),
        config: Epochs::ChannelConfig {
            payer: m.config.payer,
            payerAuthorizer: m.config.payerAuthorizer,
            receiver: m.config.receiver,
            receiverAuthorizer: m.config.receiverAuthorizer,
            token: m.config.token,
            withdrawDelay: m.config.withdrawDelay,
            salt: m.config.salt,
        },
        epoch: 0,
        proof: (&b.proof(sequence).unwrap().proof).into(),
        signature: Bytes::new(),
    };
    let (wrong, right) = (refund(3, 2), refund(2, 2));
    assert!(m.n.send(&m.payer, epochs, wrong).unwrap_err().is::<Epochs::BadProof>());
    let before = m.n.balance(m.payer.address);
    m.n.send(&m.payer, epochs, right).unwrap();
    let posted = m.n.batch(m.provider.address, 0);
    assert_eq!(posted.total, batch.total());
    let back = 100_000 * (posted.total - posted.auditorsPart) / posted.total;
    assert_eq!(m.n.balance(m.payer.address) - before, back);
    assert_eq!(core_hash(posted.root), batch.root);
    let account = m.n.chain.read(epochs, &Epochs::accountOfCall { provider: m.provider.address }).unwrap();
    assert_eq!(account.nextSequence.to::<u64>(), batch.next() + 1);
    m.n.check_money();
}
