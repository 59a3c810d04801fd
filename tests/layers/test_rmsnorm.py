"""RMSNorm against the twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.numerics import get_policy
from tests.support.agreement import NUMPY, POLICIES
from tests.support.checks_layers import check_rmsnorm
from tests.support.strategies import SEEDS


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=SEEDS,
    n_tokens=st.integers(1, 6),
    d_model=st.integers(1, 70),
    size=st.sampled_from([1e-6, 1e-3, 1.0, 45344.0]),
)
def test_agrees_with_the_twin(
    policy: str, seed: int, n_tokens: int, d_model: int, size: float
) -> None:
    check_rmsnorm(layers.rmsnorm, seed, policy, n_tokens, d_model, size)


@pytest.mark.parametrize("policy", POLICIES)
def test_zeros_stay_zero(policy: str) -> None:
    x = np.zeros((2, 5), NUMPY[policy])
    ours = layers.rmsnorm(x, np.full(5, 0x3F80, np.uint16), policy=get_policy(policy))
    assert not ours.any()


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_and_infinity_stay_in_their_row(policy: str) -> None:
    """A NaN or an infinity spoils its token (inf / inf is NaN) and no other."""
    x = np.ones((3, 4), NUMPY[policy])
    x[0, 1], x[1, 2] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        ours = layers.rmsnorm(x, np.full(4, 0x3F80, np.uint16), policy=get_policy(policy))
    assert np.isnan(ours[0]).all()
    assert np.isnan(ours[1, 2])
    assert np.isfinite(ours[2]).all()


def test_epsilon_is_the_models_unless_another_is_given() -> None:
    """1e-5 (config.json, rms_norm_eps), on inputs that it halves."""
    x, scale = np.full((2, 5), 3e-3, np.float32), np.full(5, 0x3F80, np.uint16)
    ours = layers.rmsnorm(x, scale)
    np.testing.assert_array_equal(ours, layers.rmsnorm(x, scale, 1e-5))
    np.testing.assert_allclose(ours, 3e-3 / np.sqrt(9e-6 + 1e-5), rtol=1e-6)
