//! SentencePiece's `precompiled_charsmap`: a double array of bytes whose leaves point at replacements.
//!
//! The crate that executes it follows its pointers unchecked, so that a damaged map would panic on some text. Here every pointer
//! that any text can reach is followed once, and a map with one that leads nowhere is refused.

/// Most bytes; the map of `nmt_nfkc` has 240 kB.
const BYTES_MAX: usize = 2 << 20;

/// Refuses a map that some text would make the executing crate read outside of.
pub(super) fn check(map: &[u8]) -> Result<(), String> {
    let fail = |what: &str| Err(format!("the table of replacements {what}"));
    if map.len() > BYTES_MAX {
        return fail(&format!("has more than {BYTES_MAX} bytes"));
    }
    let Some((size, rest)) = map.split_first_chunk::<4>() else { return fail("is cut off") };
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
        return fail("is shorter than it says");
    }
    let (trie, texts) = rest.split_at(size);
    let Ok(texts) = std::str::from_utf8(texts) else { return fail("holds no UTF-8") };
    let units: Vec<usize> = trie.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect();
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let mut seen = vec![false; units.len()];
    let mut bases = vec![offset(units[0])];
    while let Some(base) = bases.pop() {
        for byte in 1..=255usize {
            let at = base ^ byte;
            let Some(unit) = units.get(at) else { return fail("points outside of itself") };
            if unit & ((1 << 31) | 0xff) != byte || std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let next = at ^ offset(*unit);
            if (unit >> 8) & 1 == 1 {
                let leaf = units.get(next).map(|leaf| leaf & ((1 << 31) - 1));
                if !leaf.is_some_and(|leaf| texts.is_char_boundary(leaf)) {
                    return fail("points outside of its texts");
                }
            }
            bases.push(next);
        }
    }
    Ok(())
}

/// Base64 with padding, as `tokenizer.json` holds the map.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_standard_vectors() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn pointers_that_lead_nowhere_are_refused() {
        // 256 units: the root leads to base 0, byte 97 to a leaf at 0 ^ 97 ^ 96 = 1, whose value is `leaf`.
        let map = |root: u32, a: u32, leaf: u32, units: u32| {
            let mut trie = vec![0u32; units as usize];
            (trie[0], trie[1], trie[97]) = (root, leaf, a);
            let mut bytes = (4 * units).to_le_bytes().to_vec();
            trie.iter().for_each(|u| bytes.extend(u.to_le_bytes()));
            bytes.extend("é\0".bytes());
            bytes
        };
        let a = 96 << 10 | 1 << 8 | 97;
        assert_eq!(check(&map(0, a, 1 << 31, 256)), Ok(()));
        assert!(check(&map(0, a, 1 << 31 | 1, 256)).is_err(), "inside a character");
        assert!(check(&map(0, a, 1 << 31 | 9, 256)).is_err(), "after the texts");
        assert!(check(&map(1 << 18, a, 1 << 31, 256)).is_err(), "root outside");
        assert!(check(&map(0, 1 << 18 | 97, 1 << 31, 256)).is_err(), "next outside");
        assert!(check(&map(0, a, 1 << 31, 256)[..900]).is_err(), "cut off");
        assert!(check(&[255, 255, 255, 255, 0]).is_err() && check(&[]).is_err());
    }
}
