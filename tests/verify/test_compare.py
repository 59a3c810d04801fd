"""compare: correct runs are never accused, wrong ones at the right tap point; figures; bad input.

The other traces come from the torch twins and from transformers, which share nothing with the
package.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptoss_ref as gr
from gptoss_ref.errors import TraceError
from gptoss_ref.tracing.record import trace
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.compare import compare
from gptoss_ref.verify.noise.noise_floor import made_by, measure_noise_floors
from gptoss_ref.verify.observe.adapters import capture
from gptoss_ref.verify.report.report import Report
from tests.support import torch_twin
from tests.support.agreement import TORCH
from tests.support.buggy_twin import REWRITINGS, random_checkpoint, run
from tests.support.checks_model import build_model, taps_of
from tests.support.strategies import as_torch, random_arrays, random_tokens, small_config
from tests.support.transformers_model import transformers_model
from tests.support.work import at_most_calls

pytestmark = pytest.mark.usefixtures("one_torch_thread")

KINDS = {**TORCH, "float16": torch.float16}
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"layers": 5, "n_kv": 3, "group": 2, "head_dim": 12, "experts": 7, "n_chosen": 1},
    {"layers": 2, "group": 5, "head_dim": 16, "experts": 11, "n_chosen": 4, "window": 13},
)
LENGTHS = (1, 2, 5, 20, 40, 70)


def twin(config: Any, arrays: Any, tokens: list[int], dtype: str) -> Trace:
    """The torch twin's trace in one dtype; it computes float16 where it computes bfloat16."""
    wide = torch_twin.wide
    torch_twin.wide = lambda x: x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    try:
        weights = as_torch(arrays, KINDS[dtype])
        taps = taps_of(lambda tap: torch_twin.forward(config, weights, tokens, tap))
    finally:
        torch_twin.wide = wide
    kept = np.float64 if dtype == "float64" else np.float32
    floats = {name: x.astype(kept) if x.dtype.kind == "f" else x for name, x in taps.items()}
    return Trace(floats, tokens=tokens, config=config, producer="torch twin", dtype=dtype)


@cache
def reference(length: int = 40, seed: int = 1, shape: int = 0) -> tuple[gr.Model, Any, Trace]:
    """A random model in float64, its arrays, and its trace."""
    config = small_config(**SHAPES[shape])
    arrays = random_arrays(config, seed, clamp=[1.0, 6.0][seed % 2])
    model = build_model(config, arrays, "float64")
    return model, arrays, trace(model, random_tokens(config, length, seed))


def without_model(kept: Trace, **changes: Any) -> Trace:
    """The same trace as if read from a file, with some arrays exchanged or (None) left out."""
    arrays = {name: kept[name] for name in kept} | changes
    return Trace(
        {name: values for name, values in arrays.items() if values is not None},
        tokens=kept.tokens,
        config=kept.config,
        dtype=kept.dtype_name,
    )


def other(dtype: str = "float32", **changes: Any) -> Trace:
    """The twin's trace of :func:`reference`."""
    model, arrays, kept = reference()
    return without_model(twin(model.config, arrays, kept.tokens.tolist(), dtype), **changes)


def excesses(report: Report) -> dict[str, float]:
    return {row.name: row.excess for row in report.rows}


# --- correct runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_correct_runs_are_not_accused(dtype: str) -> None:
    """With the model's noise floor, and with the one that needs no model."""
    for seed, length in enumerate(LENGTHS):
        model, arrays, ref = reference(length, seed, seed % len(SHAPES))
        theirs = twin(model.config, arrays, ref.tokens.tolist(), dtype)
        for reference_trace in (ref, without_model(ref)):
            report = compare(reference_trace, theirs)
            assert report.ok, str(report)
            assert report.rounding == dtype
            assert not report.missing
        measured = compare(ref, theirs)
        assert measured.judged == len(ref)
        assert max(excesses(measured).values()) <= 1


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_a_reference_that_rounds_itself(policy: str) -> None:
    model, arrays, ref = reference()
    rounded = trace(build_model(model.config, arrays, policy), ref.tokens)
    for dtype in ("float64", "float32", "bfloat16"):
        report = compare(rounded, other(dtype))
        assert report.ok, str(report)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_correct_transformers_models(kind: str) -> None:
    """Transformers rounds elsewhere: rotary angles in float32, a sum of experts one by one."""
    for seed, length in enumerate(LENGTHS):
        model, arrays, ref = reference(length, seed, seed % len(SHAPES))
        module = transformers_model(model.config, arrays).to(KINDS[kind])
        theirs = capture(module, ref.tokens.tolist())
        report = compare(ref, theirs)
        assert report.ok, str(report)
        assert report.rounding == kind
        assert report.judged == len(theirs)


def test_the_bundled_model_in_transformers(tiny: Any, tiny_transformers: Any) -> None:
    """More tokens than the noise floor is measured on."""
    tokens = random_tokens(tiny.config, 300, 0)
    ref = trace(gr.load("tiny", policy="float64"), tokens)
    theirs = capture(tiny_transformers, tokens)
    report = compare(ref, theirs)
    assert report.ok, str(report)
    assert report.judged == len(theirs) > 90
    assert "first 256 tokens" in report.yardstick


# --- wrong runs --------------------------------------------------------------------------------

FIRST_SHOWN = {
    "yarn-truncated": "block.0.attn.q_rope",
    "sinks-dropped": "block.0.attn.weights",
    "window-plus-one": "block.0.attn.weights",
    "window-everywhere": "block.1.attn.weights",
    "gqa-axes-swapped": "block.0.attn.weights",
    "router-bias-missing": "block.0.mlp.router_logits",
    "softmax-before-topk": "block.0.mlp.expert_weights",
    "clamp-gate-symmetric": "block.0.mlp.swiglu",
    "alpha-missing": "block.0.mlp.swiglu",
    "down-bias-unweighted": "block.0.mlp.out",
    "shard-lost-rows": "block.0.mlp.gate_up",
    "norm-eps": "block.0.attn.norm",
    "residual-missing": "block.0.attn.residual",
    "embedding-scaled": "embedding",
    "unembedding-tied": "logits",
}


@cache
def suspect_reference() -> tuple[gr.Model, Trace]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint().write(Path(folder))
        model = gr.load(folder, policy="float64")
        tokens = random_tokens(model.config, 50, 0)
        return model, trace(model, tokens)


def suspect(bug: str, dtype: str = "float32") -> Trace:
    _, ref = suspect_reference()
    taps = run(random_checkpoint(), ref.tokens.tolist(), dtype, {bug})
    return Trace(taps, tokens=ref.tokens, config=ref.config, dtype=dtype)


@pytest.mark.parametrize("bug", FIRST_SHOWN)
def test_a_bug_shows_first_where_it_is(bug: str) -> None:
    _, ref = suspect_reference()
    theirs = suspect(bug)
    report = compare(ref, theirs)
    assert not report.ok
    assert report.first_divergence is not None
    assert report.first_divergence.name == FIRST_SHOWN[bug]
    wrong = [row.verdict for row in report.rows if row.verdict in ("diverges", "nan")]
    assert len(wrong) == 1  # what comes after it follows
    if bug != "clamp-gate-symmetric":  # whose error is 1e-5
        assert compare(without_model(ref), theirs).first_divergence is not None


def test_a_window_bug_tells_its_first_token() -> None:
    model, ref = suspect_reference()
    row = compare(ref, suspect("window-plus-one")).first_divergence
    assert row is not None
    assert row.first_token == model.config.sliding_window
    assert f"at tokens from {row.first_token} on" in row.note


@pytest.mark.parametrize("rewriting", REWRITINGS)
def test_rewritings_are_not_accused(rewriting: str) -> None:
    _, ref = suspect_reference()
    theirs = suspect(rewriting)
    for reference_trace in (ref, without_model(ref)):
        report = compare(reference_trace, theirs)
        assert report.ok, str(report)
    assert compare(ref, suspect(rewriting, "bfloat16")).ok
    if rewriting == "scale-in-query":
        verdicts = {row.name: row.verdict for row in compare(ref, theirs).rows}
        assert verdicts["block.0.attn.q_rope"] == "rewritten"
        assert verdicts["block.0.attn.weights"] == "ok"


# --- routing -----------------------------------------------------------------------------------


def test_ties_are_told_with_their_margin() -> None:
    """The twin's bfloat16 run takes other experts than float64, where they are nearly equal."""
    _, _, ref = reference()
    theirs = other("bfloat16")
    report = compare(ref, theirs)
    chosen = "block.0.mlp.expert_indices"
    a, b = (np.sort(x[chosen], axis=1) for x in (ref, theirs))
    differs = np.flatnonzero((a != b).any(axis=1))
    assert differs.size
    row = next(row for row in report.rows if row.name == chosen)
    assert row.verdict == "tie"
    assert row.extra["sets_equal"] == 1 - differs.size / len(a)
    flips = [flip for flip in report.flips if flip.block == 0]
    assert [flip.token for flip in flips] == differs.tolist()
    for flip in flips:
        logits = ref["block.0.mlp.router_logits"][flip.token]
        assert {*flip.left} == {*a[flip.token]} - {*b[flip.token]}
        assert {*flip.taken} == {*b[flip.token]} - {*a[flip.token]}
        margin = logits[list(flip.left)].max() - logits[list(flip.taken)].min()
        assert flip.margin == pytest.approx(margin, abs=1e-5)  # computed again, in float32
        assert flip.margin <= flip.allowed


def test_what_follows_a_tie_is_set_aside_without_a_model() -> None:
    _, _, ref = reference()
    report = compare(without_model(ref), other("bfloat16"))
    rows = {row.name: row for row in report.rows}
    assert report.ok
    assert "left out: what follows the routing tie" in rows["block.0.mlp.expert_out"].note
    assert rows["block.0.attn.out"].note == ""


def test_a_choice_against_ones_own_logits_is_wrong() -> None:
    name = "block.1.mlp.expert_indices"
    indices = other()[name].copy()
    logits = other()["block.1.mlp.router_logits"]
    indices[7, 0] = np.argsort(logits[7])[0]  # the least likely expert
    report = compare(reference()[2], other(**{name: indices}))
    assert report.first_divergence is not None
    assert report.first_divergence.name == name
    assert report.first_divergence.first_token == 7
    assert "not the largest of OTHER's own logits" in report.first_divergence.note
    alone = compare(reference()[2], other(**{name: indices, "block.1.mlp.router_logits": None}))
    assert alone.first_divergence is not None
    assert alone.first_divergence.name == name
    assert "the margin is" in alone.first_divergence.note


def test_experts_in_another_order() -> None:
    """Sets are compared, and the axis A is put in order."""
    order = np.array([3, 0, 4, 1, 2])
    theirs = other()
    stages = ("expert_indices", "expert_weights", "gate_up", "swiglu", "expert_out")
    changes = {
        f"block.{n}.mlp.{stage}": theirs[f"block.{n}.mlp.{stage}"][:, order]
        for n in range(3)
        for stage in stages
    }
    for ref in (reference()[2], without_model(reference()[2])):
        report = compare(ref, other(**changes))
        assert report.ok, str(report)
        assert {row.verdict for row in report.rows} == {"ok"}


def test_without_experts_tokens_near_a_tie_are_set_aside() -> None:
    """bfloat16 logits alone: which routes were taken is not known."""
    _, _, ref = reference()
    theirs = other("bfloat16")
    only = Trace(
        {"logits": theirs["logits"]}, tokens=ref.tokens, config=ref.config, dtype="bfloat16"
    )
    report = compare(ref, only)
    assert report.first_divergence is None
    assert "near a routing tie" in report.rows[0].note
    exact = Trace({"logits": other()["logits"]}, tokens=ref.tokens, config=ref.config)
    report = compare(ref, exact)
    assert [row.verdict for row in report.rows] == ["ok"]
    assert len(report.missing) == len(ref) - 1


# --- figures -----------------------------------------------------------------------------------


def test_figures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(5)
    _, _, ref = reference()
    a = ref["logits"]
    b = (a * (1 + 1e-3 * rng.normal(size=a.shape))).astype(np.float32).astype(np.float64)
    report = compare(ref, other(logits=b.astype(np.float32)))
    row = report.rows[-1]
    assert row.name == "logits"
    assert row.verdict == "diverges"
    assert row.shape == a.shape
    assert row.dtypes == ("float64", "float32")
    assert row.max_abs == pytest.approx(np.abs(a - b).max())
    assert row.rel_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert row.rounding_units == pytest.approx(row.rel_l2 * 2**24)
    assert row.cosine == pytest.approx(
        (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12
    )
    p, q = (torch.from_numpy(x.astype(np.float64)).log_softmax(-1) for x in (a, b))
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert row.extra["kl_mean"] == pytest.approx(float(kl.mean()))
    assert row.extra["kl_max"] == pytest.approx(float(kl.max()))
    top = [torch.from_numpy(x.astype(np.float64)).topk(5).indices.tolist() for x in (a, b)]
    assert row.extra["top1"] == np.mean([x[0] == y[0] for x, y in zip(*top, strict=True)])
    shared = [len({*x} & {*y}) / 5 for x, y in zip(*top, strict=True)]
    assert row.extra["top5"] == pytest.approx(np.mean(shared))


def test_a_yardstick_of_ones_own() -> None:
    _, _, ref = reference()
    report = compare(ref, other(), yardstick={"logits": 1e-12})
    assert report.first_divergence is not None
    assert report.first_divergence.name == "logits"
    assert report.yardstick == "as given"
    assert compare(ref, other(), yardstick={"logits": 1e-4}).ok


def test_a_yardstick_measured_before() -> None:
    model, _, ref = reference()
    yardstick = measure_noise_floors(model, ref.tokens, "float32")
    assert set(yardstick.levels) == set(ref)
    assert compare(without_model(ref), other(), yardstick=yardstick).ok
    assert 1e-8 < yardstick.level("logits", 40).whole < 1e-5
    longer = yardstick.level("logits", 80)
    assert longer.rows.shape == (80,)
    assert longer.rows[40:].min() >= longer.rows[:40].max()


# --- bad input ---------------------------------------------------------------------------------


def test_nan_and_infinity_are_named() -> None:
    name = "block.1.attn.out"
    for value in (np.nan, np.inf):
        values = other()[name].copy()
        values[4:, 2] = value
        report = compare(reference()[2], other(**{name: values}))
        row = report.first_divergence
        assert row is not None
        assert (row.name, row.verdict, row.first_token) == (name, "nan", 4)
        assert "36 values are NaN or infinite in one trace only" in row.note
        json.dumps(report.to_json(), allow_nan=False)


def test_what_is_nan_in_both_is_no_verdict() -> None:
    _, _, ref = reference()
    nothing = np.full_like(ref["norm"], np.nan)
    report = compare(without_model(ref, norm=nothing), other(norm=nothing.astype(np.float32)))
    row = next(row for row in report.rows if row.name == "norm")
    assert row.verdict == "unjudged"
    assert row.note == "all values are NaN or infinite in both"
    some = ref["norm"].copy()
    some[3, 4] = np.nan
    assert compare(without_model(ref, norm=some), other(norm=some.astype(np.float32))).ok


def test_missing_taps_are_left_out_and_said() -> None:
    left = ("block.0.attn.q", "block.1.mlp.expert_indices", "norm")
    report = compare(reference()[2], other(**dict.fromkeys(left)))
    assert report.missing == left
    assert report.ok
    assert "block.*.mlp.expert_indices" in str(report)
    assert compare(without_model(reference()[2], norm=None), other()).missing == ("norm",)


def test_traces_that_do_not_belong_together() -> None:
    model, _, ref = reference()
    theirs = other()
    tokens = ref.tokens.tolist()
    shorter = trace(model, tokens[:-1], taps="logits")
    with pytest.raises(
        TraceError, match=r"REF has 40 tokens, OTHER 39 \(the first 39 are the same\)"
    ):
        compare(ref, shorter)
    changed = [*tokens[:5], (tokens[5] + 1) % 71, *tokens[6:]]
    with pytest.raises(TraceError, match=rf"token 5 is {tokens[5]} in REF and {changed[5]} in"):
        compare(ref, trace(model, changed, taps="logits"))
    config = dataclasses.replace(ref.config, sliding_window=7)
    moved = Trace({"logits": theirs["logits"]}, tokens=tokens, config=config)
    with pytest.raises(TraceError, match="different models: sliding_window: 6 / 7"):
        compare(ref, moved)
    with pytest.raises(
        TraceError, match=r"no tap point in common: REF holds norm, OTHER holds log"
    ):
        compare(trace(model, tokens, taps="norm"), trace(model, tokens, taps="logits"))
    with pytest.raises(TraceError, match="rounding of OTHER cannot be told"):
        compare(
            ref,
            without_model(Trace({"embedding": ref["embedding"]}, tokens=tokens, config=ref.config)),
        )
    with pytest.raises(TraceError, match="unknown rounding 'quarter'"):
        compare(ref, theirs, rounding="quarter")


def test_nothing_is_judged_where_nothing_is_known() -> None:
    """Logits alone and no model: no verdict, rather than one from nothing."""
    model, _, ref = reference()
    only = [
        Trace({"logits": x["logits"]}, tokens=ref.tokens, config=model.config)
        for x in (ref, other())
    ]
    report = compare(*only)
    assert report.judged == 0
    assert report.rows[0].verdict == "unjudged"
    assert not report.ok
    assert report.verdict == "No verdict: none of the 60 tap points could be judged."


def test_who_made_a_trace() -> None:
    model, _, ref = reference()
    assert made_by(model, ref)
    assert made_by(model, other("bfloat16"))
    foreign = build_model(model.config, random_arrays(model.config, 99), "float32")
    assert not made_by(foreign, ref)
    assert not made_by(gr.load("tiny"), ref)


def test_a_trace_of_one_tap_point_is_compared_at_once(tiny: gr.Model) -> None:
    """Who else is computed from it is found without following every path through the model.

    There are 18 million paths.
    """
    trace = gr.trace(tiny, [1, 2, 3])
    values = trace["embedding"]
    for odd, ok in ((values, True), (np.full_like(values, np.nan), False)):
        other = Trace({"embedding": odd}, tokens=trace.tokens, config=trace.config)
        with at_most_calls(1_000_000):
            assert gr.compare(trace, other, rounding="float32").ok == ok


def test_progress_is_told() -> None:
    """Of a trace after each block, and of a comparison at each tap point."""
    model, _, ref = reference()
    said: list[tuple[int, int, str]] = []
    again = trace(model, ref.tokens, taps="logits", progress=lambda *step: said.append(step))
    layers = model.config.num_hidden_layers
    assert said == [(n + 1, layers, f"block.{n}.mlp.residual") for n in range(layers)]
    assert list(again) == ["logits"]
    said.clear()
    compare(
        ref, Trace(ref, tokens=ref.tokens, config=ref.config), progress=lambda *s: said.append(s)
    )
    assert said[-1][:2] == (len(said), len(said))
    assert said[-1][2] == "comparing logits"
