//! Where the builder's files lie: one folder, append-only files, renames.
//!
//! Invariant: what was flushed is there after a power cut, and so is every name once the names were flushed. Everything that the
//! builder does to a disk goes through [`Disk`], so that a test can stop it after any step. It refuses a second process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::limits::HANDLES_MAX;

/// A folder of files. Names have no folders in them.
pub trait Disk: std::fmt::Debug {
    /// All names.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Length of a file.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Fills `into` from `at` on, or fails.
    fn read(&self, name: &str, at: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes at the end of a file, which is made if there is none.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Shortens a file.
    fn cut(&mut self, name: &str, size: u64) -> io::Result<()>;
    /// Waits until a file's content is durable.
    fn flush(&mut self, name: &str) -> io::Result<()>;
    /// Renames a file, over another of that name if there is one.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Waits until makings, renames and removals are durable.
    fn flush_names(&mut self) -> io::Result<()>;
}

const LOCK: &str = "lock";

/// A folder of the system's files, for one process at a time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Held as long as this is: the lock ends with the process, however it ends.
    _lock: File,
    /// Most recently used last.
    handles: Mutex<Vec<(String, File)>>,
}

/// Whether a file that is not there is to be made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Fail,
}

impl Folder {
    /// Opens a folder, making it if there is none. Fails with `WouldBlock` while another process has it.
    pub fn open(path: &Path) -> io::Result<Folder> {
        std::fs::create_dir_all(path)?;
        let lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process has this folder"));
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
        Ok(Folder { path: path.to_owned(), _lock: lock, handles: Mutex::new(Vec::new()) })
    }

    fn with<T>(
        &self,
        name: &str,
        missing: Missing,
        act: impl FnOnce(&mut File) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handle = match handles.iter().position(|(n, _)| n == name) {
            Some(i) => handles.remove(i),
            None => {
                let mut options = OpenOptions::new();
                options.read(true).append(true).create(missing == Missing::Make);
                (name.to_owned(), options.open(self.path.join(name))?)
            }
        };
        let done = act(&mut handle.1);
        if handles.len() >= HANDLES_MAX {
            handles.remove(0);
        }
        handles.push(handle);
        done
    }

    fn forget(&self, name: &str) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).retain(|(n, _)| n != name);
    }
}

impl Disk for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // What is not Unicode is not ours.
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path.join(name))?.len())
    }

    fn read(&self, name: &str, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.with(name, Missing::Fail, |file| {
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(into)
        })
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.with(name, Missing::Make, |file| file.write_all(bytes))
    }

    fn cut(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.with(name, Missing::Fail, |file| file.set_len(size))
    }

    fn flush(&mut self, name: &str) -> io::Result<()> {
        // Data and length; `fdatasync` leaves out only times.
        self.with(name, Missing::Fail, |file| file.sync_data())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.forget(name);
        std::fs::remove_file(self.path.join(name))
    }

    #[cfg(unix)]
    fn flush_names(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Elsewhere a folder is no file; names are as durable as the system makes them.
    #[cfg(not(unix))]
    fn flush_names(&mut self) -> io::Result<()> {
        Ok(())
    }
}
