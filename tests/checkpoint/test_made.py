"""Checkpoints of random weights that are written when they are asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.checkpoint.made import MADE, OTHER, RELEASED, write
from gptoss_ref.cli import main
from gptoss_ref.layers.linear import dense
from gptoss_ref.numerics import FLOAT64, widen
from gptoss_ref.weights import MXFP4

CONSTANTS = (
    "sliding_window",
    "layer_types",
    "initial_context_length",
    "rope_theta",
    "rope_scaling_factor",
    "rope_ntk_alpha",
    "rope_ntk_beta",
    "rms_norm_eps",
    "swiglu_limit",
    "swiglu_alpha",
    "head_dim",
)


def test_released_constants_are_released() -> None:
    config = gr.load("released-constants").config
    for name in CONSTANTS:
        assert getattr(config, name) == getattr(gr.GPT_OSS_20B, name), name
    assert config.hidden_size == config.intermediate_size  # as there
    assert config.vocab_size % 128 == gr.GPT_OSS_20B.vocab_size % 128 == 0


def test_other_constants_are_others() -> None:
    config = gr.load("other-constants").config
    for name in CONSTANTS:
        assert getattr(config, name) != getattr(gr.GPT_OSS_20B, name), name
    assert config.hidden_size != config.intermediate_size
    assert config.vocab_size % 64


@pytest.mark.parametrize("name", MADE)
def test_the_bytes_are_always_the_same(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(MADE[name], tmp_path / folder)
    loaded = gr.load(name).checkpoint
    assert loaded is not None
    kept = loaded.path / "model.safetensors"
    for folder in ("a", "b"):
        assert (tmp_path / folder / "model.safetensors").read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("name", MADE)
def test_the_size_of_what_a_matrix_gives(name: str, tmp_path: Path) -> None:
    """Outputs for unit inputs: near 1.2, of the experts near 4 and 0.02 (by a power of two)."""
    write(MADE[name], tmp_path)
    weights = gr.load_checkpoint(tmp_path).weights
    for weight, matrix in weights.named().items():
        if weight == "embedding" or not weight.endswith(("_weight", "unembedding")):
            continue
        values = dense(matrix, FLOAT64)
        rms = np.sqrt(np.mean(values**2) * values.shape[-1])
        expected = {"mlp1": 4.0, "mlp2": 0.02}.get(weight.split(".")[-1][:4], 1.2)
        if isinstance(matrix, MXFP4):
            # two scales give √2.5 times the lower one's size, whose exponent is rounded
            assert 1.1 * expected < rms < 2.3 * expected, weight
            scales = np.unique(matrix.scales)
            assert len(scales) == 2
            assert scales[1] - scales[0] == 1
            assert len(np.unique(matrix.blocks)) == 256
        else:
            assert rms == pytest.approx(expected, rel=0.1), weight
    scale = widen(weights.norm_scale, np.float64)
    assert 0.5 <= scale.min() < 0.55
    assert 1.45 < scale.max() <= 1.5


@pytest.mark.parametrize("config", [RELEASED, OTHER], ids=MADE)
def test_no_constant_is_without_effect(config: gr.ModelConfig) -> None:
    """Logits move by a thousand times what float32 rounds."""
    name = next(name for name in MADE if MADE[name] is config)
    model = gr.load(name, backend="numpy", policy="float64")
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, 150)
    right = model(tokens)
    wrong: dict[str, Any] = {
        "sliding_window": config.sliding_window + 1,
        "layer_types": tuple(reversed(["sliding_attention", "full_attention"] * 2)),
        "initial_context_length": config.initial_context_length + 100,
        "rope_theta": 1.02 * config.rope_theta,
        "rope_scaling_factor": 1.02 * config.rope_scaling_factor,
        "rope_ntk_alpha": 1.05 * config.rope_ntk_alpha,
        "rope_ntk_beta": 1.05 * config.rope_ntk_beta,
        "rms_norm_eps": 1.5 * config.rms_norm_eps,
        "swiglu_limit": 1.02 * config.swiglu_limit,
        "swiglu_alpha": 1.02 * config.swiglu_alpha,
    }
    for field, value in wrong.items():
        other = dataclasses.replace(config, **{field: value})
        moved = gr.Model(other, model.weights, policy="float64", backend="numpy")(tokens) - right
        assert np.linalg.norm(moved) > 1000 * 2.0**-24 * np.linalg.norm(right), field


def test_the_command_line_knows_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info", "released-constants", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["rope_scaling_factor"] == 32
    target = tmp_path / "for a port"
    assert main(["convert", "released-constants", str(target), "--layout", "openai"]) == 0
    assert gr.load(target).config == RELEASED
