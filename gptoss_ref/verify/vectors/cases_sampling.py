"""Cases of the distribution from which a token is sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gptoss_ref.verify.vectors.case import Group
from gptoss_ref.verify.vectors.numbers import Numbers

FIVE = [0.5, 2.0, -1.0, 1.25, -2.0]
"""Logits of the probabilities 0.13, 0.57, 0.03, 0.27 and 0.01."""


def sampling() -> Group:
    draw, group = Numbers(1200), Group("sampling")

    def add(note: str, flags: str, logits: ArrayLike, **settings: float) -> None:
        parameters = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
        group.add(note, flags, {"logits": np.asarray(logits, np.float32)}, parameters)

    add("a temperature alone", "Ordinary", draw.bell(9), temperature=0.7)
    add("three of eleven", "Ordinary", draw.bell(11), top_k=3)
    add("top-k larger than the vocabulary", "Ordinary", draw.bell(4), top_k=7)
    add("three logits in the second place", "TopKTie", [1, 3, 2, 2, 0, 2], top_k=2)
    add("0.57, then 0.84: two are kept", "TopPCrossing", FIVE, top_p=0.7)
    add("top-p below the largest probability", "TopPCrossing", FIVE, top_p=0.25)
    add("temperature 2 spreads what top-p cuts", "SamplingOrder", FIVE, temperature=2.0, top_p=0.8)
    add("top-k leaves 0.68 to the first", "SamplingOrder TopPCrossing", FIVE, top_k=2, top_p=0.65)
    settings = {"temperature": 0.8, "top_k": 10, "top_p": 0.9}
    add("logits about 900", "LargeLogits", draw.bell(33, scale=2) + np.float32(900), **settings)
    return group
