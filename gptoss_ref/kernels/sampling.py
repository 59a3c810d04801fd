"""Choosing a token from logits; mirrors ``gptoss_ref/sampling.py``.

Each is a few passes over the vocabulary, without temporary arrays except for top-p, which keeps
exactly the tokens that the layer keeps. The logits are float32 or float64 and everything is summed
in float64; log-probabilities are within 1e-12 of the largest logit's size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.numerics import Array


def _checked(logits: Array) -> Array:
    """Logits as the kernels take them: contiguous and writable, float32 or float64."""
    logits = np.asarray(logits)
    if logits.ndim != 1 or logits.dtype.kind != "f" or logits.size == 0:
        raise GptOssError(
            f"logits {logits.shape} of {logits.dtype}: expected (V,) floats, at least one"
        )
    return np.require(logits, np.float32 if logits.itemsize <= 4 else np.float64, ["C", "A", "W"])


def greedy(logits: Array) -> tuple[int, float]:
    """The likeliest token of ``logits`` (V,), of equal ones the lowest, and its log-probability.

    A NaN counts as the largest, as in ``np.argmax``.
    """
    token, log_probability = _greedy(_checked(logits))
    return int(token), float(log_probability)


@jit
def _greedy(logits: Any) -> Any:
    best = 0
    for i in range(logits.size):
        if np.isnan(logits[i]):
            best = i
            break
        if logits[i] > logits[best]:
            best = i
    return best, -_log_sum_exp(logits, np.float64(logits[best]))


@jit
def _log_sum_exp(logits: Any, shift: float) -> float:
    total = 0.0
    for i in range(logits.size):
        total += math.exp(np.float64(logits[i]) - shift)
    return math.log(total)


def log_probability(logits: Array, token: int) -> float:
    """Natural logarithm of the softmax of ``logits`` (V,) at ``token``."""
    logits = _checked(logits)
    largest = float(logits.max())
    return float(logits[token]) - largest - float(_log_sum_exp(logits, largest))


def token_probabilities(
    logits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> NDArray[np.float64]:
    """Distribution (V,) that is drawn from: temperature, then top-k, then top-p, renormalised.

    ``top_k`` keeps the k likeliest tokens and those equal to the k-th, 0 keeps all; ``top_p`` keeps
    the fewest likeliest tokens whose probabilities sum to at least this, of equal ones the lowest
    ids first.
    """
    logits = _checked(logits)
    floor = -np.inf
    if 0 < top_k < logits.size:
        floor = float(np.partition(logits, -top_k)[-top_k])
    if top_p < 1:
        probabilities = _rounded_as_the_layer(logits, float(temperature), floor)
        order = np.argsort(-probabilities, kind="stable")
        _cut(probabilities, order, float(top_p))
    else:
        probabilities = np.empty(logits.size, np.float64)
        _softmax(logits, float(temperature), floor, probabilities)
    return probabilities


def _rounded_as_the_layer(logits: Array, temperature: float, floor: float) -> NDArray[np.float64]:
    """The probabilities to the last bit: of equal tokens it decides which top-p cuts off.

    NumPy's exponential and its order of sums are not those of a compiled loop.
    """
    with np.errstate(over="ignore"):
        shifted = (logits.astype(np.float64) - logits.max()) / temperature
    shifted[logits < floor] = -np.inf
    probabilities: NDArray[np.float64] = np.exp(shifted - np.log(np.exp(shifted).sum()))
    return probabilities


@jit
def _softmax(logits: Any, temperature: float, floor: float, probabilities: Any) -> None:
    largest = -np.inf
    for i in range(logits.size):
        largest = max(largest, np.float64(logits[i]))
    total = 0.0
    for i in range(logits.size):
        logit = np.float64(logits[i])
        p = 0.0 if logit < floor else math.exp((logit - largest) / temperature)
        probabilities[i] = p
        total += p
    for i in range(logits.size):
        probabilities[i] /= total


@jit
def _cut(probabilities: Any, order: Any, top_p: float) -> None:
    """Drop what lies beyond the first ``top_p`` of probability mass, and renormalise."""
    so_far = mass = 0.0
    for i in order:
        p = probabilities[i]
        so_far += p
        if so_far - p >= top_p:  # rounded as the layer's cumulative sum is
            probabilities[i] = 0.0
        else:
            mass += p
    for i in range(probabilities.size):
        probabilities[i] /= mass
