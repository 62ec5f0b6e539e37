//! Writes an artifact constant by constant: memory holds one at a time, and a file under its final name is always whole.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use assay_core::canonical::Canonical;
use assay_core::id::{Hash, ModelRoot};
use tempfile::NamedTempFile;

use super::root::{self, Branch};
use super::{ArtifactError, HEADER, Manifest, Place, Profile, layout, matrix_of};
use crate::program::{Shape, TABLE_LEN};

/// An artifact being written. Constants come in the order of the program.
pub struct Writer {
    path: PathBuf,
    profile: Profile,
    manifest: Manifest,
    tokenizer: Vec<u8>,
    places: Vec<Place>,
    file: BufWriter<NamedTempFile>,
    at: usize,
    tensors: Vec<Hash>,
}

impl Writer {
    /// Starts a file that will be at `path` when it is finished.
    ///
    /// # Panics
    /// When the program has no layout on this machine: importers build programs that do.
    pub fn create(
        path: &Path,
        profile: Profile,
        mut manifest: Manifest,
        tokenizer: Vec<u8>,
    ) -> Result<Writer, ArtifactError> {
        manifest.tokenizer_len = tokenizer.len() as u64;
        let bytes = manifest.to_canonical_bytes();
        let at = HEADER + bytes.len() + tokenizer.len();
        let (places, _) = layout(profile, &manifest.program, at).expect("an importer's program has a layout");
        let io = |source| ArtifactError::Io { path: path.to_owned(), source };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(io)?;
        let mut file = BufWriter::with_capacity(1 << 20, NamedTempFile::new_in(folder).map_err(io)?);
        let mut header = profile.magic().to_vec();
        header.extend_from_slice(&[0; 32]);
        header.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        for part in [&header, &bytes, &tokenizer] {
            file.write_all(part).map_err(io)?;
        }
        Ok(Writer {
            path: path.to_owned(),
            profile,
            manifest,
            tokenizer,
            places,
            file,
            at,
            tensors: Vec::new(),
        })
    }

    fn next(&self) -> (Shape, Place) {
        let i = self.tensors.len();
        (self.manifest.program.tensors[i].shape, self.places[i])
    }

    /// Whether the next constant is a matrix that is stored packed.
    pub fn packs_next(&self) -> bool {
        self.next().1.packed
    }

    fn write_at(&mut self, at: usize, bytes: &[u8]) -> Result<(), ArtifactError> {
        let io = |source| ArtifactError::Io { path: self.path.clone(), source };
        let gap = vec![0u8; at - self.at];
        self.file.write_all(&gap).map_err(io)?;
        self.file.write_all(bytes).map_err(io)?;
        self.at = at + bytes.len();
        Ok(())
    }

    /// The next constant, a matrix in the layout of [`crate::matrix`], or packed where [`Writer::packs_next`] says so.
    ///
    /// # Panics
    /// When the program has another constant here.
    pub fn matrix(&mut self, stored: &[u8], scales: &[u16]) -> Result<(), ArtifactError> {
        let (shape @ Shape::Matrix { .. }, place) = self.next() else {
            panic!("the next constant of the program is no matrix")
        };
        let w = matrix_of(shape, place.packed, stored, scales).expect("weights and scales have their length");
        self.tensors.push(Branch::matrix(&w).hash());
        self.write_at(place.data.0, stored)?;
        let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        self.write_at(place.scales.0, &bytes)
    }

    /// The next constant, a table.
    pub fn table(&mut self, table: &[i32]) -> Result<(), ArtifactError> {
        let (shape, place) = self.next();
        assert!(
            shape == Shape::Table && table.len() == TABLE_LEN,
            "the next constant of the program is a table"
        );
        self.tensors.push(Branch::numbers(table).hash());
        let bytes: Vec<u8> = table.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write_at(place.data.0, &bytes)
    }

    /// The next constant, a rotary table.
    pub fn rotary(&mut self, table: &[i16]) -> Result<(), ArtifactError> {
        let (shape, place) = self.next();
        assert!(
            matches!(shape, Shape::Rotary { .. }) && table.len() * 2 == place.data.1,
            "a rotary table comes next"
        );
        self.tensors.push(Branch::angles(table).hash());
        let bytes: Vec<u8> = table.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write_at(place.data.0, &bytes)
    }

    /// The next constant, a vector.
    pub fn vector(&mut self, vector: &[i32]) -> Result<(), ArtifactError> {
        let (shape, place) = self.next();
        assert!(
            matches!(shape, Shape::Vector { .. }) && vector.len() * 4 == place.data.1,
            "a vector of this length comes next"
        );
        self.tensors.push(Branch::numbers(vector).hash());
        let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write_at(place.data.0, &bytes)
    }

    /// Seals the file, makes it durable and gives it its name.
    ///
    /// # Panics
    /// When the program is not valid: importers build programs that are.
    pub fn finish(mut self) -> Result<ModelRoot, ArtifactError> {
        assert_eq!(self.tensors.len(), self.places.len(), "every constant of the program was written");
        let io = |source| ArtifactError::Io { path: self.path.clone(), source };
        let tensors = std::mem::take(&mut self.tensors);
        let program = self.manifest.program.clone().check().expect("an importer's program is valid");
        let root = root::assemble(
            (self.profile, &program),
            &self.manifest.text,
            &self.tokenizer,
            tensors.into_iter(),
        );
        let temp = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        let mut file = temp.as_file();
        file.seek(SeekFrom::Start(self.profile.magic().len() as u64)).map_err(io)?;
        file.write_all(root.as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        set_readable(file).map_err(io)?;
        temp.persist(&self.path).map_err(|e| io(e.error))?;
        // The name itself becomes durable with its folder.
        if let Some(folder) = self.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(folder).and_then(|f| f.sync_all()).map_err(io)?;
        }
        Ok(root)
    }
}

/// Temporary files are private; a model is for every process of the machine.
#[cfg(unix)]
fn set_readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_readable(_: &File) -> std::io::Result<()> {
    Ok(())
}
