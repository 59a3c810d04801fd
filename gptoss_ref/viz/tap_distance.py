"""The error at every tap point of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.tracing.gradients import split
from gptoss_ref.viz.figure import INK, SOFT, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.verify.report.report import Report

MARKS = {
    "ok": ("o", INK), "diverges": ("X", "black"), "nan": ("P", "black"), "hidden": ("v", "black"),
    "follows": ("x", SOFT), "tie": ("^", INK), "rewritten": ("D", SOFT), "unjudged": (".", SOFT),
}  # fmt: skip
"""Marker and colour of every verdict."""


@drawing
def tap_errors(report: Report) -> Figure:
    """Relative L2 error of each tap point in order, with the error that rounding allows.

    Each verdict has its own marker, and the title names the first divergence.

    Args:
        report: from :func:`gptoss_ref.compare` or ``diagnose``.

    Raises:
        GptOssError: the report has no rows.
    """
    if not report.rows:
        raise GptOssError("the report has no rows: expected traces that share a tap point")
    error = np.array([row.rel_l2 for row in report.rows])
    allowed = np.array([row.allowed for row in report.rows])
    x = np.arange(len(error))
    drawable = np.concatenate([error, allowed])
    drawable = drawable[np.isfinite(drawable) & (drawable > 0)]
    zero = float(drawable.min()) / 10 if drawable.size else 1e-9  # where an error of 0 is drawn
    y = np.where(np.isfinite(error), np.maximum(error, zero), 10.0)
    figure = new_figure(11, 4.8)
    axes = figure.subplots()
    bound = np.where(allowed > 0, allowed, np.nan)
    axes.step(x, bound, color=SOFT, where="mid", linestyle="--", label="allowed by rounding")
    for verdict, (marker, colour) in MARKS.items():
        those = np.array([row.verdict == verdict for row in report.rows])
        if those.any():
            axes.plot(x[those], y[those], marker, color=colour, markersize=5, label=verdict)
    axes.set_yscale("log")
    blocks = [split(row.name)[0] for row in report.rows]
    starts = [i for i in range(len(blocks)) if i == 0 or blocks[i] != blocks[i - 1]]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="#dddddd", linewidth=0.8)
    starts = [i for i in starts if blocks[i] is not None]
    names = [f"block {blocks[i]}" for i in starts]
    axes.set_xticks(starts, labels=names, rotation=90 if len(starts) > 10 else 0, ha="left")
    first = report.first_divergence
    if first is not None:
        at = report.rows.index(first)
        axes.annotate(
            first.name, (at, y[at]), (12, -30), textcoords="offset points",
            arrowprops={"arrowstyle": "->"},
        )  # fmt: skip
    axes.set(xlabel="tap point, in order of computation")
    axes.set_ylabel(f"relative L2 error (fraction; 0 is drawn at {zero:.0e})")
    axes.set_title(report.outcome if first is None else f"First divergence: {first.name}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    result: Figure = figure
    return result
