"""A noise floor without a model: an error may come out of an operation only so much larger.

Where no model is at hand to measure with, each tap point is held to the errors that the two traces
themselves show at what it is computed from, times what the operation may make of them
(:data:`~gptoss_ref.verify.noise.tolerances.GAINS`), plus the operation's own rounding. Tap points
that a trace lacks pass their bound on, so that long gaps soon allow anything: those are not judged.
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
from gptoss_ref.verify.thresholds import ALWAYS_ALLOWED, HOPELESS, ONE_ROW, WHOLE_ARRAY

Floats = NDArray[np.float64]


class Propagation:
    """The noise floors of two traces, tap by tap, as their errors become known.

    Args:
        config: of the model.
        rounding: the coarser of the two.
        length: T.
    """

    def __init__(self, config: ModelConfig, rounding: str, length: int) -> None:
        self._rounding, self._length = rounding, length
        self._inputs = {node.tap: node.inputs for node in nodes(config)}
        self._errors: dict[str, Floats] = {}

    def level(self, name: str) -> NoiseFloor:
        """What may be expected at a tap point; all before it have been passed to :meth:`saw`."""
        bound = self._bound(name)
        # A level's allowed errors are multiples of it: here the bound is itself what is allowed.
        whole = float(np.sqrt(np.mean(bound**2))) / WHOLE_ARRAY
        return NoiseFloor(whole, bound / ONE_ROW, UNITS[self._rounding])

    def useful(self, name: str) -> bool:
        """Whether the bound at a tap point can tell right from wrong."""
        return bool(np.median(self._bound(name)) < HOPELESS)

    def saw(self, name: str, errors: Floats | None) -> None:
        """Take note of the relative errors (T,) at a tap point; None: a trace lacks it.

        What exceeds its bound is no rounding error, and excuses nothing that is computed from it.
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
        with np.errstate(over="ignore"):
            return gain(stage) * entering + own
