"""Sampling of a token from logits; mirrors ``gptoss_ref/sampling.py``.

Each function makes a few passes over the vocabulary, without temporary arrays. The exception is
top-p, which keeps exactly the tokens that ``gptoss_ref/sampling.py`` keeps. Logits are float32 or
float64, and all sums are float64; the error of a log-probability is within 1e-12 of the largest
logit's magnitude.
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
    """Return the logits contiguous and writable, in float32 or float64."""
    logits = np.asarray(logits)
    if logits.ndim != 1 or logits.dtype.kind != "f" or logits.size == 0:
        raise GptOssError(
            f"logits {logits.shape} of {logits.dtype}: expected (V,) floats, at least one"
        )
    return np.require(logits, np.float32 if logits.itemsize <= 4 else np.float64, ["C", "A", "W"])


def greedy(logits: Array) -> tuple[int, float]:
    """Return the most likely token of ``logits`` (V,) and its log-probability.

    Among equal logits the lowest token wins; a NaN counts as the largest, as in ``np.argmax``.
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
    """Return the natural logarithm of the softmax of ``logits`` (V,) at ``token``."""
    logits = _checked(logits)
    largest = float(logits.max())
    return float(logits[token]) - largest - float(_log_sum_exp(logits, largest))


def token_probabilities(
    logits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> NDArray[np.float64]:
    """Return the distribution (V,) to draw from: temperature, then top-k, then top-p, renormalised.

    ``top_k`` keeps the k most likely tokens and all that equal the k-th; 0 keeps all. ``top_p``
    keeps the smallest number of most likely tokens whose probabilities sum to at least ``top_p``;
    among equal probabilities the lowest ids come first.
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
    """Return the probabilities equal to those of ``gptoss_ref/sampling.py`` to the last bit.

    Among tokens of equal probability, the last bit decides which ones top-p removes. A compiled
    loop would not give it: NumPy has another exponential and another order of summation.
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
    """Set the tokens beyond the first ``top_p`` of probability to 0, and renormalise."""
    so_far = mass = 0.0
    for i in order:
        p = probabilities[i]
        so_far += p
        if so_far - p >= top_p:  # rounds as the cumulative sum in ``gptoss_ref/sampling.py``
            probabilities[i] = 0.0
        else:
            mass += p
    for i in range(probabilities.size):
        probabilities[i] /= mass
