"""Mistakes: wrong versions of single operations, which cases of the suite catch.

The catalogue of :mod:`gptoss_ref.verify.mutants` holds bugs of a whole model. Mistakes show only in
tests of one operation: they concern equal logits, the sign of zero, scale bytes that no checkpoint
has, or code outside the model, such as an encoder or a sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from gptoss_ref import layers
from gptoss_ref.layers import mxfp4
from gptoss_ref.numerics import FLOAT64, Array
from gptoss_ref.sampling import token_probabilities
from gptoss_ref.verify.mutants.mutant import Right, replacing
from gptoss_ref.verify.replay.ops import SPECIFICATION, OpContext
from gptoss_ref.verify.vectors.mistake import Mistake, mistake
from gptoss_ref.verify.vectors.mistakes_gradients import GRADIENT_MISTAKES
from gptoss_ref.verify.vectors.operation import Values
from gptoss_ref.verify.vectors.operations import OPERATIONS
from gptoss_ref.weights import MXFP4_BLOCK

Given = SimpleNamespace
"""Inputs and parameters of a case, as attributes."""


def _right(operation: str, v: Given, **wrong: Callable[..., Array]) -> Values:
    """The specification's outputs, with some of its operations replaced."""
    return OPERATIONS[operation].compute(replacing(**wrong)(SPECIFICATION), v)


# --- tokens alone ---


@mistake("eps-missing", "rmsnorm")
def eps_missing(v: Given) -> Values:
    """Epsilon is left out: small rows grow too large, and a row of zeros is 0/0."""
    return {"y": layers.rmsnorm(v.x, v.scale, 0.0, policy=FLOAT64)}


@mistake("squares-in-float16", "rmsnorm")
def squares_in_float16(v: Given) -> Values:
    """Squares are computed in float16: from 256 on they are infinite, and the row becomes 0."""
    mean_square = np.square(v.x.astype(np.float16)).mean(-1, np.float64, keepdims=True)  # (T, 1)
    return {"y": v.x / np.sqrt(mean_square + v.eps) * v.scale}


@mistake("activations-in-8-bits", "linear")
def activations_in_8_bits(v: Given) -> Values:
    """Each token is rounded to 255 steps between ± its largest entry, as 8-bit kernels do."""
    step = np.abs(v.x).max(-1, keepdims=True) / 127.0  # (T, 1)
    rounded = np.rint(v.x / step) * step
    return {"y": rounded @ v.weight.astype(np.float64).T + v.bias}


# --- router and experts ---


@mistake("tie-chosen-twice", "router")
def tie_chosen_twice(v: Given) -> Values:
    """Chosen logits are looked up by value, which gives the first of several equal experts."""

    def choose(right: Right, at: OpContext, logits: Array) -> Array:
        chosen = np.take_along_axis(logits, right(at, logits), -1)  # (T, A)
        found: Array = np.argmax(logits[:, None] == chosen[..., None], -1)
        return found

    return _right("router", v, choose=choose)


@mistake("tie-struck-out", "router")
def tie_struck_out(v: Given) -> Values:
    """After each choice all equal logits are removed, also those of other experts."""

    def choose(right: Right, at: OpContext, logits: Array) -> Array:
        logits, chosen = logits.copy(), []
        for _ in range(at.config.experts_per_token):
            chosen.append(np.argmax(logits, -1))
            logits[logits == logits.max(-1, keepdims=True)] = -np.inf
        return np.stack(chosen, -1)

    return _right("router", v, choose=choose)


@mistake("unchosen-times-zero", "experts")
def unchosen_times_zero(v: Given) -> Values:
    """Every expert is computed, and those not chosen are multiplied by 0, which keeps NaN."""
    experts, tokens = len(v.mlp1_bias), len(v.x)
    weights = np.zeros((tokens, experts))
    np.put_along_axis(weights, v.indices.astype(np.int64), v.weights.astype(np.float64), -1)
    every = np.tile(np.arange(experts), (tokens, 1))
    return _right("experts", Given(**{**vars(v), "indices": every, "weights": weights}))


# --- MXFP4 ---


@mistake("subnormal-codes-missing", "mxfp4_decode")
def subnormal_codes_missing(v: Given) -> Values:
    """Codes 0 and 1 are read with a leading one like the others: as ½ and ¾, not 0 and ½."""
    values, size = _decoded_under(v, 1.0), _size(v)
    small = np.abs(values)
    read = np.where(small == 0, 0.5, np.where(small == 0.5, 0.75, small))
    return {"values": np.copysign(read, values) * size}


@mistake("negative-zero-decoded", "mxfp4_decode")
def negative_zero_decoded(v: Given) -> Values:
    """Code 8 decodes to +0, for instance by a table of integers."""
    return {"values": _right("mxfp4_decode", v)["values"] + 0.0}


@mistake("subnormals-flushed", "mxfp4_decode")
def subnormals_flushed(v: Given) -> Values:
    """Values below 2⁻¹²⁶ become 0, as in arithmetic that flushes subnormal numbers."""
    values = _right("mxfp4_decode", v)["values"]
    return {"values": np.where(np.abs(values) < 2.0**-126, np.copysign(0, values), values)}


@mistake("scales-in-float16", "mxfp4_decode")
def scales_in_float16(v: Given) -> Values:
    """Scales are stored in float16: from 2¹⁶ on they are infinite, below 2⁻²⁴ they are 0."""
    return {"values": _decoded_under(v, _size(v).astype(np.float16).astype(np.float64))}


@mistake("scales-signed", "mxfp4_decode")
def scales_signed(v: Given) -> Values:
    """Scale bytes are read as signed: from 128 on they are worth 2^(byte − 383)."""
    signed = _bytes(v).astype(np.int8).astype(np.int64)
    return {"values": _decoded_under(v, np.ldexp(1.0, signed - mxfp4.SCALE_BIAS))}


@mistake("scale-255-saturated", "mxfp4_decode")
def scale_255_saturated(v: Given) -> Values:
    """A scale byte of 255 counts as 254, the largest scale: neither NaN nor 2¹²⁸."""
    return _right("mxfp4_decode", Given(blocks=v.blocks, scales=np.minimum(v.scales, 254)))


@mistake("scale-255-infinite", "mxfp4_decode")
def scale_255_infinite(v: Given) -> Values:
    """A scale byte becomes the exponent field of a float32: under 255 even ±½ is infinite."""
    return {"values": _decoded_under(v, np.where(_bytes(v) == 255, np.inf, _size(v)))}


def _bytes(v: Given) -> Array:
    """The scale byte of each value (N, M)."""
    return np.repeat(v.scales, MXFP4_BLOCK, -1)


def _size(v: Given) -> Array:
    """2^(byte − 127) of each value (N, M), also for byte 255."""
    return np.ldexp(1.0, _bytes(v).astype(np.int64) - mxfp4.SCALE_BIAS)


def _decoded_under(v: Given, size: Array | float) -> Array:
    """Codes (N, M) as numbers, times ``size`` instead of their scales."""
    ones = np.full_like(v.scales, mxfp4.SCALE_BIAS)
    return _right("mxfp4_decode", Given(blocks=v.blocks, scales=ones))["values"] * size


@mistake("half-away-from-zero", "mxfp4_encode")  # aiter#3992
def half_away_from_zero(v: Given) -> Values:
    """Values half-way between two codes go to the larger one, not to the even one."""
    x = v.values.astype(np.float64)
    above = np.nextafter(x, np.copysign(np.inf, x))
    return _encoded(np.where(x == 0, x, above))


@mistake("scale-fitted", "mxfp4_encode")
def scale_fitted(v: Given) -> Values:
    """The scale is the smallest without saturation, not that of the MX specification."""
    return dict(zip(("blocks", "scales"), mxfp4.encode(v.values, rule="fit"), strict=True))


@mistake("negative-zero-encoded", "mxfp4_encode")
def negative_zero_encoded(v: Given) -> Values:
    """The sign is computed as x < 0, so that −0 gets code 0."""
    return _encoded(v.values + np.float32(0))


def _encoded(values: Array) -> Values:
    return _right("mxfp4_encode", Given(values=values))


# --- sampling ---


@mistake("top-k-cuts-ties", "sampling")
def top_k_cuts_ties(v: Given) -> Values:
    """If several logits equal the k-th, only the first ones are kept, k in total."""
    logits, k = v.logits.astype(np.float64), v.top_k
    if k:
        logits[np.argsort(-logits, kind="stable")[k:]] = -np.inf
    return {"probabilities": token_probabilities(logits, v.temperature, 0, v.top_p)}


@mistake("top-p-stops-short", "sampling")
def top_p_stops_short(v: Given) -> Values:
    """The token that crosses top_p is dropped, unless it is the likeliest one."""
    p = token_probabilities(v.logits, v.temperature, v.top_k)
    order = np.argsort(-p, kind="stable")
    beyond = np.cumsum(p[order]) > v.top_p
    if v.top_p < 1:  # beyond 1 there is only rounding
        p[order[1:][beyond[1:]]] = 0
    return {"probabilities": p / p.sum()}


@mistake("top-p-before-the-rest", "sampling")
def top_p_before_the_rest(v: Given) -> Values:
    """top_p is applied to the softmax of the original logits, before temperature and top-k."""
    kept = token_probabilities(v.logits, 1.0, 0, v.top_p) > 0
    logits = np.where(kept, v.logits, -np.inf)
    return {"probabilities": token_probabilities(logits, v.temperature, v.top_k)}


@mistake("exp-overflows", "sampling")
def exp_overflows(v: Given) -> Values:
    """exp is taken without subtracting the largest logit: from 710 on it is infinite, then NaN."""
    kept = token_probabilities(v.logits, v.temperature, v.top_k, v.top_p) > 0
    exp = np.where(kept, np.exp(v.logits.astype(np.float64) / v.temperature), 0)
    return {"probabilities": exp / exp.sum()}


MISTAKES: tuple[Mistake, ...] = (
    *(eps_missing, squares_in_float16, activations_in_8_bits),
    *(tie_chosen_twice, tie_struck_out, unchosen_times_zero),
    *(subnormal_codes_missing, negative_zero_decoded, subnormals_flushed),
    *(scales_in_float16, scales_signed, scale_255_saturated, scale_255_infinite),
    *(half_away_from_zero, scale_fitted, negative_zero_encoded),
    *(top_k_cuts_ties, top_p_stops_short, top_p_before_the_rest, exp_overflows),
    *GRADIENT_MISTAKES,
)
"""Every mistake, in the order of the operations."""
