"""Arrays with only some rows of a tap point, and duplicates of an array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array, bfloat16_to_float
from gptoss_ref.tracing.taps import axes
from gptoss_ref.tracing.trace import Trace


def positions_of(positions: Iterable[int] | None, length: int) -> Array | None:
    """Positions (P,) in a prompt of ``length`` tokens; negative ones count from its end.

    Raises:
        TraceError: there are none, they are not integers, or one is outside the prompt or occurs
            twice.
    """
    if positions is None:
        return None
    rows = np.asarray(positions if isinstance(positions, np.ndarray) else list(positions))
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise TraceError(
            f"positions have shape {rows.shape} and dtype {rows.dtype}: expected integers (P,)"
        )
    rows = rows.astype(np.int64)
    wrong = rows[(rows < -length) | (rows >= length)]
    if wrong.size:
        raise TraceError(f"position {wrong[0]} is not in the prompt: expected 0 to {length - 1}")
    rows = np.where(rows < 0, rows + length, rows)
    if len(np.unique(rows)) < len(rows):
        raise TraceError("a position occurs twice: expected each once")
    return rows


def spread(tap: str, some: Array, rows: Array, length: int) -> Array:
    """The whole array of a tap point with the given rows (P, ...); the others are NaN.

    Missing rows of expert indices, which have no NaN, are filled with the first experts.
    """
    axis = axes(tap).index("T")
    shape = list(some.shape)  # a half of gate and up has another shape than the tap point
    shape[axis] = length
    if some.dtype.kind in "iu" and some.dtype != np.uint16:
        whole = np.broadcast_to(np.arange(shape[-1]), shape).astype(some.dtype)
    elif some.dtype == np.uint16:
        whole = np.full(shape, 0x7FC0, np.uint16)  # bfloat16's NaN
    else:
        whole = np.full(shape, np.nan, some.dtype)
    np.moveaxis(whole, axis, 0)[rows] = np.moveaxis(some, axis, 0)
    return whole


def the_same(one: Array, other: Array) -> Array | None:
    """The common array of two duplicates of the same shape, or None if they differ.

    They are duplicates if they are equal, or if one is the other rounded to its dtype. The array
    with the finer dtype is returned, unless its values all fit the coarser one.
    """
    if np.array_equal(one, other, equal_nan=one.dtype.kind == "f" == other.dtype.kind):
        return one if one.dtype == other.dtype or _unit(one) >= _unit(other) else other
    if one.dtype == other.dtype or one.dtype.kind == "i" or other.dtype.kind == "i":
        return None
    fine, coarse = sorted((one, other), key=_unit)
    if np.array_equal(_wide(fine), _wide(coarse), equal_nan=True):
        return coarse
    off = np.abs(_wide(fine) - _wide(coarse)) > _unit(coarse) * np.abs(_wide(fine))
    return None if off.any() or np.isnan(_wide(fine) - _wide(coarse)).any() else fine


def _wide(values: Array) -> Array:
    wide = bfloat16_to_float(values) if values.dtype == np.uint16 else values
    return wide.astype(np.float64)


def _unit(values: Array) -> float:
    """Unit roundoff of the dtype; integers are exact."""
    if values.dtype == np.uint16:
        return 2.0**-8
    return float(np.finfo(values.dtype).eps) / 2 if values.dtype.kind == "f" else 0.0


def merged(parts: Sequence[Trace]) -> Trace:
    """One trace from several with rows of one run, such as prefill and decoding steps.

    Raises:
        TraceError: two of them have different values for one row.
    """
    first = parts[0]
    arrays: dict[str, Array] = {}
    observed: dict[str, Array] = {}
    for part in parts:
        for tap in part:
            seen, axis = part.observed(tap), axes(tap).index("T")
            values = part[tap]
            if tap not in arrays:
                arrays[tap], observed[tap] = values.copy(), seen.copy()
                continue
            into, source = np.moveaxis(arrays[tap], axis, 0), np.moveaxis(values, axis, 0)
            both = seen & observed[tap]
            if not np.array_equal(into[both], source[both], equal_nan=values.dtype.kind == "f"):
                raise TraceError(f"{part.producer}: rows of {tap} occur twice and differ")
            if into.dtype != source.dtype:
                arrays[tap] = arrays[tap].astype(np.result_type(into, source))
                into = np.moveaxis(arrays[tap], axis, 0)
            into[seen] = source[seen]
            observed[tap] |= seen
    names = dict.fromkeys(part.dtype_name for part in parts)
    return Trace(
        arrays,
        tokens=first.tokens,
        config=first.config,
        producer=first.producer,
        dtype=next(iter(names)) if len(names) == 1 else None,
        observed=_in_part(observed),
        skipped=[skipped for part in parts for skipped in part.skipped],
    )


def _in_part(observed: Mapping[str, Array]) -> dict[str, Array]:
    """The masks that exclude at least one row."""
    return {tap: rows for tap, rows in observed.items() if not rows.all()}
