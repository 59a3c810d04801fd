"""Which rounding the numbers of a producer show, whatever dtype they are stored in."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gptoss_ref.numerics import Array, float_to_bfloat16
from gptoss_ref.tracing.taps import AFTER, STAGES

ROUNDINGS = ("float64", "float32", "float16", "bfloat16")
"""The roundings that a producer's numbers may show, finest first."""

TELLING = {*STAGES, *AFTER} - {"mlp.expert_indices", "mlp.expert_weights", "attn.weights"}
"""Stages whose numbers show a rounding: an embedding lies on its weights' own grid."""


class Stored(Protocol):
    """What is asked of a trace: what an array is stored as, and some of its rows."""

    def dtype_of(self, name: str, /) -> str: ...
    def rows(self, name: str, rows: slice, /) -> Array: ...


def rounding_of(source: Stored, name: str) -> str | None:
    """The coarsest of ROUNDINGS on which all values of one array lie; None if too few tell."""
    stored = source.dtype_of(name)
    if stored == "bfloat16":
        return stored
    values = source.rows(name, slice(0, 64)).ravel()
    values = values[np.isfinite(values) & (values != 0)]
    if len(np.unique(values[:4096])) < 16:
        return stored if stored == "float16" else None
    if values.dtype == np.float64 and not np.array_equal(values.astype(np.float32), values):
        return "float64"
    single = values.astype(np.float32)
    if not (single.view(np.uint32) & 0xFFFF).any():
        return "bfloat16"
    with np.errstate(over="ignore"):
        half = single.astype(np.float16)
    return "float16" if np.array_equal(half, single) else "float32"


def compact(values: Array, rounding: str | None) -> Array:
    """float32 values of a bfloat16 producer as bits, if that loses nothing; others as they are."""
    if rounding != "bfloat16" or values.dtype != np.float32:
        return values
    bits = float_to_bfloat16(values)
    # compared as bits: a zero's sign counts, and a NaN equals itself
    same = np.array_equal(bits.astype(np.uint32) << 16, values.view(np.uint32))
    return bits if same else values
