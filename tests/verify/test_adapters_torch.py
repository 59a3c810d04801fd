"""capture: live torch modules with transformers' and with OpenAI's names, correct and broken."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.gpt_oss import modeling_gpt_oss

import gptoss_ref as gr
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError, TraceError
from gptoss_ref.tracing import taps
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters import capture
from tests.support import openai_module as openai
from tests.support import torch_twin
from tests.support.agreement import relative_l2
from tests.support.checks_model import MODEL_TOLERANCE, taps_of
from tests.support.openai_module import openai_module
from tests.support.strategies import Arrays, as_torch, random_arrays, random_tokens, small_config
from tests.support.transformers_model import transformers_model

CONFIG = small_config()
ARRAYS: Arrays = random_arrays(CONFIG, 0)
TOKENS = random_tokens(CONFIG, 17, 0)
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def twin() -> dict[str, np.ndarray]:
    weights = as_torch(ARRAYS, torch.float64)
    return taps_of(partial(torch_twin.forward, CONFIG, weights, TOKENS))


@pytest.fixture(scope="module")
def in_transformers() -> Any:
    return transformers_model(CONFIG, ARRAYS)


@pytest.fixture(scope="module")
def in_openai() -> Any:
    return openai_module(CONFIG, ARRAYS)


def assert_captures(trace: Trace, twin: dict[str, np.ndarray], tolerance: float) -> None:
    for name in trace:
        distance = relative_l2(trace[name], twin[name])
        assert distance <= tolerance, f"{name} is off by {distance:.3g}"


@contextlib.contextmanager
def untouched(module: Any) -> Iterator[None]:
    """Hooks, modes, weights, gradients and replaced functions are as before."""

    def state() -> Any:
        return [
            (
                name,
                part.training,
                len(part._forward_hooks),
                len(part._forward_pre_hooks),
                sorted(vars(part)),
            )
            for name, part in module.named_modules()
        ]

    def functions() -> Any:
        names = (modeling_gpt_oss, "apply_rotary_pos_emb"), (openai, "swiglu")
        return [getattr(home, name) for home, name in names]

    before, used = state(), functions()
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.train()  # a mode that capture has to leave and to restore
    try:
        yield
    finally:
        assert all(part.training for part in module.modules())
        module.eval()
        assert state() == before
        assert functions() == used
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, weights[name])
            assert parameter.grad is None
        assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_transformers(experts: str, in_transformers: Any, twin: dict[str, np.ndarray]) -> None:
    """Every tap point but the experts' separate outputs, in each way transformers runs experts."""
    model = in_transformers
    if experts == "grouped_mm":  # torch wants strides of 16 bytes there
        config = small_config(d_model=32, d_ff=24)
        arrays = random_arrays(config, 1)
        model = transformers_model(config, arrays)
        weights = as_torch(arrays, torch.float64)
        twin = taps_of(partial(torch_twin.forward, config, weights, TOKENS))
    model.set_experts_implementation(experts)
    with untouched(model):
        trace = capture(model, TOKENS)
    model.set_experts_implementation("eager")
    assert set(twin) - set(trace) == {f"block.{n}.mlp.expert_out" for n in range(3)}
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])
    assert trace.dtype_name == "float32"
    assert trace.producer == "transformers GptOssForCausalLM"
    assert trace.tokens.tolist() == TOKENS


def test_openai(in_openai: Any, twin: dict[str, np.ndarray]) -> None:
    """Every tap point."""
    with untouched(in_openai):
        trace = capture(in_openai, TOKENS)
    assert list(trace) == taps.names(CONFIG)
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])
    own = dataclasses.replace(trace.config, max_position_embeddings=CONFIG.max_position_embeddings)
    assert not own.differences(CONFIG)
    assert trace.config.max_position_embeddings == 4096 * 32  # as far as the rotation reaches


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("naming", ["transformers", "openai"])
def test_the_rounding_is_recorded(naming: str, dtype: str, in_transformers: Any) -> None:
    if naming == "transformers":
        module = transformers_model(CONFIG, ARRAYS).to(DTYPES[dtype])
    else:
        module = openai_module(CONFIG, ARRAYS, DTYPES[dtype])
    trace = capture(module, TOKENS)
    assert trace.dtype_name == dtype
    assert trace.dtype_of("block.1.attn.residual") == dtype


def test_what_cannot_be_seen_is_left_out(in_transformers: Any, twin: dict[str, Any]) -> None:
    """GptOssModel has no head; other attention than eager gives no weights."""
    trace = capture(in_transformers.model, TOKENS, config=CONFIG)
    assert "logits" not in trace
    assert "norm" in trace

    class Silent(torch.nn.Module):
        def __init__(self, attention: Any) -> None:
            super().__init__()
            self.attention = attention
            self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
            self.v_proj, self.o_proj = attention.v_proj, attention.o_proj

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.attention(*args, **kwargs)[0], None

    layer = in_transformers.model.layers[1]
    kept = layer.self_attn
    layer.self_attn = Silent(kept)
    try:
        trace = capture(in_transformers, TOKENS)
    finally:
        layer.self_attn = kept
    assert "block.0.attn.weights" in trace
    assert "block.1.attn.weights" not in trace
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])


def test_a_version_without_some_of_the_modules(twin: dict[str, np.ndarray]) -> None:
    """No module for the rotation: its tap points are missing, the others are there."""
    module = openai_module(CONFIG, ARRAYS)
    for block in module.block:
        rope = block.attn._modules.pop("rope")
        object.__setattr__(block.attn, "rope", rope.forward)  # a function now
    trace = capture(module, TOKENS, config=CONFIG)
    assert set(twin) - set(trace) == {
        f"block.{n}.attn.{part}_rope" for n in range(CONFIG.num_hidden_layers) for part in "qk"
    }
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])


def test_the_router_of_transformers_4(
    in_transformers: Any, twin: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returned weights over all experts, and no logits."""
    router, layer = modeling_gpt_oss.GptOssTopKRouter, modeling_gpt_oss.GptOssMLP
    original = router.forward

    def scattered(self: Any, x: torch.Tensor) -> Any:
        logits, weights, indices = original(self, x)
        return torch.zeros_like(logits).scatter(1, indices, weights), indices

    def mlp(self: Any, x: torch.Tensor) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        dense, indices = self.router(rows)
        out = self.experts(rows, indices, dense.gather(1, indices))
        return out.reshape(x.shape), dense

    monkeypatch.setattr(router, "forward", scattered)
    monkeypatch.setattr(layer, "forward", mlp)
    trace = capture(in_transformers, TOKENS)
    assert "block.0.mlp.expert_weights" in trace
    assert "block.0.mlp.router_logits" not in trace
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])


def test_inside_a_wrapper(in_openai: Any, in_transformers: Any, twin: dict[str, Any]) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module
            if hasattr(module, "config"):
                self.config = module.config

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    for module in (in_openai, in_transformers):
        assert_captures(capture(Wrapper(module), TOKENS), twin, MODEL_TOLERANCE["float32"])


@pytest.mark.parametrize("naming", ["transformers", "openai"])
def test_everything_is_put_back_after_an_error(
    naming: str, in_openai: Any, in_transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = in_openai if naming == "openai" else in_transformers
    deepest = module.block[2].mlp if naming == "openai" else module.model.layers[2].mlp.experts

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(deepest, "forward", fail)
    with untouched(module), pytest.raises(RuntimeError, match="out of memory"):
        capture(module, TOKENS)


def test_a_bug_shows_where_it_is(in_openai: Any, twin: dict[str, np.ndarray]) -> None:
    """A window of one key more is first seen in the attention weights of block 0."""
    attention = in_openai.block[0].attn
    attention.sliding_window += 1
    try:
        trace = capture(in_openai, TOKENS, config=CONFIG)
        assert capture(in_openai, TOKENS).config.sliding_window == CONFIG.sliding_window + 1
    finally:
        attention.sliding_window -= 1
    wrong = [name for name in trace if relative_l2(trace[name], twin[name]) > 1e-4]
    assert wrong[0] == "block.0.attn.weights"


def test_a_sum_that_is_not_all_the_experts_add_is_left_out(
    twin: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The down projection's bias, added after the weighting: no stage inside can be trusted."""
    module = openai_module(CONFIG, ARRAYS)
    kept = [block.mlp.mlp2_bias.detach().clone() for block in module.block]
    original = openai.Experts.forward

    def late_bias(self: Any, x: torch.Tensor) -> torch.Tensor:
        n = next(i for i, block in enumerate(module.block) if block.mlp is self)
        chosen = torch.topk(self.gate(self.norm(x)), self.experts_per_token, dim=-1).indices
        return original(self, x) + kept[n][chosen].sum(1)

    monkeypatch.setattr(openai.Experts, "forward", late_bias)
    for block in module.block:
        block.mlp.mlp2_bias.data.zero_()
    trace = capture(module, TOKENS, config=CONFIG)
    assert not [name for name in trace if name.endswith(("mlp.expert_out", "mlp.out"))]
    first = next(name for name in trace if relative_l2(trace[name], twin[name]) > 1e-4)
    assert first == "block.0.mlp.residual"


def test_modules_of_other_names() -> None:
    with pytest.raises(TraceError, match="Linear has the module names of neither"):
        capture(torch.nn.Linear(2, 2), TOKENS)
    with pytest.raises(TraceError, match="str has the module names of neither"):
        capture("model", TOKENS)


def test_a_module_that_does_not_say_what_it_is() -> None:
    module = openai_module(CONFIG, ARRAYS)
    del module.block[0].mlp.experts_per_token
    with pytest.raises(
        TraceError, match=r"does not say what it is.*experts_per_token.*pass config"
    ):
        capture(module, TOKENS)


def test_weights_that_are_not_there(in_transformers: Any) -> None:
    with torch.device("meta"):
        module = openai.Transformer(CONFIG)
    with pytest.raises(TraceError, match="no weights"):
        capture(module, TOKENS, config=CONFIG)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "one row of integers"), ([[1, 2]], "one row"), ([71], "token 71 is out of range")],
)
def test_prompts_that_do_not_fit(tokens: Any, message: str, in_openai: Any) -> None:
    with pytest.raises(GptOssError, match=message):
        capture(in_openai, tokens)


def test_another_configuration_is_noticed(in_openai: Any) -> None:
    other: ModelConfig = dataclasses.replace(CONFIG, intermediate_size=24)
    with pytest.raises(TraceError, match=r"swiglu.*does not fit|gate_up.*does not fit"):
        capture(in_openai, TOKENS, config=other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_correct_transformers_tiny_passes_compare(
    dtype: str, tiny: Any, tiny_transformers: Any
) -> None:
    """The bundled model, real text past the windows and the original context."""
    text = "Twelve boats left the harbour; 27 + 58 = 85 of them came back before the night. " * 5
    tokens = tiny.tokenizer.encode(text)[:280]
    model = tiny_transformers
    if dtype == "bfloat16":
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny.path, dtype=torch.bfloat16, attn_implementation="eager"
        )
    theirs = capture(model, tokens)
    reference = gr.trace(gr.load("tiny", policy="float64", backend="numpy"), tokens)
    report = gr.compare(reference, theirs)
    assert report.ok, str(report)
    assert report.first_divergence is None
