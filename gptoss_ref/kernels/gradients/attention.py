"""Gradient of attention; mirrors ``gradients/attention.py``.

A task is one key/value head of one row of the batch. Some queries are processed at a time, those of
all heads of the group together, with the keys that they can see. Scores and dw are products with
register tiles; one pass over both turns them, in place, into weights and gradients of the scores;
three more products give dq and add to dk and dv, which stay in cache. Accumulators: float32, and
float64 for the gradient of a sink. The relative L2 error is below 2e-5 against the layer's gradient
in float64; dq and dk are differences in which terms may cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.gradients.products import padded
from gptoss_ref.kernels.matmul.register_tile import pack, panel_width, tile
from gptoss_ref.kernels.runtime.arrays import check_policy, positions_of, values
from gptoss_ref.kernels.runtime.buffers import fill, floats
from gptoss_ref.kernels.runtime.isa import current_path
from gptoss_ref.kernels.runtime.jit import jit, jit_dot_inner, jit_inner
from gptoss_ref.kernels.runtime.scalar import exp
from gptoss_ref.kernels.runtime.tasks import jit_tasks
from gptoss_ref.kernels.runtime.threads import run
from gptoss_ref.numerics import FLOAT32, Array, Policy, widen
from gptoss_ref.weights import AttentionGradients

ROWS = 96
"""Rows (queries times heads) that are processed together: whole register tiles of every path."""
SCORES = 1 << 19
"""Number of scores that each thread holds at a time; there are two such arrays of 2 MiB."""

_NO_WINDOW = 1 << 62


def attention(
    d_mix: Array,
    q: Array,
    k: Array,
    v: Array,
    sinks: Array,
    q_positions: Array,
    k_positions: Array,
    window: int | None = None,
    *,
    rows: Sequence[slice] | None = None,
    policy: str | Policy = FLOAT32,
) -> AttentionGradients:
    """Gradients of the inputs of :func:`gptoss_ref.kernels.attention`, from ``d_mix`` (T, H*C).

    Args:
        q: (T, H, C), rotated by position.
        k: (S, K, C), likewise.
        v: (S, K, C).
        sinks: (H,) logits.
        q_positions: (T,) absolute positions.
        k_positions: (S,) absolute positions, in any order.
        window: number of keys that a query sees, including its own; None for all.
        rows: the range of each row of a batch along T (then S = T); None: one row.

    Returns:
        ``d_q`` (T, H, C), ``d_k`` (S, K, C), ``d_v`` (S, K, C), ``d_sinks`` (H,).

    Raises:
        GptOssError: a policy other than float32, or shapes that do not match.
    """
    check_policy(policy)
    (queries, heads, channels), (keys, kv_heads, _) = q.shape, k.shape
    if (
        heads % max(1, kv_heads)
        or d_mix.shape != (queries, heads * channels)
        or k.shape != v.shape
        or k.shape[2] != channels
        or sinks.shape != (heads,)
    ):
        raise GptOssError(
            f"gradient of attention: d_mix {d_mix.shape}, q {q.shape}, k {k.shape}, v {v.shape}, "
            f"sinks {sinks.shape} do not fit: expected (T, H*C), (T, H, C), (S, K, C) twice, (H,)"
        )
    q_positions, k_positions = positions_of(q_positions), positions_of(k_positions)
    parts = [(slice(0, queries), slice(0, keys))] if rows is None else [(at, at) for at in rows]
    order = np.empty(keys, np.int64)
    first, last = np.empty_like(q_positions), np.empty_like(q_positions)
    reach = _NO_WINDOW if window is None else window
    for of_q, of_k in parts:
        order[of_k] = of_k.start + np.argsort(k_positions[of_k], kind="stable")
        positions, asked = k_positions[order[of_k]], q_positions[of_q]
        first[of_q] = np.searchsorted(positions, asked - reach, "right")  # the first key it sees
        last[of_q] = np.searchsorted(positions, asked, "right")
    most = max((int(_reach(first[a], last[a])) for a, _ in parts), default=0)
    bounds = np.array([[a.start, a.stop, b.start, b.stop] for a, b in parts], np.int64)
    d_q, d_k, d_v = (np.empty(a.shape, np.float32) for a in (q, k, v))
    d_sinks = np.zeros((len(parts), heads))
    given = _Given(
        current_path(), values(q), values(k), values(v), values(d_mix), order, first, last, bounds,
        np.ascontiguousarray(widen(sinks, np.float32)), np.float32(1 / math.sqrt(channels)),
        most,
    )  # fmt: skip
    work = 5 * heads * channels * int((last - first).sum())
    run(_attention, len(parts) * kv_heads, work, given, d_q, d_k, d_v, d_sinks)
    return AttentionGradients(d_q, d_k, d_v, d_sinks.sum(axis=0).astype(np.float32))


def _reach(first: Array, last: Array) -> int:
    """Return the largest number of keys that ROWS queries see together.

    It is small if there is a window and the positions are in order.
    """
    steps = np.diff([first, last])
    if len(first) and ((steps < 0) | (steps > 1)).any():
        return int(last.max())
    return int((last - first).max(initial=0)) + ROWS


class _Given(NamedTuple):
    path: Any
    q: Any  # (T, H, C)
    k: Any  # (S, K, C)
    v: Any  # (S, K, C)
    d_mix: Any  # (T, H·C)
    order: Any  # (S,) the keys of each row of the batch, ordered by position
    first: Any  # (T,) index in that order of the first key that a query sees, within its row
    last: Any  # (T,) index after the last key that a query sees
    bounds: Any  # (rows of the batch, 4): first query, end of queries, first key, end of keys
    sinks: Any  # (H,)
    scale: Any
    most: Any  # largest number of keys that ROWS queries see together


@jit
def _attention(
    given: _Given, d_q: Any, d_k: Any, d_v: Any, d_sinks: Any, tasks: int, team: Any
) -> None:
    _attention_tasks(given, d_q, d_k, d_v, d_sinks, tasks, team)


@jit_tasks
def _attention_tasks(
    of: _Given, d_q: Any, d_k: Any, d_v: Any, d_sinks: Any, start: int, stop: int
) -> None:
    kv_heads, channels = of.k.shape[1], of.k.shape[2]
    path, width = of.path, panel_width(of.path)
    group, stride = of.q.shape[1] // kv_heads, padded(channels)
    for task in range(start, stop):
        row, head = task // kv_heads, task % kv_heads
        q_begin, q_end, k_begin, k_end = of.bounds[row]
        keys = k_end - k_begin
        order, room = of.order[k_begin:k_end], padded(keys)
        k, v, d_k_, d_v_ = (
            floats(room * stride), floats(room * stride), floats(room * stride),
            floats(room * stride),
        )  # fmt: skip
        _gather(of.k, order, head, channels, stride, k)
        _gather(of.v, order, head, channels, stride, v)
        k_panels, v_panels = floats(room * stride), floats(room * stride)
        for j in range(0, room, width):
            pack(path, k, j * stride, stride, width, stride, 0, k_panels[j * stride :])
            pack(path, v, j * stride, stride, width, stride, 0, v_panels[j * stride :])
        fill(d_k_, np.float32(0.0))
        fill(d_v_, np.float32(0.0))
        most = min(room, of.most + 2 * width)
        some = max(1, min(ROWS // group, SCORES // (group * most)))
        q, d = floats(some * group * stride), floats(some * group * stride)
        scores, d_scores = floats(some * group * most), floats(some * group * most)
        found = floats(some * group * stride)
        for t in range(q_begin, q_end, some):
            count = min(some, q_end - t)
            rows = count * group
            low, high = _seen(of.first[t : t + count], of.last[t : t + count], room, width)
            seen = high - low
            _queries(of, t, count, head * group, group, stride, q, d)
            for j in range(low, high, width):
                tile(
                    path, rows, q, 0, stride, 1, k_panels, j * stride, width, stride, scores,
                    j - low, seen, False,
                )  # fmt: skip
                tile(
                    path, rows, d, 0, stride, 1, v_panels, j * stride, width, stride, d_scores,
                    j - low, seen, False,
                )  # fmt: skip
            for r in range(rows):
                i, h = r // group, head * group + r % group
                d_sinks[row, h] += _between(
                    scores[r * seen : (r + 1) * seen], d_scores[r * seen : (r + 1) * seen],
                    of.first[t + i] - low, of.last[t + i] - low, of.sinks[h], of.scale,
                )  # fmt: skip
            for c in range(0, stride, width):
                tile(
                    path, rows, d_scores, 0, seen, 1, k, low * stride + c, stride, seen, found,
                    c, stride, False,
                )  # fmt: skip
                at = low * stride + c
                tile(
                    of.path, seen, d_scores, 0, 1, seen, q, c, stride, rows, d_k_, at, stride, True
                )
                tile(path, seen, scores, 0, 1, seen, d, c, stride, rows, d_v_, at, stride, True)
            for r in range(rows):
                i, h = r // group, head * group + r % group
                for c in range(channels):
                    d_q[t + i, h, c] = found[r * stride + c]
        for j in range(keys):
            for c in range(channels):
                d_k[order[j], head, c] = d_k_[j * stride + c]
                d_v[order[j], head, c] = d_v_[j * stride + c]


@jit_inner
def _gather(x: Any, order: Any, head: int, channels: int, stride: int, out: Any) -> None:
    """Copy one head's rows in ``order``, with zeros as padding."""
    fill(out, np.float32(0.0))
    for j in range(order.size):
        for c in range(channels):
            out[j * stride + c] = x[order[j], head, c]


@jit_inner
def _queries(
    of: _Given, t: int, count: int, head: int, group: int, stride: int, q: Any, d: Any
) -> None:
    """Copy the queries of a group's heads, and their d_mix, into rows i·G + g."""
    channels = of.q.shape[2]
    fill(q[: count * group * stride], np.float32(0.0))
    fill(d[: count * group * stride], np.float32(0.0))
    for i in range(count):
        for g in range(group):
            at, h = (i * group + g) * stride, head + g
            for c in range(channels):
                q[at + c] = of.q[t + i, h, c]
                d[at + c] = of.d_mix[t + i, h * channels + c]


@jit_inner
def _seen(first: Any, last: Any, room: int, width: int) -> Any:
    """Return the range of keys that some queries see, in whole panels of ``width`` keys."""
    low, high = first[0], last[0]
    for i in range(first.size):
        low, high = min(low, first[i]), max(high, last[i])
    low = min(low // width * width, room - width)
    return low, max(low + width, (high + width - 1) // width * width)


@jit_dot_inner
def _between(scores: Any, d_weights: Any, low: int, high: int, sink: Any, scale: Any) -> Any:
    """In place, turn ``scores`` (s,) into weights and ``d_weights`` into the gradient of q · k.

    Returns:
        The query's part of the gradient of the sink.
    """
    zero = np.float32(0.0)
    w, d = scores[low:high], d_weights[low:high]
    top = np.float32(sink)
    for j in range(w.size):
        w[j] *= scale
        top = max(top, w[j])
    total = zero
    for j in range(w.size):
        w[j] = exp(np.float32(w[j] - top))
        total += w[j]
    share = exp(np.float32(sink - top))
    inverse = np.float32(1.0) / np.float32(total + share)
    delta = zero
    for j in range(w.size):
        w[j] *= inverse
        delta += w[j] * d[j]
    for j in range(w.size):
        d[j] = w[j] * (d[j] - delta) * scale
    fill(scores[:low], zero)
    fill(d_weights[:low], zero)
    fill(scores[high:], zero)
    fill(d_weights[high:], zero)
    return np.float64(-share * inverse * delta)
