"""The backward pass as stages: the inputs of each gradient, and the function that computes it.

``mlp.residual`` stands for the residual stream: its gradient in block n comes from block n + 1, or
from the last norm. The functions are in :mod:`~gptoss_ref.verify.gradients.operations`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.gradients.router import load_balancing
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.verify.gradients.operations import (
    BlockContext,
    Compute,
    attention_weights,
    attn_norm,
    bias,
    embedding_table,
    expert_bias,
    expert_matrix,
    expert_out,
    expert_weights,
    final_norm,
    gate_up,
    into_attention,
    into_mlp,
    keys,
    last_residual,
    logits,
    matrix,
    mix,
    mlp_norm,
    queries,
    router_logits,
    same,
    scale_of,
    sinks,
    swiglu,
    turned_back,
    values,
)

__all__ = ["BLOCK", "BlockContext", "Compute", "Node", "Stage", "balancing", "nodes"]


@dataclass(frozen=True)
class Stage:
    """How one gradient is computed.

    Attributes:
        name: without its block, such as ``grad.attn.q`` or ``grad.weights.attn.sinks``.
        grads: stages whose gradients it starts from.
        forward: tap points of the forward pass, without their block, that it needs.
        compute: its function, of the context, the gradients and the forward values.
    """

    name: str
    grads: tuple[str, ...]
    forward: tuple[str, ...]
    compute: Compute = field(repr=False)


STREAM = "stream"
"""The residual stream as it enters the block."""

_QK = ("attn.q_rope", "attn.k_rope")
_STAGES = (
    Stage("grad.mlp.out", ("grad.mlp.residual",), (), same),
    Stage("grad.mlp.expert_out", ("grad.mlp.out",), ("mlp.expert_weights",), expert_out),
    Stage("grad.mlp.swiglu", ("grad.mlp.expert_out",), ("mlp.expert_indices",), swiglu),
    Stage("grad.mlp.gate_up", ("grad.mlp.swiglu",), ("mlp.gate_up",), gate_up),
    Stage(
        "grad.mlp.expert_weights",
        ("grad.mlp.out",),
        ("mlp.expert_out", "mlp.expert_indices"),
        expert_weights,
    ),
    Stage(
        "grad.mlp.router_logits",
        ("grad.mlp.expert_weights",),
        ("mlp.expert_weights", "mlp.expert_indices", "mlp.router_logits"),
        router_logits,
    ),
    Stage(
        "grad.mlp.norm",
        ("grad.mlp.gate_up", "grad.mlp.router_logits"),
        ("mlp.expert_indices",),
        mlp_norm,
    ),
    Stage(
        "grad.attn.residual",
        ("grad.mlp.residual", "grad.mlp.norm"),
        ("attn.residual",),
        into_mlp,
    ),
    Stage("grad.attn.out", ("grad.attn.residual",), (), same),
    Stage("grad.attn.mix", ("grad.attn.out",), (), mix),
    Stage("grad.attn.weights", ("grad.attn.mix",), ("attn.v",), attention_weights),
    Stage("grad.attn.v", ("grad.attn.mix",), _QK, values),
    Stage("grad.attn.q_rope", ("grad.attn.weights",), _QK, queries),
    Stage("grad.attn.k_rope", ("grad.attn.weights",), _QK, keys),
    Stage("grad.attn.q", ("grad.attn.q_rope",), (), turned_back),
    Stage("grad.attn.k", ("grad.attn.k_rope",), (), turned_back),
    Stage("grad.attn.norm", ("grad.attn.q", "grad.attn.k", "grad.attn.v"), (), attn_norm),
    Stage(
        "grad.weights.mlp.mlp2_weight",
        ("grad.mlp.expert_out",),
        ("mlp.swiglu", "mlp.expert_indices"),
        expert_matrix,
    ),
    Stage(
        "grad.weights.mlp.mlp2_bias", ("grad.mlp.expert_out",), ("mlp.expert_indices",), expert_bias
    ),
    Stage(
        "grad.weights.mlp.mlp1_weight",
        ("grad.mlp.gate_up",),
        ("mlp.norm", "mlp.expert_indices"),
        expert_matrix,
    ),
    Stage(
        "grad.weights.mlp.mlp1_bias", ("grad.mlp.gate_up",), ("mlp.expert_indices",), expert_bias
    ),
    Stage("grad.weights.mlp.gate_weight", ("grad.mlp.router_logits",), ("mlp.norm",), matrix),
    Stage("grad.weights.mlp.gate_bias", ("grad.mlp.router_logits",), (), bias),
    Stage("grad.weights.mlp.norm_scale", ("grad.mlp.norm",), ("attn.residual",), scale_of("mlp")),
    Stage("grad.weights.attn.out_weight", ("grad.attn.out",), ("attn.mix",), matrix),
    Stage("grad.weights.attn.out_bias", ("grad.attn.out",), (), bias),
    Stage("grad.weights.attn.sinks", ("grad.attn.weights",), _QK, sinks),
    *(
        stage
        for c in "qkv"
        for stage in (
            Stage(f"grad.weights.attn.{c}_weight", (f"grad.attn.{c}",), ("attn.norm",), matrix),
            Stage(f"grad.weights.attn.{c}_bias", (f"grad.attn.{c}",), (), bias),
        )
    ),
    Stage("grad.weights.attn.norm_scale", ("grad.attn.norm",), (STREAM,), scale_of("attn")),
)
BLOCK: dict[str, Stage] = {stage.name: stage for stage in _STAGES}
"""The gradients of a block except that of its output, in order of computation."""


@dataclass(frozen=True)
class Node:
    """One stage of a model; ``layer`` is the block whose weights it needs."""

    name: str
    layer: int | None
    stage: Stage
    grads: tuple[str, ...]
    forward: tuple[str, ...]


def nodes(config: ModelConfig) -> dict[str, Node]:
    """Every gradient of a model, in the order of the backward pass."""
    last = config.num_hidden_layers - 1
    stream = f"block.{last}.mlp.residual"
    found = [
        _end("grad.logits", (), ("logits",), logits),
        _end("grad.weights.unembedding", ("grad.logits",), ("norm",), matrix),
        _end("grad.norm", ("grad.logits",), (), final_norm),
        _end("grad.weights.norm_scale", ("grad.norm",), (stream,), scale_of("")),
        Node(
            f"grad.{stream}",
            None,
            Stage("grad.mlp.residual", ("grad.norm",), (STREAM,), last_residual),
            ("grad.norm",),
            (stream,),
        ),
    ]
    for n in reversed(range(config.num_hidden_layers)):
        before = "embedding" if n == 0 else f"block.{n - 1}.mlp.residual"
        for stage in BLOCK.values():
            name = _placed(stage.name, n)
            grads = tuple(_placed(g, n) for g in stage.grads)
            forward = tuple(before if f == STREAM else f"block.{n}.{f}" for f in stage.forward)
            found.append(Node(name, n, stage, grads, forward))
        through = (f"grad.block.{n}.attn.residual", f"grad.block.{n}.attn.norm")
        stage = Stage(
            "grad.embedding" if n == 0 else "grad.mlp.residual", through, (STREAM,), into_attention
        )
        found.append(Node(f"grad.{before}", n, stage, through, (before,)))
    found.append(_end("grad.weights.embedding", ("grad.embedding",), (), embedding_table))
    return {node.name: node for node in found}


def _end(name: str, grads: tuple[str, ...], forward: tuple[str, ...], compute: Compute) -> Node:
    return Node(name, None, Stage(name, grads, forward, compute), grads, forward)


def _placed(stage: str, n: int) -> str:
    for prefix in ("grad.weights.", "grad."):
        if stage.startswith(prefix):
            return f"{prefix}block.{n}.{stage.removeprefix(prefix)}"
    raise AssertionError(stage)


def balancing(
    coefficient: float, logits_of: list[Array], indices_of: list[Array], policy: Policy
) -> Callable[[int, bool], Array]:
    """The load-balancing gradient (T, E) of each block's router logits, with its coefficient."""

    def of(layer: int, softmaxed: bool) -> Array:
        inputs = [_softmax(x) for x in logits_of] if softmaxed else logits_of
        _, found = load_balancing(inputs, indices_of, policy=policy)
        d = coefficient * found[layer]
        if softmaxed:
            p = inputs[layer]
            d = p * (d - (p * d).sum(-1, keepdims=True))
        return policy.round(d)

    return of


def _softmax(x: Array) -> Array:
    exp = np.exp(x - x.max(-1, keepdims=True))
    p: Array = exp / exp.sum(-1, keepdims=True)
    return p
