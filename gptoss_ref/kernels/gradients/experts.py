"""Experts for training: a float32 forward pass that can keep what it computes, and gradients.

A task is an expert, with all tokens that chose it, some at a time (``expert_passes.py``). Then each
token's results are summed. So weights are decoded and gradients of weights written once for some
hundred tokens.

The gradient of a router weight, dw = dy · (W2 s + b2), is computed as (W2ᵀ dy) · s + dy · b2,
because W2ᵀ dy is needed anyway and the product with W2 is not. Error: relative L2 below 5e-6
against the layer's gradient in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.expert_tasks import Plan, chosen_of, plan_of
from gptoss_ref.kernels.experts import experts as forward
from gptoss_ref.kernels.experts import refuse_chosen
from gptoss_ref.kernels.gradients.expert_passes import (
    TOKENS,
    Mixture,
    backward_pass,
    forward_pass,
    sums,
)
from gptoss_ref.kernels.matmul.mxfp4_methods import AMX, INT16, method_of, stored_or_copy
from gptoss_ref.kernels.runtime.arrays import check_policy, matrix_of, values
from gptoss_ref.kernels.runtime.isa import current_path
from gptoss_ref.kernels.runtime.threads import current_threads, run
from gptoss_ref.numerics import FLOAT32, Array, Policy, widen
from gptoss_ref.weights import MXFP4, ExpertGradients, ExpertMatrix


def kept_experts(
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
    keep: bool = True,
    policy: str | Policy = FLOAT32,
) -> tuple[Array, Array | None]:
    """Return the experts' output (T, D), and values that :func:`experts` need not compute again.

    These are gate and up (T·A, 2F), or None if ``keep`` is False. Arguments and errors are those of
    :func:`gptoss_ref.kernels.experts`, which computes the output if its integer products are
    faster.
    """
    check_policy(policy)
    parameters = (mlp1_weight, mlp1_bias, mlp2_weight, mlp2_bias)
    if isinstance(mlp1_weight, MXFP4) and _by_integers(len(x), mlp1_weight):
        found: dict[str, Array] = {}
        tap = found.__setitem__ if keep else None
        y = forward(x, indices, weights, *parameters, alpha=alpha, limit=limit, tap=tap)
        return y, found["gate_up"].reshape(indices.size, -1) if keep else None
    plan, mixture = _mixture(x, indices, weights, parameters, alpha, limit)
    answers = np.empty((indices.size, x.shape[1]), np.float32)
    gate_up = np.empty((indices.size if keep else 0, mlp1_bias.shape[1]), np.float32)
    run(
        forward_pass, len(mixture.turn), indices.size * mlp1_bias.shape[1] * x.shape[1],
        mixture, values(x), gate_up, answers,
    )  # fmt: skip
    return _summed(answers, plan, mixture.weights, indices.shape), gate_up if keep else None


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
    kept: Array | None = None,
) -> ExpertGradients:
    """Gradients of all inputs of :func:`gptoss_ref.kernels.experts`, from ``d_y`` (T, D).

    Args:
        x: (T, D).
        indices: (T, A).
        weights: (T, A).
        mlp1_weight: (E, 2F, D), gate and up rows interleaved.
        mlp1_bias: (E, 2F).
        mlp2_weight: (E, D, F).
        mlp2_bias: (E, D).
        alpha, limit: of :func:`gptoss_ref.kernels.swiglu`.
        weight_gradients: False omits the products for frozen experts, whose four gradients are then
            None.
        tap: called with the gradients of ``expert_out`` (T, A, D), ``swiglu`` (T, A, F) and
            ``gate_up`` (T, A, 2F).
        kept: gate and up (T·A, 2F) from :func:`kept_experts`; None: they are computed again.

    Returns:
        ``d_x`` (T, D), ``d_weights`` (T, A), and the gradients of the weights in the weights'
        shapes.

    Raises:
        CheckpointError: a chosen expert has a scale byte 255, and ``scale_255`` is ``"error"``.
        GptOssError: a policy other than float32, shapes that do not match, or indices that
            :func:`gptoss_ref.kernels.experts` refuses.
    """
    check_policy(policy)
    plan, mixture = _mixture(
        x, indices, weights, (mlp1_weight, mlp1_bias, mlp2_weight, mlp2_bias), alpha, limit
    )
    (count, doubled), (slots, width) = mlp1_bias.shape, (indices.size, x.shape[1])
    d_rows = np.empty((slots, width), np.float32)
    d_weights = np.empty(slots, np.float32)
    shown = slots if tap is not None else 0
    d_swiglu = np.empty((shown, doubled // 2), np.float32)
    d_gate_up = np.empty((shown, doubled), np.float32)
    shapes = ((count, doubled, width), (count, doubled), (count, width, doubled // 2))
    rows = (count if weight_gradients else 0,)
    found = [np.empty(rows + s[1:], np.float32) for s in (*shapes, (count, width))]
    if weight_gradients:
        unchosen = np.setdiff1d(np.arange(count), mixture.turn)
        for array in found:
            array[unchosen] = 0
    gate_up = np.empty((0, doubled), np.float32) if kept is None else kept
    run(
        backward_pass, len(mixture.turn), slots * doubled * width,
        mixture, values(d_y), values(x), gate_up, (d_rows, d_weights, d_swiglu, d_gate_up),
        tuple(found),
    )  # fmt: skip
    if tap is not None:
        tap("expert_out", values(weights)[..., None] * values(d_y)[:, None])
        for name, by_position in (("swiglu", d_swiglu), ("gate_up", d_gate_up)):
            by_slot = np.empty_like(by_position)
            by_slot[plan.order] = by_position
            tap(name, by_slot.reshape(*indices.shape, -1))
    d_x = _summed(d_rows, plan, np.ones(slots, np.float32), indices.shape)
    of_weights = found if weight_gradients else [None] * 4
    return ExpertGradients(d_x, d_weights.reshape(indices.shape), *of_weights)


def _by_integers(tokens: int, mlp1_weight: ExpertMatrix) -> bool:
    """Return whether the products of these experts run with integers or on AMX."""
    _, doubled, width = mlp1_weight.shape
    return method_of(tokens, min(width, doubled // 2)) in (INT16, AMX)


def _mixture(
    x: Array, indices: Array, weights: Array,
    parameters: tuple[ExpertMatrix, Array, ExpertMatrix, Array], alpha: float, limit: float
) -> tuple[Plan, Mixture]:  # fmt: skip
    """Which tokens go to which expert, and what kernels are given."""
    first, first_bias, second, second_bias = parameters
    count, doubled, width = first.shape
    if (
        x.shape[1:] != (width,)
        or indices.shape != (len(x), *indices.shape[1:])
        or indices.shape != weights.shape
        or tuple(second.shape) != (count, width, doubled // 2)
    ):
        raise GptOssError(
            f"gradient of experts: x {x.shape}, indices {indices.shape}, weights {weights.shape}, "
            f"W1 {tuple(first.shape)}, W2 {tuple(second.shape)} do not fit: expected (T, D), "
            "(T, A), (T, A), (E, 2F, D), (E, D, F)"
        )
    plan = plan_of(chosen_of(indices, count), indices.shape[1], count)
    for weight in (first, second):
        if isinstance(weight, MXFP4) and weight.scale_255 == "error":
            refuse_chosen(plan.active, weight)
    loads = plan.starts[plan.active + 1] - plan.starts[plan.active]
    ranked, teams = plan.active[np.argsort(-loads, kind="stable")], current_threads()
    turn = np.concatenate([ranked[n::teams] for n in range(teams)])  # similar loads
    biases = (np.ascontiguousarray(widen(b, np.float32)) for b in (first_bias, second_bias))
    one, two = biases
    limits = np.float32(alpha), np.float32(limit)
    return plan, Mixture(
        current_path(), turn, plan.starts, plan.order, plan.tokens, values(weights).reshape(-1),
        _stored(first), one, _stored(second), two, *limits,
    )  # fmt: skip


def _stored(weight: ExpertMatrix) -> Any:
    """Return a weight as ``products.py`` takes it."""
    if isinstance(weight, MXFP4):
        return stored_or_copy(weight)
    return matrix_of(weight).reshape(-1)


def _summed(rows: Array, plan: Plan, weights: Array, shape: tuple[int, ...]) -> Array:
    """Sum each token's rows (T·A, D), by position, times their weights (T·A,), by slot: (T, D)."""
    places = np.empty(len(rows), np.int64)
    places[plan.order] = np.arange(len(rows))
    out = np.empty((shape[0], rows.shape[1]), np.float32)
    run(sums, -(-len(out) // TOKENS), rows.size, rows, places, weights, out)
    return out
