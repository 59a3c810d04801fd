"""One row of a report: how far a tap point of two traces is apart, and the verdict on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

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
    max_abs: float = math.nan
    rel_l2: float = math.nan
    cosine: float = math.nan
    rounding_units: float = math.nan
    allowed: float = math.nan
    excess: float = math.nan
    verdict: Verdict = "unjudged"
    note: str = ""
    first_token: int | None = None
    extra: dict[str, float] = field(default_factory=dict)
