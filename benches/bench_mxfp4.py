"""MXFP4 at the size of one expert's first matrix: bytes read and written, against a read."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import Reading

from gptoss_ref.kernels import mxfp4

SHAPE = (5760, 2880)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def test_decode(beside: Beside, reading: Reading, values: np.ndarray) -> None:
    blocks, scales = mxfp4.encode(values)
    work = blocks.nbytes + scales.nbytes + values.nbytes
    beside(reading, lambda: mxfp4.decode(blocks, scales), work=work)


@pytest.mark.parametrize("rule", ["floor", "fit"])
def test_encode(beside: Beside, reading: Reading, values: np.ndarray, rule: str) -> None:
    beside(reading, lambda: mxfp4.encode(values, rule=rule), work=values.nbytes * (1 + 17 / 128))
