"""A torch module whose submodules carry the names of OpenAI's reference, to try `capture` on.

Written for the tests. What it computes is the published definition; how it is divided into
modules and functions (a fused ``qkv``, ``rope`` as a module, residual additions inside ``attn`` and
``mlp``, ``swiglu`` as a function of this file) is how OpenAI's module is divided.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_ref.config import ModelConfig
from tests.support.strategies import Arrays, as_torch


def swiglu(x: Tensor, limit: float) -> Tensor:
    """(..., 2F) -> (..., F), gate and up interleaved."""
    gate, up = x[..., 0::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


class Norm(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.scale = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        wide = wide / torch.sqrt((wide**2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.scale).to(x.dtype)


class Rope(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.base = config.rope_theta
        self.scaling_factor = config.rope_scaling_factor
        self.initial_context_length = config.initial_context_length
        self.ntk_alpha, self.ntk_beta = config.rope_ntk_alpha, config.rope_ntk_beta

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        half = q.shape[-1] // 2
        freq = self.base ** (torch.arange(half, dtype=torch.float64) / half)
        inverse, concentration = 1 / freq, 1.0
        if self.scaling_factor > 1:
            low, high = (
                half
                * math.log(self.initial_context_length / (beta * 2 * math.pi))
                / math.log(self.base)
                for beta in (self.ntk_beta, self.ntk_alpha)
            )
            ramp = ((torch.arange(half, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
            inverse = ramp / (self.scaling_factor * freq) + (1 - ramp) / freq
            concentration = 0.1 * math.log(self.scaling_factor) + 1
        angle = torch.arange(len(q))[:, None] * inverse
        cos, sin = angle.cos() * concentration, angle.sin() * concentration

        def rotated(x: Tensor) -> Tensor:
            rows = x.reshape(len(x), -1, 2 * half)
            a, b = rows[..., :half], rows[..., half:]
            c, s = (table[:, None].to(x.dtype) for table in (cos, sin))
            return torch.cat([a * c - b * s, b * c + a * s], -1).reshape(x.shape)

        return rotated(q), rotated(k)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, n: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.sliding_window = config.window(n) or 0
        rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        self.norm = Norm(config)
        self.qkv = nn.Linear(config.hidden_size, rows)
        self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.out = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size)
        self.rope = Rope(config)

    def forward(self, x: Tensor) -> Tensor:
        heads, groups, c = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        q, k, v = self.qkv(self.norm(x)).split([heads * c, groups * c, groups * c], -1)
        q = q.reshape(len(x), groups, heads // groups, c)
        k, v = (part.reshape(len(x), groups, c) for part in (k, v))
        q, k = self.rope(q, k)
        scores = torch.einsum("qkgc,skc->kgqs", q, k) / math.sqrt(c)
        age = torch.arange(len(x))[:, None] - torch.arange(len(x))
        hidden = (age < 0) | ((age >= self.sliding_window) if self.sliding_window else False)
        scores = scores.masked_fill(hidden, -math.inf)
        sinks = self.sinks.reshape(groups, -1, 1, 1).expand(-1, -1, len(x), 1)
        weights = torch.softmax(torch.cat([scores, sinks.to(x.dtype)], -1), -1)[..., :-1]
        mix = torch.einsum("kgqs,skc->qkgc", weights, v).reshape(len(x), -1)
        return x + self.out(mix)


class Experts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        e, d, f = config.num_experts, config.hidden_size, config.intermediate_size
        self.num_experts, self.experts_per_token = e, config.experts_per_token
        self.swiglu_limit = config.swiglu_limit
        self.norm = Norm(config)
        self.gate = nn.Linear(d, e)
        self.mlp1_weight = nn.Parameter(torch.zeros(e, 2 * f, d))
        self.mlp1_bias = nn.Parameter(torch.zeros(e, 2 * f))
        self.mlp2_weight = nn.Parameter(torch.zeros(e, d, f))
        self.mlp2_bias = nn.Parameter(torch.zeros(e, d))

    def forward(self, x: Tensor) -> Tensor:
        t = self.norm(x)
        chosen = torch.topk(self.gate(t), self.experts_per_token, dim=-1)
        shares = torch.softmax(chosen.values, -1)
        picked = chosen.indices
        t = torch.einsum("tafd,td->taf", self.mlp1_weight[picked], t) + self.mlp1_bias[picked]
        t = swiglu(t, self.swiglu_limit)
        t = torch.einsum("tadf,taf->tad", self.mlp2_weight[picked], t)
        t += self.mlp2_bias[picked]
        return x + torch.einsum("tad,ta->td", t, shares)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, n: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config, n), Experts(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attn(x))


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.block = nn.ModuleList(Block(config, n) for n in range(config.num_hidden_layers))
        self.norm = Norm(config)
        self.unembedding = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.block:
            x = block(x)
        return self.unembedding(self.norm(x))


def openai_module(config: ModelConfig, arrays: Arrays, dtype: Any = torch.float32) -> Transformer:
    """The module with every weight copied from ``arrays``."""
    state: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in as_torch(arrays, dtype).items():
        stem, _, last = name.rpartition(".")
        letter = stem.rpartition(".")[2]
        if letter in ("q", "k", "v"):
            fused.setdefault(f"{stem[:-1]}qkv.{last}", {})[letter] = tensor
        else:
            state[name + ".weight" if name in ("embedding", "unembedding") else name] = tensor
    for name, parts in fused.items():
        state[name] = torch.cat([parts[letter] for letter in "qkv"])
    module = Transformer(config).eval()
    for name, parameter in module.named_parameters():
        parameter.data = state.pop(name).clone()
    assert not state, f"unused: {list(state)}"
    return module
