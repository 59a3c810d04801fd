"""Router: choose A of E experts for each token, and weigh the chosen.

    ℓ = W x + b                    chosen = the A largest of ℓ
    w = softmax(ℓ over the chosen) so the weights sum to one

Softmax over all experts gives the same weights only if they are renormalised over the chosen
(otherwise: the bug ``softmax-before-topk``). The choice is discrete: a rounding error smaller than
the margin between the last chosen logit and the next one changes no expert, a larger one may.
Torch leaves the order of equal logits open; here the lower index comes first. Source: OpenAI
gpt-oss reference, ``MLPBlock``.
"""

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.layers.linear import linear
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy
from gptoss_ref.weights import RouterOutput


def router(
    x: Array, weight: Array, bias: Array, experts_per_token: int, *, policy: str | Policy = FLOAT32
) -> RouterOutput:
    """Route ``x`` (T, D) by ``weight`` (E, D) and ``bias`` (E,) to ``experts_per_token``, A.

    Returns logits (T, E), the chosen indices (T, A) and their weights (T, A), largest first. A NaN
    logit counts as the largest, as in torch, so that it reaches the result.

    >>> x, weight, bias = np.ones((1, 1)), np.log([[1], [4], [4], [2]]), np.zeros(4)
    >>> logits, indices, weights = router(x, weight, bias, 3)
    >>> indices, weights.round(3)
    (array([[1, 2, 3]]), array([[0.4, 0.4, 0.2]], dtype=float32))
    """
    policy = get_policy(policy)
    logits = linear(x, weight, bias, policy=policy)  # (T, E)
    indices = top_k(logits, experts_per_token)  # (T, A)
    return RouterOutput(logits, indices, shares(logits, indices, policy=policy))


def top_k(logits: Array, k: int) -> NDArray[np.int64]:
    """Indices (T, k) of the ``k`` largest logits (T, E) of each row; ties in order of index."""
    descending = np.where(np.isnan(logits), -np.inf, -logits)
    return np.argsort(descending, axis=-1, kind="stable")[:, :k]


def shares(logits: Array, indices: Array, *, policy: Policy = FLOAT32) -> Array:
    """Softmax of ``logits`` (T, E) over the chosen ``indices`` (T, A) only: (T, A).

    >>> shares(np.log([[1.0, 3.0, 4.0]]), np.array([[1, 0]]))
    array([[0.75, 0.25]], dtype=float32)
    """
    chosen = np.take_along_axis(logits, indices, axis=-1)  # (T, A)
    exp = np.exp(chosen - chosen.max(axis=-1, keepdims=True))
    return policy.round(exp / exp.sum(axis=-1, keepdims=True))
