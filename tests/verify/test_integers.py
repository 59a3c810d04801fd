"""Experts' products in integers are told from a bug, and a bug beside them is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.layers import mxfp4
from tests.support.strategies import as_weights, random_arrays, random_tokens, small_config


@pytest.fixture(scope="module")
def model() -> gr.Model:
    return gr.load("tiny", backend="numpy")


@pytest.fixture(scope="module")
def begun(model: gr.Model) -> dict[str, Any]:
    """A float32 run up to the router of block 1."""
    trace = gr.trace(model, np.random.default_rng(4).integers(0, 400, 30))
    taps = list(trace)
    return {tap: trace[tap] for tap in taps[: taps.index("block.1.mlp.gate_up")]}


def in_steps(x: np.ndarray, top: int, step: type) -> np.ndarray:
    """A vector (M,), each block of 32 in whole multiples of its largest over ``top``."""
    out = np.empty(len(x))
    for start in range(0, len(x), 32):
        block = x[start : start + 32].astype(np.float32)
        largest = np.abs(block).max()
        whole = np.rint(block * np.float32(np.float32(top) / largest))
        out[start : start + 32] = whole.astype(float) * float(step(largest / np.float32(top)))
    return out


def gate_up(model: gr.Model, begun: dict[str, Any], top: int, step: type, bias: float) -> Any:
    """The tap point of block 1 with rounded activations (T, A, 2F), and ``bias`` times the bias."""
    mlp = model.weights.blocks[1].mlp
    x, chosen = begun["block.1.mlp.norm"], begun["block.1.mlp.expert_indices"]
    biases = gr.layers.embedding(np.arange(len(mlp.mlp1_bias)), mlp.mlp1_bias, policy="float64")
    stored = mlp.mlp1_weight
    matrices = mxfp4.decode(stored.blocks, stored.scales, dtype=np.float64)  # (E, 2F, D)
    rows = [
        [matrices[e] @ in_steps(x[t], top, step) + bias * biases[e] for e in chosen[t]]
        for t in range(len(x))
    ]
    return np.array(rows, np.float32)


@pytest.mark.parametrize(("bits", "step"), [(16, np.float32), (8, np.float16)])
def test_integers_are_no_bug(model: gr.Model, begun: dict[str, Any], bits: int, step: type) -> None:
    top = 2 ** (bits - 1) - 1
    arrays = {**begun, "block.1.mlp.gate_up": gate_up(model, begun, top, step, 1.0)}
    tokens = np.random.default_rng(4).integers(0, 400, 30)
    found = gr.diagnose(model, arrays, tokens=tokens)
    assert found.ok, found.verdict
    (note,) = [note for note in found.notes if "integers" in note]
    assert note.startswith("mlp.gate_up of block 1: ")
    assert f"{bits}-bit" in note


def test_other_steps_are_not_excused(model: gr.Model, begun: dict[str, Any]) -> None:
    arrays = {**begun, "block.1.mlp.gate_up": gate_up(model, begun, 30000, np.float32, 1.0)}
    tokens = np.random.default_rng(4).integers(0, 400, 30)
    found = gr.diagnose(model, arrays, tokens=tokens)
    assert [item.tap for item in found.unexplained] == ["block.1.mlp.gate_up"]


def test_a_bug_beside_integers_is_named(model: gr.Model, begun: dict[str, Any]) -> None:
    arrays = {**begun, "block.1.mlp.gate_up": gate_up(model, begun, 32767, np.float32, 0.0)}
    tokens = np.random.default_rng(4).integers(0, 400, 30)
    (cause,) = gr.diagnose(model, arrays, tokens=tokens).causes
    assert cause.name == "gate-up-bias-missing"


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.002, False)])
def test_compare_without_a_model_allows_integers(factor: float, right: bool) -> None:
    """Experts of 544 inputs, whose prompt the kernels multiply in 16-bit integers."""
    config = small_config(layers=1, d_model=544, d_ff=64, vocab=70)
    weights = as_weights(random_arrays(config, 3, mxfp4=True))
    tokens, tap = random_tokens(config, 12, 3), "block.0.mlp.gate_up"
    exact = gr.trace(gr.Model(config, weights, policy="float64", backend="numpy"), tokens)
    ours = gr.trace(gr.Model(config, weights, policy="float32", backend="numba"), tokens)
    ours = ours.replaced(tap, factor * ours[tap])
    exact.model = ours.model = None
    (row,) = [row for row in gr.compare(exact, ours).rows if row.name == tap]
    assert (row.excess <= 1) == right
