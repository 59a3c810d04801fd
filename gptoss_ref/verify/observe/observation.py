"""Observation of a server: log-probabilities of some tokens at some positions.

An HTTP endpoint gives neither logits nor intermediate arrays, only the natural log-probabilities of
the likeliest next tokens, and perhaps not at every position. That is enough to compare with this
package's log-probabilities, token by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.sampling import log_softmax
from gptoss_ref.tracing.rounding import ROUNDINGS


class LogprobObservation:
    """Log-probabilities of some next tokens at some positions of one prompt.

    Args:
        tokens: (T,) all ids: the prompt and the generated tokens.
        top: for each observed position the log-probabilities by token id. Those of position p are
            for the token after ``tokens[p]``.
        vocab_size: V.
        producer: the program that computed them, in words.
        left_out: what could not be observed and why, one sentence each.
        rounding: number format of the engine: float64, float32, bfloat16 or float16.
        resolution: precision of the printed numbers, in nats.

    Attributes:
        tokens: (T,) int64.
        positions: (P,) int64, ascending.
        top: P mappings from token id to log-probability.
        rows, ids, values: (N,) each, all observed numbers: ``values[i]`` is the log-probability of
            token ``ids[i]`` after ``tokens[rows[i]]``.

    Raises:
        TraceError: nothing was observed, or a position, an id or a number is invalid.
    """

    def __init__(
        self,
        tokens: Iterable[int] | Array,
        top: Mapping[int, Mapping[int, float]],
        *,
        vocab_size: int,
        producer: str = "unknown",
        left_out: Sequence[str] = (),
        rounding: str = "bfloat16",
        resolution: float = 1e-4,
    ) -> None:
        self.tokens: NDArray[np.int64] = np.asarray(
            tokens if isinstance(tokens, np.ndarray) else list(tokens), np.int64
        )
        self.producer, self.rounding, self.resolution = producer, rounding, resolution
        if rounding not in ROUNDINGS:
            expected = ", ".join(ROUNDINGS)
            raise TraceError(f"unknown rounding {rounding!r}: expected one of {expected}")
        if not 0 < resolution < 1:
            raise TraceError(f"resolution {resolution}: expected nats, more than 0 and less than 1")
        self.left_out = tuple(left_out)
        observed = {p: dict(top[p]) for p in sorted(top) if top[p]}
        if not observed:
            raise TraceError(f"{producer} shows no log-probabilities: nothing to judge by")
        self.positions: NDArray[np.int64] = np.array(list(observed), np.int64)
        self.top: tuple[dict[int, float], ...] = tuple(observed.values())
        self.rows: NDArray[np.int64] = np.repeat(self.positions, [len(t) for t in self.top])
        self.ids: NDArray[np.int64] = np.array([i for t in self.top for i in t], np.int64)
        self.values: NDArray[np.float64] = np.array(
            [value for t in self.top for value in t.values()], np.float64
        )
        self._check(vocab_size)

    def _check(self, vocab_size: int) -> None:
        if self.positions[0] < 0 or self.positions[-1] >= len(self.tokens):
            raise TraceError(
                f"{self.producer} shows log-probabilities at positions {self.positions[0]} to "
                f"{self.positions[-1]}: expected 0 to {len(self.tokens) - 1}"
            )
        for name, ids in (("token", self.tokens), ("log-probability of token", self.ids)):
            wrong = ids[(ids < 0) | (ids >= vocab_size)]
            if wrong.size:
                raise TraceError(
                    f"{self.producer} shows a {name} {wrong[0]}: expected 0 to {vocab_size - 1}"
                )
        # Rounding may give slightly more than 0 for a probability of 1; −∞ is a probability of 0.
        if np.isneginf(self.values).all():
            raise TraceError(
                f"{self.producer} gives all its tokens the probability 0: nothing to judge by"
            )
        bad = np.flatnonzero(np.isnan(self.values) | (self.values > 1e-3))
        if bad.size:
            at = bad[0]
            raise TraceError(
                f"{self.producer} gives token {self.ids[at]} at position {self.rows[at]} the "
                f"log-probability {self.values[at]}: expected a number of at most 0"
            )
        for position, top in zip(self.positions, self.top, strict=True):
            mass = float(np.exp(list(top.values())).sum())
            if mass > 1.01:
                raise TraceError(
                    f"{self.producer} gives the tokens after position {position} probabilities "
                    f"that sum to {mass:.4g}: expected at most 1; are these logits?"
                )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return (
            f"LogprobObservation({len(self)} log-probabilities at {len(self.positions)} of "
            f"{len(self.tokens)} positions, {self.producer})"
        )

    def differences(self, logits: Array) -> NDArray[np.float64]:
        """Observed minus own log-probabilities (N,) in nats, for own logits (T, V)."""
        return self.values - log_probabilities(logits, self.rows, self.ids)

    def agreement(self, logits: Array) -> Agreement:
        """The Agreement of the observation with the log-probabilities of logits (T, V)."""
        finite = np.isfinite(self.values)
        off = np.abs(self.differences(logits)[finite])
        same = 0
        for position, top in zip(self.positions, self.top, strict=True):
            ids = list(top)
            own = logits[position, ids]
            same += ids[int(own.argmax())] == max(top, key=lambda token: top[token])
        return Agreement(
            rms=float(np.sqrt(np.mean(off**2))) if off.size else 0.0,
            largest=float(off.max()) if off.size else 0.0,
            top1=same / len(self.top),
        )


@dataclass(frozen=True)
class Agreement:
    """The agreement of an observation with a model.

    Attributes:
        rms: root mean square difference of the log-probabilities, in nats.
        largest: the largest difference, in nats.
        top1: share of positions with the same likeliest token among the observed ones.
    """

    rms: float
    largest: float
    top1: float


def log_probabilities(logits: Array, rows: Any, ids: Any) -> NDArray[np.float64]:
    """Natural logarithms of softmax(``logits``)[rows, ids] (N,); logits are (T, V)."""
    values: NDArray[np.float64] = log_softmax(np.asarray(logits, np.float64))[rows, ids]
    return values
