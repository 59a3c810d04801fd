"""Prediction of sets of bugs from the effect of each bug on the outputs.

A hundred bugs make 160,000 sets of three, too many to run. But if each bug changes the outputs only
a little, their effects add up. So every set is ranked by the part of the difference that remains
after the sum of its effects; dot products between the effects are enough for that. Only the nearest
sets are then run. Effects that are large, or that depend on each other, do not add up. Therefore
the search continues from the best set that was run, with the effects measured beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.verify.thresholds import EFFECT_COLUMNS, EXTENDED_SETS

Floats = NDArray[np.float64]


def sketched(seen: Floats) -> Floats:
    """Return some columns (P, k) of outputs (P, N), always the same ones."""
    columns = seen.shape[1]
    if columns <= EFFECT_COLUMNS:
        return seen
    chosen = np.random.default_rng(12).choice(columns, EFFECT_COLUMNS, replace=False)
    return seen[:, np.sort(chosen)]


def scaled(effect: Floats, difference: Floats) -> Floats:
    """Return an effect (P, k) as a vector (P·k,), each row divided by that of the difference.

    So a row that another choice of experts changes much has no more weight than other rows.
    """
    size = np.linalg.norm(np.nan_to_num(difference, posinf=0, neginf=0), axis=1)  # (P,)
    usual = float(np.median(size))
    rows = np.maximum(size, 0.1 * usual if usual > 0 else 1.0)
    vector: Floats = (effect / rows[:, None]).ravel()
    return vector


def nearest_sets(
    effects: Floats, difference: Floats, names: Sequence[str], size: int, count: int
) -> list[tuple[int, ...]]:
    """Return the ``count`` sets of up to ``size`` effects whose sum is nearest to a difference.

    Args:
        effects: (N, M), one per row; rows with NaN are ignored.
        difference: (M,).
        names: N; no set contains a name twice.
        size: from 1 to 4.

    Returns:
        For each number of effects, from the smallest, ``count`` sets, nearest first.

    >>> effects = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    >>> nearest_sets(effects, np.array([1.0, 0, 1.0]), "abcd", 2, 1)
    [(0,), (0, 2)]
    """
    usable = np.flatnonzero(np.isfinite(effects).all(axis=1))
    finite = np.isfinite(difference)
    vectors = effects[usable][:, finite]
    gram = vectors @ vectors.T  # (n, n)
    alone = np.diag(gram) - 2 * vectors @ difference[finite]  # change by each effect
    own = np.array(list(names))[usable]
    clash = own[:, None] == own[None]  # (n, n)
    sets, left = np.arange(len(usable))[:, None], alone  # (s, k), (s,)
    found: list[tuple[int, ...]] = []
    for taken in range(1, size + 1):
        if taken > 1:
            sets, left = _extended(
                sets[:EXTENDED_SETS] if taken > 3 else sets, left, gram, alone, clash
            )
        order = np.argsort(left, kind="stable")
        sets, left = sets[order], left[order]
        found += [tuple(usable[row].tolist()) for row in sets[:count]]
    return found


def _extended(
    sets: NDArray[np.int64], left: Floats, gram: Floats, alone: Floats, clash: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Floats]:
    """Return every set (s, k) with one more effect, and the squared distance that remains."""
    sums = left[: len(sets), None] + alone[None] + 2 * gram[sets].sum(axis=1)  # (s, n)
    forbidden = clash[sets].any(axis=1)
    after = np.arange(len(alone))[None] > sets.max(axis=1)[:, None]  # each set once
    full = sets.shape[1] >= 3  # only the nearest of these are here; any effect may be added
    where = ~forbidden if full else ~forbidden & after
    row, more = np.nonzero(where)
    larger = np.sort(np.concatenate([sets[row], more[:, None]], axis=1), axis=1)
    if not full:
        return larger, sums[row, more]
    larger, first = np.unique(larger, axis=0, return_index=True)
    return larger, sums[row, more][first]
