"""A noise floor without a model: each operation may magnify an error by a stated factor.

If there is no model to measure with, the allowance of a tap point is computed from the errors that
the two traces show at its inputs, times the gain of the operation
(:data:`~gptoss_ref.verify.noise.tolerances.GAINS`), plus the rounding of the operation itself. A
tap point that a trace lacks passes on its bound. After a long gap the bound would allow any error;
such tap points are not judged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.tracing.taps import split
from gptoss_ref.verify.noise.noise_floor import NoiseFloor
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.tolerances import gain, tolerance
from gptoss_ref.verify.replay.evaluate import nodes
from gptoss_ref.verify.replay.graph import EXPERT_PRODUCTS
from gptoss_ref.verify.thresholds import (
    ALWAYS_ALLOWED,
    HOPELESS,
    INTEGERS,
    INTEGERS_FROM,
    ONE_ROW,
    WHOLE_ARRAY,
)

Floats = NDArray[np.float64]


class Propagation:
    """The noise floors of two traces, tap by tap, computed while their errors become known.

    Args:
        config: of the model.
        rounding: the coarser one of the two.
        length: T.
    """

    def __init__(self, config: ModelConfig, rounding: str, length: int) -> None:
        self._rounding, self._length = rounding, length
        # the shorter rows of the two matrices decide how the kernels compute both
        self._integers = EXPERT_PRODUCTS if config.width >= INTEGERS_FROM else ()
        self._inputs = {node.tap: node.inputs for node in nodes(config)}
        self._errors: dict[str, Floats] = {}

    def level(self, name: str) -> NoiseFloor:
        """Return the noise floor of a tap point; all earlier ones were passed to :meth:`saw`."""
        bound = self._bound(name)
        # The allowance is a multiple of the level; here the bound is the allowance.
        whole = float(np.sqrt(np.mean(bound**2))) / WHOLE_ARRAY
        return NoiseFloor(whole, bound / ONE_ROW, UNITS[self._rounding])

    def useful(self, name: str) -> bool:
        """Return whether the bound at a tap point can distinguish right from wrong."""
        return bool(np.median(self._bound(name)) < HOPELESS)

    def saw(self, name: str, errors: Floats | None) -> None:
        """Record the relative errors (T,) at a tap point; None: a trace lacks it.

        The part of an error that exceeds its bound is no rounding error, so it does not raise the
        allowance of the tap points computed from it.
        """
        bound = self._bound(name)
        self._errors[name] = bound if errors is None else np.minimum(errors, bound)

    def _bound(self, name: str) -> Floats:
        stage = split(name)[1]
        entering = np.zeros(self._length)
        for tap in self._inputs[name]:
            if not tap.endswith("expert_indices"):
                entering = np.maximum(entering, self._errors[tap])
        if stage in ("attn.weights", "attn.mix"):  # a token sees those before it
            entering = np.maximum.accumulate(entering)
        own = max(tolerance(stage, self._rounding), ALWAYS_ALLOWED * UNITS[self._rounding])
        if stage in self._integers:
            own = max(own, INTEGERS)
        with np.errstate(over="ignore"):
            return gain(stage) * entering + own
