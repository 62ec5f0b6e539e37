//! The integer engine: models as programs of integer operations, executed to the same bits everywhere.
//!
//! `semantics`, `program` and `reference` are the specification made runnable; `kernel`, `forward` and `batch` compute the
//! same bits fast. Floats exist only where models are imported and where numbers are printed.
//!
//! Without the feature `native`, which is on by default, everything that needs files, importers or text is left out; the rest also
//! runs in a browser.

pub mod artifact;
#[cfg(feature = "native")]
pub mod batch;
pub mod cache;
pub mod constants;
pub mod forward;
#[cfg(feature = "native")]
pub mod import;
pub mod kernel;
pub mod matrix;
#[cfg(feature = "native")]
pub mod peak;
mod plan;
pub mod pool;
pub mod presence;
pub mod program;
pub mod reference;
pub mod replay;
pub mod semantics;
#[cfg(feature = "native")]
pub mod text;
#[cfg(feature = "native")]
pub mod transcribe;
pub mod vectors;
