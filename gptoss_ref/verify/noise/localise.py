"""The wrong numbers of an array: which tokens, and which heads, experts or channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import axes
from gptoss_ref.verify.thresholds import CONCENTRATED, SOME

NAMES = {"H": "head", "K": "key/value head", "E": "expert", "A": "place", "C": "channel"}


def locate_error(tap: str, exact: Array, other: Array, wrong_rows: NDArray[np.bool_]) -> str:
    """Return the wrong tokens, and the axes along which the error is concentrated, in words.

    Args:
        exact, other: the tap point by the specification and by the other implementation.
        wrong_rows: (T,) tokens whose error rounding does not explain.
    """
    letters = axes(tap)
    parts = [tokens_of(wrong_rows)]
    difference = np.asarray(other, np.float64) - np.asarray(exact, np.float64)
    squares = np.where(np.isfinite(difference), difference, 0.0) ** 2
    for axis, letter in enumerate(letters):
        if letter in NAMES:
            along = squares.sum(axis=tuple(i for i in range(squares.ndim) if i != axis))
            parts += _concentrated(NAMES[letter], along)
    return ", ".join(parts)


def tokens_of(wrong: NDArray[np.bool_]) -> str:
    """Return the tokens of a mask (T,) in words."""
    count = int(wrong.sum())
    if count == len(wrong):
        return "all tokens"
    if not count:
        return "no token by itself, but all together"
    first = int(np.argmax(wrong))
    if wrong[first:].all():
        return f"tokens from {first} on"
    return f"{count} of {len(wrong)} tokens, the first {first}"


def _concentrated(name: str, squares: NDArray[np.float64]) -> list[str]:
    order = np.argsort(-squares)
    total = squares.sum()
    if total == 0 or len(squares) < 2:
        return []
    count = 1 + int(np.searchsorted(np.cumsum(squares[order]), CONCENTRATED * total))
    if count > SOME * len(squares):
        return []
    which = sorted(order[:count].tolist())
    shown = ", ".join(map(str, which[:8])) + (", …" if len(which) > 8 else "")
    return [f"{name}{'s' if count > 1 else ''} {shown}"]
