"""Mixture of experts; mirrors ``layers/experts.py``.

Tokens are grouped by expert, so that an expert's weights are read once a pass. With MXFP4 weights
two sets of tasks run, and nothing but activations is stored between them:

1. a task is 64 rows of the first matrices: gate and up of 32 activations, which are one block of
   the second matrix's input. For one expert after the other it computes them for all tokens of
   that expert, adds the bias and applies SwiGLU;
2. a task is 64 rows of the result: for one expert after the other it computes the second matrix's
   rows, adds the bias, and adds router weight times that to the tokens' results. No two tasks write
   the same place.

A thread has a range of tasks, and takes them expert by expert: it reads long stretches of memory in
order. Products, their accumulators and their error are those of ``_product.py``: each within 1e-4
relative L2 of float64 given its input, and so is the result on Gaussian activations. Faster than
the layer because weights are never widened in memory. Other weights (bfloat16 or float experts) go
through ``linear`` expert by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels import _tiles
from gptoss_ref.kernels._arrays import check_policy, matrix_of, values
from gptoss_ref.kernels._blocks import BLOCK
from gptoss_ref.kernels._jit import current_path, jit, jit_parallel
from gptoss_ref.kernels._math import widen
from gptoss_ref.kernels._pairs import ROWS, SPARE
from gptoss_ref.kernels._product import (
    TILES,
    Inputs,
    Stored,
    inputs_of,
    keep,
    kept,
    mode_of,
    product,
    refuse_255,
    room,
    split_room,
    split_tiles,
    stored_of,
)
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.swiglu import activated, swiglu
from gptoss_ref.kernels.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import MXFP4, ExpertMatrix

Tap = Callable[[str, Array], None]
"""Called with a stage's name (``gate_up``, ``swiglu``, ``expert_out``) and its array."""


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
    policy: Policy = FLOAT32,
    tap: Tap | None = None,
) -> Array:
    """Send ``x`` (T, D) through its experts ``indices`` (T, A) with ``weights`` (T, A): (T, D).

    Args:
        mlp1_weight: (E, 2F, D), gate and up rows interleaved.
        mlp1_bias: (E, 2F).
        mlp2_weight: (E, D, F).
        mlp2_bias: (E, D).
        tap: called with ``gate_up`` (T, A, 2F), ``swiglu`` (T, A, F) and ``expert_out`` (T, A, D).

    Raises:
        CheckpointError: a chosen expert has a scale byte 255, and ``scale_255`` is ``"error"``.
        GptOssError: another policy, shapes that do not fit, or an index of no expert.
    """
    check_policy(policy)
    count, doubled, width = mlp1_weight.shape
    fitting = (
        x.shape[1:] == (width,)
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
    chosen = np.array(indices, np.int64).reshape(-1)
    if isinstance(mlp1_weight, MXFP4) and isinstance(mlp2_weight, MXFP4) and chosen.size:
        first, second = stored_of(mlp1_weight), stored_of(mlp2_weight)
        if first is not None and second is not None:
            call = _call(x, chosen, weights, mlp1_bias, mlp2_bias, alpha, limit, tap is not None)
            work = 3 * chosen.size * width * (doubled // 2)
            run(_pass, _pass_parallel, doubled // ROWS, work, call, first, second)
            if call.state[0] == _BAD_INDEX:
                _refuse_indices(chosen, count)
            if call.state[0] == _REFUSED:
                for weight in (mlp1_weight, mlp2_weight):
                    for e in np.unique(chosen):
                        refuse_255(weight.scales[e], f"{weight.name}[{e}]")
            if tap is not None:
                stages = {
                    "gate_up": call.gate_up,
                    "swiglu": call.swiglu,
                    "expert_out": call.answers,
                }
                for name, stage in stages.items():
                    tap(name, stage.reshape(*indices.shape, -1))
            return call.out

    groups = Groups(chosen, indices.shape[1], count)
    out = np.zeros(x.shape, np.float32)
    sizes = {"gate_up": doubled, "swiglu": doubled // 2, "expert_out": width}
    stages = {name: np.empty((indices.size, n), np.float32) for name, n in sizes.items()}
    for e in groups.active:
        slots = groups.order[groups.starts[e] : groups.starts[e + 1]]
        t = slots // groups.per_token
        gate_up = linear(x[t], mlp1_weight[int(e)], mlp1_bias[e])  # (n, 2F)
        activations = swiglu(gate_up, alpha, limit)  # (n, F)
        answer = linear(activations, mlp2_weight[int(e)], mlp2_bias[e])  # (n, D)
        out[t] += weights.reshape(-1)[slots, None] * answer
        if tap is not None:
            stages["gate_up"][slots] = gate_up
            stages["swiglu"][slots] = activations
            stages["expert_out"][slots] = answer
    if tap is not None:
        for name, stage in stages.items():
            tap(name, stage.reshape(*indices.shape, stage.shape[1]))
    return out


class Groups:
    """Which slots belong to which expert; slot t·A + a is the a-th choice of token t.

    Attributes:
        order: (T·A,) slots, those of expert 0 first.
        starts: (E + 1,) where each expert's slots begin in ``order``.
        active: experts that somebody chose.

    Raises:
        GptOssError: an index of no expert.
    """

    def __init__(self, chosen: Array, per_token: int, count: int) -> None:
        self.per_token = per_token
        self.order = np.empty(chosen.size, np.int64)
        self.starts = np.zeros(count + 1, np.int64)
        active = np.empty(count, np.int64)
        n = _group(chosen, self.order, self.starts, active)
        if n < 0:
            _refuse_indices(chosen, count)
        self.active = active[:n]


def _refuse_indices(chosen: Array, count: int) -> None:
    raise GptOssError(
        f"expert indices range from {chosen.min()} to {chosen.max()}: expected 0 to {count - 1}"
    )


@jit
def _group(indices: Any, order: Any, starts: Any, active: Any) -> int:
    """Sort slots by expert into the last three arguments; number of active experts, or −1."""
    count = starts.size - 1
    for e in indices:
        if e < 0 or e >= count:
            return -1
        starts[e + 1] += 1
    n = 0
    for e in range(count):
        if starts[e + 1]:
            active[n] = e
            n += 1
        starts[e + 1] += starts[e]
    filled = np.zeros(count, np.int64)
    for slot in range(indices.size):
        e = indices[slot]
        order[starts[e] + filled[e]] = slot
        filled[e] += 1
    return n


class _Call(NamedTuple):
    """What a pass of tokens through MXFP4 experts is given, and writes."""

    path: Any
    mode: int
    x: Any  # (T, D)
    chosen: Any  # (T·A,), by slot
    weights: Any  # (T·A,)
    first_bias: Any
    second_bias: Any
    alpha: Any
    limit: Any
    gate_up: Any  # (T·A, 2F), by slot, or (0, 2F); so are the next two
    swiglu: Any
    answers: Any
    out: Array  # (T, D)
    state: Any  # int64 (1,): _FINE, …


_FINE, _BAD_INDEX, _REFUSED = 0, 1, 2


def _call(
    x: Array,
    chosen: Array,
    weights: Array,
    first_bias: Array,
    second_bias: Array,
    alpha: float,
    limit: float,
    shown: bool,
) -> _Call:
    slots, doubled, width = chosen.size if shown else 0, first_bias.shape[1], x.shape[1]
    return _Call(
        current_path(),
        mode_of(*x.shape),
        x,
        chosen,
        weights.reshape(-1),
        matrix_of(first_bias),
        matrix_of(second_bias),
        np.float32(alpha),
        np.float32(limit),
        np.empty((slots, doubled), np.float32),
        np.empty((slots, doubled // 2), np.float32),
        np.empty((slots, width), np.float32),
        np.empty(x.shape, np.float32),
        np.zeros(1, np.int64),
    )


class _Plan(NamedTuple):
    """Positions 0 … T·A − 1 number the slots in the order of their experts."""

    order: Any  # the slot of each position
    starts: Any  # where each expert's positions begin
    active: Any  # experts that somebody chose
    tokens: Any  # the token of each position; like ``positions``, SPARE entries more
    positions: Any
    tiles: Any  # each expert's first tile
    tile_tokens: Any  # the token of each row of the tiles
    tile_positions: Any  # its position


@jit
def _plan(call: _Call) -> _Plan:
    slots, count = call.chosen.size, call.first_bias.shape[0]
    per_token = slots // call.x.shape[0]
    order, starts = np.empty(slots, np.int64), np.zeros(count + 1, np.int64)
    active = np.empty(count, np.int64)
    n = _group(call.chosen, order, starts, active)
    if n < 0:
        call.state[0] = _BAD_INDEX
        n = 0
        starts[:] = 0
    tokens, positions = np.zeros(slots + SPARE, np.int64), np.arange(slots + SPARE)
    tiles = np.zeros(count + 1, np.int64)
    for e in range(count):
        size = starts[e + 1] - starts[e]
        tiles[e + 1] = tiles[e] + (size + _tiles.ROWS - 1) // _tiles.ROWS
    tile_positions = np.empty(tiles[count] * _tiles.ROWS, np.int64)
    tile_tokens = np.empty(tile_positions.size, np.int64)
    if n:
        for i in range(slots):
            tokens[i] = order[i] // per_token
    for e in active[:n]:
        last = starts[e + 1] - 1
        for i in range(tiles[e] * _tiles.ROWS, tiles[e + 1] * _tiles.ROWS):
            position = min(starts[e] + i - tiles[e] * _tiles.ROWS, last)
            tile_positions[i], tile_tokens[i] = position, tokens[position]
    return _Plan(order, starts, active[:n], tokens, positions, tiles, tile_tokens, tile_positions)


class _Rooms(NamedTuple):
    """Arrays that live between the stages; two tuples of arrays are kept beside them."""

    planes: Any  # of the tokens: see ``split_tiles``
    hidden_planes: Any  # of the activations


@jit
def _rooms(call: _Call, plan: _Plan) -> Any:
    """The inputs of both matrices, those of the second still empty, and the rooms."""
    slots, inner = call.chosen.size, call.first_bias.shape[1] // 2
    given = kept(call.path, call.mode, call.x.reshape(-1), call.x.shape[0])
    hidden = inputs_of(call.path, call.mode, np.empty(slots * inner, np.float32), slots)
    rows = plan.tile_tokens.size
    planes = split_room(call.mode, rows, call.x.shape[1] // BLOCK)
    return given, hidden, _Rooms(planes, split_room(call.mode, rows, inner // BLOCK))


@jit
def _stage(
    stage: int,
    call: _Call,
    plan: _Plan,
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
        split_tiles(call.path, call.mode, given.x, plan.tile_tokens, rooms.planes, part, n)
    elif stage == 1:
        _first(call, plan, first, given, rooms.planes, hidden, part, n)
    elif stage == 2:
        positions = plan.tile_positions
        split_tiles(call.path, call.mode, hidden.x, positions, rooms.hidden_planes, part, n)
    else:
        _second(call, plan, second, hidden, rooms.hidden_planes, part, n)


@jit
def _pass(call: _Call, first: Stored, second: Stored, start: int, stop: int) -> None:
    """All stages, on the calling thread."""
    plan = _plan(call)
    given, hidden, rooms = _rooms(call, plan)
    for stage in range(4):
        part, n = np.int64(0), np.int64(1)  # no literals: they would be types of their own
        _stage(stage, call, plan, first, second, given, hidden, rooms, part, n)


@jit
def _pass_parallel(call: _Call, first: Stored, second: Stored, tasks: int, n: int) -> None:
    plan = _plan(call)
    given, hidden, rooms = _rooms(call, plan)
    _stages_parallel(call, plan, first, second, given, hidden, rooms, n)


@jit_parallel
def _stages_parallel(
    call: _Call,
    plan: _Plan,
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
    plan: _Plan,
    stored: Stored,
    inputs: Inputs,
    planes: Any,
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
                plan.tokens, at, planes, plan.tiles[e], count, sums, scratch,
            ):  # fmt: skip
                call.state[0] = _REFUSED
                return
            for m in range(count):
                to = (at + m) * inner + task * BLOCK
                # slices: an index that is a sum might be negative, which LLVM does not vectorise
                gate_up, block = sums[m * ROWS : (m + 1) * ROWS], hidden.x[to : to + BLOCK]
                _add_bias(gate_up, bias[e, row : row + ROWS])
                for j in range(BLOCK):
                    gate, up = gate_up[2 * j], gate_up[2 * j + 1]
                    block[j] = activated(gate, up, call.alpha, call.limit)
                if call.gate_up.size:
                    slot = order[at + m]
                    call.gate_up[slot, row : row + ROWS] = gate_up
                    call.swiglu[slot, task * BLOCK : (task + 1) * BLOCK] = block
                keep(call.path, hidden, at + m, task, inner // BLOCK)


@jit
def _second(
    call: _Call, plan: _Plan, stored: Stored, inputs: Inputs, planes: Any, part: int, n: int
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
                plan.positions, at, planes, plan.tiles[e], count, sums, scratch,
            ):  # fmt: skip
                call.state[0] = _REFUSED
                return
            for m in range(count):
                slot = order[at + m]
                answer = sums[m * ROWS : m * ROWS + rows]
                _add_bias(answer, bias[e, first : first + rows])
                if call.answers.size:
                    call.answers[slot, first : first + rows] = answer
                weight, result = call.weights[slot], out[slot // per_token, first : first + rows]
                for r in range(rows):
                    result[r] += weight * answer[r]


@jit
def _add_bias(total: Any, bias: Any) -> None:
    for i in range(total.size):
        total[i] += widen(bias[i])
