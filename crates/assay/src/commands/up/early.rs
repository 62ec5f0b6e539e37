//! A release that `assay up` serves while it arrives; once it is here, it is installed like one that was pulled.

use std::io;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use assay_hub::fetch::{FetchOptions, Progress};
use assay_hub::name::{Reference, Which};
use assay_hub::peer::Relays;
use assay_hub::release::Release;
use assay_node::arriving::{Engine, Errand, arrive};
use assay_node::provider::Provider;
use tokio::sync::oneshot;

use crate::commands::hub::catalogue;
use crate::commands::ledger::connection::{KeyArgs, LedgerArgs};
use crate::commands::pull::hosts::{Asked, Whom, find, install, say, sent, store};
use crate::home::Home;
use crate::progress;

/// What is to be served early.
pub struct Early {
    pub release: Reference,
    /// Addresses of hosts, instead of the ledger's.
    pub from: Vec<String>,
    pub relays: Relays,
    pub ledger: LedgerArgs,
    pub key: KeyArgs,
}

impl Early {
    /// Lets the release arrive while `serving` serves. If it does not arrive, serving goes on with the other models; without any, it
    /// is told to stop, and the failure is what this returns.
    pub async fn beside(
        self,
        home: &Home,
        provider: &Arc<Provider>,
        engine: Engine,
        serving: impl Future<Output = io::Result<()>>,
        stop: oneshot::Sender<()>,
    ) -> Result<()> {
        tokio::pin!(serving);
        let arrived = tokio::select! {
            served = &mut serving => return Ok(served?),
            arrived = self.arrive(home, provider, engine) => arrived,
        };
        let Err(error) = arrived else { return Ok(serving.await?) };
        if provider.served().is_empty() {
            // Whoever waits for an answer hears first that there is none.
            let _ = stop.send(());
            serving.await?;
            return Err(error);
        }
        note!("warning: {error:#}");
        Ok(serving.await?)
    }

    async fn arrive(&self, home: &Home, provider: &Arc<Provider>, engine: Engine) -> Result<()> {
        let is_served =
            |release: &Release| provider.served().iter().any(|m| m.artifact().root() == release.root);
        // A version is one release for ever; what a label stands for is asked.
        let known = catalogue(home)?
            .resolve(&self.release)
            .ok()
            .filter(|_| matches!(self.release.which, Which::Version(_)));
        if known.is_some_and(|known| is_served(&known.record)) {
            return Ok(());
        }
        let whom = Whom { from: &self.from, relays: self.relays, ledger: &self.ledger };
        let found = find(home, &Asked::Release(&self.release), &whom).await?;
        let release = found.release.record.clone();
        if is_served(&release) {
            return Ok(());
        }
        if found.peers.is_empty() {
            bail!("{0} is kept in shards; fetch it first: assay pull {0}", self.release);
        }
        let store = store(home)?;
        let bar = progress::bar("fetching {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        let shown = bar.clone();
        let mut progress = move |p: Progress| {
            shown.set_length(p.size);
            shown.set_position(p.verified);
        };
        let folder = home.path().join("models");
        let errand = Errand {
            release: &release,
            peers: &found.peers,
            dialer: &found.dialer,
            store: &store,
            folder: &folder,
        };
        let options = FetchOptions::default();
        let arrived = arrive(provider, errand, engine, options, &mut progress).await;
        bar.finish_and_clear();
        let arrived = arrived.with_context(|| self.release.to_string())?;
        found.sign_for(home, &self.key, sent(&arrived.report)).await;
        say(&arrived.report);
        note!("{} is here and what its root says: answers get receipts.", self.release);
        let home = Home::open(Some(home.path()))?;
        tokio::task::spawn_blocking(move || install(&home, &store, &release)).await??;
        Ok(())
    }
}
