//! The data directory, the models in it, and which daemon uses it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use assay_core::id::ModelRoot;
use assay_engine::artifact::Artifact;

/// The model that ships inside the binary.
pub static BUILT_IN: &[u8] = include_bytes!("../../../models/stories-1.7m.assay");
/// Its path, in messages.
const BUILT_IN_NAME: &str = "(built in)";

/// How often a daemon asks for its data directory, and how long it waits in between: who only looks whether it is held lets go at once.
const HOLD_ATTEMPTS: u32 = 10;
const HOLD_PAUSE: Duration = Duration::from_millis(50);

/// A process of which a data directory has one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    Provider,
    Host,
    Gateway,
    Auditor,
}

impl Daemon {
    pub const ALL: [Daemon; 4] = [Daemon::Provider, Daemon::Host, Daemon::Gateway, Daemon::Auditor];

    pub fn name(self) -> &'static str {
        match self {
            Daemon::Provider => "provider",
            Daemon::Host => "host",
            Daemon::Gateway => "gateway",
            Daemon::Auditor => "auditor",
        }
    }

    /// What starts it.
    pub fn command(self) -> &'static str {
        match self {
            Daemon::Provider => "assay up",
            Daemon::Host => "assay host",
            Daemon::Gateway => "assay gateway",
            Daemon::Auditor => "assay auditor",
        }
    }
}

/// A data directory that is held for a daemon, until this is dropped or the process ends, however it ends: the lock is the kernel's.
pub struct Held {
    _lock: File,
}

/// A data directory.
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The directory given, or the default one. Nothing is created yet.
    pub fn open(given: Option<&Path>) -> Result<Home> {
        let root = match given {
            Some(dir) => dir.to_owned(),
            None => {
                default_dir().context("no home directory is known; give --data-dir DIR or set ASSAY_HOME")?
            }
        };
        Ok(Home { root })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The file by whose lock a daemon holds the directory.
    fn lock_path(&self, daemon: Daemon) -> PathBuf {
        self.root.join("locks").join(daemon.name())
    }

    /// Holds the directory for a daemon. Fails if another process of its kind does.
    pub fn hold(&self, daemon: Daemon) -> Result<Held> {
        let path = self.lock_path(daemon);
        let open = || -> std::io::Result<File> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            File::options().read(true).write(true).create(true).truncate(false).open(&path)
        };
        let lock = open().with_context(|| path.display().to_string())?;
        for attempt in 1..=HOLD_ATTEMPTS {
            match lock.try_lock() {
                Ok(()) => return Ok(Held { _lock: lock }),
                Err(TryLockError::WouldBlock) if attempt < HOLD_ATTEMPTS => std::thread::sleep(HOLD_PAUSE),
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(e)) => return Err(e).with_context(|| path.display().to_string()),
            }
        }
        bail!(
            "another `{}` uses {}; stop it, or give this one a data directory of its own with --data-dir",
            daemon.command(),
            self.root.display()
        )
    }

    /// Whether a daemon holds the directory now. Changes nothing.
    pub fn is_held(&self, daemon: Daemon) -> std::io::Result<bool> {
        let lock = match File::open(self.lock_path(daemon)) {
            Ok(lock) => lock,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Where the node's key is.
    pub fn key(&self) -> PathBuf {
        self.root.join("node").join("key")
    }

    /// Where the secret of a host's iroh endpoint is.
    pub fn iroh_secret(&self) -> PathBuf {
        self.root.join("node").join("iroh-secret")
    }

    /// Where answers are kept.
    pub fn receipts(&self) -> PathBuf {
        self.root.join("node").join("receipts.redb")
    }

    /// Where a running node says what it listens on.
    pub fn node_address(&self) -> PathBuf {
        self.root.join("node").join("address")
    }

    /// The gateway's database of keys and credits.
    pub fn accounts(&self) -> PathBuf {
        self.root.join("accounts.sqlite")
    }

    /// Where the development chain keeps its blocks.
    pub fn chain(&self) -> PathBuf {
        self.root.join("chain")
    }

    /// What is known of the ledger: where it is, and transactions that wait.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger")
    }

    /// Where this machine keeps blobs and the records of releases.
    pub fn hub(&self) -> PathBuf {
        self.root.join("hub")
    }

    /// Where an installed model is, or would be.
    pub fn model_path(&self, name: &str) -> PathBuf {
        self.root.join("models").join(format!("{}.assay", file_name(name)))
    }

    /// Where a light audit's key is, unless it was put elsewhere.
    pub fn key_path(&self, model: &str, epoch: u64) -> PathBuf {
        self.root.join("keys").join(format!("{}-{epoch}.key", file_name(model)))
    }

    /// Files of installed models, sorted.
    pub fn installed(&self) -> Result<Vec<PathBuf>> {
        let folder = self.root.join("models");
        if !folder.exists() {
            return Ok(vec![]);
        }
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "assay"))
            .collect();
        files.sort();
        Ok(files)
    }

    /// The installed models that can be opened; the others are warned about.
    pub fn models(&self) -> Result<Vec<Arc<Artifact>>> {
        let mut all = Vec::new();
        for path in self.installed()? {
            match Artifact::open(&path) {
                Ok(a) => all.push(Arc::new(a)),
                Err(e) => eprintln!("warning: {e}"),
            }
        }
        Ok(all)
    }

    /// The model called `name`: a file, a name or a root.
    pub fn model(&self, name: &str) -> Result<Arc<Artifact>> {
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e == "assay") && path.exists() {
            return Ok(Arc::new(Artifact::open(path)?));
        }
        let root = name.parse::<ModelRoot>().ok();
        let named = |a: &Arc<Artifact>| a.provenance().name == name || Some(a.root()) == root;
        if let Some(a) = self.models()?.into_iter().chain([built_in()?]).find(named) {
            return Ok(a);
        }
        let known: Vec<String> = self.models()?.iter().map(|a| a.provenance().name.clone()).collect();
        bail!(
            "no model called `{name}` is installed. Installed: {}. Import one with `assay import`",
            if known.is_empty() { "none but the built-in one".to_owned() } else { known.join(", ") }
        )
    }

    /// The model with this root, if there is one.
    pub fn model_by_root(&self, root: ModelRoot) -> Result<Option<Arc<Artifact>>> {
        Ok(self.models()?.into_iter().chain([built_in()?]).find(|a| a.root() == root))
    }
}

/// A model's name as a file's: a slash is no folder, and no name climbs out of its directory.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c == '/' || c == '\\' { '+' } else { c }).collect()
}

/// The built-in model.
pub fn built_in() -> Result<Arc<Artifact>> {
    Ok(Arc::new(Artifact::from_bytes(BUILT_IN_NAME, BUILT_IN)?))
}

fn default_dir() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from("XDG_DATA_HOME").or_else(|| from("HOME").map(|h| h.join(".local/share"))).map(|d| d.join("assay"))
}
