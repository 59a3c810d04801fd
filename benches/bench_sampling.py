"""Choosing a token from the released vocabulary's logits: bytes read, against a read."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside
from rates import Reading

from gptoss_ref import sampling

LOGITS = 3 * np.random.default_rng(0).standard_normal(201088, np.float32)


def test_greedy(beside: Beside, reading: Reading) -> None:
    beside(reading, lambda: sampling.greedy(LOGITS), work=LOGITS.nbytes)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (50, 1.0), (0, 0.9)])
def test_distribution(beside: Beside, reading: Reading, top_k: int, top_p: float) -> None:
    beside(
        reading, lambda: sampling.token_probabilities(LOGITS, 1.0, top_k, top_p), work=LOGITS.nbytes
    )
