"""The loss curve of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.viz.figure import INK, SOFT, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTH = 0.1
"""Weight of the newest step in the moving mean."""


@drawing
def loss_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss by step: of each batch, their moving mean, and of the held-out examples.

    Args:
        history: that of a :class:`gptoss_ref.training.Run`.

    Raises:
        GptOssError: the history has no steps.
    """
    steps = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    if not steps:
        raise GptOssError("the history has no steps: expected the history of a training run")
    at, losses = (np.array(column, float) for column in zip(*steps, strict=True))
    mean = np.empty_like(losses)
    mean[0] = losses[0]
    for i in range(1, len(losses)):
        mean[i] = (1 - SMOOTH) * mean[i - 1] + SMOOTH * losses[i]
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    axes.plot(at, losses, ".", color=SOFT, markersize=3, label="each batch")
    axes.plot(at, mean, "-", color=INK, label="moving mean")
    tests = [(e["step"], e["held_out_loss"]) for e in history if "held_out_loss" in e]
    if tests:
        axes.plot(*zip(*tests, strict=True), "D--", color="black", markersize=4, label="held out")
    axes.set(xlabel="step", ylabel="loss (nats a target)", ylim=(0, None))
    axes.legend(frameon=False)
    return figure  # type: ignore[no-any-return]
