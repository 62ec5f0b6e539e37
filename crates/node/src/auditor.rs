//! An auditor's part on the ledger: it watches what is posted, executes what beacons draw for its seats, commits to it and reveals it, disputes what
//! does not stand, and is paid.
//!
//! [`due`] decides, without a clock, a chain, a disk or an engine; a round reads, decides, does, and tells. Invariant: a round may be cut off after any step
//! and repeated, by this process or the next one: what was committed to is on disk, with its salt, before it is sent; what is disputed is on disk before
//! it is said; everything else is read from the ledger. It refuses to commit to what it did not execute, and to dispute what a contract cannot decide.
//!
//! No round waits for an execution or for a provider: these are errands (`errands`), whose results are taken in by the next round, or between two. And
//! between any two duties it looks whether a move has to be made, so that no more than one transaction is ever in front of one.
//!
//! Executing for audits takes threads of the lowest priority ([`go_last`]), and so it is kept out of the way of paid work. Reading, sending and what disputes
//! execute do not: they take little and have an end.

mod compared;
mod decide;
mod errands;
mod event;
mod journal;
mod metrics;
mod read;
mod shown;
mod told;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy_eips::BlockId;
use alloy_primitives::{Address, B256, U256};
use assay_api::audits::{AuditClient, AuditError};
use assay_core::answer::AnswerRecord;
use assay_core::id::{Hash, ReceiptId};
use assay_core::merkle;
use assay_ledger::amount::Amount;
use assay_ledger::audits::{SEATS_PER_CALL, commitment, digest_leaf, digests_root, revealed_digests};
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Audits, Disputes, Objections, b256, node_address};
use assay_ledger::docket::{DemandId, DemandKind, DisputeId, Docket};
use assay_ledger::follow::FollowError;
use assay_ledger::ledger::{Ledger, Phase, Role, logged};
use assay_ledger::sender::{SendError, Sender};
use assay_verify::dispute::Party;
use assay_verify::receipts::audit_digest;
use prometheus_client::registry::Registry;

pub use self::compared::{Other, Revealed};
pub use self::decide::{
    AccusationView, BatchId, BatchView, Bonds, DEMANDS_MAX, Doubt, Duty, LAST_PART, MemberPhase, MemberView,
    PATIENCE_PART, Pressing, Refused, SeatsView, UNHURRIED_MAX, View, WorkView, due, pressing,
};
use self::errands::Errands;
pub use self::errands::go_last;
pub use self::event::{Event, Listener};
pub use self::journal::{Commitment, Done, Journal, JournalError, Work};
use self::metrics::Metrics;
pub use self::told::{Draw, Drawn, TellError, check};
use self::work::Audit;
pub use self::work::place_in;
use crate::disputes::{self, Case, MoveError};
use crate::execution::Library;
use crate::secret;
use crate::sending::{close, fix_beacon, once, once2, send_code};

/// How an auditor works.
#[derive(Clone, Debug)]
pub struct AuditorOptions {
    /// Folder of what is remembered between starts.
    pub folder: PathBuf,
    /// Seats that it should have at least.
    pub seats: u64,
    /// Receipts that are fetched and wait to be executed, one after the other.
    pub executed_at_once: usize,
}

/// Why there is no auditor, or a round ended early. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum AuditorError {
    /// The chain could not be read.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its log could not be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The ledger does not know the node as an auditor.
    #[error(
        "{node} is not enrolled as an auditor on this ledger: `assay stake AMOUNT --role auditor` enrols it; each seat needs {each} at stake"
    )]
    NotAuditor {
        /// The node's key.
        node: Address,
        /// What a seat needs.
        each: Amount,
    },
    /// A transaction of an earlier round waits.
    #[error(transparent)]
    Waiting(SendError),
}

impl AuditorError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            AuditorError::Client(_) => "ledger_unread",
            AuditorError::Follow(_) => "ledger_unfollowed",
            AuditorError::Journal(e) => e.code(),
            AuditorError::NotAuditor { .. } => "not_enrolled",
            AuditorError::Waiting(_) => "transaction_waiting",
        }
    }
}

/// Why a duty was not done.
#[derive(Debug, thiserror::Error)]
enum Undone {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error(transparent)]
    Ask(#[from] AuditError),
    #[error(transparent)]
    Told(#[from] TellError),
    #[error("the record of the receipt that signs {0} is not here")]
    Lost(B256),
    #[error("what the journal has is not what was committed to")]
    Changed,
}

impl Undone {
    fn code(&self) -> &'static str {
        match self {
            Undone::Client(_) => "ledger_unread",
            Undone::Send(e) => send_code(e),
            Undone::Journal(e) => e.code(),
            Undone::Move(e) => e.code(),
            Undone::Ask(e) => e.code(),
            Undone::Told(e) => e.code(),
            Undone::Lost(_) => "record_lost",
            Undone::Changed => "journal_changed",
        }
    }
}

/// An auditor.
pub struct Auditor {
    ledger: Ledger,
    sender: Sender,
    auditor: Address,
    library: Arc<Library>,
    http: AuditClient,
    docket: Docket,
    journal: Journal,
    options: AuditorOptions,
    listener: Listener,
    metrics: Metrics,
    errands: Errands,
    /// Batches that are being audited.
    audits: BTreeMap<BatchId, Audit>,
    /// Those with receipts to execute.
    working: BTreeSet<BatchId>,
    /// Batches of which nothing is left to do.
    over: BTreeSet<BatchId>,
    /// Seats as they were counted last, and in which epoch.
    seats: Option<(u64, u64)>,
    ended: disputes::Ended,
    /// For how many seats it was told that there is too little stake.
    lacked: Option<u64>,
}

impl Auditor {
    /// The auditor with the sender's key, which must be enrolled as one. Goes on where an earlier start ended. Needs a TLS provider to be
    /// installed.
    pub async fn open(
        ledger: Ledger,
        sender: Sender,
        library: Arc<Library>,
        options: AuditorOptions,
        listener: Listener,
    ) -> Result<Auditor, AuditorError> {
        let auditor = sender.account();
        let node = ledger.node(auditor).await?;
        if node.is_none_or(|node| node.roles & Role::Auditor as u8 == 0) {
            let each = Amount(ledger.parameters().stakes.seatStake.into());
            return Err(AuditorError::NotAuditor { node: auditor, each });
        }
        let genesis = ledger.client().genesis().await?;
        let folder = options.folder.join(format!("{genesis:x}-{:x}-{auditor:x}", ledger.parts().directory));
        let journal = Journal::open(folder)?;
        let docket = Docket::open(ledger.clone(), auditor, &options.folder).await?;
        let metrics = Metrics::default();
        let listener = metrics.counting(auditor, listener);
        Ok(Auditor {
            ledger,
            sender,
            auditor,
            library,
            http: AuditClient::new(),
            docket,
            journal,
            options,
            listener,
            metrics,
            errands: Errands::new(),
            audits: BTreeMap::new(),
            working: BTreeSet::new(),
            over: BTreeSet::new(),
            seats: None,
            ended: disputes::Ended::default(),
            lacked: None,
        })
    }

    /// The auditor's address.
    pub fn address(&self) -> Address {
        self.auditor
    }

    /// What it counts, for whoever shows it.
    pub fn metrics(&self) -> Registry {
        self.metrics.registry()
    }

    /// One round: everything that is due, once. Says how many duties were done.
    pub async fn round(&mut self) -> Result<usize, AuditorError> {
        self.some(usize::MAX).await
    }

    /// At most `most` of the duties that are due.
    pub async fn some(&mut self, most: usize) -> Result<usize, AuditorError> {
        for (_, ended) in self.sender.resume().await {
            match ended {
                Err(error) if error.may_retry() => return Err(AuditorError::Waiting(error)),
                // What failed for good is asked of the ledger like everything else.
                _ => {}
            }
        }
        self.docket.update().await?;
        while let Some((about, brought)) = self.errands.brought() {
            self.take_in(about, brought);
        }
        let view = self.read().await?;
        let duties = due(&view);
        self.working =
            duties.iter().filter_map(|d| if let Duty::Work(id) = d { Some(*id) } else { None }).collect();
        let mut duties = VecDeque::from(duties);
        let (mut done, mut tried) = (0, 0);
        while let Some(duty) = duties.pop_front().filter(|_| tried < most) {
            tried += 1;
            let sent = self.perform(&duty, &view).await;
            // A transaction may have taken its time.
            let late = !duty.is_pressing() && !matches!((&duty, &sent), (Duty::Work(_) | Duty::Lack(_), _));
            match sent {
                Ok(event) => {
                    done += usize::from(event.is_some());
                    event.into_iter().for_each(|event| self.say(event));
                }
                Err(e) => self.failed(&name(&duty), e.code(), &e),
            }
            if late && !duties.is_empty() {
                self.press(&mut duties).await?;
            }
        }
        self.tidy(&view);
        let coins = self.ledger.client().coin(self.auditor, BlockId::latest()).await?;
        self.metrics.read(&view, coins);
        Ok(done)
    }

    /// Puts in front what must not wait any longer, if there is something.
    async fn press(&mut self, duties: &mut VecDeque<Duty>) -> Result<(), AuditorError> {
        self.docket.update().await?;
        for duty in pressing(&self.read_pressing().await?).into_iter().rev() {
            duties.push_front(duty);
        }
        Ok(())
    }

    /// Takes in what errands bring, as long as this time lasts, and sends them on.
    pub async fn attend(&mut self, time: Duration) {
        let over = tokio::time::sleep(time);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                some = self.worked() => if !some {
                    return over.await;
                },
            }
        }
    }

    /// Takes in what the next errand brings, and sends for more. Says whether one was under way.
    pub async fn worked(&mut self) -> bool {
        let Some((about, brought)) = self.errands.next().await else { return false };
        // What could not be taken in is for the next round.
        if self.take_in(about, brought) {
            self.working.clone().into_iter().for_each(|id| self.go_on(id));
        }
        true
    }

    fn say(&self, event: Event) {
        (self.listener)(event);
    }

    fn failed(&self, what: &str, code: &'static str, reason: &dyn std::fmt::Display) {
        self.say(Event::Failed { what: what.to_owned(), code, reason: reason.to_string() });
    }

    async fn perform(&mut self, duty: &Duty, view: &View) -> Result<Option<Event>, Undone> {
        match duty {
            Duty::TakeSeats(seats) => self.take_seats(*seats).await,
            Duty::Lack(seats) => {
                let needed = view.seats.each.saturating_mul((*seats).into()).saturating_sub(view.seats.free);
                let told = self.lacked.replace(*seats) == Some(*seats);
                Ok((!told).then_some(Event::LacksStake { seats: *seats, needed: Amount(needed) }))
            }
            Duty::Close(epoch) => {
                let closed = close(&self.ledger, &self.sender, *epoch).await?;
                Ok(closed.then_some(Event::Closed { epoch: *epoch }))
            }
            Duty::FixBeacon(epoch) => {
                let fixed = fix_beacon(&self.ledger, &self.sender, *epoch).await?;
                Ok(fixed.then_some(Event::BeaconFixed { epoch: *epoch }))
            }
            Duty::Work(id) => self.work(*id).await.map(|()| None),
            Duty::Commit(id, member) => self.commit(*id, *member).await,
            Duty::Reveal(id, member) => self.reveal(*id, *member).await,
            Duty::Collect(id, member) => {
                let BatchId { epoch, provider } = *id;
                let call = Audits::collectCall { provider, epoch, member: U256::from(*member) };
                let audits = self.ledger.parts().at.audits;
                let sent = self.sender.send(&format!("collect for epoch {epoch}"), audits, &call).await;
                if let Some(paid) = sent.as_ref().ok().and_then(|mined| logged::<Audits::Paid>(mined, audits))
                {
                    self.metrics.earned(paid.amount);
                }
                Ok(once::<Audits::WrongPhase>(sent)?
                    .then_some(Event::Collected { batch: *id, member: *member }))
            }
            Duty::ProveAbsence(id, member) => {
                let BatchId { epoch, provider } = *id;
                let call = Audits::proveAbsenceCall { provider, epoch, member: U256::from(*member) };
                let audits = self.ledger.parts().at.audits;
                let sent =
                    self.sender.send(&format!("show an absence in epoch {epoch}"), audits, &call).await;
                Ok(once::<Audits::WrongPhase>(sent)?.then_some(Event::Absent { batch: *id, member: *member }))
            }
            Duty::Demand(id, refused) => self.demand(*id, *refused).await,
            Duty::ProveSilence(id) => {
                let DemandId { provider, epoch, index, kind } = *id;
                let call = Objections::proveSilenceCall { provider, epoch, index, kind: kind.number() };
                let at = self.ledger.parts().at.objections;
                let sent = self.sender.send(&format!("show the silence of {provider}"), at, &call).await;
                Ok(once::<Objections::NothingDemanded>(sent)?.then_some(Event::Silent { demand: *id }))
            }
            Duty::Open(id, sequence) => self.open_dispute(*id, *sequence).await,
            Duty::Move(id, party) => {
                let case = self.case(id).await?;
                let library = Arc::clone(&self.library);
                let _first = self.errands.before_all();
                let moved = disputes::move_on(&self.ledger, &self.sender, case, library, *party).await?;
                Ok(moved.then_some(Event::Moved { dispute: *id }))
            }
            Duty::TimeOut(id) => {
                let ended = disputes::time_out(&self.ledger, &self.sender, id).await;
                let done = once2::<Disputes::NotYourTurn, Disputes::TooEarly>(ended)?;
                Ok(done.then_some(Event::TimedOut { dispute: *id }))
            }
            Duty::Acquit(id) => self.acquit(*id).await,
            Duty::Contest(id) => self.contest(*id).await,
            Duty::Accuse(id, doubt) => self.accuse(*id, *doubt).await,
            Duty::Lapse(id) => {
                let audits = self.ledger.parts().at.audits;
                let sent =
                    self.sender.send("end an accusation", audits, &Audits::lapseCall { id: *id }).await;
                Ok(once::<Audits::WrongPhase>(sent)?.then_some(Event::Lapsed))
            }
        }
    }

    async fn take_seats(&mut self, seats: u64) -> Result<Option<Event>, Undone> {
        let audits = self.ledger.parts().at.audits;
        let slots = self.ledger.client().read(audits, &Audits::slotCountCall {}).await?;
        let many = seats.min(SEATS_PER_CALL as u64);
        let slots = (0..many).map(|i| slots.saturating_add(U256::from(i))).collect();
        let call = Audits::takeSeatsCall { auditor: self.auditor, slots };
        self.seats = None;
        // Who took the same slots at the same time leaves others for the next round.
        let taken =
            once::<Audits::SlotTaken>(self.sender.send(&format!("take {many} seats"), audits, &call).await)?;
        Ok(taken.then_some(Event::Seated { seats: many }))
    }

    /// A member's digests, in rising order of sequence numbers.
    fn digests(&self, id: BatchId, member: u8) -> Vec<(u64, Hash)> {
        let Some(audit) = self.audits.get(&id) else { return vec![] };
        let me = node_address(self.auditor);
        let of = |(sequence, done): (&u64, &Done)| {
            let trace = done.trace.filter(|_| done.members.contains(&member))?;
            Some((*sequence, audit_digest(me, &audit.beacon.0, done.receipt, &trace)))
        };
        audit.work.done.iter().filter_map(of).collect()
    }

    async fn commit(&mut self, id: BatchId, member: u8) -> Result<Option<Event>, Undone> {
        let digests = self.digests(id, member);
        let root = b256(&digests_root(digests.iter().map(|(sequence, digest)| (*sequence, digest))));
        let Some(audit) = self.audits.get_mut(&id) else { return Ok(None) };
        let kept = audit.work.commitments.get(&member).filter(|kept| kept.root == root).copied();
        let said = kept.unwrap_or_else(|| Commitment { root, salt: B256::from(secret::draw()) });
        // Before anybody hears of it: who loses the salt cannot reveal.
        audit.work.commitments.insert(member, said);
        self.journal.write(id, &audit.work)?;
        let BatchId { epoch, provider } = id;
        let commitment = commitment(self.auditor, provider, epoch, member, root, said.salt);
        let call = Audits::commitCall { provider, epoch, member: U256::from(member), commitment };
        let audits = self.ledger.parts().at.audits;
        self.sender.send(&format!("commit for epoch {epoch}"), audits, &call).await?;
        Ok(Some(Event::Committed { batch: id, member }))
    }

    async fn reveal(&mut self, id: BatchId, member: u8) -> Result<Option<Event>, Undone> {
        let said = self.audits.get(&id).and_then(|audit| audit.work.commitments.get(&member)).copied();
        let Some(Commitment { root, salt }) = said else { return Ok(None) };
        let BatchId { epoch, provider } = id;
        // What was committed to is what was executed: nothing is executed after that.
        let own = self.digests(id, member);
        let digests = revealed_digests(own.iter().map(|(sequence, digest)| (*sequence, digest)));
        if b256(&digests_root(own.iter().map(|(sequence, digest)| (*sequence, digest)))) != root {
            return Err(Undone::Changed);
        }
        let call = Audits::revealCall { provider, epoch, member: U256::from(member), digests, salt };
        let audits = self.ledger.parts().at.audits;
        let sent = self.sender.send(&format!("reveal for epoch {epoch}"), audits, &call).await;
        Ok(once::<Audits::WrongPhase>(sent)?.then_some(Event::Revealed { batch: id, member }))
    }

    async fn demand(&mut self, id: BatchId, refused: Refused) -> Result<Option<Event>, Undone> {
        let Some(audit) = self.audits.get_mut(&id) else { return Ok(None) };
        let BatchId { epoch, provider } = id;
        let Refused { sequence, kind } = refused;
        let index = sequence.saturating_sub(audit.batch.first);
        // Before it is asked, so that who starts again does not ask twice for the bond.
        audit.work.demanded.push((sequence, kind == DemandKind::Record));
        if let Err(e) = self.journal.write(id, &audit.work) {
            // Nothing was asked: it is still to be.
            audit.work.demanded.pop();
            return Err(e.into());
        }
        let at = self.ledger.parts().at.objections;
        let sent = match kind {
            DemandKind::Leaf => {
                let Some(member) = audit.members.first().copied().map(U256::from) else { return Ok(None) };
                let call = Objections::demandLeafAsMemberCall { provider, epoch, index, member };
                self.sender.send(&format!("demand leaf {index} of epoch {epoch}"), at, &call).await
            }
            DemandKind::Record => {
                let Some((call, what)) = audit.record_demand(epoch, sequence) else { return Ok(None) };
                self.sender.send(&what, at, &call).await
            }
        };
        let asked = once::<Objections::AlreadyDemanded>(sent)?;
        let demand = DemandId { provider, epoch, index, kind };
        Ok(asked.then_some(Event::Demanded { demand }))
    }

    async fn open_dispute(&mut self, id: BatchId, sequence: u64) -> Result<Option<Event>, Undone> {
        let Some(record) = self.journal.kept(id, sequence)? else { return Ok(None) };
        let signed = &record.receipt;
        let disputes = self.ledger.parts().at.disputes;
        let what = format!("dispute receipt {sequence}");
        let place = self.audits.get(&id).and_then(|audit| audit.place(sequence));
        let sent = match place {
            // What was posted is answered for, whether its signature was shown or not.
            Some((receipt, Objections::Proof { index, count, path })) => {
                let proof = Disputes::Proof { index, count, path };
                let call = Disputes::openPostedCall { stated: receipt.into(), epoch: id.epoch, proof };
                self.sender.send(&what, disputes, &call).await
            }
            None => {
                let signature = signed.signature.as_bytes().to_vec().into();
                let call =
                    Disputes::openCall { stated: (&signed.receipt).into(), signature, epoch: id.epoch };
                self.sender.send(&what, disputes, &call).await
            }
        };
        let opened = once::<Disputes::AlreadyDisputed>(sent)?;
        if let Some(audit) = self.audits.get_mut(&id) {
            audit.work.disputed.push(sequence);
            self.journal.write(id, &audit.work)?;
        }
        Ok(opened.then_some(Event::Opened { batch: id, sequence }))
    }

    /// What a dispute is about.
    async fn case(&self, id: &DisputeId) -> Result<Case, Undone> {
        let from = self.docket.entries().disputes.get(id).copied().unwrap_or(0);
        if let Some(record) = self.kept_as(id.name)? {
            return Ok(Case { id: *id, from, stated: None, record });
        }
        let call = Audits::accusationOfCall { id: id.name };
        let about = self.ledger.client().read(self.ledger.parts().at.audits, &call).await?;
        let record = self.kept_as(about.receiptHash)?.ok_or(Undone::Lost(id.name))?;
        Ok(Case { id: *id, from, stated: Some(Hash::from_bytes(about.traceRoot.0)), record })
    }

    fn kept_as(&self, name: B256) -> Result<Option<AnswerRecord>, JournalError> {
        Ok(self.journal.all_kept()?.into_iter().find(|record| disputes::name_of(record) == name))
    }

    async fn acquit(&mut self, id: B256) -> Result<Option<Event>, Undone> {
        let audits = self.ledger.parts().at.audits;
        let about = self.ledger.client().read(audits, &Audits::accusationOfCall { id }).await?;
        let batch = BatchId { epoch: about.epoch, provider: about.provider };
        let digests = self.digests(batch, about.member);
        let place = digests.iter().position(|(sequence, _)| *sequence == about.sequence);
        let leaves: Vec<Hash> =
            digests.iter().map(|(sequence, digest)| digest_leaf(*sequence, digest)).collect();
        let Some(proof) = place.and_then(|place| merkle::prove(&leaves, place)) else { return Ok(None) };
        let call = Audits::acquitCall { id, proof: (&proof).into() };
        let sent = self.sender.send("open a digest that is doubted", audits, &call).await;
        Ok(once::<Audits::WrongPhase>(sent)?.then_some(Event::Acquitted))
    }

    async fn contest(&mut self, id: B256) -> Result<Option<Event>, Undone> {
        let audits = self.ledger.parts().at.audits;
        let about = self.ledger.client().read(audits, &Audits::accusationOfCall { id }).await?;
        let batch = BatchId { epoch: about.epoch, provider: about.provider };
        let record = match self.kept_as(about.receiptHash)? {
            Some(record) => record,
            // What stands was not kept, and has to be asked for again before it can be disputed.
            None => {
                self.fetch_again(batch, about.sequence, ReceiptId::from_bytes(about.receiptId.0));
                return Ok(None);
            }
        };
        let call = Disputes::contestCall { id, stated: (&record.receipt.receipt).into() };
        let disputes = self.ledger.parts().at.disputes;
        let sent = self.sender.send("contest a stated trace root", disputes, &call).await;
        Ok(once::<Audits::WrongPhase>(sent)?.then_some(Event::Contested))
    }

    /// Accuses another auditor of a digest, once there is all that is to be shown: the receipt's record, and its place under the posted root.
    async fn accuse(&mut self, id: BatchId, doubt: Doubt) -> Result<Option<Event>, Undone> {
        let Doubt { member, sequence, .. } = doubt;
        let done = self.audits.get(&id).and_then(|audit| audit.work.done.get(&sequence)).cloned();
        let Some(Done { receipt, trace: Some(trace), .. }) = done else { return Ok(None) };
        // What stands was not kept, and leaves never are.
        let kept = self.journal.kept(id, sequence)?.filter(|record| record.receipt.receipt.id() == receipt);
        let Some(record) = kept else {
            self.fetch_again(id, sequence, receipt);
            return Ok(None);
        };
        let Some(proof) = self.audits.get(&id).and_then(|audit| audit.place_of(sequence)) else {
            self.tell_again(id);
            return Ok(None);
        };
        let Objections::Proof { index, count, path } = proof;
        let call = Audits::accuseCall {
            epoch: id.epoch,
            member: U256::from(member),
            receipt: (&record.receipt.receipt).into(),
            proof: Audits::Proof { index, count, path },
            consent: (&record.request.consent_proof()).into(),
            traceRoot: b256(&trace),
        };
        let audits = self.ledger.parts().at.audits;
        let sent =
            self.sender.send(&format!("accuse member {member} of epoch {}", id.epoch), audits, &call).await;
        let accused = once::<Audits::AlreadyAccused>(sent)?;
        Ok(accused.then_some(Event::Accused { batch: id, member, sequence }))
    }

    /// Forgets what is over.
    fn tidy(&mut self, view: &View) {
        for dispute in &view.disputes {
            let new = self.ended.see(dispute.id, dispute.standing, view.now);
            if let (true, disputes::Standing::Over { winner }) = (new, dispute.standing) {
                self.say(Event::Ended { dispute: dispute.id, winner });
            }
        }
        for id in self.ended.forgotten(view.now) {
            self.docket.forget_dispute(&id);
        }
        for batch in &view.batches {
            let drawn = batch.phase == Phase::Final || read::is_audited(batch.phase);
            let unpaid = |m: &MemberView| m.phase == MemberPhase::Revealed;
            let settled = !batch.members.iter().any(unpaid) && batch.absent.is_empty();
            let over = batch.phase == Phase::Final && settled;
            if drawn && batch.members.is_empty() || over {
                self.over.insert(batch.id);
                self.working.remove(&batch.id);
                self.audits.remove(&batch.id);
            }
        }
    }
}

fn name(duty: &Duty) -> String {
    match duty {
        Duty::TakeSeats(seats) => format!("taking {seats} seats"),
        Duty::Lack(seats) => format!("taking {seats} seats"),
        Duty::Close(epoch) => format!("closing epoch {epoch}"),
        Duty::FixBeacon(epoch) => format!("fixing the beacon of epoch {epoch}"),
        Duty::Work(id) => format!("auditing {} in epoch {}", id.provider, id.epoch),
        Duty::Commit(id, _) => format!("committing for epoch {}", id.epoch),
        Duty::Reveal(id, _) => format!("revealing for epoch {}", id.epoch),
        Duty::Collect(id, _) => format!("collecting for epoch {}", id.epoch),
        Duty::ProveAbsence(id, member) => {
            format!("showing that member {member} of epoch {} is absent", id.epoch)
        }
        Duty::Demand(id, refused) => format!("demanding {} of epoch {}", refused.sequence, id.epoch),
        Duty::ProveSilence(id) => format!("showing the silence of {}", id.provider),
        Duty::Open(id, sequence) => format!("disputing receipt {sequence} of {}", id.provider),
        Duty::Move(id, Party::Challenger) => format!("picking in the dispute over {}", id.name),
        Duty::Move(id, Party::Defender) => format!("claiming in the dispute over {}", id.name),
        Duty::TimeOut(id) => format!("ending the dispute over {}", id.name),
        Duty::Acquit(id) => format!("answering accusation {id}"),
        Duty::Contest(id) => format!("contesting accusation {id}"),
        Duty::Accuse(id, doubt) => format!("accusing member {} of epoch {}", doubt.member, id.epoch),
        Duty::Lapse(id) => format!("ending accusation {id}"),
    }
}
