"""Arrays under foreign names: the table of names, the layouts, files, and what is refused.

The arrays come from the torch twin, each rearranged by hand into what the other implementation
would hold; reading them has to give the twin's own arrays back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zipfile
from functools import cache, partial
from itertools import permutations
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from docs._generate import names_page
from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.tracing import taps
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.observe.adapters import from_arrays, read
from gptoss_ref.verify.observe.adapters.layouts import axis_sizes, canonical, forms, to_tap
from gptoss_ref.verify.observe.adapters.names import (
    DIALECTS,
    foreign_names,
    lookup,
    meanings,
    table,
)
from tests.support import torch_twin
from tests.support.checks_model import taps_of
from tests.support.strategies import as_torch, random_arrays, random_tokens, small_config

CONFIG = small_config()  # every dimension different
TOKENS = random_tokens(CONFIG, 13, 0)
T = len(TOKENS)
Arrays = dict[str, np.ndarray]


@cache
def twin_taps() -> Arrays:
    weights = as_torch(random_arrays(CONFIG, 0), torch.float64)
    return taps_of(partial(torch_twin.forward, CONFIG, weights, TOKENS))


def llama_cpp_arrays(n: int) -> Arrays:
    """One block as a dump of llama.cpp's callback tensors: C order of ggml's reversed axes."""
    own = {k.split(".", 2)[2]: v for k, v in twin_taps().items() if k.startswith(f"block.{n}.")}
    heads, keys, c = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim
    padded = np.zeros((heads, T, 32))
    padded[..., :T] = own["attn.weights"]
    return {
        f"attn_norm-{n}": own["attn.norm"],
        f"Qcur-{n}": own["attn.q_rope"],
        f"Kcur-{n} (view)": own["attn.k_rope"].reshape(1, T, keys, c),
        f"Vcur-{n}": own["attn.v"].reshape(T, keys * c),
        f"kq_soft_max-{n}": padded[None],
        f"kqv_out-{n}": own["attn.mix"],
        f"attn_out-{n}": own["attn.out"],
        f"ffn_inp-{n}": own["attn.residual"],
        f"attn_post_norm-{n}": own["mlp.norm"],
        f"ffn_moe_logits_biased-{n}": own["mlp.router_logits"],
        f"ffn_moe_topk-{n}": own["mlp.expert_indices"].astype(np.int32),
        f"ffn_moe_weights_softmax-{n}": own["mlp.expert_weights"][..., None],
        f"ffn_moe_gate_biased-{n}": own["mlp.gate_up"][..., 0::2],
        f"ffn_moe_up_biased-{n}": own["mlp.gate_up"][..., 1::2],
        f"ffn_moe_swiglu_oai-{n}": own["mlp.swiglu"],
        f"ffn_moe_down_biased-{n}": own["mlp.expert_out"],
        f"ffn_moe_out-{n}": own["mlp.out"],
        f"l_out-{n}": own["mlp.residual"],
    }


def openai_arrays(n: int) -> Arrays:
    """One block as outputs and inputs of OpenAI's modules."""
    own, at = twin_taps(), f"block.{n}."
    qkv = [own[at + f"attn.{part}"].reshape(T, -1) for part in "qkv"]
    return {
        at + "attn.norm.output": own[at + "attn.norm"],
        "module." + at + "attn.qkv": np.concatenate(qkv, -1),
        at + "attn.out.input": own[at + "attn.mix"],
        at + "attn.out": own[at + "attn.out"],
        at + "attn": own[at + "attn.residual"],
        at + "mlp.gate": own[at + "mlp.router_logits"],
        f"block.{n}": own[at + "mlp.residual"],
    }


def transformers_arrays(n: int) -> Arrays:
    """One block as outputs and inputs of transformers' modules, with their batch axis."""
    own, at = twin_taps(), f"block.{n}."
    theirs = {
        "input_layernorm": own[at + "attn.norm"],
        **{f"self_attn.{p}_proj": own[at + f"attn.{p}"].reshape(T, -1) for p in "qkv"},
        "self_attn.attn_weights": own[at + "attn.weights"],
        "self_attn.o_proj.input": own[at + "attn.mix"],
        "self_attn": own[at + "attn.out"],
        "post_attention_layernorm.input": own[at + "attn.residual"],
        "post_attention_layernorm": own[at + "mlp.norm"],
        "mlp.router.0": own[at + "mlp.router_logits"],
        "mlp.router.1": own[at + "mlp.expert_weights"],
        "mlp.router.2": own[at + "mlp.expert_indices"],
        "mlp.experts": own[at + "mlp.out"],
    }
    block = {f"model.layers.{n}.{name}": values[None] for name, values in theirs.items()}
    return {**block, f"hidden_states.{n + 1}": own[at + "mlp.residual"][None]}


def transformer_lens_arrays(n: int) -> Arrays:
    """One block as HookedTransformer's cache: expert weights spread over all experts."""
    own, at = twin_taps(), f"block.{n}."
    dense = np.zeros((T, CONFIG.num_experts))
    np.put_along_axis(dense, own[at + "mlp.expert_indices"], own[at + "mlp.expert_weights"], -1)
    theirs = {
        **{f"attn.hook_{p}": own[at + f"attn.{p}"][None] for p in "qkv"},
        "attn.hook_rot_q": own[at + "attn.q_rope"][None],
        "attn.hook_rot_k": own[at + "attn.k_rope"][None],
        "attn.hook_pattern": own[at + "attn.weights"][None],
        "attn.hook_z": own[at + "attn.mix"].reshape(1, T, -1, CONFIG.head_dim),
        "hook_attn_out": own[at + "attn.out"][None],
        "hook_resid_mid": own[at + "attn.residual"][None],
        "mlp.hook_expert_indices": own[at + "mlp.expert_indices"],
        "mlp.hook_expert_weights": dense,
        "hook_mlp_out": own[at + "mlp.out"][None],
        "hook_resid_post": own[at + "mlp.residual"][None],
    }
    return {f"blocks.{n}.{name}": values for name, values in theirs.items()}


DUMPS = {
    "openai": openai_arrays,
    "transformers": transformers_arrays,
    "transformer_lens": transformer_lens_arrays,
    "llama_cpp": llama_cpp_arrays,
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_twins_arrays_back(dialect: str) -> None:
    dump = DUMPS[dialect](1)
    trace = from_arrays(dump, TOKENS, CONFIG)
    fused = {"openai": 2, "llama_cpp": -1}.get(dialect, 0)  # qkv is three taps, gate and up one
    assert len(trace) == len(dump) + fused
    for name in trace:
        assert np.array_equal(trace[name], twin_taps()[name]), name


@pytest.mark.parametrize("dialect", DIALECTS)
def test_outside_the_blocks(dialect: str) -> None:
    for tap in ("embedding", "norm", "logits"):
        for name in foreign_names(tap, dialect, CONFIG):
            trace = from_arrays({name: twin_taps()[tap][None]}, TOKENS, CONFIG)
            assert np.array_equal(trace[tap], twin_taps()[tap])


def test_intermediates_of_flax() -> None:
    """Dictionaries in dictionaries, each value a tuple of what a module's calls returned."""
    own, heads = twin_taps(), (CONFIG.num_key_value_heads, CONFIG.group_size)
    qkv = np.concatenate([own[f"block.1.attn.{part}"].reshape(T, -1) for part in "qkv"], -1)
    q = own["block.1.attn.q_rope"].reshape(T, *heads, CONFIG.head_dim)

    def called(value: Any) -> dict[str, Any]:
        return {"__call__": (value,)}

    attn = {
        "norm": called(own["block.1.attn.norm"]),
        "qkv": called(qkv),
        "rope": called((q, own["block.1.attn.k_rope"])),
        **called(own["block.1.attn.residual"]),
    }
    block = {"attn": attn, **called(own["block.1.mlp.residual"])}
    seen = {"block_1": block, "norm": called(own["norm"]), **called(own["logits"])}
    trace = from_arrays(seen, TOKENS, CONFIG)
    stages = [f"block.1.{x}" for x in taps.STAGES if x.startswith("attn.")]
    absent = {"block.1.attn.weights", "block.1.attn.mix", "block.1.attn.out"}
    wanted = {*stages, "block.1.mlp.residual", "norm", "logits"} - absent
    assert set(trace) == wanted
    for name in trace:
        assert np.array_equal(trace[name], own[name]), name


def test_our_own_names_are_everybodys() -> None:
    trace = from_arrays(twin_taps(), TOKENS, CONFIG)
    assert list(trace) == taps.names(CONFIG)


def test_no_foreign_name_contradicts_ours() -> None:
    """Where OpenAI's module path is also a tap point, it is that tap point."""
    ours = set(taps.names(CONFIG))
    clashes = {name: meaning.tap for name, meaning in table(CONFIG) if name in ours}
    assert clashes
    assert all(name == tap for name, tap in clashes.items())


def test_every_meaning_is_a_tap_point() -> None:
    for _, meaning in table(CONFIG):
        taps.check_name(meaning.tap, CONFIG)


def test_no_name_means_two_things_but_fused_ones() -> None:
    for name, found in lookup(CONFIG).items():
        assert len({m.tap for m in found}) == 1 or all(m.layout == "qkv" for m in found), name


@given(st.data())
def test_any_order_of_axes_can_be_named(data: st.DataObject) -> None:
    tap = data.draw(st.sampled_from(["attn.q", "attn.weights", "mlp.gate_up", "mlp.expert_out"]))
    values = twin_taps()[f"block.0.{tap}"]
    letters = {"attn.weights": "H T S", "mlp.gate_up": "T A FP"}.get(
        tap, " ".join(taps.STAGES[tap])
    )
    order = data.draw(st.permutations(range(values.ndim)))
    layout = " ".join(letters.split()[i] for i in order)
    mine = {"mine": values.transpose(order)}
    trace = from_arrays(mine, TOKENS, CONFIG, names={"mine": (f"block.0.{tap}", layout)})
    assert np.array_equal(trace[f"block.0.{tap}"], values)


def test_gate_and_up_in_halves() -> None:
    values = twin_taps()["block.0.mlp.gate_up"]
    halves = np.concatenate([values[..., 0::2], values[..., 1::2]], -1)
    names = {"theirs": ("block.0.mlp.gate_up", "T A PF")}
    trace = from_arrays({"theirs": halves}, TOKENS, CONFIG, names=names)
    assert np.array_equal(trace["block.0.mlp.gate_up"], values)


def test_scores_with_their_sink_column() -> None:
    """(K, G, T, S + 1), as OpenAI's sdpa holds them."""
    values = twin_taps()["block.0.attn.weights"]
    full = np.concatenate([values, 1 - values.sum(-1, keepdims=True)], -1)
    grouped = full.reshape(CONFIG.num_key_value_heads, CONFIG.group_size, T, T + 1)
    for theirs in (full, grouped, grouped[None]):
        tap = to_tap("block.0.attn.weights", theirs, axis_sizes(CONFIG, T))
        assert np.array_equal(tap, values)


def test_wrong_order_of_axes_says_which_would_fit() -> None:
    values = twin_taps()["block.0.attn.q"]
    for order in permutations(range(3)):
        if order == (0, 1, 2):
            continue
        layout = " ".join(canonical("block.0.attn.q").split()[i] for i in order)
        names = {"Q": "block.0.attn.q"}
        with pytest.raises(TraceError, match=f"Q'.*would fit as layout '{layout}'") as caught:
            from_arrays({"Q": values.transpose(order)}, TOKENS, CONFIG, names=names)
        assert f"({T}, {CONFIG.num_attention_heads}, {CONFIG.head_dim})" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_atn.q_proj", "did you mean 'model.layers.0.self_attn.q_proj'"),
        ("block.0.attn.qrope", "did you mean 'block.0.attn.q_rope'"),
        ("model.layers.3.input_layernorm", "did you mean 'model.layers.[012].input_layernorm'"),
        ("ffn_moe_topk", "did you mean 'ffn_moe_topk-[012]'"),
        ("blocks.0.ln1.hook_normalized", "before its scale is multiplied in"),
        ("blocks.0.attn.hook_attn_scores", "before the softmax"),
        ("block.0.attn.scores", "before the softmax: take the weights after it"),
        ("model.layers.0.self_attn.qk_logits", "before the softmax"),
        ("ffn_moe_gate-1", "lacks the bias"),
        ("something", "expected a tap point such as"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        from_arrays({name: np.zeros((T, 3))}, TOKENS, CONFIG)


@pytest.mark.parametrize("name", ["block.0.attn.probs", "block.0.attn.maps", "attn_maps.0"])
def test_a_suggested_name_fits_the_shape(name: str) -> None:
    """Although another one is spelt alike."""
    values = np.zeros((CONFIG.num_attention_heads, T, T))
    with pytest.raises(TraceError, match=r"'block.0.attn.weights'"):
        from_arrays({name: values}, TOKENS, CONFIG)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no arrays"),
        ({"logits": np.zeros((T, 5))}, "'logits': shape .* does not fit logits: expected 'T V'"),
        ({"logits": np.zeros((2, T, 71))}, "a batch of 2: expected one prompt"),
        ({"logits": np.zeros((T - 2, 71))}, f"it has {T - 2} tokens, but the prompt has {T}"),
        (
            {"block.0.attn.k": np.zeros((T, CONFIG.num_attention_heads, CONFIG.head_dim))},
            rf"query heads: pass \[:, ::{CONFIG.group_size}\]",
        ),
        ({"logits": "text"}, "'logits' has dtype <U4: expected numbers"),
        ({"logits": [[1.0], [1.0, 2.0]]}, "'logits' is list, not an array"),
        ({"block.0.attn.qkv": np.zeros((T, 9))}, r"fused q, k and v: expected .* = \(13, 120\)"),
        ({"ffn_moe_gate_biased-0": np.zeros((T, 5, 23))}, "half of .*gate_up: the up half is miss"),
        ({"ffn_moe_up_biased-0": np.zeros((T, 5, 22))}, r"\(T, A, F\) = \(13, 5, 23\)"),
        ({"blocks.0.mlp.hook_expert_weights": np.ones((T, 9))}, "more than 5 experts"),
        ({"blocks.0.mlp.hook_expert_weights": np.ones((T, 8))}, r"\(T, E\) = \(13, 9\)"),
        ({"kq_soft_max-0": np.ones((8, T, 32))}, "columns of later keys are not zero"),
        ({"block.0.mlp.expert_indices": np.full((T, 5), 9)}, "names expert 9"),
        ({"block.0.mlp.expert_indices": np.zeros((T, 5))}, "expected integers"),
    ],
)
def test_arrays_that_do_not_fit(arrays: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        from_arrays(arrays, TOKENS, CONFIG)


def test_two_names_for_one_tap_point() -> None:
    logits = twin_taps()["logits"]
    both = {"lm_head": logits, "result_output": logits[None]}
    assert len(from_arrays(both, TOKENS, CONFIG)) == 1
    with pytest.raises(
        TraceError, match="'lm_head' and 'result_output' are both logits, but differ"
    ):
        from_arrays({**both, "result_output": logits + 1}, TOKENS, CONFIG)


@pytest.mark.parametrize("layout", ["T H", "T H D", "H T C C"])
def test_layouts_of_other_letters(layout: str) -> None:
    with pytest.raises(
        TraceError, match=f"layout {layout!r} does not fit block.0.attn.q: expected"
    ):
        from_arrays({"x": 1.0}, TOKENS, CONFIG, names={"x": ("block.0.attn.q", layout)})


def test_a_name_for_no_tap_point() -> None:
    with pytest.raises(TraceError, match="unknown tap point"):
        from_arrays({"x": 1.0}, TOKENS, CONFIG, names={"x": "block.7.attn.q"})


def test_bfloat16_of_every_library_keeps_its_bits() -> None:
    values = twin_taps()["logits"].astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(twin_taps()["logits"]).to(torch.bfloat16)
    for theirs in (values, tensor, values.view(np.uint16)):
        trace = from_arrays({"logits": theirs}, TOKENS, CONFIG)
        assert np.array_equal(trace["logits"], values.astype(np.float32))
        assert trace.dtype_name == "bfloat16"


def test_forms_are_forms_of_their_tap() -> None:
    """None of the automatic forms of a tap point can be mistaken for another one."""
    sizes = axis_sizes(CONFIG, T)
    for stage in taps.STAGES:
        shapes = [
            tuple(
                sizes["S"] + 1 if token == "S+1" else int(np.prod([sizes[c] for c in token]))
                for token in form.split()
            )
            for form in forms(f"block.0.{stage}")
        ]
        assert len(set(shapes)) == len(shapes)


class TestFiles:
    """read: .npz, .safetensors, traces, and damage."""

    def test_npz_with_its_own_tokens(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", input_ids=[TOKENS], **transformers_arrays(0))
        trace = read(tmp_path / "a.npz", config=CONFIG)
        assert trace.tokens.tolist() == TOKENS
        assert np.array_equal(trace["block.0.attn.q"], twin_taps()["block.0.attn.q"])
        assert trace.producer == "a.npz"

    def test_safetensors_with_given_tokens(self, tmp_path: Path) -> None:
        arrays = {k: np.ascontiguousarray(v) for k, v in openai_arrays(0).items()}
        arrays["unembedding"] = twin_taps()["logits"].astype(ml_dtypes.bfloat16)
        save_file(arrays, tmp_path / "a.safetensors")
        trace = read(tmp_path / "a.safetensors", tokens=TOKENS, config=CONFIG)
        assert np.array_equal(trace["block.0.attn.k"], twin_taps()["block.0.attn.k"])
        assert trace.dtype_of("logits") == "bfloat16"

    def test_safetensors_with_tokens_in_the_metadata(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        save_file({"logits": twin_taps()["logits"]}, path, {"tokens": json.dumps(TOKENS)})
        assert read(path, config=CONFIG).tokens.tolist() == TOKENS

    def test_a_trace_file(self, tmp_path: Path) -> None:
        trace = Trace({"logits": twin_taps()["logits"]}, tokens=TOKENS, config=CONFIG)
        trace.save(tmp_path / "a.trace")
        assert np.array_equal(read(tmp_path / "a.trace")["logits"], trace["logits"])

    def test_other_tokens(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", tokens=TOKENS, logits=twin_taps()["logits"])
        with pytest.raises(TraceError, match="its 13 tokens differ from the 12 given"):
            read(tmp_path / "a.npz", tokens=TOKENS[1:], config=CONFIG)

    def test_no_tokens_and_no_configuration(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", logits=twin_taps()["logits"])
        with pytest.raises(TraceError, match="the prompt is missing"):
            read(tmp_path / "a.npz", config=CONFIG)
        with pytest.raises(TraceError, match="no configuration"):
            read(tmp_path / "a.npz", tokens=TOKENS)

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    @pytest.mark.parametrize("keep", [0, 1, 5, 100, 0.5, 0.99])
    def test_truncated(self, suffix: str, keep: float, tmp_path: Path) -> None:
        path = tmp_path / f"a{suffix}"
        if suffix == ".npz":
            np.savez(path, logits=twin_taps()["logits"])
        else:
            save_file({"logits": twin_taps()["logits"]}, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
        with pytest.raises(TraceError, match=str(path)):
            read(path, tokens=TOKENS, config=CONFIG)

    def test_absent(self, tmp_path: Path) -> None:
        for name in ("a.npz", "a.safetensors"):
            with pytest.raises(TraceError, match=name):
                read(tmp_path / name, tokens=TOKENS, config=CONFIG)

    def test_pickles_are_not_opened(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", logits=np.array([{}], object))
        with pytest.raises(TraceError, match="plain arrays"):
            read(tmp_path / "a.npz", tokens=TOKENS, config=CONFIG)
        with pytest.raises(TraceError, match=r"expected a trace, an \.npz"):
            read(tmp_path / "a.pt", tokens=TOKENS, config=CONFIG)

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        """Not a complaint about the header of a safetensors file, which it never was."""
        source = tmp_path / "mine.py"
        for content in (b"", b"def swiglu(x):\n    return x\n", b"{", bytes(range(64))):
            source.write_bytes(content)
            with pytest.raises(TraceError, match=r"mine\.py: expected a trace, an \.npz"):
                read(source, tokens=TOKENS, config=CONFIG)
            with pytest.raises(TraceError, match=r"mine\.py: not a trace: expected a \.trace"):
                Trace.load(source)
        # the suffix does not matter if the contents are right
        save_file({"logits": twin_taps()["logits"]}, source)
        assert list(read(source, tokens=TOKENS, config=CONFIG)) == ["logits"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
        with pytest.raises(TraceError, match="pipe: cannot be read: not a regular file"):
            read(tmp_path / "pipe", tokens=TOKENS, config=CONFIG)

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", logts=twin_taps()["logits"])
        with pytest.raises(TraceError, match=r"a\.npz: unknown name 'logts'.*'logits'"):
            read(tmp_path / "a.npz", tokens=TOKENS, config=CONFIG)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([TOKENS, TOKENS], r"shape \(2, 13\): expected \(T,\) or \(1, T\)"),
        (np.array(TOKENS) + 0.5, "dtype float64: expected integers"),
        (torch.tensor(TOKENS).bfloat16(), "dtype torch.bfloat16: expected integers"),
        (np.array(TOKENS) > 3, "dtype bool"),
        (["1", "2"], "expected numbers"),
        ([], "the prompt is empty"),
        ([10**40], "expected numbers"),
    ],
)
def test_tokens_that_are_none(tokens: Any, message: str, tmp_path: Path) -> None:
    arrays = {"logits": twin_taps()["logits"]}
    with pytest.raises(TraceError, match=message):
        from_arrays(arrays, tokens, CONFIG)
    if isinstance(tokens, np.ndarray):
        np.savez(tmp_path / "a.npz", tokens=tokens, **arrays)
        with pytest.raises(TraceError, match=rf"a\.npz: .*{message}|{message}"):
            read(tmp_path / "a.npz", config=CONFIG)


@pytest.mark.parametrize("tokens", [[TOKENS], torch.tensor([TOKENS]), iter(TOKENS)])
def test_a_batch_of_one_prompt(tokens: Any) -> None:
    trace = from_arrays({"logits": twin_taps()["logits"]}, tokens, CONFIG)
    assert trace.tokens.tolist() == TOKENS


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole file of every kind, as bytes."""
    folder = tmp_path_factory.mktemp("whole")
    arrays = {"logits": twin_taps()["logits"][:4], "norm": twin_taps()["norm"][:4]}
    np.savez(folder / "plain.npz", tokens=TOKENS[:4], **arrays)
    np.savez_compressed(folder / "small.npz", tokens=TOKENS[:4], **arrays)
    save_file(arrays, folder / "a.safetensors", {"tokens": json.dumps(TOKENS[:4])})
    Trace(arrays, tokens=TOKENS[:4], config=CONFIG).save(folder / "a.trace")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=150)
@given(st.data())
def test_damaged_files_are_read_or_refused(
    whole_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed, cut off, or doubled: a trace, or one clear error."""
    name = data.draw(st.sampled_from(sorted(whole_files)))
    content = bytearray(whole_files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(content))))
        at = min(at, len(content) - 1)
        how = data.draw(st.sampled_from(["change", "cut", "double"]))
        if how == "change":
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 200))]
        else:
            content[at:at] = content[at : at + 50]
        if not content:
            break
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(content)
    with contextlib.suppress(TraceError), np.errstate(all="ignore"):
        trace = read(path, config=CONFIG)
        assert all(trace[tap].shape == trace.shape_of(tap) for tap in trace)


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("tokens", "1 2 3")
    with pytest.raises(TraceError, match="'tokens' is not an array"):
        read(tmp_path / "a.npz", config=CONFIG)
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(TraceError, match="a single array"):
        read(tmp_path / "b.npz", config=CONFIG)


def test_a_model_of_other_layers_has_other_names() -> None:
    fewer: ModelConfig = dataclasses.replace(CONFIG, num_hidden_layers=1)
    assert meanings("l_out-0", lookup(fewer))
    assert meanings("l_out-1", lookup(fewer)) is None
    with pytest.raises(TraceError, match="did you mean 'l_out-0'"):
        from_arrays({"l_out-1": np.zeros((T, CONFIG.hidden_size))}, TOKENS, fewer)


def test_the_page_shows_the_table() -> None:
    """Otherwise: python -m docs._generate.names_page"""
    assert names_page.PAGE.read_text() == names_page.page()
