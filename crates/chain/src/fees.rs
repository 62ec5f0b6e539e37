//! What was paid for gas, and what is proposed.

use alloy_consensus::Transaction as _;
use alloy_rpc_types_eth::FeeHistory;

use crate::chain::Chain;
use crate::limits;
use crate::records::Head;
use crate::store::{StoreError, View};

impl Chain {
    /// The base fee of the next block.
    pub(crate) fn base_fee(&self, view: &View) -> Result<u64, StoreError> {
        Ok(self.next_header(view)?.base_fee_per_gas.unwrap_or(0))
    }

    /// The fees of the blocks up to `newest`, at most `count` of them, with tips at these percentiles of the gas.
    pub(crate) fn fee_history(
        &self,
        view: &View,
        count: u64,
        newest: u64,
        percentiles: Option<&[f64]>,
    ) -> Result<FeeHistory, StoreError> {
        let count = count.min(limits::FEE_HISTORY_MAX);
        let oldest = newest.saturating_add(1).saturating_sub(count);
        let mut history = FeeHistory { oldest_block: oldest, ..FeeHistory::default() };
        let mut rewards = Vec::new();
        if count == 0 {
            return Ok(history);
        }
        let mut last = None;
        for head in view.heads(oldest, newest)? {
            let head = head?;
            history.base_fee_per_gas.push(base(&head));
            history.gas_used_ratio.push(head.header.gas_used as f64 / head.header.gas_limit as f64);
            history.base_fee_per_blob_gas.push(1);
            history.blob_gas_used_ratio.push(0.0);
            if let Some(percentiles) = percentiles {
                rewards.push(tips(view, &head, percentiles)?);
            }
            last = Some(head);
        }
        let after = match last {
            Some(last) if last.header.number < view.head()?.header.number => {
                view.header(last.header.number.saturating_add(1))?.map_or(0, |head| base(&head))
            }
            _ => u128::from(self.base_fee(view)?),
        };
        history.base_fee_per_gas.push(after);
        history.base_fee_per_blob_gas.push(1);
        history.reward = percentiles.map(|_| rewards);
        Ok(history)
    }
}

fn base(head: &Head) -> u128 {
    u128::from(head.header.base_fee_per_gas.unwrap_or(0))
}

/// The tips at percentiles of a block's gas.
fn tips(view: &View, head: &Head, percentiles: &[f64]) -> Result<Vec<u128>, StoreError> {
    let base = head.header.base_fee_per_gas.unwrap_or(0);
    let mut paid = Vec::new();
    for mined in view.mined_in(head.header.number)? {
        paid.push((mined.envelope()?.effective_tip_per_gas(base).unwrap_or(0), mined.gas_used));
    }
    paid.sort_unstable();
    let at = |percentile: &f64| {
        let threshold = (head.header.gas_used as f64 * percentile / 100.0) as u64;
        let mut sum = 0u64;
        let tip = paid.iter().find(|(_, gas)| {
            sum = sum.saturating_add(*gas);
            sum >= threshold
        });
        tip.or(paid.last()).map_or(0, |(tip, _)| *tip)
    };
    Ok(percentiles.iter().map(at).collect())
}
