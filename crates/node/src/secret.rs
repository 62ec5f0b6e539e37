//! Secrets and their files: drawn from the system, readable by their owner alone, never replaced.

use std::io::Write as _;
use std::path::Path;

use tempfile::NamedTempFile;

/// 32 bytes that nobody else knows.
pub fn draw() -> [u8; 32] {
    alloy_primitives::B256::random().0
}

/// Writes a secret to a new file, and its folder if there is none. `false` when there is a file already, which stays as it is.
pub fn write_new(path: &Path, secret: &[u8]) -> std::io::Result<bool> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Temporary files are readable by their owner alone, and keep that when they get their name.
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(secret)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e.error),
    }
}
