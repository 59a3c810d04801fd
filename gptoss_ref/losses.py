"""The inputs of a backward pass: a batch of tokens, their targets, and a mask of the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.errors import GptOssError
from gptoss_ref.model import Model
from gptoss_ref.numerics import Array

IGNORED = -100
"""The target of a position without a loss, as in torch and transformers."""

Loss = Callable[[Array], tuple[float, Array]]
"""A function from logits (T, V) to the loss and its gradient (T, V)."""

Targets = Iterable[int] | Array | Sequence[Iterable[int] | Array] | None
"""One row, or one for each row of the batch."""


class Counted(NamedTuple):
    """The concatenated targets of a batch, and their mask."""

    targets: NDArray[np.int64]  # (T,)
    mask: NDArray[np.bool_]  # (T,), False: no loss at this position


def batch_of(tokens: Any) -> tuple[list[Any], bool]:
    """The rows of a batch, and whether ``tokens`` is a batch; one row of tokens is not.

    >>> batch_of([1, 2]), batch_of([[1, 2], [3]])
    (([[1, 2]], False), ([[1, 2], [3]], True))
    """
    if isinstance(tokens, (str, int)) or not isinstance(tokens, Iterable):
        return [tokens], False
    given = tokens if isinstance(tokens, np.ndarray) else list(tokens)
    batched = len(given) > 0 and isinstance(given[0], Iterable) and not isinstance(given[0], str)
    return (list(given), True) if batched else ([given], False)


def checked_targets(ids: list[Array], targets: Targets, mask: Targets, batched: bool) -> Counted:
    """The targets and their mask, for the rows ``ids`` of a batch, (T,) each.

    Raises:
        GptOssError: the lengths differ from those of the tokens, or no position has a loss.
    """
    if targets is None:
        wanted = [np.append(row[1:], IGNORED) for row in ids]
    else:
        wanted = _rows("targets", targets, ids, batched, "iu", "integers")
    counts = [row != IGNORED for row in wanted]
    if mask is not None:
        masks = _rows("mask", mask, ids, batched, "biuf", "booleans")
        for row in masks:
            if not np.isin(row, (0, 1)).all():
                wrong = row[~np.isin(row, (0, 1))][0]
                raise GptOssError(f"the mask holds {wrong}: expected booleans, or 0 and 1")
        counts = [count & row.astype(bool) for count, row in zip(counts, masks, strict=True)]
    found = Counted(np.concatenate(wanted).astype(np.int64), np.concatenate(counts))
    if not found.mask.any():
        why = (
            "a single token has no next token to predict"
            if targets is None and max(map(len, ids)) == 1
            else "the mask or targets of -100 exclude all of them"
        )
        raise GptOssError(f"no position has a loss: {why}; expected at least one target")
    return found


def check_range(counted: Counted, vocabulary: int) -> None:
    """Raises GptOssError unless every target with a loss is a token id."""
    wrong = np.flatnonzero(counted.mask & ((counted.targets < 0) | (counted.targets >= vocabulary)))
    if wrong.size:
        raise GptOssError(
            f"target {counted.targets[wrong[0]]} at position {wrong[0]} is out of range: expected "
            f"0 to {vocabulary - 1}, or {IGNORED} for a position without a loss"
        )


def _rows(
    what: str, given: Any, ids: list[Array], batched: bool, kinds: str, expected: str
) -> list[Array]:
    """One array (T,) for each row of the batch, with one of the dtype kinds ``kinds``."""
    if not isinstance(given, Iterable):
        raise GptOssError(f"{what} is {given!r}: expected {expected}, one for each token")
    listed = given if isinstance(given, np.ndarray) else list(given)
    rows = [np.asarray(row) for row in (listed if batched else [listed])]
    if len(rows) != len(ids):
        raise GptOssError(f"{what} has {len(rows)} rows: expected {len(ids)}, as tokens has")
    for number, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
        if row.shape != tokens.shape or row.dtype.kind not in kinds:
            where = f"row {number} of {what}" if batched else what
            raise GptOssError(
                f"{where} has shape {row.shape} and dtype {row.dtype}: expected {expected} of "
                f"shape {tokens.shape}, one for each token"
            )
    return rows


def first_non_finite(model: Model, ids: list[Array]) -> str:
    """The first tap point with a NaN or an infinity in a pass over ``ids``, (T,) each; in words."""
    for number, row in enumerate(ids):
        look = _FirstNonFinite()
        with np.errstate(all="ignore"):
            model(row, tap=look)
        if look.found:
            of = f" of row {number} of the batch" if len(ids) > 1 else ""
            return f"the first tap point that is not finite is {look.found}{of}"
    return "every tap point is finite, so the loss function gives the NaN or infinity"


class _FirstNonFinite:
    """A tap that notes the first array with a NaN or an infinity."""

    found = ""

    def wants(self, name: str) -> bool:
        return False  # costly; if the attention weights are not finite, attn.mix is not either

    def __call__(self, name: str, values: Array) -> None:
        if not self.found and values.dtype.kind == "f" and not np.isfinite(values).all():
            where = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
            self.found = f"{name}, at {where}"


def called(loss: Loss, logits: Array) -> tuple[float, NDArray[Any]]:
    """The loss and the gradient (T, V) of logits (T, V) by the caller's loss function.

    Raises:
        GptOssError: it is no function, or does not return a number and a finite gradient.
    """
    if not callable(loss):
        raise GptOssError(f"loss is {loss!r}: expected a function of the logits {logits.shape}")
    answer = loss(logits)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise GptOssError(
            f"the loss function returned {type(answer).__name__}: expected a pair "
            f"of the loss and its gradient {logits.shape}"
        )
    value, d_logits = answer
    if np.ndim(value) or not isinstance(value, (int, float, np.number, np.ndarray)):
        raise GptOssError(
            f"the loss function returned {type(value).__name__} of shape {np.shape(value)} as the "
            "loss: expected one number"
        )
    d_logits = np.asarray(d_logits, logits.dtype)
    if d_logits.shape != logits.shape:
        raise GptOssError(
            f"the loss function returned a gradient of shape {d_logits.shape}: expected that of "
            f"the logits, {logits.shape}"
        )
    if not np.isfinite(d_logits).all() and np.isfinite(logits).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(d_logits))[0]]
        raise GptOssError(
            f"the gradient that the loss function returned is {d_logits[tuple(where)]} at {where}: "
            "expected numbers"
        )
    return float(value), d_logits
