"""The SwiGLU kernel at the released width: bytes read and written, against a read."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import Reading

from gptoss_ref.kernels import swiglu

INNER = 2880


@pytest.mark.parametrize("rows", [4, 2048, 8192])
def test_rows(beside: Beside, reading: Reading, rows: int) -> None:
    """A row for each token and chosen expert."""
    x = 3 * np.random.default_rng(0).standard_normal((rows, 2 * INNER), np.float32)
    beside(reading, lambda: swiglu(x), work=1.5 * x.nbytes)
