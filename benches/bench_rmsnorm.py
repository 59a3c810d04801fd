"""The RMSNorm kernel at the released width: bytes read and written, against a read."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import Reading

from gptoss_ref.kernels import rmsnorm

WIDTH = 2880


@pytest.mark.parametrize("tokens", [1, 512, 8192])
def test_tokens(beside: Beside, reading: Reading, tokens: int) -> None:
    x = np.random.default_rng(0).standard_normal((tokens, WIDTH), np.float32)
    scale = np.full(WIDTH, 0x3F80, np.uint16)
    beside(reading, lambda: rmsnorm(x, scale), work=2 * x.nbytes)
