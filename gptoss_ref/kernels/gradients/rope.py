"""Gradient of the rotary embedding; mirrors ``gradients/rope.py``.

The transpose of a rotation is the rotation by the opposite angle, with the same concentration: the
forward kernel with −sin. Error: three float32 roundings per value.
"""

from __future__ import annotations

from gptoss_ref.kernels.rope import rope as turn
from gptoss_ref.numerics import FLOAT32, Array, Policy


def rope(d_o: Array, cos: Array, sin: Array, *, policy: str | Policy = FLOAT32) -> Array:
    """Gradient (T, H, C) of the heads before the rotation, from ``d_o`` (T, H, C) after it.

    ``cos`` and ``sin`` (T, C/2) are the tables of :func:`gptoss_ref.kernels.rope_tables`.

    Raises:
        GptOssError: a policy other than float32, or tables whose shape does not match.
    """
    return turn(d_o, cos, -sin, policy=policy)
