//! A file that arrives. What it claims to have is on disk, and is hashed again when the fetch goes on after a restart.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, DigestKind, Hasher};
use super::error::SourceError;

/// After how many bytes they are flushed and claimed.
const CLAIM_BYTES: u64 = 64 << 20;
/// Most bytes of the file that holds a claim.
const CLAIM_FILE_MAX: u64 = 4096;
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// What of a part is on disk, and of which content.
#[derive(Serialize, Deserialize, Default)]
struct Claim {
    bytes: u64,
    etag: Option<String>,
    total: Option<u64>,
}

/// What identifies the content that a part is of, as its server says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Identity {
    /// A strong entity tag.
    pub(super) etag: Option<String>,
    /// Bytes in all.
    pub(super) total: Option<u64>,
}

/// What a part is compared with when it is whole.
#[derive(Clone)]
pub(super) struct Promise {
    /// The digest, if one is known.
    pub(super) digest: Option<Digest>,
    /// The length, if it is known. A digest of Git's has it.
    pub(super) size: Option<u64>,
}

impl Promise {
    fn hasher(&self) -> Option<Hasher> {
        self.digest.as_ref().map(|d| Hasher::new(d.kind(), self.size.unwrap_or(0)))
    }
}

pub(super) struct Part {
    path: PathBuf,
    file: File,
    written: u64,
    claimed: u64,
    hasher: Option<Hasher>,
    promise: Promise,
    /// Of which content the bytes are.
    pub(super) identity: Identity,
}

impl Part {
    /// Begins a file, or goes on with what an earlier fetch claimed.
    pub(super) fn open(path: &Path, promise: Promise) -> Result<Part, SourceError> {
        debug_assert!(
            promise.digest.as_ref().is_none_or(|d| d.kind() != DigestKind::GitBlob || promise.size.is_some())
        );
        let io = SourceError::io(path);
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(&io)?;
        let claim = read_claim(path);
        let there = file.metadata().map_err(&io)?.len();
        // Without a digest or a tag, nobody could tell that the rest belongs to the same content.
        let may_resume = promise.digest.is_some() || claim.etag.is_some();
        let fits = claim.bytes <= there && promise.size.is_none_or(|s| claim.bytes <= s);
        let claim = if may_resume && fits { claim } else { Claim::default() };
        let mut part = Part {
            path: path.to_owned(),
            file,
            written: 0,
            claimed: claim.bytes,
            hasher: promise.hasher(),
            promise,
            identity: Identity { etag: claim.etag, total: claim.total },
        };
        part.file.set_len(claim.bytes).map_err(&io)?;
        if let Some(hasher) = &mut part.hasher {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match part.file.read(&mut buffer).map_err(&io)? {
                    0 => break,
                    n => hasher.update(&buffer[..n]),
                }
            }
        }
        part.written = part.file.seek(SeekFrom::End(0)).map_err(&io)?;
        Ok(part)
    }

    /// Bytes there are.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Appends bytes. Blocks.
    pub(super) fn append(mut self, bytes: &[u8]) -> Result<Part, SourceError> {
        self.file.write_all(bytes).map_err(SourceError::io(&self.path))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.written += bytes.len() as u64;
        if self.written - self.claimed >= CLAIM_BYTES {
            self.claim()?;
        }
        Ok(self)
    }

    /// Throws away what came.
    pub(super) fn reset(&mut self) -> Result<(), SourceError> {
        let io = SourceError::io(&self.path);
        self.file.set_len(0).map_err(&io)?;
        self.file.rewind().map_err(&io)?;
        (self.written, self.claimed) = (0, 0);
        self.hasher = self.promise.hasher();
        self.identity = Identity::default();
        remove_claim(&self.path)
    }

    /// Flushes what came, and says so on disk.
    fn claim(&mut self) -> Result<(), SourceError> {
        let io = SourceError::io(&self.path);
        self.file.sync_data().map_err(&io)?;
        let claim =
            Claim { bytes: self.written, etag: self.identity.etag.clone(), total: self.identity.total };
        let json = serde_json::to_vec(&claim).map_err(|e| io(e.into()))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(&io)?;
        file.write_all(&json).map_err(&io)?;
        file.as_file().sync_data().map_err(&io)?;
        file.persist(claim_path(&self.path)).map_err(|e| io(e.error))?;
        self.claimed = self.written;
        Ok(())
    }

    /// The digest of what came, if one was promised.
    pub(super) fn digest(&mut self) -> Option<Digest> {
        self.hasher.take().map(Hasher::finish)
    }

    /// Gives the whole file its name.
    pub(super) fn finish(mut self, to: &Path) -> Result<(), SourceError> {
        self.file.sync_all().map_err(SourceError::io(&self.path))?;
        std::fs::rename(&self.path, to).map_err(SourceError::io(to))?;
        if let Some(folder) = to.parent() {
            File::open(folder).and_then(|f| f.sync_all()).map_err(SourceError::io(folder))?;
        }
        // Nothing is left to claim.
        self.claimed = self.written;
        remove_claim(&self.path)
    }
}

/// A fetch that ends before its time, for whatever reason, keeps what came.
impl Drop for Part {
    fn drop(&mut self) {
        if self.written > self.claimed
            && let Err(error) = self.claim()
        {
            tracing::debug!(%error, "a part is not kept");
        }
    }
}

/// The digest of a file that is there, hashed as `promise` is.
pub(super) fn digest_of(path: &Path, promise: &Promise) -> Result<Option<Digest>, SourceError> {
    let Some(mut hasher) = promise.hasher() else { return Ok(None) };
    let io = SourceError::io(path);
    let mut file = File::open(path).map_err(&io)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer).map_err(&io)? {
            0 => return Ok(Some(hasher.finish())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn claim_path(part: &Path) -> PathBuf {
    part.with_extension("claim")
}

/// What is claimed; nothing if that cannot be read.
fn read_claim(part: &Path) -> Claim {
    let mut bytes = Vec::new();
    let read = File::open(claim_path(part)).and_then(|f| f.take(CLAIM_FILE_MAX).read_to_end(&mut bytes));
    read.ok().and_then(|_| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn remove_claim(part: &Path) -> Result<(), SourceError> {
    let path = claim_path(part);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(SourceError::io(&path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(bytes: &[u8]) -> Promise {
        let digest = Digest::from_hex(DigestKind::Blake3, blake3::hash(bytes).to_hex().as_str());
        Promise { digest, size: Some(bytes.len() as u64) }
    }

    #[test]
    fn a_part_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (path, to) = (folder.path().join("x.part"), folder.path().join("x"));
        let promise = promise(b"hello");
        drop(Part::open(&path, promise.clone()).unwrap().append(b"hel").unwrap());
        // Bytes after what is claimed may be anything: they were never flushed.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"???").unwrap();
        let part = Part::open(&path, promise.clone()).unwrap();
        assert_eq!(part.written(), 3);
        let mut part = part.append(b"lo").unwrap();
        assert_eq!(part.digest(), promise.digest);
        part.finish(&to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"hello");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left of the part");
        assert_eq!(digest_of(&to, &promise).unwrap(), promise.digest);
    }

    #[test]
    fn what_cannot_be_trusted_begins_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.part");
        let promise = promise(b"hello");
        let written = |promise: &Promise| Part::open(&path, promise.clone()).unwrap().written();
        let arrive = || drop(Part::open(&path, promise.clone()).unwrap().append(b"hel").unwrap());
        arrive();
        std::fs::write(claim_path(&path), r#"{"bytes":4}"#).unwrap();
        assert_eq!(written(&promise), 0, "more is claimed than is there");
        arrive();
        std::fs::write(claim_path(&path), "nonsense").unwrap();
        assert_eq!(written(&promise), 0);
        arrive();
        assert_eq!(
            written(&Promise { size: Some(2), ..promise.clone() }),
            0,
            "more is claimed than there can be"
        );
        arrive();
        assert_eq!(written(&Promise { digest: None, size: None }), 0, "no digest and no tag");
        arrive();
        let mut part = Part::open(&path, promise).unwrap();
        part.reset().unwrap();
        assert_eq!((part.written(), claim_path(&path).exists()), (0, false));
    }
}
