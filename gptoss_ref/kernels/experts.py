"""Mixture of experts; mirrors ``layers/experts.py``.

Tokens are grouped by expert, so that the weights of an expert are read once per pass. For MXFP4
weights there are two sets of tasks, and only activations are stored between them:

1. a task is 64 rows of the first matrices: gate and up of 32 activations, which are one block of
   the second matrix's input. For one expert after the other it computes these rows for all tokens
   of the expert, adds the bias and applies SwiGLU;
2. a task is 64 rows of the result: for one expert after the other it computes the second matrix's
   rows, adds the bias, multiplies by the router's weight, and adds the product to the results of
   the tokens. No two tasks write to the same element.

Each thread has a range of tasks and processes them expert by expert, so that it reads long
stretches of memory in order. The products, their accumulators and their errors are those of
``matmul/``: each is within 1e-4 relative L2 of float64 given its input, and so is the result on
Gaussian activations. The kernel is faster than the layer because weights are never decoded in
memory. For other weights (bfloat16 or float experts), ``linear`` computes one expert after the
other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.expert_tasks import chosen_of, mixture, plan_of
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.matmul.mxfp4_block import ROWS, Stored
from gptoss_ref.kernels.matmul.mxfp4_methods import method_of, refuse_255, stored_of
from gptoss_ref.kernels.runtime.arrays import check_policy, matrix_of, values
from gptoss_ref.kernels.runtime.isa import current_path
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.kernels.swiglu import swiglu
from gptoss_ref.numerics import FLOAT32, Array, Policy, widen
from gptoss_ref.weights import MXFP4, ExpertMatrix

Tap = Callable[[str, Array], None]
_NOTHING = np.empty((0, 0), np.float32)


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
    tap: Tap | None = None,
) -> Array:
    """Compute the weighted sum of the experts' outputs for ``x`` (T, D): (T, D).

    Args:
        indices: (T, A), the experts of each token.
        weights: (T, A), the router's weights.
        mlp1_weight: (E, 2F, D), gate and up rows interleaved.
        mlp1_bias: (E, 2F).
        mlp2_weight: (E, D, F).
        mlp2_bias: (E, D).
        tap: called with ``gate_up`` (T, A, 2F), ``swiglu`` (T, A, F) and ``expert_out`` (T, A, D).

    Raises:
        CheckpointError: a chosen expert has a scale byte 255, and ``scale_255`` is ``"error"``.
        GptOssError: a policy other than float32, shapes that do not match, an index out of range,
            or a token that chooses an expert twice.
    """
    check_policy(policy)
    count, doubled, width = mlp1_weight.shape
    fitting = (
        x.shape[1:] == (width,)
        and indices.ndim == 2
        and indices.shape == weights.shape == (len(x), *indices.shape[1:])
        and mlp1_bias.shape == (count, doubled)
        and tuple(mlp2_weight.shape) == (count, width, doubled // 2)
        and mlp2_bias.shape == (count, width)
    )
    if not fitting:
        raise GptOssError(
            f"experts: x {x.shape}, indices {indices.shape}, weights {weights.shape}, "
            f"W1 {mlp1_weight.shape}, b1 {mlp1_bias.shape}, W2 {mlp2_weight.shape}, "
            f"b2 {mlp2_bias.shape} do not fit: expected (T, D), (T, A), (T, A), (E, 2F, D), "
            f"(E, 2F), (E, D, F), (E, D)"
        )
    x, weights = values(x), values(weights)
    chosen = chosen_of(indices, count)
    stages = _NOTHING
    if tap is not None:
        stages = np.empty((chosen.size, doubled + doubled // 2 + width), np.float32)
    biases, limits = (mlp1_bias, mlp2_bias), (alpha, limit)
    first = stored_of(mlp1_weight) if isinstance(mlp1_weight, MXFP4) else None
    second = stored_of(mlp2_weight) if isinstance(mlp2_weight, MXFP4) else None
    if first is not None and second is not None and chosen.size:
        out = np.empty(x.shape, np.float32)
        if _pass(x, chosen, weights, first, second, biases, limits, stages, out):
            refuse_chosen(chosen, mlp1_weight, mlp2_weight)
    else:
        out = _by_expert(x, chosen, weights, mlp1_weight, mlp2_weight, biases, limits, stages)
    if tap is not None:
        parts = np.split(stages, [doubled, doubled + doubled // 2], axis=1)
        for name, stage in zip(("gate_up", "swiglu", "expert_out"), parts, strict=True):
            tap(name, np.ascontiguousarray(stage).reshape(*indices.shape, stage.shape[1]))
    return out


def refuse_chosen(chosen: Array, *matrices: ExpertMatrix) -> None:
    """Raise a CheckpointError if one of the experts ``chosen`` (A,) has a scale byte 255.

    Raises:
        CheckpointError: names the first such expert.
    """
    for weight in matrices:
        assert isinstance(weight, MXFP4)
        for e in np.unique(chosen):
            refuse_255(weight.scales[e], f"{weight.name}[{e}]")


def _pass(
    x: Array, chosen: Array, weights: Array, first: Stored, second: Stored,
    biases: tuple[Array, Array], limits: tuple[float, float], stages: Array, out: Array
) -> bool:  # fmt: skip
    """Compute all tokens with MXFP4 experts, into ``out``; return True if a scale is refused."""
    failed, (bias, bias_2) = np.zeros(1, np.bool_), [matrix_of(bias) for bias in biases]
    if bias.dtype != bias_2.dtype:  # one function computes both, for one type
        bias, bias_2 = (matrix_of(widen(each, np.float32)) for each in (bias, bias_2))
    width, inner = x.shape[1], bias.shape[1] // 2
    run(
        mixture,
        bias.shape[1] // ROWS,
        3 * chosen.size * width * inner,
        *(current_path(), method_of(len(x), min(width, inner)), x, chosen, weights.reshape(-1)),
        *(*first, bias.reshape(-1), *second, bias_2.reshape(-1), len(bias)),
        *(np.float32(limits[0]), np.float32(limits[1]), stages, out, failed),
    )
    return bool(failed[0])


def _by_expert(
    x: Array, chosen: Array, weights: Array, mlp1_weight: ExpertMatrix, mlp2_weight: ExpertMatrix,
    biases: tuple[Array, Array], limits: tuple[float, float], stages: Array
) -> Array:  # fmt: skip
    """Compute all tokens with matrices of any kind, expert by expert, with other kernels."""
    out = np.zeros(x.shape, np.float32)
    if chosen.size == 0:
        return out
    count, per_token = mlp1_weight.shape[0], chosen.size // len(x)
    plan = plan_of(chosen, per_token, count)
    for e in plan.active:
        slots = plan.order[plan.starts[e] : plan.starts[e + 1]]
        t = slots // per_token
        gate_up = linear(x[t], mlp1_weight[int(e)], biases[0][e])  # (n, 2F)
        activations = swiglu(gate_up, *limits)  # (n, F)
        answer = linear(activations, mlp2_weight[int(e)], biases[1][e])  # (n, D)
        out[t] += weights.reshape(-1)[slots, None] * answer
        if stages.size:
            stages[slots] = np.concatenate([gate_up, activations, answer], axis=1)
    return out
