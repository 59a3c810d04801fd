"""Policies and bfloat16 bits, against ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    bfloat16_to_float,
    float_to_bfloat16,
    format_name,
    get_policy,
    widen,
)

ALL_BITS = np.arange(2**16, dtype=np.uint16)


def test_every_bfloat16_widens_to_its_value() -> None:
    expected = ALL_BITS.view(ml_dtypes.bfloat16)
    for dtype in (np.float32, np.float64):
        ours = bfloat16_to_float(ALL_BITS, dtype)
        assert ours.dtype == dtype
        with np.errstate(invalid="ignore"):  # signalling NaN
            np.testing.assert_array_equal(ours, expected.astype(dtype))
        assert np.array_equal(np.signbit(ours), ALL_BITS >= 2**15)


def test_every_bfloat16_survives_the_round_trip() -> None:
    for dtype in (np.float32, np.float64):
        back = float_to_bfloat16(bfloat16_to_float(ALL_BITS, dtype))
        assert back.dtype == np.uint16
        number = ~np.isnan(bfloat16_to_float(ALL_BITS))
        assert np.array_equal(back[number], ALL_BITS[number])
        assert np.isnan(bfloat16_to_float(back[~number])).all()


def test_every_midpoint_rounds_to_the_even_neighbour() -> None:
    """Halfway between neighbours, one float32 step to either side, and one float64 step."""
    low = np.concatenate([ALL_BITS[:0x7F80], ALL_BITS[0x8000:0xFF80]])
    half = (low.astype(np.uint32) << 16) + 0x8000
    even = low + (low & 1)  # above the largest finite value the even neighbour is infinity
    assert np.array_equal(float_to_bfloat16(half.view(np.float32)), even)
    assert np.array_equal(float_to_bfloat16((half - 1).view(np.float32)), low)
    assert np.array_equal(float_to_bfloat16((half + 1).view(np.float32)), low + 1)
    wide = half.view(np.float32).astype(np.float64)
    assert np.array_equal(float_to_bfloat16(wide), even)
    # rounding float64 to float32 first would make both of these ties
    assert np.array_equal(float_to_bfloat16(np.nextafter(wide, 0)), low)
    assert np.array_equal(float_to_bfloat16(np.nextafter(wide, np.inf * np.sign(wide))), low + 1)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_float32_rounds_like_ml_dtypes(values: list[float]) -> None:
    x = np.array(values, np.float32)
    expected = x.astype(ml_dtypes.bfloat16)
    ours = float_to_bfloat16(x)
    nan = np.isnan(x)
    assert np.array_equal(ours[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(bfloat16_to_float(ours[nan])).all()


@given(st.floats(allow_nan=False))
def test_float64_rounds_to_the_nearest(value: float) -> None:
    """Neither neighbour is nearer, by exact arithmetic on Python fractions."""
    ours = int(float_to_bfloat16(np.array([value]))[0])
    result = float(bfloat16_to_float(np.array([ours], np.uint16), np.float64)[0])
    if np.isinf(result):
        # at or beyond the midpoint between the largest value and what would follow it
        assert abs(value) >= (2 - 2.0**-8) * 2.0**127
        assert np.sign(result) == np.sign(value)
        return
    from fractions import Fraction

    gap = abs(Fraction(value) - Fraction(result))
    for neighbour in (ours - 1, ours + 1):
        if neighbour & 0x7FFF < 0x7F80 and (neighbour ^ ours) & 0x8000 == 0 and neighbour >= 0:
            bits = np.array([neighbour], np.uint16)
            other = abs(Fraction(value) - Fraction(float(bfloat16_to_float(bits, np.float64)[0])))
            assert gap < other or (gap == other and ours % 2 == 0)


def test_every_nan_stays_a_quiet_nan() -> None:
    """Rounding would make infinity of the first one, and −0 of the second."""
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0x7FC00000, 0xFFC10000], np.uint32)
    expected = [0x7FC0, 0x7FFF, 0xFFC0, 0x7FC0, 0xFFC1]
    assert float_to_bfloat16(bits.view(np.float32)).tolist() == expected


def test_no_value_raises_a_floating_point_error() -> None:
    signalling = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
    x = np.concatenate([[1e300, -np.inf, 1e-320, np.nan], signalling])
    with np.errstate(all="raise", under="ignore"):
        assert float_to_bfloat16(x)[:3].tolist() == [0x7F80, 0xFF80, 0]
        assert np.isnan(bfloat16_to_float(np.array([0x7F81], np.uint16), np.float64)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.int64, np.bool_])
def test_other_dtypes_are_rounded_by_value(dtype: type) -> None:
    x = np.array([0, 1, 3, 257, 1027]).astype(dtype)
    expected = x.astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(float_to_bfloat16(x), expected)


def test_names_of_formats_in_other_spellings() -> None:
    for spelling, name in (
        ("torch.bfloat16", "bfloat16"), ("BF16", "bfloat16"), ("torch.half", "float16"),
        ("fp64", "float64"), ("Float32", "float32"), ("int8", "int8"),
    ):  # fmt: skip
        assert format_name(spelling) == name
    assert get_policy("torch.bf16") is BFLOAT16


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_policies_round_and_stay_rounded(values: list[float]) -> None:
    x = np.array(values, np.float32)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    rounded = BFLOAT16.round(x)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, expected)
    np.testing.assert_array_equal(BFLOAT16.round(rounded), rounded)
    np.testing.assert_array_equal(FLOAT32.round(x), x)
    assert FLOAT64.round(x).dtype == np.float64
    np.testing.assert_array_equal(FLOAT64.round(x), x)


def test_policies_by_name() -> None:
    for name, policy in (("float64", FLOAT64), ("float32", FLOAT32), ("bfloat16", BFLOAT16)):
        assert get_policy(name) is policy
        assert get_policy(policy) is policy
    assert [p.dtype for p in (FLOAT64, FLOAT32, BFLOAT16)] == [np.float64, np.float32, np.float32]
    with pytest.raises(GptOssError, match=r"float16.*float64.*float32.*bfloat16"):
        get_policy("float16")


def test_widen_reads_bits_and_floats() -> None:
    bits = np.array([[0x3F80, 0xC040]], np.uint16)
    for dtype in (np.float32, np.float64):
        for weight in (bits, np.array([[1.0, -3.0]], np.float32), np.array([[1.0, -3.0]])):
            ours = widen(weight, dtype)
            assert ours.dtype == dtype
            assert ours.tolist() == [[1.0, -3.0]]
