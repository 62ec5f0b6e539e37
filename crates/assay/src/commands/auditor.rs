//! `assay auditor`: checks what the lottery draws, and is paid for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_ledger::amount::Amount;
use assay_ledger::ledger::Role;
use assay_node::auditor::{self, Auditor, AuditorOptions, Event, Listener};
use assay_node::execution::{Installed, Library};
use assay_node::observed::{self, Rounds};
use clap::Args;
use tokio::net::TcpListener;

use super::ledger::connection::{KeyArgs, LedgerArgs, open_sender};
use super::up::stop_signal;
use crate::home::{Daemon, Home};

/// Where an auditor says how it is: 127.0.0.1:11741.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:11741";
/// Receipts that are fetched and wait to be executed.
const EXECUTED_AT_ONCE: usize = 16;

/// Check what the lottery draws: execute receipts again, commit to what came out, dispute what is wrong, and collect the pay.
///
/// The node must be enrolled as an auditor, with stake for its seats (`assay stake 100 --role auditor`); what else it needs in its balance on the ledger
/// are bonds: one to dispute a receipt, one to demand what a provider refuses to show. Models that are drawn must be installed here. They are executed at the
/// lowest priority, beside whatever else the machine does.
#[derive(Args)]
pub struct AuditorArgs {
    /// Take seats until there are so many.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=4096))]
    seats: u64,
    /// Threads that execute, at the lowest priority.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Seconds between two looks at the ledger.
    #[arg(long, default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// Address and port of /health and /metrics. Nothing else is served there.
    #[arg(long, env = "ASSAY_AUDITOR_LISTEN", default_value = DEFAULT_LISTEN, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    key: KeyArgs,
}

impl AuditorArgs {
    pub fn run(self, home: &Home) -> Result<()> {
        let _held = home.hold(Daemon::Auditor)?;
        // Threads have the priority of the one that begins them.
        let threads = self.threads.into();
        let pool = std::thread::spawn(move || {
            auditor::go_last();
            Pool::new(threads)
        });
        let pool = pool.join().map_err(|_| anyhow!("the threads that execute cannot be started"))?;
        let library = library(home, Kernel::from_environment()?, Arc::new(pool));
        let key = self.key.load(home)?;
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
            let ledger = self.ledger.ledger(home).await?;
            let node = ledger.node(key.address()).await?;
            let each = Amount(ledger.parameters().stakes.seatStake.into());
            if node.is_none_or(|node| node.roles & Role::Auditor as u8 == 0) {
                bail!(
                    "{} is not enrolled as an auditor; a seat needs {each} at stake: `assay deposit AMOUNT`, then `assay stake AMOUNT --role auditor`",
                    key.address()
                );
            }
            let sender = open_sender(home, ledger.client(), key).await?;
            let bond = Amount(ledger.parameters().stakes.disputeBond.into());
            let vault = ledger.holdings(sender.account()).await?.vault;
            if vault < bond {
                note!(
                    "{} has {vault} on the ledger; to dispute what is wrong it needs {bond}: `assay deposit` brings more in",
                    sender.account()
                );
            }
            let options = AuditorOptions {
                folder: home.path().join("auditor"),
                seats: self.seats,
                executed_at_once: EXECUTED_AT_ONCE,
            };
            let mut auditor = Auditor::open(ledger, sender, Arc::new(library), options, listener()).await?;
            let listener = TcpListener::bind(self.listen).await.with_context(|| {
                format!("{} cannot be listened on; choose another address with --listen", self.listen)
            })?;
            let at = listener.local_addr()?;
            say!("auditor {} on http://{at}, {} seats wanted", auditor.address(), self.seats);
            let good = Rounds::new(Duration::from_secs(self.every));
            let shown = observed::serve(listener, observed::routes(auditor.metrics(), good.clone()));
            let rounds = async {
                loop {
                    match auditor.round().await {
                        Ok(_) => good.succeeded(),
                        Err(e) => tracing::warn!(code = e.code(), reason = %e, "a round ended early"),
                    }
                    auditor.attend(Duration::from_secs(self.every)).await;
                }
            };
            // What is under way is on disk, and goes on with the next start.
            tokio::select! {
                () = rounds => {}
                shown = shown => shown.context("/health and /metrics")?,
                () = stop_signal() => {}
            }
            tracing::info!("stopping");
            Ok(())
        })
    }
}

/// The models of a data directory, for whoever executes them again.
pub fn library(home: &Home, kernel: Kernel, pool: Arc<Pool>) -> Library {
    let path = home.path().to_owned();
    let installed: Installed = Arc::new(move |root| {
        // A model may have been installed since the last time.
        let found = Home::open(Some(&path)).and_then(|home| home.model_by_root(root));
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "installed models cannot be read");
            None
        })
    });
    Library::new(installed, kernel, pool)
}

/// Events as lines of the log.
fn listener() -> Listener {
    Arc::new(|event| match event {
        Event::Seated { seats } => tracing::info!(seats, "seats taken; they count from the next epoch on"),
        Event::LacksStake { seats, needed } => {
            tracing::warn!(seats, "seats are missing, and so is stake: `assay stake {needed}` puts more in")
        }
        Event::Drawn { batch, receipts } => {
            tracing::info!(provider = %batch.provider, epoch = batch.epoch, receipts, "drawn")
        }
        Event::ModelMissing { model } => {
            tracing::warn!(%model, "a drawn model is not installed: `assay pull` it, or be silent and lose a penalty")
        }
        Event::Executed { batch, sequence, stands: true } => {
            tracing::info!(provider = %batch.provider, epoch = batch.epoch, sequence, "executed: it stands")
        }
        Event::Executed { batch, sequence, stands: false } => {
            tracing::warn!(provider = %batch.provider, epoch = batch.epoch, sequence, "executed: IT DOES NOT STAND")
        }
        Event::Withheld { batch, sequence } => {
            let provider = batch.provider;
            tracing::info!(%provider, epoch = batch.epoch, sequence, "not executed: its client lets nobody see it")
        }
        Event::Refused { batch, code, reason } => {
            tracing::warn!(provider = %batch.provider, epoch = batch.epoch, code, %reason, "the provider refuses")
        }
        Event::Demanded { demand } => {
            tracing::info!(provider = %demand.provider, epoch = demand.epoch, index = demand.index, "demanded")
        }
        Event::Silent { demand } => {
            tracing::info!(provider = %demand.provider, epoch = demand.epoch, "showed its silence")
        }
        Event::Committed { batch, member } => {
            tracing::info!(provider = %batch.provider, epoch = batch.epoch, member, "committed")
        }
        Event::Revealed { batch, member } => {
            tracing::info!(provider = %batch.provider, epoch = batch.epoch, member, "revealed")
        }
        Event::Collected { batch, member } => {
            tracing::info!(provider = %batch.provider, epoch = batch.epoch, member, "collected")
        }
        Event::Absent { batch, member } => {
            tracing::info!(provider = %batch.provider, epoch = batch.epoch, member, "showed that a member is absent")
        }
        Event::Closed { epoch } => tracing::info!(epoch, "closed"),
        Event::BeaconFixed { epoch } => tracing::info!(epoch, "beacon fixed"),
        Event::Opened { batch, sequence } => {
            tracing::warn!(provider = %batch.provider, epoch = batch.epoch, sequence, "disputed")
        }
        Event::Moved { dispute } => tracing::info!(name = %dispute.name, "moved in a dispute"),
        Event::TimedOut { dispute } => tracing::info!(name = %dispute.name, "the other party was late"),
        Event::Ended { dispute, winner } => tracing::info!(name = %dispute.name, ?winner, "a dispute ended"),
        Event::Accused { batch, member, sequence } => {
            tracing::warn!(provider = %batch.provider, epoch = batch.epoch, member, sequence, "another auditor's digest is doubted")
        }
        Event::Lapsed => tracing::info!("an accusation was not answered: it was right"),
        Event::Acquitted => tracing::info!("a doubt was answered with the digest"),
        Event::Contested => tracing::info!("a stated trace root is contested"),
        Event::Failed { what, code, reason } => tracing::warn!(code, %reason, "{what} failed"),
    })
}
