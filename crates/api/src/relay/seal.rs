//! Sealing: only the provider reads an order, and only who sent it reads the answer.
//!
//! A sender and a provider share an *exchange*: HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, export-only) to the key of the provider's offer. Each order
//! has random bytes of its own, and its keys are exported from the exchange together with them: one for the order, one for its answer together with 32 random
//! bytes of the provider, one by which the answer is stopped. An order that somebody sends twice is answered under two keys, never twice under one. An
//! exchange costs both sides multiplications on a curve, an order only hashes, so a sender uses one for a while, and a provider remembers it.
//!
//! The answer is a stream of frames. Frames are numbered, so that none can be left out, repeated or moved; the end is a frame too, so that an answer cannot be
//! cut short unseen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use assay_core::id::{NodeAddress, SealingKey};
use chacha20poly1305::aead::{Aead as _, Generate as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};

type Kem = hpke::kem::X25519HkdfSha256;
type Kdf = hpke::kdf::HkdfSha256;
type Aead = hpke::aead::ExportOnlyAead;

/// Bytes of the encapsulated key in front of a sealed order.
const ENCAPSULATED_BYTES: usize = 32;
/// Random bytes of an order, after the encapsulated key; and of an answer, in front of it.
pub(super) const SALT_BYTES: usize = 32;
/// By which who ordered an answer asks for its end.
pub(super) const STOP_BYTES: usize = 32;
/// How long a sender uses an exchange.
const EXCHANGE: Duration = Duration::from_secs(60);
/// Exchanges that a provider remembers; then it forgets them all, which costs each of their senders' next orders a multiplication.
const REMEMBERED_MAX: usize = 1024;

/// What keys are exported for.
const ORDER: &[u8] = b"assay/order-key/2";
const ANSWER: &[u8] = b"assay/order-answer/2";
const STOP: &[u8] = b"assay/order-stop/2";

/// Bytes that are not sealed to this key, or were altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not sealed to this key, or were altered on the way")]
pub(crate) struct SealError;

/// Random bytes that make keys of an exchange an order's.
type Salt = [u8; SALT_BYTES];
type SenderContext = hpke::aead::AeadCtxS<Aead, Kdf, Kem>;
type ReaderContext = hpke::aead::AeadCtxR<Aead, Kdf, Kem>;

/// A sender's side of an exchange.
pub(crate) struct Exchange {
    encapsulated: [u8; ENCAPSULATED_BYTES],
    context: SenderContext,
}

/// A sender's exchanges that are under way, one with each provider.
#[derive(Default)]
pub(super) struct Exchanges(Mutex<HashMap<(NodeAddress, SealingKey), Timed>>);

/// An exchange, and until when it is used.
type Timed = (Instant, Arc<Exchange>);

/// A provider's key pair for orders. It lives as long as the process: what was sealed to it cannot be read any more afterwards.
pub(crate) struct Unsealer {
    secret: <Kem as hpke::Kem>::PrivateKey,
    public: SealingKey,
    info: Vec<u8>,
    remembered: Mutex<HashMap<[u8; ENCAPSULATED_BYTES], Arc<ReaderContext>>>,
}

/// One direction of an answer's stream.
pub(super) struct Frames {
    cipher: ChaCha20Poly1305,
    next: u64,
}

/// What an order's sender keeps to read the answer.
pub(crate) struct Sent {
    exchange: Arc<Exchange>,
    salt: Salt,
}

/// What an order's reader keeps to write the answer.
pub(crate) struct Read {
    context: Arc<ReaderContext>,
    salt: Salt,
}

fn info(provider: NodeAddress) -> Vec<u8> {
    [b"assay/order/2".as_slice(), provider.as_bytes()].concat()
}

/// Bytes that were never used before.
pub(super) fn salt() -> Salt {
    Key::generate().into()
}

/// 32 bytes of an exchange, for a purpose and an order, and what else they are of.
fn exported(
    export: impl FnOnce(&[u8], &mut [u8]) -> Result<(), hpke::HpkeError>,
    purpose: &[&[u8]],
) -> [u8; 32] {
    let mut key = [0; 32];
    export(&purpose.concat(), &mut key).expect("HKDF gives 32 bytes");
    key
}

/// The cipher of one order, whose key seals nothing else.
fn once(key: [u8; 32]) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(&key.into())
}

impl Exchange {
    /// A new one with whoever has the key, by this name.
    pub(crate) fn begin(provider: NodeAddress, key: SealingKey) -> Result<Arc<Exchange>, SealError> {
        let key = <Kem as hpke::Kem>::PublicKey::from_bytes(key.as_bytes()).map_err(|_| SealError)?;
        let (encapsulated, context) =
            hpke::setup_sender::<Aead, Kdf, Kem>(&OpModeS::Base, &key, &info(provider))
                .map_err(|_| SealError)?;
        Ok(Arc::new(Exchange { encapsulated: encapsulated.to_bytes().into(), context }))
    }

    /// Seals an order.
    pub(crate) fn seal(self: Arc<Exchange>, order: &[u8]) -> (Vec<u8>, Sent) {
        let salt = salt();
        let cipher = once(exported(|purpose, key| self.context.export(purpose, key), &[ORDER, &salt]));
        let text =
            cipher.encrypt(&Nonce::default(), order).expect("an order is far below the cipher's limit");
        ([&self.encapsulated, &salt, text.as_slice()].concat(), Sent { exchange: self, salt })
    }
}

impl Exchanges {
    /// The one that is under way with a provider, or a new one.
    pub(super) fn with(&self, provider: NodeAddress, key: SealingKey) -> Result<Arc<Exchange>, SealError> {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lasts = |(until, _): &Timed| now < *until;
        if let Some((_, exchange)) = all.get(&(provider, key)).filter(|found| lasts(found)) {
            return Ok(Arc::clone(exchange));
        }
        all.retain(|_, found| lasts(found));
        let exchange = Exchange::begin(provider, key)?;
        all.insert((provider, key), (now + EXCHANGE, Arc::clone(&exchange)));
        Ok(exchange)
    }
}

impl std::fmt::Debug for Exchanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchanges").finish_non_exhaustive()
    }
}

impl Unsealer {
    /// A new key pair of a provider.
    pub(crate) fn draw(provider: NodeAddress) -> Unsealer {
        let (secret, public) = Kem::gen_keypair();
        let public = SealingKey::from_bytes(public.to_bytes().into());
        Unsealer { secret, public, info: info(provider), remembered: Mutex::default() }
    }

    /// The public key, for the offer.
    pub(crate) fn public(&self) -> SealingKey {
        self.public
    }

    /// Opens an order.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<(Vec<u8>, Read), SealError> {
        let (encapsulated, rest) = sealed.split_first_chunk::<ENCAPSULATED_BYTES>().ok_or(SealError)?;
        let (salt, text) = rest.split_first_chunk::<SALT_BYTES>().ok_or(SealError)?;
        let known = self.remembered().get(encapsulated).cloned();
        let context = match &known {
            Some(context) => Arc::clone(context),
            None => Arc::new(self.context(encapsulated)?),
        };
        let cipher = once(exported(|purpose, key| context.export(purpose, key), &[ORDER, salt]));
        let order = cipher.decrypt(&Nonce::default(), text).map_err(|_| SealError)?;
        if known.is_none() {
            let mut remembered = self.remembered();
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
            remembered.insert(*encapsulated, Arc::clone(&context));
        }
        Ok((order, Read { context, salt: *salt }))
    }

    fn context(&self, encapsulated: &[u8; ENCAPSULATED_BYTES]) -> Result<ReaderContext, SealError> {
        let encapsulated =
            <Kem as hpke::Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_| SealError)?;
        hpke::setup_receiver::<Aead, Kdf, Kem>(&OpModeR::Base, &self.secret, &encapsulated, &self.info)
            .map_err(|_| SealError)
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<[u8; ENCAPSULATED_BYTES], Arc<ReaderContext>>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sent {
    /// Names the order to its provider, and to nobody else.
    pub(super) fn stop(&self) -> [u8; STOP_BYTES] {
        self.key(&[STOP, &self.salt])
    }

    /// Reads the answer that began with `salt`.
    pub(super) fn frames(&self, salt: &Salt) -> Frames {
        Frames::under(self.key(&[ANSWER, &self.salt, salt]))
    }

    fn key(&self, purpose: &[&[u8]]) -> [u8; 32] {
        exported(|purpose, key| self.exchange.context.export(purpose, key), purpose)
    }
}

impl Read {
    /// As who sent it names the order.
    pub(super) fn stop(&self) -> [u8; STOP_BYTES] {
        self.key(&[STOP, &self.salt])
    }

    /// Writes the answer that begins with `salt`, which must never have been used.
    pub(super) fn frames(&self, salt: &Salt) -> Frames {
        Frames::under(self.key(&[ANSWER, &self.salt, salt]))
    }

    fn key(&self, purpose: &[&[u8]]) -> [u8; 32] {
        exported(|purpose, key| self.context.export(purpose, key), purpose)
    }
}

impl Frames {
    fn under(key: [u8; 32]) -> Frames {
        Frames { cipher: ChaCha20Poly1305::new(&key.into()), next: 0 }
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

    fn seal(unsealer: &Unsealer, order: &[u8]) -> (Vec<u8>, Sent) {
        Exchange::begin(PROVIDER, unsealer.public()).unwrap().seal(order)
    }

    #[test]
    fn orders_are_read_by_their_provider_alone() {
        let unsealer = Unsealer::draw(PROVIDER);
        let (sealed, _) = seal(&unsealer, b"hello");
        assert_eq!(unsealer.open(&sealed).unwrap().0, b"hello");
        assert!(Unsealer::draw(PROVIDER).open(&sealed).is_err());
        // The same key under another provider's name.
        let other = Unsealer { info: info(NodeAddress::ZERO), remembered: Mutex::default(), ..unsealer };
        assert!(other.open(&sealed).is_err());
        let unsealer = Unsealer::draw(PROVIDER);
        let (sealed, _) = seal(&unsealer, b"hello");
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
        let (sealed, sent) = seal(&unsealer, b"hello");
        let (_, other) = seal(&unsealer, b"hello");
        let (_, read) = unsealer.open(&sealed).unwrap();
        assert_eq!(sent.stop(), read.stop());
        assert_ne!(sent.stop(), other.stop());
    }

    #[test]
    fn frames_come_in_their_order_and_under_a_key_of_their_own() {
        let unsealer = Unsealer::draw(PROVIDER);
        let (sealed, sent) = seal(&unsealer, b"hello");
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

    #[test]
    fn orders_of_one_exchange_have_keys_of_their_own() {
        let unsealer = Unsealer::draw(PROVIDER);
        let exchange = Exchange::begin(PROVIDER, unsealer.public()).unwrap();
        let (one, first) = Arc::clone(&exchange).seal(b"hello");
        let (two, second) = exchange.seal(b"hello");
        assert_eq!(one[..ENCAPSULATED_BYTES], two[..ENCAPSULATED_BYTES]);
        assert_ne!(one[ENCAPSULATED_BYTES + SALT_BYTES..], two[ENCAPSULATED_BYTES + SALT_BYTES..]);
        assert_ne!(first.stop(), second.stop());
        let (order, read) = unsealer.open(&one).unwrap();
        assert_eq!(order, b"hello");
        let salt = [1; SALT_BYTES];
        let sealed = read.frames(&salt).seal(b"frame");
        assert_eq!(first.frames(&salt).open(&sealed).unwrap(), b"frame");
        assert!(second.frames(&salt).open(&sealed).is_err());
        // One order's text under the other's salt.
        let mixed =
            [&two[..ENCAPSULATED_BYTES + SALT_BYTES], &one[ENCAPSULATED_BYTES + SALT_BYTES..]].concat();
        assert!(unsealer.open(&mixed).is_err());
        assert_eq!(unsealer.open(&two).unwrap().0, b"hello");
    }

    #[test]
    fn a_provider_remembers_so_many_exchanges_and_only_those_of_orders() {
        let unsealer = Unsealer::draw(PROVIDER);
        let count = || unsealer.remembered().len();
        let (mut altered, _) = seal(&unsealer, b"hello");
        *altered.last_mut().unwrap() ^= 1;
        assert!(unsealer.open(&altered).is_err());
        assert_eq!(count(), 0);
        for _ in 0..=REMEMBERED_MAX {
            assert!(unsealer.open(&seal(&unsealer, b"hello").0).is_ok());
            assert!((1..=REMEMBERED_MAX).contains(&count()));
        }
        assert_eq!(count(), 1);
    }

    #[test]
    fn a_sender_has_one_exchange_with_a_key_at_a_time() {
        let unsealer = Unsealer::draw(PROVIDER);
        let exchanges = Exchanges::default();
        let one = exchanges.with(PROVIDER, unsealer.public()).unwrap();
        assert!(Arc::ptr_eq(&one, &exchanges.with(PROVIDER, unsealer.public()).unwrap()));
        let other = exchanges.with(PROVIDER, Unsealer::draw(PROVIDER).public()).unwrap();
        assert!(!Arc::ptr_eq(&one, &other));
        // Its time is over.
        exchanges.0.lock().unwrap().values_mut().for_each(|(until, _)| *until = Instant::now());
        assert!(!Arc::ptr_eq(&one, &exchanges.with(PROVIDER, unsealer.public()).unwrap()));
        assert_eq!(exchanges.0.lock().unwrap().len(), 1);
    }
}
