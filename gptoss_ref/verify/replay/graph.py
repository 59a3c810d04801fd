"""The stages of a block: the inputs and the computation of each tap point.

:class:`~gptoss_ref.verify.replay.ops.ModelOps` defines what a stage computes;
:mod:`gptoss_ref.verify.replay.evaluate` selects the stages and the values from which they start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.verify.replay.context import BlockContext, Decoded

STREAM = "stream"
"""Name of the input that is the residual stream at the start of the block."""

TILE_SCORES = 1 << 24
"""Number of attention weights in memory at a time if they are not wanted: 128 MiB of float64."""

Values = Mapping[str, Array]
"""Arrays by tap point."""

Compute = Callable[[BlockContext, Values], Array]
ComputeAll = Callable[[Sequence[BlockContext], Sequence[Values]], list[Array]]
"""A stage of one run, and of several."""


@dataclass(frozen=True)
class Stage:
    """The computation of one tap point.

    Attributes:
        name: of the tap point, without its block.
        inputs: tap points of the same block, or STREAM.
        ops: names of the fields of :class:`~gptoss_ref.verify.replay.ops.ModelOps` that it uses.
        compute: a function of the contexts of several runs, and of the inputs of each.
    """

    name: str
    inputs: tuple[str, ...]
    ops: frozenset[str]
    compute: ComputeAll


def _embedding(ctx: BlockContext, _: Values) -> Array:
    return ctx.ops.embedding(ctx.at("embedding"), ctx.tokens, ctx.ends.embedding)


def _attn_norm(ctx: BlockContext, values: Values) -> Array:
    return ctx.ops.rmsnorm(ctx.at("attn.norm"), values[STREAM], ctx.block.attn.norm_scale)


def _heads(name: str) -> Callable[[BlockContext, Values], Array]:
    def compute(ctx: BlockContext, values: Values) -> Array:
        x, attn = values["attn.norm"], ctx.block.attn
        weight, bias = getattr(attn, f"{name}_weight"), getattr(attn, f"{name}_bias")
        y = ctx.ops.linear(ctx.at(f"attn.{name}"), x, weight, bias)
        return y.reshape(len(x), -1, ctx.config.head_dim)  # (T, H or K, C)

    return compute


def _rope(name: str) -> Callable[[BlockContext, Values], Array]:
    def compute(ctx: BlockContext, values: Values) -> Array:
        return ctx.ops.rope(ctx.at(f"attn.{name}_rope"), values[f"attn.{name}"], *ctx.tables)

    return compute


def _weights_of(ctx: BlockContext, values: Values, rows: slice) -> Array:
    """Attention weights (H, t, S) of some queries."""
    at, p = ctx.at("attn.weights"), ctx.positions
    q, k, sinks = values["attn.q_rope"], values["attn.k_rope"], ctx.block.attn.sinks
    where = (p[rows], p, ctx.ops.window(at))
    return ctx.ops.attention_weights(at, q[rows], k, sinks, *where)


def _attn_weights(ctx: BlockContext, values: Values) -> Array:
    return _weights_of(ctx, values, slice(None))


def _mix_of(ctx: BlockContext, weights: Array, v: Array, rows: slice) -> Array:
    at, p = ctx.at("attn.mix"), ctx.positions
    where = (p[rows], p, ctx.ops.window(at))
    return ctx.ops.attention_mix(at, weights, v, *where)


def _mix_from_weights(ctx: BlockContext, values: Values) -> Array:
    return _mix_of(ctx, values["attn.weights"], values["attn.v"], slice(None))


def _mix_from_heads(ctx: BlockContext, values: Values) -> Array:
    """Compute the weights of some queries at a time, so that memory does not grow with T²."""
    count, heads, _ = values["attn.q_rope"].shape
    tile = max(1, TILE_SCORES // (heads * count))
    tiles = (slice(start, start + tile) for start in range(0, count, tile))
    mixes = [_mix_of(ctx, _weights_of(ctx, values, r), values["attn.v"], r) for r in tiles]
    return np.concatenate(mixes)  # (T, H*C)


def _attn_out(ctx: BlockContext, values: Values) -> Array:
    attn = ctx.block.attn
    x = values["attn.mix"]
    return ctx.ops.linear(ctx.at("attn.out"), x, attn.out_weight, attn.out_bias)


def _attn_residual(ctx: BlockContext, values: Values) -> Array:
    return ctx.ops.residual(ctx.at("attn.residual"), values[STREAM], values["attn.out"])


def _mlp_norm(ctx: BlockContext, values: Values) -> Array:
    x = values["attn.residual"]
    return ctx.ops.rmsnorm(ctx.at("mlp.norm"), x, ctx.block.mlp.norm_scale)


def _router_logits(ctx: BlockContext, values: Values) -> Array:
    mlp, at = ctx.block.mlp, ctx.at("mlp.router_logits")
    return ctx.ops.linear(at, values["mlp.norm"], mlp.gate_weight, mlp.gate_bias)


def _expert_indices(ctx: BlockContext, values: Values) -> Array:
    return ctx.ops.choose(ctx.at("mlp.expert_indices"), values["mlp.router_logits"])


def _expert_weights(ctx: BlockContext, values: Values) -> Array:
    logits, indices = values["mlp.router_logits"], values["mlp.expert_indices"]
    return ctx.ops.expert_weights(ctx.at("mlp.expert_weights"), logits, indices)


def _gate_up(contexts: Sequence[BlockContext], values: Sequence[Values]) -> list[Array]:
    rows = [(v["mlp.norm"], v["mlp.expert_indices"].shape) for v in values]
    x = [np.broadcast_to(y[:, None], (*shape, y.shape[1])) for y, shape in rows]  # (T, A, D) each
    return _by_expert("mlp.gate_up", "mlp1", contexts, x, values)


def _swiglu(ctx: BlockContext, values: Values) -> Array:
    return ctx.ops.swiglu(ctx.at("mlp.swiglu"), values["mlp.gate_up"])


def _expert_out(contexts: Sequence[BlockContext], values: Sequence[Values]) -> list[Array]:
    return _by_expert("mlp.expert_out", "mlp2", contexts, [v["mlp.swiglu"] for v in values], values)


def _by_expert(
    tap: str,
    name: str,
    contexts: Sequence[BlockContext],
    inputs: Sequence[Array],
    values: Sequence[Values],
) -> list[Array]:
    """Each chosen expert's matrix times its rows of ``inputs`` (T, A, M), plus bias: (T, A, N).

    Experts are computed one after the other, for all runs: each matrix is decoded once for runs
    that decode it equally. Rows of experts that are not wanted are NaN.
    """
    chosen = [v["mlp.expert_indices"] for v in values]
    mlps = [ctx.block.mlp for ctx in contexts]
    stored = [getattr(mlp, f"{name}_weight") for mlp in mlps]
    biases = [getattr(mlp, f"{name}_bias") for mlp in mlps]
    out = [
        np.full((*x.shape[:-1], matrices.shape[-2]), np.nan, ctx.policy.dtype)
        for ctx, x, matrices in zip(contexts, inputs, stored, strict=True)
    ]
    asked = contexts[0].experts
    for expert in np.unique(np.concatenate([indices.ravel() for indices in chosen])).tolist():
        if asked is not None and expert not in asked:
            continue
        decoded: Decoded = {}
        for i, ctx in enumerate(contexts):
            rows = chosen[i] == expert  # (T, A)
            if rows.any():
                matrix = ctx.matrix(tap, stored[i], expert, decoded)
                at = ctx.at(tap, expert)
                out[i][rows] = ctx.ops.expert_linear(at, inputs[i][rows], matrix, biases[i][expert])
    return out


def _mlp_out(ctx: BlockContext, values: Values) -> Array:
    answers, weights = values["mlp.expert_out"], values["mlp.expert_weights"]
    indices, bias = values["mlp.expert_indices"], ctx.block.mlp.mlp2_bias
    return ctx.ops.combine(ctx.at("mlp.out"), answers, weights, indices, bias)


def _mlp_residual(ctx: BlockContext, values: Values) -> Array:
    x = values["attn.residual"]
    return ctx.ops.residual(ctx.at("mlp.residual"), x, values["mlp.out"])


def _norm(ctx: BlockContext, values: Values) -> Array:
    return ctx.ops.rmsnorm(ctx.at("norm"), values[STREAM], ctx.ends.norm_scale)


def _logits(ctx: BlockContext, values: Values) -> Array:
    return ctx.ops.linear(ctx.at("logits"), values["norm"], ctx.ends.unembedding, None)


def _one_by_one(compute: Compute) -> ComputeAll:
    """Several runs of a stage, one after the other."""

    def compute_all(contexts: Sequence[BlockContext], values: Sequence[Values]) -> list[Array]:
        return [compute(ctx, own) for ctx, own in zip(contexts, values, strict=True)]

    return compute_all


def _stage(
    name: str,
    inputs: str,
    ops: str,
    compute: Compute | None = None,
    *,
    together: ComputeAll | None = None,
) -> tuple[str, Stage]:
    every = together if compute is None else _one_by_one(compute)
    assert every is not None
    return name, Stage(name, tuple(inputs.split()), frozenset(ops.split()), every)


BLOCK: dict[str, Stage] = dict(
    (
        _stage("attn.norm", STREAM, "block_weights rmsnorm", _attn_norm),
        _stage("attn.q", "attn.norm", "block_weights linear", _heads("q")),
        _stage("attn.k", "attn.norm", "block_weights linear", _heads("k")),
        _stage("attn.v", "attn.norm", "block_weights linear", _heads("v")),
        _stage("attn.q_rope", "attn.q", "yarn rope_tables rope", _rope("q")),
        _stage("attn.k_rope", "attn.k", "yarn rope_tables rope", _rope("k")),
        _stage(
            "attn.weights",
            "attn.q_rope attn.k_rope",
            "block_weights window attention_weights",
            _attn_weights,
        ),
        _stage(
            "attn.mix",
            "attn.q_rope attn.k_rope attn.v",
            "block_weights window attention_weights attention_mix",
            _mix_from_heads,
        ),
        _stage("attn.out", "attn.mix", "block_weights linear", _attn_out),
        _stage("attn.residual", f"{STREAM} attn.out", "residual", _attn_residual),
        _stage("mlp.norm", "attn.residual", "block_weights rmsnorm", _mlp_norm),
        _stage("mlp.router_logits", "mlp.norm", "block_weights linear", _router_logits),
        _stage("mlp.expert_indices", "mlp.router_logits", "choose", _expert_indices),
        _stage(
            "mlp.expert_weights",
            "mlp.router_logits mlp.expert_indices",
            "expert_weights",
            _expert_weights,
        ),
        _stage(
            "mlp.gate_up",
            "mlp.norm mlp.expert_indices",
            "block_weights expert_matrix expert_linear",
            together=_gate_up,
        ),
        _stage("mlp.swiglu", "mlp.gate_up", "swiglu", _swiglu),
        _stage(
            "mlp.expert_out",
            "mlp.swiglu mlp.expert_indices",
            "block_weights expert_matrix expert_linear",
            together=_expert_out,
        ),
        _stage(
            "mlp.out",
            "mlp.expert_out mlp.expert_weights mlp.expert_indices",
            "block_weights combine",
            _mlp_out,
        ),
        _stage("mlp.residual", "attn.residual mlp.out", "residual", _mlp_residual),
    )
)
"""The stages of a block, in the order of computation."""

MIX_FROM_WEIGHTS = Stage(
    "attn.mix",
    ("attn.weights", "attn.v"),
    frozenset(("window", "attention_mix")),
    _one_by_one(_mix_from_weights),
)
"""Replaces the stage ``attn.mix`` if the attention weights are given."""

_, FIRST = _stage("embedding", "", "end_weights embedding", _embedding)
LAST: dict[str, Stage] = dict(
    (
        _stage("norm", STREAM, "end_weights rmsnorm", _norm),
        _stage("logits", "norm", "end_weights linear", _logits),
    )
)
DISCRETE = frozenset(("mlp.expert_indices",))
"""Tap points that hold integers."""

BY_CHOICE = ("mlp.expert_weights", "mlp.gate_up", "mlp.swiglu", "mlp.expert_out")
"""Stages with an axis A, whose order is that of the experts chosen."""

EXPERT_PRODUCTS = ("mlp.gate_up", "mlp.expert_out")
"""Stages that multiply with the experts' matrices."""
