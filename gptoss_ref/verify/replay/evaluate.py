"""Computation of the wanted tap points of a model from the nearest given ones.

If no tap point is given, this is a pass of the whole model. If another implementation's own tap
points are given, it is a *local replay*, in which an early error does not affect later stages.

One block's weights are read at a time, and only the matrices of chosen experts are decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import FLOAT64, Array, Policy
from gptoss_ref.tracing.taps import axes
from gptoss_ref.verify.replay.context import BlockContext
from gptoss_ref.verify.replay.graph import (
    BLOCK,
    DISCRETE,
    FIRST,
    LAST,
    MIX_FROM_WEIGHTS,
    STREAM,
    Stage,
)
from gptoss_ref.verify.replay.ops import ModelOps
from gptoss_ref.weights import ModelWeights


@dataclass(frozen=True)
class Node:
    """One stage of a model: ``tap`` is computed from the tap points ``inputs``."""

    tap: str
    layer: int | None
    stage: Stage
    inputs: tuple[str, ...]


def whole(given: Iterable[str]) -> frozenset[str]:
    """Return the given tap points of which all rows are known.

    If a trace has only some rows of a tap point, these rows replace the computed ones.
    """
    in_part: frozenset[str] = getattr(given, "observed_in_part", frozenset())
    return frozenset(given) - in_part


def nodes(config: ModelConfig, given: Iterable[str] = ()) -> tuple[Node, ...]:
    """Return the whole graph in the order of computation, if the taps ``given`` are known."""
    given = whole(given)
    layers = range(config.num_hidden_layers)
    return _graph(tuple(f"block.{n}.attn.weights" in given for n in layers))


@lru_cache(maxsize=8)
def _graph(weights_given: tuple[bool, ...]) -> tuple[Node, ...]:
    graph = [Node("embedding", None, FIRST, ())]
    stream = "embedding"
    for layer, known in enumerate(weights_given):
        prefix = f"block.{layer}."
        for name, stage in BLOCK.items():
            if name == "attn.mix" and known:
                stage = MIX_FROM_WEIGHTS
            inputs = tuple(stream if i == STREAM else prefix + i for i in stage.inputs)
            graph.append(Node(prefix + name, layer, stage, inputs))
        stream = prefix + "mlp.residual"
    for name, stage in LAST.items():
        inputs = tuple(stream if i == STREAM else i for i in stage.inputs)
        graph.append(Node(name, None, stage, inputs))
    return tuple(graph)


def needed(config: ModelConfig, given: Iterable[str], wanted: Iterable[str]) -> list[Node]:
    """Return the stages that are needed for the taps ``wanted``, in the order of computation.

    A wanted tap is computed from its inputs even if it is given.

    Raises:
        TraceError: there is no such tap point.
    """
    missing = set(wanted)
    graph = nodes(config, given)
    known = {node.tap for node in graph}
    for tap in sorted((missing | frozenset(given)) - known):
        raise TraceError(f"there is no tap point {tap!r} in this model")
    given, chosen = whole(given), []
    for node in reversed(graph):
        if node.tap in missing:
            chosen.append(node)
            missing.update(tap for tap in node.inputs if tap not in given)
    return chosen[::-1]


@dataclass(frozen=True)
class Segment:
    """The stages between a tap point and the given ones before it.

    Attributes:
        inputs: the given tap points from which it is computed.
        ops: names of the fields of :class:`ModelOps` that these stages use.
    """

    inputs: tuple[str, ...]
    ops: frozenset[str]


def segments(config: ModelConfig, given: Iterable[str]) -> dict[str, Segment]:
    """Return the segment that ends at each tap point of a model."""
    known = whole(given)
    found: dict[str, Segment] = {}
    for node in nodes(config, given):
        inputs = dict.fromkeys(
            source
            for tap in node.inputs
            for source in ([tap] if tap in known else found[tap].inputs)
        )
        open_ends = [found[tap].ops for tap in node.inputs if tap not in known]
        found[node.tap] = Segment(tuple(inputs), node.stage.ops.union(*open_ends))
    return found


def predict(
    weights: ModelWeights,
    config: ModelConfig,
    ops: ModelOps,
    tokens: Array,
    given: Mapping[str, Array],
    wanted: Iterable[str],
    policy: Policy = FLOAT64,
) -> dict[str, Array]:
    """Return each wanted tap point, computed by ``ops`` from the nearest given ones.

    Args:
        tokens: (T,), at positions 0 to T − 1.
        given: tap points of any origin; each *replaces* the computed one for everything that
            depends on it. Each is read when it is first needed.
        wanted: names of tap points.
        policy: of the computation; given tap points are used as they are, without rounding.

    Raises:
        TraceError: there is no such tap point.
    """
    return predict_each(weights, config, [(ops, policy)], tokens, given, wanted)[0]


Run = tuple[ModelOps, Policy]
"""The operations and the rounding policy of one run."""


def predict_each(
    weights: ModelWeights,
    config: ModelConfig,
    runs: Sequence[Run],
    tokens: Array,
    given: Mapping[str, Array],
    wanted: Iterable[str],
    experts: frozenset[int] | None = None,
    length: int | None = None,
) -> list[dict[str, Array]]:
    """:func:`predict` of ``tokens`` (T,) for each of several runs."""
    found: list[dict[str, Array]] = [{} for _ in runs]
    for tap, arrays in walk(weights, config, runs, tokens, given, wanted, experts, length):
        for results, values in zip(found, arrays, strict=True):
            results[tap] = values
    return found


def walk(
    weights: ModelWeights,
    config: ModelConfig,
    runs: Sequence[Run],
    tokens: Array,
    given: Mapping[str, Array],
    wanted: Iterable[str],
    experts: frozenset[int] | None = None,
    length: int | None = None,
) -> Iterator[tuple[str, list[Array]]]:
    """Yield the wanted tap points of ``tokens`` (T,) in order, with their values in every run.

    The runs are computed together, so that each block's weights are read once. Values are kept only
    as long as later stages need them. Arguments and errors are those of :func:`predict`.

    Args:
        experts: the only experts whose products are computed, those of others are NaN; None: all.
        length: number of tokens of the whole prompt, if ``tokens`` are only its beginning.
    """
    wanted, known = frozenset(wanted), whole(given)
    path = needed(config, given, wanted)
    last_use = {tap: i for i, node in enumerate(path) for tap in node.inputs}
    tokens = np.asarray(tokens)
    live: list[dict[str, Array]] = [{} for _ in runs]  # computed, and needed by later stages
    lent = _Lent(given)
    contexts: list[BlockContext] = []
    for i, node in enumerate(path):
        if not contexts or contexts[0].layer != node.layer:
            if contexts:
                contexts[0].release()
            contexts = [
                BlockContext(config, policy, ops, tokens, weights, node.layer, experts, length)
                for ops, policy in runs
            ]
        at_hand = [
            {
                name: lent.get(tap, ctx.policy) if tap in known else values[tap]
                for name, tap in zip(node.stage.inputs, node.inputs, strict=True)
            }
            for ctx, values in zip(contexts, live, strict=True)
        ]
        with np.errstate(invalid="ignore", over="ignore"):  # a bug may cause NaN anywhere
            out = _computed(node.stage, contexts, at_hand)
        if node.tap not in known and last_use.get(node.tap, -1) > i:
            for computed, values in zip(out, live, strict=True):
                values[node.tap] = computed
                if node.tap in given:
                    values[node.tap] = _patched(computed, node.tap, given)
        del at_hand
        for tap in node.inputs:
            if last_use[tap] == i:
                lent.drop(tap)
                for values in live:
                    values.pop(tap, None)
        if node.tap in wanted:
            yield node.tap, out
    if contexts:
        contexts[0].release()


def _computed(
    stage: Stage, contexts: Sequence[BlockContext], inputs: Sequence[Mapping[str, Array]]
) -> list[Array]:
    """Compute a stage in every run: once for runs with equal operations, rounding and inputs.

    Equal results become one array, so that later stages recognise such runs.
    """
    leads: dict[tuple[int, ...], int] = {}
    leader = []
    for i, (ctx, values) in enumerate(zip(contexts, inputs, strict=True)):
        used = [getattr(ctx.ops, name) for name in sorted(stage.ops)]
        parts = (ctx.policy, *used, *(values[name] for name in stage.inputs))
        leader.append(leads.setdefault(tuple(map(id, parts)), i))
    own = [*leads.values()]
    found = dict(
        zip(own, stage.compute([contexts[i] for i in own], [inputs[i] for i in own]), strict=True)
    )
    first = found[0]
    for i in own[1:]:
        if found[i].dtype == first.dtype and np.array_equal(found[i], first):
            found[i] = first
    return [found[i] for i in leader]


def _patched(computed: Array, tap: str, given: Mapping[str, Array]) -> Array:
    """Return a computed tap point with its observed rows in place of the computed ones."""
    seen, axis = given.observed(tap), axes(tap).index("T")  # type: ignore[attr-defined]
    values = computed.copy()
    np.moveaxis(values, axis, 0)[seen] = np.moveaxis(given[tap], axis, 0)[seen]
    return values


class _Lent:
    """Given tap points that later stages need, each in the dtypes of the runs."""

    def __init__(self, given: Mapping[str, Array]) -> None:
        self._given = given
        self._held: dict[str, dict[object, Array]] = {}

    def get(self, tap: str, policy: Policy) -> Array:
        """Return the values in the dtype of ``policy``, without rounding to its grid."""
        dtype = np.dtype(np.int64) if tap.endswith(tuple(DISCRETE)) else policy.dtype
        held = self._held.setdefault(tap, {})
        if dtype not in held:
            values = held[None] if None in held else np.asarray(self._given[tap])
            held[None], held[dtype] = values, values.astype(dtype, copy=False)
        return held[dtype]

    def drop(self, tap: str) -> None:
        self._held.pop(tap, None)
