"""Numbers that every machine draws alike: short binary fractions from a frozen generator.

NumPy promises the stream of ``RandomState`` for good, and integers need no libm, so that the suite
is the same to the byte wherever it is written.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = 512
"""Values are multiples of 1/512: exact in float32 and float16, short as JSON."""


class Numbers:
    """Draws arrays of a given shape; the seed is the case's place in the suite."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)

    def uniform(self, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        """Of this shape, uniform on the multiples of ``scale`` / 512 in [−scale, scale]."""
        drawn = self._state.randint(-STEPS, STEPS + 1, shape)
        return np.asarray(drawn / STEPS * scale, np.float32)

    def bell(self, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        """Of this shape, nearly Gaussian: the sum of three uniforms, deviation about ``scale``."""
        drawn = self._state.randint(-STEPS, STEPS + 1, (3, *shape)).sum(axis=0)
        return np.asarray(drawn / STEPS * scale, np.float32)

    def integers(self, low: int, high: int, *shape: int) -> NDArray[np.int32]:
        """Of this shape, integers in [low, high)."""
        return self._state.randint(low, high, shape).astype(np.int32)

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        """Of this shape, uniform bytes."""
        return self._state.randint(0, 256, shape).astype(np.uint8)

    def choices(self, tokens: int, experts: int, active: int) -> NDArray[np.int32]:
        """(T, A) different experts for each token, in no order."""
        rows = [self._state.permutation(experts)[:active] for _ in range(tokens)]
        return np.array(rows, np.int32).reshape(tokens, active)
