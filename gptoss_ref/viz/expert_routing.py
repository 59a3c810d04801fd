"""The experts of each token, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptoss_ref.viz.figure import INK, SOFT, drawing, ink, need, new_figure, pool
from gptoss_ref.viz.labels import set_token_ticks, token_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.chat.tokenizer import Tokenizer
    from gptoss_ref.tracing.trace import Trace


@drawing
def routing(trace: Trace, *, tokenizer: Tokenizer | None = None) -> Figure:
    """Router weights by token and expert, and each expert's share of the tokens; a panel per block.

    Left: the weight of every chosen expert (0 to 1; the weights of a token sum to 1); other experts
    are white. Right: the fraction of tokens that chose the expert, and the even share A / E as a
    dashed line. If there are more than 600 tokens, neighbours are averaged.

    Args:
        trace: holds ``block.*.mlp.expert_indices`` and ``.expert_weights`` (T, A) of every block.

    Raises:
        TraceError: a tap is missing.
    """
    config, count = trace.config, len(trace.tokens)
    blocks = range(config.num_hidden_layers)
    need(
        trace,
        [f"block.{n}.mlp.expert_{kind}" for n in blocks for kind in ("indices", "weights")],
        ["*.expert_indices", "*.expert_weights"],
    )
    figure = new_figure(11, 1.7 * len(blocks) + 1.2)
    grid = figure.subplots(
        len(blocks), 2, squeeze=False, width_ratios=[5, 1], sharey=True, sharex="col"
    )
    even = config.experts_per_token / config.num_experts
    for n in blocks:
        indices = trace[f"block.{n}.mlp.expert_indices"]  # (T, A)
        weights = np.zeros((count, config.num_experts))
        np.put_along_axis(weights, indices, trace[f"block.{n}.mlp.expert_weights"], axis=1)
        load = np.bincount(indices.ravel(), minlength=config.num_experts) / count
        shown, pooled = pool(weights.T, 1, "mean")  # (E, T)
        axes, bars = grid[n]
        image = axes.imshow(
            np.ma.masked_equal(shown, 0),
            aspect="auto",
            cmap=ink(),
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        axes.set_ylabel(f"block {n}\nexpert")
        bars.barh(np.arange(config.num_experts), load, color=SOFT, height=0.8)
        bars.axvline(even, color=INK, linestyle="--", linewidth=1)
    set_token_ticks(grid[-1, 0].xaxis, token_labels(trace, tokenizer), pooled)
    grid[-1, 0].tick_params(axis="x", rotation=90)
    grid[-1, 0].set_xlabel("token" if pooled == 1 else f"token ({pooled} a cell, averaged)")
    grid[-1, 1].set_xlabel("fraction of tokens")
    grid[0, 1].set_title(f"dashed: even, {even:.2f}")
    figure.colorbar(image, ax=grid[:, :], label="router weight (fraction)", shrink=0.6)
    figure.suptitle(f"{config.experts_per_token} of {config.num_experts} experts per token")
    result: Figure = figure
    return result
