//! `assay search`: which models there are, who keeps and offers them, at what price, and what is paid for them.
//!
//! Invariant: every number has one source that is named in its absence: records are believed by signatures, copies are what hosts said at this
//! moment, prices what providers said, demand what the ledger's log says. What was not asked is shown as not known, never as zero.

mod asking;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use alloy_primitives::Address;
use anyhow::{Context as _, Result, bail};
use assay_core::id::{Hash, ModelRoot, NodeAddress};
use assay_core::price::Price;
use assay_hub::blob::BlobHash;
use assay_hub::catalogue::Catalogue;
use assay_hub::release::{Release, Signed};
use assay_ledger::amount::Amount;
use assay_ledger::demand::Demand;
use assay_ledger::retrieval::{Listing, ListingId};
use clap::{Args, ValueEnum};

use self::asking::{Asked, Offer};
use super::hub::catalogue;
use super::ledger::connection::LedgerArgs;
use super::ledger::nodes::{Nodes, urls};
use crate::home::Home;
use crate::progress;

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// What the most is paid for.
    Demand,
    /// What is the cheapest, a token of the prompt and one of the answer together.
    Price,
    /// What is the smallest.
    Size,
    /// By the alphabet.
    Name,
}

/// List the models that hosts keep and providers offer.
///
/// Asks the hosts and providers of the ledger, or the hosts that --from names; without either it shows what this machine remembers. A provider's price is what it
/// advertises. Demand is the fees that providers posted on the ledger.
#[derive(Args)]
pub struct Search {
    /// Text in a model's name, publisher, root, licence or card.
    text: Option<String>,
    /// URLs of hosts. They are asked instead of the ledger's.
    #[arg(long, value_name = "URL")]
    from: Vec<String>,
    /// What comes first.
    #[arg(long, value_enum, default_value_t = Sort::Demand)]
    sort: Sort,
    /// Epochs over which demand is counted.
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3_650))]
    epochs: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// What the ledger says of models.
struct OnLedger {
    directory: Address,
    listings: BTreeMap<ListingId, Listing>,
    pledges: BTreeMap<ListingId, u64>,
    fetched: BTreeMap<ListingId, u64>,
    demand: Demand,
}

/// A release, and what was said about it.
struct Row {
    id: Hash,
    release: Release,
    labels: Vec<String>,
    /// Hosts that say that they keep it; nothing if none was asked.
    hosts: Option<usize>,
    /// Providers that offer it; nothing if none was asked.
    offers: Option<Vec<Offer>>,
    listing: Option<Listing>,
    /// Pledges in force to keep the publisher's listing.
    pledges: Option<u64>,
    /// Bytes that providers signed for, of the publisher's listing.
    fetched: Option<u64>,
    /// Fees a day, and how many providers posted them.
    demand: Option<(Amount, usize)>,
}

impl Row {
    /// The lowest price, one token of the prompt and one of the answer together.
    fn price(&self) -> Option<Price> {
        self.lowest(|offer| offer.price)
    }

    /// The lowest where the client withholds its consent to audits.
    fn price_private(&self) -> Option<Price> {
        self.lowest(|offer| offer.price_private)
    }

    fn lowest(&self, of: impl Fn(&Offer) -> Option<Price>) -> Option<Price> {
        let prices = self.offers.iter().flatten().filter_map(of);
        prices.min_by_key(|price| (price.input() + price.output(), price.output()))
    }

    fn royalty_ppm(&self) -> u32 {
        self.listing.as_ref().map_or(self.release.royalty_ppm, |listing| listing.royalty_ppm)
    }
}

/// What was found, and of whom nothing was heard.
struct Found {
    rows: Vec<Row>,
    hosts: usize,
    providers: usize,
    silent: Vec<(String, String)>,
    ledger: Option<OnLedger>,
}

impl Search {
    pub fn run(self, home: &Home) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let found = runtime.block_on(self.search(home))?;
        for (who, reason) in &found.silent {
            eprintln!("warning: {who}: {}", shown::plain(reason));
        }
        if self.json {
            println!("{}", shown::json(&found));
        } else {
            shown::table(&found, self.text.as_deref());
        }
        Ok(())
    }

    async fn search(&self, home: &Home) -> Result<Found> {
        let nodes = match Nodes::read(home, &self.ledger).await {
            Ok(nodes) => nodes,
            Err(e) => {
                eprintln!("warning: the ledger is not asked: {e:#}");
                None
            }
        };
        let hosts = match &nodes {
            _ if !self.from.is_empty() => {
                self.from.iter().map(|url| url.trim_end_matches('/').to_owned()).collect()
            }
            Some(nodes) => nodes.hosts(None).await?,
            None => vec![],
        };
        // What strangers publish is remembered apart: it shall not make names ambiguous for `assay pull`.
        let heard = Arc::new(heard(&home.hub().join("search"))?);
        let own = catalogue(home)?;
        if hosts.is_empty() && nodes.is_none() && own.releases().is_empty() && heard.releases().is_empty() {
            bail!(
                "no model is known here: name a ledger with `assay ledger use DIRECTORY`, or a host with --from http://HOST:PORT"
            );
        }
        let providers = match &nodes {
            Some(nodes) => {
                urls(&nodes.roll.providers().await.context("the ledger's providers cannot be read")?)
            }
            None => vec![],
        };
        let spinner = progress::spinner("asking hosts and providers");
        let asked = asking::ask(&hosts, &providers, &heard).await?;
        let ledger = match &nodes {
            Some(nodes) => Some(self.on_ledger(nodes).await?),
            None => None,
        };
        spinner.finish_and_clear();
        let priced = nodes.is_some();
        let mut rows = rows([&own, &heard], &asked, !hosts.is_empty(), priced, ledger.as_ref());
        if let Some(text) = &self.text {
            rows.retain(|row| row.has(text));
        }
        sort(&mut rows, self.sort);
        let (hosts, providers) = (hosts.len(), providers.len());
        Ok(Found { rows, hosts, providers, silent: asked.silent, ledger })
    }

    async fn on_ledger(&self, nodes: &Nodes) -> Result<OnLedger> {
        let listings = nodes.roll.listings().await?;
        Ok(OnLedger {
            directory: nodes.ledger.parts().directory,
            listings: listings.into_iter().map(|l| (l.id, l)).collect(),
            pledges: nodes.roll.pledge_counts().await?,
            fetched: nodes.roll.fetched().await?,
            demand: nodes.ledger.demand(self.epochs).await?,
        })
    }
}

fn sort(rows: &mut [Row], by: Sort) {
    rows.sort_by_cached_key(|row| {
        let r = &row.release;
        (r.name.clone(), r.publisher, std::cmp::Reverse(r.published_at))
    });
    match by {
        Sort::Name => {}
        Sort::Size => rows.sort_by_key(|row| row.release.size),
        Sort::Demand => rows.sort_by_key(|row| std::cmp::Reverse(row.demand)),
        // What nobody offers comes last.
        Sort::Price => rows.sort_by_key(|row| match row.price() {
            Some(price) => (0, price.input() + price.output(), price.output()),
            None => (1, 0, 0),
        }),
    }
}

/// What earlier searches heard of.
fn heard(folder: &Path) -> Result<Catalogue> {
    Ok(Catalogue::open(folder)?)
}

impl Row {
    fn has(&self, text: &str) -> bool {
        let (r, text) = (&self.release, text.to_lowercase());
        let texts = [
            format!("{}/{}@{}", r.publisher, r.name, r.version),
            r.root.to_string(),
            r.licence.to_lowercase(),
            r.card.to_lowercase(),
        ];
        texts.iter().any(|has| has.contains(&text)) || self.labels.contains(&text)
    }
}

fn rows(
    known: [&Catalogue; 2],
    asked: &Asked,
    hosts_asked: bool,
    providers_asked: bool,
    ledger: Option<&OnLedger>,
) -> Vec<Row> {
    let releases: BTreeMap<Hash, Signed<Release>> =
        known.iter().flat_map(|c| c.releases()).map(|s| (s.id(), s)).collect();
    let labels: Vec<_> = known.iter().flat_map(|c| c.labels()).collect();
    // Whoever keeps an artifact keeps it under every name.
    let mut keepers: BTreeMap<BlobHash, BTreeSet<&String>> = BTreeMap::new();
    for (id, hosts) in &asked.keepers {
        if let Some(signed) = releases.get(id) {
            keepers.entry(signed.record.blob).or_default().extend(hosts);
        }
    }
    let row = |(id, signed): (&Hash, &Signed<Release>)| {
        let r = &signed.record;
        let owner = Address::from(*r.publisher.as_bytes());
        let listed = ListingId { model: r.root, owner };
        let of = |l: &&Signed<assay_hub::release::LabelRecord>| {
            let l = &l.record;
            l.publisher == r.publisher && l.name == r.name && l.version == r.version
        };
        let mut names: Vec<String> = labels.iter().filter(of).map(|l| l.record.label.to_string()).collect();
        names.sort_unstable();
        names.dedup();
        let paid = |on: &OnLedger| {
            let providers = on.demand.paid.get(&r.root).map_or(0, |paid| paid.providers.len());
            on.demand.a_day(&r.root).map(|fees| (fees, providers))
        };
        Row {
            id: *id,
            release: r.clone(),
            labels: names,
            hosts: hosts_asked.then(|| keepers.get(&r.blob).map_or(0, BTreeSet::len)),
            offers: providers_asked.then(|| asked.offers.get(&r.root).cloned().unwrap_or_default()),
            listing: ledger.and_then(|on| on.listings.get(&listed).cloned()),
            pledges: ledger.map(|on| on.pledges.get(&listed).copied().unwrap_or(0)),
            fetched: ledger.map(|on| on.fetched.get(&listed).copied().unwrap_or(0)),
            demand: ledger.and_then(paid),
        }
    };
    releases.iter().map(row).collect()
}

/// Whose release, for people.
fn short(publisher: NodeAddress) -> String {
    format!("0x{}…", publisher.short())
}

/// By model.
type Offers = BTreeMap<ModelRoot, Vec<Offer>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, size: u64, fees: Option<u128>, prices: &[&str]) -> Row {
        let publisher = NodeAddress::from_bytes([0xab; 20]);
        let release = Release {
            publisher,
            name: name.parse().unwrap(),
            version: "1".parse().unwrap(),
            root: ModelRoot::from_bytes([1; 32]),
            blob: BlobHash::of(b""),
            size,
            content_root: Hash::ZERO,
            profile: "int8-v1".into(),
            parameters: 1,
            context: 1,
            licence: "MIT".into(),
            royalty_ppm: 5,
            copies: 1,
            card: "A Card\u{1b}[2J".into(),
            sources: vec![],
            published_at: 0,
        };
        let offer =
            |text: &&str| Offer { provider: Address::ZERO, price: text.parse().ok(), price_private: None };
        Row {
            id: Hash::ZERO,
            release,
            labels: vec!["latest".into()],
            hosts: None,
            offers: (!prices.is_empty()).then(|| prices.iter().map(offer).collect()),
            listing: None,
            pledges: None,
            fetched: None,
            demand: fees.map(|fees| (Amount(fees), 1)),
        }
    }

    #[test]
    fn rows_are_found_by_their_texts_and_sorted() {
        let mut rows = vec![
            row("b", 3, None, &["0.2/0.2", "0.3/0.01", "unread"]),
            row("a", 2, Some(5), &[]),
            row("c", 1, Some(9), &["unread"]),
            row("d", 9, Some(0), &["0/0"]),
        ];
        let mut order = |by| {
            sort(&mut rows, by);
            rows.iter().map(|row| row.release.name.to_string()).collect::<String>()
        };
        assert_eq!(order(Sort::Name), "abcd");
        assert_eq!(order(Sort::Size), "cabd");
        // What is not known is not the same as nothing.
        assert_eq!(order(Sort::Demand), "cadb");
        assert_eq!(order(Sort::Price), "dbac");
        assert_eq!(rows[1].price().unwrap().to_string(), "0.30/0.01");
        for text in ["A@1", "card", "mit", "0xABAB", "0x0101", "latest"] {
            assert!(rows[2].has(text), "{text}");
        }
        assert!(!rows[2].has("nothing"));
        assert_eq!(shown::plain("x\u{1b}[2J\ny"), "x[2Jy");
        assert_eq!(rows[2].royalty_ppm(), 5);
    }
}
