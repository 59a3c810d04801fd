"""`mutation check`: the suite's own assertions fail for what others got wrong in public.

Every case runs one assertion twice: with the package's layer, where it must pass, and with a mutant
of mutants.py or mutants_attention.py, where it must fail. The assertions are the very functions
that the other tests call.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import mutants
import mutants_attention
import numpy as np
import pytest
from agreement import Array
from checks_attention import (
    check_attention,
    check_rope,
    check_rope_tables,
    check_sink_probe,
    check_yarn,
)
from checks_layers import check_experts, check_linear, check_rmsnorm, check_router, check_swiglu
from checks_model import (
    build_model,
    check_logits,
    check_rounding_points,
    check_transformers,
    flip_free_cases,
)
from checks_mxfp4 import check_mxfp4_decode, check_mxfp4_encode
from strategies import Arrays, as_weights, random_arrays, random_tokens, small_config

from gptoss_ref import layers
from gptoss_ref.backend import NUMPY
from gptoss_ref.config import ModelConfig
from gptoss_ref.layers import mxfp4
from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, Policy

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RELEASED = {
    "rope_theta": 150000.0,
    "rope_scaling_factor": 32.0,
    "initial_context_length": 4096,
    "rope_ntk_beta": 32.0,
    "rope_ntk_alpha": 1.0,
}
HEADS = (12, 12, 2, 3, 10)  # T, S, K, G, C


def yarn_check(layer: Any) -> None:
    check_yarn(layer, 64, RELEASED)


def tables_check(layer: Any) -> None:
    check_rope_tables(layer, np.arange(40, 50), 64, RELEASED, "float64")


def rope_check(layer: Any) -> None:
    check_rope(layer, 1, "float64")


def attention_check(layer: Any) -> None:
    check_attention(layer, 1, "float64", HEADS, 5)


def rounding_attention_check(layer: Any) -> None:
    check_attention(layer, 1, "bfloat16", HEADS, 5)


def cached_attention_check(layer: Any) -> None:
    check_attention(layer, 1, "float64", (3, *HEADS[1:]), 5)


def sink_check(layer: Any) -> None:
    check_sink_probe(layer)


def router_check(layer: Any) -> None:
    check_router(layer, 1, "float64")


def tied_router_check(layer: Any) -> None:
    check_router(layer, 1, "float64", spread=0.0)


def swiglu_check(layer: Any) -> None:
    check_swiglu(layer, 1, "float64")


def experts_check(layer: Any) -> None:
    check_experts(layer, 1, "float64")


def encode_check(encode: Any) -> None:
    ties = np.resize([4, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -2.5], (1, 32))
    check_mxfp4_encode(encode, ties)


def norm_check(layer: Any) -> None:
    check_rmsnorm(layer, 1, "float64", size=1e-2)


def rounding_norm_check(layer: Any) -> None:
    check_rmsnorm(layer, 1, "bfloat16")


LAYERS: list[tuple[Callable[[Any], None], Any, Any]] = [
    (yarn_check, layers.yarn, mutants_attention.yarn_truncated),
    (yarn_check, layers.yarn, mutants_attention.yarn_no_concentration),
    (yarn_check, layers.yarn, mutants_attention.yarn_skipped),
    (yarn_check, layers.yarn, mutants_attention.yarn_ramp_over_dims),
    (yarn_check, layers.yarn, mutants_attention.rope_base_10000),
    (tables_check, layers.rope_tables, mutants_attention.rope_position_off_by_one),
    (rope_check, layers.rope, mutants_attention.rope_interleaved),
    (rope_check, layers.rope, mutants_attention.rope_twice),
    (sink_check, layers.attention, mutants_attention.sinks_dropped),
    (attention_check, layers.attention, mutants_attention.sinks_dropped),
    (attention_check, layers.attention, mutants_attention.sinks_wrong_head),
    (attention_check, layers.attention, mutants_attention.sinks_scaled),
    (attention_check, layers.attention, mutants_attention.window_plus_one),
    (attention_check, layers.attention, mutants_attention.window_minus_one),
    (attention_check, layers.attention, mutants_attention.window_nowhere),
    (attention_check, layers.attention, mutants_attention.window_scores_zero),
    (attention_check, layers.attention, mutants_attention.gqa_axes_swapped),
    (attention_check, layers.attention, mutants_attention.scale_missing),
    (attention_check, layers.attention, mutants_attention.causal_off_by_one),
    (cached_attention_check, layers.attention, mutants_attention.cache_skipped_by_prefill),
    (rounding_attention_check, layers.attention, mutants_attention.softmax_unrounded),
    (router_check, layers.router, mutants.softmax_before_topk),
    (router_check, layers.router, mutants.router_bias_missing),
    (tied_router_check, layers.router, mutants.router_ties_to_the_higher_index),
    (swiglu_check, layers.swiglu, mutants.gate_up_concatenated),
    (swiglu_check, layers.swiglu, mutants.gate_up_swapped),
    (swiglu_check, layers.swiglu, mutants.clamp_missing),
    (swiglu_check, layers.swiglu, mutants.clamp_gate_symmetric),
    (swiglu_check, layers.swiglu, mutants.clamp_after),
    (swiglu_check, layers.swiglu, mutants.alpha_missing),
    (swiglu_check, layers.swiglu, mutants.up_plus_one_missing),
    (experts_check, layers.experts, mutants.down_bias_unweighted),
    (experts_check, layers.experts, mutants.down_bias_missing),
    (experts_check, layers.experts, mutants.gate_up_bias_missing),
    (experts_check, layers.experts, mutants.experts_summed_twice),
    (check_mxfp4_decode, mxfp4.decode, mutants.nibbles_swapped),
    (check_mxfp4_decode, mxfp4.decode, mutants.nibbles_split),
    (check_mxfp4_decode, mxfp4.decode, mutants.scale_bias_128),
    (check_mxfp4_decode, mxfp4.decode, mutants.scale_0_is_zero),
    (encode_check, mxfp4.encode, mutants.half_away_from_even),
    (rounding_norm_check, layers.rmsnorm, mutants.norm_scale_after_cast),
    (norm_check, layers.rmsnorm, mutants.norm_eps),
]


@pytest.mark.parametrize(
    ("check", "right", "wrong"), LAYERS, ids=lambda value: getattr(value, "__name__", None)
)
def test_layer_checks_notice(check: Callable[[Any], None], right: Any, wrong: Any) -> None:
    check(right)
    with pytest.raises(AssertionError):
        check(wrong)


# The same errors inside a whole model: window 6, 30 tokens, prefill in chunks and decoding.
CONFIG = small_config(window=6)
ARRAYS = random_arrays(CONFIG, 3, clamp=3.0)
TOKENS = random_tokens(CONFIG, 30, 3)
CHUNKS = [11, 4, 1, 1, 13]


def in_one_pass(build: Any) -> None:
    check_logits(build, CONFIG, ARRAYS, TOKENS)


def on_a_cache(build: Any) -> None:
    check_logits(build, CONFIG, ARRAYS, TOKENS, chunks=CHUNKS)


def by_transformers(build: Any) -> None:
    check_transformers(build, CONFIG, ARRAYS, TOKENS)


def by_rounding(build: Any) -> None:
    check_rounding_points(build, flip_free_cases())


def with_layer(**wrong: Any) -> Callable[..., Model]:
    """The package's model with one layer function exchanged."""
    return partial(build_model, backend=dataclasses.replace(NUMPY, **wrong))


def with_config(change: Callable[[ModelConfig], dict[str, Any]]) -> Callable[..., Model]:
    """The package's model with a configuration misread."""
    return lambda config, arrays, policy: build_model(
        dataclasses.replace(config, **change(config)), arrays, policy
    )


def with_arrays(change: Callable[[Arrays], Arrays]) -> Callable[..., Model]:
    """The package's model with weights mislaid."""
    return lambda config, arrays, policy: build_model(config, change(arrays), policy)


def with_class(model: type[Model]) -> Callable[..., Model]:
    """A model with one method exchanged."""
    return lambda config, arrays, policy: model(config, as_weights(arrays), policy=policy)


def embedding_scaled(tokens: Array, weight: Array, *, policy: Policy = FLOAT32) -> Array:
    """By the root of D, as some other models do."""
    rows = layers.embedding(tokens, weight, policy=policy)
    return policy.round(rows * math.sqrt(rows.shape[-1]))


MODELS: dict[str, tuple[Callable[[Any], None], Callable[..., Model]]] = {
    "rope-interleaved": (in_one_pass, with_layer(rope=mutants_attention.rope_interleaved)),
    "rope-twice": (in_one_pass, with_layer(rope=mutants_attention.rope_twice)),
    "rope-position-off-by-one": (
        on_a_cache, with_layer(rope_tables=mutants_attention.rope_position_off_by_one)
    ),
    "rope-base-10000": (in_one_pass, with_config(lambda _: {"rope_theta": 10000.0})),
    "yarn-skipped": (in_one_pass, with_config(lambda _: {"rope_scaling_factor": 1.0})),
    "sinks-dropped": (in_one_pass, with_layer(attention=mutants_attention.sinks_dropped)),
    "sinks-wrong-head": (in_one_pass, with_layer(attention=mutants_attention.sinks_wrong_head)),
    "window-plus-one": (in_one_pass, with_layer(attention=mutants_attention.window_plus_one)),
    "window-minus-one": (on_a_cache, with_layer(attention=mutants_attention.window_minus_one)),
    "window-nowhere": (in_one_pass, with_layer(attention=mutants_attention.window_nowhere)),
    "window-odd-layers": (
        in_one_pass, with_config(lambda c: {"layer_types": mutants.swapped_windows(c)})
    ),
    "window-everywhere": (
        in_one_pass, with_config(lambda c: {"layer_types": ("sliding_attention",) * 3})
    ),
    "window-scores-zero": (in_one_pass, with_layer(attention=mutants_attention.window_scores_zero)),
    "gqa-axes-swapped": (in_one_pass, with_layer(attention=mutants_attention.gqa_axes_swapped)),
    "causal-off-by-one": (in_one_pass, with_layer(attention=mutants_attention.causal_off_by_one)),
    "cache-skipped": (on_a_cache, with_layer(attention=mutants_attention.cache_skipped_by_prefill)),
    "ring-too-short": (on_a_cache, with_class(mutants.ShortRing)),
    "softmax-before-topk": (in_one_pass, with_layer(router=mutants.softmax_before_topk)),
    "router-bias-missing": (by_transformers, with_layer(router=mutants.router_bias_missing)),
    "down-bias-unweighted": (in_one_pass, with_layer(experts=mutants.down_bias_unweighted)),
    "experts-summed-twice": (by_transformers, with_layer(experts=mutants.experts_summed_twice)),
    "qkv-order": (by_transformers, with_arrays(mutants.key_and_value_rows_swapped)),
    "shard-lost-rows": (by_transformers, with_arrays(mutants.last_rows_lost)),
    "residual-missing": (in_one_pass, with_class(mutants.NoResidual)),
    "embedding-scaled": (in_one_pass, with_layer(embedding=embedding_scaled)),
    "unembedding-tied": (
        in_one_pass, with_arrays(lambda a: {**a, "unembedding": a["embedding"]})
    ),
    "norm-eps": (by_transformers, with_config(lambda _: {"rms_norm_eps": 1e-3})),
    "norm-scale-after-cast": (by_rounding, with_layer(rmsnorm=mutants.norm_scale_after_cast)),
    "softmax-unrounded": (by_rounding, with_layer(attention=mutants_attention.softmax_unrounded)),
}  # fmt: skip


@pytest.mark.parametrize("check", [in_one_pass, on_a_cache, by_transformers, by_rounding])
def test_the_right_model_passes(check: Callable[[Any], None]) -> None:
    check(build_model)


@pytest.mark.parametrize("name", MODELS)
def test_model_checks_notice(name: str) -> None:
    check, build = MODELS[name]
    with pytest.raises(AssertionError):
        check(build)


@pytest.mark.parametrize(
    "wrong",
    [
        mutants.gate_up_concatenated,
        mutants.clamp_missing,
        mutants.clamp_gate_symmetric,
        mutants.alpha_missing,
        mutants.up_plus_one_missing,
    ],
)
def test_model_checks_notice_the_gated_unit(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """swiglu is called by experts, so it is exchanged where experts finds it."""
    monkeypatch.setattr(sys.modules["gptoss_ref.layers.experts"], "swiglu", wrong)
    with pytest.raises(AssertionError, match="relative L2"):
        in_one_pass(build_model)


@pytest.mark.parametrize(
    "wrong", [mutants_attention.yarn_truncated, mutants_attention.yarn_no_concentration]
)
def test_model_checks_notice_yarn(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_ref.model.yarn", wrong)
    with pytest.raises(AssertionError, match="relative L2"):
        in_one_pass(build_model)


# What must not be flagged, because it computes the same.


def test_renormalised_softmax_before_topk_passes() -> None:
    router_check(mutants.softmax_before_topk_renormalised)
    in_one_pass(with_layer(router=mutants.softmax_before_topk_renormalised))


def test_concentration_in_the_scores_passes() -> None:
    """Squared into the score scale, with cos and sin left alone: equal logits."""
    concentration = 0.1 * math.log(CONFIG.rope_scaling_factor) + 1

    def plain_tables(positions: Array, inv_freq: Array, _: float, **named: Any) -> Any:
        return layers.rope_tables(positions, inv_freq, 1.0, **named)

    def magnified(q: Array, *rest: Any, policy: Policy = FLOAT32) -> Array:
        return layers.attention(q * concentration**2, *rest, policy=policy)

    in_one_pass(with_layer(rope_tables=plain_tables, attention=magnified))


def test_a_lost_row_shows_in_linear() -> None:
    """A tile that forgets its last row."""

    def lossy(x: Array, weight: Any, bias: Any = None, *, policy: Policy = FLOAT32) -> Array:
        out = layers.linear(x, weight, bias, policy=policy)
        out[..., -1] = 0
        return out

    check_linear(layers.linear, 1, "float64")
    with pytest.raises(AssertionError, match="relative L2"):
        check_linear(lossy, 1, "float64")
