"""Computing the wanted tap points of a model from the nearest given ones.

With nothing given that is a pass of the whole model; with another implementation's own tap points
it is a *local replay*, in which an early error does not smear over everything after it.

One block's weights are touched at a time, and only the matrices of experts that were chosen are
decoded.
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
    """One stage at its place in a model: ``tap`` is computed from the tap points ``inputs``."""

    tap: str
    layer: int | None
    stage: Stage
    inputs: tuple[str, ...]


def whole(given: Iterable[str]) -> frozenset[str]:
    """The given tap points of which all rows are known.

    Of a trace that holds some rows of a tap point only, these take the place of the computed ones.
    """
    in_part: frozenset[str] = getattr(given, "observed_in_part", frozenset())
    return frozenset(given) - in_part


def nodes(config: ModelConfig, given: Iterable[str] = ()) -> tuple[Node, ...]:
    """The whole graph in the order of computation, as it is where the taps ``given`` are known."""
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
    """The stages that must be computed for the taps ``wanted``, in the order of computation.

    A wanted tap is computed from its inputs even where it is given itself.

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
    """What lies between a tap point and the given ones before it.

    Attributes:
        inputs: the given tap points it is computed from.
        ops: names of the fields of :class:`ModelOps` that are used on the way.
    """

    inputs: tuple[str, ...]
    ops: frozenset[str]


def segments(config: ModelConfig, given: Iterable[str]) -> dict[str, Segment]:
    """The segment that ends at each tap point of a model."""
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
    """Each wanted tap point, computed by ``ops`` from the nearest given ones.

    Args:
        tokens: (T,), at positions 0 to T − 1.
        given: tap points of whatever origin; each *replaces* the computed one for everything
            downstream. Read one at a time, when it is first needed.
        wanted: names of tap points.
        policy: in which to compute; the given ones enter as they are, unrounded.

    Raises:
        TraceError: there is no such tap point.
    """
    return predict_each(weights, config, [(ops, policy)], tokens, given, wanted)[0]


Run = tuple[ModelOps, Policy]
"""What to compute by, and where to round."""


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
    """The wanted tap points of ``tokens`` (T,) one after the other, with their values in every run.

    The runs go side by side, so that each block's weights are met once. Nothing is held longer
    than the stages that follow need it; arguments and errors as for :func:`predict`.

    Args:
        experts: the only ones whose products are computed, the others' are NaN; None: all.
        length: number of tokens of the whole prompt, if ``tokens`` are only its beginning.
    """
    wanted, known = frozenset(wanted), whole(given)
    path = needed(config, given, wanted)
    last_use = {tap: i for i, node in enumerate(path) for tap in node.inputs}
    tokens = np.asarray(tokens)
    live: list[dict[str, Array]] = [{} for _ in runs]  # computed, and still to be used
    lent = _Lent(given)
    sites: list[BlockContext] = []
    for i, node in enumerate(path):
        if not sites or sites[0].layer != node.layer:
            sites = [
                BlockContext(config, policy, ops, tokens, weights, node.layer, experts, length)
                for ops, policy in runs
            ]
        at_hand = [
            {
                name: lent.get(tap, site.policy) if tap in known else values[tap]
                for name, tap in zip(node.stage.inputs, node.inputs, strict=True)
            }
            for site, values in zip(sites, live, strict=True)
        ]
        with np.errstate(invalid="ignore", over="ignore"):  # bugs may make NaN of anything
            out = _computed(node.stage, sites, at_hand)
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


def _computed(
    stage: Stage, sites: Sequence[BlockContext], inputs: Sequence[Mapping[str, Array]]
) -> list[Array]:
    """A stage in every run: once for runs that agree in operations, rounding and inputs.

    Results that are equal become one array, so that such runs are told again behind it.
    """
    leads: dict[tuple[int, ...], int] = {}
    leader = []
    for i, (site, values) in enumerate(zip(sites, inputs, strict=True)):
        used = [getattr(site.ops, name) for name in sorted(stage.ops)]
        parts = (site.policy, *used, *(values[name] for name in stage.inputs))
        leader.append(leads.setdefault(tuple(map(id, parts)), i))
    own = [*leads.values()]
    found = dict(
        zip(own, stage.compute([sites[i] for i in own], [inputs[i] for i in own]), strict=True)
    )
    first = found[0]
    for i in own[1:]:
        if found[i].dtype == first.dtype and np.array_equal(found[i], first):
            found[i] = first
    return [found[i] for i in leader]


def _patched(computed: Array, tap: str, given: Mapping[str, Array]) -> Array:
    """A computed tap point with the rows that were observed of it in their place."""
    seen, axis = given.observed(tap), axes(tap).index("T")  # type: ignore[attr-defined]
    values = computed.copy()
    np.moveaxis(values, axis, 0)[seen] = np.moveaxis(given[tap], axis, 0)[seen]
    return values


class _Lent:
    """Given tap points that are still to be used, each in the dtypes of the runs."""

    def __init__(self, given: Mapping[str, Array]) -> None:
        self._given = given
        self._held: dict[str, dict[object, Array]] = {}

    def get(self, tap: str, policy: Policy) -> Array:
        """The values as the stages of ``policy`` take them; nothing is rounded to its grid."""
        dtype = np.dtype(np.int64) if tap.endswith(tuple(DISCRETE)) else policy.dtype
        held = self._held.setdefault(tap, {})
        if dtype not in held:
            values = held[None] if None in held else np.asarray(self._given[tap])
            held[None], held[dtype] = values, values.astype(dtype, copy=False)
        return held[dtype]

    def drop(self, tap: str) -> None:
        self._held.pop(tap, None)
