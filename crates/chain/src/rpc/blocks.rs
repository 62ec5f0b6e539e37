//! `eth_*` methods about what is in the chain: blocks, transactions, receipts, logs, filters.

use alloy_eips::BlockNumberOrTag;
use alloy_primitives::{B256, Bytes};
use alloy_rpc_types_eth::Filter;
use serde_json::{Value, json};

use super::answer::{RpcError, quantity, value};
use super::parameters::{Asked, Parameters};
use super::present::{self, Show};
use crate::chain::{Chain, locked};
use crate::filters::News;
use crate::logs;
use crate::records::{Head, Mined, encoded};
use crate::store::View;

/// A transaction in its block.
struct Placed {
    head: Head,
    mined: Mined,
    index: u32,
}

impl Chain {
    /// Answers a method of this module; none if it is not one.
    pub(super) fn blocks(&self, name: &str, params: &Parameters) -> Result<Option<Value>, RpcError> {
        let view = self.store.view()?;
        let answer = match name {
            "blockNumber" => quantity(view.head()?.header.number.into()),
            "getBlockByNumber" | "getBlockByHash" => self.block_answer(name, &view, params)?,
            "getBlockTransactionCountByNumber" | "getBlockTransactionCountByHash" => {
                found(self.head_of(name, &view, params)?, |head| Ok(quantity(head.count.into())))?
            }
            "getUncleCountByBlockNumber" | "getUncleCountByBlockHash" => {
                let name = name.replace("getUncleCountByBlock", "By");
                found(self.head_of(&name, &view, params)?, |_| Ok(quantity(0)))?
            }
            "getUncleByBlockNumberAndIndex" | "getUncleByBlockHashAndIndex" => Value::Null,
            "getTransactionByHash" => {
                let hash: B256 = params.required(0, "hash")?;
                match placed(&view, hash)? {
                    Some(p) => value(present::transaction(&p.head, &p.mined, p.index.into())?)?,
                    None => match locked(&self.pool).get(hash) {
                        Some(waiting) => value(present::waiting(waiting))?,
                        None => Value::Null,
                    },
                }
            }
            "getTransactionByBlockHashAndIndex" | "getTransactionByBlockNumberAndIndex" => {
                let name = name.trim_end_matches("AndIndex");
                let index = params.number(1, "index")?.ok_or_else(|| RpcError::invalid("missing index"))?;
                let head = self.head_of(name, &view, params)?;
                found(head, |head| match u32::try_from(index).map(|i| view.mined(head.header.number, i)) {
                    Ok(mined) => found(mined?, |mined| value(present::transaction(&head, &mined, index)?)),
                    Err(_) => Ok(Value::Null),
                })?
            }
            "getRawTransactionByHash" => {
                let hash: B256 = params.required(0, "hash")?;
                match view
                    .place(hash)?
                    .map(|(number, index)| view.mined(number, index))
                    .transpose()?
                    .flatten()
                {
                    Some(mined) => value(&mined.raw)?,
                    None => match locked(&self.pool).get(hash) {
                        Some(waiting) => value(encoded(&waiting.tx))?,
                        None => Value::Null,
                    },
                }
            }
            "getTransactionReceipt" => {
                let hash: B256 = params.required(0, "hash")?;
                found(placed(&view, hash)?, |p| {
                    value(present::receipt(&p.head, &p.mined, hash, p.index.into())?)
                })?
            }
            "getBlockReceipts" => self.receipts_answer(&view, params)?,
            "getLogs" => {
                let filter: Filter = params.required(0, "filter")?;
                let (from, to) = logs::range(&view, &filter)?;
                value(logs::logs(&view, &filter, from, to)?)?
            }
            "newFilter" => quantity(self.log_filter(params.required(0, "filter")?)?.into()),
            "newBlockFilter" => quantity(self.block_filter()?.into()),
            "newPendingTransactionFilter" => quantity(self.pending_filter()?.into()),
            "getFilterChanges" => match self.news(filter_id(params)?)? {
                News::Logs(logs) => value(logs)?,
                News::Hashes(hashes) => value(hashes)?,
            },
            "getFilterLogs" => value(self.filter_logs(filter_id(params)?)?)?,
            "uninstallFilter" => {
                let id = filter_id(params)?;
                locked(&self.filters).remove(id).into()
            }
            "sendRawTransaction" => {
                let raw: Bytes = params.required(0, "transaction")?;
                drop(view);
                value(self.submit_raw(&raw)?)?
            }
            "sendTransaction" => {
                let request = params.required(0, "transaction")?;
                drop(view);
                value(self.send(request)?)?
            }
            "accounts" => json!(self.own_accounts()),
            _ => return Ok(None),
        };
        Ok(Some(answer))
    }

    fn block_answer(&self, name: &str, view: &View, params: &Parameters) -> Result<Value, RpcError> {
        let show = if params.optional::<bool>(1, "full")? == Some(true) { Show::Whole } else { Show::Hashes };
        if name == "getBlockByNumber"
            && params.optional::<BlockNumberOrTag>(0, "block")? == Some(BlockNumberOrTag::Pending)
        {
            let built = self.pending(view)?;
            let mined: Vec<Mined> = built.mined.into_iter().map(|(_, mined)| mined).collect();
            return present::block(built.head, &mined, show);
        }
        let head = self.head_of(name, view, params)?;
        found(head, |head| {
            let mined = view.mined_in(head.header.number)?;
            present::block(head, &mined, show)
        })
    }

    fn receipts_answer(&self, view: &View, params: &Parameters) -> Result<Value, RpcError> {
        let Ok(asked) = params.block(0, view) else {
            // What is no block at all is an error; a block that is not there is null.
            params.optional::<alloy_eips::BlockId>(0, "block")?;
            return Ok(Value::Null);
        };
        let Asked::Mined(head) = asked else { return Ok(Value::Null) };
        let mined = view.mined_in(head.header.number)?;
        let receipts = (0u64..).zip(&mined);
        let receipts = receipts.map(|(index, mined)| {
            present::receipt(&head, mined, alloy_primitives::keccak256(&mined.raw), index)
        });
        value(receipts.collect::<Result<Vec<_>, _>>()?)
    }

    /// The block that a method names by hash or by number, as its own name says.
    fn head_of(&self, name: &str, view: &View, params: &Parameters) -> Result<Option<Head>, RpcError> {
        if name.ends_with("ByHash") || name.ends_with("ByBlockHash") {
            let hash: B256 = params.required(0, "hash")?;
            return Ok(view.number(hash)?.map(|number| view.header(number)).transpose()?.flatten());
        }
        let tag: BlockNumberOrTag = params.required(0, "block")?;
        if tag == BlockNumberOrTag::Pending {
            return Ok(Some(self.pending(view)?.head));
        }
        Ok(view.header(logs::tagged(tag, view.head()?.header.number))?)
    }
}

fn placed(view: &View, hash: B256) -> Result<Option<Placed>, RpcError> {
    let Some((number, index)) = view.place(hash)? else { return Ok(None) };
    Ok(match (view.header(number)?, view.mined(number, index)?) {
        (Some(head), Some(mined)) => Some(Placed { head, mined, index }),
        _ => None,
    })
}

/// What is not there is null.
fn found<T>(thing: Option<T>, show: impl FnOnce(T) -> Result<Value, RpcError>) -> Result<Value, RpcError> {
    thing.map_or(Ok(Value::Null), show)
}

fn filter_id(params: &Parameters) -> Result<u64, RpcError> {
    params
        .number(0, "filter")?
        .ok_or_else(|| RpcError::invalid("missing value for required argument 0 (filter)"))
}
