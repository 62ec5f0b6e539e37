//! The folder of one pull: `files/` holds what is whole and verified, `parts/` what is not.
//!
//! Its name follows from the source, so that the same pull finds what it left. One process works in it at a time.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use super::error::{SourceError, shown};
use crate::store::Collect;

/// Most bytes of a file's name, folders included.
const NAME_BYTES_MAX: usize = 1024;
/// Characters of the name of a pull's folder.
const FOLDER_NAME_CHARS: usize = 32;

/// A folder that this process works in.
pub(super) struct Folder {
    path: PathBuf,
    lock: PathBuf,
    /// Held open for the lock.
    _held: File,
}

impl Folder {
    /// The folder below `pulls` for a source that `key` describes.
    pub(super) fn open(pulls: &Path, key: &[&str]) -> Result<Folder, SourceError> {
        let mut hasher = blake3::Hasher::new();
        for part in key {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let name: String = hasher.finalize().to_hex().chars().take(FOLDER_NAME_CHARS).collect();
        let (path, lock) = (pulls.join(&name), pulls.join(format!("{name}.lock")));
        std::fs::create_dir_all(pulls).map_err(SourceError::io(pulls))?;
        let io = SourceError::io(&lock);
        let held = File::options().write(true).create(true).truncate(false).open(&lock).map_err(&io)?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SourceError::Locked { path }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // Whoever held the lock before may have removed the file between our opening and locking it.
        let ours = held.metadata().map_err(&io)?;
        let there = std::fs::metadata(&lock).map_err(&io)?;
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(SourceError::Locked { path });
        }
        let folder = Folder { path, lock, _held: held };
        for inner in [folder.files(), folder.parts()] {
            std::fs::create_dir_all(&inner).map_err(SourceError::io(&inner))?;
        }
        Ok(folder)
    }

    /// Where whole files lie.
    pub(super) fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    fn parts(&self) -> PathBuf {
        self.path.join("parts")
    }

    /// Where a file of this name lies when it is whole. The name has passed [`check_name`].
    pub(super) fn file(&self, name: &str) -> Result<PathBuf, SourceError> {
        let path = self.files().join(name);
        let parent = path.parent().unwrap_or(&self.path);
        std::fs::create_dir_all(parent).map_err(SourceError::io(parent))?;
        Ok(path)
    }

    /// Where a part of a file of this name lies. Its own name follows from the file's, whatever characters that has.
    pub(super) fn part(&self, name: &str) -> PathBuf {
        self.parts().join(format!("{}.part", &blake3::hash(name.as_bytes()).to_hex()[..32]))
    }

    /// Removes everything.
    fn remove(self) -> Result<(), SourceError> {
        std::fs::remove_dir_all(&self.path).map_err(SourceError::io(&self.path))?;
        std::fs::remove_file(&self.lock).map_err(SourceError::io(&self.lock))
    }
}

/// A pull that nobody goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// Its folder.
    pub path: PathBuf,
    /// Bytes in it.
    pub bytes: u64,
}

/// The pulls below `pulls` in which no process works and nothing was written since `before`. They are deleted, or only listed.
pub fn abandoned(pulls: &Path, before: SystemTime, act: Collect) -> Result<Vec<Abandoned>, SourceError> {
    let mut found = Vec::new();
    if !pulls.exists() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(pulls).map_err(SourceError::io(pulls))? {
        let path = entry.map_err(SourceError::io(pulls))?.path();
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            name.len() == FOLDER_NAME_CHARS && name.bytes().all(|b| b.is_ascii_hexdigit())
        });
        if !named || !path.is_dir() {
            continue;
        }
        let lock = path.with_extension("lock");
        let held = File::options().write(true).create(true).truncate(false).open(&lock);
        let held = held.map_err(SourceError::io(&lock))?;
        let (bytes, touched) = measured(&path).map_err(SourceError::io(&path))?;
        if held.try_lock().is_err() || touched >= before {
            continue;
        }
        if act == Collect::Delete {
            std::fs::remove_dir_all(&path).map_err(SourceError::io(&path))?;
            std::fs::remove_file(&lock).map_err(SourceError::io(&lock))?;
        }
        found.push(Abandoned { path, bytes });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Bytes below a folder, and when anything in it was written last.
fn measured(folder: &Path) -> std::io::Result<(u64, SystemTime)> {
    let (mut bytes, mut touched) = (0, std::fs::metadata(folder)?.modified()?);
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let met = std::fs::symlink_metadata(&path)?;
        let (inner, at) = if met.is_dir() { measured(&path)? } else { (met.len(), met.modified()?) };
        bytes += inner;
        touched = touched.max(at);
    }
    Ok((bytes, touched))
}

/// What was fetched. It stays in its folder when this is dropped, for the next try, and is held for this process until then.
pub struct Fetched {
    /// Folder of a checkpoint, or one file.
    pub path: PathBuf,
    /// What to call the model, if nobody says otherwise; `None` where the file says it.
    pub name: Option<String>,
    /// The source, pinned to what was fetched.
    pub source: String,
    /// The commit it was pinned to.
    pub commit: Option<String>,
    pub(super) folder: Folder,
}

impl Fetched {
    /// Removes what was fetched, when it is not needed any more.
    pub fn discard(self) -> Result<(), SourceError> {
        self.folder.remove()
    }
}

/// Refuses a name from a server that could lead out of a folder, or that a file system could take for another.
pub(super) fn check_name(from: &str, name: &str) -> Result<(), SourceError> {
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.len() > 255;
    let climbs = name.split('/').any(bad)
        || name.contains(['\\', ':'])
        || name.chars().any(char::is_control)
        || name.len() > NAME_BYTES_MAX
        || !Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    if climbs {
        return Err(SourceError::UnsafeName { from: shown(from), name: shown(name) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_folder() {
        let longest = "a".repeat(255);
        for good in ["config.json", "1_Pooling/config.json", "...", "a..b", "é", &longest] {
            assert_eq!(check_name("x", good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(256);
        let deep = ["abc"; 257].join("/");
        for bad in [
            "", ".", "..", "../a", "a/../b", "a/./b", "/a", "a//b", "a/", "a\\b", "..\\a", "C:a", "a\0b",
            "a\nb", &too_long, &deep,
        ] {
            assert_eq!(check_name("x", bad).unwrap_err().code(), "source_unsafe_name", "{bad:?}");
        }
        assert_eq!(check_name("x", &deep[..NAME_BYTES_MAX - 1]), Ok(()));
    }

    #[test]
    fn one_process_works_in_a_folder() {
        let pulls = tempfile::tempdir().unwrap();
        let one = Folder::open(pulls.path(), &["a", "b"]).unwrap();
        assert_eq!(Folder::open(pulls.path(), &["a", "b"]).err().unwrap().code(), "source_locked");
        let other = Folder::open(pulls.path(), &["ab", ""]).unwrap();
        assert_ne!(one.path, other.path);
        std::fs::write(one.file("1/x").unwrap(), "x").unwrap();
        drop(one);
        let again = Folder::open(pulls.path(), &["a", "b"]).unwrap();
        assert!(again.file("1/x").unwrap().exists());
        again.remove().unwrap();
        other.remove().unwrap();
        assert_eq!(std::fs::read_dir(pulls.path()).unwrap().count(), 0);
    }

    #[test]
    fn abandoned_pulls_go_and_others_stay() {
        use std::time::Duration;
        let pulls = tempfile::tempdir().unwrap();
        let old = Folder::open(pulls.path(), &["old"]).unwrap();
        std::fs::write(old.part("weights"), [1; 1000]).unwrap();
        let path = old.path.clone();
        std::fs::create_dir(pulls.path().join("store")).unwrap();
        let later = SystemTime::now() + Duration::from_secs(1000);
        let list = |before, act| abandoned(pulls.path(), before, act).unwrap();
        // While a process works in it, and while it is young.
        assert!(list(later, Collect::Delete).is_empty());
        drop(old);
        assert!(list(SystemTime::UNIX_EPOCH, Collect::Delete).is_empty());
        let there = [Abandoned { path: path.clone(), bytes: 1000 }];
        assert_eq!(list(later, Collect::DryRun), there);
        assert_eq!(list(later, Collect::Delete), there);
        assert!(!path.exists() && pulls.path().join("store").exists());
        assert!(list(later, Collect::Delete).is_empty());
        Folder::open(pulls.path(), &["old"]).unwrap();
    }
}
