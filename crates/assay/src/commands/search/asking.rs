//! Asks hosts what they keep and providers what they offer: many at a time, none for long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::Address;
use assay_core::id::{Hash, ModelRoot};
use assay_core::price::Price;
use assay_hub::catalogue::Catalogue;
use assay_hub::discovery::{Gathered, Wanted, gather};
use assay_hub::exchange::{Admission, ExchangeError, Records};
use assay_hub::peer::{Dialer, EndpointError, PeerAddress, Relays};
use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;

use super::Offers;

/// Nodes that are asked at the same time.
const ASKED_AT_ONCE: usize = 32;
/// Most providers that are asked.
const PROVIDERS_MAX: usize = 1024;
/// Time that one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a host has for all it knows. What it told until then is remembered, and the next search goes on there.
const HOST_TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes of a provider's list of models.
const MODELS_BYTES_MAX: usize = 1 << 20;
/// Most models of a provider that are looked at.
const MODELS_MAX: usize = 1024;

/// A provider that offers a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub provider: Address,
    /// What it advertises; nothing if that cannot be read.
    pub price: Option<Price>,
    /// Likewise where the client withholds its consent to audits; nothing also if it does not take that.
    pub price_private: Option<Price>,
}

/// What was answered.
#[derive(Default)]
pub struct Asked {
    /// Which hosts say that they keep a release.
    pub keepers: BTreeMap<Hash, Vec<String>>,
    /// Who offers a model.
    pub offers: Offers,
    /// Who did not answer, and why.
    pub silent: Vec<(String, String)>,
}

/// A provider's `/v1/models`, as far as it matters here.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    root: Option<String>,
    pricing: Option<Pricing>,
    pricing_private: Option<Pricing>,
}

#[derive(Deserialize)]
struct Pricing {
    prompt: String,
    completion: String,
}

impl Pricing {
    fn price(&self) -> Option<Price> {
        Price::from_per_token(&self.prompt, &self.completion).ok()
    }
}

impl Model {
    fn price(&self) -> Option<Price> {
        self.pricing.as_ref().map_or_else(|| Price::new(0, 0).ok(), Pricing::price)
    }

    /// Who is free takes requests without consent, too.
    fn price_private(&self) -> Option<Price> {
        match (&self.pricing_private, &self.pricing) {
            (Some(private), _) => private.price(),
            (None, None) => self.price(),
            (None, Some(_)) => None,
        }
    }
}

/// Asks everyone; what hosts know is added to `heard`.
pub async fn ask(
    hosts: &[String],
    providers: &[(Address, String)],
    heard: &Arc<Catalogue>,
) -> Result<Asked, EndpointError> {
    let named: Vec<PeerAddress> = hosts.iter().filter_map(|host| host.parse().ok()).collect();
    let dialer = Dialer::reaching(&named, Relays::None).await?;
    let records = Records::over(dialer).within(ANSWER_TIMEOUT);
    let mut asked = Asked::default();
    let told = stream::iter(hosts).map(|host| tell(&records, host, heard)).buffered(ASKED_AT_ONCE);
    for (host, told) in hosts.iter().zip(told.collect::<Vec<_>>().await) {
        match told {
            Ok(gathered) => {
                for (id, keepers) in gathered.keepers {
                    asked.keepers.entry(id).or_default().extend(keepers);
                }
                let silent = gathered.silent.into_iter().map(|(host, e)| (host, e.to_string()));
                asked.silent.extend(silent);
            }
            Err(reason) => asked.silent.push((host.clone(), reason)),
        }
    }
    let providers = &providers[..providers.len().min(PROVIDERS_MAX)];
    let offered = stream::iter(providers).map(|(_, url)| models(&records, url)).buffered(ASKED_AT_ONCE);
    for ((provider, url), offered) in providers.iter().zip(offered.collect::<Vec<_>>().await) {
        match offered {
            Ok(offered) => {
                for (root, (price, price_private)) in offered {
                    let offer = Offer { provider: *provider, price, price_private };
                    asked.offers.entry(root).or_default().push(offer);
                }
            }
            Err(e) => asked.silent.push((url.clone(), e.to_string())),
        }
    }
    Ok(asked)
}

async fn tell(records: &Records, host: &String, heard: &Arc<Catalogue>) -> Result<Gathered, String> {
    let wanted = Wanted::Admitted(&Admission::Anyone);
    let telling = gather(records, std::slice::from_ref(host), wanted, heard);
    tokio::time::timeout(HOST_TIMEOUT, telling)
        .await
        .map_err(|_| format!("it has not told everything within {} seconds", HOST_TIMEOUT.as_secs()))
}

/// A price, and that without consent to audits.
type Prices = (Option<Price>, Option<Price>);

/// What a provider offers, each model once.
async fn models(records: &Records, url: &str) -> Result<BTreeMap<ModelRoot, Prices>, ExchangeError> {
    let models: Models = records.get(url, "/v1/models", MODELS_BYTES_MAX).await?;
    let offered = models.data.iter().take(MODELS_MAX).filter_map(|model| {
        let root = model.root.as_ref()?.parse().ok()?;
        Some((root, (model.price(), model.price_private())))
    });
    Ok(offered.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(json: &str) -> Option<Option<Price>> {
        serde_json::from_str::<Model>(json).ok().map(|model| model.price())
    }

    #[test]
    fn a_price_is_what_was_said_or_not_known() {
        let at = |input, output| Some(Some(Price::new(input, output).unwrap()));
        assert_eq!(price(r#"{"id": "x", "root": "0x1"}"#), at(0, 0), "without pricing it is free");
        let said = r#"{"pricing": {"prompt": "0.0000001", "completion": "0.0000004", "image": "0"}}"#;
        assert_eq!(price(said), at(100_000, 400_000));
        for unread in ["-1", "1e-7", "", "0.00000000000001", "2"] {
            let json = format!(r#"{{"pricing": {{"prompt": "{unread}", "completion": "0"}}}}"#);
            assert_eq!(price(&json), Some(None), "{unread}");
        }
        let private = |json: &str| serde_json::from_str::<Model>(json).unwrap().price_private();
        assert_eq!(private(r#"{"id": "x"}"#), Price::new(0, 0).ok(), "who is free takes it too");
        assert_eq!(private(said), None, "who names none does not take it");
        let both = r#"{"pricing": {"prompt": "0.0000001", "completion": "0.0000004"}, "pricing_private": {"prompt": "0.0000003", "completion": "0"}}"#;
        assert_eq!(private(both), Price::new(300_000, 0).ok());
        // What has another form is no list of models at all.
        assert_eq!(price(r#"{"pricing": {"prompt": 1}}"#), None);
        assert_eq!(price("[]"), None);
    }
}
