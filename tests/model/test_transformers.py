"""The whole model, float32, against transformers' GptOssForCausalLM with the same weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import DynamicCache

from gptoss_ref.config import ModelConfig
from tests.support.agreement import Array
from tests.support.checks_model import (
    MODEL_TOLERANCE,
    LongCase,
    build_model,
    check_transformers,
    in_chunks,
    router_margin,
)
from tests.support.distance import relative_l2
from tests.support.strategies import (
    SEEDS,
    Arrays,
    chunkings,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)
from tests.support.transformers_model import transformers_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# Two float32 runs route differently once the margin is within their rounding; such draws are passed
# over (float64 is compared on near ties, in test_model_twin.py).
LEAST_MARGIN = 1e-5


@given(
    config=model_configs(shuffled_layer_types=True),
    seed=SEEDS,
    length=st.integers(1, 60),
    sink=st.sampled_from([-20.0, 0.0, 10.0]),
    clamp=st.sampled_from([1.0, 6.0]),
)
def test_any_configuration(
    config: ModelConfig, seed: int, length: int, sink: float, clamp: float
) -> None:
    arrays = random_arrays(config, seed, sink=sink, clamp=clamp)
    tokens = random_tokens(config, length, seed)
    assume(router_margin(config, arrays, tokens) > LEAST_MARGIN)
    check_transformers(build_model, config, arrays, tokens)


@given(config=model_configs(mxfp4=True, yarn=True), seed=SEEDS)
def test_mxfp4_experts(config: ModelConfig, seed: int) -> None:
    arrays, tokens = random_arrays(config, seed, mxfp4=True), random_tokens(config, 20, seed)
    assume(router_margin(config, arrays, tokens) > LEAST_MARGIN)
    check_transformers(build_model, config, arrays, tokens)


@pytest.mark.parametrize("window", [1, 64, 127, 128])
@pytest.mark.parametrize("length", [127, 128, 129, 257])
def test_lengths_around_the_window(length: int, window: int) -> None:
    config = small_config(window=window)
    arrays, tokens = random_arrays(config, window), random_tokens(config, length, window)
    assert router_margin(config, arrays, tokens) > LEAST_MARGIN
    check_transformers(build_model, config, arrays, tokens)


@given(config=model_configs(windows=(2, 3, 7, 13)), seed=SEEDS, data=st.data())
def test_both_caches(config: ModelConfig, seed: int, data: st.DataObject) -> None:
    """The same chunks through both caches, single tokens and chunks longer than the window."""
    length = data.draw(st.integers(2, 40))
    chunks = data.draw(chunkings(length))
    arrays, tokens = random_arrays(config, seed), random_tokens(config, length, seed)
    assume(router_margin(config, arrays, tokens) > LEAST_MARGIN)
    theirs = transformers_in_chunks(config, arrays, tokens, chunks)
    ours = in_chunks(build_model(config, arrays, "float32"), tokens, chunks)
    assert relative_l2(ours, theirs) <= MODEL_TOLERANCE["float32"]


def transformers_in_chunks(
    config: ModelConfig, arrays: Arrays, tokens: list[int], chunks: list[int]
) -> Array:
    model = transformers_model(config, arrays)
    cache = DynamicCache(config=model.config)
    parts = torch.tensor([tokens]).split(chunks, dim=1)
    with torch.no_grad():
        rows = [model(part, past_key_values=cache).logits[0] for part in parts]
    return torch.cat(rows).numpy()


def test_positions_past_4096(long_case: LongCase) -> None:
    """transformers takes its angles in float32: at position p they are off by up to p·2⁻²⁴ rad.

    That, 2.4e-4 rad at 4096, sets the tolerance here and not the model: with these weights it comes
    to 4e-6 of the logits, nine times ours' own distance to the float64 twin, which is held to 2e-6.
    """
    case, late = long_case, slice(4096, None)
    chunks = [1024] * 4 + [131]
    theirs = transformers_in_chunks(case.config, case.arrays, case.tokens, chunks)[late]
    ours = in_chunks(build_model(case.config, case.arrays, "float32"), case.tokens, chunks)[late]
    assert relative_l2(ours, theirs) <= 2e-5
    assert relative_l2(ours, case.logits[late]) <= 2e-6
