"""A model whose context holds 5,000 tokens, small enough for tests of pages and figures."""

from __future__ import annotations

from typing import Any

from strategies import as_weights, random_arrays, random_tokens

import gptoss_ref as gr


def long_case(count: int = 5000, vocab_size: int = 11) -> tuple[Any, list[int]]:
    """The model, of one layer and one head, and so many tokens."""
    config = gr.ModelConfig(
        num_hidden_layers=1, num_experts=3, experts_per_token=2, vocab_size=vocab_size,
        hidden_size=32, intermediate_size=64, num_attention_heads=1, num_key_value_heads=1,
        max_position_embeddings=8192,
    )  # fmt: skip
    model = gr.Model(config, as_weights(random_arrays(config, seed=7)), backend="numpy")
    return model, random_tokens(config, count, 8)
