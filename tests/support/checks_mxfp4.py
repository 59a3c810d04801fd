"""Assertions on MXFP4 decoding and encoding, as functions of what is being tested."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.support.agreement import Array, Layer
from tests.support.strategies import mxfp4_values


def assert_identical(ours: Array, expected: Array) -> None:
    """Equal values, NaN for NaN, and equal signs of zero."""
    assert np.array_equal(ours, expected, equal_nan=True)
    zero = expected == 0
    assert np.array_equal(np.signbit(ours[zero]), np.signbit(expected[zero]))


def nearest_e2m1(x: Array) -> Array:
    """Codes of the nearest E2M1 values by trying all eight magnitudes; ties to the even code."""
    values = np.arange(8, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    distance = np.abs(np.minimum(np.abs(x), 6.0)[..., None] - values)
    best = distance == distance.min(-1, keepdims=True)
    even = best & (np.arange(8) % 2 == 0)
    codes = np.where(even.any(-1), even.argmax(-1), best.argmax(-1))
    return (codes + 8 * np.signbit(x)).astype(np.uint8)


def scale_exponents(largest: Array, rule: str) -> Array:
    """Exponents of the scale rules: floor (the MX specification's), ceil, even and fit."""
    tries = np.arange(-127, 128)
    powers = np.ldexp(1.0, tries)
    m = largest[..., None]
    if rule == "floor":  # the largest e with 4 * 2^e <= m
        fits = 4 * powers <= m
    elif rule == "ceil":  # the smallest e with m <= 4 * 2^e, so one above the largest with <
        fits = np.roll(4 * powers, 1) < m
        fits[..., 0] = True
    elif rule == "even":  # as floor, after rounding 1.75 and more up to the next power
        fits = 3.5 * powers <= m
    else:  # fit: the smallest e with m <= 6 * 2^e
        fits = np.roll(6 * powers, 1) < m
        fits[..., 0] = True
    return np.where(fits, tries, -127).max(-1)


def check_mxfp4_decode(decode: Layer) -> None:
    """Every byte under every scale, exactly, in float32 and float64."""
    scales = np.repeat(np.arange(256, dtype=np.uint8), 16)[:, None]
    blocks = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 1, 16), (256, 1, 1))
    expected = mxfp4_values(blocks, scales)
    assert expected.shape == (4096, 32)
    assert np.isnan(expected[255 * 16 :]).all()
    assert np.isfinite(expected[: 255 * 16]).all()
    ours = decode(blocks, scales, dtype=np.float64)
    assert ours.dtype == np.float64
    assert_identical(ours, expected)
    ours = decode(blocks, scales)
    assert ours.dtype == np.float32
    with np.errstate(over="ignore"):
        assert_identical(ours, expected.astype(np.float32))  # beyond 2^128 infinite


def check_mxfp4_encode(encode: Layer, x: Array, rule: str = "floor") -> None:
    """Scale by the rule from exact powers of two, codes by trying all of them."""
    blocks, scales = encode(x, rule=rule)
    assert blocks.dtype == scales.dtype == np.uint8
    assert blocks.shape == (*x.shape[:-1], x.shape[-1] // 32, 16)
    assert scales.shape == blocks.shape[:-1]
    groups = x.astype(np.float64).reshape(*x.shape[:-1], -1, 32)
    exponents = scale_exponents(np.abs(groups).max(-1), rule)
    assert np.array_equal(scales, exponents + 127)
    codes = nearest_e2m1(np.ldexp(groups, -exponents[..., None]))
    assert np.array_equal(blocks, codes[..., 0::2] | codes[..., 1::2] << 4)
