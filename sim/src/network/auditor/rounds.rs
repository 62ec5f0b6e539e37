//! What an auditor does: its duties as transactions, its questions as messages, and what it makes of the answers.

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolCall;
use assay_core::answer::AnswerRecord;
use assay_core::id::Hash;
use assay_core::merkle;
use assay_ledger::audits::{commitment, digest_leaf, digests_root, revealed_digests};
use assay_ledger::contracts::{Audits, Disputes, Epochs, Objections, b256};
use assay_ledger::docket::{DemandId, DemandKind, DisputeId};
use assay_node::auditor::{BatchId, Commitment, Duty, Refused, check, due};
use assay_verify::dispute::Party;

use super::{AT_ONCE, Plan, UNHEARD_MS};
use crate::network::chain::TxId;
use crate::network::model::By;
use crate::network::moves::Playing;
use crate::network::wire::{Alarm, Message, Wanted, Who};
use crate::network::{Held, Mutant, World};
use crate::random::Random;

impl World<'_> {
    pub(in crate::network) fn auditor_round(&mut self, i: usize) -> Held {
        let who = Who::Auditor(i);
        if !self.is_clear(who) {
            return Ok(());
        }
        let (chain, a) = (&mut self.chain, &mut self.auditors[i]);
        if a.plan == Plan::Absent {
            return Ok(());
        }
        a.doing = None;
        a.hear(chain);
        let view = a.read(chain);
        a.duties = due(&view).into();
        a.tidy(&view);
        self.audit_on(i)
    }

    fn audit_on(&mut self, i: usize) -> Held {
        while let Some(duty) = self.auditors[i].duties.pop_front() {
            if self.do_audit_duty(i, &duty) {
                break;
            }
        }
        Ok(())
    }

    /// Does a duty. Whether a transaction is to be waited for.
    fn do_audit_duty(&mut self, i: usize, duty: &Duty) -> bool {
        let who = Who::Auditor(i);
        let at = self.chain.parts.at.clone();
        let me = self.auditors[i].actor.address;
        let call: Option<(Address, Vec<u8>)> = match duty {
            Duty::TakeSeats(_) | Duty::Lack(_) => None,
            Duty::Close(epoch) => Some((at.epochs, Epochs::closeCall { epoch: *epoch }.abi_encode())),
            Duty::FixBeacon(epoch) => Some((at.epochs, self.chain.fix_beacon(*epoch).abi_encode())),
            Duty::Work(id) => {
                self.work(i, *id);
                None
            }
            Duty::Commit(id, member) => Some((at.audits, self.commit(i, *id, *member))),
            Duty::Reveal(id, member) => {
                let wrong = self.options.mutant == Some(Mutant::RevealsWrong);
                let a = &self.auditors[i];
                let said = a.audits.get(id).and_then(|audit| audit.work.commitments.get(member)).copied();
                let digests = a.said(*id, *member);
                said.map(|Commitment { salt, .. }| {
                    let BatchId { epoch, provider } = *id;
                    let salt = if wrong { B256::ZERO } else { salt };
                    let digests = revealed_digests(digests.iter().map(|(n, digest)| (*n, digest)));
                    let call =
                        Audits::revealCall { provider, epoch, member: U256::from(*member), digests, salt };
                    (at.audits, call.abi_encode())
                })
            }
            Duty::Collect(id, member) => {
                let (provider, epoch, member) = (id.provider, id.epoch, U256::from(*member));
                Some((at.audits, Audits::collectCall { provider, epoch, member }.abi_encode()))
            }
            Duty::ProveAbsence(id, member) => {
                let (provider, epoch, member) = (id.provider, id.epoch, U256::from(*member));
                Some((at.audits, Audits::proveAbsenceCall { provider, epoch, member }.abi_encode()))
            }
            Duty::Demand(id, refused) => self.demand_call(i, *id, *refused).map(|data| (at.objections, data)),
            Duty::ProveSilence(id) => {
                let DemandId { provider, epoch, index, kind } = *id;
                let call = Objections::proveSilenceCall { provider, epoch, index, kind: kind.number() };
                Some((at.objections, call.abi_encode()))
            }
            Duty::Open(..) if self.options.mutant == Some(Mutant::DisputesNothing) => None,
            Duty::Open(id, sequence) => self.open_call(i, *id, *sequence).map(|data| (at.disputes, data)),
            Duty::Move(id, party) => self.auditor_moves(i, *id, *party).map(|data| (at.disputes, data)),
            Duty::TimeOut(id) => {
                let DisputeId { name: receipt, challenger, defender } = *id;
                Some((at.disputes, Disputes::timeoutCall { receipt, challenger, defender }.abi_encode()))
            }
            Duty::Acquit(id) => self.acquit_call(i, *id).map(|data| (at.audits, data)),
            Duty::Contest(id) => self.contest_call(i, *id).map(|data| (at.disputes, data)),
            // Here the canary doubts.
            Duty::Accuse(..) | Duty::Lapse(_) => None,
        };
        let Some((to, data)) = call else { return false };
        let what = match duty {
            Duty::Move(id, _) => format!("Move({})", id.name),
            Duty::TimeOut(id) => format!("TimeOut({})", id.name),
            duty => format!("{duty:?}"),
        };
        self.tell(who, || format!("sends {what}"));
        let id = self.send(who, me, to, data, what);
        self.auditors[i].doing = Some(id);
        true
    }

    pub(in crate::network) fn auditor_confirmed(&mut self, i: usize, id: TxId) -> Held {
        if self.auditors[i].doing.take_if(|doing| *doing == id).is_some() {
            return self.audit_on(i);
        }
        Ok(())
    }

    pub(in crate::network) fn auditor_rings(&mut self, i: usize, alarm: Alarm) -> Held {
        let Alarm::Unheard { batch } = alarm else { return Ok(()) };
        let chain = &self.chain;
        let Some(audit) = self.auditors[i].audits.get_mut(&batch).filter(|audit| audit.asked) else {
            return Ok(());
        };
        audit.asked = false;
        // As a provider that cannot be reached: what would be demanded is known.
        if audit.leaves.is_none() && audit.work.drawn.is_none() {
            let done = |sequence: &u64| audit.work.done.contains_key(sequence);
            let first = audit.draw(batch.provider, chain).first_drawn(done);
            audit.refused.extend(first);
        } else {
            let open: Vec<u64> = audit.pending().collect();
            audit.refused.extend(open);
        }
        self.tell(Who::Auditor(i), || format!("hears nothing epoch={}", batch.epoch));
        Ok(())
    }

    fn provider_at(&self, address: Address) -> Option<Who> {
        self.providers.iter().position(|p| p.actor.address == address).map(Who::Provider)
    }

    /// Asks for what is lacking.
    fn work(&mut self, i: usize, id: BatchId) {
        let Some(provider) = self.provider_at(id.provider) else { return };
        let (chain, a) = (&mut self.chain, &mut self.auditors[i]);
        a.read_shown(chain, id);
        let Some(audit) = a.audits.get_mut(&id).filter(|audit| !audit.asked) else { return };
        let untold =
            audit.leaves.is_none() && (audit.work.drawn.is_none() || audit.pending().next().is_some());
        let wanted = if untold {
            Wanted::Leaves
        } else {
            let told = |s: &u64| audit.drawn.get(s).is_some_and(|drawn| drawn.leaf.is_some());
            let numbers: Vec<u64> = audit.pending().filter(told).take(AT_ONCE).collect();
            if numbers.is_empty() {
                return;
            }
            Wanted::Records(numbers)
        };
        audit.asked = true;
        let who = Who::Auditor(i);
        self.tell(who, || format!("asks {provider} epoch={} wanted={wanted:?}", id.epoch));
        self.say(who, provider, Message::Audit { batch: id, wanted });
        self.alarm(who, UNHEARD_MS, Alarm::Unheard { batch: id });
    }

    pub(in crate::network) fn auditor_hears(&mut self, i: usize, from: Who, message: Message) -> Held {
        let who = Who::Auditor(i);
        match message {
            Message::Leaves { batch: id, leaves } if self.provider_at(id.provider) == Some(from) => {
                let (chain, a) = (&self.chain, &mut self.auditors[i]);
                let Some(audit) = a.audits.get_mut(&id) else { return Ok(()) };
                audit.asked = false;
                match leaves {
                    Some(leaves) if check(&audit.batch, &leaves).is_ok() => {
                        let drawn = audit.draw(id.provider, chain).of(&leaves);
                        audit.work.drawn = Some(drawn.iter().map(|(s, d)| (*s, d.members.clone())).collect());
                        audit.drawn.extend(drawn);
                        audit.leaves = Some(leaves);
                        audit.refused.clear();
                        let count = audit.drawn.len();
                        a.write(id);
                        self.tell(who, || format!("is told epoch={} of={from} drawn={count}", id.epoch));
                        self.work(i, id);
                    }
                    _ => {
                        let done = |sequence: &u64| audit.work.done.contains_key(sequence);
                        let first = audit.draw(id.provider, chain).first_drawn(done);
                        audit.refused.extend(first);
                        self.tell(who, || format!("is refused leaves epoch={} by={from}", id.epoch));
                    }
                }
            }
            Message::Records { batch: id, records } if self.provider_at(id.provider) == Some(from) => {
                let a = &mut self.auditors[i];
                if let Some(audit) = a.audits.get_mut(&id) {
                    audit.asked = false;
                }
                for (sequence, record) in records {
                    self.examine(i, id, sequence, record.as_deref());
                }
                self.work(i, id);
            }
            _ => {}
        }
        Ok(())
    }

    /// Executes a record that a provider gave, if it is the one that was drawn.
    fn examine(&mut self, i: usize, id: BatchId, sequence: u64, record: Option<&AnswerRecord>) {
        let domain = self.chain.receipts;
        let a = &mut self.auditors[i];
        let Some(audit) = a.audits.get_mut(&id) else { return };
        if let Some(done) = audit.work.done.get(&sequence) {
            let receipt =
                record.map(|record| &record.receipt.receipt).filter(|receipt| receipt.id() == done.receipt);
            if let (Some(receipt), Some(record)) = (receipt, record) {
                audit.receipts.entry(sequence).or_insert_with(|| (receipt.clone(), None));
                // It was asked for again, for a dispute.
                a.kept.insert((id, sequence), record.clone());
            }
            return;
        }
        if !audit.drawn.contains_key(&sequence) {
            return;
        }
        let leaf = audit.drawn.get(&sequence).and_then(|drawn| drawn.leaf);
        let whole = record.filter(|record| {
            let hash = record.receipt.receipt.signing_hash(&domain);
            leaf.is_some_and(|leaf| {
                leaf.signing_hash == hash && leaf.fee_micro_usd == record.receipt.receipt.fee_micro_usd
            }) && record.broken_bindings().is_empty()
        });
        let Some(record) = whole else {
            audit.refused.insert(sequence);
            return;
        };
        let receipt = &record.receipt.receipt;
        audit.receipts.insert(sequence, (receipt.clone(), None));
        let stands = a.execute(id, sequence, receipt, &record.request, &record.transcript);
        if !stands {
            a.kept.insert((id, sequence), record.clone());
        }
        self.tell(Who::Auditor(i), || {
            format!("executes epoch={} sequence={sequence} stands={stands}", id.epoch)
        });
    }

    fn commit(&mut self, i: usize, id: BatchId, member: u8) -> Vec<u8> {
        let seed = self.seed;
        let a = &mut self.auditors[i];
        let digests = a.said(id, member);
        let root = b256(&digests_root(digests.iter().map(|(n, digest)| (*n, digest))));
        a.salts += 1;
        let mut random = Random::stream(seed, "salt", &[i as u64, a.salts]);
        let salt = B256::from(U256::from(random.bits()));
        let me = a.actor.address;
        let BatchId { epoch, provider } = id;
        let said = match a.audits.get_mut(&id) {
            Some(audit) => {
                let kept = audit.work.commitments.get(&member).filter(|kept| kept.root == root).copied();
                let said = kept.unwrap_or(Commitment { root, salt });
                audit.work.commitments.insert(member, said);
                said
            }
            None => Commitment { root, salt },
        };
        a.write(id);
        let commitment = commitment(me, provider, epoch, member, root, said.salt);
        Audits::commitCall { provider, epoch, member: U256::from(member), commitment }.abi_encode()
    }

    fn demand_call(&mut self, i: usize, id: BatchId, refused: Refused) -> Option<Vec<u8>> {
        let a = &mut self.auditors[i];
        let audit = a.audits.get_mut(&id)?;
        let BatchId { epoch, provider } = id;
        let Refused { sequence, kind } = refused;
        let index = sequence.saturating_sub(audit.batch.first);
        audit.work.demanded.push((sequence, kind == DemandKind::Record));
        let data = match kind {
            DemandKind::Leaf => audit.members.first().map(|member| {
                let member = U256::from(*member);
                Objections::demandLeafAsMemberCall { provider, epoch, index, member }.abi_encode()
            }),
            DemandKind::Record => audit.place(sequence).and_then(|(receipt, proof)| {
                let member = audit.drawn.get(&sequence)?.members.first().copied()?;
                let receipt = receipt.into();
                let call = Objections::demandRecordCall { epoch, member: U256::from(member), receipt, proof };
                Some(call.abi_encode())
            }),
        };
        a.write(id);
        data
    }

    fn open_call(&mut self, i: usize, id: BatchId, sequence: u64) -> Option<Vec<u8>> {
        let a = &mut self.auditors[i];
        let audit = a.audits.get_mut(&id)?;
        let data = match audit.place(sequence) {
            Some((receipt, Objections::Proof { index, count, path })) => {
                let proof = Disputes::Proof { index, count, path };
                Disputes::openPostedCall { stated: receipt.into(), epoch: id.epoch, proof }.abi_encode()
            }
            None => {
                let signed = &a.kept.get(&(id, sequence))?.receipt;
                let signature = signed.signature.as_bytes().to_vec().into();
                Disputes::openCall { stated: (&signed.receipt).into(), signature, epoch: id.epoch }
                    .abi_encode()
            }
        };
        audit.work.disputed.push(sequence);
        a.write(id);
        Some(data)
    }

    fn acquit_call(&mut self, i: usize, id: B256) -> Option<Vec<u8>> {
        let about = self.chain.read(self.chain.parts.at.audits, &Audits::accusationOfCall { id });
        let a = &self.auditors[i];
        let batch = BatchId { epoch: about.epoch, provider: about.provider };
        let digests = a.digests(batch, about.member);
        let place = digests.iter().position(|(sequence, _)| *sequence == about.sequence)?;
        let leaves: Vec<Hash> =
            digests.iter().map(|(sequence, digest)| digest_leaf(*sequence, digest)).collect();
        let proof = merkle::prove(&leaves, place)?;
        Some(Audits::acquitCall { id, proof: (&proof).into() }.abi_encode())
    }

    /// An auditor's next move, in a dispute that it opened or an accusation that it contested.
    fn auditor_moves(&mut self, i: usize, id: DisputeId, party: Party) -> Option<Vec<u8>> {
        let from = self.auditors[i].entries.disputes.get(&id).copied().unwrap_or(0);
        let (stated, record) = match self.auditors[i].kept_as(id.name) {
            Some(record) => (None, record),
            None => {
                let call = Audits::accusationOfCall { id: id.name };
                let about = self.chain.read(self.chain.parts.at.audits, &call);
                let record = self.auditors[i].kept_as(about.receiptHash)?;
                (Some(Hash::from_bytes(about.traceRoot.0)), record)
            }
        };
        let stops = self.options.mutant == Some(Mutant::PicksNoFurther);
        let moves_max = if stops { 2 } else { usize::MAX };
        let (who, record) = (Who::Auditor(i), record.clone());
        self.next_move(Playing { who, id, from, party, stated, record: &record, by: By::Asked, moves_max })
    }

    fn contest_call(&mut self, i: usize, id: B256) -> Option<Vec<u8>> {
        let about = self.chain.read(self.chain.parts.at.audits, &Audits::accusationOfCall { id });
        let a = &self.auditors[i];
        // Who has made its digests up would lose.
        if a.plan != Plan::Honest {
            return None;
        }
        let batch = BatchId { epoch: about.epoch, provider: about.provider };
        match a.kept_as(about.receiptHash) {
            Some(record) => {
                let stated = (&record.receipt.receipt).into();
                Some(Disputes::contestCall { id, stated }.abi_encode())
            }
            None => {
                // What stands was not kept: it is asked for again, and contested in the next round.
                let provider = self.provider_at(batch.provider)?;
                let wanted = Wanted::Records(vec![about.sequence]);
                self.say(Who::Auditor(i), provider, Message::Audit { batch, wanted });
                None
            }
        }
    }
}
