"""Cases of the whole bundled model."""

from __future__ import annotations

import numpy as np

from gptoss_ref.verify.vectors.case import Group
from gptoss_ref.verify.vectors.numbers import Numbers
from gptoss_ref.verify.vectors.operations import tiny


def model() -> Group:
    """Cases with random tokens."""
    draw, group = Numbers(1100), Group("model")
    size = tiny()[0].vocab_size

    def add(note: str, flags: str, length: int) -> None:
        group.add(note, flags, {"tokens": draw.integers(0, size, length).astype(np.int32)})

    add("7 tokens", "ModelShort", 7)
    add("40 tokens: the window of 24 is passed", "ModelWindow", 40)
    add("290 tokens: the original context of 256 is passed", "ModelWindow ModelYarn", 290)
    return group
