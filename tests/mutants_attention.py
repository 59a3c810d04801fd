"""Rotary embedding and attention made wrong on purpose; see mutants.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from agreement import Array

from gptoss_ref import layers
from gptoss_ref.numerics import FLOAT32, Policy

# --- positions ---


def yarn_truncated(
    head_dim: int,
    theta: float,
    factor: float,
    original_length: float,
    beta_fast: float,
    beta_slow: float,
) -> tuple[Array, float]:
    """The ends of the ramp are rounded outwards to whole pairs."""

    def pair(beta: float) -> float:
        return head_dim / 2 * math.log(original_length / (beta * 2 * math.pi)) / math.log(theta)

    low, high = math.floor(pair(beta_fast)), math.ceil(pair(beta_slow))
    freq = theta ** (np.arange(0, head_dim, 2) / head_dim)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    _, concentration = layers.yarn(head_dim, theta, factor, original_length, beta_fast, beta_slow)
    return ramp / (factor * freq) + (1 - ramp) / freq, concentration


def yarn_no_concentration(*arguments: Any) -> tuple[Array, float]:
    """cos and sin are not magnified."""
    return layers.yarn(*arguments)[0], 1.0


def yarn_skipped(head_dim: int, theta: float, *ignored: Any) -> tuple[Array, float]:
    """Plain RoPE, the configuration's scaling unread."""
    return layers.yarn(head_dim, theta, 1.0)


def yarn_ramp_over_dims(
    head_dim: int,
    theta: float,
    factor: float,
    original_length: float,
    beta_fast: float,
    beta_slow: float,
) -> tuple[Array, float]:
    """The ramp runs over dimensions 2i where it should over pairs i."""

    def pair(beta: float) -> float:
        return head_dim / 2 * math.log(original_length / (beta * 2 * math.pi)) / math.log(theta)

    low, high = pair(beta_fast), pair(beta_slow)
    freq = theta ** (np.arange(0, head_dim, 2) / head_dim)
    ramp = np.clip((np.arange(0, head_dim, 2) - low) / (high - low), 0, 1)
    return ramp / (factor * freq) + (1 - ramp) / freq, 0.1 * math.log(factor) + 1


def rope_base_10000(head_dim: int, theta: float, *rest: Any) -> tuple[Array, float]:
    """The usual base of other models."""
    return layers.yarn(head_dim, 10000.0, *rest)


def rope_interleaved(x: Array, cos: Array, sin: Array, *, policy: Policy = FLOAT32) -> Array:
    """Adjacent elements are rotated with each other where halves should be."""
    half = x.shape[-1] // 2
    to_halves = np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)])
    rotated = layers.rope(x[..., to_halves], cos, sin, policy=policy)
    return rotated[..., np.argsort(to_halves)]


def rope_twice(x: Array, cos: Array, sin: Array, *, policy: Policy = FLOAT32) -> Array:
    """Once by the projection, once more by attention."""
    return layers.rope(layers.rope(x, cos, sin, policy=policy), cos, sin, policy=policy)


def rope_position_off_by_one(positions: Array, *rest: Any, **named: Any) -> tuple[Array, Array]:
    """Counting goes on at the wrong number once there is a cache."""
    late = positions[0] > 0
    return layers.rope_tables(positions + 1 if late else positions, *rest, **named)


# --- attention: q, k, v, sinks, q_positions, k_positions, window ---


def sinks_dropped(
    q: Array, k: Array, v: Array, sinks: Array, *rest: Any, policy: Policy = FLOAT32
) -> Array:
    """A plain softmax: rows sum to one."""
    return layers.attention(q, k, v, np.full(q.shape[1], -1e30), *rest, policy=policy)


def sinks_wrong_head(
    q: Array, k: Array, v: Array, sinks: Array, *rest: Any, policy: Policy = FLOAT32
) -> Array:
    """Every head has another's sink."""
    return layers.attention(q, k, v, np.roll(sinks, 1), *rest, policy=policy)


def sinks_scaled(
    q: Array, k: Array, v: Array, sinks: Array, *rest: Any, policy: Policy = FLOAT32
) -> Array:
    """Sinks are divided by the root of C as if they were scores."""
    scaled = widened(sinks) / math.sqrt(q.shape[-1])
    return layers.attention(q, k, v, scaled, *rest, policy=policy)


def widened(x: Array) -> Array:
    """bfloat16 bits as float64, floats as they are."""
    return (x.astype(np.uint32) << 16).view(np.float32).astype(float) if x.dtype == np.uint16 else x


def window_plus_one(*arguments: Any, policy: Policy = FLOAT32) -> Array:
    """One key too many."""
    *rest, window = arguments
    return layers.attention(*rest, window and window + 1, policy=policy)


def window_minus_one(*arguments: Any, policy: Policy = FLOAT32) -> Array:
    """One key too few."""
    *rest, window = arguments
    return layers.attention(*rest, window and max(1, window - 1), policy=policy)


def window_nowhere(*arguments: Any, policy: Policy = FLOAT32) -> Array:
    """Every layer sees everything."""
    return layers.attention(*arguments[:-1], None, policy=policy)


def window_scores_zero(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None,
    *,
    policy: Policy = FLOAT32,
) -> Array:
    """Keys beyond the window get the score 0 in place of -inf, and their values none of the mix."""
    age = q_positions[:, None] - k_positions[None, :]
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("thc,shc->hts", q, k.repeat(group, 1)) / math.sqrt(q.shape[-1])
    scores = np.where(age < 0, -np.inf, scores)
    beyond = (age >= window) & (age >= 0) if window else np.zeros_like(age, bool)
    scores = np.where(beyond, 0, scores)
    exp = np.exp(scores)
    weights = exp / (exp.sum(-1, keepdims=True) + np.exp(widened(sinks))[:, None, None])
    mix = np.einsum("hts,shc->thc", np.where(beyond, 0, weights), v.repeat(group, 1))
    return policy.round(mix.reshape(len(q), -1))


def gqa_axes_swapped(
    q: Array, k: Array, v: Array, sinks: Array, *rest: Any, policy: Policy = FLOAT32
) -> Array:
    """Query head h reads key/value head h % K."""
    n_heads, n_kv = q.shape[1], k.shape[1]
    order = np.arange(n_heads).reshape(-1, n_kv).T.ravel()  # heads sorted by h % K
    mix = layers.attention(q[:, order], k, v, sinks[order], *rest, policy=policy)
    by_head = mix.reshape(len(q), n_heads, -1)[:, np.argsort(order)]
    return by_head.reshape(len(q), -1)


def scale_missing(q: Array, *rest: Any, policy: Policy = FLOAT32) -> Array:
    """Scores are not divided by the root of C."""
    return layers.attention(policy.round(q * math.sqrt(q.shape[-1])), *rest, policy=policy)


def causal_off_by_one(
    q: Array, k: Array, v: Array, sinks: Array, q_positions: Array, *rest: Any,
    policy: Policy = FLOAT32,
) -> Array:  # fmt: skip
    """Everyone sees the next token as well."""
    return layers.attention(q, k, v, sinks, q_positions + 1, *rest, policy=policy)


def cache_skipped_by_prefill(
    q: Array, k: Array, v: Array, sinks: Array, q_positions: Array, k_positions: Array,
    window: int | None, *, policy: Policy = FLOAT32,
) -> Array:  # fmt: skip
    """A chunk attends to itself only, whatever the cache holds."""
    if len(q) > 1:
        n = len(q)
        k, v, k_positions = k[-n:], v[-n:], k_positions[-n:]
    return layers.attention(q, k, v, sinks, q_positions, k_positions, window, policy=policy)


def softmax_unrounded(*arguments: Any, policy: Policy = FLOAT32) -> Array:
    """bfloat16 that rounds attention's result only: no rounding of scores and weights."""
    narrow = policy.name == "bfloat16"
    return policy.round(layers.attention(*arguments, policy=FLOAT32 if narrow else policy))
