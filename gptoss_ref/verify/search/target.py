"""Observed outputs of a model, and the distance of other outputs from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array
from gptoss_ref.verify.thresholds import NOT_FINITE

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """The observed outputs.

    Attributes:
        tap: the tap point that must be computed to compare with them, ``logits`` or ``norm``.
        see: a function from that tap point (t, …) to what would be observed of it, (p, …): p of the
            observed positions are among the first t tokens.
        observed: the observed numbers, (P, …).
        positions: (P,) of the rows, ascending.
        relative: whether the error of a row is relative to the row's norm.
        floor: error below which a row counts as equal.
    """

    tap: str
    see: Callable[[Array], Floats]
    observed: Floats
    positions: NDArray[np.int64]
    relative: bool
    floor: float

    def beginning(self, length: int) -> Target:
        """Return what was observed of the first ``length`` tokens."""
        rows = self.positions < length
        return replace(self, observed=self.observed[rows], positions=self.positions[rows])

    def errors(self, seen: Floats, reference: Floats | None = None) -> Floats:
        """(P,) error of each row against the observed one, or against another reference."""
        reference = self.observed if reference is None else reference
        with np.errstate(invalid="ignore"):
            same = (seen == reference) | (np.isnan(seen) & np.isnan(reference))
            difference = np.where(same, 0.0, seen - reference)
        difference = np.nan_to_num(
            difference, nan=NOT_FINITE, posinf=NOT_FINITE, neginf=-NOT_FINITE
        )
        error: Floats = np.sqrt(np.mean(difference**2, axis=1))
        if self.relative:
            finite = np.where(np.isfinite(reference), reference, 0.0)
            usual = np.sqrt(np.mean(finite**2, axis=1))
            error = error / np.where(usual > 0, usual, 1.0)
        return np.minimum(error, NOT_FINITE)

    def distance(self, error: Floats) -> float:
        """Return the mean logarithm of the rows' errors (P,)."""
        return float(np.mean(np.log(error + self.floor)))

    def turned(self, seen: Floats) -> float:
        """Return the mean logarithm of the sines of the angles between the rows of both."""
        a, b = (np.nan_to_num(x, posinf=0, neginf=0) for x in (seen, self.observed))
        across, own, other = (np.einsum("ij,ij->i", *x) for x in ((a, b), (a, a), (b, b)))
        cosines = across / np.sqrt(np.maximum(own * other, 1e-300))
        sines = np.where(cosines > 0, np.sqrt(np.maximum(1 - cosines**2, 0)), 1.0)
        return float(np.mean(np.log(sines + self.floor)))
