//! Transactions that a daemon may send again: what stands on the ledger already is no error.

use alloy_primitives::Address;
use alloy_sol_types::SolError;
use assay_ledger::client::ClientError;
use assay_ledger::contracts::{Audits, Epochs};
use assay_ledger::ledger::Ledger;
use assay_ledger::sender::{Mined, SendError, Sender};

/// A stable code for a transaction that failed.
pub(crate) fn send_code(error: &SendError) -> &'static str {
    match error {
        SendError::NoGas { .. } => "no_gas",
        SendError::Waiting { .. } | SendError::TooManyWaiting => "transaction_waiting",
        SendError::Client(_) => "ledger_unread",
        _ => "transaction_failed",
    }
}

/// Whether something was done now: a refusal that says that it stands is no error.
pub(crate) fn once<E: SolError>(sent: Result<Mined, SendError>) -> Result<bool, SendError> {
    match sent {
        Ok(_) => Ok(true),
        Err(SendError::Reverted { reason, .. }) if reason.is::<E>() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Likewise with two refusals that say so.
pub(crate) fn once2<E: SolError, F: SolError>(sent: Result<(), SendError>) -> Result<bool, SendError> {
    match sent {
        Ok(()) => Ok(true),
        Err(SendError::Reverted { reason, .. }) if reason.is::<E>() || reason.is::<F>() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Ends an epoch's posting. Says whether that was done now.
pub(crate) async fn close(ledger: &Ledger, sender: &Sender, epoch: u64) -> Result<bool, SendError> {
    let call = Epochs::closeCall { epoch };
    let sent = sender.send(&format!("close epoch {epoch}"), ledger.parts().at.epochs, &call).await;
    once2::<Epochs::BeaconPending, Epochs::BeaconAlreadyFixed>(sent.map(drop))
}

/// Fixes an epoch's beacon, or names another block if the chain has forgotten the one that was named. Says whether it is fixed now.
pub(crate) async fn fix_beacon(ledger: &Ledger, sender: &Sender, epoch: u64) -> Result<bool, SendError> {
    match ledger.fix_beacon(sender, epoch).await {
        Ok(_) => Ok(true),
        Err(SendError::Reverted { reason, .. }) if reason.is::<Epochs::BeaconAlreadyFixed>() => Ok(false),
        Err(SendError::Reverted { reason, .. }) if reason.is::<Epochs::WrongHeader>() => {
            close(ledger, sender, epoch).await.map(|_| false)
        }
        Err(e) => Err(e),
    }
}

/// Whose seat was drawn for each member of a panel, as the contract says.
pub(crate) async fn auditors_of(
    ledger: &Ledger,
    provider: Address,
    epoch: u64,
    panel: u8,
) -> Result<Vec<Address>, ClientError> {
    let mut auditors = Vec::with_capacity(panel.into());
    for member in 0..panel {
        let call = Audits::auditorOfCall { provider, epoch, member: alloy_primitives::U256::from(member) };
        auditors.push(ledger.client().read(ledger.parts().at.audits, &call).await?);
    }
    Ok(auditors)
}
