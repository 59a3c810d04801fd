"""Bugs of the backward pass of the router and its load-balancing loss."""

from __future__ import annotations

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.gradients import operations as at
from gptoss_ref.verify.gradients.mutants.mutant import GradientMutant, bug, zero
from gptoss_ref.verify.gradients.operations import BlockContext, Compute


@bug(
    "router-weights-detached",
    stages="grad.mlp.expert_weights grad.mlp.router_logits",
    consequence="The router trains on the load-balancing loss alone, or not at all.",
    reports=("Robust-MoE-Dual-Model#2",),
)
def router_weights_detached(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The router's weights are detached: the experts' answers give the router no gradient."""
    return zero(right, ctx, *arguments)


@bug(
    "router-softmax-over-all-in-backward",
    stages="grad.mlp.router_logits",
    consequence="Experts that were not chosen get a gradient, and the chosen ones a smaller one.",
)
def router_softmax_over_all(
    right: Compute,
    ctx: BlockContext,
    d_weights: Array,
    weights: Array,
    indices: Array,
    router: Array,
) -> Array:
    """The backward pass is that of a softmax over all experts."""
    exp = np.exp(router - router.max(-1, keepdims=True))
    p = exp / exp.sum(-1, keepdims=True)
    d = np.zeros_like(p)
    np.put_along_axis(d, indices, d_weights.astype(p.dtype), axis=-1)
    return at.with_aux(ctx, ctx.policy.round(p * (d - (p * d).sum(-1, keepdims=True))))


@bug(
    "router-bias-without-gradient",
    stages="grad.weights.mlp.gate_bias",
    consequence="The router's bias does not train.",
)
def router_bias_without_gradient(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The router's bias gets no gradient."""
    return zero(right, ctx, *arguments)


def _aux(times: float | None) -> Compute:
    def compute(
        right: Compute,
        ctx: BlockContext,
        d_w: Array,
        weights: Array,
        indices: Array,
        router: Array,
    ) -> Array:
        found = right(ctx, d_w, weights, indices, router)
        if ctx.aux is None or ctx.layer is None:
            return found
        factor = (1 / ctx.coefficient if times is None else times) - 1
        return ctx.policy.round(found + factor * ctx.aux(ctx.layer, False))

    return compute


def _aux_bug(
    times: float | None, name: str, summary: str, consequence: str, *reports: str
) -> GradientMutant:
    compute = _aux(times)
    compute.__doc__ = summary
    stage = "grad.mlp.router_logits"
    return bug(name, stages=stage, consequence=consequence, reports=reports)(compute)


@bug(
    "auxiliary-loss-of-softmaxed-logits",
    stages="grad.mlp.router_logits",
    consequence="The probabilities are nearly uniform: the loss balances nothing.",
    reports=("transformers#45120", "transformers#45315"),
)
def auxiliary_of_softmaxed(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The load-balancing loss applies softmax to probabilities."""
    found = right(ctx, *arguments)
    if ctx.aux is None or ctx.layer is None:
        return found
    return ctx.policy.round(found - ctx.aux(ctx.layer, False) + ctx.aux(ctx.layer, True))


ROUTING: tuple[GradientMutant, ...] = (
    router_weights_detached,
    router_softmax_over_all,
    router_bias_without_gradient,
    auxiliary_of_softmaxed,
    _aux_bug(
        2.0,
        "auxiliary-loss-twice",
        "The load-balancing loss is added twice.",
        "Experts are balanced at the cost of the answers.",
    ),
    _aux_bug(
        None,
        "auxiliary-loss-unscaled",
        "The load-balancing loss is added without its coefficient.",
        "Balance outweighs everything else.",
        "Automodel#1408",
    ),
    _aux_bug(
        0.0,
        "auxiliary-loss-without-gradient",
        "The load-balancing loss is part of the loss, but its gradient is missing.",
        "A part of the printed loss is not minimised.",
        "Automodel#1408",
        "Automodel#1412",
    ),
)
