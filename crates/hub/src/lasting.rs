//! A redb database that outlives a full disk.
//!
//! After the first failed read or write redb refuses everything until the file is opened again (`PreviousIo`), since nobody knows what is on the disk but
//! who reads it. Here that is done: what failed fails, and what comes next finds the database as it was last committed, as soon as the disk lets it be
//! opened. It refuses to try anything a second time by itself: whoever asked was told that it failed.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use redb::Database;

/// A disk that does not let the database be opened is asked again after this time: opening reads all of it.
const AGAIN: Duration = Duration::from_secs(1);

/// Opens the file again.
pub type Open = fn(&Path) -> Result<Database, redb::Error>;

/// A database that is opened again after a disk failed it.
pub struct Lasting {
    path: PathBuf,
    open: Open,
    held: RwLock<Held>,
}

struct Held {
    /// None as long as it cannot be opened.
    database: Option<Database>,
    /// How often it was opened again.
    reopened: u64,
    tried: Option<Instant>,
}

impl Lasting {
    /// A database that was opened, and how that is done again.
    pub fn new(path: &Path, database: Database, open: Open) -> Lasting {
        let held = Held { database: Some(database), reopened: 0, tried: None };
        Lasting { path: path.to_owned(), open, held: RwLock::new(held) }
    }

    /// Does something with the database. Fails with what redb says, and with `PreviousIo` as long as it cannot be opened again.
    pub fn with<T>(&self, act: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let (reopened, result) = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            match &held.database {
                Some(database) => (held.reopened, act(database)),
                None => {
                    let reopened = held.reopened;
                    drop(held);
                    self.reopen(reopened);
                    let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
                    let database = held.database.as_ref().ok_or(redb::Error::PreviousIo)?;
                    (held.reopened, act(database))
                }
            }
        };
        if let Err(redb::Error::Io(_) | redb::Error::PreviousIo) = result {
            self.reopen(reopened);
        }
        result
    }

    /// Opens it again, unless another has since it was seen to have failed.
    fn reopen(&self, seen: u64) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let soon = held.database.is_none() && held.tried.is_some_and(|tried| tried.elapsed() < AGAIN);
        if held.reopened != seen || soon {
            return;
        }
        // One process holds the file, and one handle of it: the failed one goes first.
        held.database = None;
        held.tried = Some(Instant::now());
        match (self.open)(&self.path) {
            Ok(database) => {
                held.database = Some(database);
                held.reopened += 1;
                tracing::warn!(path = %self.path.display(), "the disk failed; the database was opened again");
            }
            Err(e) => tracing::error!(path = %self.path.display(), reason = %e, "the disk failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase as _, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("numbers");

    fn open(path: &Path) -> Result<Database, redb::Error> {
        Ok(Database::create(path)?)
    }

    fn put(database: &Database, number: u64) -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        write.open_table(TABLE)?.insert(number, number)?;
        Ok(write.commit()?)
    }

    fn full() -> redb::Error {
        redb::Error::Io(std::io::ErrorKind::StorageFull.into())
    }

    fn numbers(lasting: &Lasting) -> Result<u64, redb::Error> {
        use redb::ReadableTableMetadata as _;
        lasting.with(|database| Ok(database.begin_read()?.open_table(TABLE)?.len()?))
    }

    #[test]
    fn what_failed_is_opened_again_and_what_was_committed_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.redb");
        let lasting = Lasting::new(&path, open(&path).unwrap(), open);
        lasting.with(|database| put(database, 1)).unwrap();
        assert!(lasting.with(|_| Err::<(), _>(full())).is_err());
        assert_eq!(lasting.held.read().unwrap().reopened, 1);
        lasting.with(|database| put(database, 2)).unwrap();
        assert_eq!(numbers(&lasting).unwrap(), 2);
    }

    #[test]
    fn as_long_as_it_cannot_be_opened_everything_fails_and_then_all_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.redb");
        let exists = |path: &Path| match path.exists() {
            true => open(path),
            false => Err(full()),
        };
        let lasting = Lasting::new(&path, open(&path).unwrap(), exists);
        lasting.with(|database| put(database, 1)).unwrap();
        let away = folder.path().join("away");
        std::fs::rename(&path, &away).unwrap();
        assert!(lasting.with(|_| Err::<(), _>(full())).is_err());
        assert!(matches!(numbers(&lasting), Err(redb::Error::PreviousIo)));
        std::fs::rename(&away, &path).unwrap();
        // It is not asked for at once, and that lasts until this says so.
        lasting.held.write().unwrap().tried = Some(Instant::now() + Duration::from_secs(3600));
        assert!(numbers(&lasting).is_err());
        lasting.held.write().unwrap().tried = None;
        assert_eq!(numbers(&lasting).unwrap(), 1);
    }
}
