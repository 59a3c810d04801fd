"""Weights stored otherwise, for code that expects them so: the same function, other tap points."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.buggy_twin.arithmetic import Bugs
from tests.support.buggy_twin.checkpoints import Config


def rewrite(config: Config, weights: dict[str, Tensor], bugs: Bugs) -> None:
    """Changes ``weights`` (float64, before they are rounded to the dtype of the run) in place."""
    width = config.head_dim
    # llama.cpp's order of rows, for rotations of adjacent pairs: 0, C/2, 1, C/2 + 1, ...
    adjacent = torch.arange(width).reshape(2, -1).T.flatten()
    # gates first, then ups
    apart = torch.arange(2 * config.intermediate_size).reshape(-1, 2).T.flatten()
    for n in range(config.num_hidden_layers):
        attn, mlp = f"block.{n}.attn.", f"block.{n}.mlp."
        if "rope-pairs-adjacent" in bugs:
            for name in ("q.weight", "q.bias", "k.weight", "k.bias"):
                rows = weights[attn + name]
                heads = rows.reshape(-1, width, *rows.shape[1:])
                weights[attn + name] = heads[:, adjacent].reshape(rows.shape)
        if "scale-in-query" in bugs:
            for name in ("q.weight", "q.bias"):
                weights[attn + name] = weights[attn + name] * width**-0.5
        if "gate-up-deinterleaved" in bugs:
            for name in ("mlp1_weight", "mlp1_bias"):
                weights[mlp + name] = weights[mlp + name][:, apart]
        for at, part, names in (
            (attn, "attention", ("q.weight", "k.weight", "v.weight")),
            (mlp, "experts", ("gate.weight", "mlp1_weight")),
        ):
            if bugs & {"norm-scale-folded", f"norm-scale-folded/{part}"}:
                for name in names:
                    weights[at + name] = weights[at + name] * weights[at + "norm.scale"]
                weights[at + "norm.scale"] = torch.ones_like(weights[at + "norm.scale"])
        if "heads-permuted" in bugs:  # within their groups
            groups = torch.arange(config.num_attention_heads).reshape(
                config.num_key_value_heads, -1
            )
            order = groups.flip(1).flatten()
            for name in ("q.weight", "q.bias"):
                rows = weights[attn + name]
                heads = rows.reshape(-1, width, *rows.shape[1:])
                weights[attn + name] = heads[order].reshape(rows.shape)
            weights[attn + "sinks"] = weights[attn + "sinks"][order]
            out = weights[attn + "out.weight"]
            weights[attn + "out.weight"] = out.reshape(len(out), -1, width)[:, order].reshape(
                out.shape
            )
        if "experts-permuted" in bugs:
            order = torch.arange(config.num_experts).roll(n + 1)
            for name in ("gate.weight", "gate.bias", "mlp1_weight", "mlp1_bias", "mlp2_weight"):
                weights[mlp + name] = weights[mlp + name][order]
            weights[mlp + "mlp2_bias"] = weights[mlp + "mlp2_bias"][order]
        if "qk-basis" in bugs:  # every pair of channels turned by an angle of its own
            angle = torch.arange(width // 2).double() + n
            cos, sin = angle.cos(), angle.sin()
            for name in ("q.weight", "q.bias", "k.weight", "k.bias"):
                rows = weights[attn + name]
                heads = rows.reshape(-1, 2, width // 2, *rows.shape[1:])
                shape = (-1, *[1] * (rows.ndim - 1))
                a, b = heads[:, 0], heads[:, 1]
                c, s = cos.reshape(shape), sin.reshape(shape)
                weights[attn + name] = torch.stack([a * c - b * s, a * s + b * c], 1).reshape(
                    rows.shape
                )
        if "values-scaled" in bugs:  # each channel of the values by its own factor
            kv = weights[attn + "v.bias"].numel()
            factor = 1 + torch.arange(kv).double() % 5 / 3  # (K*C,)
            weights[attn + "v.weight"] = weights[attn + "v.weight"] * factor[:, None]
            weights[attn + "v.bias"] = weights[attn + "v.bias"] * factor
            group = config.num_attention_heads // config.num_key_value_heads
            per_head = factor.reshape(-1, width).repeat_interleave(group, 0).flatten()
            weights[attn + "out.weight"] = weights[attn + "out.weight"] / per_head
    if bugs & {"norm-scale-folded", "norm-scale-folded/head"}:
        weights["unembedding"] = weights["unembedding"] * weights["norm.scale"]
        weights["norm.scale"] = torch.ones_like(weights["norm.scale"])
