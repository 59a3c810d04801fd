"""Frequencies of the rotary pairs, with and without YaRN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptoss_ref.layers.rope import yarn as frequencies
from gptoss_ref.viz.figure import INK, SOFT, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptoss_ref.config import ModelConfig


@drawing
def yarn(config: ModelConfig) -> Figure:
    """Frequencies and wavelengths of the rotary pairs, compared with the window and the contexts.

    Left: radians per position of each of the C/2 pairs. Right: tokens per turn (2π / frequency).
    Axes are logarithmic. Dashed: plain RoPE. Shaded: YaRN's ramp, the pairs between low and high.
    Source: :mod:`gptoss_ref.layers.rope`.
    """
    plain, _ = frequencies(config.head_dim, config.rope_theta)
    used, concentration = frequencies(
        config.head_dim,
        config.rope_theta,
        config.rope_scaling_factor,
        config.initial_context_length,
        config.rope_ntk_beta,
        config.rope_ntk_alpha,
    )
    pair = np.arange(len(plain))
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    for axes, invert in ((left, False), (right, True)):
        axes.semilogy(
            pair,
            2 * np.pi / plain if invert else plain,
            "--s",
            color=SOFT,
            markersize=3,
            label="plain RoPE",
        )
        axes.semilogy(
            pair,
            2 * np.pi / used if invert else used,
            "-o",
            color=INK,
            markersize=3.5,
            label="as used (YaRN)",
        )
        axes.set_xlabel("rotary pair i (channels i and i + C/2)")
        if config.rope_scaling_factor > 1:
            low, high = config.yarn_bounds()
            axes.axvspan(low, high, color="#e6e6e6", zorder=0)
            for x, text in (
                (low / 2, "kept"),
                ((low + high) / 2, "blended"),
                ((high + pair[-1]) / 2, f"÷ {config.rope_scaling_factor:g}"),
            ):
                axes.text(
                    x, 1.01, text, transform=axes.get_xaxis_transform(), ha="center", color=SOFT
                )
    left.set_ylabel("frequency (radians per position)")
    left.legend(frameon=False, loc="lower left")
    right.set_ylabel("wavelength (tokens per turn)")
    for length, text in (
        (config.sliding_window, "window"),
        (config.initial_context_length, "original context"),
        (config.max_position_embeddings, "full context"),
    ):
        right.axhline(length, color="black", linewidth=0.8, linestyle=":")
        right.text(pair[-1], length, f"{text} {length:,}", va="bottom", ha="right")
    figure.suptitle(f"Rotary pairs; cos and sin are multiplied by {concentration:.4f}")
    result: Figure = figure
    return result
