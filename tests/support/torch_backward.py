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
from functools import partial
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
Keep = Callable[[str, Tensor], Tensor]


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


class Ops:
    """The operations of the model, each of which a test may replace by one with another backward.

    Attention is divided as OpenAI's ``sdpa`` divides it, and the experts gather their weights.
    """

    def embedding(self, table: Tensor, tokens: Tensor) -> Tensor:
        return table[tokens]

    def norm(self, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        return twin.rmsnorm(x, scale, eps)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return twin.rope(x, cos, sin)

    def spread(self, x: Tensor, group: int, name: str) -> Tensor:
        """Keys or values (S, K, C) for every head of their group: (S, K, G, C)."""
        return x[:, :, None].expand(-1, -1, group, -1)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(T, K, G, C), (S, K, G, C) -> (K, G, T, S)."""
        return product("qkgc,skgc->kgqs", q, k) * (1 / math.sqrt(q.shape[-1]))

    def softmax(self, scores: Tensor, sinks: Tensor, hidden: Tensor) -> Tensor:
        """Weights (K, G, T, S) of the keys."""
        scores = scores.masked_fill(hidden, -math.inf)
        kv_heads, group, length, _ = scores.shape
        column = sinks.reshape(kv_heads, group, 1, 1).expand(-1, -1, length, -1)
        return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """(K, G, T, S), (S, K, G, C) -> (T, K, G, C)."""
        return product("kgqs,skgc->qkgc", weights, v)

    def shares(self, logits: Tensor, order: Tensor) -> Tensor:
        """Softmax over the chosen: (T, A) of (T, E)."""
        return torch.softmax(logits.gather(-1, order), -1)

    def gathered(
        self, equation: str, a: Tensor, weight: Tensor, bias: Tensor, indices: Tensor
    ) -> Tensor:
        """One linear layer of each token's experts; the weights' gradients are summed wide."""
        y = torch.einsum(equation, wide(a), wide(weight)[indices]).to(a.dtype)
        return y + wide(bias)[indices].to(a.dtype)

    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        return twin.swiglu(x, alpha, limit)

    def combined(self, answers: Tensor, shares: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
        """(T, A, D), (T, A) -> (T, D); ``bias`` (E, D) is part of the answers already."""
        return product("tad,ta->td", answers, shares)

    def residual(self, x: Tensor, t: Tensor) -> Tensor:
        return x + t

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor,
        age: Tensor,
        window: int | None,
        keep: Keep = lambda name, value: value,
    ) -> Tensor:
        """The mix (T, H*C)."""
        length, _, channels = q.shape
        q = q.reshape(length, k.shape[1], -1, channels)
        k, v = self.spread(k, q.shape[2], "k"), self.spread(v, q.shape[2], "v")
        hidden = age < 0 if window is None else (age < 0) | (age >= window)
        weights = self.softmax(self.scores(q, k), sinks, hidden)
        shape = weights.shape
        weights = keep("weights", weights.reshape(-1, *shape[2:])).reshape(shape)
        return self.mix(weights, v).reshape(length, -1)

    def experts(
        self,
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        mlp1_weight: Tensor,
        mlp1_bias: Tensor,
        mlp2_weight: Tensor,
        mlp2_bias: Tensor,
        alpha: float = 1.702,
        limit: float = 7.0,
        keep: Keep = lambda name, value: value,
    ) -> Tensor:
        """The experts' answers for all tokens at once."""
        gate_up = self.gathered("td,tafd->taf", x, mlp1_weight, mlp1_bias, indices)
        activated = keep("swiglu", self.swiglu(keep("gate_up", gate_up), alpha, limit))
        answers = self.gathered("taf,tadf->tad", activated, mlp2_weight, mlp2_bias, indices)
        return self.combined(keep("expert_out", answers), weights, mlp2_bias, indices)


class ModelGradients(NamedTuple):
    loss: float
    taps: dict[str, Array]
    weights: dict[str, Array]
    forward: dict[str, Array]


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
    ops: Ops | None = None,
) -> ModelGradients:
    """Loss and gradients; ``loss`` of logits and router logits, else that of the next token."""
    with torch.enable_grad():
        weights = {n: w.requires_grad_() for n, w in as_torch(arrays, TORCH[policy]).items()}
        taps: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            if value.is_floating_point() and value.requires_grad:
                value.retain_grad()
            taps[name] = value
            return value

        logits, routers = forward(config, weights, tokens, keep, ops or Ops())
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
        {name: as_array(tap.detach()) for name, tap in taps.items()},
    )


def next_token(logits: Tensor, tokens: Any) -> Tensor:
    wanted = torch.as_tensor(np.asarray(tokens)[1:])
    return torch.nn.functional.cross_entropy(wide(logits[:-1]), wanted)


def forward(
    config: ModelConfig, weights: Mapping[str, Tensor], tokens: Any, keep: Keep, ops: Ops
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
    eps, c, active = config.rms_norm_eps, config.head_dim, config.experts_per_token
    routers = []
    ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long)
    x = keep("embedding", ops.embedding(weights["embedding"], ids))
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.attn."
        w = {name[len(at) :]: value for name, value in weights.items() if name.startswith(at)}
        here = partial(_within, keep, at)
        t = here("norm", ops.norm(x, w["norm.scale"], eps))
        rows = [w[f"{letter}.weight"] for letter in "qkv"]
        biases = torch.cat([w[f"{letter}.bias"] for letter in "qkv"])
        fused = twin.linear(t, torch.cat(rows), biases)
        parts = fused.split([len(r) for r in rows], -1)
        q, k, v = (here(a, p.reshape(len(x), -1, c)) for a, p in zip("qkv", parts, strict=True))
        q, k = here("q_rope", ops.rope(q, *tables)), here("k_rope", ops.rope(k, *tables))
        window = twin.window_of(config, n)
        mix = here("mix", ops.attended(q, k, v, w["sinks"], age, window, here))
        t = here("out", twin.linear(mix, w["out.weight"], w["out.bias"]))
        x = here("residual", ops.residual(x, t))

        at = f"block.{n}.mlp."
        w = {name[len(at) :]: value for name, value in weights.items() if name.startswith(at)}
        here = partial(_within, keep, at)
        t = here("norm", ops.norm(x, w["norm.scale"], eps))
        logits = here("router_logits", twin.linear(t, w["gate.weight"], w["gate.bias"]))
        routers.append(logits)
        order = torch.sort(logits, dim=-1, descending=True, stable=True)[1][:, :active]
        here("expert_indices", order)
        shares = here("expert_weights", ops.shares(logits, order))
        names = ("mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")
        clamp = (config.swiglu_alpha, config.swiglu_limit)
        t = ops.experts(t, order, shares, *(w[name] for name in names), *clamp, here)
        x = here("residual", ops.residual(x, here("out", t)))
    x = keep("norm", ops.norm(x, weights["norm.scale"], eps))
    return keep("logits", twin.linear(x, weights["unembedding"])), routers


def _within(keep: Keep, at: str, name: str, value: Tensor) -> Tensor:
    return keep(at + name, value)
