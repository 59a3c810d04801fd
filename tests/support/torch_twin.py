"""The model in plain PyTorch, written from the published definition only: the oracle of the tests.

Functional, slow and obvious. No line is shared with ``gptoss_ref`` and nothing is imported from it,
so that agreement means something. The dtype of the tensors says how it is run:

* float64: the reference for everything; rotary angles in float64.
* float32: rotary angles in float64, cos and sin rounded once.
* bfloat16: rounds where OpenAI's torch reference (gpt_oss/torch/model.py) stores a bfloat16 tensor:
  after every elementwise step of SwiGLU, rotation, scaling and residual addition, after each matrix
  product with its bias, after softmax, at the end of RMSNorm; rotary angles are float32 there.
  Sums inside one matrix product run in float32 and are rounded once. That is done explicitly
  (``product``), because how torch's own bfloat16 kernels sum depends on the CPU.

Axis letters: T queries, S keys, D hidden, H query heads, K key/value heads, G = H / K, C head size,
E experts, A experts per token, F intermediate size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Tap = Callable[[str, Tensor], None]


def wide(x: Tensor) -> Tensor:
    """bfloat16 as float32, for a step that is computed wide and rounded once; others as is."""
    return x.float() if x.dtype == torch.bfloat16 else x


def product(equation: str, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """einsum, plus bias, rounded once to the dtype of ``a``."""
    out = torch.einsum(equation, wide(a), wide(b))
    if bias is not None:
        out = out + wide(bias)
    return out.to(a.dtype)


def rmsnorm(x: Tensor, scale: Tensor, eps: float = 1e-5) -> Tensor:
    """(T, D) -> (T, D): x / sqrt(mean(x^2) + eps) times scale, one rounding at the end."""
    t = wide(x)
    t = t * torch.rsqrt((t * t).mean(-1, keepdim=True) + eps)
    return (t * wide(scale)).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., M) times (N, M) transposed, plus (N,)."""
    return product("...m,nm->...n", x, weight, bias)


def yarn(
    head_dim: int,
    theta: float,
    factor: float = 1.0,
    original_length: float = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, float]:
    """Inverse frequencies (C/2,) and the concentration; low and high are not rounded."""
    half = head_dim // 2
    freq = theta ** (torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    if factor <= 1:
        return 1 / freq, 1.0
    low = half * math.log(original_length / (beta_fast * 2 * math.pi)) / math.log(theta)
    high = half * math.log(original_length / (beta_slow * 2 * math.pi)) / math.log(theta)
    ramp = ((torch.arange(half, dtype=dtype) - low) / (high - low)).clamp(0, 1)
    inv_freq = ramp * (1 / (factor * freq)) + (1 - ramp) * (1 / freq)
    return inv_freq, 0.1 * math.log(factor) + 1


def rope_tables(
    positions: Tensor, inv_freq: Tensor, concentration: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin (T, C/2) times the concentration, rounded to ``dtype`` at the end."""
    angle = positions.to(inv_freq.dtype)[:, None] * inv_freq[None, :]
    return (angle.cos() * concentration).to(dtype), (angle.sin() * concentration).to(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(T, H, C): element i of the first half is rotated with element i of the second half."""
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def attention_weights(
    q: Tensor,
    k: Tensor,
    sinks: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    window: int | None = None,
) -> Tensor:
    """q (T, H, C), k (S, K, C) -> (H, T, S); the sink takes its share and its column is dropped."""
    n_queries, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    age = q_positions[:, None] - k_positions[None, :]
    hidden = age < 0
    if window is not None:
        hidden = hidden | (age >= window)
    heads = []
    for h in range(n_heads):
        scores = product("tc,sc->ts", q[:, h], k[:, h // group])
        scores = scores * (1 / math.sqrt(head_dim))
        scores = scores.masked_fill(hidden, -math.inf)
        column = sinks[h].expand(n_queries, 1)
        heads.append(torch.softmax(torch.cat([scores, column], -1), -1)[:, :-1])
    return torch.stack(heads)


def attention_mix(weights: Tensor, v: Tensor) -> Tensor:
    """weights (H, T, S), v (S, K, C) -> (T, H*C)."""
    group = weights.shape[0] // v.shape[1]
    heads = [product("ts,sc->tc", w, v[:, h // group]) for h, w in enumerate(weights)]
    return torch.cat(heads, -1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    window: int | None = None,
) -> Tensor:
    """(T, H*C), in blocks of queries so that long contexts fit in memory."""
    return torch.cat(
        [
            attention_mix(attention_weights(a, k, sinks, p, k_positions, window), v)
            for a, p in zip(q.split(512), q_positions.split(512), strict=True)
        ]
    )


def router(
    x: Tensor, weight: Tensor, bias: Tensor, experts_per_token: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (T, E), indices (T, A) and weights (T, A): softmax over the A largest logits only."""
    logits = linear(x, weight, bias)
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    chosen = ordered[:, :experts_per_token]
    return logits, order[:, :experts_per_token], torch.softmax(chosen, -1)


def swiglu(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """(..., 2F) -> (..., F): even entries are the gate, odd ones the up projection."""
    gate = x[..., 0::2].clamp(max=limit)
    up = x[..., 1::2].clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


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
    tap: Tap | None = None,
) -> Tensor:
    """(T, D) -> (T, D): each token's A experts, weighted with their biases, summed."""
    n_tokens, n_chosen = indices.shape
    n_experts, d_model, d_ff = mlp2_weight.shape
    gate_up = x.new_empty(n_tokens, n_chosen, 2 * d_ff)
    act = x.new_empty(n_tokens, n_chosen, d_ff)
    out = x.new_empty(n_tokens, n_chosen, d_model)
    for e in range(n_experts):
        t, a = (indices == e).nonzero(as_tuple=True)
        gate_up[t, a] = product("td,fd->tf", x[t], mlp1_weight[e]) + mlp1_bias[e]
        act[t, a] = swiglu(gate_up[t, a], alpha, limit)
        out[t, a] = product("tf,df->td", act[t, a], mlp2_weight[e]) + mlp2_bias[e]
    if tap is not None:
        tap("gate_up", gate_up)
        tap("swiglu", act)
        tap("expert_out", out)
    return product("tad,ta->td", out, weights)


def window_of(config: Any, layer: int) -> int | None:
    """Keys a position of this layer sees, itself included; None: all."""
    if config.layer_types is None:
        return config.sliding_window if layer % 2 == 0 else None
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None


def forward(
    config: Any, weights: Mapping[str, Tensor], tokens: Any, tap: Tap | None = None
) -> Tensor:
    """Logits (T, V) of one pass without a cache.

    ``weights`` has the OpenAI checkpoint's names, with q, k and v apart and experts as matrices;
    their dtype is the dtype of the run. ``tap`` gets each intermediate under its published name.
    """

    def keep(name: str, value: Tensor) -> Tensor:
        if tap is not None:
            tap(name, value)
        return value

    dtype = weights["embedding"].dtype
    n_q, n_kv, c = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    eps = config.rms_norm_eps
    positions = torch.arange(len(tokens))
    inv_freq, concentration = yarn(
        c,
        config.rope_theta,
        config.rope_scaling_factor,
        config.initial_context_length,
        config.rope_ntk_beta,
        config.rope_ntk_alpha,
        dtype=torch.float32 if dtype == torch.bfloat16 else torch.float64,
    )
    cos, sin = rope_tables(positions, inv_freq, concentration, dtype)

    x = keep("embedding", weights["embedding"][torch.as_tensor(tokens, dtype=torch.long)])
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.attn."
        w = {name[len(at) :]: value for name, value in weights.items() if name.startswith(at)}
        t = keep(at + "norm", rmsnorm(x, w["norm.scale"], eps))
        q = keep(at + "q", linear(t, w["q.weight"], w["q.bias"]).reshape(-1, n_q, c))
        k = keep(at + "k", linear(t, w["k.weight"], w["k.bias"]).reshape(-1, n_kv, c))
        v = keep(at + "v", linear(t, w["v.weight"], w["v.bias"]).reshape(-1, n_kv, c))
        q = keep(at + "q_rope", rope(q, cos, sin))
        k = keep(at + "k_rope", rope(k, cos, sin))
        window = window_of(config, n)
        if tap is not None:
            tap(at + "weights", attention_weights(q, k, w["sinks"], positions, positions, window))
        mix = keep(at + "mix", attention(q, k, v, w["sinks"], positions, positions, window))
        t = keep(at + "out", linear(mix, w["out.weight"], w["out.bias"]))
        x = keep(at + "residual", x + t)

        at = f"block.{n}.mlp."
        w = {name[len(at) :]: value for name, value in weights.items() if name.startswith(at)}
        t = keep(at + "norm", rmsnorm(x, w["norm.scale"], eps))
        logits, indices, shares = router(
            t, w["gate.weight"], w["gate.bias"], config.experts_per_token
        )
        keep(at + "router_logits", logits)
        keep(at + "expert_indices", indices)
        keep(at + "expert_weights", shares)
        t = experts(
            t,
            indices,
            shares,
            w["mlp1_weight"],
            w["mlp1_bias"],
            w["mlp2_weight"],
            w["mlp2_bias"],
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            tap=None if tap is None else lambda name, value, at=at: tap(at + name, value),
        )
        keep(at + "out", t)
        x = keep(at + "residual", x + t)
    x = keep("norm", rmsnorm(x, weights["norm.scale"], eps))
    return keep("logits", linear(x, weights["unembedding"]))
