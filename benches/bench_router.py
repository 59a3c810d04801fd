"""The router at the released sizes: its weights read, or its product, and the choice."""

from __future__ import annotations

import numpy as np
from conftest import Beside
from rates import NumpyProduct, Reading

from gptoss_ref.kernels import router

WIDTH, EXPERTS, CHOSEN = 2880, 32, 4
RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(0x3C00, 0x3F00, (EXPERTS, WIDTH), np.uint16)
BIAS = np.zeros(EXPERTS, np.uint16)


def test_one_token(beside: Beside, reading: Reading) -> None:
    """Its 184 kB stay in the cache, and a call costs more than they do."""
    x = RNG.standard_normal((1, WIDTH), np.float32)
    beside(reading, lambda: router(x, WEIGHT, BIAS, CHOSEN), work=WEIGHT.nbytes)


def test_512_tokens(beside: Beside, numpy_product: NumpyProduct) -> None:
    x = RNG.standard_normal((512, WIDTH), np.float32)
    beside(numpy_product, lambda: router(x, WEIGHT, BIAS, CHOSEN), work=2.0 * x.size * EXPERTS)
