"""The search if only outputs of a model are known: logits, or some log-probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, FLOAT64, Array
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.metrics import logit_figures, shift_of, usual_excess
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.rounding_shown import (
    by_errors_in_words,
    coarser_than,
    grid_under_constant,
)
from gptoss_ref.verify.observe.observation import LogprobObservation, log_probabilities
from gptoss_ref.verify.progress import Steps
from gptoss_ref.verify.replay.branches import each_last
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.search.end_to_end import WholeModels
from gptoss_ref.verify.search.mistakes import Mistake, mistakes_of_rows
from gptoss_ref.verify.search.prompts import in_front, in_front_sentence, other_tokens
from gptoss_ref.verify.search.target import Floats, Target
from gptoss_ref.verify.search.trials import Trials
from gptoss_ref.verify.thresholds import LISTED, MISTAKES, TYPICAL, USUAL_ROWS

OUTPUTS = frozenset(("norm", "logits"))
"""Tap points after all blocks."""


@dataclass(frozen=True)
class OutputsFound:
    """A search in one array of outputs, with its remarks.

    Attributes:
        search: of whole models; it uses the array without the mistakes.
        mistakes, remarks: changes of the array by its recording, in sentences; the remarks are
            harmless.
        extra: further numbers of the logits, see ``Row`` of the report.
    """

    search: WholeModels
    mistakes: tuple[str, ...]
    remarks: tuple[str, ...]
    extra: dict[str, float]


def search_outputs(
    model: Model, trace: Trace, tap: str, rounding: str, steps: Steps, stated: bool = True
) -> OutputsFound:
    """Search in one of :data:`OUTPUTS` of a trace that has nothing else.

    Args:
        stated: whether the caller stated the rounding; else the numbers may show a coarser one.
    """
    seen = trace.observed(tap)
    (whole,) = predict(
        model.weights, model.config, SPECIFICATION, trace.tokens, {}, [tap], FLOAT64
    ).values()
    observed = np.asarray(trace[tap], np.float64)[seen]
    outputs = Outputs(model, trace.tokens, tap, whole, observed, seen, rounding, steps)
    said: list[str] = []
    remarks: list[str] = []
    constant = False
    grid = grid_under_constant(outputs.exact, observed) if tap == "logits" and not stated else None
    if grid is not None and grid in coarser_than(rounding):
        remarks.append(
            f"except for one constant per row, the logits lie on the grid of {grid}: judged as such"
        )
        outputs = replace(outputs, rounding=grid)
    for _ in range(MISTAKES):
        found = outputs.mistake() if outputs.search.specification.excess > 1 else None
        if found is None or found.sentence in (*said, *remarks):
            break
        (remarks if found.harmless else said).append(found.sentence)
        constant |= found.constant
        if found.mended is None:
            outputs.search.stopped = True
            break
        outputs = replace(outputs, observed=found.mended)
    search = outputs.search
    coarser = None if stated or said else outputs.coarser()
    search.run(together=coarser is None)
    if coarser is not None and search.best is None:
        remarks.append(by_errors_in_words(search.rounding, coarser.rounding))
        search = coarser
        search.run()
    extra = {}
    if tap == "logits":
        both = (lambda r: outputs.exact[r]), (lambda r: outputs.observed[r])
        extra = logit_figures(*both, *outputs.observed.shape)
        if search.specification.excess <= 1 and not said and not constant:
            remark = shift_of(*both, *outputs.observed.shape).remark
            remarks += [] if remark is None else [remark]
    return OutputsFound(search, tuple(said), tuple(remarks), extra)


@dataclass(frozen=True)
class Outputs:
    """One array of outputs of a prompt, as it was observed and by the specification.

    Attributes:
        tokens: (T,), the prompt.
        tap: one of :data:`OUTPUTS`.
        whole: (T, D) or (T, V), by the specification.
        observed: (P, D) or (P, V), the rows that were observed.
        seen: (T,) whether each row was observed.
        rounding: of the other implementation.
    """

    model: Model
    tokens: Array
    tap: str
    whole: Array
    observed: Array
    seen: Array
    rounding: str
    steps: Steps

    @cached_property
    def exact(self) -> Array:
        """The observed rows by the specification."""
        return self.whole if self.seen.all() else self.whole[self.seen]

    @cached_property
    def search(self) -> WholeModels:
        """The search for bugs that explain the observed rows."""
        floor = UNITS[self.rounding] / 8
        if self.tap == "logits":  # except for one constant per row
            grown, usual = (
                _size(x) / max(_size(_centred(x)), 1e-300) for x in (self.observed, self.exact)
            )
            floor *= 8 * grown if grown > 2 * usual > 0 else 1
        form, seen = self._form, self.seen
        see = form if seen.all() else lambda values: form(values[seen[: len(values)]])
        target = Target(self.tap, see, form(self.observed), np.flatnonzero(seen), True, floor)
        asked = self.model.weights, self.model.config, self.tokens
        return WholeModels(Trials(*asked, target, self.rounding, self.steps))

    def coarser(self) -> WholeModels | None:
        """Return the search under a coarser rounding that explains the rows, if there is one."""
        if not 1 < self.search.specification.excess < math.inf:
            return None
        for rounding in coarser_than(self.rounding):
            search = replace(self, rounding=rounding).search
            usual = float(np.median(search.specification.error)) / search.specification.typical
            if search.specification.excess <= 1 and usual >= TYPICAL / USUAL_ROWS:
                return search
        return None

    def mistake(self) -> Mistake | None:
        """Return the mistake in the recording of the rows, if one explains them."""
        every = self.seen.all()
        if not every and (moved := self._other_rows()) is not None:
            return moved
        rows = self.exact, self.observed, np.flatnonzero(self.seen)
        for found in mistakes_of_rows(self.tap, *rows):
            if found.certain or (found.mended is not None and self._fits(self.exact, found.mended)):
                return found
        if not every or (moved := self._other_rows()) is not None:
            return moved  # what follows needs all rows
        longest = self.model.config.max_position_embeddings - len(self.tokens)
        fitting: list[tuple[float, list[int]]] = []
        for front in in_front(self.model.config, len(self.tokens)):
            if len(front) <= longest:
                values = self._of(np.concatenate([front, self.tokens]))[len(front) :]
                if self._fits(values, self.observed):
                    fitting.append((float(self._apart(values, self.observed).mean()), front))
        if fitting:
            return Mistake(in_front_sentence(min(fitting)[1]), None)
        return self._other_tokens()

    def _other_rows(self) -> Mistake | None:
        """Return other positions of the observed rows, if they explain them."""
        stated = np.flatnonzero(self.seen)
        ours, theirs = self._form(self.whole), self._form(self.observed)
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            return None
        found = np.argmin(np.einsum("ij,ij->i", ours, ours) - 2 * (theirs @ ours.T), axis=1)  # (P,)
        if np.array_equal(found, stated) or not self._fits(self.whole[found], self.observed):
            return None
        their, own = (", ".join(map(str, x[found != stated][:4])) for x in (found, stated))
        rest = int((found != stated).sum()) - 4
        more = f", and {rest} more" if rest > 0 else ""
        sentence = f"Rows of {self.tap} are those of positions {their}, and not of {own}{more}."
        return Mistake(sentence, None)

    def _other_tokens(self) -> Mistake | None:
        """Return replaced tokens: all rows before the first agree, and none from it on."""
        vocabulary = self.model.config.vocab_size
        wrong = ~self._near(self.exact)
        if not wrong[int(np.argmax(wrong)) :].all() or vocabulary > LISTED:
            return None

        def judged(prompt: Array) -> tuple[NDArray[np.bool_], bool]:
            values = self._of(prompt)
            return ~self._near(values), self._fits(values, self.observed)

        def distances(before: Array) -> Floats:
            asked = self.model.weights, self.model.config, before, np.arange(vocabulary), self.tap
            last = each_last(*asked)  # (V, …)
            return self._apart(last, np.broadcast_to(self.observed[len(before)], last.shape))

        sentence = other_tokens(self.tokens, judged, distances)
        return None if sentence is None else Mistake(sentence, None)

    def _of(self, tokens: Array) -> Array:
        """Return the array of another prompt (T,) by the specification in float32."""
        weights, config, tap = self.model.weights, self.model.config, self.tap
        return predict(weights, config, SPECIFICATION, tokens, {}, [tap], FLOAT32)[tap]

    def _form(self, rows: Array) -> Array:
        """Return the part of some rows that is compared."""
        return _centred(rows) if self.tap == "logits" else np.asarray(rows, np.float64)

    def _apart(self, one: Array, other: Array) -> Floats:
        """(P,) distances of the rows of two arrays of outputs."""
        return self.search.target.errors(self._form(one), self._form(other))

    def _fits(self, one: Array, other: Array) -> bool:
        """Return whether two arrays of outputs are equal except for rounding."""
        return usual_excess(self._apart(one, other), self.search.specification.allowed) <= 1

    def _near(self, values: Array) -> NDArray[np.bool_]:
        """(P,) whether rows of outputs are the observed ones except for rounding."""
        allowed = 4 * self.search.specification.allowed[-1]
        near: NDArray[np.bool_] = self._apart(values, self.observed) <= allowed
        return near


def _size(x: Array) -> float:
    return float(np.linalg.norm(np.where(np.isfinite(x), x, 0)))


def _centred(logits: Array) -> Array:
    """Logits (T, V) without the mean of each row: a constant there changes no probability."""
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(wide)
        mean = np.where(finite, wide, 0).sum(1) / np.maximum(finite.sum(1), 1)
        centred: Array = wide - mean[:, None]
    return centred


def search_observation(
    model: Model, observation: LogprobObservation, rounding: str, steps: Steps
) -> WholeModels:
    """Search in log-probabilities of some tokens at some positions."""
    finite = np.isfinite(observation.values)
    rows, ids, values = (a[finite] for a in (observation.rows, observation.ids, observation.values))
    positions, place = np.unique(rows, return_inverse=True)  # (P,), (N,)
    counts = np.bincount(place)  # (P,)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # (N,)
    weight = np.sqrt(counts.max() / counts)[place]  # (N,) so that rows with few tokens count alike

    def table(numbers: Array) -> Array:
        """The first n of (N,) -> (p, K), zero where a position shows fewer tokens."""
        n = len(numbers)
        out = np.zeros((len(np.unique(rows[:n])), counts.max()))
        out[place[:n], column[:n]] = numbers * weight[:n]
        return out

    def see(logits: Array) -> Array:
        shown = rows < len(logits)  # rows are ascending
        return table(log_probabilities(logits, rows[shown], ids[shown]))

    where = np.asarray(positions, np.int64)
    target = Target("logits", see, table(values), where, False, observation.resolution)
    asked = model.weights, model.config, observation.tokens
    search = WholeModels(Trials(*asked, target, rounding, steps))
    search.run()
    return search
