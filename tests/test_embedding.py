"""Embedding: rows of the table, exactly."""

from __future__ import annotations

import pytest
from agreement import POLICIES
from checks_layers import check_embedding
from hypothesis import given
from strategies import SEEDS

from gptoss_ref import layers


@pytest.mark.parametrize("policy", POLICIES)
@given(SEEDS)
def test_rows_of_the_table(policy: str, seed: int) -> None:
    check_embedding(layers.embedding, seed, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_token(policy: str) -> None:
    check_embedding(layers.embedding, 0, policy, n_tokens=1)
