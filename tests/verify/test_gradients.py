"""Gradients in traces, and the bugs of backward passes that compare and diagnose find in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptoss_ref as gr
from docs._generate import backward_matrix
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import get_policy
from gptoss_ref.tracing import gradients as names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.gradients import search as search_module
from gptoss_ref.verify.gradients.hidden import resolved
from gptoss_ref.verify.gradients.mutants import CATALOGUE, CONVENTIONS
from gptoss_ref.verify.gradients.search import searched
from gptoss_ref.verify.gradients.stages import nodes
from gptoss_ref.verify.observe.adapters import from_arrays
from tests.support.buggy_twin.backward import CONVENTIONS as STOPS
from tests.support.buggy_twin.backward import FAULTS, RIGHT, BoundaryStops, ClampBothSides, Fault
from tests.support.buggy_twin.backward_cases import (
    SIZES,
    BackwardCase,
    backward_case,
    backward_trace,
)
from tests.support.torch_backward import Ops

ROUNDINGS = ("float64", "float32", "bfloat16")


def case() -> BackwardCase:
    return backward_case()


def traced(fault: Fault, rounding: str = "float32") -> Trace:
    return backward_trace(case(), fault, rounding)


def test_the_twin_has_every_bug_of_the_catalogue() -> None:
    faults = {name.split("/")[0] for name in FAULTS}
    assert faults == {mutant.name for mutant in CATALOGUE}
    assert set(STOPS) == {mutant.name for mutant in CONVENTIONS}
    assert len({m.name for m in CATALOGUE if m.reports}) >= 20


@pytest.mark.parametrize(
    ("fault", "rounding"),
    [
        (fault, rounding)
        for rounding in backward_matrix.DTYPES
        for fault in FAULTS
        if not any(f"|{fault}|" in key and rounding in key for key in backward_matrix.OPEN)
    ],
)
def test_each_bug_is_named_first(fault: str, rounding: str) -> None:
    """The backward part of `diagnose` alone, which is most of these tests' time."""
    found = searched(case()[4], traced(FAULTS[fault], rounding), rounding)
    causes = found.causes()
    assert causes, found.rows()
    name, _, variant = fault.partition("/")
    assert [cause.name for cause in causes] == [name]
    assert not found.unknown
    # block 1 has no window; and before a last norm without gradient all others are zero
    assert causes[0].blocks is None or "window" in name or name == "norm-without-gradient"
    if variant:
        assert causes[0].variant == variant


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fault", RIGHT)
def test_correct_runs_are_not_accused(fault: str, rounding: str) -> None:
    trace = traced(RIGHT[fault], rounding)
    found = gr.diagnose(case()[4], trace)
    assert found.ok, found
    assert found.judged == len(trace)


def stored(trace: Trace, dtype: str) -> Trace:
    """The same numbers, rounded when they were written down and not before."""
    round_ = get_policy(dtype).round
    arrays = {n: a if a.dtype.kind in "iu" else round_(a) for n, a in trace.items()}
    about = {"tokens": trace.tokens, "config": trace.config, "targets": trace.targets}
    return Trace(arrays, dtype=dtype, **about)


def test_computed_in_float32_and_stored_in_bfloat16() -> None:
    """Sums over tokens whose terms cancel were accused of gradients that nothing explains."""
    found = gr.diagnose(case().model, stored(traced(Fault()), "bfloat16"))
    assert found.ok, found
    bug = "clamp-gradient-of-both-sides"
    causes = searched(case().model, stored(traced(FAULTS[bug]), "bfloat16"), "bfloat16").causes()
    assert [cause.name for cause in causes] == [bug]
    assert causes[0].share == 1.0
    assert causes[0].blocks is None


class SigmoidByTanh(Ops):
    """Zero in bfloat16 for arguments of −7 and below, and right."""

    def swiglu(self, x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
        gate, up = x[..., 0::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
        return gate * (1 + torch.tanh(alpha * gate * 0.5)) * 0.5 * (up + 1)


def test_a_kernel_that_loses_small_values_is_not_accused() -> None:
    """Its gates below −7 get no gradient, as with a bug; but others of that size do not, either."""
    trace = traced(Fault(SigmoidByTanh), "bfloat16")
    gates, d = (trace[f"{of}block.1.mlp.gate_up"][..., 0::2] for of in ("", "grad."))
    assert not d[gates < -7].any()
    assert gr.diagnose(case().model, trace).ok


def test_small_values_vote_if_others_of_their_size_are_right() -> None:
    right = np.concatenate([np.ones(50), np.full(40, 1e-5)])
    told = np.arange(90) >= 80
    seen = np.where(told, 0, right)
    assert resolved(right, told, seen, 2.0**-8).all()
    lost = np.where(right < 1e-3, 0, right)
    assert (resolved(right, told, lost, 2.0**-8) == (right == 1)).all()
    alone = np.concatenate([right[:50], right[80:]])  # none of their size to compare with
    told = np.arange(60) >= 50
    assert (resolved(alone, told, np.where(told, 0, alone), 2.0**-8) == (alone == 1)).all()


class StopsAtTheBoundAndBelow(BoundaryStops, ClampBothSides):
    """A convention, and beside it a bug that is smaller than rounding."""


def test_a_hidden_bug_beside_a_convention() -> None:
    trace = traced(Fault(StopsAtTheBoundAndBelow), "bfloat16")
    found = searched(case().model, trace, "bfloat16")
    assert [cause.name for cause in found.causes()] == ["clamp-gradient-of-both-sides"]
    assert any("clamp-boundary-stops" in line for line in found.conventions())
    assert not found.unknown


@pytest.mark.parametrize("kept", [True, False])
def test_the_row_of_a_hidden_bug(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of arrays that are too large to be kept in float64, and are computed again."""
    if not kept:
        monkeypatch.setattr(search_module, "LOOKED_AT", 0)
    trace = traced(FAULTS["clamp-gradient-of-both-sides"], "bfloat16")
    search = searched(case().model, trace, "bfloat16")
    assert all((judged.exact is not None) == kept for judged in search.judged)
    row = next(row for row in search.rows() if row.name == "grad.block.1.mlp.gate_up")
    assert row.verdict == "hidden"
    assert "its values side with clamp-gradient-of-both-sides" in row.note


@pytest.mark.parametrize("chosen", [1, 3])
def test_the_auxiliary_loss_of_any_number_of_experts(
    chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "other", {**SIZES["three blocks"], "n_chosen": chosen})
    other = backward_case.__wrapped__("other")
    assert gr.diagnose(other.model, backward_trace(other, "none, balanced", "float64")).ok
    found = gr.diagnose(other.model, backward_trace(other, "auxiliary-loss-twice"))
    assert [cause.name for cause in found.causes] == ["auxiliary-loss-twice"]
    assert not found.unexplained


def test_a_convention_is_no_bug() -> None:
    found = gr.diagnose(case()[4], traced(STOPS["clamp-boundary-stops"]))
    assert not found.causes
    assert not found.unexplained
    assert any("clamp-boundary-stops" in line for line in found.rewritings)
    assert found.ok


def test_compare_judges_gradients_by_the_others_own_inputs() -> None:
    *_, tokens, targets, model = case()
    ref = gr.trace(model, tokens, targets=targets)
    right = gr.compare(ref, traced(Fault()))
    assert right.ok
    assert right.judged == len(ref)
    wrong = gr.compare(ref, traced(FAULTS["rope-turned-the-same-way"]))
    assert wrong.first_divergence is not None
    assert wrong.first_divergence.name == "grad.block.1.attn.q"
    diverging = [row.name for row in wrong.rows if row.verdict == "diverges"]
    assert diverging == [f"grad.block.{n}.attn.{c}" for n in (1, 0) for c in "qk"]
    assert "grad.block.1.attn.q" in str(wrong)
    ref.model = None
    shown = gr.compare(ref, traced(Fault()))
    assert shown.judged == len(ref.forward())
    assert any("only with the model" in note for note in shown.notes)


def test_gradients_alone_and_in_part() -> None:
    """No forward values, or few gradients: what lies between is computed."""
    trace = traced(FAULTS["sinks-gradient-sign"])
    model = case()[4]
    for kept in (
        lambda name: names.is_gradient(name),
        lambda name: name.endswith("sinks") or name in ("grad.logits", "embedding"),
        lambda name: not name.endswith((".weights", "rope")),
    ):
        part = Trace(
            {name: trace[name] for name in trace if kept(name)},
            tokens=trace.tokens,
            config=trace.config,
            dtype="float32",
            targets=trace.targets,
        )
        found = gr.diagnose(model, part)
        assert [cause.name for cause in found.causes] == ["sinks-gradient-sign"], found
        assert not found.unexplained


def test_two_bugs_in_some_blocks() -> None:
    wrong = traced(FAULTS["sinks-gradient-sign"])
    other = traced(FAULTS["alpha-missing-in-derivative"])
    arrays = {name: wrong[name] for name in wrong}
    for name in other:
        if name == "grad.block.0.mlp.gate_up":
            arrays[name] = other[name]
    sign = "grad.weights.block.1.attn.sinks"
    arrays[sign] = -arrays[sign]
    mixed = Trace(
        arrays, tokens=wrong.tokens, config=wrong.config, dtype="float32", targets=wrong.targets
    )
    found = gr.diagnose(case()[4], mixed)
    blocks = {cause.name: cause.blocks for cause in found.causes}
    assert blocks["sinks-gradient-sign"] == (0,)


def test_a_bug_nobody_knows_is_shown_and_not_named() -> None:
    trace = traced(Fault())
    arrays = {name: trace[name] for name in trace}
    arrays["grad.block.1.attn.mix"] = arrays["grad.block.1.attn.mix"][::-1]
    strange = Trace(
        arrays, tokens=trace.tokens, config=trace.config, dtype="float32", targets=trace.targets
    )
    found = gr.diagnose(case()[4], strange)
    assert found.unexplained[0].tap == "grad.block.1.attn.mix"
    assert not found.causes or found.causes[0].name not in ("sinks-gradient-sign",)


def test_files_keep_gradients_and_targets(tmp_path: Path) -> None:
    *_, tokens, targets, model = case()
    trace = gr.trace(
        model, tokens, targets=targets, path=tmp_path / "t.trace", router_aux_loss_coef=0.5
    )
    assert trace.targets is not None
    assert trace.targets.tolist() == targets
    assert trace.router_aux_loss_coef == 0.5
    assert set(trace.gradients) == set(names.names(trace.config)) == set(nodes(trace.config))
    expected = gr.backward(model, tokens, targets, router_aux_loss_coef=0.5, taps="*.q")
    np.testing.assert_allclose(trace["grad.block.0.attn.q"], expected.taps["block.0.attn.q"])
    sinks = "block.1.attn.sinks"
    np.testing.assert_allclose(trace["grad.weights." + sinks], expected.weights[sinks])
    assert gr.diagnose(model, trace).ok
    some = gr.trace(model, tokens, targets=targets, taps=["*.q", "grad.weights.*.sinks"])
    assert len(some) == 2 + 2 + 2


def test_version_1_is_still_read(tmp_path: Path) -> None:
    *_, tokens, _, model = case()
    path = tmp_path / "t.trace"
    gr.trace(model, tokens, taps="*.q").save(path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"gptoss-trace-2", b"gptoss-trace-1"))
    assert Trace.load(path).targets is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": [1, 2]}, r"targets have shape \(2,\)"),
        ({"targets": [71] * 22}, "target 71 is out of range"),
        ({"grad.block.0.attn.sinks": np.zeros(3)}, "unknown gradient"),
        ({"grad.weights.block.0.attn.sinks": np.zeros(3)}, r"expected \(H\) = \(8,\)"),
        ({"grad.block.0.mlp.expert_indices": np.zeros((22, 5))}, "unknown gradient"),
    ],
    ids=str,
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    config, _, tokens, targets, _ = case()
    about = {"targets": changes.pop("targets", targets)}
    with pytest.raises(TraceError, match=message):
        Trace(changes, tokens=tokens, config=config, **about)


def test_gradients_without_targets() -> None:
    config, _, tokens, _, model = case()
    trace = Trace({"grad.norm": np.ones((22, 19))}, tokens=tokens, config=config)
    with pytest.raises(TraceError, match="holds gradients and no targets"):
        gr.diagnose(model, trace, rounding="float32")


def transformers_trace(**about: Any) -> Trace:
    from tests.support.transformers_model import transformers_model

    config, arrays, tokens, targets, _ = case()
    return gr.verify.capture(transformers_model(config, arrays), tokens, targets=targets, **about)


def test_capture_of_transformers() -> None:
    trace = transformers_trace()
    found = gr.diagnose(case()[4], trace)
    assert found.ok, found
    assert {name for name in trace if name.startswith("grad.weights.")} == {
        name for name in names.names(trace.config) if name.startswith("grad.weights.")
    }
    stages = {names.split(name)[1] for name in trace.gradients}
    missing = {names.split(name)[1] for name in names.names(trace.config)} - stages
    assert missing == {"grad.mlp.expert_out"}  # transformers has no such tensor of all experts


def test_capture_of_openais_module_and_a_loss_of_ones_own() -> None:
    import torch

    from tests.support.openai_module import openai_module

    config, arrays, tokens, targets, model = case()
    module = openai_module(config, arrays)
    trace = gr.verify.capture(module, tokens, targets=targets)
    assert all(p.grad is None for p in module.parameters())
    assert gr.diagnose(model, trace).ok
    assert "grad.weights.block.0.attn.k_bias" in trace

    def padded(logits: Any, wanted: Any) -> Any:
        total = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return total / len(wanted)

    wrong = gr.verify.capture(module, tokens, targets=targets, loss=padded)
    found = gr.diagnose(model, wrong)
    assert [cause.name for cause in found.causes] == ["loss-averaged-over-padding"]
    for parameter in module.block[1].mlp.parameters(recurse=False):
        parameter.requires_grad_(False)
    frozen = gr.verify.capture(module, tokens, targets=targets)
    assert "grad.weights.block.1.mlp.mlp1_weight" not in frozen
    module.requires_grad_(False)
    with pytest.raises(TraceError, match="has no gradients"):
        gr.verify.capture(module, tokens, targets=targets)


def test_arrays_under_anybodys_names() -> None:
    trace = traced(FAULTS["rope-without-gradient"])
    config, _, tokens, targets, model = case()
    q = trace["block.1.attn.q"].reshape(1, 22, -1)
    arrays = {
        "model.layers.1.self_attn.q_proj": q,
        "grad.model.layers.1.self_attn.q_proj": np.zeros_like(q),
        "grad.block.1.attn.q_rope": trace["grad.block.1.attn.q_rope"],
    }
    found = from_arrays(arrays, tokens, config, targets=targets, dtype="float32")
    assert set(found) == {"block.1.attn.q", "grad.block.1.attn.q", "grad.block.1.attn.q_rope"}
    causes = gr.diagnose(model, found).causes
    assert [cause.name for cause in causes] == ["rope-without-gradient"]
    with pytest.raises(TraceError, match=r"\(targets=\)"):
        from_arrays(arrays, tokens, config)


def test_the_page_of_backward_bugs_is_up_to_date() -> None:
    from docs._generate import backward_bugs_page

    assert backward_bugs_page.PAGE.read_text() == backward_bugs_page.page()


def test_the_kill_matrix_has_a_backward_part() -> None:
    """All faults on both models in both dtypes, what each report names, and the page made of it."""
    cells = json.loads(backward_matrix.STORE.read_text())
    assert list(cells) == [case.key for case in backward_matrix.cases()]
    bad = {key for key, cell in cells.items() if not cell["ok"]}
    assert bad == set(backward_matrix.OPEN)
    assert backward_matrix.PAGE.read_text().endswith(backward_matrix.section(cells))
    kinds = ((known.part, known.dtype, known) for known in backward_matrix.cases())
    pairs = [known for part, dtype, known in kinds if (part, dtype) == ("pair", "bfloat16")]
    for known in pairs[::2]:  # once more, on both models
        assert backward_matrix.judge(known) == cells[known.key]
