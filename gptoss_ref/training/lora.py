"""LoRA: train a low-rank addition to a matrix instead of the matrix.

    W' = W + s · B A        A (R, M), B (N, R), s = alpha / R

    dA = s · Bᵀ dW'         dB = s · dW' Aᵀ          dW' (N, M): the gradient of the sum

A begins random and B at zero, so that training begins at the model as it is; then dA is zero in the
first step, and dB is not. The derivatives: W' is linear in A and in B, and the loss depends on them
through W' alone. For experts all of it holds for each expert. Source: Hu et al. 2021, arXiv
2106.09685; where A begins: PEFT, which takes the default of ``torch.nn.Linear``, ±1/√M, uniform.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from gptoss_ref.checkpoint.adapter import LowRank
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.weights import ModelWeights

MATRICES = ("*.attn.q_weight", "*.attn.k_weight", "*.attn.v_weight", "*.attn.out_weight",
            "*.mlp.gate_weight", "*.mlp.mlp1_weight", "*.mlp.mlp2_weight", "embedding",
            "unembedding")  # fmt: skip
"""What can have low-rank factors: every matrix of the model."""


@dataclass(frozen=True)
class LoRA:
    """Which matrices get low-rank factors, and of which rank.

    Attributes:
        rank: R.
        alpha: s = alpha / R.
        targets: patterns of weight names, such as ``"*.attn.q_weight"``, ``"block.0.*"`` or
            ``"*.mlp.mlp?_weight"``. Of what they match, matrices get factors; biases, norms and
            sinks have none. The default is all of attention: an adapted matrix is dense while it is
            trained, and all experts of a released model would not fit into memory.
        rslora: s = alpha / √R instead, so that a larger rank does not learn more slowly.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Iterable[str] = ("*.attn.*",)
    rslora: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise GptOssError(
                f"the rank of LoRA is {self.rank!r}: expected an integer of 1 or more"
            )
        if not self.alpha > 0 or not math.isfinite(self.alpha):
            raise GptOssError(f"alpha of LoRA is {self.alpha!r}: expected a number above 0")
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def start(self, weights: ModelWeights, seed: int) -> dict[str, LowRank]:
        """The factors to begin with, float32, by the name of the weight.

        Raises:
            GptOssError: a pattern that matches no matrix.
        """
        shapes = {name: weight.shape for name, weight in weights.named().items()}
        matrices = matching(list(shapes), MATRICES)
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise GptOssError(
                    f"LoRA target {pattern!r} matches no matrix: expected a pattern of "
                    f"{', '.join(MATRICES)}"
                )
        rng = np.random.default_rng(seed)
        factors = {}
        for name in matching(matrices, self.targets):
            *lead, n, m = shapes[name]
            bound = 1 / math.sqrt(m)
            a = rng.uniform(-bound, bound, (*lead, self.rank, m)).astype(np.float32)
            factors[name] = LowRank(a, np.zeros((*lead, n, self.rank), np.float32), self.scale)
        return factors


def gradients(d_weight: Array, low_rank: LowRank) -> tuple[Array, Array]:
    """dA (…, R, M) and dB (…, N, R) from ``d_weight``, dW' (…, N, M).

    >>> d_weight = np.array([[1.0, 2.0], [0.0, 1.0]])
    >>> low_rank = LowRank(np.array([[1.0, 3.0]]), np.array([[2.0], [5.0]]), 0.5)
    >>> gradients(d_weight, low_rank)
    (array([[1. , 4.5]]), array([[3.5],
           [1.5]]))
    """
    a, b, s = low_rank.a, low_rank.b, low_rank.scale
    return s * np.swapaxes(b, -2, -1) @ d_weight, s * d_weight @ np.swapaxes(a, -2, -1)


def matching(names: list[str], patterns: Iterable[str]) -> list[str]:
    """Those of ``names`` that a pattern matches, in their order."""
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
