"""A pass of tokens through MXFP4 experts; see ``experts.py`` for what its two sets of tasks are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from gptoss_ref.kernels._blocks import BLOCK
from gptoss_ref.kernels._groups import Plan, plan_of
from gptoss_ref.kernels._jit import (
    jit,
    jit_inner,
    jit_parallel_inner,
)
from gptoss_ref.kernels._math import widen
from gptoss_ref.kernels._pairs import ROWS
from gptoss_ref.kernels._product import (
    TILES,
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
    """All stages, on the calling thread: arguments of :func:`_begun`, and two that are not used."""
    call, plan, first, second, given, hidden, rooms = _begun(*arguments[:-2])
    for stage in range(4):
        part, n = np.int64(0), np.int64(1)  # no literals: they would be types of their own
        _stage(stage, call, plan, first, second, given, hidden, rooms, part, n)


@jit
def mixture_parallel(*arguments: Any) -> None:
    """The same on threads: the last argument is how many."""
    call, plan, first, second, given, hidden, rooms = _begun(*arguments[:-2])
    _stages_parallel(call, plan, first, second, given, hidden, rooms, arguments[-1])


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


@jit_inner
def _stage(
    stage: int,
    call: _Call,
    plan: Plan,
    first: Stored,
    second: Stored,
    given: Inputs,
    hidden: Inputs,
    rooms: _Rooms,
    part: Any,
    n: Any,
) -> None:
    """Part ``part`` of ``n`` of a stage: 1 and 3 are the sets of tasks, 0 and 2 ready them."""
    last = stage >= 2  # the second matrices
    inputs, split = (hidden, rooms.hidden) if last else (given, rooms.given)
    if stage % 2 == 0:
        of = plan.tile_positions if last else plan.tile_tokens
        split_tiles(call.path, call.mode, inputs.x, of, split, part, n)
    else:
        of = plan.positions if last else plan.tokens
        stored = second if last else first
        _tasks(last, call, plan, stored, inputs, of, split, hidden, part, n)


@jit_parallel_inner
def _stages_parallel(
    call: _Call,
    plan: Plan,
    first: Stored,
    second: Stored,
    given: Inputs,
    hidden: Inputs,
    rooms: _Rooms,
    n: int,
) -> None:
    for stage in range(4):
        if stage % 2 or call.mode == TILES:
            for part in prange(n):
                p = np.int64(part)  # a prange counts in uint64, another type to compile for
                _stage(stage, call, plan, first, second, given, hidden, rooms, p, n)


@jit_inner
def _tasks(
    last: bool,
    call: _Call,
    plan: Plan,
    stored: Stored,
    inputs: Inputs,
    of: Any,
    split: Any,
    hidden: Inputs,
    part: int,
    n: int,
) -> None:
    """Part ``part`` of ``n`` of the tasks of the first or the ``last`` matrices.

    One function for both, so that the products are compiled once.
    """
    bias = call.second_bias if last else call.first_bias
    outputs, groups = bias.shape[1], inputs.x.size // inputs.beyond.size // BLOCK
    tasks = (outputs + ROWS - 1) // ROWS
    sums, scratch = room(plan.order.size, inputs, groups)
    begin, end = part * tasks // n * ROWS, min((part + 1) * tasks // n * ROWS, outputs)
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
        shown[row : row + ROWS] = gate_up
        shown[doubled + column : doubled + column + BLOCK] = block
    keep(call.path, hidden, position, column // BLOCK, inner // BLOCK)


@jit_inner
def _answer(call: _Call, slot: int, row: int, answer: Any) -> None:
    """An expert's answer from ``row`` on, times its weight, onto the token's result."""
    tokens, width = call.out.shape
    if call.shown.size:
        column = call.shown.shape[1] - width + row
        call.shown[slot, column : column + answer.size] = answer
    token, weight = slot // (call.weights.size // tokens), call.weights[slot]
    result = call.out[token, row : row + answer.size]
    for r in range(answer.size):
        result[r] += weight * answer[r]
