"""Sign test for bugs of backward passes that are smaller than rounding.

Such a bug changes a gradient, or a row of it, by less than rounding explains. But each value that
it changes by more than a few of its own roundings is a vote: is the observed value nearer to the
bug or to the specification? The forward pass has the same test
(:mod:`~gptoss_ref.verify.search.sign_test`, decision 0014).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array
from gptoss_ref.tracing import gradients as names
from gptoss_ref.verify.gradients.mutants import GradientMutant
from gptoss_ref.verify.gradients.replay import Judged, Replay
from gptoss_ref.verify.noise.metrics import measure_arrays
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.search.fit import Fit
from gptoss_ref.verify.search.sign_test import Vote, clearest
from gptoss_ref.verify.thresholds import ALWAYS_ALLOWED, GROSS, LOOKED_AT, RESOLVED, RESOLVED_VALUES

Explained = Mapping[str, tuple[GradientMutant, ...]]
"""For each gradient, the bugs that explain it."""


def most_votes(
    replay: Replay,
    judged: Sequence[Judged],
    mutants: Sequence[GradientMutant],
    explained: Explained,
) -> Fit[GradientMutant] | None:
    """The bug with the clearest vote over all gradients that do not diverge, if any.

    Args:
        judged: the gradients of the trace, in the order of the backward pass.
        mutants: bugs that have not been found yet.
        explained: the bugs that explain gradients that diverge; those gradients vote, too.
    """
    votes = [_polled(replay, judged, mutant, explained) for mutant in mutants]
    return clearest([vote for vote in votes if vote is not None])


def _polled(
    replay: Replay, judged: Sequence[Judged], mutant: GradientMutant, explained: Explained
) -> Vote[GradientMutant] | None:
    """The votes for and against one bug; None if some gradient rules it out by its size."""
    vote, looked_at = Vote(mutant), 0
    for one in judged:
        if not replay.segment(one.name) & set(mutant.wrong):
            continue
        if one.excess > 1 and one.name not in explained:
            continue
        if looked_at > LOOKED_AT:
            break
        looked_at += math.prod(replay.trace.shape_of(one.name))
        if not _count(replay, one, vote, explained.get(one.name, ())):
            return None
    return vote


def _count(
    replay: Replay, judged: Judged, vote: Vote[GradientMutant], found: Sequence[GradientMutant]
) -> bool:
    """Add one gradient's votes; False if the bug is too large there for rounding to hide it."""
    name = judged.name
    before = [bug.wrong for bug in found]
    after = [*before, vote.candidate.wrong]
    right = judged.exact
    if found or right is None:
        right = replay.computed(name, 0, before)
    wrong = replay.computed(name, 0, after)
    tap = names.of_tap(name)
    axis = names.axes(name).index("T") if tap is not None else 0
    moved = measure_arrays(right, wrong, axis)
    if moved.rel_l2 > GROSS * judged.level.allowed or moved.broken.any():
        return False
    unit, other = UNITS[replay.rounding], replay.trace[name]
    voting = np.abs(wrong - right) > ALWAYS_ALLOWED * unit * np.maximum(
        np.abs(right), np.abs(wrong)
    )
    voting &= resolved(right, voting, other, unit)
    if voting.any():
        run = 0 if replay.rounding == "float64" else 1  # no replay is more exact than float64
        r, w = (replay.computed(name, run, bugs) for bugs in (before, after))
        vote.count(name, r, np.where(voting, w, r), other, unit)
    return True


def resolved(right: Array, voting: Array, other: Array, unit: float) -> NDArray[np.bool_]:
    """The values of a gradient that the other implementation does not lose to rounding.

    A correct implementation may lose values that are smaller than one rounding of the array: a
    sigmoid of −12 by way of tanh is zero in bfloat16. So such values count only if the other has
    those of the same size that the bug does not change.

    Args:
        right: the right gradient, of any shape.
        voting: of the same shape; True for values that the bug changes.
        other: the other implementation's gradient, of the same shape.
        unit: its unit roundoff.
    """
    size = np.abs(right)
    small: NDArray[np.bool_] = size < unit * np.sqrt(np.mean(np.square(right)))
    if not (small & voting).any():
        return ~small
    least, most = np.quantile(size[small & voting], (0.1, 0.9))
    alike = small & ~voting & (size >= least) & (size <= most)
    near = np.abs(other[alike] - right[alike]) <= RESOLVED * size[alike]
    seen = near.size >= RESOLVED_VALUES and near.mean() >= 1 - RESOLVED
    return np.ones_like(voting) if seen else ~small
