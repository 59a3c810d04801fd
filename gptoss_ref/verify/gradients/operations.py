"""The gradients of a backward pass, one function per stage.

Each gets its :class:`BlockContext`, then the gradients it starts from, then the values of the
forward pass that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gptoss_ref import gradients
from gptoss_ref.config import ModelConfig
from gptoss_ref.gradients.attention import weights_and_sink
from gptoss_ref.gradients.linear import parameters, product
from gptoss_ref.gradients.router import shares
from gptoss_ref.layers import rope_tables, yarn
from gptoss_ref.layers.linear import dense
from gptoss_ref.losses import Counted
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.weights import AttentionWeights, ExpertMatrix, MLPWeights, ModelWeights

Compute = Callable[..., Array]


@dataclass(frozen=True)
class BlockContext:
    """The context of a stage: the block (None for the first and last stages) and the rounding."""

    config: ModelConfig
    policy: Policy
    weights: ModelWeights
    tokens: Array
    counted: Counted
    layer: int | None = None
    aux: Callable[[int, bool], Array] | None = None
    """The load-balancing gradient (T, E) of a block's router logits, times its coefficient; if the
    second argument is true, the loss applies softmax twice."""
    coefficient: float = 1.0
    unembedding: Callable[[], Array] | None = None
    """The gradient (V, D) of the unembedding."""

    @property
    def attn(self) -> AttentionWeights:
        """The attention weights of the block."""
        assert self.layer is not None
        return self.weights.blocks[self.layer].attn

    @property
    def mlp(self) -> MLPWeights:
        """The weights of the block's experts and router."""
        assert self.layer is not None
        return self.weights.blocks[self.layer].mlp

    @property
    def window(self) -> int | None:
        """Keys that a query of the block sees."""
        assert self.layer is not None
        return self.config.window(self.layer)

    @cached_property
    def tables(self) -> tuple[Array, Array]:
        """Cosines and sines (T, C/2)."""
        c = self.config
        rotary = yarn(
            c.head_dim,
            c.rope_theta,
            c.rope_scaling_factor,
            c.initial_context_length,
            c.rope_ntk_beta,
            c.rope_ntk_alpha,
        )
        return rope_tables(np.arange(len(self.tokens)), *rotary, policy=self.policy)

    def norm(self, d_y: Array, x: Array, scale: Array) -> Any:
        """Gradients of a norm."""
        return gradients.rmsnorm(d_y, x, scale, self.config.rms_norm_eps, policy=self.policy)


def logits(ctx: BlockContext, values: Array) -> Array:
    """Gradient (T, V) of the logits ``values`` (T, V)."""
    _, d = gradients.cross_entropy(values, *ctx.counted, policy=ctx.policy)
    return d


def final_norm(ctx: BlockContext, d_logits: Array) -> Array:
    """Gradient (T, D) of what the last norm returns, from ``d_logits`` (T, V)."""
    return ctx.policy.round(product(d_logits, ctx.weights.unembedding, policy=ctx.policy))


def last_residual(ctx: BlockContext, d_norm: Array, x: Array) -> Array:
    """Gradient (T, D) of ``x`` (T, D), which the last norm takes, from ``d_norm`` (T, D)."""
    d_x: Array = ctx.norm(d_norm, x, ctx.weights.norm_scale).d_x
    return d_x


def into_attention(ctx: BlockContext, d_residual: Array, d_norm: Array, x: Array) -> Array:
    """Gradient (T, D) of ``x`` (T, D), which enters the block: past attention, and through it."""
    d_x: Array = ctx.norm(d_norm, x, ctx.attn.norm_scale).d_x
    return ctx.policy.round(d_residual + d_x)


def into_mlp(ctx: BlockContext, d_residual: Array, d_norm: Array, x: Array) -> Array:
    """Gradient (T, D) of ``x`` (T, D) between attention and experts: past them, and through."""
    d_x: Array = ctx.norm(d_norm, x, ctx.mlp.norm_scale).d_x
    return ctx.policy.round(d_residual + d_x)


def same(ctx: BlockContext, d: Array) -> Array:
    """A sum passes its gradient ``d`` (T, D) to each part: (T, D)."""
    return d


def expert_out(ctx: BlockContext, d_out: Array, weights: Array) -> Array:
    """w · dy: (T, A, D) from ``d_out`` (T, D) and the router's ``weights`` (T, A)."""
    return ctx.policy.round(weights[..., None] * d_out[:, None])


def expert_weights(ctx: BlockContext, d_out: Array, answers: Array, indices: Array) -> Array:
    """dy · o: (T, A) from ``d_out`` (T, D), ``answers`` (T, A, D) and ``indices`` (T, A)."""
    return ctx.policy.round((d_out[:, None] * answers).sum(-1))


def through_experts(ctx: BlockContext, d: Array, matrix: ExpertMatrix, indices: Array) -> Array:
    """d · W of each token's experts, not rounded: (T, A, M) from ``d`` (T, A, N)."""
    out = np.empty((*d.shape[:2], matrix.shape[-1]), ctx.policy.dtype)
    for e in np.unique(indices):
        t, a = np.nonzero(indices == e)
        out[t, a] = d[t, a] @ dense(matrix[int(e)], ctx.policy)
    return out


def swiglu(ctx: BlockContext, d_answers: Array, indices: Array) -> Array:
    """Gradient (T, A, F) of the activations, from ``d_answers`` (T, A, D), ``indices`` (T, A)."""
    return ctx.policy.round(through_experts(ctx, d_answers, ctx.mlp.mlp2_weight, indices))


def gate_up(ctx: BlockContext, d_activated: Array, x: Array) -> Array:
    """Gradient (T, A, 2F) of ``x`` (T, A, 2F), from ``d_activated`` (T, A, F)."""
    c = ctx.config
    return gradients.swiglu(d_activated, x, c.swiglu_alpha, c.swiglu_limit, policy=ctx.policy)


def router_logits(
    ctx: BlockContext, d_weights: Array, weights: Array, indices: Array, router: Array
) -> Array:
    """Gradient (T, E), from ``d_weights``, ``weights``, ``indices`` (T, A), ``router`` (T, E)."""
    d = np.zeros(router.shape, ctx.policy.dtype)
    np.put_along_axis(d, indices, shares(d_weights, weights, policy=ctx.policy), axis=-1)
    return with_aux(ctx, d)


def with_aux(ctx: BlockContext, d: Array, times: float = 1.0) -> Array:
    """``d`` (T, E) and the gradient (T, E) of the load-balancing loss, if there is one."""
    if ctx.aux is None or ctx.layer is None:
        return d
    return ctx.policy.round(d + times * ctx.aux(ctx.layer, False))


def mlp_norm(ctx: BlockContext, d_gate_up: Array, d_router: Array, indices: Array) -> Array:
    """Gradient (T, D), from ``d_gate_up`` (T, A, 2F), ``d_router`` (T, E), ``indices`` (T, A)."""
    r, policy = ctx.policy.round, ctx.policy
    by_experts = through_experts(ctx, d_gate_up, ctx.mlp.mlp1_weight, indices).sum(1)
    return r(r(by_experts) + r(product(d_router, ctx.mlp.gate_weight, policy=policy)))


def mix(ctx: BlockContext, d_out: Array) -> Array:
    """Gradient (T, H*C), from ``d_out`` (T, D)."""
    return ctx.policy.round(product(d_out, ctx.attn.out_weight, policy=ctx.policy))


def attention_weights(ctx: BlockContext, d_mix: Array, v: Array) -> Array:
    """Gradient (H, T, S), from ``d_mix`` (T, H*C) and ``v`` (S, K, C)."""
    return gradients.attention_weights(d_mix, v, policy=ctx.policy)


def softmax(ctx: BlockContext, q: Array, k: Array, extra: int = 0) -> tuple[Array, Array]:
    """Weights (H, T, S) and the sink's (H, T) of ``q`` (T, H, C), ``k`` (S, K, C), both after RoPE.

    ``extra`` keys more than the window are visible.
    """
    length, heads, _ = q.shape
    age = np.arange(length)[:, None] - np.arange(length)
    visible = age >= 0
    if ctx.window is not None:
        visible &= age < ctx.window + extra
    grouped = q.astype(ctx.policy.dtype).reshape(length, k.shape[1], -1, q.shape[2])
    w, sink = weights_and_sink(
        grouped.transpose(1, 2, 0, 3),
        k.astype(ctx.policy.dtype).transpose(1, 0, 2)[:, None],
        ctx.attn.sinks,
        visible,
        policy=ctx.policy,
    )
    return w.reshape(heads, length, length), sink.reshape(heads, length)


def d_scores(ctx: BlockContext, d_w: Array, w: Array) -> Array:
    """Gradient (H, T, S) of the scores q · k, from ``d_w`` and ``w`` (H, T, S)."""
    delta = (w * d_w).sum(-1, keepdims=True)
    return scaled(ctx, ctx.policy.round(w * (d_w - delta)))


def scaled(ctx: BlockContext, d: Array) -> Array:
    """The scale 1/√C of the scores, for ``d`` (H, T, S): (H, T, S)."""
    return ctx.policy.round(d * ctx.policy.dtype.type(ctx.config.head_dim**-0.5))


def to_queries(ctx: BlockContext, d: Array, k: Array) -> Array:
    """Σ_j d k: (T, H, C) from ``d`` (H, T, S) and ``k`` (S, K, C)."""
    group = len(d) // k.shape[1]
    heads = [d[h] @ k[:, h // group].astype(d.dtype) for h in range(len(d))]
    return ctx.policy.round(np.stack(heads, 1))


def to_keys(ctx: BlockContext, d: Array, q: Array) -> Array:
    """Σ_p d q, over each group of heads: (S, K, C) from ``d`` (H, T, S) and ``q`` (T, H, C)."""
    r = ctx.policy.round
    heads = r(np.stack([d[h].T @ q[:, h].astype(d.dtype) for h in range(len(d))]))  # (H, S, C)
    kv_heads = ctx.config.num_key_value_heads
    grouped = heads.reshape(kv_heads, -1, *heads.shape[1:]).sum(1)  # (K, S, C)
    return r(grouped).transpose(1, 0, 2)


def by_heads(ctx: BlockContext, d_mix: Array) -> Array:
    """``d_mix`` (T, H*C) as (T, H, C)."""
    return d_mix.reshape(len(d_mix), -1, ctx.config.head_dim)


def values(ctx: BlockContext, d_mix: Array, q: Array, k: Array) -> Array:
    """Gradient (S, K, C) of v, from ``d_mix`` (T, H*C), ``q`` (T, H, C) and ``k`` (S, K, C)."""
    w, _ = softmax(ctx, q, k)
    return to_keys(ctx, w, by_heads(ctx, d_mix))


def queries(ctx: BlockContext, d_w: Array, q: Array, k: Array) -> Array:
    """Gradient (T, H, C) of ``q`` (T, H, C), from ``d_w`` (H, T, S) and ``k`` (S, K, C)."""
    w, _ = softmax(ctx, q, k)
    return to_queries(ctx, d_scores(ctx, d_w, w), k)


def keys(ctx: BlockContext, d_w: Array, q: Array, k: Array) -> Array:
    """Gradient (S, K, C) of ``k`` (S, K, C), from ``d_w`` (H, T, S) and ``q`` (T, H, C)."""
    w, _ = softmax(ctx, q, k)
    return to_keys(ctx, d_scores(ctx, d_w, w), q)


def sinks(ctx: BlockContext, d_w: Array, q: Array, k: Array) -> Array:
    """Gradient (H,), from ``d_w`` (H, T, S), ``q`` (T, H, C) and ``k`` (S, K, C)."""
    w, sink = softmax(ctx, q, k)
    r = ctx.policy.round
    return r(r(-sink * (w * d_w).sum(-1)).sum(-1))


def turned_back(ctx: BlockContext, d: Array) -> Array:
    """Gradient (T, H, C) before RoPE, from ``d`` (T, H, C) after it."""
    return gradients.rope(d, *ctx.tables, policy=ctx.policy)


def attn_norm(ctx: BlockContext, d_q: Array, d_k: Array, d_v: Array) -> Array:
    """Gradient (T, D), from ``d_q`` (T, H, C), ``d_k`` and ``d_v`` (T, K, C)."""
    w = ctx.attn
    rows = [d.reshape(len(d), -1) for d in (d_q, d_k, d_v)]
    matrices = (w.q_weight, w.k_weight, w.v_weight)
    total = sum(product(d, m, policy=ctx.policy) for d, m in zip(rows, matrices, strict=True))
    return ctx.policy.round(np.asarray(total))


def matrix(ctx: BlockContext, d_y: Array, x: Array) -> Array:
    """Gradient (N, M) of a linear layer's weight, from ``d_y`` (T, …) and ``x`` (T, M)."""
    return parameters(d_y.reshape(len(d_y), -1), x, policy=ctx.policy)[0]


def bias(ctx: BlockContext, d_y: Array) -> Array:
    """Gradient (N,) of a linear layer's bias, from ``d_y`` (T, …)."""
    return ctx.policy.round(d_y.reshape(len(d_y), -1).astype(ctx.policy.dtype).sum(0))


def expert_matrix(ctx: BlockContext, d: Array, x: Array, indices: Array) -> Array:
    """Gradient (E, N, M), from ``d`` (T, A, N), ``x`` (T, M) or (T, A, M), ``indices`` (T, A)."""
    out = np.zeros((ctx.config.num_experts, d.shape[-1], x.shape[-1]), ctx.policy.dtype)
    for e in np.unique(indices):
        t, a = np.nonzero(indices == e)
        out[e], _ = parameters(d[t, a], x[t, a] if x.ndim == 3 else x[t], policy=ctx.policy)
    return out


def expert_bias(ctx: BlockContext, d: Array, indices: Array) -> Array:
    """Gradient (E, N), from ``d`` (T, A, N) and ``indices`` (T, A)."""
    out = np.zeros((ctx.config.num_experts, d.shape[-1]), ctx.policy.dtype)
    np.add.at(out, indices, d.astype(ctx.policy.dtype))
    return ctx.policy.round(out)


def scale_of(part: str) -> Compute:
    """The gradient of a norm's scale."""

    def compute(ctx: BlockContext, d_norm: Array, x: Array) -> Array:
        scale = ctx.weights if part == "" else getattr(ctx, part)
        d: Array = ctx.norm(d_norm, x, scale.norm_scale).d_scale
        return d

    return compute


def embedding_table(ctx: BlockContext, d_x: Array) -> Array:
    """Gradient (V, D), from ``d_x`` (T, D)."""
    return gradients.embedding(d_x, ctx.tokens, ctx.config.vocab_size, policy=ctx.policy)
