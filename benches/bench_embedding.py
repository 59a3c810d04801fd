"""The embedding kernel at the released sizes: bytes read and written, against a read."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import Reading

from gptoss_ref.kernels import embedding

VOCABULARY, WIDTH = 201088, 2880


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(0).integers(0x3C00, 0x3F00, (VOCABULARY, WIDTH), np.uint16)


@pytest.mark.parametrize("tokens", [1, 512, 8192])
def test_tokens(beside: Beside, reading: Reading, weight: np.ndarray, tokens: int) -> None:
    ids = np.random.default_rng(1).integers(0, VOCABULARY, tokens)
    beside(reading, lambda: embedding(ids, weight), work=tokens * WIDTH * (2 + 4))
