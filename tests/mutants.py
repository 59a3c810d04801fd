"""Layers made wrong on purpose: what others got wrong in public, each in a few lines.

Each wraps or replaces the package's own layer with the same signature, so that one deliberate error
is all that differs. test_mutations.py shows that the suite's checks notice every one of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from agreement import Array
from mutants_attention import widened
from strategies import Arrays

from gptoss_ref import layers
from gptoss_ref.cache import KVCache
from gptoss_ref.config import ModelConfig
from gptoss_ref.layers import mxfp4
from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, Policy, get_policy

# --- router and experts ---


def softmax_before_topk(
    x: Array, weight: Array, bias: Array, experts_per_token: int, *, policy: Policy = FLOAT32
) -> Any:
    """The shares of a softmax over all experts, not renormalised."""
    right = layers.router(x, weight, bias, experts_per_token, policy=policy)
    exp = np.exp(right.logits - right.logits.max(-1, keepdims=True))
    shares = np.take_along_axis(exp / exp.sum(-1, keepdims=True), right.indices, -1)
    return right._replace(weights=policy.round(shares))


def softmax_before_topk_renormalised(*arguments: Any, policy: Policy = FLOAT32) -> Any:
    """The same function as the right one: must not be flagged."""
    wrong = softmax_before_topk(*arguments, policy=policy)
    shares = wrong.weights / wrong.weights.sum(-1, keepdims=True)
    return wrong._replace(weights=shares)


def router_bias_missing(
    x: Array, weight: Array, bias: Array, experts_per_token: int, *, policy: Policy = FLOAT32
) -> Any:
    """Only the matrix of the router is read."""
    return layers.router(x, weight, np.zeros(len(bias)), experts_per_token, policy=policy)


def router_ties_to_the_higher_index(*arguments: Any, policy: Policy = FLOAT32) -> Any:
    """Equal logits in the order in which an ascending sort leaves them."""
    right = layers.router(*arguments, policy=policy)
    n = right.indices.shape[-1]
    indices = np.argsort(right.logits, -1, kind="stable")[:, ::-1][:, :n]
    return right._replace(indices=indices)


def gate_up_concatenated(x: Array, *rest: Any, **named: Any) -> Array:
    """The first half is taken for the gate, the second for up."""
    half = x.shape[-1] // 2
    interleaved = np.stack([x[..., :half], x[..., half:]], -1).reshape(x.shape)
    return layers.swiglu(interleaved, *rest, **named)


def gate_up_swapped(x: Array, *rest: Any, **named: Any) -> Array:
    """Even entries are taken for up, odd ones for the gate."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1]
    return layers.swiglu(pairs.reshape(x.shape), *rest, **named)


def clamp_missing(
    x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: Policy = FLOAT32
) -> Array:
    """Nothing is clamped."""
    return layers.swiglu(x, alpha, 1e30, policy=policy)


def clamp_gate_symmetric(
    x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: Policy = FLOAT32
) -> Array:
    """The gate is clamped from below as well; at alpha 1.702 and limit 7 that is a small thing."""
    return layers.swiglu(np.clip(x, -limit, limit), alpha, limit, policy=policy)


def clamp_after(
    x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: Policy = FLOAT32
) -> Array:
    """The result is clamped in place of what goes in."""
    return np.clip(layers.swiglu(x, alpha, 1e30, policy=policy), -limit, limit)


def alpha_missing(
    x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: Policy = FLOAT32
) -> Array:
    """Plain SiLU."""
    return layers.swiglu(x, 1.0, limit, policy=policy)


def up_plus_one_missing(
    x: Array, alpha: float = 1.702, limit: float = 7.0, *, policy: Policy = FLOAT32
) -> Array:
    """gate · sigmoid · up: what up = 0 would give is taken off again."""
    gate_only = x.copy()
    gate_only[..., 1::2] = 0
    whole, rest = (layers.swiglu(t, alpha, limit, policy=policy) for t in (x, gate_only))
    return policy.round(whole - rest)


def down_bias_unweighted(
    x: Array, indices: Array, weights: Array, w1: Any, b1: Array, w2: Any, b2: Array, **named: Any
) -> Array:
    """The shares weigh the matrix product only; biases are added whole."""
    without = layers.experts(x, indices, weights, w1, b1, w2, np.zeros(b2.shape), **named)
    biases = widened(b2)[indices].sum(1)
    return get_policy(named["policy"]).round(without + biases)


def down_bias_missing(
    x: Array, indices: Array, weights: Array, w1: Any, b1: Array, w2: Any, b2: Array, **named: Any
) -> Array:
    """The second matrix is taken to have no bias."""
    return layers.experts(x, indices, weights, w1, b1, w2, np.zeros(b2.shape), **named)


def gate_up_bias_missing(
    x: Array, indices: Array, weights: Array, w1: Any, b1: Array, *rest: Any, **named: Any
) -> Array:
    """The first matrix is taken to have no bias."""
    return layers.experts(x, indices, weights, w1, np.zeros(b1.shape), *rest, **named)


def experts_summed_twice(*arguments: Any, **named: Any) -> Array:
    """Two devices each add up all of the experts."""
    return 2 * layers.experts(*arguments, **named)


# --- MXFP4 ---


def nibbles_swapped(blocks: Array, *rest: Any, **named: Any) -> Array:
    """The high nibble comes first."""
    return mxfp4.decode(blocks >> 4 | blocks << 4, *rest, **named)


def nibbles_split(blocks: Array, *rest: Any, **named: Any) -> Array:
    """Low nibbles are the first 16 values, high ones the last 16."""
    values = mxfp4.decode(blocks, *rest, **named)
    pairs = values.reshape(*values.shape[:-1], -1, 16, 2)
    return pairs.swapaxes(-1, -2).reshape(values.shape)


def scale_bias_128(*arguments: Any, **named: Any) -> Array:
    """Every value is half as large."""
    return mxfp4.decode(*arguments, **named) / 2


def scale_0_is_zero(blocks: Array, scales: Array, **named: Any) -> Array:
    """2^-127, a float32 subnormal, is flushed."""
    values = mxfp4.decode(blocks, scales, **named)
    return np.where(np.repeat(scales == 0, 32, -1).reshape(values.shape), 0, values)


def half_away_from_even(x: Array, **named: Any) -> tuple[Array, Array]:
    """Ties go up in magnitude: nudged by less than any other decision can see."""
    return mxfp4.encode(x.astype(np.float64) * (1 + 1e-12), **named)


# --- norm ---


def norm_scale_after_cast(
    x: Array, scale: Array, eps: float = 1e-5, *, policy: Policy = FLOAT32
) -> Array:
    """Rounded before the scale and after it."""
    ones = np.ones(len(scale), np.float32)
    plain = layers.rmsnorm(x, ones, eps, policy=policy)
    return policy.round(plain * widened(scale).astype(plain.dtype))


def norm_eps(x: Array, scale: Array, eps: float = 1e-5, *, policy: Policy = FLOAT32) -> Array:
    """Another model's epsilon."""
    return layers.rmsnorm(x, scale, 1e-6, policy=policy)


# --- whole models ---


def swapped_windows(config: ModelConfig) -> tuple[str, ...]:
    """Odd layers slide, even layers see everything."""
    kinds = ("full_attention", "sliding_attention")
    return tuple(kinds[n % 2] for n in range(config.num_hidden_layers))


def key_and_value_rows_swapped(arrays: Arrays) -> Arrays:
    """A fused matrix split as q, v, k."""
    out = dict(arrays)
    for name in arrays:
        if ".attn.k." in name:
            other = name.replace(".attn.k.", ".attn.v.")
            out[name], out[other] = arrays[other], arrays[name]
    return out


def last_rows_lost(arrays: Arrays) -> Arrays:
    """The last four rows of one expert matrix never arrive."""
    weight = arrays["block.1.mlp.mlp1_weight"].copy()
    weight[:, -4:] = 0
    return {**arrays, "block.1.mlp.mlp1_weight": weight}


class NoResidual(Model):
    """Attention replaces the residual stream where it should add to it."""

    def _attention(self, x: Array, *rest: Any) -> Array:
        return super()._attention(x, *rest) - x


class ShortRing(Model):
    """The ring remembers two positions too few."""

    def new_cache(self) -> KVCache:
        window = self.config.sliding_window - 2
        return KVCache(dataclasses.replace(self.config, sliding_window=window), self.policy)
