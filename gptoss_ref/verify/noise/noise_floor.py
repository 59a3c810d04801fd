"""The noise floor: the measured error that rounding alone causes in a correct run.

The specification is run in float64 and, in parallel, with the rounding of the implementation under
test. The distance of the two runs at a tap point is the error that rounding explains there. Both
runs use the *same routes*, the implementation's own choices of experts, so that a choice between
two nearly equal experts, which is not an error, does not contribute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, FLOAT64, Array, widen
from gptoss_ref.tracing.taps import axes, names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.metrics import Errors, measure_arrays
from gptoss_ref.verify.noise.rounding import UNITS, dithered, known
from gptoss_ref.verify.progress import Steps, unwatched
from gptoss_ref.verify.replay.evaluate import Run, predict, walk, whole
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.verify.thresholds import (
    ALWAYS_ALLOWED,
    MEASURED_ROWS,
    MEASURED_TOKENS,
    ONE_ROW,
    WHOLE_ARRAY,
)


@dataclass(frozen=True)
class NoiseFloor:
    """The noise floor at one tap point.

    Attributes:
        whole: relative L2 distance of the whole array.
        rows: (T,) relative distance of each row.
        unit: unit roundoff of the rounding.
    """

    whole: float
    rows: NDArray[np.float64]
    unit: float

    def extended(self, length: int, rounding: str) -> NoiseFloor:
        """Return the noise floor for a longer prompt than it was measured on.

        Later rows get the allowance of the worst measured row. Rotary angles that are computed in
        float32 become less exact with the position, which is visible if no coarser rounding hides
        it.
        """
        have = len(self.rows)
        if length <= have:
            return NoiseFloor(self.whole, self.rows[:length], self.unit)
        position = np.arange(have, length)
        growth = position / have if rounding in ("float32", "float64") else np.ones(length - have)
        rows = np.concatenate([self.rows, self.rows.max() * growth])
        return NoiseFloor(self.whole * max(1.0, float(growth.max())), rows, self.unit)

    def times(self, factor: float) -> NoiseFloor:
        """Return the noise floor for numbers rounded with something ``factor`` times as large."""
        return NoiseFloor(self.whole * factor, self.rows * factor, self.unit * factor)

    @staticmethod
    def allowing(error: float, length: int, unit: float) -> NoiseFloor:
        """Return a noise floor that allows this relative error, also of each row."""
        return NoiseFloor(error / WHOLE_ARRAY, np.full(length, error / ONE_ROW), unit)

    @property
    def allowed(self) -> float:
        """Largest relative L2 distance of the whole array that rounding explains."""
        return max(WHOLE_ARRAY * self.whole, ALWAYS_ALLOWED * self.unit)

    @property
    def allowed_rows(self) -> NDArray[np.float64]:
        """(T,) the same for each row; it is at least that of a typical row."""
        usual = float(np.sqrt(np.mean(self.rows**2)))
        return np.maximum(ONE_ROW * np.maximum(self.rows, usual), ALWAYS_ALLOWED * self.unit)


def level(samples: Iterable[Errors], rounding: str) -> NoiseFloor:
    """Return the noise floor of a tap point, given the distances of rounded runs to float64."""
    samples = list(samples)
    rows = np.max([sample.rows() for sample in samples], axis=0)
    whole = max(sample.rel_l2 for sample in samples)
    scale = 1.0
    if rounding == "float64":  # no type is more exact: use float32's distance, scaled down
        scale = UNITS["float64"] / UNITS["float32"]
    return NoiseFloor(whole * scale, rows * scale, UNITS[rounding])


def runs_of(ops: ModelOps, rounding: str, length: int) -> list[Run]:
    """Return the runs behind a noise floor: one in float64, and some with the other's rounding."""
    imitated = "float32" if rounding == "float64" else rounding
    samples = ((ops, dithered(imitated, seed)) for seed in range(samples_of(length)))
    return [(ops, FLOAT64), *samples]


def samples_of(length: int) -> int:
    """Return the number of rounded runs: more for a short prompt, which has few values."""
    return min(8, math.ceil(MEASURED_ROWS / length))


def measured(
    model: Model,
    tokens: Array,
    rounding: str,
    *,
    wanted: Iterable[str],
    given: Mapping[str, Array] | None = None,
) -> Iterator[tuple[str, Array, NoiseFloor]]:
    """Yield each wanted tap point in order: its name, its values in float64, and its noise floor.

    Only one array is in memory at a time, so a trace can have any length.

    Args:
        tokens: (T,), from position 0.
        rounding: one of UNITS.
        given: tap points that replace the computed ones in both runs. With the other
            implementation's expert indices, both runs follow its routes. With all of its tap
            points, every stage is computed from the other implementation's own inputs.

    Raises:
        TraceError: an unknown rounding.
    """
    runs = runs_of(ModelOps(), known(rounding), len(tokens))
    weights, config = model.weights, model.config
    for name, (exact, *rounded) in walk(weights, config, runs, tokens, given or {}, wanted):
        axis = axes(name).index("T")
        if exact.dtype.kind in "iu":
            yield name, exact, NoiseFloor(0.0, np.zeros(len(tokens)), UNITS[rounding])
        else:
            samples = (measure_arrays(exact, sample, axis) for sample in rounded)
            yield name, exact, level(samples, rounding)


def follow(
    model: Model, tokens: Array, rounding: str, wanted: Iterable[str], routes: Trace
) -> Iterator[Array]:
    """Yield the wanted tap points, in order, of the specification on the routes of another run.

    ``tokens`` (T,). The precision is one that is much finer than ``rounding``.
    """
    policy = FLOAT64 if rounding in ("float64", "float32") else FLOAT32
    known = whole(routes)
    given = {name: routes[name] for name in known if name.endswith("expert_indices")}
    runs: list[Run] = [(ModelOps(), policy)]
    for _, (values,) in walk(model.weights, model.config, runs, tokens, given, wanted):
        yield values


@dataclass(frozen=True)
class NoiseFloors:
    """The noise floors of a model on one prompt, by tap point.

    Attributes:
        rounding: whose errors these are.
        levels: of the first ``length`` tokens.
        length: tokens measured on.
    """

    rounding: str
    levels: Mapping[str, NoiseFloor]
    length: int

    def level(self, name: str, length: int) -> NoiseFloor:
        """The noise floor of a tap point for a prompt of ``length`` tokens."""
        return self.levels[name].extended(length, self.rounding)

    def __str__(self) -> str:
        return f"{self.rounding}, measured on the first {self.length} tokens"


def measure_noise_floors(
    model: Model,
    tokens: Array,
    rounding: str,
    *,
    wanted: Iterable[str] | None = None,
    routes: Trace | None = None,
    steps: Steps | None = None,
) -> NoiseFloors:
    """Measure the error that a rounding explains, on the first tokens of a prompt.

    Args:
        tokens: (T,).
        rounding: one of UNITS.
        wanted: tap points; None: all. Router logits are always measured.
        routes: the trace whose choices of experts are followed, if it has them; else those of the
            specification.
        steps: counts the tap points.
    """
    config = model.config
    start = np.asarray(tokens)[:MEASURED_TOKENS]
    wanted = set(names(config) if wanted is None else wanted)
    chosen = [f"block.{n}.mlp.expert_indices" for n in range(config.num_hidden_layers)]
    wanted |= {f"block.{n}.mlp.router_logits" for n in range(config.num_hidden_layers)}
    known = frozenset[str]() if routes is None else whole(routes)
    given = {name: routes[name][: len(start)] for name in chosen if routes and name in known}
    if len(given) < len(chosen):
        unknown = [name for name in chosen if name not in given]
        given |= predict(model.weights, config, ModelOps(), start, given, unknown)
    steps = steps or Steps(unwatched)
    steps.expect(len(wanted))
    levels = {}
    for name, _, found in measured(model, start, rounding, wanted=wanted, given=given):
        levels[name] = found
        steps.say(f"measuring what rounding does to {name}")
        steps.tick()
    return NoiseFloors(rounding, levels, len(start))


def made_by(model: Model, trace: Trace) -> bool:
    """Return whether a trace can be of this model: its configuration and its embeddings match.

    Embeddings, if the trace has them, are rows of the model's table, rounded to the trace's dtype.
    """
    if model.config.differences(trace.config):
        return False
    if "embedding" not in trace:
        return True
    table = widen(model.weights.embedding[trace.tokens], np.float64)
    unit = UNITS[trace.dtype_name or "bfloat16"]
    return measure_arrays(table, trace["embedding"]).rel_l2 <= ALWAYS_ALLOWED * unit
