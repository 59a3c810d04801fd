"""The rows of a report: verdicts from errors and their allowances."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.tracing.taps import split
from gptoss_ref.verify.noise.localise import tokens_of
from gptoss_ref.verify.noise.metrics import Errors, ratio
from gptoss_ref.verify.noise.noise_floor import NoiseFloor
from gptoss_ref.verify.noise.routing_ties import Choice
from gptoss_ref.verify.replay.evaluate import nodes
from gptoss_ref.verify.report.row import ALL_LOST, WRONG, Row, Verdict
from gptoss_ref.verify.thresholds import FADED

Mask = NDArray[np.bool_]


def float_row(
    row: Row,
    errors: Errors,
    level: NoiseFloor | None,
    aside: Mask,
    why: str,
    extra: dict[str, float],
) -> Row:
    """Judge the row of a tap point that holds floats.

    Args:
        row: without a judgement.
        level: the noise floor; None if there is none for this tap point.
        aside: (T,) mask of the tokens that are not judged.
        why: the reason, in words.
    """
    free = ~aside
    seen = errors.of(free) if free.any() else errors
    allowed, excess, verdict, first = math.nan, math.nan, "unjudged", None
    note = "cannot be judged without the model: its inputs are missing or too far off"
    broken = int(errors.broken.sum())
    if broken:
        verdict, excess = "nan", math.inf
        first = int(np.argmax(errors.broken > 0))
        note = (
            f"{broken} {'value is' if broken == 1 else 'values are'} NaN or infinite in one trace "
            f"only, the first at token {first}"
        )
        if row.dtypes[1] == "float16":
            note += "; float16 ends at 65,504"
    elif not free.any():
        note = why
    elif math.prod(row.shape) == int(errors.lost.sum()):
        note = ALL_LOST
    elif level is not None:
        rows, bound = errors.rows()[free], level.allowed_rows[free]
        allowed = level.allowed
        whole = seen.rel_l2
        excess = max(ratio(whole, allowed), float((rows / bound).max()))
        verdict, note = ("diverges", "") if excess > 1 else ("ok", "")
        if excess > 1:
            over = np.zeros(len(free), bool)
            over[free] = rows > bound
            first = int(np.argmax(over)) if over.any() else None
            worst = int(np.argmax(rows / bound))
            error, explained = (rows[worst], bound[worst]) if over.any() else (whole, allowed)
            note = f"relative error {error:.2g}, but rounding explains only {explained:.2g}"
            note += _at(over)
    if aside.any() and free.any() and verdict == "ok":
        note = f"{int(aside.sum())} of {len(aside)} tokens left out: {why}"
    return replace(
        row,
        max_abs=seen.max_abs,
        rel_l2=seen.rel_l2,
        cosine=seen.cosine,
        rounding_units=seen.rel_l2 / level.unit if level else math.nan,
        allowed=allowed,
        excess=excess,
        verdict=_verdict(verdict),
        note=note,
        first_token=first,
        extra=extra,
    )


def choice_row(row: Row, choice: Choice, aside: Mask) -> Row:
    """Judge the row of expert indices by the sets of experts, and the margins of other ones."""
    wrong = choice.wrong & ~aside
    differs = int(choice.differs.sum())
    share = differs / len(aside)
    margins = choice.margin[choice.differs]
    margin = float(margins.max()) if differs else 0.0
    first, note = None, ""
    verdict = "tie" if differs else "ok"
    if wrong.any():
        verdict, first = "diverges", int(np.argmax(wrong))
        own = int((choice.contradicts & wrong).sum())
        if own:
            note = f"{own} tokens go to experts that are not the largest of OTHER's own logits"
        else:
            note = f"other experts that rounding does not explain: the margin is {margin:.2g}"
        note += _at(wrong)
    elif differs:
        note = f"{differs} of {len(aside)} tokens go to other experts, within {margin:.2g} of a tie"
    compared = choice.differs & (choice.slack > 0)
    excess = float((choice.margin[compared] / choice.slack[compared]).max(initial=0.0))
    return replace(
        row,
        max_abs=margin,
        rel_l2=share,
        excess=math.inf if wrong.any() else min(excess, 1.0),
        verdict=_verdict(verdict),
        note=note,
        first_token=first,
        extra={"sets_equal": 1 - share},
    )


def settle(rows: Sequence[Row], config: ModelConfig) -> list[Row]:
    """The rows with the verdicts ``rewritten`` and ``follows``, which depend on other rows.

    A tap point that differs is rewritten, not wrong, if everything computed from it agrees: its
    producer keeps it in another form, or recorded another array under its name. An error that only
    becomes smaller is still an error: at most :data:`FADED` of it may remain in rows that agree.
    """
    found = {row.name: row for row in rows}
    verdicts = {row.name: row.verdict for row in rows}
    nearest = _nearest_users(config, verdicts)

    def agrees(user: str, row: Row) -> bool:
        if verdicts[user] in ("tie", "rewritten"):
            return True
        near = found[user].rel_l2 <= FADED * row.rel_l2
        return verdicts[user] in ("ok", "unjudged") and near

    rewritten = set()
    for row in reversed(rows):
        used = [user for user in nearest[row.name] if not user.endswith("expert_indices")]
        if row.verdict == "diverges" and used and all(agrees(user, row) for user in used):
            verdicts[row.name] = "rewritten"
            rewritten.add(split(row.name)[1])
    for row in rows:  # a rewriting in one block also holds in the others
        harmless = all(verdicts[user] not in WRONG for user in nearest[row.name])
        if verdicts[row.name] == "diverges" and split(row.name)[1] in rewritten and harmless:
            verdicts[row.name] = "rewritten"

    settled, broken = [], False
    for row in rows:
        verdict = verdicts[row.name]
        if verdict == "rewritten":
            note = f"{row.note}; but everything computed from it agrees"
            row = replace(row, verdict=_verdict(verdict), note=note)
        elif verdict in WRONG and broken:
            row = replace(row, verdict="follows")
        broken = broken or verdict in WRONG
        settled.append(row)
    return settled


def _nearest_users(config: ModelConfig, compared: Container[str]) -> dict[str, list[str]]:
    """By tap point, the compared tap points computed from it without another one in between."""
    found: dict[str, dict[str, None]] = {}
    for node in reversed(nodes(config)):  # so that users of a tap point come before it
        users = found.setdefault(node.tap, {})
        passed_on = {node.tap: None} if node.tap in compared else users
        for tap in node.inputs:
            found.setdefault(tap, {}).update(passed_on)
    return {tap: list(users) for tap, users in found.items()}


def _at(over: Mask) -> str:
    """The tokens of a mask in words, if they are some and not all."""
    return f", at {tokens_of(over)}" if over.any() and not over.all() else ""


def _verdict(word: str) -> Verdict:
    return word  # type: ignore[return-value]
