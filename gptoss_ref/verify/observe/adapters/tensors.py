"""Tensors of other libraries as NumPy arrays, without importing those libraries."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array


def as_array(value: Any, name: str) -> Array:
    """An array that shares nothing with ``value``; bfloat16 as its bits (uint16).

    Args:
        value: a NumPy array, a torch tensor on any device, or what ``numpy.asarray`` understands.
        name: of the array, for messages.

    Raises:
        TraceError: it is none of these.
    """
    if hasattr(value, "detach"):
        tensor = value.detach().cpu().contiguous()
        if str(tensor.dtype) == "torch.bfloat16":
            bits: Array = tensor.view(sys.modules["torch"].int16).numpy().view(np.uint16).copy()
            return bits
        array: Array = tensor.numpy().copy()
        return array
    try:
        array = np.array(value)
    except (TypeError, ValueError) as error:
        raise TraceError(f"{name!r} is {type(value).__name__}, no array: {error}") from None
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return array.view(np.uint16)
    if array.dtype.kind not in "iuf":
        raise TraceError(f"{name!r} has dtype {array.dtype}: expected numbers")
    return array
