//! Which bytes a token stands for, read off the tokenizer's decoder.

use tokenizers::DecoderWrapper;

/// How a vocabulary writes bytes and spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spelling {
    /// Each character is a byte of GPT-2's alphabet.
    byte_level: bool,
    /// `<0xAB>` is a byte.
    byte_fallback: bool,
    /// What stands for a space.
    space: Option<String>,
    /// What begins a piece that does not begin a word.
    continuing: Option<String>,
}

impl Spelling {
    pub(super) fn new(decoder: Option<&DecoderWrapper>) -> Spelling {
        let mut spelling = Spelling::default();
        decoder.iter().for_each(|d| spelling.add(d));
        spelling
    }

    fn add(&mut self, decoder: &DecoderWrapper) {
        match decoder {
            DecoderWrapper::Sequence(all) => all.get_decoders().iter().for_each(|d| self.add(d)),
            DecoderWrapper::ByteLevel(_) => self.byte_level = true,
            DecoderWrapper::ByteFallback(_) => self.byte_fallback = true,
            DecoderWrapper::Metaspace(m) => self.space = Some(m.get_replacement().to_string()),
            DecoderWrapper::WordPiece(w) => self.continuing = Some(w.prefix.clone()),
            // What is replaced is not public: every published vocabulary that replaces something by a space replaces this.
            DecoderWrapper::Replace(r) if r.content == " " => self.space = Some("▁".to_owned()),
            DecoderWrapper::Replace(_)
            | DecoderWrapper::BPE(_)
            | DecoderWrapper::CTC(_)
            | DecoderWrapper::Fuse(_)
            | DecoderWrapper::Strip(_) => {}
        }
    }

    /// What stands for a space: a space, where nothing else does.
    fn space(&self) -> &str {
        self.space.as_deref().unwrap_or(" ")
    }

    /// The bytes of a token.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            // As the decoder does: a token with a character outside of the alphabet is what it says.
            let all: Option<Vec<u8>> = token.chars().map(byte_of).collect();
            return all.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if let Some(byte) = self.byte_fallback.then(|| fallback(token)).flatten() {
            return vec![byte];
        }
        match &self.continuing {
            Some(prefix) => match token.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
            None => token.replace(self.space(), " ").into_bytes(),
        }
    }
}

/// The byte of `<0xAB>`.
fn fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte of a character of GPT-2's alphabet: visible characters of Latin-1 are themselves, the 68 other bytes (0 to 32, 127
/// to 160, 173) follow from U+0100 in order.
fn byte_of(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        n @ (33..=126 | 161..=172 | 174..=255) => n,
        n @ 256..=288 => n - 256,
        n @ 289..=322 => n - 289 + 127,
        323 => 173,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_each_byte_once() {
        let mut seen = [false; 256];
        for b in ('\0'..'\u{200}').filter_map(byte_of) {
            assert!(!std::mem::replace(&mut seen[usize::from(b)], true), "{b}");
        }
        assert!(seen.iter().all(|s| *s));
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of('A')), (Some(b' '), Some(b'\n'), Some(b'A')));
    }

    #[test]
    fn bytes_of_each_kind_of_token() {
        let spm = Spelling { byte_fallback: true, space: Some("▁".into()), ..Spelling::default() };
        assert_eq!(spm.bytes("▁a▁b"), b" a b");
        assert_eq!(spm.bytes("<0xE2>"), [0xe2]);
        assert_eq!(spm.bytes("<0xE2"), b"<0xE2");
        let words = Spelling { continuing: Some("##".into()), ..Spelling::default() };
        assert_eq!((words.bytes("a"), words.bytes("##b")), (b" a".to_vec(), b"b".to_vec()));
        assert_eq!(Spelling { byte_level: true, ..Spelling::default() }.bytes("Ġé"), [b' ', 0xe9]);
    }
}
