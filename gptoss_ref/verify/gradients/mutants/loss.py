"""Bugs of the loss and of the gradients of embedding and unembedding."""

from __future__ import annotations

import numpy as np

from gptoss_ref import gradients
from gptoss_ref.numerics import Array
from gptoss_ref.verify.gradients.mutants.mutant import GradientMutant, bug, zero
from gptoss_ref.verify.gradients.operations import BlockContext, Compute


@bug(
    "loss-averaged-over-padding",
    stages="grad.logits",
    consequence="Every gradient is multiplied by the share of tokens that count.",
    reports=("transformers#24725", "torchtune#1875"),
)
def loss_averaged_over_padding(right: Compute, ctx: BlockContext, logits: Array) -> Array:
    """The loss is divided by all positions, not by those that count."""
    found: Array = right(ctx, logits) * ctx.policy.dtype.type(ctx.counted.mask.mean())
    return found


def _divided(steps: int) -> Compute:
    def compute(right: Compute, ctx: BlockContext, logits: Array) -> Array:
        found: Array = right(ctx, logits) / ctx.policy.dtype.type(steps)
        return found

    return compute


def _accumulation_bug(steps: int) -> GradientMutant:
    compute = _divided(steps)
    compute.__doc__ = "The loss is divided by the accumulation steps a second time."
    return bug(
        "accumulation-divided-twice",
        stages="grad.logits",
        consequence="The effective learning rate is divided by the number of accumulation steps.",
        reports=("transformers#35210", "transformers#34191"),
        label=f"{steps} steps",
    )(compute)


@bug(
    "targets-not-shifted",
    stages="grad.logits",
    consequence="The model learns to repeat its input.",
)
def targets_not_shifted(right: Compute, ctx: BlockContext, logits: Array) -> Array:
    """Every position is trained to predict its own token instead of the next."""
    _, d = gradients.cross_entropy(logits, ctx.tokens, ctx.counted.mask, policy=ctx.policy)
    return d


@bug(
    "unembedding-gradient-added-to-embedding",
    stages="grad.weights.embedding",
    consequence="The embedding is trained as if it were tied to the unembedding.",
    note="gpt-oss does not tie the two.",
)
def unembedding_added(right: Compute, ctx: BlockContext, d_x: Array) -> Array:
    """The unembedding's gradient is added to the embedding's."""
    if ctx.unembedding is None:
        return right(ctx, d_x)
    return ctx.policy.round(right(ctx, d_x) + ctx.unembedding())


@bug(
    "embedding-gradient-overwritten",
    stages="grad.weights.embedding",
    consequence="A token that occurs often learns from one of its positions only.",
    reports=("tt-metal#6232", "pytorch#1631", "AiDotNet.Tensors#894"),
)
def embedding_overwritten(right: Compute, ctx: BlockContext, d_x: Array) -> Array:
    """If a token occurs several times, the gradient of its last position replaces the others."""
    found = np.zeros_like(right(ctx, d_x))
    found[ctx.tokens] = d_x
    return found


@bug(
    "embedding-frozen",
    stages="grad.weights.embedding grad.weights.unembedding",
    consequence="New tokens are never learnt.",
    reports=("unsloth#9326",),
)
def embedding_frozen(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """Embedding or unembedding get no gradient."""
    return zero(right, ctx, *arguments)


LOSS: tuple[GradientMutant, ...] = (
    loss_averaged_over_padding,
    targets_not_shifted,
    unembedding_added,
    embedding_overwritten,
    embedding_frozen,
    *(_accumulation_bug(steps) for steps in (2, 4, 8, 16, 32)),
)
