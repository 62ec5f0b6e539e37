//! Chat templates: the Jinja that models come with, in a sandbox without files, clocks or endless loops.
//!
//! Steps and output are bounded. What is not: one step on a string that the template itself has made huge. A template comes
//! with the model, so that it is as trusted as the model's owner; what clients write cannot make one dangerous.

use std::io;

use assay_core::request::{Message, Tool, ToolCall};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::json;

use super::tools::{python_json, tool_value};

/// Template of models that come without one.
pub const JOIN_MESSAGES: &str = "{{ messages | map(attribute='content') | join('\n') }}";

/// Work that a template may do: templates of real models need some thousands of steps for a long conversation.
const FUEL: u64 = 5_000_000;

/// Bytes that a template may write beside the messages.
const FIXED_BYTES_MAX: usize = 1 << 20;
/// Bytes that it may write for each message, beside its content.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
/// How often it may write a message's content.
const COPIES_MAX: usize = 2;

/// Why a template does not render.
#[derive(Debug, thiserror::Error)]
#[error("the model's chat template does not take these messages: {0}")]
pub struct TemplateError(String);

/// Renders a conversation up to where the model answers.
pub fn render(
    template: &str,
    messages: &[Message],
    tools: &[Tool],
    bos: &str,
    eos: &str,
) -> Result<String, TemplateError> {
    render_in(Environment::new(), template, (messages, tools), bos, eos).map_err(|e| {
        let inner = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
        TemplateError(format!("{e}{inner}"))
    })
}

fn render_in(
    mut env: Environment<'_>,
    template: &str,
    (messages, tools): (&[Message], &[Tool]),
    bos: &str,
    eos: &str,
) -> Result<String, Error> {
    // The settings of Hugging Face's renderer.
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_filter("tojson", |value: Value, options: Kwargs| -> Result<Value, Error> {
        let indent: Option<usize> = options.get("indent")?;
        let json = serde_json::to_value(&value)
            .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
        let text = match indent {
            None => python_json(&json),
            Some(_) => serde_json::to_string_pretty(&json).unwrap_or_default(),
        };
        Ok(Value::from_safe_string(text))
    });
    let tool_values: Vec<serde_json::Value> = tools.iter().map(tool_value).collect();
    let context = context! {
        messages => Value::from(Serde(messages.iter().map(message_value).collect::<Vec<_>>())),
        // Templates ask whether there are tools by `if tools`, and some by `is not none`.
        tools => if tools.is_empty() { Value::from(()) } else { Value::from(Serde(&tool_values)) },
        bos_token => bos,
        eos_token => eos,
        add_generation_prompt => true,
    };
    let bytes: usize = messages
        .iter()
        .map(|m| {
            let calls = m.tool_calls.iter().map(|c| c.name.len() + c.arguments.len() + c.id.len());
            m.content.len() + m.name.as_ref().map_or(0, String::len) + calls.sum::<usize>()
        })
        .sum();
    let told: usize = tools
        .iter()
        .map(|t| t.name.len() + t.parameters.len() + t.description.as_ref().map_or(0, String::len))
        .sum();
    let room = FIXED_BYTES_MAX + COPIES_MAX * (bytes + 4 * told) + MESSAGE_BYTES_MAX * messages.len();
    let mut out = Output { bytes: Vec::new(), room };
    env.template_from_str(template)?.render_captured_to(context, &mut out)?;
    String::from_utf8(out.bytes).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// A message as templates expect it: arguments of calls as objects.
fn message_value(m: &Message) -> serde_json::Value {
    let mut value = json!({"role": m.role.as_str(), "content": m.content});
    if let Some(name) = &m.name {
        value["name"] = json!(name);
    }
    if !m.tool_calls.is_empty() {
        let call = |c: &ToolCall| {
            let arguments: serde_json::Value =
                serde_json::from_str(&c.arguments).unwrap_or_else(|_| json!(c.arguments));
            json!({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": arguments}})
        };
        value["tool_calls"] = m.tool_calls.iter().map(call).collect();
    }
    if let Some(id) = &m.tool_call_id {
        value["tool_call_id"] = json!(id);
    }
    value
}

/// Text that may not grow beyond its room.
struct Output {
    bytes: Vec<u8>,
    room: usize,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.room {
            return Err(io::Error::other("the template writes far more than the messages hold"));
        }
        self.room -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_core::request::Role;

    fn message(role: Role, content: &str) -> Message {
        Message::text(role, content)
    }

    #[test]
    fn templates_of_the_usual_kind_render() {
        let chatml = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m.content.strip() + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let got = render(chatml, &[message(Role::User, " hi ")], &[], "<s>", "</s>").unwrap();
        assert_eq!(got, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
        let two = [message(Role::System, "a"), message(Role::User, "b")];
        assert_eq!(render(JOIN_MESSAGES, &two, &[], "", "").unwrap(), "a\nb");
    }

    #[test]
    fn tools_and_calls_reach_the_template() {
        let template = "{% if tools %}{% for t in tools %}{{ t | tojson }}{{ '\n' }}{% endfor %}{% endif %}{% for m in messages %}\
                        {{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{{ '\n' }}{% endfor %}";
        let tool = Tool {
            name: "f".into(),
            description: Some("d".into()),
            parameters: "{\"type\":\"object\"}".into(),
        };
        let mut called = message(Role::Assistant, "");
        called.tool_calls =
            vec![ToolCall { id: "1".into(), name: "f".into(), arguments: "{\"x\":[1,2]}".into() }];
        let got = render(template, &[message(Role::User, "u"), called], &[tool], "", "").unwrap();
        let want = "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"d\", \"parameters\": {\"type\": \"object\"}}}\n\
                    user:u\nassistant:{\"x\": [1, 2]}\n";
        assert_eq!(got, want);
        assert_eq!(render(template, &[message(Role::User, "u")], &[], "", "").unwrap(), "user:u\n");
    }

    #[test]
    fn hostile_templates_end_with_an_error() {
        let one = [message(Role::User, "x")];
        let endless =
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}";
        for bad in [
            "{{ raise_exception('no system role') }}",
            "{% for %}",
            endless,
            "{% include '/etc/passwd' %}",
            "{{ x.y.z }}",
        ] {
            assert!(render(bad, &one, &[], "", "").is_err(), "{bad}");
        }
        let message =
            render("{{ raise_exception('no system role') }}", &one, &[], "", "").unwrap_err().to_string();
        assert!(message.contains("no system role"), "{message}");
    }
}
