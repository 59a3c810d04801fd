"""Distances of candidates to observed numbers at one tap point, in one pass for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import FLOAT32, FLOAT64, Array
from gptoss_ref.tracing.taps import axes, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.metrics import Errors, measure_arrays
from gptoss_ref.verify.replay.evaluate import predict_each
from gptoss_ref.verify.replay.graph import DISCRETE, EXPERT_PRODUCTS
from gptoss_ref.verify.search.candidates import AT_ONCE, Option, applied
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.thresholds import BEGINNING, DECODED_VALUES, LEAST_EXPERTS, WRONG_ROWS
from gptoss_ref.weights import ModelWeights

Item = TypeVar("Item")

TINY = 2.0**-60
"""Relative error below which a row counts as equal."""


def beginning_of(wrong: Array, length: int) -> int:
    """Return how many first tokens of a prompt to search.

    Args:
        wrong: positions (N,) of the wrong rows, in order.
        length: of the prompt; it is the result if few rows are wrong or little would be saved.
    """
    if len(wrong) < WRONG_ROWS:
        return length
    beginning = max(BEGINNING, int(wrong[WRONG_ROWS - 1]) + 1)
    return beginning if 4 * beginning <= 3 * length else length


def distances(
    evidence: Evidence, tap: str, options: Sequence[Option], length: int | None = None
) -> tuple[float, list[tuple[float, Option]]]:
    """Return the distance of the operations so far, and with each option that changes the numbers.

    A distance is the mean logarithm of the relative errors of the rows; nearest first. A choice of
    experts has no distance: all options are equal.

    Args:
        tap: the tap point, computed from the nearest ones before it that the trace has.
        length: number of tokens, from the first, to compare; None: all.
    """
    if split(tap)[1] in DISCRETE:
        return 1.0, [(0.0, option) for option in options]
    weights, trace = evidence.weights, evidence.trace
    given = Beginning(trace, len(trace.tokens) if length is None else length)
    other, axis = given[tap], axes(tap).index("T")
    policy = FLOAT64 if evidence.rounding == "float64" else FLOAT32
    seen, experts = given.observed(tap), some_experts(weights, trace, tap)
    asked = given.tokens, given, [tap], experts, len(trace.tokens)
    plain: Array | None = None
    base, altered = 0.0, []
    tried = [(option, (applied(option, evidence.ops), policy)) for option in ((), *options)]
    batches = list(_batches(tried, AT_ONCE))
    evidence.steps.expect(len(batches))
    for some in batches:
        results = predict_each(weights, trace.config, [run for _, run in some], *asked)
        for (option, _), result in zip(some, results, strict=True):
            score = _score(measure_arrays(other, result[tap], axis).of(seen))
            if plain is None:
                plain, base = result[tap], score
            elif not _same(plain, result[tap]):
                altered.append((score, option))
        evidence.steps.tick()
    return base, sorted(altered, key=lambda pair: pair[0])


class Beginning(Mapping[str, Array]):
    """The first ``length`` tokens of a trace."""

    def __init__(self, trace: Trace, length: int) -> None:
        self._trace, self._length = trace, length
        self.tokens = trace.tokens[:length]
        self.observed_in_part = trace.observed_in_part

    def __getitem__(self, tap: str) -> Array:
        values = self._trace[tap]
        if self._length == len(self._trace.tokens):
            return values
        letters = axes(tap)
        return values[tuple(slice(self._length if x in ("T", "S") else None) for x in letters)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._trace)

    def __len__(self) -> int:
        return len(self._trace)

    def observed(self, tap: str) -> NDArray[np.bool_]:
        """(t,) whether each row of a tap point was observed."""
        return self._trace.observed(tap)[: self._length]


def some_experts(weights: ModelWeights, trace: Trace, tap: str) -> frozenset[int] | None:
    """Return the experts to use if many candidates are run: the busiest few of large matrices.

    None: all experts, for small matrices or if the choices are not known.
    """
    block, stage = split(tap)
    chosen = f"block.{block}.mlp.expert_indices"
    if stage not in EXPERT_PRODUCTS or block is None or chosen not in trace:
        return None
    matrices = weights.blocks[block].mlp.mlp1_weight.shape
    count = max(LEAST_EXPERTS, DECODED_VALUES // (matrices[-2] * matrices[-1]))
    if count >= matrices[0]:
        return None
    busiest = np.argsort(-np.bincount(trace[chosen].ravel(), minlength=matrices[0]), kind="stable")
    return frozenset(busiest[:count].tolist())


def _score(errors: Errors) -> float:
    """Return the mean logarithm of the rows' errors; a row finite in only one counts as far."""
    broken = float(np.mean(errors.broken > 0))
    return float(np.mean(np.log(errors.rows() + TINY))) - broken * float(np.log(TINY))


def _same(one: Array, other: Array) -> bool:
    """Return whether two arrays are equal; NaN equals NaN, which is checked only if needed."""
    return np.array_equal(one, other) or (
        bool(np.isnan(one).any()) and np.array_equal(one, other, equal_nan=True)
    )


def _batches(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
