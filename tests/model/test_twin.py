"""The whole model against the float64 twin: logits and every tap point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref.config import ModelConfig
from gptoss_ref.model import Model
from tests.support.checks_model import (
    MODEL_TOLERANCE,
    LongCase,
    build_model,
    check_logits,
    check_taps,
    in_chunks,
)
from tests.support.distance import relative_l2
from tests.support.strategies import (
    LENGTHS,
    SEEDS,
    WINDOWS,
    as_weights,
    chunkings,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)

POLICIES = ("float64", "float32")


@pytest.mark.parametrize("policy", POLICIES)
@given(
    config=model_configs(shuffled_layer_types=True),
    seed=SEEDS,
    length=st.integers(1, 40),
    sink=st.sampled_from([-20.0, 0.0, 10.0]),
    clamp=st.sampled_from([1.0, 6.0]),
)
def test_every_tap_point(
    policy: str, config: ModelConfig, seed: int, length: int, sink: float, clamp: float
) -> None:
    """Vanishing and dominating sinks, gates and ups beyond ±7, any pattern of windows."""
    arrays = random_arrays(config, seed, sink=sink, clamp=clamp)
    check_taps(build_model, config, arrays, random_tokens(config, length, seed), policy)


@pytest.mark.parametrize("policy", POLICIES)
@given(config=model_configs(mxfp4=True), seed=SEEDS, data=st.data())
def test_mxfp4_experts_and_chunked_prefill(
    policy: str, config: ModelConfig, seed: int, data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, 40))
    arrays = random_arrays(config, seed, mxfp4=True)
    tokens = random_tokens(config, length, seed)
    check_logits(build_model, config, arrays, tokens, policy)
    check_logits(build_model, config, arrays, tokens, policy, data.draw(chunkings(length)))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_around_the_window(length: int, window: int) -> None:
    """One pass, and prefill of all but the last token followed by one decoding step."""
    config = small_config(window=window, layers=2, n_kv=3, group=4, head_dim=8, experts=6)
    arrays = random_arrays(config, 1000 * length + window)
    tokens = random_tokens(config, length, window)
    check_logits(build_model, config, arrays, tokens)
    if length > 1:
        check_logits(build_model, config, arrays, tokens, chunks=[length - 1, 1])


@given(SEEDS)
def test_storage_of_the_weights_is_irrelevant(seed: int) -> None:
    """The NumPy layers: the same values as bfloat16 bits, float32 or float64, the same logits."""
    config = small_config()
    arrays, tokens = random_arrays(config, seed), random_tokens(config, 9, seed)
    for policy in ("float64", "float32", "bfloat16"):
        bits, single, double = (
            Model(config, as_weights(arrays, storage), policy=policy, backend="numpy")(tokens)
            for storage in ("bfloat16", "float32", "float64")
        )
        assert np.array_equal(bits, single)
        assert np.array_equal(bits, double)


def test_positions_past_4096(long_case: LongCase) -> None:
    """Chunks that straddle YaRN's original length; transformers: see test_model_transformers.py."""
    chunks = [1000, 129, 1, 1966, 874, 128, 127, 2]
    for policy in POLICIES:
        model = build_model(long_case.config, long_case.arrays, policy)
        ours = in_chunks(model, long_case.tokens, chunks)
        late = slice(4096, None)
        assert relative_l2(ours[late], long_case.logits[late]) <= MODEL_TOLERANCE[policy]
        assert relative_l2(ours, long_case.logits) <= MODEL_TOLERANCE[policy]


@given(SEEDS)
def test_near_tied_routers(seed: int) -> None:
    """Logits 1e-7 apart: float64 still tells them apart, and exact ties go to the lower index."""
    config = small_config()
    arrays, tokens = random_arrays(config, seed), random_tokens(config, 12, seed)
    rng = np.random.default_rng(seed)
    for n in range(config.num_hidden_layers):
        at = f"block.{n}.mlp.gate."
        arrays[at + "weight"][:] = 0
        arrays[at + "weight"][:, 3] = 1.5  # one product, which no order of summation can alter
        steps = rng.permutation(config.num_experts) // 2  # pairs of exactly equal experts
        arrays[at + "bias"] = 2.0**-16 * (1 + 2.0**-7 * steps)  # exact in bfloat16
    check_taps(build_model, config, arrays, tokens)
