"""The report of ``compare``: one pass over the tap points of two traces, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from gptoss_ref.model import Model
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import axes, names, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.error_bounds import Propagation
from gptoss_ref.verify.noise.metrics import (
    Errors,
    Rows,
    logit_figures,
    measure,
    shift_of,
    without_shift,
)
from gptoss_ref.verify.noise.noise_floor import NoiseFloor, NoiseFloors, follow
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.routing_ties import Flip, alignment, compare_choices, flips, near_ties
from gptoss_ref.verify.noise.tap_check import replay
from gptoss_ref.verify.progress import Steps, unwatched
from gptoss_ref.verify.replay.graph import BY_CHOICE
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.report.report import Report
from gptoss_ref.verify.report.row import WRONG, Row
from gptoss_ref.verify.report.rows import choice_row, float_row, settle
from gptoss_ref.verify.search.mistakes import mistakes
from gptoss_ref.verify.thresholds import JUDGED_AGAIN, RECORDED_WRONGLY


class Comparison:
    """One pass over the tap points of two traces, in order of computation."""

    def __init__(
        self,
        ref: Trace,
        other: Trace,
        model: Model | None,
        yardstick: NoiseFloors | Mapping[str, float] | None,
        rounding: str,
        common: list[str],
        notes: Iterable[str] = (),
        steps: Steps | None = None,
    ) -> None:
        self.ref, self.other, self.model = ref, other, model
        self.yardstick, self.rounding, self.common = yardstick, rounding, frozenset(common)
        self.length = len(ref.tokens)
        self.propagation = Propagation(ref.config, rounding, self.length)
        self.aside = np.zeros(self.length, bool)  # tokens that are not judged,
        self.why = ""  # and the reason
        self.places: Array | None = None  # index in OTHER of each of REF's experts
        self.router: tuple[Array, NoiseFloor | None] | None = (
            None  # REF's logits and their noise floor
        )
        self.flips: list[Flip] = []
        self.notes = list(notes)
        self.steps = steps or Steps(unwatched)
        self.wrong = False  # whether a row diverges without a mistake in the recording
        self.again = model is not None and self._must_compute_again()

    def report(self) -> Report:
        rows: list[Row] = []
        self.steps.expect(len(names(self.ref.config)))
        stream = self._along_the_others_routes() if self.again else self._as_recorded()
        for name, reference in stream:
            self.steps.say(f"comparing {name}")
            self.steps.tick()
            _, stage = split(name)
            if stage in ("attn.weights", "attn.mix"):  # a token sees those before it
                self.aside = np.logical_or.accumulate(self.aside)
            if stage == "mlp.router_logits" and reference is not None:
                everything = reference(slice(0, self.length))
                self.router = everything, self._level(name)
            if stage == "mlp.expert_indices":
                row = self._choice(name, reference)
            else:
                row = self._floats(name, stage, reference)
            rows += [] if row is None else [row]
            self.ref.release()
            self.other.release()
        rows = self._settled(rows)
        return Report(
            ref=_described(self.ref),
            other=_described(self.other),
            rounding=self.rounding,
            yardstick=self._yardstick_in_words(),
            tokens=self.length,
            taps=len(names(self.ref.config)),
            rows=tuple(rows),
            missing=tuple(name for name in names(self.ref.config) if name not in self.common),
            flips=tuple(self.flips),
            notes=tuple(self.notes),
        )

    def _settled(self, rows: list[Row]) -> list[Row]:
        """Return the rows with verdicts that depend on other rows.

        The first divergence is one from OTHER's own inputs, too.

        This needs a measured noise floor; if the caller gave one, its verdicts stay.
        """
        while True:
            settled = settle(rows, self.ref.config)
            first = next((row for row in settled if row.verdict == "diverges"), None)
            measured = isinstance(self.yardstick, NoiseFloors) and self.model is not None
            if first is None or not measured or not first.excess < JUDGED_AGAIN:
                return settled
            if (alone := self._alone(first.name)) > 1:
                return settled
            note = (
                f"{first.excess:.2g} times the yardstick, which OTHER's own inputs explain: from "
                f"them it is {alone:.2g} times what rounding explains"
            )
            right = replace(first, verdict="ok", excess=alone, note=note, first_token=None)
            rows = [right if row.name == first.name else row for row in rows]

    def _alone(self, name: str) -> float:
        """Return the error of a tap point, from OTHER's own inputs, over what rounding explains."""
        assert self.model is not None
        asked = self.model.weights, self.other, SPECIFICATION, self.rounding, [name]
        (local,) = replay(*asked)
        return local.excess

    def _must_compute_again(self) -> bool:
        """Return whether OTHER took other routes than REF, or REF does not show its margins."""
        for n in range(self.ref.config.num_hidden_layers):
            chosen, logits = f"block.{n}.mlp.expert_indices", f"block.{n}.mlp.router_logits"
            if chosen in self.common:
                a, b = (np.sort(trace[chosen], axis=1) for trace in (self.ref, self.other))
                if (a != b)[self.other.observed(chosen)].any():
                    self.notes.append("REF was computed again along OTHER's routes")
                    return True
            elif logits not in self.ref:
                return True
        return False

    def _as_recorded(self) -> Iterator[tuple[str, Rows | None]]:
        for name in names(self.ref.config):
            wanted = name in self.common or (name.endswith("router_logits") and name in self.ref)
            yield name, _rows_of(self.ref, name) if wanted else None

    def _along_the_others_routes(self) -> Iterator[tuple[str, Rows | None]]:
        assert self.model is not None
        logits = {name for name in names(self.ref.config) if name.endswith("router_logits")}
        wanted = self.common | logits
        values = follow(self.model, self.ref.tokens, self.rounding, wanted, self.other)
        for name in names(self.ref.config):
            yield name, _rows_in(next(values), name) if name in wanted else None

    def _level(self, name: str) -> NoiseFloor | None:
        """Return the noise floor of a tap point, which OTHER may have rounded when recording it."""
        level = self._level_of_run(name)
        grid = self.other.grid(name) if name in self.other else None
        if level is None or grid is None or UNITS[grid] <= level.unit or name == "embedding":
            return level
        return NoiseFloor(level.whole, level.rows, UNITS[grid])

    def _level_of_run(self, name: str) -> NoiseFloor | None:
        if isinstance(self.yardstick, NoiseFloors):
            return self.yardstick.level(name, self.length)
        if self.yardstick is not None and name in self.yardstick:
            return NoiseFloor.allowing(self.yardstick[name], self.length, UNITS[self.rounding])
        return self.propagation.level(name) if self.propagation.useful(name) else None

    def _floats(self, name: str, stage: str, reference: Rows | None) -> Row | None:
        if reference is None or name not in self.common:
            self.propagation.saw(name, None)
            return None
        other = _rows_of(self.other, name)
        if stage in BY_CHOICE and self.places is not None:
            other = _reordered(other, self.places)
        row, errors, remarks = self._judged(name, reference, other)
        if row.verdict in WRONG and not self.wrong:
            row, errors, remarks = self._unmistaken(reference, other, (row, errors, remarks))
        self.propagation.saw(name, np.where(errors.broken > 0, np.inf, errors.rows()))
        self.notes += remarks
        grid = self.other.grid(name) if row.verdict == "diverges" else None
        if grid and UNITS[grid] > UNITS[self.rounding]:
            row = replace(row, note=f"{row.note}; OTHER's values here are rounded to {grid}")
        return row

    def _judged(self, name: str, reference: Rows, other: Rows) -> Judged:
        """Return the report row of a tap point, for these rows of OTHER."""
        shape = self.other.shape_of(name)
        values = int(np.prod(shape)) // self.length
        level, remarks = self._level(name), []
        if name == "logits":
            shift = shift_of(reference, other, self.length, values)
            if shift.remark is not None:
                other = without_shift(other, shift)
                remarks.append(shift.remark)
                level = None if level is None else level.times(shift.grown)
        whole = errors = measure(reference, other, self.length, values)
        extra = {}
        seen = self.ref.observed(name) & self.other.observed(name)
        if not seen.all():
            errors = errors.where(seen)
        if name == "logits" and seen.any():
            a, b = (_only(rows, seen) for rows in (reference, other))
            extra = logit_figures(a, b, int(seen.sum()), shape[-1])
        aside, why = self.aside | ~seen, self.why or "rows that were not observed"
        return float_row(self._row(name), errors, level, aside, why, extra), whole, remarks

    def _unmistaken(self, reference: Rows, other: Rows, judged: Judged) -> Judged:
        """Return a diverging row, unless a mistake in the recording explains it.

        A harmless mistake is undone; another one keeps the verdict, and its sentence becomes the
        note.
        """
        row, errors, remarks = judged
        self.wrong = True
        if np.prod(row.shape) > RECORDED_WRONGLY:
            return judged
        axis, whole = axes(row.name).index("T"), slice(0, self.length)
        ours, theirs = (np.moveaxis(rows(whole), 0, axis) for rows in (reference, other))
        seen = self.ref.observed(row.name) & self.other.observed(row.name)
        for found in mistakes(row.name, ours, theirs, seen):
            if found.mended is not None:
                mended = self._judged(row.name, reference, _rows_in(found.mended, row.name))
                if mended[0].verdict != "ok":
                    continue
                if found.harmless:
                    self.wrong = False
                    return replace(mended[0], note=found.sentence), mended[1], [found.sentence]
            self.wrong = False
            return replace(row, note=found.sentence), errors, [*remarks, found.sentence]
        return judged

    def _choice(self, name: str, reference: Rows | None) -> Row | None:
        """Judge the choices of experts, and set aside the tokens sent to other experts."""
        self.propagation.saw(name, None)
        logits, level = self.router or (None, None)
        self.router = self.places = None
        block, _ = split(name)
        assert block is not None
        if reference is None:
            self._set_aside_what_may_have_turned(logits, level)
            return None
        ref, other = reference(slice(0, self.length)), self.other[name]
        own = f"block.{block}.mlp.router_logits"
        seen = self.ref.observed(name) & self.other.observed(name)
        own_logits = self.other.get(own)
        choice = compare_choices(ref, other, logits, own_logits, level).among(seen)
        row = choice_row(self._row(name), choice, self.aside)
        self.flips += flips(block, ref, other, choice)
        if self.again:
            return row
        if choice.differs.any():
            self.aside = self.aside | choice.differs
            self.why = self.why or f"what follows the routing tie in block {block}"
        self.places = alignment(ref, other)
        return row

    def _set_aside_what_may_have_turned(
        self, logits: Array | None, level: NoiseFloor | None
    ) -> None:
        """Set aside tokens near a tie, if OTHER's choice is not known."""
        chosen = self.ref.config.experts_per_token
        if chosen == self.ref.config.num_experts:
            return
        if logits is None or level is None:
            self.aside = np.ones(self.length, bool)
            self.why = self.why or "the experts are not known, nor how near a tie they are"
        elif (near := near_ties(logits, chosen, level)).any():
            self.aside = self.aside | near
            self.why = self.why or "near a routing tie, and OTHER does not say its experts"

    def _row(self, name: str) -> Row:
        dtypes = (self.ref.dtype_of(name), self.other.dtype_of(name))
        return Row(name, self.other.shape_of(name), dtypes)

    def _yardstick_in_words(self) -> str:
        if isinstance(self.yardstick, NoiseFloors):
            return str(self.yardstick)
        if self.yardstick is not None:
            return "as given"
        return f"estimated from tap to tap under {self.rounding}; with the model it is measured"


Judged = tuple[Row, Errors, list[str]]
"""A row, the errors of all tokens, and remarks."""


def _described(trace: Trace) -> str:
    return f"{trace.producer}, {trace.dtype_name or 'unknown rounding'}"


def _rows_of(trace: Trace, name: str) -> Rows:
    """Rows of a trace's array, T first."""
    axis = axes(name).index("T")
    return lambda rows: np.moveaxis(trace.rows(name, rows, axis), axis, 0)


def _only(rows: Rows, seen: Array) -> Rows:
    """Return some of the rows, numbered from 0."""
    if seen.all():
        return rows
    some = rows(slice(0, len(seen)))[seen]
    return lambda which: some[which]


def _rows_in(values: Array, name: str) -> Rows:
    """Rows of an array in memory, T first."""
    first = np.moveaxis(values, axes(name).index("T"), 0)
    return lambda rows: first[rows]


def _reordered(other: Rows, places: Array) -> Rows:
    """Return the same rows with the experts of each token in REF's order."""

    def rows_of(rows: slice) -> Array:
        values, where = other(rows), places[rows]
        return np.take_along_axis(values, where.reshape(*where.shape, *[1] * (values.ndim - 2)), 1)

    return rows_of
