"""The result of a diagnosis: a report of the replay, and the bugs that explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gptoss_ref.verify.report.report import Report, Section, plain
from gptoss_ref.verify.search.fit import Fit


@dataclass(frozen=True)
class Cause:
    """A known bug that was found in the observed numbers.

    Attributes:
        name: of the mutant in the catalogue, e.g. ``"window-plus-one"``.
        variant: its form, if it is not the usual one.
        stage: the stage (a tap point without its block) that it changes first.
        tap: the tap point where it was found.
        blocks: the blocks that have it; None: all blocks that can have it.
        sites: the tap points that have it, if not all of these blocks' have it.
        value, interval: for a wrong constant, its fitted value, and the interval in which the value
            explains the numbers.
        summary, consequence, reports: of the mutant.
        error_before, error_after: the error at ``tap`` without and with this bug, in multiples of
            what rounding explains.
        alternatives: names of other mutants that this input cannot distinguish from it.
        confidence: between 0 and 1; shared with the alternatives.
        share: for a bug with an effect smaller than rounding: the share of the values that are
            rounded differently and agree with the bug.
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

    @classmethod
    def of(cls, fit: Fit[Any], mutant: Any, **place: Any) -> Cause:
        """The cause for a mutant of a fit, forward or backward.

        Args:
            place: its form, blocks, sites, value and interval.
        """
        others = fit.alternatives.get(mutant.name, ())
        return cls(
            name=mutant.name,
            stage=mutant.stage,
            tap=fit.tap,
            summary=mutant.summary,
            consequence=mutant.consequence,
            reports=mutant.reports,
            error_before=fit.before,
            error_after=fit.excess,
            alternatives=others,
            confidence=(fit.share or 1.0) / (1 + len(others)),
            share=fit.share,
            **place,
        )

    @property
    def narrow(self) -> bool:
        """Whether it has a special form, or is in some blocks or sites only."""
        return self.variant is not None or self.blocks is not None or self.sites is not None

    @property
    def title(self) -> str:
        """The name, with its form and its blocks or sites."""
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
                f"  found at {self.tap}: smaller than rounding, but of the values that round "
                f"differently with this bug, {self.share:.1%} agree with it"
            )
        if self.interval is not None and self.interval[0] < self.interval[1]:
            low, high = self.interval
            lines.append(f"  fitted value; the numbers allow {low:.6g} to {high:.6g}")
        if self.alternatives:
            lines.append(f"  this input cannot distinguish it from {', '.join(self.alternatives)}")
        if self.reports:
            lines.append(f"  reported before: {', '.join(self.reports)}")
        return lines


@dataclass(frozen=True)
class Unexplained:
    """Divergences at one stage that no known bug explains.

    Attributes:
        tap: the first tap point that diverges.
        taps: all tap points of this stage that diverge.
        error: the error at ``tap``, in multiples of what rounding explains.
        where: the affected tokens, heads or experts, in words.
        nearest: the mutant that leaves the smallest error, or several with ``and``; None if none
            reduces it.
        remaining: the error that it leaves.
        hints: properties of the error, and the tap point to observe next, in words.
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
        causes: the bugs found, in order of computation; from logits alone, ranked by how well each
            of them explains the logits.
        unexplained: divergences that no known bug explains.
        rewritings: arrays that are computed differently with the same result, in words.
        mistakes: mistakes in the recording of the arrays, in sentences; the diagnosis looks for
            them before any bug.
    """

    command: ClassVar[str] = "diagnose"
    local: ClassVar[bool] = True

    causes: tuple[Cause, ...] = ()
    unexplained: tuple[Unexplained, ...] = ()
    rewritings: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether at least one row was judged, and nothing is wrong."""
        wrong = self.causes or self.unexplained or self.mistakes
        return not wrong and super().ok

    @property
    def verdict(self) -> str:
        """A sentence or two: mistakes of the recording first, then bugs."""
        said = list(self.mistakes)
        if self.causes:
            names = " and ".join(_either(cause) for cause in self.causes)
            if any(cause.alternatives for cause in self.causes):
                names += "; this input does not tell which"
            first = self.causes[0]
            seen_there = first.tap not in ("norm", "logits") or first.tap == first.stage
            if first.narrow and seen_there:
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
            ("Mistakes in the recording of the arrays", list(self.mistakes)),
            ("Causes", [line for cause in self.causes for line in cause.lines()]),
            (
                "None of the known bugs explains this",
                [line for unexplained in self.unexplained for line in unexplained.lines()],
            ),
            ("Computed differently, with the same result", list(self.rewritings)),
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


def _either(cause: Cause) -> str:
    """The cause, or the bugs that cannot be distinguished from it."""
    names = [cause.title, *cause.alternatives]
    if len(names) > 4:
        names[3:] = [f"one of {len(names) - 3} more"]
    return names[0] if len(names) == 1 else f"either {', '.join(names[:-1])} or {names[-1]}"


def in_words(excess: float) -> str:
    """An error in multiples of what rounding explains, in words."""
    if excess <= 1:
        return "no more than rounding explains"
    if excess < 100:
        return f"{excess:.2g} times what rounding explains"
    return "far more than rounding explains"


def _blocks(blocks: Sequence[int]) -> str:
    words = ", ".join(map(str, blocks))
    return f"block {words}" if len(blocks) == 1 else f"blocks {words}"
