"""Every figure against its baseline in tests/viz/baselines: a coarse picture, and what it says.

The picture has no text, and is laid out without: letters and so the places of all else differ
between versions of matplotlib and FreeType. The words are compared as words, in a file of their
own. Figures are drawn from numbers that a formula gives: neither the checkpoint nor a generator of
random numbers has a part in them.

Nothing here writes to tests/viz/baselines. A test that fails leaves what it saw in a folder that it
names; a figure that was changed on purpose is copied from there by hand, and looked at.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.colors import to_hex
from matplotlib.ticker import NullFormatter
from numpy.lib.stride_tricks import sliding_window_view

import gptoss_ref as gr
from gptoss_ref import viz
from gptoss_ref.tracing.taps import names
from gptoss_ref.verify.report.report import Report
from gptoss_ref.verify.report.row import Row, Verdict
from gptoss_ref.viz.figure import STYLE
from tests.support.strategies import as_weights, random_arrays, small_config

BASELINES = Path(__file__).resolve().parent / "baselines"
DOTS, COARSE = 100, 5
"""Dots an inch that are drawn, and how many of them, across and down, one of the picture is."""
ALLOWED = 4.0
"""By how much, of 255, a dot may be darker or lighter than all nine around its place.

That lets an edge move by one dot. Nothing else differs, by more than 1.5, between matplotlib 3.8,
3.9, 3.10 and 3.11; the faintest thing that is drawn, a thin grey line, is 10 or more.
"""

CONFIG = small_config(layers=2, n_kv=1, group=3, experts=6, n_chosen=2, d_model=32, vocab=11)
TOKENS = [5, 3, 8, 0, 7, 1, 10, 2, 6, 4, 9, 5, 3]


def attention() -> Any:
    """Three heads: one looks back, one far back, one mostly at its sink; a window of 6 keys."""
    at = np.arange(len(TOKENS))
    distance = at[:, None] - at
    seen = (distance >= 0) & (distance < CONFIG.sliding_window)
    favour = np.array([-distance, distance, 0 * distance]) * 0.7
    exp = np.where(seen, np.exp(np.where(seen, favour, 0)), 0)  # (H, T, S)
    sink = np.array([0.5, 1.0, 12.0])[:, None, None]
    weights = exp / (exp.sum(-1, keepdims=True) + sink)
    return viz.attention(
        gr.Trace({"block.0.attn.weights": weights}, tokens=TOKENS, config=CONFIG), 0
    )


def routing() -> Any:
    """Tokens go round the experts, in the second block past two of them; weights 0.5 to 0.9."""
    at = np.arange(len(TOKENS))
    arrays = {}
    for n, experts in enumerate((6, 4)):
        first = 0.5 + 0.4 * at / at[-1]
        arrays[f"block.{n}.mlp.expert_indices"] = np.stack([at, at + 1 + n], -1) % experts
        arrays[f"block.{n}.mlp.expert_weights"] = np.stack([first, 1 - first], -1)
    return viz.routing(gr.Trace(arrays, tokens=TOKENS, config=CONFIG))


def mxfp4_error() -> Any:
    """Blocks of sines of all phases, some with an outlier."""
    matrix = np.sin(0.37 * np.arange(64 * 96).reshape(64, 96) ** 1.3)
    matrix[::4, ::32] *= 40
    return viz.mxfp4_error(matrix)


def streams() -> dict[str, np.ndarray]:
    """Streams that grow, the first token's most; their largest channel moves as a word would."""
    arrays = {}
    taps = [name for name in names(CONFIG) if name == "embedding" or name.endswith("residual")]
    for step, name in enumerate(taps):
        x = np.zeros((len(TOKENS), CONFIG.hidden_size))
        for t in range(len(TOKENS)):
            last = (2 * t) % CONFIG.vocab_size
            x[t, last if 3 * step > t else (last + step) % CONFIG.vocab_size] = 1 + step
            x[t, 20 + t % 3] = 1.0 + t / 5
        x[0] *= 4
        arrays[name] = x * 2.0**step
    return arrays


def logit_lens() -> Any:
    """The unembedding reads channel v for token v, so that the streams above say what is seen."""
    arrays = random_arrays(CONFIG, 1)
    arrays["norm.scale"] = np.ones(CONFIG.hidden_size)
    arrays["unembedding"] = np.eye(CONFIG.vocab_size, CONFIG.hidden_size)
    model = gr.Model(CONFIG, as_weights(arrays), backend="numpy")
    trace = gr.Trace(streams(), tokens=TOKENS, config=CONFIG)
    return viz.logit_lens(model, trace, top=2, positions=range(1, 9))


def residual_norms() -> Any:
    return viz.residual_norms(gr.Trace(streams(), tokens=TOKENS, config=CONFIG))


def tap_errors() -> Any:
    """All verdicts, in a trace that is wrong from the second block's queries on."""
    late = names(CONFIG).index("block.1.attn.q")
    verdicts: dict[int, Verdict] = {
        late: "diverges",
        late + 2: "nan",
        late + 4: "hidden",
        8: "rewritten",
        12: "tie",
    }
    rows = []
    for at, name in enumerate(names(CONFIG)):
        verdict = verdicts.get(at, "ok" if at < late else "unjudged" if at % 5 else "follows")
        error = 0.0 if at == 0 else 2e-7 * 1.1**at * (1 if at < late else 3e4)
        if verdict == "nan":
            error = float("nan")
        allowed = 0.0 if at == 3 else 1e-6 * 1.1**at
        dtypes = ("float64", "float32")
        rows.append(Row(name, (1,), dtypes, error, error, 1, 1, allowed, 1, verdict))
    return viz.tap_errors(
        Report("ours", "theirs", "float32", "none", len(TOKENS), len(rows), tuple(rows))
    )


def loss_curve() -> Any:
    steps = [{"step": n, "loss": 3 / n + 0.1 * (n % 3)} for n in range(1, 41)]
    held = [{"step": n, "held_out_loss": 3 / (n + 1)} for n in (0, 20, 40)]
    return viz.loss_curve([*held, *steps])


FIGURES: dict[str, Callable[[], Any]] = {
    "attention": attention,
    "logit_lens": logit_lens,
    "loss_curve": loss_curve,
    "mxfp4_code_points": viz.mxfp4_code_points,
    "mxfp4_error": mxfp4_error,
    "residual_norms": residual_norms,
    "routing": routing,
    "swiglu": lambda: viz.swiglu(gr.GPT_OSS_20B),
    "tap_errors": tap_errors,
    "yarn": lambda: viz.yarn(gr.GPT_OSS_20B),
}


def words(figure: Any) -> str:
    """What is written in a figure, part by part, and the ranges of its axes instead of numbers."""
    lines = [f"figure: {figure.get_suptitle()}"]
    for number, axes in enumerate(figure.axes):
        lines += [f"axes {number}: {axes.get_title()}"]
        for side, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            shown = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_visible()]
            shown += [tick.label2 for tick in axis.get_major_ticks() if tick.label2.get_visible()]
            ticks = [repr(text.get_text()) for text in shown if text.get_text()]
            first, last = axis.get_view_interval()
            span = f"{axis.get_scale()} {first:.3g} to {last:.3g}"
            lines += [" ".join([f"{side}: {axis.get_label_text()!r} {span}", *ticks])]
        for text in axes.texts:
            (x, y), colour = text.get_position(), to_hex(text.get_color())
            lines += [f"{text.get_text()!r} at {x:.3g}, {y:.3g} {colour} {text.get_weight()}"]
        legend = axes.get_legend()
        if legend:
            entries = [repr(text.get_text()) for text in legend.get_texts()]
            lines += [f"legend: {legend.get_title().get_text()!r} {' '.join(entries)}"]
    return "".join(line.rstrip() + "\n" for line in lines)


def picture(figure: Any) -> Any:
    """Red, green and blue of the figure without its words, 0 to 255, coarse: (rows, columns, 3)."""
    figure.suptitle("").set_in_layout(False)
    for axes in figure.axes:
        axes.title.set_visible(False)  # as an empty one takes room, in some versions
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_visible(False)
            axis.set_major_formatter(NullFormatter())
            axis.set_minor_formatter(NullFormatter())
            axis.set_tick_params(which="both", length=0)  # versions choose different ones
        for text in axes.texts:
            text.set_text("")
        if axes.get_legend():
            axes.get_legend().set_visible(False)
    # else 4.6 inches, which is a little less in binary, are 460 dots or 459, by the version
    figure.set_size_inches(figure.get_size_inches() * (1 + 1e-9))
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # where hatches get their width before matplotlib 3.10
        figure.savefig(buffer, dpi=DOTS)
    buffer.seek(0)
    fine = pictures.imread(buffer)[..., :3]
    # a dot that is not whole, at the edge, is filled up with what is there
    fine = np.pad(fine, [*((0, -size % COARSE) for size in fine.shape[:2]), (0, 0)], "edge")
    return 255 * fine.reshape(len(fine) // COARSE, COARSE, -1, COARSE, 3).mean((1, 3))


def beyond(picture: Any, other: Any) -> float:
    """By how much a dot of one is outside the range of the nine there in the other, at most."""
    around = np.pad(other, ((1, 1), (1, 1), (0, 0)), "edge")
    nine = sliding_window_view(around, (3, 3), (0, 1))  # (rows, columns, 3, 3, 3)
    high, low = nine.max((-2, -1)), nine.min((-2, -1))
    return float(np.maximum(picture - high, low - picture).max())


def read(path: Path) -> Any:
    """A picture as :func:`picture` has it."""
    return 255.0 * pictures.imread(path)[..., :3]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_looks_and_reads_as_it_did(name: str, tmp_path: Path) -> None:
    figure = FIGURES[name]()
    said, drawn = words(figure), picture(figure)
    (tmp_path / f"{name}.txt").write_text(said, encoding="utf-8")
    pictures.imsave(tmp_path / f"{name}.png", np.rint(drawn).astype(np.uint8))
    kept = read(BASELINES / f"{name}.png")
    where = f"compare {tmp_path} with {BASELINES}"
    assert said == (BASELINES / f"{name}.txt").read_text(encoding="utf-8"), where
    assert drawn.shape == kept.shape, where
    assert max(beyond(drawn, kept), beyond(kept, drawn)) <= ALLOWED, where


def test_every_figure_has_a_baseline_and_every_baseline_a_figure() -> None:
    drawing = {name for name in viz.__all__ if name != "inspector"}
    assert set(FIGURES) == drawing
    expected = {f"{name}.{kind}" for name in drawing for kind in ("png", "txt")}
    assert {path.name for path in BASELINES.iterdir()} == expected
    assert sum(path.stat().st_size for path in BASELINES.iterdir()) < 100_000
