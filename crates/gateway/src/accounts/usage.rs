//! What was spent on what: pages of charges, totals, and both as JSON and CSV.

use serde::Serialize;

use super::{Accounts, AccountsError, Charge, MicroUsd};

/// Most charges that are read at once.
pub const USAGE_PAGE_MAX: i64 = 1_000;
/// The first line of usage as CSV.
pub const CSV_HEAD: &str =
    "at_ms,key_id,account,model,provider,receipt,prompt_tokens,completion_tokens,cost_micro_usd";

/// Whose usage, and of when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// From this millisecond since 1970 on.
    pub from_ms: i64,
    /// Until before this one.
    pub until_ms: i64,
    /// Of this account alone.
    pub account: Option<String>,
    /// Of this key alone.
    pub key_id: Option<String>,
}

/// What a key spent on a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UsageTotal {
    /// The key.
    pub key_id: String,
    /// The model.
    pub model: String,
    /// Answers that were charged.
    pub requests: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// What they cost.
    pub amount: MicroUsd,
}

impl Accounts {
    /// A page of charges, oldest first; the next one begins at `offset` plus its length.
    pub async fn charges(&self, period: &Period, offset: i64) -> Result<Vec<Charge>, AccountsError> {
        self.store.charges(period, offset).await
    }

    /// What each key spent on each model.
    pub async fn totals(&self, period: &Period) -> Result<Vec<UsageTotal>, AccountsError> {
        self.store.totals(period).await
    }
}

impl Charge {
    /// The charge as a line of CSV, without the line's end, under [`CSV_HEAD`].
    pub fn csv(&self) -> String {
        let a = &self.answer;
        let texts = [&self.key_id, &self.account, &a.model, &a.provider, &a.receipt].map(|text| quoted(text));
        let numbers = [u64::from(a.prompt_tokens), u64::from(a.completion_tokens), self.amount.0];
        let numbers = numbers.map(|n| n.to_string());
        format!("{},{},{}", self.at_ms, texts.join(","), numbers.join(","))
    }
}

/// A field of CSV (RFC 4180). What a spreadsheet would take for a formula gets an apostrophe in front.
fn quoted(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if text.contains([',', '"', '\n', '\r']) || !guard.is_empty() {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_csv_stay_fields() {
        for (text, field) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("=1+1", "\"'=1+1\""),
            ("two\nlines", "\"two\nlines\""),
        ] {
            assert_eq!(quoted(text), field);
        }
    }
}
