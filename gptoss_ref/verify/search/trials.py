"""Whole models with bugs, run from the tokens on and compared with observed outputs.

A choice of experts that rounding changes moves whole rows, so only typical rows count: the rows'
errors are compared by their logarithms and by their quartiles, in which outliers have little
weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT32, FLOAT64, Array
from gptoss_ref.verify.mutants import Mutant
from gptoss_ref.verify.noise.metrics import usual_excess, usually_allowed
from gptoss_ref.verify.noise.rounding import dithered
from gptoss_ref.verify.progress import Steps
from gptoss_ref.verify.replay.evaluate import Run, walk
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.verify.search.additive import nearest_sets, scaled, sketched
from gptoss_ref.verify.search.candidates import AT_ONCE, Candidate, Option, applied
from gptoss_ref.verify.search.fit import Fit
from gptoss_ref.verify.search.target import Floats, Target
from gptoss_ref.verify.thresholds import ALONG, FAR_OFF, FITTED, GAIN, SAMPLES, SHORTLIST, WINS
from gptoss_ref.weights import ModelWeights


@dataclass(frozen=True, kw_only=True)
class OutputsFit(Fit[Candidate]):
    """A fit of whole models. Its distance is the mean logarithm of the rows' errors.

    The excess is the ratio of the error's quartiles to those that rounding explains, and infinite
    if rows are broken.

    Attributes:
        error: (P,) the rows' errors.
        rounded: (P,) the rows' errors of a run with the other's rounding; empty: not measured.
        allowed: (3,) quartiles of the errors that rounding explains; NaN: not measured.
        broken: rows that are NaN or infinite in only one of the two, and not by rounding.
        turned: mean logarithm of the sine of the angle between its rows and the observed ones. It
            is 0 for unrelated outputs, however small these are.
    """

    error: Floats
    rounded: Floats = field(default_factory=lambda: np.empty(0))
    allowed: Floats = field(default_factory=lambda: np.full(3, np.nan))
    broken: int = 0
    turned: float = 0.0

    @property
    def typical(self) -> float:
        """The median of the errors that rounding explains."""
        return float(self.allowed[1])


@dataclass(frozen=True)
class Tried:
    """Options that were run beside a base, which may be the specification.

    Attributes:
        fits: the options that change the outputs, nearest first.
        base, turned: the distance of the base, and its angle to the outputs.
        effects: for the last candidate of each option, its effect on the outputs of the base.
        difference: the difference that the base leaves to be explained.
    """

    fits: list[OutputsFit]
    base: float
    turned: float
    effects: list[tuple[Candidate, Floats]]
    difference: Floats

    def fittable(self) -> tuple[list[Mutant], list[Mutant]]:
        """Return the mutants with a parameter that change the outputs along the difference.

        Those that change them against it count, too. The first list is fitted; the second has the
        others.
        """
        found = self.aligned()
        first = [mutant for cosine, mutant in found if cosine > ALONG][:FITTED]
        return first, [mutant for _, mutant in found[len(first) :]]

    def aligned(self) -> list[tuple[float, Mutant]]:
        """Return the mutants with a parameter, with the cosine of their effect to the difference.

        The largest is first; the sign does not count.
        """
        size = float(np.linalg.norm(self.difference))
        along: dict[str, tuple[float, Mutant]] = {}
        for candidate, effect in self.effects:
            length = float(np.linalg.norm(effect))
            if candidate.mutant.parameter is None or not 0 < length * size < np.inf:
                continue
            cosine = abs(float(effect @ self.difference)) / (length * size)
            known, _ = along.get(candidate.name, (0.0, None))
            along[candidate.name] = max(known, cosine), candidate.mutant
        return sorted(along.values(), key=lambda pair: -pair[0])

    def together(self, size: int, count: int) -> list[Option]:
        """Return the sets of candidates whose effects add up nearest to the difference."""
        if not self.effects:
            return []
        candidates, effects = zip(*self.effects, strict=True)
        names = [candidate.name for candidate in candidates]
        sets = nearest_sets(np.array(effects), self.difference, names, size, count)
        return [tuple(candidates[i] for i in some) for some in sets]


class Trials:
    """Whole models on one prompt, each compared with one array of outputs.

    Attributes:
        target, rounding: the observed outputs, and their rounding.
        specification: the fit of the specification.
    """

    def __init__(
        self,
        weights: ModelWeights,
        config: ModelConfig,
        tokens: Array,
        target: Target,
        rounding: str,
        steps: Steps,
        length: int | None = None,
    ) -> None:
        self.weights, self.config, self.tokens = weights, config, np.asarray(tokens)
        self._length = length  # of the whole prompt, if the tokens are its beginning
        self.target, self.rounding, self.steps = target, rounding, steps
        # the operations of each base, and its outputs by a quick run
        self._bases: dict[Option, tuple[ModelOps, Floats]] = {}
        self.specification = self.measured(())

    def beginning(self, length: int) -> Trials:
        """Return the trials on the first ``length`` tokens."""
        target = self.target.beginning(length)
        asked = self.weights, self.config, self.tokens[:length]
        return Trials(*asked, target, self.rounding, self.steps, len(self.tokens))

    def tried(self, options: Sequence[Option], base: Option = ()) -> Tried:
        """Run each option once; return those that change the base's outputs, nearest first."""
        policy = FLOAT64 if self.rounding == "float64" else FLOAT32
        if base not in self._bases:
            ops = applied(base)
            (seen,) = self._seen([(ops, policy)])
            self._bases[base] = ops, seen
        ops, plain = self._bases[base]
        error, fits = self.target.errors(plain), []
        starts = range(0, len(options), AT_ONCE)
        self.steps.expect(len(starts))
        with np.errstate(invalid="ignore"):
            difference = sketched(self.target.observed) - sketched(plain)  # (P, k)
        effects = []
        for start in starts:
            some = options[start : start + AT_ONCE]
            runs = [(_beside(base, ops, candidates), policy) for candidates in some]
            for candidates, seen in zip(some, self._seen(runs), strict=True):
                own = self.target.errors(seen)
                if not np.array_equal(own, error):
                    turned = self.target.turned(seen)
                    distance = self.target.distance(own)
                    fits.append(OutputsFit(candidates, distance, error=own, turned=turned))
                    with np.errstate(invalid="ignore"):
                        effect = sketched(seen) - sketched(plain)
                    effects.append((candidates[-1], scaled(effect, difference)))
            self.steps.tick()
        fits.sort(key=lambda fit: fit.distance)
        whole = scaled(difference, difference)
        turned = self.target.turned(plain)
        return Tried(fits, self.target.distance(error), turned, effects, whole)

    def measured(self, candidates: Option) -> OutputsFit:
        """Return the fit with a noise floor: exact, and with rounded runs of these operations."""
        ops = applied(candidates)
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
        self.steps.tick()
        return OutputsFit(
            candidates,
            self.target.distance(error),
            excess,
            self.target.tap,
            error=error,
            rounded=self.target.errors(rounded[0]),
            allowed=allowed,
            broken=broken,
        )

    def elected(self, fits: Sequence[OutputsFit]) -> OutputsFit | None:
        """Return the nearest one, if it explains the outputs and the specification fits worse.

        If the noise floor alone allows the specification, the candidate must be nearer by more than
        chance, in exact and in rounded runs: a bug that rounds is near to any rounded outputs.
        """
        spec = self.specification
        for fit in fits[:SHORTLIST]:
            if fit.distance >= spec.distance:
                return None
            if not spec.broken and usual_excess(fit.error, spec.allowed) > FAR_OFF:
                continue
            if spec.excess <= 1 and not self.wins(fit.error, spec.error):
                return None
            measured = self.measured(fit.candidates)
            if spec.excess <= 1 and not self.wins(measured.rounded, spec.rounded):
                return None
            if measured.excess <= 1:
                return measured
        return None

    def wins(self, error: Floats, other: Floats) -> bool:
        """Return whether the first errors are smaller than the others by more than chance."""
        voting = np.abs(error - other) > self.target.floor
        count = int(voting.sum())
        wins = int((error < other)[voting].sum())
        gained = self.target.distance(other) - self.target.distance(error) > GAIN
        return gained and count > len(error) / 8 and wins > count / 2 + WINS * np.sqrt(count) / 2

    def _seen(self, runs: Sequence[Run]) -> list[Floats]:
        """Return what would be observed of each run."""
        asked = [self.target.tap]
        where = self.weights, self.config, runs, self.tokens
        ((_, values),) = walk(*where, {}, asked, length=self._length)
        return [self.target.see(array) for array in values]


def unlike(one: Floats, other: Floats) -> NDArray[np.bool_]:
    """(P,) rows with a value that is finite in one of the two only."""
    differs: NDArray[np.bool_] = (np.isfinite(one) != np.isfinite(other)).any(axis=1)
    return differs


def _beside(base: Option, ops: ModelOps, candidates: Option) -> ModelOps:
    """Like :func:`applied`, from the operations ``ops`` of a base if the candidates begin with it.

    Shared computations of runs are done once only if their operations are the same objects.
    """
    begins = candidates[: len(base)] == base
    return applied(candidates[len(base) :], ops) if begins else applied(candidates)


def order_matters(candidates: Option) -> bool:
    """Return whether two of the candidates change the same operation."""
    ops = [candidate.ops for candidate in candidates]
    return sum(map(len, ops)) > len(frozenset[str]().union(*ops))
