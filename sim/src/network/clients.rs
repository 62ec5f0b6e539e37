//! Clients: they ask, wait, ask again as stock clients do, and keep what they got.

use std::collections::BTreeMap;

use assay_core::answer::AnswerRecord;
use assay_core::id::Nonce;
use assay_core::request::Request;

use super::model;
use super::wire::{Alarm, Ask, Message, Who};
use super::{Held, World};
use crate::random::Random;

/// How many there are.
const CLIENTS: usize = 2;
/// How long a client waits for an answer, and how often it asks for it.
const LATE_MS: u64 = 300_000;
const TRIES_MAX: u32 = 4;
/// Some ask again at once.
const HURRY_MS: u64 = 1_000;
/// Time between two requests of a client.
const NEXT_MS: (u64, u64) = (40_000, 400_000);

/// A request that was sent.
#[derive(Clone, Debug)]
struct Sent {
    request: Request,
    nonce: Nonce,
}

/// A client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    random: Random,
    next: u64,
    open: BTreeMap<Ask, Sent>,
    /// Answers that it got whole.
    pub(super) got: BTreeMap<Ask, AnswerRecord>,
    pub(super) failed: u64,
}

/// All clients.
pub(super) fn all(seed: u64) -> Vec<Client> {
    let client = |i: usize| Client {
        random: Random::stream(seed, "client", &[i as u64]),
        next: 0,
        open: BTreeMap::new(),
        got: BTreeMap::new(),
        failed: 0,
    };
    (0..CLIENTS).map(client).collect()
}

impl World<'_> {
    /// Clients are not killed: they begin once.
    pub(super) fn client_starts(&mut self, i: usize) {
        // Epoch 0 is for seats and pledges, also where the chain stands still when it ends.
        let wait = 3_600_000 + 600_000 + self.random.below(NEXT_MS.1);
        self.alarm(Who::Client(i), wait, Alarm::Next);
    }

    pub(super) fn client_rings(&mut self, i: usize, alarm: Alarm) -> Held {
        match alarm {
            Alarm::Next if self.now_ms < self.options.demand_ends_ms() => {
                let client = &mut self.clients[i];
                let ask = Ask { client: i, number: client.next };
                client.next += 1;
                let r = &mut client.random;
                let nonce = model::nonce([r.bits(), r.bits(), r.bits(), r.bits()]);
                let prompt = 2 + r.below(12) as u32;
                let wait = r.between(NEXT_MS.0, NEXT_MS.1);
                let twice = r.below(20) == 0;
                let request = model::request(i, ask.number, prompt);
                client.open.insert(ask, Sent { request, nonce });
                self.alarm(Who::Client(i), wait, Alarm::Next);
                self.ask(i, ask, 0);
                if twice {
                    self.alarm(Who::Client(i), HURRY_MS, Alarm::Late { ask, tries: 1 });
                }
            }
            Alarm::Late { ask, tries } if self.clients[i].open.contains_key(&ask) => {
                if tries < TRIES_MAX {
                    self.ask(i, ask, tries);
                } else {
                    self.clients[i].open.remove(&ask);
                    self.clients[i].failed += 1;
                    self.tell(Who::Client(i), || format!("gives up request={ask}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends a request, for the so manieth time.
    fn ask(&mut self, i: usize, ask: Ask, tries: u32) {
        let Some(Sent { request, nonce }) = self.clients[i].open.get(&ask).cloned() else { return };
        let again = tries > 0;
        self.tell(Who::Client(i), || format!("asks request={ask} again={again}"));
        self.say(Who::Client(i), Who::Gateway, Message::Request { ask, again, request, nonce });
        self.alarm(Who::Client(i), LATE_MS, Alarm::Late { ask, tries: tries + 1 });
    }

    pub(super) fn client_hears(&mut self, i: usize, message: Message) -> Held {
        if let Message::Answered { ask, record } = message
            && self.clients[i].open.contains_key(&ask)
        {
            match record {
                Some(record) => {
                    self.clients[i].open.remove(&ask);
                    let receipt = record.receipt.receipt.id();
                    self.tell(Who::Client(i), || format!("has answer={ask} receipt={receipt}"));
                    self.check_answer(i, ask, &record)?;
                    self.clients[i].got.insert(ask, *record);
                }
                // It asks again when it has waited long enough.
                None => self.tell(Who::Client(i), || format!("is refused request={ask}")),
            }
        }
        Ok(())
    }
}
