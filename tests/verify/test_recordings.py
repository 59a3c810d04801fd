"""Mistakes of whoever recorded the arrays, each by its own sentence; and what to bring next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref.numerics import BFLOAT16
from gptoss_ref.verify.search.mistakes import mistakes
from tests.verify.test_equal_models import CONFIG, IDS, good, reference, run, trace_of

Arrays = dict[str, np.ndarray]


def said(arrays: Arrays) -> str:
    """The verdict, after which nothing else may be accused."""
    diagnosis = gr.diagnose(good(), trace_of(arrays))
    assert not diagnosis.causes
    assert not diagnosis.unexplained
    return f"{diagnosis.verdict} {' '.join(diagnosis.notes)}"


def after(front: list[int], dtype: str = "float32") -> Arrays:
    """What a model computes of a longer prompt, without the rows that it has too many."""
    trace, n = gr.trace(good(), [*front, *IDS]), len(front)
    arrays = {
        tap: trace[tap][:, n:, n:] if tap.endswith("attn.weights") else trace[tap][n:]
        for tap in trace
    }
    return {tap: x.astype(dtype) if x.dtype.kind == "f" else x for tap, x in arrays.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("seen", ["", "residual", "logits", "attn.mix"])
def test_a_token_in_front(seen: str, dtype: str) -> None:
    arrays = {tap: x for tap, x in after([1], dtype).items() if tap.endswith(seen)}
    assert "Token 1 was put before the prompt" in said(arrays)


def test_padding_in_front() -> None:
    assert "8 tokens 0 of padding were put before the prompt" in said(after([0] * 8))


@pytest.mark.parametrize("at", [0, 9])
@pytest.mark.parametrize("left_out", ["", "embedding", "all but residuals", "all but logits"])
def test_another_token(at: int, left_out: str) -> None:
    ids = list(IDS)
    ids[at] = (ids[at] + 5) % CONFIG.vocab_size
    trace = gr.trace(good(), ids)
    arrays = {tap: trace[tap].astype(np.float32) for tap in trace if "indices" not in tap}
    if left_out == "embedding":
        arrays.pop("embedding")
    elif left_out:
        kept = left_out.removeprefix("all but ").removesuffix("s")
        arrays = {tap: x for tap, x in arrays.items() if kept in tap and "router" not in tap}
    words = said(arrays)
    assert "The prompt is another one" in words
    assert str(ids[at]) in words
    assert f"not {IDS[at]}" in words or f"not of {IDS[at]}" in words


@pytest.mark.parametrize("seen", ["residual", "logits"])
def test_several_other_tokens(seen: str) -> None:
    """Each is named with the token that stands there."""
    ids = list(IDS)
    for at in (2, 3, 11):
        ids[at] = (ids[at] + 5) % CONFIG.vocab_size
    trace = gr.trace(good(), ids)
    taps = [tap for tap in trace if tap.endswith(seen) and "router" not in tap]
    words = said({tap: trace[tap].astype(np.float32) for tap in taps})
    for at in (2, 3, 11):
        assert f"token {at} is {ids[at]}, and not {IDS[at]}" in words


def test_a_prompt_shifted_by_several() -> None:
    for ids, words in (
        ([*IDS[3:], 5, 6, 7], "The prompt is shifted by 3: row t"),
        ([8, 9, *IDS[:-2]], "The prompt is shifted by 2, with tokens 8 9 in front"),
    ):
        trace = gr.trace(good(), ids)
        taps = [tap for tap in trace if tap == "embedding" or tap.endswith("residual")]
        assert words in said({tap: trace[tap].astype(np.float32) for tap in taps})


def test_the_nearest_token_in_front_is_named() -> None:
    """Of two start tokens that bfloat16 hardly tells apart, not the one that is listed first."""
    table = np.array(good().weights.named()["embedding"]).view(np.uint16)
    table[2] = table[1] ^ 1  # one unit in the last place of bfloat16
    model = gr.Model(CONFIG, good().weights.replaced({"embedding": table}), backend="numpy")
    trace = gr.trace(model, [2, *IDS])
    arrays = {t: BFLOAT16.round(trace[t][1:]) for t in trace if t.endswith("residual")}
    diagnosis = gr.diagnose(model, trace_of(arrays))
    assert "Token 2 was put before the prompt" in diagnosis.verdict


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_vocabulary_in_another_order(alone: bool, dtype: str) -> None:
    """Two tokens exchanged, or all renumbered; with a constant in each row as well."""
    whole, size = run(), CONFIG.vocab_size
    rest = {} if alone else {tap: x for tap, x in whole.items() if tap != "logits"}
    order, every = np.arange(size), np.random.default_rng(2).permutation(size)
    order[[3, 7]] = 7, 3
    for columns, count in ((order, 2), (every, int((every != np.arange(size)).sum()))):
        logits = whole["logits"][:, columns] - 1.5
        first = int(np.flatnonzero(columns != np.arange(size))[0])
        words = said({**rest, "logits": logits.astype(dtype)})
        assert f"{count} of {size} columns of the logits are in another order" in words
        assert f"column {np.flatnonzero(columns == first)[0]} belongs to token {first}" in words


@pytest.mark.parametrize("tap", ["logits", "block.1.attn.out", "block.0.mlp.residual"])
def test_rows_that_were_not_recorded(tap: str) -> None:
    arrays = run()
    arrays[tap] = arrays[tap].copy()
    arrays[tap][:5] = np.nan
    words = said(arrays)
    assert f"Rows 0 to 4 of {tap}: nothing but NaN" in words
    assert ("No divergence" in words) == (tap != "logits")  # what follows shows that it was there


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_tap_point_recorded_otherwise(dtype: str) -> None:
    """Beside the others, and saved in a coarser format."""
    whole = run()
    for tap in ("block.1.attn.q", "logits"):
        shifted = np.roll(whole[tap], -1, axis=0).astype(dtype)
        assert f"The rows of {tap} are shifted by one" in said({**whole, tap: shifted})
        for by, words in ((4, "4: row t holds what belongs to token t − 4."), (-7, "token t + 7.")):
            shifted = np.roll(whole[tap], by, axis=0).astype(dtype)
            assert words in said({**whole, tap: shifted})
    tap = "block.1.attn.weights"
    assert f"The axes T and S of {tap}" in said({**whole, tap: whole[tap].swapaxes(1, 2)})
    tap = "block.0.attn.out"
    nothing = np.zeros_like(whole[tap], dtype)
    assert f"{tap} holds nothing but zeros" in said({**whole, tap: nothing})
    for factor, words in ((1 / 0.7, "a temperature of 0.7"), (1 / np.log(2), "to base 2")):
        scaled = (whole["logits"] * factor).astype(dtype)
        assert words in said({**whole, "logits": scaled})


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def padded(logits: np.ndarray) -> np.ndarray:
    return np.where(np.arange(logits.shape[1]) < logits.shape[1] - 5, logits, -1e4)


@pytest.mark.parametrize("value", [-1e4, -1e9, -np.inf, np.finfo(np.float32).min])
def test_logits_that_a_port_masks(value: float) -> None:
    """Padded ids at the end, or some ids anywhere, the same in every row, and top-k."""
    logits = run()["logits"].astype(np.float64)
    rest = np.argsort(-logits, axis=1)[:, 9:]
    top = logits.copy()
    np.put_along_axis(top, rest, value, axis=1)
    some, end = logits.copy(), logits.copy()
    some[:, [2, 5, 11]], end[:, -5:] = value, value
    for changed, words in (
        (end, "are a padding of the vocabulary"),
        (some, "3 logits, the same ones in every row"),
        (top, "All but the largest logits of each row are masked"),
    ):
        if words[0] != "a" and value == -1e4:
            continue  # might be a logit
        assert words in said({"logits": changed.astype(np.float32)})


@pytest.mark.parametrize("tap", ["logits", "block.0.attn.q", "block.0.mlp.residual"])
def test_zeros_of_which_nothing_is_computed(tap: str) -> None:
    """Alone, and among all tap points, of which only this one is asked for."""
    whole = run()
    nothing = np.zeros_like(whole[tap])
    assert f"{tap} holds nothing but zeros" in said({tap: nothing})
    found = gr.diagnose(good(), trace_of({**whole, tap: nothing}), taps=[tap])
    assert not found.causes
    assert f"{tap} holds nothing but zeros" in f"{found.verdict} {' '.join(found.notes)}"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("tap", "change", "sentence", "harmless"),
    [
        ("logits", softmax, "These are probabilities", True),
        ("logits", padded, "are a padding of the vocabulary", True),
        ("logits", lambda x: x / 0.7, "a temperature of 0.7", False),
        ("logits", lambda x: np.roll(x, -1, axis=0), "The rows of logits are shifted by", False),
        ("block.1.attn.weights", lambda x: x.swapaxes(1, 2), "The axes T and S of", False),
        ("block.0.attn.out", np.zeros_like, "holds nothing but zeros", False),
    ],
)
def test_compare_knows_them_too(
    tap: str, change: Any, sentence: str, harmless: bool, dtype: str
) -> None:
    """Beside all other tap points, and where the array is the only one."""
    whole = run()
    changed = change(whole[tap].astype(np.float64)).astype(dtype)
    for arrays in ({**whole, tap: changed}, {tap: changed}):
        report = gr.compare(reference(), trace_of(arrays), rounding="float32")
        (row,) = [row for row in report.rows if row.name == tap]
        assert sentence in row.note
        assert any(sentence in note for note in report.notes)
        assert report.ok == harmless or row.verdict == "rewritten"


def test_compare_takes_no_bug_for_a_mistake() -> None:
    """A model with other weights: its logits are of another size, and no temperature fits."""
    arrays = run({"block.1.mlp.norm_scale": np.linspace(0.2, 3, CONFIG.hidden_size)})
    for kept in (arrays, {"logits": arrays["logits"]}):
        report = gr.compare(reference(), trace_of(kept))
        assert not report.ok
        assert not report.notes or "REF was computed again" in report.notes[0]


def test_compare_and_a_bug_of_ones_own_inputs() -> None:
    """An error that rounding made before a stage is no divergence of that stage."""
    theirs = trace_of(run())
    report = gr.compare(reference(), theirs)
    assert report.ok
    assert all(row.verdict in ("ok", "tie") for row in report.rows)


# --- what to bring next ---


def hint(arrays: Arrays) -> str:
    diagnosis = gr.diagnose(good(), trace_of(arrays))
    (hint,) = diagnosis.unexplained[0].hints
    return hint


def test_what_to_bring_next() -> None:
    """Something that no known bug explains, at a stage of the second block."""
    arrays = run({"block.1.mlp.norm_scale": np.linspace(0.2, 3, CONFIG.hidden_size)})
    alone = hint(arrays)
    assert "nothing lies between block.1.attn.residual and block.1.mlp.norm" in alone
    ends = {tap: arrays[tap] for tap in arrays if tap.endswith(("residual", "norm", "logits"))}
    ends = {tap: x for tap, x in ends.items() if "router" not in tap and "mlp.norm" not in tap}
    assert "bring block.1.mlp.gate_up next" in hint(ends)
    assert "between block.1.attn.residual and block.1.mlp.residual" in hint(ends)
    few = {tap: arrays[tap] for tap in ("embedding", "norm")}
    assert hint(few).startswith("bring block.1.mlp.residual next")


def test_equal_columns_are_no_other_order() -> None:
    """Reserved tokens have the same logits; one of them was changed."""
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(9, 50))
    exact[:, [7, 31]] = exact[:, [3]]
    other = exact.copy()
    other[:, 3] += 1
    found = [mistake.sentence for mistake in mistakes("logits", exact, other)]
    assert not [sentence for sentence in found if "another order" in sentence]
    moved = rng.permutation(50)
    (said,) = [
        m for m in mistakes("logits", exact, exact[:, moved]) if "another order" in m.sentence
    ]
    np.testing.assert_array_equal(said.mended, exact)  # equal columns in any order


def test_a_prompt_that_repeats_itself_is_not_shifted() -> None:
    """At a tap point of each token alone, a shift by the period changes nothing."""
    rng = np.random.default_rng(0)
    exact = np.concatenate(2 * [rng.normal(size=(6, 4, 3))])
    other = exact.copy()
    other[:6] = rng.normal(size=(6, 4, 3))
    fitting = [m for m in mistakes("block.0.attn.q", exact, other) if np.allclose(m.mended, exact)]
    assert not fitting
