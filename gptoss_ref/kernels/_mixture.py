"""A pass of tokens through MXFP4 experts; see ``experts.py`` for what its two sets of tasks are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from gptoss_ref.kernels._blocks import BLOCK
from gptoss_ref.kernels._groups import Plan, plan_of
from gptoss_ref.kernels._jit import jit, jit_parallel
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
"""How a pass ends: an index of no expert, or a scale byte 255 that is an error."""


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


@jit
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


@jit
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
    if stage == 0:
        split_tiles(call.path, call.mode, given.x, plan.tile_tokens, rooms.given, part, n)
    elif stage == 1:
        _first(call, plan, first, given, rooms.given, hidden, part, n)
    elif stage == 2:
        split_tiles(call.path, call.mode, hidden.x, plan.tile_positions, rooms.hidden, part, n)
    else:
        _second(call, plan, second, hidden, rooms.hidden, part, n)


@jit_parallel
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


@jit
def _first(
    call: _Call,
    plan: Plan,
    stored: Stored,
    inputs: Inputs,
    split: Any,
    hidden: Inputs,
    part: int,
    n: int,
) -> None:
    """Part ``part`` of ``n`` of the tasks of the first matrices; ``hidden`` is written."""
    bias, order = call.first_bias, plan.order
    doubled = bias.shape[1]
    inner, groups = doubled // 2, call.x.shape[1] // BLOCK
    tasks = doubled // ROWS
    sums, scratch = room(order.size, inputs, groups)
    for e in plan.active:
        at, count = plan.starts[e], plan.starts[e + 1] - plan.starts[e]
        for task in range(part * tasks // n, (part + 1) * tasks // n):
            row = task * ROWS
            if not product(
                call.path, stored, (e * doubled + row) * groups, ROWS, groups, inputs,
                plan.tokens, at, split, plan.tiles[e], count, sums, scratch,
            ):  # fmt: skip
                call.state[0] = REFUSED
                return
            for m in range(count):
                to = (at + m) * inner + task * BLOCK
                # slices: an index that is a sum might be negative, which LLVM does not vectorise
                gate_up, block = sums[m * ROWS : (m + 1) * ROWS], hidden.x[to : to + BLOCK]
                _add_bias(gate_up, bias[e, row : row + ROWS])
                for j in range(BLOCK):
                    gate, up = gate_up[2 * j], gate_up[2 * j + 1]
                    block[j] = activated(gate, up, call.alpha, call.limit)
                if call.shown.size:
                    shown, column = call.shown[order[at + m]], doubled + task * BLOCK
                    shown[row : row + ROWS] = gate_up
                    shown[column : column + BLOCK] = block
                keep(call.path, hidden, at + m, task, inner // BLOCK)


@jit
def _second(
    call: _Call, plan: Plan, stored: Stored, inputs: Inputs, split: Any, part: int, n: int
) -> None:
    """Part ``part`` of ``n`` of the tasks of the second matrices; the result is written."""
    bias, order, out = call.second_bias, plan.order, call.out
    width = bias.shape[1]
    groups = inputs.x.size // order.size // BLOCK
    per_token = order.size // out.shape[0]
    tasks = (width + ROWS - 1) // ROWS
    sums, scratch = room(order.size, inputs, groups)
    begin, end = part * tasks // n * ROWS, min((part + 1) * tasks // n * ROWS, width)
    out[:, begin:end] = np.float32(0.0)
    for e in plan.active:
        at, count = plan.starts[e], plan.starts[e + 1] - plan.starts[e]
        for first in range(begin, end, ROWS):
            rows = min(ROWS, width - first)
            if not product(
                call.path, stored, (e * width + first) * groups, rows, groups, inputs,
                plan.positions, at, split, plan.tiles[e], count, sums, scratch,
            ):  # fmt: skip
                call.state[0] = REFUSED
                return
            for m in range(count):
                slot = order[at + m]
                answer = sums[m * ROWS : m * ROWS + rows]
                _add_bias(answer, bias[e, first : first + rows])
                if call.shown.size:
                    column = call.shown.shape[1] - width + first
                    call.shown[slot, column : column + rows] = answer
                weight, result = call.weights[slot], out[slot // per_token, first : first + rows]
                for r in range(rows):
                    result[r] += weight * answer[r]


@jit
def _add_bias(total: Any, bias: Any) -> None:
    for i in range(total.size):
        total[i] += widen(bias[i])
