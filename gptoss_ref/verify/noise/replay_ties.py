"""Ties in a local replay: rows that depend on a choice of experts, and the choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.routing_ties import chosen_by, flips, margin_of
from gptoss_ref.verify.noise.tap_error import Floats, Mask, TapError
from gptoss_ref.verify.replay.evaluate import Node, whole
from gptoss_ref.verify.replay.graph import DISCRETE
from gptoss_ref.verify.thresholds import ALWAYS_ALLOWED, ONE_ROW


class Ties:
    """The rows that depend on a choice of experts that rounding may have changed.

    Attributes:
        logits: the router logits that must be computed to find out.
    """

    def __init__(self, trace: Trace, path: Iterable[Node], rounding: str) -> None:
        self._trace, self._unit, self._known = trace, UNITS[rounding], whole(trace)
        self._scale = UNITS["float64"] / UNITS["float32"] if rounding == "float64" else 1.0
        chosen = [node for node in path if node.stage.name in DISCRETE]
        self.logits = frozenset(
            tap for node in chosen for tap in node.inputs if tap not in self._known
        )
        self._tied: dict[str, Mask] = {}
        self.router: Array = np.empty(0)  # (T, E) the latest router logits ...
        self.slack: Floats = np.empty(0)  # (T,) ... and by how much two of them may be misjudged

    def pass_through(self, node: Node, arrays: Sequence[Array]) -> Mask:
        """(T,) rows of this tap point that depend on a tie since the last given tap point."""
        tied = np.zeros(len(self._trace.tokens), bool)
        for tap in node.inputs:
            if tap not in self._known:
                before = self._tied[tap]
                mixes = node.stage.name in ("attn.weights", "attn.mix")
                tied |= np.logical_or.accumulate(before) if mixes else before
        if node.tap in self.logits:
            self._see_logits(arrays)
        if node.stage.name in DISCRETE:
            (source,) = node.inputs
            if source in self._known:
                self._take_logits(self._trace[source])
            margin = margin_of(self.router, self._trace.config.experts_per_token)
            if node.tap not in self._known:
                tied |= margin <= self.slack
        self._tied[node.tap] = tied
        return tied

    def _see_logits(self, arrays: Sequence[Array]) -> None:
        exact, *rounded = arrays
        noise = np.max([np.abs(sample - exact).max(axis=1) for sample in rounded], axis=0)
        self.router = exact
        usual = np.median(noise) if noise.size else 0.0
        self.slack = ONE_ROW * self._scale * np.maximum(noise, usual) + self._least(exact)

    def _take_logits(self, given: Array) -> None:
        self.router = np.asarray(given, np.float64)
        self.slack = self._least(self.router)

    def _least(self, logits: Array) -> Floats:
        """Return the slack of given logits: the choice may precede or follow their rounding."""
        least: Floats = 2 * ALWAYS_ALLOWED * self._unit * np.abs(logits).max(axis=1)
        return least


def judge_choice(
    tap: str, inputs: tuple[str, ...], trace: Trace, ties: Ties, tied: Mask
) -> TapError:
    """Judge the other's choice of experts by the router logits: wrong only beyond the margin."""
    indices, block = trace[tap], split(tap)[0]
    chosen, choice = chosen_by(ties.router, indices, ties.slack)
    seen = trace.observed(tap)
    choice = choice.among(seen)
    return TapError(
        tap=tap,
        inputs=inputs,
        shape=indices.shape,
        error=choice.margin,
        allowed=np.where(np.isfinite(ties.slack), ties.slack, 0.0),
        whole=0.0,
        whole_allowed=0.0,
        tied=tied,
        broken=np.zeros(len(indices), np.int64),
        max_abs=float(choice.margin.max(initial=0.0)),
        distance=float(np.mean(choice.differs)),
        flips=flips(block, chosen, indices, choice),
    )
