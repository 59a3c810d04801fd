"""The recording of a trace's arrays: mistakes that can be undone, and arrays in other forms.

It is examined before any bug, at each tap point that diverges.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.tracing.taps import axes, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.renumbered import ORDERED, in_order_of
from gptoss_ref.verify.replay.graph import BY_CHOICE, DISCRETE
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.search.mistakes import mistakes
from gptoss_ref.verify.search.prompts import another_prompt, other_ids
from gptoss_ref.verify.search.rewritten import form_of


class Recording:
    """Changes of a trace's arrays by its recording; they are undone in the evidence.

    Attributes:
        aside: tap points that are kept in another form, and the form.
        mistakes, remarks: the changes, in sentences; remarks are harmless.
        undone: the tap points at which a mistake was undone.
        reordered: heads and experts that were put into the model's order, in sentences.
        stopped: whether a mistake leaves nothing to judge.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self.aside: dict[str, str] = {}
        self.mistakes: list[str] = []
        self.remarks: list[str] = []
        self.undone: set[str] = set()
        self.reordered: list[str] = []
        self.stopped = False

    def mistaken(self, tap: str) -> bool:
        """Return whether a tap point was recorded with a mistake, which is undone if possible."""
        if split(tap)[1] in DISCRETE:
            return False
        evidence, trace = self._evidence, self._evidence.trace
        if tap == "embedding":
            sentence = other_ids(evidence.weights.embedding, trace.tokens, trace[tap])
            if sentence is not None:
                self.mistakes.append(sentence)
                self.stopped = True
                return True
        if self._listed_otherwise(tap):
            return True
        exact = evidence.predicted([tap])[tap]
        for mistake in mistakes(tap, exact, trace[tap], trace.observed(tap)):
            if mistake.lost is not None:
                users = [t for t in trace if tap in evidence.segments[t].inputs]
                harmless = any(_finite(trace, t, mistake.lost) for t in users)
                if users and not harmless:
                    continue  # later tap points are NaN too: the model itself computed NaN
                (self.remarks if harmless else self.mistakes).append(mistake.sentence)
                evidence.go_on_with(trace.showing(tap, ~mistake.lost), [tap])
                return True
            if mistake.mended is None:
                users = [t for t in evidence.tap_errors if tap in evidence.segments[t].inputs]
                changed = trace.without([tap])
                # what follows, if anything does, was not computed from that
                fits = not users or any(evidence.tap_errors[t].excess > 1 for t in users)
            else:
                changed = trace.replaced(tap, mistake.mended, grid=trace.grid(tap))
                (local,) = evidence.replayed(evidence.ops, [tap], changed)
                fits = local.excess <= 1
            if fits or (mistake.certain and mistake.mended is not None):
                (self.remarks if mistake.harmless else self.mistakes).append(mistake.sentence)
                self.undone.add(tap)
                evidence.go_on_with(changed, [tap])
                return True
        return False

    def put_in_order(self) -> None:
        """Put heads and experts into the model's order, if the other has another one."""
        evidence, trace = self._evidence, self._evidence.trace
        found = {split(tap) for tap in evidence.diverging()}
        blocks = {n for n, stage in found if stage in ORDERED}
        taps = [t for t in trace if split(t)[0] in blocks and split(t)[1] in ORDERED]
        if not taps:
            return
        ours = Trace(evidence.predicted(taps), tokens=trace.tokens, config=trace.config)
        changed, self.reordered = in_order_of(ours, trace)
        if self.reordered:
            moved = [tap for tap in changed if changed.stored(tap) is not trace.stored(tap)]
            evidence.go_on_with(changed, moved)

    def of_another_prompt(self, diverging: Iterable[str]) -> bool:
        """Return whether the numbers are those of another prompt, so that nothing can be judged."""
        evidence = self._evidence
        first = [evidence.tap_errors[tap] for tap in diverging]
        sentence = another_prompt(evidence, first)
        if sentence is None:
            return False
        self.mistakes.append(sentence)
        self.stopped = True
        return True

    def _listed_otherwise(self, tap: str) -> bool:
        """Return whether experts' weights were recorded without indices, and in another order."""
        evidence, changed = self._evidence, self._evidence.trace
        block, stage = split(tap)
        chosen = f"block.{block}.mlp.expert_indices"
        if stage != "mlp.expert_weights" or chosen in changed:
            return False
        order = np.argsort(-changed[tap], axis=1, kind="stable")  # (T, A)
        taps = [f"block.{block}.{name}" for name in BY_CHOICE]
        for name in (name for name in taps if name in changed):
            values = changed[name]
            wide = order.reshape(*order.shape, *[1] * (values.ndim - 2))
            changed = changed.replaced(name, np.take_along_axis(values, wide, axis=1))
        (local,) = evidence.replayed(evidence.ops, [tap], changed)
        if local.excess > 1:
            return False
        self.remarks.append(f"experts of block {block} are listed in another order")
        evidence.go_on_with(changed, [name for name in taps if name in changed])
        return True

    def set_aside(self, aside: frozenset[str]) -> None:
        """Continue without tap points that are kept in another form."""
        evidence, form = self._evidence, self._form_of(aside)
        ordered = sorted(aside, key=list(evidence.segments).index)
        self.aside |= dict.fromkeys(ordered, form)
        evidence.go_on_with(evidence.trace.without(aside), aside)

    def _form_of(self, aside: frozenset[str]) -> str:
        """Return their form in words."""
        evidence = self._evidence
        blocks = [n for n in {split(tap)[0] for tap in aside} if n is not None]
        for form in evidence.candidates:
            mutant = form.mutant
            if mutant.equivalent and {split(tap)[1] for tap in aside} <= set(mutant.touches):
                ops = (form.within(blocks) if blocks else form).apply(evidence.ops)
                if all(local.excess <= 1 for local in evidence.replayed(ops, aside)):
                    return f"{mutant.name}: {mutant.summary}"
        rest = evidence.trace.without(aside)
        exact = evidence.predicted(aside, rest)
        return form_of(exact, evidence.trace, sorted(aside), evidence.rounding)


def _finite(trace: Trace, tap: str, rows: NDArray[np.bool_]) -> bool:
    """Return whether some rows (T,) of a tap point are finite."""
    return bool(np.isfinite(np.moveaxis(trace[tap], axes(tap).index("T"), 0)[rows]).all())
