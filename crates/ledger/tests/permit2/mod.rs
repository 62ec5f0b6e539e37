//! Permit2 and x402's proxy for `upto` on a chain that has neither: our doubles, at the canonical addresses.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

use alloy_provider::Provider as _;
use alloy_sol_types::sol;
use assay_ledger::authorization::{PERMIT2, UPTO_PROXY};
use assay_ledger::sender::Sender;
use serde_json::json;

sol!(
    #[sol(all_derives)]
    TestPermit2,
    "../../contracts/artifacts/TestPermit2.json"
);
// Its interface names structs of the other's.
mod proxy {
    super::sol!(
        #[sol(all_derives)]
        TestUptoProxy,
        "../../contracts/artifacts/TestUptoProxy.json"
    );
}

use proxy::TestUptoProxy;

/// Puts both where clients look for them. A development chain alone can do this.
pub async fn place(by: &Sender) {
    let provider = by.client().provider();
    for (at, code) in [(PERMIT2, &TestPermit2::BYTECODE), (UPTO_PROXY, &TestUptoProxy::BYTECODE)] {
        let made = by.create("a double", code.clone()).await.unwrap().created.unwrap();
        let code = provider.get_code_at(made).await.unwrap();
        let placed: serde_json::Value =
            provider.raw_request("anvil_setCode".into(), json!([at, code])).await.unwrap();
        drop(placed);
    }
}
