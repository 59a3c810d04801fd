"""The norm of the residual stream, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptoss_ref.viz.figure import INK, SOFT, drawing, need, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.tracing.trace import Trace


@drawing
def residual_norms(trace: Trace) -> Figure:
    """L2 norm of the residual stream after the embedding and after each half of each block.

    It shows the median over tokens, the band of 5 to 95 per cent of them, and separately the first
    token, which often differs from the others. The scale is logarithmic, without units.

    Args:
        trace: holds ``embedding`` and ``block.*.{attn,mlp}.residual``, each (T, D).

    Raises:
        TraceError: a tap is missing.
    """
    blocks = range(trace.config.num_hidden_layers)
    taps = [
        "embedding",
        *(f"block.{n}.{half}.residual" for n in blocks for half in ("attn", "mlp")),
    ]
    need(trace, taps, ["embedding", "*.residual"])
    norms = np.stack(
        [np.linalg.norm(np.asarray(trace[name], np.float64), axis=1) for name in taps]
    )  # (taps, T)
    x = np.arange(len(taps)) / 2
    figure = new_figure(9, 4.6)
    axes = figure.subplots()
    low, middle, high = np.percentile(norms, [5, 50, 95], axis=1)
    axes.fill_between(x, low, high, color="#dddddd", label="5 to 95 % of tokens")
    axes.semilogy(x, middle, "-o", color=INK, markersize=4, label="median token")
    axes.semilogy(x, norms[:, 0], "--s", color=SOFT, markersize=4, label="first token")
    axes.set_xticks(range(len(blocks) + 1), labels=["embedding", *(f"after {n}" for n in blocks)])
    axes.tick_params(axis="x", rotation=90 if len(blocks) > 8 else 0)
    axes.set(xlabel="block (between the ticks: after its attention)", ylabel="L2 norm (no unit)")
    axes.set_title("Norm of the residual stream")
    axes.legend(frameon=False)
    result: Figure = figure
    return result
