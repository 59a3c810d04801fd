"""Mistakes in the recording of the arrays, which are searched before any bug of the model.

Examples are rows that are one token too late, probabilities instead of logits, axes in another
order, and an array that was never written. Each can be distinguished from a bug, because the
numbers match the specification after it is undone, and each has its own sentence in the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array, widen
from gptoss_ref.tracing.taps import axes
from gptoss_ref.verify.noise.metrics import log_softmax
from gptoss_ref.verify.thresholds import FILTERED, SAME_BASE, SAME_EMBEDDING, SUM_OF_ROW

Floats = NDArray[np.float64]

SHIFTS = (1, -1)
"""Numbers of rows by which arrays are usually shifted."""

STARTS = (199998, 199999, 200002, 200006)
"""Special tokens of o200k_harmony that begin or end a message."""


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
    """

    sentence: str
    mended: Array | None
    harmless: bool = False
    certain: bool = False
    lost: NDArray[np.bool_] | None = None


def mistakes(tap: str, exact: Array, other: Array) -> Iterator[Mistake]:
    """Return possible mistakes in the array of a tap point, the most obvious first.

    Args:
        exact: the array of the specification.
        other: the recorded array.
    """
    axis = axes(tap).index("T")
    exact, other = np.asarray(exact, np.float64), np.asarray(other, np.float64)
    if not other.any() and exact.any():
        yield Mistake(f"{tap} holds nothing but zeros: it was never written.", None, certain=True)
        return
    if other.size > 1 and np.all(other == other.flat[0]) and np.ptp(exact) > 0:
        yield Mistake(f"{tap} is the same number everywhere.", None, certain=True)
        return
    if (lost := unrecorded(tap, exact, other)) is not None:
        yield lost
        return
    first, theirs = (np.moveaxis(x, axis, 0) for x in (exact, other))
    if tap == "logits":
        yield from _logits(exact, other)
    for shift in SHIFTS:
        if len(theirs) < 3:
            break
        mended = first.copy()
        if shift > 0:  # row t has the values of token t + 1
            mended[1:] = theirs[:-1]
        else:
            mended[:-1] = theirs[1:]
        sentence = (
            f"The rows of {tap} are shifted by one: row t holds what belongs to the token "
            f"{'after' if shift > 0 else 'before'} token t."
        )
        yield Mistake(sentence, np.moveaxis(mended, 0, axis))
    letters = axes(tap)
    for i, j in combinations(range(other.ndim), 2):
        if other.shape[i] == other.shape[j] > 1:
            sentence = f"The axes {letters[i]} and {letters[j]} of {tap} are exchanged."
            yield Mistake(sentence, np.swapaxes(other, i, j))


def _logits(exact: Floats, other: Floats) -> Iterator[Mistake]:
    with np.errstate(divide="ignore", invalid="ignore"):
        finite = np.isfinite(other).all()
        if finite and other.min() >= 0 and np.allclose(other.sum(1), 1, atol=SUM_OF_ROW):
            logs = np.log(np.maximum(other, 1e-45))
            ours = log_softmax(exact)
            faint = other < 1e-30  # indistinguishable from 0
            sentence = "These are probabilities, not logits: their logarithms are compared."
            yield Mistake(sentence, np.where(faint, ours, logs), harmless=True, certain=True)
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
    if (size := float((a * a).sum())) > 0:
        factor = float((a * b).sum()) / size
        if abs(factor - 1) > 1e-3:
            yield Mistake(_scaled(factor), other / factor)


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


def unrecorded(tap: str, exact: Array, other: Array) -> Mistake | None:
    """Return whether whole rows are NaN and other rows are numbers."""
    axis = axes(tap).index("T")
    flat = np.moveaxis(np.asarray(other), axis, 0).reshape(other.shape[axis], -1)
    lost: NDArray[np.bool_] = np.asarray(np.isnan(flat).all(axis=1))
    if not lost.any() or lost.all() or not np.isfinite(exact).all():
        return None
    rows = _rows(lost)
    sentence = (
        f"{rows[:1].upper()}{rows[1:]} of {tap}: nothing but NaN, not recorded or lost in the "
        "model; the other rows are judged."
    )
    wide = lost.reshape([-1 if i == axis else 1 for i in range(other.ndim)])
    return Mistake(sentence, np.where(wide, exact, other), certain=True, lost=lost)


def in_front(config: ModelConfig, length: int) -> list[list[int]]:
    """Return tokens that may precede a prompt of ``length``: a start token, or padding."""
    named = [i for i in (config.pad_token_id, *config.eos_token_ids) if i is not None]
    ids = [i for i in dict.fromkeys((*named, *STARTS, 0, 1, 2)) if i < config.vocab_size]
    pads = dict.fromkeys((2, 3, 4, *(-length % size for size in (8, 16, 32, 64))))
    padding = [[ids[0]] * n for n in pads if n > 1]
    return [[i] for i in ids] + padding


def in_front_sentence(front: Sequence[int]) -> str:
    """Return the sentence on tokens that preceded the prompt and were removed again."""
    if len(front) == 1:
        return (
            f"Token {front[0]} was put before the prompt, and its row taken off again: every "
            "other row saw it."
        )
    return (
        f"{len(front)} tokens {front[0]} of padding were put before the prompt and attended to, "
        "with positions shifted: their mask was forgotten."
    )


def other_id_sentence(tokens: Sequence[int] | Array, at: int, found: int) -> str:
    """Return the sentence on a prompt whose token ``at`` is another one."""
    agree = " All rows before it agree." if at else ""
    return f"The prompt is another one: token {at} is {found}, and not {tokens[at]}.{agree}"


def other_ids(embedding: Array, tokens: Sequence[int] | Array, rows: Array) -> str | None:
    """Return the sentence on embeddings (T, D) that are other rows of ``embedding`` (V, D)."""
    table = widen(np.asarray(embedding), np.float64)
    rows, found = np.asarray(rows, np.float64), []
    size = (table**2).sum(1)
    for row in rows:
        distance = size - 2 * table @ row + row @ row
        nearest = int(np.argmin(distance))
        if distance[nearest] > SAME_EMBEDDING**2 * max(size[nearest], 1e-300):
            return None
        found.append(nearest)
    ids, theirs = np.asarray(tokens), np.array(found)
    equal = np.array(
        [a == b or np.array_equal(table[a], table[b]) for a, b in zip(ids, theirs, strict=True)]
    )
    if equal.all():
        return None
    for shift in SHIFTS:
        ours = ids[shift:] if shift > 0 else ids[:shift]
        own = theirs[:-shift] if shift > 0 else theirs[-shift:]
        if len(ids) > 2 and np.array_equal(ours, own):
            lead = "" if shift > 0 else f", with token {theirs[0]} in front"
            return f"The prompt is shifted by one{lead}: row t is the embedding of another token."
    wrong = np.flatnonzero(~equal)
    at = int(wrong[0])
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"The prompt is another one: the embedding at position {at} is that of token "
        f"{theirs[at]}, and not of {ids[at]}{more}."
    )


def _rows(mask: NDArray[np.bool_]) -> str:
    at = np.flatnonzero(mask)
    if len(at) == 1:
        return f"row {at[0]}"
    if at[-1] - at[0] + 1 == len(at):
        return f"rows {at[0]} to {at[-1]}"
    return f"{len(at)} of {len(mask)} rows"
