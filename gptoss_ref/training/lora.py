"""LoRA: train a low-rank addition to a matrix instead of the matrix.

    W' = W + s · B A        A (R, M), B (N, R), s = alpha / R

    dA = s · Bᵀ dW'         dB = s · dW' Aᵀ          dW' (N, M): the gradient of the sum

A begins random and B at zero, so that the first step starts from the unchanged model; dA is then
zero in that step, dB is not. The derivatives hold because W' is linear in A and in B. Each expert
has its own A and B. Source: Hu et al. 2021, arXiv 2106.09685; initial A: uniform in ±1/√M as in
PEFT, the default of ``torch.nn.Linear``.
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
from gptoss_ref.training.checks import is_number
from gptoss_ref.weights import ModelWeights

MATRICES = ("*.attn.q_weight", "*.attn.k_weight", "*.attn.v_weight", "*.attn.out_weight",
            "*.mlp.gate_weight", "*.mlp.mlp1_weight", "*.mlp.mlp2_weight", "embedding",
            "unembedding")  # fmt: skip
"""Names of the matrices that can have low-rank factors."""


@dataclass(frozen=True)
class LoRA:
    """The matrices that get low-rank factors, and the rank and scale of the factors.

    Attributes:
        rank: R.
        alpha: s = alpha / R.
        targets: patterns of weight names, such as ``"*.attn.q_weight"``, ``"block.0.*"`` or
            ``"*.mlp.mlp?_weight"``. Only matrices among the matches get factors, not biases, norms
            and sinks. The default is all of attention: an adapted matrix is dense during training,
            and all experts of a released model would not fit into memory.
        rslora: use s = alpha / √R, so that a larger rank does not learn more slowly.
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
        if not (is_number(self.alpha) and self.alpha > 0):
            raise GptOssError(f"alpha of LoRA is {self.alpha!r}: expected a number above 0")
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def start(self, weights: ModelWeights, seed: int) -> dict[str, LowRank]:
        """The initial factors in float32, by the name of the weight.

        Raises:
            GptOssError: a pattern matches no matrix.
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
    """The ``names`` that match at least one pattern, in their order."""
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
