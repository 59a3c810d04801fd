"""diagnose, where only a model's outputs are known: logits, or some log-probabilities."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, FLOAT64, Array
from gptoss_ref.tracing.taps import names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.localise import tokens_of
from gptoss_ref.verify.noise.metrics import logit_figures, shift_of
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.rounding_shown import (
    by_errors_in_words,
    coarser_than,
    grid_under_constant,
)
from gptoss_ref.verify.observe.observation import LogprobObservation, log_probabilities
from gptoss_ref.verify.progress import Steps
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.report.diagnosis import Cause, Diagnosis, Unexplained
from gptoss_ref.verify.report.report import ALL_LOST, Row, Verdict
from gptoss_ref.verify.search.end_to_end import Standing, Target, WholeModels
from gptoss_ref.verify.search.mistakes import (
    Mistake,
    in_front,
    in_front_sentence,
    mistakes,
    other_id_sentence,
)
from gptoss_ref.verify.thresholds import LISTED, TYPICAL, USUAL_ROWS

OUTPUTS = frozenset(("norm", "logits"))
"""Tap points behind all blocks."""

BRING = (
    "bring block.*.mlp.residual, the residual stream after every block, next: the first block that "
    "differs is the one with the bug; then all tap points of that block"
)


def diagnose_outputs(
    model: Model, trace: Trace, tap: str, rounding: str, steps: Steps, stated: bool = True
) -> Diagnosis:
    """One of :data:`OUTPUTS` of a trace that holds nothing else.

    Args:
        stated: whether somebody said what the rounding is; else the numbers may show a coarser one.
    """
    weights, config, tokens = model.weights, model.config, trace.tokens
    seen = trace.observed(tap)
    observed = np.asarray(trace[tap], np.float64)[seen]
    (whole,) = predict(weights, config, SPECIFICATION, tokens, {}, [tap], FLOAT64).values()
    exact = whole[seen]
    said: list[str] = []
    remarks: list[str] = []
    grid = grid_under_constant(exact, observed) if tap == "logits" and not stated else None
    if grid is not None and grid in coarser_than(rounding):
        remarks.append(
            f"the logits lie on the grid of {grid}, but for a constant a row: judged as {grid}"
        )
        rounding = grid
    search = _search_of(model, tokens, tap, observed, exact, seen, rounding, steps)
    if search.specification.excess > 1 and seen.all():
        found = _mistake(model, search, tokens, exact, observed)
        if found is not None:
            (remarks if found.harmless else said).append(found.sentence)
            if found.mended is None:
                search.stop()
            else:
                observed = found.mended
                search = _search_of(model, tokens, tap, observed, exact, seen, rounding, steps)
    coarser = None
    if not stated and not said:
        coarser = _coarser(search, model, tokens, tap, observed, exact, seen, steps)
    search.run(together=coarser is None)
    if coarser is not None and search.best is None:
        remarks.append(by_errors_in_words(rounding, coarser.rounding))
        search = coarser
        search.run()
    if tap == "logits" and search.specification.excess <= 1 and not said:
        shift = shift_of(lambda r: exact[r], lambda r: observed[r], *observed.shape)
        remark = shift.remark
        undone = any(sentence.startswith("These are") for sentence in remarks)
        remarks += [remark] if remark is not None and not undone else []
    report = _report(search, trace.producer, len(tokens), len(names(config)))
    extra = {}
    if tap == "logits":
        extra = logit_figures(lambda r: exact[r], lambda r: observed[r], *observed.shape)
    (row,) = report.rows
    row = replace(
        row, shape=trace.shape_of(tap), dtypes=("float64", trace.dtype_of(tap)), extra=extra
    )
    missing = tuple(name for name in names(config) if name not in trace)
    notes = (*report.notes, *remarks, *rows_in_words(trace), *skipped_in_words(trace))
    return replace(report, rows=(row,), missing=missing, notes=notes, mistakes=tuple(said))


def _coarser(
    search: WholeModels,
    model: Model,
    tokens: Array,
    tap: str,
    observed: Array,
    exact: Array,
    seen: Array,
    steps: Steps,
) -> WholeModels | None:
    """The search under a coarser rounding that explains the outputs, if one does."""
    if not 1 < search.specification.excess < math.inf:
        return None
    for rounding in coarser_than(search.rounding):
        found = _search_of(model, tokens, tap, observed, exact, seen, rounding, steps)
        usual = float(np.median(found.specification.error)) / found.specification.typical
        if found.specification.excess <= 1 and usual >= TYPICAL / USUAL_ROWS:
            return found
    return None


def _search_of(
    model: Model,
    tokens: Array,
    tap: str,
    observed: Array,
    exact: Array,
    seen: Array,
    rounding: str,
    steps: Steps,
) -> WholeModels:
    """The search in the rows ``seen`` (T,) of one array of outputs (T, D) or (T, V)."""
    floor = UNITS[rounding] / 8
    if tap == "logits":  # modulo a constant a row
        grown, usual = (_size(x) / max(_size(_centred(x)), 1e-300) for x in (observed, exact))
        floor *= 8 * grown if grown > 2 * usual > 0 else 1
    form = _centred if tap == "logits" else _as_float64
    see = form if seen.all() else lambda values: form(values[seen])
    target = Target(tap, see, form(observed), True, floor)
    return WholeModels(model.weights, model.config, tokens, target, rounding, steps)


def _size(x: Array) -> float:
    return float(np.linalg.norm(np.where(np.isfinite(x), x, 0)))


def _as_float64(values: Array) -> Array:
    return np.asarray(values, np.float64)


def _centred(logits: Array) -> Array:
    """Logits (T, V) without the mean of each row: a constant there changes no probability."""
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(wide)
        mean = np.where(finite, wide, 0).sum(1) / np.maximum(finite.sum(1), 1)
        centred: Array = wide - mean[:, None]
    return centred


def _mistake(
    model: Model, search: WholeModels, tokens: Array, exact: Array, observed: Array
) -> Mistake | None:
    """What was done to the outputs when they were recorded, if that explains them."""
    target = search.target
    for found in mistakes(target.tap, exact, observed):
        if found.certain or search.fits(exact, found.mended):
            return found
    for front in in_front(model.config, len(tokens)):
        longer = np.concatenate([front, tokens])
        if len(longer) <= model.config.max_position_embeddings:
            values = _outputs_of(model, longer, target.tap)
            if search.fits(values[len(front) :], observed):
                return Mistake(in_front_sentence(front), None)
    return _other_token(model, search, tokens, exact, observed)


def _outputs_of(model: Model, tokens: Array, tap: str) -> Array:
    """One array of outputs of a prompt (T,) by the specification in float32."""
    found = predict(model.weights, model.config, SPECIFICATION, tokens, {}, [tap], FLOAT32)
    return found[tap]


def _other_token(
    model: Model, search: WholeModels, tokens: Array, exact: Array, observed: Array
) -> Mistake | None:
    """One token that is another: all rows before it agree, and none from it on."""
    config = model.config
    wrong = ~search.near(exact, observed)
    at = int(np.argmax(wrong))
    if not wrong[at:].all() or config.vocab_size > LISTED:
        return None
    for i in range(config.vocab_size):
        other = np.array([*tokens[:at], i])
        values = _outputs_of(model, other, search.target.tap)
        if search.near(values[at:], observed[at : at + 1]).all():
            whole = np.array([*tokens[:at], i, *tokens[at + 1 :]])
            values = _outputs_of(model, whole, search.target.tap)
            if search.fits(values, observed):
                return Mistake(other_id_sentence(tokens, at, i), None)
    return None


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
    model: Model, observation: LogprobObservation, rounding: str, steps: Steps
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
    search = WholeModels(model.weights, model.config, observation.tokens, target, rounding, steps)
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
        unexplained=() if best or not wrong or search.stopped else (_unexplained(search),),
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
                alternatives=search.alternatives[mutant.name],
                confidence=1 / (1 + len(search.alternatives[mutant.name])),
                value=candidate.value,
                interval=None if candidate.value is None else search.interval,
            )
        )
    return tuple(found)


def _unexplained(search: WholeModels) -> Unexplained:
    spec, tap = search.specification, search.target.tap
    rows = spec.error > spec.typical
    nearest = next((s for s in search.ranked if s.score < spec.score), None)
    remaining = None if nearest is None else search.measured(nearest.candidates).excess
    nearer = nearest is not None and remaining is not None and remaining < spec.excess
    return Unexplained(
        tap=tap,
        taps=(tap,),
        error=spec.excess,
        where=tokens_of(rows),
        nearest=" and ".join(c.name for c in nearest.candidates) if nearest and nearer else None,
        remaining=remaining if nearer else None,
        hints=(BRING,),
    )
