"""Outputs alone: long prompts, many last tokens at once, several mistakes in one array."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.numerics import FLOAT32
from gptoss_ref.verify.mutants import by_name
from gptoss_ref.verify.replay.branches import each_last
from gptoss_ref.verify.replay.evaluate import predict, predict_each, walk
from gptoss_ref.verify.replay.ops import SPECIFICATION
from gptoss_ref.verify.search import score, trials
from gptoss_ref.verify.search.candidates import catalogue
from tests.support.buggy_twin import random_checkpoint, run

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LONG = 210


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gr.Model:
    folder = random_checkpoint().write(tmp_path_factory.mktemp("outputs"))
    return gr.load(folder, backend="numpy")


@pytest.fixture(scope="module")
def tokens(model: gr.Model) -> list[int]:
    return np.random.default_rng(4).integers(0, model.config.vocab_size, LONG).tolist()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """The number of runs of whole models, by the number of tokens."""
    count: Counter[int] = Counter()

    def counted(weights: Any, config: Any, runs: Any, ids: Any, *rest: Any, **more: Any) -> Any:
        count[len(ids)] += len(runs)
        return walk(weights, config, runs, ids, *rest, **more)

    monkeypatch.setattr(trials, "walk", counted)
    return count


@pytest.mark.parametrize("bug", ["yarn-truncated", "swiglu-alpha"])
def test_a_long_prompt_is_searched_in_its_beginning(
    model: gr.Model, tokens: list[int], work: Counter[int], bug: str
) -> None:
    """And what is found there is judged on the whole."""
    logits = run(random_checkpoint(), tokens, "float32", {bug})["logits"]
    diagnosis = gr.diagnose(model, {"logits": logits}, tokens=tokens)
    assert [cause.name for cause in diagnosis.causes] == [bug]
    assert diagnosis.causes[0].error_after < 1
    candidates = catalogue(model.config, model.weights, LONG)
    bugs = sum(not candidate.harmless for candidate in candidates)
    assert set(work) == {128, LONG}
    assert work[128] > bugs > work[LONG]  # fewer runs on the whole than there are bugs


def test_what_shows_late_is_searched_in_the_whole(model: gr.Model, tokens: list[int]) -> None:
    """A first pass of 157 tokens: after it there is another bug than before it."""
    late = by_name("prefill-skips-cache").parameter
    assert late is not None
    ops = late.change(157)(by_name("sinks-dropped").apply())
    asked = model.weights, model.config, ops, np.array(tokens), {}, ["logits"]
    diagnosis = gr.diagnose(model, predict(*asked, FLOAT32), tokens=tokens)
    assert {cause.name for cause in diagnosis.causes} == {"sinks-dropped", "prefill-skips-cache"}
    assert all(cause.error_after <= 1 < cause.error_before for cause in diagnosis.causes)
    assert not diagnosis.unexplained


def test_noise_costs_no_more_than_a_bound(
    model: gr.Model, tokens: list[int], work: Counter[int]
) -> None:
    """Logits that no bug explains are given up after a bounded number of runs."""
    rng = np.random.default_rng(3)
    logits = run(random_checkpoint(), tokens, "float32")["logits"]
    noisy = (logits + 0.1 * logits.std() * rng.normal(size=logits.shape)).astype(np.float32)
    diagnosis = gr.diagnose(model, {"logits": noisy}, tokens=tokens)
    assert not diagnosis.causes
    (left,) = diagnosis.unexplained
    assert (left.tap, left.where) == ("logits", "all tokens")
    assert left.error > 100
    assert sum(length * runs for length, runs in work.items()) < 400 * LONG


ATTENTION = [f"block.0.attn.{name}" for name in ("q_rope", "k_rope", "v", "mix")]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """The number of candidates compared at one tap point, by the number of tokens."""
    count: Counter[int] = Counter()

    def counted(weights: Any, config: Any, runs: Any, ids: Any, *rest: Any) -> Any:
        count[len(ids)] += len(runs)
        return predict_each(weights, config, runs, ids, *rest)

    monkeypatch.setattr(score, "predict_each", counted)
    return count


def test_a_tap_point_is_searched_in_its_beginning(
    model: gr.Model, tokens: list[int], compared: Counter[int]
) -> None:
    """If enough of its rows are wrong; the verdict itself comes from all rows."""
    asked = model.weights, model.config, by_name("sinks-dropped").apply(), np.array(tokens), {}
    arrays = predict(*asked, ATTENTION, FLOAT32)
    diagnosis = gr.diagnose(model, arrays, tokens=tokens)
    assert [cause.name for cause in diagnosis.causes] == ["sinks-dropped"]
    assert diagnosis.causes[0].error_after <= 1
    assert set(compared) == {128}


def test_a_tap_point_with_another_bug_later_is_searched_in_the_whole(
    model: gr.Model, tokens: list[int], compared: Counter[int]
) -> None:
    """What explains the beginning leaves the rows after a first pass of 157 tokens."""
    late = by_name("prefill-skips-cache").parameter
    assert late is not None
    ops = late.change(157)(by_name("sinks-dropped").apply())
    asked = model.weights, model.config, ops, np.array(tokens), {}
    diagnosis = gr.diagnose(model, predict(*asked, ATTENTION, FLOAT32), tokens=tokens)
    assert {cause.name for cause in diagnosis.causes} == {"sinks-dropped", "prefill-skips-cache"}
    assert all(cause.error_after <= 1 < cause.error_before for cause in diagnosis.causes)
    assert set(compared) == {128, LONG}


@pytest.mark.parametrize("length", [0, 17])
@pytest.mark.parametrize("tap", ["logits", "block.1.attn.weights", "block.0.attn.k_rope"])
def test_many_last_tokens_at_once(
    model: gr.Model, tokens: list[int], tap: str, length: int
) -> None:
    prompt, last = np.array(tokens[:length], np.int64), np.array([3, 9, 70])
    found = each_last(model.weights, model.config, prompt, last, tap)
    for row, token in zip(found, last, strict=True):
        asked = np.append(prompt, token)
        alone = predict(model.weights, model.config, SPECIFICATION, asked, {}, [tap], FLOAT32)[tap]
        expected = alone[:, -1] if tap.endswith("weights") else alone[-1]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def log_softmax(x: np.ndarray) -> np.ndarray:
    return (
        x
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
        - x.max(1, keepdims=True)
    )


def top(x: np.ndarray, count: int, other: float) -> np.ndarray:
    rest = np.argsort(-x, axis=1)[:, count:]
    x = x.copy()
    np.put_along_axis(x, rest, other, axis=1)
    return x


@pytest.mark.parametrize(
    ("change", "said", "ok"),
    [
        (lambda x: np.exp(log_softmax(x / 0.7)), ["probabilities", "temperature of 0.7"], False),
        (lambda x: log_softmax(x / 0.7), ["temperature of 0.7"], False),
        (lambda x: -log_softmax(x), ["opposite sign"], False),
        (lambda x: top(x, 20, -np.inf), ["are masked"], True),
        (lambda x: top(x, 20, -1e9), ["are masked"], True),
        (lambda x: top(log_softmax(x), 20, float(np.finfo(np.float32).min)), ["masked"], True),
    ],
    ids=["at a temperature", "logarithms of it", "losses", "top-k", "masked", "and logarithms"],
)
@pytest.mark.parametrize("rows", [None, [11, -1]], ids=["all rows", "two rows"])
def test_what_was_done_to_logits(
    model: gr.Model, tokens: list[int], change: Any, said: list[str], ok: bool, rows: Any
) -> None:
    """One after the other, and in some rows as well as in all."""
    tokens = tokens[:20]
    logits = run(random_checkpoint(), tokens, "float32")["logits"].astype(np.float64)
    theirs = change(logits)
    if rows is not None:
        theirs = theirs[rows]
    trace = gr.verify.from_arrays({"logits": theirs}, tokens, model.config, positions=rows)
    diagnosis = gr.diagnose(model, trace)
    notes, mistakes = " ".join(diagnosis.notes), " ".join(diagnosis.mistakes)
    assert all(part in notes + mistakes for part in said)
    assert said[-1] in (notes if ok else mistakes)
    assert not diagnosis.causes
    assert not diagnosis.unexplained
    assert diagnosis.ok == ok


@pytest.mark.parametrize("name", ["chunk-longer-than-ring", "prefill-skips-cache"])
def test_a_beginning_knows_how_long_the_prompt_is(
    model: gr.Model, tokens: list[int], name: str
) -> None:
    """What these bugs do to a token depends on how many there are after it."""
    ops, asked = by_name(name).apply(), ["block.0.attn.weights"]
    (_, (whole,)), (_, (part,)) = (
        next(walk(model.weights, model.config, [(ops, FLOAT32)], ids, {}, asked, length=LONG))
        for ids in (tokens, tokens[:120])
    )
    np.testing.assert_allclose(part, whole[:, :120, :120], rtol=1e-5, atol=1e-7)
