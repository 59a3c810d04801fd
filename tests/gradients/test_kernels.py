"""The gradient kernels against the NumPy gradients in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ref import gradients
from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels import gradients as kernels
from gptoss_ref.kernels.runtime.threads import available_threads, threads
from tests.support.distance import relative_l2
from tests.support.strategies import SEEDS, normal, on_grid


@settings(max_examples=15)
@given(
    seed=SEEDS,
    n_queries=st.integers(1, 40),
    past=st.integers(0, 17),
    heads=st.sampled_from([(2, 3, 10), (3, 2, 8), (1, 2, 4)]),
    window=st.one_of(st.none(), st.integers(1, 20)),
    sink=st.sampled_from([-20.0, 0.0, 20.0]),
)
def test_attention(
    seed: int,
    n_queries: int,
    past: int,
    heads: tuple[int, int, int],
    window: int | None,
    sink: float,
) -> None:
    rng = np.random.default_rng(seed)
    kv_heads, group, channels = heads
    n_keys = n_queries + past
    q = normal(rng, n_queries, kv_heads * group, channels)
    k, v = (normal(rng, n_keys, kv_heads, channels) for _ in range(2))
    sinks = on_grid(rng.normal(sink, 1, kv_heads * group))
    d_mix = normal(rng, n_queries, kv_heads * group * channels)
    order = rng.permutation(n_keys)
    arguments = (d_mix, q, k[order], v[order], sinks, past + np.arange(n_queries), order, window)
    exact = gradients.attention(*arguments, policy="float64")
    found = kernels.attention(*arguments)
    floor = 1e-3 * float(np.linalg.norm(d_mix) * np.linalg.norm(v))  # what dq and dk cancel from
    for ours, true in zip(found, exact, strict=True):
        assert ours.dtype == np.float32
        assert relative_l2(ours, true, floor) <= 2e-5
    with threads(1):
        alone = kernels.attention(*arguments)
    assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))
    assert available_threads() >= 1


@settings(max_examples=10)
@given(seed=SEEDS, size=st.sampled_from([0.5, 6.0, 60.0]), limit=st.sampled_from([7.0, 3.0]))
def test_swiglu(seed: int, size: float, limit: float) -> None:
    rng = np.random.default_rng(seed)
    x, d_y = normal(rng, 5, 34, scale=size), normal(rng, 5, 17)
    x.flat[::7] = limit * np.sign(x.flat[::7])
    exact = gradients.swiglu(d_y, x, 1.702, limit, policy="float64")
    found = kernels.swiglu(d_y, x, 1.702, limit)
    assert relative_l2(found, exact) <= 2e-6
    assert np.array_equal(found == 0, exact == 0) or size == 60.0  # exp underflows in float32


def test_another_policy() -> None:
    zero = np.zeros((1, 1, 4))
    where = [np.arange(1)] * 2
    with pytest.raises(GptOssError, match="float32 policy only"):
        kernels.attention(np.zeros((1, 4)), zero, zero, zero, np.zeros(1), *where, policy="float64")
    with pytest.raises(GptOssError, match="float32 policy only"):
        kernels.swiglu(np.zeros(1), np.zeros(2), policy="bfloat16")
