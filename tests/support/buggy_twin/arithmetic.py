"""Where numbers are rounded: bfloat16 and float16 store, float32 sums."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALF = (torch.bfloat16, torch.float16)

Bugs = frozenset[str]


def wide(x: Tensor) -> Tensor:
    """A 16-bit tensor as float32, to be rounded once after the step; others as they are."""
    return x.float() if x.dtype in HALF else x


def product(
    equation: str, a: Tensor, b: Tensor, bias: Tensor | None = None, bugs: Bugs = frozenset()
) -> Tensor:
    """einsum of two operands, plus bias, summed wide and rounded once to the dtype of ``a``."""
    if "sums-in-chunks" in bugs:
        out = _product_in_chunks(equation, wide(a), wide(b))
    else:
        out = torch.einsum(equation, wide(a), wide(b))
    if bias is not None:
        out = out + wide(bias)
    return out.to(a.dtype)


def _product_in_chunks(equation: str, a: Tensor, b: Tensor, size: int = 13) -> Tensor:
    """The same sum in chunks of the summed axis, last chunk first: another rounding error."""
    left, right = equation.split("->")[0].split(",")
    out = equation.split("->")[1]
    (letter,) = set(left) & set(right) - set(out)
    i, j = left.index(letter), right.index(letter)
    starts = range(0, a.shape[i], size)
    total: Tensor | None = None
    for start in reversed(starts):
        length = min(size, a.shape[i] - start)
        part = torch.einsum(equation, a.narrow(i, start, length), b.narrow(j, start, length))
        total = part if total is None else total + part
    assert total is not None
    return total


def rmsnorm(x: Tensor, scale: Tensor, eps: float, bugs: Bugs) -> Tensor:
    """(T, D) -> (T, D)."""
    if "norm-eps" in bugs:
        eps = 1e-6  # Llama's, and a default elsewhere; gpt-oss has 1e-5
    if "norm-eps/0.0123" in bugs:
        eps = 0.0123
    t = wide(x)
    t = t * torch.rsqrt((t * t).mean(-1, keepdim=True) + eps)
    if "norm-scale-after-cast" in bugs:  # Llama's order: back to 16 bits, then the scale
        return t.to(x.dtype) * scale.to(x.dtype)
    return (t * wide(scale)).to(x.dtype)
