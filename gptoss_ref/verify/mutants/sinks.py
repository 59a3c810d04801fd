"""Bugs of the attention sinks: the one learned logit per query head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array
from gptoss_ref.verify.mutants.mutant import Mutant, Right, Variant, bug, replacing, wide
from gptoss_ref.verify.replay.ops import OpContext
from gptoss_ref.weights import ModelWeights

WEIGHTS = "attn.weights"


@bug(
    "sinks-dropped",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="A head that should give its weight to the sink has to attend to some token.",
    reports=("transformers#42533", "vllm#52156", "modular#6198"),
    note="A probe: with q·k = 0 and v = 1 the mix is 1 instead of n / (n + exp(sink)). A query "
    "that sees no key, for instance because of a wrong cache, gets 0/0.",
)
def sinks_dropped(
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *where: Any
) -> Array:
    """No sink joins the softmax: every row of weights sums to one."""
    weights: Array = right(at, q, k, np.full(sinks.shape, -np.inf), *where)
    return weights


@bug(
    "sinks-counted-twice",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="All weights are too small, most of all if the sink is strong.",
    reports=("rocm-libraries#12227",),
    note="Two halves of a split softmax each add the sink.",
)
def sinks_counted_twice(
    right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *where: Any
) -> Array:
    """The softmax's denominator holds exp(sink) twice."""
    weights: Array = right(at, q, k, wide(sinks) + math.log(2), *where)
    return weights


@bug(
    "sinks-scaled",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Sinks lie closer to zero than they should: strong ones are too weak.",
    reports=("rocm-libraries#12227",),
    obstacle=lambda config, weights: (
        None if any(np.any(sinks) for sinks in _all_sinks(weights)) else "all sinks are zero"
    ),
    note="The variant divides by √D, as if the scores were divided by it too (scale-by-hidden).",
    variants=lambda config, tokens: (
        Variant("divided by √D", replacing(attention_weights=_divided_by_root("hidden_size"))),
    ),
)
def sinks_scaled(right: Right, at: OpContext, *arguments: Any) -> Array:
    """Sinks are divided by √C, as if they were scores."""
    return _divided_by_root("head_dim")(right, at, *arguments)


def _divided_by_root(size: str) -> Callable[..., Array]:
    """Attention whose sinks are divided by the root of that dimension of the configuration."""

    def attend(right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *where: Any) -> Array:
        scaled = at.policy.round(wide(sinks) / math.sqrt(getattr(at.config, size)))
        weights: Array = right(at, q, k, scaled, *where)
        return weights

    return attend


def _all_sinks(weights: ModelWeights) -> list[Array]:
    return [wide(block.attn.sinks) for block in weights.blocks]


@bug(
    "sinks-wrong-head",
    op="attention_weights",
    stage=WEIGHTS,
    consequence="Each head gives the sink the weight that is right for another head.",
    reports=("SkyRL#558",),
    note="Modelled as the sink of the previous head. The variants are other permutations: heads "
    "sorted by their place in the group, and every half (quarter, …) of the heads with the sinks "
    "of the first.",
    obstacle=lambda config, weights: (
        None
        if any(np.any(sinks != sinks[0]) for sinks in _all_sinks(weights))
        else "all sinks of a layer are equal"
    ),
    variants=lambda config, tokens: (
        Variant(label, replacing(attention_weights=_sinks_of(heads)))
        for label, heads in _other_sinks(config).items()
    ),
)
def sinks_wrong_head(right: Right, *arguments: Any) -> Array:
    """Every query head has another head's sink."""
    before = np.roll(np.arange(len(arguments[3])), 1)
    return _sinks_of(before)(right, *arguments)


def _sinks_of(heads: Array) -> Callable[..., Array]:
    """Attention in which head h has the sink of ``heads[h]``."""

    def attend(right: Right, at: OpContext, q: Array, k: Array, sinks: Array, *where: Any) -> Array:
        weights: Array = right(at, q, k, sinks[heads], *where)
        return weights

    return attend


def _other_sinks(config: ModelConfig) -> dict[str, Array]:
    """Plausible permutations of the heads (H,)."""
    kv, group, count = config.num_key_value_heads, config.group_size, config.num_attention_heads
    heads = np.arange(count)
    found = {
        "heads sorted by place in the group": heads.reshape(group, kv).T.ravel(),
        "key heads sorted by group": heads.reshape(kv, group).T.ravel(),
        "the next head's": np.roll(heads, -1),
        "in reverse": heads[::-1],
    }
    for shards in range(2, count):
        if count % shards == 0:
            found[f"every shard of {shards} with the first one's"] = heads % (count // shards)
    return found


SINKS: tuple[Mutant, ...] = (
    sinks_dropped,
    sinks_counted_twice,
    sinks_scaled,
    sinks_wrong_head,
)
