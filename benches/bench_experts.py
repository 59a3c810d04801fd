"""The experts kernel at the released sizes: one token against memory, many against NumPy.

Random MXFP4 weights and routing. A value times a weight counts as two operations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from conftest import Beside
from rates import NumpyProduct, Reading

from gptoss_ref.kernels import experts
from gptoss_ref.weights import MXFP4

WIDTH, INNER, EXPERTS, CHOSEN = 2880, 2880, 32, 4


class Matrices(NamedTuple):
    """Of all experts."""

    first: MXFP4
    first_bias: np.ndarray
    second: MXFP4
    second_bias: np.ndarray


@pytest.fixture(scope="module")
def matrices() -> Matrices:
    rng = np.random.default_rng(0)

    def random(outputs: int, inputs: int) -> MXFP4:
        shape = (EXPERTS, outputs, inputs // 32)
        blocks = rng.integers(0, 256, (*shape, 16), np.uint8)  # NumPy asks for large pages
        return MXFP4(blocks, rng.integers(118, 123, shape, dtype=np.uint8))

    first, second = random(2 * INNER, WIDTH), random(WIDTH, INNER)
    biases = (np.zeros((EXPERTS, rows), np.uint16) for rows in (2 * INNER, WIDTH))
    return Matrices(first, next(biases), second, next(biases))


def test_one_token(beside: Beside, reading: Reading, matrices: Matrices) -> None:
    """Other experts each time, so that they come from memory."""
    x = np.random.default_rng(1).standard_normal((1, WIDTH), np.float32)
    shares = np.full((1, CHOSEN), np.float32(1 / CHOSEN))
    turn = 0

    def once() -> None:
        nonlocal turn
        indices = (np.arange(CHOSEN) + CHOSEN * turn)[None] % EXPERTS
        turn += 1
        experts(x, indices, shares, *matrices)

    stored = sum(m.blocks.nbytes + m.scales.nbytes for m in (matrices.first, matrices.second))
    beside(reading, once, work=stored * CHOSEN / EXPERTS, goal=0.90)


@pytest.mark.parametrize("tokens", [8, 128, 512])
def test_many_tokens(
    beside: Beside, numpy_product: NumpyProduct, matrices: Matrices, tokens: int
) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((tokens, WIDTH), np.float32)
    indices = np.argsort(rng.random((tokens, EXPERTS)), axis=-1)[:, :CHOSEN]
    shares = np.full(indices.shape, np.float32(1 / CHOSEN))
    beside(
        numpy_product, lambda: experts(x, indices, shares, *matrices),
        work=2.0 * tokens * CHOSEN * 3 * WIDTH * INNER,
        goal=1.2 if tokens == 512 else None,
    )  # fmt: skip
