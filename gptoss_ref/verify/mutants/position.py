"""Bugs of position: YaRN's frequencies and concentration, and how RoPE applies them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants.mutant import (
    Mutant,
    Right,
    Variant,
    bug,
    misread,
    no_window,
    no_yarn,
    replacing,
    rewriting,
    stretched,
    usual_chunks,
    whole_number,
)
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.verify.replay.yarn import RIGHT, Parts


def _concentrated_from_the_start(config: ModelConfig) -> int:
    """A wrong concentration shows at position 0, a wrong angle only from position 1 on."""
    return 1 if stretched(config) else 2


@bug(
    "yarn-truncated",
    op="yarn",
    stage="attn.q_rope",
    consequence="Frequencies between the ends of the ramp are off, for the released models by up "
    "to 76 % at pair 17; angles by 0.028 rad at position 128 and 0.9 rad at 4096.",
    shortest=2,
    reports=("vllm#27722", "sglang#14270", "apache/tvm#18576", "keras-hub#2981"),
    note="The angle grows with the position: short prompts hide it among rounding errors.",
    obstacle=no_yarn,
)
def yarn_truncated(right: Right, at: OpContext, parts: Parts = RIGHT) -> tuple[Array, float]:
    """The ends of YaRN's ramp are floored and ceiled to whole pairs."""
    result: tuple[Array, float] = right(at, dataclasses.replace(parts, bounds=_rounded))
    return result


def _rounded(low: float, high: float) -> tuple[float, float]:
    return math.floor(low), math.ceil(high)


@bug(
    "yarn-skipped",
    op="yarn",
    stage="attn.q_rope",
    consequence="Slow pairs turn too fast by the scaling factor, and scores lack the "
    "concentration's square (1.81 for the released models).",
    reports=("TensorRT-Model-Connect#399",),
    obstacle=no_yarn,
)
def yarn_skipped(right: Right, at: OpContext, *parts: Parts) -> tuple[Array, float]:
    """Plain RoPE: the scaling in the configuration is not read, for instance because of a wrong
    key."""
    plain: tuple[Array, float] = right(misread(at, rope_scaling_factor=1.0), *parts)
    return plain


@bug(
    "yarn-no-concentration",
    op="yarn",
    stage="attn.q_rope",
    consequence="Queries and keys are each too short by a factor of 1.35 (in the released models), "
    "so scores are too small by a factor of 1.81 and attention is too flat.",
    obstacle=no_yarn,
)
def yarn_no_concentration(right: Right, at: OpContext, *parts: Parts) -> tuple[Array, float]:
    """Cosines and sines are not multiplied by the concentration."""
    return right(at, *parts)[0], 1.0


@bug(
    "yarn-factor-in-exponent",
    op="yarn",
    stage="attn.q_rope",
    consequence="Slow pairs are divided by factor^(2i/C) instead of by the factor.",
    shortest=2,
    reports=("apache/tvm#18576",),
    note="The angle grows with the position: short prompts hide it among rounding errors.",
    obstacle=no_yarn,
)
def yarn_factor_in_exponent(
    right: Right, at: OpContext, parts: Parts = RIGHT
) -> tuple[Array, float]:
    """The scaling factor multiplies theta, inside the power: 1 / (factor · theta)^(2i/C)."""
    result: tuple[Array, float] = right(at, dataclasses.replace(parts, slow=_slowed_in_the_power))
    return result


def _slowed_in_the_power(config: ModelConfig) -> Array:
    exponent = np.arange(0, config.head_dim, 2) / config.head_dim
    slow: Array = (config.rope_scaling_factor * config.rope_theta) ** -exponent  # (C/2,)
    return slow


@bug(
    "yarn-ramp-over-dims",
    op="yarn",
    stage="attn.q_rope",
    consequence="The ramp lies at half the pair numbers: pairs that should be fast or blended turn "
    "too slowly.",
    shortest=2,
    note="The angle grows with the position: short prompts hide it among rounding errors.",
    obstacle=no_yarn,
)
def yarn_ramp_over_dims(right: Right, at: OpContext, parts: Parts = RIGHT) -> tuple[Array, float]:
    """The ramp runs over the dimensions 2i instead of the pairs i."""
    result: tuple[Array, float] = right(at, dataclasses.replace(parts, step=2))
    return result


@bug(
    "rope-base-10000",
    op="yarn",
    stage="attn.q_rope",
    consequence="Every pair but the first turns at the wrong speed.",
    shortest=2,
    reports=("sglang#30050",),
    obstacle=lambda config, weights: (
        "rope_theta is 10000" if config.rope_theta == 10000.0 else None
    ),
)
def rope_base_10000(right: Right, at: OpContext, *parts: Parts) -> tuple[Array, float]:
    """Theta is 10000, as in most other models, whatever the configuration says."""
    result: tuple[Array, float] = right(misread(at, rope_theta=10000.0), *parts)
    return result


@bug(
    "rope-interleaved",
    op="rope",
    stage="attn.q_rope",
    consequence="Channels are turned with the wrong partner, by the wrong frequency.",
    shortest=2,
    reports=("TensorRT-LLM#16378",),
    obstacle=lambda config, weights: "a head has one pair" if config.head_dim == 2 else None,
)
def rope_interleaved(right: Right, at: OpContext, x: Array, cos: Array, sin: Array) -> Array:
    """Adjacent channels (2i, 2i + 1) are turned together instead of (i, i + C/2)."""
    order = _adjacent_pairs(x.shape[-1])
    turned: Array = right(at, x[..., order], cos, sin)[..., np.argsort(order)]
    return turned


def _adjacent_pairs(channels: int) -> Array:
    """Channels in the order that makes adjacent ones partners of half-split RoPE: (C,)."""
    return np.concatenate([np.arange(0, channels, 2), np.arange(1, channels, 2)])


@bug(
    "rope-twice",
    op="rope",
    stage="attn.q_rope",
    consequence="Angles are doubled and the concentration is squared.",
    shortest=_concentrated_from_the_start,
)
def rope_twice(right: Right, at: OpContext, x: Array, cos: Array, sin: Array) -> Array:
    """Queries and keys are turned twice: once by the projection, once more by attention."""
    twice: Array = right(at, right(at, x, cos, sin), cos, sin)
    return twice


@bug(
    "rope-skipped-on-window-layers",
    op="rope",
    stage="attn.q_rope",
    consequence="Windowed layers ignore positions, and lack the concentration.",
    shortest=_concentrated_from_the_start,
    obstacle=no_window,
)
def rope_skipped_on_window_layers(
    right: Right, at: OpContext, x: Array, cos: Array, sin: Array
) -> Array:
    """Layers with a window get no RoPE."""
    if at.layer is None or at.config.window(at.layer) is None:
        turned: Array = right(at, x, cos, sin)
        return turned
    return x


@bug(
    "rope-position-off-by-one",
    op="rope_tables",
    stage="attn.q_rope",
    consequence="Keys of the first pass are one position too far from all later queries.",
    shortest=2,
    note="Modelled with a first pass of one token; the variants are first passes of usual lengths. "
    "With the whole prompt in one pass the bug does not show.",
    variants=lambda config, tokens: (
        Variant(f"first pass of {length} tokens", replacing(rope_tables=_late_after(length)))
        for length in usual_chunks(tokens)
        if length > 1
    ),
    parameter=whole_number(
        "a first pass of", lambda length: replacing(rope_tables=_late_after(length))
    ),
)
def rope_position_off_by_one(right: Right, *arguments: Any) -> tuple[Array, Array]:
    """Once there is a cache, tokens are turned by one position too many."""
    return _late_after(1)(right, *arguments)


def _late_after(length: int) -> Callable[..., tuple[Array, Array]]:
    """Tables in which everything after the first ``length`` tokens is one position too late."""

    def tables(
        right: Right, at: OpContext, positions: Array, inv_freq: Array, concentration: float
    ) -> tuple[Array, Array]:
        late = positions + (positions >= length)
        found: tuple[Array, Array] = right(at, late, inv_freq, concentration)
        return found

    return tables


@rewriting(
    "yarn-concentration-in-scores",
    stage="attn.q_rope",
    touches="attn.q_rope attn.k_rope",
    consequence="Queries and keys after RoPE are shorter; scores are the same.",
)
def yarn_concentration_in_scores(ops: ModelOps) -> ModelOps:
    """The concentration's square multiplies the scores, and RoPE does not change lengths."""

    def unit(right: Right, at: OpContext, *parts: Parts) -> tuple[Array, float]:
        return right(at, *parts)[0], 1.0

    def concentrated(right: Right, at: OpContext, q: Array, *rest: Any) -> Array:
        weights: Array = right(at, q * at.policy.dtype.type(ops.yarn(at)[1] ** 2), *rest)
        return weights

    return replacing(yarn=unit, attention_weights=concentrated)(ops)


@rewriting(
    "positions-from-one",
    op="rope_tables",
    stage="attn.q_rope",
    touches="attn.q_rope attn.k_rope",
    consequence="Queries and keys are turned further, by the same angle; scores depend on "
    "differences only.",
)
def positions_from_one(
    right: Right, at: OpContext, positions: Array, inv_freq: Array, concentration: float
) -> tuple[Array, Array]:
    """Positions are counted from one."""
    tables: tuple[Array, Array] = right(at, positions + 1, inv_freq, concentration)
    return tables


@rewriting(
    "rope-pairs-adjacent",
    stage="attn.q",
    touches="attn.q attn.k attn.q_rope attn.k_rope",
    consequence="Channels of queries and keys are in another order; scores are the same.",
)
def rope_pairs_adjacent(ops: ModelOps) -> ModelOps:
    """Rows of q and k are reordered at loading so that RoPE can turn adjacent channels."""

    def reorder(right: Right, at: OpContext, block: Any) -> Any:
        block = right(at, block)
        order = np.argsort(_adjacent_pairs(at.config.head_dim))

        def rows(matrix: Array) -> Array:
            heads = matrix.reshape(-1, at.config.head_dim, *matrix.shape[1:])[:, order]
            return heads.reshape(matrix.shape)

        names = ("q_weight", "q_bias", "k_weight", "k_bias")
        swapped = {name: rows(getattr(block.attn, name)) for name in names}
        return dataclasses.replace(block, attn=dataclasses.replace(block.attn, **swapped))

    return rope_interleaved.apply(replacing(block_weights=reorder)(ops))


POSITION: tuple[Mutant, ...] = (
    yarn_truncated,
    yarn_skipped,
    yarn_no_concentration,
    yarn_factor_in_exponent,
    yarn_ramp_over_dims,
    rope_base_10000,
    rope_interleaved,
    rope_twice,
    rope_skipped_on_window_layers,
    rope_position_off_by_one,
)
REWRITINGS: tuple[Mutant, ...] = (
    yarn_concentration_in_scores,
    positions_from_one,
    rope_pairs_adjacent,
)
