"""Numeric policies: where a computation rounds, in addition to the dtype of its arrays.

NumPy has no bfloat16. Throughout the package an array of dtype ``uint16`` holds bfloat16 *bits*:
the upper half of the float32 with the same value.

=========  ==========  ==========================================================================
policy     arithmetic  rounding
=========  ==========  ==========================================================================
float64    float64     only that of float64; bfloat16 and MXFP4 weights are exact in it
float32    float32     only that of float32
bfloat16   float32     to bfloat16 wherever the OpenAI torch reference stores a bfloat16 tensor
=========  ==========  ==========================================================================

The bfloat16 policy fixes these rounding points, but not the order of the sums between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gptoss_ref.errors import GptOssError

Array = NDArray[Any]
"""A NumPy array; docstrings give its axes and contents."""


def bfloat16_to_float(bits: Array, dtype: DTypeLike = np.float32) -> Array:
    """Exact values of bfloat16 bits (uint16, any shape) as float32 or float64.

    Raises:
        GptOssError: the array is not uint16, for instance because it holds values instead of bits.

    >>> bfloat16_to_float(np.array([0x3F80, 0xC040, 0x0001], np.uint16))
    array([ 1.0000e+00, -3.0000e+00,  9.1835e-41], dtype=float32)
    """
    if bits.dtype != np.uint16:
        raise GptOssError(
            f"bfloat16 bits of dtype {bits.dtype}: expected uint16, as float_to_bfloat16 returns"
        )
    wide = bits.astype(np.uint32)
    wide <<= 16
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return wide.view(np.float32).astype(dtype, copy=False)


def float_to_bfloat16(x: Array) -> NDArray[np.uint16]:
    """Nearest bfloat16 of each value, ties to even, as uint16 bits of the same shape.

    NaN stays a (quiet) NaN.
    A float64 input is rounded only once: the intermediate float32 is rounded to odd.

    >>> [hex(b) for b in float_to_bfloat16(np.array([1.0, 1.00390625, 1.01171875, np.inf]))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7f80']
    """
    x = np.asarray(x)
    if x.dtype == np.float64:
        with np.errstate(over="ignore", invalid="ignore"):
            single = x.astype(np.float32)
            overshoots = np.abs(single) > np.abs(x)
            toward_zero = np.where(overshoots, np.nextafter(single, np.float32(0)), single)
        inexact = (toward_zero != x) & ~np.isnan(x)
        bits = toward_zero.astype(np.float32).view(np.uint32) | inexact.astype(np.uint32)
    else:
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x0040
    result: NDArray[np.uint16] = np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)
    return result


def widen(weight: Array, dtype: DTypeLike) -> Array:
    """A stored weight of any shape as floats: bfloat16 bits are decoded, floats are cast."""
    if weight.dtype == np.uint16:
        return bfloat16_to_float(weight, dtype)
    return weight.astype(dtype, copy=False)


@dataclass(frozen=True)
class Policy:
    """Where a computation rounds.

    Attributes:
        name: ``"float64"``, ``"float32"`` or ``"bfloat16"``.
        dtype: of the arrays that hold values; bfloat16 values are in float32 arrays.
        angle_dtype: of rotary angles. The float32 policy uses float64, because an angle at position
            p has an error of up to p·2⁻²⁴ rad in float32. The bfloat16 policy uses float32, as the
            OpenAI reference does.
    """

    name: str
    dtype: np.dtype[Any]
    angle_dtype: np.dtype[Any]

    def round(self, x: Array) -> Array:
        """``x``, of any shape, in this policy: rounded to bfloat16, or cast to ``dtype``."""
        if self.name == "bfloat16":
            return bfloat16_to_float(float_to_bfloat16(x))
        return np.asarray(x, dtype=self.dtype)


FLOAT64 = Policy("float64", np.dtype(np.float64), np.dtype(np.float64))
FLOAT32 = Policy("float32", np.dtype(np.float32), np.dtype(np.float64))
BFLOAT16 = Policy("bfloat16", np.dtype(np.float32), np.dtype(np.float32))
POLICIES = {policy.name: policy for policy in (FLOAT64, FLOAT32, BFLOAT16)}

_SPELLINGS = {
    "bf16": "bfloat16",
    "double": "float64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "float": "float32",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "half": "float16",
}


def format_name(name: str) -> str:
    """This package's name of a number format.

    >>> format_name("bf16"), format_name("torch.float32"), format_name("FP64")
    ('bfloat16', 'float32', 'float64')
    """
    plain = name.lower().removeprefix("torch.")
    return _SPELLINGS.get(plain, plain)


def get_policy(policy: str | Policy) -> Policy:
    """The policy with that name.

    Raises:
        GptOssError: it is neither a policy nor the name of one.
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str) or format_name(policy) not in POLICIES:
        raise GptOssError(f"unknown policy {policy!r}: expected one of {', '.join(POLICIES)}")
    return POLICIES[format_name(policy)]
