"""Which known bugs explain a trace: the search behind :func:`gptoss_ref.verify.diagnose`.

The diverging tap points are taken in the order of computation. At the first one every mutant that
touches its segment is tried: those that reproduce the other's numbers down to rounding explain it,
and among these the one that leaves the fewest divergences in the rest of the trace, then the one
that comes nearest, wins. It becomes part of the rules, and the next divergence that is left is
taken. Where no single mutant will do, two at once are tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gptoss_ref.numerics import FLOAT32, FLOAT64
from gptoss_ref.taps import axes, split
from gptoss_ref.trace import Trace
from gptoss_ref.verify.candidates import Candidate, catalogue
from gptoss_ref.verify.hidden import most_votes
from gptoss_ref.verify.measure import measure_arrays
from gptoss_ref.verify.replay import Local, replay
from gptoss_ref.verify.rules import SPECIFICATION, Rules
from gptoss_ref.verify.stages import DISCRETE
from gptoss_ref.verify.walk import predict_each, segments
from gptoss_ref.verify.whereabouts import tokens_of, whereabouts
from gptoss_ref.weights import ModelWeights

Item = TypeVar("Item")

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all as far as known, and what is being done."""

AT_ONCE = 8
"""Candidates computed side by side: each holds its own copy of a tap point."""

JUDGED = 12
"""Candidates that are judged with a yardstick of their own, the nearest ones."""

PAIRED = 24
"""Candidates that are combined with each other where none will do alone."""

LEADING = 4
"""Of these, the ones that are combined with every form of the others."""

ALIKE = 1.02
"""Two explanations whose distances differ by less than this factor cannot be told apart."""

TINY = 2.0**-60
"""Relative error below which a row counts as equal."""


@dataclass(frozen=True)
class Found:
    """A candidate that explains a divergence.

    Attributes:
        candidate: what explains it.
        tap: the tap point at which it was found.
        before, after: there, in multiples of what rounding explains, without and with it.
        alternatives: names of other mutants that explain it as well on this input.
        share: of the values that tell, how many side with it; None where it was found by its size.
    """

    candidate: Candidate
    tap: str
    before: float
    after: float
    alternatives: tuple[str, ...] = ()
    share: float | None = None


@dataclass(frozen=True)
class Unknown:
    """Divergences that no known bug explains.

    Attributes:
        tap: the first of them.
        taps: all of the same stage.
        nearest: the mutant that comes nearest, and what remains with it, if it comes nearer at all.
    """

    tap: str
    taps: tuple[str, ...]
    nearest: tuple[str, float] | None


@dataclass(frozen=True)
class Explanation:
    """One or two candidates tried on a tap point.

    Attributes:
        candidates: applied one after the other.
        local: the tap point under them.
        left, tokens: divergences of the whole trace under them, and tokens that diverge in these.
        distance: between the other's numbers and theirs, rounded alike, over all they change.
    """

    candidates: tuple[Candidate, ...]
    local: Local
    left: int = 0
    tokens: int = 0
    distance: float = 0.0


class Search:
    """The search for the bugs of one trace.

    Attributes:
        specification: every tap point of the trace against the specification.
        locals: the same against the rules found so far.
        found, unknown: what explains the divergences, and those that nothing explains.
    """

    def __init__(
        self,
        weights: ModelWeights,
        trace: Trace,
        rounding: str,
        progress: Progress | None = None,
    ) -> None:
        self.weights, self.trace, self.rounding = weights, trace, rounding
        self.segments = segments(trace.config, trace)
        self.rules = SPECIFICATION
        self.entries = catalogue(trace.config, weights, len(trace.tokens))
        self.found: list[Found] = []
        self.unknown: list[Unknown] = []
        self._progress = progress or (lambda done, total, what: None)
        self._steps = 0
        self.specification = {local.tap: local for local in self._watched(SPECIFICATION)}
        self.locals = dict(self.specification)

    # --- the order of the search ---

    def run(self) -> None:
        """Fill :attr:`found` and :attr:`unknown`."""
        tried: dict[str, int] = {}
        while left := self._diverging():
            tap = left[0]
            self._say(f"what explains {tap}?")
            best, nearest = self._explain(tap)
            if best is not None:
                self._accept(tap, best)
                continue
            kind = split(tap)[1]
            tried[kind] = tried.get(kind, 0) + 1
            # A stage that nothing explains in two blocks is not searched in the others.
            same = [t for t in left if split(t)[1] == kind] if tried[kind] > 1 else [tap]
            self._give_up(kind, same, nearest)
        self._say("what hides below the yardstick?")
        self._find_hidden()

    def _diverging(self) -> list[str]:
        """Tap points that are not explained, in the order of computation."""
        known = {tap for unknown in self.unknown for tap in unknown.taps}
        return [t for t, local in self.locals.items() if local.excess > 1 and t not in known]

    def _accept(self, tap: str, best: tuple[Explanation, tuple[str, ...]]) -> None:
        explanation, alternatives = best
        before = self.locals[tap].excess
        for candidate in explanation.candidates:
            self.rules = candidate.apply(self.rules)
            self.found.append(Found(candidate, tap, before, explanation.local.excess, alternatives))
        for local in self._replayed(self.rules, self._affected(explanation.candidates)):
            self.locals[local.tap] = local

    def _give_up(self, kind: str, taps: list[str], nearest: tuple[str, float] | None) -> None:
        for i, unknown in enumerate(self.unknown):
            if split(unknown.tap)[1] == kind:
                taps = [*unknown.taps, *taps]
                self.unknown[i] = Unknown(unknown.tap, tuple(taps), unknown.nearest or nearest)
                return
        self.unknown.append(Unknown(taps[0], tuple(taps), nearest))

    # --- one divergence ---

    def _explain(
        self, tap: str
    ) -> tuple[tuple[Explanation, tuple[str, ...]] | None, tuple[str, float] | None]:
        """The best explanation of a divergence with its equals, else what comes nearest."""
        used = self.segments[tap].rules
        taken = {f.candidate.name for f in self.found}
        relevant = [
            e.candidate for e in self.entries if e.rules & used and e.candidate.name not in taken
        ]
        base, singles = self._scored(tap, [(c,) for c in relevant])
        nearer = [option for score, option in singles if score < base]
        judged = self._judged(tap, nearer[:JUDGED])
        solved = [e for e in judged if e.local.excess <= 1]
        if not solved:
            _, pairs = self._scored(tap, _pairs([option for _, option in singles]))
            solved = self._judged(tap, [option for _, option in pairs[:JUDGED]])
            solved = [e for e in solved if e.local.excess <= 1]
        if solved:
            return self._best(solved), None
        best = min(judged, key=lambda e: e.local.excess, default=None)
        if best is None or best.local.excess >= self.locals[tap].excess:
            return None, None
        return None, (best.candidates[0].name, best.local.excess)

    def _scored(
        self, tap: str, options: Sequence[tuple[Candidate, ...]]
    ) -> tuple[float, list[tuple[float, tuple[Candidate, ...]]]]:
        """How far the other's numbers are from the rules', and from each option that alters them.

        The distance is the mean logarithm of the rows' errors, in one quick pass; nearest first.
        """
        if split(tap)[1] in DISCRETE:
            return 1.0, [(0.0, option) for option in options]
        other, axis = self.trace[tap], axes(tap).index("T")
        policy = FLOAT64 if self.rounding == "float64" else FLOAT32
        scores = []
        for some in _batches([(), *options], AT_ONCE):
            runs = [(self._with(candidates), policy) for candidates in some]
            config, tokens = self.trace.config, self.trace.tokens
            for result in predict_each(self.weights, config, runs, tokens, self.trace, [tap]):
                errors = measure_arrays(other, result[tap], axis)
                broken = float(np.mean(errors.broken > 0))
                scores.append(float(np.mean(np.log(errors.rows() + TINY))) - broken * np.log(TINY))
            self._tick()
        base, *rest = scores
        altered = [
            (score, option)
            for score, option in zip(rest, options, strict=True)
            if abs(score - base) > 1e-9
        ]
        return base, sorted(altered, key=lambda pair: pair[0])

    def _judged(self, tap: str, options: Iterable[tuple[Candidate, ...]]) -> list[Explanation]:
        judged = []
        for candidates in options:
            (local,) = self._replayed(self._with(candidates), [tap])
            judged.append(Explanation(candidates, local))
            self._tick()
        return judged

    def _best(self, solved: list[Explanation]) -> tuple[Explanation, tuple[str, ...]]:
        """Of the explanations of one divergence the best for the whole trace, and its equals."""
        taps = frozenset[str]().union(*(self._affected(e.candidates) for e in solved))
        weighed = [w for e in solved for w in self._weighed(e, taps)]
        weighed.sort(key=_rank)
        best = weighed[0]
        alike = [
            e
            for e in weighed[1:]
            if _rank(e)[:3] == _rank(best)[:3] and e.distance <= ALIKE * best.distance
        ]
        names = {c.name for c in best.candidates}
        others = dict.fromkeys(c.name for e in alike for c in e.candidates if c.name not in names)
        return best, tuple(others)

    def _weighed(self, option: Explanation, taps: frozenset[str]) -> list[Explanation]:
        """An explanation against all tap points it or its rivals change.

        Where it spoils some blocks, it is also weighed in the other ones alone.
        """
        weighed = [self._on_trace(option, taps)]
        blocks = {split(t)[0] for t in self._diverging() if t in taps}
        if weighed[0].left and None not in blocks and len(option.candidates) == 1:
            (candidate,) = option.candidates
            spoilt = {
                split(t)[0]
                for t, local in self._last.items()
                if local.excess > 1 and self.locals[t].excess <= 1
            }
            some = frozenset(b for b in blocks - spoilt if b is not None)
            if spoilt and some and split(option.local.tap)[0] in some:
                placed = Explanation((candidate.within(some),), option.local)
                weighed.append(self._on_trace(placed, taps))
        return weighed

    def _on_trace(self, option: Explanation, taps: frozenset[str]) -> Explanation:
        rules = self._with(option.candidates)
        self._last = {local.tap: local for local in self._replayed(rules, taps)}
        elsewhere = [t for t in self._diverging() if t not in taps]
        left = len(elsewhere) + sum(local.excess > 1 for local in self._last.values())
        tokens = sum(int(local.wrong_rows.sum()) for local in self._last.values())
        squares = [local.distance**2 for local in self._last.values()]
        self._tick()
        distance = float(np.sqrt(np.sum(squares)))
        return Explanation(option.candidates, option.local, left, tokens, distance)

    # --- bugs too small for the yardstick ---

    def _find_hidden(self) -> None:
        taken = {f.candidate.name for f in self.found}
        candidates = [e for e in self.entries if e.candidate.name not in taken]
        while best := most_votes(
            self.weights,
            self.trace,
            self.rounding,
            self.rules,
            [e for e in candidates if not e.candidate.harmless],
            self.locals,
            self._tick,
        ):
            error = self.locals[best.tap].excess
            self.found.append(
                Found(best.candidate, best.tap, error, error, best.alternatives, best.share)
            )
            self.rules = best.candidate.apply(self.rules)
            candidates = [e for e in candidates if e.candidate.name != best.candidate.name]

    # --- replaying ---

    def where(self, tap: str) -> str:
        """Which part of a tap point is wrong, in words."""
        local = self.locals[tap]
        config, tokens = self.trace.config, self.trace.tokens
        run = (self.rules, FLOAT64)
        (exact,) = predict_each(self.weights, config, [run], tokens, self.trace, [tap])
        if split(tap)[1] in DISCRETE:
            return tokens_of(local.wrong_rows)
        return whereabouts(tap, exact[tap], self.trace[tap], local.wrong_rows)

    def _with(self, candidates: Iterable[Candidate]) -> Rules:
        rules = self.rules
        for candidate in candidates:
            rules = candidate.apply(rules)
        return rules

    def reach(self, candidate: Candidate) -> frozenset[str]:
        """Tap points of the trace whose segments use a rule that the candidate changes."""
        taps = self._affected([candidate])
        if candidate.blocks is None:
            return taps
        return frozenset(t for t in taps if split(t)[0] in candidate.blocks)

    def _affected(self, candidates: Iterable[Candidate]) -> frozenset[str]:
        """Tap points of the trace whose segments use a rule that the candidates change."""
        rules = frozenset[str]().union(
            *(e.rules for e in self.entries for c in candidates if e.candidate.change is c.change)
        )
        return frozenset(t for t in self.locals if self.segments[t].rules & rules)

    def _replayed(self, rules: Rules, taps: Iterable[str]) -> Iterable[Local]:
        return replay(self.weights, self.trace, rules, self.rounding, taps)

    def _watched(self, rules: Rules) -> Iterable[Local]:
        for local in replay(self.weights, self.trace, rules, self.rounding):
            self._say(f"replaying {local.tap}")
            yield local

    def _say(self, what: str) -> None:
        self._what = what
        self._tick()

    def _tick(self) -> None:
        self._steps += 1
        self._progress(self._steps, 0, self._what)


def _rank(explanation: Explanation) -> tuple[int, int, bool, float]:
    """Smaller is better: what it leaves, in fewer tokens, in all blocks alike, and how near."""
    placed = any(candidate.blocks is not None for candidate in explanation.candidates)
    return explanation.left, explanation.tokens, placed, explanation.distance


def _batches(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _pairs(singles: Iterable[tuple[Candidate, ...]]) -> list[tuple[Candidate, ...]]:
    """Two candidates at a time, in both orders.

    The nearest mutants with each other, each in its nearest form; and the first few of them with
    every other form of the others, for what is nearest alone need not be what fits beside another.
    """
    forms = [candidate for (candidate,) in singles]
    nearest: dict[str, Candidate] = {}
    for form in forms:
        nearest.setdefault(form.name, form)
    some = list(nearest.values())[:PAIRED]
    pairs: list[tuple[Candidate, ...]] = list(itertools.permutations(some, 2))
    for leading in some[:LEADING]:
        for form in forms:
            if form.name != leading.name and form is not nearest[form.name]:
                pairs += [(leading, form), (form, leading)]
    return pairs
