"""Equal models are equal, and a run is judged by the rounding that its numbers show.

Every case is built by hand from one random model: a bug in a block, a tensor, a dtype or a layout.
The weights are changed in NumPy, and the package's NumPy layers compute the wrong or rewritten run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.numerics import widen
from gptoss_ref.tracing.taps import names
from gptoss_ref.verify.noise.rounding import dithered
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION
from tests.support.strategies import as_weights, on_grid, random_arrays, random_tokens, small_config

CONFIG = small_config(
    layers=2, n_kv=2, group=3, head_dim=14, experts=7, n_chosen=4, d_model=48, d_ff=20, vocab=90
)
HEADS, GROUPS, CHANNELS = 6, 2, 14
IDS = random_tokens(CONFIG, 24, 2)
OUT = "block.0.attn.out_weight"
Arrays = dict[str, np.ndarray]


@cache
def good() -> gr.Model:
    weights = as_weights(random_arrays(CONFIG, 11))
    return gr.Model(CONFIG, weights, policy="float64", backend="numpy")


@cache
def reference() -> gr.Trace:
    return gr.trace(good(), IDS)


def value(name: str) -> np.ndarray:
    return widen(good().weights.named()[name], np.float64)


def run(changed: Arrays | None = None, policy: str = "float32") -> Arrays:
    """Every tap point of the model with some weights changed."""
    matrices = {name: np.asarray(x, np.float32) for name, x in (changed or {}).items()}
    weights = good().weights.replaced(matrices)
    trace = gr.trace(gr.Model(CONFIG, weights, policy=policy, backend="numpy"), IDS)
    return {tap: trace[tap] for tap in trace}


def trace_of(arrays: Arrays) -> gr.Trace:
    return gr.Trace(arrays, tokens=IDS, config=CONFIG)


def verdicts(arrays: Arrays) -> tuple[Any, list[Any]]:
    """The diagnosis, and comparisons with the model and without it."""
    theirs = trace_of(arrays)
    alone = gr.Trace(reference(), tokens=IDS, config=CONFIG, dtype="float64")
    compared = [gr.compare(ref, theirs) for ref in (reference(), alone)]
    return gr.diagnose(good(), theirs), compared


def heads(block: int, order: list[int], keys: list[int]) -> Arrays:
    """One block's heads in another order, in all its matrices."""
    at = f"block.{block}.attn."
    found: Arrays = {at + "sinks": value(at + "sinks")[order]}
    for name, which in (("q", order), ("k", keys), ("v", keys)):
        for part in ("weight", "bias"):
            rows = value(f"{at}{name}_{part}")
            some = rows.reshape(len(which), CHANNELS, -1)[which]
            found[f"{at}{name}_{part}"] = some.reshape(rows.shape)
    out = value(at + "out_weight")
    found[at + "out_weight"] = out.reshape(len(out), HEADS, -1)[:, order].reshape(out.shape)
    return found


def experts(block: int, order: np.ndarray) -> Arrays:
    at = f"block.{block}.mlp."
    stored = ("gate_weight", "gate_bias", "mlp1_weight", "mlp1_bias", "mlp2_weight", "mlp2_bias")
    return {at + name: value(at + name)[order] for name in stored}


IN_GROUPS = heads(1, [2, 0, 1, 3, 5, 4], [0, 1])
WITH_GROUPS = heads(0, [3, 4, 5, 0, 1, 2], [1, 0])
EXPERTS = {**experts(0, np.roll(np.arange(7), 2)), **experts(1, np.arange(7)[::-1])}


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (IN_GROUPS, "heads-permuted"),
        (WITH_GROUPS, "heads-permuted"),
        (EXPERTS, "experts-permuted"),
    ],
    ids=["heads", "keys too", "experts"],
)
def test_another_order_is_the_same_model(changed: Arrays, name: str, policy: str) -> None:
    diagnosis, compared = verdicts(run(changed, policy))
    assert diagnosis.ok, str(diagnosis)
    assert name in diagnosis.rewritings[0]
    for report in compared:
        assert report.ok, str(report)
        assert name in report.notes[0]


def test_experts_in_another_order_without_their_logits() -> None:
    arrays = {tap: x for tap, x in run(EXPERTS).items() if not tap.endswith("router_logits")}
    diagnosis, compared = verdicts(arrays)
    assert diagnosis.ok, str(diagnosis)
    assert compared[0].ok, str(compared[0])


@pytest.mark.parametrize(
    ("left_out", "tap"),
    [
        ("block.1.attn.sinks", "block.1.attn.weights"),
        ("block.1.attn.out_weight", "block.1.attn.out"),
    ],
)
def test_heads_that_one_tensor_did_not_follow(left_out: str, tap: str) -> None:
    """The first wrong stage is the one that reads the tensor in the wrong order."""
    changed = {name: x for name, x in IN_GROUPS.items() if name != left_out}
    diagnosis, compared = verdicts(run(changed))
    assert diagnosis.first_divergence.name == tap
    assert compared[0].first_divergence.name == tap


def test_experts_that_one_matrix_did_not_follow() -> None:
    changed = {name: x for name, x in EXPERTS.items() if name != "block.1.mlp.mlp2_weight"}
    diagnosis, compared = verdicts(run(changed))
    assert diagnosis.first_divergence.name == "block.1.mlp.expert_out"
    assert compared[0].first_divergence.name == "block.1.mlp.expert_out"


def test_a_norm_that_was_not_folded_into_all_its_readers() -> None:
    """Two of three agree with the folded norm, so that the third is wrong and not the norm."""
    at = "block.1.attn."
    scale = value(at + "norm_scale")
    changed = {at + name: value(at + name) * scale for name in ("q_weight", "k_weight")}
    diagnosis, _ = verdicts(run({**changed, at + "norm_scale": np.ones_like(scale)}))
    assert diagnosis.first_divergence.name == at + "v"
    assert "norm-scale-folded" in diagnosis.rewritings[0]


# --- a constant in every row of the logits ---


def logits(policy: str) -> np.ndarray:
    return run(policy=policy)["logits"].astype(np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
@pytest.mark.parametrize("kept", [np.float32, np.float64])
@pytest.mark.parametrize("alone", [True, False])
def test_a_constant_a_row_is_no_divergence(policy: str, kept: type, alone: bool) -> None:
    """Of a bfloat16 run the constant hides the grid on which the logits were."""
    arrays = run(policy=policy)
    for moved, word in ((log_softmax, "log-probabilities"), (lambda x: x + 50, "constant")):
        theirs = {"logits": moved(logits(policy)).astype(kept)}
        diagnosis = gr.diagnose(good(), trace_of(theirs if alone else {**arrays, **theirs}))
        assert diagnosis.ok, str(diagnosis)
        assert any(word in note for note in diagnosis.notes)
        assert diagnosis.rounding in (policy, "float64" if policy == "float32" else policy)
        report = gr.compare(reference(), trace_of({**arrays, **theirs}))
        assert report.ok, str(report)
        assert any(word in note for note in report.notes)


# --- roundings, by the numbers ---


@pytest.mark.parametrize("kept", ["float16", "float32", "float64"])
def test_the_format_of_the_file_is_not_the_rounding(kept: str) -> None:
    arrays = {
        tap: x.astype(kept) if x.dtype.kind == "f" else x
        for tap, x in run(policy="bfloat16").items()
    }
    diagnosis, compared = verdicts(arrays)
    assert diagnosis.ok, str(diagnosis)
    assert diagnosis.rounding == "bfloat16"
    assert any("rounded to bfloat16" in note and kept in note for note in diagnosis.notes)
    assert all(report.ok and report.rounding == "bfloat16" for report in compared)


@pytest.mark.parametrize("tap", ["logits", "block.0.mlp.router_logits", "block.1.attn.k"])
def test_one_array_that_was_rounded_when_it_was_recorded(tap: str) -> None:
    """The others are held to float32: a bug there is found, and nothing is accused without one."""
    rounded = run()
    rounded[tap] = on_grid(rounded[tap]).astype(np.float32)
    diagnosis, compared = verdicts(rounded)
    assert diagnosis.ok, str(diagnosis)
    assert diagnosis.rounding == "float32"
    assert any(f"bfloat16 ({tap}" in note for note in diagnosis.notes)
    assert compared[0].ok, str(compared[0])
    wrong = run({OUT: value(OUT) * 1.0001})
    diagnosis, compared = verdicts({**wrong, tap: on_grid(wrong[tap]).astype(np.float32)})
    assert diagnosis.first_divergence.name == "block.0.attn.out"
    assert compared[0].first_divergence.name == "block.0.attn.out"


@pytest.mark.parametrize("rounding", ["float16", "bfloat16"])
@pytest.mark.parametrize("seen", ["", "mlp.residual"])
def test_a_rounding_that_only_the_errors_show(rounding: str, seen: str) -> None:
    """Products of 16-bit values, kept in float32, as TF32 or an autocast leaves them."""
    rng = np.random.default_rng(4)
    policy = dithered(rounding, 3)
    found = predict(good().weights, CONFIG, SPECIFICATION, np.array(IDS), {}, names(CONFIG), policy)
    arrays = {
        tap: (x * (1 + 1e-7 * rng.normal(size=x.shape))).astype(np.float32)
        if x.dtype.kind == "f"
        else x
        for tap, x in found.items()
        if tap.endswith(seen)
    }
    diagnosis, compared = verdicts(arrays)
    assert diagnosis.ok, str(diagnosis)
    assert diagnosis.rounding == rounding
    assert any("stored finer" in note for note in diagnosis.notes)
    assert compared[0].ok, str(compared[0])


def test_a_stated_rounding_is_kept() -> None:
    arrays = run({OUT: value(OUT) * 1.001})
    for stated in (None, "float32"):
        diagnosis = gr.diagnose(good(), trace_of(arrays), rounding=stated)
        assert diagnosis.first_divergence is not None
        assert diagnosis.rounding == "float32"
