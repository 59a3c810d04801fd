"""Solution of chapter 14: a linear layer with a low-rank part, as an adapter is computed.

Check it by `gptoss-ref check 14_teach.py:linear linear`.
"""

import numpy as np

RANK = 2


def split(weight):
    """weight (N, M) to its best part of rank R, as B (N, R) and A (R, M), and the rest (N, M)."""
    u, sizes, vt = np.linalg.svd(weight, full_matrices=False)
    b, a = u[:, :RANK] * sizes[:RANK], vt[:RANK]
    return b, a, weight - b @ a


def linear(x, weight, bias):
    """x (T, M), weight (N, M), bias (N,) to y (T, N)."""
    b, a, frozen = split(weight)
    low = x @ a.T  # (T, R): T·R·M multiplications
    return x @ frozen.T + low @ b.T + bias  # and T·N·R more; b @ a alone takes N·R·M
