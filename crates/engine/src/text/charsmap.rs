//! SentencePiece's `precompiled_charsmap`: a double array of bytes whose leaves point at replacements.
//!
//! The crate that executes it follows its pointers unchecked, so that a damaged map would panic on some text. Here every pointer
//! that any text can reach is followed once, and a map with one that leads nowhere is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Most bytes; the map of `nmt_nfkc` has 240 kB.
const BYTES_MAX: usize = 2 << 20;

/// Refuses a map that some text would make the executing crate read outside of.
pub(crate) fn check(map: &[u8]) -> Result<(), String> {
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

/// Checks every map in a normaliser of a `tokenizer.json`.
pub(super) fn check_all(normalizer: &Value) -> Result<(), String> {
    match normalizer {
        Value::Array(all) => all.iter().try_for_each(check_all),
        Value::Object(all) => all.iter().try_for_each(|(key, value)| match value {
            Value::String(map) if key == "precompiled_charsmap" => {
                let map = STANDARD
                    .decode(map)
                    .map_err(|e| format!("the table of replacements is no base64: {e}"))?;
                check(&map)
            }
            _ => check_all(value),
        }),
        _ => Ok(()),
    }
}

/// Base64 with padding, as `tokenizer.json` holds the map.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let normalizer = |leaf: u32| {
            let map = base64(&map(0, a, leaf, 256));
            serde_json::json!({"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": map}]})
        };
        assert!(check_all(&normalizer(1 << 31)).is_ok() && check_all(&Value::Null).is_ok());
        assert!(check_all(&normalizer(1 << 31 | 9)).is_err());
    }
}
