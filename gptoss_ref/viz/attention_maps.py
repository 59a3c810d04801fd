"""Attention maps of the heads of a block, with the weight of each sink."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.viz.figure import drawing, ink, need, new_figure, pool, small_shows
from gptoss_ref.viz.labels import set_token_ticks, token_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.chat.tokenizer import Tokenizer
    from gptoss_ref.tracing.trace import Trace

PANELS = 8


@drawing
def attention(
    trace: Trace,
    block: int,
    heads: Iterable[int] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
) -> Figure:
    """Attention weights of a block, a map per head: queries down, keys across, the sink leftmost.

    A weight is a fraction of the query's attention; a row sums to 1 with its sink. Hatched keys are
    masked: later than the query, or out of its window. Maps of more than 600 tokens show the
    largest weight of each square. The shade is proportional to the square root of the weight.

    Args:
        trace: holds ``block.{n}.attn.weights`` (H, T, S).
        heads: which query heads; None: all, or the first 8 if there are more.
        tokenizer: for labels, if the trace has no model.

    Raises:
        TraceError: the tap is missing, or there is no such block or head.
    """
    config = trace.config
    if not 0 <= block < config.num_hidden_layers:
        raise TraceError(f"there is no block {block}: expected 0 to {config.num_hidden_layers - 1}")
    name = f"block.{block}.attn.weights"
    need(trace, [name], [name])
    chosen = list(range(config.num_attention_heads))[:PANELS] if heads is None else list(heads)
    wrong = [head for head in chosen if not 0 <= head < config.num_attention_heads]
    if wrong or not chosen:
        raise TraceError(
            f"heads are {chosen}: expected some of 0 to {config.num_attention_heads - 1}"
        )
    window, count = config.window(block), len(trace.tokens)
    labels = token_labels(trace, tokenizer)
    at = np.arange(count, dtype=np.int32)
    distance = np.subtract.outer(at, at)  # (T, S)
    seen = (distance >= 0) & (distance < (window or count))
    visible, pooled = pool(pool(seen, 0, "largest")[0], 1, "largest")

    columns = min(len(chosen), 3)
    rows = -(-len(chosen) // columns)
    side = 3.4 if count <= 24 else 4.2
    figure = new_figure(columns * side + 0.8, rows * side + 0.5)
    grid = figure.subplots(
        rows, 2 * columns, squeeze=False, width_ratios=[1, 16] * columns, sharey=True
    )
    for spare in grid.flat[2 * len(chosen) :]:
        spare.remove()
    image: Any = None
    for place, head in enumerate(chosen):
        sink_axes, axes = grid.flat[2 * place], grid.flat[2 * place + 1]
        weights = trace.rows(name, slice(head, head + 1))[0]  # (T, S)
        sink = np.clip(1 - weights.sum(axis=1, keepdims=True, dtype=np.float64), 0, 1)  # (T, 1)
        shown = pool(pool(weights, 0, "largest")[0], 1, "largest")[0].astype(np.float64)
        style: dict[str, Any] = {"cmap": ink(), "norm": small_shows(), "interpolation": "nearest"}
        axes.patch.set(facecolor="white", hatch="////", edgecolor="#bbbbbb")
        image = axes.imshow(np.ma.masked_where(~visible, shown), aspect="auto", **style)
        sink_axes.imshow(pool(sink, 0, "mean")[0], aspect="auto", **style)
        axes.set_title(f"head {head} · sink takes {sink.mean():.0%}")
        sink_axes.set_xticks([0], labels=["sink"], rotation=90, fontsize=7)
        set_token_ticks(axes.xaxis, labels, pooled)
        axes.tick_params(axis="x", rotation=90)
        axes.tick_params(axis="y", left=False, labelleft=False)
        set_token_ticks(sink_axes.yaxis, labels, pooled)
        if place % columns == 0:
            sink_axes.set_ylabel("query token")
        axes.set_xlabel("key token")
    scale = "weight (fraction of the query's attention)"
    figure.colorbar(
        image, ax=grid[:, :], label=scale if pooled == 1 else f"largest {scale}", shrink=0.8
    )
    kind = "all earlier keys" if window is None else f"window of {window} keys"
    figure.suptitle(f"Attention of block {block}, {kind}")
    result: Figure = figure
    return result
