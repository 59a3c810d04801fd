// A strict reader of Harmony in JavaScript, tried on the conformance vectors. Node, no dependencies.
//
//   gptoss-ref vectors VECTORS
//   node examples/vectors_js/harmony.mjs VECTORS RESULTS
//   gptoss-ref vectors --check RESULTS
//
// Reads the messages that a model writes (`parse`) and what each token adds to the text (`stream`),
// from the bytes of the tokens, and writes its answers into RESULTS/harmony.json.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const ROLES = ["system", "developer", "user", "assistant"];
const ENDS = ["<|end|>", "<|return|>", "<|call|>"];
const isSpecial = (token) => token.startsWith("<|");

/** Text of a run of tokens, given as hexadecimal bytes; special ones are spelt out. */
function textOf(tokens) {
  return Buffer.concat(
    tokens.map((token) => (isSpecial(token) ? Buffer.from(token) : Buffer.from(token, "hex"))),
  ).toString("utf8");
}

/** {role, recipient, channel, content_type} of the tokens before <|message|>; `role` if they name none. */
function header(tokens, role) {
  const text = textOf(tokens);
  const channel = text.match(/<\|channel\|>([^\s<]+)/)?.[1];
  const words = text.replace(/<\|channel\|>[^\s<]+/, "").split(/\s+/).filter(Boolean);
  if (ROLES.includes(words[0])) role = words.shift();
  const recipient = words.find((word) => word.startsWith("to="))?.slice(3);
  const rest = words.filter((word) => !word.startsWith("to="));
  if (text.split("<|channel|>").length > 2 || rest.length > 1) throw new Error("header");
  return { role, recipient, channel, content_type: rest[0] };
}

/** The messages in an answer that follows `<|start|>assistant`; an Error where it has none. */
function parse(tokens, role) {
  const messages = [];
  let at = 0;
  while (at < tokens.length) {
    if (messages.length && tokens[at++] !== "<|start|>") throw new Error("expected <|start|>");
    const start = at;
    while (tokens[at] !== "<|message|>") {
      if (at === tokens.length || ENDS.includes(tokens[at]) || tokens[at] === "<|start|>")
        throw new Error("expected <|message|>");
      at++;
    }
    const fields = header(tokens.slice(start, at++), role);
    const first = at;
    while (at < tokens.length && !ENDS.includes(tokens[at])) {
      if (isSpecial(tokens[at])) throw new Error(`${tokens[at]} in a text`);
      at++;
    }
    messages.push({ ...fields, content: textOf(tokens.slice(first, at++)) });
  }
  return messages;
}

/** What each token adds to the text that a reader may show: whole characters, and no sooner. */
function stream(tokens) {
  let decoder = null; // inside a text
  return tokens.map((token) => {
    if (token === "<|message|>") {
      decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      return "";
    }
    if (ENDS.includes(token)) {
      const rest = decoder ? decoder.decode() : ""; // half a character is U+FFFD
      decoder = null;
      return rest;
    }
    return decoder ? decoder.decode(Buffer.from(token, "hex"), { stream: true }) : "";
  });
}

const [vectors, results] = process.argv.slice(2);
if (!results) {
  console.error("usage: harmony.mjs VECTORS RESULTS");
  process.exit(2);
}
const answers = {};
const counts = {};
for (const { id, operation, input, expected } of JSON.parse(
  readFileSync(join(vectors, "harmony.json"), "utf8"),
).cases) {
  if (operation === "stream") answers[id] = { deltas: stream(input.bytes) };
  else if (operation === "parse") {
    try {
      answers[id] = { strict: "accepted", messages: parse(input.bytes, input.role) };
    } catch {
      answers[id] = { strict: "refused" };
    }
  } else continue;
  const key = operation === "parse" ? "strict" : "deltas";
  const right = JSON.stringify(answers[id][key]) === JSON.stringify(expected[key]);
  counts[operation] ??= [0, 0];
  counts[operation][0] += right;
  counts[operation][1]++;
}
mkdirSync(results, { recursive: true });
writeFileSync(join(results, "harmony.json"), JSON.stringify(answers));
for (const [name, [right, all]] of Object.entries(counts))
  console.log(`${name}: ${right} of ${all} right`);
