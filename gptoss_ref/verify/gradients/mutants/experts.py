"""Bugs of the backward pass of the experts and their activation."""

from __future__ import annotations

import numpy as np

from gptoss_ref.numerics import Array, widen
from gptoss_ref.verify.gradients.mutants.mutant import GradientMutant, bug, zero
from gptoss_ref.verify.gradients.operations import BlockContext, Compute


def _derivative(
    ctx: BlockContext, d: Array, x: Array, *, alpha: float | None = None, plus: float = 1.0
) -> tuple[Array, Array, Array, Array]:
    """dgate, dup, gate and up, without the clamps' zeros, in the given arithmetic."""
    c, limit = ctx.config, ctx.config.swiglu_limit
    gate, up = x[..., 0::2], x[..., 1::2]
    g, u = np.minimum(gate, limit), np.clip(up, -limit, limit)
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-c.swiglu_alpha * g))
    inner = c.swiglu_alpha if alpha is None else alpha
    return d * (u + plus) * (s + inner * g * s * (1 - s)), d * g * s, gate, up


def _interleaved(ctx: BlockContext, d_gate: Array, d_up: Array) -> Array:
    return ctx.policy.round(np.stack([d_gate, d_up], -1).reshape(*d_gate.shape[:-1], -1))


GATE_UP = "grad.mlp.gate_up"


@bug(
    "clamp-gradient-passed",
    stages=GATE_UP,
    consequence="Gates and ups beyond the clamp keep changing, although the output does not depend "
    "on them.",
)
def clamp_gradient_passed(right: Compute, ctx: BlockContext, d: Array, x: Array) -> Array:
    """The gradient passes the clamps as if they were not there."""
    d_gate, d_up, _, _ = _derivative(ctx, d, x)
    return _interleaved(ctx, d_gate, d_up)


@bug(
    "clamp-gradient-of-both-sides",
    stages=GATE_UP,
    consequence="Gates below −7 get no gradient, and never come back.",
)
def clamp_gradient_of_both_sides(right: Compute, ctx: BlockContext, d: Array, x: Array) -> Array:
    """The gate's gradient is stopped below −7 too, where the gate is not clamped."""
    found = right(ctx, d, x).copy()
    found[..., 0::2][x[..., 0::2] < -ctx.config.swiglu_limit] = 0
    return found


@bug(
    "clamp-gradient-on-the-wrong-side",
    stages=GATE_UP,
    consequence="Only clamped values get a gradient.",
)
def clamp_gradient_on_the_wrong_side(
    right: Compute, ctx: BlockContext, d: Array, x: Array
) -> Array:
    """The gradient is stopped within the clamps and passes beyond them."""
    d_gate, d_up, gate, up = _derivative(ctx, d, x)
    limit = ctx.config.swiglu_limit
    return _interleaved(
        ctx, np.where(gate <= limit, 0, d_gate), np.where(np.abs(up) <= limit, 0, d_up)
    )


def _clamped(ctx: BlockContext, d_gate: Array, d_up: Array, gate: Array, up: Array) -> Array:
    limit = ctx.config.swiglu_limit
    return _interleaved(
        ctx, np.where(gate <= limit, d_gate, 0), np.where(np.abs(up) <= limit, d_up, 0)
    )


@bug(
    "alpha-missing-in-derivative",
    stages=GATE_UP,
    consequence="Gates get the derivative of SiLU's second term: too small around zero.",
)
def alpha_missing(right: Compute, ctx: BlockContext, d: Array, x: Array) -> Array:
    """The sigmoid's derivative lacks the factor α = 1.702."""
    return _clamped(ctx, *_derivative(ctx, d, x, alpha=1.0))


@bug(
    "up-without-one-in-derivative",
    stages=GATE_UP,
    consequence="Gates whose up is near zero do not train.",
)
def up_without_one(right: Compute, ctx: BlockContext, d: Array, x: Array) -> Array:
    """The gate's gradient is multiplied by up instead of up + 1."""
    return _clamped(ctx, *_derivative(ctx, d, x, plus=0.0))


@bug(
    "gate-and-up-gradients-swapped",
    stages=GATE_UP,
    consequence="Each trains on the other's gradient.",
    note="The backward kernel reads interleaved rows as halves, or the reverse.",
)
def gate_and_up_swapped(right: Compute, ctx: BlockContext, d: Array, x: Array) -> Array:
    """The gradients of gate and up are written to each other's place."""
    found = right(ctx, d, x)
    return np.stack([found[..., 1::2], found[..., 0::2]], -1).reshape(found.shape)


@bug(
    "router-weight-missing-in-backward",
    stages="grad.mlp.expert_out",
    consequence="Every chosen expert trains as if it alone had answered.",
)
def router_weight_missing(right: Compute, ctx: BlockContext, d_out: Array, weights: Array) -> Array:
    """The gradient of an expert's answer is not multiplied by its router weight."""
    return right(ctx, d_out, np.ones_like(weights))


@bug(
    "expert-bias-missing-in-router-gradient",
    stages="grad.mlp.expert_weights",
    consequence="The router does not learn what the experts' output biases are worth.",
)
def expert_bias_missing(
    right: Compute, ctx: BlockContext, d_out: Array, answers: Array, indices: Array
) -> Array:
    """The router weight's gradient takes the answer without the bias of the down projection."""
    bias = widen(ctx.mlp.mlp2_bias, ctx.policy.dtype)[indices]  # (T, A, D)
    return right(ctx, d_out, answers - bias, indices)


@bug(
    "expert-parallel-gradient-not-summed",
    stages="grad.mlp.norm",
    consequence="Everything below the experts trains on a part of its gradient.",
    reports=("transformers#48205",),
    note="Modelled as two ranks; only the experts of the first one count.",
)
def expert_parallel_not_summed(
    right: Compute, ctx: BlockContext, d_gate_up: Array, d_router: Array, indices: Array
) -> Array:
    """Each rank's gradient covers its own experts, and the ranks' gradients are not summed."""
    own = (indices < ctx.config.num_experts // 2)[..., None]
    return right(ctx, np.where(own, d_gate_up, d_gate_up.dtype.type(0)), d_router, indices)


@bug(
    "unchosen-experts-uninitialised",
    stages="grad.weights.mlp.mlp1_weight grad.weights.mlp.mlp2_weight",
    consequence="NaN from the second step on, or garbage in experts that saw no token.",
    reports=("MSLK#158",),
)
def unchosen_uninitialised(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """A grouped product leaves the gradients of experts without tokens uninitialised."""
    found = right(ctx, *arguments).copy()
    found[np.setdiff1d(np.arange(len(found)), arguments[-1])] = np.nan
    return found


@bug(
    "experts-frozen",
    stages="grad.weights.mlp.mlp1_weight grad.weights.mlp.mlp2_weight",
    consequence="Nine tenths of the parameters do not train, and the loss still falls.",
    reports=("unsloth#6936", "unsloth#3405", "unsloth#4193"),
)
def experts_frozen(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The experts' matrices get no gradient."""
    return zero(right, ctx, *arguments)


@bug(
    "biases-of-unchosen-experts-touched",
    stages="grad.weights.mlp.mlp2_bias grad.weights.mlp.mlp1_bias",
    consequence="Every expert's bias drifts with tokens that it never saw.",
    note="Rows of padding, or of other experts, are not masked in the bias's sum.",
    reports=("maxtext#3699",),
)
def unchosen_biases_touched(right: Compute, ctx: BlockContext, d: Array, indices: Array) -> Array:
    """The bias gradient of an expert sums over all tokens, not over those that chose it."""
    total = d.astype(ctx.policy.dtype).sum((0, 1))
    return ctx.policy.round(np.repeat(total[None], ctx.config.num_experts, 0))


@bug(
    "clamp-boundary-stops",
    stages=GATE_UP,
    consequence="A convention: both are subgradients.",
    reports=("pytorch#195931", "TransformerEngine#3424"),
    note="torch from 2.14 on; torch up to 2.13 passes the gradient there, as this package does.",
    equivalent=True,
)
def clamp_boundary_stops(right: Compute, ctx: BlockContext, d: Array, x: Array) -> Array:
    """The gradient is stopped at exactly 7 and −7, too."""
    limit = ctx.config.swiglu_limit
    found = right(ctx, d, x).copy()
    found[..., 0::2][x[..., 0::2] == limit] = 0
    found[..., 1::2][np.abs(x[..., 1::2]) == limit] = 0
    return found


EXPERTS: tuple[GradientMutant, ...] = (
    clamp_gradient_passed,
    clamp_gradient_of_both_sides,
    clamp_gradient_on_the_wrong_side,
    alpha_missing,
    up_without_one,
    gate_and_up_swapped,
    router_weight_missing,
    expert_bias_missing,
    expert_parallel_not_summed,
    unchosen_uninitialised,
    experts_frozen,
    unchosen_biases_touched,
)
CONVENTIONS: tuple[GradientMutant, ...] = (clamp_boundary_stops,)
