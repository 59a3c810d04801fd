"""The report of ``diagnose``, from what its searches found: tap by tap, or from outputs alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from gptoss_ref.tracing.taps import names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.localise import tokens_of
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.observe.observation import LogprobObservation
from gptoss_ref.verify.report.diagnosis import Cause, Diagnosis, Unexplained, in_words
from gptoss_ref.verify.report.row import ALL_LOST, Row, Verdict
from gptoss_ref.verify.search.candidates import Candidate
from gptoss_ref.verify.search.end_to_end import WholeModels
from gptoss_ref.verify.search.fit import Fit, Unknown
from gptoss_ref.verify.search.next_tap import BRING, next_in_words
from gptoss_ref.verify.search.outputs import OutputsFound
from gptoss_ref.verify.search.per_tap import Search
from gptoss_ref.verify.search.rewritten import where_of

# --- tap by tap ---


def of_stages(search: Search) -> Diagnosis:
    """Of a search tap by tap."""
    trace, config, found = search.evidence.given, search.evidence.given.config, search.found
    rows = [_stage_row(search, found, local) for local in search.evidence.specification.values()]
    flips = tuple(flip for local in search.evidence.tap_errors.values() for flip in local.flips)
    taps = names(config)
    return Diagnosis(
        ref="the specification, from the other's own numbers",
        other=trace.producer,
        rounding=search.evidence.rounding,
        yardstick=f"each stage in float64 and in {search.evidence.rounding}, from the same inputs",
        tokens=len(trace.tokens),
        taps=len(taps),
        rows=tuple(rows),
        missing=tuple(tap for tap in taps if tap not in trace),
        flips=flips,
        notes=tuple(_notes(search)),
        causes=tuple(_cause(fit, c) for fit, c in _bugs(found) if not c.harmless),
        unexplained=tuple(_unknown(search, u) for u in search.unknown),
        rewritings=_rewritings(search, found),
        mistakes=tuple(search.recording.mistakes),
    )


def _rewritings(search: Search, found: list[Fit[Candidate]]) -> tuple[str, ...]:
    """Return the rewritings in words: other computations or forms with the same result."""
    harmless = (candidate for _, candidate in _bugs(found) if candidate.harmless)
    lines = [f"{candidate.name}: {candidate.mutant.summary}" for candidate in harmless]
    lines += search.recording.reordered
    for form in dict.fromkeys(search.recording.aside.values()):
        where = where_of(tap for tap, own in search.recording.aside.items() if own == form)
        lines.append(f"{form.removesuffix('.')} ({where})")
    return tuple(lines)


def _unknown(search: Search, unknown: Unknown) -> Unexplained:
    local = search.evidence.tap_errors[unknown.tap]
    nearest = unknown.nearest
    name, remaining = (None, None) if nearest is None else (nearest.title, nearest.excess)
    where = search.evidence.where(unknown.tap)
    hints = (next_in_words(search.evidence.trace, unknown.tap),)
    return Unexplained(unknown.tap, unknown.taps, local.excess, where, name, remaining, hints)


def _stage_row(search: Search, found: list[Fit[Candidate]], local: TapError) -> Row:
    """Return the row of one tap point, against the specification."""
    trace, tap = search.evidence.given, local.tap
    wrong = local.excess > 1
    hidden = [f for f in found if f.tap == tap and f.share is not None]
    verdict: Verdict = "ok"
    note = ""
    if wrong:
        verdict = "nan" if local.broken.any() else "diverges"
        left = search.evidence.tap_errors.get(tap)
        explained = left is not None and left.excess <= 1
        by = [c for _, c in _bugs(found) if tap in search.evidence.reach(c)]
        note = f"off by {in_words(local.excess)}"
        if explained and by:
            note += f"; explained by {' and '.join(c.name for c in by)}"
            if all(c.harmless for c in by):
                verdict = "rewritten"
        elif tap in search.recording.aside:
            verdict = "rewritten"
            note += "; but all that is computed from it agrees"
        elif not explained:
            note += "; not explained"
    elif local.lost:
        verdict, note = "unjudged", ALL_LOST
    elif hidden:
        verdict = "hidden"
        names = " and ".join(fit.title for fit in hidden)
        note = f"less than rounding explains, but its roundings side with {names}"
    elif local.flips:
        verdict = "tie"
        note = f"{len(local.flips)} tokens go to other experts, within the margin"
    elif not local.judged:
        note = "most tokens hang on ties of the router: judged by the usual ones"
    rows = np.flatnonzero(local.wrong_rows)
    error = local.whole
    return Row(
        name=tap,
        shape=local.shape,
        dtypes=("float64", trace.dtype_of(tap)),
        max_abs=local.max_abs,
        rel_l2=error,
        cosine=local.cosine,
        rounding_units=error / UNITS[search.evidence.rounding],
        allowed=local.whole_allowed if local.whole_allowed else math.nan,
        excess=local.excess,
        verdict=verdict,
        note=note,
        first_token=int(rows[0]) if wrong and rows.size else None,
        extra=local.extra,
    )


def _notes(search: Search) -> list[str]:
    notes = list(search.recording.remarks)
    logits = search.evidence.tap_errors.get("logits")
    if (
        logits is not None
        and logits.excess <= 1
        and logits.remark
        and "logits" not in search.recording.undone
    ):
        notes.append(logits.remark)
    forms: dict[str, list[str]] = {}
    for tap, local in search.evidence.tap_errors.items():
        if local.integers is not None:
            forms.setdefault(str(local.integers), []).append(tap)
    notes += [f"{where_of(taps)}: {form}" for form, taps in forms.items()]
    tied = sum(local.tied.any() and local.judged for local in search.evidence.tap_errors.values())
    if tied:
        notes.append(f"at {tied} tap points, tokens that hang on a tie of the router are left out")
    return notes + _rows_seen(search.evidence.trace) + _skipped(search.evidence.trace)


# --- from outputs alone ---


def of_outputs(found: OutputsFound, trace: Trace) -> Diagnosis:
    """Of a search in one array of outputs of a trace."""
    search, config, tap = found.search, trace.config, found.search.target.tap
    report = _whole(search, trace.producer, len(trace.tokens), len(names(config)))
    (row,) = report.rows
    dtypes = ("float64", trace.dtype_of(tap))
    row = replace(row, shape=trace.shape_of(tap), dtypes=dtypes, extra=found.extra)
    missing = tuple(name for name in names(config) if name not in trace)
    notes = (*report.notes, *found.remarks, *_rows_seen(trace), *_skipped(trace))
    return replace(report, rows=(row,), missing=missing, notes=notes, mistakes=found.mistakes)


def of_observation(search: WholeModels, observation: LogprobObservation, taps: int) -> Diagnosis:
    """Of a search in log-probabilities; ``taps``: number of tap points of the model."""
    report = _whole(search, observation.producer, len(observation.tokens), taps)
    (row,) = report.rows
    row = replace(row, shape=search.target.observed.shape, dtypes=("float64", "decimal"))
    count = int(np.isfinite(observation.values).sum())
    notes = (
        f"{count} log-probabilities at {row.shape[0]} of {len(observation.tokens)} positions, in "
        "nats; no stage of the model is seen",
        *observation.left_out,
    )
    return replace(report, rows=(row,), notes=(*report.notes, *notes))


def _whole(search: WholeModels, producer: str, tokens: int, taps: int) -> Diagnosis:
    spec, best = search.specification, search.best
    wrong = spec.excess > 1
    typical = float(np.median(spec.error))
    note = f"off by {in_words(spec.excess)}" if wrong else ""
    lost = not np.isfinite(search.target.observed).any() and not spec.broken
    if lost:
        note = ALL_LOST
    if spec.broken:
        note = f"NaN or infinite in one of the two at {spec.broken} of {len(spec.error)} positions"
    if wrong and best is not None:
        part = "" if best.excess <= 1 else "in part "
        note += f"; {part}explained by {best.title}"
    left = wrong and (best is None or best.excess > 1) and not search.stopped
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
        causes=() if best is None else tuple(_cause(best, c) for c in best.candidates),
        unexplained=(_unexplained(search),) if left else (),
    )


def _verdict(broken: bool, lost: bool, wrong: bool) -> Verdict:
    if broken:
        return "nan"
    if lost:
        return "unjudged"
    return "diverges" if wrong else "ok"


def _unexplained(search: WholeModels) -> Unexplained:
    tap = search.target.tap
    if (best := search.best) is not None:  # and what it leaves
        where = tokens_of(best.error > best.typical)
        return Unexplained(tap, (tap,), best.excess, where, hints=(BRING,))
    spec = search.specification
    rows = spec.error > spec.typical
    nearest = search.nearest()
    return Unexplained(
        tap=tap,
        taps=(tap,),
        error=spec.excess,
        where=tokens_of(rows),
        nearest=nearest.title if nearest else None,
        remaining=nearest.excess if nearest else None,
        hints=(BRING,),
    )


# --- both ---


def _bugs(found: Iterable[Fit[Candidate]]) -> Iterator[tuple[Fit[Candidate], Candidate]]:
    """Each bug of some fits, with its fit."""
    return ((fit, candidate) for fit in found for candidate in fit.candidates)


def _cause(fit: Fit[Candidate], candidate: Candidate) -> Cause:
    blocks, sites = candidate.blocks, candidate.sites
    return Cause.of(
        fit,
        candidate.mutant,
        variant=candidate.label,
        blocks=None if blocks is None else tuple(sorted(blocks)),
        sites=None if sites is None else tuple(sorted(sites)),
        value=candidate.value,
        interval=None if candidate.value is None else fit.interval,
    )


def _rows_seen(trace: Trace) -> list[str]:
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


def _skipped(trace: Trace) -> list[str]:
    """Return the note on arrays without a tap point: their number and the first ones."""
    if not trace.skipped:
        return []
    count, first = len(trace.skipped), trace.skipped[0]
    more = f", and {count - 1} more" if count > 1 else ""
    return [f"left out, see the trace's skipped: {first.name} ({first.why}){more}"]
