"""Random numbers that are the same on every machine: short binary fractions.

NumPy guarantees that the stream of ``RandomState`` never changes, and integers need no libm, so
that the suite is byte for byte the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 512
"""Values are multiples of 1/512: exact in float32 and float16, short as JSON."""


class Numbers:
    """Draws arrays of a given shape; the seed identifies the case."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)

    def uniform(self, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        """An array of this shape, uniform on multiples of ``scale`` / 512 in [−scale, scale]."""
        drawn = self._state.randint(-STEPS, STEPS + 1, shape)
        return np.asarray(drawn / STEPS * scale, np.float32)

    def bell(self, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        """An array of this shape, the sum of three uniforms; standard deviation about ``scale``."""
        drawn = self._state.randint(-STEPS, STEPS + 1, (3, *shape)).sum(axis=0)
        return np.asarray(drawn / STEPS * scale, np.float32)

    def integers(self, low: int, high: int, *shape: int) -> NDArray[np.int32]:
        """An array of this shape, integers in [low, high)."""
        return self._state.randint(low, high, shape).astype(np.int32)

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        """An array of this shape, uniform bytes."""
        return self._state.randint(0, 256, shape).astype(np.uint8)

    def choices(self, tokens: int, experts: int, active: int) -> NDArray[np.int32]:
        """An array (T, A) of different experts for each token, unordered."""
        rows = [self._state.permutation(experts)[:active] for _ in range(tokens)]
        return np.array(rows, np.int32).reshape(tokens, active)
