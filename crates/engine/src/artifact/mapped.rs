//! Artifacts as mapped files.

use std::fs::File;
use std::path::Path;

use super::{Artifact, ArtifactError, HEADER};

impl Artifact {
    /// Maps a file and checks everything but its root (see [`Artifact::check_root`]).
    pub fn open(path: &Path) -> Result<Artifact, ArtifactError> {
        let io = |source| ArtifactError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() < HEADER as u64 {
            return Err(ArtifactError::Magic { path: path.to_owned() });
        }
        // SAFETY: artifacts are written once under a temporary name and never changed in place by this program; another
        // program that does would have to be stopped by file permissions.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Artifact::new(path.to_owned(), Box::new(map), None)
    }
}
