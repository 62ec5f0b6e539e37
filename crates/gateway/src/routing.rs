//! Which provider is asked: a state machine without I/O. Time comes in as a number.
//!
//! A provider's place is the time that a request of this size is expected to take there, from what it took before and from what runs there now. Who
//! failed is left alone for a while, which doubles with every failure in a row, and with every one that is not forgotten and that others did not have; then one
//! request at a time tries it, until one succeeds. So who goes down and comes up again and again has fewer and fewer requests to lose, and where a line that all
//! share breaks now and then, nobody rests for long.
//! Invariant: who is out of the price's range, or does not offer the model, is never named.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use assay_core::consent::Consent;
use assay_core::id::{Hash, ModelRoot, NodeAddress};
use assay_core::offer::Offer;
use assay_core::price::Price;

/// What a provider is thought to need before it is known, in milliseconds: so little that newcomers are tried.
const FIRST_MS: u64 = 1;
/// Likewise for each token, in microseconds.
const TOKEN_US: u64 = 1;
/// After so many milliseconds without an answer, a provider is thought to need half: who was slow once is tried again.
const HALF_AFTER_MS: u64 = 60_000;
/// Share of a new measurement in what is believed, as a power of two: an eighth.
const NEW_SHARE_BITS: u32 = 3;
/// How long a provider is left alone after its first failure, in milliseconds.
pub const REST_MS: u64 = 1_000;
/// How long one that has no place is left alone, in milliseconds.
pub const BUSY_MS: u64 = 250;
/// The longest that it is left alone.
pub const REST_MS_MAX: u64 = 5 * 60 * 1000;
/// What a provider that has seen the beginning of a prompt is expected to save, in parts of its time to first token: half.
const SEEN_DIVISOR: u64 = 2;
/// By how much longer somebody without any standing is expected to take than somebody with the highest: a quarter.
const UNKNOWN_DIVISOR: u64 = 4;
/// Providers that are expected to need an eighth more than the best, and these milliseconds, which nobody notices, are its equals: they take turns.
const EQUAL_DIVISOR: u64 = 8;
const EQUAL_MS: u64 = 20;
/// A failure is forgotten after so many answers, or so many milliseconds without another one.
const FORGOTTEN_AFTER_ANSWERS: u64 = 256;
const FORGOTTEN_AFTER_MS: u64 = 10 * 60 * 1000;
/// The highest standing.
const PPM: u64 = 1_000_000;
/// Beginnings of prompts that are remembered.
const SEEN_MAX: usize = 65_536;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// By which model.
    pub model: ModelRoot,
    /// The most that a million tokens may cost, each way.
    pub ceiling: Option<Price>,
    /// Whether auditors may see it: that has a price of its own.
    pub audit: Consent,
    /// Tokens that the answer may have.
    pub tokens: u32,
    /// Names the beginning of the prompt.
    pub beginning: Option<Hash>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Completed {
        /// Until something came.
        first_ms: u64,
        /// From then until the end.
        rest_ms: u64,
        /// Tokens written.
        tokens: u32,
    },
    /// The provider failed, or was too slow to be waited for.
    Failed,
    /// It has no place now, which is no failure.
    Busy,
    /// It was taken back, or the request itself could not be answered by anyone.
    Neither,
}

/// A provider that may be asked.
#[derive(Clone, Debug)]
struct Provider {
    offer: Offer,
    first_ms: u64,
    token_us: u64,
    running: u32,
    failures: u32,
    rests_until_ms: u64,
    completed: u64,
    /// Failures that were not forgotten when it failed last, when that was, and after how many answers.
    troubles: u32,
    troubled_ms: u64,
    troubled_after: u64,
    /// When it answered last.
    measured_ms: u64,
    failed: u64,
    /// When it was asked last, as a count.
    asked: u64,
}

/// What is shown of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Expected time to the first token, in milliseconds.
    pub first_ms: u64,
    /// Expected time for a token, in microseconds.
    pub token_us: u64,
    /// Requests that run there for us.
    pub running: u32,
    /// Until when it is left alone.
    pub rests_until_ms: u64,
    /// Answers.
    pub completed: u64,
    /// Failures.
    pub failed: u64,
    /// Failures since the last answer.
    pub failures: u32,
}

/// Providers and what is believed of them.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    providers: BTreeMap<NodeAddress, Provider>,
    /// From 0 to a million, of those that have any.
    standings: BTreeMap<NodeAddress, u32>,
    /// Proved to lie.
    struck: BTreeSet<NodeAddress>,
    /// Who has seen which beginning last, and when, as a count.
    seen: HashMap<(ModelRoot, Hash), (NodeAddress, u64)>,
    count: u64,
    /// Attempts so far.
    asks: u64,
}

impl Provider {
    fn price(&self, want: &Want) -> Option<Option<Price>> {
        self.offer.models.iter().find(|m| m.root == want.model)?.price_for(want.audit)
    }

    /// Failures that are not forgotten.
    fn troubles(&self, now_ms: u64) -> u32 {
        let forgotten = now_ms.saturating_sub(self.troubled_ms) / FORGOTTEN_AFTER_MS
            + self.completed.saturating_sub(self.troubled_after) / FORGOTTEN_AFTER_ANSWERS;
        self.troubles.saturating_sub(forgotten.try_into().unwrap_or(u32::MAX))
    }

    /// How often what is believed of it is to be halved, since it has answered nothing for so long.
    fn halvings(&self, now_ms: u64) -> u64 {
        (now_ms.saturating_sub(self.measured_ms) / HALF_AFTER_MS).min(63)
    }

    fn resting(&self, now_ms: u64) -> bool {
        // After its rest, one request at a time, until one succeeds.
        now_ms < self.rests_until_ms || (self.failures > 0 && self.running > 0)
    }
}

fn within(price: Option<Price>, ceiling: Option<Price>) -> bool {
    match (price, ceiling) {
        (Some(price), Some(ceiling)) => {
            price.input() <= ceiling.input() && price.output() <= ceiling.output()
        }
        _ => true,
    }
}

/// What is believed after a measurement.
fn believed(old: u64, new: u64) -> u64 {
    let rest = old - (old >> NEW_SHARE_BITS);
    rest.saturating_add(new >> NEW_SHARE_BITS).max(1)
}

impl Routing {
    /// Takes a verified offer. What was measured of its provider stays. An older one than is known is left out.
    pub fn offered(&mut self, offer: Offer) {
        match self.providers.get_mut(&offer.provider) {
            Some(known) if known.offer.issued_s > offer.issued_s => {}
            Some(known) => known.offer = offer,
            None => {
                let provider = Provider {
                    offer: offer.clone(),
                    first_ms: FIRST_MS,
                    token_us: TOKEN_US,
                    running: 0,
                    failures: 0,
                    rests_until_ms: 0,
                    completed: 0,
                    troubles: 0,
                    troubled_ms: 0,
                    troubled_after: 0,
                    measured_ms: 0,
                    failed: 0,
                    asked: 0,
                };
                self.providers.insert(offer.provider, provider);
            }
        }
    }

    /// Forgets providers whose offers are over.
    pub fn forget(&mut self, now_s: u64) {
        self.providers.retain(|_, p| p.offer.until_s >= now_s || p.running > 0);
    }

    /// What is publicly known of providers: standings from 0 to a million, and who was proved to lie, and is asked no more. Without a ledger nothing is.
    pub fn stand(&mut self, standings: BTreeMap<NodeAddress, u32>, struck: BTreeSet<NodeAddress>) {
        (self.standings, self.struck) = (standings, struck);
    }

    /// All offers.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.providers.values().map(|p| &p.offer)
    }

    /// What is believed of a provider.
    pub fn standing(&self, provider: NodeAddress) -> Option<Standing> {
        self.providers.get(&provider).map(|p| Standing {
            first_ms: p.first_ms,
            token_us: p.token_us,
            running: p.running,
            rests_until_ms: p.rests_until_ms,
            completed: p.completed,
            failed: p.failed,
            failures: p.failures,
        })
    }

    /// Who can be asked, the best first, with the price. Of equals those that have seen the beginning come first, then the cheapest, then who was
    /// not asked for the longest time. Those that rest come last, the soonest back first: to ask them is better than to ask nobody.
    pub fn rank(&self, want: &Want, now_ms: u64) -> Vec<(NodeAddress, Option<Price>)> {
        let seen = want.beginning.and_then(|b| self.seen.get(&(want.model, b))).map(|(who, _)| *who);
        let able = self
            .providers
            .iter()
            .filter(|(id, p)| p.offer.until_s.saturating_mul(1000) >= now_ms && !self.struck.contains(*id))
            .filter_map(|(id, p)| Some((id, p, p.price(want)?)))
            .filter(|(_, _, price)| within(*price, want.ceiling));
        let mut able: Vec<_> = able
            .map(|(id, p, price)| {
                let seen = seen == Some(*id);
                (self.expected_ms(*id, p, want.tokens, seen, now_ms), !seen, id, p, price)
            })
            .collect();
        let best = able.iter().filter(|(.., p, _)| !p.resting(now_ms)).map(|(expected_ms, ..)| *expected_ms);
        let best = best.min().unwrap_or_default();
        let equal_ms = best.saturating_add(best / EQUAL_DIVISOR).saturating_add(EQUAL_MS);
        able.sort_by_key(|(expected_ms, unseen, id, p, price)| {
            let rests = if p.resting(now_ms) { p.rests_until_ms.max(1) } else { 0 };
            let later_ms = if *expected_ms <= equal_ms { 0 } else { *expected_ms };
            let cost = price.map_or(0, |price| price.input().saturating_add(price.output()));
            (rests, later_ms, *unseen, cost, p.asked, **id)
        });
        able.into_iter().map(|(_, _, id, _, price)| (*id, price)).collect()
    }

    /// The time that an answer of so many tokens is expected to take, in milliseconds.
    fn expected_ms(&self, id: NodeAddress, p: &Provider, tokens: u32, seen: bool, now_ms: u64) -> u64 {
        let first_ms = if seen { p.first_ms / SEEN_DIVISOR } else { p.first_ms };
        let tokens_ms = u64::from(tokens).saturating_mul(p.token_us) / 1000;
        let crowd = u64::from(p.running).saturating_add(1);
        let expected_ms = first_ms.saturating_add(tokens_ms).saturating_mul(crowd) >> p.halvings(now_ms);
        // Where anyone has a standing, those without are expected to take longer.
        let lacks = PPM - self.standings.get(&id).map_or(0, |ppm| u64::from(*ppm)).min(PPM);
        let doubt_ms = match self.standings.is_empty() {
            true => 0,
            false => (expected_ms / UNKNOWN_DIVISOR).saturating_mul(lacks) / PPM,
        };
        expected_ms.saturating_add(doubt_ms)
    }

    /// How long to wait for the first token of a provider before another is asked too.
    pub fn patience_ms(&self, provider: NodeAddress, least_ms: u64) -> u64 {
        let expected = self.providers.get(&provider).map_or(FIRST_MS, |p| p.first_ms);
        expected.saturating_mul(4).max(least_ms)
    }

    /// An attempt begins.
    pub fn began(&mut self, provider: NodeAddress) {
        self.asks = self.asks.saturating_add(1);
        if let Some(p) = self.providers.get_mut(&provider) {
            p.running = p.running.saturating_add(1);
            p.asked = self.asks;
        }
    }

    /// An attempt ends, as each that began must.
    pub fn ended(&mut self, provider: NodeAddress, want: &Want, outcome: Outcome, now_ms: u64) {
        let others = self.providers.iter().filter(|(id, p)| **id != provider && p.price(want).is_some());
        let usual = others.map(|(_, p)| p.troubles(now_ms)).min().unwrap_or(u32::MAX);
        let Some(p) = self.providers.get_mut(&provider) else { return };
        p.running = p.running.saturating_sub(1);
        match outcome {
            Outcome::Neither => {}
            Outcome::Busy => p.rests_until_ms = p.rests_until_ms.max(now_ms.saturating_add(BUSY_MS)),
            Outcome::Failed => {
                p.failed = p.failed.saturating_add(1);
                let troubles = p.troubles(now_ms);
                let doublings = p.failures.max(troubles.saturating_sub(usual)).min(20);
                let rest_ms = REST_MS.checked_shl(doublings).unwrap_or(REST_MS_MAX).min(REST_MS_MAX);
                p.failures = p.failures.saturating_add(1);
                (p.troubles, p.troubled_ms, p.troubled_after) =
                    (troubles.saturating_add(1), now_ms, p.completed);
                p.rests_until_ms = now_ms.saturating_add(rest_ms);
            }
            Outcome::Completed { first_ms, rest_ms, tokens } => {
                let known = p.completed > 0;
                // What was expected of it is what the measurement is an eighth of: an old belief would outlive many tries.
                let halvings = p.halvings(now_ms);
                p.completed = p.completed.saturating_add(1);
                p.failures = 0;
                p.rests_until_ms = 0;
                p.measured_ms = now_ms;
                p.first_ms = if known { believed(p.first_ms >> halvings, first_ms) } else { first_ms.max(1) };
                if tokens > 1 {
                    let token_us = rest_ms.saturating_mul(1000) / u64::from(tokens - 1);
                    p.token_us =
                        if known { believed(p.token_us >> halvings, token_us) } else { token_us.max(1) };
                }
                if let Some(beginning) = want.beginning {
                    self.see((want.model, beginning), provider);
                }
            }
        }
    }

    fn see(&mut self, what: (ModelRoot, Hash), provider: NodeAddress) {
        self.count = self.count.saturating_add(1);
        self.seen.insert(what, (provider, self.count));
        if self.seen.len() > SEEN_MAX {
            // The older half goes, so that this is rare.
            let oldest = self.count.saturating_sub(SEEN_MAX as u64 / 2);
            self.seen.retain(|_, (_, at)| *at > oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use assay_core::id::SealingKey;
    use assay_core::offer::OfferedModel;

    use super::*;

    const MODEL: ModelRoot = ModelRoot::from_bytes([7; 32]);
    const WANT: Want =
        Want { model: MODEL, ceiling: None, audit: Consent::Given, tokens: 100, beginning: None };
    const NOW: u64 = 1_000_000;

    fn id(n: u8) -> NodeAddress {
        NodeAddress::from_bytes([n; 20])
    }

    fn offer(n: u8, price: Option<&str>) -> Offer {
        let model = OfferedModel {
            root: MODEL,
            name: "m".into(),
            profile: "int8-v1".into(),
            context_length: 64,
            parameters: 1,
            bytes: 1,
            has_chat_template: true,
            dimensions: None,
            price: price.map(|p| p.parse().unwrap()),
            price_private: None,
        };
        Offer {
            provider: id(n),
            issued_s: 1,
            until_s: 10_000,
            sealing_key: SealingKey::ZERO,
            settles: None,
            models: vec![model],
        }
    }

    fn routing(count: u8) -> Routing {
        let mut routing = Routing::default();
        (1..=count).for_each(|n| routing.offered(offer(n, None)));
        routing
    }

    fn ranked(routing: &Routing, want: &Want, now_ms: u64) -> Vec<NodeAddress> {
        routing.rank(want, now_ms).into_iter().map(|(id, _)| id).collect()
    }

    fn completes(routing: &mut Routing, n: u8, want: &Want, first_ms: u64, rest_ms: u64) {
        routing.began(id(n));
        routing.ended(id(n), want, Outcome::Completed { first_ms, rest_ms, tokens: 100 }, NOW);
    }

    #[test]
    fn the_fastest_is_asked_and_a_crowd_makes_slow() {
        let mut routing = routing(3);
        for _ in 0..40 {
            completes(&mut routing, 1, &WANT, 300, 4_000);
            completes(&mut routing, 2, &WANT, 200, 1_000);
            completes(&mut routing, 3, &WANT, 300, 2_500);
        }
        assert_eq!(ranked(&routing, &WANT, NOW), [id(2), id(3), id(1)]);
        // For an answer of one token only the first one counts, for a long one the others do.
        let mut quick_start = routing.clone();
        for _ in 0..40 {
            completes(&mut quick_start, 1, &WANT, 10, 8_000);
        }
        assert_eq!(ranked(&quick_start, &Want { tokens: 1, ..WANT }, NOW)[0], id(1));
        assert_eq!(ranked(&quick_start, &WANT, NOW)[2], id(1));
        routing.began(id(2));
        routing.began(id(2));
        assert_eq!(ranked(&routing, &WANT, NOW)[0], id(3));
    }

    #[test]
    fn who_fails_rests_longer_each_time_and_comes_back_by_one_request() {
        let mut routing = routing(2);
        completes(&mut routing, 1, &WANT, 10, 100);
        completes(&mut routing, 2, &WANT, 100, 1_000);
        let fails = |routing: &mut Routing, now_ms| {
            routing.began(id(1));
            routing.ended(id(1), &WANT, Outcome::Failed, now_ms);
        };
        fails(&mut routing, NOW);
        assert_eq!(ranked(&routing, &WANT, NOW), [id(2), id(1)]);
        assert_eq!(ranked(&routing, &WANT, NOW + REST_MS), [id(1), id(2)]);
        fails(&mut routing, NOW + REST_MS);
        assert_eq!(ranked(&routing, &WANT, NOW + 2 * REST_MS), [id(2), id(1)]);
        assert_eq!(ranked(&routing, &WANT, NOW + 3 * REST_MS), [id(1), id(2)]);
        // While the one that tries it runs, nobody else does.
        routing.began(id(1));
        assert_eq!(ranked(&routing, &WANT, NOW + 3 * REST_MS), [id(2), id(1)]);
        routing.ended(id(1), &WANT, Outcome::Completed { first_ms: 1, rest_ms: 1, tokens: 2 }, NOW);
        routing.began(id(1));
        assert_eq!(routing.standing(id(1)).unwrap().rests_until_ms, 0);
        for _ in 0..100 {
            fails(&mut routing, NOW);
        }
        assert_eq!(routing.standing(id(1)).unwrap().rests_until_ms, NOW + REST_MS_MAX);
        // With nobody else, one that rests is asked all the same.
        let alone = Want { model: MODEL, ..WANT };
        routing.providers.remove(&id(2));
        assert_eq!(ranked(&routing, &alone, NOW), [id(1)]);
    }

    #[test]
    fn who_fails_again_and_again_between_answers_rests_longer_unless_all_do() {
        let fails = |routing: &mut Routing, n: u8, now_ms: u64| {
            routing.began(id(n));
            routing.ended(id(n), &WANT, Outcome::Failed, now_ms);
            let rests_ms = routing.standing(id(n)).unwrap().rests_until_ms - now_ms;
            completes(routing, n, &WANT, 10, 100);
            rests_ms
        };
        let mut one = routing(2);
        let rests: Vec<u64> = (0..12).map(|i| fails(&mut one, 1, NOW + i)).collect();
        assert_eq!(rests[..4], [REST_MS, 2 * REST_MS, 4 * REST_MS, 8 * REST_MS]);
        assert_eq!(rests[11], REST_MS_MAX);
        let mut all = routing(2);
        for i in 0..12 {
            assert_eq!(fails(&mut all, 1, NOW + i), REST_MS, "the other one has failed as often");
            assert_eq!(fails(&mut all, 2, NOW + i), REST_MS);
        }
        // Time and answers are forgotten failures.
        let mut later = one.clone();
        assert_eq!(fails(&mut later, 1, NOW + 13 * FORGOTTEN_AFTER_MS), REST_MS);
        let mut busy = one.clone();
        (0..11 * FORGOTTEN_AFTER_ANSWERS).for_each(|_| completes(&mut busy, 1, &WANT, 10, 100));
        assert_eq!(fails(&mut busy, 1, NOW + 12), 2 * REST_MS);
        // Who is alone has nobody to be compared with.
        let mut alone = routing(1);
        assert!((0..5).all(|i| fails(&mut alone, 1, NOW + i) == REST_MS));
    }

    #[test]
    fn who_is_busy_is_asked_again_soon() {
        let mut routing = routing(2);
        completes(&mut routing, 1, &WANT, 10, 100);
        completes(&mut routing, 2, &WANT, 100, 1_000);
        routing.began(id(1));
        routing.ended(id(1), &WANT, Outcome::Busy, NOW);
        assert_eq!(ranked(&routing, &WANT, NOW), [id(2), id(1)]);
        assert_eq!(ranked(&routing, &WANT, NOW + BUSY_MS), [id(1), id(2)]);
        assert_eq!(routing.standing(id(1)).unwrap().failed, 0);
    }

    #[test]
    fn equals_take_turns() {
        let mut routing = routing(4);
        for _ in 0..10 {
            (1..=3).for_each(|n| completes(&mut routing, n, &WANT, 100 + u64::from(n), 1_000));
            completes(&mut routing, 4, &WANT, 300, 1_000);
        }
        let mut asked = [0; 5];
        for _ in 0..30 {
            let first = ranked(&routing, &WANT, NOW)[0];
            let n = first.as_bytes()[0];
            asked[usize::from(n)] += 1;
            completes(&mut routing, n, &WANT, 100 + u64::from(n), 1_000);
        }
        assert_eq!(asked, [0, 10, 10, 10, 0]);
        // The cheapest of them has them all.
        routing.offered(Offer { issued_s: 2, ..offer(2, Some("1/1")) });
        routing.offered(Offer { issued_s: 2, ..offer(1, Some("1/2")) });
        routing.offered(Offer { issued_s: 2, ..offer(3, Some("1/2")) });
        for _ in 0..3 {
            assert_eq!(ranked(&routing, &WANT, NOW)[0], id(2));
            completes(&mut routing, 2, &WANT, 102, 1_000);
        }
    }

    #[test]
    fn newcomers_are_tried_and_who_was_slow_is_tried_again() {
        let mut routing = routing(3);
        completes(&mut routing, 1, &WANT, 10, 100);
        // The others are not known, and come first.
        assert_eq!(ranked(&routing, &WANT, NOW)[2], id(1));
        completes(&mut routing, 2, &WANT, 500, 5_000);
        completes(&mut routing, 3, &WANT, 20, 200);
        assert_eq!(ranked(&routing, &WANT, NOW), [id(1), id(3), id(2)]);
        // While the first goes on answering, the slow one is forgiven.
        let later = NOW + 7 * HALF_AFTER_MS;
        routing.began(id(1));
        let answered = Outcome::Completed { first_ms: 10, rest_ms: 100, tokens: 11 };
        routing.ended(id(1), &WANT, answered, later);
        assert_eq!(ranked(&routing, &WANT, later), [id(3), id(2), id(1)]);
    }

    #[test]
    fn who_was_slow_once_and_is_no_more_is_one_of_the_others_again() {
        let mut routing = routing(2);
        completes(&mut routing, 1, &WANT, 10, 0);
        completes(&mut routing, 2, &WANT, 80, 0);
        assert_eq!(ranked(&routing, &WANT, NOW), [id(1), id(2)]);
        let later = NOW + 2 * HALF_AFTER_MS;
        let fast = Outcome::Completed { first_ms: 10, rest_ms: 0, tokens: 100 };
        for n in [1, 2, 1] {
            routing.began(id(n));
            routing.ended(id(n), &WANT, fast, later);
        }
        // It takes its turn, and no other silence must pass.
        assert_eq!(ranked(&routing, &WANT, later), [id(2), id(1)]);
    }

    #[test]
    fn who_has_a_standing_is_preferred_and_who_lied_is_not_asked() {
        let mut routing = routing(3);
        (1..=3).for_each(|n| completes(&mut routing, n, &WANT, 1_000, 10_000));
        routing.stand([(id(2), 900_000), (id(3), 600_000)].into(), BTreeSet::new());
        assert_eq!(ranked(&routing, &WANT, NOW), [id(2), id(3), id(1)]);
        // A standing does not outweigh what is measured.
        for _ in 0..20 {
            completes(&mut routing, 2, &WANT, 9_000, 90_000);
        }
        assert_eq!(ranked(&routing, &WANT, NOW)[..2], [id(3), id(1)]);
        routing.stand([(id(2), 900_000)].into(), [id(3)].into());
        assert_eq!(ranked(&routing, &WANT, NOW), [id(1), id(2)]);
    }

    #[test]
    fn prices_above_the_ceiling_and_other_models_are_not_asked() {
        let mut routing = Routing::default();
        routing.offered(offer(1, Some("0.10/0.40")));
        routing.offered(offer(2, Some("0.05/0.50")));
        routing.offered(offer(3, None));
        let ceiling = |text: &str| Want { ceiling: Some(text.parse().unwrap()), ..WANT };
        assert_eq!(ranked(&routing, &ceiling("0.10/0.40"), NOW), [id(3), id(1)]);
        assert_eq!(ranked(&routing, &ceiling("0.05/0.50"), NOW), [id(3), id(2)]);
        assert_eq!(ranked(&routing, &ceiling("0/0"), NOW), [id(3)]);
        assert!(ranked(&routing, &Want { model: ModelRoot::ZERO, ..WANT }, NOW).is_empty());
        // Of equals, the cheapest.
        assert_eq!(ranked(&routing, &WANT, NOW), [id(3), id(1), id(2)]);
    }

    #[test]
    fn who_has_seen_the_beginning_is_preferred() {
        let mut routing = routing(3);
        (1..=3).for_each(|n| completes(&mut routing, n, &WANT, 100, 1_000));
        let want = Want { beginning: Some(Hash::from_bytes([1; 32])), tokens: 1, ..WANT };
        // Exactly as fast as the others.
        completes(&mut routing, 3, &want, 100, 1_000);
        assert_eq!(ranked(&routing, &want, NOW)[0], id(3));
        assert_eq!(ranked(&routing, &WANT, NOW)[0], id(1));
        for n in 0..=SEEN_MAX {
            let mut beginning = [0; 32];
            beginning[..8].copy_from_slice(&(n as u64).to_be_bytes());
            routing.see((MODEL, Hash::from_bytes(beginning)), id(1));
        }
        assert!(routing.seen.len() <= SEEN_MAX);
    }

    #[test]
    fn offers_are_replaced_by_later_ones_and_end() {
        let mut routing = routing(1);
        completes(&mut routing, 1, &WANT, 8, 8);
        let known = routing.standing(id(1)).unwrap();
        routing.offered(Offer { issued_s: 0, models: vec![], ..offer(1, None) });
        assert_eq!(ranked(&routing, &WANT, NOW), [id(1)]);
        routing.offered(Offer { issued_s: 2, ..offer(1, Some("1/1")) });
        assert_eq!(routing.standing(id(1)).unwrap(), known);
        assert_eq!(routing.rank(&WANT, NOW)[0].1, Some("1/1".parse().unwrap()));
        assert!(ranked(&routing, &WANT, 10_000_001).is_empty());
        routing.forget(10_001);
        assert_eq!(routing.offers().count(), 0);
    }
}
