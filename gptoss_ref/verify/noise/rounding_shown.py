"""The rounding of another program's numbers, if the format of the arrays does not show it.

The format of a file need not be the rounding of the run. If arrays of a bfloat16 run were saved as
float32, their values show it (:func:`~gptoss_ref.tracing.trace.rounding_of`). If a log-softmax was
computed from them in float32, their grid is shifted by a constant per row. If a run multiplies in
TF32 and stores float32, only the size of its errors shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.rounding import FINEST_FIRST, UNITS
from gptoss_ref.verify.noise.tap_check import replay
from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.replay.graph import DISCRETE
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.thresholds import COHERENT, ON_GRID, TYPICAL, WHOLE_ARRAY
from gptoss_ref.weights import ModelWeights


def coarser_than(rounding: str) -> tuple[str, ...]:
    """Return the coarser roundings, the finest first.

    >>> coarser_than("float32")
    ('float16', 'bfloat16')
    """
    return FINEST_FIRST[FINEST_FIRST.index(rounding) + 1 :]


def grid_under_constant(exact: Array, other: Array) -> str | None:
    """Return the grid of logits (T, V) before each row got a constant; None if there is none.

    Args:
        exact: the logits of the specification.
        other: the recorded ones, in float32 or float64.
    """
    exact, other = (np.asarray(x, np.float64) for x in (exact, other))
    usable = np.isfinite(other).all(axis=1) & np.isfinite(exact).all(axis=1)
    for rounding in ("bfloat16", "float16"):
        total, count = 0.0, 0
        for ours, theirs in zip(exact[usable][:64], other[usable][:64], strict=True):
            shift = float(np.mean(theirs - ours))
            size = np.abs(theirs - shift)
            octave = 2.0 ** math.floor(math.log2(max(size.max(), 1e-30)) - 1)
            large = theirs[(size >= 1.05 * octave)]  # not near the next octave: other grid
            if len(large) > 2:
                phase = np.exp(2j * np.pi * large / (2 * UNITS[rounding] * octave))
                total += abs(phase.sum())
                count += len(large)
        if count >= ON_GRID and total > COHERENT * count:
            return rounding
    return None


def shown_by_errors(
    weights: ModelWeights, trace: Trace, rounding: str, found: Iterable[TapError]
) -> str | None:
    """Return a coarser rounding that explains the errors; None if there is none.

    A bug is wrong at its own stage only, because every stage is judged from the other's own inputs.
    A rounding shows at most stages. Its errors are at most as large as it explains, and not much
    smaller.

    Args:
        rounding: the one that the values show.
        found: the trace's tap points against the specification, under that rounding.
    """
    judged = [local for local in found if _computed(local.tap)]
    wrong = [local for local in judged if local.excess > 1]
    if not wrong or 2 * len(wrong) < len(judged) or any(local.broken.any() for local in wrong):
        return None
    taps = [local.tap for local in wrong]
    for coarser in coarser_than(rounding):
        if not any(x.excess > 1 for x in replay(weights, trace, SPECIFICATION, coarser, taps[:1])):
            again = list(replay(weights, trace, SPECIFICATION, coarser))
            if all(local.excess <= 1 for local in again):
                own = [local for local in again if local.tap in taps]
                if all(x.whole >= TYPICAL * x.whole_allowed / WHOLE_ARRAY for x in own):
                    return coarser
    return None


def stages(found: Iterable[TapError]) -> int:
    """Number of kinds of tap points that diverge."""
    return len({split(local.tap)[1] for local in found if local.excess > 1})


def _computed(tap: str) -> bool:
    stage = split(tap)[1]
    return stage not in DISCRETE and stage != "embedding"


def by_errors_in_words(stored: str, rounding: str) -> str:
    """Return the note on a rounding that only the errors show."""
    return (
        f"OTHER's values are stored finer than {rounding}, but are as far off as a correct run in "
        f"{rounding} is: they are judged as such; state the rounding if it was {stored} throughout"
    )


def roundings_in_words(trace: Trace, rounding: str) -> list[str]:
    """Return the note on roundings that the values show, if several or other than the dtype."""
    shown: dict[tuple[str, str], list[str]] = {}
    for tap in trace:
        grid = trace.grid(tap) if _computed(tap) else None
        if grid is not None:
            shown.setdefault((grid, trace.dtype_of(tap)), []).append(tap)
    grids = sorted({grid for grid, _ in shown}, key=FINEST_FIRST.index)
    if all(grid == stored for grid, stored in shown) and len(grids) < 2:
        return []
    parts = []
    for grid in grids:
        taps = [tap for (own, _), some in shown.items() if own == grid for tap in some]
        stored = sorted({kind for own, kind in shown if own == grid}, key=FINEST_FIRST.index)
        kept = "" if stored == [grid] else f", stored as {' and '.join(stored)}"
        which = taps[0] if len(taps) == 1 else f"{len(taps)} tap points, the first {taps[0]}"
        parts.append(f"to {grid} ({which}{kept})")
    judged = f"they are judged as a run in {rounding}"
    if len(grids) > 1:
        judged += ", each tap point as what it is computed from and itself are rounded"
    return [f"OTHER's values are rounded {'; '.join(parts)}: {judged}"]
