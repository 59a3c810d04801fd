"""A pass of tokens through MXFP4 experts; see ``experts.py`` for what its two sets of tasks are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.kernels._blocks import BLOCK
from gptoss_ref.kernels._groups import Plan, plan_of
from gptoss_ref.kernels._jit import jit, jit_inner
from gptoss_ref.kernels._math import widen
from gptoss_ref.kernels._pairs import ROWS
from gptoss_ref.kernels._product import (
    Inputs,
    Stored,
    inputs_of,
    keep,
    kept,
    product,
    room,
    split_room,
    split_tiles,
)
from gptoss_ref.kernels._tasks import jit_tasks
from gptoss_ref.kernels.swiglu import activated

FINE, BAD_INDEX, REFUSED = 0, 1, 2
"""How a pass ends: indices that are refused, or a scale byte 255 that is an error."""


class _Call(NamedTuple):
    """What a pass is given, and writes."""

    path: Any
    mode: int
    x: Any  # (T, D)
    weights: Any  # (T·A,), by slot
    first_bias: Any
    second_bias: Any
    alpha: Any
    limit: Any
    shown: Any  # (T·A, 2F + F + D): gate and up, activation, answer, by slot; or nothing
    out: Any  # (T, D)
    state: Any  # int64 (1,): FINE, …


class _Rooms(NamedTuple):
    """Activations as ``split_tiles`` leaves them."""

    given: Any  # of the tokens
    hidden: Any  # of the positions, between the matrices


@jit
def mixture(*arguments: Any) -> None:
    """Both sets of tasks: arguments of :func:`_begun`, how many the first set has, and a team."""
    call, plan, first, second, given, hidden, rooms = _begun(*arguments[:-2])
    tasks, team = arguments[-2], arguments[-1]
    split_tiles(call.path, call.mode, given.x, plan.tile_tokens, rooms.given, team)
    _tasks(False, call, plan, first, given, plan.tokens, rooms.given, hidden, tasks, team)
    tasks = (call.second_bias.shape[1] + ROWS - 1) // ROWS
    split_tiles(call.path, call.mode, hidden.x, plan.tile_positions, rooms.hidden, team)
    _tasks(True, call, plan, second, hidden, plan.positions, rooms.hidden, hidden, tasks, team)


@jit_inner
def _begun(
    path: Any,
    mode: int,
    x: Any,
    chosen: Any,
    weights: Any,
    blocks: Any,
    scales: Any,
    scale_255: int,
    bias: Any,
    blocks_2: Any,
    scales_2: Any,
    scale_255_2: int,
    bias_2: Any,
    alpha: Any,
    limit: Any,
    shown: Any,
    out: Any,
    state: Any,
) -> Any:
    """What the stages take: the inputs of the second matrices are still empty.

    Plain arguments, because named tuples are slow to pass from Python.
    """
    call = _Call(path, mode, x, weights, bias, bias_2, alpha, limit, shown, out, state)
    plan = plan_of(chosen, chosen.size // x.shape[0], bias.shape[0])
    state[0] = FINE if plan.active.size else BAD_INDEX
    slots, inner, rows = chosen.size, bias.shape[1] // 2, plan.tile_tokens.size
    given = kept(path, mode, x.reshape(-1), x.shape[0])
    hidden = inputs_of(path, mode, np.empty(slots * inner, np.float32), slots)
    rooms = _Rooms(
        split_room(mode, rows, x.shape[1] // BLOCK), split_room(mode, rows, inner // BLOCK)
    )
    first, second = Stored(blocks, scales, scale_255), Stored(blocks_2, scales_2, scale_255_2)
    return call, plan, first, second, given, hidden, rooms


@jit_tasks
def _tasks(
    last: bool,
    call: _Call,
    plan: Plan,
    stored: Stored,
    inputs: Inputs,
    of: Any,
    split: Any,
    hidden: Inputs,
    start: int,
    stop: int,
) -> None:
    """Tasks ``start`` … ``stop`` − 1 of the first or the ``last`` matrices.

    One function for both, so that the products are compiled once.
    """
    bias = call.second_bias if last else call.first_bias
    outputs, groups = bias.shape[1], inputs.x.size // inputs.beyond.size // BLOCK
    sums, scratch = room(plan.order.size, inputs, groups)
    begin, end = start * ROWS, min(stop * ROWS, outputs)
    if last:
        call.out[:, begin:end] = np.float32(0.0)
    for e in plan.active:
        at, count = plan.starts[e], plan.starts[e + 1] - plan.starts[e]
        for row in range(begin, end, ROWS):
            rows = min(ROWS, outputs - row)
            if not product(
                call.path, stored, (e * outputs + row) * groups, rows, groups, inputs,
                of, at, split, plan.tiles[e], count, sums, scratch,
            ):  # fmt: skip
                call.state[0] = REFUSED
                return
            for m in range(count):
                # slices: an index that is a sum might be negative, which LLVM does not vectorise
                total, b = sums[m * ROWS : m * ROWS + rows], bias[e, row : row + rows]
                for r in range(rows):
                    total[r] += widen(b[r])
                if last:
                    _answer(call, plan.order[at + m], row, total)
                else:
                    _activate(call, plan.order[at + m], row, total, hidden, at + m)


@jit_inner
def _activate(
    call: _Call, slot: int, row: int, gate_up: Any, hidden: Inputs, position: int
) -> None:
    """Gate and up from ``row`` on: the activations that are one block of the second input."""
    doubled = call.first_bias.shape[1]
    inner, column = doubled // 2, row // 2
    to = position * inner + column
    block = hidden.x[to : to + BLOCK]
    for j in range(BLOCK):
        block[j] = activated(gate_up[2 * j], gate_up[2 * j + 1], call.alpha, call.limit)
    if call.shown.size:
        shown = call.shown[slot]
        for r in range(ROWS):
            shown[row + r] = gate_up[r]
        for j in range(BLOCK):
            shown[doubled + column + j] = block[j]
    keep(call.path, hidden, position, column // BLOCK, inner // BLOCK)


@jit_inner
def _answer(call: _Call, slot: int, row: int, answer: Any) -> None:
    """An expert's answer from ``row`` on, times its weight, onto the token's result."""
    tokens, width = call.out.shape
    if call.shown.size:
        column = call.shown.shape[1] - width + row
        for r in range(answer.size):
            call.shown[slot, column + r] = answer[r]
    token, weight = slot // (call.weights.size // tokens), call.weights[slot]
    result = call.out[token, row : row + answer.size]
    for r in range(answer.size):
        result[r] += weight * answer[r]
