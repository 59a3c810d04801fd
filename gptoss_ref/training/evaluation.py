"""Evaluate a model on examples: mean loss, and accuracy of the likeliest token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.losses import first_non_finite
from gptoss_ref.model import Model
from gptoss_ref.training.checks import check_examples
from gptoss_ref.training.data import Example


class Evaluation(NamedTuple):
    """Averages over all targets that are learnt."""

    loss: float  # mean cross entropy, natural logarithm
    right: float  # share of targets that have the largest logit
    targets: int


def evaluate(model: Model, examples: Sequence[Example]) -> Evaluation:
    """Loss and accuracy of ``model`` on the targets of ``examples``.

    Raises:
        GptOssError: no examples, or a loss that is not finite (the message names the first such
            tap point).
        DataError: an example does not fit the model, or nothing of it is learnt.
    """
    if not examples:
        raise GptOssError("nothing to evaluate: expected at least one example")
    check_examples(examples, model)
    loss, right, count = 0.0, 0, 0
    for example in examples:
        mask = example.mask.astype(bool)
        logits = model(example.tokens)[mask].astype(np.float64)  # (n, V)
        targets = example.targets[mask]
        top = logits.max(axis=-1)
        with np.errstate(invalid="ignore"):  # a loss that is not finite is an error below
            log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
            own = float((log_sum - logits[np.arange(len(targets)), targets]).sum())
        if not np.isfinite(own):
            where = first_non_finite(model, [example.tokens])
            raise GptOssError(f"{example.source}: the loss is {own}: {where}")
        loss += own
        right += int((logits.argmax(axis=-1) == targets).sum())
        count += len(targets)
    return Evaluation(loss / count, right / count, count)
