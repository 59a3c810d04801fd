"""Linear layer y = W x + b; mirrors ``layers/linear.py``.

Weights are used as they are stored: bfloat16 bits are converted in registers (by a shift) and never
written as a second matrix. ``matmul/__init__.py`` has a table of the products, with their error
bounds and rates.

Accumulator: float32. Error: as for any float32 sum, relative L2 below 1e-6 of float64 on Gaussian
and on heavy-tailed activations; MXFP4 within 1e-4. Matrices stored column by column (dequantised
Hugging Face experts) are fast too. Matrices with other strides, and float64 weights, are first
copied in pieces of some rows: this is correct, but not fast.
"""

from __future__ import annotations

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.matmul.gemm import multiply_stored
from gptoss_ref.kernels.matmul.mxfp4_methods import multiply_mxfp4
from gptoss_ref.kernels.runtime.arrays import check_policy, is_bits, values, vector_of, weight_of
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import MXFP4, ExpertMatrix

GATHERED_VALUES = 1 << 22
"""Number of weights in a non-contiguous layout that are copied at a time: 16 MiB of float32."""


def linear(
    x: Array, weight: ExpertMatrix, bias: Array | None = None, *, policy: str | Policy = FLOAT32
) -> Array:
    """Compute ``x`` (…, M) times ``weight`` (N, M) transposed, plus ``bias`` (N,): (…, N) float32.

    Raises:
        GptOssError: a policy other than float32, or shapes that do not match.
    """
    check_policy(policy)
    if len(weight.shape) != 2:
        raise GptOssError(f"linear: a weight of shape {weight.shape}: expected (N, M)")
    outputs, inputs = weight.shape
    if x.shape[-1:] != (inputs,):
        raise GptOssError(
            f"linear: x of shape {x.shape} does not fit a weight of shape {weight.shape}: "
            f"expected (…, {inputs})"
        )
    x2 = values(x).reshape(-1, inputs)  # (T, M)
    y = np.empty((len(x2), outputs), np.float32)
    b = vector_of(bias, outputs)
    if y.size == 0:
        pass
    elif isinstance(weight, MXFP4):
        multiply_mxfp4(x2, weight, b, y)
    else:
        _product(x2, weight, b, y)
    return y.reshape(*x.shape[:-1], outputs)


def _product(x: Array, weight: Array, bias: Array, y: Array) -> None:
    """Compute y (T, N) = x (T, M) times ``weight`` (N, M) transposed, plus ``bias``."""
    if (stored := weight_of(weight)) is not None:
        multiply_stored(x, stored, False, bias, y)
    elif (stored := weight_of(weight.T)) is not None:
        multiply_stored(x, stored, True, bias, y)
    else:
        step = max(1, GATHERED_VALUES // max(1, weight.shape[1]))
        for start in range(0, len(weight), step):
            some = slice(start, start + step)
            gathered = weight[some].astype(np.uint16 if is_bits(weight) else np.float32, order="C")
            part = np.empty((len(x), len(gathered)), np.float32)
            _product(x, gathered, bias[some], part)
            y[:, some] = part
