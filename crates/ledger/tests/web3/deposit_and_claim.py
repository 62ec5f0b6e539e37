"""A payer and a provider with web3.py alone: a deposit, a channel, a voucher, its claim, and the way out.

Usage: deposit_and_claim.py RPC_URL DIRECTORY ARTIFACTS
"""

import json
import sys
from pathlib import Path

from eth_account import Account
from web3 import Web3
from web3.exceptions import ContractCustomError
from web3.middleware import SignAndSendRawMiddlewareBuilder

DOLLAR = 1_000_000

url, directory, artifacts = sys.argv[1], sys.argv[2], Path(sys.argv[3])
w3 = Web3(Web3.HTTPProvider(url))
assert w3.is_connected()
assert w3.eth.chain_id == 31337
assert int(w3.net.version) == 31337


def contract(name, address):
    abi = json.loads((artifacts / f"{name}.json").read_text())["abi"]
    return w3.eth.contract(address=address, abi=abi)


def account(word):
    """Somebody with coin for gas, whose key this script has."""
    key = Account.from_key(Web3.keccak(text=word))
    w3.provider.make_request("anvil_setBalance", [key.address, hex(10**20)])
    w3.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(key), layer=0)
    return key


def send(call, by):
    receipt = w3.eth.wait_for_transaction_receipt(call.transact({"from": by.address}), poll_latency=0.02)
    assert receipt.status == 1, receipt
    assert receipt.effectiveGasPrice >= w3.eth.get_block(receipt.blockNumber).baseFeePerGas
    return receipt


at = contract("Directory", directory).functions.addresses().call()
names = ["token", "vault", "registry", "channels", "epochs", "objections", "audits", "retrieval", "disputes", "treasury"]
at = dict(zip(names, at))
token, vault, channels = contract("TestToken", at["token"]), contract("Vault", at["vault"]), contract("Channels", at["channels"])
payer, receiver = account("web3 payer"), account("web3 receiver")

# Tokens come in.
start = w3.eth.block_number
send(token.functions.mint(payer.address, 100 * DOLLAR), payer)
send(token.functions.approve(vault.address, 100 * DOLLAR), payer)
deposited = send(vault.functions.deposit(payer.address, 40 * DOLLAR), payer)
[event] = vault.events.Deposited().process_receipt(deposited)
assert event.args.amount == 40 * DOLLAR and event.args.account == payer.address
assert vault.functions.balanceOf(payer.address).call() == 40 * DOLLAR
assert vault.functions.balanceOf(payer.address).call(block_identifier=deposited.blockNumber - 1) == 0

# The log can be asked for, and followed.
[entry] = vault.events.Deposited().get_logs(from_block=start, argument_filters={"account": payer.address})
assert entry.transactionHash == deposited.transactionHash
follow = w3.eth.filter({"address": channels.address})

# A channel, and a voucher that is signed as typed data.
config = (payer.address, "0x" + "00" * 20, receiver.address, "0x" + "00" * 20, at["token"], 3600, Web3.keccak(text="lane"))
send(channels.functions.deposit(config, 30 * DOLLAR), payer)
channel = channels.functions.channelId(config).call()
typed = {
    "primaryType": "Voucher",
    "types": {
        "EIP712Domain": [
            {"name": "name", "type": "string"},
            {"name": "version", "type": "string"},
            {"name": "chainId", "type": "uint256"},
            {"name": "verifyingContract", "type": "address"},
        ],
        "Voucher": [{"name": "channelId", "type": "bytes32"}, {"name": "maxClaimableAmount", "type": "uint128"}],
    },
    "domain": {
        "name": "x402 Batch Settlement",
        "version": "1",
        "chainId": w3.eth.chain_id,
        "verifyingContract": channels.address,
    },
    "message": {"channelId": channel, "maxClaimableAmount": 12 * DOLLAR},
}
signature = payer.sign_typed_data(full_message=typed).signature

# The receiver claims a part of it, and is refused more than the voucher allows.
claim = lambda total: channels.functions.claim([((config, 12 * DOLLAR), signature, total)])
send(claim(5 * DOLLAR), receiver)
try:
    claim(13 * DOLLAR).call({"from": receiver.address})
    raise SystemExit("a claim beyond the voucher was taken")
except ContractCustomError as refused:
    selector = Web3.keccak(text="ClaimTooHigh(bytes32,uint128,uint128)")[:4].hex()
    assert selector in str(refused.data).removeprefix("0x"), refused.data
send(channels.functions.settle(receiver.address), receiver)
assert vault.functions.balanceOf(receiver.address).call() == 5 * DOLLAR
assert len(follow.get_new_entries()) >= 4

# What was earned goes out; what is left comes back after its delay.
send(vault.functions.withdraw(receiver.address, 5 * DOLLAR), receiver)
assert token.functions.balanceOf(receiver.address).call() == 5 * DOLLAR
send(channels.functions.startWithdrawal(config, 25 * DOLLAR), payer)
w3.provider.make_request("evm_increaseTime", [3601])
w3.provider.make_request("evm_mine", [])
send(channels.functions.withdraw(config), payer)
assert vault.functions.balanceOf(payer.address).call() == 35 * DOLLAR
send(vault.functions.withdraw(payer.address, 35 * DOLLAR), payer)
assert token.functions.balanceOf(payer.address).call() == 95 * DOLLAR

history = w3.eth.fee_history(4, "latest", [50])
assert len(history.baseFeePerGas) == 5 and len(history.reward) == 4
print("all checks passed")
