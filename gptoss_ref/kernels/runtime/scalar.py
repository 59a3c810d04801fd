"""Functions of one value that LLVM vectorises: conversion, reinterpretation of bits, exponential.

Each intrinsic is one instruction or none. The pure Python function of the same name runs under
``NUMBA_DISABLE_JIT=1``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from gptoss_ref.kernels.runtime.jit import jit_inner

_MAGIC = np.float32(12582912.0)
"""1.5 · 2²³. Adding it to a float32 below 2²² rounds that number to an integer, in the low bits."""

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # 9 bits: n times this is exact for every exponent n
_LN2_LOW = np.float32(-2.12194440e-4)
EXP_COEFFICIENTS = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
"""Coefficients of r⁷ … r² in e^r, |r| ≤ ln 2 / 2, from Cephes' ``expf``."""
_SMALLEST = np.float32(-87.33654)  # exp of a smaller x is below the normal float32 numbers
_LARGEST = np.float32(88.72283)  # exp of a larger x overflows
_INFINITY = np.float32(np.inf)


def widen(value: Any) -> Any:
    """Convert a stored weight, bfloat16 bits (uint16) or a float, to float32."""
    if isinstance(value, np.uint16):
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return np.float32(value)


def float_bits(value: Any) -> Any:
    """Return the bits of a float32 as int32."""
    return np.float32(value).view(np.int32)


def bits_float(value: Any) -> Any:
    """Return the float32 that has these int32 bits."""
    return np.int32(value).view(np.float32)


if not config.DISABLE_JIT:

    @intrinsic
    def widen(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if value is types.uint16:
                wide = builder.zext(args[0], ir.IntType(32))
                return builder.bitcast(
                    builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType()
                )
            return context.cast(builder, args[0], value, types.float32)

        return types.float32(value), generate

    @intrinsic
    def float_bits(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], ir.IntType(32))

        return types.int32(types.float32), generate

    @intrinsic
    def bits_float(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], ir.FloatType())

        return types.float32(types.int32), generate


@jit_inner
def exp(x: Any) -> Any:
    """Return e^x of a float32, within 2e-7 relative; 0 below −87.3 and infinity above 88.7.

    There are no branches, so LLVM can vectorise a loop over it. It computes 2^n · e^r, |r| ≤ ln 2 /
    2: n is written into the exponent, and e^r is a polynomial (that of Cephes' ``expf``). A NaN
    gives a NaN.
    """
    clamped = _SMALLEST if x < _SMALLEST else x
    clamped = _LARGEST if clamped > _LARGEST else clamped
    shifted = np.float32(clamped * _LOG2E + _MAGIC)
    n = np.float32(shifted - _MAGIC)
    r = np.float32(np.float32(clamped - n * _LN2_HIGH) - n * _LN2_LOW)
    p = np.float32(EXP_COEFFICIENTS[0])
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[1]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[2]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[3]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[4]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[5]))
    p = np.float32(np.float32(p * r) * r + r) + np.float32(1.0)
    # 2^n as two factors: n may be 128, which a float32 exponent cannot hold
    half = np.int32(float_bits(shifted) - float_bits(_MAGIC)) >> np.int32(1)
    rest = np.int32(float_bits(shifted) - float_bits(_MAGIC)) - half
    y = np.float32(p * bits_float(np.int32((half + np.int32(127)) << np.int32(23))))
    y = np.float32(y * bits_float(np.int32((rest + np.int32(127)) << np.int32(23))))
    y = np.float32(0.0) if x < _SMALLEST else y
    return _INFINITY if x > _LARGEST else y
