"""How the tests judge agreement with the twin.

* float64 and float32: relative L2 distance to the float64 twin, at most ``TOLERANCE``.
* bfloat16: against the twin's bfloat16 run. Both round at the same points, but their float32 sums
  run in another order, so that now and then a value lands on the other side of a rounding. Hence a
  bound on *how many* values differ (or rows, where one flipped value spreads over its row), and on
  by how much. Rounding at other points would change about half of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptoss_ref.verify.noise.tolerances import tolerance
from tests.support.distance import relative_l2
from tests.support.strategies import on_grid

Array = NDArray[Any]
Layer = Callable[..., Any]

POLICIES = ("float64", "float32", "bfloat16")
TORCH = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
NUMPY = {"float64": np.float64, "float32": np.float32, "bfloat16": np.float32}

# Relative L2 distance of one layer to the float64 twin: the table that compare judges by, too.
TOLERANCE = {policy: tolerance("*", policy) for policy in ("float64", "float32")}
STRAYS = 0.02  # share of values (or rows) that may round differently under bfloat16
ULP = 2.0**-7  # and by how much: one step of bfloat16 at the bottom of a binade


def as_tensor(x: Any, policy: str = "float64") -> torch.Tensor:
    """A NumPy array as the twin's tensor: floats in the policy's dtype, integers as int64."""
    x = np.asarray(x)
    return torch.from_numpy(x.copy()).to(torch.int64 if x.dtype.kind in "iu" else TORCH[policy])


def as_array(x: torch.Tensor) -> Array:
    """A tensor as a NumPy array, floats as float64."""
    return x.double().numpy() if x.is_floating_point() else x.numpy()


def assert_agrees(
    ours: Array,
    twin: Callable[[str], torch.Tensor],
    policy: str,
    *,
    rows: bool = False,
    floor: float = 1e-30,
) -> None:
    """``ours`` against the twin; ``twin(policy)`` runs it.

    ``floor``: see ``relative_l2``; for results that may be all cancellation.
    ``rows``: under bfloat16 count differing rows (last axis) rather than values, and compare what
    differs by the row's norm.
    """
    assert ours.dtype == NUMPY[policy], f"dtype {ours.dtype} under {policy}"
    if policy != "bfloat16":
        distance = relative_l2(ours, as_array(twin("float64")), floor)
        assert distance <= TOLERANCE[policy], f"relative L2 {distance:.3g} under {policy}"
        return
    expected = as_array(twin("bfloat16"))
    assert ours.shape == expected.shape, f"shape {ours.shape}, expected {expected.shape}"
    assert np.array_equal(ours, on_grid(ours)), "values off the bfloat16 grid"
    off = np.abs(ours - expected)
    size = np.abs(expected)
    if rows:
        off, size = np.linalg.norm(off, axis=-1), np.linalg.norm(size, axis=-1)
    strays = np.count_nonzero(off)
    allowed = 1 + STRAYS * off.size
    assert strays <= allowed, f"{strays} of {off.size} differ under bfloat16"
    # a sum of products that nearly cancel may be off by steps of its largest term, not its own
    assert np.all(off <= ULP * np.maximum(size, size.mean())), "differences beyond one rounding"


def cancellation(x: Array, weight: Array, bias: Array | None) -> float:
    """A tenth of the norm that x·Wᵀ + b has without signs.

    A lone output may cancel to next to nothing, and float32's error does not shrink with it.
    """
    terms = np.abs(x) @ np.abs(weight).T + (0 if bias is None else np.abs(bias))
    return max(0.1 * float(np.linalg.norm(terms)), 1e-30)


def assert_rounded_once(ours: Array, exact: Array) -> None:
    """``ours`` are the bfloat16 values nearest to ``exact``.

    Or their other neighbours, where float32's own error (1e-6) leaves open which is nearer.
    """
    assert ours.shape == exact.shape
    assert np.array_equal(ours, on_grid(ours)), "values off the bfloat16 grid"
    half_step = np.ldexp(1.0, np.frexp(exact)[1] - 9)
    assert np.all(np.abs(ours - exact) <= half_step + 1e-6 * np.abs(exact)), "not the nearest"
