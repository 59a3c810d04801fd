"""Each layer's gradients against differences of the layer itself, and the law of masked keys.

No autograd is asked. Along a random direction u of all inputs together, the slope of ⟨dy, f(x +
ε u)⟩ is the inner product of the gradients with u. Central differences in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_ref import gradients, layers
from gptoss_ref.gradients.router import load_balancing
from gptoss_ref.kernels import gradients as kernels
from gptoss_ref.layers import rope_tables, yarn
from gptoss_ref.layers.router import shares
from gptoss_ref.numerics import FLOAT64
from tests.support.kernel_cases import INTERPRETED
from tests.support.strategies import SEEDS, normal

Array = NDArray[Any]

EXACT = {"policy": "float64"}
STEP = 1e-5
LIMIT = 3.0


class Case(NamedTuple):
    """A layer as a function of some inputs, and its gradients as one of dy and the inputs."""

    inputs: list[Array]
    layer: Callable[..., Array]
    gradients: Callable[..., Sequence[Array | None]]


def rmsnorm(rng: np.random.Generator) -> Case:
    layer = partial(layers.rmsnorm, **EXACT)
    return Case(
        [normal(rng, 5, 7), normal(rng, 7)], layer, lambda d, *a: gradients.rmsnorm(d, *a, **EXACT)
    )


def linear(rng: np.random.Generator) -> Case:
    return Case(
        [normal(rng, 5, 7), normal(rng, 4, 7), normal(rng, 4)],
        partial(layers.linear, **EXACT),
        lambda d, x, weight, _: gradients.linear(d, x, weight, **EXACT),
    )


def rope(rng: np.random.Generator) -> Case:
    tables = rope_tables(np.arange(5) + 9, *yarn(8, 500.0, 8, 400, 20.0, 4.0), **EXACT)
    return Case(
        [normal(rng, 5, 3, 8)],
        lambda x: layers.rope(x, *tables, **EXACT),
        lambda d, _: [gradients.rope(d, *tables, **EXACT)],
    )


def attention(rng: np.random.Generator) -> Case:
    sinks = rng.normal((-20.0, 0.0, 20.0)[rng.integers(3)], 1, 6)
    where = (np.arange(4, 9), np.arange(9), (None, 1, 3)[rng.integers(3)])
    return Case(
        [normal(rng, 5, 6, 4), normal(rng, 9, 2, 4), normal(rng, 9, 2, 4), sinks],
        lambda *a: layers.attention(*a, *where, **EXACT),
        lambda d, *a: gradients.attention(d, *a, *where, **EXACT),
    )


def router(rng: np.random.Generator) -> Case:
    """The choice of experts is held: it is piecewise constant."""
    x, weight, bias = normal(rng, 5, 7), normal(rng, 6, 7), normal(rng, 6)
    _, indices, weights = layers.router(x, weight, bias, 3, **EXACT)

    def layer(x: Array, weight: Array, bias: Array) -> Array:
        return shares(layers.linear(x, weight, bias, **EXACT), indices, policy=FLOAT64)

    return Case(
        [x, weight, bias],
        layer,
        lambda d, x, weight, _: gradients.router(d, x, weight, indices, weights, **EXACT)[1:],
    )


def swiglu(rng: np.random.Generator) -> Case:
    return Case(
        [normal(rng, 5, 18, scale=3.0)],
        lambda x: layers.swiglu(x, 1.3, LIMIT, **EXACT),
        lambda d, x: [gradients.swiglu(d, x, 1.3, LIMIT, **EXACT)],
    )


def experts(rng: np.random.Generator) -> Case:
    indices = np.argsort(rng.random((5, 6)), -1)[:, :2]
    shapes = ((5, 7), (5, 2), (6, 8, 7), (6, 8), (6, 7, 4), (6, 7))
    options: Any = {"alpha": 1.3, "limit": 100.0, **EXACT}  # the clamps are swiglu's case
    return Case(
        [normal(rng, *shape) for shape in shapes],
        lambda x, *a: layers.experts(x, indices, *a, **options),
        lambda d, x, *a: gradients.experts(d, x, indices, *a, **options),
    )


def embedding(rng: np.random.Generator) -> Case:
    tokens = rng.integers(0, 6, 9)
    return Case(
        [normal(rng, 6, 4)],
        lambda table: layers.embedding(tokens, table, **EXACT),
        lambda d, _: [gradients.embedding(d, tokens, 6, **EXACT)],
    )


def cross_entropy(rng: np.random.Generator) -> Case:
    targets, mask = rng.integers(0, 11, 5), np.array([1, 0, 1, 1, 0], bool)

    def layer(logits: Array) -> Array:
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return np.array([-np.log(p[np.arange(5), targets])[mask].mean()])

    def found(d: Array, logits: Array) -> list[Array]:
        return [d * gradients.cross_entropy(logits, targets, mask, **EXACT)[1]]

    return Case([normal(rng, 5, 11, scale=3.0)], layer, found)


def balance(rng: np.random.Generator) -> Case:
    """The load-balancing loss of two layers; the choices are held."""
    indices = [np.argsort(rng.random((5, 6)), -1)[:, :2] for _ in range(2)]
    return Case(
        [normal(rng, 5, 6), normal(rng, 5, 6)],
        lambda *logits: np.array([load_balancing(logits, indices, **EXACT)[0]]),
        lambda d, *logits: [d * found for found in load_balancing(logits, indices, **EXACT)[1]],
    )


CASES = (
    rmsnorm, linear, rope, attention, router, swiglu, experts, embedding, cross_entropy, balance,
)  # fmt: skip


@pytest.mark.parametrize("drawn", CASES, ids=lambda case: case.__name__)
@settings(max_examples=8)
@given(seed=SEEDS)
def test_the_slope_along_a_random_direction(
    drawn: Callable[[np.random.Generator], Case], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    case = drawn(rng)
    if drawn is swiglu:  # no clamp between the two ends
        assume((np.abs(np.abs(case.inputs[0]) - LIMIT) > 10 * STEP).all())
    d_y = rng.normal(size=case.layer(*case.inputs).shape)
    found = case.gradients(d_y, *case.inputs)
    along = [rng.normal(size=x.shape) for x in case.inputs]
    ends = [
        case.layer(*(x + sign * STEP * u for x, u in zip(case.inputs, along, strict=True)))
        for sign in (1, -1)
    ]
    difference = float((d_y * (ends[0] - ends[1])).sum()) / (2 * STEP)
    parts = [float((d * u).sum()) for d, u in zip(found, along, strict=True) if d is not None]
    size = sum(np.linalg.norm(d) for d in found if d is not None) + np.linalg.norm(d_y)
    assert len(parts) == len(along)
    assert abs(difference - sum(parts)) <= 1e-7 * size


ATTENTIONS = [gradients.attention, *([] if INTERPRETED else [kernels.attention])]


@pytest.mark.parametrize("function", ATTENTIONS, ids=["layer", "kernel"][: len(ATTENTIONS)])
@settings(max_examples=8)
@given(seed=SEEDS, window=st.sampled_from([None, 1, 4]))
def test_the_gradient_of_a_masked_key_is_zero(
    function: Callable[..., Any], seed: int, window: int | None
) -> None:
    """Exactly; and what a key and a value hold that no query sees changes no other gradient."""
    rng = np.random.default_rng(seed)
    q, k, v = (normal(rng, *s) for s in ((4, 6, 5), (14, 2, 5), (14, 2, 5)))
    sinks, d_mix = normal(rng, 6), normal(rng, 4, 30)
    at, keys = np.arange(7, 11), rng.permutation(14)
    reach = np.inf if window is None else window
    hidden = (keys > at[-1]) | (at[0] - keys >= reach)
    assert hidden.any()
    found = function(d_mix, q, k, v, sinks, at, keys, window)
    assert not found.d_k[hidden].any()
    assert not found.d_v[hidden].any()
    assert found.d_v[~hidden].all()
    k[hidden], v[hidden] = 1e3, -1e3
    again = function(d_mix, q, k, v, sinks, at, keys, window)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
