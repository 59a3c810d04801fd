"""Figures: what they draw against the arrays they are of, and their errors."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
import pytest

import gptoss_ref as gr
from gptoss_ref import viz
from gptoss_ref.errors import GptOssError
from gptoss_ref.verify.report.row import Verdict
from gptoss_ref.viz.labels import label
from gptoss_ref.viz.tap_distance import MARKS
from tests.support.inspected import long_case

ROOT = Path(__file__).resolve().parents[2]
MATRIX = np.random.default_rng(5).normal(size=(24, 64))


@pytest.fixture(scope="module")
def model() -> Any:
    return gr.load("tiny", backend="numpy")


@pytest.fixture(scope="module")
def trace(model: Any) -> Any:
    tokens = model.tokenizer.encode(
        "What is 27 + 58?\n\x07 שלום 😀🦙 $5$ is 85, of course <b>&amp;</b>."
    )
    return gr.trace(model, tokens)


def drawn(figure: Any) -> None:
    """Draws it whole; a missing glyph, as any warning, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), dpi=30)


def test_attention_shows_weights_and_what_is_left_for_the_sink(trace: Any) -> None:
    figure = viz.attention(trace, 0, heads=[4])
    drawn(figure)
    sink, keys = (axes.images[0].get_array() for axes in figure.axes[:2])
    weights = trace["block.0.attn.weights"][4]
    count, window = len(trace.tokens), trace.config.window(0)
    visible = np.tril(np.ones((count, count))) - np.tril(np.ones((count, count)), -window)
    np.testing.assert_array_equal(np.ma.getmaskarray(keys), visible == 0)
    np.testing.assert_array_equal(keys.filled(0), weights.astype(float))
    np.testing.assert_allclose(sink[:, 0] + keys.sum(axis=1), 1, atol=1e-6)  # float32 weights
    assert figure.axes[1].get_xlabel() == "key token"
    ticks = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert ticks[:2] == ["0 W", "5 2"]  # of many tokens some are named, with their positions
    assert len(ticks) == -(-count // 5)


def test_attention_of_one_head_of_5000_tokens_is_pooled() -> None:
    config, count = long_case(1)[0].config, 5000
    weights = np.zeros((1, count, count), np.float16)
    weights[0, np.arange(count), np.arange(count)] = 0.5
    trace = gr.Trace({"block.0.attn.weights": weights}, tokens=[7] * count, config=config)
    figure = viz.attention(trace, 0)
    drawn(figure)
    shown = figure.axes[1].images[0].get_array()
    assert max(shown.shape) <= 600
    assert (np.diagonal(shown) == 0.5).all()  # a thin line survives
    assert len(figure.axes[1].get_xticks()) <= 48


def test_the_other_figures_of_5000_tokens_stay_small_and_legible() -> None:
    model, tokens = long_case()
    trace = gr.trace(model, tokens, taps=["embedding", "*.residual", "*.expert_*"])
    routed = viz.routing(trace)
    drawn(routed)
    assert routed.axes[0].images[0].get_array().shape[1] <= 600
    assert len(routed.axes[0].get_xticks()) <= 48
    lens = viz.logit_lens(model, trace)
    drawn(lens)
    assert lens.axes[0].get_xticklabels()[-1].get_text().startswith("4999\n")
    drawn(viz.residual_norms(trace))


def test_routing_draws_every_weight_and_the_load(trace: Any) -> None:
    figure = viz.routing(trace)
    drawn(figure)
    for n in range(trace.config.num_hidden_layers):
        panel, bars = figure.axes[2 * n], figure.axes[2 * n + 1]
        values = panel.images[0].get_array().filled(0)
        np.testing.assert_allclose(values.sum(axis=0), 1, rtol=1e-6)  # float32 weights
        widths = [bar.get_width() for bar in bars.patches]
        np.testing.assert_allclose(sum(widths), trace.config.experts_per_token)


def test_yarn_draws_the_published_ends() -> None:
    figure = viz.yarn(gr.GPT_OSS_20B)
    drawn(figure)
    plain, used = (line.get_ydata() for line in figure.axes[0].lines[:2])
    np.testing.assert_allclose(plain, 150000.0 ** (-np.arange(32) / 32))
    np.testing.assert_allclose(used[:9], plain[:9])  # low is 8.09
    np.testing.assert_allclose(used[18:], plain[18:] / 32)  # high is 17.40
    heights = [line.get_ydata()[0] for line in figure.axes[1].lines[2:]]
    assert heights == [128, 4096, 131072]


def test_code_points_are_those_of_the_specification() -> None:
    figure = viz.mxfp4_code_points()
    drawn(figure)
    stored = figure.axes[1].lines[1].get_ydata()
    assert sorted({*np.abs(stored)}) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    assert (codes["7"], codes["F"], codes["1"]) == (6, -6, 0.5)


def test_mxfp4_error_has_one_curve_a_rule_and_no_error_on_the_grid() -> None:
    figure = viz.mxfp4_error(MATRIX)
    drawn(figure)
    assert [len(line.get_xdata()) for line in figure.axes[1].lines] == [48] * 4
    exact = np.tile([6.0, -3, 1.5, 0.5], (2, 8))
    assert not viz.mxfp4_error(exact).axes[1].lines[0].get_xdata().any()


@pytest.mark.parametrize("bad", [np.ones(31), np.full((2, 32), np.nan), np.ones((0, 32))])
def test_mxfp4_error_refuses_other_matrices(bad: Any) -> None:
    with pytest.raises(gr.GptOssError, match="expected"):
        viz.mxfp4_error(bad)


def test_swiglu_clamps_the_gate_from_above_only() -> None:
    figure = viz.swiglu(gr.GPT_OSS_20B)
    drawn(figure)
    free, clamped = (line.get_ydata() for line in figure.axes[0].lines[:2])
    gate = figure.axes[0].lines[0].get_xdata()
    np.testing.assert_allclose(free, gate / (1 + np.exp(-1.702 * gate)))
    np.testing.assert_array_equal(clamped[gate <= 7], free[gate <= 7])
    assert np.ptp(clamped[gate >= 7]) == 0


def test_the_last_row_of_the_lens_is_the_models_own_choice(model: Any, trace: Any) -> None:
    figure = viz.logit_lens(model, trace, top=2)
    drawn(figure)
    logits = trace["logits"][-12:].astype(float)
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    rows = figure.axes[0].images[0].get_array()
    assert rows.shape == (1 + trace.config.num_hidden_layers, 12)
    np.testing.assert_allclose(rows[-1], chance.max(axis=1), rtol=1e-4)  # float32 logits


def test_residual_norms_are_norms(trace: Any) -> None:
    figure = viz.residual_norms(trace)
    drawn(figure)
    median = figure.axes[0].lines[0].get_ydata()
    last = np.linalg.norm(trace["block.4.mlp.residual"].astype(float), axis=1)
    assert len(median) == 11
    np.testing.assert_allclose(median[-1], np.median(last))


def test_tap_errors_name_the_first_divergence(model: Any, trace: Any) -> None:
    # from one tap on, all that is computed: a tap wrong alone would be a rewriting
    late = list(trace).index("block.2.attn.q")
    wrong = {
        name: trace[name] * (1.1 if at >= late and trace[name].dtype.kind == "f" else 1)
        for at, name in enumerate(trace)
    }
    report = gr.compare(trace, gr.Trace(wrong, tokens=trace.tokens, config=trace.config))
    figure = viz.tap_errors(report)
    drawn(figure)
    assert report.first_divergence is not None
    assert report.first_divergence.name in figure.axes[0].get_title()
    marked = sum(
        len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() != "None"
    )
    assert marked >= len(report.rows)


def test_every_verdict_has_its_own_mark() -> None:
    assert set(MARKS) == set(get_args(Verdict))
    assert len(set(MARKS.values())) == len(MARKS)


@pytest.mark.parametrize(
    "draw",
    [lambda m, t: viz.attention(t, 0), lambda m, t: viz.routing(t), viz.logit_lens,
     lambda m, t: viz.residual_norms(t)],
)  # fmt: skip
def test_missing_taps_are_named_with_how_to_record_them(model: Any, draw: Any) -> None:
    with pytest.raises(gr.GptOssError, match=r"lacks .*gr\.trace\(model, tokens, taps="):
        draw(model, gr.trace(model, [1, 2], taps="norm"))


@pytest.mark.parametrize(("block", "heads"), [(5, None), (-1, None), (0, [6]), (0, [])])
def test_no_such_block_or_head(trace: Any, block: int, heads: Any) -> None:
    with pytest.raises(gr.GptOssError, match="expected"):
        viz.attention(trace, block, heads)


def test_labels_can_be_drawn_whatever_the_token() -> None:
    assert label(b" a\n") == "␣a↵"
    assert label(b"\x07") == "\\x07"
    assert label("🦙".encode()) == "U+1F999"  # no glyph in DejaVu Sans
    assert label("😀".encode()) == "😀"  # which has this one
    assert label(b"\xf0\x9f") == "\\xf0\\x9f"
    assert label(b"$x$") == r"\$x\$"
    assert label(b"a" * 40) == "a" * 13 + "…"
    assert label("\u202eabc".encode()) == "U+202Eabc"  # an override is shown, not obeyed
    hebrew = label("שלום".encode())
    in_order = matplotlib.__version_info__ >= (3, 11)  # draws right-to-left text itself
    assert hebrew == "\u200e" + ("שלום" if in_order else "םולש")


def test_without_matplotlib_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import gptoss_ref as gr\n"
        "try: gr.viz.mxfp4_code_points()\n"
        "except gr.GptOssError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "[viz]" in done.stdout


def test_settings_of_matplotlib_stay_and_do_not_matter() -> None:
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        figure = viz.yarn(gr.GPT_OSS_20B)
        assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)


def test_the_loss_curve_is_the_history() -> None:
    steps = [{"step": n + 1, "loss": 1 / (n + 1)} for n in range(6)]
    tests = [{"step": n, "held_out_loss": 2.0 - n} for n in (0, 6)]
    figure = viz.loss_curve([tests[0], *steps, tests[1]])
    drawn(figure)
    batches, mean, held_out = figure.axes[0].lines
    np.testing.assert_allclose(batches.get_ydata(), [1 / n for n in range(1, 7)])
    np.testing.assert_allclose(mean.get_ydata()[:2], [1.0, 0.95])
    assert list(held_out.get_xdata()) == [0, 6]
    with pytest.raises(GptOssError, match="the history has no steps"):
        viz.loss_curve(tests)
