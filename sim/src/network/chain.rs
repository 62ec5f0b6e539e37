//! The chain of a run: the contracts themselves in revm, blocks, transactions that wait, reorganisations.
//!
//! Invariant: an account's transactions are executed in the order in which it sent them, each at most once on a branch. What a reorganisation takes back
//! waits again, or is lost if the branch forgot it; whoever still waits for it sends it again. It refuses to decide anything.

use std::any::Any;
use std::collections::BTreeMap;
use std::rc::Rc;

use alloy_primitives::{Address, B256, Bytes, Log, U256, keccak256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{Eip712Domain, SolCall, SolError, SolEvent};
use assay_chain::scratch::{CHAIN_ID, Failure, Scratch, header};
use assay_core::id::{Hash, NodeAddress, SignatureBytes};
use assay_core::receipt::Domain;
use assay_ledger::contracts::{Directory, Epochs, TestToken, Vault, node_address};
use assay_ledger::deployment::{self, Deployment};
use assay_ledger::ledger::Phase;
use assay_ledger::voucher;

use super::wire::Who;

/// When the chain begins, in seconds since 1970.
pub(super) const GENESIS_S: u64 = 1_800_000_000;
/// Seconds between blocks.
pub(super) const BLOCK_S: u64 = 20;
/// Blocks on top of a transaction's before its sender believes that it stays, itself included.
pub(super) const CONFIRMATIONS: u64 = 3;
const DOLLAR: u64 = 1_000_000;
/// Gas that a block takes: most transactions need less than a tenth.
const PER_BLOCK: usize = 40;

/// A key and its address. Its signatures are a function of the key and what is signed.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    pub(super) key: PrivateKeySigner,
    pub(super) address: Address,
}

impl Actor {
    pub(super) fn named(name: &str) -> Actor {
        let key = PrivateKeySigner::from_bytes(&keccak256(name)).expect("a hash is a key");
        Actor { address: key.address(), key }
    }

    pub(super) fn node(&self) -> NodeAddress {
        node_address(self.address)
    }

    pub(super) fn sign(&self, hash: &Hash) -> SignatureBytes {
        let signed = self.key.sign_hash_sync(&B256::from(*hash.as_bytes())).expect("a key signs");
        SignatureBytes::from_bytes(signed.as_bytes())
    }
}

/// Numbers of the deployment: the proportions of the defaults, in hours instead of days, and a higher rate of audits so that a short run has many.
pub(super) fn parameters() -> Directory::Parameters {
    let mut p = deployment::parameters();
    p.times = Directory::Times {
        genesis: GENESIS_S,
        epochSeconds: 3600,
        postSeconds: 1800,
        beaconBlocks: 4,
        commitSeconds: 4800,
        revealSeconds: 2400,
        objectSeconds: 3600,
        answerSeconds: 2400,
        disputeSeconds: 22 * 1200,
        refundSeconds: 86_400,
        unbondSeconds: 100_000,
        retrievalSeconds: 4800,
    };
    p.rates.rateMinPpm = RATE_PPM;
    p.rates.secondPpm = 300_000;
    p.rates.retrievalPpm = 1_000_000;
    p.rates.panelMin = 2;
    p.rates.panelMax = 16;
    p
}

/// The share of receipts that is audited at least.
pub(super) const RATE_PPM: u32 = 500_000;

/// A transaction's place in the list of all that were ever sent.
pub(super) type TxId = usize;

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for a block.
    Waits,
    /// It is in a block, and did what it should, or was refused with these bytes.
    Mined { block: u64, refused: Option<Bytes> },
    /// A reorganisation took it back, and nobody has it.
    Lost,
}

/// A transaction.
#[derive(Clone, Debug)]
pub(super) struct Tx {
    pub(super) who: Who,
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) data: Bytes,
    pub(super) what: String,
    pub(super) fate: Fate,
}

impl Tx {
    /// Whether a contract refused it with this error.
    pub(super) fn is<E: SolError>(&self) -> bool {
        matches!(&self.fate, Fate::Mined { refused: Some(data), .. } if data.get(..4) == Some(E::SELECTOR.as_slice()))
    }

    pub(super) fn is_refused(&self) -> bool {
        matches!(&self.fate, Fate::Mined { refused: Some(_), .. })
    }
}

/// A log, with its block and transaction.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) block: u64,
    pub(super) tx: TxId,
    pub(super) log: Log,
}

impl Logged {
    /// The event, if it is that one.
    pub(super) fn as_event<E: SolEvent>(&self) -> Option<E> {
        let topics = self.log.data.topics();
        (topics.first() == Some(&E::SIGNATURE_HASH)).then(|| E::decode_log_data(&self.log.data).ok())?
    }
}

/// Where the chain may turn back to.
struct Fork {
    scratch: Scratch,
    logs: usize,
    mined: Vec<TxId>,
}

type Memo = BTreeMap<(Address, Vec<u8>), Rc<dyn Any>>;

/// The chain.
pub(super) struct Chain {
    scratch: Scratch,
    pub(super) parts: Deployment,
    pub(super) p: Directory::Parameters,
    pub(super) vouchers: Eip712Domain,
    pub(super) receipts: Domain,
    /// What contracts answered since the state changed.
    memo: Memo,
    pool: Vec<TxId>,
    pub(super) txs: Vec<Tx>,
    /// Logs of the branch that stands.
    logs: Vec<Logged>,
    /// Logs that a node hears of, those of blocks that were undone included.
    pub(super) heard: Vec<Logged>,
    fork: Option<Fork>,
    /// Accounts that may have a balance.
    accounts: Vec<Address>,
    /// Calls of these selectors find no place in a block until that time.
    pub(super) censored_until_s: u64,
}

fn known(name: &str) -> Address {
    Actor::named(name).address
}

impl Chain {
    /// A chain with a deployment.
    pub(super) fn new() -> Chain {
        let mut scratch = Scratch::new(GENESIS_S);
        let (deployer, treasury) = (known("deployer"), known("treasury"));
        let token = deployment::test_token(deployer, scratch.nonce(deployer), 0);
        let made = scratch.create(deployer, token.code.clone()).expect("the token is created");
        let p = parameters();
        let plan = deployment::plan(deployer, scratch.nonce(deployer), made, treasury, None, p.clone());
        for creation in &plan.creations {
            let made = scratch.create(deployer, creation.code.clone());
            assert_eq!(made, Ok(creation.address), "{}", creation.name);
        }
        let parts = plan.deployment;
        let at = &parts.at;
        let accounts = vec![
            treasury,
            at.disputes,
            at.registry,
            at.channels,
            at.epochs,
            at.objections,
            at.audits,
            at.retrieval,
        ];
        let vouchers = voucher::domain(CHAIN_ID, at.channels);
        let receipts = Domain { chain_id: CHAIN_ID, contract: node_address(at.epochs) };
        Chain {
            scratch,
            parts,
            p,
            vouchers,
            receipts,
            memo: Memo::new(),
            pool: vec![],
            txs: vec![],
            logs: vec![],
            heard: vec![],
            fork: None,
            accounts,
            censored_until_s: 0,
        }
    }

    /// Time of the newest block.
    pub(super) fn time_s(&self) -> u64 {
        self.scratch.time()
    }

    /// Its number.
    pub(super) fn number(&self) -> u64 {
        self.scratch.number()
    }

    /// The epoch that it is in.
    pub(super) fn epoch(&self) -> u64 {
        self.time_s().saturating_sub(GENESIS_S) / u64::from(self.p.times.epochSeconds)
    }

    /// What a contract answers now. Answers are remembered until the state changes: none that is asked for here depends on the time alone.
    pub(super) fn view<C: SolCall + 'static>(&mut self, to: Address, call: &C) -> Result<C::Return, Failure>
    where
        C::Return: Clone + 'static,
    {
        let key = (to, call.abi_encode());
        if let Some(known) = self.memo.get(&key).and_then(|known| known.downcast_ref::<C::Return>()) {
            return Ok(known.clone());
        }
        let value = self.scratch.read(to, call)?;
        self.memo.insert(key, Rc::new(value.clone()));
        Ok(value)
    }

    /// The same for a question that has an answer whatever the state is.
    pub(super) fn read<C: SolCall + 'static>(&mut self, to: Address, call: &C) -> C::Return
    where
        C::Return: Clone + 'static,
    {
        self.view(to, call).unwrap_or_else(|e| panic!("{}: {e}", C::SIGNATURE))
    }

    /// Does something before the run begins.
    pub(super) fn begin<C: SolCall>(&mut self, from: Address, to: Address, call: &C) -> C::Return {
        self.memo.clear();
        self.scratch.send(from, to, call).unwrap_or_else(|e| panic!("{}: {e}", C::SIGNATURE)).value
    }

    /// Gives an account dollars in the vault, before the run begins.
    pub(super) fn rich(&mut self, account: Address, dollars: u64) {
        let (token, vault) = (self.parts.at.token, self.parts.at.vault);
        let amount = U256::from(dollars * DOLLAR);
        self.begin(account, token, &TestToken::mintCall { to: account, amount });
        self.begin(account, token, &TestToken::approveCall { spender: vault, value: amount });
        self.begin(account, vault, &Vault::depositCall { account, amount });
        self.accounts.push(account);
    }

    /// Hands a transaction to the chain.
    pub(super) fn send(&mut self, who: Who, from: Address, to: Address, data: Vec<u8>, what: String) -> TxId {
        let id = self.txs.len();
        self.txs.push(Tx { who, from, to, data: data.into(), what, fate: Fate::Waits });
        self.pool.push(id);
        id
    }

    /// Hands it over again, if nobody has it.
    pub(super) fn send_again(&mut self, id: TxId) {
        if self.txs[id].fate == Fate::Lost {
            self.txs[id].fate = Fate::Waits;
            self.pool.push(id);
        }
    }

    /// Whether a transaction was mined, and stays as far as its sender can know.
    pub(super) fn is_done(&self, id: TxId) -> bool {
        matches!(&self.txs[id].fate, Fate::Mined { block, .. } if block + CONFIRMATIONS <= self.number() + 1)
    }

    fn is_censored(&self, id: TxId) -> bool {
        let selector = self.txs[id].data.get(..4);
        let named = [Epochs::closeCall::SELECTOR, Epochs::fixBeaconCall::SELECTOR];
        self.scratch.time() < self.censored_until_s && named.iter().any(|s| selector == Some(s.as_slice()))
    }

    /// Mines a block at a time. The transactions in it.
    pub(super) fn mine(&mut self, time_s: u64) -> Vec<TxId> {
        self.scratch.warp(time_s);
        let (now, later): (Vec<TxId>, Vec<TxId>) = self.pool.iter().partition(|id| !self.is_censored(**id));
        let mut now = now;
        self.pool = later;
        self.pool.extend(now.split_off(now.len().min(PER_BLOCK)));
        for id in &now {
            self.execute(*id);
        }
        if let Some(fork) = &mut self.fork {
            fork.mined.extend(&now);
        }
        now
    }

    fn execute(&mut self, id: TxId) {
        self.memo.clear();
        let tx = &mut self.txs[id];
        let block = self.scratch.number();
        let refused = match self.scratch.send_bytes(tx.from, tx.to, tx.data.clone()) {
            Ok(done) => {
                let logged = done.logs.into_iter().map(|log| Logged { block, tx: id, log });
                let from = self.logs.len();
                self.logs.extend(logged);
                self.heard.extend_from_slice(&self.logs[from..]);
                None
            }
            Err(Failure::Reverted(bytes)) => Some(bytes),
            Err(e) => Some(Bytes::from(e.to_string().into_bytes())),
        };
        tx.fate = Fate::Mined { block, refused };
    }

    /// Remembers this block: the chain may turn back to it.
    pub(super) fn may_fork(&mut self) {
        let (scratch, logs) = (self.scratch.clone(), self.logs.len());
        self.fork = Some(Fork { scratch, logs, mined: vec![] });
    }

    /// Turns back to the block that was remembered: another branch of as many blocks and one more stands. What was mined since waits again, in another order of
    /// accounts, or is lost. The depth and what was taken back.
    pub(super) fn reorganise(
        &mut self,
        time_s: u64,
        is_lost: &mut dyn FnMut(TxId) -> bool,
    ) -> Option<(u64, Vec<TxId>)> {
        let fork = self.fork.take()?;
        let depth = self.number() - fork.scratch.number();
        self.scratch = fork.scratch;
        self.memo.clear();
        self.logs.truncate(fork.logs);
        let passed = time_s.saturating_sub(self.scratch.time());
        self.scratch.mine(depth + 1, passed);
        let mut back: Vec<TxId> = fork.mined.clone();
        // Accounts in another order; each one's own transactions stay in theirs.
        back.sort_by_key(|id| std::cmp::Reverse(self.txs[*id].from));
        let mut again = Vec::new();
        for id in &back {
            if is_lost(*id) {
                self.txs[*id].fate = Fate::Lost;
            } else {
                self.txs[*id].fate = Fate::Waits;
                again.push(*id);
            }
        }
        again.append(&mut self.pool);
        self.pool = again;
        Some((depth, back))
    }

    /// Logs of the branch that stands, from a block on.
    pub(super) fn logs_from(&self, block: u64) -> impl Iterator<Item = &Logged> {
        let first = self.logs.partition_point(|logged| logged.block < block);
        self.logs[first..].iter()
    }

    /// What an account has in the vault.
    pub(super) fn balance(&mut self, account: Address) -> u64 {
        let vault = self.parts.at.vault;
        self.read(vault, &Vault::balanceOfCall { account }).saturating_to()
    }

    /// Balances of all accounts, the vault's total, the tokens that it has, and all tokens that there are.
    pub(super) fn money(&mut self) -> [u64; 4] {
        let (vault, token) = (self.parts.at.vault, self.parts.at.token);
        let sum = self.accounts.clone().into_iter().map(|account| self.balance(account)).sum();
        let total = self.read(vault, &Vault::totalCall {}).saturating_to();
        let held = self.read(token, &TestToken::balanceOfCall { account: vault }).saturating_to();
        let supply = self.read(token, &TestToken::totalSupplyCall {}).saturating_to();
        [sum, total, held, supply]
    }

    /// An epoch's beacon: its value, when it was fixed, and where the epoch stands.
    pub(super) fn beacon(&mut self, epoch: u64) -> (B256, u64, Phase) {
        let beacon = self.read(self.parts.at.epochs, &Epochs::beaconOfCall { epoch });
        let phase = Phase::at(&self.p.times, epoch, self.time_s(), beacon.number, beacon.fixedAt);
        (beacon.value, beacon.fixedAt, phase)
    }

    /// A provider's batch of an epoch.
    pub(super) fn batch(&mut self, provider: Address, epoch: u64) -> Epochs::Batch {
        self.read(self.parts.at.epochs, &Epochs::batchOfCall { provider, epoch })
    }

    /// The call that fixes a beacon whose block is known.
    pub(super) fn fix_beacon(&mut self, epoch: u64) -> Epochs::fixBeaconCall {
        let number = self.read(self.parts.at.epochs, &Epochs::beaconOfCall { epoch }).number;
        Epochs::fixBeaconCall { epoch, header: header(number).into() }
    }
}
