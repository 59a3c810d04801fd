"""The error of one tap point, and how much of it rounding explains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.verify.noise.integers import Integers
from gptoss_ref.verify.noise.metrics import over, usual_excess, usually_allowed
from gptoss_ref.verify.noise.routing_ties import Flip
from gptoss_ref.verify.thresholds import ROWS_WITHOUT_TIES

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TapError:
    """One tap point against its recomputation from the other's own numbers.

    Attributes:
        tap: its name.
        inputs: the given tap points from which it was recomputed; empty: the tokens only.
        shape: of the array.
        error: (T,) relative error of each row; for a choice of experts, by how much (in logits) an
            expert that was not chosen exceeds a chosen one.
        allowed: (T,) the part of it that rounding explains.
        whole, whole_allowed: the same for the array, over the rows without ties.
        tied: (T,) rows that depend on a choice of experts that rounding may have changed.
        broken: (T,) values that are NaN or infinite in only one of the two.
        lost: whether all values are so in both, so that nothing can be judged.
        max_abs, cosine: of the whole array.
        noise: (T,) relative error of the same stage if it differs by rounding only.
        distance: relative L2 distance to the replay with the other's rounding; for a choice of
            experts, the share of rows with another choice.
        flips: rows whose choice of experts differs within its tie.
        extra: for logits, figures of the agreement of the predictions.
        seen: (T,) rows that were observed; the others are not judged. Empty: all.
        remark: for logits, a constant by which every row differs, in words.
        integers: the rule by which the activations were rounded to integers, if it was allowed for.
    """

    tap: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    error: Floats
    allowed: Floats
    whole: float
    whole_allowed: float
    tied: Mask
    broken: NDArray[np.int64]
    lost: bool = False
    max_abs: float = 0.0
    cosine: float = math.nan
    noise: Floats = field(default_factory=lambda: np.empty(0))
    distance: float = 0.0
    flips: tuple[Flip, ...] = ()
    extra: dict[str, float] = field(default_factory=dict)
    seen: Mask = field(default_factory=lambda: np.empty(0, bool))
    remark: str | None = None
    integers: Integers | None = None

    @property
    def _rows(self) -> Mask | slice:
        return self.seen if self.seen.size else slice(None)

    @property
    def judged(self) -> bool:
        """Whether enough rows are free of ties to judge each by itself."""
        return bool(np.mean(self.tied[self._rows]) <= 1 - ROWS_WITHOUT_TIES)

    @property
    def excess(self) -> float:
        """Ratio of the error to what rounding explains: above 1 something is wrong.

        If most rows depend on ties, rounding changes whole rows at random. Then only typical rows
        are compared: the quartiles of the error with those of rounding.
        """
        if not self.judged:
            return usual_excess(self.error[self._rows], usually_allowed([self.noise[self._rows]]))
        free = ~self.tied
        if (self.broken[free] > 0).any():
            return math.inf
        rows = over(self.error[free], self.allowed[free]).max(initial=0.0)
        return float(max(rows, over(self.whole, self.whole_allowed)))

    @property
    def wrong_rows(self) -> Mask:
        """(T,) rows without ties whose error rounding does not explain."""
        if not self.judged:
            return np.zeros_like(self.tied)
        return ~self.tied & ((self.error > self.allowed) | (self.broken > 0))
