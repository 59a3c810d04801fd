"""Cache bugs, by their effect on the tap points of all tokens of a prompt.

A trace has one row per token, whether the tokens came in one pass or in several. A cache bug is
therefore modelled by the keys that each token sees; its note says which passes are assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants.mutant import (
    KeyMask,
    Mutant,
    Right,
    Variant,
    bug,
    no_window,
    one_past_the_window,
    replacing,
    usual_chunks,
    whole_number,
    wide,
)
from gptoss_ref.verify.replay.ops import OpContext

WEIGHTS = "attn.weights"
POWERS = tuple(1 << n for n in range(4, 13))  # usual lengths of chunks


@bug(
    "ring-boundary",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="For W − 1 tokens, from the one that fills the ring, an empty slot replaces the "
    "oldest key of the window.",
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
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *positions: Any
) -> Array:
    """A ring of W slots begins to shift when W − 1 slots are filled, and keeps an empty slot."""
    mask = KeyMask(*positions)
    weights: Array = right(at, q, k, sinks, *mask)
    if mask.window is None:
        return weights
    early = (mask.window - 1 <= mask.q) & (mask.q <= 2 * mask.window - 3)  # (t,)
    if early.any():
        with_empty = np.logaddexp(wide(sinks), 0.0)
        weights[:, early] = right(
            at, q[early], k, with_empty, mask.q[early], mask.k, mask.window - 1
        )
    return weights


@bug(
    "chunk-longer-than-ring",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Early queries of a long chunk find their keys overwritten by later keys.",
    shortest=one_past_the_window,
    reports=("executorch#20346",),
    note="Modelled as one chunk that is written to a ring of W slots before any query reads it; a "
    "query without keys gives all its weight to the sink. The variants have a longer ring and "
    "chunks of the ring's length, so that no chunk sees the one before. Short prompts hide it.",
    obstacle=no_window,
    variants=lambda config, tokens: (
        Variant(f"chunks and ring of {n} tokens", replacing(attention_weights=_chunk_alone(n)))
        for n in dict.fromkeys((2 * config.sliding_window, config.sliding_window, *POWERS))
        if n < tokens
    ),
    parameter=whole_number("chunks of", lambda n: replacing(attention_weights=_chunk_alone(n))),
)
def chunk_longer_than_ring(
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *positions: Any
) -> Array:
    """A prompt longer than the ring is written to it in one piece: only its last W keys are
    left."""
    mask = KeyMask(*positions)
    if mask.window is None:
        everything: Array = right(at, q, k, sinks, *mask)
        return everything
    left = mask.k >= _length(at, mask) - mask.window  # (S,)
    return _of_parts(right, at, q, k, sinks, mask, [(np.ones(len(q), bool), left)])


def _length(at: OpContext, mask: KeyMask) -> int:
    """Number of tokens of the prompt; the keys may be those of its beginning."""
    return int(mask.k.max()) + 1 if at.length is None else at.length


def _of_parts(
    right: Right,
    at: OpContext,
    q: Array,
    k: Array,
    sinks: Array,
    mask: KeyMask,
    parts: Iterable[tuple[Array, Array]],
) -> Array:
    """Weights (H, t, S) of queries that see only some of the keys.

    Args:
        parts: queries (t,) and the keys (S,) that exist for them; together all queries.
    """
    weights = np.empty((q.shape[1], len(q), len(k)), at.policy.dtype)
    for rows, keys in parts:
        if not keys.any():  # one key in the future instead, so that only the sink takes part
            later = np.array([mask.q[rows].max() + 1])
            values = right(at, q[rows], k[:1], sinks, mask.q[rows], later, mask.window)
            weights[:, rows] = 0 * values
            continue
        values = right(at, q[rows], k[keys], sinks, mask.q[rows], mask.k[keys], mask.window)
        # Zero for the other keys; a row without key and sink is 0/0, NaN for every key.
        weights[:, rows] = 0 * values.sum(axis=-1, keepdims=True)
        weights[np.ix_(np.ones(len(weights), bool), rows, keys)] = values
    return weights


def _chunk_alone(size: int) -> Callable[..., Array]:
    """Attention whose windowed layers see only keys of the query's own chunk."""

    def attend(
        right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *positions: Any
    ) -> Array:
        mask = KeyMask(*positions)
        if mask.window is None:
            weights: Array = right(at, q, k, sinks, *mask)
            return weights
        chunks = mask.q // size  # (t,)
        parts = [(chunks == chunk, mask.k // size == chunk) for chunk in np.unique(chunks)]
        return _of_parts(right, at, q, k, sinks, mask, parts)

    return attend


@bug(
    "prefill-skips-cache",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="The second chunk does not see the first.",
    shortest=2,
    reports=("openai/gpt-oss#196",),
    note="Modelled as two chunks of half the tokens each; the variants are first chunks of other "
    "lengths. With the whole prompt in one pass the bug does not show.",
    variants=lambda config, tokens: (
        Variant(f"first chunk of {n} tokens", replacing(attention_weights=_skipping(n)))
        for n in usual_chunks(tokens)
        if n != tokens // 2
    ),
    parameter=whole_number("a first chunk of", lambda n: replacing(attention_weights=_skipping(n))),
)
def prefill_skips_cache(
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *positions: Any
) -> Array:
    """A chunk that is added to a cache attends to itself only."""
    first = _length(at, KeyMask(*positions)) // 2
    return _skipping(first)(right, at, q, k, sinks, *positions)


def _skipping(first: int) -> Callable[..., Array]:
    """Attention in which queries from position ``first`` on see no earlier key."""

    def attend(
        right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *positions: Any
    ) -> Array:
        mask = KeyMask(*positions)
        late, fresh = mask.q >= first, mask.k >= first  # (t,), (S,)
        parts = [(~late, np.ones(len(k), bool)), (late, fresh)]
        return _of_parts(right, at, q, k, sinks, mask, [p for p in parts if p[0].any()])

    return attend


@bug(
    "padding-attended",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Padding takes a share of every row of attention weights, the largest in early "
    "rows.",
    reports=("unsloth#3982",),
    note="Modelled as one row of zeros ahead of the prompt, seen by every query; the variants are "
    "more rows. A padding token with keys and values of its own is another prompt, not a bug here.",
    variants=lambda config, tokens: (
        Variant(f"{rows} rows", replacing(attention_weights=_padded(rows)))
        for rows in dict.fromkeys((2, 3, *(-tokens % size for size in (8, 16, 32, 64, 128, 256))))
        if rows > 1
    ),
    parameter=whole_number("rows", lambda n: replacing(attention_weights=_padded(n))),
)
def padding_attended(right: Right, *arguments: Any) -> Array:
    """Left padding is not masked: its zeros score 0 and add to the denominator."""
    return _padded(1)(right, *arguments)


def _padded(rows: int) -> Callable[..., Array]:
    """Attention that sees ``rows`` keys of zeros besides its own."""

    def attend(right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *mask: Any) -> Array:
        weights: Array = right(at, q, k, np.logaddexp(wide(sinks), math.log(rows)), *mask)
        return weights

    return attend


CACHES: tuple[Mutant, ...] = (
    ring_boundary,
    chunk_longer_than_ring,
    prefill_skips_cache,
    padding_attended,
)
