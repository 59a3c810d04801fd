"""A trace, judged by the operations that explain it so far."""

from __future__ import annotations

from collections.abc import Iterable

from gptoss_ref.numerics import FLOAT64, Array, Policy
from gptoss_ref.tracing.taps import split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.localise import locate_error, tokens_of
from gptoss_ref.verify.noise.tap_check import replay
from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.progress import Steps, unwatched
from gptoss_ref.verify.replay.evaluate import predict, segments
from gptoss_ref.verify.replay.graph import DISCRETE
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from gptoss_ref.verify.search.candidates import Candidate, catalogue
from gptoss_ref.weights import ModelWeights


class Evidence:
    """A trace, and the operations that explain it.

    Args:
        weights: of the model.
        trace: as it was given.
        rounding: of the trace.
        judged: the only tap points to be explained, from the nearest ones before them; None: all.

    Attributes:
        given: the trace as it was given; ``trace`` is without arrays kept in another form.
        segments: of the trace, by tap point.
        candidates: of the catalogue.
        specification: every tap point of the trace against the specification.
        ops: the operations that explain the trace so far.
        tap_errors: every tap point against these operations.
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
        self.candidates = catalogue(trace.config, weights, len(trace.tokens))
        taps = list(trace) if judged is None else list(judged)
        self.steps = steps or Steps(unwatched)
        self.steps.expect(len(taps))
        self.specification = {local.tap: local for local in self._watched(SPECIFICATION, taps)}
        self.tap_errors = dict(self.specification)

    def diverging(self) -> list[str]:
        """Return the tap points that diverge under the operations so far, in order."""
        return [tap for tap, local in self.tap_errors.items() if local.excess > 1]

    def unexplained(self) -> dict[str, TapError]:
        """Return every tap point that counts, against the specification."""
        return {t: local for t, local in self.specification.items() if t in self.trace}

    def go_on_with(self, changed: Trace, taps: Iterable[str]) -> None:
        """Judge again the tap points computed from others that have changed or were removed."""
        taps = frozenset(taps)
        users = [t for t in self.trace if taps & set(self.segments[t].inputs)]
        self.trace, self.segments = changed, segments(changed.config, changed)
        self.tap_errors = {t: local for t, local in self.tap_errors.items() if t in changed}
        again = [t for t in (*taps, *users) if t in self.tap_errors]
        for ops, known in ((SPECIFICATION, self.specification), (self.ops, self.tap_errors)):
            known.update((local.tap, local) for local in self.replayed(ops, again))

    def replayed(
        self, ops: ModelOps, taps: Iterable[str], trace: Trace | None = None
    ) -> Iterable[TapError]:
        """Return some tap points against some operations, in the order of computation.

        Args:
            trace: another one than the evidence's.
        """
        given = self.trace if trace is None else trace
        return replay(self.weights, given, ops, self.rounding, taps)

    def predicted(
        self, taps: Iterable[str], trace: Trace | None = None, policy: Policy = FLOAT64
    ) -> dict[str, Array]:
        """Return some tap points by the operations so far, from the nearest given ones."""
        given = self.trace if trace is None else trace
        return predict(self.weights, given.config, self.ops, given.tokens, given, taps, policy)

    def _watched(self, ops: ModelOps, taps: Iterable[str]) -> Iterable[TapError]:
        for local in self.replayed(ops, taps):
            self.steps.say(f"replaying {local.tap}")
            self.steps.tick()
            yield local

    def reach(self, candidate: Candidate) -> frozenset[str]:
        """Return the trace's tap points that use an operation that the candidate changes."""
        taps = self.affected([candidate])
        if candidate.blocks is not None:
            taps = frozenset(t for t in taps if split(t)[0] in candidate.blocks)
        return taps if candidate.sites is None else taps & candidate.sites

    def affected(self, candidates: Iterable[Candidate]) -> frozenset[str]:
        """Return the same for some candidates, at all their places."""
        ops = frozenset[str]().union(*(c.ops for c in candidates))
        return frozenset(t for t in self.tap_errors if self.segments[t].ops & ops)

    def where(self, tap: str) -> str:
        """Return the wrong part of a tap point in words."""
        local = self.tap_errors[tap]
        if split(tap)[1] in DISCRETE:
            return tokens_of(local.wrong_rows)
        return locate_error(tap, self.predicted([tap])[tap], self.trace[tap], local.wrong_rows)
