"""Gradients by torch autograd: of one layer of the twin, and of the whole model.

``layer_gradients`` differentiates any function of tensors. ``model_gradients`` runs the model in
the form of OpenAI's reference, in which every tap point is one tensor of the graph (the twin fills
its experts' stages in place, which autograd cannot look into), and reads the gradients off.

In bfloat16 sums over tokens are taken in float32 and rounded once, by indexing the *wide* expert
weights; everything else is stored where OpenAI's reference stores it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptoss_ref.config import ModelConfig
from tests.support import torch_twin as twin
from tests.support.agreement import TORCH, as_array, as_tensor
from tests.support.strategies import Arrays, as_torch
from tests.support.torch_twin import product, wide

Array = NDArray[Any]


def layer_gradients(
    function: Callable[..., Tensor], d_out: Any, policy: str, **inputs: Any
) -> dict[str, Array]:
    """Gradients of the float inputs of ``function``, for the gradient ``d_out`` of its result."""
    with torch.enable_grad():
        tensors = {name: as_tensor(value, policy) for name, value in inputs.items()}
        wanted = [t.requires_grad_() for t in tensors.values() if t.is_floating_point()]
        out = function(**tensors)
        found = torch.autograd.grad(out, wanted, as_tensor(d_out, policy))
    names = [name for name, t in tensors.items() if t.is_floating_point()]
    return {name: as_array(d) for name, d in zip(names, found, strict=True)}


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, age: Tensor, window: int | None
) -> tuple[Tensor, Tensor]:
    """Attention as OpenAI's ``sdpa`` divides it: weights (H, T, S) and mix (T, H*C)."""
    length, heads, channels = q.shape
    kv_heads = k.shape[1]
    q = q.reshape(length, kv_heads, -1, channels)
    k, v = (a[:, :, None].expand(-1, -1, q.shape[2], -1) for a in (k, v))
    scores = product("qkgc,skgc->kgqs", q, k) * (1 / math.sqrt(channels))
    hidden = age < 0 if window is None else (age < 0) | (age >= window)
    scores = scores.masked_fill(hidden, -math.inf)
    column = sinks.reshape(kv_heads, -1, 1, 1).expand(-1, -1, length, -1)
    weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    weights = weights.reshape(heads, length, -1)
    grouped = weights.reshape(kv_heads, -1, *weights.shape[1:])
    return weights, product("kgqs,skgc->qkgc", grouped, v).reshape(length, -1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    window: int | None,
) -> Tensor:
    return sdpa(q, k, v, sinks, q_positions[:, None] - k_positions, window)[1]


def experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    mlp1_weight: Tensor,
    mlp1_bias: Tensor,
    mlp2_weight: Tensor,
    mlp2_bias: Tensor,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    keep: Callable[[str, Tensor], Tensor] = lambda name, value: value,
) -> Tensor:
    """The experts' answers for all tokens at once, by gathering the chosen experts' weights."""

    def gathered(equation: str, a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch.einsum(equation, wide(a), wide(weight)[indices]).to(x.dtype)
        return y + wide(bias)[indices].to(x.dtype)

    gate_up = keep("gate_up", gathered("td,tafd->taf", x, mlp1_weight, mlp1_bias))
    activated = keep("swiglu", twin.swiglu(gate_up, alpha, limit))
    answers = keep("expert_out", gathered("taf,tadf->tad", activated, mlp2_weight, mlp2_bias))
    return product("tad,ta->td", answers, weights)


class ModelGradients(NamedTuple):
    loss: float
    taps: dict[str, Array]
    weights: dict[str, Array]


def field_name(name: str) -> str:
    """``block.0.attn.q.weight`` of the twin as the package's ``block.0.attn.q_weight``."""
    head, _, last = name.rpartition(".")
    if not head or head.endswith((".attn", ".mlp")):
        return name
    return f"{head}_{last}"


def model_gradients(
    config: ModelConfig,
    arrays: Arrays,
    tokens: Any,
    loss: Callable[[Tensor, list[Tensor]], Tensor] | None = None,
    policy: str = "float64",
) -> ModelGradients:
    """Loss and gradients; ``loss`` of logits and router logits, else that of the next token."""
    with torch.enable_grad():
        weights = {n: w.requires_grad_() for n, w in as_torch(arrays, TORCH[policy]).items()}
        taps: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            if value.is_floating_point():
                value.retain_grad()
                taps[name] = value
            return value

        logits, routers = forward(config, weights, tokens, keep)
        if loss is None:
            value = next_token(logits, tokens)
        else:
            value = loss(logits, routers)
        value.backward()  # type: ignore[no-untyped-call]
    empty = {n: w for n, w in weights.items() if w.grad is None}
    for w in empty.values():
        w.grad = torch.zeros_like(w)
    return ModelGradients(
        float(value),
        {name: as_array(tap.grad) for name, tap in taps.items() if tap.grad is not None},
        {field_name(n): as_array(w.grad) for n, w in weights.items() if w.grad is not None},
    )


def next_token(logits: Tensor, tokens: Any) -> Tensor:
    wanted = torch.as_tensor(np.asarray(tokens)[1:])
    return torch.nn.functional.cross_entropy(wide(logits[:-1]), wanted)


def forward(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokens: Any,
    keep: Callable[[str, Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the routers' logits of each block."""
    dtype = weights["embedding"].dtype
    inv_freq, concentration = twin.yarn(
        config.head_dim,
        config.rope_theta,
        config.rope_scaling_factor,
        config.initial_context_length,
        config.rope_ntk_beta,
        config.rope_ntk_alpha,
        dtype=torch.float32 if dtype == torch.bfloat16 else torch.float64,
    )
    positions = torch.arange(len(tokens))
    age = positions[:, None] - positions
    tables = twin.rope_tables(positions, inv_freq, concentration, dtype)
    eps, c, routers = config.rms_norm_eps, config.head_dim, []
    x = keep("embedding", weights["embedding"][torch.as_tensor(tokens, dtype=torch.long)])
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.attn."
        w = {name[len(at) :]: value for name, value in weights.items() if name.startswith(at)}
        t = keep(at + "norm", twin.rmsnorm(x, w["norm.scale"], eps))
        rows = [w[f"{letter}.weight"] for letter in "qkv"]
        fused = twin.linear(t, torch.cat(rows), torch.cat([w[f"{c_}.bias"] for c_ in "qkv"]))
        q, k, v = (
            keep(at + letter, part.reshape(len(x), -1, c))
            for letter, part in zip("qkv", fused.split([len(r) for r in rows], -1), strict=True)
        )
        q, k = (
            keep(at + "q_rope", twin.rope(q, *tables)),
            keep(at + "k_rope", twin.rope(k, *tables)),
        )
        shares, mix = sdpa_kept(q, k, v, w["sinks"], age, twin.window_of(config, n), keep, at)
        t = keep(at + "out", twin.linear(keep(at + "mix", mix), w["out.weight"], w["out.bias"]))
        x = keep(at + "residual", x + t)

        at = f"block.{n}.mlp."
        w = {name[len(at) :]: value for name, value in weights.items() if name.startswith(at)}
        t = keep(at + "norm", twin.rmsnorm(x, w["norm.scale"], eps))
        logits = keep(at + "router_logits", twin.linear(t, w["gate.weight"], w["gate.bias"]))
        routers.append(logits)
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        active = config.experts_per_token
        shares = keep(at + "expert_weights", torch.softmax(ordered[:, :active], -1))
        t = experts(
            t,
            order[:, :active],
            shares,
            *(w[name] for name in ("mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")),
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            keep=lambda name, value, at=at: keep(at + name, value),  # type: ignore[misc]
        )
        x = keep(at + "residual", x + keep(at + "out", t))
    x = keep("norm", twin.rmsnorm(x, weights["norm.scale"], eps))
    return keep("logits", twin.linear(x, weights["unembedding"])), routers


def sdpa_kept(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    age: Tensor,
    window: int | None,
    keep: Callable[[str, Tensor], Tensor],
    at: str,
) -> tuple[Tensor, Tensor]:
    """``sdpa`` with its weights on the way from scores to mix."""
    weights, _ = sdpa(q, k, v, sinks, age, window)
    weights = keep(at + "weights", weights)
    kv_heads = k.shape[1]
    values = v[:, :, None].expand(-1, -1, q.shape[1] // kv_heads, -1)
    grouped = weights.reshape(kv_heads, -1, *weights.shape[1:])
    return weights, product("kgqs,skgc->qkgc", grouped, values).reshape(len(q), -1)
