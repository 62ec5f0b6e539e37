//! What a search found, as a table for people and as JSON (`docs/hub.md`, section Search).

use assay_core::price::Price;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::{Found, Row, short};

/// Text of a stranger without what could move a terminal's cursor.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// What was not asked.
const UNKNOWN: &str = "-";

fn price(price: Price) -> String {
    if (price.input(), price.output()) == (0, 0) { "free".into() } else { price.to_string() }
}

/// The lowest price, and below it the lowest without consent to audits, if that is another.
fn prices(lowest: Option<Price>, private: Option<Price>) -> String {
    match private.filter(|private| Some(*private) != lowest) {
        None => or_unknown(lowest.map(price)),
        Some(private) => format!("{}\nprivate {}", or_unknown(lowest.map(price)), price(private)),
    }
}

fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| UNKNOWN.to_owned())
}

/// A table for people.
pub fn table(found: &Found, text: Option<&str>) {
    if found.rows.is_empty() {
        match text {
            Some(text) => println!("No model has {text:?} in its name, publisher, root, licence or card."),
            None => println!("No host told of a model."),
        }
    } else {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header([
            "model",
            "publisher",
            "size",
            "weights",
            "window",
            "licence",
            "royalty",
            "hosts",
            "$ / M tokens",
            "providers",
            "$ a day",
        ]);
        for row in &found.rows {
            table.add_row(cells(row));
        }
        println!("{table}");
    }
    if let Some(on) = &found.ledger {
        let days = on.demand.seconds as f64 / 86_400.0;
        println!(
            "Demand: fees that providers posted in the last {} epochs, {days:.1} days.",
            on.demand.epochs
        );
    }
    let silent =
        if found.silent.is_empty() { String::new() } else { format!(", {} silent", found.silent.len()) };
    eprintln!("Asked {} hosts and {} providers{silent}.", found.hosts, found.providers);
}

fn cells(row: &Row) -> [String; 11] {
    let r = &row.release;
    let labels = if row.labels.is_empty() { String::new() } else { format!(" ({})", row.labels.join(", ")) };
    [
        format!("{}@{}{labels}", r.name, r.version),
        short(r.publisher),
        HumanBytes(r.size).to_string(),
        HumanCount(r.parameters).to_string(),
        HumanCount(r.context.into()).to_string(),
        plain(&r.licence),
        format!("{} %", f64::from(row.royalty_ppm()) / 10_000.0),
        format!("{}/{}", or_unknown(row.hosts.map(|n| n.to_string())), r.copies),
        prices(row.price(), row.price_private()),
        or_unknown(row.offers.as_ref().map(|offers| offers.len().to_string())),
        or_unknown(row.demand.map(|(fees, providers)| format!("{fees} from {providers}"))),
    ]
}

/// The whole of it.
pub fn json(found: &Found) -> Value {
    let ledger = found.ledger.as_ref().map(
        |on| json!({"directory": on.directory, "epochs": on.demand.epochs, "seconds": on.demand.seconds}),
    );
    let silent: Vec<Value> =
        found.silent.iter().map(|(url, reason)| json!({"url": url, "reason": reason})).collect();
    json!({
        "models": found.rows.iter().map(row).collect::<Vec<_>>(),
        "asked": {"hosts": found.hosts, "providers": found.providers, "ledger": ledger},
        "silent": silent,
    })
}

fn row(row: &Row) -> Value {
    let r = &row.release;
    let price = |price: Price| json!({"input": price.input(), "output": price.output()});
    let offers = row.offers.as_ref().map(|offers| {
        let offer = |o: &super::Offer| json!({"provider": o.provider, "price": o.price.map(price), "price_private": o.price_private.map(price)});
        offers.iter().map(offer).collect::<Vec<_>>()
    });
    json!({
        "id": row.id, "publisher": r.publisher, "name": r.name, "version": r.version, "labels": row.labels,
        "root": r.root, "blob": r.blob, "bytes": r.size, "parameters": r.parameters, "context": r.context,
        "licence": r.licence, "royalty_ppm": row.royalty_ppm(), "published_at": r.published_at,
        "listed": row.listing.is_some(), "copies": r.copies, "hosts": row.hosts, "pledges": row.pledges, "offers": offers,
        "price": row.price().map(price), "price_private": row.price_private().map(price), "fetched_bytes": row.fetched,
        "demand": row.demand.map(|(fees, providers)| json!({"a_day": fees, "providers": providers})),
    })
}
