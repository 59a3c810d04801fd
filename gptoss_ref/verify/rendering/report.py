"""What a check of renderings found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_ref.verify.rendering.bug import RenderingBug
from gptoss_ref.verify.rendering.explain import Case, Search
from gptoss_ref.verify.rendering.pieces import Mark, Pieces, lines


@dataclass(frozen=True)
class RenderingCause:
    """A bug of the catalogue that was found in the renderings.

    Attributes:
        bug: the entry of the catalogue.
        variant: its form, if it is not the usual one.
        cases: titles of the conversations that it changes.
        alternatives: names of other bugs that these conversations cannot distinguish from it.
    """

    bug: RenderingBug
    variant: str | None
    cases: tuple[str, ...]
    alternatives: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the bug, e.g. ``"return-in-history"``."""
        return self.bug.name

    @property
    def summary(self) -> str:
        """What is wrong, in one sentence."""
        return self.bug.summary

    def lines(self) -> list[str]:
        """The cause in words."""
        form = "" if self.variant is None else f" ({self.variant})"
        out = [f"{self.name}{form}: {self.summary}", f"  {self.bug.consequence}"]
        more = f" and {len(self.cases) - 1} more" if len(self.cases) > 1 else ""
        out.append(f"  seen in: {self.cases[0]}{more}")
        if self.alternatives:
            out.append(f"  cannot be distinguished here from {', '.join(self.alternatives)}")
        if self.bug.reports:
            out.append(f"  reported before: {', '.join(self.bug.reports)}")
        return out

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "variant": self.variant,
            "summary": self.summary,
            "consequence": self.bug.consequence,
            "cases": list(self.cases),
            "alternatives": list(self.alternatives),
            "reports": list(self.bug.reports),
        }


@dataclass(frozen=True)
class UnexplainedRendering:
    """A difference that no bug of the catalogue explains: the first one of a conversation.

    Attributes:
        case: title of the conversation.
        expected: the text of the right rendering there.
        found: the observed text there.
        before: the end of the text before it.
    """

    case: str
    expected: str
    found: str
    before: str

    def lines(self) -> list[str]:
        """The same in words."""
        return [
            f"{self.case}: after {self.before!r}",
            f"  expected {self.expected!r}",
            f"  found    {self.found!r}",
        ]


@dataclass(frozen=True)
class RenderingReport:
    """The result of a check of renderings.

    Attributes:
        cases: number of conversations that were rendered.
        equal: number of correct renderings.
        causes: bugs that explain the others.
        forms: differences that are not wrong: see ``RenderingBug.form``.
        unexplained: differences that no known bug explains.
        refused: conversations that were not rendered, with the error message.
        notes: further remarks.
    """

    cases: int
    equal: int
    causes: tuple[RenderingCause, ...] = ()
    forms: tuple[RenderingCause, ...] = ()
    unexplained: tuple[UnexplainedRendering, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether at least one rendering was judged, and nothing is wrong."""
        return self.cases > 0 and not self.causes and not self.unexplained

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.cases:
            return "Nothing could be judged."
        of = f"{self.equal} of {self.cases} renderings are right"
        parts = []
        if self.causes:
            parts.append(f"the others show {' and '.join(cause.name for cause in self.causes)}")
        if self.unexplained:
            parts.append(f"{len(self.unexplained)} differ in ways that no known bug explains")
        if not parts and self.equal < self.cases:
            parts.append("the others differ, but are not wrong")
        return "; ".join([of, *parts]) + "."

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "cases": self.cases,
            "equal": self.equal,
            "causes": [cause.to_json() for cause in self.causes],
            "forms": [cause.to_json() for cause in self.forms],
            "unexplained": [vars(one) for one in self.unexplained],
            "refused": [{"case": case, "reason": reason} for case, reason in self.refused],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The report in words."""
        out = [self.verdict]
        parts = (
            ("Wrong", [line for cause in self.causes for line in cause.lines()]),
            ("Not explained", [line for one in self.unexplained for line in one.lines()]),
            ("Different, but not wrong", [line for form in self.forms for line in form.lines()]),
            ("Refused", [f"{case}: {reason}" for case, reason in self.refused]),
            ("Notes", list(self.notes)),
        )
        for title, body in parts:
            if body:
                out += ["", title, *(f"  {line}" for line in body)]
        return out


def judge(
    cases: Sequence[Case],
    refused: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    search: Search | None = None,
) -> RenderingReport:
    """Compare renderings with the right ones, and explain the differences."""
    search = search or Search(cases)
    chosen = search.run() if cases else ()
    causes: list[RenderingCause] = []
    forms: list[RenderingCause] = []
    dropped = True
    while dropped:
        causes, forms, dropped = [], [], False
        for one in chosen:
            acts, certain = search.evidence(chosen, one)
            if not certain:
                chosen = tuple(other for other in chosen if other != one)
                dropped = True
                break
            bug, label = one
            cause = RenderingCause(
                bug,
                label or None,
                tuple(cases[n].title for n in acts),
                search.alike(chosen, one),
            )
            (forms if bug.form else causes).append(cause)
    unexplained = []
    for case, made in zip(cases, search.renderings(chosen), strict=True):
        if made != case.observed:
            unexplained.append(_first_difference(case.title, made, case.observed))
    right = search.renderings(())
    equal = sum(case.observed == made for case, made in zip(cases, right, strict=True))
    return RenderingReport(
        *(len(cases), equal, tuple(causes), tuple(forms), tuple(unexplained)),
        *(tuple(refused), tuple(notes)),
    )


def _first_difference(title: str, ours: Pieces, theirs: Pieces) -> UnexplainedRendering:
    a, b = lines(ours), lines(theirs)
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    at = min(len(a), len(b)) if at is None else at
    return UnexplainedRendering(
        title,
        _shown(a[at : at + 3]),
        _shown(b[at : at + 3]),
        _shown(a[max(at - 3, 0) : at])[-80:],
    )


def _shown(pieces: Sequence[Mark | str]) -> str:
    text = "".join(map(str, pieces))
    return text if len(text) <= 160 else text[:160] + "…"
