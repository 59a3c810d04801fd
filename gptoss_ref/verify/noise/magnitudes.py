"""What any order of summation may do: noise in proportion to the terms that a sum is made of.

A dithered run (:mod:`~gptoss_ref.verify.noise.rounding`) errs in proportion to its *results*. A
sum that nearly cancels errs in proportion to its *terms*: a dot product by ``Σ |w|·|x|``, a mixture
of values by ``Σ weight·|v|``, a weight of attention by the size of its score, because exp makes an
absolute error of a score a relative one of the weight. A head whose sink takes nearly everything is
the extreme case: its mixture is small and its scores are large.

:func:`roughened` adds such noise to every operation of a model, and :class:`Blurred` adds noise to
what was recorded: a fused kernel computes from numbers that were not yet rounded, or that another
kernel rounded otherwise when they were recorded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gptoss_ref.numerics import FLOAT64, Array, widen
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.replay.ops import ModelOps, OpContext

SMALLEST = -104.0
"""Logarithm of the smallest weight that float32 can hold."""


def sum_unit(rounding: str) -> float:
    """The unit roundoff in which a run with this rounding adds: at least float32's."""
    return UNITS["float64" if rounding == "float64" else "float32"]


class Blurred(Mapping[str, Array]):
    """Recorded tap points, each value off by up to one rounding at random; choices as they are."""

    def __init__(self, given: Mapping[str, Array], unit: float, seed: int) -> None:
        self._given, self._unit, self._seed = given, unit, seed

    def __getitem__(self, tap: str) -> Array:
        values = np.asarray(self._given[tap])
        if values.dtype.kind in "iu":
            return values
        generator = np.random.default_rng([self._seed, *tap.encode()])
        push = generator.uniform(-1, 1, values.shape)
        return values.astype(np.float64) * (1 + self._unit * push)

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __contains__(self, tap: object) -> bool:
        return tap in self._given


def score_terms(q: Array, k: Array) -> Array:
    """Queries (T, H, C) and keys (S, K, C) -> (H, T, S): what each score is summed from."""
    groups = q.shape[1] // k.shape[1]
    keys = np.repeat(np.abs(k), groups, 1).transpose(1, 2, 0)  # (H, C, S)
    sizes: Array = np.abs(q).swapaxes(0, 1) @ keys / np.sqrt(q.shape[-1])
    return sizes


def roughened(ops: ModelOps, rounding: str, seed: int, scores: Array | None = None) -> ModelOps:
    """``ops`` with noise of the size that ``rounding`` gives to every sum and every result.

    For runs in float64, whose own rounding does not count.

    Args:
        scores: (H, T, S) what the scores of recorded weights were summed from, if that is known.
    """
    noise = _Noise(sum_unit(rounding), UNITS[rounding], np.random.default_rng([seed, 314]))
    noise.scores = scores
    wrapped = {name: _bound(getattr(noise, name), getattr(ops, name)) for name in _NOISY}
    return dataclasses.replace(ops, **wrapped)


def _bound(noisy: Callable[..., Any], right: Callable[..., Any]) -> Callable[..., Any]:
    def op(at: OpContext, *arguments: Any) -> Any:
        return noisy(right, at, *arguments)

    return op


_NOISY = (
    "rmsnorm",
    "linear",
    "rope_tables",
    "rope",
    "attention_weights",
    "attention_mix",
    "expert_weights",
    "expert_linear",
    "swiglu",
    "combine",
    "residual",
)


class _Noise:
    """Operations of the model with noise; each calls the operation that it replaces.

    Args:
        small: unit roundoff of the sums.
        unit: unit roundoff of the results.
    """

    def __init__(self, small: float, unit: float, generator: np.random.Generator) -> None:
        self._small, self._unit, self._generator = small, unit, generator
        self.scores: Array | None = None

    def _random(self, values: Array, *axes: int) -> Array:
        shape = [1 if axis in axes else size for axis, size in enumerate(values.shape)]
        return self._generator.uniform(-1, 1, shape)

    def _off(self, y: Array, magnitude: Array | float) -> Array:
        """``y`` with noise from its terms and from its own rounding."""
        noise = self._small * magnitude * self._random(y)
        return y + noise + self._unit * y * self._random(y)

    def rmsnorm(self, right: Any, at: OpContext, x: Array, scale: Array) -> Array:
        y = right(at, x, scale)
        # any order of summation counts: a sum of D squares is off by up to some √D roundings
        common = math.sqrt(x.shape[-1]) * self._random(y, 1)  # (T, 1)
        noisy: Array = self._off(y, 2 * np.abs(y)) + self._small * common * y
        return noisy

    def linear(self, right: Any, at: OpContext, x: Array, weight: Any, bias: Any) -> Array:
        y = right(at, x, weight, bias)
        return self._off(y, right(at, np.abs(x), _absolute(weight), _absolute(bias)))

    expert_linear = linear

    def rope_tables(
        self, right: Any, at: OpContext, positions: Array, inv_freq: Array, concentration: float
    ) -> tuple[Array, Array]:
        off = inv_freq * (1 + 2 * self._small * self._random(inv_freq))
        cos, sin = right(at, positions, off, concentration)
        return cos, sin

    def rope(self, right: Any, at: OpContext, x: Array, cos: Array, sin: Array) -> Array:
        sizes = np.abs(x), np.abs(cos), np.abs(sin)
        terms = np.maximum(right(at, *sizes), right(at, *sizes[:2], -sizes[2]))
        return self._off(right(at, x, cos, sin), (1 + self._unit / self._small) * terms)

    def attention_weights(
        self, right: Any, at: OpContext, q: Array, k: Array, sinks: Array, *where: Any
    ) -> Array:
        weights = right(at, q, k, sinks, *where)  # (H, t, S)
        sizes = score_terms(q, k)  # (H, t, S)
        largest = np.where(weights > 0, sizes, 0).max(axis=-1, keepdims=True)
        largest += np.abs(widen(sinks, FLOAT64.dtype)).reshape(-1, 1, 1)
        shared = (1 + largest) * self._random(weights, 2)
        return self._off(weights, weights * (1 + sizes + np.abs(shared)))

    def attention_mix(
        self, right: Any, at: OpContext, weights: Array, v: Array, *where: Any
    ) -> Array:
        y = right(at, weights, v, *where)
        with np.errstate(divide="ignore"):
            sizes = 2 + np.abs(np.maximum(np.log(weights), SMALLEST))
        if self.scores is not None and self.scores.shape == weights.shape:
            sizes += self.scores
        terms = right(at, weights * sizes, np.abs(v), *where)
        return self._off(y, terms)

    def expert_weights(self, right: Any, at: OpContext, logits: Array, indices: Array) -> Array:
        shares = right(at, logits, indices)
        size = np.abs(logits).max(axis=1, keepdims=True)
        return self._off(shares, shares * (2 + 2 * size))

    def swiglu(self, right: Any, at: OpContext, x: Array) -> Array:
        y = right(at, x * (1 + 2 * self._small * self._random(x)))
        return self._off(y, 2 * np.abs(y))

    def combine(
        self, right: Any, at: OpContext, answers: Array, weights: Array, *rest: Any
    ) -> Array:
        indices, bias = rest
        terms = right(at, np.abs(answers), np.abs(weights), indices, _absolute(bias))
        return self._off(right(at, answers, weights, *rest), terms)

    def residual(self, right: Any, at: OpContext, x: Array, out: Array) -> Array:
        return self._off(right(at, x, out), np.abs(x) + np.abs(out))


def _absolute(matrix: Any) -> Any:
    """Absolute values of a stored matrix; what a mutant put in its place stays as it is."""
    return np.abs(widen(matrix, FLOAT64.dtype)) if isinstance(matrix, np.ndarray) else matrix
