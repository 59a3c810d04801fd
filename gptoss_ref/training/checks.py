"""What settings and examples are checked for before a run begins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.losses import checked_targets
from gptoss_ref.model import Model
from gptoss_ref.training.data import DataError, Example


def is_number(value: object) -> bool:
    """Whether a setting is a finite number.

    >>> is_number(0.5), is_number(float("nan")), is_number("0.5"), is_number(True)
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_examples(examples: Sequence[Example], model: Model) -> None:
    """Checks examples that the caller made against the model, before the work and not during it.

    Raises:
        DataError: an example's tokens, targets or mask have other lengths or are out of range, or
            nothing of it is learnt; the message begins with its source.
    """
    size = model.config.vocab_size
    for one in examples:
        try:
            ids = model.checked(one.tokens)
            checked_targets([ids], one.targets, one.mask, batched=False)
        except GptOssError as error:
            raise DataError(f"{one.source}: {error}") from None
        targets, mask = np.asarray(one.targets), np.asarray(one.mask).astype(bool)
        wrong = np.flatnonzero(mask & ((targets < 0) | (targets >= size)))
        if wrong.size:
            raise DataError(
                f"{one.source}: target {targets[wrong[0]]} at position {wrong[0]} is out of range: "
                f"expected 0 to {size - 1} where the mask is True"
            )
