"""Which known bugs explain a trace: the search behind :func:`gptoss_ref.verify.diagnose`.

The diverging tap points are taken in the order of computation. At the first one every mutant that
touches its segment is tried: those that reproduce the other's numbers down to rounding explain it,
and among these the one that leaves the fewest divergences in the rest of the trace, then the one
that comes nearest, wins. It becomes part of the operations, and the next divergence that is left is
taken. Where no single mutant will do, two at once are tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.tracing.taps import axes, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.localise import locate_error, tokens_of
from gptoss_ref.verify.noise.renumbered import ORDERED, in_order_of
from gptoss_ref.verify.noise.tap_check import TapError, replay
from gptoss_ref.verify.progress import Steps, unwatched
from gptoss_ref.verify.replay.evaluate import predict, segments
from gptoss_ref.verify.replay.graph import BY_CHOICE, DISCRETE
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from gptoss_ref.verify.search.candidates import BY_TAP, Candidate, catalogue, changes
from gptoss_ref.verify.search.estimate import candidate as candidate_of
from gptoss_ref.verify.search.estimate import guess, interval, refined, shortest
from gptoss_ref.verify.search.fit import Explanation, Found, Option, Unknown, best_of, pairs
from gptoss_ref.verify.search.mistakes import mistakes, other_ids
from gptoss_ref.verify.search.prompts import another_prompt
from gptoss_ref.verify.search.rewritten import form_of, kept_otherwise
from gptoss_ref.verify.search.score import distances
from gptoss_ref.verify.search.sign_test import most_votes
from gptoss_ref.verify.thresholds import (
    CLEARLY,
    EXCHANGED,
    JUDGED,
    REFINED,
    SURE,
    WITHIN_REACH,
)
from gptoss_ref.weights import ModelWeights


@dataclass(frozen=True)
class Accepted:
    """A divergence that was explained, and what else would have done.

    Attributes:
        tap: where.
        best, alternatives: the explanation taken, and names that cannot be told from it.
        others: explanations of this tap point that leave more of the trace unexplained.
        before: the operations that it was added to.
    """

    tap: str
    best: Explanation
    alternatives: tuple[str, ...]
    others: tuple[Explanation, ...]
    before: ModelOps


class Search:
    """The search for the bugs of one trace.

    Args:
        rounding: of the trace.
        judged: the only tap points to be explained, from the nearest ones before them; None: all.

    Attributes:
        given: the trace as it came; ``trace`` is without what is kept in another form.
        specification: every tap point of the trace against the specification.
        ops: what explains the trace so far.
        tap_errors: every tap point against these operations.
        unknown: the divergences that nothing explains.
        aside: tap points that are kept in another form, and in which.
        mistakes, remarks: what was done to the arrays when they were recorded, in sentences; the
            second ones do no harm.
        undone: the tap points at which a mistake was undone.
        reordered: which heads and experts were put into the model's order, in sentences.
        stopped: whether one of them leaves nothing to be judged.
    """

    def __init__(
        self,
        weights: ModelWeights,
        trace: Trace,
        rounding: str,
        steps: Steps | None = None,
        judged: Iterable[str] | None = None,
    ) -> None:
        self.weights, self.trace, self.rounding = weights, trace, rounding
        self.given = trace
        self.segments = segments(trace.config, trace)
        self.ops = SPECIFICATION
        self.entries = catalogue(trace.config, weights, len(trace.tokens))
        self.unknown: list[Unknown] = []
        self._accepted: list[Accepted] = []
        self._hidden: list[Found] = []
        self.aside: dict[str, str] = {}
        self.mistakes: list[str] = []
        self.remarks: list[str] = []
        self.undone: set[str] = set()
        self.reordered: list[str] = []
        self.stopped = False
        taps = list(trace) if judged is None else list(judged)
        self._steps = steps or Steps(unwatched)
        self._steps.expect(len(taps))
        self.specification = {local.tap: local for local in self._watched(SPECIFICATION, taps)}
        self.tap_errors = dict(self.specification)

    # --- the order of the search ---

    def run(self, *, hidden: bool = True) -> None:
        """Fill ``found`` and ``unknown``; without ``hidden``, by what exceeds rounding only."""
        tried: dict[str, int] = {}
        checked: set[str] = set()
        self._put_in_order()
        while (left := self._diverging()) and not self.stopped:
            tap = left[0]
            self._steps.say(f"what explains {tap}?")
            if tap not in checked:
                checked.add(tap)
                if self._mistaken(tap):
                    continue
                if len(checked) == 1 and self._of_another_prompt(left):
                    break
            lost = split(tap)[1] in DISCRETE or self.tap_errors[tap].broken.any()
            asked = self.weights, self.trace, self.rounding, self.ops, tap
            if not lost and (aside := kept_otherwise(*asked)):
                self._set_aside(aside)
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
        if hidden and not self.stopped:
            self._steps.say("is there a bug smaller than rounding?")
            self._find_hidden()

    @property
    def found(self) -> list[Found]:
        """What explains the divergences, in the order in which it was found."""
        by_size = [
            self._fixed(step, candidate)
            for step in self._accepted
            for candidate in step.best.candidates
        ]
        return [*by_size, *self._hidden]

    def _taken(self) -> set[str]:
        """Names of what has been found."""
        steps = [c.name for step in self._accepted for c in step.best.candidates]
        return {*steps, *(hidden.candidate.name for hidden in self._hidden)}

    def _diverging(self) -> list[str]:
        """Tap points that are not explained, in the order of computation."""
        known = {tap for unknown in self.unknown for tap in unknown.taps}
        return [t for t, local in self.tap_errors.items() if local.excess > 1 and t not in known]

    def _unexplained(self) -> dict[str, TapError]:
        """Every tap point that counts, against the specification."""
        return {t: local for t, local in self.specification.items() if t in self.trace}

    def _give_up(self, kind: str, taps: list[str], nearest: tuple[str, float] | None) -> None:
        for i, unknown in enumerate(self.unknown):
            if split(unknown.tap)[1] == kind:
                taps = [*unknown.taps, *taps]
                self.unknown[i] = Unknown(unknown.tap, tuple(taps), unknown.nearest or nearest)
                return
        self.unknown.append(Unknown(taps[0], tuple(taps), nearest))

    def _mistaken(self, tap: str) -> bool:
        """Whether whoever recorded a tap point made a mistake, which is undone if it can be."""
        if split(tap)[1] in DISCRETE:
            return False
        trace = self.trace
        if tap == "embedding":
            sentence = other_ids(self.weights.embedding, trace.tokens, trace[tap])
            if sentence is not None:
                self.mistakes.append(sentence)
                self.stopped = True
                return True
        if self._listed_otherwise(tap):
            return True
        asked = self.weights, trace.config, self.ops, trace.tokens, trace, [tap]
        for mistake in mistakes(tap, predict(*asked)[tap], trace[tap]):
            if mistake.lost is not None:
                users = [t for t in trace if tap in self.segments[t].inputs]
                harmless = any(_finite(trace, t, mistake.lost) for t in users)
                if users and not harmless:
                    continue  # what is computed from it is NaN too: the model broke down here
                (self.remarks if harmless else self.mistakes).append(mistake.sentence)
                self._go_on_with(trace.showing(tap, ~mistake.lost), [tap])
                return True
            if mistake.mended is None:
                users = [t for t in trace if tap in self.segments[t].inputs]
                changed = trace.without([tap])
                fits = any(self.tap_errors[t].excess > 1 for t in users)  # not computed from that
            else:
                changed = trace.replaced(tap, mistake.mended, grid=trace.grid(tap))
                given = self.weights, changed, self.ops, self.rounding, [tap]
                fits = all(local.excess <= 1 for local in replay(*given))
            if fits or (mistake.certain and mistake.mended is not None):
                (self.remarks if mistake.harmless else self.mistakes).append(mistake.sentence)
                self.undone.add(tap)
                self._go_on_with(changed, [tap])
                return True
        return False

    def _put_in_order(self) -> None:
        """Go on with heads and experts in the model's order, where the other has another."""
        found = {split(tap) for tap in self._diverging()}
        blocks = {n for n, stage in found if stage in ORDERED}
        taps = [t for t in self.trace if split(t)[0] in blocks and split(t)[1] in ORDERED]
        if not taps:
            return
        asked = self.weights, self.trace.config, self.ops, self.trace.tokens, self.trace, taps
        ours = Trace(predict(*asked), tokens=self.trace.tokens, config=self.trace.config)
        changed, self.reordered = in_order_of(ours, self.trace)
        if self.reordered:
            moved = [tap for tap in changed if changed.stored(tap) is not self.trace.stored(tap)]
            self._go_on_with(changed, moved)

    def _of_another_prompt(self, diverging: Iterable[str]) -> bool:
        """Whether the numbers are those of another prompt, so that nothing is left to be judged."""
        first = [self.tap_errors[tap] for tap in diverging]
        sentence = another_prompt(self.weights, self.trace, self.rounding, first)
        if sentence is None:
            return False
        self.mistakes.append(sentence)
        self.stopped = True
        return True

    def _listed_otherwise(self, tap: str) -> bool:
        """Whether weights of experts come without their numbers, and in another order."""
        block, stage = split(tap)
        chosen = f"block.{block}.mlp.expert_indices"
        if stage != "mlp.expert_weights" or chosen in self.trace:
            return False
        order = np.argsort(-self.trace[tap], axis=1, kind="stable")  # (T, A)
        changed = self.trace
        taps = [f"block.{block}.{name}" for name in BY_CHOICE]
        for name in (name for name in taps if name in changed):
            values = changed[name]
            wide = order.reshape(*order.shape, *[1] * (values.ndim - 2))
            changed = changed.replaced(name, np.take_along_axis(values, wide, axis=1))
        given = self.weights, changed, self.ops, self.rounding, [tap]
        if any(local.excess > 1 for local in replay(*given)):
            return False
        self.remarks.append(f"experts of block {block} are listed in another order")
        self._go_on_with(changed, [name for name in taps if name in changed])
        return True

    def _go_on_with(self, changed: Trace, taps: Iterable[str]) -> None:
        """Judge what is computed from some tap points again, which have changed or are gone."""
        taps = frozenset(taps)
        users = [t for t in self.trace if taps & set(self.segments[t].inputs)]
        self.trace, self.segments = changed, segments(changed.config, changed)
        self.tap_errors = {t: local for t, local in self.tap_errors.items() if t in changed}
        again = [t for t in (*taps, *users) if t in self.tap_errors]
        for ops, known in ((SPECIFICATION, self.specification), (self.ops, self.tap_errors)):
            known.update((local.tap, local) for local in self._replayed(ops, again))

    def _set_aside(self, aside: frozenset[str]) -> None:
        """Go on without tap points that are kept in another form."""
        form = self._form_of(aside)
        self.aside |= dict.fromkeys(sorted(aside, key=list(self.specification).index), form)
        self._go_on_with(self.trace.without(aside), aside)

    def _form_of(self, aside: frozenset[str]) -> str:
        """In what form they are kept, in words."""
        blocks = [n for n in {split(tap)[0] for tap in aside} if n is not None]
        for entry in self.entries:
            mutant = entry.candidate.mutant
            if mutant.equivalent and {split(tap)[1] for tap in aside} <= set(mutant.touches):
                candidate = entry.candidate.within(blocks) if blocks else entry.candidate
                ops = self._with([candidate])
                if all(local.excess <= 1 for local in self._replayed(ops, aside)):
                    return f"{mutant.name}: {mutant.summary}"
        rest = self.trace.without(aside)
        asked = self.weights, rest.config, self.ops, rest.tokens, rest, aside
        return form_of(predict(*asked), self.trace, sorted(aside), self.rounding)

    # --- one divergence ---

    def _explain(self, tap: str, *, two: bool) -> tuple[bool, tuple[str, float] | None]:
        """Explain a divergence by one bug, or by ``two``, else say what comes nearest.

        In turn: one bug; one, after an exchange of what was taken before; two; two after that; a
        constant fitted to the numbers; that and one more.
        """
        judged, options = self._alone(tap)
        least = min((e.local.excess for e in judged), default=1.0)
        if two and SURE < least <= 1:
            both = self._together(tap, options)
            judged = [e for e in both if CLEARLY * e.local.excess < least] or judged
        done = self._accept(tap, judged) or self._accept_otherwise(tap)
        if two and not done:
            done = self._accept(tap, self._together(tap, options))
            done = done or self._accept_otherwise(tap, together=True)
        if not done:  # a number that may take any value is the last resort
            values = self._fitted(tap, self.segments[tap].ops, self._taken())
            fitted = self._judged(tap, values)
            judged = [*judged, *fitted]
            done = self._accept(tap, fitted)
            if two and not done and values:
                done = self._accept(tap, self._together(tap, [*values, *options]))
        if done:
            return True, None
        best = min(judged, key=lambda e: e.local.excess, default=None)
        if best is None or best.local.excess >= self.tap_errors[tap].excess:
            return False, None
        return False, (best.candidates[0].name, best.local.excess)

    def _alone(self, tap: str) -> tuple[list[Explanation], list[Option]]:
        """The nearest candidates, judged; and all that alter the tap point, nearest first."""
        used = self.segments[tap].ops
        taken = self._taken()
        relevant = [
            (e.candidate,) for e in self.entries if e.ops & used and e.candidate.name not in taken
        ]
        base, singles = self._distances(tap, relevant)
        judged = self._judged(tap, _within_reach([pair for pair in singles if pair[0] < base]))
        return judged, [option for _, option in singles]

    def _fitted(self, tap: str, used: frozenset[str], taken: set[str]) -> list[Option]:
        """The mutants with a parameter that act here, with the values that come nearest."""
        if split(tap)[1] in DISCRETE:
            return []
        config, tokens = self.trace.config, len(self.trace.tokens)
        mutants = {e.candidate.name: e for e in self.entries if e.ops & used}

        def score(candidates: Sequence[Candidate]) -> list[float]:
            base, found = self._distances(tap, [(candidate,) for candidate in candidates])
            by_value = {option[0].value: distance for distance, option in found}
            return [by_value.get(candidate.value, base) for candidate in candidates]

        guesses = (
            guess(e.candidate.mutant, config, tokens, score)
            for name, e in mutants.items()
            if name not in taken
        )
        nearest = sorted((g for g in guesses if g is not None), key=lambda g: g.distance)
        return [(refined(first, score).candidate,) for first in nearest[:REFINED]]

    def _fixed(self, step: Accepted, found: Candidate) -> Found:
        """What was found, with how sharply the numbers fix a fitted value."""
        before, after = self.specification[step.tap].excess, step.best.local.excess
        plain = Found(found, step.tap, before, after, step.alternatives)
        if found.value is None or len(step.best.candidates) > 1:
            return plain

        def explains(other: Candidate) -> bool:
            placed = replace(other, blocks=found.blocks, sites=found.sites)
            ops = placed.apply(step.before)
            return all(local.excess <= 1 for local in self._replayed(ops, [step.tap]))

        low, high = interval(found, self.trace.config, len(self.trace.tokens), explains)
        value = shortest(found.value, low, high)
        short = candidate_of(found.mutant, value)
        found = replace(found, label=short.label, value=value)
        return replace(plain, candidate=found, interval=(low, high))

    def _together(self, tap: str, options: Iterable[Option]) -> list[Explanation]:
        """The nearest pairs of candidates, judged."""
        _, ordered = self._distances(tap, pairs(options))
        return self._judged(tap, _within_reach(ordered))

    def _accept(self, tap: str, judged: Iterable[Explanation]) -> bool:
        """Take the best of what explains a tap point into the operations, if anything does."""
        solved = [e for e in judged if e.local.excess <= 1]
        if not solved:
            return False
        taps = frozenset[str]().union(*(self._affected(e.candidates) for e in solved))
        self._steps.expect(len(solved))
        best, alternatives = best_of(w for e in solved for w in self._weighed(e, taps))
        others = tuple(e for e in solved if e.names != best.names)
        under, best = best.under, replace(best, under=())
        self._take(Accepted(tap, best, alternatives, others, self.ops), under)
        return True

    def _take(self, step: Accepted, under: Iterable[TapError] = ()) -> None:
        """Add what explains a divergence to the operations.

        Args:
            under: all tap points that it changes, if they have been replayed with it.
        """
        step = replace(step, before=self.ops)
        self._accepted.append(step)
        self.ops = self._with(step.best.candidates)
        changed = under or self._replayed(self.ops, self._affected(step.best.candidates))
        self.tap_errors |= {local.tap: local for local in changed}

    def _accept_otherwise(self, tap: str, *, together: bool = False) -> bool:
        """Explain a tap point after exchanging one of the explanations taken before.

        Where two come to the same numbers at one tap point, only later ones tell which it is; and
        if these show another bug besides, neither may look right there by itself. The exchange has
        to leave less unexplained.
        """
        before = self.ops, self.tap_errors, self._accepted
        count = len(self._diverging())
        for place, other in self._exchanges():
            self.ops, self.tap_errors, self._accepted = SPECIFICATION, self._unexplained(), []
            for i, taken in enumerate(before[2]):
                self._take(replace(taken, best=other) if i == place else taken)
            if self.tap_errors[tap].excess > 1:
                judged, options = self._alone(tap)
                self._accept(tap, self._together(tap, options) if together else judged)
            if self.tap_errors[tap].excess <= 1 and len(self._diverging()) < count:
                return True
            self.ops, self.tap_errors, self._accepted = before
        return False

    def _exchanges(self) -> list[tuple[int, Explanation]]:
        """What may take the place of which accepted explanation: first that of a rewriting."""
        found = [
            (place, other)
            for place, step in enumerate(self._accepted)
            for other in step.others
            if not other.harmless
        ]
        found.sort(key=lambda pair: not self._accepted[pair[0]].best.harmless)
        return found[:EXCHANGED]

    def _distances(
        self, tap: str, options: Sequence[Option]
    ) -> tuple[float, list[tuple[float, Option]]]:
        """How far the operations are from the other's numbers, and each option that alters them."""
        tried = [(option, self._with(option)) for option in options]
        where = self.weights, self.trace, self.rounding
        return distances(*where, tap, self.ops, tried, self._steps)

    def _judged(self, tap: str, options: Sequence[Option]) -> list[Explanation]:
        """The first few of some options, each with a noise floor of its own."""
        judged = []
        options = options[:JUDGED]
        self._steps.expect(len(options))
        for candidates in options:
            (local,) = self._replayed(self._with(candidates), [tap])
            judged.append(Explanation(candidates, local))
            self._steps.tick()
        return judged

    def _weighed(self, option: Explanation, taps: frozenset[str]) -> list[Explanation]:
        """An explanation against all tap points it or its rivals change.

        Where it spoils some blocks, it is also weighed in the other ones alone.
        """
        whole = self._on_trace(option, taps)
        weighed = [whole]
        if whole.left and len(option.candidates) == 1:
            (candidate,) = option.candidates
            diverging = frozenset(t for t in self._diverging() if t in taps)
            spoilt = {
                local.tap
                for local in whole.under
                if local.excess > 1 and self.tap_errors[local.tap].excess <= 1
            }
            blocks = {split(t)[0] for t in diverging} - {split(t)[0] for t in spoilt}
            some = frozenset(b for b in blocks if b is not None)
            placed = []
            if spoilt and some and split(option.local.tap)[0] in some:
                placed.append(candidate.within(some))
            if spoilt and self._rules_of(candidate) <= BY_TAP:
                healed = {local.tap for local in whole.under if local.excess <= 1} & diverging
                placed.append(candidate.at(healed))
            forms = (Explanation((form,), option.local) for form in placed)
            weighed += [self._on_trace(form, taps) for form in forms]
        return weighed

    def _on_trace(self, option: Explanation, taps: frozenset[str]) -> Explanation:
        """An explanation with what it leaves of the whole trace, and these tap points under it."""
        under = tuple(self._replayed(self._with(option.candidates), taps))
        elsewhere = [t for t in self._diverging() if t not in taps]
        left = len(elsewhere) + sum(local.excess > 1 for local in under)
        tokens = sum(int(local.wrong_rows.sum()) for local in under)
        distance = float(np.sqrt(np.sum([local.distance**2 for local in under])))
        self._steps.tick()
        return replace(option, left=left, tokens=tokens, distance=distance, under=under)

    # --- bugs too small for the noise floor ---

    def _find_hidden(self) -> None:
        taken = self._taken()
        candidates = [
            e for e in self.entries if e.candidate.name not in taken and not e.candidate.harmless
        ]
        while best := most_votes(
            self.weights,
            self.trace,
            self.rounding,
            self.ops,
            candidates,
            self.tap_errors,
            self._steps,
        ):
            error = self.tap_errors[best.tap].excess
            self._hidden.append(
                Found(best.candidate, best.tap, error, error, best.alternatives, best.share)
            )
            self.ops = best.candidate.apply(self.ops)
            candidates = [e for e in candidates if e.candidate.name != best.candidate.name]

    # --- replaying ---

    def where(self, tap: str) -> str:
        """Which part of a tap point is wrong, in words."""
        local = self.tap_errors[tap]
        config, tokens = self.trace.config, self.trace.tokens
        exact = predict(self.weights, config, self.ops, tokens, self.trace, [tap])
        if split(tap)[1] in DISCRETE:
            return tokens_of(local.wrong_rows)
        return locate_error(tap, exact[tap], self.trace[tap], local.wrong_rows)

    def _with(self, candidates: Iterable[Candidate]) -> ModelOps:
        ops = self.ops
        for candidate in candidates:
            ops = candidate.apply(ops)
        return ops

    def reach(self, candidate: Candidate) -> frozenset[str]:
        """Tap points of the trace whose segments use an operation that the candidate changes."""
        taps = self._affected([candidate])
        if candidate.blocks is not None:
            taps = frozenset(t for t in taps if split(t)[0] in candidate.blocks)
        return taps if candidate.sites is None else taps & candidate.sites

    def _affected(self, candidates: Iterable[Candidate]) -> frozenset[str]:
        """Tap points of the trace whose segments use an operation that the candidates change."""
        ops = frozenset[str]().union(*(self._rules_of(c) for c in candidates))
        return frozenset(t for t in self.tap_errors if self.segments[t].ops & ops)

    @staticmethod
    def _rules_of(candidate: Candidate) -> frozenset[str]:
        return changes(SPECIFICATION, candidate.change(SPECIFICATION))

    def _replayed(self, ops: ModelOps, taps: Iterable[str]) -> Iterable[TapError]:
        return replay(self.weights, self.trace, ops, self.rounding, taps)

    def _watched(self, ops: ModelOps, taps: Iterable[str]) -> Iterable[TapError]:
        for local in self._replayed(ops, taps):
            self._steps.say(f"replaying {local.tap}")
            self._steps.tick()
            yield local


def _finite(trace: Trace, tap: str, rows: NDArray[np.bool_]) -> bool:
    """Whether some rows (T,) of a tap point are numbers."""
    return bool(np.isfinite(np.moveaxis(trace[tap], axes(tap).index("T"), 0)[rows]).all())


def _within_reach(ordered: Sequence[tuple[float, Option]]) -> list[Option]:
    """The options, nearest first, whose error may be rounding if the nearest one's is."""
    return [option for score, option in ordered if score <= ordered[0][0] + WITHIN_REACH]
