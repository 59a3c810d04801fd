"""The search for known bugs that explain a trace; :func:`gptoss_ref.verify.diagnose` uses it.

The diverging tap points are processed in the order of computation. At the first one, every mutant
that changes its segment is tried. Those that reproduce the other's numbers up to rounding explain
it. Among these, the mutant wins that leaves the fewest divergences in the rest of the trace, then
the one with the smallest distance. It becomes part of the operations, and the next remaining
divergence is processed. If no single mutant explains a divergence, pairs are tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gptoss_ref.tracing.taps import split
from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.replay.graph import DISCRETE
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from gptoss_ref.verify.search.candidates import Candidate, applied
from gptoss_ref.verify.search.estimate import candidate as candidate_of
from gptoss_ref.verify.search.estimate import interval, shortest
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.search.fit import Fit, TapFit, Unknown, best_of
from gptoss_ref.verify.search.recording import Recording
from gptoss_ref.verify.search.rewritten import kept_otherwise
from gptoss_ref.verify.search.sign_test import most_votes
from gptoss_ref.verify.search.tap_trials import TapTrials
from gptoss_ref.verify.thresholds import CLEARLY, EXCHANGED, SURE


@dataclass(frozen=True)
class Accepted:
    """A step of the search, so that it can be taken back.

    Attributes:
        fit: what explained a divergence.
        others: fits of this tap point that leave more of the trace unexplained.
        before: the operations to which it was added.
    """

    fit: TapFit
    others: tuple[TapFit, ...]
    before: ModelOps


class Search:
    """The search for the bugs of one trace.

    Attributes:
        evidence: the trace, and the operations that explain it.
        recording: mistakes in the recording of its arrays.
        found: the explanations of the divergences, in the order in which they were found.
        unknown: the divergences that nothing explains.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.recording = Recording(evidence)
        self._trials = TapTrials(evidence)
        self.found: list[Fit[Candidate]] = []
        self.unknown: list[Unknown] = []
        self._accepted: list[Accepted] = []

    # --- the order of the search ---

    def run(self, *, hidden: bool = True) -> None:
        """Set ``found`` and ``unknown``; without ``hidden``, by errors larger than rounding."""
        evidence, recording = self.evidence, self.recording
        tried: dict[str, int] = {}
        checked: set[str] = set()
        recording.put_in_order()
        while (left := self._diverging()) and not recording.stopped:
            tap = left[0]
            evidence.steps.say(f"what explains {tap}?")
            if tap not in checked:
                checked.add(tap)
                if recording.mistaken(tap):
                    continue
                if len(checked) == 1 and recording.of_another_prompt(left):
                    break
            lost = split(tap)[1] in DISCRETE or evidence.tap_errors[tap].broken.any()
            if not lost and (aside := kept_otherwise(evidence, tap)):
                recording.set_aside(aside)
                self.unknown = [u for u in self.unknown if u.tap not in aside]
                continue
            kind = split(tap)[1]
            explained, nearest = self._explain(tap, two=kind not in tried)
            if explained:
                continue
            tried[kind] = tried.get(kind, 0) + 1
            # A stage that nothing explains in two blocks is not searched in the others; and pairs,
            # of which there are many, not in the second one.
            same = [t for t in left if split(t)[1] == kind] if tried[kind] > 1 else [tap]
            self._give_up(kind, same, nearest)
        self.found += map(self._fixed, self._accepted)
        if hidden and not recording.stopped:
            evidence.steps.say("is there a bug smaller than rounding?")
            self._find_hidden()

    def _taken(self) -> set[str]:
        """Return the names of the bugs that explain something so far."""
        return {c.name for step in self._accepted for c in step.fit.candidates}

    def _diverging(self) -> list[str]:
        """Return the tap points that are not explained, in the order of computation."""
        known = {tap for unknown in self.unknown for tap in unknown.taps}
        return [tap for tap in self.evidence.diverging() if tap not in known]

    def _give_up(self, kind: str, taps: list[str], nearest: TapFit | None) -> None:
        for i, unknown in enumerate(self.unknown):
            if split(unknown.tap)[1] == kind:
                taps = [*unknown.taps, *taps]
                self.unknown[i] = Unknown(unknown.tap, tuple(taps), unknown.nearest or nearest)
                return
        self.unknown.append(Unknown(taps[0], tuple(taps), nearest))

    # --- one divergence ---

    def _explain(self, tap: str, *, two: bool) -> tuple[bool, TapFit | None]:
        """Explain a divergence by one bug, or by ``two``; else record the nearest one.

        An explanation of only the beginning of a long prompt is searched again in the whole prompt.
        """
        done, judged = self._attempt(tap, two=two)
        if not done and self._trials.begun(tap, judged):
            done, judged = self._attempt(tap, two=two)
        if done:
            return True, None
        alone = (fit for fit in judged if len(fit.candidates) == 1)
        best = min(alone, key=lambda fit: fit.excess, default=None)
        if best is None or best.excess >= self.evidence.tap_errors[tap].excess:
            return False, None
        return False, best

    def _attempt(self, tap: str, *, two: bool) -> tuple[bool, list[TapFit]]:
        """Return whether a divergence was explained, and the candidates that were judged.

        The order: one bug; one bug after an earlier explanation is exchanged; two bugs; two bugs
        after an exchange; a constant fitted to the numbers; a constant and one more bug.
        """
        judged, options = self._trials.alone(tap, self._taken())
        least = min((fit.excess for fit in judged), default=1.0)
        both: list[TapFit] | None = None
        if two and SURE < least <= 1:
            both = self._trials.together(tap, options)
            judged = [fit for fit in both if CLEARLY * fit.excess < least] or judged
        done = self._accept(tap, judged) or self._accept_otherwise(tap)
        if two and not done:
            both = both or self._trials.together(tap, options)
            judged = [*judged, *both]
            done = self._accept(tap, both)
            done = done or self._accept_otherwise(tap, together=True)
        if not done:  # a free number is the last resort
            values = self._trials.fitted(tap, self._taken())
            fitted = self._trials.judged(tap, values)
            judged = [*judged, *fitted]
            done = self._accept(tap, fitted)
            if two and not done and values:
                done = self._accept(tap, self._trials.together(tap, [*values, *options]))
        return done, judged

    def _fixed(self, step: Accepted) -> Fit[Candidate]:
        """Return the fit of a step, with the interval of its fitted value."""
        tap, found = step.fit.tap, step.fit.candidates[0]
        fit = replace(step.fit, before=self.evidence.specification[tap].excess)
        if found.value is None or len(fit.candidates) > 1:
            return fit

        def explains(other: Candidate) -> bool:
            placed = replace(other, blocks=found.blocks, sites=found.sites)
            ops = placed.apply(step.before)
            return all(local.excess <= 1 for local in self.evidence.replayed(ops, [tap]))

        trace = self.evidence.trace
        low, high = interval(found, trace.config, len(trace.tokens), explains)
        value = shortest(found.value, low, high)
        short = candidate_of(found.mutant, value)
        found = replace(found, label=short.label, value=value)
        return replace(fit, candidates=(found,), interval=(low, high))

    def _accept(self, tap: str, judged: Iterable[TapFit]) -> bool:
        """Add the best fit of a tap point to the operations, if there is one."""
        solved = [fit for fit in judged if fit.excess <= 1]
        if not solved:
            return False
        taps = frozenset[str]().union(*(self.evidence.affected(fit.candidates) for fit in solved))
        self.evidence.steps.expect(len(solved))
        left = self._diverging()
        best = best_of(w for fit in solved for w in self._trials.weighed(fit, taps, left))
        others = tuple(fit for fit in solved if fit.names != best.names)
        self._take(Accepted(replace(best, under=()), others, self.evidence.ops), best.under)
        return True

    def _take(self, step: Accepted, under: Iterable[TapError] = ()) -> None:
        """Add what explains a divergence to the operations.

        Args:
            under: all tap points that it changes, if they have been replayed with it.
        """
        evidence, found = self.evidence, step.fit.candidates
        self._accepted.append(replace(step, before=evidence.ops))
        evidence.ops = applied(found, evidence.ops)
        changed = under or evidence.replayed(evidence.ops, evidence.affected(found))
        evidence.tap_errors |= {local.tap: local for local in changed}

    def _accept_otherwise(self, tap: str, *, together: bool = False) -> bool:
        """Explain a tap point after exchanging one of the earlier explanations.

        If two bugs give the same numbers at one tap point, only later tap points distinguish them.
        If these show another bug besides, neither of the two may fit there alone. The exchange must
        leave less unexplained.
        """
        evidence = self.evidence
        ops, tap_errors, accepted = evidence.ops, evidence.tap_errors, self._accepted
        count = len(self._diverging())
        for place, other in self._exchanges():
            evidence.ops, evidence.tap_errors = SPECIFICATION, evidence.unexplained()
            self._accepted = []
            for i, taken in enumerate(accepted):
                self._take(replace(taken, fit=other) if i == place else taken)
            if evidence.tap_errors[tap].excess > 1:
                judged, options = self._trials.alone(tap, self._taken())
                self._accept(tap, self._trials.together(tap, options) if together else judged)
            if evidence.tap_errors[tap].excess <= 1 and len(self._diverging()) < count:
                return True
            evidence.ops, evidence.tap_errors, self._accepted = ops, tap_errors, accepted
        return False

    def _exchanges(self) -> list[tuple[int, TapFit]]:
        """Return possible replacements of accepted explanations: first those of a rewriting."""
        found = [
            (place, other)
            for place, step in enumerate(self._accepted)
            for other in step.others
            if not other.harmless
        ]
        found.sort(key=lambda pair: not self._accepted[pair[0]].fit.harmless)
        return found[:EXCHANGED]

    # --- bugs too small for the noise floor ---

    def _find_hidden(self) -> None:
        evidence, taken = self.evidence, self._taken()
        candidates = [c for c in evidence.candidates if c.name not in taken and not c.harmless]
        while best := most_votes(evidence, candidates):
            error = evidence.tap_errors[best.tap].excess
            self.found.append(replace(best, before=error, excess=error))
            evidence.ops = applied(best.candidates, evidence.ops)
            candidates = [c for c in candidates if c.name not in best.names]
