"""Choose a token from logits, in NumPy and float64, under every policy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import Array


def greedy(logits: Array) -> tuple[int, float]:
    """The likeliest token of ``logits`` (V,) (the lowest id among equals), its log-probability."""
    token = int(np.argmax(logits))
    return token, log_probability(logits, token)


def log_probability(logits: Array, token: int) -> float:
    """Natural logarithm of the softmax of ``logits`` (V,) at ``token``."""
    return float(log_softmax(np.asarray(logits, np.float64))[token])


def token_probabilities(
    logits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> NDArray[np.float64]:
    """The distribution (V,) to sample from: temperature, then top-k, then top-p, renormalised.

    ``logits`` (V,) are natural log-probabilities up to a constant. ``temperature`` divides them.
    ``top_k`` > 0 keeps the k largest, and those equal to the k-th. ``top_p`` < 1 keeps the smallest
    set of likeliest tokens whose probabilities sum to at least ``top_p``.

    >>> token_probabilities(np.log([0.5, 0.2, 0.3]), top_p=0.7).round(3)
    array([0.625, 0.   , 0.375])
    """
    logits = np.asarray(logits, np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0 gives −∞: only the largest remain
        logits = (logits - logits.max()) / temperature
    if 0 < top_k < len(logits):
        kth_largest = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits >= kth_largest, logits, -np.inf)
    probabilities = np.exp(log_softmax(logits))
    if top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        mass_before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[mass_before >= top_p]] = 0
        probabilities /= probabilities.sum()
    return probabilities


def log_softmax(logits: Array) -> Array:
    """Natural logarithms of softmax(``logits``) over the last axis: (…, V) to (…, V)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probabilities
