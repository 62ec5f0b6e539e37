//! The signed records that a machine knows: releases, which never change, and labels, of which the last move holds.
//!
//! One file a record, whole under its name or absent. Records come from anyone and are believed by their signatures alone; what a
//! second release of a known version says is refused, whoever signed it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot, NodeAddress};
use borsh::{BorshDeserialize, BorshSerialize};
use tempfile::NamedTempFile;

use crate::cut::Cut;
use crate::name::{Label, ModelName, Reference, Version, Which};
use crate::release::{LabelRecord, Record, RecordError, Release, Signed};

/// Most releases that a catalogue holds, and most labels.
pub const RECORDS_MAX: usize = 65_536;

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record is not believed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The version is taken.
    #[error("{release} is record {known} already and cannot become {got}: publish under another version")]
    Taken {
        /// Which: publisher, name and version.
        release: String,
        /// What it is.
        known: Hash,
        /// What was offered.
        got: Hash,
    },
    /// The label has moved on.
    #[error(
        "the label {label} of {name} is at move {known}, and this is move {got}: move it again after reading it anew"
    )]
    Stale {
        /// Which name.
        name: ModelName,
        /// Which label.
        label: Label,
        /// Where it is.
        known: u64,
        /// What was offered.
        got: u64,
    },
    /// A cut of what is not known here.
    #[error(
        "no release {release} of these bytes and this publisher is known here: tell of the release first"
    )]
    CutUnknown {
        /// The release's id, as the cut says.
        release: Hash,
    },
    /// The release has another cut.
    #[error(
        "release {release} is cut as {known} already and cannot be cut as {got}: publish another version"
    )]
    CutTaken {
        /// The release's id.
        release: Hash,
        /// What it is.
        known: Hash,
        /// What was offered.
        got: Hash,
    },
    /// There are too many.
    #[error("the catalogue holds {RECORDS_MAX} records and takes no more")]
    Full,
}

impl CatalogueError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            CatalogueError::Io { .. } => "catalogue_io",
            CatalogueError::Record(e) => e.code(),
            CatalogueError::Taken { .. } => "version_taken",
            CatalogueError::Stale { .. } => "label_stale",
            CatalogueError::CutUnknown { .. } => "release_unknown",
            CatalogueError::CutTaken { .. } => "cut_taken",
            CatalogueError::Full => "catalogue_full",
        }
    }
}

/// Why a reference leads to no release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nobody publishes it.
    #[error("no release of {reference} is known here")]
    Unknown {
        /// What was asked for.
        reference: String,
    },
    /// Several publishers use the name.
    #[error("{name} is a name of {}: say whose, as in {}/{name}", publishers.iter().map(|p| p.to_string()).collect::<Vec<_>>().join(" and of "), publishers[0])]
    Ambiguous {
        /// Which name.
        name: ModelName,
        /// Whose it is; at least two.
        publishers: Vec<NodeAddress>,
    },
    /// The name is known, the version or label is not.
    #[error("{name} has no {which}; there are {}", versions.iter().map(Version::to_string).collect::<Vec<_>>().join(", "))]
    NoVersion {
        /// Which name.
        name: ModelName,
        /// What was asked for.
        which: String,
        /// What there is.
        versions: Vec<Version>,
    },
}

impl ResolveError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ResolveError::Unknown { .. } => "release_unknown",
            ResolveError::Ambiguous { .. } => "name_ambiguous",
            ResolveError::NoVersion { .. } => "version_unknown",
        }
    }
}

/// Whether a record was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It was.
    New,
    /// It was known.
    Known,
}

type ReleaseKey = (NodeAddress, ModelName, Version);
type LabelKey = (NodeAddress, ModelName, Label);

#[derive(Default)]
struct Records {
    releases: BTreeMap<ReleaseKey, Signed<Release>>,
    labels: BTreeMap<LabelKey, Signed<LabelRecord>>,
    cuts: BTreeMap<Hash, Signed<Cut>>,
}

/// Known records, in a folder.
pub struct Catalogue {
    folder: PathBuf,
    records: RwLock<Records>,
    damaged: Vec<PathBuf>,
}

impl Catalogue {
    /// Reads the records of `folder`, which is made if there is none. Files that hold no believed record are left alone and listed.
    pub fn open(folder: &Path) -> Result<Catalogue, CatalogueError> {
        let (mut records, mut damaged) = (Records::default(), Vec::new());
        for path in files(&folder.join("releases"))? {
            match read::<Release>(&path) {
                Some(signed) => {
                    let r = &signed.record;
                    records.releases.insert((r.publisher, r.name.clone(), r.version.clone()), signed);
                }
                None => damaged.push(path),
            }
        }
        for path in files(&folder.join("labels"))? {
            match read::<LabelRecord>(&path) {
                Some(signed) => {
                    let r = &signed.record;
                    records.labels.insert((r.publisher, r.name.clone(), r.label.clone()), signed);
                }
                None => damaged.push(path),
            }
        }
        for path in files(&folder.join("cuts"))? {
            match read::<Cut>(&path) {
                Some(signed) => drop(records.cuts.insert(signed.record.release, signed)),
                None => damaged.push(path),
            }
        }
        Ok(Catalogue { folder: folder.to_owned(), records: RwLock::new(records), damaged })
    }

    /// Files that hold no believed record.
    pub fn damaged(&self) -> &[PathBuf] {
        &self.damaged
    }

    /// Takes a release; it is durable on return.
    pub fn add(&self, signed: Signed<Release>) -> Result<Added, CatalogueError> {
        let signed = signed.verified()?;
        let r = &signed.record;
        let key = (r.publisher, r.name.clone(), r.version.clone());
        let mut records = self.records.write().expect("no thread panics with the records");
        if let Some(known) = records.releases.get(&key) {
            if known.record == *r {
                return Ok(Added::Known);
            }
            let release = format!("{}/{}@{}", r.publisher, r.name, r.version);
            return Err(CatalogueError::Taken { release, known: known.id(), got: signed.id() });
        }
        if records.releases.len() >= RECORDS_MAX {
            return Err(CatalogueError::Full);
        }
        self.write("releases", &format!("{}_{}_{}", r.publisher, r.name, r.version), &signed)?;
        records.releases.insert(key, signed);
        Ok(Added::New)
    }

    /// Takes a label's move; it is durable on return.
    pub fn move_label(&self, signed: Signed<LabelRecord>) -> Result<Added, CatalogueError> {
        let signed = signed.verified()?;
        let r = &signed.record;
        let key = (r.publisher, r.name.clone(), r.label.clone());
        let mut records = self.records.write().expect("no thread panics with the records");
        match records.labels.get(&key) {
            Some(known) if known.record == *r => return Ok(Added::Known),
            Some(known) if known.record.sequence >= r.sequence => {
                let (known, got) = (known.record.sequence, r.sequence);
                return Err(CatalogueError::Stale { name: key.1, label: key.2, known, got });
            }
            None if records.labels.len() >= RECORDS_MAX => return Err(CatalogueError::Full),
            _ => {}
        }
        self.write("labels", &format!("{}_{}_{}", r.publisher, r.name, r.label), &signed)?;
        records.labels.insert(key, signed);
        Ok(Added::New)
    }

    /// Takes the cut of a release that is known; it is durable on return.
    pub fn add_cut(&self, signed: Signed<Cut>) -> Result<Added, CatalogueError> {
        let signed = signed.verified()?;
        let release = signed.record.release;
        if !self.by_id(release).is_some_and(|known| signed.record.is_of(&known)) {
            return Err(CatalogueError::CutUnknown { release });
        }
        let mut records = self.records.write().expect("no thread panics with the records");
        match records.cuts.get(&release) {
            Some(known) if known.record == signed.record => return Ok(Added::Known),
            Some(known) => {
                return Err(CatalogueError::CutTaken { release, known: known.id(), got: signed.id() });
            }
            None => {}
        }
        self.write("cuts", &release.to_string(), &signed)?;
        records.cuts.insert(release, signed);
        Ok(Added::New)
    }

    /// How a release was cut.
    pub fn cut(&self, release: Hash) -> Option<Signed<Cut>> {
        self.records.read().expect("no thread panics with the records").cuts.get(&release).cloned()
    }

    /// All releases, by publisher, name and version.
    pub fn releases(&self) -> Vec<Signed<Release>> {
        self.records.read().expect("no thread panics with the records").releases.values().cloned().collect()
    }

    /// All labels.
    pub fn labels(&self) -> Vec<Signed<LabelRecord>> {
        self.records.read().expect("no thread panics with the records").labels.values().cloned().collect()
    }

    /// The releases of a model.
    pub fn of_root(&self, root: ModelRoot) -> Vec<Signed<Release>> {
        self.releases().into_iter().filter(|s| s.record.root == root).collect()
    }

    /// The release with this id.
    pub fn by_id(&self, id: Hash) -> Option<Signed<Release>> {
        self.releases().into_iter().find(|s| s.id() == id)
    }

    /// Where a label is.
    pub fn label(
        &self,
        publisher: NodeAddress,
        name: &ModelName,
        label: &Label,
    ) -> Option<Signed<LabelRecord>> {
        let key = (publisher, name.clone(), label.clone());
        self.records.read().expect("no thread panics with the records").labels.get(&key).cloned()
    }

    /// What a reference means.
    pub fn resolve(&self, reference: &Reference) -> Result<Signed<Release>, ResolveError> {
        let records = self.records.read().expect("no thread panics with the records");
        let named = records.releases.keys().filter(|(publisher, name, _)| {
            *name == reference.name && reference.publisher.is_none_or(|p| p == *publisher)
        });
        let mut publishers: Vec<NodeAddress> = named.map(|(publisher, ..)| *publisher).collect();
        publishers.dedup();
        let name = &reference.name;
        let publisher = match publishers[..] {
            [] => return Err(ResolveError::Unknown { reference: reference.to_string() }),
            [publisher] => publisher,
            _ => return Err(ResolveError::Ambiguous { name: name.clone(), publishers }),
        };
        let version = match &reference.which {
            Which::Version(version) => Some(version.clone()),
            Which::Label(label) => records
                .labels
                .get(&(publisher, name.clone(), label.clone()))
                .map(|l| l.record.version.clone()),
        };
        let found = version.and_then(|v| records.releases.get(&(publisher, name.clone(), v)));
        found.cloned().ok_or_else(|| ResolveError::NoVersion {
            name: name.clone(),
            which: match &reference.which {
                Which::Version(version) => format!("version {version}"),
                Which::Label(label) => format!("label {label}"),
            },
            versions: records
                .releases
                .keys()
                .filter(|(p, n, _)| *p == publisher && n == name)
                .map(|(.., v)| v.clone())
                .collect(),
        })
    }

    fn write<R: Record>(&self, kind: &str, name: &str, signed: &Signed<R>) -> Result<(), CatalogueError>
    where
        Signed<R>: Stored,
    {
        let folder = self.folder.join(kind);
        let io = |source| CatalogueError::Io { path: folder.clone(), source };
        let mut file = NamedTempFile::new_in(&folder).map_err(io)?;
        file.write_all(&signed.to_canonical_bytes()).map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(folder.join(name)).map_err(|e| io(e.error))?;
        fs::File::open(&folder).and_then(|f| f.sync_all()).map_err(io)
    }
}

/// What a file holds.
trait Stored: Canonical {}
impl Stored for Signed<Release> {}
impl Stored for Signed<LabelRecord> {}
impl Stored for Signed<Cut> {}

impl Canonical for Signed<Release> {
    const TAG: &'static str = "assay/signed-release/1";
    const BYTES_MAX: usize = Release::BYTES_MAX + 128;
}

impl Canonical for Signed<LabelRecord> {
    const TAG: &'static str = "assay/signed-label/1";
    const BYTES_MAX: usize = LabelRecord::BYTES_MAX + 128;
}

impl Canonical for Signed<Cut> {
    const TAG: &'static str = "assay/signed-cut/1";
    const BYTES_MAX: usize = Cut::BYTES_MAX + 128;
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, CatalogueError> {
    let io = |source| CatalogueError::Io { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(io)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if files.len() == RECORDS_MAX {
            return Err(CatalogueError::Full);
        }
        files.push(path);
    }
    files.sort();
    Ok(files)
}

fn read<R: Record + BorshSerialize + BorshDeserialize>(path: &Path) -> Option<Signed<R>>
where
    Signed<R>: Stored,
{
    let length = fs::metadata(path).ok()?.len();
    if length > Signed::<R>::BYTES_MAX as u64 {
        return None;
    }
    Signed::<R>::from_canonical_bytes(&fs::read(path).ok()?).ok()?.verified().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::tests::{key, release};

    fn label(by: &alloy_signer_local::PrivateKeySigner, version: &str, sequence: u64) -> Signed<LabelRecord> {
        let publisher = NodeAddress::from_bytes(by.address().into_array());
        let record = LabelRecord {
            publisher,
            name: "stories".parse().unwrap(),
            label: "latest".parse().unwrap(),
            version: version.parse().unwrap(),
            sequence,
        };
        Signed::by(by, record).unwrap()
    }

    fn resolved(catalogue: &Catalogue, reference: &str) -> Result<String, &'static str> {
        let found = catalogue.resolve(&reference.parse().unwrap());
        found.map(|s| s.record.version.to_string()).map_err(|e| e.code())
    }

    #[test]
    fn versions_stay_and_labels_move() {
        let folder = tempfile::tempdir().unwrap();
        let (author, other) = (key("author"), key("other"));
        let first = Signed::by(&author, release(&author)).unwrap();
        let mut second = release(&author);
        second.version = "2".parse().unwrap();
        let second = Signed::by(&author, second).unwrap();
        {
            let catalogue = Catalogue::open(folder.path()).unwrap();
            assert_eq!(resolved(&catalogue, "stories@1.0.0"), Err("release_unknown"));
            assert_eq!(catalogue.add(first.clone()).unwrap(), Added::New);
            assert_eq!(catalogue.add(first.clone()).unwrap(), Added::Known);
            assert_eq!(catalogue.add(second.clone()).unwrap(), Added::New);
            // The publisher itself cannot change what a version is.
            let mut changed = release(&author);
            changed.card.push('!');
            let changed = Signed::by(&author, changed).unwrap();
            assert_eq!(catalogue.add(changed).unwrap_err().code(), "version_taken");
            assert_eq!(resolved(&catalogue, "stories"), Err("version_unknown"));
            catalogue.move_label(label(&author, "1.0.0", 1)).unwrap();
            assert_eq!(resolved(&catalogue, "stories"), Ok("1.0.0".into()));
            catalogue.move_label(label(&author, "2", 2)).unwrap();
            for stale in [label(&author, "1.0.0", 2), label(&author, "1.0.0", 1)] {
                assert_eq!(catalogue.move_label(stale).unwrap_err().code(), "label_stale");
            }
            let mut forged = label(&author, "1.0.0", 9);
            forged.record.sequence = 10;
            assert!(catalogue.move_label(forged).is_err());
        }
        let catalogue = Catalogue::open(folder.path()).unwrap();
        assert_eq!(resolved(&catalogue, "stories"), Ok("2".into()));
        assert_eq!(catalogue.by_id(first.id()), Some(first.clone()));
        assert_eq!(catalogue.of_root(first.record.root).len(), 2);
        // A second publisher of the same name makes the name alone mean nothing.
        catalogue.add(Signed::by(&other, release(&other)).unwrap()).unwrap();
        assert_eq!(resolved(&catalogue, "stories"), Err("name_ambiguous"));
        assert_eq!(resolved(&catalogue, &format!("{}/stories", first.record.publisher)), Ok("2".into()));
    }

    #[test]
    fn damaged_files_are_listed_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let author = key("author");
        let signed = Signed::by(&author, release(&author)).unwrap();
        Catalogue::open(folder.path()).unwrap().add(signed.clone()).unwrap();
        let bad = folder.path().join("releases/bad");
        let mut bytes = signed.to_canonical_bytes();
        *bytes.last_mut().unwrap() ^= 4;
        fs::write(&bad, bytes).unwrap();
        fs::write(folder.path().join("labels/long"), vec![0; Signed::<LabelRecord>::BYTES_MAX + 1]).unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        assert_eq!(catalogue.damaged().len(), 2);
        assert_eq!(catalogue.releases(), [signed]);
        assert!(bad.exists());
    }
}
