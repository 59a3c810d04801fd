"""The linear kernel at the released sizes: one token against memory, many against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import NumpyProduct, Reading

from gptoss_ref.kernels import linear

WIDTH = 2880
ROWS = {"unembedding": 201088, "query": 4096, "key": 512}


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    """(V, D) bfloat16 bits; smaller matrices are its rows."""
    rng = np.random.default_rng(0)
    return rng.integers(0x3C00, 0x3F00, (ROWS["unembedding"], WIDTH), np.uint16)


@pytest.mark.parametrize("rows", ROWS)
def test_one_token(beside: Beside, reading: Reading, weight: np.ndarray, rows: str) -> None:
    """Other rows each time, so that they come from memory."""
    x = np.random.default_rng(1).standard_normal((1, WIDTH), np.float32)
    count, turn = ROWS[rows], 0

    def once() -> None:
        nonlocal turn
        start = turn * count % (len(weight) - count + 1)
        turn += 1
        linear(x, weight[start : start + count])

    beside(reading, once, work=count * WIDTH * 2, goal=0.90)


@pytest.mark.parametrize("tokens", [8, 64, 512])
def test_many_tokens(
    beside: Beside, numpy_product: NumpyProduct, weight: np.ndarray, tokens: int
) -> None:
    x = np.random.default_rng(1).standard_normal((tokens, WIDTH), np.float32)
    part = weight[:4096]
    beside(
        numpy_product, lambda: linear(x, part), work=2.0 * x.size * len(part),
        goal=1.2 if tokens == 512 else None,
    )  # fmt: skip
