"""The model as a graph of small stages, one per tap point, each of which can be computed alone.

:func:`predict` computes wanted tap points from the nearest given ones: with nothing given that is a
pass of the whole model, with another implementation's own tap points it is a *local replay*, in
which an early error does not smear over everything after it. What each stage computes is said by
:class:`~gptoss_ref.verify.rules.Rules`, so that a wrong model can be replayed as well as the
specification.

One block's weights are touched at a time, and only the matrices of experts that were chosen are
decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import FLOAT64, Array, Policy
from gptoss_ref.verify.rules import At, Rules
from gptoss_ref.weights import BlockWeights, ExpertMatrix, ModelWeights

STREAM = "stream"
"""Input of a stage: the residual stream as it enters the block."""

TILE_SCORES = 1 << 24
"""Attention weights held at a time where they are not wanted: 128 MiB of float64."""

_DENSE_BYTES = 1 << 28  # decoded expert matrices kept for the next replay of the same block


class Site:
    """One block (or the ends, ``layer`` None) under one set of rules: what its stages need."""

    def __init__(
        self,
        config: ModelConfig,
        policy: Policy,
        rules: Rules,
        tokens: Array,
        weights: ModelWeights,
        layer: int | None,
        decoded: Decoded,
    ) -> None:
        self.config, self.policy, self.rules = config, policy, rules
        self.tokens, self.layer = tokens, layer
        self.positions = np.arange(len(tokens))  # (T,)
        self._weights, self._decoded = weights, decoded

    def at(self, tap: str, expert: int | None = None) -> At:
        return At(self.config, self.policy, tap, self.layer, expert)

    @cached_property
    def ends(self) -> ModelWeights:
        """Embedding, last norm and unembedding, as the rules load them."""
        return self.rules.end_weights(self.at("embedding"), self._weights)

    @cached_property
    def block(self) -> BlockWeights:
        """This block's weights, as the rules load them."""
        assert self.layer is not None
        return self.rules.block_weights(self.at("attn.norm"), self._weights.blocks[self.layer])

    @cached_property
    def tables(self) -> tuple[Array, Array]:
        """Cosines and sines (T, C/2)."""
        at = self.at("attn.q_rope")
        return self.rules.rope_tables(at, self.positions, *self.rules.yarn(at))

    def matrix(self, tap: str, stored: ExpertMatrix, expert: int) -> Array:
        """Values (N, M) of one expert's matrix out of ``stored`` (E, N, M)."""
        rule, at = self.rules.expert_matrix, self.at(tap, expert)
        return self._decoded.get(rule, at, stored)


class Decoded:
    """Expert matrices decoded for one block, kept up to a limit for the next replay of it."""

    def __init__(self) -> None:
        self._layer: int | None = None
        self._bytes = 0
        self._kept: dict[object, tuple[ExpertMatrix, Array]] = {}

    def get(self, rule: Callable[..., Array], at: At, stored: ExpertMatrix) -> Array:
        """Values of expert ``at.expert`` of ``stored`` by ``rule``."""
        assert at.expert is not None
        if at.layer != self._layer:
            self._layer, self._bytes = at.layer, 0
            self._kept.clear()
        key = (rule, id(stored), at.tap, at.expert, at.policy.dtype)
        if key not in self._kept:
            values = rule(at, stored[at.expert])
            if self._bytes + values.nbytes > _DENSE_BYTES:
                return values
            self._bytes += values.nbytes
            self._kept[key] = stored, values  # holding ``stored`` keeps its id its own
        return self._kept[key][1]


Values = Mapping[str, Array]


@dataclass(frozen=True)
class Stage:
    """How one tap point is computed.

    Attributes:
        name: of the tap point, without its block.
        inputs: tap points of the same block, or STREAM.
        rules: names of the fields of :class:`Rules` that it uses.
        compute: from its site and the values of its inputs.
    """

    name: str
    inputs: tuple[str, ...]
    rules: frozenset[str]
    compute: Callable[[Site, Values], Array]


def _embedding(site: Site, _: Values) -> Array:
    return site.rules.embedding(site.at("embedding"), site.tokens, site.ends.embedding)


def _attn_norm(site: Site, values: Values) -> Array:
    return site.rules.rmsnorm(site.at("attn.norm"), values[STREAM], site.block.attn.norm_scale)


def _heads(name: str) -> Callable[[Site, Values], Array]:
    def compute(site: Site, values: Values) -> Array:
        x, attn = values["attn.norm"], site.block.attn
        weight, bias = getattr(attn, f"{name}_weight"), getattr(attn, f"{name}_bias")
        y = site.rules.linear(site.at(f"attn.{name}"), x, weight, bias)
        return y.reshape(len(x), -1, site.config.head_dim)  # (T, H or K, C)

    return compute


def _rope(name: str) -> Callable[[Site, Values], Array]:
    def compute(site: Site, values: Values) -> Array:
        return site.rules.rope(site.at(f"attn.{name}_rope"), values[f"attn.{name}"], *site.tables)

    return compute


def _weights_of(site: Site, values: Values, rows: slice) -> Array:
    """Attention weights (H, t, S) of some queries."""
    at, p = site.at("attn.weights"), site.positions
    q, k, sinks = values["attn.q_rope"], values["attn.k_rope"], site.block.attn.sinks
    where = (p[rows], p, site.rules.window(at))
    return site.rules.attention_weights(at, q[rows], k, sinks, *where)


def _attn_weights(site: Site, values: Values) -> Array:
    return _weights_of(site, values, slice(None))


def _mix_of(site: Site, weights: Array, v: Array, rows: slice) -> Array:
    at, p = site.at("attn.mix"), site.positions
    where = (p[rows], p, site.rules.window(at))
    return site.rules.attention_mix(at, weights, v, *where)


def _mix_from_weights(site: Site, values: Values) -> Array:
    return _mix_of(site, values["attn.weights"], values["attn.v"], slice(None))


def _mix_from_heads(site: Site, values: Values) -> Array:
    """The weights of some queries at a time, so that memory does not grow with T²."""
    count, heads, _ = values["attn.q_rope"].shape
    tile = max(1, TILE_SCORES // (heads * count))
    tiles = (slice(start, start + tile) for start in range(0, count, tile))
    mixes = [_mix_of(site, _weights_of(site, values, r), values["attn.v"], r) for r in tiles]
    return np.concatenate(mixes)  # (T, H*C)


def _attn_out(site: Site, values: Values) -> Array:
    attn = site.block.attn
    x = values["attn.mix"]
    return site.rules.linear(site.at("attn.out"), x, attn.out_weight, attn.out_bias)


def _attn_residual(site: Site, values: Values) -> Array:
    return site.rules.residual(site.at("attn.residual"), values[STREAM], values["attn.out"])


def _mlp_norm(site: Site, values: Values) -> Array:
    x = values["attn.residual"]
    return site.rules.rmsnorm(site.at("mlp.norm"), x, site.block.mlp.norm_scale)


def _router_logits(site: Site, values: Values) -> Array:
    mlp, at = site.block.mlp, site.at("mlp.router_logits")
    return site.rules.linear(at, values["mlp.norm"], mlp.gate_weight, mlp.gate_bias)


def _expert_indices(site: Site, values: Values) -> Array:
    return site.rules.choose(site.at("mlp.expert_indices"), values["mlp.router_logits"])


def _expert_weights(site: Site, values: Values) -> Array:
    logits, indices = values["mlp.router_logits"], values["mlp.expert_indices"]
    return site.rules.expert_weights(site.at("mlp.expert_weights"), logits, indices)


def _gate_up(site: Site, values: Values) -> Array:
    mlp, indices = site.block.mlp, values["mlp.expert_indices"]
    x = np.broadcast_to(values["mlp.norm"][:, None], (*indices.shape, site.config.hidden_size))
    return _by_expert(site, "mlp.gate_up", x, indices, mlp.mlp1_weight, mlp.mlp1_bias)


def _swiglu(site: Site, values: Values) -> Array:
    return site.rules.swiglu(site.at("mlp.swiglu"), values["mlp.gate_up"])


def _expert_out(site: Site, values: Values) -> Array:
    mlp, indices, x = site.block.mlp, values["mlp.expert_indices"], values["mlp.swiglu"]
    return _by_expert(site, "mlp.expert_out", x, indices, mlp.mlp2_weight, mlp.mlp2_bias)


def _by_expert(
    site: Site, tap: str, x: Array, indices: Array, matrices: ExpertMatrix, biases: Array
) -> Array:
    """Each chosen expert's matrix times its rows of ``x`` (T, A, M), plus its bias: (T, A, N)."""
    out = np.empty((*indices.shape, matrices.shape[-2]), site.policy.dtype)
    for expert in np.unique(indices).tolist():
        rows = indices == expert  # (T, A)
        matrix = site.matrix(tap, matrices, expert)
        out[rows] = site.rules.expert_linear(
            site.at(tap, expert), np.ascontiguousarray(x[rows]), matrix, biases[expert]
        )
    return out


def _mlp_out(site: Site, values: Values) -> Array:
    answers, weights = values["mlp.expert_out"], values["mlp.expert_weights"]
    indices, bias = values["mlp.expert_indices"], site.block.mlp.mlp2_bias
    return site.rules.combine(site.at("mlp.out"), answers, weights, indices, bias)


def _mlp_residual(site: Site, values: Values) -> Array:
    x = values["attn.residual"]
    return site.rules.residual(site.at("mlp.residual"), x, values["mlp.out"])


def _norm(site: Site, values: Values) -> Array:
    return site.rules.rmsnorm(site.at("norm"), values[STREAM], site.ends.norm_scale)


def _logits(site: Site, values: Values) -> Array:
    return site.rules.linear(site.at("logits"), values["norm"], site.ends.unembedding, None)


def _stage(
    name: str, inputs: str, rules: str, compute: Callable[[Site, Values], Array]
) -> tuple[str, Stage]:
    return name, Stage(name, tuple(inputs.split()), frozenset(rules.split()), compute)


BLOCK: dict[str, Stage] = dict(
    (
        _stage("attn.norm", STREAM, "block_weights rmsnorm", _attn_norm),
        _stage("attn.q", "attn.norm", "block_weights linear", _heads("q")),
        _stage("attn.k", "attn.norm", "block_weights linear", _heads("k")),
        _stage("attn.v", "attn.norm", "block_weights linear", _heads("v")),
        _stage("attn.q_rope", "attn.q", "yarn rope_tables rope", _rope("q")),
        _stage("attn.k_rope", "attn.k", "yarn rope_tables rope", _rope("k")),
        _stage(
            "attn.weights",
            "attn.q_rope attn.k_rope",
            "block_weights window attention_weights",
            _attn_weights,
        ),
        _stage(
            "attn.mix",
            "attn.q_rope attn.k_rope attn.v",
            "block_weights window attention_weights attention_mix",
            _mix_from_heads,
        ),
        _stage("attn.out", "attn.mix", "block_weights linear", _attn_out),
        _stage("attn.residual", f"{STREAM} attn.out", "residual", _attn_residual),
        _stage("mlp.norm", "attn.residual", "block_weights rmsnorm", _mlp_norm),
        _stage("mlp.router_logits", "mlp.norm", "block_weights linear", _router_logits),
        _stage("mlp.expert_indices", "mlp.router_logits", "choose", _expert_indices),
        _stage(
            "mlp.expert_weights",
            "mlp.router_logits mlp.expert_indices",
            "expert_weights",
            _expert_weights,
        ),
        _stage(
            "mlp.gate_up",
            "mlp.norm mlp.expert_indices",
            "block_weights expert_matrix expert_linear",
            _gate_up,
        ),
        _stage("mlp.swiglu", "mlp.gate_up", "swiglu", _swiglu),
        _stage(
            "mlp.expert_out",
            "mlp.swiglu mlp.expert_indices",
            "block_weights expert_matrix expert_linear",
            _expert_out,
        ),
        _stage(
            "mlp.out",
            "mlp.expert_out mlp.expert_weights mlp.expert_indices",
            "block_weights combine",
            _mlp_out,
        ),
        _stage("mlp.residual", "attn.residual mlp.out", "residual", _mlp_residual),
    )
)
"""The stages of a block, in the order of computation."""

MIX_FROM_WEIGHTS = Stage(
    "attn.mix",
    ("attn.weights", "attn.v"),
    frozenset(("window", "attention_mix")),
    _mix_from_weights,
)
"""Takes the place of the stage ``attn.mix`` where the attention weights are given."""

FIRST = Stage("embedding", (), frozenset(("end_weights", "embedding")), _embedding)
LAST: dict[str, Stage] = dict(
    (
        _stage("norm", STREAM, "end_weights rmsnorm", _norm),
        _stage("logits", "norm", "end_weights linear", _logits),
    )
)
DISCRETE = frozenset(("mlp.expert_indices",))
"""Tap points that hold integers."""


@dataclass(frozen=True)
class Node:
    """One stage at its place in a model: ``tap`` is computed from the tap points ``inputs``."""

    tap: str
    layer: int | None
    stage: Stage
    inputs: tuple[str, ...]


def nodes(config: ModelConfig, given: Iterable[str] = ()) -> Iterator[Node]:
    """The whole graph in the order of computation, as it is where the taps ``given`` are known."""
    given = frozenset(given)
    yield Node("embedding", None, FIRST, ())
    stream = "embedding"
    for layer in range(config.num_hidden_layers):
        prefix = f"block.{layer}."
        for name, stage in BLOCK.items():
            if name == "attn.mix" and prefix + "attn.weights" in given:
                stage = MIX_FROM_WEIGHTS
            inputs = tuple(stream if i == STREAM else prefix + i for i in stage.inputs)
            yield Node(prefix + name, layer, stage, inputs)
        stream = prefix + "mlp.residual"
    for name, stage in LAST.items():
        yield Node(name, None, stage, tuple(stream if i == STREAM else i for i in stage.inputs))


def needed(config: ModelConfig, given: Iterable[str], wanted: Iterable[str]) -> list[Node]:
    """The stages that must be computed for the taps ``wanted``, in the order of computation.

    A wanted tap is computed from its inputs even where it is given itself.

    Raises:
        GptOssError: there is no such tap point.
    """
    given, missing = frozenset(given), set(wanted)
    graph = list(nodes(config, given))
    known = {node.tap for node in graph}
    for tap in sorted((missing | given) - known):
        raise GptOssError(f"there is no tap point {tap!r} in this model")
    chosen = []
    for node in reversed(graph):
        if node.tap in missing:
            chosen.append(node)
            missing.update(tap for tap in node.inputs if tap not in given)
    return chosen[::-1]


def predict(
    weights: ModelWeights,
    config: ModelConfig,
    rules: Rules,
    tokens: Array,
    given: Mapping[str, Array],
    wanted: Iterable[str],
    policy: Policy = FLOAT64,
) -> dict[str, Array]:
    """Each wanted tap point, computed by ``rules`` from the nearest given ones.

    Args:
        tokens: (T,), at positions 0 to T − 1.
        given: tap points of whatever origin; each *replaces* the computed one for everything
            downstream. Read one at a time, when it is first needed.
        wanted: names of tap points.
        policy: in which to compute; the given ones enter as they are, unrounded.

    Raises:
        GptOssError: there is no such tap point.
    """
    return predict_each(weights, config, [rules], tokens, given, wanted, policy)[0]


def predict_each(
    weights: ModelWeights,
    config: ModelConfig,
    rules: Sequence[Rules],
    tokens: Array,
    given: Mapping[str, Array],
    wanted: Iterable[str],
    policy: Policy = FLOAT64,
) -> list[dict[str, Array]]:
    """:func:`predict` under each of several rules, block by block, so that weights are met once."""
    wanted = frozenset(wanted)
    path = needed(config, given, wanted)
    last_use = {tap: i for i, node in enumerate(path) for tap in node.inputs}
    tokens, decoded = np.asarray(tokens), Decoded()
    found: list[dict[str, Array]] = [{} for _ in rules]
    live: list[dict[str, Array]] = [{} for _ in rules]  # computed, and still to be used
    lent: dict[str, Array] = {}  # given, and still to be used
    sites: list[Site] = []
    for i, node in enumerate(path):
        if not sites or sites[0].layer != node.layer:
            sites = [Site(config, policy, r, tokens, weights, node.layer, decoded) for r in rules]
        for tap in node.inputs:
            if tap in given and tap not in lent:
                lent[tap] = _as_policy(given[tap], tap, policy)
        for site, values, results in zip(sites, live, found, strict=True):
            at_hand = {
                name: lent[tap] if tap in lent else values[tap]
                for name, tap in zip(node.stage.inputs, node.inputs, strict=True)
            }
            out = node.stage.compute(site, at_hand)
            if node.tap in wanted:
                results[node.tap] = out
            if node.tap not in given:
                values[node.tap] = out
        for tap in {*node.inputs, node.tap}:
            if last_use.get(tap, -1) <= i:
                lent.pop(tap, None)
                for values in live:
                    values.pop(tap, None)
    return found


def _as_policy(values: Array, tap: str, policy: Policy) -> Array:
    """A given tap point as the stages take it."""
    kind = np.int64 if tap.endswith(tuple(DISCRETE)) else policy.dtype
    return np.asarray(values).astype(kind, copy=False)
