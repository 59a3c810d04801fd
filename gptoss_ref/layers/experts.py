"""Mixture of experts: the weighted sum of the outputs of each token's A experts.

    expert_e(x) = W2_e · swiglu(W1_e · x + b1_e) + b2_e
    y_t = Σ_a w_ta · expert_{index_ta}(x_t)

The router's weight multiplies the whole output, *including* the bias b2 (an unweighted b2 is the
bug ``down-bias-unweighted``). The loop runs over the experts, each with all tokens that chose it,
so that only one expert's weights are widened at a time. Source: OpenAI gpt-oss reference,
``MLPBlock``.
"""

from collections.abc import Callable

import numpy as np

from gptoss_ref.layers.linear import matmul
from gptoss_ref.layers.swiglu import swiglu
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy, widen
from gptoss_ref.weights import ExpertMatrix


def experts(
    x: Array,
    indices: Array,
    weights: Array,
    mlp1_weight: ExpertMatrix,
    mlp1_bias: Array,
    mlp2_weight: ExpertMatrix,
    mlp2_bias: Array,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    policy: str | Policy = FLOAT32,
    tap: Callable[[str, Array], None] | None = None,
) -> Array:
    """Outputs of experts ``indices`` (T, A) for ``x`` (T, D), summed by ``weights`` (T, A): (T, D).

    Args:
        mlp1_weight: (E, 2F, D), gate and up rows interleaved.
        mlp1_bias: (E, 2F).
        mlp2_weight: (E, D, F).
        mlp2_bias: (E, D).
        alpha, limit: of :func:`gptoss_ref.layers.swiglu`.
        tap: called with ``gate_up`` (T, A, 2F), ``swiglu`` (T, A, F) and ``expert_out`` (T, A, D).

    >>> one = np.ones((2, 2, 1))  # two experts, D = F = 1: gate = up = x
    >>> x, indices, weights = np.zeros((2, 1)), np.array([[0, 1], [1, 0]]), np.array([[0.75, 0.25]])
    >>> b1, b2 = np.zeros((2, 2)), np.array([[4.0], [8.0]])
    >>> experts(x, indices, weights.repeat(2, 0), one, b1, one[:, :1], b2)  # x = 0 leaves only b2
    array([[5.],
           [7.]], dtype=float32)
    """
    policy = get_policy(policy)
    r = policy.round
    (tokens, width), active = x.shape, indices.shape[1]
    out = np.zeros((tokens, width), policy.dtype)
    if tap is not None:
        doubled = mlp1_bias.shape[-1]
        sizes = {"gate_up": doubled, "swiglu": doubled // 2, "expert_out": width}
        stages = {name: np.empty((tokens, active, n), policy.dtype) for name, n in sizes.items()}

    for e in np.unique(indices):
        t, a = np.nonzero(indices == e)  # (n,) the tokens that chose e, and its column in indices
        gate_up = expert_linear(x[t], mlp1_weight[int(e)], mlp1_bias[e], policy)  # (n, 2F)
        activated = swiglu(gate_up, alpha, limit, policy=policy)  # (n, F)
        answer = expert_linear(activated, mlp2_weight[int(e)], mlp2_bias[e], policy)  # (n, D)
        out[t] += weights[t, a, None] * answer  # a token chooses an expert once: t has no repeats
        if tap is not None:
            stages["gate_up"][t, a] = gate_up
            stages["swiglu"][t, a] = activated
            stages["expert_out"][t, a] = answer

    if tap is not None:
        for name, values in stages.items():
            tap(name, values)
    return r(out)


def expert_linear(x: Array, weight: ExpertMatrix, bias: Array, policy: Policy) -> Array:
    """One expert's W x + b for ``x`` (T, M), ``weight`` (N, M) and ``bias`` (N,): (T, N).

    Unlike in a linear layer, the product is rounded before the bias is added.
    """
    return policy.round(policy.round(matmul(x, weight, policy=policy)) + widen(bias, policy.dtype))
