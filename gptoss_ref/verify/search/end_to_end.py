"""Diagnosis from the outputs alone: whole models with each bug, ranked by how near they come.

Logits or log-probabilities say nothing of the stages. Every candidate is therefore run from the
tokens on, and compared where the other was observed. A choice of experts that rounding turns moves
whole rows about, so only the usual rows count: the rows' errors enter by their logarithms and by
their quartiles, in which outliers have little weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT32, FLOAT64, Array
from gptoss_ref.verify.noise.metrics import usual_excess, usually_allowed
from gptoss_ref.verify.noise.rounding import dithered
from gptoss_ref.verify.progress import Progress, Steps
from gptoss_ref.verify.replay.evaluate import Run, walk
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from gptoss_ref.verify.search.candidates import AT_ONCE, Candidate, catalogue
from gptoss_ref.verify.thresholds import ALIKE, COMBINED, GAIN, NOT_FINITE, SAMPLES, SHORTLIST, WINS
from gptoss_ref.weights import ModelWeights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """What was observed of the other.

    Attributes:
        tap: what must be computed to compare with it, ``logits`` or ``norm``.
        see: what would be observed of that tap point as computed, (P, …).
        observed: the same of the other.
        relative: whether a row's error is relative to the row's norm.
        floor: error below which a row counts as equal.
    """

    tap: str
    see: Callable[[Array], Floats]
    observed: Floats
    relative: bool
    floor: float

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


@dataclass(frozen=True)
class Standing:
    """How a candidate, or two, or none, fits.

    Attributes:
        candidates: none: the specification.
        error: (P,) rows' errors.
        score: mean logarithm of them.
        rounded: (P,) rows' errors of a run that rounds as the other does; empty: not measured.
        typical: the median of what rounding explains; NaN: not measured.
        excess: quartiles of the error over what rounding explains, infinite where rows are broken;
            NaN: not measured.
        allowed: (3,) quartiles of the errors that rounding explains.
        broken: rows that are NaN or infinite in one of the two only, and not by rounding.
    """

    candidates: tuple[Candidate, ...]
    error: Floats
    score: float
    rounded: Floats = field(default_factory=lambda: np.empty(0))
    typical: float = np.nan
    excess: float = np.nan
    allowed: Floats = field(default_factory=lambda: np.full(3, np.nan))
    broken: int = 0


class WholeModels:
    """The search for one or two bugs in a model's outputs.

    Attributes:
        target, rounding: what was observed of the other, and how it rounds.
        specification: how the specification fits.
        ranked: all candidates that alter the outputs, the nearest first.
        best: what explains the outputs, if anything does.
        stopped: whether what was observed is not the model's.
        alternatives: names that cannot be told from it.
    """

    def __init__(
        self,
        weights: ModelWeights,
        config: ModelConfig,
        tokens: Array,
        target: Target,
        rounding: str,
        progress: Progress,
    ) -> None:
        self._weights, self._config, self._tokens = weights, config, tokens
        self.target, self.rounding = target, rounding
        self._steps = Steps(progress)
        self._steps.say("running whole models")
        self.stopped = False
        self.specification = self.measured(())
        self.ranked: list[Standing] = []
        self.best: Standing | None = None
        self.alternatives: tuple[str, ...] = ()

    def stop(self) -> None:
        """Look no further: what was observed is not the model's."""
        self.stopped = True

    def fits(self, seen: Array, observed: Array | None) -> bool:
        """Whether outputs (P, …) explain others, but for rounding."""
        if observed is None:
            return False
        error = self._apart(seen, observed)
        return usual_excess(error, self.specification.allowed) <= 1

    def near(self, seen: Array, observed: Array) -> NDArray[np.bool_]:
        """(P,) which rows of outputs are alike, but for rounding."""
        near: NDArray[np.bool_] = self._apart(seen, observed) <= 4 * self.specification.allowed[-1]
        return near

    def _apart(self, seen: Array, observed: Array) -> Floats:
        return self.target.errors(self.target.see(seen), self.target.see(observed))

    def run(self, *, together: bool = True) -> None:
        """Fill ``ranked``, ``best`` and ``alternatives``, of several bugs only if ``together``."""
        if self.stopped:
            self._steps.finish()
            return
        entries = catalogue(self._config, self._weights, len(self._tokens))
        options = [(e.candidate,) for e in entries if not e.candidate.harmless]
        self._steps.expect(SHORTLIST)
        singles = self._standings(options)
        self.ranked = _forms(singles)
        self.best = self._elected(self.ranked)
        if together and self.best is None and self.specification.excess > 1:
            some = [s.candidates[0] for s in self.ranked[:COMBINED]]
            pairs = [(a, b) for a in some for b in some if a is not b]
            self._steps.expect(SHORTLIST)
            standings = self._standings(pairs)
            self.best = self._elected(standings)
            if self.best is not None:
                self.ranked = [*standings, *self.ranked]
        if self.best is not None:
            own = {c.name for c in self.best.candidates}
            near = [s for s in self.ranked if abs(s.score - self.best.score) < np.log(ALIKE)]
            names = (c.name for s in near for c in s.candidates if c.name not in own)
            self.alternatives = tuple(dict.fromkeys(names))
        self._steps.finish()

    def _elected(self, standings: Sequence[Standing]) -> Standing | None:
        """The nearest one, if it explains the outputs and the specification does not as well.

        Where the specification will do by the noise floor, the candidate must be nearer beyond what
        chance does, exact and rounded alike: a bug that rounds is near to all that is rounded.
        """
        spec = self.specification
        for standing in standings[:SHORTLIST]:
            if standing.score >= spec.score:
                return None
            if spec.excess <= 1 and not self._wins(standing.error, spec.error):
                return None
            measured = self.measured(standing.candidates)
            if spec.excess <= 1 and not self._wins(measured.rounded, spec.rounded):
                return None
            if measured.excess <= 1:
                return measured
        return None

    def _wins(self, error: Floats, other: Floats) -> bool:
        """Whether the first errors are smaller than the others beyond what chance does."""
        told = np.abs(error - other) > self.target.floor
        count = int(told.sum())
        wins = int((error < other)[told].sum())
        gained = self._score(other) - self._score(error) > GAIN
        return gained and count > len(error) / 8 and wins > count / 2 + WINS * np.sqrt(count) / 2

    def _standings(self, options: Sequence[tuple[Candidate, ...]]) -> list[Standing]:
        """The options that alter the outputs, by one quick run each, the nearest first."""
        policy = FLOAT64 if self.rounding == "float64" else FLOAT32
        (base,) = self._errors([(SPECIFICATION, policy)])
        standings = []
        starts = range(0, len(options), AT_ONCE)
        self._steps.expect(len(starts))
        for start in starts:
            some = options[start : start + AT_ONCE]
            runs = [(_applied(candidates), policy) for candidates in some]
            for candidates, error in zip(some, self._errors(runs), strict=True):
                if not np.array_equal(error, base):
                    standings.append(Standing(candidates, error, self._score(error)))
            self._steps.tick()
        return sorted(standings, key=lambda s: s.score)

    def measured(self, candidates: tuple[Candidate, ...]) -> Standing:
        """The same with a noise floor: exact, and against rounded runs of the same operations."""
        ops = _applied(candidates)
        imitated = "float32" if self.rounding == "float64" else self.rounding
        runs: list[Run] = [(ops, FLOAT64)]
        runs += [(ops, dithered(imitated, seed)) for seed in range(SAMPLES)]
        exact, *rounded = self._seen(runs)
        error = self.target.errors(exact)
        ours = [self.target.errors(sample, exact) for sample in rounded]
        allowed = usually_allowed(ours, self.target.floor)
        excused = np.any([unlike(sample, exact) for sample in rounded], axis=0)
        broken = int((unlike(exact, self.target.observed) & ~excused).sum())
        excess = np.inf if broken else usual_excess(error, allowed)
        self._steps.tick()
        alike = self.target.errors(rounded[0])
        score, typical = self._score(error), float(allowed[1])
        return Standing(candidates, error, score, alike, typical, excess, allowed, broken)

    def _errors(self, runs: Sequence[Run]) -> list[Floats]:
        return [self.target.errors(seen) for seen in self._seen(runs)]

    def _seen(self, runs: Sequence[Run]) -> list[Floats]:
        """What would be observed of each run."""
        asked = [self.target.tap]
        ((_, values),) = walk(self._weights, self._config, runs, self._tokens, {}, asked)
        return [self.target.see(array) for array in values]

    def _score(self, error: Floats) -> float:
        return float(np.mean(np.log(error + self.target.floor)))


def unlike(one: Floats, other: Floats) -> NDArray[np.bool_]:
    """(P,) rows with a value that is finite in one of the two only."""
    differs: NDArray[np.bool_] = (np.isfinite(one) != np.isfinite(other)).any(axis=1)
    return differs


def _applied(candidates: Sequence[Candidate]) -> ModelOps:
    ops = SPECIFICATION
    for candidate in candidates:
        ops = candidate.apply(ops)
    return ops


def _forms(standings: Sequence[Standing]) -> list[Standing]:
    """Each mutant in its nearest form only."""
    first: dict[str, Standing] = {}
    for standing in standings:
        first.setdefault(standing.candidates[0].name, standing)
    return list(first.values())
