//! The channels of a payer, as the ledger's log says, and the way out of them.
//!
//! Invariant: what is listed was opened with the payer named in it, and each channel once. It refuses to know what was charged and not claimed: that
//! is between payer and receiver.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256};
use alloy_provider::Provider as _;
use alloy_rpc_types_eth::Filter;
use alloy_sol_types::SolEvent;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::client::ClientError;
use crate::contracts::Channels::{self, Channel, ChannelConfig};
use crate::ledger::Ledger;
use crate::sender::{Mined, SendError, Sender};

/// Blocks whose logs are asked for at once.
const RANGE: u64 = 1_000;
/// Questions that wait for their answers at the same time.
const READS_AT_ONCE: usize = 8;

/// A channel that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its id.
    pub id: B256,
    /// Between whom it is.
    pub config: ChannelConfig,
    /// What it holds.
    pub state: Channel,
}

impl Opened {
    /// What is not claimed.
    pub fn left(&self) -> u64 {
        self.state.balance.saturating_sub(self.state.claimed)
    }

    /// When an announced withdrawal can be made, in seconds of the chain; nothing if none is announced.
    pub fn leaves_at(&self) -> Option<u64> {
        Some(self.state.leavesAt.to::<u64>()).filter(|at| *at != 0)
    }
}

impl Ledger {
    /// All channels that were ever opened for a payer, by their ids, with what they hold now.
    pub async fn channels_of(&self, payer: Address) -> Result<Vec<Opened>, ClientError> {
        let (first, latest) = (self.first_block().await?, self.client().latest().await?.number);
        let filter = Filter::new()
            .address(self.parts().at.channels)
            .event_signature(Channels::Opened::SIGNATURE_HASH)
            .topic2(payer.into_word());
        let starts: Vec<u64> = (first..=latest).step_by(RANGE as usize).collect();
        let pages =
            stream::iter(starts).map(|start| {
                let filter =
                    filter.clone().from_block(start).to_block(start.saturating_add(RANGE - 1).min(latest));
                async move {
                    self.client().provider().get_logs(&filter).await.map_err(|e| self.client().failed(e))
                }
            });
        let pages: Vec<_> = pages.buffered(READS_AT_ONCE).try_collect().await?;
        let opened = pages
            .into_iter()
            .flatten()
            .filter_map(|log| Channels::Opened::decode_log_data(&log.inner.data).ok());
        // One that was emptied and filled again was opened twice.
        let opened: BTreeMap<B256, ChannelConfig> =
            opened.filter(|o| o.payer == payer).map(|o| (o.channelId, o.config)).collect();
        let channels = stream::iter(opened).map(|(id, config)| async move {
            let state = self.channel(id).await?;
            Ok::<_, ClientError>(Opened { id, config, state })
        });
        channels.buffered(READS_AT_ONCE).try_collect().await
    }

    /// Announces that the sender takes back what is not claimed of its channel.
    pub async fn leave_channel(&self, sender: &Sender, channel: &Opened) -> Result<Mined, SendError> {
        let call =
            Channels::startWithdrawalCall { config: channel.config.clone(), amount: channel.left().into() };
        sender.send(&format!("leave channel {}", channel.id), self.parts().at.channels, &call).await
    }

    /// Takes back what was announced, when its time has come.
    pub async fn empty_channel(&self, sender: &Sender, channel: &Opened) -> Result<Mined, SendError> {
        let call = Channels::withdrawCall { config: channel.config.clone() };
        sender.send(&format!("empty channel {}", channel.id), self.parts().at.channels, &call).await
    }
}
