//! `assay ledger`: where the money is kept, by which numbers, and how a new one is deployed.

pub mod connection;
mod deploy;
pub mod nodes;
mod show;
mod standing;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::home::Home;

/// Look at the ledger that pays for answers, or deploy one.
///
/// The ledger is a set of contracts on an EVM chain: deposits and vouchers, receipts by epochs, audits, disputes, stakes. Every command
/// that needs it asks the node at --rpc, or the one that `assay ledger use` or `deploy` named last.
#[derive(Args)]
pub struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Deploy the contracts. An interrupted deployment goes on where it was.
    Deploy(deploy::Deploy),
    /// Use a ledger that is deployed already.
    Use(deploy::Use),
    /// Give an account coins and test tokens, on a development chain.
    Faucet(deploy::Faucet),
    /// Show the chain, the contracts, and where the epochs stand.
    Status(show::Status),
    /// Show the numbers by which a ledger runs.
    Params(show::Params),
    /// Show what is publicly known of each provider: answers, audits, and whether it was proved to lie.
    Standing(standing::Standing),
}

impl Command {
    pub fn run(self, home: &Home) -> Result<()> {
        match self.what {
            What::Deploy(c) => c.run(home),
            What::Use(c) => c.run(home),
            What::Faucet(c) => c.run(home),
            What::Status(c) => c.run(home),
            What::Params(c) => c.run(home),
            What::Standing(c) => c.run(home),
        }
    }
}
