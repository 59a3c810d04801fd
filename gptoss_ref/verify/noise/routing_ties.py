"""Routing of two traces: tokens sent to different experts, and whether rounding explains it.

Top-k is a discrete choice. If two router logits are closer than rounding can distinguish, both
choices are right, and everything computed from one differs much from the other. This is a tie, not
an error. The margin distinguishes it from a wrong choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.layers.router import top_k
from gptoss_ref.numerics import Array
from gptoss_ref.verify.noise.noise_floor import NoiseFloor
from gptoss_ref.verify.thresholds import ALWAYS_ALLOWED, TIE_MARGIN

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Flip:
    """A token that the two traces send to different experts.

    Attributes:
        left, taken: the experts that only the reference chose, and that only the other chose.
        margin: by how much the reference's logits prefer the experts that the other did not choose.
        allowed: the part of the margin that rounding explains.
    """

    block: int
    token: int
    left: tuple[int, ...]
    taken: tuple[int, ...]
    margin: float
    allowed: float

    def __str__(self) -> str:
        left, taken = (" and ".join(map(str, experts)) for experts in (self.left, self.taken))
        return (
            f"block {self.block} token {self.token}: expert {left} became {taken}, margin "
            f"{self.margin:.2g} of {self.allowed:.2g} allowed"
        )


@dataclass(frozen=True)
class Choice:
    """The choices of both traces in one block.

    Attributes:
        differs: (T,) tokens whose sets of experts differ.
        margin: (T,) by how much the reference's logits prefer an expert that the other did not
            choose to one that it chose; 0 if the sets are equal, infinite if an expert occurs
            twice.
        slack: (T,) the part of the margin that rounding explains.
        contradicts: (T,) whether the other's choice contradicts its own logits.
    """

    differs: Mask
    margin: Floats
    slack: Floats
    contradicts: Mask

    @property
    def wrong(self) -> Mask:
        """(T,) choices that rounding does not explain."""
        return (self.differs & (self.margin > self.slack)) | self.contradicts

    def among(self, seen: Mask) -> Choice:
        """Return the same for the observed rows (T,); the other rows count as equal."""
        differs, contradicts = self.differs & seen, self.contradicts & seen
        return Choice(differs, np.where(seen, self.margin, 0.0), self.slack, contradicts)


def compare_choices(
    ref: Array,
    other: Array,
    logits: Array | None,
    own_logits: Array | None,
    level: NoiseFloor | None,
) -> Choice:
    """Judge the experts ``other`` (T, A) against ``ref`` (T, A).

    Args:
        logits: (T, E) the reference's router logits; without them a margin is unknown and infinite.
        own_logits: (T, E) the other's.
        level: the noise floor of the router logits; None: unknown, and every margin is allowed.
    """
    experts = 1 + int(max(ref.max(), other.max()))
    experts = experts if logits is None else logits.shape[1]
    wanted, taken = _sets(ref, experts), _sets(other, experts)
    differs = (wanted != taken).any(axis=1)
    contradicts = np.zeros(len(ref), bool)
    if own_logits is not None and level is not None:
        finite = np.isfinite(own_logits).all(axis=1)
        slack = 2 * ALWAYS_ALLOWED * level.unit * np.abs(own_logits).max(axis=1)
        contradicts = finite & (_violation(own_logits, other) > slack)
    if logits is None:
        return Choice(differs, np.where(differs, np.inf, 0.0), np.zeros(len(ref)), contradicts)
    margin = np.where(differs, _violation(logits, other), 0.0)
    slack = np.full(len(ref), np.inf) if level is None else slack_of(logits, level)
    return Choice(differs, margin, slack, contradicts)


def slack_of(logits: Array, level: NoiseFloor) -> Floats:
    """(T,) the largest error that rounding causes in the difference of two router logits (T, E)."""
    usual = np.linalg.norm(logits, axis=1) / np.sqrt(logits.shape[1])
    largest = np.abs(logits).max(axis=1)
    slack: Floats = (
        TIE_MARGIN * level.allowed_rows * usual + 2 * ALWAYS_ALLOWED * level.unit * largest
    )
    return slack


def near_ties(logits: Array, chosen: int, level: NoiseFloor) -> Mask:
    """(T,) tokens for which rounding may change which experts are the ``chosen`` largest."""
    near: Mask = margin_of(logits, chosen) <= slack_of(logits, level)
    return near


def flips(block: int | None, ref: Array, other: Array, choice: Choice) -> tuple[Flip, ...]:
    """Return the tokens whose sets of experts differ within their margin."""
    return tuple(
        Flip(
            -1 if block is None else block,
            int(t),
            tuple(sorted({*ref[t].tolist()} - {*other[t].tolist()})),
            tuple(sorted({*other[t].tolist()} - {*ref[t].tolist()})),
            float(choice.margin[t]),
            float(choice.slack[t]),
        )
        for t in np.flatnonzero(choice.differs & ~choice.wrong)
    )


def chosen_by(logits: Array, taken: Array, slack: Floats) -> tuple[Array, Choice]:
    """Return the experts (T, A) of router logits (T, E), and the choice ``taken`` beside them.

    Args:
        slack: (T,) the largest error of the difference of two logits.
    """
    chosen = top_k(logits, taken.shape[1])
    differs = (_sets(chosen, logits.shape[1]) != _sets(taken, logits.shape[1])).any(axis=1)
    unknown = np.isnan(logits).any(axis=1)
    margin = np.where(unknown, 0.0, _violation(logits, taken))
    return chosen, Choice(differs, margin, slack, np.zeros(len(taken), bool))


def margin_of(logits: Array, chosen: int) -> Floats:
    """(T,) the difference of the last of ``chosen`` logits (T, E) and the next one."""
    if chosen >= logits.shape[1]:
        return np.full(len(logits), np.inf)
    ordered = -np.partition(-logits, (chosen - 1, chosen), axis=1)
    margin: Floats = ordered[:, chosen - 1] - ordered[:, chosen]
    return margin


def alignment(ref: Array, other: Array) -> Array:
    """(T, A) the place in ``other`` of each expert of ``ref``, for tokens with equal sets."""
    places = np.empty_like(ref)
    np.put_along_axis(places, np.argsort(ref, axis=1), np.argsort(other, axis=1), axis=1)
    return places


def _sets(indices: Array, experts: int) -> Mask:
    """(T, E) whether a token goes to an expert."""
    member = np.zeros((len(indices), experts), bool)
    np.put_along_axis(member, indices, True, axis=1)
    return member


def _violation(logits: Array, indices: Array) -> Floats:
    """(T,) by how much an expert that was not chosen exceeds a chosen one; 0 if none does."""
    taken = _sets(indices, logits.shape[1])
    least = np.where(taken, logits, np.inf).min(axis=1)
    most = np.where(taken, -np.inf, logits).max(axis=1)
    repeated = taken.sum(axis=1) < indices.shape[1]
    violation: Floats = np.where(repeated, np.inf, np.maximum(0.0, most - least))
    return violation
