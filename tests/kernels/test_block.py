"""One token through whole blocks: bit for bit what the layers' kernels give one after the other."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptoss_ref
from gptoss_ref import kernels
from gptoss_ref.backend import NUMPY, get_backend
from gptoss_ref.cache import KVCache
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import CheckpointError, GptOssError
from gptoss_ref.kernels.runtime.isa import instructions
from gptoss_ref.kernels.runtime.threads import SMALL, available_threads
from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, FLOAT64, widen
from tests.support.checks_model import build_model
from tests.support.distance import relative_l2
from tests.support.kernel_cases import (
    BUSY,
    COMPILED_ONLY,
    EVERY_PATH,
    INTERPRETED,
    MXFP4_BOUND,
    spread,
)
from tests.support.strategies import (
    SEEDS,
    as_weights,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)

NUMBA = get_backend("numba")
build = partial(build_model, backend=NUMBA)
SOME = settings(max_examples=1 if INTERPRETED else 12)
SIZES = {"d_model": 64, "d_ff": 96, "window": 5}


def watched(name: str, values: Any) -> None:
    """A tap: a pass that has one goes layer by layer."""


def fused(model: Model) -> bool:
    return model.backend.blocks(model.config, model.weights) is not None


def compare(model: Model, tokens: list[int], prompt: int) -> None:
    """Decodes after a prompt, both ways, each with its own cache."""
    one, each = model.new_cache(), model.new_cache()
    for cache in (one, each):
        if prompt:
            model(tokens[:prompt], cache)
    for token in tokens[prompt:]:
        together = model([token], one)
        np.testing.assert_array_equal(together, model([token], each, tap=watched))
    for ours, theirs in zip(one.layers, each.layers, strict=True):
        for a, b in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            held = one.length - ours.origin
            np.testing.assert_array_equal(a[:held], b[:held])


@EVERY_PATH
@SOME
@given(
    config=model_configs(mxfp4=True, shuffled_layer_types=True),
    seed=SEEDS,
    prompt=st.integers(0, 20),
    clamp=st.sampled_from([1.0, 6.0]),
)
def test_equal_to_the_layers_bit_for_bit(
    path: str, config: ModelConfig, seed: int, prompt: int, clamp: float
) -> None:
    model = build(config, random_arrays(config, seed, mxfp4=True, clamp=clamp), "float32")
    assert fused(model)
    with instructions(path):
        compare(model, random_tokens(config, prompt + 6, seed), prompt)


def test_past_the_window_and_the_room_of_the_cache() -> None:
    config = small_config(**SIZES)
    model = build(config, random_arrays(config, 1, mxfp4=True), "float32")
    compare(model, random_tokens(config, 7 if INTERPRETED else 140, 1), 0)


def test_nan_and_infinity_propagate() -> None:
    config = small_config(**SIZES)
    for name in ("block.0.attn.q.bias", "block.0.attn.v.bias", "block.1.mlp.gate.bias"):
        for value in (np.nan, np.inf):
            arrays = random_arrays(config, 2, mxfp4=True)
            arrays[name][1] = value
            compare(build(config, arrays, "float32"), random_tokens(config, 7, 2), 4)


def test_weights_that_are_stored_otherwise_go_through_the_layers() -> None:
    config = small_config(**SIZES)
    dense, packed = random_arrays(config, 3), random_arrays(config, 3, mxfp4=True)
    weights = as_weights(packed)
    assert fused(Model(config, weights))
    block = weights.blocks[1]

    def changed(**parts: Any) -> Model:
        first, _, *rest = weights.blocks
        blocks = (first, dataclasses.replace(block, **parts), *rest)
        return Model(config, dataclasses.replace(weights, blocks=blocks))

    wide = dataclasses.replace(block.attn, out_bias=np.zeros(len(block.attn.out_bias)))
    awkward = dataclasses.replace(block.attn, q_weight=spread(block.attn.q_weight))
    wrong = dataclasses.replace(block.attn, sinks=block.attn.sinks[1:])
    longer = dataclasses.replace(block.mlp, gate_bias=np.zeros(99, np.uint16))
    others = (changed(attn=wide), changed(attn=awkward), changed(attn=wrong), changed(mlp=longer))
    for model in (*others, Model(config, as_weights(dense)), Model(config, weights, backend=NUMPY)):
        assert not fused(model)
    expected = Model(config, weights)([3])
    np.testing.assert_array_equal(others[1]([3]), expected)  # stored with gaps, the same numbers
    for model in others[2:]:
        errors = []
        for tap in (None, watched):
            with pytest.raises(GptOssError, match="expected") as error:
                model([3], tap=tap)
            errors.append(str(error.value))
        assert errors[0] == errors[1]
    no_bias = changed(attn=dataclasses.replace(block.attn, q_bias=None))
    assert not fused(no_bias)
    assert np.isfinite(no_bias([3])).all()


@pytest.mark.parametrize("width", [32, 96, 128])
def test_an_embedding_of_another_width_is_the_error_of_the_layers(width: int) -> None:
    """Never read or written beyond its end."""
    config = small_config(**SIZES)
    weights = as_weights(random_arrays(config, 3, mxfp4=True))
    embedding = np.zeros((config.vocab_size, width), np.uint16)
    model = Model(config, dataclasses.replace(weights, embedding=embedding))
    assert not fused(model)
    errors = []
    for tap in (None, watched):
        with pytest.raises(GptOssError, match=f"{width}") as error:
            model([3], tap=tap)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_a_cache_of_another_model_is_refused() -> None:
    config = small_config(**SIZES)
    model = build(config, random_arrays(config, 3, mxfp4=True), "float32")
    heads, head = config.num_key_value_heads, config.head_dim
    for change in (
        {"num_key_value_heads": 2 * heads, "num_attention_heads": 2 * config.num_attention_heads},
        {"head_dim": 2 * head},
        {"num_hidden_layers": config.num_hidden_layers + 1, "layer_types": None},
        {"num_hidden_layers": config.num_hidden_layers - 1, "layer_types": None},
    ):
        cache = KVCache(dataclasses.replace(config, **change), FLOAT32)
        with pytest.raises(GptOssError, match=r"cache of .* expected .* model.new_cache\(\)"):
            model([3], cache)


def test_a_copy_computes_with_its_own_weights() -> None:
    config = small_config(**SIZES)
    model = build(config, random_arrays(config, 3, mxfp4=True), "float32")
    before = model([3])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(copied([3]), before)
        for block in copied.weights.blocks:
            block.attn.v_bias[:] = 0x4000  # 2.0
        after = copied([3])
        assert (after != before).any()
        np.testing.assert_array_equal(after, copied([3], tap=watched))
    np.testing.assert_array_equal(model([3]), before)


@BUSY
@COMPILED_ONLY
@pytest.mark.parametrize("d_ff", [96, 512])
def test_every_part_on_threads(d_ff: int) -> None:
    """Matrices and attention that are worth threads, at this size; experts by floats, integers."""
    config = small_config(
        layers=2, d_model=1024, d_ff=d_ff, n_kv=4, group=8, head_dim=64, window=50, vocab=70
    )
    model = build(config, random_arrays(config, 9, mxfp4=True), "float32")
    tokens = random_tokens(config, 692, 9)
    queries = config.num_attention_heads * config.head_dim
    assert min(queries * config.hidden_size, 2 * queries * 690) > SMALL
    cache, results = model.new_cache(), []
    model(tokens[:690], cache)
    for n in (1, min(2, available_threads())):
        own = copy.deepcopy(cache)
        with gptoss_ref.threads(n):
            results += [model([token], own) for token in tokens[690:]]
    each = [model([token], cache, tap=watched) for token in tokens[690:]]
    np.testing.assert_array_equal(results, [*each, *each])


def test_a_layer_of_ones_own_is_called_for_one_token_too() -> None:
    config = small_config(**SIZES)
    calls = []

    @dataclasses.dataclass
    class Mine:  # not hashable
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            calls.append(len(arguments[0]))
            return kernels.attention(*arguments, **options)

    model = build(config, random_arrays(config, 4, mxfp4=True), "float32")
    expected = model([5])
    model.backend = dataclasses.replace(NUMBA, attention=Mine())
    np.testing.assert_array_equal(model([5]), expected)
    assert calls == [1] * config.num_hidden_layers


def test_other_weights_are_seen() -> None:
    config = small_config(**SIZES)
    model, other = (
        build(config, random_arrays(config, seed, mxfp4=True), "float32") for seed in (5, 6)
    )
    before = model([7])
    model.weights = other.weights
    np.testing.assert_array_equal(model([7]), other([7]))
    assert (model([7]) != before).any()
    model.config = dataclasses.replace(config, swiglu_limit=0.5, experts_per_token=1)
    np.testing.assert_array_equal(model([7]), model([7], tap=watched))
    assert (model([7]) != other([7])).any()


@pytest.mark.parametrize("name", ["mlp1_weight", "mlp2_weight"])
def test_a_scale_byte_255_is_the_error_of_the_layers(name: str) -> None:
    config = small_config(**SIZES)
    arrays = random_arrays(config, 8, mxfp4=True)
    arrays[f"block.1.mlp.{name}"][1][:, 3, 0] = 255
    model = build(config, arrays, "float32")
    weights = model.weights
    blocks = tuple(
        dataclasses.replace(
            block,
            mlp=dataclasses.replace(
                block.mlp,
                **{
                    field: dataclasses.replace(getattr(block.mlp, field), scale_255="error")
                    for field in ("mlp1_weight", "mlp2_weight")
                },
            ),
        )
        for block in weights.blocks
    )
    model = Model(config, dataclasses.replace(weights, blocks=blocks))
    assert fused(model)
    cache = model.new_cache()
    errors = []
    for tap in (None, watched):
        with pytest.raises(CheckpointError, match="scale byte 255") as error:
            model([9], cache, tap=tap)
        errors.append(str(error.value))
        assert cache.length == 0
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", ["attn.q_bias", "mlp.mlp1_bias", "mlp.mlp2_bias"])
def test_a_bias_may_be_replaced_by_floats(name: str) -> None:
    """The NumPy layers take floats beside stored bits, and so do the kernels."""
    config = small_config(**SIZES)
    model = build(config, random_arrays(config, 3, mxfp4=True), "float32")
    tokens = random_tokens(config, 5, 3)
    floats = 1.25 * widen(model.weights.named()[f"block.0.{name}"], np.float32)
    weights = model.weights.replaced({f"block.0.{name}": floats})
    ours = Model(config, weights, backend=NUMBA)
    theirs = Model(config, weights, backend=NUMPY, policy=FLOAT64)
    cache = ours.new_cache()
    got = np.concatenate([ours(tokens[:4], cache), ours(tokens[4:], cache)])
    assert relative_l2(got, theirs(tokens)) <= MXFP4_BOUND
