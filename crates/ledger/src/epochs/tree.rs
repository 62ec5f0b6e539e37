//! The file of a batch: its leaves in blocks, then the nodes of its two trees from the blocks' tops upwards.
//!
//! A block is: running totals before it (16 numbers of 8 bytes), its leaves, a hash over both. Invariant: offsets follow from the count
//! alone, and what was read is what was written, or an error names the file.

use assay_core::id::{Hash, ModelRoot};
use assay_core::keccak::keccak256;
use assay_core::merkle::{self, Proof};

use super::batch::{Batch, Share};
use super::disk::Disk;
use super::limits::{BLOCK_LEAVES, SHARES_MAX};
use super::record::{Fields, LEAF_BYTES, Leaf, leaf_hash, put_leaf, take_leaf};
use super::storage::{Remedy, StorageError, damaged, disk};

const PREFIX: &str = "batch-";
const TAG: &[u8] = b"assay/epochs/block/1";
const HASH_BYTES: usize = 32;
const TOTALS_BYTES: usize = SHARES_MAX * 8;
const BLOCK_BYTES: u64 = block_bytes(BLOCK_LEAVES) as u64;

const fn block_bytes(leaves: usize) -> usize {
    TOTALS_BYTES + leaves * LEAF_BYTES + HASH_BYTES
}

/// The file of an epoch's batch.
pub(super) fn name(epoch: u64) -> String {
    format!("{PREFIX}{epoch:020}")
}

/// The epoch that a file's name says.
pub(super) fn epoch_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// One of the two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    Receipts,
    Tallies,
}

/// Where things stand in the file of a batch with so many leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    count: u32,
}

impl Layout {
    pub(super) fn of(count: u32) -> Layout {
        Layout { count }
    }

    pub(super) fn blocks(&self) -> u64 {
        u64::from(self.count).div_ceil(BLOCK_LEAVES as u64)
    }

    /// How many leaves a block has.
    fn leaves(&self, block: u64) -> usize {
        let before = block.saturating_mul(BLOCK_LEAVES as u64);
        let left = u64::from(self.count).saturating_sub(before);
        usize::try_from(left).unwrap_or(BLOCK_LEAVES).min(BLOCK_LEAVES)
    }

    fn blocks_bytes(&self) -> u64 {
        let last = self.blocks().saturating_sub(1);
        last * BLOCK_BYTES + block_bytes(self.leaves(last)) as u64
    }

    /// How many nodes of a tree are stored below a level, level 0 being the blocks' tops.
    fn nodes_below(&self, level: u32) -> u64 {
        (0..level).map(|l| self.width(l)).sum()
    }

    fn width(&self, level: u32) -> u64 {
        self.blocks().div_ceil(1 << level)
    }

    fn levels(&self) -> u32 {
        merkle::height(self.blocks()) + 1
    }

    fn node(&self, tree: Tree, level: u32, index: u64) -> u64 {
        let before = match tree {
            Tree::Receipts => 0,
            Tree::Tallies => self.nodes_below(self.levels()),
        };
        self.blocks_bytes() + (before + self.nodes_below(level) + index) * HASH_BYTES as u64
    }

    /// Length of the file.
    pub(super) fn size(&self) -> u64 {
        self.blocks_bytes() + 2 * self.nodes_below(self.levels()) * HASH_BYTES as u64
    }
}

/// Running totals of a batch's models, by rising root.
#[derive(Clone, Debug)]
pub(super) struct Totals<'a> {
    shares: &'a [Share],
    sums: [u64; SHARES_MAX],
}

impl<'a> Totals<'a> {
    pub(super) fn new(shares: &'a [Share]) -> Self {
        Totals { shares, sums: [0; SHARES_MAX] }
    }

    /// Adds a receipt's fee; `false` if its model is none of these, or the sum does not fit.
    #[must_use]
    fn add(&mut self, leaf: Option<&Leaf>) -> bool {
        let Some(leaf) = leaf.filter(|l| l.fee_micro_usd > 0) else { return true };
        let of = |s: &Share| -> ModelRoot { s.model_root };
        let Ok(i) = self.shares.binary_search_by_key(&leaf.model_root, of) else { return false };
        let sum = self.sums.get_mut(i).and_then(|sum| {
            *sum = sum.checked_add(leaf.fee_micro_usd)?;
            Some(())
        });
        sum.is_some()
    }

    /// The bytes of a leaf of the tree of totals.
    fn bytes(&self) -> Vec<u8> {
        self.sums.iter().take(self.shares.len()).flat_map(|s| s.to_be_bytes()).collect()
    }

    /// Whether every total is its share's.
    pub(super) fn are_final(&self) -> bool {
        self.shares.iter().map(|s| s.total).eq(self.sums.iter().take(self.shares.len()).copied())
    }
}

/// A block with everything that follows from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    pub(super) leaves: Vec<Option<Leaf>>,
    /// Leaf hashes of the tree of receipts.
    hashes: Vec<Hash>,
    /// The bytes of the leaves of the tree of totals.
    pub(super) tallies: Vec<Vec<u8>>,
    tally_hashes: Vec<Hash>,
}

impl Block {
    /// Hashes leaves, going on from `totals`; `None` if a fee is of no share.
    fn of(leaves: Vec<Option<Leaf>>, totals: &mut Totals<'_>) -> Option<Block> {
        let mut block = Block { leaves, ..Block::default() };
        for leaf in &block.leaves {
            totals.add(leaf.as_ref()).then_some(())?;
            block.hashes.push(leaf_hash(leaf.as_ref()));
            let tally = totals.bytes();
            block.tally_hashes.push(merkle::leaf(&tally));
            block.tallies.push(tally);
        }
        Some(block)
    }

    fn leaf_hashes(&self, tree: Tree) -> &[Hash] {
        match tree {
            Tree::Receipts => &self.hashes,
            Tree::Tallies => &self.tally_hashes,
        }
    }

    fn top(&self, tree: Tree) -> Hash {
        merkle::above(self.leaf_hashes(tree), u32::MAX).first().copied().unwrap_or(Hash::ZERO)
    }
}

fn block_hash(identity: &Hash, epoch: u64, block: u64, content: &[u8]) -> Hash {
    keccak256(&[TAG, identity.as_bytes(), &epoch.to_be_bytes(), &block.to_be_bytes(), content])
}

/// Writes a batch's file from its leaves in order. Memory: one block, and two hashes for every block.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    identity: Hash,
    epoch: u64,
    file: &'a str,
    totals: Totals<'a>,
    leaves: Vec<Option<Leaf>>,
    count: u32,
    tops: [Vec<Hash>; 2],
}

impl<'a> Writer<'a> {
    pub(super) fn new(identity: Hash, epoch: u64, file: &'a str, shares: &'a [Share]) -> Self {
        let totals = Totals::new(shares);
        let leaves = Vec::with_capacity(BLOCK_LEAVES);
        Writer { identity, epoch, file, totals, leaves, count: 0, tops: [Vec::new(), Vec::new()] }
    }

    /// Takes the next leaf.
    pub(super) fn push<D: Disk>(&mut self, on: &mut D, leaf: Option<Leaf>) -> Result<(), StorageError> {
        self.leaves.push(leaf);
        self.count += 1;
        if self.leaves.len() == BLOCK_LEAVES { self.close(on) } else { Ok(()) }
    }

    fn close<D: Disk>(&mut self, on: &mut D) -> Result<(), StorageError> {
        if self.leaves.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(block_bytes(self.leaves.len()));
        self.totals.sums.iter().for_each(|s| bytes.extend_from_slice(&s.to_be_bytes()));
        self.leaves.iter().for_each(|l| put_leaf(&mut bytes, l.as_ref()));
        let index = self.tops[0].len() as u64;
        let hash = block_hash(&self.identity, self.epoch, index, &bytes);
        bytes.extend_from_slice(hash.as_bytes());
        let leaves = std::mem::replace(&mut self.leaves, Vec::with_capacity(BLOCK_LEAVES));
        // Shares were counted over the same records a moment ago.
        let block = Block::of(leaves, &mut self.totals)
            .ok_or_else(|| damaged("the journals", "they changed while they were read", Remedy::Rebuild))?;
        self.tops[0].push(block.top(Tree::Receipts));
        self.tops[1].push(block.top(Tree::Tallies));
        disk(on.append(self.file, &bytes), self.file, "append to")
    }

    /// Writes the nodes and returns the roots over receipts and over totals.
    pub(super) fn finish<D: Disk>(mut self, on: &mut D) -> Result<(Hash, Hash), StorageError> {
        self.close(on)?;
        if !self.totals.are_final() {
            return Err(damaged("the journals", "they changed while they were read", Remedy::Rebuild));
        }
        let count = u64::from(self.count);
        let mut roots = [Hash::ZERO; 2];
        for (tops, root) in self.tops.into_iter().zip(&mut roots) {
            let mut level = tops;
            loop {
                for run in level.chunks(BLOCK_LEAVES * 4) {
                    let bytes: Vec<u8> = run.iter().flat_map(|h| *h.as_bytes()).collect();
                    disk(on.append(self.file, &bytes), self.file, "append to")?;
                }
                if level.len() <= 1 {
                    break;
                }
                level = merkle::above(&level, 1);
            }
            *root = merkle::seal(count, level.first().unwrap_or(&Hash::ZERO));
        }
        let [receipts, tallies] = roots;
        Ok((receipts, tallies))
    }
}

/// Where a batch's file is read.
pub(super) trait ReadAt {
    /// Fills `into` from `at` on, or fails.
    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> std::io::Result<()>;
}

impl<D: Disk> ReadAt for D {
    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.read(name, at, into)
    }
}

/// Reads a batch's file.
#[derive(Debug)]
pub(super) struct Reader<'a, D> {
    on: &'a D,
    identity: Hash,
    batch: &'a Batch,
    file: String,
    layout: Layout,
}

impl<'a, D: ReadAt> Reader<'a, D> {
    pub(super) fn new(on: &'a D, identity: Hash, batch: &'a Batch) -> Self {
        let (file, layout) = (name(batch.epoch), Layout::of(batch.count));
        Reader { on, identity, batch, file, layout }
    }

    fn damaged(&self, what: impl Into<String>) -> StorageError {
        damaged(&self.file, what, Remedy::Repair)
    }

    /// The leaves of a block, and the bytes of the totals before it.
    fn content(&self, block: u64) -> Result<([u64; SHARES_MAX], Vec<Option<Leaf>>), StorageError> {
        let leaves = self.layout.leaves(block);
        let mut bytes = vec![0; block_bytes(leaves)];
        disk(self.on.read_at(&self.file, block * BLOCK_BYTES, &mut bytes), &self.file, "read")?;
        let bad = || self.damaged(format!("block {block} is damaged"));
        let (content, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or_else(bad)?;
        if block_hash(&self.identity, self.batch.epoch, block, content).as_bytes() != hash {
            return Err(bad());
        }
        let mut fields = Fields(content);
        let mut sums = [0; SHARES_MAX];
        for sum in &mut sums {
            *sum = fields.number().ok_or_else(bad)?;
        }
        let leaves: Option<Vec<Option<Leaf>>> = (0..leaves).map(|_| take_leaf(&mut fields)).collect();
        Ok((sums, leaves.ok_or_else(bad)?))
    }

    /// The leaves of the block that has the leaf at `index`, from that leaf on.
    pub(super) fn leaves(&self, index: u32) -> Result<Vec<Option<Leaf>>, StorageError> {
        let (_, mut leaves) = self.content(u64::from(index) / BLOCK_LEAVES as u64)?;
        Ok(leaves.split_off((index as usize % BLOCK_LEAVES).min(leaves.len())))
    }

    /// The block that has the leaf at `index`, hashed.
    pub(super) fn block(&self, index: u32) -> Result<Block, StorageError> {
        let block = u64::from(index) / BLOCK_LEAVES as u64;
        let (sums, leaves) = self.content(block)?;
        let mut totals = Totals { shares: &self.batch.shares, sums };
        Block::of(leaves, &mut totals).ok_or_else(|| self.damaged(format!("block {block} is damaged")))
    }

    /// The hash of the leaf at `index` and its proof under the receipts' root, without what totals need.
    pub(super) fn leaf_proof(&self, index: u32) -> Result<(Hash, Proof), StorageError> {
        let (_, leaves) = self.content(u64::from(index) / BLOCK_LEAVES as u64)?;
        let hashes: Vec<Hash> = leaves.iter().map(|leaf| leaf_hash(leaf.as_ref())).collect();
        let proof = self.path(Tree::Receipts, &hashes, index)?;
        let leaf = hashes.get(index as usize % BLOCK_LEAVES).copied();
        Ok((leaf.ok_or_else(|| self.damaged(format!("leaf {index} is not there")))?, proof))
    }

    /// The proof for the leaf at `index`, which `block` has; it holds, or the file is damaged.
    pub(super) fn proof(&self, tree: Tree, block: &Block, index: u32) -> Result<Proof, StorageError> {
        self.path(tree, block.leaf_hashes(tree), index)
    }

    /// The proof for the leaf at `index`, from the hashes of its block.
    fn path(&self, tree: Tree, hashes: &[Hash], index: u32) -> Result<Proof, StorageError> {
        let within = index as usize % BLOCK_LEAVES;
        let bad = || self.damaged(format!("the nodes above leaf {index} are damaged"));
        let mut path = merkle::prove(hashes, within).ok_or_else(bad)?.path;
        let mut node = u64::from(index) / BLOCK_LEAVES as u64;
        for level in 0..self.layout.levels() {
            if node ^ 1 < self.layout.width(level) {
                let mut sibling = [0; HASH_BYTES];
                let at = self.layout.node(tree, level, node ^ 1);
                disk(self.on.read_at(&self.file, at, &mut sibling), &self.file, "read")?;
                path.push(Hash::from_bytes(sibling));
            }
            node >>= 1;
        }
        let proof = Proof { index: index.into(), count: self.batch.count.into(), path };
        let root = match tree {
            Tree::Receipts => &self.batch.root,
            Tree::Tallies => &self.batch.tally_root,
        };
        let leaf = hashes.get(within).ok_or_else(bad)?;
        if merkle::verify(root, *leaf, &proof) { Ok(proof) } else { Err(bad()) }
    }
}
