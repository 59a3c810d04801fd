"""What a diagnosis found: a report of the local replay, and the bugs that explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gptoss_ref.verify.report.report import Report, Section, plain


@dataclass(frozen=True)
class Cause:
    """A known bug that the other's numbers show.

    Attributes:
        name: of the mutant in the catalogue, e.g. ``"window-plus-one"``.
        variant: which form of it, where it is not the usual one.
        stage: the tap point, without its block, whose numbers it changes first.
        tap: the tap point where it was found.
        blocks: the blocks that have it; None: all that can.
        sites: the tap points that have it, where it is narrower than that.
        value, interval: of a number that is wrong, what it is, and between what values the numbers
            fix it.
        summary, consequence, reports: of the mutant.
        error_before, error_after: at that tap point, in multiples of what rounding explains, by the
            specification and with this bug.
        alternatives: names of other mutants that this input cannot tell from it.
        confidence: between 0 and 1; shared with the alternatives.
        share: of the values that differ, how many side with the bug; only for a bug that changes
            less than rounding may.
    """

    name: str
    variant: str | None
    stage: str
    tap: str
    blocks: tuple[int, ...] | None
    summary: str
    consequence: str
    reports: tuple[str, ...]
    error_before: float
    error_after: float
    alternatives: tuple[str, ...]
    confidence: float
    share: float | None = None
    sites: tuple[str, ...] | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def narrow(self) -> bool:
        """Whether it is in one form of several, or in some places only."""
        return self.variant is not None or self.blocks is not None or self.sites is not None

    @property
    def title(self) -> str:
        """The name, with its form and its places."""
        form = "" if self.variant is None else f" ({self.variant})"
        if self.sites is not None:
            return f"{self.name}{form} at {' and '.join(self.sites)}"
        return f"{self.name}{form}" + (
            "" if self.blocks is None else f" in {_blocks(self.blocks)} only"
        )

    @property
    def mutant(self) -> str:
        """The same as ``name``."""
        return self.name

    def lines(self) -> list[str]:
        """The cause in words."""
        lines = [f"{self.title}: {self.summary}", f"  {self.consequence}"]
        if self.share is None:
            lines.append(
                f"  found at {self.tap}: without this bug the numbers there are off by "
                f"{in_words(self.error_before)}; with it, by {in_words(self.error_after)}"
            )
        else:
            lines.append(
                f"  found at {self.tap}: smaller than what rounding explains, but {self.share:.1%} "
                "of the values that it rounds otherwise are rounded as with it"
            )
        if self.interval is not None and self.interval[0] < self.interval[1]:
            low, high = self.interval
            lines.append(f"  fitted to the numbers, which fix it between {low:.6g} and {high:.6g}")
        if self.alternatives:
            lines.append(f"  cannot be told on this input from {', '.join(self.alternatives)}")
        if self.reports:
            lines.append(f"  reported before: {', '.join(self.reports)}")
        return lines


@dataclass(frozen=True)
class Unexplained:
    """Divergences that none of the known bugs explains.

    Attributes:
        tap: the first of them, and ...
        taps: ... all of the same stage.
        error: there, in multiples of what rounding explains.
        where: which tokens, heads or experts are hit, in words.
        nearest: the mutant that comes nearest, or several with ``and``; None: none makes it better.
        remaining: what is left of the error with it.
        hints: what the error looks like, and which tap point to bring next, in words.
    """

    tap: str
    taps: tuple[str, ...]
    error: float
    where: str
    nearest: str | None = None
    remaining: float | None = None
    hints: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same in words."""
        others = f", and at {len(self.taps) - 1} more of its kind" if len(self.taps) > 1 else ""
        lines = [f"{self.tap}{others}: off by {in_words(self.error)}; {self.where}"]
        if self.nearest is not None and self.remaining is not None:
            left = in_words(self.remaining)
            come, them = ("come", "them") if " and " in self.nearest else ("comes", "it")
            said = f"{self.nearest} {come} nearest; with {them} the numbers are off by {left}"
            lines.append(f"  {said}")
        return [*lines, *(f"  {hint}" for hint in self.hints)]


@dataclass(frozen=True)
class Diagnosis(Report):
    """A report of a local replay, with the bugs that explain it.

    Attributes:
        causes: the bugs found, in the order of computation; of logits alone, ranked by how well
            each by itself explains them.
        unexplained: divergences that no known bug explains.
        rewritings: what is computed otherwise but comes to the same, in words.
        mistakes: what was done to the arrays when they were recorded, in sentences; looked for
            before any bug.
    """

    command: ClassVar[str] = "diagnose"
    local: ClassVar[bool] = True

    causes: tuple[Cause, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()
    rewritings: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something could be judged, and nothing of it is wrong."""
        wrong = self.causes or self.unexplained or self.mistakes
        return not wrong and super().ok

    @property
    def verdict(self) -> str:
        """A sentence or two: mistakes of the recording first, then bugs."""
        said = list(self.mistakes)
        if self.causes:
            names = " and ".join(cause.title for cause in self.causes)
            first = self.causes[0]
            if first.narrow:
                said.append(
                    f"{first.tap} is the first wrong stage: the numbers are those of {names}"
                )
            else:
                said.append(f"The numbers are those of {names}")
        if self.unexplained:
            tap = self.unexplained[0].tap
            if self.causes:
                said[-1] += f"; beyond that none of the known bugs explains {tap}"
            else:
                said.append(f"{tap} diverges, and none of the known bugs explains this")
        return " ".join(f"{x.removesuffix('.')}." for x in said) if said else super().verdict

    def sections(self) -> Sequence[Section]:
        """Causes, what is unexplained, and rewritings."""
        parts = (
            ("Recorded otherwise than the model computes it", list(self.mistakes)),
            ("Causes", [line for cause in self.causes for line in cause.lines()]),
            (
                "None of the known bugs explains this",
                [line for unexplained in self.unexplained for line in unexplained.lines()],
            ),
            ("Computed otherwise, which comes to the same", list(self.rewritings)),
        )
        return [Section(title, tuple(lines)) for title, lines in parts if lines]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object; NaN and infinities become null."""
        return {
            **super().to_json(),
            "causes": [plain(vars(cause)) for cause in self.causes],
            "unexplained": [plain(vars(item)) for item in self.unexplained],
            "rewritings": list(self.rewritings),
            "mistakes": list(self.mistakes),
        }


def in_words(excess: float) -> str:
    """An error in multiples of what rounding explains, for a reader who meets it once."""
    if excess <= 1:
        return "no more than rounding explains"
    if excess < 100:
        return f"{excess:.2g} times what rounding explains"
    return "far more than rounding explains"


def _blocks(blocks: Sequence[int]) -> str:
    words = ", ".join(map(str, blocks))
    return f"block {words}" if len(blocks) == 1 else f"blocks {words}"
