//! What a provider offers: models, prices, and the key that orders are sealed to.
//!
//! Invariant: an offer that was verified is its provider's own word, and was valid at the time that was given. It says nothing of whether
//! the provider can do what it offers: that is what receipts and audits are for.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use crate::consent::Consent;
use crate::id::{Hash, ModelRoot, NodeAddress, SealingKey, SignatureBytes};
use crate::price::{Price, asked};
use crate::receipt::Domain;
use crate::signature::signer;

/// Most models of an offer.
pub const MODELS_MAX: usize = 1024;
/// Most bytes of a model's or a profile's name.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest time that an offer may be for, in seconds: keys that orders are sealed to should not live long.
pub const OFFER_S_MAX: u64 = 7 * 24 * 3600;

/// What a provider offers.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Who offers.
    pub provider: NodeAddress,
    /// From when on, in seconds since 1970. Of two offers that are valid the later one holds.
    pub issued_s: u64,
    /// Until when.
    pub until_s: u64,
    /// What orders are sealed to.
    pub sealing_key: SealingKey,
    /// The ledger by which it wants to be paid, as its receipts name it; nothing if it answers without payment.
    pub settles: Option<Domain>,
    /// What can be asked for.
    pub models: Vec<OfferedModel>,
}

/// A model of an offer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedModel {
    /// What it is, exactly.
    pub root: ModelRoot,
    /// What the provider calls it. Others may call another model so.
    pub name: String,
    /// Name of the arithmetic.
    pub profile: String,
    /// Positions of the window.
    pub context_length: u32,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the artifact.
    pub bytes: u64,
    /// Whether it came with a chat template.
    pub has_chat_template: bool,
    /// Numbers of a vector, if it embeds texts instead of continuing them.
    pub dimensions: Option<u32>,
    /// What it costs; nothing if it is free.
    pub price: Option<Price>,
    /// What it costs where the client withholds its consent to audits.
    pub price_private: Option<Price>,
}

impl OfferedModel {
    /// What a request with this consent costs, which may be nothing; none if it is not taken.
    pub fn price_for(&self, consent: Consent) -> Option<Option<Price>> {
        asked(self.price, self.price_private, consent)
    }
}

impl Canonical for Offer {
    const TAG: &'static str = "assay/offer/2";
    const BYTES_MAX: usize = 1 << 20;
}

/// An offer with a signature, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedOffer {
    /// What was signed.
    pub offer: Offer,
    /// The signature over [`Offer::signing_hash`].
    pub signature: SignatureBytes,
}

/// Why an offer is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// No key signed it in the accepted form.
    #[error("the offer's signature is malformed")]
    Malformed,
    /// Another key signed it.
    #[error("the offer is {provider}'s, but {signer} signed it")]
    Signer {
        /// Whose it should be.
        provider: NodeAddress,
        /// Who signed.
        signer: NodeAddress,
    },
    /// It is not valid now.
    #[error("the offer is for the time from {issued_s} to {until_s}, and it is {now_s}")]
    Time {
        /// From when on.
        issued_s: u64,
        /// Until when.
        until_s: u64,
        /// When it was checked.
        now_s: u64,
    },
    /// A part of it is beyond a limit.
    #[error("the offer's {what} is {got}; at most {max} is allowed")]
    Limit {
        /// Which.
        what: &'static str,
        /// What it has.
        got: u64,
        /// What it may have.
        max: u64,
    },
}

impl OfferError {
    /// A name that stays.
    pub fn code(&self) -> &'static str {
        match self {
            OfferError::Malformed => "offer_malformed",
            OfferError::Signer { .. } => "offer_signer",
            OfferError::Time { .. } => "offer_time",
            OfferError::Limit { .. } => "offer_limit",
        }
    }
}

impl Offer {
    /// What the provider signs.
    pub fn signing_hash(&self) -> Hash {
        self.canonical_hash()
    }

    fn limited(&self) -> Result<(), OfferError> {
        let length = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let longest = self.models.iter().map(|m| m.name.len().max(m.profile.len())).max().unwrap_or(0);
        let limits = [
            ("number of models", length(self.models.len()), length(MODELS_MAX)),
            ("longest name", length(longest), length(NAME_BYTES_MAX)),
            ("time in seconds", self.until_s.saturating_sub(self.issued_s), OFFER_S_MAX),
        ];
        match limits.into_iter().find(|(_, got, max)| got > max) {
            Some((what, got, max)) => Err(OfferError::Limit { what, got, max }),
            None => Ok(()),
        }
    }
}

impl SignedOffer {
    /// The offer, if its provider signed it and it is valid at `now_s`. Clocks may differ by `skew_s`.
    pub fn verified(self, now_s: u64, skew_s: u64) -> Result<Offer, OfferError> {
        let offer = self.offer;
        offer.limited()?;
        let signed = signer(&offer.signing_hash(), &self.signature).ok_or(OfferError::Malformed)?;
        if signed != offer.provider {
            return Err(OfferError::Signer { provider: offer.provider, signer: signed });
        }
        if now_s.saturating_add(skew_s) < offer.issued_s || now_s > offer.until_s.saturating_add(skew_s) {
            let (issued_s, until_s) = (offer.issued_s, offer.until_s);
            return Err(OfferError::Time { issued_s, until_s, now_s });
        }
        Ok(offer)
    }
}
