//! Auditors who are accused: the honest lose gas at most, the lazy their penalty.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use alloy_primitives::{Address, B256, U256};
use assay_chain::scratch::Failure;
use assay_core::answer::AnswerRecord;
use assay_core::consent::Consent;
use assay_core::id::Hash;
use assay_core::merkle::{self, Proof};
use assay_core::receipt::Receipt;
use assay_engine::replay::ByReference;
use assay_ledger::audits::{digest_leaf, digests_root, revealed_digests};
use assay_ledger::contracts::{Audits, Disputes, Objections, channel_id};
use assay_verify::dispute::calldata::Encoder;
use assay_verify::dispute::parties::{Challenger, Defender, Player};
use assay_verify::dispute::{Claim, Message, Outcome, Party, Pick, Reason, Referee, Stage};
use assay_verify::trace::walk::Trace;

use crate::miniature::{self, Small, bind, sampling, statement, subject};
use crate::network::{AUDITOR, Actor, DOLLAR, Network, PROVIDER, Posted, b, digest, parameters, some};
use crate::report;

static MODELS: LazyLock<Vec<Small>> = LazyLock::new(miniature::models);
const BOND: u64 = 20 * DOLLAR;
const PENALTY: u64 = 50 * DOLLAR;

fn trace<'a>(model: &'a Small, record: &AnswerRecord) -> Trace<'a> {
    Trace::new(model.constants.as_ref(), subject(record), &mut ByReference(model.constants.as_ref()))
}

fn player<'a>(model: &'a Small, trace: Trace<'a>) -> Player<'a> {
    Player::new(trace, Box::new(ByReference(model.constants.as_ref())))
}

/// A receipt that one auditor was to execute, and has revealed a digest of.
struct Audit {
    n: Network,
    provider: Actor,
    auditor: Actor,
    accuser: Actor,
    receipt: Receipt,
    posted: Posted,
    /// What the request's hash says of its client's consent.
    consent: Proof,
    /// The digest that it revealed.
    digest: Hash,
    fixed: u64,
}

impl Audit {
    /// Of a record, with a digest of this trace root.
    fn of(record: &AnswerRecord, root: Hash) -> Audit {
        let mut p = parameters();
        p.rates.rateMinPpm = 1_000_000;
        p.rates.panelMin = 1;
        let mut n = Network::with_disputes(p);
        let (payer, provider) = (n.rich("payer", 1000), n.rich("provider", 1000));
        let (auditor, accuser) = (n.rich("auditor", 1000), n.rich("accuser", 100));
        n.enrol(&provider, PROVIDER, 10 * DOLLAR);
        n.enrol(&auditor, AUDITOR, 400 * DOLLAR);
        let config = n.config(&payer, &provider, 0);
        n.fund(&payer, &config, 500 * DOLLAR).unwrap();
        n.earn(&payer, &provider, &config, 10 * DOLLAR).unwrap();
        let audits = n.parts.at.audits;
        let slots = vec![U256::from(0), U256::from(1)];
        n.send(&auditor, audits, Audits::takeSeatsCall { auditor: auditor.address, slots }).unwrap();
        n.end_epoch(1);
        let receipt = Receipt {
            provider: provider.node(),
            sequence: 0,
            fee_micro_usd: DOLLAR,
            payer_channel: channel_id(n.channel_id(&config)),
            epoch: 1,
            ..record.receipt.receipt.clone()
        };
        let posted = Posted::of(&n.domain(), 0, vec![Some(receipt.clone())], &BTreeMap::new());
        n.post(&provider, 1, &posted).unwrap();
        let (beacon, fixed) = n.draw(1);
        let own = digest(auditor.address, beacon, &receipt, root.as_bytes());
        let digest = Hash::from_bytes(own.0);
        let consent = record.request.consent_proof();
        let mut audit = Audit { n, provider, auditor, accuser, receipt, posted, consent, digest, fixed };
        audit.reveal();
        audit
    }

    fn reveal(&mut self) {
        let audits = self.n.parts.at.audits;
        let n = &mut self.n;
        let (provider, auditor) = (self.provider.address, self.auditor.address);
        let (root, salt) = (b(digests_root([(0, &self.digest)])), some("salt").into());
        let digests = revealed_digests([(0, &self.digest)]);
        let call = Audits::commitmentOfCall { auditor, provider, epoch: 1, member: U256::ZERO, root, salt };
        let commitment = n.chain.read(audits, &call).unwrap();
        let call = Audits::commitCall { provider, epoch: 1, member: U256::ZERO, commitment };
        n.send(&self.auditor, audits, call).unwrap();
        n.chain.warp(self.fixed + 7201);
        let call = Audits::revealCall { provider, epoch: 1, member: U256::ZERO, digests, salt };
        n.send(&Actor::named("anyone"), audits, call).unwrap();
    }

    fn accuse(&mut self, root: Hash) -> Result<B256, Failure> {
        let audits = self.n.parts.at.audits;
        let call = Audits::accuseCall {
            epoch: 1,
            member: U256::ZERO,
            receipt: (&self.receipt).into(),
            proof: (&self.posted.proof(0)).into(),
            consent: (&self.consent).into(),
            traceRoot: b(root),
        };
        self.n.send(&self.accuser, audits, call).map(|done| done.value)
    }

    fn acquit(&mut self, id: B256) -> Result<(), Failure> {
        let audits = self.n.parts.at.audits;
        let proof = (&merkle::prove(&[digest_leaf(0, &self.digest)], 0).unwrap()).into();
        self.n.send(&Actor::named("anyone"), audits, Audits::acquitCall { id, proof }).map(|_| ())
    }

    fn contest(&mut self, id: B256, by: &Actor, stated: &Receipt) -> Result<(), Failure> {
        let disputes = self.n.parts.at.disputes;
        self.n.send(by, disputes, Disputes::contestCall { id, stated: stated.into() }).map(|_| ())
    }

    fn over(&mut self, id: B256) -> Option<Party> {
        let call = Disputes::disputeOfCall {
            receipt: id,
            challenger: self.auditor.address,
            defender: self.accuser.address,
        };
        let walk = self.n.chain.read(self.n.parts.at.disputes, &call).unwrap().walk;
        let winner = if walk.rows == 1 { Party::Challenger } else { Party::Defender };
        (walk.stage == 11).then_some(winner)
    }

    /// Both play before the referee in Rust and the chain. Who says nothing runs out of time.
    fn play(
        &mut self,
        id: B256,
        record: &AnswerRecord,
        root: Hash,
        accuser: &mut dyn FnMut(&Referee) -> Option<Claim>,
        accused: &mut dyn FnMut(&Referee) -> Option<Pick>,
    ) -> Outcome {
        let disputes = self.n.parts.at.disputes;
        let mut referee = Referee::of_trace(statement(record), root).unwrap();
        let mut encoder = Encoder::of_trace(statement(record), root);
        let (challenger, defender) = (self.auditor.address, self.accuser.address);
        while let Some(turn) = referee.turn() {
            assert_eq!(self.over(id), None, "the chain ended before {:?}", referee.stage());
            let sent = match turn {
                Party::Defender => accuser(&referee).map(|claim| {
                    let message = encoder.claim(&referee, &claim).unwrap_or_else(|| vec![0xff; 3]).into();
                    referee.receive(turn, &Message::Claim(claim));
                    let call = Disputes::claimCall { receipt: id, challenger, defender, message };
                    self.n.send(&self.accuser, disputes, call).map(|_| ())
                }),
                Party::Challenger => accused(&referee).map(|pick| {
                    let message = encoder.pick(&referee, &pick).unwrap_or_else(|| vec![0xff; 3]).into();
                    referee.receive(turn, &Message::Pick(pick));
                    let call = Disputes::pickCall { receipt: id, defender, message };
                    self.n.send(&self.auditor, disputes, call).map(|_| ())
                }),
            };
            match sent {
                Some(done) => done.unwrap(),
                None => {
                    referee.timeout();
                    let call = Disputes::timeoutCall { receipt: id, challenger, defender };
                    let anyone = Actor::named("anyone");
                    let early = self.n.send(&anyone, disputes, call.clone()).unwrap_err();
                    assert!(early.is::<Disputes::TooEarly>());
                    self.n.chain.mine(1, 7200 / 22 + 1);
                    self.n.send(&anyone, disputes, call).unwrap();
                }
            }
        }
        let outcome = referee.outcome().unwrap();
        assert_eq!(self.over(id), Some(outcome.winner), "{outcome:?}");
        outcome
    }

    fn balances(&mut self) -> [u64; 3] {
        [self.auditor.address, self.accuser.address, self.n.treasury].map(|a: Address| self.n.balance(a))
    }

    fn stake(&mut self) -> u64 {
        u64::try_from(self.n.node(self.auditor.address).stake).unwrap()
    }

    /// What the accused, its accuser and the treasury got since, and what was taken of the stake.
    fn moved(&mut self, before: [u64; 3], stake: u64) -> ([i64; 3], u64) {
        let now = self.balances();
        self.n.check_money();
        assert_eq!(self.n.balance(self.n.parts.at.audits), 0, "nothing stays behind");
        assert_eq!(self.n.balance(self.n.parts.at.disputes), 0, "nothing stays behind");
        let got = [0, 1, 2].map(|i| now[i].cast_signed() - before[i].cast_signed());
        (got, stake - self.stake())
    }
}

const WON: i64 = BOND.cast_signed();

#[test]
fn a_false_accusation_of_an_honest_auditor_loses_its_bond() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let own = trace(model, &record).root();
    let program = model.constants.program().program();
    // A trace that was made up, one with other keys, one of another prompt.
    let mut keys = trace(model, &record);
    let op = program.carried()[0];
    let honest: Vec<_> = keys.carried_parts(1, op).unwrap().to_vec();
    keys.replace_carried(1, op, keys.carried_parts(0, op).unwrap().to_vec());
    assert_ne!(honest[2].root(), keys.carried_parts(1, op).unwrap()[2].root());
    let mut prompt = subject(&record);
    prompt.tokens[4] = (prompt.tokens[4] + 1) % 83;
    let prompt = Trace::new(model.constants.as_ref(), prompt, &mut ByReference(model.constants.as_ref()));
    for (cheat, stated) in
        [(trace(model, &record), Some(Hash::from_bytes([5; 32]))), (keys, None), (prompt, None)]
    {
        let mut audit = Audit::of(&record, own);
        let stated = stated.unwrap_or_else(|| cheat.root());
        let (before, stake) = (audit.balances(), audit.stake());
        let id = audit.accuse(stated).unwrap();
        assert!(audit.acquit(id).unwrap_err().is::<Audits::WrongDigest>());
        let auditor = audit.auditor.clone();
        audit.contest(id, &auditor, &audit.receipt.clone()).unwrap();
        let mut liar = Defender::new(player(model, cheat), &record, &model.tree);
        let mut accused = Challenger::new(player(model, trace(model, &record)), &record);
        let outcome = audit.play(id, &record, stated, &mut |r| liar.answer(r), &mut |r| accused.answer(r));
        assert_eq!(outcome.winner, Party::Challenger);
        assert_eq!(audit.moved(before, stake), ([WON, -WON, 0], 0));
    }
}

/// How an auditor plays.
type Way<'a> = &'a mut dyn FnMut(&Referee) -> Option<Pick>;

#[test]
fn a_lazy_auditor_that_contests_loses_its_bond_and_its_penalty() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let own = trace(model, &record).root();
    let ways: [Way<'_>; 4] = [
        // Silence, a node of nothing, a digest that is not asked for, a carry that is as it should be.
        &mut |_| None,
        &mut |_| Some(Pick::Node(99)),
        &mut |_| Some(Pick::Digest(1)),
        &mut |r| match r.stage() {
            Stage::PickPart(_) => Some(Pick::Carry(vec![Hash::ZERO; 3])),
            _ => Some(Pick::Node(0)),
        },
    ];
    for lazy in ways {
        let mut audit = Audit::of(&record, Hash::from_bytes([8; 32]));
        let (before, stake) = (audit.balances(), audit.stake());
        let id = audit.accuse(own).unwrap();
        assert!(audit.acquit(id).unwrap_err().is::<Audits::WrongDigest>());
        let auditor = audit.auditor.clone();
        audit.contest(id, &auditor, &audit.receipt.clone()).unwrap();
        let mut accuser = Defender::new(player(model, trace(model, &record)), &record, &model.tree);
        let outcome = audit.play(id, &record, own, &mut |r| accuser.answer(r), lazy);
        assert_eq!(outcome.winner, Party::Defender);
        let batch = audit.n.batch(audit.provider.address, 1);
        let reporter = PENALTY / 10;
        let treasury = (PENALTY - reporter + batch.auditorsPart).cast_signed();
        assert_eq!(audit.moved(before, stake), ([-WON, WON + reporter.cast_signed(), treasury], PENALTY));
        audit.n.chain.warp(audit.fixed + 14_401);
        let (provider, audits) = (audit.provider.address, audit.n.parts.at.audits);
        let collect = Audits::collectCall { provider, epoch: 1, member: U256::ZERO };
        let refused = audit.n.send(&auditor, audits, collect).unwrap_err();
        assert!(refused.is::<Audits::WrongPhase>());
    }
}

#[test]
fn an_accuser_that_does_not_defend_its_trace_loses() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let own = trace(model, &record).root();
    // The accuser is right, and says nothing; and the accused, who has nothing to show, need not either.
    let mut audit = Audit::of(&record, Hash::from_bytes([8; 32]));
    let (before, stake) = (audit.balances(), audit.stake());
    let id = audit.accuse(own).unwrap();
    let auditor = audit.auditor.clone();
    audit.contest(id, &auditor, &audit.receipt.clone()).unwrap();
    let outcome = audit.play(id, &record, own, &mut |_| None, &mut |_| None);
    assert_eq!(outcome, Outcome { winner: Party::Challenger, reason: Reason::Timeout });
    assert_eq!(audit.moved(before, stake), ([WON, -WON, 0], 0));
    // It is paid as if nothing had been said.
    audit.n.chain.warp(audit.fixed + 14_401);
    let (provider, audits) = (audit.provider.address, audit.n.parts.at.audits);
    let collect = Audits::collectCall { provider, epoch: 1, member: U256::ZERO };
    audit.n.send(&auditor, audits, collect).unwrap();
}

/// An auditor's trace is that of the tokens that the provider claims: whether these are right is between others.
#[test]
fn an_auditor_does_not_answer_for_what_the_provider_signed() {
    let model = &MODELS[3];
    let mut record = model.answer(20, 50, sampling());
    let id_at = &mut record.transcript.output_ids[25];
    *id_at = (*id_at + 1) % 83;
    record.digests.0[0] = Hash::from_bytes([9; 32]);
    bind(&mut record);
    let own = trace(model, &record).root();
    let program = model.constants.program().program();
    let choose = program.ops.len() as u16 + 1;
    let mut audit = Audit::of(&record, Hash::from_bytes([8; 32]));
    let id = audit.accuse(own).unwrap();
    let auditor = audit.auditor.clone();
    audit.contest(id, &auditor, &audit.receipt.clone()).unwrap();
    let mut accuser = Defender::new(player(model, trace(model, &record)), &record, &model.tree);
    // The accused walks to the token that is not the transcript's.
    let position = 20 - 1 + 25u32;
    let mut lazy = |r: &Referee| {
        let at = r.at();
        let to = |leaf: u64, height: u32| Some(Pick::Node(((leaf >> height) - at.first(height)) as u32));
        match r.stage() {
            Stage::PickNode(h, _) if r.in_blocks() => to(u64::from(position / 32), *h),
            Stage::PickNode(h, _) if r.tree_step().is_none() => to(u64::from(choose), *h),
            Stage::PickNode(h, _) => to(u64::from(position - 32), *h),
            Stage::PickPart(_) => {
                Some(Pick::Part { step: (u64::from(choose) - at.first(0)) as u32, part: 4 })
            }
            Stage::PickNumber(_) => Some(Pick::Number { index: 0, partials: vec![] }),
            _ => None,
        }
    };
    let outcome = audit.play(id, &record, own, &mut |r| accuser.answer(r), &mut lazy);
    assert_eq!(outcome, Outcome { winner: Party::Defender, reason: Reason::StepHolds });
}

#[test]
fn who_may_contest_and_what() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let own = trace(model, &record).root();
    let mut audit = Audit::of(&record, own);
    let id = audit.accuse(Hash::from_bytes([5; 32])).unwrap();
    let (auditor, accuser, receipt) = (audit.auditor.clone(), audit.accuser.clone(), audit.receipt.clone());
    assert!(audit.contest(id, &accuser, &receipt).unwrap_err().is::<Audits::NotNode>());
    let other = Receipt { fee_micro_usd: 7, ..receipt.clone() };
    assert!(audit.contest(id, &auditor, &other).unwrap_err().is::<Disputes::WrongReceipt>());
    assert!(audit.contest(some("none").into(), &auditor, &receipt).unwrap_err().is::<Audits::WrongPhase>());
    audit.contest(id, &auditor, &receipt).unwrap();
    assert!(audit.contest(id, &auditor, &receipt).unwrap_err().is::<Audits::WrongPhase>());
    // Nobody but the accuser claims.
    let disputes = audit.n.parts.at.disputes;
    let call = Disputes::claimCall {
        receipt: id,
        challenger: auditor.address,
        defender: accuser.address,
        message: vec![1].into(),
    };
    assert!(audit.n.send(&auditor, disputes, call).unwrap_err().is::<Disputes::NotYourTurn>());
    // An accusation that was answered too late is lost by silence.
    let late = audit.accuse(Hash::from_bytes([6; 32])).unwrap();
    audit.n.chain.mine(1, 3601);
    assert!(audit.contest(late, &auditor, &receipt).unwrap_err().is::<Audits::TooLate>());
    audit.n.check_money();
}

/// An accusation that a lazy auditor makes of itself, contests and wins is in nobody's way.
#[test]
fn an_arranged_accusation_bars_no_other() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let own = trace(model, &record).root();
    let mut audit = Audit::of(&record, Hash::from_bytes([8; 32]));
    let (auditor, honest) = (audit.auditor.clone(), audit.accuser.clone());
    audit.accuser = audit.n.rich("puppet", 100);
    let id = audit.accuse(own).unwrap();
    audit.contest(id, &auditor, &audit.receipt.clone()).unwrap();
    let outcome = audit.play(id, &record, own, &mut |_| None, &mut |_| None);
    assert_eq!(outcome.winner, Party::Challenger);
    audit.accuser = honest;
    let (before, stake) = (audit.balances(), audit.stake());
    let id = audit.accuse(own).unwrap();
    assert!(audit.accuse(own).unwrap_err().is::<Audits::AlreadyAccused>());
    audit.n.chain.mine(1, 3601);
    let (audits, anyone) = (audit.n.parts.at.audits, Actor::named("anyone"));
    audit.n.send(&anyone, audits, Audits::lapseCall { id }).unwrap();
    let treasury = audit.n.batch(audit.provider.address, 1).auditorsPart + PENALTY * 9 / 10;
    let reporter = (PENALTY / 10).cast_signed();
    assert_eq!(audit.moved(before, stake), ([0, reporter, treasury.cast_signed()], PENALTY));
}

/// What no dispute can be about, nobody is accused of.
#[test]
fn an_auditor_of_embeddings_is_not_accused() {
    let model = &MODELS[3];
    let mut record = model.answer(20, 50, sampling());
    record.receipt.receipt.completion_tokens = 0;
    let mut audit = Audit::of(&record, Hash::from_bytes([5; 32]));
    assert!(audit.accuse(Hash::from_bytes([6; 32])).unwrap_err().is::<Audits::NoAnswer>());
}

/// A commitment or a reveal of another is of no use.
#[test]
fn copied_commitments_do_not_open() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let own = trace(model, &record).root();
    let mut audit = Audit::of(&record, own);
    let (provider, audits) = (audit.provider.address, audit.n.parts.at.audits);
    let root = b(digests_root([(0, &audit.digest)]));
    let of = |auditor: &Actor| Audits::commitmentOfCall {
        auditor: auditor.address,
        provider,
        epoch: 1,
        member: U256::ZERO,
        root,
        salt: some("salt").into(),
    };
    let copycat = Actor::named("copycat");
    let (a, c) = (of(&audit.auditor), of(&copycat));
    let [a, c] = [a, c].map(|call| audit.n.chain.read(audits, &call).unwrap());
    assert_ne!(a, c, "a commitment names its auditor");
    // Once the first root is public, nobody commits any more, and nobody reveals twice.
    let commit = Audits::commitCall { provider, epoch: 1, member: U256::ZERO, commitment: c };
    assert!(audit.n.send(&copycat, audits, commit).unwrap_err().is::<Audits::TooLate>());
    let digests = revealed_digests([(0, &audit.digest)]);
    let reveal =
        Audits::revealCall { provider, epoch: 1, member: U256::ZERO, digests, salt: some("salt").into() };
    assert!(audit.n.send(&copycat, audits, reveal).unwrap_err().is::<Audits::WrongPhase>());
    // The same trace root makes another digest for another auditor.
    let (beacon, _) = audit.n.beacon(1);
    let digests =
        [&audit.auditor, &copycat].map(|x| digest(x.address, beacon, &audit.receipt, own.as_bytes()));
    assert_ne!(digests[0], digests[1]);
}

/// Whoever says what, and however the others play: an honest auditor keeps its stake and its money, an honest accuser its bond, and nothing is
/// made or lost. `ASSAY_SEEDS` says how many games.
#[test]
fn the_honest_lose_nothing_in_any_game() {
    let model = &MODELS[3];
    let record = model.answer(20, 50, sampling());
    let own = trace(model, &record).root();
    let seeds: u64 = std::env::var("ASSAY_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    let mut ends = BTreeMap::new();
    for seed in 0..seeds {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let (lazy, wrong) = (draw(2) == 0, draw(2) == 0);
        let stated = if wrong { Hash::from_bytes([5; 32]) } else { own };
        let mut audit = Audit::of(&record, if lazy { Hash::from_bytes([8; 32]) } else { own });
        let (before, stake) = (audit.balances(), audit.stake());
        let id = audit.accuse(stated).unwrap();
        let auditor = audit.auditor.clone();
        // The honest answer with what they have; the lazy contest or stay silent.
        let acquitted = audit.acquit(id).is_ok();
        assert_eq!(acquitted, !lazy && !wrong);
        if !acquitted && (!lazy || draw(3) > 0) {
            audit.contest(id, &auditor, &audit.receipt.clone()).unwrap();
            let accuser_plays = if wrong { draw(3) } else { 0 };
            let accused_plays = if lazy { draw(3) } else { 0 };
            let mut defender = Defender::new(player(model, trace(model, &record)), &record, &model.tree);
            let mut challenger = Challenger::new(player(model, trace(model, &record)), &record);
            let mut random = draw;
            let mut claims = |r: &Referee| match accuser_plays {
                0 => defender.answer(r),
                1 => None,
                _ => Some(Claim::Nodes(vec![Hash::ZERO; 2])),
            };
            let mut picks = |r: &Referee| match (accused_plays, r.stage()) {
                (0, _) => challenger.answer(r),
                (1, _) => None,
                (_, Stage::PickNode(_, nodes)) => Some(Pick::Node(random(nodes.len() as u64) as u32)),
                (_, Stage::PickPart(lists)) => {
                    let step = random(lists.len() as u64) as usize;
                    let part = random(lists[step].len() as u64) as u8;
                    Some(Pick::Part { step: step as u32, part })
                }
                (_, Stage::PickNumber(numbers)) => {
                    // None of them the claimed number, which the chain would see later than the referee.
                    let partials = (0..random(3)).map(|i| i.cast_signed() + (1 << 60)).collect();
                    Some(Pick::Number { index: random(numbers.len() as u64) as u16, partials })
                }
                _ => None,
            };
            let outcome = audit.play(id, &record, stated, &mut claims, &mut picks);
            // With a trace root that is right the accuser wins, with another it cannot.
            let right = if wrong { Party::Challenger } else { Party::Defender };
            assert_eq!(outcome.winner, right, "seed {seed}: {outcome:?}");
            *ends.entry(format!("{:?}", outcome.reason)).or_insert(0) += 1;
        } else if !acquitted {
            audit.n.chain.mine(1, 3601);
            let audits = audit.n.parts.at.audits;
            audit.n.send(&auditor, audits, Audits::lapseCall { id }).unwrap();
            *ends.entry("lapsed".to_owned()).or_insert(0) += 1;
        }
        let ([accused, accuser, _], taken) = audit.moved(before, stake);
        assert!(lazy || accused >= 0 && taken == 0, "seed {seed}: an honest auditor lost {accused}, {taken}");
        assert!(wrong || !lazy || accuser >= 0, "seed {seed}: an honest accuser lost {accuser}");
    }
    println!("{ends:?}");
    assert!(ends.len() >= 4 || seeds < 40, "{ends:?}");
}

/// A record that an auditor says it was refused is shown on the chain: the request's and the transcript's items under the receipt's hashes.
#[test]
fn a_demanded_record_is_shown() {
    let record = MODELS[3].answer(20, 50, sampling());
    let mut audit = Audit::of(&record, Hash::ZERO);
    let (provider, auditor) = (audit.provider.clone(), audit.auditor.clone());
    let objections = audit.n.parts.at.objections;
    let before = [provider.address, auditor.address].map(|a| audit.n.balance(a));
    let demand = Objections::demandRecordCall {
        epoch: 1,
        member: U256::ZERO,
        receipt: (&audit.receipt).into(),
        proof: (&audit.posted.proof(0)).into(),
    };
    audit.n.send(&auditor, objections, demand).unwrap();
    let answer = |record: &AnswerRecord| Objections::answerRecordCall {
        provider: provider.address,
        epoch: 1,
        index: 0,
        request: record.request.items().into_iter().map(Into::into).collect(),
        transcript: record.transcript.items().into_iter().map(Into::into).collect(),
    };
    // Another prompt, another token: not what the receipt is of.
    let mut other = record.clone();
    other.request.max_tokens += 1;
    assert!(audit.n.send(&provider, objections, answer(&other)).unwrap_err().is::<Objections::BadRecord>());
    let mut other = record.clone();
    other.transcript.output_ids[3] ^= 1;
    assert!(audit.n.send(&provider, objections, answer(&other)).unwrap_err().is::<Objections::BadRecord>());
    let shown = audit.n.send(&provider, objections, answer(&record)).unwrap();
    println!("answerRecord of {} tokens: {} gas", 70, shown.gas);
    report::merge("gas", serde_json::json!({"Objections.answerRecord": shown.gas}));
    // Who asked has its bond back: the provider earns nothing by showing a record here alone. Silence can no longer be proved.
    let after = [provider.address, auditor.address].map(|a| audit.n.balance(a));
    assert_eq!(before, after);
    audit.n.chain.mine(1, 100_000);
    let silence = Objections::proveSilenceCall { provider: provider.address, epoch: 1, index: 0, kind: 1 };
    assert!(audit.n.send(&provider, objections, silence).unwrap_err().is::<Objections::NothingDemanded>());
}

/// What no auditor was to see: that it is so is all that a demand brings, and nobody is doubted over it.
#[test]
fn of_a_withheld_record_nothing_is_demanded_and_nobody_is_doubted() {
    let given = MODELS[3].answer(20, 50, sampling());
    let mut record = given.clone();
    record.request.audit = Consent::Withheld;
    record.receipt.receipt.request_hash = record.request.hash();
    let model = b(Hash::from_bytes(*record.request.model.as_bytes()));
    // The auditor has revealed a digest of no execution, as one that was shown nothing must.
    let mut audit = Audit::of(&record, Hash::ZERO);
    let root = trace(&MODELS[3], &given).root();
    let bent = |change: fn(&mut Proof)| {
        let mut proof = record.request.consent_proof();
        change(&mut proof);
        proof
    };
    for proof in
        [record.request.consent_proof(), bent(|p| p.index = 1), bent(|p| p.count = 2), bent(|p| p.count = 6)]
    {
        audit.consent = proof;
        let refused = audit.accuse(root).unwrap_err();
        assert!(refused.is::<Audits::NoConsent>() || refused.is::<Audits::MalformedProof>(), "{refused:?}");
    }
    let (provider, auditor) = (audit.provider.clone(), audit.auditor.clone());
    let objections = audit.n.parts.at.objections;
    let demand = |audit: &Audit| Objections::demandRecordCall {
        epoch: 1,
        member: U256::ZERO,
        receipt: (&audit.receipt).into(),
        proof: (&audit.posted.proof(0)).into(),
    };
    let answer = |consent: &Proof| Objections::answerWithheldCall {
        provider: provider.address,
        epoch: 1,
        index: 0,
        modelRoot: model,
        consent: consent.into(),
    };
    let before = [provider.address, auditor.address].map(|a| audit.n.balance(a));
    let nothing = audit.n.send(&provider, objections, answer(&record.request.consent_proof())).unwrap_err();
    assert!(nothing.is::<Objections::NothingDemanded>());
    let call = demand(&audit);
    audit.n.send(&auditor, objections, call).unwrap();
    for proof in [bent(|p| p.index = 1), bent(|p| p.count = 2), bent(|p| p.path.reverse())] {
        let refused = audit.n.send(&provider, objections, answer(&proof)).unwrap_err();
        assert!(
            refused.is::<Objections::BadRecord>() || refused.is::<Objections::MalformedProof>(),
            "{refused:?}"
        );
    }
    let shown = audit.n.send(&provider, objections, answer(&record.request.consent_proof())).unwrap();
    println!("answerWithheld: {} gas", shown.gas);
    report::merge("gas", serde_json::json!({"Objections.answerWithheld": shown.gas}));
    let after = [provider.address, auditor.address].map(|a| audit.n.balance(a));
    assert_eq!(before, after);
    audit.n.chain.mine(1, 100_000);
    let silence = Objections::proveSilenceCall { provider: provider.address, epoch: 1, index: 0, kind: 1 };
    assert!(audit.n.send(&provider, objections, silence).unwrap_err().is::<Objections::NothingDemanded>());
    // Of a request whose client gave its consent, the same says nothing: the record is owed.
    let mut audit = Audit::of(&given, Hash::ZERO);
    let provider = audit.provider.clone();
    let (auditor, call) = (audit.auditor.clone(), demand(&audit));
    audit.n.send(&auditor, objections, call).unwrap();
    for proof in [given.request.consent_proof(), record.request.consent_proof()] {
        let refused = audit.n.send(&provider, objections, answer(&proof)).unwrap_err();
        assert!(refused.is::<Objections::BadRecord>());
    }
}
