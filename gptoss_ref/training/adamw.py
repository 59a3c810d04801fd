"""AdamW: Adam with decoupled weight decay.

    m ← β₁ m + (1 − β₁) g                    moving mean of the gradient
    v ← β₂ v + (1 − β₂) g²                   moving mean of its square
    m̂ = m / (1 − β₁ᵗ)    v̂ = v / (1 − β₂ᵗ)   correction at step t, because m and v begin at zero
    w ← w − η λ w − η m̂ / (√v̂ + ε)

The decay λ acts on the weight directly. If it were added to the gradient, as in torch's Adam, it
would be divided by √v̂, and weights with large gradients would decay less. Source: Loshchilov and
Hutter 2017, arXiv 1711.05101; the order of operations is that of ``torch.optim.AdamW``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.training.checks import is_number

UNDECAYED = ("norm_scale", "bias", "sinks")
"""Suffixes of the names of weights that do not decay."""


@dataclass(frozen=True)
class AdamW:
    """The constants of AdamW; :class:`Moments` has its state.

    Attributes:
        betas: β₁ and β₂, the decay rates of the two means.
        eps: ε, which avoids a division by zero.
        weight_decay: λ, for matrices and low-rank factors; norms, biases and sinks do not decay.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        two = isinstance(self.betas, tuple | list) and len(self.betas) == 2
        if not two or not all(is_number(beta) and 0 <= beta < 1 for beta in self.betas):
            raise GptOssError(
                f"the betas of AdamW are {self.betas}: expected two from 0 to below 1"
            )
        if not (is_number(self.eps) and is_number(self.weight_decay)) or (
            self.eps <= 0 or self.weight_decay < 0
        ):
            raise GptOssError(
                f"eps {self.eps} and weight_decay {self.weight_decay} of AdamW: expected a number "
                "above 0 and one of 0 or more"
            )

    def step(
        self,
        parameters: dict[str, Array],
        gradients: dict[str, Array],
        moments: Moments,
        learning_rate: float,
    ) -> tuple[dict[str, Array], Moments]:
        """The parameters and the moments after one step; nothing is changed in place.

        Args:
            parameters: arrays of any shapes, by name.
            gradients: the same names and shapes.
            moments: from the previous call, or :meth:`Moments.zeros`.
            learning_rate: η of this step.

        >>> w, g = {"w": np.array([[1.0]])}, {"w": np.array([[4.0]])}
        >>> w, moments = AdamW(weight_decay=0.5).step(w, g, Moments.zeros(w), 0.1)
        >>> w["w"].round(6), moments.steps  # 1 − 0.1·0.5·1 − 0.1·4/√16
        (array([[0.85]]), 1)
        """
        beta1, beta2 = self.betas
        t = moments.steps + 1
        first, second, moved = {}, {}, {}
        for name, w in parameters.items():
            g, real = gradients[name], w.dtype.type
            m = real(beta1) * moments.first[name] + real(1 - beta1) * g
            v = real(beta2) * moments.second[name] + real(1 - beta2) * g * g
            decay = 0.0 if name.endswith(UNDECAYED) else learning_rate * self.weight_decay
            root = np.sqrt(v) / real(np.sqrt(1 - beta2**t)) + real(self.eps)
            moved[name] = w * real(1 - decay) - real(learning_rate / (1 - beta1**t)) * m / root
            first[name], second[name] = m, v
        return moved, Moments(first, second, t)


@dataclass(frozen=True)
class Moments:
    """The moving means of gradients and of their squares, by name, after ``steps`` steps."""

    first: dict[str, Array]
    second: dict[str, Array]
    steps: int

    @classmethod
    def zeros(cls, parameters: dict[str, Array]) -> Moments:
        """The moments before the first step, with the shapes and dtypes of ``parameters``."""
        first, second = ({n: np.zeros_like(w) for n, w in parameters.items()} for _ in "mv")
        return cls(first, second, 0)
