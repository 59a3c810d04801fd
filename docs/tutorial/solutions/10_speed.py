"""Solution of chapter 10: a product in which the weights meet only integers of 8 bits.

Check it by `gptoss-ref check 10_speed.py:linear linear`.
"""

import numpy as np

PLANES = 3


def planes_of(x):
    """x (T, M) to PLANES arrays of int8, least significant first, and units (T, 1)."""
    # The largest number whose every byte is 127. One more, and a byte would have to hold 128.
    limit = 127 * sum(256**i for i in range(PLANES))
    unit = np.abs(x).max(axis=-1, keepdims=True) / limit
    unit[unit == 0] = 1.0
    whole = np.rint(x / unit).astype(np.int64)
    planes = []
    for _ in range(PLANES):
        low = (whole + 128) % 256 - 128  # the signed byte that is congruent to it
        planes.append(low.astype(np.int8))
        whole = (whole - low) // 256  # exact: the rest is a multiple of 256
    assert not whole.any()
    return planes, unit


def linear(x, weight, bias):
    """x (T, M), weight (N, M), bias (N,) to y (T, N)."""
    planes, unit = planes_of(x)
    # Each product is of bytes with weights. MXFP4 weights are small integers too (twice E2M1 is
    # 0, 1, 2, 3, 4, 6, 8 or 12), so in the kernels these are sums of products of integers.
    total = sum(256.0**i * (plane @ weight.T) for i, plane in enumerate(planes))
    return total * unit + bias
