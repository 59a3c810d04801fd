"""The assignment of tokens to experts, and MXFP4 experts for all tokens.

A *slot* is one choice of one token: slot t·A + a is the a-th choice of token t. A *position*
numbers the slots in the order of their experts. ``experts.py`` describes the two sets of tasks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.matmul import mxfp4_methods as mxfp4
from gptoss_ref.kernels.matmul.amx import ROWS as TILE
from gptoss_ref.kernels.matmul.mxfp4_block import BLOCK, ROWS, Stored
from gptoss_ref.kernels.matmul.mxfp4_gemm_int16 import SPARE
from gptoss_ref.kernels.runtime.arrays import positions_of
from gptoss_ref.kernels.runtime.buffers import add_all, copy, fill, floats, integers, zeros
from gptoss_ref.kernels.runtime.jit import jit, jit_inner
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.swiglu import activated
from gptoss_ref.numerics import Array


def chosen_of(indices: Array, count: int) -> Array:
    """Return the experts ``indices`` (T, A) that tokens choose among ``count``, by slot: (T·A,).

    Raises:
        GptOssError: an index is not an integer, is out of range or repeated within a token.
    """
    chosen = positions_of(indices)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < count:
        raise GptOssError(
            f"expert indices range from {chosen.min()} to {chosen.max()}: expected 0 to {count - 1}"
        )
    ranked = np.sort(chosen, axis=-1)
    for t, a in np.argwhere(ranked[:, 1:] == ranked[:, :-1])[:1]:
        raise GptOssError(
            f"token {t} chooses expert {ranked[t, a]} twice: expected each expert once a token"
        )
    return chosen.reshape(-1)


class Plan(NamedTuple):
    """The positions 0 … T·A − 1 in the order of their experts."""

    order: Any  # the slot of each position
    starts: Any  # (E + 1,) first position of each expert
    active: Any  # the experts that a token chose
    tokens: Any  # the token of each position; ``tokens`` and ``positions`` have SPARE more entries
    positions: Any
    tiles: Any  # (E + 1,) first tile of each expert
    tile_tokens: Any  # the token of each row of the tiles
    tile_positions: Any  # the position of each row of the tiles


@jit
def plan_of(chosen: Any, per_token: int, count: int) -> Plan:
    """Return the plan for the slots ``chosen``, valid choices among ``count`` experts."""
    slots = chosen.size
    order, tokens, positions = integers(slots), zeros(slots + SPARE), zeros(slots + SPARE)
    starts, tiles, active = zeros(count + 1), zeros(count + 1), integers(count)
    n, filled = 0, zeros(count)
    for e in chosen:
        starts[e + 1] += 1
    for e in range(count):
        if starts[e + 1]:
            active[n] = e
            n += 1
        starts[e + 1] += starts[e]
    for slot in range(slots):
        e = chosen[slot]
        at = starts[e] + filled[e]
        order[at], tokens[at], positions[at] = slot, slot // per_token, at
        filled[e] += 1
    for e in range(count):
        tiles[e + 1] = tiles[e] + (starts[e + 1] - starts[e] + TILE - 1) // TILE
    rows = tiles[count] * TILE
    tile_tokens, tile_positions = integers(rows), integers(rows)
    for e in active[:n]:
        for i in range(tiles[e] * TILE, tiles[e + 1] * TILE):
            position = min(starts[e] + i - tiles[e] * TILE, starts[e + 1] - 1)
            tile_positions[i], tile_tokens[i] = position, tokens[position]
    return Plan(order, starts, active[:n], tokens, positions, tiles, tile_tokens, tile_positions)


class _Call(NamedTuple):
    """Arguments and outputs of a pass."""

    weights: Any  # (T·A,), by slot
    biases: Any  # of the first and of the second matrices, flat
    alpha: Any
    limit: Any
    shown: Any  # (T·A, 2F + F + D) by slot: gate and up, activation, output; or empty
    out: Any  # (T, D)
    failed: Any  # bool (1,): set if a scale byte 255 is refused


@jit
def mixture(
    path: Any, method: Any, x: Any, chosen: Any, weights: Any, blocks: Any, scales: Any,
    scale_255: int, bias: Any, blocks_2: Any, scales_2: Any, scale_255_2: int, bias_2: Any,
    count: int, alpha: Any, limit: Any, shown: Any, out: Any, failed: Any, tasks: int, team: Any
) -> None:  # fmt: skip
    """Compute the experts ``chosen`` (T·A,) for tokens x (T, D), into ``out`` (T, D).

    Args:
        bias: (E·2F,); ``bias_2``: (E·D,); ``count``: E.
        shown, failed: see :class:`_Call`; ``shown`` is (0, 0) without a tap.
        tasks: number of tasks of the first matrices; the second have one per 64 rows of D.
    """
    (tokens, width), inner = x.shape, bias.size // count // 2
    call = _Call(weights, (bias, bias_2), alpha, limit, shown, out, failed)
    plan = plan_of(chosen, chosen.size // tokens, count)
    tiles = plan.tile_tokens.size // TILE
    given = mxfp4.prepare(path, method, x.reshape(-1), tokens, tiles)
    hidden = mxfp4.new(path, method, floats(chosen.size * inner), chosen.size, tiles)
    mxfp4.settle(path, given, plan.tile_tokens, team)
    first, second = Stored(blocks, scales, scale_255), Stored(blocks_2, scales_2, scale_255_2)
    _tasks(path, False, call, plan, first, given, plan.tokens, hidden, tasks, team)
    mxfp4.settle(path, hidden, plan.tile_positions, team)
    tasks = (width + ROWS - 1) // ROWS
    _tasks(path, True, call, plan, second, hidden, plan.positions, hidden, tasks, team)


@jit_tasks
def _tasks(
    path: Any, last: bool, call: _Call, plan: Plan, stored: Stored, inputs: Any, of: Any,
    hidden: Any, start: int, stop: int
) -> None:  # fmt: skip
    """Compute tasks ``start`` … ``stop`` − 1 of the first or the ``last`` matrices.

    It is one function, so that the products are compiled once.
    """
    biases = call.biases[1] if last else call.biases[0]
    count = plan.starts.size - 1
    outputs = biases.size // count
    inner = hidden.x.size // plan.order.size
    groups = (inner if last else call.out.shape[1]) // BLOCK
    slots = plan.order.size
    sums, scratch = floats((slots + 32) * ROWS), mxfp4.workspace(inputs, slots, groups)
    bias = floats(ROWS)
    begin, end = start * ROWS, min(stop * ROWS, outputs)
    if last:
        for t in range(call.out.shape[0]):
            fill(call.out[t, begin:end], np.float32(0.0))
    for e in plan.active:
        at, tokens = plan.starts[e], plan.starts[e + 1] - plan.starts[e]
        for row in range(begin, end, ROWS):
            rows, number = min(ROWS, outputs - row), e * outputs + row
            if not mxfp4.multiply(
                path, stored, number * groups, rows, groups, inputs, of, at, plan.tiles[e], tokens,
                sums, scratch,
            ):  # fmt: skip
                call.failed[0] = True
                return
            copy(biases[number : number + rows], bias[:rows])
            for m in range(tokens):
                total = sums[m * ROWS : m * ROWS + rows]
                add_all(bias[:rows], total)
                if last:
                    _answer(call, plan.order[at + m], row, total)
                else:
                    _activate(path, call, plan.order[at + m], row, total, hidden, at + m)


@jit_inner
def _activate(
    path: Any, call: _Call, slot: int, row: int, gate_up: Any, hidden: Any, position: int
) -> None:
    """Turn gate and up from ``row`` on into activations: one block of the second input."""
    inner, column = hidden.x.size // call.weights.size, row // 2
    doubled = 2 * inner
    to = position * inner + column
    block = hidden.x[to : to + BLOCK]
    for j in range(BLOCK):
        block[j] = activated(gate_up[2 * j], gate_up[2 * j + 1], call.alpha, call.limit)
    if call.shown.size:
        copy(gate_up, call.shown[slot, row : row + ROWS])
        copy(block, call.shown[slot, doubled + column : doubled + column + BLOCK])
    mxfp4.quantise(path, hidden, position, column // BLOCK, inner // BLOCK)


@jit_inner
def _answer(call: _Call, slot: int, row: int, answer: Any) -> None:
    """Add an expert's output from ``row`` on, times its weight, to the token's result."""
    tokens, width = call.out.shape
    if call.shown.size:
        column = call.shown.shape[1] - width + row
        copy(answer, call.shown[slot, column : column + answer.size])
    token, weight = slot // (call.weights.size // tokens), call.weights[slot]
    result = call.out[token, row : row + answer.size]
    for r in range(answer.size):
        result[r] += weight * answer[r]
