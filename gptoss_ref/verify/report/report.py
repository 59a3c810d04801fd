"""The result of a comparison: rows by tap point, routing ties, and the verdict.

A report can be written as text, as JSON and as a self-contained HTML page. Subclasses of
:class:`Report` add sections (:class:`Section`), such as the causes of errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from gptoss_ref._files import replacing
from gptoss_ref.verify.noise.routing_ties import Flip

Verdict = Literal["ok", "diverges", "nan", "hidden", "rewritten", "follows", "tie", "unjudged"]
"""See :class:`Row`."""

DIVERGENT = ("diverges", "nan")
WRONG = (*DIVERGENT, "hidden")

ALL_LOST = "all values are NaN or infinite in both"


@dataclass(frozen=True)
class Row:
    """One tap point of both traces, side by side.

    Attributes:
        name: of the tap point.
        shape: of both arrays.
        dtypes: the stored dtypes of the arrays, the reference's first.
        max_abs: largest absolute difference; for expert indices, the largest routing margin.
        rel_l2: L2 norm of the difference over that of the reference; for expert indices, the share
            of tokens whose set of experts differs.
        cosine: of the angle between the two arrays.
        rounding_units: ``rel_l2`` in units of the rounding (its unit roundoff).
        allowed: the largest ``rel_l2`` that rounding explains.
        excess: the largest ratio of an error to its allowance, for the array and for each token;
            above 1 the row diverges. NaN if nothing was judged.
        verdict: ``ok``; wrong: ``diverges``, ``nan`` (NaN or infinite in one trace only) or
            ``hidden`` (a bug was found whose effect is smaller than rounding); not wrong:
            ``rewritten`` (the values differ, but everything computed from them agrees),
            ``follows`` (after the first wrong row, or after ties for every token), ``tie`` (only
            the experts of ties differ), ``unjudged`` (there is no noise floor).
        note: an explanation in words.
        first_token: the first token whose error rounding does not explain.
        extra: further numbers: for logits ``kl_mean``, ``kl_max``, ``top1`` and ``top5``.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    max_abs: float
    rel_l2: float
    cosine: float
    rounding_units: float
    allowed: float
    excess: float
    verdict: Verdict
    note: str = ""
    first_token: int | None = None
    extra: dict[str, float] = field(default_factory=dict)


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
        from gptoss_ref.verify.report.text import lines

        return "\n".join(line.text for line in lines(self, verbose=verbose))

    def __str__(self) -> str:
        return self.to_text()

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as a self-contained page, which is also written to ``path`` if given.

        Raises:
            GptOssError: the file cannot be written; an existing file is then kept.
        """
        from gptoss_ref.verify.report.html import page

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
