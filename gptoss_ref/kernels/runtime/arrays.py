"""What kernels take: arguments brought to the few array types that are compiled for.

Activations become contiguous float32 (copied only if they are not). Weights are never copied; they
become read-only views, because a mapped checkpoint is read-only and Numba would compile a second
time for writable arrays.
"""

from __future__ import annotations

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array, Policy, get_policy

_BITS, _FLOAT = np.dtype(np.uint16), np.dtype(np.float32)
EMPTY = np.empty(0, _BITS)
EMPTY.flags.writeable = False


def check_policy(policy: str | Policy) -> None:
    """Refuse policies whose rounding the kernels do not follow.

    Raises:
        GptOssError: the policy is not float32, or no policy.
    """
    policy = get_policy(policy)
    if policy.name != "float32":
        raise GptOssError(
            f"kernels compute in float32: policy {policy.name} needs the numpy backend"
        )


def values(x: Array) -> Array:
    """Activations as a contiguous, aligned, writable float32 array."""
    flags = x.flags
    if x.dtype == _FLOAT and flags.c_contiguous and flags.behaved:
        return x
    return np.require(x, np.float32, ["C", "A", "W"])


def positions_of(positions: Array) -> Array:
    """Positions or token ids as a contiguous, writable int64 array.

    Raises:
        GptOssError: they are not integers.
    """
    positions = np.asarray(positions)
    if positions.dtype.kind not in "iu" and positions.size:
        raise GptOssError(f"{positions.dtype} positions or token ids: expected integers")
    return np.require(positions, np.int64, ["C", "A", "W"])


def is_bits(weight: Array) -> bool:
    """Whether a stored array is of bfloat16 bits, in either order of bytes."""
    return weight.dtype.kind == "u" and weight.dtype.itemsize == 2


def weight_of(weight: Array) -> Array | None:
    """A stored matrix as a read-only view, or None if it is not contiguous bfloat16 or float32."""
    flags = weight.flags
    dtype = weight.dtype
    if (dtype != _BITS and dtype != _FLOAT) or not (flags.c_contiguous and flags.aligned):
        return None
    if flags.writeable:
        weight = weight.view()
        weight.flags.writeable = False
    return weight


def vector_of(vector: Array | None, size: int) -> Array:
    """A bias or scale (size,) as a contiguous read-only array, bfloat16 or float32; None as empty.

    Raises:
        GptOssError: another size.
    """
    if vector is None:
        return EMPTY
    if vector.shape != (size,):
        raise GptOssError(f"a vector of shape {vector.shape} where ({size},) was expected")
    return matrix_of(vector)


def matrix_of(matrix: Array) -> Array:
    """Small weights, such as the biases (E, N) of all experts, contiguous and read-only.

    They keep bfloat16 bits; other floats become float32.
    """
    whole = weight_of(matrix)
    if whole is None:
        whole = np.array(matrix, np.uint16 if is_bits(matrix) else np.float32, order="C")
        whole.flags.writeable = False
    return whole
