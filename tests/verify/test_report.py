"""Reports: one screen, strict JSON, a page that needs nothing else; what each says of a verdict."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gptoss_ref.config import GPT_OSS_120B
from gptoss_ref.errors import GptOssError
from gptoss_ref.tracing.taps import names
from gptoss_ref.verify.noise.routing_ties import Flip
from gptoss_ref.verify.report.diagnosis import Cause, Diagnosis
from gptoss_ref.verify.report.report import Report, Section
from gptoss_ref.verify.report.row import Row
from gptoss_ref.verify.report.text import lines, number


def row(name: str, verdict: Any = "ok", **changes: Any) -> Row:
    extra = {"kl_mean": 1e-9, "kl_max": 2e-8, "top1": 1.0, "top5": 0.98} if name == "logits" else {}
    values: dict[str, Any] = {
        "name": name,
        "shape": (7, 5),
        "dtypes": ("float64", "bfloat16"),
        "max_abs": 0.5,
        "rel_l2": 1e-3,
        "cosine": 0.99999,
        "rounding_units": 0.3,
        "allowed": 2e-3,
        "excess": 0.5,
        "verdict": verdict,
        "note": "" if verdict == "ok" else "relative error 0.3, but rounding explains only 0.002",
        "extra": extra,
    }
    return Row(**{**values, **changes})


def report(wrong: str | None = None, **changes: Any) -> Report:
    """Of the 120b's 687 tap points, healthy or wrong from one on."""
    order = names(GPT_OSS_120B)
    at = len(order) if wrong is None else order.index(wrong)
    verdicts = ["ok"] * at + ["diverges"] + ["follows"] * len(order)
    rows = tuple(row(name, verdict) for name, verdict in zip(order, verdicts, strict=False))
    values: dict[str, Any] = {
        "ref": "a reference, float64",
        "other": "somebody <else> & co, bfloat16",
        "rounding": "bfloat16",
        "yardstick": "bfloat16, measured on the first 7 tokens",
        "tokens": 7,
        "taps": len(order),
        "rows": rows,
    }
    return Report(**{**values, **changes})


WRONG = "block.3.attn.weights"


def test_verdicts() -> None:
    well, ill = report(), report(WRONG)
    assert well.ok
    assert well.first_divergence is None
    assert well.verdict == (
        "No divergence beyond what bfloat16 explains; 687 of the 687 tap points could be judged."
    )
    assert not ill.ok
    assert ill.first_divergence is not None
    assert ill.first_divergence.name == WRONG
    assert ill.verdict == (
        f"First divergence: {WRONG}. Relative error 0.3, but rounding explains only 0.002."
    )
    nothing = report(rows=(row("logits", "unjudged", excess=math.nan),))
    assert not nothing.ok
    assert nothing.verdict == "No verdict: none of the 687 tap points could be judged."
    assert "<title>No verdict: gptoss-ref compare</title>" in nothing.to_html()
    assert "<title>Divergence: gptoss-ref compare</title>" in ill.to_html()


def test_a_verdict_says_what_cannot_be_told() -> None:
    """No name stands alone for what others explain as well; logits show no stage but their own."""

    def cause(name: str, *alternatives: str, variant: str | None = None) -> Cause:
        return Cause(
            name=name,
            variant=variant,
            stage="attn.norm",
            tap="logits",
            blocks=None,
            summary="",
            consequence="",
            reports=(),
            error_before=3.0,
            error_after=0.5,
            alternatives=alternatives,
            confidence=1 / (1 + len(alternatives)),
        )

    def verdict(*causes: Cause) -> str:
        return Diagnosis("a", "b", "float32", "c", 5, 687, (row("logits"),), causes=causes).verdict

    assert verdict(cause("k-bias-missing", variant="form")) == (
        "The numbers are those of k-bias-missing (form)."
    )
    assert verdict(cause("yarn-factor"), cause("norm-eps", "swiglu-alpha", "up-scaled")) == (
        "The numbers are those of yarn-factor and either norm-eps, swiglu-alpha or up-scaled; this "
        "input does not tell which."
    )
    assert verdict(cause("a", "b", "c", "d", "e")) == (
        "The numbers are those of either a, b, c or one of 2 more; this input does not tell which."
    )


def test_healthy_blocks_take_one_line() -> None:
    text = str(report())
    assert text.count("\n") < 55  # 36 blocks
    assert text.startswith("No divergence")
    assert "19 ok" in text


def test_the_first_divergence_is_shown_with_its_block() -> None:
    found = list(lines(report(WRONG)))
    assert len(found) < 75
    assert found[0].style == "bold red"
    red = [line.text.split()[0] for line in found[1:] if "red" in line.style]
    assert red[0] == WRONG  # from there on everything is red
    assert red[1] == "block.3.attn.mix"
    assert "block.4" in red
    assert red[-1] == "logits"
    assert "DIVERGES" in next(line.text for line in found if line.text.startswith(WRONG))
    assert all("red" not in line.style for line in found if line.text.startswith("block.2 "))


def test_verbose_shows_every_tap_point() -> None:
    text = report(WRONG).to_text(verbose=True)
    assert all(f"\n{name} " in text for name in names(GPT_OSS_120B))


def test_what_else_the_text_says() -> None:
    flips = tuple(Flip(2, token, (3,), (4,), 0.01, 0.1) for token in range(9))
    text = str(
        report(flips=flips, missing=("block.0.attn.q", "block.1.attn.q", "norm"), notes=("x",))
    )
    assert "routing ties: 9" in text
    assert "block 2 token 0: expert 3 became 4, margin 0.01 of 0.1 allowed" in text
    assert "and 6 more" in text
    assert "block.*.attn.q (2), norm" in text
    assert "note: x" in text
    assert "same first choice for 100.0% of tokens, 98.0% of the top five in common" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (math.nan, "-"), (math.inf, "inf"), (1234.5, "1.23e+03"), (1e-9, "1.0e-09")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
    assert len(number(-math.pi * 1e-300)) <= 9


def test_json_is_strict_and_whole() -> None:
    broken = row("norm", "nan", rel_l2=math.inf, cosine=math.nan, first_token=3)
    made = report(
        rows=(broken,), flips=(Flip(0, 1, (2,), (3,), math.inf, 0.1),), missing=("logits",)
    )
    read = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert read["ok"] is False
    assert read["first_divergence"] == "norm"
    assert read["rows"][0]["cosine"] is None
    assert read["rows"][0]["first_token"] == 3
    assert {field.name for field in dataclasses.fields(Row)} == set(read["rows"][0])
    assert read["flips"][0]["left"] == [2]
    assert read["missing"] == ["logits"]


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what matters."""

    VOID = frozenset(("meta", "!doctype"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(made: Report) -> Page:
    page = Page()
    page.feed(made.to_html())
    assert page.open == []
    return page


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    page = parsed(report(WRONG))
    assert not {"script", "link", "img", "iframe"} & {*page.seen}
    outside = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert outside == []
    assert "url(" not in report().to_html()
    assert ("name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in report().to_html()
    assert "somebody <else> & co" in page.text  # escaped, so that it is text


def test_the_plot_has_every_tap_point() -> None:
    page = report(WRONG).to_html()
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    dots = svg.findall("circle")
    floats = [name for name in names(GPT_OSS_120B) if not name.endswith("expert_indices")]
    titles = [dot.findtext("title") or "" for dot in dots]
    assert [title.split(":")[0] for title in titles] == floats
    assert [dot.get("class") for dot in dots].count("diverges") == 1
    width, height = (float(svg.get(side) or 0) for side in ("width", "height"))
    for dot in dots:
        assert 0 < float(dot.get("cx") or 0) < width
        assert 0 < float(dot.get("cy") or 0) < height


def test_a_plot_of_odd_values() -> None:
    odd = (0.0, 1e-300, 1e300, math.inf, math.nan)
    rows = tuple(row("norm", "nan", rel_l2=value, allowed=value) for value in odd)
    for some in (rows, (), rows[:1]):
        page = report(rows=some).to_html()
        svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
        assert "nan" not in (svg.find("polyline").get("points") or "")  # type: ignore[union-attr]
        assert all(math.isfinite(float(dot.get("cy") or "nan")) for dot in svg.findall("circle"))


def test_the_page_goes_to_a_file(tmp_path: Path) -> None:
    made = report()
    text = made.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    with pytest.raises(GptOssError, match=r"page\.html: cannot be written: No such file"):
        made.to_html(tmp_path / "no" / "page.html")


@dataclasses.dataclass(frozen=True)
class WithCauses(Report):
    def sections(self) -> Sequence[Section]:
        return (Section("Causes", ("1. a <bug>",)),)


def test_who_knows_more_adds_sections() -> None:
    made = WithCauses(**vars(report(WRONG)))
    assert "Causes\n1. a <bug>" in str(made)
    assert "1. a <bug>" in parsed(made).text
