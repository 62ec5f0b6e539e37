//! The gateway's witness: what it was given is compared with what was posted, by `assay_node::witness::due`.
//!
//! What is durable is what the daemon has in its book: receipts, the roots that they were compared with, omissions, demands in vain. What a provider did not show until the next
//! round it has not shown. Its messages have a chance of their own, so that a network is the same with and without them.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256};
use alloy_sol_types::SolCall;
use assay_core::id::Hash;
use assay_core::merkle::{self, Proof};
use assay_core::receipt::{Receipt, SignedReceipt};
use assay_ledger::contracts::{Epochs, Objections, Registry, address, b256};
use assay_ledger::docket::{DemandId, DemandKind, Entries};
use assay_ledger::epochs::{Progress, leaf_hash};
use assay_node::auditor::BatchId;
use assay_node::witness::{BatchView, Duty, Omission, View, due};
use assay_verify::receipts::{Epoch, Standing};

use super::chain::{Chain, TxId};
use super::provider::Plan;
use super::settling::demand;
use super::wire::{Message, ShownLeaf, Who};
use super::{DELAY_MS, Held, Mutant, World};
use crate::network::wire::Event;
use crate::random::Random;

/// What the gateway knows of receipts.
pub(super) struct Witness {
    // What is on its disk.
    pub(super) given: BTreeMap<(Address, u64), SignedReceipt>,
    compared: BTreeMap<(Address, u64), B256>,
    found: BTreeMap<(Address, u64), Omission>,
    vain: BTreeSet<(Address, u64)>,
    entries: Entries,
    heard: usize,
    waits: BTreeSet<TxId>,
    // What is in its memory: what was asked for in the last round.
    asked: BTreeMap<BatchId, u64>,
    random: Random,
}

impl Witness {
    pub(super) fn new(seed: u64) -> Witness {
        Witness {
            given: BTreeMap::new(),
            compared: BTreeMap::new(),
            found: BTreeMap::new(),
            vain: BTreeSet::new(),
            entries: Entries::default(),
            heard: 0,
            waits: BTreeSet::new(),
            asked: BTreeMap::new(),
            random: Random::stream(seed, "witness", &[]),
        }
    }

    /// Its gateway is killed.
    pub(super) fn forget(&mut self) {
        self.asked.clear();
    }

    /// A receipt was accepted.
    pub(super) fn take(&mut self, signed: &SignedReceipt) {
        let of = (address(&signed.receipt.provider), signed.receipt.sequence);
        self.given.entry(of).or_insert_with(|| signed.clone());
    }

    /// Numbers of a batch whose receipts were not compared with it.
    fn left(&self, provider: Address, batch: &Epochs::Batch) -> Vec<u64> {
        let end = batch.first + u64::from(batch.count);
        let own = self.given.range((provider, batch.first)..(provider, end)).map(|(of, _)| of);
        own.filter(|of| self.compared.get(of) != Some(&batch.root)).map(|of| of.1).collect()
    }

    /// What a leaf says of the receipt at a number.
    fn judge(&mut self, id: BatchId, batch: &Epochs::Batch, sequence: u64, leaf: Hash, path: Vec<Hash>) {
        let of = (id.provider, sequence);
        let Some((signed, index)) = self.given.get(&of).zip(sequence.checked_sub(batch.first)) else {
            return;
        };
        let count = batch.count.into();
        let proof = Proof { index, count, path };
        let epoch = Epoch { first: batch.first, count, root: Hash::from_bytes(batch.root.0) };
        match epoch.standing(signed, Some((leaf, &proof))) {
            Some(Standing::Included) => drop(self.compared.insert(of, batch.root)),
            Some(Standing::LeftOut) => {
                self.found.insert(of, Omission { epoch: id.epoch, root: batch.root, leaf, proof });
            }
            None => {}
        }
    }

    /// Learns what was shown on the ledger of a batch. Whether something of it is demanded, or was in vain.
    fn hear_shown(&mut self, chain: &mut Chain, id: BatchId, batch: &Epochs::Batch) -> bool {
        let own = self.entries.demands.keys().filter(|demand| {
            (demand.provider, demand.epoch, demand.kind) == (id.provider, id.epoch, DemandKind::Leaf)
        });
        let mut demanded = self.vain.contains(&(id.provider, id.epoch));
        for demanded_leaf in own.copied().collect::<Vec<_>>() {
            if demand(chain, &demanded_leaf).0 != 0 {
                return true;
            }
            let shown = chain
                .logs_from(0)
                .filter_map(|l| l.as_event::<Objections::AnsweredLeaf>())
                .find(|e| (e.provider, e.epoch, e.index) == (id.provider, id.epoch, demanded_leaf.index));
            let Some(opening) = shown.map(|e| e.opening) else { continue };
            let sequence = batch.first + demanded_leaf.index;
            let Some(signed) = self.given.get(&(id.provider, sequence)) else { continue };
            let signs = match opening.isVoid {
                true => Hash::ZERO,
                false => Receipt::from(&opening.receipt).signing_hash(&signed.domain),
            };
            let path = opening.proof.path.iter().map(|node| Hash::from_bytes(node.0)).collect();
            self.judge(id, batch, sequence, merkle::leaf(signs.as_bytes()), path);
            if self.compared.get(&(id.provider, sequence)) == Some(&batch.root) {
                self.vain.insert((id.provider, id.epoch));
            }
            demanded = true;
        }
        demanded
    }

    /// Reads everything.
    fn read(&mut self, chain: &mut Chain, me: Address) -> View {
        let new = chain.heard.get(self.heard..).unwrap_or_default();
        new.iter().for_each(|logged| self.entries.take(me, logged.block, &logged.log));
        self.heard = chain.heard.len();
        let providers: BTreeSet<Address> = self.given.keys().map(|(provider, _)| *provider).collect();
        let named = self.entries.batches.iter().filter(|(_, of)| providers.contains(of));
        let ids: Vec<BatchId> =
            named.map(|(epoch, provider)| BatchId { epoch: *epoch, provider: *provider }).collect();
        let mut batches = Vec::new();
        for id in ids {
            let batch = chain.batch(id.provider, id.epoch);
            if batch.state == 0 {
                continue;
            }
            let demanded = self.hear_shown(chain, id, &batch);
            let (_, fixed_at, phase) = chain.beacon(id.epoch);
            let registry = chain.parts.at.registry;
            let struck = chain.read(registry, &Registry::isStruckCall { node: id.provider });
            let left = self.left(id.provider, &batch);
            let stands = |o: &&Omission| o.epoch == id.epoch && o.root == batch.root;
            let end = batch.first + u64::from(batch.count);
            let mut found = self.found.range((id.provider, batch.first)..(id.provider, end));
            let vain = self.vain.range((id.provider, 0)..=(id.provider, u64::MAX));
            let last = vain.clone().next_back().map(|(_, epoch)| *epoch);
            batches.push(BatchView {
                id,
                phase,
                fixed_at,
                commit_until: fixed_at + u64::from(chain.p.times.commitSeconds),
                struck,
                left: left.len(),
                refused: self.asked.get(&id).copied().filter(|n| left.contains(n)),
                found: found.find(|(_, o)| stands(o)).map(|(of, _)| of.1),
                demanded,
                vain: last.map(|epoch| (vain.count() as u32, epoch)),
            });
        }
        let mut demands = Vec::new();
        for id in self.entries.demands.keys().filter(|id| id.kind == DemandKind::Leaf) {
            let (until, from) = demand(chain, id);
            if until != 0 && from == me {
                demands.push((*id, until));
            }
        }
        let (vault, bond) = (chain.balance(me).into(), chain.p.stakes.demandBond.into());
        View { now: chain.time_s(), vault, bond, batches, demands, conflicts: vec![] }
    }
}

impl World<'_> {
    pub(super) fn witness_round(&mut self) -> Held {
        let me = self.gateway.actor.address;
        if !self.gateway.witness.waits.is_empty() || self.options.mutant == Some(Mutant::ComparesNothing) {
            return Ok(());
        }
        let view = self.gateway.witness.read(&mut self.chain, me);
        for duty in due(&view) {
            let at = self.chain.parts.at.objections;
            let what = format!("{duty:?}");
            let data = match duty {
                Duty::ProveLeftOut(id, sequence) => {
                    let w = &self.gateway.witness;
                    let of = (id.provider, sequence);
                    let Some((signed, omission)) = w.given.get(&of).zip(w.found.get(&of)) else { continue };
                    let call = Objections::proveLeftOutCall {
                        receipt: (&signed.receipt).into(),
                        signature: signed.signature.as_bytes().to_vec().into(),
                        epoch: id.epoch,
                        leaf: b256(&omission.leaf),
                        proof: (&omission.proof).into(),
                    };
                    call.abi_encode()
                }
                Duty::ProveConflict(_) => continue,
                Duty::ProveSilence(DemandId { provider, epoch, index, kind }) => {
                    Objections::proveSilenceCall { provider, epoch, index, kind: kind.number() }.abi_encode()
                }
                Duty::Demand(BatchId { epoch, provider }, sequence) => {
                    let index = sequence - self.chain.batch(provider, epoch).first;
                    Objections::demandLeafCall { provider, epoch, index }.abi_encode()
                }
                Duty::Compare(id) => {
                    self.want_leaves(id);
                    continue;
                }
            };
            self.tell(Who::Gateway, || format!("sends {what}"));
            let sent = self.send(Who::Gateway, me, at, data, what);
            self.gateway.witness.waits.insert(sent);
        }
        Ok(())
    }

    /// A transaction of its gateway is over.
    pub(super) fn witness_confirmed(&mut self, id: TxId) {
        self.gateway.witness.waits.remove(&id);
    }

    /// A message that may be lost or late like any other, by a chance of its own.
    fn whisper(&mut self, from: Who, to: Who, message: Message) {
        let cut = self.parted.contains(&(from.min(to), from.max(to)));
        let lost = crate::random::Chance::ppm(self.lost_ppm);
        let random = &mut self.gateway.witness.random;
        let (lost, wait) = (random.happens(lost), random.between(DELAY_MS.0, DELAY_MS.1));
        if !cut && !lost {
            self.after(wait, Event::Arrives { from, to, message: Box::new(message) });
        }
    }

    fn want_leaves(&mut self, id: BatchId) {
        let batch = self.chain.batch(id.provider, id.epoch);
        let numbers = self.gateway.witness.left(id.provider, &batch);
        let to = self.providers.iter().position(|p| p.actor.address == id.provider);
        if let (Some(first), Some(to)) = (numbers.first(), to) {
            self.gateway.witness.asked.insert(id, *first);
            self.whisper(Who::Gateway, Who::Provider(to), Message::WantLeaves { batch: id, numbers });
        }
    }

    /// Whoever holds receipts asks what was posted at their numbers.
    pub(super) fn leaves_wanted(&mut self, i: usize, from: Who, batch: BatchId, numbers: Vec<u64>) {
        let p = &self.providers[i];
        let Some(builder) = p.builder.as_ref().filter(|_| p.plan != Plan::ShowsNothing) else { return };
        let posted =
            |e: &&assay_ledger::epochs::Entry| e.batch.epoch == batch.epoch && e.progress != Progress::Sealed;
        if builder.batches().iter().find(posted).is_none() {
            return;
        }
        let shown = numbers.into_iter().filter_map(|sequence| {
            let found = builder.proof(sequence).ok()?;
            Some(ShownLeaf { sequence, leaf: leaf_hash(found.leaf.as_ref()), path: found.proof.path })
        });
        let leaves: Vec<ShownLeaf> = shown.collect();
        self.whisper(Who::Provider(i), from, Message::ShownLeaves { batch, leaves });
    }

    pub(super) fn leaves_shown(&mut self, id: BatchId, leaves: Vec<ShownLeaf>) {
        let batch = self.chain.batch(id.provider, id.epoch);
        for ShownLeaf { sequence, leaf, path } in leaves {
            self.gateway.witness.judge(id, &batch, sequence, leaf, path);
        }
    }
}
