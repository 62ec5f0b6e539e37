//! What a wallet, a script and a test do to a chain, written down with every answer.
#![allow(clippy::unwrap_used, unreachable_pub)]

use alloy_consensus::{TxEip1559, TxEip2930, TxEip7702, TxLegacy};
use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_eips::eip7702::Authorization;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, address, keccak256};
use alloy_signer::SignerSync as _;
use assay_chain::development::ADDRESSES;
use serde_json::{Value, json};

use crate::harness::{Node, number, signed, signer, token_code};

/// One request and what was answered.
pub struct Recorded {
    pub name: String,
    pub answer: Result<Value, Value>,
}

/// All of them, in their order.
#[derive(Default)]
pub struct Script {
    pub steps: Vec<Recorded>,
}

struct Scene<'a> {
    node: &'a Node,
    script: Script,
}

impl Scene<'_> {
    /// Asks and writes the answer down under a name, which says what kind of answer it is.
    async fn note(&mut self, name: &str, method: &str, params: Value) -> Value {
        let answer = self.node.ask(method, params).await;
        let value = answer.clone().unwrap_or_default();
        self.script.steps.push(Recorded { name: format!("{name} ({method})"), answer });
        value
    }

    /// The same for what the test itself found out.
    fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.script.steps.push(Recorded { name: name.into(), answer: Ok(value.into()) });
    }

    /// A transaction with its receipt.
    async fn send(&mut self, name: &str, transaction: Value) -> Value {
        let hash = self.note(name, "eth_sendTransaction", json!([transaction])).await;
        self.receipt(name, &hash).await
    }

    async fn raw(&mut self, name: &str, raw: &Bytes) -> Value {
        let hash = self.note(name, "eth_sendRawTransaction", json!([raw])).await;
        self.receipt(name, &hash).await
    }

    /// A transaction that is not mined yet.
    async fn raw_waiting(&mut self, name: &str, raw: &Bytes) {
        let hash = self.note(name, "eth_sendRawTransaction", json!([raw])).await;
        self.note(&format!("{name}: waiting"), "eth_getTransactionByHash", json!([hash])).await;
        self.note(&format!("{name}: receipt"), "eth_getTransactionReceipt", json!([hash])).await;
    }

    async fn receipt(&mut self, name: &str, hash: &Value) -> Value {
        if hash.is_null() {
            return Value::Null;
        }
        self.node.mined(hash).await;
        self.note(&format!("{name}: transaction"), "eth_getTransactionByHash", json!([hash])).await;
        self.note(&format!("{name}: receipt"), "eth_getTransactionReceipt", json!([hash])).await
    }
}

const A: Address = ADDRESSES[0];
const B: Address = ADDRESSES[1];
const C: Address = ADDRESSES[2];
const NOBODY: Address = address!("00000000000000000000000000000000000a55a7");

/// Runs everything against a fresh node.
pub async fn run(node: &Node) -> Script {
    let mut scene = Scene { node, script: Script::default() };
    beginning(&mut scene).await;
    transfers(&mut scene).await;
    let token = token(&mut scene).await;
    logs(&mut scene, token).await;
    reverts(&mut scene, token).await;
    calls(&mut scene, token).await;
    kinds(&mut scene, token).await;
    refusals(&mut scene).await;
    waiting(&mut scene).await;
    control(&mut scene, token).await;
    fees(&mut scene).await;
    scene.script
}

async fn beginning(scene: &mut Scene<'_>) {
    for method in
        ["eth_chainId", "net_version", "net_listening", "eth_blockNumber", "eth_syncing", "eth_accounts"]
    {
        scene.note("beginning", method, json!([])).await;
    }
    for method in ["eth_gasPrice", "eth_maxPriorityFeePerGas", "eth_blobBaseFee"] {
        scene.note("beginning", method, json!([])).await;
    }
    scene.note("hash of nothing", "web3_sha3", json!(["0x"])).await;
    for tag in ["latest", "earliest", "safe", "finalized", "pending", "0x0", "0x1"] {
        scene.note(&format!("block {tag}"), "eth_getBlockByNumber", json!([tag, false])).await;
    }
    scene.note("fees", "eth_feeHistory", json!(["0x1", "latest", [50]])).await;
    for who in [A, NOBODY] {
        scene.note("balance", "eth_getBalance", json!([who, "latest"])).await;
        scene.note("nonce", "eth_getTransactionCount", json!([who, "latest"])).await;
        scene.note("code", "eth_getCode", json!([who, "latest"])).await;
    }
    let history = "0x0000F90827F1C53a10cb7A02335B175320002935";
    scene.note("history's code", "eth_getCode", json!([history, "latest"])).await;
}

async fn transfers(scene: &mut Scene<'_>) {
    let transfer = json!({"from": A, "to": B, "value": "0x1"});
    scene.note("transfer", "eth_estimateGas", json!([transfer])).await;
    let receipt = scene.send("transfer", transfer).await;
    let (hash, block) = (receipt["transactionHash"].clone(), receipt["blockHash"].clone());
    for full in [true, false] {
        scene.note("block by number", "eth_getBlockByNumber", json!(["0x1", full])).await;
        scene.note("block by hash", "eth_getBlockByHash", json!([block, full])).await;
    }
    scene.note("count", "eth_getBlockTransactionCountByNumber", json!(["0x1"])).await;
    scene.note("count", "eth_getBlockTransactionCountByHash", json!([block])).await;
    scene.note("uncles", "eth_getUncleCountByBlockNumber", json!(["0x1"])).await;
    scene.note("uncles", "eth_getUncleCountByBlockHash", json!([block])).await;
    scene.note("by place", "eth_getTransactionByBlockNumberAndIndex", json!(["0x1", "0x0"])).await;
    scene.note("by place", "eth_getTransactionByBlockHashAndIndex", json!([block, "0x0"])).await;
    scene.note("by wrong place", "eth_getTransactionByBlockNumberAndIndex", json!(["0x1", "0x1"])).await;
    scene.note("raw", "eth_getRawTransactionByHash", json!([hash])).await;
    scene.note("receipts", "eth_getBlockReceipts", json!(["0x1"])).await;
    for number in ["0x0", "0x1", "latest", "pending"] {
        scene.note("balance then", "eth_getBalance", json!([A, number])).await;
        scene.note("nonce then", "eth_getTransactionCount", json!([A, number])).await;
    }
    scene.note("balance by hash", "eth_getBalance", json!([B, {"blockHash": block}])).await;
    let unknown = B256::repeat_byte(7);
    for method in ["eth_getTransactionByHash", "eth_getTransactionReceipt", "eth_getRawTransactionByHash"] {
        scene.note("unknown", method, json!([unknown])).await;
    }
    scene.note("unknown", "eth_getBlockByHash", json!([unknown, false])).await;
    scene.note("unknown", "eth_getBlockByNumber", json!(["0xffff", false])).await;
    scene.note("beyond", "eth_getBalance", json!([A, "0xffff"])).await;
}

/// Creates the token and moves it.
async fn token(scene: &mut Scene<'_>) -> Address {
    let code = token_code();
    scene.note("token", "eth_estimateGas", json!([{"from": A, "data": code}])).await;
    let receipt = scene.send("token", json!({"from": A, "data": code})).await;
    let token: Address = receipt["contractAddress"].as_str().unwrap().parse().unwrap();
    scene.note("token's code", "eth_getCode", json!([token, "latest"])).await;
    let mint = call("mint(address,uint256)", &[word(A), U256::from(1_000_000)]);
    scene.note("mint", "eth_estimateGas", json!([{"from": A, "to": token, "data": mint}])).await;
    scene.send("mint", json!({"from": A, "to": token, "data": mint, "gas": "0x30000"})).await;
    let transfer = call("transfer(address,uint256)", &[word(B), U256::from(300)]);
    scene.note("move", "eth_estimateGas", json!([{"from": A, "to": token, "data": transfer}])).await;
    scene.send("move", json!({"from": A, "to": token, "data": transfer, "gas": "0x30000"})).await;
    scene.send("move again", json!({"from": A, "to": token, "data": transfer, "gas": "0x30000"})).await;
    token
}

async fn logs(scene: &mut Scene<'_>, token: Address) {
    let transfer = keccak256("Transfer(address,address,uint256)");
    let (from, to) = (B256::from(word(A)), B256::from(word(B)));
    for (name, filter) in [
        ("all", json!({"fromBlock": "0x0", "toBlock": "latest"})),
        ("last", json!({})),
        ("of the token", json!({"fromBlock": "earliest", "address": token})),
        ("of nobody", json!({"fromBlock": "0x0", "address": [NOBODY]})),
        ("by topic", json!({"fromBlock": "0x0", "topics": [transfer, from]})),
        ("by receiver", json!({"fromBlock": "0x0", "topics": [null, null, to]})),
        ("by either", json!({"fromBlock": "0x0", "topics": [[transfer, B256::ZERO], null, [from, to]]})),
        ("with too many topics", json!({"fromBlock": "0x0", "topics": [transfer, from, to, to]})),
        ("of two blocks", json!({"fromBlock": "0x3", "toBlock": "0x4"})),
        ("of later blocks", json!({"fromBlock": "0x5", "toBlock": "0xffff"})),
    ] {
        scene.note(&format!("logs {name}"), "eth_getLogs", json!([filter])).await;
    }
    let block = scene.node.ok("eth_getBlockByNumber", json!(["0x4", false])).await;
    scene.note("logs of a block", "eth_getLogs", json!([{"blockHash": block["hash"]}])).await;

    let mut filters = Vec::new();
    for (method, params) in [
        ("eth_newFilter", json!([{"address": token}])),
        ("eth_newBlockFilter", json!([])),
        ("eth_newPendingTransactionFilter", json!([])),
    ] {
        filters.push(scene.node.ok(method, params).await);
    }
    for id in &filters {
        scene.note("nothing new", "eth_getFilterChanges", json!([id])).await;
    }
    let transfer = call("transfer(address,uint256)", &[word(B), U256::from(5)]);
    scene.send("move for filters", json!({"from": A, "to": token, "data": transfer, "gas": "0x30000"})).await;
    for (kind, id) in ["logs", "blocks", "pending"].into_iter().zip(&filters) {
        let news = scene.node.ok("eth_getFilterChanges", json!([id])).await;
        if kind == "blocks" {
            scene.fact("new blocks", news.as_array().unwrap().len());
        } else {
            scene.fact(&format!("new {kind}"), news);
        }
        scene.note("nothing more", "eth_getFilterChanges", json!([id])).await;
    }
    scene.note("logs of a filter", "eth_getFilterLogs", json!([filters[0]])).await;
    for id in &filters {
        scene.note("closed", "eth_uninstallFilter", json!([id])).await;
        scene.note("closed again", "eth_uninstallFilter", json!([id])).await;
        scene.note("of a closed filter", "eth_getFilterChanges", json!([id])).await;
    }
}

async fn reverts(scene: &mut Scene<'_>, token: Address) {
    let too_much = call("transfer(address,uint256)", &[word(B), U256::MAX]);
    let request = json!({"from": C, "to": token, "data": too_much});
    scene.note("custom error", "eth_call", json!([request, "latest"])).await;
    scene.note("custom error", "eth_estimateGas", json!([request])).await;
    scene.send("reverts", json!({"from": C, "to": token, "data": too_much, "gas": "0x20000"})).await;
    // PUSH1 0, PUSH0, REVERT; INVALID; an endless loop.
    for (name, code) in
        [("no reason", vec![0x5f, 0x5f, 0xfd]), ("invalid", vec![0xfe]), ("loop", vec![0x5b, 0x5f, 0x56])]
    {
        let contract = scene.node.deploy(&code).await;
        let request = json!({"from": C, "to": contract, "gas": "0x186a0"});
        if name == "no reason" {
            scene.note(name, "eth_call", json!([request, "latest"])).await;
            scene.note(name, "eth_estimateGas", json!([request])).await;
        } else {
            let failed = scene.node.ask("eth_call", json!([request, "latest"])).await.is_err();
            scene.fact(&format!("a call fails: {name}"), failed);
            let failed = scene.node.ask("eth_estimateGas", json!([request])).await.is_err();
            scene.fact(&format!("an estimate fails: {name}"), failed);
        }
        scene.send(name, request).await;
    }
}

async fn calls(scene: &mut Scene<'_>, token: Address) {
    let balance = call("balanceOf(address)", &[word(A)]);
    let request = json!({"to": token, "data": balance});
    for number in ["0x2", "0x3", "0x4", "0x5", "latest", "pending"] {
        scene.note(&format!("call at {number}"), "eth_call", json!([request, number])).await;
    }
    scene.note("call", "eth_call", json!([{"to": token, "input": balance}])).await;
    // The slot of a mapping that is the contract's first variable.
    let slot = keccak256([B256::from(word(A)).as_slice(), B256::ZERO.as_slice()].concat());
    scene.note("slot", "eth_getStorageAt", json!([token, slot, "latest"])).await;
    scene.note("slot then", "eth_getStorageAt", json!([token, slot, "0x3"])).await;
    let seven = B256::with_last_byte(7);
    let state = |key: &str| json!({token.to_string(): {key: {slot.to_string(): seven}}});
    scene.note("other state", "eth_call", json!([request, "latest", state("state")])).await;
    scene.note("state with a difference", "eth_call", json!([request, "latest", state("stateDiff")])).await;
    let total = json!({"to": token, "data": call("totalSupply()", &[])});
    scene.note("the rest of other state", "eth_call", json!([total, "latest", state("state")])).await;
    scene.note("the rest of a difference", "eth_call", json!([total, "latest", state("stateDiff")])).await;
    let pretended = json!({NOBODY.to_string(): {"code": "0x4260005260206000f3", "balance": "0x5"}});
    let at = json!({"time": "0x77777777"});
    let request = json!({"to": NOBODY});
    scene.note("time of another block", "eth_call", json!([request, "latest", pretended, at])).await;
    let coded = |code: &str| json!({NOBODY.to_string(): {"code": code}});
    for (name, code) in [
        ("number", "0x4360005260206000f3"),
        ("gas limit", "0x4560005260206000f3"),
        ("chain id", "0x4660005260206000f3"),
        ("base fee", "0x4860005260206000f3"),
        ("gas price", "0x3a60005260206000f3"),
        ("caller", "0x3360005260206000f3"),
        ("blob base fee", "0x4a60005260206000f3"),
        ("hash of the first block is zero", "0x5f40155f5260205ff3"),
    ] {
        scene.note(&format!("opcode: {name}"), "eth_call", json!([request, "latest", coded(code)])).await;
    }
    let paying = json!({"from": NOBODY, "to": B, "value": "0x5"});
    scene.note("pretended money", "eth_estimateGas", json!([paying, "latest", pretended])).await;
    let moving = call("transfer(address,uint256)", &[word(B), U256::from(1)]);
    let touched =
        scene.node.ok("eth_createAccessList", json!([{"from": A, "to": token, "data": moving}])).await;
    let mut keys: Vec<Value> = touched["accessList"][0]["storageKeys"].as_array().unwrap().clone();
    keys.sort_by_key(|key| key.as_str().unwrap().to_owned());
    scene.fact("touched slots", keys);
    scene.fact("gas with an access list", touched["gasUsed"].clone());
    // BLOCKHASH and the history contract of EIP-2935 both say what the block's hash is.
    let number = number(&scene.node.ok("eth_blockNumber", json!([])).await) - 1;
    let block = scene.node.ok("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await;
    let word = B256::from(U256::from(number));
    let asking = json!({"to": NOBODY, "data": word});
    let said = scene.node.ok("eth_call", json!([asking, "latest", coded("0x5f35405f5260205ff3")])).await;
    scene.fact("BLOCKHASH is the block's", said == block["hash"]);
    let history = "0x0000F90827F1C53a10cb7A02335B175320002935";
    let said = scene.node.ok("eth_call", json!([{"to": history, "data": word}, "latest"])).await;
    scene.fact("EIP-2935 has the block's hash", said == block["hash"]);
}

/// Every kind of transaction that there is, signed by its sender.
async fn kinds(scene: &mut Scene<'_>, token: Address) {
    let key = signer(3);
    let (fee, to) = (50_000_000_000, TxKind::Call(B));
    let legacy = TxLegacy {
        chain_id: Some(31_337),
        nonce: 0,
        gas_price: fee,
        gas_limit: 21_000,
        to,
        value: U256::from(7),
        input: Bytes::new(),
    };
    scene.raw("legacy", &signed(legacy.clone(), &key).1).await;
    scene
        .raw("without chain id", &signed(TxLegacy { chain_id: None, nonce: 1, ..legacy.clone() }, &key).1)
        .await;
    let list = AccessList(vec![AccessListItem { address: token, storage_keys: vec![B256::ZERO] }]);
    let listed = TxEip2930 {
        chain_id: 31_337,
        nonce: 2,
        gas_price: fee,
        gas_limit: 60_000,
        to,
        value: U256::from(7),
        access_list: list.clone(),
        input: Bytes::from_static(&[1, 0, 2]),
    };
    scene.raw("EIP-2930", &signed(listed, &key).1).await;
    let dynamic = dynamic(3, 60_000, B, fee);
    let dynamic = TxEip1559 { access_list: list, ..dynamic };
    scene.raw("EIP-1559", &signed(dynamic.clone(), &key).1).await;
    let authorization = Authorization { chain_id: U256::from(31_337), address: token, nonce: 0 };
    let signature = signer(4).sign_hash_sync(&authorization.signature_hash()).unwrap();
    let delegating = TxEip7702 {
        chain_id: 31_337,
        nonce: 4,
        gas_limit: 200_000,
        max_fee_per_gas: fee,
        max_priority_fee_per_gas: 1,
        to: B,
        value: U256::ZERO,
        access_list: AccessList::default(),
        authorization_list: vec![authorization.into_signed(signature)],
        input: Bytes::new(),
    };
    scene.raw("EIP-7702", &signed(delegating, &key).1).await;
    scene.note("delegated code", "eth_getCode", json!([signer(4).address(), "latest"])).await;
    scene.note("sent twice", "eth_sendRawTransaction", json!([signed(dynamic, &key).1])).await;
    let data = "0x".to_owned() + &"00".repeat(500) + &"ff".repeat(500);
    scene.send("calldata at the floor price", json!({"from": C, "to": NOBODY, "data": data})).await;
    let creation = json!({"from": C, "data": "0x5f5ffd", "gas": "0x20000"});
    scene.send("a creation that reverts", creation).await;
}

fn dynamic(nonce: u64, gas_limit: u64, to: Address, fee: u128) -> TxEip1559 {
    TxEip1559 {
        chain_id: 31_337,
        nonce,
        gas_limit,
        max_fee_per_gas: fee,
        max_priority_fee_per_gas: 1_000_000_000,
        to: TxKind::Call(to),
        value: U256::from(7),
        access_list: AccessList::default(),
        input: Bytes::new(),
    }
}

async fn refusals(scene: &mut Scene<'_>) {
    let key = signer(5);
    let fee = 50_000_000_000;
    for (name, tx) in [
        ("foreign chain", TxEip1559 { chain_id: 1, ..dynamic(0, 21_000, B, fee) }),
        ("too little gas", dynamic(0, 20_999, B, fee)),
        ("too much gas", dynamic(0, (1 << 24) + 1, B, fee)),
        ("too little money", TxEip1559 { value: U256::MAX >> 8, ..dynamic(0, 21_000, B, fee) }),
        ("below the base fee", TxEip1559 { max_priority_fee_per_gas: 1, ..dynamic(0, 21_000, B, 1) }),
    ] {
        scene.note(name, "eth_sendRawTransaction", json!([signed(tx, &key).1])).await;
    }
    scene.raw("first", &signed(dynamic(0, 21_000, B, fee), &key).1).await;
    let again = TxEip1559 { value: U256::from(8), ..dynamic(0, 21_000, B, fee) };
    scene.note("nonce too low", "eth_sendRawTransaction", json!([signed(again, &key).1])).await;
    scene.note("garbage", "eth_sendRawTransaction", json!(["0x1234"])).await;
    scene.note("no such method", "eth_noSuchMethod", json!([])).await;
    scene.note("no parameters", "eth_getBalance", json!([])).await;
    scene.note("bad address", "eth_getBalance", json!(["0x12", "latest"])).await;
    scene.note("bad block", "eth_getBlockByNumber", json!(["last", false])).await;
    scene.note("nobody's key", "eth_sendTransaction", json!([{"from": NOBODY, "to": B}])).await;
}

/// Transactions that wait: replaced, dropped, out of order.
async fn waiting(scene: &mut Scene<'_>) {
    let key = signer(6);
    let fee = 20_000_000_000;
    scene.note("by hand", "evm_setAutomine", json!([false])).await;
    let (hash, raw) = signed(dynamic(0, 21_000, B, fee), &key);
    scene.raw_waiting("waits", &raw).await;
    scene.note("known", "eth_sendRawTransaction", json!([raw])).await;
    let little = TxEip1559 { value: U256::from(8), ..dynamic(0, 21_000, C, fee) };
    scene.note("underpriced", "eth_sendRawTransaction", json!([signed(little, &key).1])).await;
    let (second, raw) = signed(dynamic(1, 21_000, C, fee), &key);
    scene.raw_waiting("second", &raw).await;
    for tag in ["latest", "pending"] {
        scene.note("nonce", "eth_getTransactionCount", json!([key.address(), tag])).await;
    }
    let more = TxEip1559 { max_priority_fee_per_gas: 2_000_000_000, ..dynamic(0, 21_000, C, fee * 2) };
    let (replacing, raw) = signed(more, &key);
    scene.raw_waiting("replaces", &raw).await;
    scene.note("replaced", "eth_getTransactionByHash", json!([hash])).await;
    scene.note("pending block", "eth_getBlockByNumber", json!(["pending", false])).await;
    scene.note("mined by hand", "evm_mine", json!([])).await;
    for hash in [replacing, second] {
        scene.note("then", "eth_getTransactionReceipt", json!([hash])).await;
    }
    let (dropped, raw) = signed(dynamic(2, 21_000, C, fee), &key);
    scene.raw_waiting("to be dropped", &raw).await;
    scene.note("dropped", "anvil_dropTransaction", json!([dropped])).await;
    scene.note("dropped", "eth_getTransactionByHash", json!([dropped])).await;
    let (late, raw) = signed(dynamic(3, 21_000, C, fee), &key);
    scene.raw_waiting("too early", &raw).await;
    scene.note("a gap", "eth_getTransactionCount", json!([key.address(), "pending"])).await;
    scene.raw_waiting("closes the gap", &signed(dynamic(2, 21_000, B, fee), &key).1).await;
    scene.note("mined by hand", "evm_mine", json!([])).await;
    let late = scene.node.mined(&json!(late)).await;
    scene.fact("what came too early is mined", late["status"].clone());
    scene.note("in order", "eth_getTransactionCount", json!([key.address(), "latest"])).await;
    scene.note("on demand", "evm_setAutomine", json!([true])).await;
}

async fn control(scene: &mut Scene<'_>, token: Address) {
    let height = number(&scene.node.ok("eth_blockNumber", json!([])).await);
    let snapshot = scene.node.ok("evm_snapshot", json!([])).await;
    scene.note("money", "anvil_setBalance", json!([NOBODY, "0xde0b6b3a7640000"])).await;
    scene.note("money", "eth_getBalance", json!([NOBODY, "latest"])).await;
    scene.note("acting", "anvil_impersonateAccount", json!([NOBODY])).await;
    // Nobody's signature is each chain's own invention, and so is the hash.
    let minting = json!({"from": NOBODY, "to": token, "gas": "0x20000",
        "data": call("mint(address,uint256)", &[word(B), U256::from(1)])});
    let hash = scene.node.ok("eth_sendTransaction", json!([minting])).await;
    let receipt = scene.node.mined(&hash).await;
    for field in ["from", "to", "status", "gasUsed", "logsBloom"] {
        scene.fact(&format!("someone else's {field}"), receipt[field].clone());
    }
    scene.note("not acting", "anvil_stopImpersonatingAccount", json!([NOBODY])).await;
    scene.note("not acting", "eth_sendTransaction", json!([{"from": NOBODY, "to": B}])).await;
    scene.note("back", "evm_revert", json!([snapshot])).await;
    scene.note("back twice", "evm_revert", json!([snapshot])).await;
    scene.note("money is gone", "eth_getBalance", json!([NOBODY, "latest"])).await;
    scene.fact("height is back", number(&scene.node.ok("eth_blockNumber", json!([])).await) == height);
    scene.note("receipt is gone", "eth_getTransactionReceipt", json!([receipt["transactionHash"]])).await;

    // Anvil does not take its base fee back with its blocks.
    scene.note("base fee", "anvil_setNextBlockBaseFeePerGas", json!(["0x3b9aca00"])).await;
    let last = scene.node.ok("eth_getBlockByNumber", json!(["latest", false])).await;
    let time = number(&last["timestamp"]) + 1_000;
    scene.note("time", "evm_setNextBlockTimestamp", json!([time])).await;
    scene.note("mined", "evm_mine", json!([])).await;
    let mined = scene.node.ok("eth_getBlockByNumber", json!(["latest", false])).await;
    scene.fact("at the time", number(&mined["timestamp"]) - time);
    scene.note("in the past", "evm_setNextBlockTimestamp", json!([time - 500])).await;
    scene.node.ok("evm_increaseTime", json!([10_000])).await;
    scene.note("mined", "evm_mine", json!([])).await;
    let mined = scene.node.ok("eth_getBlockByNumber", json!(["latest", false])).await;
    scene.fact("later", number(&mined["timestamp"]) >= time + 10_000);
    scene.note("several", "anvil_mine", json!(["0x5", "0x64"])).await;
    let five = scene.node.ok("eth_getBlockByNumber", json!(["latest", false])).await;
    let apart = number(&five["timestamp"]) - number(&mined["timestamp"]);
    scene.fact("apart", (500..=560).contains(&apart));
    scene.note("back by two", "anvil_rollback", json!([2])).await;
    scene.note("height", "eth_blockNumber", json!([])).await;
    scene.note("back too far", "anvil_rollback", json!([10_000])).await;
    scene.note("base fee", "anvil_setNextBlockBaseFeePerGas", json!(["0x3b9aca00"])).await;
    scene.send("after a rollback", json!({"from": A, "to": B, "value": "0x1"})).await;
}

async fn fees(scene: &mut Scene<'_>) {
    scene.note("base fee", "anvil_setNextBlockBaseFeePerGas", json!(["0x3b9aca07"])).await;
    scene.send("at a base fee", json!({"from": A, "to": B, "value": "0x1"})).await;
    scene.note("last block", "eth_getBlockByNumber", json!(["latest", true])).await;
    for method in ["eth_gasPrice", "eth_maxPriorityFeePerGas"] {
        scene.note("fees", method, json!([])).await;
    }
    scene.note("history", "eth_feeHistory", json!(["0xa", "latest", [10, 50, 90]])).await;
    scene.note("history without percentiles", "eth_feeHistory", json!([4, "latest"])).await;
}

/// The data of a call.
fn call(signature: &str, words: &[U256]) -> Bytes {
    let mut data = keccak256(signature)[..4].to_vec();
    for word in words {
        data.extend_from_slice(&word.to_be_bytes::<32>());
    }
    data.into()
}

fn word(address: Address) -> U256 {
    U256::from_be_slice(address.as_slice())
}
