"""Bugs of the scores: which keys a head reads, their scale, and the causal mask."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT64, Array, widen
from gptoss_ref.verify.mutants.mutant import KeyMask, Mutant, Right, bug, replacing, rewriting
from gptoss_ref.verify.replay.ops import ModelOps, OpContext

WEIGHTS = "attn.weights"


def _by_remainder(config: ModelConfig) -> Array:
    """Query heads sorted by their number modulo K: (H,)."""
    kv = config.num_key_value_heads
    return np.arange(config.num_attention_heads).reshape(-1, kv).T.ravel()


@bug(
    "gqa-axes-swapped",
    stage=WEIGHTS,
    consequence="Most queries attend to keys and values of another group. If there are as many "
    "groups as heads per group (8 and 8 in the released models), all shapes still fit.",
    obstacle=lambda config, weights: (
        "there is one key/value head"
        if config.num_key_value_heads == 1
        else "every query head has its own key/value head"
        if config.group_size == 1
        else None
    ),
)
def gqa_axes_swapped(ops: ModelOps) -> ModelOps:
    """Query head h reads key/value head h % K instead of h // G."""

    def weigh(right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *mask: Any) -> Array:
        order = _by_remainder(at.config)
        weights: Array = right(at, q[:, order], k, sinks[order], *mask)  # (H, t, S)
        return weights[np.argsort(order)]

    def mix(right: Right, at: OpContext, weights: Array, v: Array, *mask: Any) -> Array:
        order = _by_remainder(at.config)
        mixed: Array = right(at, weights[order], v, *mask)  # (t, H*C)
        heads = mixed.reshape(len(mixed), len(order), -1)[:, np.argsort(order)]
        return heads.reshape(mixed.shape)

    return replacing(attention_weights=weigh, attention_mix=mix)(ops)


@bug(
    "scale-missing",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Scores are too large by √C (8 in the released models): attention is too sharp.",
)
def scale_missing(right: Right, at: OpContext, q: Array, k: Array, *rest: Any) -> Array:
    """Scores are not divided by √C."""
    # With zeros for channels up to a power of 4, √C is a power of 2 and undoing it rounds nothing.
    channels = q.shape[-1]
    more = 4 ** math.ceil(math.log(channels, 4)) - channels
    q, k = (np.pad(x, ((0, 0), (0, 0), (0, more))) for x in (q, k))
    weights: Array = right(at, q * at.policy.dtype.type(math.sqrt(channels + more)), k, *rest)
    return weights


@bug(
    "scale-by-hidden",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Scores are too small by √(D/C) (6.7 in the released models): attention is flat.",
    obstacle=lambda config, weights: (
        "D equals C" if config.hidden_size == config.head_dim else None
    ),
)
def scale_by_hidden(right: Right, at: OpContext, q: Array, *rest: Any) -> Array:
    """Scores are divided by √D instead of √C: by the hidden size, not the head size."""
    scale = math.sqrt(at.config.head_dim / at.config.hidden_size)
    weights: Array = right(at, q * at.policy.dtype.type(scale), *rest)
    return weights


@bug(
    "causal-off-by-one",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Tokens inside a prompt see the token that they should predict; decoding token by "
    "token gives other numbers than one pass.",
    shortest=2,
    note="Decoding token by token hides it: the next key does not exist yet.",
)
def causal_off_by_one(
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *positions: Any
) -> Array:
    """A query sees the next token's key as well: j ≤ p + 1."""
    mask = KeyMask(*positions)
    wider = None if mask.window is None else mask.window + 1  # its far end does not move
    weights: Array = right(at, q, k, sinks, mask.q + 1, mask.k, wider)
    return weights


@rewriting(
    "scale-in-query",
    stage="attn.q",
    touches="attn.q attn.q_rope",
    consequence="Queries are shorter by √C; scores are the same.",
)
def scale_in_query(ops: ModelOps) -> ModelOps:
    """1/√C is multiplied into the query projection at loading, and scores are not divided."""

    def shrink(right: Right, at: OpContext, block: Any) -> Any:
        block = right(at, block)
        scale = 1 / math.sqrt(at.config.head_dim)
        attn = dataclasses.replace(
            block.attn,
            q_weight=widen(block.attn.q_weight, FLOAT64.dtype) * scale,
            q_bias=widen(block.attn.q_bias, FLOAT64.dtype) * scale,
        )
        return dataclasses.replace(block, attn=attn)

    return scale_missing.apply(replacing(block_weights=shrink)(ops))


ATTENTION: tuple[Mutant, ...] = (
    gqa_axes_swapped,
    scale_missing,
    scale_by_hidden,
    causal_off_by_one,
)
REWRITINGS: tuple[Mutant, ...] = (scale_in_query,)
