"""Bugs of caches, as they show in the tap points of all tokens of a prompt.

A trace holds one row for every token, whether they came in one pass or in many. So a wrong cache is
stated as what it lets each token see; each note says which passes are assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants.mutant import (
    Mutant,
    Right,
    Variant,
    bug,
    no_window,
    one_past_the_window,
    replacing,
    usual_chunks,
    wide,
)
from gptoss_ref.verify.rules import At

WEIGHTS = "attn.weights"
POWERS = tuple(1 << n for n in range(4, 13))  # usual lengths of chunks


@bug(
    "ring-boundary",
    rule="attention_weights",
    stage=WEIGHTS,
    consequence="From the token that fills the ring on, for W − 1 tokens, the oldest key of the "
    "window is lost to an empty slot.",
    shortest=lambda config: config.sliding_window,
    reports=("transformers#37574",),
    note="Modelled as decoding token by token into a ring of W zeroed slots; an empty slot scores "
    "0 and mixes zeros. Short prompts hide it.",
    obstacle=lambda config, weights: (
        no_window(config, weights)
        or ("a window of 1 leaves no room" if config.sliding_window == 1 else None)
    ),
)
def ring_boundary(
    right: Right,
    at: At,
    q: Array,
    k: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None,
) -> Array:
    """A ring of W slots starts to shift when W − 1 are filled, and carries an empty one along."""
    weights: Array = right(at, q, k, sinks, q_positions, k_positions, window)
    if window is None:
        return weights
    early = (window - 1 <= q_positions) & (q_positions <= 2 * window - 3)  # (t,)
    if early.any():
        with_empty = np.logaddexp(wide(sinks), 0.0)
        weights[:, early] = right(
            at, q[early], k, with_empty, q_positions[early], k_positions, window - 1
        )
    return weights


@bug(
    "chunk-longer-than-ring",
    rule="attention_weights",
    stage=WEIGHTS,
    consequence="Early queries of a long chunk find their keys overwritten by later ones.",
    shortest=one_past_the_window,
    reports=("executorch#20346",),
    note="Modelled as one chunk, written to a ring of W slots before anybody reads; a query "
    "without keys gives all to its sink. The variants are chunks as long as a longer ring, so that "
    "each finds nothing of the one before. Short prompts hide it.",
    obstacle=no_window,
    variants=lambda config, tokens: (
        Variant(f"chunks and ring of {n} tokens", replacing(attention_weights=_chunk_alone(n)))
        for n in dict.fromkeys((2 * config.sliding_window, config.sliding_window, *POWERS))
        if n < tokens
    ),
)
def chunk_longer_than_ring(
    right: Right,
    at: At,
    q: Array,
    k: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None,
) -> Array:
    """A prompt longer than the ring is written to it whole: only its last W keys are left."""
    if window is None:
        everything: Array = right(at, q, k, sinks, q_positions, k_positions, window)
        return everything
    left = k_positions > k_positions.max() - window  # (S,)
    weights = np.empty((q.shape[1], len(q), len(k)), at.policy.dtype)
    values = right(at, q, k[left], sinks, q_positions, k_positions[left], window)
    _put(weights, np.ones(len(q), bool), left, values)
    return weights


def _chunk_alone(size: int) -> Callable[..., Array]:
    """Attention whose windowed layers see only keys of the query's own chunk."""

    def attend(
        right: Right,
        at: At,
        q: Array,
        k: Array,
        sinks: Array,
        q_positions: Array,
        k_positions: Array,
        window: int | None,
    ) -> Array:
        weights: Array = right(at, q, k, sinks, q_positions, k_positions, window)
        if window is None:
            return weights
        chunks = q_positions // size  # (t,)
        for chunk in np.unique(chunks[chunks > 0]):
            rows, own = chunks == chunk, k_positions // size == chunk
            where = (q_positions[rows], k_positions[own], window)
            _put(weights, rows, own, right(at, q[rows], k[own], sinks, *where))
        return weights

    return attend


def _put(weights: Array, rows: Array, keys: Array, values: Array) -> None:
    """Make ``values`` (H, n, m) of some rows and keys all that these rows of (H, t, S) hold.

    A row that is 0/0, as without a key or a sink, is so everywhere.
    """
    weights[:, rows] = 0 * values.sum(axis=-1, keepdims=True)
    weights[np.ix_(np.ones(len(weights), bool), rows, keys)] = values


@bug(
    "prefill-skips-cache",
    rule="attention_weights",
    stage=WEIGHTS,
    consequence="A second prompt on a cache knows nothing of the first.",
    shortest=2,
    reports=("openai/gpt-oss#196",),
    note="Modelled as two chunks of half the tokens each; the variants are first chunks of other "
    "lengths. With the whole prompt in one pass the bug does not show.",
    variants=lambda config, tokens: (
        Variant(f"first chunk of {n} tokens", replacing(attention_weights=_skipping(n)))
        for n in usual_chunks(tokens)
        if n != tokens // 2
    ),
)
def prefill_skips_cache(right: Right, *arguments: Any) -> Array:
    """A chunk that comes onto a cache attends to itself only."""
    k_positions = arguments[5]
    return _skipping((int(k_positions.max()) + 1) // 2)(right, *arguments)


def _skipping(first: int) -> Callable[..., Array]:
    """Attention whose queries from position ``first`` on see no key before it."""

    def attend(
        right: Right,
        at: At,
        q: Array,
        k: Array,
        sinks: Array,
        q_positions: Array,
        k_positions: Array,
        window: int | None,
    ) -> Array:
        weights: Array = right(at, q, k, sinks, q_positions, k_positions, window)
        late, fresh = q_positions >= first, k_positions >= first  # (t,), (S,)
        if late.any():
            where = (q_positions[late], k_positions[fresh], window)
            _put(weights, late, fresh, right(at, q[late], k[fresh], sinks, *where))
        return weights

    return attend


@bug(
    "padding-attended",
    rule="attention_weights",
    stage=WEIGHTS,
    consequence="Padding takes a share of every row of weights, most of the early ones.",
    reports=("unsloth#3982",),
    note="Modelled as one row of zeros ahead of the prompt, seen by every query; the variants are "
    "more rows. A padding token with keys and values of its own is another prompt, not a bug here.",
    variants=lambda config, tokens: (
        Variant(f"{rows} rows", replacing(attention_weights=_padded(rows)))
        for rows in dict.fromkeys((2, 3, *(-tokens % size for size in (8, 16, 32, 64, 128, 256))))
        if rows > 1
    ),
)
def padding_attended(right: Right, *arguments: Any) -> Array:
    """Left padding is not masked: its zeros score 0 and join the denominator."""
    return _padded(1)(right, *arguments)


def _padded(rows: int) -> Callable[..., Array]:
    """Attention that sees ``rows`` keys of zeros besides its own."""

    def attend(right: Right, at: At, q: Array, k: Array, sinks: Array, *where: Any) -> Array:
        weights: Array = right(at, q, k, np.logaddexp(wide(sinks), math.log(rows)), *where)
        return weights

    return attend


CACHES: tuple[Mutant, ...] = (
    ring_boundary,
    chunk_longer_than_ring,
    prefill_skips_cache,
    padding_attended,
)
