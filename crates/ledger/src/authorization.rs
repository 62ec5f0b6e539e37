//! Payments by signature, without a channel: x402's `exact` (EIP-3009) and `upto` (Permit2 with x402's witness) on this ledger's token.
//!
//! Purpose: whether an authorization is signed and covered, moving its tokens, and finding out whether they were moved. Invariant: what counts as moved is
//! what the token's own event says arrived, in a transaction that used the authorization. It refuses to remember: the chain is the state.

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bytes, Log, U256, address};
use alloy_provider::Provider as _;
use alloy_rpc_types_eth::Filter;
use alloy_sol_types::{Eip712Domain, SolCall, SolEvent as _, SolStruct, eip712_domain, sol};
use assay_core::authorization::{Authorization, Scheme};
use assay_core::id::AccountAddress;

use crate::client::{ClientError, request};
use crate::ledger::Ledger;
use crate::revert::Revert;
use crate::sender::{Mined, SendError, Sender};
use crate::voucher::recover;

/// Uniswap's Permit2, at the same address on every chain that has it.
pub const PERMIT2: Address = address!("000000000022D473030F116dDEE9F6B43aC78BA3");
/// x402's proxy for `upto`, at the same address on every chain that has it (`@x402/evm` 2.27.0, `x402UptoPermit2ProxyAddress`).
pub const UPTO_PROXY: Address = address!("4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");
/// Most blocks whose events are asked for at once.
const RANGE: u64 = 2_000;

mod typed {
    #![allow(missing_docs)]
    use super::sol;
    sol! {
        /// What the payer of `exact` signs in the token's domain.
        #[derive(Debug, PartialEq, Eq)]
        struct TransferWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }

        #[derive(Debug, PartialEq, Eq)]
        struct TokenPermissions {
            address token;
            uint256 amount;
        }

        #[derive(Debug, PartialEq, Eq)]
        struct Witness {
            address to;
            address facilitator;
            uint256 validAfter;
        }

        /// What the payer of `upto` signs in Permit2's domain.
        #[derive(Debug, PartialEq, Eq)]
        struct PermitWitnessTransferFrom {
            TokenPermissions permitted;
            address spender;
            uint256 nonce;
            uint256 deadline;
            Witness witness;
        }

        #[derive(Debug, PartialEq, Eq)]
        struct PermitTransferFrom {
            TokenPermissions permitted;
            uint256 nonce;
            uint256 deadline;
        }

        interface Token {
            event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
            event Transfer(address indexed from, address indexed to, uint256 value);
            function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
            function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;
            function balanceOf(address account) external view returns (uint256);
            function allowance(address owner, address spender) external view returns (uint256);
        }

        interface Permit2 {
            function nonceBitmap(address owner, uint256 word) external view returns (uint256);
        }

        interface UptoProxy {
            function settle(PermitTransferFrom permit, uint256 amount, address owner, Witness witness, bytes signature) external;
        }
    }
}

use typed::{Permit2, Token, UptoProxy};
use typed::{
    PermitTransferFrom, PermitWitnessTransferFrom, TokenPermissions, TransferWithAuthorization, Witness,
};

fn raw(account: &AccountAddress) -> Address {
    Address::from(*account.as_bytes())
}

fn nonce(authorization: &Authorization) -> B256 {
    B256::from(*authorization.nonce.as_bytes())
}

/// The token's domain (EIP-712), in which `exact` is signed.
pub fn token_domain(chain_id: u64, token: Address, name: &str, version: &str) -> Eip712Domain {
    Eip712Domain {
        name: Some(name.to_owned().into()),
        version: Some(version.to_owned().into()),
        chain_id: Some(U256::from(chain_id)),
        verifying_contract: Some(token),
        salt: None,
    }
}

/// What the payer signs; `token` is the domain of its token.
pub fn signing_hash(authorization: &Authorization, token: &Eip712Domain) -> B256 {
    let a = authorization;
    match a.scheme {
        Scheme::Exact => TransferWithAuthorization {
            from: raw(&a.payer),
            to: raw(&a.pay_to),
            value: U256::from(a.amount),
            validAfter: U256::from(a.valid_after),
            validBefore: U256::from(a.valid_before),
            nonce: nonce(a),
        }
        .eip712_signing_hash(token),
        Scheme::Upto { spender, facilitator } => {
            let domain = eip712_domain! {
                name: "Permit2",
                chain_id: a.chain_id,
                verifying_contract: PERMIT2,
            };
            PermitWitnessTransferFrom {
                permitted: permitted(a),
                spender: raw(&spender),
                nonce: nonce(a).into(),
                deadline: U256::from(a.valid_before),
                witness: witness(a, facilitator),
            }
            .eip712_signing_hash(&domain)
        }
    }
}

fn permitted(a: &Authorization) -> TokenPermissions {
    TokenPermissions { token: raw(&a.token), amount: U256::from(a.amount) }
}

fn witness(a: &Authorization, facilitator: AccountAddress) -> Witness {
    Witness { to: raw(&a.pay_to), facilitator: raw(&facilitator), validAfter: U256::from(a.valid_after) }
}

/// Whether the payer signed it, in the one form that contracts take. A payer that is a contract signs in its own way, which is not taken.
pub fn is_signed(authorization: &Authorization, token: &Eip712Domain) -> bool {
    let hash = signing_hash(authorization, token);
    recover(hash, authorization.signature.as_bytes()) == Some(raw(&authorization.payer))
}

/// What stands behind an authorization in the newest block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cover {
    /// What the payer has.
    pub balance: u128,
    /// What of it Permit2 may move; everything for `exact`.
    pub allowance: u128,
    /// Whether the nonce was used.
    pub used: bool,
    /// The block's number.
    pub block: u64,
    /// Its time, in seconds since 1970.
    pub time: u64,
}

/// Tokens that were moved by an authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// By which transaction.
    pub transaction: B256,
    /// What arrived. A token may take a fee.
    pub arrived: u128,
}

fn narrow(value: U256) -> u128 {
    u128::try_from(value).unwrap_or(u128::MAX)
}

/// The call that moves `amount`: all of it for `exact`.
fn call(a: &Authorization, amount: u128) -> (Address, Bytes) {
    match a.scheme {
        Scheme::Exact => {
            let [r @ .., v] = a.signature.as_bytes();
            let (r, s) = r.split_at(32);
            let call = Token::transferWithAuthorizationCall {
                from: raw(&a.payer),
                to: raw(&a.pay_to),
                value: U256::from(a.amount),
                validAfter: U256::from(a.valid_after),
                validBefore: U256::from(a.valid_before),
                nonce: nonce(a),
                v: *v,
                r: B256::from_slice(r),
                s: B256::from_slice(s),
            };
            (raw(&a.token), call.abi_encode().into())
        }
        Scheme::Upto { facilitator, .. } => (UPTO_PROXY, upto(a, facilitator, amount).abi_encode().into()),
    }
}

fn upto(a: &Authorization, facilitator: AccountAddress, amount: u128) -> UptoProxy::settleCall {
    UptoProxy::settleCall {
        permit: PermitTransferFrom {
            permitted: permitted(a),
            nonce: nonce(a).into(),
            deadline: U256::from(a.valid_before),
        },
        amount: U256::from(amount),
        owner: raw(&a.payer),
        witness: witness(a, facilitator),
        signature: a.signature.as_bytes().to_vec().into(),
    }
}

/// What a transaction's events say arrived from the payer at the receiver; nothing if nothing did.
fn arrived<'a>(a: &Authorization, logs: impl Iterator<Item = &'a Log>) -> u128 {
    let own = logs.filter(|log| log.address == raw(&a.token));
    let transfers = own.filter_map(|log| Token::Transfer::decode_log_data(&log.data).ok());
    let ours = transfers.filter(|t| t.from == raw(&a.payer) && t.to == raw(&a.pay_to));
    // One transaction may use several authorizations.
    ours.fold(0, |sum: u128, t| sum.saturating_add(narrow(t.value))).min(a.amount)
}

impl Ledger {
    /// Whether this ledger's token takes `exact`, and this chain `upto`.
    pub async fn takes_authorizations(&self) -> Result<(bool, bool), ClientError> {
        let state = Token::authorizationStateCall { authorizer: PERMIT2, nonce: B256::ZERO };
        let exact = match self.client().read(self.parts().at.token, &state).await {
            Ok(_) => true,
            Err(ClientError::Reverted(_) | ClientError::Malformed(_) | ClientError::Refused { .. }) => false,
            Err(e) => return Err(e),
        };
        let upto = self.client().has_code(PERMIT2).await? && self.client().has_code(UPTO_PROXY).await?;
        Ok((exact, upto))
    }

    /// What stands behind an authorization now.
    pub async fn cover(&self, authorization: &Authorization) -> Result<Cover, ClientError> {
        let (a, payer) = (authorization, raw(&authorization.payer));
        let token = raw(&a.token);
        let newest = self.client().latest().await?;
        let block = BlockId::from(newest.hash);
        let balance = narrow(self.view(block, token, &Token::balanceOfCall { account: payer }).await?);
        let (allowance, used) = match a.scheme {
            Scheme::Exact => {
                let state = Token::authorizationStateCall { authorizer: payer, nonce: nonce(a) };
                (u128::MAX, self.view(block, token, &state).await?)
            }
            Scheme::Upto { .. } => {
                let allowance = Token::allowanceCall { owner: payer, spender: PERMIT2 };
                let number: U256 = nonce(a).into();
                let word = Permit2::nonceBitmapCall { owner: payer, word: number >> 8 };
                let (allowance, bits) =
                    (self.view(block, token, &allowance).await?, self.view(block, PERMIT2, &word).await?);
                let bit = usize::from(number.byte(0));
                (narrow(allowance), bits.bit(bit))
            }
        };
        Ok(Cover { balance, allowance, used, block: newest.number, time: newest.timestamp })
    }

    /// Why the whole amount could not be moved by `sender` now, if so.
    pub async fn would_move(
        &self,
        sender: Address,
        authorization: &Authorization,
    ) -> Result<(), ClientError> {
        let (to, data) = call(authorization, authorization.amount);
        let call = self.client().provider().call(request(sender, Some(to), data));
        // The state that the next transaction finds.
        let pending = BlockId::Number(BlockNumberOrTag::Pending);
        call.block(pending).await.map(drop).map_err(|e| self.client().failed(e))
    }

    /// Moves `amount`, which is the whole amount for `exact`, by a transaction whose purpose is `purpose` and no other's. Where one with that purpose
    /// waits already, it is waited for, and no second one is sent.
    pub async fn move_authorized(
        &self,
        sender: &Sender,
        purpose: &str,
        authorization: &Authorization,
        amount: u128,
    ) -> Result<Moved, SendError> {
        let mined = match sender.finish(purpose).await {
            Some(ended) => ended?,
            None => {
                let (to, data) = call(authorization, amount);
                sender.send_data(purpose, to, data).await?
            }
        };
        let Mined { hash, logs, .. } = mined;
        match arrived(authorization, logs.iter()) {
            // A token that moves nothing and says that all is well.
            0 => Err(SendError::Reverted { reason: Revert(Bytes::new()), mined: Some(hash) }),
            arrived => Ok(Moved { transaction: hash, arrived }),
        }
    }

    /// The transaction from block `from` on that moved tokens by this authorization, whoever sent it: all of them for `exact`.
    pub async fn moved_by(
        &self,
        authorization: &Authorization,
        from: u64,
    ) -> Result<Option<Moved>, ClientError> {
        let a = authorization;
        let filter = Filter::new().address(raw(&a.token));
        let filter = match a.scheme {
            Scheme::Exact => filter
                .event_signature(Token::AuthorizationUsed::SIGNATURE_HASH)
                .topic1(raw(&a.payer).into_word())
                .topic2(nonce(a)),
            Scheme::Upto { .. } => filter
                .event_signature(Token::Transfer::SIGNATURE_HASH)
                .topic1(raw(&a.payer).into_word())
                .topic2(raw(&a.pay_to).into_word()),
        };
        let (head, mut start) = (self.client().head().await?, from);
        while start <= head {
            let last = start.saturating_add(RANGE - 1).min(head);
            let range = filter.clone().from_block(start).to_block(last);
            let logs =
                self.client().provider().get_logs(&range).await.map_err(|e| self.client().failed(e))?;
            for log in logs {
                let Some(transaction) = log.transaction_hash else { continue };
                if let Some(moved) = self.moved_in(a, transaction).await? {
                    return Ok(Some(moved));
                }
            }
            start = last.saturating_add(1);
        }
        Ok(None)
    }

    /// What a transaction moved, if it used this authorization.
    async fn moved_in(&self, a: &Authorization, transaction: B256) -> Result<Option<Moved>, ClientError> {
        let provider = self.client().provider();
        if let Scheme::Upto { .. } = a.scheme {
            // Permit2 logs no nonces: the call says which one it was.
            let found = provider.get_transaction_by_hash(transaction).await;
            let Some(found) = found.map_err(|e| self.client().failed(e))? else { return Ok(None) };
            let input = alloy_consensus::Transaction::input(&found);
            let Ok(call) = UptoProxy::settleCall::abi_decode(input) else { return Ok(None) };
            let to = alloy_consensus::Transaction::to(&found);
            let number = U256::from_be_bytes(nonce(a).0);
            if to != Some(UPTO_PROXY) || call.owner != raw(&a.payer) || call.permit.nonce != number {
                return Ok(None);
            }
        }
        let receipt = provider.get_transaction_receipt(transaction).await;
        let Some(receipt) = receipt.map_err(|e| self.client().failed(e))? else { return Ok(None) };
        if !receipt.status() {
            return Ok(None);
        }
        let arrived = arrived(a, receipt.inner.logs().iter().map(|log| &log.inner));
        // Who uses the nonce otherwise, and sends a little beside, has not paid.
        let least = if a.scheme == Scheme::Exact { a.amount } else { 1 };
        Ok((arrived >= least).then_some(Moved { transaction, arrived }))
    }
}
