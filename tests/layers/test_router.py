"""Router: the A largest logits, ties to the lower index, softmax over those only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.numerics import FLOAT32, FLOAT64, get_policy
from tests.support.agreement import NUMPY, POLICIES
from tests.support.checks_layers import check_router
from tests.support.strategies import SEEDS


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=SEEDS,
    n_tokens=st.integers(1, 20),
    experts=st.integers(1, 12).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e))),
    d_model=st.integers(2, 50),
    spread=st.sampled_from([0.0, 2.0**-7, 0.1, 1.0]),
)
def test_agrees_with_the_twin(
    policy: str, seed: int, n_tokens: int, experts: tuple[int, int], d_model: int, spread: float
) -> None:
    """Down to near ties (spread 2^-7) and to nothing but ties (0)."""
    check_router(layers.router, seed, policy, n_tokens, *experts, d_model, spread)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_logits_go_to_the_lower_index(policy: str) -> None:
    x = np.ones((2, 3), NUMPY[policy])
    bias = np.array([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    out = layers.router(x, np.zeros((6, 3)), bias, 4, policy=get_policy(policy))
    assert out.indices.tolist() == [[1, 3, 5, 0]] * 2
    assert out.indices.dtype == np.int64


def test_shares_are_a_softmax_over_the_chosen_only() -> None:
    x = np.zeros((1, 3))
    logits = np.log([1.0, 5.0, 2.0, 8.0, 3.0])
    out = layers.router(x, np.zeros((5, 3)), logits, 2, policy=FLOAT64)
    assert out.indices.tolist() == [[3, 1]]
    np.testing.assert_allclose(out.weights, [[8 / 13, 5 / 13]], rtol=1e-14)
    np.testing.assert_allclose(out.logits, [logits], rtol=1e-14)


@given(SEEDS)
def test_shifting_all_logits_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.normal(size=(4, 5)), rng.normal(size=(7, 5)), rng.normal(size=7)
    a = layers.router(x, weight, bias, 3, policy=FLOAT64)
    b = layers.router(x, weight, bias + 300.0, 3, policy=FLOAT64)
    assert np.array_equal(a.indices, b.indices)
    np.testing.assert_allclose(a.weights, b.weights, rtol=1e-11)


def test_huge_logits_do_not_overflow() -> None:
    with np.errstate(over="raise", invalid="raise"):
        out = layers.router(
            np.zeros((1, 2), np.float32),
            np.zeros((3, 2)),
            np.array([3e4, 2.9e4, -3e4]),
            2,
            policy=FLOAT32,
        )
    assert out.weights.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_reaches_the_weights_of_its_token(policy: str) -> None:
    """A NaN hidden state must not be routed as if nothing were wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4)).astype(NUMPY[policy])
    x[1, 2] = np.nan
    out = layers.router(x, rng.normal(size=(5, 4)), np.zeros(5), 2, policy=get_policy(policy))
    assert np.isnan(out.weights[1]).all()
    assert np.isfinite(out.weights[[0, 2]]).all()
    assert ((out.indices >= 0) & (out.indices < 5)).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_one_nan_logit_is_the_largest(policy: str) -> None:
    """Else an expert whose router row is damaged would never be chosen, and nothing would show."""
    weight = np.zeros((5, 2))
    weight[3] = np.nan
    bias = np.array([0.0, 3.0, 2.0, 1.0, 4.0])
    out = layers.router(np.ones((2, 2), NUMPY[policy]), weight, bias, 3, policy=get_policy(policy))
    assert out.indices.tolist() == [[3, 4, 1]] * 2
    assert np.isnan(out.weights).all()
