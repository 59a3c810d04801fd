"""Diagnosis from the outputs alone: whole models with each bug, ranked by how near they come.

Logits or log-probabilities say nothing of the stages. Every candidate is therefore run from the
tokens on, and compared where the other was observed. A choice of experts that rounding turns moves
whole rows about, so only the usual rows count: the rows' errors enter by their logarithms and by
their quartiles, in which outliers have little weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT32, FLOAT64, Array
from gptoss_ref.verify.mutants import Mutant
from gptoss_ref.verify.noise.metrics import usual_excess, usually_allowed
from gptoss_ref.verify.noise.rounding import dithered
from gptoss_ref.verify.progress import Steps
from gptoss_ref.verify.replay.evaluate import Run, walk
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from gptoss_ref.verify.search.additive import nearest_sets, scaled, sketched
from gptoss_ref.verify.search.candidates import AT_ONCE, Candidate, catalogue, changes
from gptoss_ref.verify.search.estimate import candidate as valued
from gptoss_ref.verify.search.estimate import guess, interval, refined, shortest
from gptoss_ref.verify.thresholds import (
    ALIKE,
    ALONG,
    COMBINED,
    COMPARED,
    FAR_OFF,
    FITTED,
    GAIN,
    MOST_AT_ONCE,
    NO_DOUBT,
    NOT_FINITE,
    PREDICTED,
    SAMPLES,
    SHORTLIST,
    TURNED,
    WINS,
)
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

    def turned(self, seen: Floats) -> float:
        """The mean logarithm of the sines of the angles between the rows of both."""
        a, b = (np.nan_to_num(x, posinf=0, neginf=0) for x in (seen, self.observed))
        across, own, other = (np.einsum("ij,ij->i", *x) for x in ((a, b), (a, a), (b, b)))
        cosines = across / np.sqrt(np.maximum(own * other, 1e-300))
        sines = np.where(cosines > 0, np.sqrt(np.maximum(1 - cosines**2, 0)), 1.0)
        return float(np.mean(np.log(sines + self.floor)))


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
        turned: mean logarithm of the sine of the angle between its rows and the observed ones,
            which is 0 for outputs that have nothing to do with these, however small they are.
    """

    candidates: Option
    error: Floats
    score: float
    rounded: Floats = field(default_factory=lambda: np.empty(0))
    typical: float = np.nan
    excess: float = np.nan
    allowed: Floats = field(default_factory=lambda: np.full(3, np.nan))
    broken: int = 0
    turned: float = 0.0


Option = tuple[Candidate, ...]
"""Bugs at once, applied one after the other."""


@dataclass(frozen=True)
class Tried:
    """Options that were run beside a base, which may be the specification.

    Attributes:
        standings: of those that alter the outputs, the nearest first.
        base, turned: the score of the base, and its angle to the outputs.
        effects: by the last candidate of each, what it does to the outputs of the base.
        difference: what the base leaves to be explained.
    """

    standings: list[Standing]
    base: float
    turned: float
    effects: list[tuple[Candidate, Floats]]
    difference: Floats

    def fittable(self) -> list[Mutant]:
        """Mutants with a parameter that move the outputs along the difference, or against it."""
        size = float(np.linalg.norm(self.difference))
        along: dict[str, tuple[float, Mutant]] = {}
        for candidate, effect in self.effects:
            length = float(np.linalg.norm(effect))
            if candidate.mutant.parameter is None or not 0 < length * size < np.inf:
                continue
            cosine = abs(float(effect @ self.difference)) / (length * size)
            known, _ = along.get(candidate.name, (0.0, None))
            along[candidate.name] = max(known, cosine), candidate.mutant
        found = sorted(along.values(), key=lambda pair: -pair[0])
        return [mutant for cosine, mutant in found if cosine > ALONG][:FITTED]

    def together(self, size: int, count: int) -> list[Option]:
        """Sets of candidates whose effects come nearest to the difference when they add up."""
        if not self.effects:
            return []
        candidates, effects = zip(*self.effects, strict=True)
        names = [candidate.name for candidate in candidates]
        sets = nearest_sets(np.array(effects), self.difference, names, size, count)
        return [tuple(candidates[i] for i in some) for some in sets]


class WholeModels:
    """The search for up to four bugs in a model's outputs.

    Attributes:
        target, rounding: what was observed of the other, and how it rounds.
        specification: how the specification fits.
        ranked: all candidates that alter the outputs, the nearest first.
        best: what explains the outputs, if anything does.
        stopped: whether what was observed is not the model's.
        alternatives: by the name of each of its bugs, what may take that bug's place.
        interval: of a fitted constant: between what values it explains the outputs.
    """

    def __init__(
        self,
        weights: ModelWeights,
        config: ModelConfig,
        tokens: Array,
        target: Target,
        rounding: str,
        steps: Steps,
    ) -> None:
        self._weights, self._config, self._tokens = weights, config, tokens
        self.target, self.rounding = target, rounding
        self._steps = steps
        self._steps.say("running whole models")
        self._plain: dict[Option, Floats] = {}  # what would be seen of each base, by a quick run
        self.stopped = False
        self.specification = self.measured(())
        self.ranked: list[Standing] = []
        self.best: Standing | None = None
        self.alternatives: dict[str, tuple[str, ...]] = {}
        self.interval: tuple[float, float] | None = None

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
            return
        entries = catalogue(self._config, self._weights, len(self._tokens))
        options = [(e.candidate,) for e in entries if not e.candidate.harmless]
        self._steps.expect(SHORTLIST)
        singles = self._tried(options)
        self.ranked = _forms(singles.standings)
        self.best = self._elected(self.ranked)
        if self.specification.excess > 1 and not self._sure:
            self._fit(singles)
        if together and self.best is None and self.specification.excess > 1:
            self._combine(options, singles)
        if self.best is not None:
            self.alternatives = self._alternatives(self.best)

    def _alternatives(self, best: Standing) -> dict[str, tuple[str, ...]]:
        """What may take the place of each bug: it is there instead in options that fit alike."""
        own = [c.name for c in best.candidates]
        found: dict[str, dict[str, None]] = {name: {} for name in own}
        for standing in self.ranked:
            if abs(standing.score - best.score) < np.log(ALIKE):
                names = [c.name for c in standing.candidates]
                for missing in set(own) - set(names):
                    found[missing] |= dict.fromkeys(n for n in names if n not in own)
        return {name: tuple(others) for name, others in found.items()}

    @property
    def _sure(self) -> bool:
        """Whether what was found leaves so little that nothing else needs to be tried."""
        return self.best is not None and self.best.excess <= NO_DOUBT

    def _fit(self, singles: Tried) -> None:
        """A constant of any value, which takes the place of a known bug if it comes nearer."""
        mutants = singles.fittable()
        if not mutants:
            return
        config, tokens = self._config, len(self._tokens)

        def score(candidates: Sequence[Candidate]) -> list[float]:
            tried = self._tried([(candidate,) for candidate in candidates])
            by_value = {s.candidates[0].value: s.score for s in tried.standings}
            return [by_value.get(candidate.value, tried.base) for candidate in candidates]

        guesses = [g for m in mutants if (g := guess(m, config, tokens, score)) is not None]
        if not guesses:
            return
        nearest = min((refined(g, score, COMPARED) for g in guesses), key=lambda g: g.distance)
        fitted = self._tried([(refined(nearest, score).candidate,)]).standings
        best = self._elected(fitted)
        if best is None or (self.best is not None and best.score > self.best.score - GAIN):
            return
        self.ranked = [*fitted, *self.ranked]
        self.best = self._rounded_off(best)

    def _rounded_off(self, best: Standing) -> Standing:
        """A fitted value with the fewest digits that the outputs allow, and between what limits."""
        (found,) = best.candidates

        def explains(other: Candidate) -> bool:
            nearby = self._tried([(other,)]).standings
            return bool(nearby) and usual_excess(nearby[0].error, best.allowed) <= 1

        self.interval = interval(found, self._config, len(self._tokens), explains)
        assert found.value is not None
        short = valued(found.mutant, shortest(found.value, *self.interval))
        return replace(best, candidates=(short,))

    def _combine(self, options: Sequence[Option], singles: Tried) -> None:
        """Several bugs at once: added to the nearest set, and removed from it where they do harm.

        Each time, the sets are run whose effects add up to what is left, and what the nearest set
        so far leaves without one of its bugs; the best of these is what the next round begins with.
        Best is what turns the outputs the right way: beside several gross bugs any bug that merely
        makes them small, such as an embedding of zeros, comes nearer than one that is there.
        """
        base: Option = ()
        around, reached = singles, singles.turned
        nearest = [s.candidates[0] for s in sorted(self.ranked, key=_turned)[:COMBINED]]
        sets: list[Option] = [*combinations(nearest, 1), *combinations(nearest, 2)]
        while len(base) < MOST_AT_ONCE:
            sets += [
                (*base, *more) for more in around.together(MOST_AT_ONCE - len(base), PREDICTED)
            ]
            sets += [tuple(c for c in base if c is not left) for left in base if len(base) > 1]
            sets += [some[::-1] for some in sets if _order_matters(some)]
            self._steps.expect(SHORTLIST)
            tried = self._tried(sets).standings
            self.best = self._elected(tried)
            self.ranked = sorted([*tried, *self.ranked], key=lambda s: s.score)
            if self.best is not None:
                self.best = self._pruned(self.best)
                return
            nearer = min(tried, key=lambda s: s.turned + TURNED * len(s.candidates), default=None)
            if nearer is None or nearer.turned > reached - TURNED:
                return
            base, reached = nearer.candidates, nearer.turned
            if len(base) == MOST_AT_ONCE:
                return
            taken, sets = {c.name for c in base}, []
            around = self._tried([(*base, c) for (c,) in options if c.name not in taken], base)

    def _pruned(self, found: Standing) -> Standing:
        """The same without bugs that are not needed, or that better the outputs by chance only."""
        for candidate in found.candidates:
            fewer = tuple(c for c in found.candidates if c is not candidate)
            if fewer:
                without = self.measured(fewer)
                if without.excess <= 1 or not self._wins(found.error, without.error):
                    found = without
        return found

    def _elected(self, standings: Sequence[Standing]) -> Standing | None:
        """The nearest one, if it explains the outputs and the specification does not as well.

        Where the specification will do by the noise floor, the candidate must be nearer beyond what
        chance does, exact and rounded alike: a bug that rounds is near to all that is rounded.
        """
        spec = self.specification
        for standing in standings[:SHORTLIST]:
            if standing.score >= spec.score:
                return None
            if not spec.broken and usual_excess(standing.error, spec.allowed) > FAR_OFF:
                continue
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

    def _tried(self, options: Sequence[Option], base: Option = ()) -> Tried:
        """The options that alter the outputs of a base, by one quick run each, nearest first."""
        policy = FLOAT64 if self.rounding == "float64" else FLOAT32
        if base not in self._plain:
            (self._plain[base],) = self._seen([(_applied(base), policy)])
        plain = self._plain[base]
        error, standings = self.target.errors(plain), []
        starts = range(0, len(options), AT_ONCE)
        self._steps.expect(len(starts))
        with np.errstate(invalid="ignore"):
            difference = sketched(self.target.observed) - sketched(plain)  # (P, k)
        effects = []
        for start in starts:
            some = options[start : start + AT_ONCE]
            runs = [(_applied(candidates), policy) for candidates in some]
            for candidates, seen in zip(some, self._seen(runs), strict=True):
                own = self.target.errors(seen)
                if not np.array_equal(own, error):
                    turned = self.target.turned(seen)
                    standings.append(Standing(candidates, own, self._score(own), turned=turned))
                    with np.errstate(invalid="ignore"):
                        effect = sketched(seen) - sketched(plain)
                    effects.append((candidates[-1], scaled(effect, difference)))
            self._steps.tick()
        standings.sort(key=lambda s: s.score)
        whole = scaled(difference, difference)
        turned = self.target.turned(plain)
        return Tried(standings, self._score(error), turned, effects, whole)

    def measured(self, candidates: Option) -> Standing:
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


def _applied(candidates: Option) -> ModelOps:
    ops = SPECIFICATION
    for candidate in candidates:
        ops = candidate.apply(ops)
    return ops


def _turned(standing: Standing) -> float:
    return standing.turned


def _order_matters(candidates: Option) -> bool:
    """Whether two of the candidates change the same operation."""
    ops = [changes(SPECIFICATION, c.apply(SPECIFICATION)) for c in candidates]
    return sum(map(len, ops)) > len(frozenset[str]().union(*ops))


def _forms(standings: Sequence[Standing]) -> list[Standing]:
    """Each mutant in its nearest form only."""
    first: dict[str, Standing] = {}
    for standing in standings:
        first.setdefault(standing.candidates[0].name, standing)
    return list(first.values())
