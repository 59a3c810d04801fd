"""MXFP4 against ml_dtypes (float4_e2m1fn, float8_e8m0fnu): decoding exhaustively, and encoding."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.layers import mxfp4
from tests.support.agreement import Array
from tests.support.checks_mxfp4 import (
    assert_identical,
    check_mxfp4_decode,
    check_mxfp4_encode,
    nearest_e2m1,
    scale_exponents,
)
from tests.support.strategies import SEEDS, mxfp4_values

RULES = ("floor", "ceil", "even", "fit")


def test_every_byte_under_every_scale() -> None:
    check_mxfp4_decode(mxfp4.decode)


@given(SEEDS, st.lists(st.integers(1, 4), max_size=3), st.integers(1, 3))
def test_any_shape(seed: int, lead: list[int], groups: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*lead, groups, 16), np.uint8)
    scales = rng.integers(0, 255, (*lead, groups)).astype(np.uint8)
    ours = mxfp4.decode(blocks, scales, dtype=np.float64)
    assert ours.shape == (*lead, groups * 32)
    assert_identical(ours, mxfp4_values(blocks, scales))


def test_the_low_nibble_comes_first() -> None:
    blocks = np.zeros((1, 16), np.uint8)
    blocks[0, :2] = 0x61, 0xF3  # codes 1, 6 and 3, 15
    decoded = mxfp4.decode(blocks, np.array([127], np.uint8))
    assert decoded[:4].tolist() == [0.5, 4.0, 1.5, -6.0]


def test_scale_0_is_a_subnormal_and_254_overflows_float32_only() -> None:
    blocks = np.full((2, 16), 0x72, np.uint8)  # 1 and 6
    scales = np.array([0, 254], np.uint8)
    narrow = mxfp4.decode(blocks, scales).reshape(2, 32)
    assert narrow[0, :2].tolist() == [2.0**-127, 6 * 2.0**-127]
    assert narrow[1, :2].tolist() == [2.0**127, np.inf]
    wide = mxfp4.decode(blocks, scales, dtype=np.float64).reshape(2, 32)
    assert wide[1, :2].tolist() == [2.0**127, 6 * 2.0**127]


def test_scale_255_by_choice() -> None:
    blocks = np.full((3, 16), 0x72, np.uint8)
    scales = np.array([127, 255, 254], np.uint8)
    assert np.isnan(mxfp4.decode(blocks, scales)[32:64]).all()
    assert np.isfinite(mxfp4.decode(blocks, scales, dtype=np.float64)[[0, 31, 64]]).all()
    exponent = mxfp4.decode(blocks, scales, scale_255="exponent", dtype=np.float64)
    assert exponent[32:34].tolist() == [2.0**128, 6 * 2.0**128]
    with pytest.raises(CheckpointError, match=r"255"):
        mxfp4.decode(blocks, scales, scale_255="error")
    finite = mxfp4.decode(blocks[:1], scales[:1], scale_255="error")
    assert np.array_equal(finite, mxfp4.decode(blocks[:1], scales[:1]))
    with pytest.raises(GptOssError, match="scale_255"):
        mxfp4.decode(blocks, scales, scale_255="zero")  # type: ignore[arg-type]


def test_shapes_must_fit() -> None:
    with pytest.raises(GptOssError):
        mxfp4.decode(np.zeros((2, 16), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(GptOssError):
        mxfp4.decode(np.zeros((2, 8), np.uint8), np.zeros(2, np.uint8))


def test_matrices_decode_by_row_and_by_expert() -> None:
    """The container's indexing commutes with decoding."""
    from gptoss_ref.weights import MXFP4

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 5, 2, 16), np.uint8)
    scales = rng.integers(100, 140, (3, 5, 2)).astype(np.uint8)
    matrix = MXFP4(blocks, scales)
    assert matrix.shape == (3, 5, 64)
    whole = mxfp4_values(blocks, scales)
    for index in (1, slice(1, 3), (2, slice(0, 4))):
        part = matrix[index]
        assert part.shape == whole[index].shape
        assert_identical(mxfp4.decode(part.blocks, part.scales, dtype=np.float64), whole[index])


@pytest.mark.parametrize("rule", RULES)
@given(seed=SEEDS, lead=st.sampled_from([(), (3,), (2, 5)]), size=st.sampled_from([1e-30, 1, 1e30]))
def test_encode_by_every_rule(rule: str, seed: int, lead: tuple[int, ...], size: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, size, (*lead, 64))
    check_mxfp4_encode(mxfp4.encode, x, rule)
    check_mxfp4_encode(mxfp4.encode, x.astype(np.float32), rule)


@pytest.mark.parametrize("rule", RULES)
@given(st.data())
def test_encode_ties_and_powers_of_two(rule: str, data: st.DataObject) -> None:
    """Multiples of a quarter under any scale: full of ties and of maxima on a rule's own edges."""
    quarters = data.draw(st.lists(st.integers(-32, 32), min_size=32, max_size=32))
    exponent = data.draw(st.integers(-120, 115))
    check_mxfp4_encode(mxfp4.encode, np.ldexp(np.array(quarters) / 4, exponent), rule)


def test_halves_round_to_even_and_large_values_saturate() -> None:
    """One value of 4 fixes the scale at 1; every midpoint goes to the even code."""
    x = np.zeros(32)
    x[:10] = 4, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.9, -7.9
    blocks, scales = mxfp4.encode(x)
    assert scales.tolist() == [127]
    expected = [4, 0, 1, 1, 2, 2, 4, 4, 6, -6]
    assert mxfp4.decode(blocks, scales)[:10].tolist() == expected


@given(st.lists(st.floats(-1, 1, width=32), min_size=32, max_size=32))
def test_no_value_of_the_grid_is_nearer(values: list[float]) -> None:
    """Exactly, in fractions: none of the 15 candidates under a value's scale beats ours."""
    x = np.array(values)
    blocks, scales = mxfp4.encode(x)
    decoded = mxfp4.decode(blocks, scales, dtype=np.float64)
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    step = Fraction(2) ** (int(scales[0]) - 127)
    for value, ours in zip(values, decoded, strict=True):
        best = min(abs(abs(Fraction(value)) - Fraction(m) * step) for m in magnitudes)
        assert abs(Fraction(value) - Fraction(float(ours))) == best


@given(SEEDS)
def test_codes_are_those_of_ml_dtypes(seed: int) -> None:
    """Where no float32 in between can round twice: values of few bits."""
    x = np.random.default_rng(seed).integers(-1024, 1025, (4, 32)) / 128.0
    blocks, scales = mxfp4.encode(x)
    scaled = x * np.exp2(127.0 - scales.astype(np.float64))
    expected = scaled.astype(np.float32).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(4, 32)
    assert np.array_equal(nibbles & 7, expected & 7)


@pytest.mark.parametrize("rule", RULES)
def test_what_decodes_survives_encoding(rule: str) -> None:
    """Every code under every finite scale: with a 4 or 6 in the block, the bytes come back."""
    codes = np.arange(16, dtype=np.uint8)
    top = 6 if rule == "ceil" else 7  # ceil leaves no 6: a block's largest value is at most 4
    codes = codes[(codes & 7) <= top]
    nibbles = np.resize(codes, 32)
    nibbles[0] = top
    block = nibbles[0::2] | nibbles[1::2] << 4
    scales = np.arange(0, 255, dtype=np.uint8)[:, None]
    blocks = np.broadcast_to(block, (255, 1, 16))
    values = mxfp4.decode(blocks, scales, dtype=np.float64)
    again, exponents = mxfp4.encode(values, rule=rule)
    assert np.array_equal(exponents, scales)
    assert np.array_equal(again, blocks)


def test_zero_blocks_and_the_sign_of_zero() -> None:
    x = np.zeros((2, 32))
    x[1, 3] = -0.0
    blocks, scales = mxfp4.encode(x)
    assert scales.tolist() == [[0], [0]]
    decoded = mxfp4.decode(blocks, scales)
    assert not decoded.any()
    assert np.array_equal(np.signbit(decoded), np.signbit(x))


def test_subnormals_and_extremes() -> None:
    """The scale is clamped to 2^-127 … 2^127; below half its smallest step values vanish."""
    tiny, huge = np.zeros((4, 32)), np.zeros((2, 32))
    tiny[:, 0] = 2.0**-128, 2.0**-129, 2.0**-130, -(2.0**-149)
    blocks, scales = mxfp4.encode(tiny)
    assert not scales.any()
    assert mxfp4.decode(blocks, scales, dtype=np.float64)[:, 0].tolist() == [2.0**-128, 0, 0, 0]
    huge[:, 0] = np.finfo(np.float32).max, -1.5 * 2.0**127
    blocks, scales = mxfp4.encode(huge)
    assert scales.ravel().tolist() == [127 + 125] * 2
    assert mxfp4.decode(blocks, scales, dtype=np.float64)[:, 0].tolist() == [
        6 * 2.0**125,
        -6 * 2.0**125,
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_make_their_block_nan(bad: float) -> None:
    x = np.ones((1, 96))
    x[0, 40] = bad
    blocks, scales = mxfp4.encode(x)
    assert scales.tolist() == [[125, 255, 125]]
    decoded = mxfp4.decode(blocks, scales)
    assert np.isnan(decoded[0, 32:64]).all()
    assert (decoded[0, :32] == 1).all()
    assert (decoded[0, 64:] == 1).all()


@pytest.mark.parametrize("shape", [(31,), (2, 33), ()])
def test_encode_needs_whole_blocks(shape: tuple[int, ...]) -> None:
    with pytest.raises(GptOssError, match="32"):
        mxfp4.encode(np.ones(shape))


def test_unknown_rule() -> None:
    with pytest.raises(GptOssError, match="nearest"):
        mxfp4.encode(np.ones(32), rule="nearest")  # type: ignore[arg-type]


@given(SEEDS)
def test_no_rule_but_floor_and_even_saturates(seed: int) -> None:
    """What the rules are for: how far a block's largest value may exceed 6 steps of its scale."""
    largest: Array = np.abs(np.random.default_rng(seed).normal(0, 10, 200)) + 1e-3
    limits = {"floor": 8.0, "ceil": 4.0, "even": 7.0, "fit": 6.0}
    for rule, limit in limits.items():
        x = np.zeros((200, 32))
        x[:, 5] = largest
        blocks, scales = mxfp4.encode(x, rule=rule)  # type: ignore[arg-type]
        scaled = largest * np.exp2(127.0 - scales[:, 0].astype(np.float64))
        assert np.array_equal(scales[:, 0], scale_exponents(largest, rule) + 127)
        assert (scaled <= limit).all()
        assert np.array_equal(blocks[:, 0, 2] >> 4, nearest_e2m1(scaled))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.float16, np.float32])
def test_any_dtype_is_encoded_as_float64(dtype: type) -> None:
    x = np.array([-128 if np.issubdtype(dtype, np.signedinteger) else 127, *range(31)], dtype)
    for ours, exact in zip(mxfp4.encode(x), mxfp4.encode(x.astype(float)), strict=True):
        np.testing.assert_array_equal(ours, exact)


def test_ends_of_the_scale_rules() -> None:
    """1.75 · 2^k rounds up to 2^(k+1) under `even`; a scale is at most 2^127."""
    for largest, exponent in ((1.75, -1), (1.7499, -2), (7.0, 1), (6.999, 0)):
        _, scales = mxfp4.encode(np.full(32, largest), rule="even")
        assert int(scales[0]) - 127 == exponent
    for rule in RULES:
        blocks, scales = mxfp4.encode(np.full(32, 2.0**200), rule=rule)
        assert scales.tolist() == [254]
        assert (blocks == 0x77).all()  # code 7: saturated


def test_an_infinite_value_raises_no_floating_point_error() -> None:
    with np.errstate(all="raise"):
        values = mxfp4.decode(np.full((1, 16), 0x77, np.uint8), np.array([254], np.uint8))
    assert (values == np.inf).all()
