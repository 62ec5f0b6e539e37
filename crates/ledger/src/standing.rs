//! What is publicly known of a provider: what it has answered for on the ledger, and how that ended.
//!
//! Invariant: everything comes from the ledger's log and contracts at one block, in integers, so that whoever computes it gets the same. It
//! refuses to count what only one side says: how fast a provider was is each gateway's own measurement.

use std::collections::BTreeMap;

use alloy_primitives::Address;

use crate::client::ClientError;
use crate::contracts::{Audits, Epochs, Registry};
use crate::demand::Posted;
use crate::ledger::Ledger;

/// Epochs after which an answer counts half.
pub const HALF_LIFE: u64 = 16;
/// Epochs that are looked at: what is older counts less than a 250th.
pub const EPOCHS: u64 = 8 * HALF_LIFE;
/// Answers, counted as they fade, at which half of the highest score is reached.
pub const HALF_SCORE: u64 = 1_000;

const PPM: u128 = 1_000_000;
/// Binary places of an answer that has faded.
const PLACES: u64 = 8;

/// A provider's public record in the last [`EPOCHS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Batches that it posted.
    pub batches: u64,
    /// Answers in them.
    pub answers: u64,
    /// Batches that went through their audit and were paid out.
    pub settled: u64,
    /// Audits of its batches that auditors revealed.
    pub audits: u64,
    /// Whether it was proved to lie.
    pub struck: bool,
    /// From 0 to a million: answers of settled batches, which fade by half every [`HALF_LIFE`] epochs, by those and [`HALF_SCORE`]. Who is
    /// struck has none.
    pub score_ppm: u32,
}

/// The score of settled batches, each with its age in epochs and its answers.
pub fn score_ppm(settled: impl IntoIterator<Item = (u64, u64)>) -> u32 {
    let faded = |(age, answers): (u64, u64)| {
        let halvings = u32::try_from(age / HALF_LIFE).unwrap_or(u32::MAX);
        (u128::from(answers) << PLACES).checked_shr(halvings).unwrap_or(0)
    };
    let sum = settled.into_iter().map(faded).fold(0u128, u128::saturating_add);
    let whole = sum.saturating_add(u128::from(HALF_SCORE) << PLACES);
    // At most a million.
    u32::try_from(sum.saturating_mul(PPM) / whole).unwrap_or(u32::MAX)
}

impl Ledger {
    /// What is known of each provider that has posted in the last [`EPOCHS`] whose posting is over.
    pub async fn standings(&self) -> Result<BTreeMap<Address, Standing>, ClientError> {
        let at = &self.parts().at;
        let Posted { head, over, first, batches } = self.posted(EPOCHS).await?;
        let mut found: BTreeMap<Address, (Standing, Vec<(u64, u64)>)> = BTreeMap::new();
        for posted in &batches {
            let (standing, settled) = found.entry(posted.provider).or_default();
            standing.batches += 1;
            standing.answers = standing.answers.saturating_add(posted.batch.count.into());
            let call = Epochs::batchOfCall { provider: posted.provider, epoch: posted.epoch };
            if self.view(head, at.epochs, &call).await?.state == SETTLED {
                standing.settled += 1;
                settled.push((over - 1 - posted.epoch, posted.batch.count.into()));
            }
        }
        let opens = self.parameters().times.genesis + first * u64::from(self.parameters().times.epochSeconds);
        let newest = self.client().head().await?;
        let from = self.first_at(opens, newest).await?;
        for revealed in self.logged::<Audits::Revealed>(at.audits, from, newest).await? {
            if let Some((standing, _)) = found.get_mut(&revealed.provider) {
                standing.audits += u64::from((first..over).contains(&revealed.epoch));
            }
        }
        let mut standings = BTreeMap::new();
        for (provider, (mut standing, settled)) in found {
            let call = Registry::nodeOfCall { node: provider };
            standing.struck = self.view(head, at.registry, &call).await?.struck;
            standing.score_ppm = if standing.struck { 0 } else { score_ppm(settled) };
            standings.insert(provider, standing);
        }
        Ok(standings)
    }
}

/// The state of a batch that was paid out, as the contract numbers it.
const SETTLED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_fade_and_many_count_less_each() {
        assert_eq!(score_ppm([]), 0);
        assert_eq!(score_ppm([(0, HALF_SCORE)]), 500_000);
        assert_eq!(score_ppm([(0, HALF_SCORE), (3, 2 * HALF_SCORE)]), 750_000);
        assert_eq!(score_ppm([(HALF_LIFE, 2 * HALF_SCORE)]), 500_000);
        assert_eq!(score_ppm([(HALF_LIFE - 1, HALF_SCORE)]), 500_000);
        assert_eq!(score_ppm([(u64::MAX, u64::MAX)]), 0);
        assert!(score_ppm([(0, u64::MAX), (0, u64::MAX)]) < 1_000_000);
    }
}
