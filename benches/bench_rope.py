"""The rotary kernel at the released shape: bytes read and written, against a read."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import Reading

from gptoss_ref.kernels import rope, rope_tables
from gptoss_ref.layers import yarn

HEADS, CHANNELS, THETA, FACTOR = 64, 64, 150_000.0, 32.0


@pytest.mark.parametrize("tokens", [1, 512, 8192])
def test_tokens(beside: Beside, reading: Reading, tokens: int) -> None:
    q = np.random.default_rng(0).standard_normal((tokens, HEADS, CHANNELS), np.float32)
    cos, sin = rope_tables(np.arange(tokens), *yarn(CHANNELS, THETA, FACTOR))
    beside(reading, lambda: rope(q, cos, sin), work=2 * q.nbytes)


def test_tables(beside: Beside, reading: Reading) -> None:
    """Sines and cosines of 8,192 positions."""
    frequencies, concentration = yarn(CHANNELS, THETA, FACTOR)
    at = np.arange(8192)
    beside(
        reading,
        lambda: rope_tables(at, frequencies, concentration),
        work=8.0 * at.size * CHANNELS / 2,
    )
