"""Mixture of experts; mirrors ``layers/experts.py``.

Tokens are grouped by expert, so that an expert's weights are read once a pass. With MXFP4 weights
two sets of tasks run, and nothing but activations is stored between them:

1. a task is 64 rows of one expert's first matrix: gate and up of 32 activations. It computes them
   for all tokens of that expert, adds the bias, applies SwiGLU, and rounds the 32 results to int16,
   which are one block of the second matrix's input;
2. a task is 64 rows of the result: for one expert after the other it computes the second matrix's
   rows, adds the bias, and adds router weight times that to the tokens' results. No two tasks write
   the same place.

Products, their accumulators and their error are those of ``_blocks.py``: each within 1e-4 relative
L2 of float64 given its input, and so is the result on Gaussian activations. Faster than the layer
because weights are never widened in memory. Other weights (bfloat16 or float experts) go through
``linear`` expert by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels import mxfp4
from gptoss_ref.kernels._arrays import check_policy, matrix_of, values
from gptoss_ref.kernels._blocks import (
    BLOCK,
    ROWS,
    SCALE_255,
    SPARE,
    largest_scale,
    product,
    quantise,
)
from gptoss_ref.kernels._jit import current_path, jit, jit_parallel
from gptoss_ref.kernels._math import widen
from gptoss_ref.kernels.linear import linear
from gptoss_ref.kernels.swiglu import activated, swiglu
from gptoss_ref.kernels.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy
from gptoss_ref.weights import MXFP4, ExpertMatrix

Tap = Callable[[str, Array], None]
_REFUSE_255 = SCALE_255["error"]


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
        stored1, stored2 = mxfp4.flat(mlp1_weight), mxfp4.flat(mlp2_weight)
        if stored1 is not None and stored2 is not None:
            pass_ = _Pass(x, groups, weights, alpha, limit, tap is not None)
            pass_.first(mlp1_weight, stored1, matrix_of(mlp1_bias))
            pass_.second(mlp2_weight, stored2, matrix_of(mlp2_bias))
            if tap is not None:
                pass_.show(tap)
            return pass_.out

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


class _Pass:
    """One pass of tokens through MXFP4 experts: the arrays that live between its two sets of tasks.

    Positions 0 … T·A − 1 number the slots in the order of ``groups``; arrays of positions have some
    spare rows, which panels read and nobody uses.
    """

    def __init__(
        self, x: Array, groups: Groups, weights: Array, alpha: float, limit: float, keep: bool
    ) -> None:
        self.x, self.groups, self.weights = x, groups, weights.reshape(-1)
        self.alpha, self.limit = np.float32(alpha), np.float32(limit)
        self.keep, self.planes = keep, len(x) == 1
        self.out = np.empty(x.shape, np.float32)
        self.failed = np.zeros(1, np.int64)

    def first(self, weight: MXFP4, stored: tuple[Array, Array], bias: Array) -> None:
        """gate_up and SwiGLU of every position."""
        groups, slots = self.groups, self.groups.order.size
        doubled = weight.shape[1]
        inner = doubled // 2
        of = np.zeros(slots + SPARE, np.int64)  # the token of each position
        np.floor_divide(groups.order, groups.per_token, out=of[:slots])
        repeat = 4 if self.planes else 1
        self.activations = np.empty(slots * inner, np.float32)
        self.q = np.empty((slots + SPARE) * inner, np.int16)
        self.factors = np.empty((slots + SPARE) * (inner // BLOCK) * repeat, np.float32)
        self.beyond = np.zeros(slots + SPARE, np.bool_)
        self.gate_up = np.empty(slots * doubled if self.keep else 0, np.float32)
        rounded = mxfp4.rounded_activations(self.x, self.planes)
        arguments = (
            *(current_path(), *stored, self.x.reshape(-1), *rounded, of, self.planes),
            *(mxfp4.scale_255_code(weight.scale_255), bias, groups.order, groups.starts),
            *(groups.active, self.alpha, self.limit, self.gate_up, self.activations, self.q),
            *(self.factors, self.beyond, self.failed),
        )
        tasks = groups.active.size * (doubled // ROWS)
        run(_first, _first_parallel, tasks, slots * doubled * self.x.shape[1], *arguments)
        self._refuse(weight)

    def second(self, weight: MXFP4, stored: tuple[Array, Array], bias: Array) -> None:
        """The second matrix, weighted and summed over each token's experts."""
        groups, slots = self.groups, self.groups.order.size
        _, width, inner = weight.shape
        of = np.arange(slots + SPARE)
        self.answers = np.empty(slots * width if self.keep else 0, np.float32)
        arguments = (
            *(current_path(), *stored, self.activations, self.q, self.factors, self.beyond, of),
            *(self.planes, mxfp4.scale_255_code(weight.scale_255), bias, groups.order),
            *(groups.starts, groups.active, groups.per_token, self.weights, self.answers),
            *(self.out, self.failed),
        )
        tasks = -(-width // ROWS)
        run(_second, _second_parallel, tasks, slots * width * inner, *arguments)
        self._refuse(weight)

    def _refuse(self, weight: MXFP4) -> None:
        if self.failed[0]:
            for e in self.groups.active:
                mxfp4.refuse_255(weight.scales[e], f"{weight.name}[{e}]")

    def show(self, tap: Tap) -> None:
        """Hand the stages to ``tap``, by token and choice."""
        shape = (len(self.x), self.groups.per_token, -1)
        activations = self.activations.reshape(self.groups.order.size, -1)
        by_slot = np.empty_like(activations)
        by_slot[self.groups.order] = activations
        tap("gate_up", self.gate_up.reshape(shape))
        tap("swiglu", by_slot.reshape(shape))
        tap("expert_out", self.answers.reshape(shape))


@jit
def _first(
    path: Any,
    blocks: Any,
    scales: Any,
    x: Any,
    q: Any,
    factors: Any,
    beyond: Any,
    of: Any,
    planes: bool,
    scale_255: int,
    bias: Any,
    order: Any,
    starts: Any,
    active: Any,
    alpha: Any,
    limit: Any,
    gate_up: Any,
    act: Any,
    act_q: Any,
    act_factors: Any,
    act_beyond: Any,
    failed: Any,
    start: int,
    stop: int,
) -> None:
    """Tasks ``start`` … ``stop`` − 1; task n is tile n // active of expert active[n % active]."""
    doubled = bias.shape[1]
    inner = doubled // 2
    groups = x.size // beyond.size // BLOCK
    sums = np.empty((of.size + SPARE) * ROWS, np.float32)
    for task in range(start, stop):
        tile, e = task // active.size, active[task % active.size]
        at, count = starts[e], starts[e + 1] - starts[e]
        block = (e * doubled + tile * ROWS) * groups
        if scale_255 == _REFUSE_255 and largest_scale(scales, block, ROWS * groups) == 255:
            failed[0] = 1
            continue
        product(
            path, blocks, scales, block, ROWS, groups, scale_255,
            x, q, factors, beyond, of, at, count, planes, sums,
        )  # fmt: skip
        for m in range(count):
            for r in range(ROWS):
                sums[m * ROWS + r] += widen(bias[e, tile * ROWS + r])
            if gate_up.size:
                for r in range(ROWS):
                    gate_up[order[at + m] * doubled + tile * ROWS + r] = sums[m * ROWS + r]
            to = (at + m) * inner + tile * BLOCK
            for j in range(BLOCK):
                pair = m * ROWS + 2 * j
                act[to + j] = activated(sums[pair], sums[pair + 1], alpha, limit)
            if planes:
                group = (at + m) * (inner // BLOCK) + tile
                q_to = (at + m) * inner + tile * 8
                fits = quantise(act, to, act_q, q_to, inner // 4, act_factors, group * 4, 4)
            else:
                group = (at + m) * (inner // BLOCK) + tile
                fits = quantise(act, to, act_q, to, 0, act_factors, group, 1)
            if not fits:
                act_beyond[at + m] = True


@jit
def _second(
    path: Any,
    blocks: Any,
    scales: Any,
    act: Any,
    q: Any,
    factors: Any,
    beyond: Any,
    of: Any,
    planes: bool,
    scale_255: int,
    bias: Any,
    order: Any,
    starts: Any,
    active: Any,
    per_token: int,
    weights: Any,
    answers: Any,
    out: Any,
    failed: Any,
    start: int,
    stop: int,
) -> None:
    """Rows of the result of tasks ``start`` … ``stop`` − 1, all experts one after the other."""
    width = bias.shape[1]
    groups = act.size // order.size // BLOCK
    sums = np.empty((of.size + SPARE) * ROWS, np.float32)
    for first in range(start * ROWS, min(stop * ROWS, width), ROWS):
        rows = min(ROWS, width - first)
        for t in range(out.shape[0]):
            for r in range(rows):
                out[t, first + r] = np.float32(0.0)
        for e in active:
            at, count = starts[e], starts[e + 1] - starts[e]
            block = (e * width + first) * groups
            if scale_255 == _REFUSE_255 and largest_scale(scales, block, rows * groups) == 255:
                failed[0] = 1
                continue
            product(
                path, blocks, scales, block, rows, groups, scale_255,
                act, q, factors, beyond, of, at, count, planes, sums,
            )  # fmt: skip
            for m in range(count):
                slot = order[at + m]
                t, weight = slot // per_token, weights[slot]
                for r in range(rows):
                    answer = sums[m * ROWS + r] + widen(bias[e, first + r])
                    if answers.size:
                        answers[slot * width + first + r] = answer
                    out[t, first + r] += weight * answer


@jit_parallel
def _first_parallel(
    path: Any,
    blocks: Any,
    scales: Any,
    x: Any,
    q: Any,
    factors: Any,
    beyond: Any,
    of: Any,
    planes: bool,
    scale_255: int,
    bias: Any,
    order: Any,
    starts: Any,
    active: Any,
    alpha: Any,
    limit: Any,
    gate_up: Any,
    act: Any,
    act_q: Any,
    act_factors: Any,
    act_beyond: Any,
    failed: Any,
    tasks: int,
    n: int,
) -> None:
    for t in prange(n):
        _first(
            path, blocks, scales, x, q, factors, beyond, of, planes, scale_255, bias, order,
            starts, active, alpha, limit, gate_up, act, act_q, act_factors, act_beyond, failed,
            t * tasks // n, (t + 1) * tasks // n,
        )  # fmt: skip


@jit_parallel
def _second_parallel(
    path: Any,
    blocks: Any,
    scales: Any,
    act: Any,
    q: Any,
    factors: Any,
    beyond: Any,
    of: Any,
    planes: bool,
    scale_255: int,
    bias: Any,
    order: Any,
    starts: Any,
    active: Any,
    per_token: int,
    weights: Any,
    answers: Any,
    out: Any,
    failed: Any,
    tasks: int,
    n: int,
) -> None:
    for t in prange(n):
        _second(
            path, blocks, scales, act, q, factors, beyond, of, planes, scale_255, bias, order,
            starts, active, per_token, weights, answers, out, failed,
            t * tasks // n, (t + 1) * tasks // n,
        )  # fmt: skip
