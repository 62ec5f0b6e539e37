//! Deploying the contracts: the directory first, with the addresses that the others will have.

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolConstructor;

use crate::client::ClientError;
use crate::contracts::{
    Adjudicator, AttentionSteps, Audits, Channels, Directory, Disputes, Epochs, Objections, OperationSteps,
    Referee, Registry, Retrieval, SamplingSteps, TestToken, Vault,
};
use crate::sender::{SendError, Sender};

/// Why a deployment stopped.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// A transaction failed.
    #[error("creating {name}: {source}")]
    Send {
        /// Which contract.
        name: &'static str,
        /// Why.
        source: SendError,
    },
    /// The account sent something else meanwhile, so that addresses are no longer those that the directory names.
    #[error(
        "creating {name} must be transaction {expected} of {account}, whose next one is {next}; begin a new deployment with an \
         account that does nothing else meanwhile"
    )]
    Interrupted {
        /// Which contract.
        name: &'static str,
        /// The deployer.
        account: Address,
        /// The number that was planned.
        expected: u64,
        /// The account's next number.
        next: u64,
    },
}

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
            fetchedPpm: 500_000,
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
            disputeBond: 20 * MILLION,
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

/// One contract to create.
#[derive(Clone, Debug)]
pub struct Creation {
    /// Its name in `contracts/`.
    pub name: &'static str,
    /// Bytecode with the constructor's arguments.
    pub code: Bytes,
    /// Where it will be.
    pub address: Address,
    /// Number of the transaction that creates it.
    pub nonce: u64,
}

/// A deployment before it is made: contracts in the order in which one account must create them, with nothing else in between.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything will be.
    pub deployment: Deployment,
    /// What to create.
    pub creations: Vec<Creation>,
}

/// Creations of one account, in order.
struct Planner {
    deployer: Address,
    nonce: u64,
    creations: Vec<Creation>,
}

impl Planner {
    fn create(&mut self, name: &'static str, bytecode: &Bytes, arguments: Vec<u8>) -> Address {
        let nonce = self.nonce.saturating_add(self.creations.len() as u64);
        let address = self.deployer.create(nonce);
        let code = [bytecode.as_ref(), arguments.as_slice()].concat().into();
        self.creations.push(Creation { name, code, address, nonce });
        address
    }

    fn steps(&mut self) -> [Address; 3] {
        [
            self.create("OperationSteps", &OperationSteps::BYTECODE, vec![]),
            self.create("AttentionSteps", &AttentionSteps::BYTECODE, vec![]),
            self.create("SamplingSteps", &SamplingSteps::BYTECODE, vec![]),
        ]
    }
}

/// A token for development, which loses `fee_ppm` of each transfer on its way.
pub fn test_token(deployer: Address, nonce: u64, fee_ppm: u32) -> Creation {
    let arguments = TestToken::constructorCall { feePpm_: U256::from(fee_ppm) }.abi_encode();
    let code = [TestToken::BYTECODE.as_ref(), arguments.as_slice()].concat().into();
    Creation { name: "TestToken", code, address: deployer.create(nonce), nonce }
}

/// The contracts that execute micro-steps, alone: of operations, of attention, of sampling.
pub fn steps(deployer: Address, nonce: u64) -> [Creation; 3] {
    let mut planner = Planner { deployer, nonce, creations: Vec::with_capacity(3) };
    planner.steps();
    planner.creations.try_into().expect("three were planned")
}

/// Everything for `token`, created by `deployer` from its transaction number `nonce` on. Disputes are decided by `disputes` if that
/// is given, else by the contracts of disputes.
pub fn plan(
    deployer: Address,
    nonce: u64,
    token: Address,
    treasury: Address,
    disputes: Option<Address>,
    parameters: Directory::Parameters,
) -> Plan {
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
        disputes: disputes.unwrap_or_else(|| next(13)),
        treasury,
    };
    let mut planner = Planner { deployer, nonce, creations: Vec::with_capacity(14) };
    let arguments = Directory::constructorCall { a: at.clone(), p: parameters }.abi_encode();
    let directory = planner.create("Directory", &Directory::BYTECODE, arguments);
    macro_rules! part {
        ($contract:ident) => {
            let arguments = $contract::constructorCall { directory }.abi_encode();
            planner.create(stringify!($contract), &$contract::BYTECODE, arguments);
        };
    }
    part!(Vault);
    part!(Registry);
    part!(Channels);
    part!(Epochs);
    part!(Objections);
    part!(Audits);
    part!(Retrieval);
    if disputes.is_none() {
        let [operations_, attention_, sampling_] = planner.steps();
        let arguments = Adjudicator::constructorCall { operations_, attention_, sampling_ }.abi_encode();
        let adjudicator_ = planner.create("Adjudicator", &Adjudicator::BYTECODE, arguments);
        let arguments = Referee::constructorCall { adjudicator_ }.abi_encode();
        let referee_ = planner.create("Referee", &Referee::BYTECODE, arguments);
        let arguments = Disputes::constructorCall { directory, referee_ }.abi_encode();
        planner.create("Disputes", &Disputes::BYTECODE, arguments);
    }
    Plan { deployment: Deployment { directory, at }, creations: planner.creations }
}

/// Creates what is not there yet, in order. `done` hears of each contract, with the gas that it cost or none if it was there before. A
/// deployment that was interrupted goes on when this is called again with the same creations.
pub async fn make(
    sender: &Sender,
    creations: &[Creation],
    mut done: impl FnMut(&Creation, Option<u64>),
) -> Result<(), DeployError> {
    for creation in creations {
        let failed = |source: SendError| DeployError::Send { name: creation.name, source };
        let there = sender.client().has_code(creation.address).await;
        if there.map_err(|e: ClientError| failed(e.into()))? {
            done(creation, None);
            continue;
        }
        let next = sender.nonce().await.map_err(failed)?;
        if next != creation.nonce {
            let account = sender.account();
            let expected = creation.nonce;
            return Err(DeployError::Interrupted { name: creation.name, account, expected, next });
        }
        let mined = sender.create(creation.name, creation.code.clone()).await.map_err(failed)?;
        done(creation, Some(mined.gas));
    }
    Ok(())
}
