"""Fits of wrong constants, such as an epsilon, a base, or the length of a window.

A mutant with a parameter has a list of usual values. If none of them explains a divergence, the
value is searched on a coarse grid, and then near the best value, by the distance at the tap point
that diverges. The result counts only if it explains the divergence like any other bug.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.verify.mutants import Mutant
from gptoss_ref.verify.mutants.mutant import Parameter
from gptoss_ref.verify.search.candidates import Candidate
from gptoss_ref.verify.search.fit import Fit
from gptoss_ref.verify.thresholds import ENUMERATED, FINE, FINEST, FLAT, GRID, ROUNDS, STALLED

Score = Callable[[Sequence[Candidate]], list[float]]
"""Function that returns the distance of each of some candidates; smaller is better."""


def candidate(mutant: Mutant, value: float) -> Candidate:
    """Return the mutant with that value of its parameter."""
    assert mutant.parameter is not None
    label = f"{mutant.parameter.name} {value:.6g}"
    return Candidate(mutant, mutant.parameter.change(value), label, value=value)


def guess(mutant: Mutant, config: ModelConfig, tokens: int, score: Score) -> Fit[Candidate] | None:
    """Return the best value on a coarse grid."""
    parameter = mutant.parameter
    if parameter is None:
        return None
    low, high = parameter.low(config, tokens), parameter.high(config, tokens)
    return _narrowed(mutant, (low, high), score, GRID)[0] if low < high else None


def refined(first: Fit[Candidate], score: Score, rounds: int = ROUNDS) -> Fit[Candidate]:
    """Return the best value in the interval of a fit, after some rounds.

    The rounds end at the resolution of the numbers.
    """
    mutant, best, stalled = first.candidates[0].mutant, first, 0
    assert best.interval is not None
    low, high = best.interval
    for _ in range(rounds):
        if not low < high or high - low < FINEST * high:
            break
        finer, spread = _narrowed(mutant, (low, high), score, FINE)
        stalled = stalled + 1 if spread < FLAT else 0
        assert finer.interval is not None
        low, high = finer.interval
        best = min(finer, best, key=lambda fit: fit.distance)
        if stalled == STALLED:
            break
    return replace(best, interval=(low, high))


def _narrowed(
    mutant: Mutant, interval: tuple[float, float], score: Score, count: int
) -> tuple[Fit[Candidate], float]:
    """Return the best value of a grid, and the spread of the distances on it."""
    parameter = mutant.parameter
    assert parameter is not None
    values = _grid(parameter, *interval, count)
    tried = [candidate(mutant, value) for value in values]
    distances = score(tried)
    at = int(np.argmin(distances))
    near = values[max(0, at - 1)], values[min(len(values) - 1, at + 1)]
    fit = Fit((tried[at],), distances[at], interval=near)
    return fit, max(distances) - min(distances)


def interval(
    found: Candidate, config: ModelConfig, tokens: int, explains: Callable[[Candidate], bool]
) -> tuple[float, float]:
    """Return the interval of parameter values with which a candidate explains a divergence."""
    mutant, value = found.mutant, found.value
    assert mutant.parameter is not None
    assert value is not None
    parameter = mutant.parameter
    ends = []
    for sign, end in ((-1, parameter.low(config, tokens)), (1, parameter.high(config, tokens))):
        if parameter.scale == "integer":
            ends.append(value)
            continue
        inner, outer = 0.0, abs(np.log(end / value))
        for _ in range(8):  # in the logarithm of the step: from 2^-30 to the end
            middle = np.sqrt(max(inner, 2.0**-30) * outer)
            if explains(candidate(mutant, value * float(np.exp(sign * middle)))):
                inner = middle
            else:
                outer = middle
        ends.append(value * float(np.exp(sign * outer)))
    return ends[0], ends[1]


def _grid(parameter: Parameter, low: float, high: float, count: int) -> list[float]:
    if parameter.scale == "integer":
        count = max(count, ENUMERATED if high - low < ENUMERATED else count)
        whole = np.unique(np.linspace(low, high, count).round())
        return [float(v) for v in whole]
    return [float(v) for v in np.geomspace(low, high, count)]


def shortest(value: float, low: float, high: float) -> float:
    """Return the number with the fewest digits between two others, or ``value``."""
    digits = (float(f"{value:.{n}g}") for n in range(1, 15))
    return next((short for short in digits if low <= short <= high), value)
