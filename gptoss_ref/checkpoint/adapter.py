"""LoRA adapters: low-rank additions to the matrices of a model, and the adapted weights.

    W' = W + s · B A        A (R, M), B (N, R), of rank R; s = alpha / R, or alpha / √R (rsLoRA)

An expert matrix (E, N, M) has factors of its own for each expert: A (E, R, M), B (E, N, R). Their
files are those of PEFT, see ``peft.py``. Source: Hu et al. 2021, arXiv 2106.09685 (LoRA);
Kalajdzievski 2023, arXiv 2312.03732 (rsLoRA).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from gptoss_ref.layers.linear import dense
from gptoss_ref.numerics import Array, Policy
from gptoss_ref.weights import ModelWeights


@dataclass(frozen=True)
class LowRank:
    """The addition to one matrix: ``scale`` · B A.

    Attributes:
        a: (R, M), or (E, R, M) for the experts.
        b: (N, R), or (E, N, R).
        scale: s.

    >>> LowRank(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), 2.0).product()
    array([[ 6., 12.],
           [ 8., 16.]])
    """

    a: Array
    b: Array
    scale: float

    @property
    def rank(self) -> int:
        """R."""
        return int(self.a.shape[-2])

    def product(self, dtype: DTypeLike | None = None) -> Array:
        """s · B A in ``dtype`` (None: that of the factors): (…, N, M)."""
        b, a = (x.astype(dtype or x.dtype, copy=False) for x in (self.b, self.a))
        product: Array = np.matmul(b * b.dtype.type(self.scale), a)
        return product


@dataclass(frozen=True)
class Adapter:
    """The trained change of a model: low-rank factors, and weights that replace the checkpoint's.

    Attributes:
        factors: low-rank additions, by the name of the weight: ``block.3.attn.q_weight``.
        whole: fully trained weights, which replace the checkpoint's.
        alpha: α of the scale, for the file.
        rslora: whether the scale is alpha / √R.
        base: the model it was trained on: ``"tiny"``, a folder or a Hub id; empty if not known.
    """

    factors: Mapping[str, LowRank]
    whole: Mapping[str, Array] = field(default_factory=dict)
    alpha: float = 1.0
    rslora: bool = False
    base: str = ""

    def changed(self, weights: ModelWeights, policy: Policy) -> dict[str, Array]:
        """The adapted weights, dense, rounded by ``policy``; unchanged ones are left out.

        They keep their shapes: (V, D), (N, M), (E, N, M), …
        """
        named = weights.named()
        changed = {name: policy.round(values) for name, values in self.whole.items()}
        for name, low_rank in self.factors.items():
            base = changed[name] if name in changed else dense(named[name], policy)
            changed[name] = policy.round(base + low_rank.product(policy.dtype))
        return changed

    def applied(self, weights: ModelWeights, policy: Policy) -> ModelWeights:
        """``weights`` with the adapter added."""
        return weights.replaced(self.changed(weights, policy))
