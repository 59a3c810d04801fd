"""`mutation check`: the suite's own assertions fail for what others got wrong in public.

Every case runs one assertion twice: with the package's layer or model, where it must pass, and with
a mutant of the catalogue (gptoss_ref.verify.mutants), where it must fail. The assertions are the
very functions that the other tests call. A few errors more, which no layer's numbers in one pass
can show (real caches, encoding, ties, rounding points), are written out here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from gptoss_ref import layers
from gptoss_ref.backend import NUMPY
from gptoss_ref.cache import KVCache
from gptoss_ref.config import ModelConfig
from gptoss_ref.layers import mxfp4
from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, Policy, get_policy
from gptoss_ref.verify.mutants import CATALOGUE, EQUIVALENT, by_name
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION, ModelOps
from tests.support.agreement import Array
from tests.support.checks_attention import (
    check_attention,
    check_rope,
    check_rope_tables,
    check_sink_probe,
    check_yarn,
)
from tests.support.checks_layers import (
    check_experts,
    check_linear,
    check_rmsnorm,
    check_router,
    check_swiglu,
)
from tests.support.checks_model import (
    build_model,
    check_logits,
    check_rounding_points,
    check_transformers,
    flip_free_cases,
)
from tests.support.checks_mxfp4 import check_mxfp4_decode, check_mxfp4_encode
from tests.support.strategies import Arrays, as_weights, random_arrays, random_tokens, small_config
from tests.support.wrong_layers import LayersOf

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


# --- one layer at a time ---

# The function of gptoss_ref.layers that a mutant of that name makes wrong, and what must notice it.
LAYERS: dict[str, tuple[Callable[[Any], None], str]] = {
    "yarn-truncated": (yarn_check, "yarn"),
    "yarn-skipped": (yarn_check, "yarn"),
    "yarn-no-concentration": (yarn_check, "yarn"),
    "yarn-factor-in-exponent": (yarn_check, "yarn"),
    "yarn-ramp-over-dims": (yarn_check, "yarn"),
    "rope-base-10000": (yarn_check, "yarn"),
    "rope-position-off-by-one": (tables_check, "rope_tables"),
    "rope-interleaved": (rope_check, "rope"),
    "rope-twice": (rope_check, "rope"),
    "rope-skipped-on-window-layers": (rope_check, "rope"),
    "sinks-dropped": (attention_check, "attention"),
    "sinks-counted-twice": (attention_check, "attention"),
    "sinks-scaled": (attention_check, "attention"),
    "sinks-wrong-head": (attention_check, "attention"),
    "window-plus-one": (attention_check, "attention"),
    "window-minus-one": (attention_check, "attention"),
    "window-nowhere": (attention_check, "attention"),
    "window-scores-zero": (attention_check, "attention"),
    "gqa-axes-swapped": (attention_check, "attention"),
    "scale-missing": (attention_check, "attention"),
    "scale-by-hidden": (attention_check, "attention"),
    "causal-off-by-one": (attention_check, "attention"),
    "ring-boundary": (attention_check, "attention"),
    "chunk-longer-than-ring": (attention_check, "attention"),
    "padding-attended": (attention_check, "attention"),
    "prefill-skips-cache": (cached_attention_check, "attention"),
    "softmax-before-topk": (router_check, "router"),
    "router-bias-missing": (router_check, "router"),
    "router-bf16": (router_check, "router"),
    "gate-up-concatenated": (swiglu_check, "swiglu"),
    "gate-up-swapped": (swiglu_check, "swiglu"),
    "clamp-missing": (swiglu_check, "swiglu"),
    "clamp-gate-symmetric": (swiglu_check, "swiglu"),
    "clamp-after": (swiglu_check, "swiglu"),
    "alpha-missing": (swiglu_check, "swiglu"),
    "up-plus-one-missing": (swiglu_check, "swiglu"),
    "gate-up-bias-missing": (experts_check, "experts"),
    "down-bias-missing": (experts_check, "experts"),
    "down-bias-unweighted": (experts_check, "experts"),
    "experts-summed-twice": (experts_check, "experts"),
    "experts-transposed": (experts_check, "experts"),
    "shard-lost-rows": (experts_check, "experts"),
    "nibbles-swapped": (check_mxfp4_decode, "decode"),
    "nibbles-split": (check_mxfp4_decode, "decode"),
    "scale-bias-128": (check_mxfp4_decode, "decode"),
    "scale-bias-126": (check_mxfp4_decode, "decode"),
    "scale-0": (check_mxfp4_decode, "decode"),
    "scale-134": (check_mxfp4_decode, "decode"),
    "scale-255": (check_mxfp4_decode, "decode"),
    "norm-eps": (norm_check, "rmsnorm"),
    "norm-scale-after-cast": (rounding_norm_check, "rmsnorm"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_checks_notice(name: str) -> None:
    check, layer = LAYERS[name]
    check(mxfp4.decode if layer == "decode" else getattr(layers, layer))
    with pytest.raises(AssertionError):
        check(getattr(LayersOf(name), layer))


def test_the_sink_probe_notices() -> None:
    sink_check(layers.attention)
    for name in ("sinks-dropped", "sinks-counted-twice", "padding-attended"):
        with pytest.raises(AssertionError):
            sink_check(LayersOf(name).attention)


def ties_to_the_higher_index(*arguments: Any, policy: Policy = FLOAT32) -> Any:
    """Equal logits in the order in which an ascending sort leaves them."""
    right = layers.router(*arguments, policy=policy)
    n = right.indices.shape[-1]
    indices = np.argsort(right.logits, -1, kind="stable")[:, ::-1][:, :n]
    return right._replace(indices=indices)


def half_away_from_even(x: Array, **named: Any) -> tuple[Array, Array]:
    """Ties go up in magnitude: nudged by less than any other decision can see."""
    return mxfp4.encode(x.astype(np.float64) * (1 + 1e-12), **named)


def lossy(x: Array, weight: Any, bias: Any = None, *, policy: Policy = FLOAT32) -> Array:
    """A tile that forgets its last row."""
    out = layers.linear(x, weight, bias, policy=policy)
    out[..., -1] = 0
    return out


def unrounded(*arguments: Any, policy: Policy = FLOAT32) -> Array:
    """bfloat16 that rounds attention's result only: no rounding of scores and weights."""
    narrow = policy.name == "bfloat16"
    return policy.round(layers.attention(*arguments, policy=FLOAT32 if narrow else policy))


def linear_check(layer: Any) -> None:
    check_linear(layer, 1, "float64")


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (tied_router_check, layers.router, ties_to_the_higher_index),
        (encode_check, mxfp4.encode, half_away_from_even),
        (linear_check, layers.linear, lossy),
        (rounding_attention_check, layers.attention, unrounded),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_layer_checks_notice_more(check: Callable[[Any], None], right: Any, wrong: Any) -> None:
    check(right)
    with pytest.raises(AssertionError):
        check(wrong)


# --- the same errors inside a whole model: window 6, 30 tokens ---

SHAPE: dict[str, Any] = {"window": 6}
CONFIG = small_config(**SHAPE)
ARRAYS = random_arrays(CONFIG, 3, clamp=3.0)
TOKENS = random_tokens(CONFIG, 30, 3)
CHUNKS = [11, 4, 1, 1, 13]


def packed_arrays() -> Arrays:
    """Such a model with experts in MXFP4, some under scale bytes 0 and 134."""
    arrays = random_arrays(PACKED, 3, clamp=3.0, mxfp4=True)
    for value in arrays.values():
        if isinstance(value, tuple):
            blocks, scales = value
            scales[:, 0, 0], blocks[:, 0, 0, 0] = 0, 0x91
            scales[:, 1, 0], blocks[:, 1, 0] = 134, 0
    return arrays


PACKED = small_config(d_model=64, d_ff=96, **SHAPE)
PACKED_ARRAYS = packed_arrays()
LARGE_ARRAYS = {**PACKED_ARRAYS, "block.2.attn.out.bias": np.full(PACKED.hidden_size, 65536.0)}


def in_one_pass(build: Any) -> None:
    check_logits(build, CONFIG, ARRAYS, TOKENS)


def in_one_packed_pass(build: Any) -> None:
    check_logits(build, PACKED, PACKED_ARRAYS, TOKENS)


def on_a_cache(build: Any) -> None:
    check_logits(build, CONFIG, ARRAYS, TOKENS, chunks=CHUNKS)


def by_transformers(build: Any) -> None:
    check_transformers(build, CONFIG, ARRAYS, TOKENS)


def by_rounding(build: Any) -> None:
    check_rounding_points(build, flip_free_cases())


def with_large_stream(build: Any) -> None:
    check_logits(build, PACKED, LARGE_ARRAYS, TOKENS)


def following(ops: ModelOps) -> Callable[..., Callable[[Any], Array]]:
    """A builder of models that follow some ops, in one pass."""

    def build(config: ModelConfig, arrays: Arrays, policy: str) -> Callable[[Any], Array]:
        weights = as_weights(arrays)

        def logits(tokens: Any) -> Array:
            wanted = predict(
                weights, config, ops, np.array(tokens), {}, ["logits"], get_policy(policy)
            )
            return wanted["logits"]

        return logits

    return build


@pytest.mark.parametrize(
    "check",
    [in_one_pass, in_one_packed_pass, on_a_cache, by_transformers, by_rounding, with_large_stream],
)
def test_the_right_model_passes(check: Callable[[Any], None]) -> None:
    check(build_model)
    if check is not on_a_cache:
        check(following(SPECIFICATION))


WHERE = {"float16-overflow": with_large_stream}
NAN_ALREADY = {"scale-255"}  # the right result is NaN, which no distance can compare


@pytest.mark.parametrize("name", [m.name for m in CATALOGUE if m.name not in NAN_ALREADY])
def test_model_checks_notice(name: str) -> None:
    check = WHERE.get(name, in_one_packed_pass)
    with pytest.raises(AssertionError, match="relative L2"), np.errstate(all="ignore"):
        check(following(by_name(name).apply()))


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("router-bias-missing", by_transformers),
        ("experts-summed-twice", by_transformers),
        ("qkv-order", by_transformers),
        ("shard-lost-rows", by_transformers),
        ("norm-scale-after-cast", by_rounding),
    ],
)
def test_other_oracles_notice(name: str, check: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError):
        check(following(by_name(name).apply()))


def test_transformers_notices_a_large_epsilon() -> None:
    forms = {v.label: v.apply for v in by_name("norm-eps").variants(CONFIG, len(TOKENS))}
    with pytest.raises(AssertionError, match="relative L2"):
        by_transformers(following(forms["epsilon 0.001"](SPECIFICATION)))


@pytest.mark.parametrize("name", [mutant.name for mutant in EQUIVALENT])
def test_what_computes_the_same_passes(name: str) -> None:
    in_one_packed_pass(following(by_name(name).apply()))


# --- real caches, and rounding points ---


def with_layer(**wrong: Any) -> Callable[..., Model]:
    """The package's model with one layer function exchanged."""
    return partial(build_model, backend=dataclasses.replace(NUMPY, **wrong))


def late_tables(positions: Array, *rest: Any, **named: Any) -> tuple[Array, Array]:
    """Counting goes on at the wrong number once there is a cache."""
    late = positions[0] > 0
    return layers.rope_tables(positions + 1 if late else positions, *rest, **named)


def narrow_window(*arguments: Any, policy: Policy = FLOAT32) -> Array:
    """One key too few."""
    *rest, window = arguments
    return layers.attention(*rest, window and max(1, window - 1), policy=policy)


def cache_skipped(
    q: Array, k: Array, v: Array, sinks: Array, q_positions: Array, k_positions: Array,
    window: int | None, *, policy: Policy = FLOAT32,
) -> Array:  # fmt: skip
    """A chunk attends to itself only, whatever the cache holds."""
    if len(q) > 1:
        n = len(q)
        k, v, k_positions = k[-n:], v[-n:], k_positions[-n:]
    return layers.attention(q, k, v, sinks, q_positions, k_positions, window, policy=policy)


class ShortRing(Model):
    """The ring remembers two positions too few."""

    def new_cache(self) -> KVCache:
        window = self.config.sliding_window - 2
        return KVCache(dataclasses.replace(self.config, sliding_window=window), self.policy)


def short_ring(config: ModelConfig, arrays: Arrays, policy: str) -> Model:
    return ShortRing(config, as_weights(arrays), policy=policy)


@pytest.mark.parametrize(
    ("check", "build"),
    [
        (on_a_cache, with_layer(rope_tables=late_tables)),
        (on_a_cache, with_layer(attention=narrow_window)),
        (on_a_cache, with_layer(attention=cache_skipped)),
        (on_a_cache, short_ring),
        (by_rounding, with_layer(attention=unrounded)),
    ],
    ids=["late tables", "narrow window", "cache skipped", "short ring", "unrounded"],
)
def test_model_checks_notice_more(check: Callable[[Any], None], build: Any) -> None:
    with pytest.raises(AssertionError):
        check(build)
