"""Evaluate a model on examples: mean loss, and accuracy of the likeliest token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.model import Model
from gptoss_ref.training.data import Example


class Evaluation(NamedTuple):
    """Averages over all targets that are learnt."""

    loss: float  # mean cross entropy, natural logarithm
    right: float  # share of targets that have the largest logit
    targets: int


def evaluate(model: Model, examples: Sequence[Example]) -> Evaluation:
    """Loss and accuracy of ``model`` on the targets of ``examples``.

    Raises:
        GptOssError: no examples.
    """
    if not examples:
        raise GptOssError("nothing to evaluate: expected at least one example")
    loss, right, count = 0.0, 0, 0
    for example in examples:
        logits = model(example.tokens)[example.mask].astype(np.float64)  # (n, V)
        targets = example.targets[example.mask]
        top = logits.max(axis=-1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
        loss += float((log_sum - logits[np.arange(len(targets)), targets]).sum())
        right += int((logits.argmax(axis=-1) == targets).sum())
        count += len(targets)
    return Evaluation(loss / count, right / count, count)
