"""The clamped SwiGLU as a function of gate and up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptoss_ref.layers.swiglu import swiglu as activate
from gptoss_ref.numerics import FLOAT64
from gptoss_ref.viz.figure import INK, SOFT, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.config import ModelConfig


@drawing
def swiglu(config: ModelConfig) -> Figure:
    """The activation of :func:`gptoss_ref.layers.swiglu.swiglu` and its clamps; no units.

    Left: against the gate with up = 0, with and without the clamp. Right: against gate and up. The
    gate is clamped from above only, up on both sides: beyond the dashed lines the value is
    constant in the clamped variable.
    """
    limit, alpha = config.swiglu_limit, config.swiglu_alpha
    reach = np.linspace(-1.6 * limit, 1.6 * limit, 321)

    def value(gate: np.ndarray, up: np.ndarray, bound: float) -> np.ndarray:
        pairs = np.stack(np.broadcast_arrays(gate, up), -1)  # (…, 2)
        return activate(pairs, alpha, bound, policy=FLOAT64)[..., 0]

    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    zero = np.zeros_like(reach)
    left.plot(reach, value(reach, zero, np.inf), "--", color=SOFT, label="without the clamp")
    left.plot(reach, value(reach, zero, limit), color=INK, linewidth=2, label="clamped")
    left.axvline(limit, color="black", linestyle=":", linewidth=0.8)
    left.text(limit, left.get_ylim()[0], f" {limit:g}", va="bottom")
    left.legend(frameon=False)
    left.set(xlabel="gate (up = 0)", ylabel="activation", title=f"gate · sigmoid({alpha:g} · gate)")
    surface = value(reach[None, :], reach[:, None], limit)  # (up, gate)
    # orange is negative, purple positive; in grey the dashed lines are the negative ones
    top = float(np.abs(surface).max())
    filled = right.contourf(reach, reach, surface, levels=14, cmap="PuOr", vmin=-top, vmax=top)
    lines = right.contour(reach, reach, surface, levels=filled.levels, colors="k", linewidths=0.4)
    # if the gate is clamped, the activation is linear in up
    places = [(1.3 * limit, level / limit - 1) for level in filled.levels if abs(level) < top]
    right.clabel(
        lines,
        fontsize=7,
        colors=["white" if level > 0.6 * top else "black" for level in lines.levels],
        manual=[(x, up) for x, up in places if abs(up) < limit],
    )
    right.axvline(limit, color="black", linestyle="--", linewidth=1)
    for up in (-limit, limit):
        right.axhline(up, color="black", linestyle="--", linewidth=1)
    right.set(xlabel="gate", ylabel="up", title="times (up + 1); dashed: the clamps")
    figure.colorbar(filled, ax=right, label="activation")
    result: Figure = figure
    return result
