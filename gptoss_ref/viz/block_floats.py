"""MXFP4: the sixteen code values, and the quantisation error of a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.layers.mxfp4 import E2M1, decode, encode
from gptoss_ref.viz.figure import INK, SOFT, drawing, ink, new_figure
from gptoss_ref.weights import MXFP4_BLOCK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS_SHOWN = 1 << 15


@drawing
def mxfp4_code_points() -> Figure:
    """The 16 E2M1 values on a line, and the staircase of rounding to them.

    Values are in units of the block's scale; beyond ±6 they saturate. Source: OCP Microscaling
    Formats specification v1.0, section 5.3.
    """
    figure = new_figure(10, 5.6)
    line, stairs = figure.subplots(2, 1, height_ratios=[1, 2.2], sharex=True)
    line.axhline(0, color=SOFT, linewidth=0.8)
    for code, value in enumerate(E2M1):
        up = 1 if code < 8 else -1
        line.plot([value, value], [0, 0.5 * up], color=INK, linewidth=1)
        line.plot(value, 0.5 * up, "o" if up > 0 else "s", color=INK, markersize=4)
        line.text(value, 0.65 * up, f"{code:X}", ha="center", va="bottom" if up > 0 else "top")
    line.set(ylim=(-1.3, 1.3), yticks=[], title="Codes: 0 to 7 (circles), 8 to F with the sign bit")
    # The second value is 6, so that the scale is 1 for any first value.
    x = np.linspace(-7.5, 7.5, 1501)
    block = np.zeros((len(x), MXFP4_BLOCK))
    block[:, 0], block[:, 1] = x, 6
    rounded = decode(*encode(block), dtype=np.float64)[:, 0]
    stairs.plot(x, x, "--", color=SOFT, label="exact")
    stairs.step(x, rounded, color=INK, where="mid", label="rounded")
    stairs.set(xlabel="value (in units of the block's scale)", ylabel="stored (same units)")
    stairs.set_yticks([-6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6])
    stairs.set_yticks([-1.5, -0.5, 0.5, 1.5], minor=True)
    stairs.grid(axis="y", linewidth=0.4)
    stairs.legend(frameon=False)
    result: Figure = figure
    return result


@drawing
def mxfp4_error(matrix: Any) -> Figure:
    """The error of quantising ``matrix`` (…, M) to MXFP4; M is a multiple of 32, along the blocks.

    Left: the error of each value against the value, in units of its block's scale (rule ``floor``).
    Right: for each scale rule, the cumulative distribution of the blocks' relative error (L2). If
    there are more than 32,768 blocks, evenly spaced ones are used.

    Raises:
        GptOssError: a wrong shape, or values that are not finite.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim == 0 or values.size == 0 or values.shape[-1] % MXFP4_BLOCK:
        raise GptOssError(
            f"the matrix has shape {values.shape}: expected (…, M), M a multiple of {MXFP4_BLOCK}"
        )
    if not np.isfinite(values).all():
        raise GptOssError("the matrix holds NaN or infinite values: expected finite ones")
    blocks = values.reshape(-1, MXFP4_BLOCK)  # (N, 32)
    total = len(blocks)
    if total > BLOCKS_SHOWN:
        blocks = blocks[np.linspace(0, total - 1, BLOCKS_SHOWN).astype(int)]
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    norm = np.linalg.norm(blocks, axis=1)
    rules: tuple[tuple[Any, str], ...] = (
        ("floor", "-"),
        ("ceil", "--"),
        ("even", "-."),
        ("fit", ":"),
    )
    for rule, dashes in rules:
        codes, scales = encode(blocks, rule=rule)
        error = decode(codes, scales, dtype=np.float64) - blocks
        if rule == "floor":
            unit = np.ldexp(1.0, scales.astype(int) - 127)  # (N, 1)
            left.hexbin(
                (blocks / unit).ravel(), (error / unit).ravel(), bins="log", cmap=ink(), gridsize=90
            )
        relative = np.linalg.norm(error, axis=1)[norm > 0] / norm[norm > 0]
        mean = relative.mean() if relative.size else 0.0
        share = np.arange(1, len(relative) + 1) / max(1, len(relative))
        right.plot(np.sort(relative), share, dashes, color=INK, label=f"{rule}: mean {mean:.2%}")
    left.set(xlabel="value (units of the block's scale)", ylabel="stored − value (same units)")
    left.set_title("Error of each value; darker: more of them")
    right.set(xlabel="relative error of a block (L2)", ylabel="share of blocks (cumulative)")
    right.legend(frameon=False, title="scale rule")
    figure.suptitle(f"MXFP4 error, {len(blocks):,} of {total:,} blocks of {MXFP4_BLOCK}")
    result: Figure = figure
    return result
