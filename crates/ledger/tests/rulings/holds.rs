//! The batch in which a disputed receipt stands is held, whichever it is.

use std::collections::BTreeMap;

use alloy_primitives::U256;
use assay_core::merkle::Proof;
use assay_core::receipt::Receipt;
use assay_ledger::contracts::{Disputes, Epochs};

use crate::network::{Actor, DOLLAR, Network, PROVIDER, Posted, b, parameters, receipt, signed, some};

struct Late {
    n: Network,
    provider: Actor,
    challenger: Actor,
    /// Signed in epoch 0, posted in epoch 1.
    receipt: Receipt,
    posted: Posted,
}

fn late() -> Late {
    let mut n = Network::with_disputes(parameters());
    let (payer, provider) = (n.rich("payer", 1000), n.rich("provider", 1000));
    let challenger = n.rich("challenger", 1000);
    n.enrol(&provider, PROVIDER, 10 * DOLLAR);
    let config = n.config(&payer, &provider, 0);
    n.fund(&payer, &config, 500 * DOLLAR).unwrap();
    n.earn(&payer, &provider, &config, 10 * DOLLAR).unwrap();
    let channel = n.channel_id(&config);
    let all: Vec<Receipt> = (0..5).map(|i| receipt(&provider, i, some("model"), 1000, channel, 0)).collect();
    n.end_epoch(1);
    let posted = Posted::of(&n.domain(), 0, all.iter().cloned().map(Some).collect(), &BTreeMap::new());
    Late { n, provider, challenger, receipt: all[3].clone(), posted }
}

impl Late {
    fn open(&mut self, epoch: u64) {
        let disputes = self.n.parts.at.disputes;
        let signature = signed(&self.n, &self.provider, &self.receipt);
        let call = Disputes::openCall { stated: (&self.receipt).into(), signature, epoch };
        self.n.send(&self.challenger, disputes, call).unwrap();
    }

    fn hold(&mut self, epoch: u64) -> Result<(), assay_chain::scratch::Failure> {
        let (disputes, challenger) = (self.n.parts.at.disputes, self.challenger.address);
        let call = Disputes::holdCall { stated: (&self.receipt).into(), challenger, epoch };
        self.n.send(&Actor::named("anyone"), disputes, call).map(|_| ())
    }

    fn held(&mut self) -> u64 {
        self.n.batch(self.provider.address, 1).heldUntil.to()
    }

    fn settle(&mut self) -> Result<(), assay_chain::scratch::Failure> {
        let (epochs, provider) = (self.n.parts.at.epochs, self.provider.address);
        let call = Epochs::settleCall { provider, epoch: 1 };
        self.n.send(&Actor::named("anyone"), epochs, call).map(|_| ())
    }
}

#[test]
fn a_receipt_posted_late_holds_the_batch_that_it_stands_in() {
    let mut l = late();
    l.n.post(&l.provider.clone(), 1, &l.posted.clone()).unwrap();
    let (_, fixed) = l.n.draw(1);
    l.n.chain.warp(fixed + 14_000);
    // Its own epoch has no batch; naming another than it stands in holds nothing.
    l.open(1);
    assert_eq!(l.held(), fixed + 14_000 + 7200);
    l.n.chain.warp(fixed + 14_401);
    assert!(l.settle().unwrap_err().is::<Epochs::AuditOpen>());
    // Not again once objections are over: no hold is for ever.
    l.hold(1).unwrap();
    assert_eq!(l.held(), fixed + 14_000 + 7200);
    l.n.chain.warp(fixed + 14_000 + 7201);
    l.settle().unwrap();
}

#[test]
fn a_receipt_posted_after_the_dispute_began_can_be_held_too() {
    let mut l = late();
    l.open(0);
    assert_eq!(l.held(), 0);
    l.n.post(&l.provider.clone(), 1, &l.posted.clone()).unwrap();
    l.hold(0).unwrap();
    assert_eq!(l.held(), 0, "that is not where it stands");
    l.hold(1).unwrap();
    assert!(l.held() > 0);
    // Nobody holds without a dispute, or after it.
    let of_nobody = Disputes::holdCall {
        stated: (&Receipt { sequence: 2, ..l.receipt.clone() }).into(),
        challenger: l.challenger.address,
        epoch: 1,
    };
    let (anyone, disputes) = (Actor::named("anyone"), l.n.parts.at.disputes);
    assert!(l.n.send(&anyone, disputes, of_nobody).unwrap_err().is::<Disputes::NotDisputed>());
    l.n.chain.mine(1, 7200 / 22 + 1);
    let timeout = Disputes::timeoutCall {
        receipt: b(l.receipt.signing_hash(&l.n.domain())),
        challenger: l.challenger.address,
        defender: l.provider.address,
    };
    l.n.send(&anyone, disputes, timeout).unwrap();
    assert!(l.n.node(l.provider.address).struck, "it said nothing");
    assert!(l.hold(1).unwrap_err().is::<Disputes::NotDisputed>());
    assert_eq!(U256::from(l.n.balance(disputes)), U256::ZERO);
}

#[test]
fn who_posts_a_receipt_answers_for_it_without_a_signature() {
    let mut l = late();
    let disputes = l.n.parts.at.disputes;
    let (right, proof, other) = (l.receipt.clone(), l.posted.proof(3), l.posted.proof(2));
    let call = |receipt: &Receipt, epoch, proof: &Proof| Disputes::openPostedCall {
        stated: receipt.into(),
        epoch,
        proof: proof.into(),
    };
    let refused = |l: &mut Late, call| {
        let failure = l.n.send(&l.challenger.clone(), disputes, call).unwrap_err();
        assert!(failure.is::<Disputes::BadProof>());
    };
    // Nothing is posted yet.
    refused(&mut l, call(&right, 1, &proof));
    l.n.post(&l.provider.clone(), 1, &l.posted.clone()).unwrap();
    refused(&mut l, call(&right, 0, &proof));
    refused(&mut l, call(&right, 1, &other));
    refused(&mut l, call(&Receipt { prompt_tokens: right.prompt_tokens + 1, ..right.clone() }, 1, &proof));
    refused(&mut l, call(&Receipt { sequence: 2, ..right.clone() }, 1, &proof));
    l.n.send(&l.challenger.clone(), disputes, call(&right, 1, &proof)).unwrap();
    // It is the dispute that a signature opens, with its hold; and each challenger has one.
    l.hold(1).unwrap();
    let signature = signed(&l.n, &l.provider, &right);
    let again = Disputes::openCall { stated: (&right).into(), signature, epoch: 1 };
    let failure = l.n.send(&l.challenger.clone(), disputes, again).unwrap_err();
    assert!(failure.is::<Disputes::AlreadyDisputed>());
}
