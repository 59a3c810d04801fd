"""Local replay and diagnosis, on the torch twin's runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptoss_ref as gr
from gptoss_ref.errors import TraceError
from gptoss_ref.verify.noise.tap_check import replay
from gptoss_ref.verify.observe.observation import LogprobObservation
from gptoss_ref.verify.replay.ops import SPECIFICATION
from tests.support.buggy_twin import Checkpoint, planted, random_checkpoint, run

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LENGTH = 40
Taps = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gr.Model:
    folder = random_checkpoint().write(tmp_path_factory.mktemp("random") / "checkpoint")
    return gr.load(folder, backend="numpy")


@pytest.fixture(scope="module")
def tokens(model: gr.Model) -> list[int]:
    rng = np.random.default_rng(11)
    return [int(t) for t in rng.integers(0, model.config.vocab_size, LENGTH)]


def altered(name: str, change: Any) -> Checkpoint:
    """The random checkpoint with one tensor changed, unknown to the model under test."""
    checkpoint = random_checkpoint()
    tensors = dict(checkpoint.tensors)
    tensors[name] = change(tensors[name].clone())
    return dataclasses.replace(checkpoint, tensors=tensors)


def names_of(diagnosis: Any) -> list[str]:
    return [cause.name for cause in diagnosis.causes]


def diagnose(
    model: gr.Model, taps: Taps, tokens: Iterable[int], dtype: str = "float32", **named: Any
) -> Any:
    trace = gr.Trace(taps, tokens=tokens, config=model.config, producer="twin", dtype=dtype)
    return gr.diagnose(model, trace, **named)


# --- local replay ---


def test_an_error_stays_where_it_is_made(model: gr.Model, tokens: list[int]) -> None:
    """All that the changed tap point was computed from and into diverges, and nothing else."""
    taps = run(random_checkpoint(), tokens, "float32")
    taps["block.1.attn.q"] = taps["block.1.attn.q"] + np.float32(0.01)
    trace = gr.Trace(taps, tokens=tokens, config=model.config)
    wrong = [
        local.tap
        for local in replay(model.weights, trace, SPECIFICATION, "float32")
        if local.excess > 1
    ]
    assert wrong == ["block.1.attn.q", "block.1.attn.q_rope"]


def test_drift_never_adds_up(model: gr.Model, tokens: list[int]) -> None:
    """A bfloat16 run is far from float64 in the end, but each stage is right from its inputs."""
    taps = run(random_checkpoint(), tokens, "bfloat16")
    exact = gr.Model(model.config, model.weights, policy="float64", backend="numpy")(tokens)
    drift = np.linalg.norm(taps["logits"] - exact) / np.linalg.norm(exact)
    trace = gr.Trace(taps, tokens=tokens, config=model.config, dtype="bfloat16")
    tap_errors = {x.tap: x for x in replay(model.weights, trace, SPECIFICATION, "bfloat16")}
    assert max(local.excess for local in tap_errors.values()) < 0.5
    assert tap_errors["logits"].whole < drift / 3


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[gr.Model, Checkpoint]:
    """Two experts whose logits are 1e-6 apart: the model prefers one of them, the other the other.

    That is what float32 rounding may do.
    """
    gate = "block.1.mlp.gate."

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        tensor[7] = tensor[3]
        return tensor

    checkpoint = altered(gate + "weight", copied)
    bias = checkpoint.tensors[gate + "bias"].clone()
    bias[3], bias[7] = 0.0, -(2.0**-20)
    mine = {**checkpoint.tensors, gate + "bias": bias.clone()}
    bias[7] = 2.0**-20
    folder = tmp_path_factory.mktemp("tied") / "checkpoint"
    model = gr.load(dataclasses.replace(checkpoint, tensors=mine).write(folder), backend="numpy")
    return model, dataclasses.replace(checkpoint, tensors={**mine, gate + "bias": bias})


def test_a_router_flip_within_its_margin_is_a_tie(
    tied: tuple[gr.Model, Checkpoint], tokens: list[int]
) -> None:
    model, other = tied
    taps = run(other, tokens, "float32")
    assert diagnose(model, taps, tokens, "float32").ok
    del taps["block.1.mlp.router_logits"]  # without them the choice is not seen to be its own
    diagnosis = diagnose(model, taps, tokens, "float32")
    assert diagnosis.ok, str(diagnosis)
    assert any(flip.left == (3,) and flip.taken == (7,) for flip in diagnosis.flips)
    assert all(flip.margin <= flip.allowed for flip in diagnosis.flips)


def test_rows_that_hang_on_an_unseen_tie_are_left_out(
    tied: tuple[gr.Model, Checkpoint], tokens: list[int]
) -> None:
    """Nobody says which experts were taken: the rows may be as far off as they like."""
    model, other = tied
    taps = run(other, tokens, "float32")
    seen = {name: values for name, values in taps.items() if name.endswith("residual")}
    trace = gr.Trace(seen, tokens=tokens, config=model.config, dtype="float32")
    tap_errors = {x.tap: x for x in replay(model.weights, trace, SPECIFICATION, "float32")}
    local = tap_errors["block.1.mlp.residual"]
    assert (local.error[local.tied] > local.allowed[local.tied]).any()
    assert local.judged
    diagnosis = gr.diagnose(model, trace)
    assert diagnosis.ok, str(diagnosis)


def test_a_choice_beyond_the_margin_is_an_error(model: gr.Model, tokens: list[int]) -> None:
    taps = run(random_checkpoint(), tokens, "float32")
    chosen = taps["block.2.mlp.expert_indices"]
    unchosen = next(e for e in range(model.config.num_experts) if e not in chosen[5])
    chosen[5, 0] = unchosen
    diagnosis = diagnose(model, taps, tokens)
    assert [u.tap for u in diagnosis.unexplained][:1] == ["block.2.mlp.expert_indices"]
    assert "the first 5" in diagnosis.unexplained[0].where


# --- naming ---


def test_two_bugs_in_one_stage(model: gr.Model, tokens: list[int]) -> None:
    bugs = {"sinks-dropped", "window-plus-one"}
    taps = run(random_checkpoint(), tokens, "float32", bugs)
    diagnosis = diagnose(model, taps, tokens)
    assert set(names_of(diagnosis)) == bugs
    assert not diagnosis.unexplained
    assert json.loads(json.dumps(diagnosis.to_json()))["causes"][0]["reports"]
    assert "window-plus-one: " in str(diagnosis)


def test_a_bug_below_the_yardstick_is_named_by_votes(model: gr.Model, tokens: list[int]) -> None:
    """The norm's epsilon is far below bfloat16's roundings, but tips some of them."""
    taps = run(random_checkpoint(), tokens, "bfloat16", {"norm-eps"})
    diagnosis = diagnose(model, taps, tokens, "bfloat16")
    assert names_of(diagnosis) == ["norm-eps"]
    assert diagnosis.causes[0].share > 0.9
    assert not diagnosis.ok
    assert diagnosis.first_divergence is None, "no row is beyond its allowance"
    assert diagnosis.hidden is not None
    assert diagnosis.hidden.name == diagnosis.causes[0].tap
    assert json.loads(json.dumps(diagnosis.to_json()))["first_divergence"] is None
    assert "<title>Bug smaller than rounding" in diagnosis.to_html()


def test_a_bug_in_one_block_only_is_placed(model: gr.Model, tokens: list[int]) -> None:
    """Block 1 of the other lost its sinks."""

    def gone(sinks: torch.Tensor) -> torch.Tensor:
        return torch.full_like(sinks, -1e30)

    taps = run(altered("block.1.attn.sinks", gone), tokens, "float32")
    (cause,) = diagnose(model, taps, tokens).causes
    assert (cause.name, cause.blocks) == ("sinks-dropped", (1,))
    assert "in block 1 only" in cause.lines()[0]


def test_what_no_known_bug_explains_is_described(model: gr.Model, tokens: list[int]) -> None:
    """Other weights in one key/value head of one block."""
    config = model.config
    row = (config.num_attention_heads + 1) * config.head_dim  # key head 1

    def noisy(weight: torch.Tensor) -> torch.Tensor:
        weight[row : row + config.head_dim] *= 1.25
        return weight

    taps = run(altered("block.2.attn.qkv.weight", noisy), tokens, "float32")
    diagnosis = diagnose(model, taps, tokens)
    assert not diagnosis.causes
    (unexplained,) = diagnosis.unexplained
    assert unexplained.taps == ("block.2.attn.k",)
    assert unexplained.where == "all tokens, key/value head 1"
    assert "none of the known bugs explains this" in diagnosis.verdict
    assert not diagnosis.ok


def test_a_known_bug_beside_an_unknown_one(model: gr.Model, tokens: list[int]) -> None:
    def noisy(scale: torch.Tensor) -> torch.Tensor:
        return scale + 0.25

    other = altered("block.0.mlp.norm.scale", noisy)
    diagnosis = diagnose(model, run(other, tokens, "float32", {"window-plus-one"}), tokens)
    assert names_of(diagnosis) == ["window-plus-one"]
    assert [u.tap for u in diagnosis.unexplained] == ["block.0.mlp.norm"]


def test_a_short_prompt_hides_the_window(model: gr.Model, tokens: list[int]) -> None:
    """Up to the window's length nothing is wrong; two tokens later some mutants look alike."""
    window = model.config.sliding_window
    short, longer = tokens[:window], tokens[: window + 1]
    bug = {"window-plus-one"}
    assert diagnose(model, run(random_checkpoint(), short, "float32", bug), short).ok
    taps = run(random_checkpoint(), longer, "float32", bug)
    (cause,) = diagnose(model, taps, longer).causes
    assert {"window-plus-one", "window-nowhere"} <= {cause.name, *cause.alternatives}
    assert cause.confidence < 1


@pytest.mark.parametrize("bug", ["yarn-truncated", "gate-up-swapped", "sinks-dropped"])
def test_block_boundaries_alone_will_do(model: gr.Model, tokens: list[int], bug: str) -> None:
    taps = run(random_checkpoint(), tokens, "bfloat16", {bug})
    seen = {k: v for k, v in taps.items() if k.endswith(("residual", "embedding", "logits"))}
    assert names_of(diagnose(model, seen, tokens, "bfloat16")) == [bug]


@pytest.mark.parametrize("seen", ["", "logits"])
def test_nothing_but_nan_on_both_sides_is_no_verdict(
    tokens: list[int], tmp_path: Path, seen: str
) -> None:
    """A scale byte of 255 is NaN by the specification: who has it too may be right or wrong."""
    checkpoint = planted(random_checkpoint(), 255)
    model = gr.load(checkpoint.write(tmp_path), backend="numpy", scale_255="nan")
    taps = run(checkpoint, tokens, "float32")
    late = {name: taps[name] for name in taps if name.startswith(seen or "block.1.attn.")}
    diagnosis = diagnose(model, late, tokens, "float32")
    assert not diagnosis.ok
    assert diagnosis.outcome == "No verdict"
    assert not diagnosis.causes
    assert {row.verdict for row in diagnosis.rows} == {"unjudged"}


def test_nan_is_found_and_not_accused(model: gr.Model, tokens: list[int]) -> None:
    taps = run(random_checkpoint(), tokens, "float32")
    taps["block.1.mlp.swiglu"][3, 0, 5] = np.nan
    diagnosis = diagnose(model, taps, tokens)
    assert diagnosis.first_divergence is not None
    assert diagnosis.first_divergence.name == "block.1.mlp.swiglu"
    assert diagnosis.first_divergence.verdict == "nan"
    assert not diagnosis.causes
    assert "token" in diagnosis.unexplained[0].where


# --- outputs alone ---


@pytest.mark.parametrize(
    ("rows", "odd"), [(slice(7, 8), np.nan), (slice(-4, None), np.inf), (slice(None), np.nan)]
)
@pytest.mark.filterwarnings("error")
def test_logits_that_are_no_numbers_are_wrong(
    model: gr.Model, tokens: list[int], rows: slice, odd: float
) -> None:
    """However few the rows are."""
    logits = run(random_checkpoint(), tokens, "float32")["logits"]
    logits[rows, 5] = odd
    diagnosis = diagnose(model, {"logits": logits}, tokens, "float32")
    assert not diagnosis.ok
    assert diagnosis.first_divergence is not None
    assert diagnosis.first_divergence.verdict == "nan"
    assert not diagnosis.causes


@pytest.mark.parametrize(
    ("bug", "dtype"),
    [  # test_kill_matrix.py has others in float32
        ("yarn-truncated", "bfloat16"),
        ("down-bias-unweighted", "float32"),
        (None, "float32"),
        (None, "bfloat16"),
    ],
)
def test_logits_alone(model: gr.Model, tokens: list[int], bug: str | None, dtype: str) -> None:
    taps = run(random_checkpoint(), tokens, dtype, {bug} if bug else ())
    diagnosis = diagnose(model, {"logits": taps["logits"]}, tokens, dtype)
    assert names_of(diagnosis)[:1] == ([bug] if bug else [])
    assert diagnosis.ok == (bug is None)


@pytest.mark.parametrize(
    ("bugs", "named"),
    [
        ((), []),
        (("unembedding-tied",), ["unembedding-tied"]),
        (("sinks-dropped",), ["sinks-dropped"]),
        (("sinks-dropped", "unembedding-tied"), ["sinks-dropped", "unembedding-tied"]),
        (("norm-scale-folded",), []),
        (("norm-scale-folded", "sinks-dropped"), ["sinks-dropped"]),
    ],
)
def test_the_last_norm_and_the_logits(
    model: gr.Model, tokens: list[int], bugs: tuple[str, ...], named: list[str]
) -> None:
    """The unembedding is judged by itself, what comes before it by whole models."""
    taps = run(random_checkpoint(), tokens, "float32", bugs)
    both = {name: taps[name] for name in ("norm", "logits")}
    diagnosis = diagnose(model, both, tokens)
    assert names_of(diagnosis) == named
    assert not diagnosis.unexplained
    assert diagnosis.ok == (not named)
    if "unembedding-tied" in bugs:
        assert diagnosis.causes[-1].tap == "logits"
        assert diagnosis.causes[-1].error_after < 1 < diagnosis.causes[-1].error_before
        assert diagnosis.first_divergence is not None
        assert diagnosis.first_divergence.name == ("norm" if len(bugs) > 1 else "logits")


def test_value_biases_and_norms_folded_as_transformer_lens_does(
    model: gr.Model, tokens: list[int]
) -> None:
    """Its compatibility mode: the norms may be folded, the bias of the values may not."""
    bugs = ("norm-scale-folded", "value-bias-folded")
    stages = "norm q k v weights mix out residual".split()
    kept = ["embedding", *(f"block.{n}.attn.{stage}" for n in (0, 1) for stage in stages)]
    kept += ["block.0.mlp.residual"]
    taps = run(random_checkpoint(), tokens, "float32", bugs)
    diagnosis = diagnose(model, {name: taps[name] for name in kept}, tokens)
    assert names_of(diagnosis) == ["value-bias-folded"]
    assert not diagnosis.unexplained
    wrong = {row.name.split(".", 2)[-1] for row in diagnosis.rows if row.verdict == "diverges"}
    assert wrong == {"attn.v", "attn.out"}


def test_an_unembedding_that_no_bug_explains(model: gr.Model, tokens: list[int]) -> None:
    taps = run(random_checkpoint(), tokens, "float32")
    noisy = taps["logits"] * np.linspace(1, 1.1, taps["logits"].shape[1], dtype=np.float32)
    diagnosis = diagnose(model, {"norm": taps["norm"], "logits": noisy}, tokens)
    assert [(row.name, row.verdict) for row in diagnosis.rows] == [
        ("norm", "ok"),
        ("logits", "diverges"),
    ]
    assert [u.tap for u in diagnosis.unexplained] == ["logits"]


def observation(logits: Any, tokens: list[int], positions: Iterable[int]) -> LogprobObservation:
    """The five likeliest tokens at some positions, as a server prints them."""
    wide = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    top = {
        p: {int(i): round(float(wide[p, i]), 5) for i in np.argsort(-wide[p])[:5]}
        for p in positions
    }
    return LogprobObservation(tokens, top, vocab_size=logits.shape[1], producer="a server")


@pytest.mark.parametrize("bug", ["gqa-axes-swapped", "clamp-missing", None])
def test_log_probabilities_of_a_server(model: gr.Model, tokens: list[int], bug: str | None) -> None:
    taps = run(random_checkpoint(), tokens, "bfloat16", {bug} if bug else ())
    seen = observation(taps["logits"], tokens, range(8, LENGTH, 2))
    diagnosis = gr.diagnose(model, seen)
    assert names_of(diagnosis)[:1] == ([bug] if bug else [])
    assert diagnosis.ok == (bug is None)
    assert any("16 of 40 positions" in note for note in diagnosis.notes)
    json.dumps(diagnosis.to_json())


# --- what it takes ---


def test_files_and_mappings(model: gr.Model, tokens: list[int], tmp_path: Path) -> None:
    taps = run(random_checkpoint(), tokens, "float32", {"embedding-scaled"})
    trace = gr.Trace(taps, tokens=tokens, config=model.config)
    trace.save(tmp_path / "other.trace")
    assert names_of(gr.diagnose(model, tmp_path / "other.trace")) == ["embedding-scaled"]
    assert names_of(gr.diagnose(model, taps, tokens=tokens)) == ["embedding-scaled"]


@pytest.mark.parametrize("seen", ["", "logits"])
def test_progress_is_told(model: gr.Model, tokens: list[int], seen: str) -> None:
    taps = run(random_checkpoint(), tokens[:12], "float32", {"scale-missing"})
    taps = {name: values for name, values in taps.items() if name.startswith(seen)}
    steps: list[tuple[int, int, str]] = []
    diagnose(model, taps, tokens[:12], progress=lambda *step: steps.append(step))
    done, total = [step[0] for step in steps], [step[1] for step in steps]
    assert done[:-1] == list(range(1, len(steps)))
    assert all(0 < n <= m for n, m in zip(done, total, strict=True))
    assert done[-1] == total[-1]
    about = "running whole models" if seen else "what explains block.0.attn.weights"
    assert any(about in what for _, _, what in steps)


def test_bad_input_is_one_clear_error(model: gr.Model, tokens: list[int]) -> None:
    taps = run(random_checkpoint(), tokens, "float32")
    other = dataclasses.replace(model.config, sliding_window=12)
    trace = gr.Trace(taps, tokens=tokens, config=other)
    with pytest.raises(TraceError, match="another model than this one: sliding_window: 11 / 12"):
        gr.diagnose(model, trace)
    with pytest.raises(TraceError, match="no tap points"):
        gr.diagnose(model, gr.Trace({}, tokens=tokens, config=model.config))
    with pytest.raises(TraceError, match="without a prompt"):
        gr.diagnose(model, taps)
    with pytest.raises(TraceError, match="unknown rounding 'quarter'"):
        diagnose(model, taps, tokens, rounding="quarter")
    seen = observation(taps["logits"], tokens, [3])
    with pytest.raises(TraceError, match="unknown rounding 'quarter'"):
        gr.diagnose(model, seen, rounding="quarter")
    few = {"logits": np.ones((LENGTH, model.config.vocab_size), np.float32)}
    with pytest.raises(TraceError, match="rounding of OTHER cannot be told"):
        gr.diagnose(model, gr.Trace(few, tokens=tokens, config=model.config))


# --- mistakes of whoever recorded the arrays ---


def softmax(logits: Any) -> Any:
    return torch.softmax(torch.from_numpy(logits).double(), -1).float().numpy()


@pytest.mark.parametrize(
    ("change", "said", "right"),
    [
        (lambda z: np.log(softmax(z)), "log-probabilities", True),
        (lambda z: z - z.mean(1, keepdims=True), "constant in every row", True),
        (softmax, "These are probabilities", True),
        (lambda z: np.roll(z, 1, 0), "shifted by one", False),
        (lambda z: z * np.float32(2), "multiplied by 2", False),
        (np.zeros_like, "nothing but zeros", False),
    ],
)
def test_what_was_done_to_logits(
    model: gr.Model, tokens: list[int], change: Any, said: str, right: bool
) -> None:
    logits = change(run(random_checkpoint(), tokens[:20], "float32")["logits"])
    diagnosis = gr.diagnose(model, {"logits": logits}, tokens=tokens[:20])
    assert said in " ".join((diagnosis.verdict, *diagnosis.notes))
    assert diagnosis.ok == right
    assert not diagnosis.causes
    assert not diagnosis.unexplained


def test_another_token_is_named(model: gr.Model, tokens: list[int]) -> None:
    """By its row of the embedding, or by what follows from it."""
    other = [*tokens[:5], (tokens[5] + 1) % model.config.vocab_size, *tokens[6:12]]
    taps = run(random_checkpoint(), other, "float32")
    for seen in (taps, {"logits": taps["logits"]}):
        diagnosis = gr.diagnose(model, seen, tokens=tokens[:12])
        assert str(other[5]) in diagnosis.verdict
        assert "prompt is another one" in diagnosis.verdict
        assert not diagnosis.causes


def test_arrays_that_were_never_written_or_turned(model: gr.Model, tokens: list[int]) -> None:
    taps = run(random_checkpoint(), tokens[:12], "float32")
    zeros = {**taps, "block.1.attn.q": np.zeros_like(taps["block.1.attn.q"])}
    assert "never written" in gr.diagnose(model, zeros, tokens=tokens[:12]).verdict
    turned = {**taps, "block.1.attn.weights": taps["block.1.attn.weights"].swapaxes(1, 2)}
    assert "axes T and S" in gr.diagnose(model, turned, tokens=tokens[:12]).verdict


def test_a_value_on_no_list_is_fitted(model: gr.Model, tokens: list[int]) -> None:
    """And how sharply the numbers fix it."""
    taps = run(random_checkpoint(), tokens, "float32", {"rope-theta"})
    (cause,) = gr.diagnose(model, taps, tokens=tokens).causes
    assert cause.name == "rope-theta"
    assert cause.value == pytest.approx(90000, rel=1e-3)
    low, high = cause.interval
    assert low <= 90000 <= high < 1.01 * low
