"""Infer the rounding of a producer from its values, whatever dtype they are stored in."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gptoss_ref.numerics import Array, float_to_bfloat16
from gptoss_ref.tracing.taps import AFTER, STAGES

ROUNDINGS = ("float64", "float32", "float16", "bfloat16")
"""The roundings that can be inferred, finest first."""

TELLING = {*STAGES, *AFTER} - {"mlp.expert_indices", "mlp.expert_weights", "attn.weights"}
"""Stages that show the rounding; an embedding does not: it has the precision of the weights."""


TELLING_VALUES, LOOKED_AT = 16, 4096
"""Least number of different values that show a rounding, among the first few."""

ROWS_AT_ONCE = 64
"""Rows that are read at a time, until there are enough values: the first ones may be missing."""


class Stored(Protocol):
    """The part of a trace that this module needs: the stored dtype and rows of an array."""

    def dtype_of(self, name: str, /) -> str: ...
    def shape_of(self, name: str, /) -> tuple[int, ...]: ...
    def rows(self, name: str, rows: slice, /) -> Array: ...


def rounding_of(source: Stored, name: str) -> str | None:
    """The coarsest of ROUNDINGS that holds all values of one array; None if they are too few."""
    stored = source.dtype_of(name)
    if stored == "bfloat16":
        return stored
    values = source.rows(name, slice(0, 0)).ravel()
    for start in range(0, source.shape_of(name)[0], ROWS_AT_ONCE):
        rows = source.rows(name, slice(start, start + ROWS_AT_ONCE))
        values = np.concatenate([values, rows[np.isfinite(rows) & (rows != 0)]])
        if len(values) >= LOOKED_AT or len(np.unique(values)) >= TELLING_VALUES:
            break
    if len(np.unique(values[:LOOKED_AT])) < TELLING_VALUES:
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
    """bfloat16 bits of float32 values, if exact and ``rounding`` is bfloat16; else ``values``."""
    if rounding != "bfloat16" or values.dtype != np.float32:
        return values
    bits = float_to_bfloat16(values)
    # compared as bits, so that the sign of zero counts and a NaN equals itself
    same = np.array_equal(bits.astype(np.uint32) << 16, values.view(np.uint32))
    return bits if same else values
