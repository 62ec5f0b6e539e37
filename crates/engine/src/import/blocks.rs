//! Numbers that share a scale: ggml's block formats, as `ggml-common.h` and `ggml-quants.c` define them.
//!
//! Every value is computed exactly in f64. Where ggml multiplies in f32 its products are exact as well; only the subtraction of
//! Q4_K rounds there, once.

use super::source::half;

/// Numbers in a block of Q8_0 and Q4_0.
pub(super) const SMALL: usize = 32;
/// Numbers in a block of the K formats.
pub(super) const LARGE: usize = 256;
/// Bytes of a block of Q8_0: a binary16 scale and a signed byte for each number.
pub(super) const Q8_0_BYTES: usize = 2 + SMALL;
/// Bytes of a block of Q4_0: a binary16 scale and four bits for each number, 8 standing for zero.
pub(super) const Q4_0_BYTES: usize = 2 + SMALL / 2;
/// Bytes of a block of Q4_K: two binary16 scales, eight 6-bit scales and minima, and four bits for each number.
pub(super) const Q4_K_BYTES: usize = 4 + SCALES + LARGE / 2;
/// Bytes of a block of Q6_K: the low four bits, the high two bits, sixteen signed scales and a binary16 scale.
pub(super) const Q6_K_BYTES: usize = LARGE / 2 + LARGE / 4 + LARGE / 16 + 2;

/// Bytes of the packed scales and minima of Q4_K.
const SCALES: usize = 12;

fn scale(bytes: &[u8]) -> f64 {
    match bytes {
        [a, b, ..] => f64::from(half(u16::from_le_bytes([*a, *b]))),
        _ => f64::NAN,
    }
}

/// Appends the 32 numbers of a block of Q8_0.
pub(super) fn q8_0(block: &[u8; Q8_0_BYTES], out: &mut Vec<f64>) {
    let d = scale(block);
    out.extend(block[2..].iter().map(|q| d * f64::from(*q as i8)));
}

/// Appends the 32 numbers of a block of Q4_0: the low halves of all bytes, then the high halves.
pub(super) fn q4_0(block: &[u8; Q4_0_BYTES], out: &mut Vec<f64>) {
    let d = scale(block);
    let number = |q: u8| d * (f64::from(q) - 8.0);
    out.extend(block[2..].iter().map(|b| number(b & 15)));
    out.extend(block[2..].iter().map(|b| number(b >> 4)));
}

/// Appends the 256 numbers of a block of Q4_K: eight groups of 32, two of which share 32 bytes.
pub(super) fn q4_k(block: &[u8; Q4_K_BYTES], out: &mut Vec<f64>) {
    let (d, least) = (scale(block), scale(&block[2..]));
    let packed = &block[4..4 + SCALES];
    for (pair, bytes) in block[4 + SCALES..].chunks_exact(32).enumerate() {
        for (group, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (s, m) = scale_and_least(packed, group);
            let (d, least) = (d * f64::from(s), least * f64::from(m));
            out.extend(bytes.iter().map(|b| d * f64::from((b >> shift) & 15) - least));
        }
    }
}

/// The 6-bit scale and minimum of a group: the first four lie in the low bits of bytes 0 to 3 and 4 to 7, the last four have
/// their low halves in bytes 8 to 11 and their high bits on top of the first eight bytes.
fn scale_and_least(packed: &[u8], group: usize) -> (u8, u8) {
    match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => {
            let both = packed[group + 4];
            ((both & 15) | ((packed[group - 4] >> 6) << 4), (both >> 4) | ((packed[group] >> 6) << 4))
        }
    }
}

/// Appends the 256 numbers of a block of Q6_K: two halves of 128, each four runs of 32 that share 64 bytes of low bits and 32
/// of high bits; a scale is for 16 numbers.
pub(super) fn q6_k(block: &[u8; Q6_K_BYTES], out: &mut Vec<f64>) {
    let (low, rest) = block.split_at(LARGE / 2);
    let (high, rest) = rest.split_at(LARGE / 4);
    let (scales, d) = rest.split_at(LARGE / 16);
    let d = scale(d);
    for half in 0..2 {
        let (low, high) = (&low[64 * half..64 * half + 64], &high[32 * half..32 * half + 32]);
        for run in 0..4 {
            for i in 0..32 {
                let bits = low[32 * (run % 2) + i] >> (4 * (run / 2)) & 15;
                let q = bits | ((high[i] >> (2 * run)) & 3) << 4;
                let s = scales[8 * half + 2 * run + i / 16] as i8;
                out.push(d * f64::from(s) * (f64::from(q) - 32.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::source::Format;

    /// Made by `tests/data/recipe/blocks.py`.
    const BLOCKS: &str = include_str!("../../tests/data/gguf/blocks.json");

    #[test]
    fn blocks_read_as_the_original_package_reads_them() {
        let cases: Vec<Value> = serde_json::from_str(BLOCKS).unwrap();
        for case in &cases {
            let name = case["format"].as_str().unwrap();
            let format = match name {
                "Q8_0" => Format::Q8_0,
                "Q4_0" => Format::Q4_0,
                "Q4_K" => Format::Q4K,
                "Q6_K" => Format::Q6K,
                "F16" => Format::F16,
                other => {
                    assert_eq!(other, "BF16");
                    Format::Bf16
                }
            };
            let hex = case["bytes"].as_str().unwrap();
            let bytes: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            let mut numbers = Vec::new();
            format.read(&bytes, &mut numbers);
            let bits: Vec<u64> = numbers.iter().map(|v| u64::from((*v as f32).to_bits())).collect();
            let expected: Vec<u64> =
                case["numbers"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
            assert_eq!(bits, expected, "{name}");
            let (in_block, size) = format.block();
            assert_eq!(numbers.len(), bytes.len() / size * in_block, "{name}");
        }
        assert_eq!(cases.len(), 6);
    }
}
