//! Artifacts as files that are still being written: opened as soon as everything before the constants is there.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use assay_core::canonical::Canonical as _;

use super::{Artifact, ArtifactError, HEADER, MAGIC, Manifest};
use crate::presence::Presence;

impl Artifact {
    /// Maps a file of which `presence` says what is there; `None` while program, tokenizer and template are not. The file has its full
    /// length from the beginning, and nobody else changes or shortens it. `name` stands for a path in messages.
    ///
    /// Constants are checked one by one as operations need them, and none is read before it is there: execute such an artifact by
    /// passes ([`crate::forward::Executor::go_on`]). What it computes before [`Artifact::check_arrived`] is from content that nobody
    /// has compared with a model root.
    pub fn open_arriving(
        name: &Path,
        file: &File,
        presence: &Arc<Presence>,
    ) -> Result<Option<Artifact>, ArtifactError> {
        let path = name.to_owned();
        let io = |source| ArtifactError::Io { path: path.clone(), source };
        let (there, got) = (presence.front(), file.metadata().map_err(io)?.len());
        if got != presence.size() {
            return Err(ArtifactError::Length { path, got, expected: presence.size() });
        }
        if there < got.min(HEADER as u64) {
            return Ok(None);
        }
        // SAFETY: bytes of this file change once, from those of a hole to their own, before they are announced, and are read
        // only afterwards; the lock of the presence orders the two. Its length does not change, by the contract above.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(io)?;
        // A head that cannot be one is refused at once, with a reason.
        let can_be = |head: &u64| map.starts_with(&MAGIC) && *head <= got;
        if head_bytes(&map, there).filter(can_be).is_some_and(|head| there < head) {
            return Ok(None);
        }
        Artifact::new(path, Box::new(map), Some(Arc::clone(presence))).map(Some)
    }

    /// Of an artifact that arrived: checks all that [`Artifact::open`] checks, and the root. From then on it is like any other.
    ///
    /// # Panics
    /// When not all bytes were announced.
    pub fn check_arrived(&self, progress: &dyn Fn(u64)) -> Result<(), ArtifactError> {
        let Some(presence) = self.presence.as_ref().filter(|p| !p.is_settled()) else { return Ok(()) };
        assert_eq!(presence.bytes(), presence.size(), "all of the file is there");
        self.check_tensors()?;
        self.check_root(progress)?;
        presence.settle();
        Ok(())
    }

    /// What of it is there, if it arrives.
    pub fn presence(&self) -> Option<&Arc<Presence>> {
        self.presence.as_ref()
    }
}

/// Bytes before the constants, as far as the first `there` bytes tell.
fn head_bytes(bytes: &[u8], there: u64) -> Option<u64> {
    let (_, length) = bytes.first_chunk::<HEADER>()?.split_last_chunk::<8>()?;
    let manifest = u64::from_le_bytes(*length).saturating_add(HEADER as u64);
    if there < manifest {
        return Some(manifest);
    }
    let manifest_bytes = bytes.get(HEADER..usize::try_from(manifest).ok()?)?;
    let tokenizer = Manifest::from_canonical_bytes(manifest_bytes).map_or(0, |m| m.tokenizer_len);
    manifest.checked_add(tokenizer)
}
