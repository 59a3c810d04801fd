"""Common parts of all figures: the import of matplotlib, the style, and the check of taps."""

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
"""Largest number of cells along an axis of a map; more are pooled."""

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
    """Runs ``function`` with matplotlib's defaults and STYLE; GptOssError without matplotlib."""

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
    """A Figure of ``width`` by ``height`` inches that a notebook shows, without a window."""
    from gptoss_ref.viz.canvas import Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def ink() -> Any:
    """The colour map of amounts: one hue, from nearly white (0) to dark, also in grey print."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ink", ["#e9eff8", "#a9c1e2", "#4f77b0", "#00224e"])


def small_shows() -> Any:
    """The colour scale of weights, 0 to 1: proportional to the square root, as in the inspector."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 1)


def need(trace: Trace, names: Sequence[str], patterns: Sequence[str]) -> None:
    """Raises TraceError, with the call that records them, if the trace lacks one of these taps."""
    missing = [name for name in names if name not in trace]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise TraceError(
            f"this trace lacks {', '.join(missing[:3])}{more}: record it with "
            f"gr.trace(model, tokens, taps={list(patterns)!r})"
        )


def pool(values: Array, axis: int, how: Literal["largest", "mean"]) -> tuple[Array, int]:
    """``values`` with groups along ``axis`` joined into at most CELLS cells, and the group size.

    The last group may be smaller.
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
