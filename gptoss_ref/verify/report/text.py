"""A report for a terminal: wrong rows in full, blocks without errors on one line each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from gptoss_ref.tracing.gradients import split
from gptoss_ref.verify.report.row import WRONG, Row

if TYPE_CHECKING:
    from gptoss_ref.verify.report.report import Report

Style = Literal["", "bold", "dim", "red", "bold red", "green", "bold green", "yellow"]

FLIPS_SHOWN = 3
WIDTHS = (34, 9, 9, 9, 10)
HEADINGS = ("tap point", "rel. L2", "allowed", "max abs", "roundings")


@dataclass(frozen=True)
class Line:
    """One line of text and its style on a colour terminal."""

    text: str
    style: Style = ""


def lines(report: Report, *, verbose: bool = False) -> Iterator[Line]:
    """The lines of a report; unless ``verbose``, a block without errors takes one line."""
    styles: dict[str, Style] = {"No divergence": "bold green", "No verdict": "yellow"}
    yield Line(report.verdict, styles.get(report.outcome, "bold red"))
    yield Line("")
    yield Line(f"REF        {report.ref}")
    yield Line(f"OTHER      {report.other}")
    yield Line(f"yardstick  {report.yardstick}; {report.tokens} tokens")
    yield Line("")
    yield Line(_cells(HEADINGS) + "  verdict", "bold")
    for block, group in groupby(report.rows, key=lambda row: split(row.name)[0]):
        rows = list(group)
        first_wrong = any(row.verdict in WRONG for row in rows)
        if verbose or first_wrong or (block is None):
            yield from map(_line, rows)
        else:
            yield from _collapsed(block, rows)
    yield from _predictions(report)
    yield from _flips(report)
    if report.missing:
        yield Line("")
        yield Line(f"not compared, one trace lacks them: {kinds(report.missing)}", "yellow")
    for note in report.notes:
        yield Line(f"note: {note}", "dim")
    for section in report.sections():
        yield Line("")
        yield Line(section.title, "bold")
        yield from map(Line, section.lines)


def _line(row: Row) -> Line:
    style: Style = ""
    if row.verdict in WRONG:
        style = "bold red"
    elif row.verdict == "follows":
        style = "red"
    elif row.verdict in ("tie", "rewritten", "unjudged"):
        style = "yellow"
    if row.name.endswith("expert_indices"):
        figures = [f"{row.rel_l2:.1%}", "", number(row.max_abs), ""]
    else:
        figures = [number(x) for x in (row.rel_l2, row.allowed, row.max_abs, row.rounding_units)]
    word = row.verdict.upper() if row.verdict in WRONG else row.verdict
    note = f": {row.note}" if row.note else ""
    return Line(f"{_cells([row.name, *figures])}  {word}{note}", style)


def _collapsed(block: int | None, rows: Sequence[Row]) -> Iterator[Line]:
    """A block on one line: its worst tap point."""
    floats = [row for row in rows if not row.name.endswith("expert_indices")] or list(rows)
    judged = [row for row in floats if not math.isnan(row.excess)]
    worst = max(judged, key=lambda row: row.excess, default=floats[0])
    figures = [number(x) for x in (worst.rel_l2, worst.allowed, worst.max_abs)]
    figures.append(number(worst.rounding_units))
    counts = {word: sum(row.verdict == word for row in rows) for word in _VERDICTS}
    text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    style: Style = ""
    if counts["follows"]:
        style = "red"
    elif counts["unjudged"] == len(rows):
        style = "yellow"
    stage = split(worst.name)[1]
    yield Line(f"{_cells([f'block.{block}  worst {stage}', *figures])}  {text}", style)


_VERDICTS = ("ok", "tie", "rewritten", "unjudged", "follows")


def _predictions(report: Report) -> Iterator[Line]:
    for row in report.rows:
        if "kl_mean" in row.extra:
            yield Line("")
            yield Line(f"{predicted_by(report)}: {prediction(row)}")


def predicted_by(report: Report) -> str:
    """What the predictions of the logits' row are computed from: the whole model, if possible."""
    if report.local and any(row.name == "norm" for row in report.rows):
        return "predictions of the unembedding alone, from the other's own final norm"
    return "predictions"


def prediction(row: Row) -> str:
    """The agreement of two models' predictions, from the row of the logits, in words."""
    e = row.extra
    return (
        f"same first choice for {e['top1']:.1%} of tokens, {e['top5']:.1%} of the top five in "
        f"common; KL divergence {number(e['kl_mean'])} nats a token, at most "
        f"{number(e['kl_max'])}"
    )


def _flips(report: Report) -> Iterator[Line]:
    flips = report.flips
    if not flips:
        return
    yield Line("")
    yield Line(f"routing ties: {len(flips)}, which rounding may turn; no errors", "yellow")
    for flip in flips[:FLIPS_SHOWN]:
        yield Line(f"  {flip}")
    if len(flips) > FLIPS_SHOWN:
        yield Line(f"  and {len(flips) - FLIPS_SHOWN} more")


def number(x: float) -> str:
    """A figure in at most nine characters."""
    if math.isnan(x):
        return "-"
    if x == 0:
        return "0"
    if not math.isfinite(x):
        return "inf"
    return f"{x:.3g}" if 0.001 <= abs(x) < 100_000 else f"{x:.1e}"


def _cells(values: Iterable[str]) -> str:
    name, *rest = values
    return f"{name:<{WIDTHS[0]}}" + "".join(
        f"{value:>{width}}" for value, width in zip(rest, WIDTHS[1:], strict=True)
    )


def kinds(missing: Sequence[str]) -> str:
    """Names of tap points, with one entry for each stage of the blocks."""
    kinds: dict[str, int] = {}
    for name in missing:
        block, stage = split(name)
        key = stage if block is None else f"block.*.{stage}"
        kinds[key] = kinds.get(key, 0) + 1
    return ", ".join(f"{key} ({count})" if count > 1 else key for key, count in kinds.items())
