"""Gradient of the router: w = softmax(ℓ over the chosen A), ℓ = W x + b.

The choice itself is piecewise constant, so only the chosen logits have a gradient. For a softmax,
∂w_a/∂ℓ_b = w_a ([a = b] − w_b), hence

    dℓ_a = w_a (dw_a − Σ_b w_b dw_b)       for the chosen;  dℓ_e = 0 for every other expert

The dℓ of a token sum to zero: adding a constant to all logits changes no weight. A softmax over all
experts in the backward pass only is a known bug. From dℓ the linear layer gives dx, dW and db; a
frozen router leaves out the last two and still passes dx.

**Load balancing**, optional, as in transformers (``load_balancing_loss_func``; Fedus et al. 2021,
arXiv 2101.03961, equations 4 to 6). Over the N rows of all layers' routers together, let
f_e = (1/N) Σ [e chosen] and P_e = (1/N) Σ p_e with p = softmax(ℓ over *all* experts). The loss is
E Σ_e f_e P_e. Counts have no gradient, so

    dℓ_e = (E / N) p_e (f_e − Σ_j p_j f_j)         times the coefficient

Source: chain rule; OpenAI gpt-oss reference, ``MLPBlock``.
"""

from collections.abc import Sequence

import numpy as np

from gptoss_ref.gradients.linear import linear
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy
from gptoss_ref.weights import Matrix, RouterGradients


def router(
    d_weights: Array,
    x: Array,
    weight: Matrix,
    indices: Array,
    weights: Array,
    *,
    d_logits: Array | None = None,
    weight_gradients: bool = True,
    policy: str | Policy = FLOAT32,
) -> RouterGradients:
    """Gradients of the router's input and parameters, from ``d_weights`` (T, A).

    Args:
        x: (T, D).
        weight: (E, D).
        indices: (T, A), what the layer chose.
        weights: (T, A), its softmax over the chosen.
        d_logits: (T, E), a gradient that reaches the logits by another way (load balancing), or
            None.
        weight_gradients: see :func:`gptoss_ref.gradients.linear`.

    Returns:
        ``d_logits`` (T, E), ``d_x`` (T, D), ``d_weight`` (E, D), ``d_bias`` (E,).

    >>> x, weight, indices = np.ones((1, 1)), np.zeros((3, 1)), np.array([[2, 0]])
    >>> found = router(np.array([[8.0, 4.0]]), x, weight, indices, np.array([[0.5, 0.5]]))
    >>> found.d_logits, found.d_bias
    (array([[-1.,  0.,  1.]], dtype=float32), array([-1.,  0.,  1.], dtype=float32))
    """
    policy = get_policy(policy)
    total = np.zeros((len(indices), weight.shape[0]), policy.dtype)  # (T, E)
    np.put_along_axis(total, indices, shares(d_weights, weights, policy=policy), axis=-1)
    if d_logits is not None:
        total = policy.round(total + d_logits)
    found = linear(total, x, weight, weight_gradients=weight_gradients, policy=policy)
    return RouterGradients(total, *found)


def shares(d_weights: Array, weights: Array, *, policy: Policy = FLOAT32) -> Array:
    """Gradient (T, A) of the chosen logits, from ``d_weights`` (T, A) and ``weights`` (T, A)."""
    w, d_w = (a.astype(policy.dtype, copy=False) for a in (weights, d_weights))
    return policy.round(w * (d_w - (w * d_w).sum(axis=-1, keepdims=True)))


def load_balancing(
    logits: Sequence[Array], indices: Sequence[Array], *, policy: str | Policy = FLOAT32
) -> tuple[float, list[Array]]:
    """The load-balancing loss and its gradient (T, E) for the logits of each layer.

    Args:
        logits: of each layer, (T, E).
        indices: of each layer, (T, A), what it chose.

    >>> loss, (d_logits,) = load_balancing([np.zeros((1, 2))], [np.array([[0]])])
    >>> loss, d_logits  # all tokens to expert 0, which has half the probability
    (1.0, array([[ 0.5, -0.5]], dtype=float32))
    """
    policy = get_policy(policy)
    rows, experts = sum(map(len, logits)), logits[0].shape[-1]
    chosen = sum(np.bincount(i.ravel(), minlength=experts) for i in indices) / rows  # (E,) f
    probabilities = []
    for layer in logits:
        exp = np.exp(layer - layer.max(axis=-1, keepdims=True), dtype=policy.dtype)
        probabilities.append(exp / exp.sum(axis=-1, keepdims=True))  # (T, E) p
    mean = sum(p.sum(axis=0, dtype=np.float64) for p in probabilities) / rows  # (E,) P
    loss = experts * float(chosen @ mean)
    return loss, [
        policy.round(experts / rows * p * (chosen - (p @ chosen)[:, None])) for p in probabilities
    ]
