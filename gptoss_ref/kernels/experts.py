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
    split,
    stored_of,
)
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.swiglu import activated, swiglu
from gptoss_ref.kernels.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import MXFP4, ExpertMatrix

Tap = Callable[[str, Array], None]


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
    groups = Groups(indices, count)
    if isinstance(mlp1_weight, MXFP4) and isinstance(mlp2_weight, MXFP4) and len(x):
        first, second = stored_of(mlp1_weight), stored_of(mlp2_weight)
        if first is not None and second is not None:
            biases = matrix_of(mlp1_bias), matrix_of(mlp2_bias)
            out, failed = _mxfp4(
                x, groups, weights, first, biases[0], second, biases[1], alpha, limit, tap
            )
            for weight in (mlp1_weight, mlp2_weight):
                for e in groups.active if failed else ():
                    refuse_255(weight.scales[e], f"{weight.name}[{e}]")
            return out

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

    def __init__(self, indices: Array, count: int) -> None:
        self.per_token = indices.shape[1]
        self.order = np.empty(indices.size, np.int64)
        self.starts = np.zeros(count + 1, np.int64)
        active = np.empty(count, np.int64)
        flat = np.ascontiguousarray(indices, np.int64).reshape(-1)
        n = _group(flat, self.order, self.starts, active)
        if n < 0:
            raise GptOssError(
                f"expert indices range from {flat.min()} to {flat.max()}: expected 0 to {count - 1}"
            )
        self.active = active[:n]
        self.sorted = self.order, self.starts, self.active


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


def _mxfp4(
    x: Array,
    groups: Groups,
    weights: Array,
    first: Stored,
    first_bias: Array,
    second: Stored,
    second_bias: Array,
    alpha: float,
    limit: float,
    tap: Tap | None,
) -> tuple[Array, bool]:
    """A pass of tokens through MXFP4 experts, and whether a scale byte was refused.

    Positions 0 … T·A − 1 number the slots in the order of ``groups``.
    """
    slots, (_, doubled), width = groups.order.size, first_bias.shape, x.shape[1]
    inner, keep_all = doubled // 2, tap is not None
    path, mode, failed = current_path(), mode_of(len(x)), np.zeros(1, np.bool_)
    out = np.empty(x.shape, np.float32)
    gate_up = np.empty((slots if keep_all else 0, doubled), np.float32)
    answers = np.empty((slots if keep_all else 0, width), np.float32)
    activations = np.empty((slots, inner), np.float32)
    hidden = inputs_of(activations, mode)
    positions = np.arange(slots + SPARE)
    tiles, tile_positions = _tiled(groups) if mode == TILES else (groups.starts, positions[:0])
    tokens = np.minimum(positions, slots - 1)
    np.floor_divide(groups.order[tokens], groups.per_token, out=tokens)

    work = _First(
        path, tokens, split(x, tokens[tile_positions], mode), tiles, first_bias, *groups.sorted,
        np.float32(alpha), np.float32(limit), gate_up.reshape(-1), failed,
    )  # fmt: skip
    arguments = work, first, kept(x, mode), hidden
    run(_first, _first_parallel, doubled // ROWS, slots * doubled * width, *arguments)
    if not failed[0]:
        last = _Second(
            path, positions, split(activations, tile_positions, mode), tiles, second_bias,
            *groups.sorted, groups.per_token, weights.reshape(-1), answers.reshape(-1), out, failed,
        )  # fmt: skip
        tasks = -(-width // ROWS)
        run(_second, _second_parallel, tasks, slots * width * inner, last, second, hidden)
    if tap is not None and not failed[0]:
        by_slot = np.empty_like(activations)
        by_slot[groups.order] = activations
        for name, stage in (("gate_up", gate_up), ("swiglu", by_slot), ("expert_out", answers)):
            tap(name, stage.reshape(len(x), groups.per_token, -1))
    return out, bool(failed[0])


def _tiled(groups: Groups) -> tuple[Array, Array]:
    """For tiles: each expert's first tile (E,), and the position of each of their rows.

    An expert's last tile repeats its last position.
    """
    sizes = np.diff(groups.starts)
    counts = -(-sizes // _tiles.ROWS)  # of tiles
    first = np.cumsum(counts) - counts
    rows = np.arange(counts.sum() * _tiles.ROWS)
    e = np.repeat(np.arange(sizes.size), counts * _tiles.ROWS)
    within = np.minimum(rows - first[e] * _tiles.ROWS, sizes[e] - 1)
    return first, groups.starts[e] + within


class _First(NamedTuple):
    """Arguments of :func:`_first`, beside the tuples that Numba does not take inside another."""

    path: Any
    of: Any  # the row of inputs, a token, of each position
    split: Any
    tiles: Any  # each expert's first tile
    bias: Any
    order: Any
    starts: Any
    active: Any
    alpha: Any
    limit: Any
    gate_up: Any  # by slot, or empty
    failed: Any


class _Second(NamedTuple):
    """Arguments of :func:`_second`; those of the same name as above."""

    path: Any
    of: Any
    split: Any
    tiles: Any
    bias: Any
    order: Any
    starts: Any
    active: Any
    per_token: int
    weights: Any
    answers: Any  # by slot, or empty
    out: Any
    failed: Any


@jit
def _first(
    work: _First, stored: Stored, inputs: Inputs, hidden: Inputs, start: int, stop: int
) -> None:
    """Rows of tasks ``start`` … ``stop`` − 1 of the first matrices; ``hidden`` is written."""
    bias = work.bias
    doubled = bias.shape[1]
    inner = doubled // 2
    groups = inputs.x.size // inputs.beyond.size // BLOCK
    sums, scratch = room(work.order.size, inputs, groups)
    for e in work.active:
        at, count = work.starts[e], work.starts[e + 1] - work.starts[e]
        for task in range(start, stop):
            row = task * ROWS
            if not product(
                work.path, stored, (e * doubled + row) * groups, ROWS, groups, inputs,
                work.of, at, work.split, work.tiles[e], count, sums, scratch,
            ):  # fmt: skip
                work.failed[0] = True
                return
            for m in range(count):
                for r in range(ROWS):
                    sums[m * ROWS + r] += widen(bias[e, row + r])
                if work.gate_up.size:
                    for r in range(ROWS):
                        work.gate_up[work.order[at + m] * doubled + row + r] = sums[m * ROWS + r]
                to = (at + m) * inner + task * BLOCK
                for j in range(BLOCK):
                    pair = m * ROWS + 2 * j
                    hidden.x[to + j] = activated(sums[pair], sums[pair + 1], work.alpha, work.limit)
                keep(work.path, hidden, at + m, task, inner // BLOCK)


@jit
def _second(work: _Second, stored: Stored, inputs: Inputs, start: int, stop: int) -> None:
    """Columns of the result of tasks ``start`` … ``stop`` − 1."""
    bias, order, out = work.bias, work.order, work.out
    width = bias.shape[1]
    groups = inputs.x.size // order.size // BLOCK
    sums, scratch = room(order.size, inputs, groups)
    out[:, start * ROWS : stop * ROWS] = np.float32(0.0)
    for e in work.active:
        at, count = work.starts[e], work.starts[e + 1] - work.starts[e]
        for first in range(start * ROWS, min(stop * ROWS, width), ROWS):
            rows = min(ROWS, width - first)
            if not product(
                work.path, stored, (e * width + first) * groups, rows, groups, inputs,
                work.of, at, work.split, work.tiles[e], count, sums, scratch,
            ):  # fmt: skip
                work.failed[0] = True
                return
            for m in range(count):
                slot = order[at + m]
                t, weight = slot // work.per_token, work.weights[slot]
                for r in range(rows):
                    answer = sums[m * ROWS + r] + widen(bias[e, first + r])
                    if work.answers.size:
                        work.answers[slot * width + first + r] = answer
                    out[t, first + r] += weight * answer


@jit_parallel
def _first_parallel(
    work: _First, stored: Stored, inputs: Inputs, hidden: Inputs, tasks: int, n: int
) -> None:
    for t in prange(n):
        _first(work, stored, inputs, hidden, t * tasks // n, (t + 1) * tasks // n)


@jit_parallel
def _second_parallel(work: _Second, stored: Stored, inputs: Inputs, tasks: int, n: int) -> None:
    for t in prange(n):
        _second(work, stored, inputs, t * tasks // n, (t + 1) * tasks // n)
