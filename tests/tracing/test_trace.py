"""Traces: tap points, the file, and what trace(model, tokens) keeps; against torch's own reader."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gptoss_ref as gr
from gptoss_ref.backend import NUMPY
from gptoss_ref.errors import TokenError, TraceError
from gptoss_ref.model import Model
from gptoss_ref.tracing import record
from gptoss_ref.tracing.record import trace
from gptoss_ref.tracing.rounding import rounding_of
from gptoss_ref.tracing.taps import axes, expected_shape, names, select, split
from gptoss_ref.tracing.trace import Trace
from tests.support import torch_twin
from tests.support.agreement import TORCH, as_array
from tests.support.checks_model import build_model, tap_names, taps_of
from tests.support.distance import relative_l2
from tests.support.strategies import (
    SEEDS,
    as_torch,
    model_configs,
    random_arrays,
    random_tokens,
    small_config,
)

CONFIG = small_config()
ARRAYS = random_arrays(CONFIG, 3)
TOKENS = random_tokens(CONFIG, 17, 3)
POLICIES = ("float64", "float32", "bfloat16")


def model(policy: str = "float32", **changes: Any) -> Model:
    return build_model(CONFIG, ARRAYS, policy, dataclasses.replace(NUMPY, **changes))


def some(**changes: Any) -> dict[str, Any]:
    """Arrays of some tap points with all dimensions different, and what a Trace needs beside."""
    kept = trace(model(), TOKENS)
    arrays = {name: kept[name] for name in ("embedding", "block.1.attn.q", "block.1.attn.weights")}
    arrays |= {"block.2.mlp.expert_indices": kept["block.2.mlp.expert_indices"]}
    return {"arrays": {**arrays, **changes}, "tokens": TOKENS, "config": CONFIG}


# --- names and shapes --------------------------------------------------------------------------


def test_names_are_the_published_ones_in_order() -> None:
    assert names(CONFIG) == tap_names(CONFIG)


@settings(max_examples=10)
@given(config=model_configs(), seed=SEEDS, length=st.integers(1, 9))
def test_shapes_follow_from_the_configuration(config: Any, seed: int, length: int) -> None:
    weights = as_torch(random_arrays(config, seed), torch.float32)
    tokens = random_tokens(config, length, seed)
    for name, values in taps_of(
        lambda tap: torch_twin.forward(config, weights, tokens, tap)
    ).items():
        assert values.shape == expected_shape(name, config, length)
        assert len(axes(name)) == values.ndim


def test_split() -> None:
    assert split("block.12.mlp.out") == (12, "mlp.out")
    assert split("norm") == (None, "norm")
    for wrong in ("block.x.mlp.out", "block.1.mlp", "block.01.mlp.out", "blocks.1.mlp.out", ""):
        with pytest.raises(TraceError, match="unknown tap point"):
            split(wrong)


def test_patterns_select_in_order_of_computation() -> None:
    assert select(["logits", "block.0.attn.[kv]"], CONFIG) == [
        "block.0.attn.k",
        "block.0.attn.v",
        "logits",
    ]
    assert len(select("*.residual", CONFIG)) == 2 * CONFIG.num_hidden_layers
    with pytest.raises(TraceError, match=r"'block.0.atn.q': did you mean 'block.0.attn.q'\?"):
        select("block.0.atn.q", CONFIG)


# --- trace(model, tokens) ----------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_trace_holds_what_the_twin_computes(policy: str) -> None:
    bound = {"float64": 1e-11, "float32": 1e-5, "bfloat16": 0.3}[
        policy
    ]  # bfloat16: routes may turn
    weights = as_torch(ARRAYS, TORCH[policy])
    theirs = taps_of(lambda tap: torch_twin.forward(CONFIG, weights, TOKENS, tap))
    ours = trace(model(policy), TOKENS)
    assert list(ours) == tap_names(CONFIG)
    assert ours.policy == ours.dtype_name == policy
    for name in ours:
        if not name.endswith("expert_indices"):
            assert relative_l2(ours[name], theirs[name]) <= bound, name


@pytest.mark.parametrize("policy", POLICIES)
def test_logits_are_those_of_the_model(policy: str) -> None:
    assert np.array_equal(trace(model(policy), TOKENS)["logits"], model(policy)(TOKENS))


def test_both_backends_show_every_tap_point() -> None:
    tiny = gr.load("tiny", backend="numba")
    numpy = gr.load("tiny", backend="numpy")
    tokens = random_tokens(tiny.config, 5, 0)
    ours, theirs = trace(tiny, tokens), trace(numpy, tokens)
    assert "numba" in ours.producer
    assert list(ours) == list(theirs) == names(tiny.config)
    for name in ours:
        assert relative_l2(ours[name], theirs[name]) <= 1e-3, name


def test_only_what_was_asked_for() -> None:
    kept = trace(model(), TOKENS, taps=["*.attn.q", "logits"])
    assert list(kept) == [f"block.{n}.attn.q" for n in range(3)] + ["logits"]
    with pytest.raises(KeyError, match=r"has no tap point 'norm'"):
        kept["norm"]
    with pytest.raises(TraceError, match=r"did you mean 'logits'\?"):
        kept["logit"]


def test_weights_that_nobody_wants_are_not_computed() -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    watched = model(attention_weights=never, attention=NUMPY.attention)
    assert "logits" in trace(watched, TOKENS, taps="logits")


def test_bad_tokens(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    for tokens in ([], [1, 71], [-1]):
        for where in (None, path):
            with pytest.raises(TokenError):
                trace(model(), tokens, path=where)
    assert not list(tmp_path.iterdir())


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_saving_loses_nothing(policy: str, tmp_path: Path) -> None:
    kept = trace(model(policy), TOKENS)
    kept.save(tmp_path / "run.trace")
    read = Trace.load(tmp_path / "run.trace")
    assert list(read) == list(kept)
    assert read.metadata == kept.metadata
    assert read.config == CONFIG
    assert read.tokens.tolist() == TOKENS
    for name in kept:
        assert read[name].dtype == kept[name].dtype
        assert np.array_equal(read[name], kept[name])


@pytest.mark.parametrize("policy", POLICIES)
def test_another_reader_sees_the_same(policy: str, tmp_path: Path) -> None:
    """safetensors' own torch reader, which knows bfloat16."""
    kept = trace(model(policy), TOKENS, path=tmp_path / "run.trace")
    theirs = safetensors.torch.load_file(tmp_path / "run.trace")
    assert set(theirs) == set(kept)
    for name, tensor in theirs.items():
        integer = name.endswith("expert_indices")
        assert tensor.dtype == (torch.int64 if integer else TORCH[policy])
        assert np.array_equal(as_array(tensor), kept[name])


def test_the_format_is_named(tmp_path: Path) -> None:
    trace(model(), TOKENS, path=tmp_path / "run.trace")
    with safetensors.safe_open(tmp_path / "run.trace", "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "gptoss-trace-2"
    assert json.loads(metadata["tokens"]) == TOKENS
    assert metadata["policy"] == "float32"
    assert metadata["producer"] == f"gptoss_ref {gr.__version__} numpy"
    assert json.loads(metadata["config"])["num_hidden_layers"] == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_written_in_chunks(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows land in their places, attention weights too; later keys have none."""
    whole = trace(model(policy), TOKENS)
    monkeypatch.setattr(record, "CHUNK_VALUES", 700)  # 5 tokens at a time
    chunked = trace(model(policy), TOKENS, path=tmp_path / "run.trace")
    bound = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.05}[policy]
    for name in whole:
        if not name.endswith("expert_indices"):
            assert relative_l2(chunked[name], whole[name]) <= bound, name
    weights = chunked["block.1.attn.weights"]
    assert not np.triu(weights, 1).any()


def test_a_long_trace_is_never_whole_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = random_tokens(CONFIG, 400, 0)
    monkeypatch.setattr(record, "CHUNK_VALUES", 40 * 400 * CONFIG.num_attention_heads)
    tracemalloc.start()
    trace(model(), tokens, path=tmp_path / "run.trace")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "run.trace").stat().st_size
    assert size > 16e6
    assert peak < size / 4


def test_arrays_are_read_when_used(tmp_path: Path) -> None:
    tokens = random_tokens(CONFIG, 400, 0)
    trace(model(), tokens, path=tmp_path / "run.trace")
    tracemalloc.start()
    read = Trace.load(tmp_path / "run.trace")
    assert read.rows("block.2.attn.weights", slice(3, 5), 1).shape == (8, 2, 400)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_a_pass_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    trace(model(), TOKENS, path=path)
    before = path.read_bytes()

    def fails(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(model(experts=fails), TOKENS, path=path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.trace"]
    assert path.read_bytes() == before


def test_a_folder_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model ran")

    for path in (tmp_path, ""):
        with pytest.raises(TraceError, match="cannot be written: it is a folder"):
            trace(model(experts=fails), TOKENS, path=path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "run.trace", tmp_path):
        with pytest.raises(TraceError, match="cannot be written"):
            trace(model(), TOKENS, path=path)
        with pytest.raises(TraceError, match="cannot be written"):
            trace(model(), TOKENS).save(path)
    assert not list(tmp_path.iterdir())


def test_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    trace(model(), TOKENS, path=path, taps=["embedding", "block.0.attn.q"])
    whole = path.read_bytes()
    for end in [*range(0, 40), *range(40, len(whole), 301), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(TraceError, match=str(path)):
            Trace.load(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(TraceError, match="1 bytes after"):
        Trace.load(path)


def test_not_a_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        Trace.load(tmp_path / "absent")
    with pytest.raises(TraceError, match="format 'pt', expected 'gptoss-trace-2'"):
        Trace.load(Path(gr.load("tiny").path or "") / "model.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", "[1, 2]", r"expected \(T, D\) = \(2, 37\)"),
        ("tokens", "[]", "expected one row of integers"),
        ("tokens", '["a"]', "expected one row of integers"),
        ("tokens", "[[1], 2]", "damaged|expected one row"),
        ("tokens", "oops", "damaged"),
        ("config", "{}", "config"),
        ("config", "3", "config"),
        ("config", None, "lacks config"),
        ("policy", "float128", "unknown rounding 'float128'"),
    ],
)
def test_metadata_that_cannot_be(key: str, value: str | None, message: str, tmp_path: Path) -> None:
    kept = trace(model(), TOKENS, taps="embedding")
    metadata = {"format": "gptoss-trace-2", **kept.metadata, key: value}
    metadata.pop("dtype", None)
    safetensors.torch.save_file(
        {"embedding": torch.from_numpy(kept["embedding"])},
        tmp_path / "run.trace",
        {name: text for name, text in metadata.items() if text is not None},
    )
    with pytest.raises(TraceError, match=message) as caught:
        Trace.load(tmp_path / "run.trace")
    assert str(tmp_path / "run.trace") in str(caught.value)


# --- traces of others --------------------------------------------------------------------------


def test_wrong_names_suggest_the_nearest() -> None:
    wrong = some(**{"block.1.attn.queries": np.zeros(3)})
    with pytest.raises(TraceError, match=r"did you mean 'block.1.attn.k_rope'|'block.1.attn.q"):
        Trace(**wrong)
    with pytest.raises(TraceError, match=r"unknown tap point 'block\.3\.attn\.q'"):
        Trace(**some(**{"block.3.attn.q": np.zeros(3)}))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_wrong_axis_order_says_what_would_fit(order: tuple[int, ...]) -> None:
    values = some()["arrays"]["block.1.attn.q"]
    wrong = values.transpose(order)
    with pytest.raises(TraceError, match="transposing the axes as") as caught:
        Trace(**some(**{"block.1.attn.q": wrong}))
    said = caught.value.args[0].rsplit("(", 1)[1].split(")")[0]
    assert np.array_equal(wrong.transpose([int(i) for i in said.split(",")]), values)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda x: x[None], "drop the leading axis of size 1"),
        (
            lambda x: x.transpose(1, 0, 2)[None],
            r"leading axis of size 1; transposing .* \(1, 0, 2\)",
        ),
        (lambda x: x.reshape(len(x), -1), r"reshaping it to \(17, 8, 10\) would fit"),
        (lambda x: x[:7], "it has 7 tokens, but the trace has 17"),
        (lambda x: x[:, :3, :3], r"expected \(T, H, C\) = \(17, 8, 10\)$"),
    ],
)
def test_wrong_shapes_say_what_would_fit(change: Any, hint: str) -> None:
    wrong = change(some()["arrays"]["block.1.attn.q"])
    with pytest.raises(TraceError, match=hint):
        Trace(**some(**{"block.1.attn.q": wrong}))


def test_a_sink_column_is_recognised() -> None:
    weights = np.pad(some()["arrays"]["block.1.attn.weights"], ((0, 0), (0, 0), (0, 1)))
    with pytest.raises(TraceError, match="the last column is the sink's"):
        Trace(**some(**{"block.1.attn.weights": weights}))


def test_wrong_dtypes_and_experts() -> None:
    indices = some()["arrays"]["block.2.mlp.expert_indices"]
    for name, values, message in (
        ("embedding", some()["arrays"]["embedding"].astype(complex), "has dtype complex"),
        ("block.2.mlp.expert_indices", indices.astype(float), "expected integers"),
        ("block.2.mlp.expert_indices", indices + 9, "names expert .*: expected 0 to 8"),
        ("block.2.mlp.expert_indices", indices - 9, "names expert -"),
    ):
        with pytest.raises(TraceError, match=message):
            Trace(**some(**{name: values}))
    with pytest.raises(TraceError, match="unknown rounding 'half'"):
        Trace(**some(), dtype="half")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_rounding_shows_in_the_numbers(dtype: str) -> None:
    """Also where the arrays are wider than what they hold."""
    kind = {**TORCH, "float16": torch.float16}[dtype]
    taps: dict[str, Any] = {}
    weights = as_torch(ARRAYS, torch.float64)
    torch_twin.forward(CONFIG, weights, TOKENS, lambda n, x: taps.update({n: x}))
    wide = np.float64 if dtype == "float64" else np.float32
    rounded = {
        name: x.numpy() if x.dtype == torch.int64 else x.to(kind).double().numpy().astype(wide)
        for name, x in taps.items()
    }
    assert Trace(rounded, tokens=TOKENS, config=CONFIG).dtype_name == dtype
    assert Trace(rounded, tokens=TOKENS, config=CONFIG, dtype="float32").dtype_name == "float32"
    only = {name: rounded[name] for name in ("embedding", "block.0.mlp.expert_indices")}
    assert Trace(only, tokens=TOKENS, config=CONFIG).dtype_name is None


def test_bfloat16_in_three_forms() -> None:
    values = trace(model("bfloat16"), TOKENS)["norm"]
    narrow = values.astype(ml_dtypes.bfloat16)
    for form in (narrow, narrow.view(np.uint16), values):
        kept = Trace({"norm": form}, tokens=TOKENS, config=CONFIG)
        assert kept.dtype_name == "bfloat16"
        assert kept["norm"].dtype == np.float32
        assert np.array_equal(kept["norm"], values)


def test_few_different_values_are_looked_at_only_in_part() -> None:
    """An array of ones does not show a rounding, and is not read to its end."""
    read: list[int] = []

    class Ones:
        def dtype_of(self, name: str) -> str:
            return "float32"

        def shape_of(self, name: str) -> tuple[int, ...]:
            return (10**6, 300)

        def rows(self, name: str, rows: slice) -> np.ndarray:
            read.append(rows.stop)
            return np.ones((rows.stop - rows.start, 300), np.float32)

    assert rounding_of(Ones(), "norm") is None
    assert max(read) <= 64
