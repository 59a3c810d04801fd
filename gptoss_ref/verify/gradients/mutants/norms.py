"""Bugs of the backward pass of RMSNorm and of the residual stream."""

from __future__ import annotations

import numpy as np

from gptoss_ref.numerics import Array, widen
from gptoss_ref.verify.gradients.mutants.mutant import GradientMutant, bug, name_of, zero
from gptoss_ref.verify.gradients.operations import BlockContext, Compute

NORMS = "grad.attn.residual grad.mlp.residual grad.embedding"


@bug(
    "norm-second-term-missing",
    stages=NORMS,
    consequence="The gradient keeps a component along x, which has no effect on the output.",
    reports=("attorch#17",),
)
def norm_second_term_missing(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """RMSNorm's backward treats the root mean square as a constant."""
    *past, d_norm, x = arguments
    scale = _scale(right, ctx)
    root = np.sqrt(np.mean(x * x, -1, keepdims=True) + ctx.config.rms_norm_eps)
    d = ctx.policy.round(d_norm * widen(scale, ctx.policy.dtype) / root.astype(x.dtype))
    return ctx.policy.round(past[0] + d) if past else d


@bug(
    "norm-without-gradient",
    stages=NORMS,
    consequence="Gradients pass each block only along the residual stream.",
    reports=("candle#3526",),
)
def norm_without_gradient(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The fused RMSNorm has no backward: no gradient goes through attention and experts."""
    *past, _, x = arguments
    return past[0] if past else np.zeros_like(x)


@bug(
    "residual-gradient-dropped",
    stages="grad.attn.residual grad.embedding grad.mlp.residual",
    consequence="Gradients vanish within a few blocks; only the last ones train.",
    reports=("entrenar#313",),
)
def residual_gradient_dropped(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The gradient along the residual stream is not added."""
    if len(arguments) == 2:  # the last norm has no residual around it
        return right(ctx, *arguments)
    return right(ctx, np.zeros_like(arguments[0]), *arguments[1:])


NORM_SCALES = "grad.weights.attn.norm_scale grad.weights.mlp.norm_scale grad.weights.norm_scale"


@bug(
    "norm-scale-without-gradient",
    stages=NORM_SCALES,
    consequence="The norms' scales do not train.",
    reports=("unsloth#4533", "unsloth#4550"),
)
def norm_scale_without_gradient(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """RMSNorm's backward returns nothing for the scale."""
    return zero(right, ctx, *arguments)


@bug(
    "norm-scale-gradient-unnormalised",
    stages=NORM_SCALES,
    consequence="The scales' gradients grow with the residual stream.",
)
def norm_scale_gradient_unnormalised(
    right: Compute, ctx: BlockContext, d_y: Array, x: Array
) -> Array:
    """The gradient of the scale multiplies dy with x instead of with the normalised x."""
    found: Array = (d_y * x).sum(0)
    return found


def _scale(right: Compute, ctx: BlockContext) -> Array:
    if name_of(right) == "last_residual":
        return ctx.weights.norm_scale
    return (ctx.mlp if name_of(right) == "into_mlp" else ctx.attn).norm_scale


NORMS_AND_RESIDUALS: tuple[GradientMutant, ...] = (
    norm_second_term_missing,
    norm_without_gradient,
    residual_gradient_dropped,
    norm_scale_without_gradient,
    norm_scale_gradient_unnormalised,
)
