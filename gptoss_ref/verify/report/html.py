"""A report as one self-contained HTML page: a plot and tables of the errors at all tap points.

It loads no script, font or other file, follows the light or dark mode of the system, and wide plots
scroll sideways on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from gptoss_ref.tracing.gradients import split
from gptoss_ref.verify.report.row import WRONG, Row
from gptoss_ref.verify.report.text import FLIPS_SHOWN, kinds, number, predicted_by, prediction

if TYPE_CHECKING:
    from gptoss_ref.verify.report.report import Report

STEP, LEFT, TOP, PLOT, BOTTOM = 9, 44, 12, 220, 34  # pixels
ZERO = 1e-20  # an error of 0 is drawn at the bottom

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #d8dde6;
  --paper: #ffffff; --card: #f5f7fa; --ok: #1a7f4b; --bad: #c62828; --odd: #a86400; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #343b48;
  --paper: #14181f; --card: #1d232d; --ok: #4cc38a; --bad: #ff6b6b; --odd: #e5a54b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
.well { color: var(--ok); } .wrong { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .75rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--card); border-radius: .5rem; padding: .5rem; }
svg { display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .bound { fill: none; stroke: var(--soft); stroke-dasharray: 3 3; }
circle { fill: var(--ok); } circle.diverges, circle.nan, circle.hidden { fill: var(--bad); }
circle.follows { fill: none; stroke: var(--bad); stroke-width: 1.5; }
circle.tie, circle.rewritten, circle.unjudged { fill: var(--odd); }
details { border-bottom: 1px solid var(--line); } summary { cursor: pointer; padding: .4rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { padding: .2rem .5rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
tr.note td { padding: 0 .5rem .4rem 1.5rem; font-weight: 400; }
tr.diverges td, tr.nan td, tr.hidden td { color: var(--bad); font-weight: 600; }
tr.follows td { color: var(--bad); }
tr.tie td, tr.rewritten td, tr.unjudged td { color: var(--odd); }
.soft { color: var(--soft); } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(report: Report) -> str:
    """The whole page."""
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{report.outcome}: gptoss-ref {report.command}</title>",
            f"<style>{STYLE}</style></head><body>",
            *_head(report),
            *_causes(report),
            "<h2>Error at every tap point</h2>",
            f'<div class="scroll">{_plot(report.rows)}</div>',
            '<p class="soft">Relative L2 error, logarithmic. Dashed: what rounding explains. '
            "Filled red: a divergence; red ring: a row that follows one.</p>",
            "<h2>Tap points</h2>",
            *_tables(report.rows),
            *_rest(report),
            "</body></html>",
        )
    )


def _head(report: Report) -> Iterator[str]:
    yield f'<h1 class="{"well" if report.ok else "wrong"}">{escape(report.verdict)}</h1><dl>'
    facts = {
        "Reference": report.ref,
        "Other": report.other,
        "Yardstick": report.yardstick,
        "Tokens": str(report.tokens),
    }
    for term, fact in facts.items():
        yield f"<dt>{term}</dt><dd>{escape(fact)}</dd>"
    predictions = [prediction(row) for row in report.rows if "kl_mean" in row.extra]
    for text in predictions:
        yield f"<dt>{escape(predicted_by(report).capitalize())}</dt><dd>{escape(text)}</dd>"
    yield "</dl>"


def _causes(report: Report) -> Iterator[str]:
    for section in report.sections():
        yield f"<h2>{escape(section.title)}</h2>"
        yield f"<pre>{escape(chr(10).join(section.lines))}</pre>"


def _plot(rows: Sequence[Row]) -> str:
    """An SVG with one dot per tap point, in order of computation."""
    drawn = [row for row in rows if not row.name.endswith("expert_indices")]
    values = [x for row in drawn for x in (row.rel_l2, row.allowed) if 0 < x < math.inf]
    low = math.floor(math.log10(min(values, default=1e-8)))
    high = max(low + 1, math.ceil(math.log10(max(values, default=1.0))))

    def y(value: float) -> float:
        value = min(max(value, ZERO), 10.0**high)
        return TOP + PLOT * min(1.0, (high - math.log10(value)) / (high - low))

    width, height = LEFT + STEP * (len(drawn) + 1), TOP + PLOT + BOTTOM
    parts = [
        f'<svg role="img" aria-label="error at every tap point" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>')
    place = {row.name: LEFT + STEP * (i + 1) for i, row in enumerate(drawn)}
    for block, group in groupby(drawn, key=lambda row: split(row.name)[0]):
        if block is not None:
            x = place[next(group).name] - STEP / 2
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{TOP + PLOT}"/>')
            parts.append(f'<text x="{x + 3}" y="{TOP + PLOT + 16}">block {block}</text>')
    bound = [row for row in drawn if row.allowed < math.inf]
    points = " ".join(f"{place[row.name]},{y(row.allowed):.1f}" for row in bound)
    parts.append(f'<polyline class="bound" points="{points}"/>')
    for row in drawn:
        label = f"{row.name}: {number(row.rel_l2)}, {row.verdict}"
        error = math.inf if row.verdict == "nan" else row.rel_l2
        parts.append(
            f'<circle class="{row.verdict}" cx="{place[row.name]}" cy="{y(error):.1f}" '
            f'r="{4.5 if row.verdict in WRONG else 3}"><title>{escape(label)}</title></circle>'
        )
    return "".join(parts) + "</svg>"


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table for each block, folded unless the first divergence is in it."""
    for block, group in groupby(rows, key=lambda row: split(row.name)[0]):
        inside = list(group)
        wrong = any(row.verdict in WRONG for row in inside)
        title = ", ".join(row.name for row in inside) if block is None else f"block.{block}"
        words = [row.verdict for row in inside]
        counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        yield f"<details{' open' if wrong else ''}><summary>{escape(title)} "
        yield f'<span class="{"wrong" if wrong else "soft"}">{counts}</span></summary>'
        yield '<div class="scroll"><table><tr><th>tap point</th><th>shape</th><th>dtypes</th>'
        yield "<th>rel. L2</th><th>allowed</th><th>max abs</th><th>1 − cosine</th>"
        yield "<th>roundings</th><th>verdict</th></tr>"
        for row in inside:
            figures = (row.rel_l2, row.allowed, row.max_abs, 1 - row.cosine, row.rounding_units)
            cells = (
                row.name,
                " × ".join(map(str, row.shape)),
                " / ".join(row.dtypes),
                *map(number, figures),
                row.verdict,
            )
            yield f'<tr class="{row.verdict}">'
            yield "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
            if row.note:
                yield f'<tr class="{row.verdict} note"><td colspan="9">{escape(row.note)}</td></tr>'
        yield "</table></div></details>"


def _rest(report: Report) -> Iterator[str]:
    if report.flips:
        yield f"<h2>Routing ties: {len(report.flips)}</h2><p>Tokens that rounding may send to other"
        yield " experts; no errors.</p><details><summary>List</summary><ul>"
        for flip in report.flips[: 100 * FLIPS_SHOWN]:
            yield f"<li>{escape(str(flip))}</li>"
        yield "</ul></details>"
    if report.missing:
        yield f"<h2>Not compared</h2><p>One trace lacks: {escape(kinds(report.missing))}</p>"
    for note in report.notes:
        yield f'<p class="soft">{escape(note)}</p>'
