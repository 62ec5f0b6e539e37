//! The folder of a provider's epochs, in memory: what was written is there after a kill. How a power cut in the middle of a write is survived is tested
//! where the folder's owner is (`crates/ledger/tests/epochs`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use assay_ledger::epochs::Disk;

/// Files by their names; all handles are of the same folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Rc<RefCell<BTreeMap<String, Vec<u8>>>>);

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Disk for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().keys().cloned().collect())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        let files = self.0.borrow();
        files.get(name).map(|file| file.len() as u64).ok_or_else(|| missing(name))
    }

    fn read(&self, name: &str, at: u64, into: &mut [u8]) -> io::Result<()> {
        let files = self.0.borrow();
        let file = files.get(name).ok_or_else(|| missing(name))?;
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let part = file.get(at..at.saturating_add(into.len()));
        into.copy_from_slice(part.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().entry(name.to_owned()).or_default().extend_from_slice(bytes);
        Ok(())
    }

    fn cut(&mut self, name: &str, size: u64) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let file = files.get_mut(name).ok_or_else(|| missing(name))?;
        file.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(())
    }

    fn flush(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let file = files.remove(from).ok_or_else(|| missing(from))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(name).map(drop).ok_or_else(|| missing(name))
    }

    fn flush_names(&mut self) -> io::Result<()> {
        Ok(())
    }
}
