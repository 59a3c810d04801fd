"""The kernels of embedding, RMSNorm, RoPE, router and SwiGLU against their layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import kernels, layers, sampling
from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.isa import instructions
from gptoss_ref.numerics import BFLOAT16, FLOAT64
from tests.support.distance import relative_l2
from tests.support.kernel_cases import (
    EVERY_PATH,
    EXAMPLES,
    bits,
    gaussian,
    misaligned,
    spread,
)

SEEDS = st.integers(0, 2**32 - 1)
STORAGES = ("bfloat16", "float32", "float64")


def stored(x: np.ndarray, storage: str) -> np.ndarray:
    return bits(x) if storage == "bfloat16" else x.astype(storage)


def signatures(module: Any, names: Iterable[str]) -> dict[str, inspect.Signature]:
    """Of the functions among these names: parameters, defaults and types."""
    functions = ((name, getattr(module, name)) for name in names)
    return {
        name: inspect.signature(function, eval_str=True)
        for name, function in functions
        if inspect.isfunction(function)
    }


def test_kernels_have_the_signatures_of_their_layers() -> None:
    """So that a backend may take either; the names without a layer are those of the docstring."""
    expected = signatures(layers, set(layers.__all__) - {"attention_weights", "yarn"})
    ours = signatures(kernels, kernels.__all__)
    assert set(ours) - set(expected) == {"threads"}
    assert {name: ours[name] for name in expected} == expected
    assert len(expected) == 9


def test_former_names_are_those_of_the_layers() -> None:
    """The kernels had a second form of them."""
    former = import_module("gptoss_ref.kernels.mxfp4")
    assert kernels.mxfp4.encode is former.encode is layers.mxfp4.encode
    assert kernels.yarn is layers.yarn
    assert kernels.attention_weights is layers.attention_weights
    assert kernels.sampling.greedy is sampling.greedy


@pytest.mark.parametrize("storage", STORAGES)
def test_embedding(storage: str) -> None:
    rng = np.random.default_rng(0)
    table = stored(gaussian(rng, 23, 7), storage)
    tokens = rng.integers(0, 23, 11)
    for same in (table, misaligned(table), np.asfortranarray(table), spread(table)):
        ours = kernels.embedding(tokens, same)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, layers.embedding(tokens, table))
    assert kernels.embedding(tokens[:0], table).shape == (0, 7)
    for wrong in ([-1], [23]):
        with pytest.raises(GptOssError, match="expected 0 to 22"):
            kernels.embedding(np.array(wrong), table)


@EXAMPLES
@given(
    seed=SEEDS,
    tokens=st.integers(0, 5),
    width=st.sampled_from([1, 5, 33, 192]),
    size=st.sampled_from([1e-4, 1.0, 4e4]),
    storage=st.sampled_from(STORAGES),
    heavy=st.booleans(),
)
def test_rmsnorm(
    seed: int, tokens: int, width: int, size: float, storage: str, heavy: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = gaussian(rng, tokens, width, heavy=heavy) * np.float32(size)
    scale = stored(rng.uniform(-2, 2, width), storage)
    ours = kernels.rmsnorm(x, scale, 1e-5)
    assert ours.dtype == np.float32
    assert relative_l2(ours, layers.rmsnorm(x, scale, 1e-5, policy=FLOAT64)) <= 2e-7
    np.testing.assert_array_equal(ours, kernels.rmsnorm(np.asfortranarray(x), scale, 1e-5))


def test_rmsnorm_keeps_nan_and_infinity_in_their_token() -> None:
    x = np.ones((3, 5), np.float32)
    x[1, 2], x[2, 2] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        theirs = layers.rmsnorm(x, np.ones(5, np.float32))
    np.testing.assert_allclose(kernels.rmsnorm(x, np.ones(5, np.float32)), theirs, rtol=1e-6)
    with pytest.raises(GptOssError, match=r"\(4,\).*\(5,\)"):
        kernels.rmsnorm(x, np.ones(4, np.float32))


@EXAMPLES
@given(
    seed=SEEDS,
    tokens=st.integers(0, 4),
    heads=st.integers(1, 5),
    half=st.sampled_from([1, 3, 8, 32]),
    start=st.sampled_from([0, 4090, 131_000]),
)
def test_rope(seed: int, tokens: int, heads: int, half: int, start: int) -> None:
    rng = np.random.default_rng(seed)
    inv_freq = 150_000.0 ** (-np.arange(half) / half)
    positions = np.arange(start, start + tokens)
    cos, sin = kernels.rope_tables(positions, inv_freq, 1.3)
    exact_cos, exact_sin = layers.rope_tables(positions, inv_freq, 1.3, policy=FLOAT64)
    np.testing.assert_allclose(cos, exact_cos, rtol=0, atol=1.3 * 2**-24)
    np.testing.assert_allclose(sin, exact_sin, rtol=0, atol=1.3 * 2**-24)
    x = gaussian(rng, tokens, heads, 2 * half)
    ours = kernels.rope(x, cos, sin)
    assert ours.dtype == cos.dtype == np.float32
    assert relative_l2(ours, layers.rope(x, cos, sin, policy=FLOAT64)) <= 2e-7
    np.testing.assert_array_equal(ours, kernels.rope(np.asfortranarray(x), cos, sin))


def test_rope_refuses_tables_that_do_not_fit() -> None:
    x, table = np.ones((2, 3, 4), np.float32), np.ones((2, 2), np.float32)
    for wrong in (table[:1], table[:, :1]):
        with pytest.raises(GptOssError, match="tables"):
            kernels.rope(x, wrong, wrong)
    with pytest.raises(GptOssError, match="bfloat16"):
        kernels.rope(x, table, table, policy=BFLOAT16)


@EVERY_PATH
@EXAMPLES
@given(
    seed=SEEDS,
    tokens=st.integers(0, 6),
    count=st.integers(1, 12),
    chosen=st.integers(1, 5),
    storage=st.sampled_from(STORAGES),
    size=st.sampled_from([1.0, 6.0]),
)
def test_router(
    path: str, seed: int, tokens: int, count: int, chosen: int, storage: str, size: float
) -> None:
    rng = np.random.default_rng(seed)
    chosen = min(chosen, count)
    x = gaussian(rng, tokens, 31) * np.float32(size)
    weight, bias = stored(gaussian(rng, count, 31), storage), stored(gaussian(rng, count), storage)
    with instructions(path):
        logits, indices, weights = kernels.router(x, weight, bias, chosen)
    theirs = layers.router(x, weight, bias, chosen, policy=FLOAT64)
    assert relative_l2(logits, theirs.logits) <= 1e-6
    ranked = -np.sort(-theirs.logits, axis=-1)[:, : chosen + 1]
    clear = (-np.diff(ranked, axis=-1)).min(axis=-1, initial=np.inf) > 1e-4  # the margin decides
    np.testing.assert_array_equal(indices[clear], theirs.indices[clear])
    least = 1.2e-38  # below it, e⁻⁸⁷, a weight is 0
    np.testing.assert_allclose(weights[clear], theirs.weights[clear], rtol=2e-5 * size, atol=least)
    exact = np.take_along_axis(logits.astype(np.float64), indices, -1)
    distance = exact[:, :1] - exact
    exact = np.exp(-distance) / np.exp(-distance).sum(-1, keepdims=True)
    worst = 2.0**-24 * distance.max(initial=0.0)
    np.testing.assert_allclose(weights, exact, rtol=5e-7 + worst, atol=least)
    assert indices.dtype == np.int64
    assert weights.dtype == np.float32


@EVERY_PATH
def test_router_ties_and_nan(path: str) -> None:
    """Equal logits by index; NaN before all numbers, as in the layer; then all weights are NaN."""
    x = np.ones((1, 1), np.float32)
    bias = np.zeros(6, np.float32)
    rows = (
        [1, 2, 2, 0, 2, 1],
        [0, np.nan, 5, np.nan, 1, 2],
        [-np.inf, -np.inf, -np.inf, -np.inf, -np.inf, 0],
        [np.inf, 1, np.nan, np.inf, 2, 3],
        [0, -0.0, 0, -0.0, 0, 0],
    )
    for row in rows:
        weight = np.array(row, np.float32)[:, None]
        with instructions(path):
            ours = kernels.router(x, weight, bias, 3)
        with np.errstate(invalid="ignore"):
            theirs = layers.router(x, weight, bias, 3)
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-6)
    with pytest.raises(GptOssError, match="expected 1 to 6"):
        kernels.router(x, weight, bias, 7)


@EXAMPLES
@given(
    seed=SEEDS,
    tokens=st.integers(0, 4),
    width=st.integers(1, 40),
    size=st.sampled_from([0.1, 3.0, 100.0]),
    limit=st.sampled_from([7.0, 1.5]),
    alpha=st.sampled_from([1.702, 1.0]),
)
def test_swiglu(
    seed: int, tokens: int, width: int, size: float, limit: float, alpha: float
) -> None:
    x = gaussian(np.random.default_rng(seed), tokens, 2, 2 * width) * np.float32(size)
    ours = kernels.swiglu(x, alpha, limit)
    assert ours.dtype == np.float32
    theirs = layers.swiglu(x, alpha, limit, policy=FLOAT64)
    # exp(−α · gate) magnifies the rounding of its argument; below e⁻⁸⁷ the result is 0
    bound = 4e-7 + 1.2e-7 * alpha * np.maximum(0, -x[..., ::2])
    assert (np.abs(ours - theirs) <= bound * np.abs(theirs) + 1e-34).all()
    np.testing.assert_array_equal(ours, kernels.swiglu(spread(x), alpha, limit))


def test_swiglu_extremes() -> None:
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 3e38, -3e38, -60.0]
    x = np.array([[a, b] for a in values for b in values], np.float32)
    with np.errstate(all="ignore"):
        theirs = layers.swiglu(x)
    np.testing.assert_allclose(kernels.swiglu(x), theirs, rtol=1e-6, atol=1e-20)
    with pytest.raises(GptOssError, match="even"):
        kernels.swiglu(x[:, :1])


def test_wrong_shapes_and_types_are_refused() -> None:
    x, table = np.ones((2, 4), np.float32), np.ones((2, 2), np.float32)
    bits_ = bits(x)
    for call in (
        lambda: kernels.rope(x, table, table),
        lambda: kernels.router(x[0], x, np.ones(2), 1),
        lambda: kernels.router(x[None], x, np.ones(2), 1),
        lambda: kernels.rmsnorm(x[:, :0], np.ones(0)),
        lambda: kernels.linear(x, x[None]),
        lambda: kernels.embedding(np.array([1.7]), bits_),
        lambda: kernels.rope_tables(np.array([0.5]), np.ones(2), 1.0),
    ):
        with pytest.raises(GptOssError, match="expected"):
            call()


def test_bits_of_the_other_order_of_bytes() -> None:
    rng = np.random.default_rng(3)
    x, weight, bias = gaussian(rng, 2, 8), bits(gaussian(rng, 5, 8)), bits(gaussian(rng, 5))
    other = weight.astype(weight.dtype.newbyteorder())
    np.testing.assert_array_equal(
        kernels.linear(x, other, bias.astype(other.dtype)), kernels.linear(x, weight, bias)
    )
    at = np.array([4, 0])
    np.testing.assert_array_equal(kernels.embedding(at, other), kernels.embedding(at, weight))
