//! Shards, stripe by stripe: reading them, hashing them on the way, and computing those that are not there.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use reed_solomon_simd::{EncoderResult, ReedSolomonDecoder, ReedSolomonEncoder};

use super::{Code, RestoreError, ShardSet, at};
use crate::blob::BlobHash;

const FITS: &str =
    "a code of at most SHARDS_MAX shards, units in whole lanes of equal length, each index once";

/// Computes the parity units of stripes.
pub(super) struct Parity {
    code: Code,
    encoder: Option<(usize, ReedSolomonEncoder)>,
}

impl Parity {
    pub(super) fn new(code: Code) -> Parity {
        Parity { code, encoder: None }
    }

    /// The parity units of one stripe's data units.
    pub(super) fn of(&mut self, data: &[&[u8]]) -> EncoderResult<'_> {
        let unit = data.first().map_or(0, |unit| unit.len());
        let (needed, parities) = counts(self.code);
        if self.encoder.as_ref().is_none_or(|(bytes, _)| *bytes != unit) {
            let encoder = ReedSolomonEncoder::new(needed, parities, unit).expect(FITS);
            self.encoder = Some((unit, encoder));
        }
        let (_, encoder) = self.encoder.as_mut().expect("made above");
        for unit in data {
            encoder.add_original_shard(unit).expect(FITS);
        }
        encoder.encode().expect(FITS)
    }
}

fn counts(code: Code) -> (usize, usize) {
    (usize::from(code.needed()), usize::from(code.shards() - code.needed()))
}

struct Shard<'a> {
    index: u8,
    path: &'a Path,
    file: File,
    hasher: blake3::Hasher,
    unit: Vec<u8>,
}

/// As many shards as are needed, read together.
pub(super) struct Shards<'a> {
    set: &'a ShardSet,
    shards: Vec<Shard<'a>>,
}

impl<'a> Shards<'a> {
    /// Opens the first shards in order of their index. Shards of a wrong length are refused here.
    pub(super) fn open(set: &'a ShardSet, given: &'a [(u8, PathBuf)]) -> Result<Shards<'a>, RestoreError> {
        let code = set.geometry().code();
        let mut sorted: Vec<&(u8, PathBuf)> = given.iter().collect();
        sorted.sort_by_key(|(index, _)| *index);
        let twice = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0);
        let beyond = sorted.last().map(|(index, _)| *index).filter(|index| *index >= code.shards());
        if let Some(index) = twice.or(beyond) {
            return Err(RestoreError::Index { index, shards: code.shards() });
        }
        if sorted.len() < usize::from(code.needed()) {
            let got = u8::try_from(sorted.len()).expect("fewer than are needed");
            return Err(RestoreError::TooFew { needed: code.needed(), got });
        }
        let mut shards = Vec::with_capacity(usize::from(code.needed()));
        let mut wrong = Vec::new();
        for (index, path) in sorted.into_iter().take(usize::from(code.needed())) {
            let file = File::open(path).map_err(at(path))?;
            if file.metadata().map_err(at(path))?.len() != set.geometry().shard_bytes() {
                wrong.push(*index);
            }
            let hasher = blake3::Hasher::new();
            shards.push(Shard { index: *index, path, file, hasher, unit: Vec::new() });
        }
        if wrong.is_empty() {
            Ok(Shards { set, shards })
        } else {
            Err(RestoreError::WrongShards { indices: wrong })
        }
    }

    /// Gives the data units of each stripe, in order; afterwards says which shards were wrong. What was given before is worth nothing
    /// if this fails.
    pub(super) fn each_stripe(
        mut self,
        mut take: impl FnMut(&[&[u8]]) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let geometry = self.set.geometry();
        let code = geometry.code();
        let whole = self.shards.iter().all(|shard| shard.index < code.needed());
        let mut decoder: Option<(usize, ReedSolomonDecoder)> = None;
        for stripe in 0..geometry.stripes() {
            let unit = usize::try_from(geometry.unit_of(stripe)).expect("at most UNIT_BYTES_MAX");
            for shard in &mut self.shards {
                shard.unit.resize(unit, 0);
                shard.file.read_exact(&mut shard.unit).map_err(at(shard.path))?;
                shard.hasher.update(&shard.unit);
            }
            if whole {
                let data: Vec<&[u8]> = self.shards.iter().map(|shard| shard.unit.as_slice()).collect();
                take(&data)?;
                continue;
            }
            if decoder.as_ref().is_none_or(|(bytes, _)| *bytes != unit) {
                let (needed, parities) = counts(code);
                decoder = Some((unit, ReedSolomonDecoder::new(needed, parities, unit).expect(FITS)));
            }
            let (_, decoder) = decoder.as_mut().expect("made above");
            let mut data: Vec<Option<&[u8]>> = vec![None; usize::from(code.needed())];
            for shard in &self.shards {
                match shard.index.checked_sub(code.needed()) {
                    None => {
                        data[usize::from(shard.index)] = Some(&shard.unit);
                        decoder.add_original_shard(usize::from(shard.index), &shard.unit).expect(FITS);
                    }
                    Some(parity) => decoder.add_recovery_shard(usize::from(parity), &shard.unit).expect(FITS),
                }
            }
            let decoded = decoder.decode().expect(FITS);
            let data: Vec<&[u8]> = data
                .into_iter()
                .enumerate()
                .map(|(index, unit)| unit.or_else(|| decoded.restored_original(index)).expect(FITS))
                .collect();
            take(&data)?;
        }
        let right = |shard: &Shard<'_>| {
            let got = BlobHash::from_bytes(*shard.hasher.finalize().as_bytes());
            self.set.name(shard.index) == Some(got)
        };
        let indices: Vec<u8> = self.shards.iter().filter(|s| !right(s)).map(|s| s.index).collect();
        if indices.is_empty() { Ok(()) } else { Err(RestoreError::WrongShards { indices }) }
    }
}
