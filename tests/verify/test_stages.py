"""The graph of stages against the model itself, and against the twin's values given to it."""

from __future__ import annotations

import dataclasses
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ref import layers, load
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError
from gptoss_ref.model import Model
from gptoss_ref.numerics import FLOAT32, get_policy
from gptoss_ref.tracing.record import trace
from gptoss_ref.verify.noise.tap_check import replay
from gptoss_ref.verify.replay import ops
from gptoss_ref.verify.replay.evaluate import needed, nodes, predict, predict_each, walk
from gptoss_ref.verify.replay.ops import ModelOps, OpContext
from gptoss_ref.weights import BlockWeights
from tests.support.strategies import (
    SEEDS,
    as_weights,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)

POLICIES = ("float64", "float32", "bfloat16")
SMAPS = Path("/proc/self/smaps")


def taps_of(model: Model, tokens: list[int]) -> dict[str, np.ndarray]:
    taps: dict[str, np.ndarray] = {}
    model(tokens, tap=taps.__setitem__)
    return taps


@pytest.mark.parametrize("policy", POLICIES)
@given(config=model_configs(shuffled_layer_types=True), seed=SEEDS, length=st.integers(1, 40))
def test_nothing_given_is_the_model(
    policy: str, config: ModelConfig, seed: int, length: int
) -> None:
    """Every tap point, bit for bit."""
    model = Model(config, as_weights(random_arrays(config, seed)), policy=policy, backend="numpy")
    tokens = random_tokens(config, length, seed)
    expected = taps_of(model, tokens)
    ours = predict(
        model.weights, config, ModelOps(), np.array(tokens), {}, expected, get_policy(policy)
    )
    assert list(ours) == list(expected)
    for name, values in expected.items():
        assert np.array_equal(ours[name], values), name
        assert ours[name].dtype == values.dtype


@given(config=model_configs(mxfp4=True), seed=SEEDS, data=st.data())
def test_given_its_own_taps_each_stage_repeats_the_model(
    config: ModelConfig, seed: int, data: st.DataObject
) -> None:
    """Any subset of the model's own tap points, given, changes nothing."""
    model = Model(
        config,
        as_weights(random_arrays(config, seed, mxfp4=True)),
        policy="float64",
        backend="numpy",
    )
    tokens = random_tokens(config, 11, seed)
    expected = taps_of(model, tokens)
    kept = data.draw(st.sets(st.sampled_from(sorted(expected))))
    ours = predict(
        model.weights,
        config,
        ModelOps(),
        np.array(tokens),
        {k: expected[k] for k in kept},
        expected,
    )
    for name, values in expected.items():
        assert np.array_equal(ours[name], values), name


def test_a_given_tap_replaces_the_computed_one_downstream_only() -> None:
    config = small_config()
    model = Model(config, as_weights(random_arrays(config, 1)), policy="float64", backend="numpy")
    tokens = np.array(random_tokens(config, 9, 1))
    expected = taps_of(model, list(tokens))
    name = "block.1.attn.q"
    wrong = expected[name] + 1.0
    ours = predict(model.weights, config, ModelOps(), tokens, {name: wrong}, expected)
    after = [node.tap for node in nodes(config)]
    for tap in after[: after.index("block.1.attn.v") + 1]:
        assert np.array_equal(ours[tap], expected[tap]), tap  # q itself is computed from its input
    angles = layers.rope_tables(
        np.arange(9), *ModelOps().yarn(OpContext(config, model.policy, "attn.q"))
    )
    cos, sin = (table.astype(np.float64) for table in angles)
    assert np.allclose(
        ours["block.1.attn.q_rope"], layers.rope(wrong, cos, sin, policy=model.policy), atol=1e-5
    )
    assert not np.allclose(ours["logits"], expected["logits"])


def test_only_what_is_needed_is_computed() -> None:
    config = small_config()

    def taps(given: list[str], wanted: list[str]) -> list[str]:
        return [node.tap for node in needed(config, given, wanted)]

    assert taps(["block.0.mlp.residual"], ["block.1.attn.q"]) == [
        "block.1.attn.norm",
        "block.1.attn.q",
    ]
    at = "block.2.attn."
    assert taps([at + "weights", at + "v"], [at + "mix"]) == [at + "mix"]
    assert taps([at + "q_rope", at + "k_rope", at + "v"], [at + "mix"]) == [at + "mix"]
    assert taps(["norm"], ["logits"]) == ["logits"]
    assert len(taps([], ["logits"])) == 1 + 3 * 18 + 2  # the weights of attention are not taps


def test_an_unknown_tap_is_named() -> None:
    config = small_config()
    weights = as_weights(random_arrays(config, 1))
    with pytest.raises(GptOssError, match=r"no tap point 'block.3.attn.q'"):
        predict(weights, config, ModelOps(), np.arange(3), {}, ["block.3.attn.q"])


def test_only_chosen_experts_are_decoded_and_only_once_per_rule() -> None:
    config = small_config(n_chosen=2)
    model = Model(config, as_weights(random_arrays(config, 3)), policy="float64", backend="numpy")
    tokens = np.array(random_tokens(config, 2, 3))
    seen: list[tuple[Any, ...]] = []

    def spy(at: OpContext, matrix: Any) -> Any:
        seen.append((at.layer, at.tap, at.expert))
        return ModelOps().expert_matrix(at, matrix)

    ops = dataclasses.replace(ModelOps(), expert_matrix=spy)
    wanted = [f"block.{n}.mlp.expert_indices" for n in range(3)] + ["logits"]
    first, second = predict_each(
        model.weights, config, [(ops, model.policy)] * 2, tokens, {}, wanted
    )
    assert np.array_equal(first["logits"], second["logits"])
    chosen = {
        (n, tap, int(e))
        for n in range(3)
        for tap in ("mlp.gate_up", "mlp.expert_out")
        for e in np.unique(first[f"block.{n}.mlp.expert_indices"])
    }
    assert len(seen) == len(set(seen))
    assert set(seen) == chosen


@pytest.mark.parametrize("given_all", [True, False])
def test_one_block_is_touched_and_held_at_a_time(given_all: bool) -> None:
    """Of what is decoded and loaded nothing outlives its block; no block is come back to.

    In a local replay, in float64 and through every rounding of its noise floor, and in a pass of
    the whole model as well.
    """
    config = small_config(n_chosen=2, d_model=64, d_ff=32)
    touched: list[int] = []

    class Blocks(tuple[BlockWeights, ...]):
        def __getitem__(self, layer: Any) -> Any:
            touched.append(layer)
            return super().__getitem__(layer)

    weights = as_weights(random_arrays(config, 3, mxfp4=True))
    weights = dataclasses.replace(weights, blocks=Blocks(weights.blocks))
    model = Model(config, weights, policy="float32", backend="numpy")
    made = trace(model, random_tokens(config, 5, 3), taps="*" if given_all else "logits")
    alive: list[tuple[int, weakref.ref[Any]]] = []
    held: list[set[int]] = []  # at each load, the blocks of which something is held

    def keep(at: OpContext, values: Any) -> Any:
        assert at.layer is not None
        alive.append((at.layer, weakref.ref(values)))
        held.append({layer for layer, reference in alive if reference() is not None})
        return values

    def expert_matrix(at: OpContext, matrix: Any) -> Any:
        return keep(at, ModelOps().expert_matrix(at, matrix))

    def block_weights(at: OpContext, block: BlockWeights) -> Any:
        return keep(at, dataclasses.replace(block))  # a copy, as a loading bug makes one

    ops = dataclasses.replace(ModelOps(), expert_matrix=expert_matrix, block_weights=block_weights)
    touched.clear()
    assert sum(1 for _ in replay(weights, made, ops, "bfloat16")) == len(made)
    assert all(len(blocks) == 1 for blocks in held)
    assert {*held[0], *held[-1]} == {0, 2}
    assert touched == sorted(touched)
    assert {*touched} == {0, 1, 2}


@pytest.mark.skipif(not SMAPS.exists(), reason="/proc/self/smaps tells a mapping's memory")
def test_mapped_weights_are_given_back_block_by_block(tiny: Model, tmp_path: Path) -> None:
    """Pages of a large checkpoint count as memory only while their block is computed."""
    shutil.copytree(tiny.path, tmp_path / "tiny")
    file, held = tmp_path / "tiny" / "model.safetensors", []
    model = load(tmp_path / "tiny", backend="numpy")

    def residual(at: OpContext, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        held.append(resident(file))
        return ops.residual(at, x, out)

    tokens = random_tokens(tiny.config, 20, 1)
    run = ModelOps(residual=residual), FLOAT32
    walked = list(walk(model.weights, model.config, [run], tokens, {}, ["logits"]))
    assert walked
    assert len(held) == 2 * model.config.num_hidden_layers
    assert 0 < max(held) < file.stat().st_size / 2
    assert resident(file) == 0


def resident(file: Path) -> int:
    """Bytes of a mapped file that count as memory of this process."""
    lines = iter(SMAPS.read_text().splitlines())
    sizes = (next(x for x in lines if x.startswith("Rss:")) for line in lines if str(file) in line)
    return sum(1024 * int(size.split()[1]) for size in sizes)
