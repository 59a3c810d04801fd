"""The attention kernel at the released shape: one token by context length, and a prefill.

One token: the rate at which keys and values are read. Prefill: operations of the scores and the
mix that causality leaves.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import NumpyProduct, Reading

from gptoss_ref.kernels import attention

HEADS, KV_HEADS, CHANNELS, WINDOW = 64, 8, 64, 128
SINKS = np.zeros(HEADS, np.float32)


@pytest.mark.parametrize("kind", ["full", "windowed"])
@pytest.mark.parametrize("context", [128, 4096, 32768])
def test_one_token(beside: Beside, reading: Reading, context: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, context, KV_HEADS, CHANNELS), np.float32)
    q = rng.standard_normal((1, HEADS, CHANNELS), np.float32)
    at, last = np.arange(context), np.array([context - 1])
    window = WINDOW if kind == "windowed" else None
    seen = slice(-(window or 0), None)  # what a cache of that kind hands over
    beside(
        reading, lambda: attention(q, k[seen], v[seen], SINKS, last, at[seen], window),
        work=2 * k[seen].nbytes,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "windowed"])
def test_prefill(beside: Beside, numpy_product: NumpyProduct, kind: str) -> None:
    tokens = 2048
    rng = np.random.default_rng(0)
    q = rng.standard_normal((tokens, HEADS, CHANNELS), np.float32)
    k = rng.standard_normal((tokens, KV_HEADS, CHANNELS), np.float32)
    at = np.arange(tokens)
    window = WINDOW if kind == "windowed" else None
    pairs = sum(min(position + 1, window or tokens) for position in range(tokens))
    beside(
        numpy_product, lambda: attention(q, k, k, SINKS, at, at, window),
        work=4.0 * HEADS * CHANNELS * pairs,
    )  # fmt: skip
