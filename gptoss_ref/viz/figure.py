"""What all figures share: matplotlib when it is there, one look, taps checked before drawing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import numpy as np

from gptoss_ref._extras import install_line
from gptoss_ref.errors import GptOssError, TraceError
from gptoss_ref.numerics import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.tracing.trace import Trace

P = ParamSpec("P")

INK, SOFT = "#00224e", "#6b6b6b"
CELLS = 600
"""Cells along an axis of a map: more are pooled, as pixels would be anyway."""

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.4,
    "figure.dpi": 100.0,
}


def drawing(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Runs ``function`` under matplotlib's defaults and STYLE; a clear error without matplotlib."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        try:
            import matplotlib
        except ImportError:
            raise GptOssError(
                f"figures need matplotlib, which is not installed: {install_line('viz')}"
            ) from None
        defaults: dict[str, Any] = {
            key: value
            for key, value in matplotlib.rcParamsDefault.items()
            if not key.startswith(("backend", "interactive", "toolbar"))
        }
        settings: Any = {**defaults, **STYLE}
        with matplotlib.rc_context(settings):
            return function(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Any:
    """A Figure of so many inches that no window manager knows and a notebook shows."""
    from gptoss_ref.viz.canvas import Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def ink() -> Any:
    """The colour map of amounts: of one hue, from nearly paper to ink, so that dark is much in
    colour, in grey and to every eye, and 0 can still be told from what is blank."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ink", ["#e9eff8", "#a9c1e2", "#4f77b0", "#00224e"])


def small_shows() -> Any:
    """The scale of weights, 0 to 1: shade grows with the square root, as in the inspector."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 1)


def need(trace: Trace, names: Sequence[str], patterns: Sequence[str]) -> None:
    """Raises TraceError, saying how to record them, unless the trace holds all these taps."""
    missing = [name for name in names if name not in trace]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise TraceError(
            f"this trace lacks {', '.join(missing[:3])}{more}: record it with "
            f"gr.trace(model, tokens, taps={list(patterns)!r})"
        )


def pool(values: Array, axis: int, how: Literal["largest", "mean"]) -> tuple[Array, int]:
    """``values`` with runs along ``axis`` joined into at most CELLS, and a run's length.

    The last run may be shorter.
    """
    count = values.shape[axis]
    size = -(-count // CELLS)
    if size <= 1:
        return values, 1
    cuts = np.arange(0, count, size)
    if how == "largest":
        return np.maximum.reduceat(values, cuts, axis=axis), size
    lengths = np.diff(cuts, append=count).reshape(-1, *[1] * (values.ndim - 1 - axis % values.ndim))
    return np.add.reduceat(values, cuts, axis=axis) / lengths, size
