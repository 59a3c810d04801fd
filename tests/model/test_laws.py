"""Laws of the whole model: what must hold without any oracle."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref.config import ModelConfig
from tests.support.agreement import Array
from tests.support.checks_model import SUBJECTS, Subject, in_chunks, taps_of
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

CONFIGS = model_configs(windows=(1, 2, 3, 7, 13))
LENGTHS = st.integers(1, 30)


@SUBJECTS
@given(CONFIGS, SEEDS, st.data())
def test_cached_decoding_equals_one_pass(
    subject: Subject, config: ModelConfig, seed: int, data: st.DataObject
) -> None:
    length = data.draw(LENGTHS)
    tokens = random_tokens(config, length, seed)
    model = subject.build(config, random_arrays(config, seed))
    prompt = data.draw(st.integers(1, length))
    chunks = [*data.draw(chunkings(prompt)), *[1] * (length - prompt)]
    assert relative_l2(in_chunks(model, tokens, chunks), model(tokens)) <= subject.same


@SUBJECTS
@given(CONFIGS, SEEDS, LENGTHS)
def test_later_tokens_change_nothing_earlier(
    subject: Subject, config: ModelConfig, seed: int, length: int
) -> None:
    model = subject.build(config, random_arrays(config, seed))
    tokens = random_tokens(config, length + 5, seed)
    assert relative_l2(model(tokens)[:length], model(tokens[:length])) <= subject.same


@SUBJECTS
@given(CONFIGS, SEEDS, LENGTHS)
def test_last_only_is_the_last_row(
    subject: Subject, config: ModelConfig, seed: int, length: int
) -> None:
    model = subject.build(config, random_arrays(config, seed))
    tokens = random_tokens(config, length, seed)
    last = model(tokens, last_only=True)
    assert last.shape == (1, config.vocab_size)
    assert relative_l2(last[0], model(tokens)[-1]) <= subject.same
    cache = model.new_cache()
    assert relative_l2(model(tokens, cache=cache, last_only=True), last) <= subject.same
    assert cache.length == length
    ours = model([1, 2], cache=cache)
    assert relative_l2(ours, model([*tokens, 1, 2])[-2:]) <= subject.same


@SUBJECTS
@given(CONFIGS, SEEDS, LENGTHS, st.randoms(use_true_random=False))
def test_relabelling_experts_changes_nothing(
    subject: Subject, config: ModelConfig, seed: int, length: int, random: object
) -> None:
    arrays = random_arrays(config, seed)
    tokens = random_tokens(config, length, seed)
    before = subject.build(config, arrays)(tokens)
    rng = np.random.default_rng(seed)
    for n in range(config.num_hidden_layers):
        order = rng.permutation(config.num_experts)
        for name in ("gate.weight", "gate.bias", "mlp1_weight", "mlp1_bias", "mlp2_weight",
                     "mlp2_bias"):  # fmt: skip
            arrays[f"block.{n}.mlp.{name}"] = arrays[f"block.{n}.mlp.{name}"][order]
    assert relative_l2(subject.build(config, arrays)(tokens), before) <= subject.same


@SUBJECTS
@given(CONFIGS, SEEDS, LENGTHS)
def test_reordering_key_value_groups_changes_nothing(
    subject: Subject, config: ModelConfig, seed: int, length: int
) -> None:
    """Moving a key/value head together with its query heads, sinks and output columns."""
    arrays = random_arrays(config, seed)
    tokens = random_tokens(config, length, seed)
    before = subject.build(config, arrays)(tokens)
    order = np.random.default_rng(seed).permutation(config.num_key_value_heads)

    def moved(x: Array, axis: int = 0) -> Array:
        groups = np.split(x, config.num_key_value_heads, axis)
        return np.concatenate([groups[i] for i in order], axis)

    for n in range(config.num_hidden_layers):
        at = f"block.{n}.attn."
        for name in ("q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias", "sinks"):
            arrays[at + name] = moved(arrays[at + name])
        arrays[at + "out.weight"] = moved(arrays[at + "out.weight"], 1)
    assert relative_l2(subject.build(config, arrays)(tokens), before) <= subject.same


@SUBJECTS
@given(CONFIGS, SEEDS, LENGTHS, st.integers(0, 3))
def test_a_window_of_the_length_or_more_is_full(
    subject: Subject, config: ModelConfig, seed: int, length: int, more: int
) -> None:
    arrays, tokens = random_arrays(config, seed), random_tokens(config, length, seed)
    wide = dataclasses.replace(config, sliding_window=length + more)
    full = dataclasses.replace(config, layer_types=("full_attention",) * config.num_hidden_layers)
    a, b = (subject.build(c, arrays) for c in (wide, full))
    assert relative_l2(a(tokens), b(tokens)) <= subject.same
    assert relative_l2(in_chunks(a, tokens, [1] * length), b(tokens)) <= subject.same


@SUBJECTS
def test_a_window_does_forget(subject: Subject) -> None:
    """One windowed layer of 5: token 0 reaches position 4 and not position 5."""
    config = small_config(window=5, layers=1)
    model = subject.build(config, random_arrays(config, 0))
    tokens = random_tokens(config, 9, 0)
    changed = [tokens[0] + 1, *tokens[1:]]
    moved = [relative_l2(a, b) for a, b in zip(model(changed), model(tokens), strict=True)]
    assert min(moved[:5]) > 1e-6
    assert max(moved[5:]) < 1e-14


@SUBJECTS
@given(CONFIGS, SEEDS, LENGTHS)
def test_attention_rows_sum_to_less_than_one(
    subject: Subject, config: ModelConfig, seed: int, length: int
) -> None:
    model = subject.build(config, random_arrays(config, seed))
    taps = taps_of(partial(model, random_tokens(config, length, seed)))
    sums = [value.sum(-1) for name, value in taps.items() if name.endswith("attn.weights")]
    assert len(sums) == config.num_hidden_layers
    rounding = 1e-6 if subject.policy == "float32" else 0.0  # a smaller share of a sink is lost
    for total in sums:
        assert total.shape == (config.num_attention_heads, length)
        assert (total < 1 + rounding).all()
        assert (total > 0).all()
    assert min(total.min() for total in sums) < 1 - rounding  # some sinks are larger than that


def repeated_token_model(config: ModelConfig, seed: int, alone: bool) -> tuple[Arrays, list[int]]:
    """Attention blocks only (experts add nothing), sinks that take nothing."""
    arrays = random_arrays(config, seed)
    for n in range(config.num_hidden_layers):
        arrays[f"block.{n}.mlp.mlp2_weight"][:] = 0
        arrays[f"block.{n}.mlp.mlp2_bias"][:] = 0
        if alone:
            arrays[f"block.{n}.attn.sinks"][:] = -100
    return arrays, [7] * 12


@SUBJECTS
@given(SEEDS)
def test_equal_values_mix_to_themselves(subject: Subject, seed: int) -> None:
    """A prompt of one repeated token: with no sink, every position's logits are the same."""
    config = small_config()
    arrays, tokens = repeated_token_model(config, seed, alone=True)
    logits = subject.build(config, arrays)(tokens)
    assert relative_l2(logits, np.broadcast_to(logits[0], logits.shape)) <= subject.same
    arrays, tokens = repeated_token_model(config, seed, alone=False)
    logits = subject.build(config, arrays)(tokens)
    assert relative_l2(logits, np.broadcast_to(logits[0], logits.shape)) > 1e-3


@SUBJECTS
@given(SEEDS, st.integers(1, 40))
def test_windowed_layers_depend_on_relative_position_only(
    subject: Subject, seed: int, shift: int
) -> None:
    """Once its window is full of the same tokens, a windowed model does not know where it is."""
    config = small_config(window=6, layers=1)
    model = subject.build(config, random_arrays(config, seed))
    tokens = random_tokens(config, 6, seed)
    prefix = random_tokens(config, shift, seed + 1)
    assert relative_l2(model([*prefix, *tokens])[-1], model(tokens)[-1]) <= subject.same


@SUBJECTS
@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_logits_are_linear_in_the_unembedding(subject: Subject, factor: float) -> None:
    config = small_config()
    arrays, tokens = random_arrays(config, 0), random_tokens(config, 7, 0)
    before = subject.build(config, arrays)(tokens)
    arrays["unembedding"] = arrays["unembedding"] * factor
    assert np.array_equal(subject.build(config, arrays)(tokens), before * factor)


@SUBJECTS
@given(SEEDS, LENGTHS)
def test_the_norms_hide_the_size_of_the_residual(subject: Subject, seed: int, length: int) -> None:
    """Scaling embedding and all that is added to it by 2^20 changes logits by eps's share only."""
    config = small_config()
    arrays, tokens = random_arrays(config, seed), random_tokens(config, length, seed)
    before = subject.build(config, arrays)(tokens)
    scaled = [name for name in arrays if name.endswith(("out.weight", "out.bias"))]
    scaled += [name for name in arrays if name.endswith(("mlp2_weight", "mlp2_bias"))]
    for name in ["embedding", *scaled]:
        arrays[name] = arrays[name] * 2.0**20
    after = subject.build(config, arrays)(tokens)
    assert relative_l2(after, before) <= 1e-3
