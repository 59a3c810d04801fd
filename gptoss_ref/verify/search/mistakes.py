"""Mistakes in the recording of the arrays, which are searched before any bug of the model.

Examples are rows that are one token too late, probabilities instead of logits, axes in another
order, and an array that was never written. Each can be distinguished from a bug, because the
numbers match the specification after it is undone, and each has its own sentence in the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array
from gptoss_ref.sampling import log_softmax
from gptoss_ref.tracing.taps import axes
from gptoss_ref.verify.thresholds import (
    FILTERED,
    ORDERED_RANKS,
    ORDERED_ROWS,
    REORDERED,
    SAME_BASE,
    SUM_OF_ROW,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mistake:
    """A mistake in an array, and the array without it.

    Attributes:
        sentence: the mistake, and how to avoid it.
        mended: the right array, if the mistake can be undone; rows that are not known are those of
            the specification. None: nothing is left to judge.
        harmless: whether the model is right and the array is usable as it is.
        certain: whether the array itself shows the mistake; else only the mended array fits.
        lost: (T,) rows that were not recorded.
        constant: whether the sentence implies that each row of logits has a constant of its own.
    """

    sentence: str
    mended: Array | None
    harmless: bool = False
    certain: bool = False
    lost: NDArray[np.bool_] | None = None
    constant: bool = False


def mistakes(
    tap: str, exact: Array, other: Array, seen: NDArray[np.bool_] | None = None
) -> Iterator[Mistake]:
    """Return possible mistakes in the array of a tap point, the most obvious first.

    Only observed rows are evidence. The specification's stand for the others in what is mended.

    Args:
        exact: the array of the specification.
        other: the recorded array.
        seen: (T,) whether each row was observed; None: all.
    """
    axis = axes(tap).index("T")
    exact, other = np.asarray(exact, np.float64), np.asarray(other, np.float64)
    if seen is None or seen.all():
        yield from mistakes_of_rows(tap, exact, other)
        return
    ours, theirs = (np.compress(seen, x, axis=axis) for x in (exact, other))
    numbers = np.flatnonzero(seen)
    for found in mistakes_of_rows(tap, ours, theirs, numbers):
        mended, lost = found.mended, found.lost
        if mended is not None:
            whole = exact.copy()
            np.moveaxis(whole, axis, 0)[seen] = np.moveaxis(mended, axis, 0)
            mended = whole
        if lost is not None:
            lost = np.isin(np.arange(len(seen)), numbers[lost])
        yield replace(found, mended=mended, lost=lost)


def mistakes_of_rows(
    tap: str, exact: Array, other: Array, numbers: NDArray[np.intp] | None = None
) -> Iterator[Mistake]:
    """Return possible mistakes in some rows, all observed: see :func:`mistakes`.

    Args:
        numbers: (P,) the positions of the rows, ascending; None: 0, 1, 2 …
    """
    axis = axes(tap).index("T")
    exact, other = np.asarray(exact, np.float64), np.asarray(other, np.float64)
    if not other.any() and exact.any():
        yield Mistake(f"{tap} holds nothing but zeros: it was never written.", None, certain=True)
        return
    if other.size > 1 and np.all(other == other.flat[0]) and np.ptp(exact) > 0:
        yield Mistake(f"{tap} is the same number everywhere.", None, certain=True)
        return
    if (lost := unrecorded(tap, exact, other, numbers)) is not None:
        yield lost
        return
    first, theirs = (np.moveaxis(x, axis, 0) for x in (exact, other))
    if tap == "logits":
        yield from _logits(exact, other)
    adjacent = numbers is None or bool((np.diff(numbers) == 1).all())
    for shift in _shifts(first, theirs) if adjacent else ():
        mended = first.copy()
        if shift > 0:  # row t has the values of token t + shift
            mended[shift:] = theirs[:-shift]
        else:
            mended[:shift] = theirs[-shift:]
        sentence = (
            f"The rows of {tap} are shifted by {in_words(shift)}: row t holds what belongs to "
            f"token t {'+' if shift > 0 else '−'} {abs(shift)}."
        )
        yield Mistake(sentence, np.moveaxis(mended, 0, axis))
    letters = axes(tap)
    for i, j in combinations(range(other.ndim), 2):
        if other.shape[i] == other.shape[j] > 1:
            sentence = f"The axes {letters[i]} and {letters[j]} of {tap} are exchanged."
            yield Mistake(sentence, np.swapaxes(other, i, j))


def _shifts(exact: Floats, other: Floats) -> list[int]:
    """Return the shifts by which the first or last row of the other (T, …) fits best, and by one.

    If row t holds what belongs to token t + 2, the other's first row is nearest to the third one of
    the specification. A constant that is added to a row does not count. Nor does a shift that
    leaves the specification's rows as they are, as at a norm of a prompt that repeats itself.
    """
    rows, others = (x.reshape(len(x), -1) for x in (exact, other))
    sizes = np.einsum("ij,ij->i", rows, rows) - rows.shape[1] * rows.mean(1) ** 2  # (T,)

    def nearest(row: Floats) -> int:
        with np.errstate(invalid="ignore"):
            apart = sizes - 2 * (rows @ (row - row.mean()))
        return int(np.argmin(np.nan_to_num(apart, nan=np.inf)))

    last = len(rows) - 1
    found = dict.fromkeys((nearest(others[0]), nearest(others[-1]) - last, 1, -1))
    possible = [shift for shift in found if 0 < abs(shift) <= len(rows) // 2 and len(rows) > 2]
    return [k for k in possible if not _alike(rows[abs(k) :], rows[: -abs(k)])]


def in_words(shift: int) -> str:
    """Return the number of rows of a shift."""
    return "one" if abs(shift) == 1 else str(abs(shift))


def _logits(exact: Floats, other: Floats) -> Iterator[Mistake]:
    with np.errstate(divide="ignore", invalid="ignore"):
        finite = np.isfinite(other).all()
        if finite and other.min() >= 0 and np.allclose(other.sum(1), 1, atol=SUM_OF_ROW):
            logs = np.log(np.maximum(other, 1e-45))
            ours = log_softmax(np.asarray(exact, np.float64))
            faint = other < 1e-30  # indistinguishable from 0
            sentence = "These are probabilities, not logits: their logarithms are compared."
            mended = np.where(faint, ours, logs)
            yield Mistake(sentence, mended, harmless=True, certain=True, constant=True)
            return
    masked = _masked(other)
    if masked is not None and (masked != masked[0]).any():  # other logits in each row
        sentence = (
            "All but the largest logits of each row are masked, as before sampling with top-k or "
            "top-p: only the others are compared."
        )
        yield _unmasked(exact, other, masked, sentence)
        return
    columns = other.shape[1]
    same = (other == other[:1]).all(axis=0) | np.isnan(other).all(axis=0)
    kept = columns - int(np.argmin(same[::-1])) if not same.all() else 0
    if 0 < kept < columns and len(other) > 1:
        mended = exact.copy()
        # the specification's own constant is that of the columns that are there
        mended[:, :kept] = other[:, :kept]
        sentence = (
            f"The columns from {kept} on are a padding of the vocabulary: they are the same in "
            "every row, and are not compared."
        )
        yield Mistake(sentence, mended, harmless=True, certain=True)
        return
    if masked is not None:
        sentence = (
            f"{int(masked[0].sum())} logits, the same ones in every row, are one very negative "
            "number: only the others are compared."
        )
        yield _unmasked(exact, other, masked, sentence)
        return
    if not finite or not np.isfinite(exact).all():
        return
    a, b = (x - x.mean(1, keepdims=True) for x in (exact, other))
    if (order := _order_of_columns(a, b)) is not None:
        moved = np.flatnonzero(order != np.arange(columns))
        sentence = (
            f"{len(moved)} of {columns} columns of the logits are in another order: column "
            f"{order[moved[0]]} belongs to token {moved[0]}. The vocabulary is numbered otherwise."
        )
        yield Mistake(sentence, other[:, order])
    if (size := float((a * a).sum())) > 0:
        factor = float((a * b).sum()) / size
        if abs(factor - 1) > 1e-3:
            yield Mistake(_scaled(factor), other / factor)


def _order_of_columns(ours: Floats, theirs: Floats) -> NDArray[np.intp] | None:
    """(V,) the column of the other for each token, if its columns (T, V) are in another order.

    Columns are sorted by a random combination of some rows; of the columns with nearly the same
    rank, the nearest one is taken.
    """
    ours, theirs = ours[:ORDERED_ROWS], theirs[:ORDERED_ROWS]
    if len(ours) < 4 or not _alike(np.sort(ours[0]), np.sort(theirs[0])):
        return None
    probe = np.random.default_rng(3).normal(size=len(ours))
    i, j = (np.argsort(probe @ x) for x in (ours, theirs))
    found, least = i, ((ours[:, i] - theirs[:, i]) ** 2).sum(0)  # equal columns keep their place
    for off in range(-ORDERED_RANKS, ORDERED_RANKS + 1):
        rank = np.clip(np.arange(len(j)) + off, 0, len(j) - 1)
        distance = ((ours[:, i] - theirs[:, j[rank]]) ** 2).sum(0)
        found = np.where(distance < least, j[rank], found)
        least = np.minimum(distance, least)
    order = np.empty_like(found)
    order[i] = found
    if np.array_equal(order, np.arange(len(order))) or not _alike(ours, theirs[:, order]):
        return None
    used = theirs[:, np.unique(order)]
    unused = theirs[:, np.setdiff1d(np.arange(len(order)), order)].T  # must be equal to used ones
    return order if all(_alike(column, _nearest(used, column)) for column in unused) else None


def _nearest(columns: Floats, column: Floats) -> Floats:
    """Return the one of some columns (T, N) that is nearest to another one (T,)."""
    nearest: Floats = columns[:, np.argmin(((columns - column[:, None]) ** 2).sum(0))]
    return nearest


def _alike(a: Floats, b: Floats) -> bool:
    return bool(np.linalg.norm(a - b) <= REORDERED * np.linalg.norm(a))


def _masked(other: Floats) -> NDArray[np.bool_] | None:
    """Which logits (T, V) are one very negative number, two of each row at least; None: none."""
    least = other.min(axis=1, keepdims=True)  # (T, 1)
    masked: NDArray[np.bool_] = other == least
    if masked.sum(1).min() < 2 or masked.all() or not (least < FILTERED).all():
        return None
    return None if np.isnan(other).any() else masked


def _unmasked(exact: Floats, other: Floats, masked: NDArray[np.bool_], sentence: str) -> Mistake:
    """Logits whose masked ones are the specification's, relative to the others."""
    apart = np.where(masked, 0, np.where(masked, 0, other) - exact).sum(1)
    constant = apart / (~masked).sum(1)
    mended = np.where(masked, exact + constant[:, None], other)
    return Mistake(sentence, mended, harmless=True, certain=True)


def _scaled(factor: float) -> str:
    if factor < 0:
        return (
            f"The logits are multiplied by {factor:.4g}: negative log-probabilities (losses) have "
            "the opposite sign."
        )
    for base in (2, 10):
        if abs(factor * math.log(base) - 1) < SAME_BASE:
            return (
                f"These are logarithms to base {base}, not natural ones: they are compared as such."
            )
    return (
        f"The logits are multiplied by {factor:.4g}: a temperature of {1 / factor:.4g} was "
        "applied before they were recorded."
    )


def unrecorded(
    tap: str, exact: Array, other: Array, numbers: NDArray[np.intp] | None = None
) -> Mistake | None:
    """Return whether whole rows are NaN and others are numbers; ``numbers``: (P,) positions."""
    axis = axes(tap).index("T")
    flat = np.moveaxis(np.asarray(other), axis, 0).reshape(other.shape[axis], -1)
    lost: NDArray[np.bool_] = np.asarray(np.isnan(flat).all(axis=1))
    if not lost.any() or lost.all() or not np.isfinite(exact).all():
        return None
    every = np.arange(len(lost)) if numbers is None else numbers
    rows = _rows(np.isin(np.arange(every[-1] + 1), every[lost]))
    sentence = (
        f"{rows[:1].upper()}{rows[1:]} of {tap}: nothing but NaN, not recorded or lost in the "
        "model; the other rows are judged."
    )
    wide = lost.reshape([-1 if i == axis else 1 for i in range(other.ndim)])
    return Mistake(sentence, np.where(wide, exact, other), certain=True, lost=lost)


def _rows(mask: NDArray[np.bool_]) -> str:
    at = np.flatnonzero(mask)
    if len(at) == 1:
        return f"row {at[0]}"
    if at[-1] - at[0] + 1 == len(at):
        return f"rows {at[0]} to {at[-1]}"
    return f"{len(at)} of {len(mask)} rows"
