"""Attention with sinks, windows and grouped queries, against the twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptoss_ref import layers
from gptoss_ref.numerics import FLOAT64, get_policy
from tests.support.agreement import NUMPY, POLICIES
from tests.support.checks_attention import (
    attention_case,
    check_attention,
    check_attention_weights,
    check_sink_probe,
)
from tests.support.strategies import LENGTHS, SEEDS, WINDOWS

# (K, G, C), all different
HEADS = st.sampled_from([(2, 3, 10), (3, 2, 8), (2, 5, 6), (4, 3, 14), (1, 2, 4)])
SINKS = st.sampled_from([-30.0, 0.0, 5.0, 30.0])
SMALL_WINDOWS = st.one_of(st.none(), st.integers(1, 20))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("check", "layer"),
    [(check_attention_weights, layers.attention_weights), (check_attention, layers.attention)],
    ids=["weights", "mix"],
)
@given(
    seed=SEEDS,
    n_keys=st.integers(1, 17),
    n_queries=st.integers(1, 17),
    heads=HEADS,
    window=SMALL_WINDOWS,
    sink=SINKS,
    offset=st.sampled_from([0, 1, 4090, 131000]),
    shuffle=st.booleans(),
)
def test_weights_and_mix_agree_with_the_twin(
    check: Callable[..., None],
    layer: Callable[..., Any],
    policy: str,
    seed: int,
    n_keys: int,
    n_queries: int,
    heads: tuple[int, int, int],
    window: int | None,
    sink: float,
    offset: int,
    shuffle: bool,
) -> None:
    sizes = (min(n_queries, n_keys), n_keys, *heads)
    check(layer, seed, policy, sizes, window, sink, offset, shuffle)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", [*WINDOWS, None])
def test_lengths_around_the_window(policy: str, length: int, window: int | None) -> None:
    """One pass, and its last token alone as a decoding step, at every boundary of a window."""
    sizes = (length, length, 2, 3, 4)
    check_attention(layers.attention, length, policy, sizes, window)
    check_attention(layers.attention, length, policy, (1, length, 2, 3, 4), window, shuffle=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_many_queries(policy: str) -> None:
    """More queries than one block of them, if an implementation works in blocks."""
    check_attention(layers.attention, 7, policy, (1100, 1100, 1, 2, 4), 128)
    check_attention(layers.attention, 7, policy, (600, 1300, 1, 2, 4), None)


@pytest.mark.parametrize("policy", POLICIES)
def test_large_scores_do_not_overflow(policy: str) -> None:
    """Scores of hundreds, beyond what exp can take."""
    q, k, v, sinks = attention_case(3, (9, 9, 2, 3, 10), size=30.0)
    dtype = NUMPY[policy]
    at = np.arange(9)
    with np.errstate(over="raise", invalid="raise"):
        ours = layers.attention(
            q.astype(dtype),
            k.astype(dtype),
            v.astype(dtype),
            sinks,
            at,
            at,
            None,
            policy=get_policy(policy),
        )
    assert np.isfinite(ours).all()


def test_sink_probe() -> None:
    check_sink_probe(layers.attention)


@given(SEEDS, st.integers(1, 40), st.one_of(st.none(), st.integers(1, 40)))
@example(0, 1, 1)
def test_rows_sum_to_less_than_one(seed: int, length: int, window: int | None) -> None:
    """What is missing is the sink's share, softmax over the sink and what is in sight."""
    q, k, _, sinks = attention_case(seed, (length, length, 2, 3, 4))
    at = np.arange(length)
    ours = layers.attention_weights(q, k, sinks, at, at, window, policy=FLOAT64)
    total = ours.sum(-1)
    assert (total < 1).all()
    assert (total > 0).all()
    # the weight of one's own key over the sink's share is exp(score - sink)
    own = np.einsum("htt->ht", ours)
    score = np.einsum("tkgc,tkc->kgt", q.reshape(length, 2, 3, 4), k).reshape(6, length) / 2
    np.testing.assert_allclose(own / (1 - total), np.exp(score - sinks[:, None]), rtol=1e-7)


@given(SEEDS, st.integers(2, 30), st.integers(1, 30))
def test_a_masked_key_is_inert(seed: int, length: int, window: int) -> None:
    """Whatever lies ahead or beyond the window, NaN included in the values' finite neighbours."""
    q, k, v, sinks = attention_case(seed, (length, length, 2, 3, 4))
    at = np.arange(length)
    before = layers.attention(q, k, v, sinks, at, at, window, policy=FLOAT64)
    query = seed % length
    unseen = (at > query) | (at <= query - window)
    k[unseen], v[unseen] = 1e4, -1e5
    after = layers.attention(q, k, v, sinks, at, at, window, policy=FLOAT64)
    assert np.array_equal(before[query], after[query])


@given(SEEDS, st.integers(1, 30), st.integers(0, 5))
def test_a_window_of_the_length_or_more_is_full(seed: int, length: int, more: int) -> None:
    q, k, v, sinks = attention_case(seed, (length, length, 3, 2, 4))
    at = np.arange(length)
    full = layers.attention(q, k, v, sinks, at, at, None, policy=FLOAT64)
    wide = layers.attention(q, k, v, sinks, at, at, length + more, policy=FLOAT64)
    np.testing.assert_allclose(wide, full, rtol=1e-13)


def test_a_window_of_one_sees_itself_and_the_sink() -> None:
    q, k, _v, sinks = attention_case(1, (5, 5, 2, 3, 4))
    at = np.arange(5)
    weights = layers.attention_weights(q, k, sinks, at, at, 1, policy=FLOAT64)
    assert np.array_equal(weights > 0, np.broadcast_to(np.eye(5, dtype=bool), (6, 5, 5)))


@given(SEEDS, st.permutations(range(12)))
def test_the_order_of_keys_is_irrelevant(seed: int, order: list[int]) -> None:
    """Masks compare positions, so a ring may hold its keys in any order."""
    q, k, v, sinks = attention_case(seed, (12, 12, 2, 3, 4))
    at, permuted = np.arange(12), np.array(order)
    plain = layers.attention(q, k, v, sinks, at, at, 5, policy=FLOAT64)
    shuffled = layers.attention(q, k[permuted], v[permuted], sinks, at, permuted, 5, policy=FLOAT64)
    np.testing.assert_allclose(shuffled, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_propagates_to_who_can_see_it(policy: str) -> None:
    """A NaN key spoils the queries that see it, in the heads that read it, and no others."""
    q, k, v, sinks = (x.astype(NUMPY[policy]) for x in attention_case(2, (6, 6, 2, 3, 4)))
    at = np.arange(6)
    k[2, 1, 0] = np.nan
    with np.errstate(invalid="ignore"):
        ours = layers.attention(q, k, v, sinks, at, at, 3, policy=get_policy(policy))
    spoilt = np.isnan(ours).reshape(6, 2, 12)
    assert spoilt[2:5, 1].all()
    assert not spoilt[:, 0].any()
    assert not spoilt[[0, 1, 5], 1].any()
