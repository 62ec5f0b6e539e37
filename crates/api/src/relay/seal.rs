//! Sealing: only the provider reads an order, and only who sent it reads the answer.
//!
//! An order is sealed by HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, ChaCha20Poly1305) to the key of the provider's offer. The answer is
//! a stream of frames under a key that both export from the same exchange together with 32 random bytes of the provider: an order that
//! somebody sends twice is answered under two keys, never twice under one. Frames are numbered, so that none can be left out, repeated or moved; the end is a
//! frame too, so that an answer cannot be cut short unseen.

use assay_core::id::{NodeAddress, SealingKey};
use chacha20poly1305::aead::{Aead as _, Generate as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};

type Kem = hpke::kem::X25519HkdfSha256;
type Kdf = hpke::kdf::HkdfSha256;
type Aead = hpke::aead::ChaCha20Poly1305;

/// Bytes of the encapsulated key in front of a sealed order.
pub(super) const ENCAPSULATED_BYTES: usize = 32;
/// Random bytes in front of an answer.
pub(super) const SALT_BYTES: usize = 32;

/// Bytes that are not sealed to this key, or were altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not sealed to this key, or were altered on the way")]
pub(crate) struct SealError;

/// A provider's key pair for orders. It lives as long as the process: what was sealed to it cannot be read any more afterwards.
pub(crate) struct Unsealer {
    secret: <Kem as hpke::Kem>::PrivateKey,
    public: SealingKey,
    info: Vec<u8>,
}

/// One direction of an answer's stream.
pub(super) struct Frames {
    cipher: ChaCha20Poly1305,
    next: u64,
}

/// What an order's sender keeps to read the answer.
pub(crate) struct Sent(hpke::aead::AeadCtxS<Aead, Kdf, Kem>);

/// What an order's reader keeps to write the answer.
pub(crate) struct Read(hpke::aead::AeadCtxR<Aead, Kdf, Kem>);

fn info(provider: NodeAddress) -> Vec<u8> {
    [b"assay/order/1".as_slice(), provider.as_bytes()].concat()
}

fn exporter(salt: &[u8; SALT_BYTES]) -> Vec<u8> {
    [b"assay/order-answer/1".as_slice(), salt].concat()
}

/// By which who ordered an answer asks for its end.
const STOP: &[u8] = b"assay/order-stop/1";
/// Bytes of what names an order to be stopped.
pub(super) const STOP_BYTES: usize = 32;

/// Bytes that were never used before.
pub(super) fn salt() -> [u8; SALT_BYTES] {
    Key::generate().into()
}

/// Seals an order to a provider.
pub(crate) fn seal(
    provider: NodeAddress,
    key: SealingKey,
    order: &[u8],
) -> Result<(Vec<u8>, Sent), SealError> {
    let key = <Kem as hpke::Kem>::PublicKey::from_bytes(key.as_bytes()).map_err(|_| SealError)?;
    let (encapsulated, mut context) =
        hpke::setup_sender::<Aead, Kdf, Kem>(&OpModeS::Base, &key, &info(provider)).map_err(|_| SealError)?;
    let text = context.seal(order, b"").map_err(|_| SealError)?;
    Ok(([encapsulated.to_bytes().as_slice(), &text].concat(), Sent(context)))
}

impl Unsealer {
    /// A new key pair of a provider.
    pub(crate) fn draw(provider: NodeAddress) -> Unsealer {
        let (secret, public) = Kem::gen_keypair();
        let public = SealingKey::from_bytes(public.to_bytes().into());
        Unsealer { secret, public, info: info(provider) }
    }

    /// The public key, for the offer.
    pub(crate) fn public(&self) -> SealingKey {
        self.public
    }

    /// Opens an order.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<(Vec<u8>, Read), SealError> {
        let (encapsulated, text) = sealed.split_at_checked(ENCAPSULATED_BYTES).ok_or(SealError)?;
        let encapsulated =
            <Kem as hpke::Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_| SealError)?;
        let mut context =
            hpke::setup_receiver::<Aead, Kdf, Kem>(&OpModeR::Base, &self.secret, &encapsulated, &self.info)
                .map_err(|_| SealError)?;
        let order = context.open(text, b"").map_err(|_| SealError)?;
        Ok((order, Read(context)))
    }
}

impl Sent {
    /// Names the order to its provider, and to nobody else.
    pub(super) fn stop(&self) -> [u8; STOP_BYTES] {
        exported(|name| self.0.export(STOP, name))
    }

    /// Reads the answer that began with `salt`.
    pub(super) fn frames(&self, salt: &[u8; SALT_BYTES]) -> Frames {
        Frames::under(|key| self.0.export(&exporter(salt), key))
    }
}

impl Read {
    /// As who sent it names the order.
    pub(super) fn stop(&self) -> [u8; STOP_BYTES] {
        exported(|name| self.0.export(STOP, name))
    }

    /// Writes the answer that begins with `salt`, which must never have been used.
    pub(super) fn frames(&self, salt: &[u8; SALT_BYTES]) -> Frames {
        Frames::under(|key| self.0.export(&exporter(salt), key))
    }
}

fn exported(export: impl FnOnce(&mut [u8]) -> Result<(), hpke::HpkeError>) -> [u8; STOP_BYTES] {
    let mut name = [0; STOP_BYTES];
    export(&mut name).expect("HKDF gives 32 bytes");
    name
}

impl Frames {
    fn under(export: impl FnOnce(&mut [u8]) -> Result<(), hpke::HpkeError>) -> Frames {
        let mut key = Key::default();
        export(&mut key).expect("HKDF gives 32 bytes");
        Frames { cipher: ChaCha20Poly1305::new(&key), next: 0 }
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = Nonce::default();
        nonce[4..].copy_from_slice(&self.next.to_be_bytes());
        // A stream ends long before 2^64 frames.
        self.next += 1;
        nonce
    }

    /// Seals the next frame.
    pub(super) fn seal(&mut self, frame: &[u8]) -> Vec<u8> {
        let nonce = self.nonce();
        self.cipher.encrypt(&nonce, frame).expect("a frame is far below the cipher's limit")
    }

    /// Opens the next frame.
    pub(super) fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = self.nonce();
        self.cipher.decrypt(&nonce, sealed).map_err(|_| SealError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVIDER: NodeAddress = NodeAddress::from_bytes([7; 20]);

    #[test]
    fn orders_are_read_by_their_provider_alone() {
        let unsealer = Unsealer::draw(PROVIDER);
        let (sealed, _) = seal(PROVIDER, unsealer.public(), b"hello").unwrap();
        assert_eq!(unsealer.open(&sealed).unwrap().0, b"hello");
        assert!(Unsealer::draw(PROVIDER).open(&sealed).is_err());
        // The same key under another provider's name.
        let other = Unsealer { info: info(NodeAddress::ZERO), ..unsealer };
        assert!(other.open(&sealed).is_err());
        let unsealer = Unsealer::draw(PROVIDER);
        let (sealed, _) = seal(PROVIDER, unsealer.public(), b"hello").unwrap();
        for i in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[i] ^= 1;
            assert!(unsealer.open(&altered).is_err(), "byte {i}");
            assert!(unsealer.open(&sealed[..i]).is_err());
        }
    }

    #[test]
    fn an_order_is_stopped_by_who_sent_it() {
        let unsealer = Unsealer::draw(PROVIDER);
        let (sealed, sent) = seal(PROVIDER, unsealer.public(), b"hello").unwrap();
        let (_, other) = seal(PROVIDER, unsealer.public(), b"hello").unwrap();
        let (_, read) = unsealer.open(&sealed).unwrap();
        assert_eq!(sent.stop(), read.stop());
        assert_ne!(sent.stop(), other.stop());
    }

    #[test]
    fn frames_come_in_their_order_and_under_a_key_of_their_own() {
        let unsealer = Unsealer::draw(PROVIDER);
        let (sealed, sent) = seal(PROVIDER, unsealer.public(), b"hello").unwrap();
        let (_, read) = unsealer.open(&sealed).unwrap();
        let (salt, other) = ([1; SALT_BYTES], [2; SALT_BYTES]);
        let mut write = read.frames(&salt);
        let frames = [write.seal(b"one"), write.seal(b"two")];
        let mut reader = sent.frames(&salt);
        assert_eq!(reader.open(&frames[0]).unwrap(), b"one");
        assert_eq!(reader.open(&frames[1]).unwrap(), b"two");
        assert!(sent.frames(&salt).open(&frames[1]).is_err());
        assert!(sent.frames(&other).open(&frames[0]).is_err());
        // The same order again has another key.
        let (_, again) = unsealer.open(&sealed).unwrap();
        assert_ne!(again.frames(&other).seal(b"one"), frames[0]);
    }
}
