"""The experts' weighted sum against the twin, with matrices in bfloat16 and in MXFP4."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.numerics import FLOAT64
from tests.support.agreement import POLICIES
from tests.support.checks_layers import check_experts
from tests.support.strategies import SEEDS, normal


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=SEEDS,
    n_tokens=st.integers(1, 12),
    counts=st.integers(1, 7).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e))),
    sizes=st.sampled_from([(32, 64), (64, 32), (96, 32)]),
    mxfp4=st.booleans(),
    clamp=st.sampled_from([0.5, 6.0]),
)
def test_agrees_with_the_twin(
    policy: str,
    seed: int,
    n_tokens: int,
    counts: tuple[int, int],
    sizes: tuple[int, int],
    mxfp4: bool,
    clamp: float,
) -> None:
    check_experts(layers.experts, seed, policy, n_tokens, *counts, *sizes, mxfp4, clamp)


@pytest.mark.parametrize("policy", POLICIES)
@given(seed=SEEDS, sizes=st.sampled_from([(5, 3), (17, 40), (33, 31)]))
def test_sizes_that_are_no_multiple_of_32(policy: str, seed: int, sizes: tuple[int, int]) -> None:
    check_experts(layers.experts, seed, policy, d_model=sizes[0], d_ff=sizes[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_other_alpha_and_limit(policy: str) -> None:
    check_experts(layers.experts, 1, policy, alpha=1.0, limit=2.0)


def test_alpha_and_limit_are_the_models_unless_others_are_given() -> None:
    rng = np.random.default_rng(0)
    x, tensors = 9 * normal(rng, 4, 6), [normal(rng, *s) for s in ((2, 10, 6), (2, 10))]
    rest = (*tensors, normal(rng, 2, 6, 5), normal(rng, 2, 6))
    chosen = (np.array([[0], [1], [1], [0]]), np.ones((4, 1)))
    released = layers.experts(x, *chosen, *rest, alpha=1.702, limit=7.0)
    np.testing.assert_array_equal(layers.experts(x, *chosen, *rest), released)


@given(SEEDS, st.permutations(range(6)))
def test_relabelling_experts_changes_nothing(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, 5, 9)
    indices = rng.permuted(np.tile(np.arange(6), (5, 1)), axis=1)[:, :3]
    shares = rng.dirichlet(np.ones(3), 5)
    tensors = [
        normal(rng, 6, 14, 9), normal(rng, 6, 14), normal(rng, 6, 9, 7), normal(rng, 6, 9)
    ]  # fmt: skip
    constants = {"alpha": 1.702, "limit": 7.0, "policy": FLOAT64}
    plain = layers.experts(x, indices, shares, *tensors, **constants)
    new_label = np.argsort(order)  # expert order[i] is now expert i
    relabelled = layers.experts(
        x, new_label[indices], shares, *(t[order] for t in tensors), **constants
    )
    np.testing.assert_allclose(relabelled, plain, rtol=1e-12, atol=1e-13)


def test_shares_weigh_the_down_bias_too() -> None:
    """With all matrices zero, what is left is the shares' mix of the down biases."""
    shares = np.array([[0.75, 0.25]])
    bias2 = np.arange(12.0).reshape(3, 4)
    ours = layers.experts(
        np.ones((1, 4)), np.array([[2, 0]]), shares,
        np.zeros((3, 10, 4)), np.zeros((3, 10)), np.zeros((3, 4, 5)), bias2,
        alpha=1.702, limit=7.0, policy=FLOAT64,
    )  # fmt: skip
    np.testing.assert_allclose(ours, [0.75 * bias2[2] + 0.25 * bias2[0]], rtol=1e-15)


def test_unused_experts_are_not_read() -> None:
    """NaN in an expert that no token chose changes nothing; in a chosen one it shows."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(3, 10, 4)), rng.normal(size=(3, 4, 5))
    w1[1] = np.nan
    rest = (w1, np.zeros((3, 10)), w2, np.zeros((3, 4)))
    x = rng.normal(size=(2, 4))
    shares = np.full((2, 2), 0.5)
    constants = {"alpha": 1.702, "limit": 7.0, "policy": FLOAT64}
    ours = layers.experts(x, np.array([[0, 2], [2, 1]]), shares, *rest, **constants)
    assert np.isfinite(ours[0]).all()
    assert np.isnan(ours[1]).all()
