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

from gptoss_ref.kernels.runtime.jit import jit_inner
from gptoss_ref.kernels.runtime.llvm_ir import call, f32, i32, instructions

MAGIC = np.float32(12582912.0)
"""1.5 · 2²³. Adding it to a float32 below 2²² rounds that number to an integer, in the low bits."""

LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # 9 bits: n times this is exact for every exponent n
LN2_LOW = np.float32(-2.12194440e-4)
EXP_COEFFICIENTS = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
"""Coefficients of r⁷ … r² in e^r, |r| ≤ ln 2 / 2, from Cephes' ``expf``."""
SMALLEST = np.float32(-87.33654)  # exp of a smaller x is below the normal float32 numbers
_LARGEST = np.float32(88.72283)  # exp of a larger x overflows
_INFINITY = np.float32(np.inf)


def widen(value: Any) -> Any:
    """Convert a stored weight, bfloat16 bits (uint16) or a float32, to float32."""
    if isinstance(value, np.uint16):
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return np.float32(value)


def float_bits(value: Any) -> Any:
    """Return the bits of a float32 as int32."""
    return np.float32(value).view(np.int32)


def bits_float(value: Any) -> Any:
    """Return the float32 that has these int32 bits."""
    return np.int32(value).view(np.float32)


def fused(a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c of float32, rounded once (in Python, once to float64 before that)."""
    return np.float32(np.float64(a) * b + c)


def _widen(builder: ir.IRBuilder, value: Any) -> Any:
    if value.type == f32:
        return value
    return builder.bitcast(builder.shl(builder.trunc(value, i32), i32(16)), f32)


if not config.DISABLE_JIT:
    widen = instructions(_widen, types.float32)
    float_bits = instructions(lambda builder, value: builder.bitcast(value, i32), types.int32)
    bits_float = instructions(
        lambda builder, value: builder.bitcast(builder.trunc(value, i32), f32), types.float32
    )
    fused = instructions(
        lambda builder, a, b, c: call(builder, "llvm.fma.f32", f32, a, b, c), types.float32
    )


@jit_inner
def exp(x: Any) -> Any:
    """Return e^x of a float32, within 2e-7 relative; 0 below −87.3 and infinity above 88.7.

    There are no branches, so LLVM can vectorise a loop over it. It computes 2^n · e^r, |r| ≤ ln 2 /
    2: n is written into the exponent, and e^r is a polynomial (that of Cephes' ``expf``). A NaN
    gives a NaN.
    """
    clamped = SMALLEST if x < SMALLEST else x
    clamped = _LARGEST if clamped > _LARGEST else clamped
    shifted = np.float32(clamped * LOG2E + MAGIC)
    n = np.float32(shifted - MAGIC)
    r = np.float32(np.float32(clamped - n * LN2_HIGH) - n * LN2_LOW)
    p = np.float32(EXP_COEFFICIENTS[0])
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[1]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[2]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[3]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[4]))
    p = np.float32(p * r + np.float32(EXP_COEFFICIENTS[5]))
    p = np.float32(np.float32(p * r) * r + r) + np.float32(1.0)
    # 2^n as two factors: n may be 128, which a float32 exponent cannot hold
    half = np.int32(float_bits(shifted) - float_bits(MAGIC)) >> np.int32(1)
    rest = np.int32(float_bits(shifted) - float_bits(MAGIC)) - half
    y = np.float32(p * bits_float(np.int32((half + np.int32(127)) << np.int32(23))))
    y = np.float32(y * bits_float(np.int32((rest + np.int32(127)) << np.int32(23))))
    y = np.float32(0.0) if x < SMALLEST else y
    return _INFINITY if x > _LARGEST else y
