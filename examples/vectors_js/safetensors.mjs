// Reads and writes safetensors files: eight bytes of header length (little-endian), a JSON header
// with each tensor's dtype, shape and byte range, and the bytes, row-major and little-endian.

import { readFileSync, writeFileSync } from "node:fs";

const TYPES = { F32: Float32Array, I32: Int32Array, U8: Uint8Array };

/** Tensors of a file by name: { shape, data }, data being a typed array. */
export function read(path) {
  const file = readFileSync(path);
  const start = 8 + Number(file.readBigUInt64LE(0));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(
    JSON.parse(file.toString("utf8", 8, start)),
  )) {
    if (name === "__metadata__") continue;
    const [from, to] = data_offsets.map((offset) => offset + start);
    const bytes = new Uint8Array(file.subarray(from, to)); // a copy begins at an aligned address
    tensors[name] = { shape, data: new TYPES[dtype](bytes.buffer) };
  }
  return tensors;
}

/** Writes float32 tensors, { name: { shape, data } }. */
export function write(path, tensors) {
  const header = {};
  let offset = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype: "F32", shape, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const bytes = Object.values(tensors).map(({ data }) => Buffer.from(data.buffer));
  writeFileSync(path, Buffer.concat([length, text, ...bytes]));
}
