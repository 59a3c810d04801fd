"""Solution to chapter 5: which experts a token visits, and how much each counts."""

import numpy as np


def router(x, weight, bias, experts_per_token):
    """x (T, D), weight (E, D), bias (E,) -> logits (T, E), indices (T, A), weights (T, A)."""
    logits = np.einsum("td,ed->te", x, weight) + bias  # (T, E)
    # A stable sort of the negated logits: the largest first, and of equal ones the lower index.
    order = np.argsort(-logits, axis=-1, kind="stable")  # (T, E)
    indices = order[:, :experts_per_token]  # (T, A)
    chosen = np.take_along_axis(logits, indices, axis=-1)  # (T, A)
    # The softmax sees the chosen logits only. The first of a row is its largest.
    exp = np.exp(chosen - chosen[:, :1])  # (T, A)
    return logits, indices, exp / exp.sum(axis=-1, keepdims=True)
