"""diagnose, where only a model's outputs are known: logits, or some log-probabilities."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT64, Array
from gptoss_ref.tracing.taps import names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.observe.observation import LogprobObservation, log_probabilities
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.report.diagnosis import Cause, Diagnosis, Unexplained
from gptoss_ref.verify.report.localise import tokens_of
from gptoss_ref.verify.report.progress import Progress
from gptoss_ref.verify.report.report import ALL_LOST, Row, Verdict
from gptoss_ref.verify.report.rows import logit_figures
from gptoss_ref.verify.search.end_to_end import Standing, Target, WholeModels

OUTPUTS = frozenset(("norm", "logits"))
"""Tap points behind all blocks."""


def diagnose_outputs(
    model: Model, trace: Trace, tap: str, rounding: str, progress: Progress
) -> Diagnosis:
    """One of :data:`OUTPUTS` of a trace that holds nothing else."""
    seen = trace.observed(tap)
    observed = np.asarray(trace[tap], np.float64)[seen]

    def see(values: Array) -> Array:
        return np.asarray(values[seen], np.float64)

    target = Target(tap, see, observed, True, UNITS[rounding] / 8)
    search = WholeModels(model.weights, model.config, trace.tokens, target, rounding, progress)
    search.run()
    report = _report(search, trace.producer, len(trace.tokens), len(names(model.config)))
    exact = predict(model.weights, model.config, SPECIFICATION, trace.tokens, {}, [tap], FLOAT64)
    extra = {}
    if tap == "logits":
        ours = exact[tap][seen]
        extra = logit_figures(lambda r: ours[r], lambda r: observed[r], *observed.shape)
    (row,) = report.rows
    row = replace(
        row, shape=trace.shape_of(tap), dtypes=("float64", trace.dtype_of(tap)), extra=extra
    )
    missing = tuple(name for name in names(model.config) if name not in trace)
    notes = (*report.notes, *rows_in_words(trace), *skipped_in_words(trace))
    return replace(report, rows=(row,), missing=missing, notes=notes)


def rows_in_words(trace: Trace) -> list[str]:
    """A sentence for each number of rows that were observed in part."""
    found: dict[int, list[str]] = {}
    for tap in names(trace.config):
        if tap in trace.observed_in_part:
            found.setdefault(int(trace.observed(tap).sum()), []).append(tap)
    rows = len(trace.tokens)
    return [
        f"{count} of {rows} rows observed of {taps[0]}"
        + (f" and {len(taps) - 1} more" if len(taps) > 1 else "")
        for count, taps in found.items()
    ]


def skipped_in_words(trace: Trace) -> list[str]:
    """How many arrays had no place, and the first of them."""
    if not trace.skipped:
        return []
    count, first = len(trace.skipped), trace.skipped[0]
    more = f", and {count - 1} more" if count > 1 else ""
    return [f"left out, see the trace's skipped: {first.name} ({first.why}){more}"]


def diagnose_observation(
    model: Model, observation: LogprobObservation, rounding: str, progress: Progress
) -> Diagnosis:
    """Log-probabilities of some tokens at some positions."""
    finite = np.isfinite(observation.values)
    rows, ids, values = (a[finite] for a in (observation.rows, observation.ids, observation.values))
    positions, place = np.unique(rows, return_inverse=True)  # (P,), (N,)
    counts = np.bincount(place)  # (P,)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # (N,)
    weight = np.sqrt(counts.max() / counts)[place]  # (N,) so that rows with few tokens count alike

    def table(numbers: Array) -> Array:
        """(N,) -> (P, K), zero where a position shows fewer tokens."""
        out = np.zeros((len(positions), counts.max()))
        out[place, column] = numbers * weight
        return out

    def see(logits: Array) -> Array:
        return table(log_probabilities(logits, rows, ids))

    target = Target("logits", see, table(values), False, observation.resolution)
    search = WholeModels(
        model.weights, model.config, observation.tokens, target, rounding, progress
    )
    search.run()
    taps = len(names(model.config))
    report = _report(search, observation.producer, len(observation.tokens), taps)
    (row,) = report.rows
    row = replace(row, shape=(len(positions), int(counts.max())), dtypes=("float64", "decimal"))
    notes = (
        f"{len(values)} log-probabilities at {len(positions)} of {len(observation.tokens)} "
        "positions, in nats; no stage of the model is seen",
        *observation.left_out,
    )
    return replace(report, rows=(row,), notes=(*report.notes, *notes))


def _report(search: WholeModels, producer: str, tokens: int, taps: int) -> Diagnosis:
    spec, best = search.specification, search.best
    wrong = spec.excess > 1
    typical = float(np.median(spec.error))
    note = f"{spec.excess:.3g} times what rounding explains" if wrong else ""
    lost = not np.isfinite(search.target.observed).any() and not spec.broken
    if lost:
        note = ALL_LOST
    if spec.broken:
        note = f"NaN or infinite in one of the two at {spec.broken} of {len(spec.error)} positions"
    if wrong and best is not None:
        note += f"; explained by {' and '.join(c.name for c in best.candidates)}"
    row = Row(
        name=search.target.tap,
        shape=(),
        dtypes=("float64", ""),
        max_abs=float(spec.error.max(initial=0.0)),
        rel_l2=typical,
        cosine=math.nan,
        rounding_units=typical / UNITS[search.rounding],
        allowed=typical / spec.excess if spec.excess > 0 else math.nan,
        excess=spec.excess,
        verdict=_verdict(spec.broken > 0, lost, wrong),
        note=note,
    )
    return Diagnosis(
        ref="the specification, from the tokens",
        other=producer,
        rounding=search.rounding,
        yardstick=f"whole models in float64 and in {search.rounding}",
        tokens=tokens,
        taps=taps,
        rows=(row,),
        notes=("only outputs are known: errors are those of the usual token",),
        causes=() if best is None else _causes(search, best),
        unexplained=() if best is not None or not wrong else (_unexplained(search),),
    )


def _verdict(broken: bool, lost: bool, wrong: bool) -> Verdict:
    if broken:
        return "nan"
    if lost:
        return "unjudged"
    return "diverges" if wrong else "ok"


def _causes(search: WholeModels, best: Standing) -> tuple[Cause, ...]:
    found = []
    for candidate in best.candidates:
        mutant = candidate.mutant
        found.append(
            Cause(
                name=mutant.name,
                variant=candidate.label,
                stage=mutant.stage,
                tap=search.target.tap,
                blocks=None,
                summary=mutant.summary,
                consequence=mutant.consequence,
                reports=mutant.reports,
                error_before=search.specification.excess,
                error_after=best.excess,
                alternatives=search.alternatives,
                confidence=1 / (1 + len(search.alternatives)),
            )
        )
    return tuple(found)


def _unexplained(search: WholeModels) -> Unexplained:
    spec, tap = search.specification, search.target.tap
    rows = spec.error > spec.typical
    nearest = next((s for s in search.ranked if s.score < spec.score), None)
    return Unexplained(
        tap=tap,
        taps=(tap,),
        error=spec.excess,
        where=tokens_of(rows),
        nearest=None if nearest is None else nearest.candidates[0].name,
        remaining=None if nearest is None else search.measured(nearest.candidates).excess,
    )
