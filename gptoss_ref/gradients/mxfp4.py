"""Gradient through MXFP4: straight through, to master weights.

Rounding to a grid is a staircase whose derivative is zero almost everywhere. Quantisation-aware
training therefore keeps *master weights* x in full precision, computes with w = decode(encode(x)),
and takes

    dx = dw            as if encode and decode were not there

The gradient of the dequantised values w themselves, which the layers' gradients give for an MXFP4
matrix, is exact. Values that saturate (by rule ``floor`` a block's largest may, by up to a quarter)
do not follow x any more; ``clip`` sets their gradient to zero, as fake-quantisation in torch does.
Source: Bengio et al. 2013, arXiv 1308.3432 (straight-through estimator).
"""

import numpy as np

from gptoss_ref.layers.mxfp4 import E2M1_MAX, SCALE_BIAS, ScaleRule, encode
from gptoss_ref.numerics import Array
from gptoss_ref.weights import MXFP4_BLOCK


def straight_through(
    d_w: Array, x: Array, *, rule: ScaleRule = "floor", clip: bool = False
) -> Array:
    """Gradient (…, M) of master weights ``x`` (…, M), from that of their MXFP4 values ``d_w``.

    Args:
        d_w: (…, M).
        rule: by which ``x`` was encoded, see :func:`gptoss_ref.layers.mxfp4.encode`.
        clip: zero where ``x`` lies beyond the largest value of its block.

    >>> x = np.zeros(32); x[:3] = [7.5, -6.0, 0.1]
    >>> straight_through(np.ones(32), x, clip=True)[:3]  # the scale is 1: 7.5 became 6
    array([0., 1., 1.])
    """
    if not clip:
        return d_w.copy()
    _, scales = encode(x, rule=rule)  # (…, M/32)
    largest = np.ldexp(E2M1_MAX, scales.astype(np.int64) - SCALE_BIAS)  # (…, M/32)
    return np.where(np.abs(x) <= np.repeat(largest, MXFP4_BLOCK, axis=-1), d_w, 0)
