//! Contracts on a state to try them on.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use alloy_primitives::Address;
use assay_chain::scratch::{Failure, Scratch};
use assay_ledger::contracts::Directory;
use assay_ledger::deployment::{Creation, Deployment, plan, steps, test_token};

fn create(chain: &mut Scratch, deployer: Address, creation: &Creation) -> Result<Address, Failure> {
    let address = chain.create(deployer, creation.code.clone())?;
    assert_eq!(address, creation.address, "{}", creation.name);
    Ok(address)
}

/// Deploys a token for development.
pub fn deploy_test_token(chain: &mut Scratch, deployer: Address, fee_ppm: u32) -> Result<Address, Failure> {
    let creation = test_token(deployer, chain.nonce(deployer), fee_ppm);
    create(chain, deployer, &creation)
}

/// Deploys the contracts that execute micro-steps.
pub fn deploy_steps(chain: &mut Scratch, deployer: Address) -> Result<[Address; 3], Failure> {
    let [a, b, c] = steps(deployer, chain.nonce(deployer));
    Ok([create(chain, deployer, &a)?, create(chain, deployer, &b)?, create(chain, deployer, &c)?])
}

/// Deploys everything.
pub fn deploy(
    chain: &mut Scratch,
    deployer: Address,
    token: Address,
    treasury: Address,
    disputes: Option<Address>,
    parameters: Directory::Parameters,
) -> Result<Deployment, Failure> {
    let planned = plan(deployer, chain.nonce(deployer), token, treasury, disputes, parameters);
    for creation in &planned.creations {
        create(chain, deployer, creation)?;
    }
    Ok(planned.deployment)
}
