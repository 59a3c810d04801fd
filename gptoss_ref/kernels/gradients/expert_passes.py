"""The two passes of training through the experts, and the sums of each token: what tasks compute.

See ``experts.py`` for what a task is. An expert's rows are gathered, go through both matrices
(``products.py``) and what lies between while they are in cache, and the results are stored by
position (``expert_tasks.py``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels.gradients.products import (
    by_columns,
    by_rows,
    outer,
    padded,
    room_for_panels,
)
from gptoss_ref.kernels.gradients.swiglu import slope
from gptoss_ref.kernels.runtime.buffers import add_all, copy, fill, floats
from gptoss_ref.kernels.runtime.jit import jit, jit_dot_inner, jit_inner
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.swiglu import activated

AT_ONCE = 192
"""Tokens of an expert that are computed together: whole register tiles of any path."""
TOKENS = 64
"""Tokens of a task when their results are summed."""


class Mixture(NamedTuple):
    """What both passes are given."""

    path: Any
    turn: Any  # the experts that somebody chose, in the order of tasks
    starts: Any  # (E + 1,) where each expert's positions begin
    slots: Any  # (T·A,) of each position
    tokens: Any  # (T·A,) of each position, and some more
    weights: Any  # (T·A,) by slot
    first: Any  # W1 (E·2F, D)
    first_bias: Any  # (E, 2F)
    second: Any  # W2 (E·D, F)
    second_bias: Any  # (E, D)
    alpha: Any
    limit: Any


@jit
def forward_pass(
    mixture: Mixture, x: Any, gate_up: Any, answers: Any, tasks: int, team: Any
) -> None:
    """Answers (T·A, D) by position for ``x`` (T, D), and gate and up (T·A, 2F) by slot if kept."""
    _forward_tasks(mixture, x, gate_up, answers, tasks, team)


@jit_tasks
def _forward_tasks(of: Mixture, x: Any, gate_up: Any, answers: Any, start: int, stop: int) -> None:
    """Gate and up by slot, if they are kept, and answers (T·A, D) by position."""
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
    of: Mixture, e: int, rows: Any, count: int, width: int, doubled: int, gu: Any, room: Any
) -> None:
    """Gate and up of some rows."""
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
def backward_pass(
    mixture: Mixture, d_y: Any, x: Any, gate_up: Any, results: Any, parameters: Any, tasks: int,
    team: Any
) -> None:  # fmt: skip
    """Gradients from ``d_y`` (T, D), written to ``results`` by position and to ``parameters``.

    ``gate_up`` (T·A, 2F) is what ``forward_pass`` kept, or empty.
    """
    _backward_tasks(mixture, d_y, x, gate_up, results, parameters, tasks, team)


@jit_tasks
def _backward_tasks(
    of: Mixture, d_y: Any, x: Any, gate_up: Any, results: Any, parameters: Any, start: int,
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
                    _scale(dy, weight)  # the gradient of the answer
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
    """Gate and up become their gradients, from ``d`` (F,), that of the activations."""
    for f in range(d.size):
        d_gate, d_up = slope(d[f], gate_up[2 * f], gate_up[2 * f + 1], alpha, limit)
        gate_up[2 * f], gate_up[2 * f + 1] = d_gate, d_up


@jit
def sums(rows: Any, places: Any, weights: Any, out: Any, tasks: int, team: Any) -> None:
    """``out`` (T, D): each token's ``rows`` (T·A, D) by position, times ``weights`` by slot."""
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
