// x402's own client, alone and under openai's: x402.mjs GATEWAY CHAIN KEY PRICE, with KEY the private key of a wallet that holds the ledger's token, and
// PRICE what a token costs, in units of it.

import assert from "node:assert/strict";
import { ExactEvmScheme, PERMIT2_ADDRESS, x402UptoPermit2ProxyAddress } from "@x402/evm";
import { UptoEvmScheme } from "@x402/evm/upto/client";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import OpenAI from "openai";
import { createPublicClient, createWalletClient, defineChain, erc20Abi, http, maxUint256 } from "viem";
import { privateKeyToAccount } from "viem/accounts";

const [gateway, rpc, key, price] = process.argv.slice(2);
const account = privateKeyToAccount(key);
const url = `${gateway}/v1/chat/completions`;
const model = "assay-stories";
const asked = { model, messages: [{ role: "user", content: "Once upon a time" }], max_tokens: 8, temperature: 0 };
const post = (body) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

// The token is none of those that the client knows: it must be told that it may pay with it.
const client = (...schemes) => {
  const made = x402Client.fromConfig({ schemes: schemes.map((client) => ({ network: "eip155:*", client })), spendControls: false });
  return wrapFetchWithPayment(fetch, made);
};
const exact = client(new ExactEvmScheme(account));
const both = client(new ExactEvmScheme(account), new UptoEvmScheme(account));

const first = await fetch(url, post(asked));
assert.equal(first.status, 402);
const required = JSON.parse(Buffer.from(first.headers.get("payment-required"), "base64"));
assert.deepEqual(required.accepts.map((accept) => accept.scheme), ["upto", "exact"]);
assert.equal(x402UptoPermit2ProxyAddress.toLowerCase(), "0x4020a4f3b7b90cca423b9fabcc0ce57c6c240002");

const chain = defineChain({
  id: Number(required.accepts[0].network.split(":")[1]), name: "test", rpcUrls: { default: { http: [rpc] } },
  nativeCurrency: { name: "coin", symbol: "C", decimals: 18 },
});
const reader = createPublicClient({ chain, transport: http() });
const wallet = createWalletClient({ account, chain, transport: http() });
const token = { address: required.accepts[0].asset, abi: erc20Abi };
const balance = () => reader.readContract({ ...token, functionName: "balanceOf", args: [account.address] });
const settled = (response) => decodePaymentResponseHeader(response.headers.get("payment-response"));
const cost = (usage) => BigInt(usage.total_tokens) * BigInt(price);

// `exact` moves what was offered.
let before = await balance();
let answer = await exact(url, post(asked));
assert.equal(answer.status, 200);
let paid = settled(answer);
assert(paid.success);
assert.equal(paid.payer.toLowerCase(), account.address.toLowerCase());
assert.equal(paid.amount, required.accepts[1].amount);
assert.equal((await reader.getTransactionReceipt({ hash: paid.transaction })).status, "success");
assert.equal(before - (await balance()), BigInt(paid.amount));
const text = (await answer.json()).choices[0].message.content;

// A client that has both takes `upto`, for which Permit2 must be approved once.
answer = await both(url, post({ ...asked, max_tokens: 7 }));
assert.equal(answer.status, 412);
assert.equal((await answer.json()).error.code, "permit2_allowance_required");
const approved = await wallet.writeContract({ ...token, functionName: "approve", args: [PERMIT2_ADDRESS, maxUint256] });
await reader.waitForTransactionReceipt({ hash: approved });
before = await balance();
answer = await both(url, post({ ...asked, max_tokens: 7 }));
assert.equal(answer.status, 200);
paid = settled(answer);
const whole = await answer.json();
assert.equal(BigInt(paid.amount), cost(whole.usage));
assert(BigInt(paid.amount) < BigInt(required.accepts[0].amount));
assert.equal(before - (await balance()), BigInt(paid.amount));

// openai's client over it, whole and streamed, without its key's header.
const headers = { Authorization: null };
const openai = new OpenAI({ baseURL: `${gateway}/v1`, apiKey: "none", defaultHeaders: headers, fetch: both, maxRetries: 0 });
before = await balance();
const said = await openai.chat.completions.create({ ...asked, max_completion_tokens: 8, max_tokens: undefined, seed: 3 });
assert.equal(said.choices[0].message.content, text);
assert.equal(before - (await balance()), cost(said.usage));
before = await balance();
let told = "";
let usage = null;
const options = { ...asked, seed: 4, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await openai.chat.completions.create(options)) {
  if (chunk.choices.length) told += chunk.choices[0].delta.content ?? "";
  else usage = chunk.usage;
}
assert.equal(told, text);
assert.equal(before - (await balance()), cost(usage));

// The end of a stream says what was moved.
const stream = await (await both(url, post({ ...asked, seed: 5, stream: true }))).text();
const comment = stream.split("\n").find((line) => line.startsWith(": payment-response "));
assert(decodePaymentResponseHeader(comment.split(" ")[2]).success);

console.log("all checks passed");
