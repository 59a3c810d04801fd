"""Linear maps against the twin, from every kind of weight storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.errors import CheckpointError
from gptoss_ref.numerics import FLOAT32, FLOAT64, Policy, get_policy
from gptoss_ref.weights import MXFP4
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


def test_scales_of_mxfp4_as_the_weight_says() -> None:
    """Byte 254 is 2^127, and 6 · 2^127 is infinite in float32 only; 255 is what `load` was told."""
    blocks = np.full((1, 1, 16), 0x77, np.uint8)  # code 7 is 6
    x = np.ones((1, 32))

    def value(byte: int, policy: Policy = FLOAT64, **options: Any) -> float:
        weight = MXFP4(blocks, np.array([[byte]], np.uint8), **options)
        return float(layers.linear(x, weight, policy=policy)[0, 0])

    assert value(254) == 32 * 6 * 2.0**127
    assert value(254, FLOAT32) == np.inf
    assert np.isnan(value(255, scale_255="nan"))
    assert value(255, scale_255="exponent") == 32 * 6 * 2.0**128
    with pytest.raises(CheckpointError, match=r"^block\.3\.scales: scale byte 255"):
        value(255, scale_255="error", name="block.3.scales")
