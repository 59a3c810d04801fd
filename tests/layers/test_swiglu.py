"""The clamped gated unit against the twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.numerics import FLOAT64, get_policy
from tests.support.agreement import NUMPY, POLICIES
from tests.support.checks_layers import check_swiglu
from tests.support.strategies import SEEDS


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=SEEDS,
    lead=st.sampled_from([(1,), (6,), (4, 3)]),
    d_ff=st.integers(1, 40),
    size=st.sampled_from([0.5, 6.0, 100.0]),
    alpha=st.sampled_from([1.702, 1.0]),
    limit=st.sampled_from([7.0, 3.0]),
)
def test_agrees_with_the_twin(
    policy: str,
    seed: int,
    lead: tuple[int, ...],
    d_ff: int,
    size: float,
    alpha: float,
    limit: float,
) -> None:
    check_swiglu(layers.swiglu, seed, policy, lead, d_ff, size, alpha, limit)


def gated(gate: float, up: float) -> float:
    """The definition, in Python floats."""
    gate, up = min(gate, 7.0), max(-7.0, min(up, 7.0))
    return gate / (1 + math.exp(-1.702 * gate)) * (up + 1)


AROUND = [-1e4, -100.0, -8.0, -7.0, -6.99, -1.0, -0.0, 0.0, 1.0, 6.99, 7.0, 7.01, 8.0, 1e4]


@pytest.mark.parametrize("policy", POLICIES)
def test_both_sides_of_both_clamps(policy: str) -> None:
    """Every pair of values around ±7: gate clamped from above only, up on both sides, then + 1."""
    gate, up = (a.ravel() for a in np.meshgrid(AROUND, AROUND))
    x = np.stack([gate, up], -1).reshape(1, -1)
    with np.errstate(over="raise", invalid="raise"):
        ours = layers.swiglu(x.astype(NUMPY[policy]), policy=get_policy(policy))[0]
    expected = np.array([gated(g, u) if g > -400 else 0.0 for g, u in zip(gate, up, strict=True)])
    tolerance = {"float64": 1e-14, "float32": 2e-6, "bfloat16": 0.03}[policy]
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=1e-30)


def test_gate_is_even_and_up_is_odd() -> None:
    ours = layers.swiglu(np.array([[2.0, 0.5, -1.0, 3.0]]), policy=FLOAT64)
    np.testing.assert_allclose(ours, [[gated(2.0, 0.5), gated(-1.0, 3.0)]], rtol=1e-15)


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_and_infinity(policy: str) -> None:
    """NaN spoils its pair; +inf is clamped to 7; a gate of -inf is -inf · 0 = NaN, as in torch."""
    nan, inf = np.nan, np.inf
    x = np.array([[nan, 0, 0, nan, 1, 1, inf, 1, 1, inf, 1, -inf, -inf, 1]], NUMPY[policy])
    with np.errstate(all="ignore"):
        ours = layers.swiglu(x, policy=get_policy(policy))[0]
    assert np.isnan(ours).tolist() == [True, True, False, False, False, False, True]
    expected = [gated(1, 1), gated(7, 1), gated(1, 7), gated(1, -7)]
    np.testing.assert_allclose(ours[2:6], expected, rtol=0.02)


def test_input_is_left_alone() -> None:
    x = np.full((1, 4), 9.0)
    layers.swiglu(x, policy=FLOAT64)
    assert (x == 9).all()


def test_alpha_and_limit_are_the_models_unless_others_are_given() -> None:
    """1.702 and 7, with a gate and an up on either side of the limit."""
    x = np.array([3.0, 2.0, 9.0, 1.0, 1.0, 9.0, 1.0, -9.0], np.float32)
    np.testing.assert_array_equal(layers.swiglu(x), layers.swiglu(x, 1.702, 7.0))
    expected = [3 / (1 + np.exp(-1.702 * 3)) * 3, 7 / (1 + np.exp(-1.702 * 7)) * 2]
    expected += [1 / (1 + np.exp(-1.702)) * 8, 1 / (1 + np.exp(-1.702)) * -6]
    np.testing.assert_allclose(layers.swiglu(x), expected, rtol=1e-6)
