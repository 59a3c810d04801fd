"""Weights by their names; one of them replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.errors import GptOssError
from gptoss_ref.layers.mxfp4 import decode
from gptoss_ref.numerics import bfloat16_to_float
from gptoss_ref.weights import MXFP4

TOKENS = [5, 3, 8, 1]


def test_every_matrix_has_a_name(tiny: Any) -> None:
    named = tiny.weights.named()
    assert len(named) == 3 + 17 * len(tiny.weights.blocks)
    assert named["block.3.mlp.gate_bias"] is tiny.weights.blocks[3].mlp.gate_bias
    assert named["norm_scale"] is tiny.weights.norm_scale


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_in_place_of_bfloat16_bits(tiny: Any, dtype: Any) -> None:
    """One block's matrices, the embedding and the unembedding as floats: the same model."""
    floats = {
        name: decode(w.blocks, w.scales) if isinstance(w, MXFP4) else bfloat16_to_float(w)
        for name, w in tiny.weights.named().items()
        if not name.startswith(("block.0", "block.2", "block.3", "block.4"))
    }
    kept = {name: w.astype(dtype) for name, w in floats.items()}
    exact = {name: w.astype(np.float64) for name, w in kept.items()}  # float16 is coarser
    theirs, ours = (
        gr.Model(tiny.config, tiny.weights.replaced(w), backend="numpy") for w in (kept, exact)
    )
    np.testing.assert_array_equal(theirs(TOKENS), ours(TOKENS))
    if dtype != np.float16:
        bits = gr.Model(tiny.config, tiny.weights, backend="numpy")
        np.testing.assert_array_equal(theirs(TOKENS), bits(TOKENS))


def test_one_replaced_matrix_changes_the_model_and_not_its_source(tiny: Any) -> None:
    before = tiny(TOKENS)
    sinks = np.full(tiny.config.num_attention_heads, 30.0)
    weights = tiny.weights.replaced({"block.0.attn.sinks": sinks})
    changed = gr.Model(tiny.config, weights)
    seen: dict[str, Any] = {}
    changed(TOKENS, tap=seen.__setitem__)
    assert np.abs(seen["block.0.attn.weights"]).max() < 1e-9  # the sink takes everything
    np.testing.assert_array_equal(tiny(TOKENS), before)


@pytest.mark.parametrize(
    ("name", "matrix", "message"),
    [
        ("block.0.attn.sink", np.zeros(6), "did you mean 'block.0.attn.sinks'"),
        ("block.0.attn.sinks", np.zeros(7), r"shape \(7,\): expected \(6,\)"),
        ("block.0.attn.sinks", np.zeros(6, np.int64), "dtype int64: expected float16"),
    ],
)
def test_what_cannot_be_a_weight(tiny: Any, name: str, matrix: Any, message: str) -> None:
    with pytest.raises(GptOssError, match=message):
        tiny.weights.replaced({name: matrix})


def test_values_are_not_bits() -> None:
    with pytest.raises(GptOssError, match="expected uint16"):
        bfloat16_to_float(np.ones(3, np.float32))


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_a_tap_only_looks(backend: str) -> None:
    """At every tap point: an in-place edit is an error that says so, and changes nothing."""
    model = gr.load("tiny", backend=backend)
    seen: dict[str, Any] = {}
    before = model(TOKENS, tap=seen.__setitem__)
    for name in seen:

        def edit(at: str, values: Any, name: str = name) -> None:
            if at == name:
                values *= 0

        with pytest.raises(GptOssError, match=f"the tap edited '{name}' in place"):
            model(TOKENS, tap=edit)
    np.testing.assert_array_equal(model(TOKENS), before)


def test_an_error_of_the_tap_itself_is_its_own(tiny: Any) -> None:
    def tap(name: str, values: Any) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        tiny(TOKENS, tap=tap)
