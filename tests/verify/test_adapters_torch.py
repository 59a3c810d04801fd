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
from gptoss_ref.verify.observe.adapters.watching import blocks_of
from tests.support import openai_module as openai
from tests.support import torch_twin
from tests.support.checks_model import MODEL_TOLERANCE, taps_of
from tests.support.distance import relative_l2
from tests.support.openai_module import openai_module
from tests.support.strategies import Arrays, as_torch, random_arrays, random_tokens, small_config
from tests.support.transformers_model import transformers_model

swiglu = openai.swiglu  # looked up here by a forward that is written here
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
    with pytest.raises(TraceError, match="Linear: unknown configuration"):
        capture(torch.nn.Linear(2, 2), TOKENS)
    with pytest.raises(TraceError, match="expected a torch module, not str"):
        capture("model", TOKENS)
    other = torch.nn.Sequential(torch.nn.Embedding(CONFIG.vocab_size, 3))
    with pytest.raises(TraceError, match=r"none of its modules has a known name.*it has 0"):
        capture(other, TOKENS, config=CONFIG)


def test_names_of_ones_own(in_openai: Any, twin: dict[str, np.ndarray]) -> None:
    """A module of other names, run in a way of its own; what has no name is listed."""

    class Mine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.all, self.head = (
                in_openai.embedding,
                in_openai.block,
                in_openai.unembedding,
            )
            self.last = in_openai.norm

        def forward(self, ids: torch.Tensor, scale: float) -> torch.Tensor:
            x = self.words(ids)
            for block in self.all:
                x = block(x)
            return self.head(self.last(x)) * scale

    names = {"words": "embedding", "all.1.mlp": "block.1.mlp.residual"}
    module = Mine()
    named = {**names, "all.0.attn.qkv": ("block.0.attn.q", "qkv")}
    trace = capture(module, TOKENS, config=CONFIG, names=named, run=lambda ids: module(ids[0], 1.0))
    assert set(trace) == {"embedding", "block.0.attn.q", "block.1.mlp.residual", "logits"}
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])
    skipped = {entry.name: entry for entry in trace.skipped}
    assert skipped["last"].shape == (len(TOKENS), CONFIG.hidden_size)
    assert "no tap point is known" in skipped["last"].why


def test_hook_points(in_openai: Any, twin: dict[str, np.ndarray]) -> None:
    """TransformerLens' are modules that return what they are given."""

    class Bridge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = in_openai
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.blocks = torch.nn.ModuleList(torch.nn.Module() for _ in in_openai.block)
            for block in self.blocks:
                block.hook_resid_post = torch.nn.Identity()
                block.hook_something = torch.nn.Identity()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.inner.embedding(ids[0])
            for block, hooks in zip(self.inner.block, self.blocks, strict=True):
                x = hooks.hook_something(hooks.hook_resid_post(block(x)))
            return self.inner.unembedding(self.inner.norm(x))[None]

    class OnlyHooks(Bridge):
        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            yield from (m for m in super().named_modules() if not m[0].startswith("inner"))

    trace = capture(OnlyHooks(), TOKENS, config=CONFIG)
    assert list(trace) == [f"block.{n}.mlp.residual" for n in range(3)] + ["logits"]
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])
    assert any(entry.name == "blocks.0.hook_something" for entry in trace.skipped)


@pytest.mark.parametrize("key", ["{n}", "layer_{n}", "block{n}_moe", "{letter}"])
def test_blocks_in_a_dict(key: str, in_transformers: Any, twin: dict[str, Any]) -> None:
    """ModuleDict by number, as NeMo Automodel has it, or by other names."""
    inner = in_transformers.model
    kept = inner.layers

    class Numbered(torch.nn.ModuleDict):
        def __iter__(self) -> Any:
            return iter(self.values())

        def __getitem__(self, key: Any) -> Any:
            return list(self.values())[key] if isinstance(key, slice) else super().__getitem__(key)

    names = [key.format(n=n, letter="abc"[n]) for n in range(len(kept))]
    inner.layers = Numbered(dict(zip(names, kept, strict=True)))
    try:
        trace = capture(in_transformers, TOKENS)
    finally:
        inner.layers = kept
    assert len(trace) == len(twin) - CONFIG.num_hidden_layers  # but expert_out
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])


def test_which_entries_of_a_dict_are_blocks() -> None:
    """What stands beside the blocks is none; without numbers the place counts."""
    assert list(blocks_of({"1": "b", "0": "a", "final_norm": "c"})) == [(0, "a"), (1, "b")]
    assert list(blocks_of({"first": "a", "second": "b"})) == [(0, "a"), (1, "b")]
    assert list(blocks_of({"block_0": "a", "other_0": "b"})) == [(0, "a"), (1, "b")]


@pytest.mark.parametrize("per_token", [True, False])
def test_swiglu_called_in_parts(
    per_token: bool, twin: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token the rows can be told; expert by expert they cannot, and are listed."""

    def looped(self: Any, x: torch.Tensor) -> torch.Tensor:
        t = self.norm(x)
        chosen = torch.topk(self.gate(t), self.experts_per_token, dim=-1)
        shares = torch.nn.functional.softmax(chosen.values, dim=1)
        out = torch.zeros_like(x)
        w1, b1, w2, b2 = self.mlp1_weight, self.mlp1_bias, self.mlp2_weight, self.mlp2_bias
        for i in range(len(t) if per_token else self.gate.out_features):
            e = chosen.indices[i] if per_token else i
            token, k = ([i], slice(None)) if per_token else torch.where(chosen.indices == e)
            if not per_token and not len(token):
                continue
            rows = t[i] if per_token else t[token]
            product = torch.einsum("aij,j->ai" if per_token else "ij,aj->ai", w1[e], rows)
            act = swiglu(product + b1[e], limit=self.swiglu_limit)
            product = torch.einsum("aij,aj->ai" if per_token else "ij,aj->ai", w2[e], act)
            answers = (product + b2[e]) * shares[token, k].reshape(-1, 1)
            out.index_add_(0, torch.as_tensor(token).expand(len(answers)), answers)
        return x + out

    monkeypatch.setattr(openai.Experts, "forward", looped)
    trace = capture(openai_module(CONFIG, ARRAYS), TOKENS)
    assert_captures(trace, twin, MODEL_TOLERANCE["float32"])
    skipped = {entry.name: entry.why for entry in trace.skipped}
    assert ("block.0.mlp.swiglu" in trace) == per_token
    assert ("block.0.mlp.swiglu" not in skipped) == per_token
    if not per_token:
        assert "the tokens of its rows are unknown" in skipped["block.0.mlp.swiglu"]


def test_compiled(in_transformers: Any, twin: dict[str, np.ndarray]) -> None:
    assert_captures(
        capture(torch.compile(in_transformers), TOKENS), twin, MODEL_TOLERANCE["float32"]
    )


def test_names_of_torchtitan() -> None:
    """Its q, k and v leave a module together; what more it wants is given by ``run``."""
    heads, keys, width = (CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim)
    linear, wide = partial(torch.nn.Linear, bias=False), CONFIG.hidden_size

    class Projections(torch.nn.ModuleDict):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [part(x).unflatten(-1, (-1, width)) for part in self.values()]

    class Attention(torch.nn.ModuleDict):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self["qkv_linear"](x)
            mixed = q + (k + v).repeat_interleave(heads // keys, 2)
            return self["wo"](mixed.flatten(2))  # type: ignore[no-any-return]

    class Block(torch.nn.ModuleDict):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self["attention"](self["attention_norm"](x))  # type: ignore[no-any-return]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok_embeddings = torch.nn.Embedding(CONFIG.vocab_size, wide)
            qkv = Projections(
                {"wq": linear(wide, heads * width), "wk": linear(wide, keys * width)}
                | {"wv": linear(wide, keys * width)}
            )
            attention = Attention({"qkv_linear": qkv, "wo": linear(heads * width, wide)})
            block = Block({"attention_norm": torch.nn.RMSNorm(wide), "attention": attention})
            self.layers = torch.nn.ModuleDict({"0": block})
            self.norm, self.lm_head = torch.nn.RMSNorm(wide), linear(wide, CONFIG.vocab_size)

        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            x = self.layers["0"](self.tok_embeddings(tokens + 0 * positions))
            return self.lm_head(self.norm(x))  # type: ignore[no-any-return]

    module = Model()
    trace = capture(module, TOKENS, config=CONFIG, run=lambda ids: module(ids, ids))
    stages = {f"block.0.{x}" for x in "attn.norm attn.q attn.k attn.v attn.mix attn.out".split()}
    assert set(trace) == {"embedding", *stages, "block.0.mlp.residual", "norm", "logits"}
    assert trace["block.0.attn.q"].shape == (len(TOKENS), heads, width)
    out = (
        trace["block.0.attn.mix"] @ module.layers["0"]["attention"]["wo"].weight.detach().numpy().T
    )
    assert relative_l2(trace["block.0.attn.out"], out) < 1e-5


def test_compiled_flex_attention_runs_uncompiled() -> None:
    """Compiled, it refuses the log-sum-exp on a CPU, which sinks need; its own flag is put back."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    compiled = torch.compile(flex.flex_attention)

    class Ends(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok_embeddings = torch.nn.Embedding(CONFIG.vocab_size, CONFIG.hidden_size)
            self.lm_head = torch.nn.Linear(CONFIG.hidden_size, CONFIG.vocab_size, bias=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tok_embeddings(tokens)[:, None]  # (1, 1, T, D)
            mix, lse = compiled(x, x, x, return_lse=True)
            mix = mix * torch.sigmoid(lse)[..., None]
            return self.lm_head(mix[:, 0])  # type: ignore[no-any-return]

    before = flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    module = Ends()
    trace = capture(module, TOKENS, config=CONFIG)
    assert sorted(trace) == ["embedding", "logits", "norm"]
    assert before == flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    x, head = trace["embedding"].astype(np.float64), module.lm_head.weight.detach().numpy()
    scores = np.exp(x @ x.T / np.sqrt(x.shape[1]))
    mix = scores @ x / (scores.sum(1, keepdims=True) + 1)  # as with a sink of logit 0
    assert relative_l2(trace["logits"], mix @ head.T) < 1e-5


def test_logits_in_a_dict() -> None:
    """The result of a forward method need not be an object of transformers."""

    class Dict(torch.nn.Linear):
        def forward(self, tokens: torch.Tensor) -> Any:
            return {"loss": None, "logits": self.weight[tokens]}

    module = Dict(CONFIG.vocab_size, CONFIG.vocab_size)
    trace = capture(module, TOKENS, config=CONFIG)
    assert np.array_equal(trace["logits"], module.weight.detach().numpy()[TOKENS])


def test_a_configuration_that_cannot_be_read(in_transformers: Any) -> None:
    """Of a wrapper: the wrapped model's counts. A module without blocks has none."""

    class Broken:
        def to_dict(self) -> Any:
            raise RuntimeError("not yet")

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cfg, self.original_model = Broken(), in_transformers

        def forward(self, *args: Any, **more: Any) -> Any:
            return self.original_model(*args, **more)

    assert capture(Wrapper(), TOKENS).config == CONFIG
    module = openai_module(CONFIG, ARRAYS)
    module.block = torch.nn.ModuleList()
    with pytest.raises(TraceError, match=r"it has no blocks.*pass config"):
        capture(module, TOKENS)


def test_a_module_that_does_not_say_what_it_is() -> None:
    module = openai_module(CONFIG, ARRAYS)
    del module.block[0].mlp.experts_per_token
    with pytest.raises(TraceError, match=r"unknown configuration.*experts_per_token.*pass config"):
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
    trace = capture(in_openai, TOKENS, config=other)
    skipped = {entry.name: entry.why for entry in trace.skipped}
    assert "block.0.mlp.swiglu" not in trace
    assert "does not fit block.0.mlp.swiglu" in skipped["block.0.mlp.swiglu of a function"]


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
