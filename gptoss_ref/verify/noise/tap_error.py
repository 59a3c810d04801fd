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
        inputs: the given tap points it was recomputed from; empty: from the tokens alone.
        shape: of the array.
        error: (T,) relative error of each row; of a choice of experts, by how much (in logits) an
            expert that was left out exceeds one that was taken.
        allowed: (T,) how much of it rounding explains.
        whole, whole_allowed: the same for the array, over the rows without ties.
        tied: (T,) rows that depend on a choice of experts that rounding may have turned.
        broken: (T,) values that are NaN or infinite in one of the two only.
        lost: whether all are in both, so that nothing can be judged.
        max_abs, cosine: of the whole array.
        noise: (T,) relative error of the same stage where rounding is all that differs.
        distance: relative L2 distance to the replay that rounds as the other does; of a choice of
            experts, the share of rows that choose otherwise.
        flips: rows whose choice of experts differs within its tie.
        extra: of logits, how alike they are as predictions.
        seen: (T,) rows that were observed; the others are neither right nor wrong. Empty: all.
        remark: of logits, that they differ by a constant in every row, in words.
        integers: how the activations of a product were rounded to integers, which was allowed for.
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
        """Error over what rounding explains: above 1 something is wrong.

        Where most rows hang on ties, rounding moves whole rows about at random; then only the
        usual rows are compared: the quartiles of the error with those of rounding's.
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
