//! Why a contract refused, in words.

use alloy_primitives::Bytes;
use alloy_sol_types::{Panic, Revert as Error, SolError, SolInterface};

use crate::contracts::{
    Audits, Channels, Directory, Disputes, Epochs, Objections, Registry, Retrieval, TestToken, Vault,
};

/// What a contract reverted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revert(pub Bytes);

impl Revert {
    /// Whether the contract refused with this error.
    pub fn is<E: SolError>(&self) -> bool {
        self.0.get(..4) == Some(E::SELECTOR.as_slice())
    }

    /// The error with its arguments, if it is one of the contracts' or the compiler's.
    pub fn name(&self) -> Option<String> {
        macro_rules! decoded {
            ($($errors:ty),*) => {
                None$(.or_else(|| <$errors>::abi_decode(&self.0).ok().map(|e| inner(&format!("{e:?}")))))*
            };
        }
        decoded!(
            Vault::VaultErrors,
            Registry::RegistryErrors,
            Channels::ChannelsErrors,
            Epochs::EpochsErrors,
            Objections::ObjectionsErrors,
            Audits::AuditsErrors,
            Retrieval::RetrievalErrors,
            Disputes::DisputesErrors,
            Directory::DirectoryErrors,
            TestToken::TestTokenErrors
        )
        .or_else(|| Error::abi_decode(&self.0).ok().map(|e| e.reason.escape_debug().to_string()))
        .or_else(|| Panic::abi_decode(&self.0).ok().map(|e| e.to_string()))
    }
}

/// `NotOwner { .. }` of `NotOwner(NotOwner { .. })`.
fn inner(debug: &str) -> String {
    match debug.split_once('(') {
        Some((_, rest)) => rest.strip_suffix(')').unwrap_or(rest).to_owned(),
        None => debug.to_owned(),
    }
}

impl std::fmt::Display for Revert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(&name),
            None if self.0.is_empty() => f.write_str("no reason given"),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{Address, U256};

    use super::*;

    #[test]
    fn errors_of_every_contract_have_names() {
        let account = Address::repeat_byte(1);
        let refused = Vault::InsufficientBalance { account, balance: U256::from(5), amount: U256::from(7) }
            .abi_encode();
        let revert = Revert(refused.into());
        assert!(revert.is::<Vault::InsufficientBalance>());
        let said = revert.to_string();
        assert!(said.starts_with("InsufficientBalance {") && said.contains("amount: 7"), "{said}");
        let panic = Panic { code: U256::from(0x11) }.abi_encode();
        assert!(Revert(panic.into()).to_string().contains("overflow"));
        let text = Error { reason: "no".into() }.abi_encode();
        assert!(Revert(text.into()).to_string().contains("no"));
        assert_eq!(Revert(Bytes::from_static(&[1, 2])).to_string(), "0x0102");
        assert_eq!(Revert(Bytes::new()).to_string(), "no reason given");
    }
}
