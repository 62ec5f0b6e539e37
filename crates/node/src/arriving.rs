//! A release that is served while it arrives.
//!
//! 1. A file of the artifact's length is made without a name: a crash leaves nothing of it. The provider expects the model.
//! 2. The artifact is fetched into the store. What was verified there is copied into the file and announced. So its bytes are
//!    written twice; in return the store may have tiles of it in other files, and nobody maps a file that the store still changes.
//! 3. Once program and tokenizer are there, the model is served. From then on the fetch asks first for what an operation waits
//!    for, then for constants in the order of the program, then for the rest.
//! 4. When all is there, all of it is checked, the model's root included. Only then may there be receipts.
//!
//! Any failure withdraws the model. What the store has stays there, and the next fetch goes on with it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use assay_core::id::ModelRoot;
use assay_engine::artifact::{Artifact, ArtifactError};
use assay_engine::batch::{BatchLimits, Draft};
use assay_engine::kernel::Kernel;
use assay_engine::pool::Pool;
use assay_engine::presence::Presence;
use assay_engine::text::TextError;
use assay_hub::blob::{TILE_BYTES, tiles};
use assay_hub::fetch::{FetchError, FetchOptions, Fetched, First, Progress, fetch};
use assay_hub::peer::{Dialer, PeerAddress};
use assay_hub::release::Release;
use assay_hub::store::{Blob, Partial, Store};
use assay_hub::tile_set::TileSet;

use crate::provider::Provider;
use crate::serving::ServedModel;

/// Time after which is looked for new tiles even if the fetch said nothing: it speaks when a tile was verified, and tiles are there
/// when they were written.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes that are copied at a time.
const COPY_TILES: u64 = 64;

/// Why a model did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ArriveError {
    /// It could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is no artifact, or its content is not what its root says.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// It is another model than its release says.
    #[error("the artifact's root is {got}, and its publisher said {said}: do not trust this release")]
    Root {
        /// The artifact's.
        got: ModelRoot,
        /// The release's.
        said: ModelRoot,
    },
    /// A file could not be made, read or written.
    #[error("cannot {act}: {source}")]
    Io {
        /// What was to be done.
        act: &'static str,
        /// Why it was not.
        source: io::Error,
    },
    /// The thread that copies did not survive.
    #[error("the thread that copies what arrives ended unexpectedly")]
    CopierLost,
}

impl ArriveError {
    /// A stable name.
    pub fn code(&self) -> &'static str {
        match self {
            ArriveError::Fetch(error) => error.code(),
            ArriveError::Artifact(error) => error.code(),
            ArriveError::Text(error) => error.code(),
            ArriveError::Root { .. } => "release_root",
            ArriveError::Io { .. } => "arrive_io",
            ArriveError::CopierLost => "copier_lost",
        }
    }

    fn io(act: &'static str) -> impl Fn(io::Error) -> ArriveError {
        move |source| ArriveError::Io { act, source }
    }
}

/// What served models are executed with.
#[derive(Clone)]
pub struct Engine {
    /// The kernel.
    pub kernel: Kernel,
    /// The threads.
    pub pool: Arc<Pool>,
    /// What each takes on.
    pub limits: BatchLimits,
    /// What proposes tokens for those that have its tokens.
    pub draft: Option<Arc<Artifact>>,
}

impl Engine {
    /// Starts serving a model.
    pub fn start(&self, artifact: Arc<Artifact>) -> Result<ServedModel, TextError> {
        // For itself it would be no faster.
        let draft = self.draft.as_ref().filter(|draft| draft.root() != artifact.root());
        let draft = draft.and_then(|draft| Draft::of(draft, &artifact).ok());
        ServedModel::start(artifact, self.kernel, Arc::clone(&self.pool), self.limits, draft)
    }
}

/// What is to arrive, and from where.
pub struct Errand<'a> {
    /// The release.
    pub release: &'a Release,
    /// Who keeps it.
    pub peers: &'a [PeerAddress],
    /// How they are reached.
    pub dialer: &'a Dialer,
    /// Where it is fetched to.
    pub store: &'a Store,
    /// A folder on a disk with room for the artifact, for the file that is executed.
    pub folder: &'a Path,
}

/// Fetches a release and serves it from `provider` meanwhile. When this returns, its content was checked and answers get receipts;
/// after an error the model is withdrawn. Dropping the future leaves the model where it is: drop the provider too.
pub async fn arrive(
    provider: &Arc<Provider>,
    errand: Errand<'_>,
    engine: Engine,
    options: FetchOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Fetched, ArriveError> {
    let root = errand.release.root;
    let arrived = attempt(provider, errand, engine, options, progress).await;
    if let Err(error) = &arrived {
        let (provider, reason) = (Arc::clone(provider), error.to_string());
        // It waits for the model's thread.
        let withdrawn = tokio::task::spawn_blocking(move || provider.withdraw(root, &reason));
        withdrawn.await.map_err(|_| ArriveError::CopierLost)?;
    }
    arrived
}

async fn attempt(
    provider: &Arc<Provider>,
    errand: Errand<'_>,
    engine: Engine,
    mut options: FetchOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Fetched, ArriveError> {
    let Errand { release, peers, dialer, store, folder } = errand;
    let file = empty_file(folder, release.size)?;
    let presence = Arc::new(Presence::new(release.size));
    provider.expect(&release.name.to_string(), release.root, Arc::clone(&presence));
    let first = First::default();
    first.set(std::iter::once(0..tiles(release.size)).collect());
    options.first = first.clone();
    let mut copier = Copier {
        provider: Arc::clone(provider),
        store: store.clone(),
        release: release.clone(),
        engine,
        file,
        presence,
        first,
        partial: None,
        copied: TileSet::empty(tiles(release.size)),
        buffer: Vec::new(),
        artifact: None,
        order: Vec::new(),
    };
    let (news, inbox) = sync_channel(1);
    let mut copying = tokio::task::spawn_blocking(move || {
        copier.follow(&inbox)?;
        Ok::<_, ArriveError>(copier)
    });
    let mut tell = |p: Progress| {
        progress(p);
        // A word that is waiting is as good as two.
        let _ = news.try_send(());
    };
    let fetched = tokio::select! {
        fetched = fetch(store, release.blob, Some(release.size), peers, dialer, &options, &mut tell) => fetched?,
        ended = &mut copying => {
            return Err(match ended {
                Ok(Err(error)) => error,
                _ => ArriveError::CopierLost,
            });
        }
    };
    drop(news);
    let mut copier = copying.await.map_err(|_| ArriveError::CopierLost)??;
    let blob = fetched.blob.clone();
    let checked = tokio::task::spawn_blocking(move || copier.conclude(&blob));
    checked.await.map_err(|_| ArriveError::CopierLost)??;
    Ok(fetched)
}

/// A file without a name, full of holes.
fn empty_file(folder: &Path, size: u64) -> Result<File, ArriveError> {
    std::fs::create_dir_all(folder).map_err(ArriveError::io("make the folder of models"))?;
    let file = tempfile::tempfile_in(folder).map_err(ArriveError::io("make a file for the model"))?;
    file.set_len(size).map_err(ArriveError::io("make a file for the model"))?;
    Ok(file)
}

/// Brings what is verified to those who execute it.
struct Copier {
    provider: Arc<Provider>,
    store: Store,
    release: Release,
    engine: Engine,
    file: File,
    presence: Arc<Presence>,
    first: First,
    partial: Option<Partial>,
    copied: TileSet,
    buffer: Vec<u8>,
    /// Once it is served.
    artifact: Option<Arc<Artifact>>,
    /// Tiles in the order of the program.
    order: Vec<Range<u64>>,
}

impl Copier {
    /// Copies what arrives until the fetch has ended.
    fn follow(&mut self, news: &Receiver<()>) -> Result<(), ArriveError> {
        loop {
            match news.recv_timeout(LOOK_EVERY) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.partial = self.partial.take().or_else(|| self.store.arriving(self.release.blob));
            if let Some(partial) = self.partial.clone() {
                self.copy(partial.have(), &|at, bytes| partial.read_at(at, bytes))?;
            }
            self.steer();
        }
    }

    /// Copies the rest, and checks everything.
    fn conclude(&mut self, blob: &Blob) -> Result<(), ArriveError> {
        self.partial = None;
        self.copy(TileSet::full(tiles(blob.size())), &|at, bytes| blob.read_at(at, bytes))?;
        let artifact = self.artifact.clone().ok_or(ArriveError::CopierLost)?;
        artifact.check_arrived(&|_| ())?;
        self.provider.settle(artifact.root());
        Ok(())
    }

    fn copy(
        &mut self,
        mut have: TileSet,
        read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), ArriveError> {
        self.copied.ranges().for_each(|range| have.remove(range));
        for range in have.ranges() {
            for from in range.clone().step_by(COPY_TILES as usize) {
                let piece = from..(from + COPY_TILES).min(range.end);
                let at = piece.start * TILE_BYTES;
                let end = (piece.end * TILE_BYTES).min(self.presence.size());
                self.buffer.resize((end - at) as usize, 0);
                read(at, &mut self.buffer).map_err(ArriveError::io("read what arrived"))?;
                self.file
                    .write_all_at(&self.buffer, at)
                    .map_err(ArriveError::io("write the model's file"))?;
                self.presence.announce(at..end);
                self.copied.insert(piece);
            }
            self.open()?;
        }
        Ok(())
    }

    /// Serves the model once its head is there.
    fn open(&mut self) -> Result<(), ArriveError> {
        if self.artifact.is_some() {
            return Ok(());
        }
        let Release { name, version, root: said, .. } = &self.release;
        let label = format!("{name}@{version}");
        let Some(artifact) = Artifact::open_arriving(Path::new(&label), &self.file, &self.presence)? else {
            return Ok(());
        };
        if artifact.root() != *said {
            return Err(ArriveError::Root { got: artifact.root(), said: *said });
        }
        self.order = artifact.order().iter().map(tiles_of).collect();
        // Before the tokenizer is loaded, which takes a while.
        self.first.set(self.order.clone());
        let artifact = Arc::new(artifact);
        self.provider.serve(self.engine.start(Arc::clone(&artifact))?);
        self.artifact = Some(artifact);
        Ok(())
    }

    /// Tells the fetch what should come first.
    fn steer(&self) {
        if self.artifact.is_some() {
            let wanted = self.presence.wanted();
            self.first.set(wanted.iter().map(tiles_of).chain(self.order.iter().cloned()).collect());
        }
    }
}

/// The tiles that bytes lie in.
fn tiles_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / TILE_BYTES..bytes.end.div_ceil(TILE_BYTES)
}
