//! A deployment with a provider that has a stake, and the disputes about its receipts.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolCall;
use assay_chain::scratch::{CHAIN_ID, Done, Failure, Scratch};
use assay_core::answer::AnswerRecord;
use assay_core::id::{Hash, NodeAddress, SignatureBytes};
use assay_core::receipt::Domain;
use assay_ledger::contracts::{Directory, Disputes, Registry, TestToken, Vault, b256, node_address};
use assay_ledger::deployment::{self, Deployment};

use crate::deployed::{deploy, deploy_test_token};

pub const CHALLENGER: Address = Address::repeat_byte(0x22);
pub const OPERATOR: Address = Address::repeat_byte(0x11);
const TREASURY: Address = Address::repeat_byte(0x77);
pub const BOND: u64 = 500;
pub const STAKE: u64 = 1_000_000;
/// A dispute lasts at most so long: twenty-two moves.
pub const DISPUTE_SECONDS: u32 = 172_800;
const PROVIDER: u8 = 1;

/// What the contract says of a dispute.
pub struct State {
    pub stage: u8,
    /// Why it ended, if it did.
    pub reason: u8,
    /// Whether the challenger won, if it ended.
    pub upheld: bool,
}

/// A ledger, a provider, and the disputes about its receipts.
pub struct Court {
    chain: Scratch,
    parts: Deployment,
    key: PrivateKeySigner,
    sequence: u64,
}

fn parameters() -> Directory::Parameters {
    let mut p = deployment::parameters();
    p.times.disputeSeconds = DISPUTE_SECONDS;
    p.split.reporterPpm = 300_000;
    p.stakes.disputeBond = BOND;
    p
}

impl Court {
    pub fn new() -> Court {
        let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
        let mut chain = Scratch::new(1_800_000_000);
        let token = deploy_test_token(&mut chain, OPERATOR, 0).unwrap();
        let parts = deploy(&mut chain, OPERATOR, token, TREASURY, None, parameters()).unwrap();
        let mut court = Court { chain, parts, key, sequence: 0 };
        court.fund(CHALLENGER, 1_000_000);
        court.fund(OPERATOR, 100_000_000);
        let (provider, registry) = (court.provider(), court.parts.at.registry);
        let enrol = Registry::enrolCall {
            node: provider,
            roles: PROVIDER,
            endpoint: String::new(),
            priceList: B256::ZERO,
            signature: Bytes::new(),
        };
        court.send(provider, registry, &enrol).unwrap();
        let bond = Registry::bondCall { node: provider, amount: U256::from(STAKE) };
        court.send(OPERATOR, registry, &bond).unwrap();
        court
    }

    fn send<C: SolCall>(&mut self, from: Address, to: Address, call: &C) -> Result<Done<C::Return>, Failure> {
        self.chain.send(from, to, call)
    }

    /// Gives an account tokens in the vault.
    fn fund(&mut self, account: Address, amount: u64) {
        let (token, vault, amount) = (self.parts.at.token, self.parts.at.vault, U256::from(amount));
        self.send(account, token, &TestToken::mintCall { to: account, amount }).unwrap();
        self.send(account, token, &TestToken::approveCall { spender: vault, value: amount }).unwrap();
        self.send(account, vault, &Vault::depositCall { account, amount }).unwrap();
    }

    pub fn provider(&self) -> Address {
        self.key.address()
    }

    /// What an account has in the vault.
    pub fn balance(&mut self, account: Address) -> u64 {
        self.chain.read(self.parts.at.vault, &Vault::balanceOfCall { account }).unwrap().to()
    }

    /// What a provider has at stake.
    pub fn stake(&mut self, node: Address) -> u64 {
        self.chain.read(self.parts.at.registry, &Registry::stakeOfCall { node }).unwrap().to()
    }

    /// Signs a record's receipt for this ledger.
    pub fn sign(&mut self, record: &AnswerRecord) -> AnswerRecord {
        let mut record = record.clone();
        self.sequence += 1;
        let signed = &mut record.receipt;
        signed.receipt.provider = NodeAddress::from_bytes(self.key.address().into_array());
        signed.receipt.sequence = self.sequence;
        let contract = node_address(self.parts.at.epochs);
        signed.domain = Domain { chain_id: CHAIN_ID, contract };
        let hash = signed.receipt.signing_hash(&signed.domain);
        let signature = self.key.sign_hash_sync(&b256(&hash)).unwrap();
        signed.signature = SignatureBytes::from_bytes(signature.as_bytes());
        record
    }

    pub fn open(&mut self, record: &AnswerRecord) -> (Hash, Result<Done<B256>, Failure>) {
        let signed = &record.receipt;
        let call = Disputes::openCall {
            stated: (&signed.receipt).into(),
            signature: signed.signature.as_bytes().to_vec().into(),
            epoch: signed.receipt.epoch,
        };
        let disputes = self.parts.at.disputes;
        (signed.receipt.signing_hash(&signed.domain), self.send(CHALLENGER, disputes, &call))
    }

    pub fn state(&mut self, receipt: Hash) -> State {
        let call = Disputes::disputeOfCall {
            receipt: b256(&receipt),
            challenger: CHALLENGER,
            defender: self.provider(),
        };
        let walk = self.chain.read(self.parts.at.disputes, &call).unwrap().walk;
        State { stage: walk.stage, reason: walk.part, upheld: walk.rows == 1 }
    }

    /// The provider's move; what it cost.
    pub fn claim(&mut self, receipt: Hash, message: &[u8]) -> Result<u64, Failure> {
        let defender = self.provider();
        let call = Disputes::claimCall {
            receipt: b256(&receipt),
            challenger: CHALLENGER,
            defender,
            message: message.to_vec().into(),
        };
        let disputes = self.parts.at.disputes;
        self.send(defender, disputes, &call).map(|done| done.gas)
    }

    /// The challenger's move; what it cost.
    pub fn pick(&mut self, receipt: Hash, message: &[u8]) -> Result<u64, Failure> {
        let defender = self.provider();
        let call = Disputes::pickCall { receipt: b256(&receipt), defender, message: message.to_vec().into() };
        let disputes = self.parts.at.disputes;
        self.send(CHALLENGER, disputes, &call).map(|done| done.gas)
    }

    pub fn timeout(&mut self, receipt: Hash) -> Result<(), Failure> {
        let call = Disputes::timeoutCall {
            receipt: b256(&receipt),
            challenger: CHALLENGER,
            defender: self.provider(),
        };
        let disputes = self.parts.at.disputes;
        self.send(OPERATOR, disputes, &call).map(|_| ())
    }

    /// Lets the time for one move pass.
    pub fn wait(&mut self) {
        self.chain.mine(1, u64::from(DISPUTE_SECONDS) / 22 + 1);
    }
}
