//! Importing: float checkpoints become integer programs.
//!
//! The only part of the engine that computes with floats. The same source bytes give the same root on every machine: sums go
//! in a fixed order, transcendental functions come from `libm` in Rust, and no threads share a sum. Memory is bounded by the
//! largest tensor; a file appears under its final name whole or not at all.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use assay_core::id::{Hash, ModelRoot};

use crate::artifact::{ArtifactError, Profile};

mod bert;
mod blocks;
mod gguf;
mod hugging_face;
mod llama;
mod llama2c;
mod lower;
mod quantise;
mod rotate;
mod source;
pub mod synthetic;
mod tokenizer;
mod wheel;

pub use rotate::Rotation;
use source::{Architecture, Source};

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name to serve the model under; by default the name of the folder or file.
    pub name: Option<String>,
    /// Tokenizer file when none lies with the weights, or instead of it: `tokenizer.json`, a SentencePiece `.model`, a `.gguf`,
    /// or llama2.c's `tokenizer.bin`.
    pub tokenizer: Option<PathBuf>,
    /// Licence of the weights, for people.
    pub licence: Option<String>,
    /// Shorten the model's window to this many positions.
    pub context: Option<u32>,
    /// How its weights are stored.
    pub profile: Profile,
    /// Rotations that spread outliers.
    pub rotation: Rotation,
}

/// How far an import is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Constants written.
    pub done: usize,
    /// Constants in all.
    pub total: usize,
    /// The constant being written.
    pub tensor: String,
}

/// What an import made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// Root of the model.
    pub root: ModelRoot,
    /// Name of the model.
    pub name: String,
    /// Number of weights.
    pub parameters: u64,
}

/// Why a model cannot be imported. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The source is nothing that can be imported.
    #[error(
        "{path}: {reason}. Import a Hugging Face folder (config.json, *.safetensors, tokenizer.json), a .gguf file, a llama2.c .bin file, or a Python wheel (.whl) with such a folder in it"
    )]
    UnknownSource {
        /// What was given.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file is not what its name or header says.
    #[error("{path}: malformed: {reason}; fetch the file again")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model uses something that this version cannot express.
    #[error("{path}: {field} = {got} is not supported: {reason}")]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// Field of its configuration.
        field: String,
        /// Value of it.
        got: String,
        /// What is.
        reason: String,
    },
    /// A tensor is missing or of another shape.
    #[error("{path}: tensor `{tensor}`: expected {expected}, got {got}")]
    Tensor {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Shape or type expected.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A weight is no number.
    #[error("{path}: tensor `{tensor}` holds {value} at index {index}: the checkpoint is damaged")]
    NotFinite {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Index of the weight.
        index: usize,
        /// NaN or an infinity.
        value: String,
    },
    /// There is no tokenizer, or it does not fit.
    #[error("{path}: {reason}")]
    Tokenizer {
        /// Folder or file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The artifact cannot be written.
    #[error(transparent)]
    Write(#[from] ArtifactError),
}

impl ImportError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ImportError::Io { .. } => "import_io",
            ImportError::UnknownSource { .. } => "import_unknown_source",
            ImportError::Malformed { .. } => "import_malformed",
            ImportError::Unsupported { .. } => "import_unsupported",
            ImportError::Tensor { .. } => "import_tensor",
            ImportError::NotFinite { .. } => "import_not_finite",
            ImportError::Tokenizer { .. } => "import_tokenizer",
            ImportError::Write(e) => e.code(),
        }
    }
}

/// Imports `source`, a folder or file, into the artifact `out`.
pub fn import(
    source: &Path,
    options: &ImportOptions,
    out: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImportReport, ImportError> {
    let is = |ending: &str| source.extension().is_some_and(|e| e == ending);
    let unpacked = if is("whl") && source.is_file() { Some(wheel::unpack(source, out)?) } else { None };
    let opened: Box<dyn Source> = if let Some(wheel) = &unpacked {
        Box::new(hugging_face::HuggingFace::open(&wheel.model)?)
    } else if source.is_dir() {
        Box::new(hugging_face::HuggingFace::open(source)?)
    } else if is("bin") {
        Box::new(llama2c::Llama2c::open(source)?)
    } else if is("gguf") {
        Box::new(gguf::Gguf::open(source)?)
    } else if source.exists() {
        let reason = "neither a folder nor a .gguf, .bin or .whl file".to_owned();
        return Err(ImportError::UnknownSource { path: source.to_owned(), reason });
    } else {
        let reason = "there is no such file or folder".to_owned();
        return Err(ImportError::UnknownSource { path: source.to_owned(), reason });
    };
    let name = match &options.name {
        Some(name) => name.clone(),
        None => default_name(source),
    };
    if name.is_empty() || name.len() > 200 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        let reason =
            format!("`{name}` cannot be a model's name; give one with --name (1 to 200 bytes, no spaces)");
        return Err(ImportError::UnknownSource { path: source.to_owned(), reason });
    }
    match opened.architecture() {
        Architecture::Decoder(config) => llama::lower(opened.as_ref(), config, name, options, out, progress),
        Architecture::Encoder(config) => bert::lower(opened.as_ref(), config, name, options, out, progress),
    }
}

/// The tokenizer in a file of any kind that [`ImportOptions::tokenizer`] takes, as `tokenizer.json`.
pub fn tokenizer_json(path: &Path) -> Result<Vec<u8>, ImportError> {
    tokenizer::load(path)
}

fn default_name(source: &Path) -> String {
    let whole = std::fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    let name = name.map(|n| n.to_string_lossy().replace(char::is_whitespace, "-")).unwrap_or_default();
    // A wheel's name goes on with version and platform, and has underscores for the project's hyphens.
    match (whole.extension(), name.split_once('-')) {
        (Some(e), Some((project, _))) if e == "whl" => project.replace('_', "-"),
        _ => name,
    }
}

/// Maps a file for reading.
fn map(path: &Path) -> Result<memmap2::Mmap, ImportError> {
    let io = |source| ImportError::Io { path: path.to_owned(), source };
    let file = open(path)?;
    // SAFETY: the map is only read; a file changed meanwhile gives other numbers or a bus error, as for any mapped input.
    unsafe { memmap2::Mmap::map(&file) }.map_err(io)
}

/// Gives the pages of a map back: they are read again from the file when they are needed.
fn release(map: &memmap2::Mmap) {
    #[cfg(unix)]
    // SAFETY: the map is read-only and backed by its file, so dropped pages come back as they were. A failure only costs
    // memory.
    unsafe {
        let _ = map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed);
    }
}

/// Reads a small file, refusing one above `limit` bytes.
fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, ImportError> {
    let io = |source| ImportError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        let reason = format!("it has more than the {limit} bytes that such a file may have");
        return Err(ImportError::Malformed { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// Opens a regular file: a device or pipe could make a reader wait for ever.
fn open(path: &Path) -> Result<std::fs::File, ImportError> {
    let io = |source| ImportError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        let reason = "it is no regular file".to_owned();
        return Err(ImportError::UnknownSource { path: path.to_owned(), reason });
    }
    std::fs::File::open(path).map_err(io)
}

/// Name and BLAKE3 of a source file.
fn digest(path: &Path, bytes: &[u8]) -> (String, Hash) {
    (file_name(path), Hash::from_bytes(*blake3::hash(bytes).as_bytes()))
}

/// Name and BLAKE3 of a mapped file, without keeping it in memory.
fn digest_map(path: &Path, map: &memmap2::Mmap) -> (String, Hash) {
    let mut hasher = blake3::Hasher::new();
    for run in map.chunks(32 << 20) {
        hasher.update(run);
        release(map);
    }
    (file_name(path), Hash::from_bytes(*hasher.finalize().as_bytes()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
