//! The arithmetic of lanes against an honest provider that loses answers, a chain, and restarts in any order.

use proptest::prelude::*;

use super::*;

const TERMS: LaneTerms = LaneTerms { lanes_max: 3, deposit: 1_000 };

/// What a provider and the chain know of one channel.
#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    balance: u64,
    claimed: u64,
    charged: u128,
    /// The highest voucher that it keeps: the one of the last charge.
    voucher: Option<u128>,
    /// Whether a request runs there.
    busy: bool,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Request {
    taken: Taken,
    /// What it costs if it is completed; at most what was taken for it.
    fee: u64,
    /// Whether the payer that took it still lives.
    waited_for: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// A request of this cost, of which this much in a thousand is charged.
    Ask {
        most: u64,
        share: u64,
    },
    /// The request at this place ends.
    End {
        at: usize,
        how: How,
    },
    /// The oldest deposit arrives, or does not.
    Deposit {
        arrives: bool,
    },
    /// The gateway forgets everything.
    Restart,
    /// A provider claims a channel.
    Claim {
        at: usize,
    },
    Wait {
        ms: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// The receipt comes.
    Answered,
    /// It was charged, and the receipt does not come.
    Lost,
    /// Nothing was charged.
    Failed,
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![3 => Just(How::Answered), 1 => Just(How::Lost), 1 => Just(How::Failed)];
    prop_oneof![
        6 => (1..1_500u64, 0..=1_000u64).prop_map(|(most, share)| Step::Ask { most, share }),
        6 => (any::<usize>(), how).prop_map(|(at, how)| Step::End { at, how }),
        4 => prop::bool::weighted(0.8).prop_map(|arrives| Step::Deposit { arrives }),
        1 => Just(Step::Restart),
        1 => any::<usize>().prop_map(|at| Step::Claim { at }),
        2 => (0..60_000u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

/// Everything at once.
struct World {
    lanes: Lanes,
    channels: Vec<Channel>,
    requests: Vec<Request>,
    /// Deposits on their way, and whether the gateway that made them lives.
    deposits: Vec<(Deposit, bool)>,
    now_ms: u64,
    /// Receipts that came, and charges that were told by providers alone.
    receipts: u128,
}

impl World {
    fn new() -> World {
        let channels = vec![Channel::default(); TERMS.lanes_max];
        let lanes = Lanes::new(TERMS, &[]);
        World { lanes, channels, requests: vec![], deposits: vec![], now_ms: 0, receipts: 0 }
    }

    fn ask(&mut self, most: u64, share: u64) {
        let taken = self.lanes.take(most, self.now_ms);
        let waiting = usize::from(taken.is_none());
        while let Some(deposit) = self.lanes.deposit(most, waiting, self.now_ms) {
            self.deposits.push((deposit, true));
        }
        let Some(mut taken) = taken else { return };
        let (_, believed, _) = self.lanes.sums().nth(taken.index).unwrap();
        let channel = self.channels[taken.index];
        assert_eq!(taken.ceiling, believed + u128::from(most));
        if channel.busy {
            // An older request of a gateway that is gone.
            self.lanes.release(taken.index, self.now_ms);
            return;
        }
        // The provider counts exactly, and may find more than was thought.
        let exact = if share.is_multiple_of(7) { most + share / 50 } else { most.div_ceil(2) };
        if taken.ceiling < channel.charged + u128::from(exact) {
            match self.lanes.correct(taken.index, channel.charged, channel.voucher, exact) {
                Ok(corrected) => taken = corrected,
                Err(mistrust) => {
                    assert!(matches!(mistrust, Mistrust::Short { .. }), "{mistrust}");
                    self.lanes.release(taken.index, self.now_ms);
                    return;
                }
            }
            assert_eq!(taken.ceiling, channel.charged + u128::from(most.max(exact)));
        }
        assert!(taken.ceiling <= u128::from(channel.balance), "it is behind every voucher");
        self.channels[taken.index].busy = true;
        self.requests.push(Request { taken, fee: exact * share / 1_000, waited_for: true });
    }

    fn end(&mut self, at: usize, how: How) {
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.swap_remove(at % self.requests.len());
        let channel = &mut self.channels[request.taken.index];
        channel.busy = false;
        if !matches!(how, How::Failed) {
            channel.charged += u128::from(request.fee);
            channel.voucher = Some(channel.voucher.unwrap_or(0).max(request.taken.ceiling));
        }
        if !request.waited_for {
            return;
        }
        match how {
            How::Answered => {
                self.receipts += u128::from(request.fee);
                self.lanes.settle(request.taken.index, request.fee);
            }
            How::Lost | How::Failed => self.lanes.release(request.taken.index, self.now_ms),
        }
    }

    fn deposited(&mut self, arrives: bool) {
        if self.deposits.is_empty() {
            return;
        }
        let (deposit, told) = self.deposits.remove(0);
        if arrives {
            self.channels[deposit.index].balance += deposit.amount;
        }
        if told && arrives {
            self.lanes.deposited(deposit.index, self.channels[deposit.index].balance);
        } else if told {
            self.lanes.deposit_failed(deposit.index, self.now_ms);
        }
    }

    fn restart(&mut self) {
        let seen: Vec<OnChain> = self.channels.iter().map(on_chain).collect();
        self.lanes = Lanes::new(TERMS, &seen);
        self.requests.iter_mut().for_each(|request| request.waited_for = false);
        self.deposits.iter_mut().for_each(|(_, told)| *told = false);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask { most, share } => self.ask(most, share),
            Step::End { at, how } => self.end(at, how),
            Step::Deposit { arrives } => self.deposited(arrives),
            Step::Restart => self.restart(),
            Step::Claim { at } => {
                let channel = &mut self.channels[at % TERMS.lanes_max];
                channel.claimed = u64::try_from(channel.charged).unwrap();
            }
            Step::Wait { ms } => self.now_ms += ms,
        }
    }

    fn check(&self) {
        assert!(self.lanes.lanes.len() <= TERMS.lanes_max);
        assert!(self.receipts <= self.channels.iter().map(|c| c.charged).sum());
        for (index, channel) in self.channels.iter().enumerate() {
            // What can be claimed is what was charged, to the unit.
            assert!(channel.charged <= channel.voucher.unwrap_or(0), "{channel:?}");
            assert!(channel.voucher.unwrap_or(0) <= u128::from(channel.balance), "{channel:?}");
            let Some((balance, believed, signed)) = self.lanes.sums().nth(index) else { continue };
            assert!(balance <= u128::from(channel.balance));
            assert!(believed <= channel.charged, "nothing is believed that was not charged");
            assert!(believed <= signed);
            let under_way = self.requests.iter().find(|r| r.waited_for && r.taken.index == index);
            if let Some(request) = under_way {
                assert_eq!(request.taken.ceiling, believed + u128::from(request.taken.most));
            }
        }
    }
}

fn on_chain(channel: &Channel) -> OnChain {
    OnChain { balance: channel.balance, claimed: channel.claimed, closing: false }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn charges_stay_within_what_was_signed(steps in prop::collection::vec(step(), 1..400)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
        // Whatever happened, a payer with money is served in the end, and all charges are known to it then.
        while !world.requests.is_empty() {
            world.end(0, How::Answered);
        }
        for _ in 0..100 {
            world.step(&Step::Wait { ms: DEPOSIT_REST_MS });
            world.deposited(true);
            let before = world.requests.len();
            world.ask(500, 1_000);
            if world.requests.len() > before {
                world.end(before, How::Answered);
            }
            world.check();
        }
        prop_assert!(world.receipts > 0);
    }
}

fn funded(balances: &[u64]) -> Lanes {
    let seen: Vec<OnChain> =
        balances.iter().map(|balance| OnChain { balance: *balance, ..OnChain::default() }).collect();
    Lanes::new(TERMS, &seen)
}

#[test]
fn a_provider_must_prove_what_it_says() {
    // Charged, shown, most: what it is believed.
    let short = |needed| Mistrust::Short { balance: 1_000, needed };
    let cases = [
        (300, Some(300), 100, Ok(400)),
        (300, Some(900), 100, Ok(400)),
        // The request costs more than was thought.
        (0, None, 150, Ok(150)),
        (300, Some(299), 100, Err(Mistrust::Unproven { charged: 300 })),
        (300, None, 100, Err(Mistrust::Unproven { charged: 300 })),
        // The voucher that it refused covers that.
        (0, None, 100, Err(Mistrust::Contradicts)),
        (0, Some(900), 50, Err(Mistrust::Contradicts)),
        (950, Some(1_000), 100, Err(short(1_050))),
        (0, None, 1_001, Err(short(1_001))),
        (u128::MAX, Some(u128::MAX), u64::MAX, Err(short(u128::MAX))),
    ];
    for (charged, shown, most, expected) in cases {
        let mut lanes = funded(&[1_000]);
        let taken = lanes.take(100, 0).unwrap();
        assert_eq!(taken, Taken { index: 0, most: 100, ceiling: 100 });
        let corrected = lanes.correct(0, charged, shown, most).map(|taken| taken.ceiling);
        assert_eq!(corrected, expected, "{charged} {shown:?} {most}");
        if corrected.is_err() && !matches!(corrected, Err(Mistrust::Short { .. })) {
            assert_eq!(lanes.sums().next(), Some((1_000, 0, 100)), "a lie moves nothing");
        }
    }
    // Nothing is under way, or there is no such lane.
    assert_eq!(funded(&[1_000]).correct(0, 1, Some(1), 1), Err(Mistrust::Contradicts));
    assert_eq!(funded(&[1_000]).correct(7, 1, Some(1), 1), Err(Mistrust::Contradicts));
}

#[test]
fn a_lane_has_one_request_and_what_the_chain_holds() {
    let mut lanes = funded(&[100, 0, 50]);
    assert_eq!(lanes.take(60, 0), Some(Taken { index: 0, most: 60, ceiling: 60 }));
    assert_eq!(lanes.take(60, 0), None, "the third holds less");
    assert_eq!(lanes.take(50, 0), Some(Taken { index: 2, most: 50, ceiling: 50 }));
    assert_eq!(lanes.take(1, 0), None);
    lanes.settle(0, 40);
    assert_eq!(lanes.take(61, 0), None, "60 are left");
    assert_eq!(lanes.take(60, 0), Some(Taken { index: 0, most: 60, ceiling: 100 }));
    // What was given back without a receipt rests, for its provider may be at it.
    lanes.release(2, 1_000);
    assert_eq!(lanes.take(50, 1_000 + REST_MS - 1), None);
    assert_eq!(lanes.take(50, 1_000 + REST_MS).map(|t| t.ceiling), Some(50));
    // A lane whose withdrawal was announced is not used; one that was claimed from is used on.
    let closing = OnChain { balance: 100, claimed: 0, closing: true };
    let claimed = OnChain { balance: 100, claimed: 70, closing: false };
    let mut lanes = Lanes::new(TERMS, &[closing, claimed]);
    assert_eq!(lanes.take(30, 0), Some(Taken { index: 1, most: 30, ceiling: 100 }));
    assert_eq!(lanes.take(1, 0), None);
}

#[test]
#[should_panic(expected = "at most 60 was taken for it")]
fn nobody_accepts_a_receipt_beyond_its_voucher() {
    let mut lanes = funded(&[100]);
    lanes.take(60, 0).unwrap();
    lanes.settle(0, 61);
}

#[test]
fn deposits_are_made_for_those_who_wait_and_one_more() {
    let mut lanes = funded(&[]);
    let deposit = |index, amount| Some(Deposit { index, amount });
    assert_eq!(lanes.take(10, 0), None);
    assert_eq!(lanes.deposit(10, 1, 0), deposit(0, 1_000));
    assert_eq!(lanes.deposit(10, 1, 0), deposit(1, 1_000), "one more than those who wait");
    assert_eq!(lanes.deposit(10, 1, 0), None);
    // A larger request gets what it needs.
    assert_eq!(lanes.deposit(5_000, 2, 0), deposit(2, 5_000));
    assert_eq!(lanes.deposit(10, 9, 0), None, "there may be three");
    for (index, balance) in [(0, 1_000), (1, 1_000), (2, 5_000)] {
        lanes.deposited(index, balance);
    }
    assert_eq!(lanes.deposit(10, 2, 0), None);
    // What is used up is filled up, also while it is in use.
    lanes.take(1_000, 0).unwrap();
    lanes.settle(0, 995);
    assert_eq!(lanes.deposit(10, 2, 0), deposit(0, 1_000));
    lanes.deposit_failed(0, 0);
    assert_eq!(lanes.deposit(10, 2, DEPOSIT_REST_MS - 1), None);
    assert_eq!(lanes.deposit(10, 2, DEPOSIT_REST_MS), deposit(0, 1_000));
}
