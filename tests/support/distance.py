"""How far two arrays are from each other. NumPy only: kernels are also tested without torch."""

from __future__ import annotations

from typing import Any

import numpy as np


def relative_l2(ours: Any, theirs: Any, floor: float = 1e-30) -> float:
    """|ours − theirs| / |theirs| in float64; norms below ``floor`` count as ``floor``."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), floor)
