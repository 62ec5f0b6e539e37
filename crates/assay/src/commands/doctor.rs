//! `assay doctor`: looks at everything that can be wrong with an installation, and with its place in the network.
//!
//! It makes and changes nothing, with one exception that leaves no trace: to see whether an address is free it listens there for a moment. What does not
//! apply is not looked at: a daemon counts as wanted if it runs, has data here, or stands in the configuration file.

mod daemons;
mod files;
mod ledger;
mod machine;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::ledger::connection::{KeyArgs, LedgerArgs};
use crate::config::Settings;
use crate::home::{Daemon, Home};

/// How long anything far away may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Find out what is wrong with this installation, and with its place in the network, and what to do about it.
///
/// Exit status 1 if something is wrong; warnings alone are none. Nothing is made or changed.
#[derive(Args)]
pub struct Doctor {
    /// Print JSON: findings with codes that stay.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// It works, and will not for long, or not for everybody.
    Warning,
    /// Something does not work.
    Wrong,
}

/// What was looked at, and how it is.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    code: &'static str,
    what: String,
    level: Level,
    detail: String,
    /// What to do next, if there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Everything that was found.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, code: &'static str, what: impl Into<String>, detail: impl Into<String>) {
        self.add(code, what, Level::Ok, detail, None);
    }

    fn warn(
        &mut self,
        code: &'static str,
        what: impl Into<String>,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(code, what, Level::Warning, detail, Some(next.into()));
    }

    fn wrong(
        &mut self,
        code: &'static str,
        what: impl Into<String>,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(code, what, Level::Wrong, detail, Some(next.into()));
    }

    fn add(
        &mut self,
        code: &'static str,
        what: impl Into<String>,
        level: Level,
        detail: impl Into<String>,
        next: Option<String>,
    ) {
        self.0.push(Finding { code, what: what.into(), level, detail: detail.into(), next });
    }

    fn is_sound(&self) -> bool {
        self.0.iter().all(|finding| finding.level != Level::Wrong)
    }

    fn print(&self) {
        for Finding { what, level, detail, next, .. } in &self.0 {
            let mark = match level {
                Level::Ok => "✓",
                Level::Warning => "!",
                Level::Wrong => "✗",
            };
            println!("{mark} {what:<22} {detail}");
            if let Some(next) = next {
                println!("  {:<22} → {next}", "");
            }
        }
    }

    fn print_json(&self) -> Result<()> {
        let mut findings = Vec::new();
        for finding in &self.0 {
            let mut row = serde_json::to_value(finding)?;
            row["ok"] = (finding.level != Level::Wrong).into();
            findings.push(row);
        }
        println!("{}", serde_json::json!({"ok": self.is_sound(), "findings": findings}));
        Ok(())
    }
}

/// Which daemons are wanted here.
struct Wanted {
    settings: Settings,
    daemons: Vec<Daemon>,
}

impl Wanted {
    fn read(home: &Home) -> Result<Wanted> {
        let settings = Settings::read(home)?;
        let has_data = |daemon| match daemon {
            Daemon::Provider => home.receipts().exists(),
            Daemon::Host => home.hub().join("index.redb").exists(),
            Daemon::Gateway => home.accounts().exists() || home.path().join("gateway").exists(),
            Daemon::Auditor => home.path().join("auditor").exists(),
        };
        let said = |daemon| match daemon {
            Daemon::Provider => settings.has("up") || settings.has("serve"),
            Daemon::Host | Daemon::Gateway | Daemon::Auditor => settings.has(daemon.name()),
        };
        let wanted =
            |daemon: &Daemon| said(*daemon) || has_data(*daemon) || home.is_held(*daemon).unwrap_or_default();
        let daemons = Daemon::ALL.into_iter().filter(wanted).collect();
        Ok(Wanted { settings, daemons })
    }

    fn has(&self, daemon: Daemon) -> bool {
        self.daemons.contains(&daemon)
    }

    /// Whether the provider is paid, the host pledges, the gateway pays: what sends transactions.
    fn on_ledger(&self, home: &Home, daemon: Daemon) -> bool {
        let s = &self.settings;
        self.has(daemon)
            && match daemon {
                Daemon::Provider => {
                    s.is_on("up", "settle")
                        || s.is_on("serve", "settle")
                        || home.path().join("node").join("epochs").exists()
                }
                Daemon::Host => s.is_on("host", "pledge") || home.hub().join("ledger").exists(),
                Daemon::Gateway => {
                    s.is_on("gateway", "pay") || home.path().join("gateway").join("instance").exists()
                }
                Daemon::Auditor => true,
            }
    }
}

impl Doctor {
    pub fn run(self, home: &Home) -> Result<ExitCode> {
        let mut found = Findings::default();
        let wanted = Wanted::read(home)?;
        machine::examine(home, &mut found)?;
        let key = files::examine(home, &self.key, &mut found);
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            daemons::examine(home, &wanted, key, &mut found).await;
            ledger::examine(home, &self.ledger, &wanted, key, &mut found).await;
        });
        if self.json {
            found.print_json()?;
        } else {
            found.print();
        }
        Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    const DOCUMENT: &str = include_str!("../../../../docs/operations.md");
    const SOURCES: [&str; 4] = [
        include_str!("doctor/daemons.rs"),
        include_str!("doctor/files.rs"),
        include_str!("doctor/ledger.rs"),
        include_str!("doctor/machine.rs"),
    ];

    /// Codes that a source gives to findings: the first text after `ok(`, `warn(` and `wrong(`.
    fn given(source: &str) -> BTreeSet<&str> {
        let calls = ["found.ok(", "found.warn(", "found.wrong("].into_iter();
        let all = calls.flat_map(|call| source.split(call).skip(1));
        all.map(|rest| rest.trim_start().strip_prefix('"').unwrap().split('"').next().unwrap()).collect()
    }

    #[test]
    fn every_code_is_documented_and_given() {
        let given: BTreeSet<&str> = SOURCES.iter().flat_map(|source| given(source)).collect();
        let table =
            DOCUMENT.split("### What the doctor finds").nth(1).unwrap().split("\n## ").next().unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        let cells = rows.map(|row| row.split('|').nth(1).unwrap());
        let documented: BTreeSet<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        assert_eq!(documented, given);
        assert!(given.len() > 30, "{given:?}");
    }
}
