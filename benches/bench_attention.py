"""The attention kernel at the released shape: one token by context length, and a prefill.

    python benches/bench_attention.py

One token: milliseconds for a windowed and a full layer, and the rate at which a full layer reads
keys and values, as a share of the best streaming read. Prefill: operations of the scores and the
mix that causality leaves, as a multiple of NumPy's float32 product.
"""

from __future__ import annotations

import argparse

import numpy as np
from rates import in_turns, product, read_rate

from gptoss_ref.kernels import attention
from gptoss_ref.kernels._jit import path_name
from gptoss_ref.kernels.threads import current_threads

HEADS, KV_HEADS, CHANNELS, WINDOW = 64, 8, 64, 128


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rng = np.random.default_rng(0)
    sinks = np.zeros(HEADS, np.float32)
    ceiling = read_rate()
    print(f"{current_threads()} threads, {path_name()}; a read: {ceiling / 1e9:.2f} GB/s")
    for context in (128, 4096, 32768):
        k = rng.standard_normal((context, KV_HEADS, CHANNELS), np.float32)
        v = rng.standard_normal(k.shape, np.float32)
        q = rng.standard_normal((1, HEADS, CHANNELS), np.float32)
        at, last = np.arange(context), np.array([context - 1])
        near = slice(max(0, context - WINDOW), None)
        taken = in_turns(
            {
                "full": lambda q=q, k=k, v=v, at=at, last=last: attention(q, k, v, sinks, last, at),
                "window": lambda q=q, k=k, v=v, at=at, last=last, near=near: attention(
                    q, k[near], v[near], sinks, last, at[near], WINDOW
                ),
            }
        )
        rate = 2 * k.nbytes / taken["full"]
        print(
            f"context {context}: full {1e3 * taken['full']:.3f} ms, {rate / 1e9:.2f} GB/s, "
            f"{rate / ceiling:.2f} of a read; window {1e3 * taken['window']:.3f} ms"
        )
    tokens = 2048
    q = rng.standard_normal((tokens, HEADS, CHANNELS), np.float32)
    k = rng.standard_normal((tokens, KV_HEADS, CHANNELS), np.float32)
    at = np.arange(tokens)
    numpy_product, operations = product(512, 2880, 4096)
    taken = in_turns(
        {"kernel": lambda: attention(q, k, k, sinks, at, at), "numpy": numpy_product}, rounds=5
    )
    ours = 2.0 * HEADS * CHANNELS * tokens * tokens / taken["kernel"] / 1e9
    theirs = operations / taken["numpy"] / 1e9
    print(
        f"prefill of {tokens}: {ours:.0f} GFLOP/s, {ours / theirs:.2f} times NumPy's {theirs:.0f}"
    )


if __name__ == "__main__":
    main()
