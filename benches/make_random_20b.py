"""Writes a checkpoint of gpt-oss-20b's shape with random weights, in the Hugging Face layout.

    python benches/make_random_20b.py DIR [--layers 24] [--shards 3]

13.8 GB with all layers; a few minutes. The standard deviations keep activations in the range of a
trained model (the residual stream neither vanishes nor overflows); the text it makes means nothing.
Tensors are made and written piece by piece, so memory stays small.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import gptoss_ref as gr

PIECE = 1 << 24  # values made at a time
ONE = 0x3F80  # the bits of 1.0 in bfloat16
BYTES = {"BF16": 2, "U8": 1}


class Tensor(NamedTuple):
    """One tensor to write: `std` for random bfloat16; None means all ones, or random bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    std: float | None = None


def layer_tensors(config: gr.ModelConfig, layer: int) -> Iterator[Tensor]:
    """The tensors of one block, with the names and shapes of the released files."""
    D, F, E, C = config.hidden_size, config.intermediate_size, config.num_experts, config.head_dim
    queries, keys = config.num_attention_heads * C, config.num_key_value_heads * C
    prefix = f"model.layers.{layer}."
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield Tensor(f"{prefix}{name}.weight", "BF16", (D,))
    for name, rows, columns in (
        ("q_proj", queries, D),
        ("k_proj", keys, D),
        ("v_proj", keys, D),
        ("o_proj", D, queries),
    ):
        yield Tensor(f"{prefix}self_attn.{name}.weight", "BF16", (rows, columns), 0.02)
        yield Tensor(f"{prefix}self_attn.{name}.bias", "BF16", (rows,), 0.02)
    yield Tensor(f"{prefix}self_attn.sinks", "BF16", (config.num_attention_heads,), 1.0)
    yield Tensor(f"{prefix}mlp.router.weight", "BF16", (E, D), 0.02)
    yield Tensor(f"{prefix}mlp.router.bias", "BF16", (E,), 0.02)
    for name, rows, columns in (("gate_up_proj", 2 * F, D), ("down_proj", D, F)):
        expert = f"{prefix}mlp.experts.{name}"
        yield Tensor(f"{expert}_blocks", "U8", (E, rows, columns // 32, 16))
        yield Tensor(f"{expert}_scales", "U8", (E, rows, columns // 32))
        yield Tensor(f"{expert}_bias", "BF16", (E, rows), 0.02)


def outer_tensors(config: gr.ModelConfig) -> Iterator[Tensor]:
    """Embedding, unembedding and the final norm."""
    V, D = config.vocab_size, config.hidden_size
    yield Tensor("model.embed_tokens.weight", "BF16", (V, D), 1.0)
    yield Tensor("lm_head.weight", "BF16", (V, D), 0.02)
    yield Tensor("model.norm.weight", "BF16", (D,))


def pieces(tensor: Tensor, rng: np.random.Generator) -> Iterator[bytes]:
    """The bytes of one tensor, at most PIECE values at a time."""
    count = math.prod(tensor.shape)
    for start in range(0, count, PIECE):
        size = min(PIECE, count - start)
        if tensor.std is not None:
            values = rng.standard_normal(size, dtype=np.float32) * np.float32(tensor.std)
            yield (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        elif tensor.name.endswith("_scales"):  # 2^-9 .. 2^-5: the range trained experts have
            yield rng.integers(118, 123, size, dtype=np.uint8).tobytes()
        elif tensor.dtype == "U8":
            yield rng.bytes(size)
        else:
            yield np.full(size, ONE, np.uint16).tobytes()


def write_shard(path: Path, tensors: list[Tensor], rng: np.random.Generator) -> int:
    """Writes one safetensors file and returns the bytes of its tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * BYTES[tensor.dtype]
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in pieces(tensor, rng):
                file.write(piece)
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=gr.GPT_OSS_20B.num_hidden_layers)
    parser.add_argument("--shards", type=int, default=3)
    args = parser.parse_args()
    config = dataclasses.replace(gr.GPT_OSS_20B, num_hidden_layers=args.layers)
    shards: list[list[Tensor]] = [[] for _ in range(args.shards)]
    for layer in range(args.layers):
        shards[layer * args.shards // args.layers].extend(layer_tensors(config, layer))
    shards[-1].extend(outer_tensors(config))

    args.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    total, start = 0, time.perf_counter()
    for number, tensors in enumerate(shards):
        name = f"model-{number:05d}-of-{args.shards - 1:05d}.safetensors"
        total += write_shard(args.folder / name, tensors, rng)
        weight_map |= {tensor.name: name for tensor in tensors}
        print(f"{name}: {total / 1e9:.1f} GB, {time.perf_counter() - start:.0f} s", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for file, value in (
        ("model.safetensors.index.json", index),
        ("config.json", config.to_json("hf")),
    ):
        (args.folder / file).write_text(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
