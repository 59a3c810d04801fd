"""Muon: momentum whose update is made orthogonal, for matrices (Keller Jordan and others, 2024).

Source: https://kellerjordan.github.io/posts/muon/; the scale that makes an update as large as
AdamW's is that of Liu and others, arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Return nearly the orthogonal factor of each matrix of ``g`` (…, rows, columns).

    Newton-Schulz iterations in bfloat16; the singular values end between about 0.7 and 1.2.
    """
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * (square @ square) - 4.7750 * square) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two or more axes; the last two make the matrix."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter; ``closure`` is not used."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                mean = self.state[p].setdefault("m", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - momentum)
                update = orthogonal(p.grad.lerp(mean, momentum))
                scale = 0.2 * max(p.shape[-2:]) ** 0.5
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * scale)
