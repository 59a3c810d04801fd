"""Bugs of the router: which experts are chosen, and how their answers are weighed."""

from __future__ import annotations

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import BFLOAT16, FLOAT64, Array, widen
from gptoss_ref.verify.mutants.mutant import Mutant, Right, bug, replacing, rewriting
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.weights import Matrix, ModelWeights


def _every_expert_chosen(config: ModelConfig, weights: ModelWeights) -> str | None:
    chosen_all = config.experts_per_token == config.num_experts
    return "every expert is chosen for every token" if chosen_all else None


@bug(
    "softmax-before-topk",
    op="expert_weights",
    stage="mlp.expert_weights",
    consequence="Expert weights sum to less than one: every answer of the experts is too small.",
    reports=("torchtitan#2258",),
    note="With renormalisation over the chosen experts it is the right function.",
    obstacle=_every_expert_chosen,
)
def softmax_before_topk(right: Right, at: OpContext, logits: Array, indices: Array) -> Array:
    """The softmax is taken over all experts, and the chosen ones' shares are not renormalised."""
    return at.policy.round(_shares_of_all(right, at, logits, indices))


def _shares_of_all(right: Right, at: OpContext, logits: Array, indices: Array) -> Array:
    """The chosen experts' (T, A) shares of a softmax over all experts (T, E)."""
    descending = np.argsort(-logits, axis=-1, kind="stable")  # (T, E)
    shares = np.empty_like(logits)
    np.put_along_axis(shares, descending, right(at, logits, descending), axis=-1)
    return np.take_along_axis(shares, indices, axis=-1)


@bug(
    "router-bias-missing",
    op="linear",
    stage="mlp.router_logits",
    consequence="Logits are off by a constant per expert: other experts are chosen and weighed "
    "otherwise.",
    reports=("torchtitan#2258",),
    obstacle=lambda config, weights: (
        None
        if any(np.any(widen(block.mlp.gate_bias, FLOAT64.dtype)) for block in weights.blocks)
        else "every bias of the routers is zero"
    ),
)
def router_bias_missing(
    right: Right, at: OpContext, x: Array, weight: Matrix, bias: Matrix | None
) -> Array:
    """The router's bias is not loaded or not added."""
    y: Array = right(at, x, weight, None if at.tap == "mlp.router_logits" else bias)
    return y


@bug(
    "router-bf16",
    op="linear",
    stage="mlp.router_logits",
    consequence="Logits change by up to 2⁻⁸ of their size; if the margin between the last chosen "
    "expert and the next one is smaller, another one is chosen.",
    reports=("vllm#58076",),
    note="A difference of rounding and not an error: the OpenAI reference rounds there too.",
)
def router_bf16(
    right: Right, at: OpContext, x: Array, weight: Matrix, bias: Matrix | None
) -> Array:
    """The router's logits are rounded to bfloat16 in an otherwise wider computation."""
    y: Array = right(at, x, weight, bias)
    return at.policy.round(BFLOAT16.round(y)) if at.tap == "mlp.router_logits" else y


@rewriting(
    "softmax-before-topk-renormalised",
    op="expert_weights",
    stage="mlp.expert_weights",
    consequence="None: the same function, rounded differently.",
)
def softmax_before_topk_renormalised(
    right: Right, at: OpContext, logits: Array, indices: Array
) -> Array:
    """The softmax is taken over all experts, and the chosen ones' shares are renormalised."""
    shares = _shares_of_all(right, at, logits, indices)
    return at.policy.round(shares / shares.sum(axis=-1, keepdims=True))


@rewriting(
    "experts-unsorted",
    stage="mlp.expert_indices",
    touches="mlp.expert_indices mlp.expert_weights mlp.gate_up mlp.swiglu mlp.expert_out",
    consequence="A token's experts are listed in another order, with their weights and answers.",
)
def experts_unsorted(ops: ModelOps) -> ModelOps:
    """A token's chosen experts are listed by index instead of by descending logit."""

    def by_number(right: Right, at: OpContext, logits: Array) -> Array:
        return np.sort(right(at, logits), axis=-1)

    def largest_first(right: Right, at: OpContext, logits: Array, indices: Array) -> Array:
        chosen = np.take_along_axis(logits, indices, axis=-1)  # (T, A)
        order = np.argsort(-chosen, axis=-1, kind="stable")
        shares = np.empty_like(chosen)
        sorted_shares = right(at, logits, np.take_along_axis(indices, order, axis=-1))
        np.put_along_axis(shares, order, sorted_shares, axis=-1)
        return shares

    return replacing(choose=by_number, expert_weights=largest_first)(ops)


ROUTING: tuple[Mutant, ...] = (softmax_before_topk, router_bias_missing)
TIES: tuple[Mutant, ...] = (router_bf16,)
REWRITINGS: tuple[Mutant, ...] = (softmax_before_topk_renormalised, experts_unsorted)
