"""Local replay: each of somebody's tap points recomputed from their own nearest ones before it.

    for local in replay(model.weights, trace, ModelOps(), "bfloat16"):
        print(local.tap, local.excess)       # above 1: more than rounding explains

Because every stage starts from the other implementation's own numbers, an early error does not
smear over everything after it, and drift never adds up. What rounding explains is measured in the
same way: the same stage, from the same inputs, in float64 and under the other's rounding.

A choice of experts that rounding can turn is a **tie**, not an error. Where the other's choice is
known it is followed. Where it is not, the rows that may have gone another way are set aside, and
with them what depends on them, up to the next tap point that is known.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.numerics import FLOAT64, Array
from gptoss_ref.tracing.taps import axes, names, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.integers import FORMS, Integers, in_integers
from gptoss_ref.verify.noise.magnitudes import Blurred, roughened, score_terms
from gptoss_ref.verify.noise.metrics import (
    Errors,
    Shift,
    logit_figures,
    measure_arrays,
    over,
    shift_of,
    usual_excess,
    usually_allowed,
)
from gptoss_ref.verify.noise.noise_floor import level, runs_of, samples_of
from gptoss_ref.verify.noise.rounding import UNITS
from gptoss_ref.verify.noise.routing_ties import Flip, chosen_by, flips, margin_of
from gptoss_ref.verify.replay.evaluate import Node, needed, segments, walk, whole
from gptoss_ref.verify.replay.graph import DISCRETE, EXPERT_PRODUCTS
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.verify.thresholds import ALWAYS_ALLOWED, CANCELLED, ONE_ROW, ROWS_WITHOUT_TIES
from gptoss_ref.weights import MXFP4, ModelWeights

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TapError:
    """One tap point against its recomputation from the other's own numbers.

    Attributes:
        tap: its name.
        inputs: the given tap points it was recomputed from; empty: from the tokens alone.
        shape: of the array.
        error: (T,) relative error of each row; of a choice of experts, by how much (in logits) an
            expert that was left out exceeds one that was taken.
        allowed: (T,) how much of it rounding explains.
        whole, whole_allowed: the same for the array, over the rows without ties.
        tied: (T,) rows that depend on a choice of experts that rounding may have turned.
        broken: (T,) values that are NaN or infinite in one of the two only.
        lost: whether all are in both, so that nothing can be judged.
        max_abs, cosine: of the whole array.
        noise: (T,) relative error of the same stage where rounding is all that differs.
        distance: relative L2 distance to the replay that rounds as the other does; of a choice of
            experts, the share of rows that choose otherwise.
        flips: rows whose choice of experts differs within its tie.
        extra: of logits, how alike they are as predictions.
        seen: (T,) rows that were observed; the others are neither right nor wrong. Empty: all.
        remark: of logits, that they differ by a constant in every row, in words.
        integers: how the activations of a product were rounded to integers, which was allowed for.
    """

    tap: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    error: Floats
    allowed: Floats
    whole: float
    whole_allowed: float
    tied: Mask
    broken: NDArray[np.int64]
    lost: bool = False
    max_abs: float = 0.0
    cosine: float = math.nan
    noise: Floats = field(default_factory=lambda: np.empty(0))
    distance: float = 0.0
    flips: tuple[Flip, ...] = ()
    extra: dict[str, float] = field(default_factory=dict)
    seen: Mask = field(default_factory=lambda: np.empty(0, bool))
    remark: str | None = None
    integers: Integers | None = None

    @property
    def _rows(self) -> Mask | slice:
        return self.seen if self.seen.size else slice(None)

    @property
    def judged(self) -> bool:
        """Whether enough rows are free of ties to judge each by itself."""
        return bool(np.mean(self.tied[self._rows]) <= 1 - ROWS_WITHOUT_TIES)

    @property
    def excess(self) -> float:
        """Error over what rounding explains: above 1 something is wrong.

        Where most rows hang on ties, rounding moves whole rows about at random; then only the
        usual rows are compared: the quartiles of the error with those of rounding's.
        """
        if not self.judged:
            return usual_excess(self.error[self._rows], usually_allowed([self.noise[self._rows]]))
        free = ~self.tied
        if (self.broken[free] > 0).any():
            return math.inf
        rows = over(self.error[free], self.allowed[free]).max(initial=0.0)
        return float(max(rows, over(self.whole, self.whole_allowed)))

    @property
    def wrong_rows(self) -> Mask:
        """(T,) rows without ties whose error rounding does not explain."""
        if not self.judged:
            return np.zeros_like(self.tied)
        return ~self.tied & ((self.error > self.allowed) | (self.broken > 0))


def replay(
    weights: ModelWeights,
    trace: Trace,
    ops: ModelOps,
    rounding: str,
    wanted: Iterable[str] | None = None,
) -> Iterator[TapError]:
    """Each tap point of ``trace`` in the order of computation, recomputed by ``ops``.

    A tap point that shows a coarser rounding than the run, or is computed from one that does, is
    judged by that: it was rounded when it was recorded.

    Args:
        rounding: of the other implementation, one of
            :data:`~gptoss_ref.verify.noise.rounding.UNITS`.
        wanted: only these tap points, which the trace must hold; None: all it holds.
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
    """By which rounding each tap point is judged."""
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
    """:func:`replay` of the tap points ``wanted``, all by one rounding."""
    wanted = frozenset(wanted)
    origins = segments(trace.config, trace)
    path = needed(trace.config, trace, wanted)
    ties = _Ties(trace, path, rounding)
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
            yield _judge_choice(node.tap, inputs, trace, ties, tied)
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


def _beyond(node: Node) -> float:
    """The excess from which on no noise in proportion to the terms will do, however they cancel.

    It is asked for the products of experts only, which take long.
    """
    return CANCELLED if "expert_linear" in node.stage.ops else math.inf


def _in_integers(
    asked: tuple[ModelWeights, Trace, ModelOps, str, str],
    judged: tuple[tuple[str, ...], Sequence[Array], Array, str, Mask, Mask],
) -> TapError | None:
    """A product of experts, judged as one of integers; None: it is not that.

    The noise floor is that of the plain product: the change that the integers make is taken off.

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
    inputs, arrays, other, _, tied, seen = judged
    for form in FORMS:
        run = in_integers(ops, form), FLOAT64
        ((_, (values,)),) = walk(weights, trace.config, [run], trace.tokens, trace, [tap])
        with np.errstate(invalid="ignore"):
            plain = other - (values - arrays[0])
        local = judge(tap, inputs, arrays, plain, rounding, tied, seen)
        if local.excess <= 1:
            return replace(local, integers=form)
    return None


def _rough(
    weights: ModelWeights, trace: Trace, ops: ModelOps, rounding: str, tap: str
) -> Iterator[Array]:
    """Runs that show what any order of summation, and any rounding of the inputs, may do.

    Only what the usual noise floor does not explain is judged by them: they cost more.
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
    """The other's array against the runs of :func:`runs_of`; ties take no part in the noise floor.

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
    """What was found of the rows ``seen`` (T,), at their places among all rows."""

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


class _Ties:
    """Which rows depend on a choice of experts that rounding may have turned.

    Attributes:
        logits: the router logits that must be computed to know.
    """

    def __init__(self, trace: Trace, path: Iterable[Node], rounding: str) -> None:
        self._trace, self._unit, self._known = trace, UNITS[rounding], whole(trace)
        self._scale = UNITS["float64"] / UNITS["float32"] if rounding == "float64" else 1.0
        chosen = [node for node in path if node.stage.name in DISCRETE]
        self.logits = frozenset(
            tap for node in chosen for tap in node.inputs if tap not in self._known
        )
        self._tied: dict[str, Mask] = {}
        self.router: Array = np.empty(0)  # (T, E) the latest router logits ...
        self.slack: Floats = np.empty(0)  # (T,) ... and by how much two of them may be misjudged

    def pass_through(self, node: Node, arrays: Sequence[Array]) -> Mask:
        """(T,) rows of this tap point that depend on a tie since the last given tap point."""
        tied = np.zeros(len(self._trace.tokens), bool)
        for tap in node.inputs:
            if tap not in self._known:
                before = self._tied[tap]
                mixes = node.stage.name in ("attn.weights", "attn.mix")
                tied |= np.logical_or.accumulate(before) if mixes else before
        if node.tap in self.logits:
            self._see_logits(arrays)
        if node.stage.name in DISCRETE:
            (source,) = node.inputs
            if source in self._known:
                self._take_logits(self._trace[source])
            margin = margin_of(self.router, self._trace.config.experts_per_token)
            if node.tap not in self._known:
                tied |= margin <= self.slack
        self._tied[node.tap] = tied
        return tied

    def _see_logits(self, arrays: Sequence[Array]) -> None:
        exact, *rounded = arrays
        noise = np.max([np.abs(sample - exact).max(axis=1) for sample in rounded], axis=0)
        self.router = exact
        usual = np.median(noise) if noise.size else 0.0
        self.slack = ONE_ROW * self._scale * np.maximum(noise, usual) + self._least(exact)

    def _take_logits(self, given: Array) -> None:
        self.router = np.asarray(given, np.float64)
        self.slack = self._least(self.router)

    def _least(self, logits: Array) -> Floats:
        """A choice may have been made before the logits were rounded, or after."""
        least: Floats = 2 * ALWAYS_ALLOWED * self._unit * np.abs(logits).max(axis=1)
        return least


def _judge_choice(
    tap: str, inputs: tuple[str, ...], trace: Trace, ties: _Ties, tied: Mask
) -> TapError:
    """The other's choice of experts against the router logits: wrong only beyond the margin."""
    indices, block = trace[tap], split(tap)[0]
    chosen, choice = chosen_by(ties.router, indices, ties.slack)
    seen = trace.observed(tap)
    choice = choice.among(seen)
    return TapError(
        tap=tap,
        inputs=inputs,
        shape=indices.shape,
        error=choice.margin,
        allowed=np.where(np.isfinite(ties.slack), ties.slack, 0.0),
        whole=0.0,
        whole_allowed=0.0,
        tied=tied,
        broken=np.zeros(len(indices), np.int64),
        max_abs=float(choice.margin.max(initial=0.0)),
        distance=float(np.mean(choice.differs)),
        flips=flips(block, chosen, indices, choice),
    )
