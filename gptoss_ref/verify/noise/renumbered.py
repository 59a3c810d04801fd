"""Heads and experts in another order: the same model, numbered differently.

Query heads that share a key/value head may change places, key/value heads may change places
together with their query heads, and experts may have any numbers: the output of the block does not
change. Such a trace is put into the reference's order before it is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import axes
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.thresholds import REORDERED, REORDERED_ROWS

NAMES = {
    "query heads": "heads-permuted",
    "key and value heads": "heads-permuted",
    "experts": "experts-permuted",
}
"""Names in the catalogue of rewritings for another order."""

HEADS = ("attn.q", "attn.q_rope", "attn.weights", "attn.mix")
KEYS = ("attn.k", "attn.k_rope", "attn.v")
ORDERED = (*HEADS, *KEYS, "mlp.router_logits", "mlp.expert_indices")
"""Tap points that show an order of heads or experts."""


def in_order_of(ref: Trace, other: Trace) -> tuple[Trace, list[str]]:
    """Return ``other`` with heads and experts in the order of ``ref``, and the changes in words.

    Only tap points that both traces have are used.
    """
    config = ref.config
    moved: dict[str, list[int]] = {}
    for n in range(config.num_hidden_layers):
        at = f"block.{n}."
        for what, stages, size in (
            ("query heads", HEADS, config.num_attention_heads),
            ("key and value heads", KEYS, config.num_key_value_heads),
        ):
            taps = [at + stage for stage in stages if at + stage in ref and at + stage in other]
            order = _order(ref, other, taps, size)
            if order is not None:
                moved.setdefault(what, []).append(n)
                for tap in (at + stage for stage in stages if at + stage in other):
                    other = other.replaced(tap, _reordered(tap, other[tap], order))
        experts = _experts(ref, other, at)
        if experts is not None:
            moved.setdefault("experts", []).append(n)
            other = _renumbered(other, at, experts)
    return other, [
        f"{NAMES[what]}: the {what} of {_blocks(blocks)} are in another order than the "
        "reference's; they are compared in its order"
        for what, blocks in moved.items()
    ]


def _order(ref: Trace, other: Trace, taps: Sequence[str], size: int) -> Array | None:
    """(N,) the head of OTHER for each head of REF; None: the same one, or no tap point shows it."""
    for tap in taps:
        a, b = (_by_head(trace, tap, size) for trace in (ref, other))
        usable = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
        a, b = a[:, usable], b[:, usable]
        if _near(a, b):
            return None
        order = _matched(a, b)
        if _near(a, b[order]):
            return order
    return None


def _by_head(trace: Trace, tap: str, size: int) -> Array:
    """(N, …) the first rows of a tap point with heads, one line per head."""
    axis = axes(tap).index("T")
    rows = np.moveaxis(trace.rows(tap, slice(0, REORDERED_ROWS), axis), axis, 0)
    values: Array = np.moveaxis(rows.reshape(len(rows), size, -1), 1, 0).reshape(size, -1)
    return values.astype(np.float64)


def _reordered(tap: str, values: Array, order: Array) -> Array:
    if tap.endswith("attn.mix"):
        return values.reshape(len(values), len(order), -1)[:, order].reshape(values.shape)
    return np.take(values, order, axis=0 if tap.endswith("attn.weights") else 1)


def _experts(ref: Trace, other: Trace, at: str) -> Array | None:
    """(E,) the expert of OTHER for each expert of REF; None: the same, or no tap point shows it."""
    logits, chosen = at + "mlp.router_logits", at + "mlp.expert_indices"
    if logits in ref and logits in other:
        return _order(ref, other, [logits], ref.config.num_experts)
    if chosen not in ref or chosen not in other:
        return None
    seen = ref.observed(chosen) & other.observed(chosen)
    shares = at + "mlp.expert_weights"
    known = shares if shares in ref and shares in other else None
    a, b = (_membership(trace, chosen, known)[:, seen] for trace in (ref, other))
    if ((a > 0) == (b > 0)).mean() > 1 - REORDERED / ref.config.num_experts:
        return None
    order = _matched(a, b)
    agrees = ((a > 0) == (b[order] > 0)).all(axis=0).mean() > 1 - REORDERED
    return order if agrees and (order != np.arange(len(order))).any() else None


def _membership(trace: Trace, chosen: str, shares: str | None) -> Array:
    """(E, T) the weight of each expert for each token; if weights are missing, the rank."""
    indices = trace[chosen]  # (T, A)
    count = indices.shape[1]
    ranks = np.broadcast_to(1 + np.arange(count)[::-1] / (8 * count), indices.shape)
    values = ranks if shares is None else np.nan_to_num(trace[shares]) + 1e-9
    member = np.zeros((len(indices), trace.config.num_experts))
    np.put_along_axis(member, indices, values, axis=1)
    return member.T


def _renumbered(other: Trace, at: str, order: Array) -> Trace:
    """Return the trace with the experts of one block numbered as in REF."""
    logits, chosen = at + "mlp.router_logits", at + "mlp.expert_indices"
    if logits in other:
        other = other.replaced(logits, other[logits][:, order])
    if chosen in other:
        other = other.replaced(chosen, np.argsort(order)[other[chosen]])
    return other


def _matched(a: Array, b: Array) -> Array:
    """(N,) a line of ``b`` for each line of ``a`` (N, M), nearest pairs first."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    order = np.full(len(a), -1)
    free = np.ones(len(b), bool)
    for flat in np.argsort(squares, axis=None):
        i, j = divmod(int(flat), len(b))
        if order[i] < 0 and free[j]:
            order[i], free[j] = j, False
    return order


def _near(a: Array, b: Array) -> bool:
    return bool(np.linalg.norm(a - b) <= REORDERED * np.linalg.norm(a))


def _blocks(numbers: Iterable[int]) -> str:
    listed = list(numbers)
    return f"block{'s' * (len(listed) > 1)} {', '.join(map(str, listed))}"
