"""Gradient of the rotary embedding; mirrors ``gradients/rope.py``.

The transpose of a turn is the turn by the opposite angle, stretch included: the forward kernel with
−sin. Error: three float32 roundings a value.
"""

from __future__ import annotations

from gptoss_ref.kernels.rope import rope as turn
from gptoss_ref.numerics import FLOAT32, Array, Policy


def rope(d_o: Array, cos: Array, sin: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Gradient (T, H, C) of the heads before the turn, from ``d_o`` (T, H, C) after it.

    ``cos`` and ``sin`` (T, C/2) are the tables of :func:`gptoss_ref.kernels.rope_tables`.

    Raises:
        GptOssError: another policy than float32, or tables that do not fit.
    """
    return turn(d_o, cos, -sin, policy=policy)
