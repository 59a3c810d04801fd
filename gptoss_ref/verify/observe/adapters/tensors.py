"""Tensors of other libraries as NumPy arrays, without importing those libraries."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array


def as_array(value: Any, name: str) -> Array:
    """``value`` as a new array; bfloat16 as bits (uint16).

    Args:
        value: a NumPy array, a torch tensor on any device, any input of ``numpy.asarray``, or a
            list of such arrays of one shape: those of shape (1, …) are concatenated to (N, …),
            others are stacked.
        name: of the array, for error messages.

    Raises:
        TraceError: it is none of these.
    """
    if isinstance(value, list | tuple) and value and hasattr(value[0], "shape"):
        return _joined([as_array(part, name) for part in value], name)
    if hasattr(value, "detach"):
        tensor = value.detach().cpu().contiguous()
        if str(tensor.dtype) == "torch.bfloat16":
            bits: Array = tensor.view(sys.modules["torch"].int16).numpy().view(np.uint16).copy()
            return bits
        array: Array = tensor.numpy().copy()
        return array
    if str(getattr(value, "dtype", "")) == "mlx.core.bfloat16":  # NumPy has no such dtype
        value = value.astype(sys.modules["mlx.core"].float32)
    try:
        array = np.array(value)
    except (TypeError, ValueError) as error:
        raise TraceError(f"{name!r} is {type(value).__name__}, not an array: {error}") from None
    if array.dtype.name == "bfloat16":  # the dtype of ml_dtypes
        return array.view(np.uint16)
    if array.dtype.kind not in "iuf":
        raise TraceError(f"{name!r} has dtype {array.dtype}: expected numbers")
    return array


def _joined(parts: list[Array], name: str) -> Array:
    """A list of arrays as one array, such as the logits of each generation step."""
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        listed = ", ".join(map(str, sorted(shapes)))
        raise TraceError(f"{name!r} is a list of arrays of shapes {listed}: expected one shape")
    rows = parts[0].ndim > 1 and len(parts[0]) == 1
    return np.concatenate(parts) if rows else np.stack(parts)
