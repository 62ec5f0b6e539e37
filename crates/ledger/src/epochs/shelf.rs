//! Proofs of sealed batches for who stands beside the builder: another thread, that must not wait for it.
//!
//! Invariant: nothing is written and nothing is locked. A batch's file never changes once its batch is sealed, and a proof that is returned holds under
//! the root of the batch that was asked for: a file that is being repaired, or was removed with its batch, is an error and no wrong proof.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use assay_core::id::Hash;
use assay_core::merkle::Proof;

use super::batch::Batch;
use super::proofs::ProofError;
use super::state::Identity;
use super::tree::{ReadAt, Reader};

/// The files of batches in a builder's folder, to be read.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: Files,
    identity: Hash,
}

#[derive(Clone, Debug)]
struct Files(PathBuf);

impl ReadAt for Files {
    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut file = File::open(self.0.join(name))?;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(into)
    }
}

impl Shelf {
    /// The batches in the folder of the builder that has this identity.
    pub fn new(folder: &Path, identity: &Identity) -> Shelf {
        Shelf { folder: Files(folder.to_owned()), identity: identity.hash() }
    }

    /// The hash of the leaf at a sequence number of a batch, with its proof. Cost: a block is read and hashed, and a node for every level above.
    pub fn leaf(&self, batch: &Batch, sequence: u64) -> Result<(Hash, Proof), ProofError> {
        let index = sequence.checked_sub(batch.first).and_then(|index| u32::try_from(index).ok());
        let index = index.filter(|index| *index < batch.count).ok_or(ProofError::NotHeld { sequence })?;
        Ok(Reader::new(&self.folder, self.identity, batch).leaf_proof(index)?)
    }
}
