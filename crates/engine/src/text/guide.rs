//! Guided decoding: which tokens may come next when an answer must have a form.
//!
//! The form is a grammar over bytes; llguidance says which tokens keep it satisfiable. It reads no clock and draws nothing, and
//! its limits count steps, so that a verifier gets the same tokens for the same request. Its version is part of what a
//! verifier replays.

use std::sync::{Arc, OnceLock};

use assay_core::request::{Guide, Tool};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::tools::{CLOSE, OPEN, Syntax};
use super::{TextError, Tokenizer};
use crate::semantics::adjust::Mask;

/// Marks the names of special tokens among the bytes of all tokens.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// What compiles grammars for a tokenizer: made when the first guide is asked for.
#[derive(Default)]
pub(super) struct Compiler(OnceLock<Result<Arc<ParserFactory>, String>>);

/// The form of one answer, and how far the answer is.
pub struct Guided {
    matcher: Matcher,
    end_tokens: Vec<u32>,
}

impl std::fmt::Debug for Guided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guided").finish_non_exhaustive()
    }
}

impl Clone for Guided {
    fn clone(&self) -> Self {
        Guided { matcher: self.matcher.deep_clone(), end_tokens: self.end_tokens.clone() }
    }
}

impl Guided {
    /// The tokens that may come next; at least one end token when nothing else may.
    pub fn mask(&mut self) -> Mask {
        // A grammar that becomes too large ends the answer, here as on the verifier's side.
        match self.matcher.compute_mask_or_eos() {
            Ok(set) if !set.is_zero() => Mask::from_words(set.as_slice().to_vec()),
            _ => Mask::only(&self.end_tokens),
        }
    }

    /// Takes the next token.
    pub fn push(&mut self, id: u32) {
        if !self.end_tokens.contains(&id) {
            // A token that does not fit leaves the matcher in its error state, and the mask with end tokens alone.
            let _ = self.matcher.consume_token(id);
        }
    }
}

impl Tokenizer {
    /// The form that a request asks for.
    pub fn guide(&self, guide: &Guide, tools: &[Tool]) -> Result<Guided, TextError> {
        let fail = |reason: String| TextError::Guide(reason);
        if self.text.end_tokens.is_empty() {
            return Err(fail("the model has no token that ends an answer".into()));
        }
        let factory = self.compiler.0.get_or_init(|| self.factory()).clone().map_err(fail)?;
        let grammar = match guide {
            Guide::JsonObject => json_grammar(json!({"type": "object"})),
            Guide::JsonSchema(schema) => {
                json_grammar(serde_json::from_str(schema).map_err(|e| fail(e.to_string()))?)
            }
            Guide::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Guide::Grammar(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Guide::Tools { required, only, parallel } => {
                let named: Vec<&Tool> =
                    tools.iter().filter(|t| only.as_ref().is_none_or(|o| *o == t.name)).collect();
                if named.is_empty() {
                    return Err(fail("none of the tools has the name that must be called".into()));
                }
                let special = self.id("[TOOL_CALLS]");
                let lark =
                    tool_grammar(self.call_syntax(), &named, *required || only.is_some(), *parallel, special);
                TopLevelGrammar::from_lark(lark.map_err(fail)?)
            }
        };
        let parser = factory.create_parser(grammar).map_err(|e| fail(format!("{e:#}")))?;
        let matcher = Matcher::new(Ok(parser));
        if let Some(e) = matcher.get_error() {
            return Err(fail(e));
        }
        Ok(Guided { matcher, end_tokens: self.text.end_tokens.clone() })
    }

    fn factory(&self) -> Result<Arc<ParserFactory>, String> {
        let word = |id: u32| {
            if self.is_special(id) {
                let name = self.inner.id_to_token(id).unwrap_or_default();
                return [&[SPECIAL], name.as_bytes()].concat();
            }
            self.token_bytes(id)
        };
        let words: Vec<Vec<u8>> = (0..self.id_limit()).map(word).collect();
        let eos = self.text.end_tokens.first().copied().unwrap_or(0);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos), &words)
            .with_eos_tokens(&self.text.end_tokens);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| format!("{e:#}"))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits::default();
        Ok(Arc::new(factory))
    }
}

/// JSON without white space but a space after `,` and `:`. A weak model would fill free white space for ever.
fn json_grammar(mut schema: Value) -> TopLevelGrammar {
    if let Some(object) = schema.as_object_mut() {
        object.insert(
            "x-guidance".into(),
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
        );
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// The calls of some tools in a model's syntax, as a Lark grammar.
fn tool_grammar(
    syntax: Syntax,
    tools: &[&Tool],
    required: bool,
    parallel: bool,
    special: Option<u32>,
) -> Result<String, String> {
    let mut rules = String::new();
    let mut names = Vec::new();
    for (i, tool) in tools.iter().enumerate() {
        let mut schema: Value = serde_json::from_str(&tool.parameters)
            .map_err(|e| format!("the parameters of tool `{}`: {e}", tool.name))?;
        if let Some(object) = schema.as_object_mut() {
            object.entry("type").or_insert_with(|| json!("object"));
            object.insert(
                "x-guidance".into(),
                json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
            );
        }
        let front = json!(format!("{{\"name\": {}, \"{}\": ", json!(tool.name), syntax.arguments_key()));
        rules.push_str(&format!("call_{i}: {front} arguments_{i} \"}}\"\narguments_{i}: %json {schema}\n"));
        names.push(format!("call_{i}"));
    }
    rules.push_str(&format!("call: {}\n", names.join(" | ")));
    let again = |rule: String| if parallel { format!("({rule})*") } else { String::new() };
    let calls = match syntax {
        Syntax::Tagged => {
            let (open, close) = (json!(format!("{OPEN}\n")), json!(format!("\n{CLOSE}")));
            let next = json!(format!("\n{OPEN}\n"));
            rules
                .push_str(&format!("rest: \"\\n\" call {close} {}\n", again(format!("{next} call {close}"))));
            rules
                .push_str(&format!("calls: {open} call {close} {}\n", again(format!("{next} call {close}"))));
            if !required {
                // Text up to the first tag, or text without one.
                rules.push_str("before[lazy]: /(.|\\n)*<tool_call>/\n");
                rules.push_str("TEXT: /(.|\\n)*/ & ~/(.|\\n)*<tool_call>(.|\\n)*/\n");
                return Ok(format!("start: before rest | TEXT\n{rules}"));
            }
            "calls".to_owned()
        }
        Syntax::Bare => format!("call {}", again("\"; \" call".into())),
        Syntax::Listed => {
            let token = special.map_or(String::new(), |id| format!("<[{id}]>? "));
            format!("{token}\"[\" call {} \"]\"", again("\", \" call".into()))
        }
    };
    if required {
        return Ok(format!("start: {calls}\n{rules}"));
    }
    // Text that does not look like a call from its first character on.
    let text = if syntax == Syntax::Bare { "TEXT: /[^{](.|\\n)*/\n" } else { "TEXT: /[^\\[](.|\\n)*/\n" };
    Ok(format!("start: {calls} | TEXT\n{text}{rules}"))
}
