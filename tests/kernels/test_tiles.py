"""Products on AMX: the split is exact, the result a float32 sum's.

On a machine without AMX they run under NUMBA_DISABLE_JIT=1, where Python stands for the tiles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import kernels, layers
from gptoss_ref.kernels.matmul import amx
from gptoss_ref.kernels.runtime.isa import available_paths, instructions
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.kernels.runtime.tasks import ALONE
from gptoss_ref.numerics import FLOAT64
from tests.support.distance import relative_l2
from tests.support.kernel_cases import EXAMPLES, FLOAT_BOUND, bits, gaussian

pytestmark = pytest.mark.skipif("amx" not in available_paths(), reason="needs AMX")


@pytest.fixture(autouse=True, scope="module")
def on_tiles() -> Iterator[None]:
    """Whatever path is the default."""
    with instructions("amx"):
        yield


@jit
def split(x, of, tiles, inputs):  # type: ignore[no-untyped-def]
    """Rows ``of`` of ``x``, flat, in tiles."""
    planes = amx.planes_of(tiles, inputs)
    amx.split_rows(x, of, planes, tiles, ALONE)
    return planes


def planes_of(x: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Split rows as float64 (planes, rows, columns), read as the header describes the layout."""
    words = split(x.reshape(-1), of, -(-of.size // amx.ROWS), x.shape[1])
    assert words.ctypes.data % 64 == 0
    steps = x.shape[1] // 32
    halves = words.reshape(-1, steps, amx.PLANES, 16, 16).view(np.uint16)
    halves = halves.reshape(-1, steps, amx.PLANES, 16, 16, 2)  # tile, step, plane, pair, row, 2
    rows = halves.transpose(2, 0, 4, 1, 3, 5).reshape(amx.PLANES, -1, x.shape[1])
    wide = (rows.astype(np.uint32) << 16).view(np.float32)
    return wide.astype(np.float64)[:, : of.size]


@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.sampled_from([1, 15, 16, 17, 40]),
    steps=st.integers(1, 3),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e20, 1e38]),
)
def test_planes_add_up_exactly(seed: int, rows: int, steps: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.uniform(-3.4, 3.4, (9, 32 * steps)) * size).astype(np.float32)
    of = rng.integers(0, len(x), rows)
    planes = planes_of(x, of)
    np.testing.assert_array_equal(planes.sum(0), x[of].astype(np.float64))
    assert np.all(np.abs(planes[1]) <= 2.0**-7 * np.abs(planes[0]))


def test_planes_of_special_numbers() -> None:
    largest = np.finfo(np.float32).max
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = np.inf, -np.inf, np.nan, largest, -largest, -0.0
    x[0, 6:7].view(np.uint32)[:] = 0x7F800001  # a NaN whose upper half is infinity
    high, *low = planes_of(x, np.zeros(1, np.int64))
    np.testing.assert_array_equal(high[0, :2], [np.inf, -np.inf])
    assert np.isnan(high[0, [2, 6]]).all()
    assert not np.any([plane[0, [0, 1, 2, 5, 6]] for plane in low])
    assert (high + sum(low))[0, 3] == largest
    assert (high + sum(low))[0, 4] == -largest


@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.sampled_from([2, 15, 16, 17, 33, 70]),
    inputs=st.sampled_from([32, 64, 160]),
    outputs=st.sampled_from([31, 32, 33, 64, 97]),
    heavy=st.booleans(),
    bias=st.booleans(),
)
def test_linear_equals_the_layer(
    seed: int, tokens: int, inputs: int, outputs: int, heavy: bool, bias: bool
) -> None:
    """Tiles that tokens or rows do not fill."""
    rng = np.random.default_rng(seed)
    x = gaussian(rng, tokens, inputs, heavy=heavy)
    weight = bits(gaussian(rng, outputs, inputs))
    b = bits(gaussian(rng, outputs)) if bias else None
    ours = kernels.linear(x, weight, b)
    assert relative_l2(ours, layers.linear(x, weight, b, policy=FLOAT64)) <= FLOAT_BOUND


def test_more_tokens_than_the_cache_takes_at_once() -> None:
    rng = np.random.default_rng(0)
    x, weight = gaussian(rng, 150, 2880), bits(gaussian(rng, 96, 2880))
    ours = kernels.linear(x, weight)
    assert relative_l2(ours, layers.linear(x, weight, policy=FLOAT64)) <= FLOAT_BOUND
