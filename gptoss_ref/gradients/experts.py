"""Gradient of the mixture of experts, y_t = Σ_a w_ta · expert_{index_ta}(x_t).

For a token that chose expert e in place a, with the answer o = W2_e s + b2_e, s = swiglu(h) and
h = W1_e x + b1_e,

    dw = dy · o                 the answer *with* its bias
    do = w dy                   ds = W2ᵀ do       dW2 += do sᵀ       db2 += do
    dh = swiglu'(ds, h)         dx += W1ᵀ dh      dW1 += dh xᵀ       db1 += dh

An expert that no token chose gets zero. Each expert is visited once, with all tokens that chose it:
its h, s and o are computed again, so that nothing of size (T, A, 2F) is kept, unless a tap wants
it. Source: chain rule; OpenAI gpt-oss reference, ``MLPBlock``.
"""

from collections.abc import Callable

import numpy as np

from gptoss_ref.gradients.linear import parameters, product
from gptoss_ref.gradients.swiglu import swiglu
from gptoss_ref.layers.experts import expert_linear
from gptoss_ref.layers.swiglu import swiglu as swiglu_layer
from gptoss_ref.numerics import FLOAT32, Array, Policy, get_policy
from gptoss_ref.weights import ExpertGradients, ExpertMatrix


def experts(
    d_y: Array,
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
    weight_gradients: bool = True,
    policy: str | Policy = FLOAT32,
    tap: Callable[[str, Array], None] | None = None,
) -> ExpertGradients:
    """Gradients of all inputs of :func:`gptoss_ref.layers.experts`, from ``d_y`` (T, D).

    Args:
        x: (T, D).
        indices: (T, A).
        weights: (T, A).
        mlp1_weight: (E, 2F, D), gate and up rows interleaved.
        mlp1_bias: (E, 2F).
        mlp2_weight: (E, D, F).
        mlp2_bias: (E, D).
        alpha, limit: of :func:`gptoss_ref.layers.swiglu`.
        weight_gradients: False leaves out the products for frozen experts, whose four gradients are
            then None.
        tap: called with the gradients of ``expert_out`` (T, A, D), ``swiglu`` (T, A, F) and
            ``gate_up`` (T, A, 2F).

    Returns:
        ``d_x`` (T, D), ``d_weights`` (T, A), and the weights' gradients in their own shapes.

    >>> one = np.ones((2, 2, 1))  # two experts, D = F = 1: gate = up = x
    >>> x, indices, weights = np.zeros((1, 1)), np.array([[1]]), np.array([[0.5]])
    >>> found = experts(np.ones((1, 1)), x, indices, weights, one, np.zeros((2, 2)), one[:, :1],
    ...                 np.array([[4.0], [8.0]]))
    >>> found.d_x, found.d_weights, found.d_mlp2_bias  # expert 0 has no part in it
    (array([[0.25]], dtype=float32), array([[8.]], dtype=float32), array([[0. ],
           [0.5]], dtype=float32))
    """
    policy = get_policy(policy)
    r, dtype = policy.round, policy.dtype
    d_y, weights = (a.astype(dtype, copy=False) for a in (d_y, weights))
    tokens, active = indices.shape
    d_x = np.zeros((tokens, x.shape[1]), dtype)
    d_weights = np.zeros((tokens, active), dtype)
    sizes = {"expert_out": x.shape[1], "swiglu": mlp2_weight.shape[-1]}
    sizes["gate_up"] = mlp1_bias.shape[-1]
    stages: dict[str, Array] = {}
    if tap is not None:
        stages = {name: np.empty((tokens, active, n), dtype) for name, n in sizes.items()}
    d_w1 = d_b1 = d_w2 = d_b2 = None
    if weight_gradients:
        d_w1, d_b1 = np.zeros(mlp1_weight.shape, dtype), np.zeros(mlp1_bias.shape, dtype)
        d_w2, d_b2 = np.zeros(mlp2_weight.shape, dtype), np.zeros(mlp2_bias.shape, dtype)

    for expert in np.unique(indices):
        e = int(expert)
        t, a = np.nonzero(indices == e)  # (n,) the tokens that chose e, and in which place
        gate_up = expert_linear(x[t], mlp1_weight[e], mlp1_bias[e], policy)  # (n, 2F)
        activated = swiglu_layer(gate_up, alpha, limit, policy=policy)  # (n, F)
        answer = expert_linear(activated, mlp2_weight[e], mlp2_bias[e], policy)  # (n, D)

        d_weights[t, a] = r((d_y[t] * answer).sum(axis=-1))
        d_answer = r(weights[t, a, None] * d_y[t])  # (n, D)
        d_activated = r(product(d_answer, mlp2_weight[e], policy=policy))  # (n, F)
        d_gate_up = swiglu(d_activated, gate_up, alpha, limit, policy=policy)  # (n, 2F)
        d_x[t] += product(d_gate_up, mlp1_weight[e], policy=policy)  # rounded once for all experts
        if d_w1 is not None and d_b1 is not None and d_w2 is not None and d_b2 is not None:
            d_w1[e], d_b1[e] = parameters(d_gate_up, x[t], policy=policy)
            d_w2[e], d_b2[e] = parameters(d_answer, activated, policy=policy)
        if tap is not None:
            stages["expert_out"][t, a] = d_answer
            stages["swiglu"][t, a] = d_activated
            stages["gate_up"][t, a] = d_gate_up

    if tap is not None:
        for name, values in stages.items():
            tap(name, values)
    return ExpertGradients(r(d_x), d_weights, d_w1, d_b1, d_w2, d_b2)
