//! Who signed a hash: secp256k1, in the one form that contracts take.

use alloy_primitives::Signature;

use crate::id::{Hash, NodeAddress, SignatureBytes};

/// The address whose key signed `hash`, or `None` where no key did in the accepted form: r, s in the lower half of the order, and 27
/// or 28.
pub fn signer(hash: &Hash, signature: &SignatureBytes) -> Option<NodeAddress> {
    let bytes = signature.as_bytes();
    if !matches!(bytes.last(), Some(27 | 28)) {
        return None;
    }
    let signature = Signature::from_raw(bytes).ok()?;
    if signature.normalize_s().is_some() {
        return None;
    }
    let address = signature.recover_address_from_prehash(&hash.as_bytes().into()).ok()?;
    Some(NodeAddress::from_bytes(address.into_array()))
}
