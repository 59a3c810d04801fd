"""Errors of one array against another, row by row, without either array in memory as a whole.

A *row* has the values of one token: it is one index of the axis T of a tap point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array
from gptoss_ref.sampling import log_softmax
from gptoss_ref.verify.thresholds import CONSTANT_A_ROW, SUM_OF_LOGARITHMS, USUAL_ROWS

Rows = Callable[[slice], Array]
"""Some rows of an array, T first: (t, …)."""

BLOCK_VALUES = 1 << 16
"""Number of values compared at a time: few enough to stay in a core's cache."""

BLOCK_LOGITS = 1 << 20
"""The same for logits, whose rows are long."""


@dataclass(frozen=True)
class Errors:
    """What :func:`measure` finds, per row of T.

    Attributes:
        error: (T,) L2 norm of the difference, over the finite values.
        norm: (T,) L2 norm of the reference.
        other_norm: (T,) L2 norm of the other array.
        peak: (T,) largest absolute difference.
        broken: (T,) values that are NaN or infinite in one array and not the same in the other.
        lost: (T,) values that are NaN or infinite in both alike, and so cannot be compared.
    """

    error: NDArray[np.float64]
    norm: NDArray[np.float64]
    other_norm: NDArray[np.float64]
    peak: NDArray[np.float64]
    broken: NDArray[np.int64]
    lost: NDArray[np.int64]

    @property
    def max_abs(self) -> float:
        """Largest absolute difference."""
        return float(self.peak.max(initial=0.0))

    @property
    def rel_l2(self) -> float:
        """L2 norm of the difference over that of the reference; 0 if both are 0."""
        return ratio(_norm(self.error), _norm(self.norm))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two arrays; NaN if one of them is all zeros."""
        a, b, d = _norm(self.norm), _norm(self.other_norm), _norm(self.error)
        if a == 0 or b == 0:
            return math.nan
        # 1 − cos, so that nearly equal arrays lose nothing to cancellation
        return float(max(-1.0, 1 - (d * d - (a - b) ** 2) / (2 * a * b)))

    def of(self, rows: NDArray[np.bool_]) -> Errors:
        """Return the errors of some rows only."""
        return Errors(
            self.error[rows],
            self.norm[rows],
            self.other_norm[rows],
            self.peak[rows],
            self.broken[rows],
            self.lost[rows],
        )

    def where(self, rows: NDArray[np.bool_]) -> Errors:
        """Return the errors with the other rows set to zero."""
        return Errors(*(np.where(rows, values, 0) for values in vars(self).values()))

    def rows(self) -> NDArray[np.float64]:
        """(T,) error relative to the reference's norm.

        The norm counts as at least a tenth of the root mean square of all rows' norms: if the terms
        of a row nearly cancel, its error does not become smaller with it.
        """
        usual = np.sqrt(np.mean(self.norm**2)) if self.norm.size else 0.0
        scale = np.maximum(self.norm, 0.1 * usual)
        return np.divide(self.error, scale, out=np.zeros_like(scale), where=scale > 0) + np.where(
            (scale == 0) & (self.error > 0), np.inf, 0.0
        )


def ratio(error: float, norm: float) -> float:
    """error / norm, with 0 / 0 = 0."""
    if error == 0:
        return 0.0
    return error / norm if norm else math.inf


def over(error: NDArray[np.float64] | float, allowed: Array | float) -> NDArray[np.float64]:
    """error / allowed, with 0 / 0 = 0 and ∞ / ∞ = 1: an error that is just allowed.

    >>> over(np.array([0.0, 2.0, 2.0, np.inf]), np.array([0.0, 0.0, 4.0, np.inf]))
    array([0. , inf, 0.5, 1. ])
    """
    error, allowed = np.asarray(error, np.float64), np.asarray(allowed, np.float64)
    unlike = (allowed > 0) & (error != allowed)  # ∞ / ∞ is NaN, which would hide the other rows
    quotient = np.divide(error, allowed, out=np.full_like(error, np.inf), where=unlike)
    return np.where(error == 0, 0.0, np.where(error == allowed, 1.0, quotient))


TOP = 5
"""Number of the most likely tokens that are compared as a set."""

QUARTILES = (0.25, 0.5, 0.75)


def usually_allowed(samples: Sequence[NDArray[np.float64]], floor: float = 0.0) -> Array:
    """Return the quartiles (3,) of the rows' errors that rounding explains.

    They are used if rounding can change some rows at random, so that only typical rows count.

    Args:
        samples: (T,) each, errors of runs that differ by rounding only.
        floor: error that is always allowed.
    """
    quartiles = np.mean([np.quantile(rows, QUARTILES) for rows in samples], axis=0)
    allowed: Array = np.maximum(USUAL_ROWS * quartiles, floor)
    return allowed


def usual_excess(error: NDArray[np.float64], allowed: Array) -> float:
    """Return the largest ratio of the quartiles of the errors (T,) to allowed ones (3,)."""
    return float(over(np.quantile(error, QUARTILES), allowed).max())


def measure(ref: Rows, other: Rows, length: int, row_values: int) -> Errors:
    """Compare ``length`` rows of two arrays of the same shape.

    Args:
        row_values: values in one row.
    """
    step = max(1, BLOCK_VALUES // max(1, row_values))
    error, norm, other_norm, peak = (np.empty(length) for _ in range(4))
    broken, lost = np.zeros(length, np.int64), np.zeros(length, np.int64)
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        count = rows.stop - start
        a = ref(rows).astype(np.float64).reshape(count, -1)
        b = other(rows).astype(np.float64).reshape(count, -1)
        with np.errstate(invalid="ignore"):
            d = a - b
        if not np.isfinite(d).all():
            alike = (a == b) | (np.isnan(a) & np.isnan(b))
            bad = ~(np.isfinite(a) & np.isfinite(b))
            broken[rows] = (bad & ~alike).sum(axis=1)
            lost[rows] = (bad & alike).sum(axis=1)
            a, b, d = (np.where(bad, 0.0, x) for x in (a, b, d))
        for total, x in ((error, d), (norm, a), (other_norm, b)):
            total[rows] = np.sqrt(np.einsum("ij,ij->i", x, x))
        peak[rows] = np.maximum(d.max(axis=1, initial=0.0), -d.min(axis=1, initial=0.0))
    return Errors(error, norm, other_norm, peak, broken, lost)


def measure_arrays(ref: Array, other: Array, axis: int = 0) -> Errors:
    """:func:`measure` of two arrays in memory, whose rows lie along ``axis``."""
    a, b = np.moveaxis(ref, axis, 0), np.moveaxis(other, axis, 0)
    return measure(lambda r: a[r], lambda r: b[r], len(a), math.prod(a.shape[1:]))


@dataclass(frozen=True)
class Shift:
    """The constant by which each row of logits (T, V) differs from the reference.

    Logits that differ by one constant per row have the same softmax, so they are those of the same
    model.

    Attributes:
        constant: (T,) the mean difference of each row, over the finite values.
        size, other_size: L2 norms of the reference's logits and of the other ones.
        left: L2 norm of the difference without the constants.
        log_sums: (T,) logarithm of the sum of the other's exponentials; 0 for log-probabilities.
    """

    constant: NDArray[np.float64]
    size: float
    other_size: float
    left: float
    log_sums: NDArray[np.float64]
    vocabulary: int

    @property
    def grown(self) -> float:
        """Norm of the logits over the reference's, at least 1: they were rounded in this form."""
        return max(1.0, self.other_size / self.size) if self.size else 1.0

    @property
    def remark(self) -> str | None:
        """The remark on the constants; None if rounding explains them."""
        removed = math.sqrt(self.vocabulary) * _norm(self.constant)
        if self.vocabulary < 2 or removed <= CONSTANT_A_ROW * self.left:
            return None
        logs = np.abs(self.log_sums).max() < SUM_OF_LOGARITHMS
        what = "these are log-probabilities" if logs else "for example centred"
        return (
            f"the logits differ from the reference's by a constant in every row ({what}): that "
            "changes no probability, and they are compared without it"
        )


def shift_of(ref: Rows, other: Rows, length: int, vocabulary: int) -> Shift:
    """Return the constants of ``length`` rows of logits (T, V) against the reference."""
    step = max(1, BLOCK_LOGITS // vocabulary)
    constant, sums = np.zeros(length), np.zeros(length)
    squares = np.zeros(3)
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        a, b = (np.asarray(x(rows), np.float64) for x in (ref, other))
        with np.errstate(invalid="ignore"):
            d = b - a
        usable = np.isfinite(d)
        constant[rows] = np.where(usable, d, 0).sum(1) / np.maximum(usable.sum(1), 1)
        with np.errstate(invalid="ignore"):
            sizes = a, b, d - constant[rows, None]
        squares += [float((np.where(np.isfinite(x), x, 0) ** 2).sum()) for x in sizes]
        finite = np.where(np.isfinite(b), b, -np.inf)
        peak = np.maximum(finite.max(1), -1e300)
        with np.errstate(divide="ignore"):
            sums[rows] = peak + np.log(np.exp(finite - peak[:, None]).sum(1))
    size, other_size, left = (float(x) for x in np.sqrt(squares))
    return Shift(constant, size, other_size, left, sums, vocabulary)


def without_shift(rows: Rows, shift: Shift) -> Rows:
    """Return the logits without the constant of each row."""
    return lambda which: np.asarray(rows(which), np.float64) - shift.constant[which, None]


def logit_figures(ref: Rows, other: Rows, length: int, vocabulary: int) -> dict[str, float]:
    """Return figures of the agreement of two sets of logits (T, V) as predictions.

    ``kl_mean`` and ``kl_max``: Kullback-Leibler divergence of the other's probabilities from the
    reference's, in nats per token. ``top1``: share of tokens with the same most likely next token.
    ``top5``: number of common tokens among the five most likely ones of both.
    """
    step = max(1, BLOCK_LOGITS // vocabulary)
    count = min(TOP, vocabulary)
    kl, top1, shared = [], 0, 0
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        a, b = (x(rows).astype(np.float64) for x in (ref, other))
        with np.errstate(invalid="ignore", over="ignore"):
            log_p, log_q = (log_softmax(x) for x in (a, b))
            kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        top1 += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        best = [np.argpartition(-x, count - 1, axis=1)[:, :count] for x in (a, b)]
        shared += int((best[0][:, :, None] == best[1][:, None, :]).sum())
    divergence = np.concatenate(kl)
    return {
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
        "top1": top1 / length,
        f"top{TOP}": shared / (length * count),
    }


def _norm(rows: Sequence[float] | Array) -> float:
    return float(np.linalg.norm(rows))
