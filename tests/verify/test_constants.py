"""Constants that a port has in its code: named, with the value, whatever it is.

The port is the torch twin with another configuration than the checkpoint's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from tests.support.buggy_twin import random_checkpoint, run

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SEED = 20
# the twin's field, the name, and between what values it is drawn
DRAWN = {
    "rope_theta": ("rope-theta", 2e4, 8e5),
    "rope_scaling_factor": ("yarn-factor", 4.0, 100.0),
    "initial_context_length": ("yarn-original-length", 600, 6000),
    "beta_fast": ("yarn-beta-fast", 12.0, 60.0),
    "beta_slow": ("yarn-beta-slow", 0.5, 2.5),
    "rms_norm_eps": ("norm-eps", 1e-4, 3e-2),
    "swiglu_limit": ("swiglu-limit", 3.0, 9.0),
    "swiglu_alpha": ("swiglu-alpha", 1.2, 2.5),
    "sliding_window": ("window-width", 14, 30),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gr.Model:
    folder = random_checkpoint().write(tmp_path_factory.mktemp("random") / "checkpoint")
    return gr.load(folder, backend="numpy")


def value_of(field: str) -> Any:
    """A value at random, evenly in its logarithm."""
    _, low, high = DRAWN[field]
    rng = np.random.default_rng([SEED, *field.encode()])
    value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return round(value) if isinstance(low, int) else value


def port(model: gr.Model, length: int, **constants: Any) -> gr.Trace:
    """What the twin computes with these constants in its code."""
    checkpoint = random_checkpoint()
    config = dataclasses.replace(checkpoint.config, **constants)
    tokens = np.random.default_rng(11).integers(0, config.vocab_size, length).tolist()
    taps = run(dataclasses.replace(checkpoint, config=config), tokens, "float32")
    return gr.Trace(taps, tokens=tokens, config=model.config)


def check(diagnosis: Any, field: str, value: float) -> None:
    (cause,) = diagnosis.causes
    assert cause.name == DRAWN[field][0]
    low, high = cause.interval
    assert low <= value * (1 + 1e-9)
    assert value * (1 - 1e-9) <= high
    assert cause.value == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize("field", DRAWN)
def test_any_value_is_found(model: gr.Model, field: str) -> None:
    value = value_of(field)
    check(gr.diagnose(model, port(model, 40, **{field: value})), field, value)


@pytest.mark.parametrize("field", ["initial_context_length", "rms_norm_eps", "swiglu_alpha"])
def test_and_from_logits_alone(model: gr.Model, field: str) -> None:
    value = value_of(field)
    whole = port(model, 40, **{field: value})
    alone = gr.Trace({"logits": whole["logits"]}, tokens=whole.tokens, config=whole.config)
    check(gr.diagnose(model, alone), field, value)


@pytest.mark.parametrize("bug", ["score-scale", "yarn-concentration"])
def test_what_logits_cannot_tell_is_said(model: gr.Model, bug: str) -> None:
    """A concentration of YaRN scales queries and keys, and so the scores: the same logits."""
    tokens = np.random.default_rng(12).integers(0, model.config.vocab_size, 40).tolist()
    alone = {"logits": run(random_checkpoint(), tokens, "float32", {bug})["logits"]}
    (cause,) = gr.diagnose(model, alone, tokens=tokens).causes
    assert {cause.name, *cause.alternatives} == {"score-scale", "yarn-concentration"}


def test_the_order_of_the_layers(model: gr.Model) -> None:
    diagnosis = gr.diagnose(model, port(model, 30, windowed=(False, True, False, True)))
    assert [cause.name for cause in diagnosis.causes] == ["window-odd-layers"]


def test_ports_with_released_constants_are_right_on_the_released_constants(tmp_path: Path) -> None:
    """A port that reads no constant but the dimensions, on both checkpoints that are made."""
    right, wrong = (gr.load(n, backend="numpy") for n in ("released-constants", "other-constants"))
    tokens = np.random.default_rng(2).integers(0, 600, 150).tolist()
    kept = ("swiglu_limit", "swiglu_alpha", "rms_norm_eps")
    for model, named in ((right, set()), (wrong, {"swiglu-limit", "swiglu-alpha", "norm-eps"})):
        released = {name: getattr(gr.GPT_OSS_20B, name) for name in kept}
        hard_coded = dataclasses.replace(model.config, **released)
        theirs = dict(gr.trace(gr.Model(hard_coded, model.weights, backend="numpy"), tokens))
        found = gr.diagnose(model, theirs, tokens=tokens)
        assert {cause.name for cause in found.causes} == named
        assert found.ok == (not named)
