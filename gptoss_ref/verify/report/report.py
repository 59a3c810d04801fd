"""What a comparison found: rows by tap point, routing ties, and the sentence that sums them up.

A report prints as text, as JSON and as a self-contained HTML page. Who knows more than the errors,
such as their cause, subclasses :class:`Report` and adds sections (:class:`Section`).
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

WRONG = ("diverges", "nan", "hidden")

ALL_LOST = "all values are NaN or infinite in both"


@dataclass(frozen=True)
class Row:
    """One tap point of both traces, side by side.

    Attributes:
        name: of the tap point.
        shape: of both arrays.
        dtypes: what the arrays are stored as, the reference's first.
        max_abs: largest absolute difference; of expert indices, the largest routing margin.
        rel_l2: L2 norm of the difference over that of the reference; of expert indices, the share
            of tokens whose set of experts differs.
        cosine: of the angle between the two arrays.
        rounding_units: ``rel_l2`` in units of the rounding (its unit roundoff).
        allowed: how much of ``rel_l2`` rounding explains.
        excess: the largest error over what rounding explains, of the array or of any token; above
            1 it diverges. NaN if nothing was judged.
        verdict: ``ok``; ``diverges`` and ``nan`` (NaN or infinite in one trace only) where
            something is wrong; ``hidden`` where a bug shows that changes less than rounding may;
            ``rewritten`` where the numbers differ and all that is computed from them agrees;
            ``follows`` after the first that is wrong, or where every token follows a tie; ``tie``
            for routes that rounding may turn; ``unjudged`` where no noise floor reaches.
        note: what there is to say, in words.
        first_token: of the tokens whose error rounding does not explain.
        extra: further numbers: of logits ``kl_mean``, ``kl_max``, ``top1`` and ``top5``.
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
    """A further part of a report: a title and lines of text."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Two traces of the same model and prompt, compared.

    Attributes:
        ref, other: who made the traces.
        rounding: of the other trace.
        yardstick: in words, where the allowed errors come from.
        tokens: how many.
        taps: how many tap points the model has.
        rows: the tap points that both traces hold, in order of computation.
        missing: the tap points that one of them lacks.
        flips: tokens routed differently within their margin.
        notes: what else was left out or done otherwise.
    """

    command: ClassVar[str] = "compare"
    local: ClassVar[bool] = False
    """Whether a row judges its stage alone, from the other's own inputs of it."""

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
        """The first tap point where something is wrong."""
        return next((row for row in self.rows if row.verdict in WRONG), None)

    @property
    def ok(self) -> bool:
        """Whether something could be judged, and none of it diverges."""
        return self.judged > 0 and self.first_divergence is None

    @property
    def judged(self) -> int:
        """Tap points that could be judged."""
        return sum(row.verdict in ("ok", "tie", "rewritten", *WRONG) for row in self.rows)

    @property
    def outcome(self) -> str:
        """The verdict in two words."""
        if self.ok:
            return "No divergence"
        return "No verdict" if self.first_divergence is None else "Divergence"

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
        """Further parts, printed after the table; a subclass may add some."""
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
            GptOssError: the file cannot be written; one that was there is kept.
        """
        from gptoss_ref.verify.report.html import page

        text = page(self)
        if path is not None:
            with replacing(Path(path)) as file:
                file.write(text.encode())
        return text


def plain(value: Any) -> Any:
    """The same in types that JSON has."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
