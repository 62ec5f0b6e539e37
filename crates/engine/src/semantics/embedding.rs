//! From a pooled vector to an embedding (semantics 9): cut, then made to have length 1.

use assay_core::embedding::EMBEDDING_FRAC;

use super::fixed::{bits64, isqrt, rsh};
use super::quantise::{max_abs, normal_shift};

/// The first `dimensions` numbers (at least 1, at most all) as a vector of length 1. A vector of zeros stays one.
pub fn embedding(pooled: &[i32], dimensions: usize) -> Vec<i32> {
    let v = &pooled[..dimensions];
    let k = normal_shift(max_abs(v));
    let v: Vec<i64> = v.iter().map(|x| rsh(i64::from(*x), k)).collect();
    let sum: u64 = v.iter().map(|x| (x * x) as u64).sum();
    if sum == 0 {
        return vec![0; dimensions];
    }
    // An even shift that leaves 61 or 62 bits, and so a root of 31.
    let s = (62 - bits64(sum)) / 2;
    let root = i64::from(isqrt(sum << (2 * s)));
    let one = |x: i64| {
        let y = ((x.abs() << (EMBEDDING_FRAC + s)) + root / 2) / root;
        (if x < 0 { -y } else { y }) as i32
    };
    v.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_have_length_one() {
        let one = f64::from(1u32 << EMBEDDING_FRAC);
        for v in
            [vec![3, -4], vec![1], vec![i32::MIN; 4096], (1..=384).map(|i| i * i * 37 - 90_000).collect()]
        {
            let e = embedding(&v, v.len());
            let length = e.iter().map(|x| (f64::from(*x) / one).powi(2)).sum::<f64>().sqrt();
            assert!((length - 1.0).abs() < 1e-6, "{length}");
            let want = f64::from(v[0]) / v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            assert!((f64::from(e[0]) / one - want).abs() < 1e-4);
        }
        assert_eq!(embedding(&[0, 0, 5], 2), [0, 0]);
        assert_eq!(embedding(&[7, -7, 0], 1), [1 << EMBEDDING_FRAC]);
    }
}
