"""Experts' products in integers are told from a bug, and a bug beside them is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.layers import mxfp4
from tests.support.strategies import as_weights, random_arrays, random_tokens, small_config

OURS = 32639  # steps; our kernels do not round the product of a value and the inverse step


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
        product = block * np.float64(np.float32(top) / largest)
        whole = np.rint(product if top == OURS else product.astype(np.float32))
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


@pytest.mark.parametrize(
    ("bits", "top", "step"),
    [(16, 32767, np.float32), (16, OURS, np.float32), (8, 127, np.float16)],
)
def test_integers_are_no_bug(
    model: gr.Model, begun: dict[str, Any], bits: int, top: int, step: type
) -> None:
    arrays = {**begun, "block.1.mlp.gate_up": gate_up(model, begun, top, step, 1.0)}
    tokens = np.random.default_rng(4).integers(0, 400, 30)
    found = gr.diagnose(model, arrays, tokens=tokens)
    assert found.ok, found.verdict
    (note,) = [note for note in found.notes if "integers" in note]
    assert note.startswith("mlp.gate_up of block 1: ")
    assert f"{bits}-bit" in note


def test_each_row_may_have_its_own_rule(model: gr.Model, begun: dict[str, Any]) -> None:
    """A prompt in integers and decoded tokens in float32, or the other way round."""
    tap, tokens = "block.1.mlp.gate_up", np.random.default_rng(4).integers(0, 400, 30)
    rows = gate_up(model, begun, OURS, np.float32, 1.0)
    rows[20:] = gate_up(model, begun, 1 << 30, np.float64, 1.0)[20:]
    found = gr.diagnose(model, {**begun, tap: rows}, tokens=tokens)
    assert found.ok, found.verdict
    eights = gate_up(model, begun, 127, np.float16, 1.0)
    for count in (10, 20):  # beside these, of the 10 or 20 others some are exact
        mixed = np.concatenate([eights[:count], rows[count:]])
        assert gr.diagnose(model, {**begun, tap: mixed}, tokens=tokens).ok
    rows[3] *= 1.0003
    assert not gr.diagnose(model, {**begun, tap: rows}, tokens=tokens).ok


@pytest.mark.parametrize("d_ff", [64, 192, 512])
@pytest.mark.parametrize("length", [3, 12])
def test_our_kernels_are_no_bug_beside_an_outlier(length: int, d_ff: int) -> None:
    """Up to 4 tokens and more have kernels of their own; one channel dominates every row.

    With fewer than 512 inputs of one of their matrices, experts are computed in float32, except on
    AMX.
    """
    config = small_config(layers=2, d_model=544, d_ff=d_ff, vocab=70)
    arrays = random_arrays(config, 5, mxfp4=True)
    scale = next(name for name in arrays if name.endswith("0.mlp.norm.scale"))
    arrays[scale] = np.where(np.arange(544) == 77, 500.0, 1.0).astype(arrays[scale].dtype)
    weights, tokens = as_weights(arrays), random_tokens(config, length, 3)
    trace = gr.trace(gr.Model(config, weights, policy="float32", backend="numba"), tokens)
    found = gr.diagnose(gr.Model(config, weights, backend="numpy"), trace)
    assert found.ok, found.verdict


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


@pytest.mark.parametrize(
    ("d_ff", "factor", "right"),
    [(512, 1.0, True), (512, 1.002, False), (64, 1.0, True), (64, 1.00005, False)],
)
def test_compare_without_a_model_allows_integers(d_ff: int, factor: float, right: bool) -> None:
    """If both matrices of the experts have 512 inputs; else the kernels compute in float32."""
    config = small_config(layers=1, d_model=544, d_ff=d_ff, vocab=70)
    weights = as_weights(random_arrays(config, 3, mxfp4=True))
    tokens, tap = random_tokens(config, 12, 3), "block.0.mlp.gate_up"
    exact = gr.trace(gr.Model(config, weights, policy="float64", backend="numpy"), tokens)
    ours = gr.trace(gr.Model(config, weights, policy="float32", backend="numba"), tokens)
    ours = ours.replaced(tap, factor * ours[tap])
    exact.model = ours.model = None
    (row,) = [row for row in gr.compare(exact, ours).rows if row.name == tap]
    assert (row.excess <= 1) == right
