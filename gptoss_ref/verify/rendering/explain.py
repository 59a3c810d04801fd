"""Search for the bugs of the catalogue that turn the right renderings into the observed ones.

The search repeatedly adds the bug that reduces the distance most, until the renderings are equal or
no bug helps, and then removes bugs that are not needed. A bug is reported only with evidence: a
rendering that it changes is explained to the last token, or everything that it changes occurs in
the observation, together with the text before and after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import reduce

from gptoss_ref.chat.messages import Message
from gptoss_ref.verify.rendering.bug import RenderingBug
from gptoss_ref.verify.rendering.catalogue import BUGS
from gptoss_ref.verify.rendering.pieces import (
    Mark,
    Piece,
    Pieces,
    from_text,
    joined,
    lines,
    text_of,
)
from gptoss_ref.verify.rendering.rules import SPECIFICATION, Rules

Chosen = tuple[tuple[RenderingBug, str], ...]
"""Bugs and their forms, in the order in which they are applied."""

MOST = 16
"""Largest number of bugs that the search combines."""

_WORD = re.compile(r"\w+|\s|[^\w\s]")


@dataclass(frozen=True)
class Case:
    """A conversation and an observed rendering of it.

    Attributes:
        title: for reports.
        messages: the conversation.
        observed: the rendering.
        spelt: it is a text, in which a spelt special token looks like the token itself.
        next_role: role of the message that it should open at the end; None: none.
        training: whether a last answer should end with ``<|return|>``.
    """

    title: str
    messages: tuple[Message, ...]
    observed: Pieces
    spelt: bool
    next_role: str | None = "assistant"
    training: bool = False

    def rendered(self, rules: Rules = SPECIFICATION) -> Pieces:
        """The rendering by ``rules``, in the form of the observation (text or tokens)."""
        made = rules.render(self.messages, self.next_role, training=self.training)
        return from_text(text_of(made)) if self.spelt else joined(made)


def apply(chosen: Chosen) -> Rules:
    """The rules with all of these bugs."""
    return reduce(lambda rules, one: one[0].apply(rules, one[1]), chosen, SPECIFICATION)


def distance(ours: Pieces, theirs: Pieces) -> int:
    """Number of words and marks that are in only one of two renderings."""
    if ours == theirs:
        return 0
    total = 0
    a, b = _middles(lines(ours), lines(theirs))
    for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal":
            total += _difference(_words(a[i:j]), _words(b[k:m]))
    return total


def _middles(a: list[Piece], b: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Both lists without their common beginning and end."""
    size = min(len(a), len(b))
    start = next((n for n in range(size) if a[n] != b[n]), size)
    size -= start
    end = next((n for n in range(size) if a[-1 - n] != b[-1 - n]), size)
    return a[start : len(a) - end], b[start : len(b) - end]


def _words(pieces: Sequence[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        out += [piece] if isinstance(piece, Mark) else _WORD.findall(piece)
    return out


def _difference(a: list[Piece], b: list[Piece]) -> int:
    a, b = _middles(a, b)
    if not a or not b or len(a) * len(b) > 250_000:
        return len(a) + len(b)
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return len(a) + len(b) - 2 * sum(block.size for block in blocks)


class Search:
    """The search over the catalogue for some cases.

    Args:
        cases: all observed renderings.
        bugs: the catalogue, or a part of it.
        made: renderings from earlier searches over the same conversations.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        bugs: Sequence[RenderingBug] = BUGS,
        made: dict[tuple[tuple[str, str], ...], list[Pieces]] | None = None,
    ) -> None:
        self.cases = list(cases)
        self.bugs = [
            bug for bug in bugs if not (bug.needs_ids and all(case.spelt for case in self.cases))
        ]
        self._made = {} if made is None else made
        self._distances: dict[tuple[int, Pieces], int] = {}

    def renderings(self, chosen: Chosen) -> list[Pieces]:
        """Every case under these bugs."""
        key = tuple((bug.name, label) for bug, label in chosen)
        if key not in self._made:
            rules = apply(chosen)
            self._made[key] = [case.rendered(rules) for case in self.cases]
        return self._made[key]

    def distances(self, chosen: Chosen) -> list[int]:
        """The distance of each case from its observation under these bugs."""
        out = []
        for number, made in enumerate(self.renderings(chosen)):
            key = (number, made)
            if key not in self._distances:
                self._distances[key] = distance(made, self.cases[number].observed)
            out.append(self._distances[key])
        return out

    def run(self) -> Chosen:
        """The bugs that bring the renderings nearest to those observed, needless ones removed."""
        chosen: Chosen = ()
        left = sum(self.distances(chosen))
        while left and len(chosen) < MOST:
            found = self._next(chosen, left)
            if found is None:
                break
            chosen, left = found, sum(self.distances(found))
        return self._needed(chosen, left)

    def _next(self, chosen: Chosen, left: int) -> Chosen | None:
        """Add the best bug or, if no single bug helps, the best two."""
        best = self._best(self._one_more(chosen), left)
        if best is None and len(chosen) < 2:
            several = ((*one, *two[len(chosen) :]) for one, two in self._pairs(chosen))
            best = self._best(several, left)
        return best

    def _best(self, candidates: Iterator[Chosen], left: int) -> Chosen | None:
        best: Chosen | None = None
        mark: tuple[int, int, bool] | None = None
        for one in candidates:
            distances = self.distances(one)
            if sum(distances) >= left:
                continue
            # of two equal ones, take the one that is not wrong
            own = (sum(distances), -distances.count(0), not one[-1][0].form)
            if mark is None or own < mark:
                best, mark = one, own
        return best

    def _one_more(self, chosen: Chosen) -> Iterator[Chosen]:
        taken = {bug.name for bug, _ in chosen}
        now = self.renderings(chosen)
        for bug in self.bugs:
            if bug.name in taken:
                continue
            for label in bug.changes:
                one: Chosen = (*chosen, (bug, label))
                if self.renderings(one) != now:
                    yield one

    def _pairs(self, chosen: Chosen) -> Iterator[tuple[Chosen, Chosen]]:
        """Pairs of bugs that each increase the distance by at most half."""
        left = sum(self.distances(chosen))
        near = [one for one in self._one_more(chosen) if sum(self.distances(one)) <= 1.5 * left]
        near.sort(key=lambda one: sum(self.distances(one)))
        for number, one in enumerate(near[:12]):
            for two in near[number + 1 : 12]:
                if one[-1][0] is not two[-1][0]:
                    yield one, two

    def _needed(self, chosen: Chosen, left: int) -> Chosen:
        for one in reversed(chosen):
            fewer = tuple(other for other in chosen if other != one)
            if len(fewer) < len(chosen) and sum(self.distances(fewer)) <= left:
                chosen, left = fewer, sum(self.distances(fewer))
        return chosen

    # --- what is certain --------------------------------------------------------------------------

    def evidence(self, chosen: Chosen, one: tuple[RenderingBug, str]) -> tuple[list[int], bool]:
        """The cases that a bug changes, and whether they are evidence for it."""
        without = self.renderings(tuple(other for other in chosen if other != one))
        with_it = self.renderings(chosen)
        acts = [n for n, made in enumerate(with_it) if made != without[n]]
        exact = [n for n in acts if with_it[n] == self.cases[n].observed]
        if exact:
            return acts, True
        return acts, bool(acts) and all(
            _found(without[n], with_it[n], self.cases[n].observed) for n in acts
        )

    def alike(self, chosen: Chosen, one: tuple[RenderingBug, str]) -> tuple[str, ...]:
        """Other bugs that explain these cases equally well."""
        at, made = chosen.index(one), self.renderings(chosen)
        out = []
        for bug in self.bugs:
            if bug.name in {other.name for other, _ in chosen}:
                continue
            for label in bug.changes:
                other: Chosen = (*chosen[:at], (bug, label), *chosen[at + 1 :])
                if self.renderings(other) == made:
                    out.append(bug.name)
                    break
        return tuple(out)


def _found(before: Pieces, after: Pieces, observed: Pieces) -> bool:
    """Whether the observation contains everything that a bug changes, with one line around it."""
    a, b, seen = lines(before), lines(after), lines(observed)
    for tag, _, _, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal" and not _contains(seen, b[max(k - 1, 0) : m + 1]):
            return False
    return True


def _contains(pieces: list[Piece], part: list[Piece]) -> bool:
    size = len(part)
    return any(pieces[at : at + size] == part for at in range(len(pieces) - size + 1))
