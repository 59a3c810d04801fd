"""Local replay: each observed tap point, recomputed from the nearest observed ones before it.

    for local in replay(model.weights, trace, ModelOps(), "bfloat16"):
        print(local.tap, local.excess)       # above 1: more than rounding explains

Every stage starts from the other implementation's own numbers. So an early error does not affect
everything after it, and rounding errors do not accumulate. The error that rounding explains is
measured in the same way: the same stage, from the same inputs, in float64 and with the other's
rounding.

A choice of experts that rounding can change is a **tie**, not an error. If the other's choice is
known, the replay follows it. If not, the rows that may have other experts are set aside, and all
rows that depend on them, up to the next observed tap point.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gptoss_ref.numerics import FLOAT64, Array
from gptoss_ref.tracing.taps import axes, names, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.integers import FORMS, in_integers
from gptoss_ref.verify.noise.magnitudes import Blurred, roughened, score_terms
from gptoss_ref.verify.noise.metrics import Errors, Shift, logit_figures, measure_arrays, shift_of
from gptoss_ref.verify.noise.noise_floor import level, runs_of, samples_of
from gptoss_ref.verify.noise.replay_ties import Ties, judge_choice
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.tap_error import Mask, TapError
from gptoss_ref.verify.replay.evaluate import Node, needed, segments, walk
from gptoss_ref.verify.replay.graph import DISCRETE, EXPERT_PRODUCTS
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.verify.thresholds import ALWAYS_ALLOWED, CANCELLED, ONE_ROW
from gptoss_ref.weights import MXFP4, ModelWeights


def replay(
    weights: ModelWeights,
    trace: Trace,
    ops: ModelOps,
    rounding: str,
    wanted: Iterable[str] | None = None,
) -> Iterator[TapError]:
    """Yield each tap point of ``trace`` in the order of computation, recomputed by ``ops``.

    A tap point with a coarser rounding than the run was rounded when it was recorded. It, and tap
    points computed from it, are judged by that rounding.

    Args:
        rounding: of the other implementation, one of
            :data:`~gptoss_ref.verify.noise.rounding.UNITS`.
        wanted: only these tap points, which the trace must have; None: all that it has.
    """
    wanted = frozenset(trace if wanted is None else wanted)
    groups: dict[str, list[str]] = {}
    for tap, own in _roundings(trace, rounding, wanted).items():
        groups.setdefault(own, []).append(tap)
    if len(groups) < 2:
        yield from _replay(weights, trace, ops, next(iter(groups), rounding), wanted)
        return
    order = {tap: i for i, tap in enumerate(names(trace.config))}
    each = (_replay(weights, trace, ops, own, taps) for own, taps in groups.items())
    yield from heapq.merge(*each, key=lambda local: order[local.tap])


def _roundings(trace: Trace, rounding: str, wanted: Iterable[str]) -> dict[str, str]:
    """Return the rounding by which each tap point is judged."""
    grids = {
        tap: grid
        for tap in trace
        if split(tap)[1] not in DISCRETE and tap != "embedding"
        if (grid := trace.grid(tap)) is not None and UNITS[grid] > UNITS[rounding]
    }
    if not grids:
        return dict.fromkeys(wanted, rounding)
    before = segments(trace.config, trace)
    return {
        tap: max(
            (rounding, *(grids.get(t, rounding) for t in (tap, *before[tap].inputs))),
            key=UNITS.__getitem__,
        )
        for tap in wanted
    }


def _replay(
    weights: ModelWeights,
    trace: Trace,
    ops: ModelOps,
    rounding: str,
    wanted: Iterable[str],
) -> Iterator[TapError]:
    """Like :func:`replay` of the tap points ``wanted``, with one rounding for all."""
    wanted = frozenset(wanted)
    origins = segments(trace.config, trace)
    path = needed(trace.config, trace, wanted)
    ties = Ties(trace, path, rounding)
    ways = runs_of(ops, rounding, len(trace.tokens))
    asked = wanted | ties.logits
    values = walk(weights, trace.config, ways, trace.tokens, trace, asked)
    for node in path:
        arrays = next(values)[1] if node.tap in asked else []
        tied = ties.pass_through(node, arrays)
        if node.tap not in wanted:
            continue
        inputs = origins[node.tap].inputs
        if node.stage.name in DISCRETE:
            yield judge_choice(node.tap, inputs, trace, ties, tied)
        else:
            other, seen = trace[node.tap], trace.observed(node.tap)
            local = judge(node.tap, inputs, arrays, other, rounding, tied, seen)
            if 1 < local.excess < math.inf:
                asked_again = weights, trace, ops, rounding, node.tap
                judged = inputs, arrays, other, rounding, tied, seen
                local = _in_integers(asked_again, judged) or local
            if 1 < local.excess < _beyond(node):
                arrays = [*arrays, *_rough(*asked_again)]
                local = judge(node.tap, inputs, arrays, other, rounding, tied, seen)
            yield local
        trace.release()


def _beyond(node: Node) -> float:
    """Return the excess above which noise in proportion to the terms cannot explain an error.

    It is only used for the products of experts, which are slow.
    """
    return CANCELLED if "expert_linear" in node.stage.ops else math.inf


def _in_integers(
    asked: tuple[ModelWeights, Trace, ModelOps, str, str],
    judged: tuple[tuple[str, ...], Sequence[Array], Array, str, Mask, Mask],
) -> TapError | None:
    """Judge a product of experts as an integer product; None if it is not one.

    The noise floor is that of the plain product; the effect of the integers is subtracted.

    Args:
        asked: arguments of :func:`_rough`.
        judged: the further arguments of :func:`judge`.
    """
    weights, trace, ops, rounding, tap = asked
    block, stage = split(tap)
    if stage not in EXPERT_PRODUCTS or rounding != "float32" or block is None:
        return None
    if not isinstance(weights.blocks[block].mlp.mlp1_weight, MXFP4):
        return None
    _, arrays, other, _, _, _ = judged
    runs, off = [], _row_distances(other, arrays[0])
    for form in FORMS:
        if not (off <= form.effect).any():
            continue
        run = in_integers(ops, form), FLOAT64
        ((_, (values,)),) = walk(weights, trace.config, [run], trace.tokens, trace, [tap])
        runs.append((form, values, _row_distances(other, values)))
        local = _judge_without(values, tap, judged)
        if local.excess <= 1:
            return replace(local, integers=form)
    if not runs:
        return None
    # each row by its own rule, or by none
    nearest = np.argmin(np.nan_to_num([off, *(distances for _, _, distances in runs)]), axis=0)
    mixed = arrays[0].copy()
    for number, (_, values, _) in enumerate(runs, start=1):
        mixed[nearest == number] = values[nearest == number]
    local = _judge_without(mixed, tap, judged)
    if local.excess > 1 or not nearest.any():
        return None
    most = int(np.bincount(nearest[nearest > 0]).argmax())
    return replace(local, integers=runs[most - 1][0])


def _row_distances(other: Array, values: Array) -> Array:
    """Return the distance of each row (axis 0) of ``other`` from ``values``, relative to it."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        both = [rows.reshape(len(rows), -1) for rows in (other - values, values)]
        off, size = (np.sqrt(np.square(rows).sum(1)) for rows in both)
        relative: Array = off / size
    return relative


def _judge_without(
    values: Array, tap: str, judged: tuple[tuple[str, ...], Sequence[Array], Array, str, Mask, Mask]
) -> TapError:
    """Judge the other's array after the effect of a rounding, which gave ``values``, is removed."""
    inputs, arrays, other, rounding, tied, seen = judged
    with np.errstate(invalid="ignore"):
        plain = other - (values - arrays[0])
    return judge(tap, inputs, arrays, plain, rounding, tied, seen)


def _rough(
    weights: ModelWeights, trace: Trace, ops: ModelOps, rounding: str, tap: str
) -> Iterator[Array]:
    """Return runs that sample other orders of summation and other roundings of the inputs.

    They are only used if the usual noise floor does not explain an error, because they are slower.
    """
    scores = None
    heads = [tap.replace("mix", name) for name in ("q_rope", "k_rope")]
    if tap.endswith("attn.mix") and all(name in trace for name in heads):
        scores = score_terms(*(trace[name] for name in heads))
    for seed in range(samples_of(len(trace.tokens))):
        given = Blurred(trace, UNITS[rounding], seed)
        run = roughened(ops, rounding, seed, scores), FLOAT64
        ((_, (values,)),) = walk(weights, trace.config, [run], trace.tokens, given, [tap])
        yield values


def judge(
    tap: str,
    inputs: tuple[str, ...],
    arrays: Sequence[Array],
    other: Array,
    rounding: str,
    tied: Mask,
    seen: Mask,
) -> TapError:
    """Judge the other's array by the runs of :func:`runs_of`; ties do not enter the noise floor.

    Only the rows ``seen`` (T,) are judged.
    """
    axis = axes(tap).index("T")
    if not seen.all():
        arrays = [np.compress(seen, array, axis) for array in arrays]
        some, every = np.compress(seen, other, axis), np.ones(int(seen.sum()), bool)
        local = judge(tap, inputs, arrays, some, rounding, tied[seen], every)
        return _spread(local, seen, other.shape)
    exact, *rounded = arrays
    shift = _shift(arrays[0], other) if tap == "logits" else None
    if shift is not None:
        other = np.asarray(other, np.float64) - shift.constant[:, None]
    errors = measure_arrays(exact, other, axis)
    samples = [measure_arrays(exact, sample, axis) for sample in rounded]
    free = ~tied if not tied.all() else np.ones_like(tied)
    measured = level([sample.of(free) for sample in samples], rounding)
    usual = float(np.sqrt(np.mean(measured.rows**2)))
    own = np.max([sample.rows() for sample in samples], axis=0)
    allowed = np.maximum(ONE_ROW * np.maximum(own, usual), ALWAYS_ALLOWED * UNITS[rounding])
    allowed[free] = measured.allowed_rows
    grown = 1.0 if shift is None else shift.grown
    return TapError(
        tap=tap,
        inputs=inputs,
        shape=other.shape,
        error=errors.rows(),
        allowed=allowed * grown,
        whole=errors.of(free).rel_l2,
        whole_allowed=measured.allowed * grown,
        tied=tied,
        broken=errors.broken,
        lost=int(errors.lost.sum()) == other.size,
        max_abs=errors.max_abs,
        cosine=errors.cosine,
        noise=np.mean([sample.rows() for sample in samples], axis=0),
        distance=_distance(measure_arrays(rounded[0], other, axis).of(free)),
        extra=_figures(exact, other) if tap == "logits" else {},
        remark=None if shift is None else shift.remark,
    )


def _shift(exact: Array, other: Array) -> Shift:
    return shift_of(lambda rows: exact[rows], lambda rows: other[rows], *exact.shape)


def _spread(local: TapError, seen: Mask, shape: tuple[int, ...]) -> TapError:
    """Return the figures of the rows ``seen`` (T,) at their places among all rows."""

    def at(rows: Array) -> Array:
        out = np.zeros(len(seen), rows.dtype)
        out[seen] = rows
        return out

    by_row = ("error", "allowed", "tied", "broken", "noise")
    values: dict[str, Any] = {name: at(getattr(local, name)) for name in by_row}
    return replace(local, shape=shape, seen=seen, **values)


def _figures(exact: Array, other: Array) -> dict[str, float]:
    length, vocabulary = exact.shape
    return logit_figures(lambda rows: exact[rows], lambda rows: other[rows], length, vocabulary)


def _distance(errors: Errors) -> float:
    return math.inf if errors.broken.any() else errors.rel_l2
