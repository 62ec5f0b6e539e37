//! One deployment on one chain: who has what, what time it is, and the actions that take more than one step.
//!
//! Purpose: what commands and daemons ask and do, typed. Invariant: whatever it says was read from the contracts, at one block where several
//! numbers belong together. It refuses to remember: the chain is the state.

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::Encodable as _;
use alloy_signer::SignerSync as _;
use alloy_sol_types::{Eip712Domain, SolCall, SolStruct, eip712_domain, sol};
use assay_core::receipt::Domain;

use crate::amount::Amount;
use crate::client::{Client, ClientError};
use crate::contracts::{Channels, Directory, Epochs, Registry, TestToken, Vault, node_address};
use crate::deployment::Deployment;
use crate::sender::{Mined, SendError, Sender};

mod typed {
    #![allow(missing_docs)]
    use super::sol;
    sol! {
        /// What a node's key signs so that an owner may enrol it.
        #[derive(Debug, PartialEq, Eq)]
        struct Enrol {
            address node;
            address owner;
            uint8 roles;
        }
    }
}

mod token {
    #![allow(missing_docs)]
    use super::sol;
    sol! {
        /// What tokens that are signed for say of themselves: by EIP-5267, or as USDC does.
        interface Signed {
            function eip712Domain() external view returns (bytes1 fields, string name, string version, uint256 chainId, address verifyingContract, bytes32 salt, uint256[] extensions);
            function name() external view returns (string);
            function version() external view returns (string);
        }
    }
}

pub use typed::Enrol;

/// Roles of a node, as the contracts number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Executes requests and posts receipts.
    Provider = 1,
    /// Keeps models.
    Host = 2,
    /// Executes again what the lottery draws.
    Auditor = 4,
}

/// What an account has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Tokens of its own.
    pub wallet: Amount,
    /// In the vault.
    pub vault: Amount,
    /// The chain's coin for gas, in wei.
    pub coin: U256,
}

/// Where an epoch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its time is not over.
    Running,
    /// Providers post.
    Posting,
    /// Posting is over; `close` is due.
    Closing,
    /// The beacon's block is named; `fixBeacon` is due when it is mined.
    Awaiting {
        /// Number of that block.
        block: u64,
    },
    /// Auditors commit.
    Committing,
    /// Auditors reveal.
    Revealing,
    /// Objections are open.
    Objecting,
    /// Nothing can change any more but what is held.
    Final,
}

impl Phase {
    /// Where an epoch stands at a time of the chain, from the number of its beacon's block, and when the beacon was fixed; 0 where that has not
    /// happened.
    pub fn at(times: &Directory::Times, epoch: u64, now: u64, beacon_block: u64, fixed_at: u64) -> Phase {
        if fixed_at != 0 {
            let mut ends = fixed_at;
            for (seconds, phase) in [
                (times.commitSeconds, Phase::Committing),
                (times.revealSeconds, Phase::Revealing),
                (times.objectSeconds, Phase::Objecting),
            ] {
                // The second in which a window ends belongs to it.
                ends = ends.saturating_add(seconds.into());
                if now <= ends {
                    return phase;
                }
            }
            return Phase::Final;
        }
        if beacon_block != 0 {
            return Phase::Awaiting { block: beacon_block };
        }
        let over =
            times.genesis.saturating_add(epoch.saturating_add(1).saturating_mul(times.epochSeconds.into()));
        match now {
            _ if now < over => Phase::Running,
            _ if now < over.saturating_add(times.postSeconds.into()) => Phase::Posting,
            _ => Phase::Closing,
        }
    }
}

/// A ledger.
#[derive(Clone, Debug)]
pub struct Ledger {
    client: Client,
    parts: Deployment,
    parameters: Directory::Parameters,
}

impl Ledger {
    /// The deployment whose directory is at `directory`.
    pub async fn at(client: Client, directory: Address) -> Result<Ledger, ClientError> {
        let at = client.read(directory, &Directory::addressesCall {}).await?;
        let parameters = client.read(directory, &Directory::parametersCall {}).await?;
        Ok(Ledger { client, parts: Deployment { directory, at }, parameters })
    }

    /// The chain.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where its contracts are.
    pub fn parts(&self) -> &Deployment {
        &self.parts
    }

    /// Its numbers.
    pub fn parameters(&self) -> &Directory::Parameters {
        &self.parameters
    }

    /// What an account has.
    pub async fn holdings(&self, account: Address) -> Result<Holdings, ClientError> {
        let block = BlockId::from(self.client.latest().await?.hash);
        let wallet = self.view(block, self.parts.at.token, &TestToken::balanceOfCall { account }).await?;
        let vault = self.view(block, self.parts.at.vault, &Vault::balanceOfCall { account }).await?;
        let coin = self.client.coin(account, block).await?;
        Ok(Holdings { wallet: Amount::from_word(wallet), vault: Amount::from_word(vault), coin })
    }

    /// The domain in which this ledger's receipts are signed.
    pub fn receipt_domain(&self) -> Domain {
        Domain { chain_id: self.client.chain_id(), contract: node_address(self.parts.at.epochs) }
    }

    /// A contract's answer at a block.
    pub async fn view<C: SolCall>(
        &self,
        block: BlockId,
        to: Address,
        call: &C,
    ) -> Result<C::Return, ClientError> {
        self.client.read_at(block, Address::ZERO, to, call).await
    }

    /// A node, if it is enrolled.
    pub async fn node(&self, node: Address) -> Result<Option<Registry::Node>, ClientError> {
        let found = self.client.read(self.parts.at.registry, &Registry::nodeOfCall { node }).await?;
        Ok((found.owner != Address::ZERO).then_some(found))
    }

    /// A channel.
    pub async fn channel(&self, id: B256) -> Result<Channels::Channel, ClientError> {
        self.client.read(self.parts.at.channels, &Channels::channelOfCall { id }).await
    }

    /// Name and version under which the token is signed for (EIP-712). A token that does not say its version has none.
    pub async fn token_domain(&self) -> Result<(String, String), ClientError> {
        let token = self.parts.at.token;
        if let Ok(said) = self.client.read(token, &token::Signed::eip712DomainCall {}).await {
            return Ok((said.name, said.version));
        }
        let name = self.client.read(token, &token::Signed::nameCall {}).await?;
        let version = self.client.read(token, &token::Signed::versionCall {}).await;
        Ok((name, version.unwrap_or_default()))
    }

    /// The epoch that the chain's newest block is in.
    pub async fn epoch(&self) -> Result<u64, ClientError> {
        self.client.read(self.parts.at.epochs, &Epochs::currentCall {}).await
    }

    /// Where an epoch stands in the chain's newest block.
    pub async fn phase(&self, epoch: u64) -> Result<Phase, ClientError> {
        let header = self.client.latest().await?;
        let block = BlockId::from(header.hash);
        let call = Epochs::beaconOfCall { epoch };
        let beacon = self.view(block, self.parts.at.epochs, &call).await?;
        Ok(self.phase_at(epoch, header.timestamp, beacon.number, beacon.fixedAt))
    }

    /// Where an epoch stands at a time of the chain, from what [`Epochs::beaconOfCall`] says of its beacon: the number of its block, and when
    /// it was fixed; 0 where that has not happened.
    pub fn phase_at(&self, epoch: u64, now: u64, beacon_block: u64, fixed_at: u64) -> Phase {
        Phase::at(&self.parameters.times, epoch, now, beacon_block, fixed_at)
    }

    /// Moves tokens of the sender's wallet into its vault balance. Says what arrived: a token may take a fee.
    pub async fn deposit(&self, sender: &Sender, amount: Amount) -> Result<Amount, SendError> {
        let (owner, spender) = (sender.account(), self.parts.at.vault);
        let call = TestToken::allowanceCall { owner, spender };
        let allowed = self.client.read(self.parts.at.token, &call).await?;
        if allowed < amount.to_word() {
            let call = TestToken::approveCall { spender, value: amount.to_word() };
            sender.send("approve the vault", self.parts.at.token, &call).await?;
        }
        let call = Vault::depositCall { account: owner, amount: amount.to_word() };
        let mined = sender.send(&format!("deposit {amount}"), spender, &call).await?;
        let arrived = logged::<Vault::Deposited>(&mined, spender).map(|event| event.amount);
        Ok(Amount::from_word(arrived.unwrap_or_default()))
    }

    /// Moves a part of the sender's vault balance to an account outside.
    pub async fn withdraw(&self, sender: &Sender, to: Address, amount: Amount) -> Result<Mined, SendError> {
        let call = Vault::withdrawCall { to, amount: amount.to_word() };
        sender.send(&format!("withdraw {amount}"), self.parts.at.vault, &call).await
    }

    /// Makes `node` a node of the sender with these roles. Its key signs, unless it is the sender.
    pub async fn enrol(
        &self,
        sender: &Sender,
        node: &alloy_signer_local::PrivateKeySigner,
        roles: u8,
        endpoint: String,
        price_list: B256,
    ) -> Result<Mined, SendError> {
        let owner = sender.account();
        let signature = if node.address() == owner {
            Bytes::new()
        } else {
            let hash =
                Enrol { node: node.address(), owner, roles }.eip712_signing_hash(&self.registry_domain());
            let signed = node.sign_hash_sync(&hash).map_err(|e| SendError::Signing(e.to_string()))?;
            signed.as_bytes().to_vec().into()
        };
        let call =
            Registry::enrolCall { node: node.address(), roles, endpoint, priceList: price_list, signature };
        sender.send("enrol the node", self.parts.at.registry, &call).await
    }

    /// Gives a node of the sender roles beside those that it has.
    pub async fn add_roles(&self, sender: &Sender, node: Address, roles: u8) -> Result<Mined, SendError> {
        let call = Registry::addRolesCall { node, roles };
        sender.send("give the node roles", self.parts.at.registry, &call).await
    }

    /// Says where a node answers, which is the sender or belongs to it.
    pub async fn describe(
        &self,
        sender: &Sender,
        node: Address,
        endpoint: String,
        price_list: B256,
    ) -> Result<Mined, SendError> {
        let call = Registry::describeCall { node, endpoint, priceList: price_list };
        sender.send("describe the node", self.parts.at.registry, &call).await
    }

    /// The domain in which a node's key agrees to its owner.
    pub fn registry_domain(&self) -> Eip712Domain {
        eip712_domain! {
            name: "Assay Registry",
            version: "1",
            chain_id: self.client.chain_id(),
            verifying_contract: self.parts.at.registry,
        }
    }

    /// Adds a part of the sender's vault balance to a node's stake.
    pub async fn stake(&self, sender: &Sender, node: Address, amount: Amount) -> Result<Mined, SendError> {
        let call = Registry::bondCall { node, amount: amount.to_word() };
        sender.send(&format!("stake {amount}"), self.parts.at.registry, &call).await
    }

    /// Starts to take out stake.
    pub async fn unstake(&self, sender: &Sender, node: Address, amount: Amount) -> Result<Mined, SendError> {
        let call = Registry::unbondCall { node, amount: amount.to_word() };
        sender.send(&format!("unstake {amount}"), self.parts.at.registry, &call).await
    }

    /// Moves stake that has finished unbonding into its owner's vault balance.
    pub async fn collect_stake(&self, sender: &Sender, node: Address) -> Result<Mined, SendError> {
        let call = Registry::withdrawCall { node, nextOpen: self.next_open(node).await? };
        sender.send("take out unbonded stake", self.parts.at.registry, &call).await
    }

    /// A provider's first epoch that is posted and not settled; 0 if it has none.
    pub async fn next_open(&self, provider: Address) -> Result<u64, ClientError> {
        let block = BlockId::from(self.client.latest().await?.hash);
        let epochs = self.parts.at.epochs;
        let account = self.view(block, epochs, &Epochs::accountOfCall { provider }).await?;
        let mut posted = account.lastPosted;
        if posted == account.lastSettled {
            return Ok(0);
        }
        // Epochs are stored plus 1, and each batch names the one before.
        loop {
            let epoch = u64::from(posted).saturating_sub(1);
            let batch = self.view(block, epochs, &Epochs::batchOfCall { provider, epoch }).await?;
            if batch.previous <= account.lastSettled || batch.previous >= posted {
                return Ok(epoch);
            }
            posted = batch.previous;
        }
    }

    /// Shows the contract the header of the block that is an epoch's beacon.
    pub async fn fix_beacon(&self, sender: &Sender, epoch: u64) -> Result<Mined, SendError> {
        let call = Epochs::beaconOfCall { epoch };
        let beacon = self.client.read(self.parts.at.epochs, &call).await?;
        let block = BlockId::Number(BlockNumberOrTag::Number(beacon.number));
        let malformed = || ClientError::Malformed("eth_getBlockByNumber");
        let found = self.client.header(block).await?.ok_or_else(malformed)?;
        let mut header = Vec::with_capacity(640);
        found.inner.encode(&mut header);
        // A chain with headers of another form would be refused by the contract, at the cost of a transaction.
        if keccak256(&header) != found.hash {
            return Err(malformed().into());
        }
        let call = Epochs::fixBeaconCall { epoch, header: header.into() };
        sender.send(&format!("fix the beacon of epoch {epoch}"), self.parts.at.epochs, &call).await
    }
}

/// The first event of a kind that a contract logged.
pub fn logged<E: alloy_sol_types::SolEvent>(mined: &Mined, contract: Address) -> Option<E> {
    let mut own = mined.logs.iter().filter(|log| log.address == contract);
    own.find_map(|log| E::decode_log_data(&log.data).ok())
}
