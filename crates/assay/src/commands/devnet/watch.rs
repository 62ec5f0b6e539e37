//! What happens, as it happens; and the faults that take their time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use alloy_primitives::Address;
use alloy_sol_types::SolEvent as _;
use anyhow::{Context as _, Result};
use assay_ledger::contracts::{Audits, Disputes, Epochs, Registry, Retrieval};
use assay_ledger::follow::{Change, Cursor, Follower};
use assay_ledger::ledger::Ledger;

use super::chaos::Chaos;
use super::falsified::falsified;
use super::fault::Kind;
use super::load::Asked;
use super::network::{Network, Part};
use super::report;
use crate::home::{Home, built_in};

/// How often the ledger is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How often the table is drawn.
const DRAW: Duration = Duration::from_secs(2);
/// How often a provider that crashes is killed.
const CRASH: Duration = Duration::from_secs(30);

impl Network {
    /// Tells what happens, for ever. Members that end by themselves are said.
    pub async fn watch(&mut self, asked: &Asked, mut chaos: Option<&mut Chaos>) -> Result<()> {
        let ledger = report::open(&self.state).await?;
        let at = &ledger.parts().at;
        let contracts = vec![at.registry, at.epochs, at.audits, at.disputes, at.retrieval];
        let mut follower = Follower::new(ledger.client().clone(), contracts, Cursor::from(0));
        let names: BTreeMap<Address, String> =
            self.state.members.iter().map(|m| (m.account, m.name.clone())).collect();
        let (begun, client) = (Instant::now(), reqwest::Client::new());
        let (mut drawn, mut crashed) = (begun, begun);
        let mut deceived = BTreeSet::new();
        let mut seen_ended = vec![false; self.processes.len()];
        loop {
            tokio::time::sleep(EVERY).await;
            if let Some(chaos) = &mut chaos {
                chaos.step(self).await?;
            }
            // Where there is chaos, the chain may not answer.
            let changes = match tokio::time::timeout(EVERY, follower.poll()).await {
                Ok(Ok(changes)) => changes,
                Ok(Err(e)) if chaos.is_none() => return Err(e.into()),
                Ok(Err(_)) | Err(_) => continue,
            };
            for change in changes {
                let Change::Applied(block) = change else { continue };
                block
                    .logs
                    .iter()
                    .filter_map(|log| told(&log.data, &names))
                    .for_each(|line| println!("{line}"));
            }
            if crashed.elapsed() >= CRASH {
                crashed = Instant::now();
                self.crash().await?;
            }
            self.silence(&ledger).await?;
            self.lose(begun).await?;
            self.deceive(&client, &mut deceived).await?;
            for (seen, (member, process)) in seen_ended.iter_mut().zip(&mut self.processes) {
                let ended = process.ended();
                if let Some(member) = self.state.members.get(*member)
                    && ended
                    && !*seen
                    && chaos.is_none()
                {
                    println!("{} has ended; see {}", member.name, super::member::log(&member.home).display());
                }
                *seen = ended;
            }
            if chaos.is_none() && drawn.elapsed() >= DRAW && std::io::stderr().is_terminal() {
                drawn = Instant::now();
                let found = report::read(&self.state).await?;
                // Clears the terminal, and goes to its first line.
                eprint!("\x1b[2J\x1b[H");
                eprintln!("{}\nepoch {}, {asked}", found.table(), found.epoch);
            }
        }
    }

    fn with(&self, kind: Kind) -> impl Fn(&usize) -> bool + use<'_> {
        move |member| self.state.members.get(*member).is_some_and(|m| m.fault == Some(kind))
    }

    /// Kills those that crash, and starts them again.
    async fn crash(&mut self) -> Result<()> {
        let crash: Vec<bool> = self.processes.iter().map(|(m, _)| self.with(Kind::Crash)(m)).collect();
        for ((_, process), _) in self.processes.iter_mut().zip(crash).filter(|(_, crash)| *crash) {
            process.kill().await;
            process.again().await?;
        }
        Ok(())
    }

    /// Ends auditors that shall be silent as soon as they have a seat.
    async fn silence(&mut self, ledger: &Ledger) -> Result<()> {
        for (member, process) in &mut self.processes {
            let Some(member) = self.state.members.get(*member) else { continue };
            if member.fault == Some(Kind::SilentAuditor)
                && !process.ended()
                && ledger.node(member.account).await?.is_some_and(|node| node.reserved > 0)
            {
                process.kill().await;
            }
        }
        Ok(())
    }

    /// Has auditors that shall be wrong execute another model, by a change of the file that they have mapped. Nobody executes what it has not
    /// hashed: until they have executed something, they are left alone. Those that are done are `deceived`.
    async fn deceive(&self, client: &reqwest::Client, deceived: &mut BTreeSet<Address>) -> Result<()> {
        for member in self.state.members.iter().filter(|m| m.fault.is_some_and(Kind::is_deceived)) {
            let Some(at) = member.at.filter(|_| !deceived.contains(&member.account)) else { continue };
            let metrics = client.get(format!("http://{at}/metrics")).timeout(EVERY).send().await;
            let Ok(metrics) = metrics else { continue };
            if !metrics.text().await.is_ok_and(|text| text.lines().any(is_execution)) {
                continue;
            }
            let artifact = built_in()?;
            let path = Home::open(Some(&member.home))?.model_path(&artifact.provenance().name);
            let other = falsified(&artifact, Kind::FalseChallenge).context("there is no other model")?;
            // In its place and as long: what is mapped is this file.
            File::options().write(true).open(&path)?.write_all(&other)?;
            deceived.insert(member.account);
        }
        Ok(())
    }

    /// Takes the bytes of hosts that shall lose them, two epochs after the beginning.
    async fn lose(&mut self, begun: Instant) -> Result<()> {
        if begun.elapsed() < Duration::from_secs(2 * u64::from(self.epoch_s)) {
            return Ok(());
        }
        let lost = |part, fault| part == Part::Host && fault == Some(Kind::LostBytes);
        for member in self.state.members.iter().filter(|m| lost(m.part, m.fault)) {
            let data = Home::open(Some(&member.home))?.hub().join("store").join("data");
            let blobs = std::fs::read_dir(&data).with_context(|| data.display().to_string())?;
            for blob in blobs.flatten().filter(|blob| blob.path().is_file()) {
                std::fs::write(blob.path(), [])?;
            }
        }
        Ok(())
    }
}

/// Whether a line of an auditor's metrics says that something was executed.
fn is_execution(line: &str) -> bool {
    let count = line.strip_prefix("assay_auditor_execution_seconds_count ");
    count.is_some_and(|count| count.trim() != "0")
}

/// A log's line, if it tells something.
fn told(log: &alloy_primitives::LogData, names: &BTreeMap<Address, String>) -> Option<String> {
    let name = |account: &Address| names.get(account).cloned().unwrap_or_else(|| account.to_string());
    if let Ok(e) = Epochs::Posted::decode_log_data(log) {
        return Some(format!("epoch {}: {} posted {} receipts", e.epoch, name(&e.provider), e.batch.count));
    }
    if let Ok(e) = Epochs::BeaconFixed::decode_log_data(log) {
        return Some(format!("epoch {}: the beacon is {}", e.epoch, e.beacon));
    }
    if let Ok(e) = Epochs::Settled::decode_log_data(log) {
        return Some(format!("epoch {}: {} is paid", e.epoch, name(&e.provider)));
    }
    if let Ok(e) = Audits::Revealed::decode_log_data(log) {
        return Some(format!("epoch {}: an audit of {} is revealed", e.epoch, name(&e.provider)));
    }
    if let Ok(e) = Audits::Penalised::decode_log_data(log) {
        return Some(format!("epoch {}: {} was silent or lazy", e.epoch, name(&e.auditor)));
    }
    if let Ok(e) = Disputes::Opened::decode_log_data(log) {
        return Some(format!("{} disputes an answer of {}", name(&e.challenger), name(&e.defender)));
    }
    if let Ok(e) = Disputes::Ended::decode_log_data(log) {
        let outcome = if e.upheld { "was right" } else { "was wrong" };
        return Some(format!("a dispute ended: {} {outcome}", name(&e.challenger)));
    }
    if let Ok(e) = Retrieval::Failed::decode_log_data(log) {
        return Some(format!("epoch {}: {} could not give what it keeps", e.epoch, name(&e.host)));
    }
    Registry::Struck::decode_log_data(log)
        .ok()
        .map(|e| format!("{} is struck; {} reported it", name(&e.node), name(&e.reporter)))
}
