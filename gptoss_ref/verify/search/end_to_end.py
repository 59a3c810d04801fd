"""Diagnosis from outputs alone: whole models with each bug, ranked by their distance.

Logits or log-probabilities do not show the stages. Therefore every candidate is run from the tokens
on, and compared at the observed positions: first one bug at a time, then a constant of any value,
then several bugs together. The outputs of the first tokens of a prompt do not depend on later
tokens. So a long prompt is searched in its beginning, and the result is then judged on the whole
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np

from gptoss_ref.verify.mutants import Mutant
from gptoss_ref.verify.noise.metrics import usual_excess
from gptoss_ref.verify.search.candidates import Candidate, Option, catalogue
from gptoss_ref.verify.search.estimate import candidate as valued
from gptoss_ref.verify.search.estimate import guess, interval, refined, shortest
from gptoss_ref.verify.search.fit import Fit
from gptoss_ref.verify.search.score import beginning_of
from gptoss_ref.verify.search.target import Target
from gptoss_ref.verify.search.trials import OutputsFit, Trials, Tried, order_matters
from gptoss_ref.verify.thresholds import (
    ALIKE,
    BESIDE,
    COMBINED,
    COMPARED,
    FINALISTS,
    GAIN,
    MOST_AT_ONCE,
    NO_DOUBT,
    PREDICTED,
    SHORTLIST,
    TURNED,
)


class WholeModels:
    """The search for up to four bugs in a model's outputs.

    Attributes:
        trials: the models that are run.
        ranked: all candidates that alter the outputs, the nearest first.
        best: what explains the outputs, if anything does.
        stopped: set if the observed numbers are not those of the model; nothing is searched then.
    """

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        trials.steps.say("running whole models")
        self.stopped = False
        self.ranked: list[OutputsFit] = []
        self.best: OutputsFit | None = None
        self._rivals: dict[str, list[str]] = {}  # what does as well in the place of a bug
        self._close: list[Fit[Candidate]] = []  # the fitted constants among them
        self._without = trials.specification.distance  # of the specification, in those runs

    @property
    def target(self) -> Target:
        """What was observed of the other."""
        return self.trials.target

    @property
    def rounding(self) -> str:
        """The other's rounding."""
        return self.trials.rounding

    @property
    def specification(self) -> OutputsFit:
        """The distance of the specification."""
        return self.trials.specification

    # --- the order of the search ---

    def run(self, *, together: bool = True) -> None:
        """Set ``ranked`` and ``best``; try several bugs only if ``together``."""
        if self.stopped:
            return
        trials = self.trials
        candidates = catalogue(trials.config, trials.weights, len(trials.tokens))
        options = [(candidate,) for candidate in candidates if not candidate.harmless]
        beginning = self._beginning()
        if beginning is None:
            self._search(options, together)
        else:
            beginning._search(options, together)
            if not self._settled(beginning):
                self._search(options, together)
        if self.best is not None:
            others = self._alternatives(self.best)
            before = self.specification.excess
            self.best = replace(self.best, before=before, alternatives=others)

    def nearest(self) -> OutputsFit | None:
        """The nearest option that does not explain the outputs, if it is nearer than no bug."""
        first = next((fit for fit in self.ranked if fit.distance < self._without), None)
        if first is None:
            return None
        measured = self.trials.measured(first.candidates)
        nearer = measured.excess < self.specification.excess
        won = self.trials.wins(measured.error, self.specification.error)
        return measured if nearer and won else None

    def _search(self, options: Sequence[Option], together: bool) -> None:
        """Try one bug, a constant of any value, several bugs, until one explains the outputs."""
        self.trials.steps.expect(SHORTLIST)
        singles = self.trials.tried(options)
        self.ranked = _forms(singles.fits)
        self.best = self.trials.elected(self.ranked)
        if self.specification.excess > 1 and not self._sure:
            self._fit(singles)
        if together and self.best is None and self.specification.excess > 1:
            self._combine(options, singles)

    @property
    def _sure(self) -> bool:
        """Return whether the error that remains is so small that nothing else needs to be tried."""
        return self.best is not None and self.best.excess <= NO_DOUBT

    # --- the beginning of a prompt, and the whole ---

    def _beginning(self) -> WholeModels | None:
        """Search the first tokens, if these are wrong and the prompt is much longer."""
        spec = self.specification
        wrong = self.target.positions[spec.error > spec.allowed[-1]]
        length = beginning_of(wrong, len(self.trials.tokens))
        if spec.excess <= 1 or length == len(self.trials.tokens):
            return None
        trials = self.trials.beginning(length)
        return WholeModels(trials) if trials.specification.excess > 1 else None

    def _settled(self, beginning: WholeModels) -> bool:
        """Return whether the search in the beginning settles the whole prompt too.

        That is so if what explains the beginning, or comes near, explains the whole prompt without
        a doubt; and if nothing explains either.
        """
        best: Option = ()
        if beginning.best is not None and beginning.best.excess <= 1:
            best = beginning.best.candidates
            if beginning.best.interval is not None:
                *base, last = best
                begun = Fit((last,), interval=beginning.best.interval)
                best = (*base, *refined(begun, partial(self._distances, tuple(base))).candidates)
        own = beginning.best.candidates if beginning.best is not None else ()
        near = (fit.candidates for fit in beginning.ranked[:FINALISTS])
        options = [*([best] if best else []), *(o for o in near if o not in (best, own))]
        self.ranked = self.trials.tried(options).fits
        found = self.trials.elected(self.ranked)
        if found is None:
            self.ranked, self._without = beginning.ranked, beginning.specification.distance
            return beginning.best is None
        found = self._pruned(found)
        if found.excess > NO_DOUBT:
            return False
        self.best = found
        *base, last = found.candidates
        if last.value is not None:
            for other in (fit for fit in beginning._close if last.name not in fit.names):
                self._rival(last.name, other, tuple(base), found)
            self.best = self._rounded_off(found)
        return True

    # --- what fits equally well ---

    def _alternatives(self, best: OutputsFit) -> dict[str, tuple[str, ...]]:
        """Return alternatives to each bug: other bugs in options that fit equally well."""
        own = [c.name for c in best.candidates]
        found = {name: dict.fromkeys(self._rivals.get(name, ())) for name in own}
        for fit in self.ranked:
            if abs(fit.distance - best.distance) < np.log(ALIKE):
                names = [c.name for c in fit.candidates]
                for missing in set(own) - set(names):
                    found[missing] |= dict.fromkeys(n for n in names if n not in own)
        return {name: tuple(others) for name, others in found.items()}

    # --- a constant of any value ---

    def _distances(self, base: Option, candidates: Sequence[Candidate]) -> list[float]:
        """Return the distance for some values of a mutant's parameter, beside other bugs."""
        tried = self.trials.tried([(*base, candidate) for candidate in candidates], base)
        by_value = {fit.candidates[-1].value: fit.distance for fit in tried.fits}
        return [by_value.get(candidate.value, tried.base) for candidate in candidates]

    def _fit(self, around: Tried, base: Option = ()) -> None:
        """Fit a constant of any value; it replaces a known bug if it comes nearer.

        Args:
            around: the options beside ``base``, which select the mutants.
        """
        config, tokens = self.trials.config, len(self.trials.tokens)
        distances = partial(self._distances, base)

        def guesses(mutants: Sequence[Mutant]) -> list[Fit[Candidate]]:
            found = (guess(m, config, tokens, distances) for m in mutants)
            return [g for g in found if g is not None]

        first, second = around.fittable()
        compared = [refined(g, distances, COMPARED) for g in guesses(first)]
        if not compared:
            return
        nearest, *others = sorted(compared, key=lambda fit: fit.distance)
        (last,) = refined(nearest, distances).candidates
        fitted = self.trials.tried([(*base, last)], base).fits
        best = self.trials.elected(fitted)
        if best is None or (self.best is not None and best.distance > self.best.distance - GAIN):
            return
        self.ranked = [*fitted, *self.ranked]
        for some in (others, guesses(second)):  # another constant may do the same to the outputs
            for other in sorted(some, key=lambda fit: fit.distance)[:1]:
                self._rival(last.name, other, base, best)
        self.best = self._rounded_off(best)

    def _rival(self, name: str, other: Fit[Candidate], base: Option, best: OutputsFit) -> None:
        """Note a constant that may take the place of the fitted one, if it explains as much."""
        (rival,) = refined(other, partial(self._distances, base)).candidates
        if self._explains((*base, rival), best):
            self._rivals.setdefault(name, []).append(rival.name)
            self._close.append(other)

    def _explains(self, option: Option, best: OutputsFit) -> bool:
        """Whether an option leaves no more than the rounding of what explains the outputs."""
        nearby = self.trials.tried([option], option[:-1]).fits
        return bool(nearby) and usual_excess(nearby[0].error, best.allowed) <= 1

    def _fit_beside(self, base: Option, options: Sequence[Option]) -> None:
        """Fit a constant of any value beside bugs without one: all of ``base``, or all but one.

        One of them may stand for the constant, and comes nearer to the outputs than the others do
        without it. So the sets come first whose remaining difference has the direction of the
        effect of a constant.

        This is the most expensive step. In three searches for four bugs, one of them a constant, it
        ran the model 310, 600 and 940 times, and all steps before it 550, 780 and 680 times. The
        third one found the constant.
        """
        fixed = tuple(c for c in base if c.mutant.parameter is None)
        sets = [fixed, *(tuple(c for c in fixed if c is not out) for out in fixed)]
        known = dict.fromkeys(some for some in sets if some)
        constants = [c for (c,) in options if c.mutant.parameter is not None]

        def alignment(some: Option) -> float:
            tried = self.trials.tried([(*some, c) for c in constants if c.usual], some)
            return max((cosine for cosine, _ in tried.aligned()), default=0.0)

        for some in sorted(known, key=alignment, reverse=True)[:BESIDE]:
            around = self.trials.tried([(*some, c) for c in constants], some)
            self._fit(around, some)
            if self.best is not None:
                return

    def _rounded_off(self, best: OutputsFit) -> OutputsFit:
        """Return a fitted value with the fewest digits that the outputs allow, and its interval."""
        *base, found = best.candidates

        def explains(other: Candidate) -> bool:
            return self._explains((*base, other), best)

        config, tokens = self.trials.config, len(self.trials.tokens)
        low, high = interval(found, config, tokens, explains)
        assert found.value is not None
        short = valued(found.mutant, shortest(found.value, low, high))
        return replace(best, candidates=(*base, short), interval=(low, high))

    # --- several bugs ---

    def _combine(self, options: Sequence[Option], singles: Tried) -> None:
        """Search several bugs: add bugs to the nearest set, and remove those that make it worse.

        In each round, the sets are run whose effects add up to the remaining difference, and the
        nearest set so far without each of its bugs. The next round starts from the best of these:
        the set with the smallest angle to the outputs. Beside several gross bugs, any bug that
        makes the outputs small, such as an embedding of zeros, has a smaller distance than a bug
        that is present.
        """
        base: Option = ()
        around, reached = singles, singles.turned
        nearest = [
            fit.candidates[0] for fit in sorted(self.ranked, key=lambda fit: fit.turned)[:COMBINED]
        ]
        sets: list[Option] = [*combinations(nearest, 1), *combinations(nearest, 2)]
        while len(base) < MOST_AT_ONCE:
            sets += [
                (*base, *more) for more in around.together(MOST_AT_ONCE - len(base), PREDICTED)
            ]
            sets += [tuple(c for c in base if c is not left) for left in base if len(base) > 1]
            sets += [some[::-1] for some in sets if order_matters(some)]
            self.trials.steps.expect(SHORTLIST)
            tried = self.trials.tried(list(dict.fromkeys(sets))).fits
            self.best = self.trials.elected(tried)
            self.ranked = sorted([*tried, *self.ranked], key=lambda fit: fit.distance)
            if self.best is not None:
                self.best = self._nearest(self._pruned(self.best), options)
                return
            nearer = min(tried, key=lambda f: f.turned + TURNED * len(f.candidates), default=None)
            if nearer is None or nearer.turned > reached - TURNED:
                break
            base, reached = nearer.candidates, nearer.turned
            if len(base) == MOST_AT_ONCE:
                break
            taken, sets = {c.name for c in base}, []
            others = [(*base, c) for (c,) in options if c.name not in taken]
            around = self.trials.tried(others, base)
        self._fit_beside(base, options)

    def _pruned(self, found: OutputsFit) -> OutputsFit:
        """Return the set without bugs that are not needed or improve the outputs only by chance."""
        for candidate in found.candidates:
            fewer = tuple(c for c in found.candidates if c is not candidate)
            if fewer:
                without = self.trials.measured(fewer)
                if without.excess <= 1 or not self.trials.wins(found.error, without.error):
                    found = without
        return found

    def _nearest(self, found: OutputsFit, options: Sequence[Option]) -> OutputsFit:
        """Return the set with another bug instead of the least certain one, if that is nearer.

        The smallest of several bugs is the least certain: the others are exact, and any bug with a
        similar small effect explains the rest. A bug that the nearest one does not beat by more
        than chance is its rival. If even the nearest one leaves more than NO_DOUBT, no bug is
        named, and this part of the difference stays unexplained.
        """
        fewer = [tuple(c for c in found.candidates if c is not out) for out in found.candidates]
        tried = self.trials.tried([o for o in fewer if o]).fits
        rest = next((fit.candidates for fit in tried), None)
        if rest is None:
            return found
        taken = {c.name for c in rest}
        others = [(*rest, c) for (c,) in options if c.name not in taken]
        tried = self.trials.tried(others, rest).fits
        best = self.trials.elected(tried)
        if best is None:
            return found
        if best.excess > NO_DOUBT:
            return self.trials.measured(rest)
        quick = next(fit for fit in tried if fit.candidates == best.candidates)
        name = best.candidates[-1].name
        alike = [f.candidates[-1].name for f in tried if not self.trials.wins(quick.error, f.error)]
        self._rivals[name] = [other for other in dict.fromkeys(alike) if other != name]
        return best


def _forms(fits: Sequence[OutputsFit]) -> list[OutputsFit]:
    """Return each mutant in its nearest form only."""
    first: dict[str, OutputsFit] = {}
    for fit in fits:
        first.setdefault(fit.candidates[0].name, fit)
    return list(first.values())
