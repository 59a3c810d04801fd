"""Embedding: rows of the table, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given

from gptoss_ref import layers
from tests.support.agreement import POLICIES
from tests.support.checks_layers import check_embedding
from tests.support.strategies import SEEDS


@pytest.mark.parametrize("policy", POLICIES)
@given(SEEDS)
def test_rows_of_the_table(policy: str, seed: int) -> None:
    check_embedding(layers.embedding, seed, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_token(policy: str) -> None:
    check_embedding(layers.embedding, 0, policy, n_tokens=1)
