"""The twin of the kill matrix: right without bugs, wrong with each, right when merely rewritten."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import gptoss_ref as gr
from tests.support.agreement import STRAYS
from tests.support.buggy_twin import (
    BUGS,
    PLANTED,
    REWRITINGS,
    ROUNDINGS,
    VARIANTS,
    Checkpoint,
    large,
    planted,
    random_checkpoint,
    run,
    why_unseen,
)
from tests.support.buggy_twin import tiny as tiny_checkpoint
from tests.support.buggy_twin.loading import decode
from tests.support.checks_model import taps_of
from tests.support.distance import relative_l2

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LENGTH = {"random-0": 50, "tiny": 60}  # windows of 11 and 24
NONE: frozenset[str] = frozenset()


def checkpoints() -> list[Checkpoint]:
    return [random_checkpoint(), tiny_checkpoint()]


def tokens_of(checkpoint: Checkpoint) -> list[int]:
    rng = np.random.default_rng(7)
    return rng.integers(0, checkpoint.config.vocab_size, LENGTH[checkpoint.name]).tolist()


def reference(checkpoint: Checkpoint, folder: Path, policy: str) -> dict[str, Any]:
    """Every tap point by the package, from the checkpoint on disk."""
    path = "tiny" if checkpoint.name == "tiny" else checkpoint.write(folder)
    model = gr.load(path, backend="numpy", policy=policy)
    return taps_of(lambda tap: model(tokens_of(checkpoint), tap=tap))


def first_difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    assert list(a) == list(b)
    return next((name for name in a if not np.array_equal(a[name], b[name], equal_nan=True)), None)


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda c: c.name)
def test_right_without_bugs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """float32: within its rounding of the package's float64, at every tap point."""
    expected = reference(checkpoint, tmp_path, "float64")
    taps = run(checkpoint, tokens_of(checkpoint))
    assert list(taps) == list(expected)
    for name, value in taps.items():
        if name.endswith("expert_indices"):
            assert np.array_equal(value, expected[name]), name
        else:
            assert relative_l2(value, expected[name]) <= 1e-5, name


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda c: c.name)
def test_bfloat16_rounds_where_the_policy_does(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Nearly all values of the first attention layer are equal, bit for bit."""
    expected = reference(checkpoint, tmp_path, "bfloat16")
    taps = run(checkpoint, tokens_of(checkpoint), "bfloat16")
    for stage in ("norm", "q", "k", "v", "q_rope", "k_rope", "weights", "mix", "out", "residual"):
        name = f"block.0.attn.{stage}"
        strays = np.count_nonzero(taps[name] != expected[name])
        assert strays <= 1 + STRAYS * taps[name].size, f"{strays} differ at {name}"


def test_float16_is_nearer_than_bfloat16() -> None:
    """Eight times finer steps; no routing flip at this prompt spoils the comparison."""
    checkpoint = random_checkpoint()
    exact = run(checkpoint, tokens_of(checkpoint))
    name = "block.0.attn.residual"
    far, near = (
        relative_l2(run(checkpoint, tokens_of(checkpoint), dtype)[name], exact[name])
        for dtype in ("bfloat16", "float16")
    )
    assert far / 12 < near < far / 5


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_bug_shows(checkpoint: Checkpoint, dtype: str) -> None:
    """Or else ``why_unseen`` says why not, and then nothing differs."""
    tokens = tokens_of(checkpoint)
    plain = run(checkpoint, tokens, dtype)
    for bug in (*BUGS, *VARIANTS, *ROUNDINGS):
        weights, right = checkpoint, plain
        if bug in PLANTED:
            weights = planted(checkpoint, PLANTED[bug])
            right = run(weights, tokens, dtype)
        first = first_difference(run(weights, tokens, dtype, {bug}), right)
        why = why_unseen(bug, dtype)
        assert (first is None) == (why is not None), f"{bug}: first difference at {first}"


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda c: c.name)
@pytest.mark.parametrize("rewriting", REWRITINGS)
def test_rewritings_change_nothing_but_rounding(checkpoint: Checkpoint, rewriting: str) -> None:
    tokens = tokens_of(checkpoint)
    right, other = run(checkpoint, tokens), run(checkpoint, tokens, bugs={rewriting})
    assert relative_l2(other["logits"], right["logits"]) <= 1e-5


def test_two_bugs_at_once_both_show() -> None:
    """The earlier one at its tap point, and the later one where the earlier did nothing yet."""
    checkpoint = random_checkpoint()
    tokens = tokens_of(checkpoint)
    both = run(checkpoint, tokens, bugs={"sinks-dropped", "unembedding-tied"})
    one = run(checkpoint, tokens, bugs={"sinks-dropped"})
    assert first_difference(both, run(checkpoint, tokens)) == "block.0.attn.weights"
    assert first_difference(both, one) == "logits"


@pytest.mark.parametrize("checkpoint", checkpoints(), ids=lambda c: c.name)
def test_float16_overflows_where_float32_does_not(checkpoint: Checkpoint) -> None:
    checkpoint = large(checkpoint)
    tokens = np.arange(20).tolist()
    wide, narrow = run(checkpoint, tokens), run(checkpoint, tokens, "float16")
    assert all(np.isfinite(value).all() for value in wide.values())
    lost = [name for name, value in narrow.items() if not np.isfinite(value).all()]
    assert lost[0] == "block.1.attn.residual"


def test_unknown_bug() -> None:
    with pytest.raises(AssertionError, match="window-plus-two"):
        run(random_checkpoint(), [1], bugs={"window-plus-two"})


def test_decoder_against_ml_dtypes() -> None:
    """Every code under every scale byte, 255 included."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(256, -1, -1)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, 16)
    bytes_ = blocks.numpy()
    codes = np.stack([bytes_ & 15, bytes_ >> 4], -1).reshape(256, 16, 32)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scale = np.ascontiguousarray(scales.numpy()).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    expected = (values * scale[..., None]).reshape(256, -1)
    assert np.array_equal(decode(blocks, scales, NONE).numpy(), expected, equal_nan=True)


def test_the_random_checkpoint_hides_nothing() -> None:
    """All dimensions differ, clamps bite on every side, sinks and windows take their share."""
    checkpoint = random_checkpoint()
    config = dataclasses.asdict(checkpoint.config)
    sizes = [value for value in config.values() if type(value) is int]
    sizes.append(config["num_attention_heads"] // config["num_key_value_heads"])
    assert len(set(sizes)) == len(sizes)
    taps = run(checkpoint, tokens_of(checkpoint))
    for n in range(checkpoint.config.num_hidden_layers):
        gate_up = taps[f"block.{n}.mlp.gate_up"]
        gate, up = gate_up[..., 0::2], gate_up[..., 1::2]
        for beyond in (gate > 7, gate < -7, up > 7, up < -7):
            assert 0.01 < beyond.mean() < 0.25
        taken = 1 - taps[f"block.{n}.attn.weights"].sum(-1)
        assert 0.05 < taken.mean() < 0.6
    assert LENGTH["random-0"] > 2 * config["sliding_window"]
