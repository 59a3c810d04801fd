"""Bugs with effects smaller than rounding, found by a sign test.

Such a bug changes few values, or all of them a little, so that no tap point diverges. But some
values round differently with the bug and by the specification. Each of these values is a vote:
which of the two is the observation nearer to? In a correct run, with any rounding, the votes are
split evenly; in a run with the bug, nearly all of them agree with the bug.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import axes, split
from gptoss_ref.tracing.trace import Trace
from gptoss_ref.verify.noise.metrics import measure_arrays
from gptoss_ref.verify.noise.rounding import POLICIES, UNITS
from gptoss_ref.verify.noise.tap_error import TapError
from gptoss_ref.verify.replay.evaluate import predict_each
from gptoss_ref.verify.replay.graph import DISCRETE
from gptoss_ref.verify.search.candidates import AT_ONCE, Candidate
from gptoss_ref.verify.search.evidence import Evidence
from gptoss_ref.verify.search.fit import Bug, Fit
from gptoss_ref.verify.search.score import some_experts
from gptoss_ref.verify.thresholds import CLEAR, EXACT, GROSS, LOOKED_AT, SIDES, VOTERS


@dataclass
class Vote(Generic[Bug]):
    """The votes counted so far.

    It counts, and is no :class:`~gptoss_ref.verify.search.fit.Fit`: the bug lowers no error,
    because rounding hides it.

    Attributes:
        candidate: the bug under test.
        tap: the first tap point with a vote.
        voters, sides: number of votes, and of those that agree with the bug.
        clear, exact: values that the bug changes by many roundings, and those of them that match
            the bug's value within two roundings.
    """

    candidate: Bug
    tap: str = ""
    voters: int = 0
    sides: int = 0
    clear: int = 0
    exact: int = 0

    @property
    def share(self) -> float:
        """Share of the votes that agree with it."""
        return self.sides / self.voters if self.voters else 0.0

    @property
    def elected(self) -> bool:
        """Whether the votes show that the bug is present."""
        many = self.voters >= VOTERS and self.share >= SIDES
        few = self.exact == self.clear >= EXACT and self.share >= SIDES
        return many or few

    def count(self, tap: str, right: Array, wrong: Array, other: Array, unit: float) -> None:
        """Add the votes of one tap point."""
        voting = (right != wrong) & np.isfinite(right) & np.isfinite(wrong) & ~np.isnan(other)
        if not voting.any():
            return
        self.tap = self.tap or tap
        r, w, o = (x[voting].astype(np.float64) for x in (right, wrong, other))
        self.voters += o.size
        self.sides += int((np.abs(o - w) < np.abs(o - r)).sum())
        clear = np.abs(w - r) > CLEAR * unit * np.maximum(np.abs(w), np.abs(r))
        self.clear += int(clear.sum())
        self.exact += int((clear & (np.abs(o - w) <= 2 * unit * np.abs(w))).sum())


def most_votes(evidence: Evidence, candidates: Iterable[Candidate]) -> Fit[Candidate] | None:
    """The candidate with the clearest vote over all tap points that do not diverge, if any."""
    trace, reach, tap_errors = evidence.trace, evidence.segments, evidence.tap_errors
    groups: dict[frozenset[str], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.ops, []).append(candidate)
    polls: list[tuple[list[str], list[Candidate]]] = []
    for changed, group in groups.items():
        taps = [
            tap
            for tap, local in tap_errors.items()
            if reach[tap].ops & changed
            and local.excess <= 1
            and not local.tied.any()
            and split(tap)[1] not in DISCRETE
        ]
        taps = _enough(taps, trace)
        starts = range(0, len(group), AT_ONCE) if taps else ()
        polls += [(taps, group[start : start + AT_ONCE]) for start in starts]
    evidence.steps.expect(len(polls))
    votes: list[Vote[Candidate]] = []
    for taps, group in polls:
        some = [Vote(candidate) for candidate in group]
        for tap in taps:
            some = _poll(evidence, some, tap_errors[tap])
        votes += some
        evidence.steps.tick()
    return clearest(votes)


def clearest(votes: Sequence[Vote[Bug]]) -> Fit[Bug] | None:
    """The bug with the clearest of the votes that elect one, if any, and what is as clear."""
    elected = [vote for vote in votes if vote.elected]
    elected.sort(key=lambda v: (-v.share, -v.exact, -v.voters))
    if not elected:
        return None
    best = elected[0]
    name = best.candidate.name
    alike = [v for v in elected[1:] if (v.share, v.voters) == (best.share, best.voters)]
    others = dict.fromkeys(v.candidate.name for v in alike if v.candidate.name != name)
    return Fit(
        (best.candidate,), tap=best.tap, alternatives={name: tuple(others)}, share=best.share
    )


def _enough(taps: Sequence[str], trace: Trace) -> list[str]:
    """Return the first tap points that together have LOOKED_AT values; at least one."""
    values = np.cumsum([math.prod(trace.shape_of(tap)) for tap in taps])
    return list(taps[: 1 + int(np.searchsorted(values, LOOKED_AT))])


def _poll(
    evidence: Evidence, votes: list[Vote[Candidate]], local: TapError
) -> list[Vote[Candidate]]:
    """The votes of one tap point counted, without the candidates that it rules out."""
    weights, trace, ops, tap = evidence.weights, evidence.trace, evidence.ops, local.tap
    policy, unit = POLICIES[evidence.rounding], UNITS[evidence.rounding]
    runs = [(ops, policy), *((vote.candidate.apply(ops), policy) for vote in votes)]
    experts = some_experts(weights, trace, tap)
    results = predict_each(weights, trace.config, runs, trace.tokens, trace, [tap], experts)
    right, *wrongs = (result[tap] for result in results)
    other, axis, left = trace[tap], axes(tap).index("T"), []
    for vote, wrong in zip(votes, wrongs, strict=True):
        moved = measure_arrays(right, wrong, axis)
        if moved.rel_l2 > GROSS * local.whole_allowed or moved.broken.any():
            continue
        vote.count(tap, right, wrong, other, unit)
        left.append(vote)
    return left
