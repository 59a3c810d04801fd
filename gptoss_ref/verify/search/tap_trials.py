"""Trials of bugs at one tap point, computed from the nearest tap points before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from gptoss_ref.tracing.taps import split
from gptoss_ref.verify.replay.graph import DISCRETE
from gptoss_ref.verify.search.candidates import BY_TAP, Candidate, Option, applied
from gptoss_ref.verify.search.estimate import guess, refined
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.search.fit import TapFit, pairs
from gptoss_ref.verify.search.score import beginning_of, distances
from gptoss_ref.verify.thresholds import JUDGED, REFINED, WITHIN_REACH


class TapTrials:
    """Candidates added to the operations so far, each compared at one tap point."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._whole: set[str] = set()  # tap points that are searched in the whole prompt

    def length(self, tap: str) -> int:
        """Return the number of first tokens in which candidates are compared; all are judged."""
        local, length = self._evidence.tap_errors[tap], len(self._evidence.trace.tokens)
        wrong = np.flatnonzero(local.wrong_rows)
        return length if tap in self._whole else beginning_of(wrong, length)

    def begun(self, tap: str, judged: Iterable[TapFit]) -> bool:
        """Return whether an explanation fits only the beginning; then all tokens are used next."""
        length = self.length(tap)
        if length == len(self._evidence.trace.tokens):
            return False
        self._whole.add(tap)
        return any(not fit.under[0].wrong_rows[:length].any() for fit in judged)

    def alone(self, tap: str, taken: set[str]) -> tuple[list[TapFit], list[Option]]:
        """Return the nearest candidates, judged; and all that change the tap point, nearest first.

        Args:
            taken: names of bugs that have been found.
        """
        relevant = [(c,) for c in self._acting_at(tap) if c.name not in taken]
        base, singles = self._distances(tap, relevant)
        judged = self.judged(tap, _within_reach([pair for pair in singles if pair[0] < base]))
        return judged, [option for _, option in singles]

    def _acting_at(self, tap: str) -> list[Candidate]:
        """Return the candidates that change an operation of a tap point's segment."""
        used = self._evidence.segments[tap].ops
        return [c for c in self._evidence.candidates if c.ops & used]

    def fitted(self, tap: str, taken: set[str]) -> list[Option]:
        """Return the mutants with a parameter that act here, with their nearest values."""
        if split(tap)[1] in DISCRETE:
            return []
        config, tokens = self._evidence.trace.config, len(self._evidence.trace.tokens)
        mutants = {c.name: c.mutant for c in self._acting_at(tap) if c.name not in taken}

        def score(candidates: Sequence[Candidate]) -> list[float]:
            base, found = self._distances(tap, [(candidate,) for candidate in candidates])
            by_value = {option[0].value: distance for distance, option in found}
            return [by_value.get(candidate.value, base) for candidate in candidates]

        guesses = (guess(mutant, config, tokens, score) for mutant in mutants.values())
        base, _ = self._distances(tap, [])
        nearest = sorted((g for g in guesses if g is not None), key=lambda fit: fit.distance)
        # the right value may lie nearer to the specification's than any value of the coarse grid
        found = (refined(first, score) for first in nearest[:REFINED])
        return [fit.candidates for fit in found if fit.distance < base]

    def together(self, tap: str, options: Iterable[Option]) -> list[TapFit]:
        """Return the nearest pairs of candidates, judged."""
        base, ordered = self._distances(tap, pairs(options))
        return self.judged(tap, _within_reach([pair for pair in ordered if pair[0] < base]))

    def _distances(
        self, tap: str, options: Sequence[Option]
    ) -> tuple[float, list[tuple[float, Option]]]:
        """Return the distances of the operations, and of each option that changes them."""
        return distances(self._evidence, tap, options, self.length(tap))

    def judged(self, tap: str, options: Sequence[Option]) -> list[TapFit]:
        """Return the first few options, each judged with its own noise floor."""
        judged, evidence = [], self._evidence
        options = options[:JUDGED]
        evidence.steps.expect(len(options))
        for option in options:
            (local,) = evidence.replayed(applied(option, evidence.ops), [tap])
            judged.append(TapFit(option, excess=local.excess, tap=tap, under=(local,)))
            evidence.steps.tick()
        return judged

    def weighed(self, option: TapFit, taps: frozenset[str], left: Sequence[str]) -> list[TapFit]:
        """Return a fit judged at all tap points that it or its rivals change.

        If it makes some blocks worse, it is also judged in the other blocks alone.

        Args:
            left: tap points of the trace that diverge.
        """
        whole = self._on_trace(option, taps, left)
        weighed = [whole]
        if whole.left and len(option.candidates) == 1:
            (candidate,) = option.candidates
            diverging = frozenset(t for t in left if t in taps)
            spoilt = {
                local.tap
                for local in whole.under
                if local.excess > 1 and self._evidence.tap_errors[local.tap].excess <= 1
            }
            blocks = {split(t)[0] for t in diverging} - {split(t)[0] for t in spoilt}
            some = frozenset(b for b in blocks if b is not None)
            placed = []
            if spoilt and some and split(option.tap)[0] in some:
                placed.append(candidate.within(some))
            if spoilt and candidate.ops <= BY_TAP:
                healed = {local.tap for local in whole.under if local.excess <= 1} & diverging
                placed.append(candidate.at(healed))
            forms = (replace(option, candidates=(form,)) for form in placed)
            weighed += [self._on_trace(form, taps, left) for form in forms]
        return weighed

    def _on_trace(self, option: TapFit, taps: frozenset[str], diverging: Sequence[str]) -> TapFit:
        """Return a fit with the divergences that remain, and these tap points under it."""
        evidence = self._evidence
        under = tuple(evidence.replayed(applied(option.candidates, evidence.ops), taps))
        elsewhere = [t for t in diverging if t not in taps]
        left = len(elsewhere) + sum(local.excess > 1 for local in under)
        distance = float(np.sqrt(np.sum([local.distance**2 for local in under])))
        evidence.steps.tick()
        return replace(option, left=left, distance=distance, under=under)


def _within_reach(ordered: Sequence[tuple[float, Option]]) -> list[Option]:
    """Return the options, nearest first, whose error may be rounding if the nearest one's is."""
    return [option for score, option in ordered if score <= ordered[0][0] + WITHIN_REACH]
