"""What `gr.backward` refuses, and how it says so."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.errors import CheckpointError, GptOssError, TokenError
from gptoss_ref.model import Model

TOKENS = [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"targets": [1, 2, 476, 3]},
            r"target 476 at position 2 is out of range: expected 0 to 47",
        ),
        ({"targets": [1, 2, -1, 3]}, r"target -1 at position 2"),
        ({"targets": [1, 2, 3]}, r"targets has shape \(3,\).*shape \(4,\)"),
        ({"targets": [[1, 2, 3, 4]]}, r"targets has shape \(1, 4\)"),
        ({"targets": [0.5] * 4}, r"dtype float64: expected integers"),
        ({"targets": 3}, r"targets is 3: expected integers"),
        ({"mask": [True] * 5}, r"mask has shape \(5,\)"),
        ({"mask": [1, 2, 0, 0]}, r"the mask holds 2: expected booleans"),
        ({"mask": [0, 0, 0, 0]}, r"no position has a loss: the mask"),
        ({"mask": [0, 0, 0, 1]}, r"no position has a loss"),
        ({"targets": [-100] * 4}, r"no position has a loss"),
        ({"wrt": "block.9.*"}, r"no weight matches 'block.9.\*'"),
        ({"wrt": "block.0.attn.sink"}, r"did you mean 'block.0.attn.sinks'"),
        ({"taps": "block.0.mlp.expert_indices"}, r"no tap point with a gradient matches"),
        ({"loss": lambda logits: 1.0}, r"returned float: expected a pair"),
        ({"loss": lambda logits: (1.0, logits[1:])}, r"gradient of shape \(3, 476\)"),
        ({"loss": lambda logits: (np.nan, logits)}, r"the loss is nan: every tap point is finite"),
        ({"loss": lambda logits: (1.0, logits), "targets": TOKENS}, r"one or the other"),
        ({"loss": lambda logits: (1.0, logits * np.nan)}, r"gradient .* is nan at \[0, 0\]"),
        (
            {"loss": lambda logits: (logits[0], logits)},
            r"of shape \(476,\) as the loss: expected one",
        ),
        ({"loss": "mse"}, r"loss is 'mse': expected a function of the logits \(4, 476\)"),
        ({"wrt": 3}, r"3 is no pattern of a weight: expected text, or several"),
        ({"wrt": "q"}, r"expected one of embedding, block\.\{n\}\.attn\.norm_scale, .*unembedding"),
        ({"router_aux_loss_coef": np.nan}, r"router_aux_loss_coef is nan: expected a number of 0"),
        ({"router_aux_loss_coef": -1.0}, r"router_aux_loss_coef is -1\.0: expected a number of 0"),
    ],
)
def test_one_clear_error(tiny: Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(GptOssError, match=message):
        gr.backward(tiny, TOKENS, **given)


def test_what_was_not_asked_for(tiny: Model) -> None:
    found = gr.backward(tiny, TOKENS, wrt="*.sinks")
    assert "embedding" not in found.weights
    with pytest.raises(GptOssError, match=r"no gradient of the weight 'embedding'"):
        found.weights["embedding"]
    with pytest.raises(GptOssError, match=r"'tiny' is no model: expected one that gr\.load gives"):
        gr.backward("tiny", TOKENS)  # type: ignore[arg-type]


def test_tokens(tiny: Model) -> None:
    for tokens in ([], [[]], [476], "text", 3, [[1, 2], [-1]]):
        with pytest.raises(TokenError):
            gr.backward(tiny, tokens)  # type: ignore[arg-type]
    with pytest.raises(GptOssError, match="single token has no next"):
        gr.backward(tiny, [3])
    with pytest.raises(GptOssError, match="targets has 1 rows: expected 2"):
        gr.backward(tiny, [[1, 2], [3]], [[1, 2]])
    with pytest.raises(GptOssError, match=r"row 1 of targets has shape \(2,\)"):
        gr.backward(tiny, [[1, 2], [3]], [[1, 2], [1, 2]])
    with pytest.raises(GptOssError, match="of a batch has no one shape"):
        gr.backward(tiny, [[1, 2], [3]], taps="*.weights")


def test_a_loss_that_is_not_finite_names_the_first_tap_point(tiny: Model) -> None:
    name = "block.2.attn.k_bias"
    broken = np.full(tiny.weights.named()[name].shape, np.nan, np.float32)
    model = Model(tiny.config, tiny.weights.replaced({name: broken}), backend="numpy")
    with pytest.raises(GptOssError, match=r"loss is nan: .* is block.2.attn.k, at \[0, 0, 0\]"):
        gr.backward(model, TOKENS)
    with pytest.raises(GptOssError, match=r"of row 0 of the batch"):
        gr.backward(model, [TOKENS, TOKENS])


def test_scale_255(tiny: Model) -> None:
    name = "block.1.mlp.mlp2_weight"
    matrix = tiny.weights.named()[name]
    scales = np.full_like(matrix.scales, 255)
    for policy, error, message in (
        ("error", CheckpointError, "scale byte 255"),
        ("nan", GptOssError, "the loss is nan: .* block.1.mlp.expert_out"),
    ):
        bad = dataclasses.replace(matrix, scales=scales, scale_255=policy)
        model = Model(tiny.config, tiny.weights.replaced({name: bad}), backend="numpy")
        with pytest.raises(error, match=message), np.errstate(all="ignore"):
            gr.backward(model, TOKENS)
