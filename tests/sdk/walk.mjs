// OpenAI's own Node client walks every call of this server, against a real one: `node walk.mjs BASE_URL KEY MODEL
// CLIENT`. It prints the calls that it made; any surprise ends it with an error.

import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const [baseURL, apiKey, model, client] = process.argv.slice(2);
const { default: OpenAI, toFile } = await import(pathToFileURL(client).href);
const openai = new OpenAI({ baseURL, apiKey, adminAPIKey: apiKey, maxRetries: 0, timeout: 120_000 });

const rows = Array.from({ length: 12 }, (_, i) => JSON.stringify({
  messages: [{ role: "user", content: `What colour is sand ${i}?` }, { role: "assistant", content: "zebra" }],
})).join("\n") + "\n";
const mark = `node ${Date.now()}`;
const ask = [{ role: "user", content: "Say one word." }];

async function collect(pages) {
  const all = [];
  for await (const item of pages) all.push(item);
  return all;
}

async function jobWith(id, ...wanted) {
  for (;;) {
    const job = await openai.fineTuning.jobs.retrieve(id);
    if (wanted.includes(job.status)) return job;
    assert(!["failed", "succeeded", "cancelled"].includes(job.status), `${job.status}: ${JSON.stringify(job.error)}`);
    await new Promise((done) => setTimeout(done, 200));
  }
}

async function files() {
  const file = await openai.files.create({ file: await toFile(Buffer.from(rows), "rows.jsonl"), purpose: "fine-tune" });
  assert.equal((await openai.files.retrieve(file.id)).bytes, Buffer.byteLength(rows));
  assert.equal(await (await openai.files.content(file.id)).text(), rows);
  assert((await collect(openai.files.list({ limit: 1 }))).some((one) => one.id === file.id));
  const other = await openai.files.create({ file: await toFile(Buffer.from(rows), "other.jsonl"), purpose: "fine-tune" });
  assert.equal((await openai.files.delete(other.id)).deleted, true);
  await assert.rejects(openai.files.retrieve(other.id), OpenAI.NotFoundError);
  return file.id;
}

async function uploads() {
  const begin = { filename: "rows.jsonl", purpose: "fine-tune", bytes: Buffer.byteLength(rows), mime_type: "application/jsonl" };
  const upload = await openai.uploads.create(begin);
  const part = await openai.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(rows), "part") });
  const done = await openai.uploads.complete(upload.id, { part_ids: [part.id] });
  assert.equal(done.status, "completed");
  assert.equal(done.file.bytes, begin.bytes);
  const other = await openai.uploads.create(begin);
  assert.equal((await openai.uploads.cancel(other.id)).status, "cancelled");
}

async function jobs(training_file) {
  const create = (n_epochs) => openai.fineTuning.jobs.create({
    model, training_file, suffix: "node", seed: 3, metadata: { by: mark },
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs, batch_size: 6 } } },
  });
  const job = await create(1);
  const stopped = await create(50);
  const cancelled = await openai.fineTuning.jobs.cancel(stopped.id);
  assert.equal(cancelled.status, "cancelled");
  const done = await jobWith(job.id, "succeeded");
  const ids = (await collect(openai.fineTuning.jobs.list({ limit: 1, metadata: { by: mark } }))).map((one) => one.id);
  assert.deepEqual(ids, [stopped.id, job.id]);
  const events = await collect(openai.fineTuning.jobs.listEvents(job.id, { limit: 2 }));
  assert.equal(events[0].message, "The job has successfully completed");
  const live = await openai.get(`/fine_tuning/jobs/${job.id}/events?stream=true`, { stream: true });
  assert.deepEqual((await collect(live)).map((event) => event.id), events.map((event) => event.id).reverse());
  const [checkpoint] = await collect(openai.fineTuning.jobs.checkpoints.list(job.id));
  assert.equal(checkpoint.step_number, 2);
  const paused = await create(50);
  await jobWith(paused.id, "queued", "running");
  await openai.fineTuning.jobs.pause(paused.id);
  await jobWith(paused.id, "paused");
  assert.equal((await openai.fineTuning.jobs.resume(paused.id)).status, "queued");
  await openai.fineTuning.jobs.cancel(paused.id);
  await permissions(done.fine_tuned_model);
  const tuned = await openai.models.retrieve(done.fine_tuned_model);
  assert.equal(tuned.object, "model");
  return done.fine_tuned_model;
}

async function permissions(tuned) {
  const { permissions } = openai.fineTuning.checkpoints;
  await assert.rejects(permissions.create(tuned, { project_ids: ["proj_nobody"] }), OpenAI.BadRequestError);
  assert.deepEqual(await collect(permissions.list(tuned)), []);
}

async function graders() {
  const grader = { type: "string_check", name: "same", input: "{{sample.output_text}}", reference: "{{item.answer}}", operation: "eq" };
  assert.deepEqual((await openai.fineTuning.alpha.graders.validate({ grader })).grader, grader);
  const run = await openai.fineTuning.alpha.graders.run({ grader, model_sample: "yes", item: { answer: "yes" } });
  assert.equal(run.reward, 1);
  return grader;
}

async function evals(grader) {
  const item_schema = { type: "object", properties: { answer: { type: "string" } } };
  const made = await openai.evals.create({
    name: "node", data_source_config: { type: "custom", item_schema, include_sample_schema: true }, testing_criteria: [grader],
  });
  assert.equal((await openai.evals.update(made.id, { name: "renamed" })).name, "renamed");
  assert.equal((await openai.evals.retrieve(made.id)).name, "renamed");
  assert((await collect(openai.evals.list({ limit: 1 }))).some((one) => one.id === made.id));
  const content = ["yes", "no"].map((text) => ({ item: { answer: "yes" }, sample: { output_text: text } }));
  const start = () => openai.evals.runs.create(made.id, { data_source: { type: "jsonl", source: { type: "file_content", content } } });
  let run = await start();
  while (["queued", "in_progress"].includes(run.status)) {
    await new Promise((done) => setTimeout(done, 100));
    run = await openai.evals.runs.retrieve(run.id, { eval_id: made.id });
  }
  assert.deepEqual([run.status, run.result_counts.passed, run.result_counts.failed], ["completed", 1, 1]);
  const items = await collect(openai.evals.runs.outputItems.list(run.id, { eval_id: made.id, limit: 1 }));
  assert.deepEqual(items.map((item) => item.status), ["pass", "fail"]);
  const item = await openai.evals.runs.outputItems.retrieve(items[0].id, { eval_id: made.id, run_id: run.id });
  assert.equal(item.results[0].passed, true);
  assert.equal((await collect(openai.evals.runs.list(made.id))).length, 1);
  assert.equal((await openai.evals.runs.delete(run.id, { eval_id: made.id })).deleted, true);
  assert.equal((await openai.evals.delete(made.id)).deleted, true);
}

async function chats(tuned) {
  const short = { model: tuned, messages: ask, max_tokens: 5, temperature: 0 };
  const whole = await openai.chat.completions.create({ ...short, logprobs: true, top_logprobs: 2, store: true, metadata: { by: "node" } });
  assert.equal(whole.choices[0].logprobs.content.length, whole.usage.completion_tokens - (whole.choices[0].finish_reason === "stop" ? 1 : 0));
  const stream = await openai.chat.completions.create({ ...short, stream: true, stream_options: { include_usage: true } });
  const chunks = await collect(stream);
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
  const form = { name: "word", schema: { type: "object", properties: { word: { enum: ["a", "b"] } }, required: ["word"] } };
  const json = await openai.chat.completions.create({ ...short, max_tokens: 60, response_format: { type: "json_schema", json_schema: form } });
  assert(["a", "b"].includes(JSON.parse(json.choices[0].message.content).word));
  const tools = [{ type: "function", function: { name: "look", parameters: { type: "object", properties: {} } } }];
  const called = await openai.chat.completions.create({ ...short, max_tokens: 60, tools, tool_choice: "required" });
  assert.equal(called.choices[0].message.tool_calls[0].function.name, "look");
  await stored(whole.id);
  const text = await openai.completions.create({ model: tuned, prompt: "One, two,", max_tokens: 4 });
  assert.equal(text.object, "text_completion");
}

async function stored(id) {
  assert((await collect(openai.chat.completions.list({ limit: 1 }))).some((one) => one.id === id));
  assert.equal((await openai.chat.completions.retrieve(id)).id, id);
  assert.equal((await openai.chat.completions.update(id, { metadata: { by: "hand" } })).metadata.by, "hand");
  assert.equal((await collect(openai.chat.completions.messages.list(id)))[0].content, ask[0].content);
  assert.equal((await openai.chat.completions.delete(id)).deleted, true);
}

async function step(name, work) {
  const result = await work();
  console.log(`walked: ${name}`);
  return result;
}

const training = await step("files", files);
await step("uploads", uploads);
await step("evals", async () => evals(await graders()));
const tuned = await step("jobs", () => jobs(training));
await step("chats", () => chats(tuned));
assert((await collect(openai.models.list())).some((one) => one.id === tuned));
assert.equal((await openai.models.delete(tuned)).deleted, true);
console.log("walked: models");
