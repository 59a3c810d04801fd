"""Experts for training: a float32 forward pass that can keep what it computes, and gradients.

A task is one expert with all tokens that chose it, some tokens at a time. The rows of these tokens
are gathered and go through both matrices (``products.py``) and SwiGLU while they are in cache; the
results are stored by position (``expert_plan.py``). In the end the results of each token are
summed. So weights are decoded, and gradients of weights written, once for some hundred tokens.

The gradient of a router weight, dw = dy · (W2 s + b2), is computed as (W2ᵀ dy) · s + dy · b2,
because W2ᵀ dy is needed anyway and the product with W2 is not. Error: relative L2 below 5e-6
against the layer's gradient in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.expert_plan import Plan, plan_of, refuse_indices
from gptoss_ref.kernels.experts import experts as forward
from gptoss_ref.kernels.experts import refuse_chosen
from gptoss_ref.kernels.gradients.products import (
    by_columns,
    by_rows,
    outer,
    padded,
    room_for_panels,
)
from gptoss_ref.kernels.gradients.swiglu import slope
from gptoss_ref.kernels.matmul.gemm import add_all
from gptoss_ref.kernels.matmul.mxfp4_methods import AMX, INT16, method_of, stored_of
from gptoss_ref.kernels.runtime.arrays import check_policy, is_bits, positions_of, values, weight_of
from gptoss_ref.kernels.runtime.buffers import copy, fill, floats
from gptoss_ref.kernels.runtime.isa import current_path
from gptoss_ref.kernels.runtime.jit import jit, jit_dot_inner, jit_inner
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import current_threads, run
from gptoss_ref.kernels.swiglu import activated
from gptoss_ref.numerics import FLOAT32, Array, Policy, widen
from gptoss_ref.weights import MXFP4, ExpertGradients, ExpertMatrix

AT_ONCE = 192
"""Tokens of an expert that are processed together: whole register tiles of every path."""
TOKENS = 64
"""Tokens of a task when the results of the experts are summed."""


class _Mixture(NamedTuple):
    """Arguments that both passes share."""

    path: Any
    turn: Any  # the experts that a token chose, in the order of tasks
    starts: Any  # (E + 1,) first position of each expert
    slots: Any  # (T·A,) slot of each position
    tokens: Any  # (T·A,) token of each position, and some more entries
    weights: Any  # (T·A,) by slot
    first: Any  # W1 (E·2F, D)
    first_bias: Any  # (E, 2F)
    second: Any  # W2 (E·D, F)
    second_bias: Any  # (E, D)
    alpha: Any
    limit: Any


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
    if isinstance(mlp1_weight, MXFP4) and _by_integers(*x.shape):
        found: dict[str, Array] = {}
        tap = found.__setitem__ if keep else None
        y = forward(x, indices, weights, *parameters, alpha=alpha, limit=limit, tap=tap)
        return y, found["gate_up"].reshape(indices.size, -1) if keep else None
    plan, mixture = _mixture(x, indices, weights, parameters, alpha, limit)
    answers = np.empty((indices.size, x.shape[1]), np.float32)
    gate_up = np.empty((indices.size if keep else 0, mlp1_bias.shape[1]), np.float32)
    run(
        _forward, len(mixture.turn), indices.size * mlp1_bias.shape[1] * x.shape[1],
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
        _backward, len(mixture.turn), slots * doubled * width,
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


def _by_integers(tokens: int, width: int) -> bool:
    """Return whether products of this size run with integers or on AMX."""
    return method_of(tokens, width) in (INT16, AMX)


def _mixture(
    x: Array, indices: Array, weights: Array,
    parameters: tuple[ExpertMatrix, Array, ExpertMatrix, Array], alpha: float, limit: float
) -> tuple[Plan, _Mixture]:  # fmt: skip
    """Return the assignment of tokens to experts, with the arguments of the kernels."""
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
    chosen = positions_of(indices).reshape(-1)
    plan = plan_of(chosen, indices.shape[1], count)
    if plan.active.size == 0:
        refuse_indices(chosen, indices.shape[1], count)
    for weight in (first, second):
        if isinstance(weight, MXFP4) and weight.scale_255 == "error":
            refuse_chosen(plan.active, weight)
    loads = plan.starts[plan.active + 1] - plan.starts[plan.active]
    ranked, teams = plan.active[np.argsort(-loads, kind="stable")], current_threads()
    turn = np.concatenate([ranked[n::teams] for n in range(teams)])  # similar loads
    biases = (np.ascontiguousarray(widen(b, np.float32)) for b in (first_bias, second_bias))
    one, two = biases
    limits = np.float32(alpha), np.float32(limit)
    return plan, _Mixture(
        current_path(), turn, plan.starts, plan.order, plan.tokens, values(weights).reshape(-1),
        _stored(first), one, _stored(second), two, *limits,
    )  # fmt: skip


def _stored(weight: ExpertMatrix) -> Any:
    """Return a weight as ``products.py`` takes it."""
    if isinstance(weight, MXFP4):
        stored = stored_of(weight)
        if stored is None:  # a non-contiguous view
            blocks, scales = weight.blocks.copy(), weight.scales.copy()
            stored = stored_of(MXFP4(blocks, scales, weight.name, weight.scale_255))
            assert stored is not None
        return stored
    whole = weight_of(weight)
    if whole is None:
        whole = np.array(weight, np.uint16 if is_bits(weight) else np.float32, order="C")
        whole.flags.writeable = False
    return whole.reshape(-1)


@jit
def _forward(mixture: _Mixture, x: Any, gate_up: Any, answers: Any, tasks: int, team: Any) -> None:
    _forward_tasks(mixture, x, gate_up, answers, tasks, team)


@jit_tasks
def _forward_tasks(of: _Mixture, x: Any, gate_up: Any, answers: Any, start: int, stop: int) -> None:
    """Compute the outputs (T·A, D) by position and, if they are kept, gate and up by slot."""
    width, doubled = x.shape[1], of.first_bias.shape[1]
    half = doubled // 2
    room = room_for_panels()
    rows, gu = floats(AT_ONCE * padded(width)), floats(AT_ONCE * padded(doubled))
    hidden, answer = floats(AT_ONCE * padded(half)), floats(AT_ONCE * padded(width))
    wide, wider, narrow = padded(width), padded(doubled), padded(half)
    for e in of.turn[start:stop]:
        for p in range(of.starts[e], of.starts[e + 1], AT_ONCE):
            count = min(AT_ONCE, of.starts[e + 1] - p)
            for m in range(count):
                copy(x[of.tokens[p + m]], rows[m * wide : m * wide + width])
            _gate_up(of, e, rows, count, width, doubled, gu, room)
            for m in range(count):
                both = gu[m * wider : m * wider + doubled]
                if gate_up.size:
                    copy(both, gate_up[of.slots[p + m]])
                _activate(both, of.alpha, of.limit, hidden[m * narrow : m * narrow + half])
            by_rows(
                of.path, hidden, 0, narrow, count, of.second, e * width, width, half, answer, wide,
                room,
            )  # fmt: skip
            for m in range(count):
                copy(answer[m * wide : m * wide + width], answers[p + m])
                add_all(of.second_bias[e], answers[p + m])


@jit_inner
def _gate_up(
    of: _Mixture, e: int, rows: Any, count: int, width: int, doubled: int, gu: Any, room: Any
) -> None:
    """Compute gate and up of some rows."""
    wider = padded(doubled)
    by_rows(
        of.path, rows, 0, padded(width), count, of.first, e * doubled, doubled, width, gu, wider,
        room,
    )  # fmt: skip
    for m in range(count):
        add_all(of.first_bias[e], gu[m * wider : m * wider + doubled])


@jit_inner
def _activate(gate_up: Any, alpha: Any, limit: Any, out: Any) -> None:
    for f in range(out.size):
        out[f] = activated(gate_up[2 * f], gate_up[2 * f + 1], alpha, limit)


@jit
def _backward(
    mixture: _Mixture, d_y: Any, x: Any, gate_up: Any, results: Any, parameters: Any, tasks: int,
    team: Any
) -> None:  # fmt: skip
    _backward_tasks(mixture, d_y, x, gate_up, results, parameters, tasks, team)


@jit_tasks
def _backward_tasks(
    of: _Mixture, d_y: Any, x: Any, gate_up: Any, results: Any, parameters: Any, start: int,
    stop: int
) -> None:  # fmt: skip
    d_rows, d_weights, d_swiglu, d_gate_up = results
    d_first_bias, d_second_bias = parameters[1], parameters[3]
    d_first, d_second = parameters[0].reshape(-1), parameters[2].reshape(-1)
    wanted = d_first.size > 0
    width, doubled = x.shape[1], of.first_bias.shape[1]
    half = doubled // 2
    wide, wider, narrow = padded(width), padded(doubled), padded(half)
    room = room_for_panels()
    rows, dys = floats(AT_ONCE * wide), floats(AT_ONCE * wide)
    gu, back, hidden = floats(AT_ONCE * wider), floats(AT_ONCE * narrow), floats(AT_ONCE * narrow)
    for e in of.turn[start:stop]:
        begin = of.starts[e]
        if wanted:
            fill(d_first_bias[e], np.float32(0.0))
            fill(d_second_bias[e], np.float32(0.0))
        for p in range(begin, of.starts[e + 1], AT_ONCE):
            count = min(AT_ONCE, of.starts[e + 1] - p)
            for m in range(count):
                token = of.tokens[p + m]
                copy(d_y[token], dys[m * wide : m * wide + width])
                if wanted or gate_up.size == 0:
                    copy(x[token], rows[m * wide : m * wide + width])
            if gate_up.size:
                for m in range(count):
                    copy(gate_up[of.slots[p + m]], gu[m * wider : m * wider + doubled])
            else:
                _gate_up(of, e, rows, count, width, doubled, gu, room)
            by_columns(
                of.path, dys, 0, wide, count, of.second, e * width, width, half, back, narrow, room
            )  # W2ᵀ dy
            for m in range(count):
                slot = of.slots[p + m]
                weight = of.weights[slot]
                both, d = gu[m * wider : m * wider + doubled], back[m * narrow : m * narrow + half]
                s, dy = hidden[m * narrow : m * narrow + half], dys[m * wide : m * wide + width]
                _activate(both, of.alpha, of.limit, s)
                d_weights[slot] = _dot(s, d) + _dot(dy, of.second_bias[e])
                _scale(d, weight)
                if d_swiglu.size:
                    copy(d, d_swiglu[p + m])
                _turn_back(d, both, of.alpha, of.limit)
                if d_gate_up.size:
                    copy(both, d_gate_up[p + m])
                if wanted:
                    _scale(dy, weight)  # the gradient of the expert's output
                    add_all(both, d_first_bias[e])
                    add_all(dy, d_second_bias[e])
            if wanted:
                outer(
                    of.path, gu, 0, wider, rows, 0, wide, count, doubled, width, d_first,
                    e * doubled * width, width, p > begin, room,
                )  # fmt: skip
                outer(
                    of.path, dys, 0, wide, hidden, 0, narrow, count, width, half, d_second,
                    e * width * half, half, p > begin, room,
                )  # fmt: skip
            by_columns(
                of.path, gu, 0, wider, count, of.first, e * doubled, doubled, width, rows, wide,
                room,
            )  # fmt: skip
            for m in range(count):
                copy(rows[m * wide : m * wide + width], d_rows[p + m])


@jit_dot_inner
def _dot(x: Any, y: Any) -> Any:
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@jit_inner
def _scale(x: Any, factor: Any) -> None:
    for i in range(x.size):
        x[i] *= factor


@jit_inner
def _turn_back(d: Any, gate_up: Any, alpha: Any, limit: Any) -> None:
    """Replace gate and up by their gradients, given ``d`` (F,), the gradient of the activations."""
    for f in range(d.size):
        d_gate, d_up = slope(d[f], gate_up[2 * f], gate_up[2 * f + 1], alpha, limit)
        gate_up[2 * f], gate_up[2 * f + 1] = d_gate, d_up


def _summed(rows: Array, plan: Plan, weights: Array, shape: tuple[int, ...]) -> Array:
    """Sum each token's rows (T·A, D), by position, times their weights (T·A,), by slot: (T, D)."""
    places = np.empty(len(rows), np.int64)
    places[plan.order] = np.arange(len(rows))
    out = np.empty((shape[0], rows.shape[1]), np.float32)
    run(_sums, -(-len(out) // TOKENS), rows.size, rows, places, weights, out)
    return out


@jit
def _sums(rows: Any, places: Any, weights: Any, out: Any, tasks: int, team: Any) -> None:
    _sums_tasks(rows, places, weights, out, tasks, team)


@jit_tasks
def _sums_tasks(rows: Any, places: Any, weights: Any, out: Any, start: int, stop: int) -> None:
    tokens = out.shape[0]
    per_token = weights.size // tokens
    for t in range(start * TOKENS, min(stop * TOKENS, tokens)):
        fill(out[t], np.float32(0.0))
        for slot in range(t * per_token, (t + 1) * per_token):
            _add_scaled(rows[places[slot]], weights[slot], out[t])


@jit_inner
def _add_scaled(x: Any, factor: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] += factor * x[i]
