// MXFP4 decode and RMSNorm in JavaScript, tried on the conformance vectors. Node, no dependencies.
//
//   gptoss-ref vectors VECTORS
//   node examples/vectors_js/check.mjs VECTORS RESULTS
//   gptoss-ref vectors --check RESULTS
//
// Computes every case of the two operations and writes the outputs into the folder RESULTS, for
// `gptoss-ref vectors --check` to judge. Prints how many cases of each are right by its own count:
// within the manifest's tolerance of an expected or otherwise accepted answer.

import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { read, write } from "./safetensors.mjs";

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

/** blocks (N, M/32, 16) and scales (N, M/32), bytes -> values (N, M). */
function mxfp4Decode({ blocks, scales }) {
  const values = new Float32Array(32 * scales.data.length);
  scales.data.forEach((byte, group) => {
    const scale = byte === 255 ? NaN : 2 ** (byte - 127); // byte 0 is a subnormal, not zero
    for (let j = 0; j < 16; j++) {
      const pair = blocks.data[16 * group + j];
      values[32 * group + 2 * j] = E2M1[pair & 15] * scale; // the low nibble comes first
      values[32 * group + 2 * j + 1] = E2M1[pair >> 4] * scale;
    }
  });
  const [rows, groups] = scales.shape;
  return { values: { shape: [rows, 32 * groups], data: values } };
}

/** x (T, D), scale (D,) -> y (T, D) = x / sqrt(mean(x²) + eps) · scale. */
function rmsnorm({ x, scale }, { eps }) {
  const [tokens, width] = x.shape;
  const y = new Float32Array(x.data.length);
  for (let t = 0; t < tokens; t++) {
    const row = x.data.subarray(t * width, (t + 1) * width);
    const meanSquare = row.reduce((sum, value) => sum + value * value, 0) / width;
    const factor = 1 / Math.sqrt(meanSquare + eps);
    row.forEach((value, d) => (y[t * width + d] = value * factor * scale.data[d]));
  }
  return { y: { shape: x.shape, data: y } };
}

/** Whether ours is the answer: equal, or with a relative L2 error within the tolerance. */
function agrees(ours, expected, tolerance) {
  if (expected.every((want, i) => Object.is(ours[i], want))) return true; // NaN and -0 are told apart
  const norm = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  const distance = norm(Float64Array.from(expected, (want, i) => ours[i] - want));
  return tolerance > 0 && distance <= tolerance * norm(Float64Array.from(expected));
}

const [vectors, results] = process.argv.slice(2);
if (!vectors || !results) {
  console.error("usage: node check.mjs VECTORS RESULTS");
  process.exit(2);
}
const manifest = JSON.parse(readFileSync(join(vectors, "manifest.json"), "utf8"));
mkdirSync(results, { recursive: true });
const compute = { mxfp4_decode: mxfp4Decode, rmsnorm };
for (const { name, file, inputs, tolerance, cases } of manifest.operations) {
  if (!(name in compute)) continue;
  const given = read(join(vectors, file));
  const ours = {};
  let right = 0;
  for (const { id, parameters, accepted = [] } of cases) {
    const named = Object.keys(inputs).map((input) => [input, given[`${id}/${input}`]]);
    const outputs = compute[name](Object.fromEntries(named), parameters);
    const fits = (answer) =>
      Object.entries(outputs).every(([output, { data }]) => {
        const want = given[`${id}/${output}${answer}`] ?? given[`${id}/${output}`];
        return agrees(data, want.data, tolerance.float32);
      });
    right += ["", ...accepted.map((_, i) => `.or${i + 1}`)].some(fits);
    for (const [output, tensor] of Object.entries(outputs)) ours[`${id}/${output}`] = tensor;
  }
  write(join(results, file), ours);
  console.log(`${name}: ${right} of ${cases.length} right`);
}
