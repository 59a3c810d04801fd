"""Candidates that were tried, found, or given up as explanations of a divergence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.search.candidates import Candidate, Option
from gptoss_ref.verify.thresholds import ALIKE, LEADING, PAIRED


@dataclass(frozen=True)
class Found:
    """A candidate that explains a divergence.

    Attributes:
        candidate: the candidate.
        tap: the tap point at which it was found.
        before, after: the error there without and with it, in multiples of what rounding explains.
        alternatives: names of other mutants that explain it equally well on this input.
        share: share of the votes that agree with it; None if it was found by the size of its
            effect.
        interval: for a fitted number, the interval in which it explains the divergence.
    """

    candidate: Candidate
    tap: str
    before: float
    after: float
    alternatives: tuple[str, ...] = ()
    share: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Unknown:
    """Divergences that no known bug explains.

    Attributes:
        tap: the first of them.
        taps: all of the same stage.
        nearest: the mutant that comes nearest, and the error that remains with it; None if no
            mutant reduces the error.
    """

    tap: str
    taps: tuple[str, ...]
    nearest: tuple[str, float] | None


@dataclass(frozen=True)
class Explanation:
    """One or two candidates tried on a tap point.

    Attributes:
        candidates: applied one after the other.
        local: the tap point under them.
        left, tokens: divergences of the whole trace under them, and the tokens that diverge in
        these.
        distance: between the other's numbers and theirs, with the same rounding, over all that they
            change.
        under: all these tap points under them.
    """

    candidates: Option
    local: TapError
    left: int = 0
    tokens: int = 0
    distance: float = 0.0
    under: tuple[TapError, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(candidate.name for candidate in self.candidates)

    @property
    def harmless(self) -> bool:
        """Whether none of them is an error."""
        return all(candidate.harmless for candidate in self.candidates)

    @property
    def rank(self) -> tuple[int, int, int, float]:
        """Sort key, smaller is better: divergences left, their tokens, places, distance."""
        placed = max(candidate.placed for candidate in self.candidates)
        return self.left, self.tokens, placed, self.distance


def best_of(weighed: Iterable[Explanation]) -> tuple[Explanation, tuple[str, ...]]:
    """Return the best explanation of a divergence, and names that cannot be distinguished from it.

    Among equal pairs of bugs, prefer one that fits in both orders: if the order matters, the later
    bug hides a part of the earlier one.
    """
    ordered = sorted(weighed, key=lambda e: e.rank)
    first = ordered[0]
    alike = [
        e for e in ordered if e.rank[:3] == first.rank[:3] and e.distance <= ALIKE * first.distance
    ]
    tried = [e.candidates for e in alike]
    best = max(alike, key=lambda e: e.candidates[::-1] in tried)
    names = (c.name for e in alike for c in e.candidates if c.name not in best.names)
    return best, tuple(dict.fromkeys(names))


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
