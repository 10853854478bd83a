// OpenAI's own Node client verifies one delivery: `node unwrap.mjs CLIENT` with {body, headers, secret} on standard
// input prints the event's type.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { default: OpenAI } = await import(pathToFileURL(process.argv[2]).href);
const { body, headers, secret } = JSON.parse(readFileSync(0, "utf8"));
const event = await new OpenAI({ apiKey: "none" }).webhooks.unwrap(body, headers, secret);
console.log(event.type);
