"""Linear maps against the twin, from every kind of weight storage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.numerics import get_policy
from tests.support.agreement import NUMPY, POLICIES
from tests.support.checks_layers import check_linear
from tests.support.strategies import SEEDS


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=SEEDS,
    lead=st.sampled_from([(1,), (5,), (2, 3), ()]),
    inputs=st.sampled_from([1, 7, 29, 32, 64, 96]),
    outputs=st.integers(1, 60),
    bias=st.booleans(),
)
def test_agrees_with_the_twin(
    policy: str, seed: int, lead: tuple[int, ...], inputs: int, outputs: int, bias: bool
) -> None:
    check_linear(layers.linear, seed, policy, lead, inputs, outputs, bias)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("outputs", [1023, 1024, 1025, 4099])
def test_many_rows(policy: str, outputs: int) -> None:
    """Row tiles meet without gap or overlap."""
    check_linear(layers.linear, 3, policy, (3,), 64, outputs)


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_and_infinity_propagate(policy: str) -> None:
    """From the input to its row, from the weight to its column, from the bias to its column."""
    x = np.ones((3, 2), NUMPY[policy])
    weight = np.ones((4, 2), np.float32)
    bias = np.zeros(4, np.float32)
    x[0, 0], weight[1, 1], bias[2] = np.nan, np.inf, -np.inf
    ours = layers.linear(x, weight, bias, policy=get_policy(policy))
    assert np.isnan(ours[0]).all()
    assert (ours[1:, 1] == np.inf).all()
    assert (ours[1:, 2] == -np.inf).all()
    assert (ours[1:, [0, 3]] == 2).all()
