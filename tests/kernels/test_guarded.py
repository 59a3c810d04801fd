"""Kernels read nothing outside their arrays: the page before or after them cannot be read.

A read there ends the process. An array begins where the first page ends, or ends where the last one
begins. Prefetches are no reads.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import pytest

from gptoss_ref import kernels, layers
from gptoss_ref.kernels.runtime.isa import instructions
from gptoss_ref.numerics import FLOAT64
from gptoss_ref.weights import MXFP4
from tests.support.distance import relative_l2
from tests.support.kernel_cases import (
    COMPILED_ONLY,
    EVERY_PATH,
    FLOAT_BOUND,
    MXFP4_BOUND,
    bits,
    gaussian,
    integers_from_256,
    random_mxfp4,
)

pytestmark = [
    COMPILED_ONLY,
    pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect of Linux"),
]
AT_END = pytest.mark.parametrize("at_end", [False, True])
_NO_ACCESS = 0
_kept: list[mmap.mmap] = []


def guarded(array: Any, at_end: bool) -> Any:
    """Return a copy that begins after, or ends before, a page that cannot be read."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    mapped = mmap.mmap(-1, size + 2 * page)
    _kept.append(mapped)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    protect = ctypes.CDLL(None).mprotect
    for at in (begin, begin + page + size):
        assert protect(ctypes.c_void_p(at), ctypes.c_size_t(page), _NO_ACCESS) == 0
    start = page + (size - array.nbytes if at_end else 0)
    copy = np.frombuffer(mapped, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


def guarded_mxfp4(weight: MXFP4, at_end: bool) -> MXFP4:
    return MXFP4(guarded(weight.blocks, at_end), guarded(weight.scales, at_end))


@EVERY_PATH
@AT_END
@pytest.mark.parametrize("inputs", [1, 7, 31, 32, 33, 95, 513])
def test_one_token(path: str, at_end: bool, inputs: int) -> None:
    rng = np.random.default_rng(0)
    x = guarded(gaussian(rng, 1, inputs), at_end)
    for weight in (bits(gaussian(rng, 9, inputs)), gaussian(rng, 9, inputs)):
        w = guarded(weight, at_end)
        with instructions(path):
            ours = kernels.linear(x, w)
        assert relative_l2(ours, layers.linear(x, w, policy=FLOAT64)) <= FLOAT_BOUND


@EVERY_PATH
@AT_END
@pytest.mark.parametrize("groups", [1, 3, 8, 9, 15, 17])
def test_mxfp4(path: str, at_end: bool, groups: int) -> None:
    rng = np.random.default_rng(0)
    weight = guarded_mxfp4(random_mxfp4(rng, 40, 32 * groups), at_end)
    for tokens in (1, 3, 6):
        x = guarded(gaussian(rng, tokens, 32 * groups), at_end)
        with instructions(path), integers_from_256():
            ours = kernels.linear(x, weight)
        assert relative_l2(ours, layers.linear(x, weight, policy=FLOAT64)) <= MXFP4_BOUND


@EVERY_PATH
@AT_END
@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("inner", [64, 256])
def test_experts(path: str, at_end: bool, tokens: int, inner: int) -> None:
    rng = np.random.default_rng(0)
    x = guarded(gaussian(rng, tokens, 288), at_end)
    chosen = np.argsort(rng.random((tokens, 3)), axis=-1)[:, :2]
    weights = np.full((tokens, 2), 0.5, np.float32)
    first, second = (
        guarded_mxfp4(random_mxfp4(rng, 3, rows, columns), at_end)
        for rows, columns in ((2 * inner, 288), (288, inner))
    )
    bias, bias_2 = (guarded(bits(gaussian(rng, 3, rows)), at_end) for rows in (2 * inner, 288))
    arguments = (x, chosen, weights, first, bias, second, bias_2)
    with instructions(path), integers_from_256():
        ours = kernels.experts(*arguments)
    assert relative_l2(ours, layers.experts(*arguments, policy=FLOAT64)) <= 2 * MXFP4_BOUND
