"""The fit of bugs to observed numbers: what every search compares, and what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.search.candidates import Candidate, Option
from gptoss_ref.verify.thresholds import ALIKE, LEADING, PAIRED


class Named(Protocol):
    """A bug with a name."""

    @property
    def name(self) -> str:
        """As the catalogue has it."""


Bug = TypeVar("Bug", bound=Named)


@dataclass(frozen=True)
class Fit(Generic[Bug]):
    """Some bugs, and how near the numbers come to the observed ones with them.

    Attributes:
        candidates: the bugs, applied one after the other; empty for the specification.
        distance: between the observed numbers and those with the bugs.
        excess: the error with them, in multiples of what rounding explains; NaN: not measured.
        tap: the tap point of these numbers.
        before: the excess there without them.
        alternatives: by the name of a bug, names of others that fit equally well in its place.
        share: for a bug smaller than rounding, the share of the votes that agree with it.
        interval: for a fitted number, the interval in which it lies. As long as the number is
            searched, the next values are tried there; of a fit that was found, all values in it
            explain the numbers.
    """

    candidates: tuple[Bug, ...]
    distance: float = np.inf
    excess: float = np.nan
    tap: str = ""
    before: float = np.nan
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    share: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def names(self) -> frozenset[str]:
        """Of the bugs."""
        return frozenset(candidate.name for candidate in self.candidates)

    @property
    def title(self) -> str:
        """The names in words."""
        return " and ".join(candidate.name for candidate in self.candidates)


@dataclass(frozen=True)
class TapFit(Fit[Candidate]):
    """A fit at one tap point, and what it does to the rest of the trace.

    Attributes:
        under: tap points under the candidates: this one, or all that they change.
        left: divergences of the whole trace under them.
    """

    under: tuple[TapError, ...] = ()
    left: int = 0

    @property
    def harmless(self) -> bool:
        """Whether none of them is an error."""
        return all(candidate.harmless for candidate in self.candidates)

    @property
    def rank(self) -> tuple[int, int, int, float]:
        """Sort key, smaller is better: divergences left, their tokens, places, distance."""
        tokens = sum(int(local.wrong_rows.sum()) for local in self.under)
        placed = max(candidate.placed for candidate in self.candidates)
        return self.left, tokens, placed, self.distance


@dataclass(frozen=True)
class Unknown:
    """Divergences that no known bug explains.

    Attributes:
        tap: the first of them.
        taps: all of the same stage.
        nearest: the bug that comes nearest; None if no bug reduces the error.
    """

    tap: str
    taps: tuple[str, ...]
    nearest: Fit[Candidate] | None


def best_of(weighed: Iterable[TapFit]) -> TapFit:
    """Return the best fit, with the names of bugs that cannot be distinguished from it.

    Among equal pairs of bugs, prefer one that fits in both orders: if the order matters, the later
    bug hides a part of the earlier one.
    """
    ordered = sorted(weighed, key=lambda fit: fit.rank)
    first = ordered[0]
    alike = [
        fit
        for fit in ordered
        if fit.rank[:3] == first.rank[:3] and fit.distance <= ALIKE * first.distance
    ]
    tried = [fit.candidates for fit in alike]
    best = max(alike, key=lambda fit: fit.candidates[::-1] in tried)
    names = (c.name for fit in alike for c in fit.candidates if c.name not in best.names)
    others = tuple(dict.fromkeys(names))
    return replace(best, alternatives=dict.fromkeys(best.names, others))


def pairs(singles: Iterable[Option]) -> list[Option]:
    """Return pairs of candidates, in both orders.

    They are the nearest mutants with each other, each in its nearest and in its usual form, and the
    first few of them with every other form of the others, because the nearest form alone need not
    fit beside another bug.
    """
    forms = [candidate for (candidate,) in singles]
    nearest: dict[str, Candidate] = {}
    for form in forms:
        nearest.setdefault(form.name, form)
    some = list(nearest.values())[:PAIRED]
    names = {candidate.name for candidate in some}
    some += [f for f in forms if f.usual and f.name in names and f not in some]
    found: list[Option] = [(a, b) for a in some for b in some if a.name != b.name]
    for leading in some[:LEADING]:
        for form in forms:
            if form.name != leading.name and form not in some:
                found += [(leading, form), (form, leading)]
    return found
