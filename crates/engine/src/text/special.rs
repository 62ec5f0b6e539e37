//! Special tokens in text: found where a template wrote them, hidden where a client did.
//!
//! Before a template sees client text, the first character of every special token's name in it is written as a run of
//! Unicode noncharacters, which no template touches; after the rendered text has been split at special tokens, it is written
//! back. Noncharacters in client text are dropped: they are not for interchange.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use aho_corasick::{AhoCorasick, BuildError, MatchKind};
use tokenizers::AddedToken;

/// Begins a hidden character.
const MARK: char = '\u{FDD0}';
/// Digit 0 of a hidden character; the others follow. A character is six hexadecimal digits.
const DIGIT: u32 = 0xFDD1;
const DIGITS: u32 = 6;

/// The special tokens of a tokenizer.
pub(super) struct Specials {
    names: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
    ids: BTreeMap<u32, usize>,
}

/// A run of text, and the special token that follows it.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) special: Option<u32>,
}

impl Specials {
    pub(super) fn new(tokens: impl Iterator<Item = (u32, AddedToken)>) -> Result<Self, BuildError> {
        let tokens: Vec<_> = tokens.filter(|(_, t)| !t.content.is_empty()).collect();
        let names = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, t)| t.content.as_str()))?;
        let ids = tokens.iter().enumerate().map(|(i, (id, _))| (*id, i)).collect();
        Ok(Specials { names, tokens, ids })
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.ids.contains_key(&id)
    }

    /// Client text in which no name of a special token is whole.
    pub(super) fn disarm(&self, text: &str) -> String {
        let text: String = text.chars().filter(|c| !matches!(c, '\u{FDD0}'..='\u{FDEF}')).collect();
        let mut out = String::with_capacity(text.len());
        let mut from = 0;
        while let Some(found) = self.names.find(&text[from..]) {
            let at = from + found.start();
            let Some(first) = text[at..].chars().next() else { break };
            out.push_str(&text[from..at]);
            hide(first, &mut out);
            from = at + first.len_utf8();
        }
        out.push_str(&text[from..]);
        out
    }

    /// The parts of client text cut after the first character of every name of a special token or a byte.
    pub(super) fn inside(&self, text: &str) -> Vec<Range<usize>> {
        let mut starts: Vec<usize> = text.match_indices("<0x").map(|(at, _)| at).collect();
        let mut seek = 0;
        while let Some(found) = self.names.find(&text[seek..]) {
            let at = seek + found.start();
            starts.push(at);
            seek = at + text[at..].chars().next().map_or(1, char::len_utf8);
        }
        starts.sort_unstable();
        starts.dedup();
        let (mut parts, mut from) = (Vec::new(), 0);
        for at in starts {
            let next = at + text[at..].chars().next().map_or(1, char::len_utf8);
            parts.push(from..next);
            from = next;
        }
        parts.push(from..text.len());
        parts.retain(|p| !p.is_empty());
        parts
    }

    /// Cuts rendered text at special tokens, the longest where several begin.
    pub(super) fn split<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut from = 0;
        while let Some(found) = self.names.find(&text[from..]) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let before = &text[from..from + found.start()];
            // Tokens may swallow the white space around them, as in Hugging Face's tokenizers.
            let before = if token.lstrip { before.trim_end() } else { before };
            pieces.push(Piece { text: before, special: Some(*id) });
            from += found.end();
            if token.rstrip {
                from = text.len() - text[from..].trim_start().len();
            }
        }
        pieces.push(Piece { text: &text[from..], special: None });
        pieces
    }
}

/// Names of byte pieces, `<0xAB>`, that a text says.
pub(super) fn byte_names(text: &str) -> BTreeSet<&str> {
    let name = |(at, _): (usize, &str)| text.get(at..at + 6).filter(|name| name.ends_with('>'));
    text.match_indices("<0x").filter_map(name).collect()
}

fn hide(c: char, out: &mut String) {
    out.push(MARK);
    let digits = (0..DIGITS).rev().map(|i| (u32::from(c) >> (4 * i)) & 15);
    out.extend(digits.filter_map(|d| char::from_u32(DIGIT + d)));
}

/// Writes hidden characters back; noncharacters that mean none are dropped.
pub(super) fn rearm(text: &str) -> Cow<'_, str> {
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != MARK {
            out.push(c);
            continue;
        }
        let mut ahead = rest.clone();
        let digits = ahead.by_ref().take(DIGITS as usize).map(|d| u32::from(d).wrapping_sub(DIGIT));
        let code = digits.filter(|d| *d < 16).fold((0u32, 0), |(code, n), d| ((code << 4) | d, n + 1));
        if let (Some(hidden), DIGITS) = (char::from_u32(code.0), code.1) {
            out.push(hidden);
            rest = ahead;
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specials(names: &[&str]) -> Specials {
        let token = |(i, name): (usize, &&str)| (i as u32, AddedToken::from(*name, true));
        Specials::new(names.iter().enumerate().map(token)).unwrap()
    }

    #[test]
    fn hidden_names_come_back_and_never_match() {
        let s = specials(&["<s>", "<|im_start|>", "s>x", "|", "é", "<s><s>"]);
        for text in
            ["", "plain", "<s>", "<<s>s>", "<s>x|é<|im_start|>", "<s><s><s>", "|||", "\u{FDD0}<s\u{FDD3}>"]
        {
            let disarmed = s.disarm(text);
            assert!(s.split(&disarmed).iter().all(|p| p.special.is_none()), "{text}");
            let plain: String = text.chars().filter(|c| !('\u{FDD0}'..='\u{FDEF}').contains(c)).collect();
            assert_eq!(rearm(&disarmed), plain);
        }
        let ids: Vec<_> = s.split("a<s><s>b<s>x").iter().map(|p| (p.text, p.special)).collect();
        assert_eq!(ids, [("a", Some(5)), ("b", Some(0)), ("x", None)]);
    }

    #[test]
    fn no_part_of_cut_text_has_a_whole_name() {
        let s = specials(&["<s>", "</s>", "é"]);
        let text = "<s>a</s><0x41>é<";
        let parts: Vec<&str> = s.inside(text).into_iter().map(|p| &text[p]).collect();
        assert_eq!(parts, ["<", "s>a<", "/s><", "0x41>é", "<"]);
        assert!(s.inside("").is_empty());
    }

    #[test]
    fn tokens_swallow_white_space_if_they_say_so() {
        let end = AddedToken::from("<end>", true).rstrip(true).lstrip(true);
        let s = Specials::new([(7, end)].into_iter()).unwrap();
        let pieces: Vec<_> = s.split("a <end>\n b").iter().map(|p| (p.text, p.special)).collect();
        assert_eq!(pieces, [("a", Some(7)), ("b", None)]);
    }
}
