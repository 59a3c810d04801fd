"""The gpt-oss architecture in torch, arranged for training on shared prefixes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batch import TAIL, Batch
from ops import Attention, Experts, StraightThrough, rmsnorm, rope


@dataclass(frozen=True)
class Config:
    """Dimensions of the tiny model; no two are alike, so that a swapped axis cannot go unseen."""

    vocab_size: int = 476
    hidden_size: int = 160
    intermediate_size: int = 96
    num_layers: int = 5
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    num_experts: int = 16
    experts_per_token: int = 4
    window: int = 24
    rope_theta: float = 150000.0
    rope_factor: float = 8.0
    original_length: int = 256
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    eps: float = 1e-5
    limit: float = 7.0


def yarn(cfg: Config) -> tuple[Tensor, float]:
    """Return YaRN's inverse frequencies (C/2,), float64, and its concentration."""
    half = cfg.head_dim // 2

    def pair(beta: float) -> float:
        turns = cfg.original_length / (beta * 2 * math.pi)
        return half * math.log(turns) / math.log(cfg.rope_theta)

    low, high = pair(cfg.beta_fast), pair(cfg.beta_slow)
    if not 0 < low < high < half - 1:
        raise ValueError(f"YaRN ramp from {low} to {high}: expected 0 < low < high < {half - 1}")
    i = torch.arange(half, dtype=torch.float64)
    ramp = ((i - low) / (high - low)).clamp(0, 1)
    inverse = cfg.rope_theta ** (-i / half)
    return inverse * (ramp / cfg.rope_factor + 1 - ramp), 0.1 * math.log(cfg.rope_factor) + 1


class Block(nn.Module):
    """Attention and experts, each after a norm; weights as gptoss_ref stores them.

    Except that mlp1 has the gate's rows first and then up's; the export interleaves them.
    """

    def __init__(self, cfg: Config, windowed: bool) -> None:
        super().__init__()
        self.cfg, self.windowed = cfg, windowed
        d, h, k, c = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        e, f = cfg.num_experts, cfg.intermediate_size
        shrink = 1 / math.sqrt(2 * cfg.num_layers)  # of what is added to the residual stream

        def matrix(*shape: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1]) * scale)

        self.attn_norm = nn.Parameter(torch.ones(d))
        self.qkv_weight = matrix((h + 2 * k) * c, d)
        self.qkv_bias = nn.Parameter(torch.zeros((h + 2 * k) * c))
        self.sinks = nn.Parameter(torch.zeros(h))
        self.out_weight = matrix(d, h * c, scale=shrink)
        self.out_bias = nn.Parameter(torch.zeros(d))
        self.mlp_norm = nn.Parameter(torch.ones(d))
        self.router_weight = matrix(e, d, scale=0.5)
        self.router_bias = nn.Parameter(torch.zeros(e))
        self.mlp1_weight = matrix(e, 2 * f, d)
        self.mlp1_bias = nn.Parameter(torch.zeros(e, 2 * f))
        self.mlp2_weight = matrix(e, d, f, scale=shrink)
        self.mlp2_bias = nn.Parameter(torch.zeros(e, d))

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        """Return (N,D): prefixes attend to themselves, branches to their prefix and themselves."""
        cfg = self.cfg
        h, k, c = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        normed = rmsnorm(x, self.attn_norm, cfg.eps)
        qkv = F.linear(normed, self.qkv_weight.bfloat16(), self.qkv_bias.bfloat16())
        q, key, value = qkv.view(-1, h + 2 * k, c).split((h, k, k), 1)
        q, key = rope(q, cos, sin, c**-0.5), rope(key, cos, sin, 1.0)
        sinks = self.sinks.view(k, h // k)

        def heads(t: Tensor, rows: slice, count: int) -> Tensor:
            return t[rows].view(count, -1, k, c).transpose(1, 2)  # (B,K,L,C)

        def attend(rows: slice, count: int, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
            mine = q[rows].view(count, -1, k, h // k, c).permute(0, 2, 3, 1, 4)
            mix = Attention.apply(mine, keys, values, mask, sinks)  # (B,K,G,L,C)
            return mix.permute(0, 3, 1, 2, 4).reshape(-1, h * c)

        count, length = batch.num_prefixes, batch.prefix_length
        rows = slice(0, count * length)
        prefix_keys, prefix_values = heads(key, rows, count), heads(value, rows, count)
        mask = batch.prefix_windowed if self.windowed else batch.prefix_full
        mixed = [attend(rows, count, prefix_keys, prefix_values, mask)]
        first = length - TAIL if self.windowed else 0
        prefix_keys, prefix_values = prefix_keys[:, :, first:], prefix_values[:, :, first:]
        for group in batch.groups:
            rows = group.rows
            keys = torch.cat((prefix_keys[group.prefix], heads(key, rows, group.count)), 2)
            values = torch.cat((prefix_values[group.prefix], heads(value, rows, group.count)), 2)
            mask = group.windowed if self.windowed else group.full
            mixed.append(attend(rows, group.count, keys, values, mask))
        return F.linear(torch.cat(mixed), self.out_weight.bfloat16(), self.out_bias.bfloat16())

    def mlp(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N,D) and the balance loss, E · Σ (share of choices · mean probability)."""
        cfg = self.cfg
        normed = rmsnorm(x, self.mlp_norm, cfg.eps)
        logits = F.linear(normed.float(), self.router_weight, self.router_bias)
        top = torch.topk(logits, cfg.experts_per_token, dim=-1)
        weights = torch.softmax(top.values, -1)
        probability = (torch.softmax(logits, -1) * valid[:, None]).sum(0) / valid.sum()
        with torch.no_grad():
            chosen = valid[:, None].expand(-1, cfg.experts_per_token)
            share = torch.zeros_like(logits).scatter_(1, top.indices, chosen).sum(0)
            share = share / share.sum()
        balance = cfg.num_experts * (probability * share).sum()
        out = Experts.apply(
            normed,
            weights,
            top.indices,
            StraightThrough.apply(self.mlp1_weight),
            self.mlp1_bias.bfloat16(),
            StraightThrough.apply(self.mlp2_weight),
            self.mlp2_bias.bfloat16(),
        )
        return out, balance


class TinyGptOss(nn.Module):
    """Embedding, blocks, norm, unembedding; the residual stream is float32."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        d, v = cfg.hidden_size, cfg.vocab_size
        self.embedding = nn.Parameter(torch.randn(v, d) * 0.1)
        self.blocks = nn.ModuleList(Block(cfg, n % 2 == 0) for n in range(cfg.num_layers))
        self.norm = nn.Parameter(torch.ones(d))
        self.unembedding = nn.Parameter(torch.randn(v, d) / math.sqrt(d) * 0.5)
        inverse, self.concentration = yarn(cfg)
        self.register_buffer("inverse_frequency", inverse, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (n,V) and targets (n,) where the loss counts, and the balance loss."""
        angles = batch.positions[:, None].double() * self.inverse_frequency
        cos = (angles.cos() * self.concentration).float()
        sin = (angles.sin() * self.concentration).float()
        x = F.embedding(batch.tokens, self.embedding)
        balance = x.new_zeros(())
        for block in self.blocks:
            x = x + block.attention(x, cos, sin, batch)
            out, uneven = block.mlp(x, batch.valid)
            x = x + out
            balance = balance + uneven / self.cfg.num_layers
        where = torch.nonzero(batch.targets >= 0).squeeze(1)
        normed = rmsnorm(x[where], self.norm, self.cfg.eps)
        logits = F.linear(normed, self.unembedding.bfloat16()).float()
        return logits, batch.targets[where], balance
