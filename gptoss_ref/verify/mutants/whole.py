"""Bugs of the model around its layers: norms, residuals, the embedding, and the range of floats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gptoss_ref.numerics import BFLOAT16, FLOAT64, Array, widen
from gptoss_ref.verify.mutants.mutant import (
    Change,
    Mutant,
    Parameter,
    Right,
    Variant,
    bug,
    misread,
    replacing,
    rewriting,
)
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.weights import BlockWeights, ExpertMatrix, Matrix, ModelWeights

USUAL_EPS = 1e-6
"""The epsilon of most other models."""


@bug(
    "norm-scale-after-cast",
    op="rmsnorm",
    stage="attn.norm",
    consequence="Every normalised value is rounded twice.",
    note="An error of half a bfloat16 step: it shows only if all values are rounded to bfloat16 at "
    "the right points.",
    variants=lambda config, tokens: (
        Variant("rounded to float16", replacing(rmsnorm=_cast_to_float16)),
    ),
)
def norm_scale_after_cast(right: Right, at: OpContext, x: Array, scale: Matrix) -> Array:
    """The normalised vector is rounded to bfloat16 before the scale multiplies it."""
    return _scaled(BFLOAT16.round(_unit(right, at, x, scale)), at, scale)


def _unit(right: Right, at: OpContext, x: Array, scale: Matrix) -> Array:
    """The normalised vector before its scale, in float64 so that nothing has rounded it yet."""
    wide = dataclasses.replace(at, policy=FLOAT64)
    unit: Array = right(wide, x, np.ones(scale.shape))
    return unit


def _scaled(unit: Array, at: OpContext, scale: Matrix) -> Array:
    return at.policy.round(unit.astype(at.policy.dtype) * widen(scale, at.policy.dtype))


def _cast_to_float16(right: Right, at: OpContext, x: Array, scale: Matrix) -> Array:
    return _scaled(_unit(right, at, x, scale).astype(np.float16), at, scale)


@bug(
    "norm-eps",
    op="rmsnorm",
    stage="attn.norm",
    consequence="Small vectors are scaled up too far; large ones hardly change.",
    note="With a mean square of 1 the change is 4.5e-6: it shows if vectors are small, as "
    "embeddings may be. The variants are other epsilons.",
    obstacle=lambda config, weights: (
        f"rms_norm_eps is {USUAL_EPS:g}" if config.rms_norm_eps == USUAL_EPS else None
    ),
    variants=lambda config, tokens: (
        Variant(f"epsilon {eps:g}", replacing(rmsnorm=_with_eps(eps)))
        for eps in (1e-12, 1e-8, 1e-5, 1e-3)
        if eps != config.rms_norm_eps
    ),
    parameter=Parameter(
        "epsilon",
        lambda eps: replacing(rmsnorm=_with_eps(eps)),
        lambda config: config.rms_norm_eps,
        low=lambda config, tokens: 1e-13,
        high=lambda config, tokens: 1e2,
    ),
)
def norm_eps(right: Right, at: OpContext, x: Array, scale: Matrix) -> Array:
    """Epsilon is 1e-6, as in most other models, instead of 1e-5."""
    return _with_eps(USUAL_EPS)(right, at, x, scale)


def _with_eps(eps: float) -> Callable[..., Array]:
    """RMSNorm with another epsilon."""

    def norm(right: Right, at: OpContext, x: Array, scale: Matrix) -> Array:
        y: Array = right(misread(at, rms_norm_eps=eps), x, scale)
        return y

    return norm


@bug(
    "residual-missing",
    op="residual",
    stage="attn.residual",
    consequence="The residual stream holds only the result of the last layer.",
    note="Modelled after attention and after the experts; the variants forget one of the two.",
    variants=lambda config, tokens: (
        Variant(f"at {tap} only", replacing(residual=_forgetting(tap)))
        for tap in ("attn.residual", "mlp.residual")
    ),
)
def residual_missing(right: Right, at: OpContext, x: Array, out: Array) -> Array:
    """A layer's result replaces the residual stream instead of being added to it."""
    return _forgetting(at.tap)(right, at, x, out)


def _forgetting(tap: str) -> Callable[..., Array]:
    """Residuals of which those at ``tap`` are missing."""

    def residual(right: Right, at: OpContext, x: Array, out: Array) -> Array:
        y: Array = right(at, np.zeros_like(x) if at.tap == tap else x, out)
        return y

    return residual


@bug(
    "embedding-scaled",
    op="embedding",
    stage="embedding",
    consequence="The residual stream begins too large by a factor of √D (54 in the released "
    "models), so the layers hardly change it.",
)
def embedding_scaled(right: Right, at: OpContext, tokens: Array, weight: Matrix) -> Array:
    """Embeddings are multiplied by √D, as in some other models."""
    rows: Array = right(at, tokens, weight)
    return at.policy.round(rows * math.sqrt(rows.shape[-1]))


@bug(
    "float16-overflow",
    op="residual",
    stage="attn.residual",
    consequence="Infinities in the residual stream, then NaN everywhere.",
    reports=("onnxruntime-genai#2444", "ROCm/hip-ep#168"),
    note="Shows only if the stream exceeds 65,504: in the last layers of the 120b model, where "
    "layer 34 reaches 45,344; not in small models.",
)
def float16_overflow(right: Right, at: OpContext, x: Array, out: Array) -> Array:
    """The residual stream is held in float16 and overflows."""
    y: Array = right(at, x, out)
    with np.errstate(over="ignore"):
        beyond = np.isinf(y.astype(np.float16))
    return np.where(beyond, np.copysign(np.inf, y), y)


@dataclass(frozen=True)
class _Folded:
    """A large matrix (…, N, M) whose columns a scale (M,) multiplies, not yet multiplied."""

    matrix: ExpertMatrix
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape

    def __getitem__(self, expert: int) -> _Folded:
        return _Folded(self.matrix[expert], self.scale)


ATTENTION, EXPERTS, HEAD = "attention", "experts", "the unembedding"


def _folded_into(*parts: str) -> Change:
    """The norms' scales multiplied into the matrices that read them, in some parts of the model."""

    def fold(right: Right, at: OpContext, block: BlockWeights) -> BlockWeights:
        block = right(at, block)
        attn, mlp = block.attn, block.mlp
        before, between = (widen(w.norm_scale, FLOAT64.dtype) for w in (attn, mlp))
        if ATTENTION in parts:
            readers = ("q_weight", "k_weight", "v_weight")
            folded = {name: widen(getattr(attn, name), FLOAT64.dtype) * before for name in readers}
            attn = dataclasses.replace(attn, norm_scale=np.ones_like(before), **folded)
        if EXPERTS in parts:
            mlp = dataclasses.replace(
                mlp,
                norm_scale=np.ones_like(between),
                gate_weight=widen(mlp.gate_weight, FLOAT64.dtype) * between,
                mlp1_weight=cast(ExpertMatrix, _Folded(mlp.mlp1_weight, between)),
            )
        return BlockWeights(attn, mlp)

    def decode(right: Right, at: OpContext, matrix: ExpertMatrix | _Folded) -> Array:
        if isinstance(matrix, _Folded):
            folded: Array = right(at, matrix.matrix) * matrix.scale.astype(at.policy.dtype)
            return folded
        values: Array = right(at, matrix)
        return values

    def fold_last(right: Right, at: OpContext, weights: ModelWeights) -> ModelWeights:
        weights = right(at, weights)
        scale = widen(weights.norm_scale, FLOAT64.dtype)
        unembedding = cast(Matrix, _Folded(weights.unembedding, scale))
        return dataclasses.replace(weights, norm_scale=np.ones_like(scale), unembedding=unembedding)

    def project(
        right: Right, at: OpContext, x: Array, weight: Matrix | _Folded, bias: Matrix
    ) -> Array:
        if isinstance(weight, _Folded):
            x, weight = x * weight.scale.astype(at.policy.dtype), cast(Matrix, weight.matrix)
        y: Array = right(at, x, weight, bias)
        return y

    changes: dict[str, Callable[..., Any]] = {}
    if {ATTENTION, EXPERTS} & set(parts):
        changes["block_weights"] = fold
    if EXPERTS in parts:
        changes["expert_matrix"] = decode
    if HEAD in parts:
        changes |= {"end_weights": fold_last, "linear": project}
    return replacing(**changes)


@rewriting(
    "norm-scale-folded",
    stage="attn.norm",
    touches="attn.norm mlp.norm norm",
    consequence="Normalised vectors lack their scale; what is projected from them is the same.",
    variants=lambda config, tokens: (
        Variant(f"into {part} only", _folded_into(part)) for part in (ATTENTION, EXPERTS, HEAD)
    ),
)
def norm_scale_folded(ops: ModelOps) -> ModelOps:
    """The norms' scales are multiplied into the matrices that read them, at loading."""
    return _folded_into(ATTENTION, EXPERTS, HEAD)(ops)


WHOLE: tuple[Mutant, ...] = (
    norm_scale_after_cast,
    norm_eps,
    residual_missing,
    embedding_scaled,
    float16_overflow,
)
REWRITINGS: tuple[Mutant, ...] = (norm_scale_folded,)
