//! `assay up` and `assay serve`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use assay_api::relay::Relay;
use assay_api::{FileOptions, Inference, ServerOptions, serve_with_files};
use assay_core::id::ModelRoot;
use assay_core::price::Price;
use assay_engine::artifact::Artifact;
use assay_engine::batch::{BatchLimits, Draft};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_hub::name::Reference;
use assay_ledger::contracts::address;
use assay_ledger::ledger::Role;
use assay_node::arriving::Engine;
use assay_node::files::FolderStore;
use assay_node::key::NodeKey;
use assay_node::provider::Provider;
use assay_node::serving::ServedModel;
use assay_node::store::ReceiptStore;
use assay_node::till::Till;
use clap::Args;
use indicatif::HumanBytes;

use super::host::RelaysArg;
use super::ledger::connection::{KeyArgs, LedgerArgs};
use crate::home::{Daemon, Home, built_in};
use crate::memory;

mod early;
mod settlement;

use early::Early;

/// Makes what serves gateways of a provider.
type Relayed<I> = fn(&Arc<Provider>) -> Relay<I>;
/// Nothing serves them in place of the provider.
const HONEST: Option<Relayed<Provider>> = None;
/// Port of a node: 127.0.0.1:11711.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:11711";

#[derive(Args)]
pub struct Up {
    /// A release to serve with the installed models: [0xPUBLISHER/]NAME@VERSION, or NAME@latest. What is not here is fetched from the
    /// ledger's hosts, or those that --from names, and served while it arrives.
    #[arg(value_name = "RELEASE")]
    release: Option<Reference>,
    /// Addresses of hosts that may keep the release, as `assay host` says. They are asked instead of the ledger's.
    #[arg(long, value_name = "URL", requires = "release")]
    from: Vec<String>,
    /// Whose relays help to find and reach hosts over iroh.
    #[arg(long, value_enum, default_value = "none", requires = "release")]
    relays: RelaysArg,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
pub struct Serve {
    /// Models: names, roots or files.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    server: Server,
}

/// A provider and what it serves by.
#[derive(Args)]
pub struct Server {
    /// Address and port to listen on.
    #[arg(long, env = "ASSAY_LISTEN", default_value = DEFAULT_LISTEN, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    #[command(flatten)]
    engine: EngineArgs,
    /// Requests that are executed at the same time, per model.
    #[arg(long, default_value_t = BatchLimits::default().running_max, value_name = "N")]
    max_running: usize,
    /// Requests that may wait, per model; further ones are answered with status 429.
    #[arg(long, default_value_t = BatchLimits::default().waiting_max, value_name = "N")]
    max_waiting: usize,
    /// Memory for the KV caches of each model, in MiB.
    #[arg(long, default_value_t = BatchLimits::default().cache_bytes_max >> 20, value_name = "MIB")]
    cache_mib: usize,
    /// Memory beside it for caches of requests that are over, in MiB for each model: who begins with the same tokens goes on after them. 0 for none:
    /// then no client can tell by the time to its first token what others have asked.
    #[arg(long, default_value_t = BatchLimits::default().prefix_bytes_max >> 20, value_name = "MIB")]
    prefix_mib: usize,
    /// Tokens up to which a pass over a model that writes few answers is filled up with likely next ones, taken from what was said before. 0 for none.
    #[arg(long, default_value_t = BatchLimits::default().draft_rows_max, value_name = "N")]
    draft_rows: usize,
    /// A small installed model (name, root or file) that proposes next tokens, where the text itself has none, for every served model with the same
    /// tokenizer. Answers and receipts are the same with it and without.
    #[arg(long, value_name = "MODEL")]
    draft: Option<String>,
    /// Dollars for a million tokens of the prompt and of the answer, as in 0.10/0.40 [default: free]. Advertised in /v1/models; nothing
    /// is charged by the node without --settle; gateways charge it.
    #[arg(long, value_name = "IN/OUT")]
    price: Option<Price>,
    /// Dollars likewise, for requests whose client withholds its consent to audits (`x-assay-verification: none`). Without it a node that has a price
    /// refuses them; a free one does not.
    #[arg(long, value_name = "IN/OUT", requires = "price")]
    price_private: Option<Price>,
    /// Answer only who pays the price, by vouchers of channels on the ledger, and sign receipts for it. The node must be enrolled as a provider
    /// (`assay stake 0 --endpoint http://…`).
    #[arg(long, requires = "price")]
    settle: bool,
    /// Seconds between two looks at the ledger: what is earned is claimed and posted, auditors and disputes are answered.
    #[arg(long, default_value_t = settlement::EVERY.as_secs(), value_name = "SECONDS", requires = "settle", value_parser = clap::value_parser!(u64).range(1..=3600))]
    settle_every: u64,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// How the engine runs.
#[derive(Args, Clone, Copy)]
pub struct EngineArgs {
    /// Threads of the engine [default: one per processor].
    #[arg(long, env = "ASSAY_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl EngineArgs {
    /// The thread pool.
    pub fn pool(&self) -> Arc<Pool> {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Pool::new(self.threads.map_or(all, usize::from)))
    }

    /// What models are executed with.
    fn engine(&self, limits: BatchLimits, draft: Option<Arc<Artifact>>) -> Result<Engine> {
        Ok(Engine { kernel: Kernel::from_environment()?, pool: self.pool(), limits, draft })
    }

    /// A provider of these models.
    pub fn provider(&self, home: &Home, models: Vec<Arc<Artifact>>, limits: BatchLimits) -> Result<Provider> {
        provider(home, models, &self.engine(limits, None)?)
    }
}

fn provider(home: &Home, models: Vec<Arc<Artifact>>, engine: &Engine) -> Result<Provider> {
    let key = NodeKey::load_or_create(&home.key())?;
    let store = ReceiptStore::open(&home.receipts())?;
    let mut served = Vec::new();
    for artifact in models {
        let name = artifact.provenance().name.clone();
        served.push(engine.start(artifact).with_context(|| format!("model `{name}`"))?);
    }
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok(Provider::new(served, key, store, created, engine.pool.threads() as u32))
}

/// Says for whom a draft model proposes. It must be able to for somebody: for one of the models, or perhaps for what is to arrive.
fn drafting(draft: &Arc<Artifact>, models: &[Arc<Artifact>], is_more_to_come: bool) -> Result<()> {
    let others = models.iter().filter(|model| model.root() != draft.root());
    let (mut names, mut reasons) = (Vec::new(), Vec::new());
    for model in others {
        match Draft::of(draft, model) {
            Ok(_) => names.push(model.provenance().name.as_str()),
            Err(e) => reasons.push(format!("{e} ({})", e.code())),
        }
    }
    let name = &draft.provenance().name;
    match (names.is_empty(), reasons.is_empty()) {
        (false, _) => note!("Drafts: {name} proposes for {}.", names.join(", ")),
        (true, _) if is_more_to_come => {}
        (true, true) => bail!("there is no other model for which `{name}` could draft"),
        (true, false) => bail!("{}", reasons.join("; ")),
    }
    Ok(())
}

/// Says what the models take of memory when they have most to do, and whether there is as much.
fn say_memory(models: &[Arc<ServedModel>]) {
    let sum = |of: fn(&ServedModel) -> usize| models.iter().map(|model| of(model) as u64).sum::<u64>();
    let files = sum(|model| model.artifact().len());
    let caches = sum(|model| model.memory().caches + model.memory().prefixes);
    let passes = sum(|model| model.memory().passes);
    let all = files + caches + passes;
    note!(
        "Memory: {} of models, at most {} of caches and {} for passes.",
        HumanBytes(files),
        HumanBytes(caches),
        HumanBytes(passes)
    );
    if let Some(there_is) = memory::there_is().filter(|there_is| all > *there_is) {
        note!(
            "There are {}, less than that: with many requests the system may end the node. Lower --cache-mib, --prefix-mib or --max-running.",
            HumanBytes(there_is)
        );
    }
}

impl Up {
    pub fn run(self, home: &Home) -> Result<()> {
        let mut models = home.models()?;
        if models.is_empty() && self.release.is_none() {
            models.push(built_in()?);
        }
        let from = self.from.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        let early = self.release.map(|release| Early {
            release,
            from,
            relays: self.relays.into(),
            ledger: self.server.ledger.clone(),
            key: self.key,
        });
        self.server.run(home, models, early, HONEST)
    }
}

impl Serve {
    pub fn run(self, home: &Home) -> Result<()> {
        let mut models: Vec<Arc<Artifact>> = Vec::new();
        for name in &self.models {
            let model = home.model(name)?;
            if models.iter().all(|m| m.root() != model.root()) {
                models.push(model);
            }
        }
        self.server.run(home, models, None, HONEST)
    }
}

impl Server {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            running_max: self.max_running.max(1),
            waiting_max: self.max_waiting,
            cache_bytes_max: self.cache_mib << 20,
            prefix_bytes_max: self.prefix_mib.saturating_mul(1 << 20),
            draft_rows_max: self.draft_rows,
            ..BatchLimits::default()
        }
    }

    /// Serves until it is told to stop; gateways by `instead`, where there is one.
    pub fn run<I: Inference>(
        self,
        home: &Home,
        models: Vec<Arc<Artifact>>,
        early: Option<Early>,
        instead: Option<impl FnOnce(&Arc<Provider>) -> Relay<I>>,
    ) -> Result<()> {
        let _held = home.hold(Daemon::Provider)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(self.listen).await.with_context(|| {
                format!(
                    "cannot listen on {}; another program may use it: choose one with --listen",
                    self.listen
                )
            })?;
            let at = listener.local_addr()?;
            let mut names: Vec<String> = models.iter().map(|m| m.provenance().name.clone()).collect();
            names.extend(early.iter().map(|e| format!("{} as soon as it can be", e.release)));
            let draft = self.draft.as_deref().map(|name| home.model(name)).transpose()?;
            if let Some(draft) = &draft {
                drafting(draft, &models, early.is_some())?;
            }
            let engine = self.engine.engine(self.limits(), draft)?;
            let kernel = engine.kernel.name();
            let provider = provider(home, models, &engine)?;
            let (provider, till) = match (self.settle, self.price) {
                (true, Some(price)) => {
                    let till = Arc::new(self.till(home, &provider).await?);
                    (provider.settling(Arc::clone(&till), price), Some(till))
                }
                _ => (provider.advertising(self.price), None),
            };
            let provider = provider.private(self.price_private);
            let provider = Arc::new(provider);
            note!("Serving {} on http://{at}/v1 (kernel {kernel})", names.join(", "));
            say_memory(&provider.served());
            note!("Data: {}. Stop with Ctrl-C; running answers are finished first.", home.path().display());
            let settlement = match &till {
                None => None,
                Some(till) => {
                    let key = NodeKey::load_or_create(&home.key())?.signer().clone();
                    let roots: Vec<ModelRoot> = provider.models().iter().map(|card| card.root).collect();
                    let (ledger, store) = (till.ledger().clone(), Arc::clone(provider.store()));
                    Some(settlement::settlement(home, ledger, key, store, &roots, None).await?)
                }
            };
            let relay = match instead {
                None => provider.relay(),
                Some(instead) => instead(&provider).routes(),
            };
            let relay = match &settlement {
                None => relay,
                Some(settlement) => {
                    provider.show(settlement.metrics());
                    relay.merge(settlement.routes())
                }
            };
            // `assay verify` finds the node of its data directory by this file; a stale one only costs it an attempt.
            let announced = home.node_address();
            std::fs::write(&announced, at.to_string()).with_context(|| announced.display().to_string())?;
            let files = Arc::new(FolderStore::open(&home.path().join("node").join("files"))?);
            let (options, file_options) = (ServerOptions::default(), FileOptions::default());
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let shutdown = async {
                tokio::select! {
                    () = stop_signal() => {}
                    // Without a sender, only the signal stops.
                    Ok(()) = stopped => {}
                }
            };
            let serving = serve_with_files(
                listener,
                Arc::clone(&provider),
                options,
                files,
                file_options,
                relay,
                shutdown,
            );
            let served = async {
                match early {
                    None => serving.await.map_err(Into::into),
                    Some(early) => early.beside(home, &provider, engine, serving, stop).await,
                }
            };
            // What a node that is paid does on the ledger beside serving: rounds on a thread of their own, since disputes execute.
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let every = Duration::from_secs(self.settle_every);
            let rounds = settlement.map(|s| s.start(every, async { drop(ended.await) })).transpose()?;
            let watching = async {
                match &till {
                    Some(till) => till.watch().await,
                    None => std::future::pending().await,
                }
            };
            let served = tokio::select! {
                served = served => served,
                () = watching => Ok(()),
            };
            // The node has stopped either way.
            let _ = std::fs::remove_file(&announced);
            drop(end);
            if let Some(rounds) = rounds {
                // A round that is under way ends first; a panic of it was reported where it happened.
                let _ = tokio::task::spawn_blocking(move || rounds.join()).await;
            }
            served?;
            note!("Stopped.");
            Ok(())
        })
    }
}

impl Server {
    /// The till of a node that is enrolled.
    async fn till(&self, home: &Home, provider: &Provider) -> Result<Till> {
        let ledger = self.ledger.ledger(home).await?;
        let node = address(&provider.address());
        let enrolled = ledger.node(node).await?;
        match enrolled {
            Some(found) if found.struck => {
                bail!("{node} was struck on this ledger, and is paid by nobody any more")
            }
            Some(found) if found.roles & Role::Provider as u8 != 0 => {}
            _ => bail!(
                "{node} is not enrolled as a provider; `assay stake 0 --role provider --endpoint http://HOST:PORT` does it, with an amount for its stake"
            ),
        }
        let till = Till::open(ledger, provider.address(), Arc::clone(provider.store())).await;
        till.context("the ledger cannot be read")
    }
}

/// Resolves when the process is asked to stop.
pub async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            },
            Err(_) => {
                let _ = tokio::signal::ctrl_c().await;
            }
        }
    }
    #[cfg(not(unix))]
    {
        let _ = tokio::signal::ctrl_c().await;
    }
}
