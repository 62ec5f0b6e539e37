//! Tools in conversations: how a model is told of them, and how its calls are found in what it writes.
//!
//! Models write calls in a form that their template teaches. [`Syntax`] names the forms that are known; a model whose
//! template knows no tools is told of them in words, in the form of [`Syntax::Tagged`].

use assay_core::request::{Message, Role, Tool};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`, one after the other: Hermes, Qwen.
    Tagged,
    /// `{"name": …, "parameters": …}`, several separated by `; `: Llama 3.
    Bare,
    /// `[{"name": …, "arguments": …}, …]`, after a special token: Mistral.
    Listed,
}

/// Begins a tagged call.
pub const OPEN: &str = "<tool_call>";
/// Ends a tagged call.
pub const CLOSE: &str = "</tool_call>";

impl Syntax {
    /// The form that a template teaches.
    pub fn of(template: &str) -> Syntax {
        if template.contains("[TOOL_CALLS]") {
            Syntax::Listed
        } else if template.contains("<|python_tag|>") || template.contains("\"parameters\": dictionary") {
            Syntax::Bare
        } else {
            Syntax::Tagged
        }
    }

    /// What a call's arguments are called.
    pub fn arguments_key(self) -> &'static str {
        match self {
            Syntax::Bare => "parameters",
            Syntax::Tagged | Syntax::Listed => "arguments",
        }
    }
}

/// Whether a template says anything of tools.
pub fn template_knows_tools(template: &str) -> bool {
    template.contains("tools")
}

/// A tool as templates expect it.
pub fn tool_value(tool: &Tool) -> Value {
    let parameters: Value = serde_json::from_str(&tool.parameters).unwrap_or_else(|_| json!({}));
    let mut function = Map::new();
    function.insert("name".into(), json!(tool.name));
    if let Some(description) = &tool.description {
        function.insert("description".into(), json!(description));
    }
    function.insert("parameters".into(), parameters);
    json!({"type": "function", "function": function})
}

/// A conversation in plain messages, for templates that know no tools.
pub fn in_words(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
    let mut plain = Vec::with_capacity(messages.len() + 1);
    if !tools.is_empty() {
        let list: Vec<String> = tools.iter().map(|t| python_json(&tool_value(t))).collect();
        plain.push(Message::text(
            Role::System,
            format!(
                "You may call functions. They are:\n{}\nTo call one, write\n{OPEN}\n{{\"name\": NAME, \"arguments\": OBJECT}}\n{CLOSE}",
                list.join("\n")
            ),
        ));
    }
    for m in messages {
        let mut content = m.content.clone();
        for call in &m.tool_calls {
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or(Value::Null);
            let call = python_json(&json!({"name": call.name, "arguments": arguments}));
            content.push_str(&format!("{OPEN}\n{call}\n{CLOSE}"));
        }
        if m.role == Role::Tool {
            content = format!("<tool_response>\n{content}\n</tool_response>");
        }
        let role = if m.role == Role::Tool { Role::User } else { m.role };
        // One system message, since templates without tools often take no second.
        match plain.as_mut_slice() {
            [first] if role == Role::System && first.role == Role::System => {
                first.content = format!("{content}\n\n{}", first.content);
            }
            _ => plain.push(Message {
                role,
                content,
                name: m.name.clone(),
                tool_calls: vec![],
                tool_call_id: None,
            }),
        }
    }
    plain
}

/// JSON as Python's `json.dumps` writes it, which templates were trained with.
pub fn python_json(value: &Value) -> String {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + std::io::Write>(
            &mut self,
            w: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }

        fn begin_object_key<W: ?Sized + std::io::Write>(
            &mut self,
            w: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }

        fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
            w.write_all(b": ")
        }
    }
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    // A JSON value is written to memory, and is UTF-8.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8(out).unwrap_or_default()
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text for the reader.
    Text(String),
    /// A call, with its arguments as JSON text.
    Call {
        /// The function.
        name: String,
        /// Its arguments.
        arguments: String,
    },
}

/// Finds calls in an answer as it grows. What cannot be a call is text.
#[derive(Debug)]
pub struct CallFinder {
    syntax: Syntax,
    tools: Vec<String>,
    /// What is not decided yet.
    pending: String,
    /// White space that is text if text follows, and nothing if a call does.
    space: String,
    /// Whether a call was the last thing found.
    called: bool,
    /// Whether text was handed out.
    spoken: bool,
}

impl CallFinder {
    /// For an answer to a request with these tools.
    pub fn new(syntax: Syntax, tools: &[Tool]) -> CallFinder {
        let tools = tools.iter().map(|t| t.name.clone()).collect();
        CallFinder {
            syntax,
            tools,
            pending: String::new(),
            space: String::new(),
            called: false,
            spoken: false,
        }
    }

    /// Takes more of the answer; gives what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.pending.push_str(text);
        let mut parts = Vec::new();
        match self.syntax {
            Syntax::Tagged => while self.tagged(&mut parts) {},
            Syntax::Bare | Syntax::Listed => self.whole(&mut parts, false),
        }
        parts
    }

    /// The end of the answer: what is left is a call if it can be read as one, or text. A tagged call that was cut off is
    /// neither: nobody should execute half of one, or read it.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        match self.syntax {
            Syntax::Tagged => {
                while self.tagged(&mut parts) {}
                let rest = std::mem::take(&mut self.pending);
                if !rest.starts_with(OPEN) {
                    self.say(&rest, &mut parts);
                }
            }
            Syntax::Bare | Syntax::Listed => self.whole(&mut parts, true),
        }
        if !self.called && !self.space.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut self.space)));
        }
        parts
    }

    fn say(&mut self, text: &str, parts: &mut Vec<Part>) {
        let mut all = std::mem::take(&mut self.space) + text;
        self.space = all.split_off(all.trim_end().len());
        if !all.is_empty() {
            (self.spoken, self.called) = (true, false);
            parts.push(Part::Text(all));
        }
    }

    fn found(&mut self, call: Part, parts: &mut Vec<Part>) {
        self.space.clear();
        self.called = true;
        parts.push(call);
    }

    /// Takes one text or call off the front; false when nothing is certain.
    fn tagged(&mut self, parts: &mut Vec<Part>) -> bool {
        if let Some(open) = self.pending.find(OPEN) {
            if open > 0 {
                let rest = self.pending.split_off(open);
                let text = std::mem::replace(&mut self.pending, rest);
                self.say(&text, parts);
                return true;
            }
            let Some(close) = self.pending.find(CLOSE) else { return false };
            let call = self.call(&self.pending[OPEN.len()..close]);
            let rest = self.pending.split_off(close + CLOSE.len());
            let whole = std::mem::replace(&mut self.pending, rest);
            match call {
                Some(call) => self.found(call, parts),
                None => self.say(&whole, parts),
            }
            return true;
        }
        // What may be the beginning of a tag is held back.
        let held = (1..OPEN.len()).rev().find(|n| self.pending.ends_with(&OPEN[..*n])).unwrap_or(0);
        let rest = self.pending.split_off(self.pending.len() - held);
        let text = std::mem::replace(&mut self.pending, rest);
        self.say(&text, parts);
        false
    }

    /// Bare and listed calls are the whole answer or none of it.
    fn whole(&mut self, parts: &mut Vec<Part>, end: bool) {
        let first = self.pending.trim_start().chars().next();
        let may_be = match self.syntax {
            Syntax::Bare => first.is_none_or(|c| c == '{'),
            _ => first.is_none_or(|c| c == '['),
        };
        if !self.spoken && may_be && !end {
            return;
        }
        let text = std::mem::take(&mut self.pending);
        if !self.spoken && may_be {
            match self.calls_of(text.trim()) {
                Some(calls) if !calls.is_empty() => {
                    calls.into_iter().for_each(|call| self.found(call, parts));
                    return;
                }
                _ => {}
            }
        }
        self.say(&text, parts);
    }

    /// The calls that a whole text is: a list, or several separated by `;`.
    fn calls_of(&self, text: &str) -> Option<Vec<Part>> {
        if self.syntax == Syntax::Listed {
            let all: Vec<Written<'_>> = serde_json::from_str(text).ok()?;
            return all.iter().map(|w| self.call_of(w)).collect();
        }
        let (mut calls, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Written<'_>>();
            calls.push(self.call_of(&values.next()?.ok()?)?);
            let read = values.byte_offset();
            rest = rest.get(read..)?.trim_start();
            rest = rest.strip_prefix(';').unwrap_or(rest).trim_start();
        }
        Some(calls)
    }

    fn call(&self, json: &str) -> Option<Part> {
        self.call_of(&serde_json::from_str(json.trim()).ok()?)
    }

    fn call_of(&self, written: &Written<'_>) -> Option<Part> {
        let arguments = written.arguments.or(written.parameters)?.get();
        let known = self.tools.contains(&written.name) && arguments.starts_with('{');
        known.then(|| Part::Call { name: written.name.clone(), arguments: arguments.to_owned() })
    }
}

/// A call as a model wrote it: its arguments stay the text that they are, with every digit of their numbers.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<Tool> {
        ["weather", "time"]
            .map(|name| Tool { name: name.into(), description: None, parameters: "{}".into() })
            .into()
    }

    fn parts(syntax: Syntax, text: &str, step: usize) -> Vec<Part> {
        let mut finder = CallFinder::new(syntax, &tools());
        let chars: Vec<char> = text.chars().collect();
        let mut all = Vec::new();
        for run in chars.chunks(step) {
            all.extend(finder.push(&run.iter().collect::<String>()));
        }
        all.extend(finder.finish());
        let mut joined: Vec<Part> = Vec::new();
        for part in all {
            match (joined.last_mut(), part) {
                (Some(Part::Text(before)), Part::Text(more)) => before.push_str(&more),
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn call(name: &str, arguments: &str) -> Part {
        Part::Call { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn calls_are_found_however_the_text_arrives() {
        let text = |t: &str| Part::Text(t.into());
        let weather =
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>";
        let time = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
        let city = call("weather", "{\"city\": \"Köln\"}");
        let cases = [
            (Syntax::Tagged, "Hello < there".to_owned(), vec![text("Hello < there")]),
            (Syntax::Tagged, weather.to_owned(), vec![city.clone()]),
            (Syntax::Tagged, format!("Let me see.\n{weather}\n{time}\n"), vec![
                text("Let me see."), city.clone(), call("time", "{}"),
            ]),
            (Syntax::Tagged, "<tool_call>\nnonsense\n</tool_call>".into(), vec![
                text("<tool_call>\nnonsense\n</tool_call>"),
            ]),
            (Syntax::Tagged, "<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>".into(), vec![
                text("<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>"),
            ]),
            (Syntax::Tagged, "cut <tool_call>\n{\"na".into(), vec![text("cut ")]),
            (Syntax::Bare, "{\"name\": \"time\", \"parameters\": {}}".into(), vec![call("time", "{}")]),
            (Syntax::Bare, "{\"name\": \"time\", \"parameters\": {}}; {\"name\": \"weather\", \"parameters\": {\"city\": \"Köln\"}}".into(), vec![
                call("time", "{}"), city.clone(),
            ]),
            (
                Syntax::Tagged,
                "<tool_call>{\"name\": \"time\", \"arguments\": {\"a\": 77384731504727357e999, \"b\": 12345678901234567890123}}</tool_call>".into(),
                vec![call("time", "{\"a\": 77384731504727357e999, \"b\": 12345678901234567890123}")],
            ),
            (Syntax::Bare, "{\"a\": 1}".into(), vec![text("{\"a\": 1}")]),
            (Syntax::Bare, "Hi {\"name\": \"time\", \"parameters\": {}}".into(), vec![
                text("Hi {\"name\": \"time\", \"parameters\": {}}"),
            ]),
            (Syntax::Listed, "[{\"name\": \"time\", \"arguments\": {}}, {\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}]".into(), vec![
                call("time", "{}"), city,
            ]),
            (Syntax::Listed, "[1, 2]".into(), vec![text("[1, 2]")]),
        ];
        for (syntax, whole, want) in cases {
            for step in [1, 2, 3, 7, 1000] {
                let got = parts(syntax, &whole, step);
                assert_eq!(got, want, "{whole} by {step}");
            }
        }
    }

    #[test]
    fn json_looks_as_python_writes_it() {
        let v = json!({"a": [1, "ü<>"], "b": {}});
        assert_eq!(python_json(&v), "{\"a\": [1, \"ü<>\"], \"b\": {}}");
    }
}
