"""Rows that were not observed: whatever was shown of a right run is right, of a wrong one wrong.

The runs are the specification's own in float32, with rows taken away; the bug is planted by the
mutant of its name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import BFLOAT16, FLOAT32
from gptoss_ref.tracing.taps import names
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify import LogprobObservation, from_arrays
from gptoss_ref.verify.mutants import by_name
from gptoss_ref.verify.observe.adapters.partial_rows import merged
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION
from tests.support.strategies import as_weights, random_arrays, random_tokens, small_config

CONFIG = small_config()
TOKENS = random_tokens(CONFIG, 40, 0)
T, V = len(TOKENS), CONFIG.vocab_size
LAYERS = CONFIG.num_hidden_layers


@cache
def model() -> gr.Model:
    return gr.Model(CONFIG, as_weights(random_arrays(CONFIG, 0)), backend="numpy")


@cache
def run(bug: str | None) -> dict[str, np.ndarray]:
    ops = by_name(bug).apply() if bug else SPECIFICATION
    where = model().weights, CONFIG, ops, np.array(TOKENS)
    return predict(*where, {}, names(CONFIG), FLOAT32)


def without(arrays: dict[str, np.ndarray], rows: list[int]) -> dict[str, np.ndarray]:
    """NaN at some rows of everything, and no choices of experts."""
    kept = {}
    for name, values in arrays.items():
        if values.dtype.kind == "f":
            kept[name] = values.copy()
            kept[name][(slice(None), rows) if "weights" in name and "attn" in name else rows] = (
                np.nan
            )
    return kept


MISSING = [0, 1, 2, 7, 20, 21, 22, 23]


@pytest.mark.parametrize("bug", [None, "up-plus-one-missing", "sinks-dropped"])
def test_rows_of_nan_were_not_observed(bug: str | None) -> None:
    """Every tap point lacks them: what is computed from them comes from the tokens instead."""
    trace = from_arrays(without(run(bug), MISSING), TOKENS, CONFIG)
    assert np.array_equal(np.flatnonzero(~trace.observed("norm")), MISSING)
    diagnosis = gr.diagnose(model(), trace)
    assert [cause.name for cause in diagnosis.causes] == ([bug] if bug else [])
    assert diagnosis.ok == (bug is None)
    assert not diagnosis.mistakes
    assert any(f"{T - len(MISSING)} of {T} rows observed" in note for note in diagnosis.notes)
    reference = gr.trace(
        gr.Model(CONFIG, model().weights, policy="float64", backend="numpy"), TOKENS
    )
    compared = gr.compare(reference, trace)
    assert compared.ok == (bug is None)
    assert "nothing but NaN" not in str(compared)


def test_nan_that_was_computed_is_no_missing_row() -> None:
    """A row that is NaN from some tap point on."""
    arrays = {name: values.copy() for name, values in run(None).items()}
    at = list(arrays).index("block.1.attn.mix")
    for name in list(arrays)[at:]:
        if arrays[name].dtype.kind == "f" and "attn.weights" not in name:
            arrays[name][5] = np.nan
    diagnosis = gr.diagnose(model(), Trace(arrays, tokens=TOKENS, config=CONFIG))
    assert not diagnosis.ok
    assert diagnosis.first_divergence.name == "block.1.attn.mix"


@pytest.mark.parametrize("bug", [None, "rope-interleaved"])
@pytest.mark.parametrize("shape", [(V,), (1, V), (1, 1, V)])
def test_the_last_row_of_the_logits(bug: str | None, shape: tuple[int, ...]) -> None:
    row = run(bug)["logits"][-1].reshape(shape)
    trace = from_arrays({"logits": row}, TOKENS, CONFIG)
    assert np.flatnonzero(trace.observed("logits")).tolist() == [T - 1]
    assert gr.diagnose(model(), trace).ok == (bug is None)


@pytest.mark.parametrize("rounding", ["float32", "bfloat16", "float64"])
def test_a_late_row_shows_its_rounding(rounding: str) -> None:
    """The only row of a long prompt."""
    values = np.random.default_rng(1).normal(size=(1, V))
    row = {"float64": values, "float32": values.astype(np.float32)}.get(rounding)
    row = BFLOAT16.round(values.astype(np.float32)) if row is None else row
    trace = from_arrays({"logits": row}, random_tokens(CONFIG, 150, 0), CONFIG)
    assert np.flatnonzero(trace.observed("logits")).tolist() == [149]
    assert trace.dtype_name == rounding


@pytest.mark.parametrize("bug", [None, "rope-interleaved"])
def test_step_logits(bug: str | None) -> None:
    """generate(output_logits=True): a tuple of (1, V), the first after the prompt's last token."""
    prompt = 25
    steps = tuple(run(bug)["logits"][p][None] for p in range(prompt - 1, T - 1))
    trace = from_arrays({"logits": steps}, TOKENS, CONFIG, positions=range(prompt - 1, T - 1))
    assert np.flatnonzero(trace.observed("logits")).tolist() == list(range(prompt - 1, T - 1))
    diagnosis = gr.diagnose(model(), trace)
    assert diagnosis.ok == (bug is None)
    assert [c.name for c in diagnosis.causes] == ([bug] if bug else [])


@pytest.mark.parametrize("tap", ["logits", "norm"])
def test_rows_of_other_positions_than_stated(tap: str) -> None:
    """Steps that are one position off, and rows of a sorted batch."""
    rows, prompt = run(None)[tap], 25
    for step, theirs, own in (
        (1, "25, 26, 27, 28", "24, 25, 26, 27, and 11 more"),
        (2, "25, 27, 29, 31", "24, 26, 28, 30, and 4 more"),
    ):
        stated = range(prompt - 1, T - 1, step)
        trace = from_arrays({tap: rows[prompt::step]}, TOKENS, CONFIG, positions=stated)
        said = f"Rows of {tap} are those of positions {theirs}, and not of {own}."
        assert said in gr.diagnose(model(), trace).verdict
    diagnosis = gr.diagnose(model(), from_arrays({tap: rows[::-1]}, TOKENS, CONFIG))
    said = "those of positions 39, 38, 37, 36, and not of 0, 1, 2, 3, and 36 more."
    assert said in diagnosis.verdict
    assert not diagnosis.causes


@pytest.mark.parametrize("bug", [None, "gate-up-swapped"])
def test_stages_at_some_positions(bug: str | None) -> None:
    """Hidden states of every row, the rest of the last ones only."""
    some = np.array([T - 1, T - 5, -3])
    arrays = {f"block.{n}.mlp.residual": run(bug)[f"block.{n}.mlp.residual"] for n in range(LAYERS)}
    for name in ("block.1.attn.k", "block.1.mlp.swiglu", "block.1.mlp.expert_indices", "logits"):
        arrays[name] = run(bug)[name][some]
    trace = from_arrays(arrays, TOKENS, CONFIG, positions=some)
    assert trace.observed_in_part == set(arrays) - {n for n in arrays if "residual" in n}
    diagnosis = gr.diagnose(model(), trace)
    assert [c.name for c in diagnosis.causes] == ([bug] if bug else [])
    assert diagnosis.ok == (bug is None)


def test_prefill_and_steps_are_one_run(tmp_path: Any) -> None:
    """Attention weights of a step end with its own key."""
    whole = run(None)
    starts = [(0, 30), (30, 31), (31, 40)]
    parts = []
    for begin, end in starts:
        arrays = {
            name: values[:, begin:end, :end] if "attn.weights" in name else values[begin:end]
            for name, values in whole.items()
        }
        parts.append(from_arrays(arrays, TOKENS, CONFIG, positions=range(begin, end)))
    trace = merged(parts)
    assert not trace.observed_in_part
    for name in whole:
        assert np.array_equal(trace[name], whole[name])
    parts[1].save(tmp_path / "step.trace")
    loaded = Trace.load(tmp_path / "step.trace")
    assert loaded.observed("norm").tolist() == parts[1].observed("norm").tolist()
    wrong = from_arrays({"norm": whole["norm"][30:31] + 1}, TOKENS, CONFIG, positions=[30])
    with pytest.raises(TraceError, match="occur twice and differ"):
        merged([trace, wrong])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([], "expected integers"),
        ([1.5], "expected integers"),
        ([T], f"position {T} is not in the prompt: expected 0 to {T - 1}"),
        ([1, 1 - T], "twice"),
    ],
)
def test_positions_that_cannot_be(positions: Any, message: str) -> None:
    arrays = {"norm": np.zeros((len(positions), CONFIG.hidden_size))}
    with pytest.raises(TraceError, match=message):
        from_arrays(arrays, TOKENS, CONFIG, positions=positions)
    with pytest.raises(TraceError, match=r"has 3 tokens.* positions \(positions=\)"):
        from_arrays({"norm": np.zeros((3, CONFIG.hidden_size))}, TOKENS, CONFIG)


def test_what_has_no_place_is_listed() -> None:
    arrays = {
        "logits": run(None)["logits"],
        "layer1_attn_out": run(None)["block.1.attn.out"],
        "mine": np.zeros((T, CONFIG.hidden_size)),
        "block.0.mlp.norm": np.zeros((T, 3)),
        "text": "no array",
    }
    trace = from_arrays(arrays, TOKENS, CONFIG, unknown="skip")
    assert list(trace) == ["logits"]
    why = {entry.name: entry.why for entry in trace.skipped}
    assert set(why) == set(arrays) - {"logits"}
    assert "did you mean 'block.1.attn.out'" in why["layer1_attn_out"]
    assert "its shape is that of embedding, block.0.attn.norm" in why["mine"]
    assert {e.name: e.shape for e in trace.skipped}["block.0.mlp.norm"] == (T, 3)
    with pytest.raises(TraceError, match=r"names=\{'layer1_attn_out': 'block.1.attn.out'\}"):
        from_arrays(arrays, TOKENS, CONFIG)
    with pytest.raises(TraceError, match="expected 'raise' or 'skip'"):
        from_arrays(arrays, TOKENS, CONFIG, unknown="warn")


def test_one_array_in_two_dtypes() -> None:
    """bfloat16 beside the same values in float32, and beside what it was rounded from."""
    fine = run(None)["logits"]
    coarse = (fine.view(np.uint32) >> 16).astype(np.uint16)  # truncated: within a rounding of it
    rounded = (coarse.astype(np.uint32) << 16).view(np.float32)
    one = from_arrays({"lm_head": coarse, "logits": rounded}, TOKENS, CONFIG)
    assert one.dtype_of("logits") == "bfloat16"
    half = from_arrays({"lm_head": fine.astype(np.float16), "logits": fine}, TOKENS, CONFIG)
    assert half.dtype_of("logits") == "float32"
    with pytest.raises(TraceError, match="both logits, but differ"):
        from_arrays({"lm_head": coarse, "logits": fine * 1.01}, TOKENS, CONFIG)


@pytest.mark.parametrize("rounding", ["float32", "bfloat16"])
def test_log_probabilities_with_a_rounding_of_their_own(rounding: str) -> None:
    logits = run(None)["logits"].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    top = {
        p: {int(i): float(row[i]) for i in np.argsort(-row)[:5]} for p, row in enumerate(logprobs)
    }
    seen = LogprobObservation(TOKENS, top, vocab_size=V, rounding=rounding, resolution=1e-7)
    diagnosis = gr.diagnose(model(), seen)
    assert diagnosis.ok
    assert diagnosis.rounding == rounding
    off = {p: {i: v - 0.003 * (i % 3) for i, v in row.items()} for p, row in top.items()}
    shifted = LogprobObservation(TOKENS, off, vocab_size=V, rounding=rounding, resolution=1e-7)
    assert gr.diagnose(model(), shifted).ok == (rounding == "bfloat16")  # which explains that much


def test_observations_that_cannot_be() -> None:
    for wrong in ({"rounding": "int8"}, {"resolution": 0.0}):
        with pytest.raises(TraceError, match="expected"):
            LogprobObservation(TOKENS, {0: {1: -1.0}}, vocab_size=V, **wrong)


@pytest.mark.parametrize("rows", [[T - 1], [0], [T - 4, T - 3, T - 2, T - 1], [0, 2, 5, 9]])
def test_only_observed_rows_show_a_mistake(rows: list[int]) -> None:
    """Wrong logits beside right stages are not "shifted": the rows in between are unknown."""
    whole, rng = run(None), np.random.default_rng(0)
    wrong = whole["logits"][rows] + rng.normal(size=(len(rows), V)).astype(np.float32)
    trace = from_arrays(whole | {"logits": wrong}, TOKENS, CONFIG, positions=rows)
    reference = from_arrays(whole, TOKENS, CONFIG)
    for report in (gr.diagnose(model(), trace), gr.compare(reference, trace)):
        assert not report.ok
        assert report.first_divergence.name == "logits"
        assert "shifted" not in str(report)


def test_probabilities_at_some_rows() -> None:
    """Beside all stages: the same harmless form as for all rows."""
    whole, rows = run(None), [3, 4, 20, T - 1]
    logits = whole["logits"][rows].astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    arrays = whole | {"logits": shares.astype(np.float32)}
    diagnosis = gr.diagnose(model(), from_arrays(arrays, TOKENS, CONFIG, positions=rows))
    assert diagnosis.ok, str(diagnosis)
    assert "probabilities, not logits" in str(diagnosis)
