//! A chain by JSON-RPC: the one way to any chain, the embedded one and those by URL.
//!
//! Purpose: typed reads over alloy's provider. Invariant: what a node answers is checked against the interface before anyone uses
//! it. It refuses to hold keys: [`crate::sender`] sends.

use std::sync::Arc;
use std::time::Duration;

use alloy_network::Ethereum;
use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_provider::{Provider, RootProvider};
use alloy_rpc_client::RpcClient;
use alloy_rpc_types_eth::{BlockId, BlockNumberOrTag, Header, TransactionRequest};
use alloy_sol_types::SolCall;
use alloy_transport::{RpcError, TransportError};
use alloy_transport_http::Http;

use crate::revert::Revert;

/// How long a node may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Why a chain did not say what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// It is no URL of a node.
    #[error("{url:?} is not the http or https URL of a node")]
    BadUrl {
        /// What was given.
        url: String,
    },
    /// The node did not answer, or not in time.
    #[error("the node at {host} does not answer: {why}")]
    Unreachable {
        /// Its host and port. The rest of the URL may hold a secret.
        host: String,
        /// What went wrong.
        why: String,
    },
    /// The node answered with an error of its own.
    #[error("the node refused: {message} (code {code})")]
    Refused {
        /// JSON-RPC's code.
        code: i64,
        /// Its words.
        message: String,
    },
    /// A contract refused.
    #[error("the contract refused: {0}")]
    Reverted(Revert),
    /// There is no contract where one should be.
    #[error("there is no contract at {0} on this chain")]
    NoContract(Address),
    /// The answer is not what the interface says.
    #[error("the node's answer to {0} is not what it should be")]
    Malformed(&'static str),
}

impl ClientError {
    /// Whether the same question may be answered later.
    pub fn may_retry(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. })
    }
}

/// A chain.
#[derive(Clone, Debug)]
pub struct Client {
    provider: RootProvider<Ethereum>,
    chain_id: u64,
    host: Arc<str>,
}

impl Client {
    /// Connects to the node at `url`, and asks which chain it is on.
    pub async fn connect(url: &str) -> Result<Client, ClientError> {
        let bad = || ClientError::BadUrl { url: without_secrets(url) };
        let parsed: reqwest::Url = url.parse().map_err(|_| bad())?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad());
        }
        let host = parsed.host_str().ok_or_else(bad)?;
        let host: Arc<str> = match parsed.port() {
            Some(port) => format!("{host}:{port}").into(),
            None => host.into(),
        };
        // The first to come installs the process's TLS; whoever comes later uses it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER);
        if parsed.scheme() == "http" {
            // Whoever needs no certificates need not have any.
            http = http.tls_certs_only([]);
        }
        let http = http
            .build()
            .map_err(|e| ClientError::Unreachable { host: host.to_string(), why: e.to_string() })?;
        let local = parsed.host_str().is_some_and(|h| h == "localhost" || h == "127.0.0.1" || h == "[::1]");
        let provider = RootProvider::new(RpcClient::new(Http::with_client(http, parsed), local));
        let mut client = Client { provider, chain_id: 0, host };
        client.chain_id = client.provider.get_chain_id().await.map_err(|e| client.failed(e))?;
        Ok(client)
    }

    /// The chain's id (EIP-155).
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Host and port of the node.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// alloy's provider, for what is not here.
    pub fn provider(&self) -> &RootProvider<Ethereum> {
        &self.provider
    }

    /// What a node said when it failed.
    pub fn failed(&self, error: TransportError) -> ClientError {
        match error {
            RpcError::ErrorResp(payload) => match payload.as_revert_data() {
                Some(data) => ClientError::Reverted(Revert(data)),
                None => ClientError::Refused { code: payload.code, message: payload.message.into_owned() },
            },
            RpcError::NullResp => ClientError::Malformed("a request"),
            RpcError::DeserError { .. } => ClientError::Malformed("a request"),
            other => ClientError::Unreachable { host: self.host.to_string(), why: reason(&other) },
        }
    }

    /// What a call returns now.
    pub async fn read<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, ClientError> {
        self.read_at(BlockId::latest(), Address::ZERO, to, call).await
    }

    /// What a call of `from` returns in the state after a block.
    pub async fn read_at<C: SolCall>(
        &self,
        block: BlockId,
        from: Address,
        to: Address,
        call: &C,
    ) -> Result<C::Return, ClientError> {
        let request = request(from, Some(to), call.abi_encode().into());
        let data = self.provider.call(request).block(block).await.map_err(|e| self.failed(e))?;
        match C::abi_decode_returns_validate(&data) {
            Ok(value) => Ok(value),
            Err(_) if data.is_empty() && !self.has_code(to).await? => Err(ClientError::NoContract(to)),
            Err(_) => Err(ClientError::Malformed(C::SIGNATURE)),
        }
    }

    /// Whether there is a contract.
    pub async fn has_code(&self, at: Address) -> Result<bool, ClientError> {
        Ok(!self.provider.get_code_at(at).await.map_err(|e| self.failed(e))?.is_empty())
    }

    /// What an account has of the chain's coin after a block, in wei.
    pub async fn coin(&self, account: Address, block: BlockId) -> Result<U256, ClientError> {
        self.provider.get_balance(account).block_id(block).await.map_err(|e| self.failed(e))
    }

    /// Makes an account have so much of the chain's coin, in wei. Development chains alone can do this.
    pub async fn give_coin(&self, account: Address, wei: U256) -> Result<(), ClientError> {
        let given: Result<serde_json::Value, _> =
            self.provider.raw_request("anvil_setBalance".into(), (account, wei)).await;
        given.map(drop).map_err(|e| self.failed(e))
    }

    /// Number of the newest block.
    pub async fn head(&self) -> Result<u64, ClientError> {
        self.provider.get_block_number().await.map_err(|e| self.failed(e))
    }

    /// A block's header, if the node has it.
    pub async fn header(&self, block: BlockId) -> Result<Option<Header>, ClientError> {
        let found = match block {
            BlockId::Hash(hash) => self.provider.get_block_by_hash(hash.block_hash).await,
            BlockId::Number(number) => self.provider.get_block_by_number(number).await,
        };
        Ok(found.map_err(|e| self.failed(e))?.map(|block| block.header))
    }

    /// The gas that each transaction of a block has used, with its sender. Nothing of a block that the node does not have.
    pub async fn gas(&self, block: u64) -> Result<Vec<(Address, u64)>, ClientError> {
        let found = self.provider.get_block_receipts(BlockId::number(block)).await;
        let receipts = found.map_err(|e| self.failed(e))?.unwrap_or_default();
        Ok(receipts.into_iter().map(|receipt| (receipt.from, receipt.gas_used)).collect())
    }

    /// The newest block's header.
    pub async fn latest(&self) -> Result<Header, ClientError> {
        let newest = BlockId::Number(BlockNumberOrTag::Latest);
        self.header(newest).await?.ok_or(ClientError::Malformed("eth_getBlockByNumber"))
    }

    /// Hash of the chain's first block: two chains may share an id.
    pub async fn genesis(&self) -> Result<B256, ClientError> {
        let first = BlockId::Number(BlockNumberOrTag::Number(0));
        Ok(self.header(first).await?.ok_or(ClientError::Malformed("eth_getBlockByNumber"))?.hash)
    }
}

/// A transaction as nodes estimate and simulate it.
pub(crate) fn request(from: Address, to: Option<Address>, data: Bytes) -> TransactionRequest {
    let request = TransactionRequest::default().from(from).input(data.into());
    match to {
        Some(to) => request.to(to),
        None => request.create(),
    }
}

/// What went wrong on the way, without the URL.
fn reason(error: &TransportError) -> String {
    match error {
        RpcError::Transport(kind) => match kind.as_http_error() {
            Some(http) => format!("HTTP {}", http.status),
            None => chain(kind),
        },
        RpcError::SerError(e) => e.to_string(),
        _ => "the transport failed".to_owned(),
    }
}

/// The innermost cause: outer ones name the URL.
fn chain(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// A URL as it may be shown.
fn without_secrets(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            format!("{scheme}://{}", authority.rsplit('@').next().unwrap_or_default())
        }
        None => url.chars().take(64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn urls_are_shown_without_secrets() {
        assert_eq!(without_secrets("wss://me:secret@node.example/v2/KEY?k=1"), "wss://node.example");
        assert_eq!(without_secrets("nonsense"), "nonsense");
    }
}
