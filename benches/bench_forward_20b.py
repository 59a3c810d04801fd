"""One forward of 16 tokens of a full-size checkpoint: at most 2 GB beyond the mapped file.

    python benches/bench_forward_20b.py DIR [--tokens 16] [--policy float32]

The memory that counts is what the program allocates (RssAnon), at its peak during the pass. The
time has no goal here; it is printed as a rate of multiply-adds, beside the rate of a float32 matrix
product of the layer's own shape measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from memory import PeakMemory

import gptoss_ref as gr

BEYOND_THE_FILE = 2e9


def product_rate(tokens: int, width: int) -> float:
    """Multiply-adds a second of NumPy's float32 product (T, D) x (D, 2D), the best of five."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, width), dtype=np.float32)
    weight = rng.standard_normal((2 * width, width), dtype=np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x @ weight.T
        best = min(best, time.perf_counter() - start)
    return x.shape[0] * weight.size / best


def multiply_adds(config: gr.ModelConfig, tokens: int) -> float:
    """Multiply-adds of the weight matrices for that many tokens (attention scores left out)."""
    D, F, A, C = (
        config.hidden_size,
        config.intermediate_size,
        config.experts_per_token,
        config.head_dim,
    )
    H, K = config.num_attention_heads, config.num_key_value_heads
    attention = D * C * (2 * H + 2 * K)
    mlp = D * config.num_experts + A * 3 * D * F
    return tokens * (config.num_hidden_layers * (attention + mlp) + config.vocab_size * D)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--policy", default="float32", choices=["float64", "float32", "bfloat16"])
    args = parser.parse_args()
    model = gr.load(args.folder, backend="numpy", policy=args.policy)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, args.tokens)
    for attempt in ("first pass, file from disk", "second pass, file in memory"):
        with PeakMemory() as memory:
            start = time.perf_counter()
            logits = model(tokens)
            seconds = time.perf_counter() - start
        beyond = memory.peak.anonymous
        rate = multiply_adds(model.config, args.tokens) / seconds
        ceiling = product_rate(args.tokens, model.config.hidden_size)
        print(f"{attempt}: {args.tokens} tokens, policy {args.policy}")
        print(f"  logits {logits.shape} {logits.dtype}, finite: {bool(np.isfinite(logits).all())}")
        print(f"  seconds                      {seconds:8.1f}")
        print(f"  multiply-adds a second       {rate / 1e9:8.2f} G")
        print(f"  float32 product alone        {ceiling / 1e9:8.2f} G (ratio {rate / ceiling:.3f})")
        print(f"  allocated, peak              {beyond / 1e6:8.0f} MB  (limit 2000)")
        print(f"  pages of the file, peak      {memory.peak.file / 1e6:8.0f} MB")
        if beyond > BEYOND_THE_FILE:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
