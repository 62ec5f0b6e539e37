//! A state to try contracts on: no history, no fees, no signatures; blocks and a clock that move when they are told to.
//!
//! Accounts need no ether: gas is counted and costs nothing. Block hashes are those of real headers, so that a contract can be shown
//! a block's `prevRandao`.

use alloy_eips::eip7702::SignedAuthorization;
use alloy_primitives::{Address, B256, Bytes, Log, U256, keccak256};
use alloy_sol_types::{SolCall, SolError};

pub use crate::CHAIN_ID;
use crate::evm::{
    self, BlockEnv, CacheDB, Database as _, EmptyDB, ExecuteCommitEvm as _, ExecuteEvm as _, ExecutionResult,
    Machine, Output, Rules, TxEnv, TxEnvBuilder, TxKind,
};
use crate::limits;

/// Gas that one transaction may use (EIP-7825 allows no more).
pub const TRANSACTION_GAS_MAX: u64 = limits::TRANSACTION_GAS_MAX;

/// Why a transaction did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The contract refused; the bytes are its error.
    #[error("reverted with {0}")]
    Reverted(Bytes),
    /// It ran out of gas, or into an invalid operation.
    #[error("halted: {0}")]
    Halted(String),
    /// The chain did not take it.
    #[error("refused: {0}")]
    Refused(String),
    /// What a call returned is not what its interface says.
    #[error("malformed return value")]
    Malformed,
}

impl Failure {
    /// Whether the contract refused with this error.
    pub fn is<E: SolError>(&self) -> bool {
        matches!(self, Failure::Reverted(data) if data.get(..4) == Some(E::SELECTOR.as_slice()))
    }
}

/// What a transaction did.
#[derive(Clone)]
pub struct Done<T> {
    /// What the call returned.
    pub value: T,
    /// Gas that it used, intrinsic gas included.
    pub gas: u64,
    /// What was logged.
    pub logs: Vec<Log>,
}

impl<T> std::fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Done").field("gas", &self.gas).field("logs", &self.logs.len()).finish_non_exhaustive()
    }
}

/// A state to try contracts on. A clone goes its own way from there.
#[derive(Clone, Debug)]
pub struct Scratch {
    db: CacheDB<EmptyDB>,
    number: u64,
    time: u64,
}

impl Scratch {
    /// An empty state whose clock stands at `time` (Unix seconds).
    pub fn new(time: u64) -> Self {
        Scratch { db: CacheDB::new(EmptyDB::default()), number: 1, time }
    }

    /// Number of the block that the next transaction will be in.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The clock.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Mines `blocks` blocks and moves the clock by `seconds`.
    pub fn mine(&mut self, blocks: u64, seconds: u64) {
        for _ in 0..blocks {
            let hash = keccak256(header(self.number));
            self.db.cache.block_hashes.insert(U256::from(self.number), hash);
            self.number = self.number.saturating_add(1);
        }
        self.time = self.time.saturating_add(seconds);
    }

    /// Mines one block and sets the clock to `time`, unless it is later already.
    pub fn warp(&mut self, time: u64) {
        self.mine(1, time.saturating_sub(self.time));
    }

    /// How many transactions and creations an account has made.
    pub fn nonce(&mut self, account: Address) -> u64 {
        match self.db.basic(account) {
            Ok(Some(info)) => info.nonce,
            Ok(None) => 0,
            Err(never) => match never {},
        }
    }

    /// Creates a contract.
    pub fn create(&mut self, from: Address, code: Bytes) -> Result<Address, Failure> {
        match self.transact(from, TxKind::Create, code)?.value {
            Output::Create(_, Some(address)) => Ok(address),
            _ => Err(Failure::Malformed),
        }
    }

    /// Sends a call in a transaction of its own.
    pub fn send<C: SolCall>(
        &mut self,
        from: Address,
        to: Address,
        call: &C,
    ) -> Result<Done<C::Return>, Failure> {
        decoded::<C>(self.transact(from, TxKind::Call(to), call.abi_encode().into())?)
    }

    /// Sends the bytes of a call in a transaction of its own; what it returned, as bytes.
    pub fn send_bytes(&mut self, from: Address, to: Address, call: Bytes) -> Result<Done<Bytes>, Failure> {
        let Done { value, gas, logs } = self.transact(from, TxKind::Call(to), call)?;
        Ok(Done { value: value.data().clone(), gas, logs })
    }

    /// Gives an account another's code, as its key has signed (EIP-7702), in a transaction of `from`. As on any chain, an authorization that
    /// does not hold, for its nonce or chain, changes nothing.
    pub fn delegate(&mut self, from: Address, signed: SignedAuthorization) -> Result<(), Failure> {
        let list = vec![evm::authorization(signed)];
        let tx = self.builder(from, TxKind::Call(from), Bytes::new()).authorization_list(list).build();
        self.commit(tx.map_err(|e| Failure::Refused(format!("{e:?}")))?).map(drop)
    }

    /// Code of an account.
    pub fn code(&mut self, account: Address) -> Bytes {
        match self.db.basic(account) {
            Ok(info) => info.and_then(|info| info.code).map(|code| code.original_bytes()).unwrap_or_default(),
            Err(never) => match never {},
        }
    }

    /// What a call returns, which changes nothing.
    pub fn read<C: SolCall>(&mut self, to: Address, call: &C) -> Result<C::Return, Failure> {
        Ok(self.call(to, call)?.value)
    }

    /// Executes a call as [`Scratch::send`] would, and changes nothing.
    pub fn call<C: SolCall>(&mut self, to: Address, call: &C) -> Result<Done<C::Return>, Failure> {
        let tx = self.transaction(Address::ZERO, TxKind::Call(to), call.abi_encode().into())?;
        let (number, time) = (self.number, self.time);
        let mut evm = mainnet(&mut self.db, number, time);
        let result = evm.transact(tx).map_err(|e| Failure::Refused(e.to_string()))?.result;
        decoded::<C>(outcome(result)?)
    }

    fn builder(&mut self, from: Address, kind: TxKind, data: Bytes) -> TxEnvBuilder {
        let nonce = self.nonce(from);
        TxEnv::builder()
            .caller(from)
            .kind(kind)
            .data(data)
            .nonce(nonce)
            .gas_limit(TRANSACTION_GAS_MAX)
            .gas_price(0)
            .chain_id(Some(CHAIN_ID))
    }

    fn transaction(&mut self, from: Address, kind: TxKind, data: Bytes) -> Result<TxEnv, Failure> {
        self.builder(from, kind, data).build().map_err(|e| Failure::Refused(format!("{e:?}")))
    }

    fn transact(&mut self, from: Address, kind: TxKind, data: Bytes) -> Result<Done<Output>, Failure> {
        let tx = self.transaction(from, kind, data)?;
        self.commit(tx)
    }

    fn commit(&mut self, tx: TxEnv) -> Result<Done<Output>, Failure> {
        let (number, time) = (self.number, self.time);
        let mut evm = mainnet(&mut self.db, number, time);
        let result = evm.transact_commit(tx).map_err(|e| Failure::Refused(e.to_string()))?;
        outcome(result)
    }
}

/// An EVM for one transaction in the block with this number.
fn mainnet(db: &mut CacheDB<EmptyDB>, number: u64, time: u64) -> Machine<&mut CacheDB<EmptyDB>> {
    let block = BlockEnv {
        number: U256::from(number),
        timestamp: U256::from(time),
        gas_limit: 1 << 30,
        basefee: 0,
        prevrandao: Some(randao(number)),
        ..BlockEnv::default()
    };
    evm::machine(db, CHAIN_ID, block, Rules::Transaction)
}

/// What a call returned, which must be as its interface encodes it.
fn decoded<C: SolCall>(done: Done<Output>) -> Result<Done<C::Return>, Failure> {
    let value = C::abi_decode_returns_validate(done.value.data()).map_err(|_| Failure::Malformed)?;
    Ok(Done { value, gas: done.gas, logs: done.logs })
}

fn outcome(result: ExecutionResult) -> Result<Done<Output>, Failure> {
    let gas = result.tx_gas_used();
    match result {
        ExecutionResult::Success { output, logs, .. } => Ok(Done { value: output, gas, logs }),
        ExecutionResult::Revert { output, .. } => Err(Failure::Reverted(output)),
        ExecutionResult::Halt { reason, .. } => Err(Failure::Halted(format!("{reason:?}"))),
    }
}

/// The randomness of a block: on this chain a function of its number.
fn randao(number: u64) -> B256 {
    keccak256([b"assay/development-randao".as_slice(), &number.to_be_bytes()].concat())
}

/// A block's header in RLP. Of its fields, only number and `prevRandao` mean something on this chain.
pub fn header(number: u64) -> Vec<u8> {
    let mut fields = Vec::with_capacity(600);
    let zero = B256::ZERO;
    for _ in 0..2 {
        item(&mut fields, zero.as_slice());
    }
    item(&mut fields, Address::ZERO.as_slice());
    for _ in 0..3 {
        item(&mut fields, zero.as_slice());
    }
    item(&mut fields, &[0; 256]); // logs' bloom
    item(&mut fields, &[]); // difficulty
    let bytes = number.to_be_bytes();
    let leading = number.leading_zeros() / 8;
    item(&mut fields, bytes.get(leading as usize..).unwrap_or(&[]));
    for _ in 0..3 {
        item(&mut fields, &[]); // gas limit, gas used, time
    }
    item(&mut fields, &[]); // extra data
    item(&mut fields, randao(number).as_slice());
    item(&mut fields, &[0; 8]); // nonce
    let mut header = vec![0xf9];
    header.extend_from_slice(&u16::try_from(fields.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend_from_slice(&fields);
    header
}

/// One string in RLP, of fewer than 56 bytes or of 256 to 65 535.
fn item(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes {
        [single] if *single < 0x80 => {}
        _ if bytes.len() < 56 => out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(0)),
        _ => {
            out.push(0xb9);
            out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}
