"""Solution of chapter 9: the distribution that a token is drawn from.

Check it by `gptoss-ref check 09_sampling.py:sampling sampling`.
"""

import numpy as np


def softmax(logits):
    """Probabilities of logits, of which some may be minus infinity."""
    exp = np.exp(logits - logits.max())  # the largest becomes 1, so nothing overflows
    return exp / exp.sum()


def sampling(logits, temperature, top_k, top_p):
    """logits (V,) to probabilities (V,)."""
    # Temperature first: the cuts are made on the distribution that is drawn from.
    logits = logits / temperature

    # top-k: what is below the k-th largest goes. Equal ones stay, whatever their index.
    if 0 < top_k < len(logits):
        kth = np.sort(logits)[-top_k]
        logits = np.where(logits < kth, -np.inf, logits)

    # top-p, on what is left and renormalised. A token stays while those before it have not yet
    # reached top_p: so the one that crosses the line stays, and the first always does.
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(probabilities[order])[:-1]])
    if top_p < 1:
        probabilities[order[before >= top_p]] = 0.0
    return probabilities / probabilities.sum()
