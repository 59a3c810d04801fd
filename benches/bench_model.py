"""Decoding and prefill of whole models, beside what the machine could do at most.

    python benches/bench_model.py [DIR] [--contexts 128 4096 32768] [--tokens 8] [--memory]

Always tiny; with DIR (see make_random_20b.py) that checkpoint too. Decoding is held against the
rate of a streaming read, divided by the bytes of weights that a token touches and of the keys and
values that it reads; prefill against NumPy's float32 matrix product. A context is filled with
random keys and values, which costs no pass. With --memory: what a pass of 4,096 tokens allocates.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from memory import PeakMemory, resident
from rates import NumpyProduct, Reading

import gptoss_ref as gr
from gptoss_ref.cache import KVCache
from gptoss_ref.checkpoint.summary import describe
from gptoss_ref.kernels.runtime.doctor import bytes_per_token

TINY_TOKENS_PER_SECOND = 2500
DECODE_RATIO = 0.85
PREFILL_RATIO = 1.2
PREFILL_TOKENS = 512
MEMORY_TOKENS, MEMORY_LIMIT = 4096, 1e9


def verdict(name: str, value: float, limit: float, unit: str = "") -> bool:
    """Print a figure beside its goal, a least one; whether it is missed."""
    print(f"  {name:<44}{value:10.2f}{unit}  (goal: at least {limit:g})")
    return value < limit


def touch(model: gr.Model) -> None:
    """Read a byte of every page of the checkpoint: none is first met in a measurement.

    What the system has in its cache is dropped first: it came in small pages, if something else
    than a mapping read it.
    """
    if hasattr(os, "posix_fadvise") and model.path is not None:
        for file in model.path.glob("*.safetensors"):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    todo: list[object] = [model.weights]
    while todo:
        item = todo.pop()
        if isinstance(item, np.ndarray):
            item.view(np.uint8).reshape(-1)[::4096].sum()
        elif isinstance(item, tuple):
            todo.extend(item)
        elif dataclasses.is_dataclass(item):
            todo.extend(vars(item).values())


def filled(model: gr.Model, length: int) -> KVCache:
    """A cache of that many positions that nobody computed."""
    cache, config = model.new_cache(), model.config
    rng = np.random.default_rng(0)
    shape = (length, config.num_key_value_heads, config.head_dim)
    k, v = (rng.standard_normal(shape, np.float32) for _ in range(2))
    layers = [layer.extended(k, v, 0)[0] for layer in cache.layers]
    cache.commit(layers, 0, length)
    return cache


def decode_seconds(model: gr.Model, context: int, tokens: int) -> tuple[float, float]:
    """Median seconds of a token after ``context`` others, and bytes a second of reads between."""
    cache = filled(model, context)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, tokens + 2)
    times, reading = [], Reading()
    for token in ids:
        reading.sample()
        start = time.perf_counter()
        model([token], cache, last_only=True)
        times.append(time.perf_counter() - start)
    return median(times[2:]), reading.rate()


def decoding(model: gr.Model, contexts: Sequence[int], tokens: int) -> bool:
    """Decode at each context; whether the first misses its goal."""
    weights = bytes_per_token(model.config)
    info = describe(model.config)
    misses = []
    for context in contexts:
        seconds, rate = decode_seconds(model, context, tokens)
        window = info.kv_cache_windowed_bytes() / 2  # half of its room is read
        touched = weights + context * info.kv_cache_bytes_per_token() + window
        print(f"  after {context:,} tokens: {1000 * seconds:.2f} ms, {1 / seconds:.2f} tokens/s")
        print(f"    reading {rate / 1e9:.1f} GB/s")
        print(
            f"    weights {weights / 1e9:.3f} GB, keys and values {(touched - weights) / 1e9:.3f}"
        )
        misses.append(verdict("  of the reading rate", touched / seconds / rate, DECODE_RATIO))
    return misses[0]


def prefill(model: gr.Model, tokens: int) -> bool:
    """One pass of a prompt and NumPy's product, in turns."""
    ids = np.random.default_rng(2).integers(0, model.config.vocab_size, tokens)
    numpy_product, times = NumpyProduct(), []
    for _ in range(4):
        numpy_product.sample()
        start = time.perf_counter()
        model(ids, last_only=True)
        times.append(time.perf_counter() - start)
    seconds = median(times[1:])
    info = describe(model.config)
    per_token = 2 * (info.active - info.component("unembedding").active)
    rate, ceiling = tokens * per_token / seconds, numpy_product.rate()
    print(f"  {tokens} tokens: {seconds:.3f} s, {tokens / seconds:.1f} tokens/s")
    print(f"    {rate / 1e9:.0f} GFLOP/s; NumPy {ceiling / 1e9:.0f}")
    return verdict("  of NumPy's float32 rate", rate / ceiling, PREFILL_RATIO)


def memory(model: gr.Model) -> bool:
    """Peak of what a pass of 4,096 tokens on a cache allocates, keys and values included."""
    ids = np.random.default_rng(3).integers(0, model.config.vocab_size, MEMORY_TOKENS)
    cache = model.new_cache()
    before = resident().anonymous
    with PeakMemory() as peak:
        start = time.perf_counter()
        model(ids, cache, last_only=True)
        seconds = time.perf_counter() - start
    beyond = peak.peak.anonymous
    print(f"  {MEMORY_TOKENS} tokens: {seconds:.1f} s, allocated {beyond / 1e6:.0f} MB at the peak")
    print(f"    {before / 1e6:.0f} MB of it before; keys and values {cache.nbytes / 1e6:.0f} MB")
    print(f"    (goal: at most {MEMORY_LIMIT / 1e6:.0f} MB)")
    return beyond > MEMORY_LIMIT


def tiny() -> bool:
    """Tokens a second of a greedy generation, everything included."""
    model = gr.load("tiny")
    prompt = model.tokenizer.encode("What is 27 + 58?")
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        count = sum(1 for _ in gr.generate(model, prompt, 300, stop_tokens=()))
        rates.append(count / (time.perf_counter() - start))
    print("tiny")
    return verdict("decoding, tokens/s", median(rates[1:]), TINY_TOKENS_PER_SECOND)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a full-size checkpoint")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 4096, 32768])
    parser.add_argument("--tokens", type=int, default=12, help="decoded at each context")
    parser.add_argument("--no-prefill", action="store_true", help="leave the prefill out")
    parser.add_argument("--memory", action="store_true", help="measure a pass of 4,096 tokens")
    args = parser.parse_args()
    missed = tiny()
    if args.folder is None:
        return int(missed)
    start = time.perf_counter()
    model = gr.load(args.folder)
    print(f"{args.folder}: loaded in {time.perf_counter() - start:.2f} s")
    if args.memory:
        return int(missed | memory(model))
    touch(model)
    missed |= decoding(model, args.contexts, args.tokens)
    if not args.no_prefill:
        missed |= prefill(model, PREFILL_TOKENS)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
