//! Deploying the contracts: the directory first, with the addresses that the others will have.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolConstructor;

use crate::contracts::{
    Audits, Channels, Directory, Epochs, Objections, Registry, Retrieval, TestToken, Vault,
};
use crate::evm::{Chain, Failure};

const MILLION: u64 = 1_000_000;
const HOUR: u32 = 3600;
const DAY: u32 = 24 * HOUR;

/// The defaults of `docs/economics.md`.
pub fn parameters() -> Directory::Parameters {
    Directory::Parameters {
        times: Directory::Times {
            genesis: 0,
            epochSeconds: DAY,
            postSeconds: 2 * HOUR,
            beaconBlocks: 8,
            commitSeconds: 12 * HOUR,
            revealSeconds: 2 * HOUR,
            objectSeconds: 10 * HOUR,
            answerSeconds: 3 * HOUR,
            disputeSeconds: 2 * DAY,
            refundSeconds: 30 * DAY,
            unbondSeconds: 7 * DAY,
            retrievalSeconds: 6 * HOUR,
        },
        rates: Directory::Rates {
            savingsPpm: 1_000_000,
            rateMinPpm: 10_000,
            secondPpm: 50_000,
            retrievalPpm: 200_000,
            auditsPerMember: 256,
            panelMin: 2,
            panelMax: 16,
        },
        split: Directory::Split {
            royaltyMaxPpm: 200_000,
            hostsPpm: 30_000,
            protocolPpm: 10_000,
            auditorsMinPpm: 20_000,
            auditCostPpm: 200_000,
            reporterPpm: 100_000,
        },
        stakes: Directory::Stakes {
            seatStake: 100 * MILLION,
            pledgeStake: 50 * MILLION,
            silencePenalty: 5 * MILLION,
            lazinessPenalty: 50 * MILLION,
            accusationBond: 20 * MILLION,
            demandBond: 5 * MILLION,
        },
    }
}

/// Where the parts of a deployment are, its directory included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// The directory.
    pub directory: Address,
    /// The others.
    pub at: Directory::Addresses,
}

/// Bytecode with its constructor's arguments.
fn creation(bytecode: &Bytes, arguments: Vec<u8>) -> Bytes {
    [bytecode.as_ref(), arguments.as_slice()].concat().into()
}

/// Deploys a token for development, which loses `fee_ppm` of each transfer on its way.
pub fn deploy_test_token(chain: &mut Chain, deployer: Address, fee_ppm: u32) -> Result<Address, Failure> {
    let arguments = TestToken::constructorCall { feePpm_: U256::from(fee_ppm) }.abi_encode();
    chain.create(deployer, creation(&TestToken::BYTECODE, arguments))
}

/// Deploys everything but the dispute contract, which is `disputes`, for `token`.
pub fn deploy(
    chain: &mut Chain,
    deployer: Address,
    token: Address,
    treasury: Address,
    disputes: Address,
    parameters: Directory::Parameters,
) -> Result<Deployment, Failure> {
    let nonce = chain.nonce(deployer);
    let next = |i: u64| deployer.create(nonce.saturating_add(i));
    let at = Directory::Addresses {
        token,
        vault: next(1),
        registry: next(2),
        channels: next(3),
        epochs: next(4),
        objections: next(5),
        audits: next(6),
        retrieval: next(7),
        disputes,
        treasury,
    };
    let arguments = Directory::constructorCall { a: at.clone(), p: parameters }.abi_encode();
    let directory = chain.create(deployer, creation(&Directory::BYTECODE, arguments))?;
    macro_rules! part {
        ($contract:ident) => {
            let arguments = $contract::constructorCall { directory }.abi_encode();
            chain.create(deployer, creation(&$contract::BYTECODE, arguments))?;
        };
    }
    part!(Vault);
    part!(Registry);
    part!(Channels);
    part!(Epochs);
    part!(Objections);
    part!(Audits);
    part!(Retrieval);
    Ok(Deployment { directory, at })
}
