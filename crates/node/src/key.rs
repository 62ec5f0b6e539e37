//! The node's secp256k1 key: one file, readable by its owner alone, never printed.

use std::path::{Path, PathBuf};

use alloy_primitives::B256;
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use assay_core::id::{Hash, NodeAddress, SignatureBytes};
use assay_core::receipt::{Domain, Receipt, SignedReceipt};

use crate::secret;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "{path} does not hold a key (64 hex digits); restore it from a backup, or move it away to get a new identity"
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// The signer failed.
    #[error("signing failed: {0}")]
    Signing(String),
}

/// The key.
pub struct NodeKey(PrivateKeySigner);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({}, secret not shown)", self.address())
    }
}

impl NodeKey {
    /// Reads the key in `path`, or makes one there.
    pub fn load_or_create(path: &Path) -> Result<NodeKey, KeyError> {
        NodeKey::load(path)?.map_or_else(|| NodeKey::create(path), Ok)
    }

    /// Reads the key in `path`, if there is one.
    pub fn load(path: &Path) -> Result<Option<NodeKey>, KeyError> {
        match std::fs::read_to_string(path) {
            Ok(text) => NodeKey::parse(path, text.trim()).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeyError::Io { path: path.to_owned(), source }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<NodeKey, KeyError> {
        let malformed = || KeyError::Malformed { path: path.to_owned() };
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| malformed())?;
        PrivateKeySigner::from_bytes(&B256::from(bytes)).map(NodeKey).map_err(|_| malformed())
    }

    fn create(path: &Path) -> Result<NodeKey, KeyError> {
        let key = PrivateKeySigner::random();
        let hex = format!("{}\n", hex::encode(key.to_bytes()));
        match secret::write_new(path, hex.as_bytes()) {
            Ok(true) => Ok(NodeKey(key)),
            // Another process made one meanwhile: that is the key.
            Ok(false) => NodeKey::load_or_create(path),
            Err(source) => Err(KeyError::Io { path: path.to_owned(), source }),
        }
    }

    /// Who signs.
    pub fn address(&self) -> NodeAddress {
        NodeAddress::from_bytes(self.0.address().into_array())
    }

    /// The key itself, for transactions on the ledger.
    pub fn signer(&self) -> &PrivateKeySigner {
        &self.0
    }

    /// Signs a receipt for `domain`.
    pub fn sign(&self, receipt: Receipt, domain: Domain) -> Result<SignedReceipt, KeyError> {
        let signature = self.sign_hash(&receipt.signing_hash(&domain))?;
        Ok(SignedReceipt { receipt, domain, signature })
    }

    /// Signs a hash that says what it is of: a receipt's, an offer's.
    pub fn sign_hash(&self, hash: &Hash) -> Result<SignatureBytes, KeyError> {
        let signature = self.0.sign_hash_sync(&B256::from(*hash.as_bytes()));
        let signature = signature.map_err(|e| KeyError::Signing(e.to_string()))?;
        Ok(SignatureBytes::from_bytes(signature.as_bytes()))
    }
}

/// Reads the secret of a host's iroh endpoint in `path`, or makes one there. It is a secret of its own and not made of the node's key, so that
/// whoever gets hold of it can pose as the endpoint and not spend what the node earned.
pub fn endpoint_secret(path: &Path) -> Result<[u8; 32], KeyError> {
    let io = |source| KeyError::Io { path: path.to_owned(), source };
    if !path.exists() {
        // Another process may make one meanwhile: then that is the secret.
        secret::write_new(path, format!("{}\n", hex::encode(secret::draw())).as_bytes()).map_err(io)?;
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let mut bytes = [0; 32];
    let malformed = |_| KeyError::Malformed { path: path.to_owned() };
    hex::decode_to_slice(text.trim(), &mut bytes).map_err(malformed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node/key");
        let key = NodeKey::load_or_create(&path).unwrap();
        assert_eq!(NodeKey::load_or_create(&path).unwrap().address(), key.address());
        assert!(!format!("{key:?}").contains(std::fs::read_to_string(&path).unwrap().trim()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for bad in ["", "abc", &"0".repeat(64), &"g".repeat(64)] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(NodeKey::load_or_create(&path), Err(KeyError::Malformed { .. })));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
        }
    }

    #[test]
    fn an_endpoint_keeps_its_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node/iroh");
        let secret = endpoint_secret(&path).unwrap();
        assert_eq!(endpoint_secret(&path).unwrap(), secret);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::write(&path, "no secret").unwrap();
        assert!(matches!(endpoint_secret(&path), Err(KeyError::Malformed { .. })));
    }
}
