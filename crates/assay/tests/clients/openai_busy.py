"""The openai client for Python and a slow node that answers one request at a time: openai_busy.py URL"""

import sys
import threading

import openai

url = sys.argv[1]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model
messages = [{"role": "user", "content": "Once upon a time there was a little dog"}]

# Not streamed: text, usage, finish reason, receipt.
raw = client.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=20, seed=7)
receipt = raw.headers["x-assay-receipt"]
answer = raw.parse()
assert receipt.startswith("0x") and len(receipt) == 66
assert answer.object == "chat.completion" and answer.model == model
assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "length"
assert answer.usage.completion_tokens == 20
assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
text = answer.choices[0].message.content
assert text

# The same seed, streamed: the same text, in pieces; the role first, the finish reason last.
chunks = list(client.chat.completions.create(model=model, messages=messages, max_tokens=20, seed=7, stream=True))
assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
assert chunks[0].choices[0].delta.role == "assistant"
assert chunks[-1].choices[0].finish_reason == "length"
assert len({c.id for c in chunks}) == 1 and all(c.usage is None for c in chunks)
assert len(chunks) > 10

# With usage: one more chunk, without choices.
options = {"include_usage": True}
chunks = list(client.chat.completions.create(
    model=model, messages=messages, max_tokens=5, stream=True, stream_options=options))
assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5
assert all(c.usage is None for c in chunks[:-1])

# Stop strings. (Greedy: a seed stands for the whole request, so that another one draws other numbers.)
greedy = client.chat.completions.create(model=model, messages=messages, max_tokens=20, temperature=0)
greedy = greedy.choices[0].message.content
stopped = client.chat.completions.create(model=model, messages=messages, max_tokens=20, temperature=0, stop=[greedy[8:12]])
assert stopped.choices[0].message.content == greedy[:greedy.index(greedy[8:12])]
assert stopped.choices[0].finish_reason == "stop"

# Text completions, from text and from ids.
completion = client.completions.create(model=model, prompt="The cat", max_tokens=4, temperature=0)
assert completion.object == "text_completion" and completion.usage.completion_tokens == 4
assert client.completions.create(model=model, prompt=[1, 2, 3]).usage.completion_tokens <= 16
streamed = client.completions.create(model=model, prompt="The cat", max_tokens=4, temperature=0, stream=True)
assert "".join(c.choices[0].text for c in streamed) == completion.choices[0].text

# Errors come as the client's own exceptions, with the parameter's name.
for expected, param, arguments in [
    (openai.NotFoundError, "model", {"model": "other"}),
    (openai.BadRequestError, "n", {"n": 0}),
    (openai.BadRequestError, "temperature", {"temperature": 3}),
    (openai.BadRequestError, "logit_bias.5", {"logit_bias": {"5": 101}}),
    (openai.BadRequestError, "messages", {"messages": [{"role": "user", "content": "word " * 2000}]}),
    (openai.BadRequestError, "messages", {"messages": []}),
]:
    try:
        client.chat.completions.create(**{"model": model, "messages": messages, **arguments})
    except expected as error:
        assert error.param == param, (error.param, param)
        assert error.code and error.request_id, error
    else:
        raise AssertionError(f"{arguments} were accepted")

# The receipt's record, inlined and fetched.
inline = client.chat.completions.create(
    model=model, messages=messages, max_tokens=4, extra_headers={"x-assay-receipt": "inline"})
assert inline.model_extra["assay_receipt"]["format"] == "assay-answer/2"
record = client.get(f"/receipts/{receipt}", cast_to=object)
assert record["transcript"]["text"] == text

# A full queue: without retries some are refused; the client's own retries bring all of them through.
def many(client, count=8):
    outcomes = []
    def one(seed):
        try:
            client.chat.completions.create(model=model, messages=messages, seed=seed)
            outcomes.append("answered")
        except openai.RateLimitError:
            outcomes.append("refused")
    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return outcomes

outcomes = many(client)
assert "answered" in outcomes and "refused" in outcomes, outcomes
assert set(many(client.with_options(max_retries=20))) == {"answered"}

# A client that stops reading frees the only place.
stream = client.chat.completions.create(model=model, messages=messages, stream=True)
next(iter(stream))
stream.close()
assert client.with_options(max_retries=5).chat.completions.create(model=model, messages=messages, max_tokens=1)

print("all checks passed")
