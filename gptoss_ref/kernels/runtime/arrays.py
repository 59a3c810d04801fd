"""Conversion of arguments to the few array types that kernels are compiled for.

Activations become contiguous float32 (copied only if they are not). Weights are never copied; they
become read-only views, because a mapped checkpoint is read-only and Numba would compile each kernel
a second time for writable arrays.
"""

from __future__ import annotations

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array, Policy, get_policy

_BITS, _FLOAT = np.dtype(np.uint16), np.dtype(np.float32)
EMPTY = np.empty(0, _BITS)
EMPTY.flags.writeable = False


def check_policy(policy: str | Policy) -> None:
    """Raise if the policy is not float32, the only one whose rounding the kernels follow.

    Raises:
        GptOssError: another policy, or an unknown one.
    """
    policy = get_policy(policy)
    if policy.name != "float32":
        raise GptOssError(
            f"kernels compute in float32: policy {policy.name} needs the numpy backend"
        )


def values(x: Array) -> Array:
    """Return activations as a contiguous, aligned, writable float32 array."""
    flags = x.flags
    if x.dtype == _FLOAT and flags.c_contiguous and flags.behaved:
        return x
    return np.require(x, np.float32, ["C", "A", "W"])


def positions_of(positions: Array) -> Array:
    """Return positions or token ids as a contiguous, writable int64 array.

    Raises:
        GptOssError: they are not integers.
    """
    positions = np.asarray(positions)
    if positions.dtype.kind not in "iu" and positions.size:
        raise GptOssError(f"{positions.dtype} positions or token ids: expected integers")
    return np.require(positions, np.int64, ["C", "A", "W"])


def is_bits(weight: Array) -> bool:
    """Return whether a stored array holds bfloat16 bits, in either byte order."""
    return weight.dtype.kind == "u" and weight.dtype.itemsize == 2


def read_only(array: Array) -> Array:
    """Return a view that cannot be written."""
    view = array.view()
    view.flags.writeable = False
    return view


def weight_of(weight: Array) -> Array | None:
    """Return a stored matrix as a read-only view, or None if not contiguous bfloat16 or float32."""
    flags = weight.flags
    dtype = weight.dtype
    if (dtype != _BITS and dtype != _FLOAT) or not (flags.c_contiguous and flags.aligned):
        return None
    return read_only(weight) if flags.writeable else weight


def vector_of(vector: Array | None, size: int) -> Array:
    """Return a bias or scale (size,) as a contiguous read-only array; None gives an empty array.

    Its type is bfloat16 or float32.

    Raises:
        GptOssError: the vector has another shape.
    """
    if vector is None:
        return EMPTY
    if vector.shape != (size,):
        raise GptOssError(f"a vector of shape {vector.shape} where ({size},) was expected")
    return matrix_of(vector)


def matrix_of(matrix: Array) -> Array:
    """Return small weights, such as the biases (E, N) of all experts, contiguous and read-only.

    bfloat16 bits stay as they are; other floats become float32.
    """
    whole = weight_of(matrix)
    if whole is None:
        whole = read_only(np.array(matrix, np.uint16 if is_bits(matrix) else np.float32, order="C"))
    return whole
