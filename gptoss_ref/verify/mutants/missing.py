"""Bugs of loading by name: a tensor is not loaded, or its rows are in another order.

Such a bug need not affect every block: the search applies it to the blocks and tap points that show
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT64, Array, widen
from gptoss_ref.verify.mutants.mutant import (
    Change,
    Mutant,
    Obstacle,
    Right,
    Variant,
    bug,
    replacing,
    rewriting,
)
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.weights import BlockWeights, Matrix, ModelWeights

NORMS = ("NVIDIA-NeMo/Megatron-Bridge#1423", "huggingface/optimum-neuron#232")
BIASES = ("NVIDIA-NeMo/Megatron-Bridge#1423", "vllm#29008", "NVIDIA-NeMo/Automodel#3920")


@bug(
    "norm-scale-missing",
    op="rmsnorm",
    stage="attn.norm",
    consequence="Channels keep the size that they have in the residual stream.",
    reports=NORMS,
)
def norm_scale_missing(right: Right, at: OpContext, x: Array, scale: Matrix) -> Array:
    """A norm's weight was never loaded and is all ones."""
    y: Array = right(at, x, np.ones(np.shape(scale)))
    return y


@bug(
    "norm-scale-plus-one",
    op="rmsnorm",
    stage="attn.norm",
    consequence="Every channel is larger by its normalised value, and those of small scale most.",
    reports=("Blaizzy/mlx-vlm#2041", "ml-explore/mlx-lm#1623"),
    note="Gemma's convention, whose checkpoints store the scale minus 1. The reports are of Qwen "
    "models, whose checkpoints exist in both conventions.",
)
def norm_scale_plus_one(right: Right, at: OpContext, x: Array, scale: Matrix) -> Array:
    """The normalised vector is multiplied by 1 + scale instead of scale."""
    y: Array = right(at, x, 1 + widen(scale, FLOAT64.dtype))
    return y


def _equal_norms(config: ModelConfig, weights: ModelWeights) -> str | None:
    pairs = ((b.attn.norm_scale, b.mlp.norm_scale) for b in weights.blocks)
    equal = all(np.array_equal(one, other) for one, other in pairs)
    return "both norms of every block are equal" if equal else None


@bug(
    "norms-swapped",
    op="block_weights",
    stage="attn.norm",
    consequence="Channels have the size that is right for the other half of the block.",
    reports=("NVIDIA-NeMo/Megatron-Bridge#4200",),
    note="Both norms of a block have the same shape, so no error is raised. The report is about a "
    "Gemma model, in which one norm was loaded in place of another.",
    obstacle=_equal_norms,
)
def norms_swapped(right: Right, at: OpContext, block: BlockWeights) -> BlockWeights:
    """The norm before attention has the scale of the norm before the experts, and vice versa."""
    block = right(at, block)
    attn = dataclasses.replace(block.attn, norm_scale=block.mlp.norm_scale)
    return BlockWeights(attn, dataclasses.replace(block.mlp, norm_scale=block.attn.norm_scale))


def _zero_bias(name: str) -> Obstacle:
    def obstacle(config: ModelConfig, weights: ModelWeights) -> str | None:
        biases = (getattr(block.attn, name) for block in weights.blocks)
        some = any(np.any(widen(bias, FLOAT64.dtype)) for bias in biases)
        return None if some else f"every {name} is zero"

    return obstacle


def _without_bias(tap: str) -> Callable[..., Array]:
    """Projections that lack their bias at that tap point."""

    def project(
        right: Right, at: OpContext, x: Array, weight: Matrix, bias: Matrix | None
    ) -> Array:
        y: Array = right(at, x, weight, None if at.tap == tap else bias)
        return y

    return project


def _bias_missing(letter: str, what: str) -> Mutant:
    def missing(ops: ModelOps) -> ModelOps:
        return replacing(linear=_without_bias(f"attn.{letter}"))(ops)

    missing.__doc__ = f"The projection of the {what} has no bias."
    return bug(
        f"{letter}-bias-missing",
        stage=f"attn.{letter}",
        consequence="Every token lacks the same vector.",
        reports=BIASES,
        obstacle=_zero_bias(f"{letter}_bias"),
    )(missing)


@bug(
    "value-bias-folded",
    op="block_weights",
    stage="attn.v",
    consequence="Attention adds the whole value bias, although the sink should take its share.",
    reports=(),
    note="TransformerLens does so in its compatibility mode (fold_value_biases), which assumes "
    "that a row of attention weights sums to one. With sinks it does not.",
    obstacle=_zero_bias("v_bias"),
)
def value_bias_folded(right: Right, at: OpContext, block: BlockWeights) -> BlockWeights:
    """The bias of the values is multiplied into the output's bias at loading."""
    block = right(at, block)
    attn = block.attn
    bias = widen(attn.v_bias, FLOAT64.dtype).reshape(-1, at.config.head_dim)  # (K, C)
    given = np.repeat(bias, at.config.group_size, axis=0).ravel()  # (H*C,)
    more = widen(attn.out_weight, FLOAT64.dtype) @ given
    attn = dataclasses.replace(
        attn,
        v_bias=np.zeros(bias.size),
        out_bias=widen(attn.out_bias, FLOAT64.dtype) + more,
    )
    return dataclasses.replace(block, attn=attn)


TENSORS = {
    "attn.q": "q_proj.weight",
    "attn.k": "k_proj.weight",
    "attn.v": "v_proj.weight",
    "attn.out": "o_proj.weight",
    "mlp.router_logits": "router.weight",
    "logits": "lm_head.weight",
}
"""The matrix that a tap point is computed with, as Hugging Face names it."""


def _zero_matrix(tap: str) -> Change:
    def project(
        right: Right, at: OpContext, x: Array, weight: Matrix, bias: Matrix | None
    ) -> Array:
        y: Array = right(at, np.zeros_like(x) if at.tap == tap else x, weight, bias)
        return y

    return replacing(linear=project)


def _zero_expert_matrix(tap: str) -> Change:
    def decode(right: Right, at: OpContext, matrix: Any) -> Array:
        values: Array = right(at, matrix)
        return np.zeros_like(values) if at.tap == tap else values

    return replacing(expert_matrix=decode)


def _zero_sinks(
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *where: Any
) -> Array:
    weights: Array = right(at, q, k, np.zeros(sinks.shape), *where)
    return weights


def _zero_embedding(right: Right, at: OpContext, tokens: Array, weight: Matrix) -> Array:
    rows: Array = right(at, tokens, weight)
    return np.zeros_like(rows)


@bug(
    "tensor-missing",
    stage="attn.q",
    form="q_proj.weight",
    consequence="The product is zero, so that at most a bias is left.",
    note="Modelled as the query's matrix. The variants are the other matrices, the embedding and "
    "the sinks; norms and biases have names of their own (norm-scale-missing, q-bias-missing).",
    variants=lambda config, tokens: (
        *(Variant(name, _zero_matrix(tap)) for tap, name in [*TENSORS.items()][1:]),
        Variant("experts.gate_up_proj", _zero_expert_matrix("mlp.gate_up")),
        Variant("experts.down_proj", _zero_expert_matrix("mlp.expert_out")),
        Variant("self_attn.sinks", replacing(attention_weights=_zero_sinks)),
        Variant("embed_tokens.weight", replacing(embedding=_zero_embedding)),
    ),
)
def tensor_missing(ops: ModelOps) -> ModelOps:
    """One tensor was never loaded and is all zeros."""
    return _zero_matrix("attn.q")(ops)


def _reordered(letters: str, *, back: bool) -> Change:
    """Rows of some projections put in the order of adjacent pairs, or back from it."""

    def reorder(right: Right, at: OpContext, block: BlockWeights) -> BlockWeights:
        block, channels = right(at, block), at.config.head_dim
        order = np.arange(channels).reshape(2, -1).T.ravel()  # 0, C/2, 1, C/2 + 1, ...
        order = np.argsort(order) if back else order

        def rows(matrix: Array) -> Array:
            heads = matrix.reshape(-1, channels, *matrix.shape[1:])[:, order]
            return heads.reshape(matrix.shape)

        names = [f"{letter}_{kind}" for letter in letters for kind in ("weight", "bias")]
        changed = {name: rows(getattr(block.attn, name)) for name in names}
        return dataclasses.replace(block, attn=dataclasses.replace(block.attn, **changed))

    return replacing(block_weights=reorder)


@bug(
    "rows-reordered",
    stage="attn.k",
    form="k",
    consequence="Channels of the keys are multiplied with other channels of the queries.",
    note="A converter reorders rows for another kind of RoPE, but for only one projection of two, "
    "or needlessly. The variants are the other projections, and the inverse order.",
    obstacle=lambda config, weights: "a head has one pair" if config.head_dim == 2 else None,
    variants=lambda config, tokens: (
        Variant(f"{' and '.join(letters)}{', back' * back}", _reordered(letters, back=back))
        for letters in ("k", "q", "v", "qk")
        for back in (False, True)
        if (letters, back) != ("k", False)
    ),
)
def rows_reordered(ops: ModelOps) -> ModelOps:
    """The rows of the key projection are in the order of adjacent pairs (0, C/2, 1, C/2 + 1)."""
    return _reordered("k", back=False)(ops)


@rewriting(
    "down-bias-after-sum",
    stage="mlp.expert_out",
    touches="mlp.expert_out",
    consequence="The experts' answers lack their biases, which the sum adds with the same weights.",
)
def down_bias_after_sum(ops: ModelOps) -> ModelOps:
    """The biases of the experts' second matrix are added to the weighted sum, by their weights."""

    def project(right: Right, at: OpContext, x: Array, weight: Array, bias: Matrix) -> Array:
        none = np.zeros(np.shape(bias)) if at.tap == "mlp.expert_out" else bias
        y: Array = right(at, x, weight, none)
        return y

    def combine(right: Right, at: OpContext, answers: Array, *rest: Any) -> Array:
        _, indices, bias = rest
        whole = answers + widen(bias, at.policy.dtype)[indices]
        y: Array = right(at, whole, *rest)
        return y

    return replacing(expert_linear=project, combine=combine)(ops)


MISSING: tuple[Mutant, ...] = (
    norm_scale_missing,
    norm_scale_plus_one,
    norms_swapped,
    _bias_missing("q", "queries"),
    _bias_missing("k", "keys"),
    _bias_missing("v", "values"),
    _bias_missing("out", "attention's output"),
    value_bias_folded,
    tensor_missing,
    rows_reordered,
)
REWRITINGS: tuple[Mutant, ...] = (down_bias_after_sum,)
