"""Inputs and judgements that the kernel tests share.

A kernel is compared with its layer under the float64 policy, on every instruction path that this
machine can run. Under NUMBA_DISABLE_JIT=1 kernels are plain Python: fewer and smaller examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from numba.core import config

from gptoss_ref.kernels.matmul import mxfp4_methods
from gptoss_ref.kernels.runtime.isa import available_paths
from gptoss_ref.kernels.runtime.threads import available_threads
from gptoss_ref.weights import MXFP4

INTERPRETED = bool(config.DISABLE_JIT)
EVERY_PATH = pytest.mark.parametrize("path", available_paths())
EXAMPLES = settings(max_examples=3 if INTERPRETED else 20)
COMPILED_ONLY = pytest.mark.skipif(INTERPRETED, reason="needs compiled kernels")
BUSY = pytest.mark.skipif(available_threads() < 2, reason="needs two cores")

# Relative L2 of float32 sums, at the sizes of these tests. Interpreted, and with bounds checks, the
# plain path's sums have one accumulator where vectors have many, and lose more in it.
FLOAT_BOUND = 5e-6 if INTERPRETED or config.BOUNDSCHECK else 1e-6
MXFP4_BOUND = 1e-4


def bits(x: Any) -> np.ndarray:
    """The nearest bfloat16 values, as bits."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).view(np.uint16)


def gaussian(rng: np.random.Generator, *shape: int, heavy: bool = False) -> np.ndarray:
    """Standard normal float32; ``heavy``: one element of each row is 1000 times that size."""
    x = rng.standard_normal(shape, np.float32)
    if heavy:
        at = rng.integers(shape[-1], size=shape[:-1])[..., None]
        np.put_along_axis(x, at, np.float32(1000) * np.sign(np.take_along_axis(x, at, -1)), -1)
    return x


def random_mxfp4(
    rng: np.random.Generator, *shape: int, scales: tuple[int, int] = (116, 124), **fields: Any
) -> MXFP4:
    """Random blocks of a matrix of ``shape`` (…, N, M), with scale bytes from a range."""
    *lead, inputs = shape
    blocks = rng.integers(0, 256, (*lead, inputs // 32, 16), np.uint8)
    bytes_ = rng.integers(*scales, (*lead, inputs // 32)).astype(np.uint8)
    return MXFP4(blocks, bytes_, **fields)


@contextmanager
def integers_from_256() -> Iterator[None]:
    """Within this context, MXFP4 rows of 256 activations take the ways of long rows."""
    before, mxfp4_methods.WIDE = mxfp4_methods.WIDE, 256
    try:
        yield
    finally:
        mxfp4_methods.WIDE = before


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same values at an odd address."""
    buffer = np.empty(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def spread(x: np.ndarray) -> np.ndarray:
    """The same values, no two of them adjacent in memory."""
    wide = np.repeat(x[..., None], 2, axis=-1).reshape(*x.shape[:-1], 2 * x.shape[-1])
    return wide[..., ::2]
