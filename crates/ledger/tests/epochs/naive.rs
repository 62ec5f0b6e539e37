//! The builder once more, in memory and without cleverness.

use std::collections::BTreeMap;

use assay_core::id::{
    ChannelId, DigestRoot, Hash, ModelRoot, NodeAddress, Nonce, RequestHash, SignatureBytes, TranscriptRoot,
};
use assay_core::keccak::keccak256;
use assay_core::merkle;
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_ledger::epochs::limits::SHARES_MAX;
use assay_ledger::epochs::{
    Batch, Builder, Disk, End, Identity, Leaf, Posting, ProofError, Share, Terms, leaf_hash,
};

pub const DOMAIN: Domain = Domain { chain_id: 31_337, contract: NodeAddress::from_bytes([7; 20]) };
pub const IDENTITY: Identity = Identity { provider: NodeAddress::from_bytes([1; 20]), domain: DOMAIN };
pub const POSTING: Posting = Posting { block: 9, transaction: Hash::from_bytes([3; 32]) };

pub fn model(i: u64) -> ModelRoot {
    // Not in the order of `i`.
    ModelRoot::from_bytes(*keccak256(&[b"model", &i.to_be_bytes()]).as_bytes())
}

pub fn receipt(sequence: u64, epoch: u64, model_root: ModelRoot, fee: u64) -> SignedReceipt {
    let hash = |what: &str| *keccak256(&[what.as_bytes(), &sequence.to_be_bytes()]).as_bytes();
    let receipt = Receipt {
        provider: IDENTITY.provider,
        sequence,
        model_root,
        request_hash: RequestHash::from_bytes(hash("request")),
        transcript_root: TranscriptRoot::from_bytes(hash("transcript")),
        digest_root: DigestRoot::from_bytes(hash("digest")),
        prompt_tokens: 5,
        completion_tokens: 6,
        fee_micro_usd: fee,
        payer_channel: ChannelId::ZERO,
        client_nonce: Nonce::ZERO,
        epoch,
    };
    // The builder checks no signatures.
    SignedReceipt { receipt, domain: DOMAIN, signature: SignatureBytes::ZERO }
}

/// A batch as it is defined.
#[derive(Clone, Debug)]
pub struct NaiveBatch {
    pub batch: Batch,
    pub leaves: Vec<Option<Leaf>>,
    pub hashes: Vec<Hash>,
    pub tallies: Vec<Vec<u8>>,
    pub tally_hashes: Vec<Hash>,
}

impl NaiveBatch {
    pub fn of(epoch: u64, first: u64, leaves: Vec<Option<Leaf>>, end: End) -> NaiveBatch {
        let mut totals: BTreeMap<ModelRoot, u64> = BTreeMap::new();
        for leaf in leaves.iter().flatten().filter(|l| l.fee_micro_usd > 0) {
            *totals.entry(leaf.model_root).or_default() += leaf.fee_micro_usd;
        }
        let mut running: BTreeMap<ModelRoot, u64> = totals.keys().map(|m| (*m, 0)).collect();
        let mut tallies = Vec::new();
        for leaf in &leaves {
            if let Some(leaf) = leaf.filter(|l| l.fee_micro_usd > 0) {
                *running.get_mut(&leaf.model_root).unwrap() += leaf.fee_micro_usd;
            }
            tallies.push(running.values().flat_map(|t| t.to_be_bytes()).collect::<Vec<u8>>());
        }
        let hashes: Vec<Hash> = leaves.iter().map(|l| leaf_hash(l.as_ref())).collect();
        let tally_hashes: Vec<Hash> = tallies.iter().map(|t| merkle::leaf(t)).collect();
        let batch = Batch {
            epoch,
            first,
            count: leaves.len() as u32,
            gaps: leaves.iter().filter(|l| l.is_none()).count() as u32,
            root: merkle::root(hashes.iter().copied()),
            tally_root: merkle::root(tally_hashes.iter().copied()),
            shares: totals.into_iter().map(|(model_root, total)| Share { model_root, total }).collect(),
            end,
        };
        NaiveBatch { batch, leaves, hashes, tallies, tally_hashes }
    }

    /// Everything that the builder proves of one leaf is what the core's trees say.
    pub fn check<D: Disk>(&self, b: &Builder<D>, sequence: u64) -> Result<(), ProofError> {
        let i = (sequence - self.batch.first) as usize;
        let tally_hashes = &self.tally_hashes;
        let opening = b.opening(sequence)?;
        assert_eq!(opening.leaf.epoch, self.batch.epoch);
        assert_eq!(opening.leaf.leaf, self.leaves[i]);
        assert_eq!(opening.leaf.proof, merkle::prove(&self.hashes, i).unwrap());
        assert!(merkle::verify(&self.batch.root, self.hashes[i], &opening.leaf.proof));
        assert_eq!(opening.tally.tally, self.tallies[i]);
        assert_eq!(opening.tally.proof, merkle::prove(tally_hashes, i).unwrap());
        assert!(merkle::verify(&self.batch.tally_root, tally_hashes[i], &opening.tally.proof));
        match i.checked_sub(1) {
            None => assert_eq!(opening.before, None),
            Some(j) => {
                let before = opening.before.clone().unwrap();
                assert_eq!(before.tally, self.tallies[j]);
                assert_eq!(before.proof, merkle::prove(tally_hashes, j).unwrap());
            }
        }
        assert_eq!(b.proof(sequence)?, opening.leaf);
        assert_eq!(b.tally_proof(sequence)?, opening.tally);
        assert_eq!(b.leaf(sequence)?, self.leaves[i]);
        let run = b.leaves(sequence)?;
        assert_eq!(run[..], self.leaves[i..i + run.len()]);
        Ok(())
    }
}

/// Which leaves a batch has, number by number; `Err` says why there is none.
pub fn choose(
    receipts: &BTreeMap<u64, Leaf>,
    next: Option<u64>,
    epoch: u64,
    terms: &Terms,
) -> Result<(u64, Vec<Option<Leaf>>, End), End> {
    let first = next.or(terms.first).or(receipts.keys().next().copied()).unwrap_or(0);
    let last = receipts.keys().next_back().copied().filter(|last| *last >= first);
    let mut leaves: Vec<Option<Leaf>> = Vec::new();
    let end = loop {
        let n = first + leaves.len() as u64;
        if last.is_none_or(|last| n > last) {
            break End::All;
        }
        if leaves.len() as u32 == terms.count_max {
            break End::Count;
        }
        if terms.in_flight.is_some_and(|open| n >= open) {
            break End::InFlight;
        }
        let leaf = receipts.get(&n).copied();
        if let Some(l) = leaf {
            let mut models: Vec<ModelRoot> = leaves
                .iter()
                .flatten()
                .chain([&l])
                .filter(|l| l.fee_micro_usd > 0)
                .map(|l| l.model_root)
                .collect();
            models.sort_unstable();
            models.dedup();
            let fees = leaves.iter().flatten().chain([&l]).map(|l| u128::from(l.fee_micro_usd));
            if l.epoch > epoch {
                break End::LaterEpoch;
            }
            if models.len() > SHARES_MAX {
                break End::Models;
            }
            if fees.sum::<u128>() > u128::from(terms.total_max) {
                break End::Total;
            }
        }
        leaves.push(leaf);
    };
    while end != End::Count && leaves.last() == Some(&None) {
        leaves.pop();
    }
    if leaves.is_empty() { Err(end) } else { Ok((first, leaves, end)) }
}
