//! A disk whose power can be cut after any step, and which then has forgotten, kept or torn whatever was not flushed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use assay_ledger::epochs::Disk;

/// What a disk writes whole.
const SECTOR: usize = 512;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Draws(pub u64);

impl Draws {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    flushed: Vec<u8>,
    live: Vec<u8>,
}

#[derive(Clone, Debug)]
enum NameOp {
    Make(String, u64),
    Rename(String, String),
    Remove(String),
}

fn apply(names: &mut BTreeMap<String, u64>, op: &NameOp) {
    match op {
        NameOp::Make(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameOp::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
    }
}

/// The disk itself.
#[derive(Clone, Debug, Default)]
pub struct Sim {
    contents: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    flushed_names: BTreeMap<String, u64>,
    unflushed_ops: Vec<NameOp>,
    next: u64,
    /// Writes, flushes, renames and removals so far.
    steps: u64,
    /// The power is cut in the step after so many.
    cut_after: Option<u64>,
}

impl Sim {
    fn step(&mut self) -> io::Result<()> {
        let dead = self.cut_after.is_some_and(|n| self.steps >= n);
        self.steps += 1;
        if dead { Err(io::Error::other("power cut")) } else { Ok(()) }
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file"))
    }

    fn content(&mut self, name: &str) -> io::Result<&mut Content> {
        let id = self.id(name)?;
        Ok(self.contents.get_mut(&id).unwrap())
    }

    fn op(&mut self, op: NameOp) {
        apply(&mut self.names, &op);
        self.unflushed_ops.push(op);
    }

    /// The disk after the power cut: of what was not flushed anything may be there, or nothing.
    fn after_power_cut(&self, draws: &mut Draws) -> Sim {
        let mut names = self.flushed_names.clone();
        // In order up to some point, as a journalling file system keeps them, or any of them.
        let (kept, any) = (draws.below(self.unflushed_ops.len() + 1), draws.one_in(2));
        for (i, op) in self.unflushed_ops.iter().enumerate() {
            if if any { draws.one_in(2) } else { i < kept } {
                apply(&mut names, op);
            }
        }
        let mut contents = BTreeMap::new();
        for id in names.values() {
            let Content { flushed, live } = &self.contents[id];
            let mut bytes = if draws.one_in(3) { flushed.clone() } else { live.clone() };
            if bytes.len() > flushed.len() {
                match draws.below(3) {
                    0 => bytes.truncate(flushed.len() + draws.below(bytes.len() - flushed.len() + 1)),
                    1 => {
                        for sector in flushed.len() / SECTOR..=bytes.len() / SECTOR {
                            if draws.one_in(2) {
                                let from = (sector * SECTOR).max(flushed.len());
                                let to = ((sector + 1) * SECTOR).min(bytes.len());
                                bytes[from.min(to)..to].fill(0);
                            }
                        }
                    }
                    _ => {}
                }
            }
            contents.insert(*id, Content { flushed: bytes.clone(), live: bytes });
        }
        Sim { contents, flushed_names: names.clone(), names, next: self.next, ..Sim::default() }
    }

    /// All files, for whoever damages them.
    pub fn all(&self) -> Vec<(String, Vec<u8>)> {
        self.names.iter().map(|(name, id)| (name.clone(), self.contents[id].live.clone())).collect()
    }

    /// The same disk with another content of a file.
    pub fn with(&self, name: &str, bytes: Vec<u8>) -> Sim {
        let mut other = self.clone();
        *other.content(name).unwrap() = Content { flushed: bytes.clone(), live: bytes };
        other
    }

    /// The same disk without a file.
    pub fn without(&self, name: &str) -> Sim {
        let mut other = self.clone();
        other.names.remove(name);
        other.flushed_names.remove(name);
        other
    }
}

impl Sim {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.names.keys().cloned().collect())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(self.contents[&self.id(name)?].live.len() as u64)
    }

    fn read(&self, name: &str, at: u64, into: &mut [u8]) -> io::Result<()> {
        let live = &self.contents[&self.id(name)?].live;
        let from = live.get(at as usize..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(from.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    // In the step in which the power is cut, the write may have reached the disk or not: it is there, and not flushed.

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let done = self.step();
        if !self.names.contains_key(name) {
            self.next += 1;
            self.contents.insert(self.next, Content::default());
            self.op(NameOp::Make(name.to_owned(), self.next));
        }
        self.content(name)?.live.extend_from_slice(bytes);
        done
    }

    fn cut(&mut self, name: &str, size: u64) -> io::Result<()> {
        let done = self.step();
        self.content(name)?.live.truncate(size as usize);
        done
    }

    fn flush(&mut self, name: &str) -> io::Result<()> {
        self.step()?;
        let content = self.content(name)?;
        content.flushed = content.live.clone();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let done = self.step();
        self.id(from)?;
        self.op(NameOp::Rename(from.to_owned(), to.to_owned()));
        done
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let done = self.step();
        self.id(name)?;
        self.op(NameOp::Remove(name.to_owned()));
        done
    }

    fn flush_names(&mut self) -> io::Result<()> {
        self.step()?;
        self.flushed_names = self.names.clone();
        self.unflushed_ops.clear();
        Ok(())
    }
}

/// A disk that the test holds as well as the builder.
#[derive(Clone, Debug, Default)]
pub struct Power(Rc<RefCell<Sim>>);

impl Power {
    pub fn of(sim: Sim) -> Power {
        Power(Rc::new(RefCell::new(sim)))
    }

    /// A copy of the disk as it is.
    pub fn sim(&self) -> Sim {
        self.0.borrow().clone()
    }

    /// Cuts the power in the step after the next so many; `None`: not at all.
    pub fn cut_after(&self, steps: Option<u64>) {
        let mut sim = self.0.borrow_mut();
        sim.cut_after = steps.map(|n| sim.steps + n);
    }

    pub fn steps(&self) -> u64 {
        self.0.borrow().steps
    }

    /// Kills the process alone: nothing is lost, and what was not flushed still is not.
    pub fn kill(&self) {
        self.cut_after(None);
    }

    /// Switches the power off and on again.
    pub fn cycle(&self, draws: &mut Draws) {
        let mut sim = self.0.borrow_mut();
        let steps = sim.steps;
        *sim = sim.after_power_cut(draws);
        sim.steps = steps;
    }
}

impl Disk for Power {
    fn names(&self) -> io::Result<Vec<String>> {
        self.0.borrow().names()
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.0.borrow().size(name)
    }

    fn read(&self, name: &str, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.borrow().read(name, at, into)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().append(name, bytes)
    }

    fn cut(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.0.borrow_mut().cut(name, size)
    }

    fn flush(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().flush(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.borrow_mut().rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(name)
    }

    fn flush_names(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush_names()
    }
}
