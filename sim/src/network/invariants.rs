//! What must always hold. Each has a name, which is printed with the seed and the number of the event when it does not.
//!
//! | name | what |
//! |---|---|
//! | `money_conserved` | balances of everybody and every contract sum to the vault's total, which the vault holds, and no token is anywhere else |
//! | `books_conserved` | what clients have, what is held and what was spent sum to what was paid in; what is held is what the holds say |
//! | `honest_unharmed` | no honest node is slashed or struck, or has less at the end than it began with |
//! | `nothing_refused` | no contract refuses what an honest party's decisions sent, but for what another has done first |
//! | `vouchers_bound` | nothing is claimed from a channel above the highest voucher that was signed for it |
//! | `charged_once` | a request is charged once, however often the gateway dies |
//! | `charged_for_whole` | an answer that a client gets is whole, and is what it was charged for |
//! | `receipts_kept` | every receipt that was said is in its provider's store |
//! | `paid_is_claimed` | what was said and paid for by voucher is claimed, and posted |
//! | `struck_not_asked` | a gateway that has read that a provider lied does not ask it |
//! | `cheats_are_struck` | who lied in a receipt that was drawn for an auditor that does its work is struck |
//! | `cheats_are_struck_soon` | who lied in more receipts than chance could leave undrawn is struck |
//! | `omissions_are_struck` | who gave the gateway a receipt and posted another one at its number is struck |
//! | `outstanding_settles` | when faults are over for so many epochs, nothing is open |

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256};
use assay_core::answer::AnswerRecord;
use assay_core::id::NodeAddress;
use assay_ledger::contracts::{Audits, Channels, Disputes, Epochs, Objections, Registry, Retrieval};
use assay_ledger::ledger::Phase;
use assay_node::auditor::Draw;

use super::auditor;
use super::chain::{Chain, RATE_PPM, TxId};
use super::provider::Plan;
use super::settling::auditors_of;
use super::wire::{Ask, Who};
use super::{Held, Summary, World, wrong};

/// How seldom chance may leave a cheat undrawn, as a number of halvings: below one in 10^12.
const HALVINGS: f64 = 40.0;
/// Where something of a node's was undone by a reorganisation, what it sends may be refused for so long, in milliseconds.
const AFTER_UNDONE_MS: u64 = 7_200_000;

/// That a dispute has ended by a move that did not come, as the contract numbers it.
const TIMEOUT: u8 = 1;

/// What the run knows and nobody in it does.
pub(super) struct Truth {
    supply: u64,
    /// What was said on each channel of a provider, and in which receipts.
    said: BTreeMap<(usize, B256), BTreeMap<u64, u64>>,
    /// What nodes began with: stake and what they had in the vault.
    began: BTreeMap<Address, u64>,
    /// Transactions that reorganisations took back.
    undone: u64,
    /// When something of an account was taken back last, and what.
    undone_of: BTreeMap<Address, u64>,
    undone_what: BTreeSet<(Address, String)>,
    /// Moves that were made in disputes.
    pub(super) moves: u64,
}

fn stake(chain: &mut Chain, node: Address) -> u64 {
    let found = chain.read(chain.parts.at.registry, &Registry::nodeOfCall { node });
    u64::try_from(found.stake + found.unbonding).unwrap_or(u64::MAX)
}

impl Truth {
    pub(super) fn new(chain: &mut Chain) -> Truth {
        let [_, _, _, supply] = chain.money();
        Truth {
            supply,
            said: BTreeMap::new(),
            began: BTreeMap::new(),
            undone: 0,
            undone_of: BTreeMap::new(),
            undone_what: BTreeSet::new(),
            moves: 0,
        }
    }

    /// A reorganisation took a transaction back.
    pub(super) fn took_back(&mut self, from: Address, what: &str, now_ms: u64) {
        self.undone += 1;
        self.undone_of.insert(from, now_ms);
        self.undone_what.insert((from, what.to_owned()));
    }

    /// A provider says an answer.
    pub(super) fn said(&mut self, provider: usize, channel: B256, record: &AnswerRecord) {
        let receipt = &record.receipt.receipt;
        self.said.entry((provider, channel)).or_default().insert(receipt.sequence, receipt.fee_micro_usd);
    }
}

impl World<'_> {
    fn honest(&self) -> Vec<(Who, Address)> {
        let providers = self.providers.iter().enumerate().filter(|(_, p)| p.plan == Plan::Honest);
        let providers = providers.map(|(i, p)| (Who::Provider(i), p.actor.address));
        let auditors = self.auditors.iter().enumerate().filter(|(_, a)| a.plan == auditor::Plan::Honest);
        let auditors = auditors.map(|(i, a)| (Who::Auditor(i), a.actor.address));
        let hosts = self.hosts.iter().enumerate().filter(|(_, h)| !h.has_lost);
        let hosts = hosts.map(|(i, h)| (Who::Host(i), h.actor.address));
        providers.chain(auditors).chain(hosts).collect()
    }

    /// After each transaction.
    pub(super) fn check_transaction(&mut self, id: TxId) -> Held {
        let honest: BTreeMap<Address, Who> = self.honest().into_iter().map(|(who, at)| (at, who)).collect();
        if self.truth.began.is_empty() {
            for at in honest.keys() {
                let has = stake(&mut self.chain, *at) + self.chain.balance(*at);
                self.truth.began.insert(*at, has);
            }
        }
        let block = self.chain.number();
        for logged in self.chain.logs_from(block).filter(|logged| logged.tx == id) {
            if let Some(e) = logged.as_event::<Registry::Struck>()
                && let Some(who) = honest.get(&e.node)
            {
                return Err(wrong("honest_unharmed", format!("{who} is struck")));
            }
            if let Some(e) = logged.as_event::<Registry::Slashed>()
                && let Some(who) = honest.get(&e.node)
            {
                return Err(wrong("honest_unharmed", format!("{who} is slashed by {}", e.taken)));
            }
            if let Some(e) = logged.as_event::<Channels::Claimed>() {
                let signed = self.gateway.signed.get(&e.channelId).copied().unwrap_or(0);
                if e.claimed > signed {
                    let what =
                        format!("{} of {}: {} claimed, {signed} signed", e.channelId, block, e.claimed);
                    return Err(wrong("vouchers_bound", what));
                }
            }
        }
        self.check_refused(id, &honest)
    }

    /// What may be refused: somebody else was first, or the time for it ended while the chain stood still.
    fn check_refused(&self, id: TxId, honest: &BTreeMap<Address, Who>) -> Held {
        let tx = &self.chain.txs[id];
        if !tx.is_refused() || !honest.contains_key(&tx.from) {
            return Ok(());
        }
        let first = [
            tx.is::<Channels::NothingToDo>(),
            tx.is::<Epochs::AlreadyDone>(),
            tx.is::<Epochs::BeaconPending>(),
            tx.is::<Epochs::BeaconAlreadyFixed>(),
            tx.is::<Audits::WrongPhase>(),
            tx.is::<Objections::AlreadyDemanded>(),
            tx.is::<Objections::NothingDemanded>(),
            tx.is::<Disputes::AlreadyDisputed>(),
            tx.is::<Disputes::NotYourTurn>(),
            tx.is::<Disputes::TooEarly>(),
            tx.is::<Retrieval::AlreadyAnswered>(),
            tx.is::<Retrieval::NotPledged>(),
            tx.is::<Epochs::Forfeit>(),
        ];
        let late =
            [tx.is::<Epochs::NotPosting>(), tx.is::<Audits::TooLate>(), tx.is::<Epochs::PostingOpen>()];
        // What a reorganisation took back may be done twice, and what was built on it be refused.
        let recently = match tx.is::<Epochs::AlreadyPosted>() {
            true => self.truth.undone_what.contains(&(tx.from, tx.what.clone())),
            false => self.truth.undone_of.get(&tx.from).is_some_and(|at| self.now_ms < at + AFTER_UNDONE_MS),
        };
        if first.contains(&true) || (self.options.faults && late.contains(&true)) || recently {
            return Ok(());
        }
        let why = match &tx.fate {
            super::chain::Fate::Mined { refused: Some(data), .. } => data.to_string(),
            _ => String::new(),
        };
        Err(wrong("nothing_refused", format!("{} of {} is refused with {why}", tx.what, tx.who)))
    }

    /// After each block with transactions.
    pub(super) fn check_block(&mut self) -> Held {
        let [sum, total, held, supply] = self.chain.money();
        if sum != total || total != held || held != supply || supply != self.truth.supply {
            let what = format!(
                "balances {sum}, total {total}, held {held}, tokens {supply} of {}",
                self.truth.supply
            );
            return Err(wrong("money_conserved", what));
        }
        let (free, held, spent, holds) = self.gateway.books.sums();
        if free + held + spent != self.gateway.books.credited || held != holds {
            let what = format!("free {free}, held {held} of {holds}, spent {spent}");
            return Err(wrong("books_conserved", what));
        }
        Ok(())
    }

    /// When a request was charged.
    pub(super) fn check_charged(&self, ask: Ask) -> Held {
        let charges = self.gateway.books.charges.get(&ask).map_or(0, Vec::len) as u64;
        if charges > 1 {
            return Err(wrong("charged_once", format!("request {ask} is charged {charges} times")));
        }
        Ok(())
    }

    /// When a client has an answer.
    pub(super) fn check_answer(&self, client: usize, ask: Ask, record: &AnswerRecord) -> Held {
        let broken = record.broken_bindings();
        let charges = self.gateway.books.charges.get(&ask).cloned().unwrap_or_default();
        let fee = record.receipt.receipt.fee_micro_usd;
        if !broken.is_empty() || !charges.contains(&fee) {
            let what = format!("answer {ask} of client {client}: {broken:?}, fee {fee} of {charges:?}");
            return Err(wrong("charged_for_whole", what));
        }
        Ok(())
    }

    /// When a provider is asked.
    pub(super) fn check_asked(&self, provider: NodeAddress) -> Held {
        if self.gateway.struck.contains(&provider) {
            return Err(wrong("struck_not_asked", format!("{provider} is asked")));
        }
        Ok(())
    }

    /// At the end.
    pub(super) fn check_end(&mut self) -> Held {
        self.check_block()?;
        self.check_kept()?;
        self.check_claimed()?;
        self.check_cheats()?;
        self.check_omissions()?;
        self.check_settled()?;
        for (who, at) in self.honest() {
            let has = stake(&mut self.chain, at) + self.chain.balance(at);
            let began = self.truth.began.get(&at).copied().unwrap_or(0);
            if has < began {
                return Err(wrong("honest_unharmed", format!("{who} has {has} of {began}")));
            }
        }
        Ok(())
    }

    fn check_kept(&self) -> Held {
        for ((i, _), numbers) in &self.truth.said {
            let lost = numbers.keys().find(|n| !self.providers[*i].store.contains_key(n));
            if let Some(number) = lost {
                return Err(wrong("receipts_kept", format!("provider-{i} said {number} and cannot show it")));
            }
        }
        for (ask, record) in self.clients.iter().flat_map(|client| &client.got) {
            let receipt = &record.receipt.receipt;
            let provider = self.providers.iter().find(|p| p.actor.node() == receipt.provider);
            if provider.is_some_and(|p| p.plan == Plan::LeavesOut) {
                continue;
            }
            let shown = provider.and_then(|p| p.store.get(&receipt.sequence));
            if shown.is_none_or(|shown| shown.receipt != record.receipt) {
                return Err(wrong("receipts_kept", format!("nobody can show the receipt of answer {ask}")));
            }
        }
        Ok(())
    }

    fn check_claimed(&mut self) -> Held {
        let at = self.chain.parts.at.channels;
        let mut posted: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
        for i in 0..self.providers.len() {
            posted.insert(
                i,
                self.posted(i).into_iter().flat_map(|(_, first, count)| first..first + count).collect(),
            );
        }
        for ((i, id), numbers) in &self.truth.said {
            if self.providers[*i].plan != Plan::Honest {
                continue;
            }
            let owed: u64 = numbers.values().sum();
            let claimed = self.chain.read(at, &Channels::channelOfCall { id: *id }).claimed;
            if claimed < owed {
                let what = format!("provider-{i} said {owed} on {id}, and {claimed} is claimed");
                return Err(wrong("paid_is_claimed", what));
            }
            let missing = numbers.keys().find(|n| !posted.get(i).is_some_and(|posted| posted.contains(n)));
            if let Some(number) = missing {
                return Err(wrong(
                    "paid_is_claimed",
                    format!("provider-{i} said {number} and has not posted it"),
                ));
            }
        }
        Ok(())
    }

    /// Whether an address is that of an auditor that does its work.
    fn works(&self, at: &Address) -> bool {
        self.auditors.iter().any(|a| a.actor.address == *at && a.plan == auditor::Plan::Honest)
    }

    /// A provider's batches on the ledger: epoch, first number, count.
    fn posted(&mut self, i: usize) -> Vec<(u64, u64, u64)> {
        let provider = self.providers[i].actor.address;
        let mut found = Vec::new();
        for epoch in 0..=self.chain.epoch() {
            let batch = self.chain.batch(provider, epoch);
            if batch.state != 0 {
                found.push((epoch, batch.first, u64::from(batch.count)));
            }
        }
        found
    }

    /// Who lied in what was drawn for somebody who does its work is struck, and who lied often enough is whatever was drawn.
    ///
    /// A receipt is drawn with a chance of at least the smallest rate `r`, and falls to one of `h` honest members of a panel of `n` with one of `h/n`, on its own. So
    /// all of them escape with at most the product of `1 - r h/n` over them: the alarm is for less than `2^-40`, as after 40 receipts of panels that are honest
    /// throughout. In 200 runs with two cheats each a false alarm has a chance of 4 in 10^10, in a million runs of 2 in 10^6.
    fn check_cheats(&mut self) -> Held {
        let registry = self.chain.parts.at.registry;
        let rates = self.chain.p.rates.clone();
        for i in 0..self.providers.len() {
            // Who leaves out receipts executes what it posts.
            if matches!(self.providers[i].plan, Plan::Honest | Plan::LeavesOut) {
                continue;
            }
            let node = self.providers[i].actor.address;
            if self.chain.read(registry, &Registry::isStruckCall { node }) {
                continue;
            }
            let mut halvings = 0.0;
            for (epoch, first, count) in self.posted(i) {
                let (beacon, fixed, _) = self.chain.beacon(epoch);
                if fixed == 0 {
                    continue;
                }
                let batch = self.chain.batch(node, epoch);
                let panel = auditors_of(&mut self.chain, node, epoch, batch.panel);
                let works = |at: &Address| {
                    self.auditors.iter().any(|a| a.actor.address == *at && a.plan == auditor::Plan::Honest)
                };
                let members: Vec<u8> =
                    (0u8..).zip(&panel).filter(|(_, at)| works(at)).map(|(m, _)| m).collect();
                let draw = Draw { provider: node, beacon, batch: &batch, rates: &rates, members: &members };
                let share = members.len() as f64 / f64::from(batch.panel.max(1));
                let escapes = -(1.0 - f64::from(RATE_PPM) / 1e6 * share).log2();
                for (number, record) in self.providers[i].store.range(first..first + count) {
                    let fee = record.receipt.receipt.fee_micro_usd;
                    if !draw.members_for(*number, fee).is_empty() {
                        let what = format!(
                            "provider-{i} lied in {number} of epoch {epoch}, which was drawn, and is not struck"
                        );
                        return Err(wrong("cheats_are_struck", what));
                    }
                    halvings += escapes;
                }
            }
            if halvings >= HALVINGS {
                return Err(wrong(
                    "cheats_are_struck_soon",
                    format!("provider-{i} lied often and is not struck"),
                ));
            }
        }
        Ok(())
    }

    /// Who gave a receipt that was accepted, and posted another one at its number, is struck.
    fn check_omissions(&mut self) -> Held {
        let registry = self.chain.parts.at.registry;
        for i in 0..self.providers.len() {
            let node = self.providers[i].actor.address;
            if self.chain.read(registry, &Registry::isStruckCall { node }) {
                continue;
            }
            for (epoch, first, count) in self.posted(i) {
                let given = self.gateway.witness.given.range((node, first)..(node, first + count));
                let posted = |number: &u64| self.providers[i].store.get(number).map(|record| &record.receipt);
                let left_out = given.map(|((_, n), signed)| (n, signed)).find(|(n, s)| posted(n) != Some(*s));
                if let Some((number, _)) = left_out {
                    let what = format!("provider-{i} left {number} out of epoch {epoch}, and is not struck");
                    return Err(wrong("omissions_are_struck", what));
                }
            }
        }
        Ok(())
    }

    fn check_settled(&mut self) -> Held {
        let at = self.chain.parts.at.clone();
        for (who, address) in self.honest() {
            if !self.is_clear(who) {
                return Err(wrong("outstanding_settles", format!("{who} still waits for a transaction")));
            }
            let Who::Provider(i) = who else { continue };
            let provider = address;
            let account = self.chain.read(at.epochs, &Epochs::accountOfCall { provider });
            let unsettled = self.chain.read(at.channels, &Channels::unsettledOfCall { receiver: provider });
            if account.lastPosted != account.lastSettled || !unsettled.is_zero() {
                let what =
                    format!("{who} has posted {} and settled {}", account.lastPosted, account.lastSettled);
                return Err(wrong("outstanding_settles", what));
            }
            for (epoch, ..) in self.posted(i) {
                let batch = self.chain.batch(provider, epoch);
                let panel = auditors_of(&mut self.chain, provider, epoch, batch.panel);
                // Auditors look at panels that they are on: the silence of one that nobody else is on is shown by nobody.
                let seen = panel.iter().any(|at| self.works(at));
                for member in (0..batch.panel).filter(|_| seen) {
                    let member = alloy_primitives::U256::from(member);
                    let call = Audits::memberOfCall { provider, epoch, member };
                    let phase = self.chain.read(at.audits, &call).phase;
                    if phase <= 2 {
                        let what = format!("member {member} of epoch {epoch} of {who} is in phase {phase}");
                        return Err(wrong("outstanding_settles", what));
                    }
                }
                if self.chain.beacon(epoch).2 != Phase::Final || batch.state != 2 {
                    return Err(wrong("outstanding_settles", format!("epoch {epoch} of {who} is open")));
                }
            }
        }
        Ok(())
    }

    /// What it came to.
    pub(super) fn summary(&mut self) -> Summary {
        let registry = self.chain.parts.at.registry;
        let struck = (0..self.providers.len())
            .filter(|i| {
                let node = self.providers[*i].actor.address;
                self.chain.read(registry, &Registry::isStruckCall { node })
            })
            .count();
        let liars = self.providers.iter().filter(|p| p.plan != Plan::Honest).count();
        let answers: usize = self.clients.iter().map(|c| c.got.len()).sum();
        let charged: usize = self.gateway.books.charges.values().map(Vec::len).sum();
        let refused = self.chain.txs.iter().filter(|tx| tx.is_refused()).count();
        let lapsed = self.chain.logs_from(0).filter_map(|logged| logged.as_event::<Audits::Lapsed>());
        let lazy = lapsed.count() as u64;
        let accused = self.chain.logs_from(0).filter_map(|logged| logged.as_event::<Audits::Accused>());
        let accused = accused.count() as u64;
        let ended = self.chain.logs_from(0).filter_map(|logged| logged.as_event::<Disputes::Ended>());
        let (late, ruled): (Vec<_>, Vec<_>) = ended.partition(|e| e.reason == TIMEOUT);
        let upheld = ruled.iter().filter(|e| e.upheld).count() as u64;
        let (timed_out, refuted) = (late.len() as u64, ruled.len() as u64 - upheld);
        let numbers = [
            ("answers", answers as u64),
            ("charges", charged as u64),
            ("given_up", self.clients.iter().map(|c| c.failed).sum()),
            ("spent", self.gateway.books.sums().2),
            ("liars", liars as u64),
            ("struck", struck as u64),
            ("transactions", self.chain.txs.len() as u64),
            ("refused", refused as u64),
            ("undone", self.truth.undone),
            ("kills", self.processes.values().map(|process| u64::from(process.life) - 1).sum()),
            ("lazy_penalised", lazy),
            ("accusations", accused),
            ("moves", self.truth.moves),
            ("ruled_for_challengers", upheld),
            ("ruled_for_defenders", refuted),
            ("timed_out", timed_out),
            ("blocks", self.chain.number()),
        ];
        Summary { seed: self.seed, events: self.count, numbers: numbers.into() }
    }
}
