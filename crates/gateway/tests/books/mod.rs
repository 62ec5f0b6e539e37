//! Books of their own for a test: an account with money, and a key of it.

use assay_gateway::accounts::{Accounts, Limits, MicroUsd, Secret};

/// They last as long as their folder.
pub struct Books {
    pub folder: tempfile::TempDir,
    pub accounts: Accounts,
    pub secret: Secret,
}

impl Books {
    /// With so many millionths of a dollar.
    pub async fn with(balance: u64, limits: Limits) -> Books {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("books.sqlite").display());
        let accounts = Accounts::open(&url).await.unwrap();
        accounts.credit("a", MicroUsd(balance), "first", "", 0).await.unwrap();
        let (_, secret) = accounts.create_key("a", "k", limits, 0).await.unwrap();
        Books { folder, accounts, secret }
    }
}
