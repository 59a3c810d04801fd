"""MXFP4: 4-bit floats (E2M1) in blocks of 32 that share a power-of-two scale (E8M0).

    value = E2M1[code] · 2^(s − 127)         codes 0…7 → 0, ½, 1, 1½, 2, 3, 4, 6; bit 3 is the sign

Byte j of a block holds value 2j in its low nibble and value 2j+1 in its high one (ggml stores
halves instead: ``nibbles-split``). Blocks run along the input dimension. s = 0 is 2⁻¹²⁷, a float32
subnormal, not zero. s = 255 is NaN in the specification, though the OpenAI loader and llama.cpp
read it as 2¹²⁸: here the caller chooses. Source: OCP Microscaling Formats (MX)
specification v1.0, sections 5.2 to 5.4 and 6.3.
"""

from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.numerics import Array
from gptoss_ref.weights import MXFP4_BLOCK

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
E2M1_MAX = 6.0
E2M1_MAX_EXPONENT = 2  # 6 = 1.5 · 2²
SCALE_BIAS = 127
SCALE_NAN = 255

Scale255 = Literal["nan", "exponent", "error"]
"""What a scale byte of 255 means."""

# A byte's two values as one complex number (low nibble: real part), so that one look-up finds both.
# They are doubled, hence integers, and multiplied by half the scale, which always fits float32.
_BYTES = np.arange(256)
_DOUBLED_PAIRS = np.stack([2 * E2M1[_BYTES & 15], 2 * E2M1[_BYTES >> 4]], -1).view(complex)[:, 0]
_HALF_SCALES = np.ldexp(1.0, _BYTES - SCALE_BIAS - 1)


def decode(
    blocks: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    *,
    scale_255: Scale255 = "nan",
    dtype: DTypeLike = np.float32,
    name: str = "MXFP4 scales",
) -> Array:
    """Values of ``blocks`` (…, M/32, 16) under ``scales`` (…, M/32): (…, M).

    Exact in float32 and float64, except that magnitudes of 2¹²⁸ and more are infinite in float32.

    Args:
        scale_255: ``"nan"`` (the specification), ``"exponent"`` (2¹²⁸, as OpenAI's loader and
            llama.cpp) or ``"error"``.
        name: the name of the scales in error messages.

    Raises:
        CheckpointError: a scale byte is 255 and ``scale_255`` is ``"error"``.
        GptOssError: the shapes do not match, or ``scale_255`` is unknown.

    >>> block = np.array([[0x10, 0x32, 0x54, 0x76] + [0xFF] * 12], np.uint8)
    >>> decode(block, np.array([128], np.uint8))[:10]  # scale 2
    array([  0.,   1.,   2.,   3.,   4.,   6.,   8.,  12., -12., -12.],
          dtype=float32)
    """
    if blocks.shape != (*scales.shape, MXFP4_BLOCK // 2):
        raise GptOssError(
            f"{name}: MXFP4 blocks of shape {blocks.shape} do not fit scales of shape "
            f"{scales.shape}: expected {(*scales.shape, MXFP4_BLOCK // 2)}"
        )
    if scale_255 not in ("nan", "exponent", "error"):
        raise GptOssError(f"unknown scale_255 {scale_255!r}: expected nan, exponent or error")
    if scale_255 == "error" and scales.size and scales.max() == SCALE_NAN:
        where = tuple(int(i) for i in np.argwhere(scales == SCALE_NAN)[0])
        raise CheckpointError(
            f"{name}: scale byte 255 at {list(where)}, NaN in the MX specification: expected 0 to "
            f"254 (load with scale_255='nan' or 'exponent' to accept it)"
        )
    half_scales = _HALF_SCALES.astype(dtype)
    if scale_255 == "nan":
        half_scales[SCALE_NAN] = np.nan
    pairs = _DOUBLED_PAIRS.astype(np.result_type(dtype, np.complex64))
    values = np.take(pairs, blocks).view(dtype)  # (…, M/32, 32)
    with np.errstate(over="ignore"):  # 6 · 2¹²⁷ is infinite in float32
        values *= half_scales[scales][..., None]
    *lead, groups = scales.shape
    return values.reshape(*lead, groups * MXFP4_BLOCK)  # (…, M)


ScaleRule = Literal["floor", "ceil", "even", "fit"]
"""How the largest magnitude of a block gives its scale, see :func:`encode`."""


def encode(x: Array, *, rule: ScaleRule = "floor") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantise ``x`` (…, M), M a multiple of 32, to blocks (…, M/32, 16) and scales (…, M/32).

    Elements are rounded to the nearest E2M1 value, ties to the even code, and saturate at ±6. The
    sign of zero is kept. A block with a NaN or an infinity gets the scale 255: it decodes to NaN.
    With m the largest magnitude of a block, its scale is two to the power

    =========  =======================================================================  ===========
    rule       exponent                                                                 m saturates
    =========  =======================================================================  ===========
    floor      ⌊log₂ m⌋ − 2, the rule of the MX specification (6.3)                     by up to ¼
    ceil       ⌈log₂ m⌉ − 2                                                             never
    even       ⌊log₂ m'⌋ − 2, m' being m rounded to E2M1's one mantissa bit             by up to ⅐
    fit        ⌈log₂ (m / 6)⌉, the least exponent under which m fits                    never
    =========  =======================================================================  ===========

    clamped to −127 … 127; a block of zeros takes −127.

    Raises:
        GptOssError: M is not a multiple of 32, or the rule is unknown.

    >>> x = np.zeros(32); x[:6] = [6, -3, 2.4, 2.5, 2.6, 0.25]
    >>> blocks, scales = encode(x)
    >>> int(scales[0]) - 127, decode(blocks, scales)[:6].tolist()
    (0, [6.0, -3.0, 2.0, 2.0, 3.0, 0.0])
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] % MXFP4_BLOCK:
        raise GptOssError(
            f"MXFP4 encodes blocks of {MXFP4_BLOCK} along the last axis: got shape {x.shape}"
        )
    x = x.reshape(*x.shape[:-1], x.shape[-1] // MXFP4_BLOCK, MXFP4_BLOCK)  # (…, M/32, 32)
    magnitude = np.abs(x)
    largest = magnitude.max(axis=-1)  # (…, M/32)
    finite = np.isfinite(largest)
    exponent = np.where(finite, _scale_exponent(np.where(finite, largest, 1.0), rule), 0)
    ratio = np.ldexp(magnitude, -exponent[..., None])  # exact: a power of two
    # The midpoint between two codes goes to the even one: `>` keeps it below, `>=` lifts it.
    codes = (
        (ratio > 0.25).astype(np.uint8)
        + (ratio >= 0.75)
        + (ratio > 1.25)
        + (ratio >= 1.75)
        + (ratio > 2.5)
        + (ratio >= 3.5)
        + (ratio > 5.0)
    )
    codes |= np.signbit(x).astype(np.uint8) << 3  # (…, M/32, 32)
    blocks = codes[..., 0::2] | codes[..., 1::2] * np.uint8(16)  # (…, M/32, 16)
    scales = np.where(finite, exponent + SCALE_BIAS, SCALE_NAN).astype(np.uint8)
    return blocks, scales


def _scale_exponent(largest: Array, rule: ScaleRule) -> NDArray[np.int64]:
    """Exponent of the shared scale for the largest magnitude of each block (finite float64)."""
    mantissa, exponent = np.frexp(largest)  # largest = mantissa · 2^exponent, mantissa in [½, 1)
    floor_log2 = exponent.astype(np.int64) - 1
    if rule == "floor":
        chosen = floor_log2 - E2M1_MAX_EXPONENT
    elif rule == "ceil":
        chosen = floor_log2 + (mantissa > 0.5) - E2M1_MAX_EXPONENT
    elif rule == "even":  # 1.75 rounds to 2 (ties to even), the next power of two
        chosen = floor_log2 + (mantissa >= 0.875) - E2M1_MAX_EXPONENT
    elif rule == "fit":  # 6 = 1.5 · 2²: one more if the mantissa exceeds 1.5
        chosen = floor_log2 + (mantissa > 0.75) - E2M1_MAX_EXPONENT
    else:
        raise GptOssError(f"unknown MXFP4 scale rule {rule!r}: expected floor, ceil, even or fit")
    chosen = np.where(largest == 0, -SCALE_BIAS, chosen)
    return np.clip(chosen, -SCALE_BIAS, SCALE_BIAS)
