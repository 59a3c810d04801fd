"""Attention kernels against the layer: windows, sinks, grouped queries, any order of keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_ref import kernels, layers
from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.isa import instructions
from gptoss_ref.numerics import BFLOAT16, FLOAT64
from tests.support.distance import relative_l2
from tests.support.kernel_cases import (
    EVERY_PATH,
    EXAMPLES,
    INTERPRETED,
    bits,
    gaussian,
    misaligned,
)

BOUND = 2e-6  # the exponential's 2e-7 of each weight, and float32 sums

Case = tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]


def case(
    seed: int,
    queries: int,
    keys: int,
    sizes: tuple[int, int, int],
    sink: float = 0.0,
    offset: int = 0,
    size: float = 1.0,
) -> Case:
    """q, k, v, sinks and positions; the last query sits at the last key."""
    rng = np.random.default_rng(seed)
    kv_heads, group, channels = sizes
    q = gaussian(rng, queries, kv_heads * group, channels) * np.float32(size)
    k, v = gaussian(rng, keys, kv_heads, channels), gaussian(rng, keys, kv_heads, channels)
    sinks = bits(rng.normal(sink, 1, kv_heads * group))
    return q, k, v, sinks, offset + np.arange(keys - queries, keys), offset + np.arange(keys)


HEADS = st.sampled_from([(1, 1, 2), (2, 3, 10), (3, 2, 16), (1, 5, 32), (2, 2, 64)])


@EVERY_PATH
@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 40),
    earlier=st.sampled_from([0, 1, 30, 63, 64, 65, 150]),
    sizes=HEADS,
    window=st.sampled_from([None, 1, 2, 17, 64, 128]),
    sink=st.sampled_from([-30.0, 0.0, 5.0, 30.0]),
    offset=st.sampled_from([0, 131_000]),
    shuffled=st.booleans(),
    size=st.sampled_from([0.0, 1.0, 20.0]),
)
def test_equals_the_layer(
    path: str,
    seed: int,
    queries: int,
    earlier: int,
    sizes: tuple[int, int, int],
    window: int | None,
    sink: float,
    offset: int,
    shuffled: bool,
    size: float,
) -> None:
    if INTERPRETED:
        queries, earlier = min(queries, 3), min(earlier, 65)
    q, k, v, sinks, q_at, k_at = case(seed, queries, queries + earlier, sizes, sink, offset, size)
    if shuffled:
        order = np.random.default_rng(seed).permutation(len(k))
        k, v, k_at = k[order], v[order], k_at[order]
    with instructions(path):
        ours = kernels.attention(q, k, v, sinks, q_at, k_at, window)
    theirs = layers.attention(q, k, v, sinks, q_at, k_at, window, policy=FLOAT64)
    assert ours.dtype == np.float32
    # scores of size 20 · √C carry float32's own error into the exponent
    bound = BOUND * max(1.0, size)
    sums = layers.attention(q, k, np.abs(v), sinks, q_at, k_at, window, policy=FLOAT64)
    vanishing = 1e-37 * np.linalg.norm(v)  # of weights below e⁻⁸⁷
    assert np.linalg.norm(ours - theirs) <= bound * np.linalg.norm(sums) + vanishing


@EVERY_PATH
def test_released_shape_many_blocks(path: str) -> None:
    """One query and several, over many blocks of keys, as a decode and a chunk of prefill."""
    sizes = (2, 2, 8) if INTERPRETED else (8, 8, 64)
    for queries, keys, window in ((1, 300, None), (1, 300, 128), (37, 300, None), (37, 300, 128)):
        q, k, v, sinks, q_at, k_at = case(1, min(queries, 2 if INTERPRETED else 37), keys, sizes)
        with instructions(path):
            ours = kernels.attention(q, k, v, sinks, q_at, k_at, window)
        theirs = layers.attention(q, k, v, sinks, q_at, k_at, window, policy=FLOAT64)
        assert relative_l2(ours, theirs) <= BOUND


@EVERY_PATH
def test_a_window_touches_only_its_keys(path: str) -> None:
    """Blocks of keys that no query sees may hold anything."""
    q, k, v, sinks, q_at, k_at = case(2, 1, 200, (2, 3, 10))
    with instructions(path):
        clean = kernels.attention(q, k, v, sinks, q_at, k_at, 8)
        k[:128], v[:128] = np.nan, np.nan
        np.testing.assert_array_equal(kernels.attention(q, k, v, sinks, q_at, k_at, 8), clean)


@EVERY_PATH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "sink"])
def test_nan_and_infinity_propagate(path: str, value: float, where: str) -> None:
    """Put where every query sees it, they reach what they reach in the layer."""
    q, k, v, sinks, q_at, k_at = case(3, 4, 70, (2, 3, 10))
    sinks = sinks.astype(np.float32) * 0
    {"q": q[1, 2], "k": k[5, 1], "v": v[5, 1], "sink": sinks}[where][3] = value
    with instructions(path):
        ours = kernels.attention(q, k, v, sinks, q_at, k_at)
    with np.errstate(all="ignore"):
        theirs = layers.attention(q, k, v, sinks, q_at, k_at, policy=FLOAT64)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@EVERY_PATH
@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("sink", [0.0, -np.inf])
@pytest.mark.parametrize("where", ["query", "only key", "key in a block of its own"])
def test_keys_that_score_nan_are_not_taken_for_unseen(
    path: str, where: str, sink: float, queries: int
) -> None:
    q, k, v, _, q_at, k_at = case(9, queries, 257, (2, 3, 10))
    sinks = np.full(6, sink, np.float32)
    window = 1 if where == "only key" else None
    (q if where == "query" else k)[-1, 1, 4] = np.nan
    with instructions(path):
        ours = kernels.attention(q, k, v, sinks, q_at, k_at, window)
    with np.errstate(invalid="ignore"):
        theirs = layers.attention(q, k, v, sinks, q_at, k_at, window, policy=FLOAT64)
    assert np.isnan(theirs).any()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@EVERY_PATH
def test_sink_of_minus_infinity_is_no_sink(path: str) -> None:
    q, k, v, _, q_at, k_at = case(4, 3, 140, (2, 3, 10))
    none = np.full(6, -np.inf, np.float32)
    with instructions(path):
        ours = kernels.attention(q, k, v, none, q_at, k_at, 20)
    theirs = layers.attention(q, k, v, none, q_at, k_at, 20, policy=FLOAT64)
    assert relative_l2(ours, theirs) <= BOUND


@EVERY_PATH
def test_awkward_arrays_give_the_same(path: str) -> None:
    q, k, v, sinks, q_at, k_at = case(5, 3, 20, (2, 3, 10))
    with instructions(path):
        plain = kernels.attention(q, k, v, sinks, q_at, k_at)
        for change in (
            misaligned,
            lambda x: x.astype(np.float64),
            lambda x: np.asfortranarray(x),
            lambda x: np.concatenate([x, x])[: len(x)],
        ):
            again = kernels.attention(change(q), change(k), change(v), sinks, q_at, k_at)
            np.testing.assert_array_equal(again, plain)
        assert kernels.attention(q[:0], k, v, sinks, q_at[:0], k_at).shape == (0, 60)


def test_a_window_of_no_keys_is_refused() -> None:
    q, k, v, sinks, q_at, k_at = case(6, 3, 20, (2, 3, 10))
    for window in (0, -3):
        with pytest.raises(GptOssError, match=f"window of {window} keys: expected 1 or more"):
            kernels.attention(q, k, v, sinks, q_at, k_at, window)


def test_errors() -> None:
    q, k, v, sinks, q_at, k_at = case(6, 3, 20, (2, 3, 10))
    with pytest.raises(GptOssError, match="positions"):
        kernels.attention(q, k, v, sinks, q_at[:2], k_at)
    with pytest.raises(GptOssError, match="values"):
        kernels.attention(q, k, v[:5], sinks, q_at, k_at)
    with pytest.raises(GptOssError, match="K dividing H"):
        kernels.attention(q[:, :5], k, v, sinks[:5], q_at, k_at)
    with pytest.raises(GptOssError, match=r"\(6,\)"):
        kernels.attention(q, k, v, sinks[:5], q_at, k_at)
    with pytest.raises(GptOssError, match="bfloat16"):
        kernels.attention(q, k, v, sinks, q_at, k_at, policy=BFLOAT16)
