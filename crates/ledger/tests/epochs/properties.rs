//! Random sequences of everything, with the power cut now and then, against the naive model. `ASSAY_SEEDS` says how many; a failure names
//! its seed.

use std::collections::BTreeMap;

use assay_ledger::epochs::{
    AppendError, Builder, Entry, Leaf, Progress, ProgressError, ProofError, SealError, Terms,
};

use crate::crashes::{Act, Done, perform, recover};
use crate::naive::{IDENTITY, NaiveBatch, POSTING, choose, model, receipt};
use crate::power::{Draws, Power};

const STEPS: usize = 120;

struct World {
    b: Builder<Power>,
    power: Power,
    draws: Draws,
    epoch: u64,
    /// The next number that the node gives out.
    number: u64,
    /// Numbers that are being answered.
    open: Vec<u64>,
    /// Everything that was acknowledged.
    kept: BTreeMap<u64, Leaf>,
    batches: Vec<(NaiveBatch, Progress)>,
    /// Epoch and end of the last pruned batch.
    pruned: Option<(u64, u64)>,
}

impl World {
    fn new(seed: u64) -> World {
        let power = Power::default();
        let (b, _) = Builder::on(power.clone(), IDENTITY).unwrap();
        let mut draws = Draws(seed);
        let number = draws.below(3) as u64 * 5000;
        World {
            b,
            power,
            draws,
            epoch: 0,
            number,
            open: vec![],
            kept: BTreeMap::new(),
            batches: vec![],
            pruned: None,
        }
    }

    /// Does something until it is done, whatever happens to the power.
    fn perform(&mut self, act: &Act) -> Done {
        let mut cut = false;
        let after = self.draws.one_in(4).then(|| self.draws.below(8) as u64);
        self.power.cut_after(after);
        let done = loop {
            match perform(&mut self.b, act) {
                Ok(Done::Already) if cut => break Done::Fine,
                Ok(done) => break done,
                Err(_) => {
                    cut = true;
                    self.b = recover(&self.power, &mut self.draws);
                }
            }
        };
        self.power.cut_after(None);
        if self.draws.one_in(10) {
            self.b = recover(&self.power, &mut self.draws);
        }
        done
    }

    fn next(&self) -> Option<u64> {
        self.batches.last().map(|(b, _)| b.batch.next()).or(self.pruned.map(|(_, end)| end))
    }

    fn append(&mut self) {
        let fresh = match self.draws.below(8) {
            0 => 300,
            n => n,
        };
        for _ in 0..fresh {
            self.open.push(self.number);
            self.number += 1 + if self.draws.one_in(20) { self.draws.below(30) as u64 } else { 0 };
        }
        let mut receipts = Vec::new();
        for _ in 0..self.draws.below(self.open.len() + 1) {
            let i = self.draws.below(self.open.len());
            let n = self.open.swap_remove(i);
            let epoch = self.epoch + u64::from(self.draws.one_in(12));
            let models = if self.draws.one_in(3) { 40 } else { 3 };
            let m = model(self.draws.below(models) as u64);
            let fee = self.draws.below(4) as u64 * 10;
            receipts.push(receipt(n, epoch, m, fee));
        }
        let next = self.next();
        // A number of a gap cannot be signed any more: whoever declared it one too early finds out here, and not on the ledger.
        receipts.retain(|r| {
            let n = r.receipt.sequence;
            let late = next.is_some_and(|next| n < next);
            if late {
                let refused = self.b.append(r).unwrap_err();
                assert!(
                    matches!(refused, AppendError::GivenUp { .. } | AppendError::Passed { .. }),
                    "{refused}"
                );
            }
            !late
        });
        if self.next().is_none() && self.b.waiting() == 0 {
            assert_eq!(self.kept.len(), 0);
        }
        let leaves: Vec<(u64, Leaf)> = receipts.iter().map(|r| (r.receipt.sequence, Leaf::of(r))).collect();
        if !receipts.is_empty() {
            self.perform(&Act::Append(receipts));
        }
        self.kept.extend(leaves);
    }

    fn seal(&mut self) {
        let draw = &mut self.draws;
        let terms = Terms {
            first: None,
            in_flight: self.open.iter().min().copied().filter(|_| !draw.one_in(5)),
            count_max: if draw.one_in(3) { draw.below(400) as u32 } else { 1 << 20 },
            total_max: if draw.one_in(3) { draw.below(3000) as u64 } else { u64::MAX },
        };
        let epoch = self.epoch;
        if self.batches.iter().any(|(_, p)| *p == Progress::Sealed) {
            let refused = self.b.seal(epoch + 1, &terms).unwrap_err();
            assert!(matches!(refused, SealError::Unposted { .. }), "{refused}");
            return;
        }
        if self.batches.last().is_some_and(|(b, _)| b.batch.epoch >= epoch) {
            return;
        }
        let naive = choose(&self.kept, self.next(), epoch, &terms);
        let done = self.perform(&Act::Seal(epoch, terms));
        match naive {
            Err(_) => assert!(matches!(done, Done::Nothing), "{done:?}"),
            Ok((first, leaves, end)) => {
                assert!(matches!(done, Done::Fine), "{done:?} {first} {end:?}");
                let naive = NaiveBatch::of(epoch, first, leaves, end);
                assert_eq!(self.b.batches().last().unwrap().batch, naive.batch);
                assert_eq!(self.b.seal(epoch, &Terms::default()).unwrap(), naive.batch, "sealed twice");
                self.batches.push((naive, Progress::Sealed));
            }
        }
    }

    fn advance(&mut self) {
        let Some(i) = (!self.batches.is_empty()).then(|| self.draws.below(self.batches.len())) else {
            return;
        };
        let epoch = self.batches[i].0.batch.epoch;
        let before_posted = self.batches[..i].iter().all(|(_, p)| *p != Progress::Sealed);
        let before_settled = self.batches[..i].iter().all(|(_, p)| matches!(p, Progress::Settled(_)));
        let now = self.batches[i].1;
        let none_settled = self.batches[i..].iter().all(|(_, p)| !matches!(p, Progress::Settled(_)));
        match self.draws.below(8) {
            0..=3 if before_posted && !matches!(now, Progress::Settled(_)) => {
                self.perform(&Act::Posted(epoch));
                self.batches[i].1 = Progress::Posted(POSTING);
            }
            0..=3 => assert!(self.b.posted(epoch, POSTING).is_err()),
            4 if none_settled => {
                self.perform(&Act::Unposted(epoch));
                self.batches[i..].iter_mut().for_each(|(_, p)| *p = Progress::Sealed);
            }
            4 => assert!(self.b.unposted(epoch).is_err()),
            5 if before_settled && now != Progress::Sealed => {
                self.perform(&Act::Settled(epoch));
                self.batches[i].1 = Progress::Settled(POSTING);
            }
            5 => assert!(self.b.settled(epoch).is_err()),
            6 if i + 1 == self.batches.len() && now == Progress::Sealed => {
                self.perform(&Act::Missed(epoch));
                self.batches.pop();
            }
            6 => assert!(matches!(self.b.missed(epoch), Err(ProgressError::OutOfOrder { .. }))),
            _ if self.draws.one_in(2) => {
                self.perform(&Act::Repair(epoch));
            }
            _ => {
                self.perform(&Act::Prune(epoch));
                let old = |p: &(NaiveBatch, Progress)| {
                    p.0.batch.epoch < epoch && matches!(p.1, Progress::Settled(_))
                };
                let many = self.batches.iter().take_while(|b| old(b)).count();
                for (gone, _) in self.batches.drain(..many) {
                    self.pruned = Some((gone.batch.epoch, gone.batch.next()));
                }
            }
        }
    }

    fn check(&mut self) {
        let entries: Vec<Entry> =
            self.batches.iter().map(|(b, p)| Entry { batch: b.batch.clone(), progress: *p }).collect();
        assert_eq!(self.b.batches(), entries);
        let next = self.next();
        let waiting = self.kept.range(next.unwrap_or(0)..).count();
        assert_eq!(self.b.waiting(), waiting as u64);
        let first = next.or(self.kept.keys().next().copied());
        assert_eq!(self.b.next(), first);
        let b = &self.b;
        if let Some((batch, _)) = self.batches.last() {
            let n = batch.batch.first + self.draws.below(batch.batch.count as usize) as u64;
            batch.check(b, n).unwrap();
            assert!(matches!(b.proof(batch.batch.next()), Err(ProofError::NotHeld { .. })));
        }
    }

    fn check_all(&self) {
        for (batch, _) in &self.batches {
            for n in (batch.batch.first..batch.batch.next()).step_by(7) {
                batch.check(&self.b, n).unwrap();
            }
        }
    }
}

#[test]
fn the_builder_does_what_the_naive_model_does() {
    let seeds = std::env::var("ASSAY_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(24u64);
    let mut sealed = 0;
    for seed in 0..seeds {
        let play = std::panic::catch_unwind(|| {
            let mut w = World::new(seed);
            for _ in 0..STEPS {
                match w.draws.below(10) {
                    0..=4 => w.append(),
                    5 => w.epoch += 1,
                    6 => w.seal(),
                    _ => w.advance(),
                }
                w.check();
            }
            w.check_all();
            w.batches.len()
        });
        sealed += play.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(sealed as u64 > seeds, "{sealed} batches at the end of {seeds} sequences");
}
