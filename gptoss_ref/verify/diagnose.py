"""diagnose: find the known bugs that explain another implementation's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import names, select, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.gradients.search import with_gradients
from gptoss_ref.verify.noise.rounding import known
from gptoss_ref.verify.noise.rounding_shown import (
    by_errors_in_words,
    roundings_in_words,
    shown_by_errors,
    stages,
)
from gptoss_ref.verify.observe.adapters import from_arrays, read
from gptoss_ref.verify.observe.adapters.arrays import prompt_ids
from gptoss_ref.verify.observe.observation import LogprobObservation
from gptoss_ref.verify.progress import Progress, Steps, unwatched
from gptoss_ref.verify.report.build import of_observation, of_outputs, of_stages
from gptoss_ref.verify.report.diagnosis import Diagnosis
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.search.outputs import OUTPUTS, search_observation, search_outputs
from gptoss_ref.verify.search.per_tap import Search
from gptoss_ref.verify.thresholds import COARSER_KINDS


def diagnose(
    model: Model,
    other: Trace | LogprobObservation | Mapping[str, Any] | str | Path,
    *,
    tokens: Iterable[int] | Array | None = None,
    rounding: str | None = None,
    taps: str | Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    progress: Progress | None = None,
    early: Callable[[Diagnosis], None] | None = None,
) -> Diagnosis:
    """Judge ``other`` stage by stage, from its own numbers, and name the bugs that explain it.

    Args:
        model: the same architecture and weights; only its weights are used, in float64 and in the
            other's rounding.
        other: a trace, its file, or arrays under any names (see
            :func:`gptoss_ref.verify.observe.adapters.from_arrays`), with any number of tap points;
            or the log-probabilities of a server.
        tokens: (T,), for arrays without tokens of their own; if ``other`` has tokens, they must be
            equal.
        rounding: of ``other``, one of float64, float32, bfloat16 and float16; None: the one that
            its numbers show, or that an observation states.
        taps: shell patterns of the tap points to judge; None: all that ``other`` has.
        layers: numbers of the blocks to judge; tap points outside the blocks are then left out.
        progress: called with the steps done, the known total, and the current work.
        early: called with a diagnosis of the first block alone, before the other blocks are judged,
            if the first block is wrong.

    Raises:
        TraceError: no tap points; no tokens, or different ones; another architecture; or a rounding
            that is unknown or cannot be determined.
    """
    steps = Steps(progress or unwatched)
    if isinstance(other, LogprobObservation):
        whole = search_observation(model, other, known(rounding or other.rounding), steps)
        found = of_observation(whole, other, len(names(model.config)))
        steps.finish()
        return found
    trace = _as_trace(model, other, tokens)
    stated = rounding is not None
    rounding = known(rounding or trace.dtype_name or _of_nothing(trace))
    if trace.gradients:
        forward = trace.forward()
        if len(forward):
            found = diagnose(model, forward, rounding=rounding, progress=progress)
        else:
            found = of_stages(Search(Evidence(model.weights, forward, rounding, steps)))
        return with_gradients(found, model, trace, rounding)
    judged = _judged(trace, taps, layers)
    if early is not None:
        _begin(model, trace, rounding, steps, early, judged)
    if judged is None and OUTPUTS.issuperset(trace):
        found = _of_outputs(model, trace, rounding, steps, stated)
    else:
        found = of_stages(_searched(model, trace, rounding, steps, judged, stated))
    steps.finish()
    return found


def _searched(
    model: Model,
    trace: Trace,
    rounding: str,
    steps: Steps,
    judged: list[str] | None,
    stated: bool,
) -> Search:
    """Search a trace; if its rounding was not stated, with the one that its errors show."""
    search = Search(Evidence(model.weights, trace, rounding, steps, judged))
    first = search.evidence.specification.values()
    coarser = None
    if not stated and stages(first) >= COARSER_KINDS:
        coarser = shown_by_errors(model.weights, trace, rounding, first)
    if coarser is None:
        search.run()
        if not stated and search.unknown and not search.found and not search.recording.mistakes:
            coarser = shown_by_errors(model.weights, trace, rounding, first)
    if coarser is None:
        search.recording.remarks += [] if stated else roundings_in_words(trace, rounding)
        return search
    search = Search(Evidence(model.weights, trace, coarser, steps, judged))
    search.run()
    search.recording.remarks.append(by_errors_in_words(rounding, coarser))
    return search


def _of_nothing(trace: Trace) -> str | None:
    """Return a rounding for a trace with an array that was never written, if nothing shows one."""
    return None if all(np.any(trace[tap]) for tap in trace) else "float32"


def _begin(
    model: Model,
    trace: Trace,
    rounding: str,
    steps: Steps,
    early: Callable[[Diagnosis], None],
    judged: Iterable[str] | None,
) -> None:
    """Diagnose what is judged of the first block alone, and say so if something is wrong."""
    asked = trace if judged is None else judged
    first = [tap for tap in asked if split(tap)[0] == 0 or tap == "embedding"]
    if first and len(first) < len(list(asked)):
        search = Search(Evidence(model.weights, trace, rounding, steps, first))
        search.run(hidden=False)
        if any(local.excess > 1 for local in search.evidence.specification.values()):
            early(of_stages(search))


def _judged(
    trace: Trace, taps: str | Iterable[str] | None, layers: Iterable[int] | None
) -> list[str] | None:
    """Return the tap points to judge; None: all. TraceError if there are none."""
    if taps is None and layers is None:
        return None
    chosen = select("*" if taps is None else taps, trace.config)
    blocks = None if layers is None else set(layers)
    held = [tap for tap in chosen if tap in trace and (blocks is None or split(tap)[0] in blocks)]
    if not held:
        raise TraceError("the trace holds none of the tap points that are to be judged")
    return held


def _of_outputs(model: Model, trace: Trace, rounding: str, steps: Steps, stated: bool) -> Diagnosis:
    """Search whole models; if the input of the logits is known, also that stage alone.

    If a rewriting changes both, only the logits can be compared with whole models.
    """
    if len(trace) == 1:
        (tap,) = trace
        return of_outputs(search_outputs(model, trace, tap, rounding, steps, stated), trace)
    search = Search(Evidence(model.weights, trace, rounding, steps, ["logits"]))
    search.run()
    local = of_stages(search)
    if local.rewritings and local.ok:
        found = search_outputs(model, trace, "logits", rounding, steps, stated)
        return replace(of_outputs(found, trace), rewritings=local.rewritings)
    whole = of_outputs(search_outputs(model, trace, "norm", rounding, steps, stated), trace)
    return replace(
        whole,
        rows=(*whole.rows, *local.rows),
        notes=(*whole.notes, "the logits are judged by themselves, from the norm before them"),
        causes=(*whole.causes, *local.causes),
        unexplained=(*whole.unexplained, *local.unexplained),
    )


def _as_trace(
    model: Model,
    other: Trace | Mapping[str, Any] | str | Path,
    tokens: Iterable[int] | Array | None,
) -> Trace:
    ids = None if tokens is None else prompt_ids(tokens)
    source = other if isinstance(other, str | Path) else "the trace"
    if isinstance(other, str | Path):
        other = read(other, tokens=ids, config=model.config)
    elif not isinstance(other, Trace):
        if ids is None:
            raise TraceError("arrays without a prompt: expected tokens=, the ids they belong to")
        other = from_arrays(other, ids, model.config)
    if ids is not None and not np.array_equal(ids, other.tokens):
        raise TraceError(
            f"{source}: its {len(other.tokens)} tokens differ from the {len(ids)} given ones"
        )
    if differences := model.config.differences(other.config):
        raise TraceError(f"the trace is of another model than this one: {'; '.join(differences)}")
    if not len(other):
        raise TraceError("the trace holds no tap points: nothing to judge")
    return other
