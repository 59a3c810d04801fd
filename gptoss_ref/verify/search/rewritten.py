"""Tap points in another form: their numbers differ, but no result depends on them.

An implementation has other numbers at some tap points, and is right, if it multiplies a norm's
scale into the next matrices, sorts the experts by number, or rotates queries and keys by a common
rotation. The later tap points decide: the tap point is removed from the trace, and the
specification computes it from the earlier ones. If the later tap points agree with that, no error
was passed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import axes, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.metrics import measure_arrays
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.replay.graph import DISCRETE
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.thresholds import ARRIVES, CARRIED, SAME_AFTER_FIT, WHOLE_ARRAY

STREAM = frozenset(("embedding", "attn.residual", "mlp.residual", "logits"))
"""Tap points that are never in another form, because all later ones are computed from them."""

HEADS = ("attn.q", "attn.k", "attn.q_rope", "attn.k_rope")


def kept_otherwise(evidence: Evidence, tap: str) -> frozenset[str]:
    """Return ``tap`` and later ones in another form; none if an error was passed on."""
    trace, own = evidence.trace, evidence.tap_errors[tap]
    aside = {tap}
    while not any(split(name)[1] in STREAM for name in aside):
        rest = trace.without(aside)
        users = [name for name in rest if aside & set(evidence.segments[name].inputs)]
        if not users:
            break  # nothing decides
        tap_errors = list(evidence.replayed(evidence.ops, users, rest))
        wrong = [local.tap for local in tap_errors if local.excess > 1]
        if wrong and len(aside) == 1 and _unused(evidence, tap_errors):
            return frozenset(aside)
        if not wrong:
            moved = (_carried(evidence, rest, x) for x in tap_errors)
            went_through = any(x > max(CARRIED / WHOLE_ARRAY, ARRIVES * own.excess) for x in moved)
            return frozenset() if went_through else frozenset(aside)
        partners = _partners(aside, rest) if any(_meets_keys(name) for name in wrong) else set()
        aside |= partners or {wrong[0]}  # later ones may be wrong because of it
    return frozenset()


def _unused(evidence: Evidence, users: Iterable[TapError]) -> bool:
    """Return whether a user of the removed tap point is right without it and wrong with it.

    Then the tap point was not used, and other errors are errors of their own.
    """
    right = [x.tap for x in users if x.excess <= 1 and split(x.tap)[1] not in DISCRETE]
    as_kept = evidence.replayed(evidence.ops, right) if right else ()
    return any(local.excess > 1 for local in as_kept)


def _meets_keys(tap: str) -> bool:
    return split(tap)[1] in ("attn.weights", "attn.mix")


def _partners(aside: Iterable[str], rest: Trace) -> set[str]:
    """Return the pairs: queries and keys are kept in another form together."""
    blocks = {split(tap)[0] for tap in aside if split(tap)[1] in HEADS}
    return {tap for tap in rest if split(tap)[0] in blocks and split(tap)[1] in HEADS}


def _carried(evidence: Evidence, rest: Trace, local: TapError) -> float:
    """Return how far the removed tap points may have changed another, over what rounding explains.

    It is 0 if they would have made it diverge, and so were not used.
    """
    tap = local.tap
    if split(tap)[1] in DISCRETE:
        return 0.0
    (as_kept,) = evidence.replayed(evidence.ops, [tap])
    if as_kept.excess > 1:
        return 0.0
    ours, theirs = (evidence.predicted([tap], given)[tap] for given in (rest, evidence.trace))
    moved = measure_arrays(ours, theirs, axes(tap).index("T")).rel_l2
    return moved / local.whole_allowed if moved else 0.0


def where_of(taps: Iterable[str]) -> str:
    """Return the tap points in a few words: the stages and the blocks."""
    taps = list(taps)
    stages = dict.fromkeys(split(tap)[1] for tap in taps)
    blocks = sorted({n for tap in taps if (n := split(tap)[0]) is not None})
    where = "" if not blocks else f" of block{'s' * (len(blocks) > 1)} {_ranges(blocks)}"
    return ", ".join(stages) + where


def _ranges(numbers: list[int]) -> str:
    """``0, 2 to 5``."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = np.split(np.array(numbers), cuts)
    return ", ".join(f"{r[0]}" if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)


# --- the forms that have a name ---


def form_of(exact: Mapping[str, Array], other: Trace, aside: Iterable[str], rounding: str) -> str:
    """Return the form of tap points that no rewriting of the catalogue explains, in words.

    Args:
        exact: the tap points of the specification.
    """
    tolerance = SAME_AFTER_FIT * UNITS[rounding]
    pairs: dict[str, tuple[Array, Array]] = {}
    for tap in aside:
        both = np.asarray(exact[tap], np.float64), np.asarray(other[tap], np.float64)
        if split(tap)[1] not in DISCRETE and not _near(*both, tolerance):
            pairs.setdefault(split(tap)[1], both)
    for stage, both in pairs.items():
        for axis, form in PERMUTED.get(stage, {}).items():
            if _permuted(*both, axis, tolerance):
                return form
    for stage, both in pairs.items():
        if stage in ("attn.q", "attn.k") and _turned(*both, tolerance):
            return (
                "qk-basis: pairs of channels of queries and keys are turned or scaled by a common "
                "factor, which commutes with RoPE"
            )
        if stage == "attn.v" and _scaled(*both, tolerance):
            return (
                "values-scaled: channels of the values are multiplied by constants, which the "
                "output projection divides by"
            )
        if _constant_apart(*both, tolerance):
            return "bias-deferred: a bias is added later"
    return "another form: what is recorded here is not what the rest is computed from"


PERMUTED = {
    "attn.q": {
        1: "heads-permuted: heads of a group are in another order",
        2: "qk-channels-permuted: channels of queries and keys are in another order",
    },
    "mlp.router_logits": {1: "experts-permuted: experts are numbered in another order"},
    "mlp.gate_up": {2: "gate-up-permuted: gates and ups are in another order"},
    "attn.norm": {1: "channels-permuted: channels are in another order"},
    "mlp.norm": {1: "channels-permuted: channels are in another order"},
}
"""The meaning of another order of a stage's axis."""


def _permuted(ours: Array, theirs: Array, axis: int, tolerance: float) -> bool:
    """Return whether the entries along an axis are the same in another order."""
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (ours, theirs))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    match = np.argmin(squares, axis=0)  # (N,) our index for each of theirs
    if len(set(match.tolist())) < len(match) or np.array_equal(match, np.arange(len(match))):
        return False
    return _near(a[match], b, tolerance)


def _turned(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Return whether each pair of channels (i, i + C/2) is rotated and scaled by its own number."""
    half = ours.shape[-1] // 2
    a, b = (x[..., :half] + 1j * x[..., half:] for x in (ours, theirs))
    factor = (a.conj() * b).sum(0) / np.maximum((np.abs(a) ** 2).sum(0), 1e-300)  # (H, C/2)
    return len(ours) > 2 and _near(a * factor, b, tolerance)


def _scaled(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Return whether each channel (K, C) is multiplied by its own number."""
    factor = (ours * theirs).sum(0) / np.maximum((ours**2).sum(0), 1e-300)
    return len(ours) > 2 and _near(ours * factor, theirs, tolerance)


def _constant_apart(ours: Array, theirs: Array, tolerance: float) -> bool:
    """Return whether all tokens differ by the same vector."""
    difference = theirs - ours
    if len(ours) < 3 or ours.ndim != 2:
        return False
    return _near(ours + difference.mean(0), theirs, tolerance)


def _near(a: Array, b: Array, tolerance: float) -> bool:
    return bool(np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b))
