"""capture_calls: a model of no framework at all, whose parts are objects that are called."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from gptoss_ref.errors import TraceError
from gptoss_ref.verify import capture_calls
from gptoss_ref.verify.observe.adapters.framework_names import FRAMEWORKS, names_in
from tests.support import torch_twin
from tests.support.checks_model import taps_of
from tests.support.strategies import as_torch, random_arrays, random_tokens, small_config

CONFIG = small_config()
TOKENS = random_tokens(CONFIG, 13, 0)


@cache
def twin_taps() -> dict[str, np.ndarray]:
    weights = as_torch(random_arrays(CONFIG, 0), torch.float64)
    return taps_of(partial(torch_twin.forward, CONFIG, weights, TOKENS))


class Part:
    """Returns what it is told to, the next one at each call."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.results.pop(0)


class Node:
    """A place for attributes."""


def mlx_like() -> tuple[Any, Any]:
    """A model with mlx-lm's names that hands out the twin's arrays, and how it is run."""
    taps = twin_taps()
    model, parts = Node(), []
    model.model = Node()
    model.model.embed_tokens = Part(taps["embedding"][None])
    model.model.norm, model.lm_head = Part(taps["norm"][None]), Part(taps["logits"])
    model.model.layers = []

    class Layer(Part):
        pass

    for n in range(CONFIG.num_hidden_layers):
        own = {name[len(f"block.{n}.") :]: v for name, v in taps.items() if f"block.{n}." in name}
        layer = Layer(own["mlp.residual"])
        layer.self_attn, layer.mlp = Part((own["attn.out"], "cache")), Part(own["mlp.out"])
        heads_first = [own[f"attn.{x}_rope"].swapaxes(0, 1)[None] for x in "qk"]
        layer.self_attn.rope = Part(*heads_first)
        layer.self_attn.o_proj = Part(own["attn.out"])
        layer.mlp.experts = Part(own["mlp.expert_out"][None])
        model.model.layers.append(layer)
        parts += [
            (layer.self_attn.rope,),
            (layer.self_attn.rope,),
            (layer.self_attn.o_proj, own["attn.mix"][None]),
            (layer.self_attn,),
            (layer.mlp.experts, own["mlp.norm"], own["mlp.expert_indices"]),
            (layer.mlp,),
            (layer,),
        ]
    parts += [(model.model.embed_tokens,), (model.model.norm,), (model.lm_head,)]

    def run() -> None:
        for part, *arguments in parts:
            part(*arguments)

    return model, run


def test_calls_are_recorded_and_put_back() -> None:
    original = Part.__call__
    model, run = mlx_like()
    trace = capture_calls(model, run, TOKENS, CONFIG, framework="mlx")
    assert Part.__call__ is original
    assert "__call__" not in vars(type(model.model.layers[0]))
    stages = {name.split(".", 2)[-1] for name in trace}
    assert stages == {
        *("attn.q_rope", "attn.k_rope", "attn.mix", "attn.out"),
        *("mlp.expert_indices", "mlp.expert_out", "mlp.out", "mlp.residual"),
        *("embedding", "norm", "logits"),
    }
    for name in trace:
        assert np.array_equal(trace[name], twin_taps()[name]), name
    assert trace.producer == "mlx"


def test_names_of_ones_own_and_what_does_not_fit() -> None:
    taps, model = twin_taps(), Node()
    model.first, model.second = Part((0, taps["norm"])), Part(taps["norm"][:, :3])
    names = {"first.1": "norm", "second": "embedding", "third": "logits"}

    def run() -> None:
        model.first()
        model.second()

    trace = capture_calls(model, run, TOKENS, CONFIG, names=names)
    assert list(trace) == ["norm"]
    assert [entry.name for entry in trace.skipped] == ["second"]


def test_nothing_that_is_known() -> None:
    with pytest.raises(TraceError, match="unknown framework 'tf': expected mlx, keras_hub"):
        capture_calls(Node(), lambda: None, TOKENS, CONFIG, framework="tf")
    with pytest.raises(TraceError, match="no known part of Node was called"):
        capture_calls(Node(), lambda: None, TOKENS, CONFIG, framework="mlx")


def test_an_error_of_the_model_is_its_own() -> None:
    model, _ = mlx_like()
    original = Part.__call__

    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        capture_calls(model, fail, TOKENS, CONFIG, framework="mlx")
    assert Part.__call__ is original


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tables_name_tap_points(framework: str) -> None:
    known = set(twin_taps())
    assert {tap for tap, _ in names_in(framework, CONFIG).values()} <= known
