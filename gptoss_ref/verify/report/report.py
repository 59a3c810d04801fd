"""The result of a comparison: rows by tap point (``row.py``), routing ties, and the verdict.

A report can be written as text, as JSON and as a self-contained HTML page. Subclasses of
:class:`Report` add sections (:class:`Section`), such as the causes of errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptoss_ref._files import replacing
from gptoss_ref.verify.noise.routing_ties import Flip
from gptoss_ref.verify.report.html import page
from gptoss_ref.verify.report.row import DIVERGENT, WRONG, Row
from gptoss_ref.verify.report.text import lines


@dataclass(frozen=True)
class Section:
    """An additional part of a report: a title and lines of text."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Two traces of the same model and prompt, compared.

    Attributes:
        ref, other: the producers of the traces.
        rounding: of the other trace.
        yardstick: the source of the allowed errors, in words.
        tokens: number of tokens.
        taps: number of tap points of the model.
        rows: the tap points that both traces hold, in order of computation.
        missing: the tap points that only one of them holds.
        flips: tokens with other experts because of a tie.
        notes: further remarks, for instance on arrays that were left out.
    """

    command: ClassVar[str] = "compare"
    local: ClassVar[bool] = False
    """Whether a row judges one stage alone, computed from the other trace's inputs of it."""

    ref: str
    other: str
    rounding: str
    yardstick: str
    tokens: int
    taps: int
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()
    flips: tuple[Flip, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def first_divergence(self) -> Row | None:
        """The first row whose error rounding does not explain; None if there is none."""
        return next((row for row in self.rows if row.verdict in DIVERGENT), None)

    @property
    def hidden(self) -> Row | None:
        """The first row with a bug whose effect is smaller than rounding; None if there is none."""
        return next((row for row in self.rows if row.verdict == "hidden"), None)

    @property
    def ok(self) -> bool:
        """Whether at least one row was judged, and none is wrong."""
        return self.judged > 0 and all(row.verdict not in WRONG for row in self.rows)

    @property
    def judged(self) -> int:
        """Number of tap points that were judged."""
        return sum(row.verdict in ("ok", "tie", "rewritten", *WRONG) for row in self.rows)

    @property
    def outcome(self) -> str:
        """The verdict in two words."""
        if self.ok:
            return "No divergence"
        if self.first_divergence is not None:
            return "Divergence"
        return "No verdict" if self.hidden is None else "Bug smaller than rounding"

    @property
    def verdict(self) -> str:
        """One sentence."""
        row = self.first_divergence
        if row is None and not self.judged:
            return f"No verdict: none of the {self.taps} tap points could be judged."
        if row is None:
            extent = f"{self.judged} of the {self.taps} tap points could be judged"
            return f"No divergence beyond what {self.rounding} explains; {extent}."
        return f"First divergence: {row.name}. {row.note[:1].upper()}{row.note[1:]}."

    def sections(self) -> Sequence[Section]:
        """Additional parts after the table; subclasses may add some."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object; NaN and infinities become null."""
        first = self.first_divergence
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "first_divergence": None if first is None else first.name,
            "ref": self.ref,
            "other": self.other,
            "rounding": self.rounding,
            "yardstick": self.yardstick,
            "tokens": self.tokens,
            "taps": self.taps,
            "judged": self.judged,
            "rows": [plain(vars(row)) for row in self.rows],
            "missing": list(self.missing),
            "flips": [plain(vars(flip)) for flip in self.flips],
            "notes": list(self.notes),
        }

    def to_text(self, *, verbose: bool = False) -> str:
        """The report for a terminal without colour; ``verbose`` lists every tap point."""
        return "\n".join(line.text for line in lines(self, verbose=verbose))

    def __str__(self) -> str:
        return self.to_text()

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as a self-contained page, which is also written to ``path`` if given.

        Raises:
            GptOssError: the file cannot be written; an existing file is then kept.
        """
        text = page(self)
        if path is not None:
            with replacing(Path(path)) as file:
                file.write(text.encode())
        return text


def plain(value: Any) -> Any:
    """The value converted to types that JSON has."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
