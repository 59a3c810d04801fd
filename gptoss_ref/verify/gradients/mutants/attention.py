"""Bugs of the backward pass of attention, its sinks and RoPE."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref import gradients
from gptoss_ref.numerics import Array
from gptoss_ref.verify.gradients import operations as at
from gptoss_ref.verify.gradients.mutants.mutant import GradientMutant, bug, name_of, zero
from gptoss_ref.verify.gradients.operations import BlockContext, Compute

SCORES = "grad.attn.q_rope grad.attn.k_rope"
SINKS = "grad.weights.attn.sinks"


@bug(
    "sinks-without-gradient",
    stages=SINKS,
    consequence="The sinks keep their initial values.",
    reports=("flash-attention#1973", "flash-attention#2102", "flash-attention#1895"),
)
def sinks_without_gradient(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The backward kernel returns nothing for the sinks: their gradient is zero."""
    return zero(right, ctx, *arguments)


@bug(
    "sinks-gradient-sign",
    stages=SINKS,
    consequence="Training moves every sink the wrong way.",
    note="The derivation's minus sign: a larger sink makes every weight smaller.",
)
def sinks_gradient_sign(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The gradient of the sinks has the wrong sign."""
    return -right(ctx, *arguments)


@bug(
    "sinks-gradient-summed-twice",
    stages=SINKS,
    consequence="Sinks move twice as fast as everything else.",
    note="The kernel reduces over the batch, and its caller does so again.",
)
def sinks_gradient_summed_twice(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The gradient of the sinks is summed over the batch twice: it is too large by a factor of
    2."""
    return 2 * right(ctx, *arguments)


@bug(
    "softmax-without-gradient",
    stages=SCORES,
    consequence="Queries and keys do not train at all; values do, so the loss still falls.",
    reports=("candle#3591",),
)
def softmax_without_gradient(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The fused softmax has no backward: scores get no gradient."""
    return zero(right, ctx, *arguments)


@bug(
    "lse-gradient-dropped",
    stages=SCORES,
    consequence="The gradients of output, values and sinks look right, those of queries and keys "
    "do not; with one visible key both are zero.",
    reports=("torchtitan#4796", "flash-attention#404", "flash-attention#889"),
    note="The mix is rescaled by sigmoid(lse − sink); the kernel's log-sum-exp has no gradient.",
)
def lse_gradient_dropped(
    right: Compute, ctx: BlockContext, d_w: Array, q: Array, k: Array
) -> Array:
    """A softmax without sink is rescaled by a factor whose gradient is dropped."""
    w, sink = at.softmax(ctx, q, k)
    share = 1 - sink[..., None]
    delta = (w * d_w).sum(-1, keepdims=True) / np.where(share > 0, share, 1)
    d = at.scaled(ctx, ctx.policy.round(w * (d_w - delta)))
    return at.to_queries(ctx, d, k) if _is_query(right) else at.to_keys(ctx, d, q)


@bug(
    "softmax-delta-missing",
    stages=SCORES,
    consequence="Queries and keys learn to raise every useful score, as if scores did not compete.",
    note="The row's sum of w · dw, which a kernel computes ahead, is not subtracted.",
)
def softmax_delta_missing(
    right: Compute, ctx: BlockContext, d_w: Array, q: Array, k: Array
) -> Array:
    """The softmax's second term is missing: dscore = w dw."""
    w, _ = at.softmax(ctx, q, k)
    d = at.scaled(ctx, ctx.policy.round(w * d_w))
    return at.to_queries(ctx, d, k) if _is_query(right) else at.to_keys(ctx, d, q)


@bug(
    "backward-without-sink",
    stages=f"grad.attn.v {SCORES}",
    consequence="Gradients of q, k and v are too large, most of all if the sink is strong.",
    note="The forward kernel stored the log-sum-exp of the keys alone.",
    reports=("flash-attention#2102",),
)
def backward_without_sink(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The weights recomputed in the backward pass leave the sink out."""
    d, q, k = arguments
    w, sink = at.softmax(ctx, q, k)
    share = 1 - sink[..., None]
    w = np.where(share > 0, w / np.where(share > 0, share, 1), 0).astype(w.dtype)
    if name_of(right) == "values":
        return at.to_keys(ctx, w, at.by_heads(ctx, d))
    scores = at.d_scores(ctx, d, w)
    return at.to_queries(ctx, scores, k) if _is_query(right) else at.to_keys(ctx, scores, q)


@bug(
    "key-gradient-of-one-head",
    stages="grad.attn.k_rope",
    consequence="Keys learn from one query head in each group.",
    reports=("levanter#449", "native-sparse-attention-triton#27"),
)
def key_gradient_of_one_head(
    right: Compute, ctx: BlockContext, d_w: Array, q: Array, k: Array
) -> Array:
    """The keys' gradient is that of the last query head of each group, not the sum."""
    return right(ctx, np.where(_last_of_group(ctx, len(d_w)), d_w, d_w.dtype.type(0)), q, k)


@bug(
    "value-gradient-of-one-head",
    stages="grad.attn.v",
    consequence="Values learn from one query head in each group.",
    reports=("levanter#449",),
)
def value_gradient_of_one_head(
    right: Compute, ctx: BlockContext, d_mix: Array, q: Array, k: Array
) -> Array:
    """The values' gradient is that of the last query head of each group, not the sum."""
    by_heads = at.by_heads(ctx, d_mix)  # (T, H, C)
    last = _last_of_group(ctx, by_heads.shape[1])[:, 0]
    alone = np.where(last, by_heads, d_mix.dtype.type(0)).reshape(d_mix.shape)
    return right(ctx, alone, q, k)


def _last_of_group(ctx: BlockContext, heads: int) -> NDArray[np.bool_]:
    """Whether each of the heads is the last of its group: (H, 1, 1)."""
    group = ctx.config.group_size
    last: NDArray[np.bool_] = np.arange(heads) % group == group - 1
    return last[:, None, None]


def _window_edge(extra: int) -> Compute:
    def compute(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
        d, q, k = arguments
        if ctx.window is None:
            return right(ctx, *arguments)
        w, sink = at.softmax(ctx, q, k)
        if extra > 0:  # weights recomputed with the forward pass's own normaliser
            wider, wider_sink = at.softmax(ctx, q, k, extra)
            factor = np.where(wider_sink > 0, sink / np.where(wider_sink > 0, wider_sink, 1), 0)
            w = (wider * factor[..., None]).astype(w.dtype)
        else:
            age = np.arange(len(q))[:, None] - np.arange(len(k))
            w = np.where(age < ctx.window + extra, w, w.dtype.type(0))
        if name_of(right) == "values":
            return at.to_keys(ctx, w, at.by_heads(ctx, d))
        scores = at.d_scores(ctx, d, w)
        return at.to_queries(ctx, scores, k) if _is_query(right) else at.to_keys(ctx, scores, q)

    return compute


def _window_bug(extra: int, label: str) -> GradientMutant:
    compute = _window_edge(extra)
    compute.__doc__ = "The backward pass has another window than the forward pass."
    return bug(
        "window-edge-in-backward",
        stages=f"grad.attn.v {SCORES}",
        consequence="The key at the window's edge gets no gradient, or one it should not have.",
        reports=("MSLK#263", "aiter#3742"),
        label=label,
    )(compute)


@bug(
    "score-scale-missing-in-backward",
    stages=SCORES,
    consequence="Gradients of queries and keys are √C times too large.",
)
def score_scale_missing(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The gradients of queries and keys lack the factor 1/√C of the scores."""
    found: Array = right(ctx, *arguments) * ctx.policy.dtype.type(ctx.config.head_dim**0.5)
    return found


@bug(
    "rope-turned-the-same-way",
    stages="grad.attn.q grad.attn.k",
    consequence="The gradients of early positions are nearly right, those of later ones random.",
)
def rope_turned_the_same_way(right: Compute, ctx: BlockContext, d: Array) -> Array:
    """RoPE's backward turns by the same angle again instead of back."""
    cos, sin = ctx.tables
    return gradients.rope(d, cos, -sin, policy=ctx.policy)


@bug(
    "rope-without-gradient",
    stages="grad.attn.q grad.attn.k",
    consequence="Queries and keys do not train at all; values do, so the loss still falls.",
    reports=("candle#3568", "LongLive#61", "LoongForge#106"),
)
def rope_without_gradient(right: Compute, ctx: BlockContext, *arguments: Array) -> Array:
    """The fused RoPE has no backward: queries and keys get no gradient."""
    return zero(right, ctx, *arguments)


@bug(
    "rope-inverse-instead-of-transpose",
    stages="grad.attn.q grad.attn.k",
    consequence="Gradients of queries and keys are too small, by YaRN's concentration squared.",
    note="With plain RoPE the two are the same.",
)
def rope_inverse(right: Compute, ctx: BlockContext, d: Array) -> Array:
    """RoPE's backward is the inverse, which divides by the concentration, not the transpose."""
    cos, sin = ctx.tables
    found: Array = right(ctx, d) / (cos[:1, :1] ** 2 + sin[:1, :1] ** 2)[..., None]
    return found


def _is_query(right: Compute) -> bool:
    return name_of(right) == "queries"


ATTENTION: tuple[GradientMutant, ...] = (
    sinks_without_gradient,
    sinks_gradient_sign,
    sinks_gradient_summed_twice,
    softmax_without_gradient,
    lse_gradient_dropped,
    softmax_delta_missing,
    backward_without_sink,
    key_gradient_of_one_head,
    value_gradient_of_one_head,
    score_scale_missing,
    rope_turned_the_same_way,
    rope_without_gradient,
    rope_inverse,
    _window_bug(-1, "one key less"),
    _window_bug(1, "one key more"),
)
