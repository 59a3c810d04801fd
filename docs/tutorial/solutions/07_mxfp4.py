"""Solutions of chapter 7: MXFP4, decoded and encoded from the meaning of the bits.

gptoss-ref check 07_mxfp4.py:mxfp4_decode mxfp4_decode
gptoss-ref check 07_mxfp4.py:mxfp4_encode mxfp4_encode
"""

import numpy as np


def mxfp4_decode(blocks, scales):
    """blocks (N, M/32, 16) and scales (N, M/32), both uint8, to values (N, M)."""
    # Byte j holds value 2j in its low nibble and value 2j + 1 in its high one.
    codes = np.empty((*scales.shape, 32), np.uint8)
    codes[..., 0::2] = blocks & 0x0F
    codes[..., 1::2] = blocks >> 4

    # E2M1: one bit of sign, two of exponent, one of mantissa.
    sign = np.where(codes & 8, -1.0, 1.0)
    exponent = (codes >> 1 & 3).astype(np.int64)
    mantissa = (codes & 1) / 2
    # Exponent 0 has no hidden one: codes 0 and 1 are 0 and a half, as in any float's subnormals.
    magnitude = np.where(exponent == 0, mantissa, np.ldexp(1 + mantissa, exponent - 1))

    # E8M0: the byte is an exponent with a bias of 127. uint8 would wrap, so widen it first.
    values = np.ldexp(sign * magnitude, scales[..., None].astype(np.int64) - 127)
    values[scales == 255] = np.nan  # the specification keeps this byte for NaN
    return values.reshape(len(scales), -1)  # (N, M)


def mxfp4_encode(values):
    """values (N, M) to blocks (N, M/32, 16) and scales (N, M/32), by the rule `floor`."""
    x = values.reshape(len(values), -1, 32)  # (N, M/32, 32)

    # The scale: the power of two at or below the largest magnitude, less the 2 of 4 = 2^2, the
    # largest power of two among the codes. frexp writes m as [1/2, 1) · 2^e, so floor(log2 m) is
    # e - 1, exactly; log2 itself may round up to the next integer just below a power of two.
    largest = np.abs(x).max(axis=-1)  # (N, M/32)
    _, e = np.frexp(largest)
    exponent = np.where(largest == 0, -127, np.clip(e - 1 - 2, -127, 127))
    ratio = np.ldexp(np.abs(x), -exponent[..., None])  # exact

    # The nearest code. argmin takes the first of equal distances: with the even codes in front, a
    # tie goes to the even one. Above 6 the nearest is 6, so saturation comes by itself.
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    distance = np.abs(ratio[..., None] - magnitudes[order])  # (N, M/32, 32, 8)
    codes = order[distance.argmin(axis=-1)].astype(np.uint8)
    codes[np.signbit(x)] |= 8  # also the sign of zero; x < 0 would miss it

    blocks = codes[..., 0::2] | codes[..., 1::2] << 4  # (N, M/32, 16)
    return blocks, (exponent + 127).astype(np.uint8)
