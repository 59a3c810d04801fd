"""Rotary embedding with YaRN: frequencies, tables and the rotation, against the twin."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.errors import ConfigError
from gptoss_ref.numerics import BFLOAT16, FLOAT32, FLOAT64, get_policy
from tests.support.agreement import NUMPY, POLICIES
from tests.support.checks_attention import check_rope, check_rope_tables, check_yarn
from tests.support.strategies import SEEDS, rotary_settings

HEADS = st.integers(3, 40).map(lambda half: 2 * half)
RELEASED = {
    "rope_theta": 150000.0,
    "rope_scaling_factor": 32.0,
    "initial_context_length": 4096,
    "rope_ntk_beta": 32.0,
    "rope_ntk_alpha": 1.0,
}


@given(st.data(), HEADS, st.booleans())
def test_yarn_agrees_with_the_twin(data: st.DataObject, head_dim: int, yarn: bool) -> None:
    check_yarn(layers.yarn, head_dim, data.draw(rotary_settings(head_dim, yarn=yarn)))


def test_yarn_of_the_released_models() -> None:
    """Against 40-digit decimals, with the published bounds 8.092779 and 17.398025."""
    getcontext().prec = 40
    theta, pi = Decimal(150000), Decimal("3.141592653589793238462643383279502884197")
    low = 32 * (4096 / (32 * 2 * pi)).ln() / theta.ln()
    high = 32 * (4096 / (2 * pi)).ln() / theta.ln()
    assert (round(low, 6), round(high, 6)) == (Decimal("8.092779"), Decimal("17.398025"))
    inv_freq, concentration = layers.yarn(64, 150000.0, 32.0, 4096, 32.0, 1.0)
    for i, value in enumerate(inv_freq):
        ramp = min(max((i - low) / (high - low), Decimal(0)), Decimal(1))
        freq = theta ** (Decimal(i) / 32)
        expected = ramp / (32 * freq) + (1 - ramp) / freq
        assert abs(Decimal(float(value)) / expected - 1) < Decimal("1e-14")
    assert abs(concentration - 1.34657359027997) < 1e-14
    check_yarn(layers.yarn, 64, RELEASED)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_factor_up_to_one_is_plain_rope(factor: float) -> None:
    inv_freq, concentration = layers.yarn(10, 10000.0, factor)
    np.testing.assert_allclose(inv_freq, 10000.0 ** (-np.arange(0, 10, 2) / 10), rtol=1e-15)
    assert concentration == 1.0


def test_defaults_are_plain_rope_and_the_released_ramp() -> None:
    np.testing.assert_array_equal(layers.yarn(64, 150000.0)[0], layers.yarn(64, 150000.0, 1.0)[0])
    released = layers.yarn(64, 150000.0, 32.0, 4096, 32.0, 1.0)[0]
    np.testing.assert_array_equal(layers.yarn(64, 150000.0, 32.0)[0], released)


def turns(ratio: float) -> float:
    """The beta whose pair lies at ln(ratio) / ln(theta), without rounding: a context of 1024."""
    length = 1024 / ratio
    beta = next(
        b
        for k in range(-3, 4)
        if (b := length / (2 * math.pi) + k * 2**-60) * 2 * math.pi == length
    )
    assert 1024 / (beta * 2 * math.pi) == ratio
    return beta


def test_the_ramp_lies_between_the_first_pair_and_the_last_but_one() -> None:
    """With C = 4 and theta = 2^20: pair 2 ln(ratio) / ln(theta), so ratio 2^10 is at pair 1."""
    theta, wide = 2.0**20, 2.0**8  # the end of the ramp at pair 0.8, within (0, 1)

    def raises(head_dim: int, fast: float, slow: float) -> bool:
        try:
            layers.yarn(head_dim, theta, 32.0, 1024, turns(fast), turns(slow))
        except ConfigError:
            return True
        return False

    assert not raises(4, 2.0, wide)
    assert raises(4, 1.0, wide)  # begins at pair 0
    assert raises(4, wide, wide)  # is a point
    assert raises(4, wide, 2.0)  # runs backwards
    assert raises(4, 2.0, 2.0**10)  # ends at pair 1 = C/2 - 1
    assert raises(4, 2.0, 2.0**11)  # ends at pair 1.1


@pytest.mark.parametrize("policy", POLICIES)
@given(
    data=st.data(),
    head_dim=HEADS,
    start=st.one_of(st.integers(0, 200), st.integers(4000, 131072)),
    yarn=st.booleans(),
)
def test_tables_agree_with_the_twin(
    policy: str, data: st.DataObject, head_dim: int, start: int, yarn: bool
) -> None:
    settings = data.draw(rotary_settings(head_dim, yarn=yarn))
    positions = np.arange(start, start + 9)
    check_rope_tables(layers.rope_tables, positions, head_dim, settings, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at", [[0], [127, 128, 129], [4095, 4096, 4097], [131071, 5, 100000]])
def test_tables_of_the_released_models(policy: str, at: list[int]) -> None:
    check_rope_tables(layers.rope_tables, np.array(at), 64, RELEASED, policy)


def test_float32_policy_has_float64_angles() -> None:
    """At position 100,003 a float32 angle is off by up to 0.006 rad; these tables by 1e-7."""
    inv_freq, concentration = layers.yarn(64, 150000.0, 32.0)
    exact = np.array([concentration * math.cos(100003 * float(f)) for f in inv_freq])
    cos, _ = layers.rope_tables(np.array([100003]), inv_freq, concentration, policy=FLOAT32)
    assert np.abs(cos[0] - exact).max() < 1.3e-7
    narrow, _ = layers.rope_tables(np.array([100003]), inv_freq, concentration, policy=BFLOAT16)
    angles = (np.float32(100003) * inv_freq.astype(np.float32)).astype(np.float64)
    assert np.abs(narrow[0] - concentration * np.cos(angles)).max() < 2.0**-7
    assert np.abs(concentration * np.cos(angles) - exact).max() > 1e-4


def test_bfloat16_policy_has_float32_angles() -> None:
    """As torch computes them; with float64 angles one value in 20 would differ."""
    inv_freq, concentration = layers.yarn(64, 150000.0, 32.0)
    at = np.arange(130_000, 130_100)
    angles = torch.outer(torch.tensor(at).float(), torch.tensor(inv_freq).float())
    tables = layers.rope_tables(at, inv_freq, concentration, policy=BFLOAT16)
    for ours, function in zip(tables, (torch.cos, torch.sin), strict=True):
        theirs = (function(angles) * concentration).bfloat16().float().numpy()
        assert np.mean(ours != theirs) < 0.002


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=SEEDS,
    n_tokens=st.integers(1, 9),
    heads=st.integers(1, 5),
    head_dim=st.sampled_from([2, 6, 10, 14, 64]),
)
def test_rotation_agrees_with_the_twin(
    policy: str, seed: int, n_tokens: int, heads: int, head_dim: int
) -> None:
    check_rope(layers.rope, seed, policy, n_tokens, heads, head_dim)


def test_rotation_leaves_its_input_alone() -> None:
    x = np.ones((2, 3, 4))
    layers.rope(x, np.zeros((2, 2)), np.ones((2, 2)), policy=FLOAT64)
    assert (x == 1).all()


@given(SEEDS, st.integers(0, 5000), st.integers(0, 131072 - 5001))
def test_scores_depend_on_relative_position_only(seed: int, distance: int, shift: int) -> None:
    """q at p and k at p - distance give the same product wherever p is."""
    rng = np.random.default_rng(seed)
    inv_freq, concentration = layers.yarn(64, 150000.0, 32.0)
    q, k = rng.normal(size=(2, 1, 1, 64))

    def score(q_at: int, k_at: int) -> Any:
        a, b = (
            layers.rope(
                x,
                *layers.rope_tables(np.array([at]), inv_freq, concentration, policy=FLOAT64),
                policy=FLOAT64,
            )
            for x, at in ((q, q_at), (k, k_at))
        )
        return (a * b).sum()

    # float64 angles near 131072 are off by 131072 * 2^-53 = 1.5e-11
    assert abs(score(distance, 0) - score(distance + shift, shift)) < 1e-8


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_stays_in_its_pair(policy: str) -> None:
    x = np.ones((1, 1, 6), NUMPY[policy])
    x[0, 0, 1] = np.nan
    table = np.full((1, 3), 0.5, NUMPY[policy])
    ours = layers.rope(x, table, table, policy=get_policy(policy))
    assert np.isnan(ours[0, 0]).tolist() == [False, True, False, False, True, False]
