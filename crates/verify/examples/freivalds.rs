//! Which random combination is the cheapest check of a matrix product? Three candidates with a chance of at most 2^-60 to
//! miss a wrong accumulator, as plain loops over one token's products of models of four sizes.
//!
//!     RUSTFLAGS="-C target-cpu=native" cargo run --release -p assay-verify --example freivalds
//!
//! - *field*: one combination over the integers modulo 2^61 - 1; weights of 61 bits in two halves. 8 bytes a row, 8 a column.
//! - *short*: four combinations over the integers; weights of 16 bits. 8 bytes a row; a column's four sums of up to 40 bits
//!   are stored in 20 bytes and held in 32.
//! - *wrapping*: two combinations modulo 2^64; weights of 32 bits. 8 bytes a row, 16 a column.
//! - *kernel*: the field's combination by the engine's kernels, chosen at run time: what the verifier uses.
#![allow(clippy::type_complexity, clippy::needless_range_loop, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use assay_engine::kernel::Kernel;
use assay_engine::kernel::wide::Halves;

/// Width, layers, and per layer the rows and columns of each matrix; the vocabulary.
const MODELS: [(usize, usize, [(usize, usize); 4], usize); 4] = [
    (576, 30, [(960, 576), (576, 576), (3072, 576), (576, 1536)], 49_152),
    (2048, 16, [(3072, 2048), (2048, 2048), (16_384, 2048), (2048, 8192)], 128_256),
    (4096, 32, [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336)], 128_256),
    (8192, 80, [(10_240, 8192), (8192, 8192), (57_344, 8192), (8192, 28_672)], 128_256),
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn many<T>(&mut self, n: usize, make: impl Fn(u64) -> T) -> Vec<T> {
        (0..n).map(|_| make(self.next())).collect()
    }
}

/// One matrix product: accumulators, inputs, and weights for rows and sums for columns that every candidate cuts as it likes.
struct Product {
    a: Vec<i32>,
    q: Vec<i8>,
    rows: [Vec<i32>; 2],
    cols: [Vec<i32>; 2],
    short_rows: [Vec<u16>; 4],
    short_cols: [Vec<i64>; 4],
    wrapping_rows: [Vec<u32>; 2],
    wrapping_cols: [[Vec<u32>; 2]; 2],
}

impl Product {
    fn new(rows: usize, cols: usize, random: &mut Random) -> Product {
        let half = |v: u64| (v >> 33) as i32;
        Product {
            a: random.many(rows, |v| (v as i32) >> 9),
            q: random.many(cols, |v| v as i8),
            rows: [0; 2].map(|_| random.many(rows, half)),
            cols: [0; 2].map(|_| random.many(cols, half)),
            short_rows: [0; 4].map(|_| random.many(rows, |v| v as u16)),
            short_cols: [0; 4].map(|_| random.many(cols, |v| (v as i64) >> 24)),
            wrapping_rows: [0; 2].map(|_| random.many(rows, |v| v as u32)),
            wrapping_cols: [0; 2].map(|_| [0; 2].map(|_| random.many(cols, |v| v as u32))),
        }
    }
}

fn field(p: &Product) -> i128 {
    let mut sums = [0i128; 2];
    for (at, a) in p.a.chunks(256).enumerate() {
        let from = at * 256;
        let (low, high) = (&p.rows[0][from..][..a.len()], &p.rows[1][from..][..a.len()]);
        let (mut l, mut h) = (0i64, 0i64);
        for i in 0..a.len() {
            l = l.wrapping_add(i64::from(a[i]) * i64::from(low[i]));
            h = h.wrapping_add(i64::from(a[i]) * i64::from(high[i]));
        }
        sums[0] += i128::from(l);
        sums[1] += i128::from(h);
    }
    let (mut l, mut h) = (0i64, 0i64);
    let (low, high) = (&p.cols[0][..p.q.len()], &p.cols[1][..p.q.len()]);
    for i in 0..p.q.len() {
        l = l.wrapping_add(i64::from(p.q[i]) * i64::from(low[i]));
        h = h.wrapping_add(i64::from(p.q[i]) * i64::from(high[i]));
    }
    sums[0] - i128::from(l) + ((sums[1] - i128::from(h)) << 31)
}

fn short(p: &Product) -> i128 {
    let mut all = 0i128;
    for r in 0..4 {
        let (rows, cols) = (&p.short_rows[r][..p.a.len()], &p.short_cols[r][..p.q.len()]);
        let mut sum = 0i64;
        for i in 0..p.a.len() {
            sum = sum.wrapping_add(i64::from(p.a[i]) * i64::from(rows[i]));
        }
        for i in 0..p.q.len() {
            // Sums of up to 40 bits are no 32-bit factors: their halves are.
            let (low, high) = (i64::from(cols[i] as u32), cols[i] >> 32);
            let q = i64::from(p.q[i]);
            sum = sum.wrapping_sub(q.wrapping_mul(low)).wrapping_sub((q * i64::from(high as i32)) << 32);
        }
        all ^= i128::from(sum);
    }
    all
}

fn wrapping(p: &Product) -> i128 {
    let mut all = 0i128;
    for r in 0..2 {
        let rows = &p.wrapping_rows[r][..p.a.len()];
        let mut sum = 0u64;
        // Signed times unsigned: the accumulator is made unsigned by 2^31, which the weights' sum takes back.
        for i in 0..p.a.len() {
            sum = sum.wrapping_add(u64::from(p.a[i] as u32 ^ 1 << 31) * u64::from(rows[i]));
        }
        let [low, high] = &p.wrapping_cols[r];
        let (low, high) = (&low[..p.q.len()], &high[..p.q.len()]);
        let (mut l, mut h) = (0u64, 0u64);
        for i in 0..p.q.len() {
            let q = u64::from(p.q[i] as u8 ^ 128);
            l = l.wrapping_add(q * u64::from(low[i]));
            h = h.wrapping_add(q * u64::from(high[i]));
        }
        all ^= i128::from(sum.wrapping_sub(l).wrapping_sub(h << 32));
    }
    all
}

fn kernel(kernel: Kernel, p: &Product) -> i128 {
    let (l, h) = kernel.weigh(&p.a, Halves { low: &p.rows[0], high: &p.rows[1] });
    let (ql, qh) = kernel.weigh_bytes(&p.q, Halves { low: &p.cols[0], high: &p.cols[1] });
    l - i128::from(ql) + ((h - i128::from(qh)) << 31)
}

fn main() {
    let fastest = Kernel::available()[0];
    println!("width  rows+cols  field  short  wrapping  kernel({})   (µs a token)", fastest.name());
    for (width, layers, shapes, vocabulary) in MODELS {
        let mut random = Random(width as u64 + 1);
        let mut products: Vec<Product> = (0..layers)
            .flat_map(|_| shapes)
            .map(|(rows, cols)| Product::new(rows, cols, &mut random))
            .collect();
        products.push(Product::new(vocabulary, width, &mut random));
        let numbers: usize = products.iter().map(|p| p.a.len() + p.q.len()).sum();
        let time = |check: &dyn Fn(&Product) -> i128| {
            let mut best = u128::MAX;
            for _ in 0..7 {
                let start = Instant::now();
                for p in &products {
                    black_box(check(black_box(p)));
                }
                best = best.min(start.elapsed().as_micros());
            }
            best
        };
        let (f, s, w, k) = (time(&field), time(&short), time(&wrapping), time(&|p| kernel(fastest, p)));
        println!("{width:5}  {numbers:9}  {f:5}  {s:5}  {w:8}  {k:6}");
    }
}
