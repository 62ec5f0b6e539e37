//! What an epoch costs its provider: receipts appended in groups of several sizes, sealed, proved.
//!
//!     cargo run --release -p assay-ledger --example epoch -- --receipts 1000000 [--folder PATH] [--json]
//!
//! Appending is measured for groups of 1, 64 and 1024 receipts a flush, each in a folder of its own; the groups of 1 and 64 only as long as
//! [`SAMPLE_SECONDS`], since a flush costs the same every time. The largest group's folder gets all receipts and is then sealed, opened
//! again and asked for proofs; its roots are compared with those of the same receipts in memory. Receipts come slightly out of order, as several answers at once make them. They are made before the clock
//! starts, a group at a time, without signatures, which the builder does not look at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use assay_core::id::{
    ChannelId, DigestRoot, Hash, ModelRoot, NodeAddress, Nonce, RequestHash, SignatureBytes, TranscriptRoot,
};
use assay_core::keccak::keccak256;
use assay_core::merkle;
use assay_core::receipt::{Domain, Receipt, SignedReceipt};
use assay_ledger::epochs::{Builder, Folder, Identity, Leaf, Posting, Terms, leaf_hash};
use serde_json::json;

const GROUPS: [usize; 3] = [1, 64, 1024];
/// How long groups are appended that would take too long otherwise.
const SAMPLE_SECONDS: u64 = 10;
const MODELS: u64 = 16;
const PROOFS: u64 = 2000;
/// Receipts of so many numbers come in any order.
const SHUFFLED: u64 = 64;

type Failure = Box<dyn std::error::Error>;

const IDENTITY: Identity = Identity {
    provider: NodeAddress::from_bytes([1; 20]),
    domain: Domain { chain_id: 31_337, contract: NodeAddress::from_bytes([7; 20]) },
};

fn receipt(sequence: u64) -> SignedReceipt {
    let some = *keccak256(&[&sequence.to_be_bytes()]).as_bytes();
    let model = *keccak256(&[b"model", &(sequence % MODELS).to_be_bytes()]).as_bytes();
    let receipt = Receipt {
        provider: IDENTITY.provider,
        sequence,
        model_root: ModelRoot::from_bytes(model),
        request_hash: RequestHash::from_bytes(some),
        transcript_root: TranscriptRoot::from_bytes(some),
        digest_root: DigestRoot::from_bytes(some),
        prompt_tokens: 512,
        completion_tokens: 64,
        fee_micro_usd: 100 + sequence % 900,
        payer_channel: ChannelId::from_bytes(some),
        client_nonce: Nonce::from_bytes(some),
        epoch: 0,
    };
    SignedReceipt { receipt, domain: IDENTITY.domain, signature: SignatureBytes::ZERO }
}

/// Receipt number `i` of those that come: numbers are shuffled in runs, and one in 97 is never signed.
fn arriving(i: u64, receipts: u64) -> Option<SignedReceipt> {
    let run = i - i % SHUFFLED;
    // Multiplying by an odd number permutes a power of two.
    let sequence = run + (i % SHUFFLED) * 37 % SHUFFLED;
    (sequence < receipts && sequence % 97 != 41).then(|| receipt(sequence))
}

/// How long something took, by the clock and, where the system says so, on the core: other work on the machine lengthens the first.
#[derive(Clone, Copy, Default)]
struct Took {
    clock: Duration,
    core: Duration,
}

struct Start(Instant, Duration);

/// Time that this program's only thread has had on a core.
fn on_core() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

impl Start {
    fn now() -> Start {
        Start(Instant::now(), on_core())
    }

    fn took(&self) -> Took {
        Took { clock: self.0.elapsed(), core: on_core().saturating_sub(self.1) }
    }
}

impl Took {
    fn add(&mut self, other: Took) {
        self.clock += other.clock;
        self.core += other.core;
    }

    /// Microseconds each, by the clock and on the core.
    fn each(&self, many: u64) -> [f64; 2] {
        [self.clock, self.core].map(|t| t.as_secs_f64() * 1e6 / many.max(1) as f64)
    }
}

struct Appending {
    group: usize,
    receipts: u64,
    time: Took,
}

/// Appends up to `receipts` in groups, for at most `limit`; hashing is in the measured time, making receipts is not.
fn append(
    b: &mut Builder<Folder>,
    receipts: u64,
    group: usize,
    limit: Option<Duration>,
) -> Result<Appending, Failure> {
    let mut done = Appending { group, receipts: 0, time: Took::default() };
    let rounded = receipts.next_multiple_of(SHUFFLED);
    let mut coming = (0..rounded).filter_map(|i| arriving(i, receipts));
    loop {
        let next: Vec<SignedReceipt> = coming.by_ref().take(group).collect();
        if next.is_empty() || limit.is_some_and(|limit| done.time.clock > limit) {
            return Ok(done);
        }
        let start = Start::now();
        let appended = b.append_many(&next)?;
        done.time.add(start.took());
        done.receipts += appended.new as u64;
    }
}

/// The roots that a batch of these numbers must have, from the receipts and not from any file.
fn roots(receipts: u64, first: u64, end: u64) -> (Hash, Hash) {
    let signed = |n: &u64| *n < receipts && n % 97 != 41;
    let mut totals: BTreeMap<ModelRoot, u64> =
        (0..MODELS).map(|n| (receipt(n).receipt.model_root, 0)).collect();
    let mut leaves = (merkle::Builder::new(), merkle::Builder::new());
    for n in first..end {
        let receipt = Some(n).filter(signed).map(receipt);
        let leaf = receipt.as_ref().map(Leaf::of);
        leaves.0.push(leaf_hash(leaf.as_ref()));
        if let Some(leaf) = leaf {
            *totals.entry(leaf.model_root).or_default() += leaf.fee_micro_usd;
        }
        let tally: Vec<u8> = totals.values().flat_map(|t| t.to_be_bytes()).collect();
        leaves.1.push(merkle::leaf(&tally));
    }
    (leaves.0.root(), leaves.1.root())
}

fn bytes_in(folder: &Path) -> Result<u64, Failure> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// The most memory this process has had, where the system says so.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
}

struct Arguments {
    receipts: u64,
    folder: PathBuf,
    json: bool,
}

fn arguments() -> Result<Arguments, Failure> {
    let mut found = Arguments {
        receipts: 1_000_000,
        folder: std::env::temp_dir().join(format!("assay-epoch-{}", std::process::id())),
        json: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--receipts" => found.receipts = words.next().ok_or("--receipts needs a number")?.parse()?,
            "--folder" => found.folder = words.next().ok_or("--folder needs a path")?.into(),
            "--json" => found.json = true,
            other => return Err(format!("{other}: expected --receipts, --folder or --json").into()),
        }
    }
    Ok(found)
}

fn main() -> Result<(), Failure> {
    let Arguments { receipts, folder, json } = arguments()?;
    if folder.exists() {
        return Err(format!("{}: there is something already", folder.display()).into());
    }
    let result = measure(receipts, &folder, json);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn measure(receipts: u64, folder: &Path, json: bool) -> Result<(), Failure> {
    let mut appendings = Vec::new();
    let whole = folder.join("whole");
    let (mut b, _) = Builder::open(&whole, IDENTITY)?;
    let baseline = peak_kib();
    for group in GROUPS {
        let last = Some(&group) == GROUPS.last();
        if last {
            appendings.push(append(&mut b, receipts, group, None)?);
        } else {
            let (mut sample, _) = Builder::open(&folder.join(group.to_string()), IDENTITY)?;
            let limit = Some(Duration::from_secs(SAMPLE_SECONDS));
            appendings.push(append(&mut sample, receipts, group, limit)?);
        }
    }
    let journals = bytes_in(&whole)?;
    let peak_appending = peak_kib();

    let start = Start::now();
    let batch = b.seal(0, &Terms::default())?;
    let sealing = start.took();
    let peak = peak_kib();
    let tree = bytes_in(&whole)?.saturating_sub(journals);
    b.posted(0, Posting { block: 1, transaction: Hash::ZERO })?;
    drop(b);

    let start = Start::now();
    let (b, _) = Builder::open(&whole, IDENTITY)?;
    let opening = start.took();

    let step = (u64::from(batch.count) / PROOFS).max(1);
    let asked: Vec<u64> = (0..PROOFS).map(|i| batch.first + i * step).filter(|n| *n < batch.next()).collect();
    let start = Start::now();
    for n in &asked {
        b.proof(*n)?;
    }
    let proof = start.took().each(asked.len() as u64);
    let start = Start::now();
    for n in &asked {
        b.opening(*n)?;
    }
    let whole_opening = start.took().each(asked.len() as u64);

    if roots(receipts, batch.first, batch.next()) != (batch.root, batch.tally_root) {
        return Err("the batch's roots are not those of the same receipts in memory".into());
    }
    let leaves = u64::from(batch.count);
    if json {
        let both = |[clock, core]: [f64; 2]| json!({"us": clock, "core_us": core});
        let rows: Vec<_> = appendings
            .iter()
            .map(|a| json!({"group": a.group, "receipts": a.receipts, "each": both(a.time.each(a.receipts))}))
            .collect();
        let report = json!({
            "leaves": leaves, "gaps": batch.gaps, "models": batch.shares.len(), "root": batch.root.to_string(),
            "append": rows,
            "seal_each": both(sealing.each(leaves)), "seal": both(sealing.each(1)), "open": both(opening.each(1)),
            "proof": both(proof), "opening": both(whole_opening),
            "peak_kib": {"start": baseline, "appended": peak_appending, "sealed": peak},
            "bytes": {"journals": journals, "batch": tree},
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let mib = |kib: Option<u64>| kib.map_or("unknown".into(), |k| format!("{:.1} MiB", k as f64 / 1024.0));
    println!("{leaves} leaves, {} of them gaps, {} models", batch.gaps, batch.shares.len());
    println!("\n| | number | µs each | on the core |\n|---|---|---|---|");
    let row = |what: &str, many: u64, [clock, core]: [f64; 2]| {
        println!("| {what} | {many} | {clock:.1} | {core:.1} |");
    };
    for a in &appendings {
        row(&format!("append, {} a flush", a.group), a.receipts, a.time.each(a.receipts));
    }
    row("seal, a leaf", leaves, sealing.each(leaves));
    row("seal", 1, sealing.each(1));
    row("open again", 1, opening.each(1));
    row("proof of a leaf", asked.len() as u64, proof);
    row("opening for a demand", asked.len() as u64, whole_opening);
    println!("\n| | |\n|---|---|");
    println!(
        "| peak memory: start, appended, sealed | {}, {}, {} |",
        mib(baseline),
        mib(peak_appending),
        mib(peak)
    );
    println!("| journals | {:.1} bytes a receipt |", journals as f64 / f64::from(batch.count - batch.gaps));
    println!("| the batch's file | {:.1} bytes a leaf |", tree as f64 / leaves as f64);
    Ok(())
}
