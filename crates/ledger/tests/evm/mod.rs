//! The contracts in an EVM, and the little of their ABI that tests write by hand.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

pub mod deployment;

use std::path::Path;

use revm::context::TxEnv;
use revm::context::result::{ExecutionResult, Output};
use revm::database::{CacheDB, EmptyDB};
use revm::primitives::{Address, Bytes, TxKind, U256, keccak256};
use revm::state::AccountInfo;
use revm::{Context, ExecuteCommitEvm, ExecuteEvm, MainBuilder, MainContext, MainnetEvm};

type Db = CacheDB<EmptyDB>;
type Ctx = Context<revm::context::BlockEnv, TxEnv, revm::context::CfgEnv, Db, revm::Journal<Db>, ()>;

/// A chain of one block.
pub struct Chain {
    evm: MainnetEvm<Ctx>,
    nonces: std::collections::HashMap<Address, u64>,
}

/// How a call ended: what it returned, or what it reverted with; and its gas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    pub ok: bool,
    pub data: Vec<u8>,
    pub gas: u64,
}

/// The first 4 bytes of a call to a function, or of an error.
pub fn selector(signature: &str) -> [u8; 4] {
    keccak256(signature.as_bytes())[..4].try_into().unwrap()
}

/// A number as a word.
pub fn word(v: u64) -> [u8; 32] {
    U256::from(v).to_be_bytes()
}

/// A signed number as a word.
pub fn signed(v: i64) -> [u8; 32] {
    let mut w = if v < 0 { [0xff; 32] } else { [0; 32] };
    w[24..].copy_from_slice(&v.to_be_bytes());
    w
}

/// An address as a word.
pub fn address(a: Address) -> [u8; 32] {
    let mut w = [0; 32];
    w[12..].copy_from_slice(a.as_slice());
    w
}

/// Some bytes as the tail of an ABI encoding.
pub fn tail(bytes: &[u8]) -> Vec<u8> {
    let mut out = word(bytes.len() as u64).to_vec();
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(32), 0);
    out
}

/// The bytecode of a contract.
pub fn bytecode(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../contracts/artifacts/{name}.json"));
    let artifact: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let hex = artifact["bytecode"].as_str().unwrap().trim_start_matches("0x");
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

pub const OPERATOR: Address = Address::repeat_byte(0x11);

impl Chain {
    pub fn new() -> Chain {
        let mut db = CacheDB::new(EmptyDB::default());
        for byte in [0x11, 0x22, 0x33, 0x44] {
            let rich = AccountInfo { balance: U256::from(10).pow(U256::from(30)), ..AccountInfo::default() };
            db.insert_account_info(Address::repeat_byte(byte), rich);
        }
        let evm = Context::mainnet()
            .with_db(db)
            .modify_cfg_chained(|cfg| {
                cfg.disable_nonce_check = true;
                cfg.tx_gas_limit_cap = Some(u64::MAX);
                cfg.chain_id = 31337;
            })
            .modify_block_chained(|block| {
                block.gas_limit = u64::MAX;
                block.timestamp = U256::from(1_800_000_000u64);
                block.number = U256::from(1000);
            })
            .build_mainnet();
        Chain { evm, nonces: Default::default() }
    }

    pub fn pass(&mut self, seconds: u64) {
        self.evm.ctx.block.timestamp += U256::from(seconds);
    }

    fn tx(&mut self, from: Address, kind: TxKind, data: Vec<u8>) -> TxEnv {
        let nonce = self.nonces.entry(from).or_default();
        let tx = TxEnv::builder()
            .caller(from)
            .kind(kind)
            .data(Bytes::from(data))
            .gas_limit(100_000_000)
            .chain_id(Some(31337))
            .nonce(*nonce)
            .build()
            .unwrap();
        *nonce += 1;
        tx
    }

    /// The address that the next contract of an account will have.
    pub fn next_address(&self, from: Address, ahead: u64) -> Address {
        from.create(self.nonces.get(&from).copied().unwrap_or(0) + ahead)
    }

    pub fn deploy(&mut self, name: &str, arguments: &[[u8; 32]]) -> Address {
        let mut code = bytecode(name);
        code.extend(arguments.concat());
        let tx = self.tx(OPERATOR, TxKind::Create, code);
        match self.evm.transact_commit(tx).unwrap() {
            ExecutionResult::Success { output: Output::Create(_, Some(address)), .. } => address,
            other => panic!("{name} was not deployed: {other:?}"),
        }
    }

    /// A transaction.
    pub fn send(&mut self, from: Address, to: Address, data: Vec<u8>) -> Called {
        let tx = self.tx(from, TxKind::Call(to), data);
        called(self.evm.transact_commit(tx).unwrap())
    }

    /// A call that leaves nothing behind.
    pub fn call(&mut self, to: Address, data: Vec<u8>) -> Called {
        let tx = TxEnv::builder()
            .caller(OPERATOR)
            .kind(TxKind::Call(to))
            .data(Bytes::from(data))
            .gas_limit(100_000_000)
            .chain_id(Some(31337))
            .build()
            .unwrap();
        called(self.evm.transact(tx).unwrap().result)
    }
}

fn called(result: ExecutionResult) -> Called {
    let gas = result.tx_gas_used();
    match result {
        ExecutionResult::Success { output, .. } => {
            Called { ok: true, data: output.into_data().to_vec(), gas }
        }
        ExecutionResult::Revert { output, .. } => Called { ok: false, data: output.to_vec(), gas },
        ExecutionResult::Halt { reason, .. } => panic!("halted: {reason:?}"),
    }
}
