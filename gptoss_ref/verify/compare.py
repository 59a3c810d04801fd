"""Comparison of two traces of the same model and prompt, tap point by tap point.

The *first divergence* is the first tap point whose error exceeds what rounding explains. This
allowance is measured with the model (:mod:`~gptoss_ref.verify.noise.noise_floor`) or, if there is
no model, estimated from tap point to tap point (:mod:`~gptoss_ref.verify.noise.error_bounds`).

If a token was sent to other experts within the margin of rounding, this is a tie. With a model, the
later tap points are compared with a run of the model on the other's routes. Without one, everything
that depends on the tie is set aside: that token in its block, and every later token after the next
attention.

Equal models are equal: heads and experts in another order are compared in the reference's order
(:mod:`~gptoss_ref.verify.noise.renumbered`), and logits without the constant of each row. A
divergence that a mistake in the recording explains is reported with its sentence
(:mod:`~gptoss_ref.verify.search.mistakes`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.model import Model
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.gradients.search import compared
from gptoss_ref.verify.noise.noise_floor import NoiseFloors, made_by, measure_noise_floors
from gptoss_ref.verify.noise.renumbered import in_order_of
from gptoss_ref.verify.noise.rounding import FINEST_FIRST, known
from gptoss_ref.verify.noise.rounding_shown import (
    by_errors_in_words,
    coarser_than,
    grid_under_constant,
    shown_by_errors,
)
from gptoss_ref.verify.noise.tap_check import replay
from gptoss_ref.verify.progress import Progress, Steps, unwatched
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.report.comparison import Comparison
from gptoss_ref.verify.report.report import Report
from gptoss_ref.verify.thresholds import COARSER_EARLY, COARSER_SMALL


def compare(
    ref: Trace,
    other: Trace,
    *,
    model: Model | None = None,
    yardstick: NoiseFloors | Mapping[str, float] | None = None,
    rounding: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge ``other`` by ``ref``.

    Args:
        ref: of the reference, best in float64.
        other: of the implementation in question.
        model: the model that made ``ref``, to measure the noise floor with. A trace that this
            process has just made knows its own model.
        yardstick: measured before, or the relative L2 error allowed at tap points by name.
        rounding: of ``other``, one of float64, float32, bfloat16 and float16; None: as its numbers
            show.
        progress: called with steps done, steps in all as far as known, and what is being done.

    Raises:
        TraceError: the traces are not of the same model and prompt, have no tap point in common, or
            do not show their rounding.
    """
    check_comparable(ref, other)
    stated = rounding is not None
    rounding = _coarser(ref, rounding or other.dtype_name)
    if ref.gradients and other.gradients:
        with_model = model or ref.model
        forward = compare(
            ref.forward(),
            other.forward(),
            model=model,
            yardstick=yardstick,
            rounding=rounding,
            progress=progress,
        )
        return compared(forward, ref, other, with_model, rounding)
    ref, other = ref.forward(), other.forward()
    if model is not None and not made_by(model, ref):
        raise TraceError("REF is not a trace of this model: its configuration or embeddings differ")
    model = model or ref.model
    common = [name for name in ref if name in other]
    if not common:
        raise TraceError(
            "the traces have no tap point in common: "
            f"REF holds {_some(ref)}, OTHER holds {_some(other)}"
        )
    other, notes = in_order_of(ref, other)
    steps = Steps(progress or unwatched)
    if yardstick is not None or model is None:
        given = ref, other, model, yardstick, rounding, common, notes
        return Comparison(*given, steps=steps).report()
    if not stated and set(common) == {"logits"}:
        grid = grid_under_constant(ref["logits"], other["logits"])
        rounding = grid if grid in coarser_than(rounding) else rounding

    def judged(rounding: str) -> Report:
        floors = measure_noise_floors(
            model, ref.tokens, rounding, wanted=common, routes=other, steps=steps
        )
        given = ref, other, model, floors, rounding, common, notes
        return Comparison(*given, steps=steps).report()

    report = judged(rounding)
    if not stated and _may_be_coarser(report):
        alone = replay(model.weights, other, SPECIFICATION, rounding)
        coarser = shown_by_errors(model.weights, other, rounding, alone)
        if coarser is not None:
            notes = [*notes, by_errors_in_words(rounding, coarser)]
            return judged(coarser)
    return report


def _may_be_coarser(report: Report) -> bool:
    """Return whether a rounding that the values do not show may explain a divergence."""
    first = report.first_divergence
    if first is None or first.verdict != "diverges" or not first.rel_l2 < COARSER_SMALL:
        return False
    return first.name in [row.name for row in report.rows[:COARSER_EARLY]]


def check_comparable(ref: Trace, other: Trace) -> None:
    """Raises TraceError unless both traces are of one architecture and one prompt."""
    if differences := ref.config.differences(other.config):
        raise TraceError(f"the traces are of different models: {'; '.join(differences)}")
    a, b = ref.tokens, other.tokens
    if len(a) != len(b):
        same = min(len(a), len(b))
        same = int(np.argmin(np.append(a[:same] == b[:same], False)))
        raise TraceError(
            f"the traces are of different prompts: REF has {len(a)} tokens, OTHER {len(b)} "
            f"(the first {same} are the same)"
        )
    if (a != b).any():
        at = int(np.argmax(a != b))
        raise TraceError(
            f"the traces are of different prompts: token {at} is {a[at]} in REF and {b[at]} in "
            "OTHER"
        )


def _coarser(ref: Trace, rounding: str | None) -> str:
    rounding = known(rounding)
    return max(rounding, ref.dtype_name or rounding, key=FINEST_FIRST.index)


def _some(trace: Trace) -> str:
    held = list(trace)
    return ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
