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
        if "norm-scale-folded" in bugs:
            for at, names in (
                (attn, ("q.weight", "k.weight", "v.weight")),
                (mlp, ("gate.weight", "mlp1_weight")),
            ):
                for name in names:
                    weights[at + name] = weights[at + name] * weights[at + "norm.scale"]
                weights[at + "norm.scale"] = torch.ones_like(weights[at + "norm.scale"])
    if "norm-scale-folded" in bugs:
        weights["unembedding"] = weights["unembedding"] * weights["norm.scale"]
        weights["norm.scale"] = torch.ones_like(weights["norm.scale"])
