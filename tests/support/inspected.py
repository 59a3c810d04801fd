"""What the tests of pages and figures share: a model for 5,000 tokens, a page read back."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

import numpy as np

import gptoss_ref as gr
from tests.support.strategies import as_weights, random_arrays, random_tokens


def long_case(count: int = 5000, **sizes: int) -> tuple[Any, list[int]]:
    """The model, of one layer and one head by default, and this many tokens."""
    few = {
        "num_hidden_layers": 1, "num_experts": 3, "experts_per_token": 2, "vocab_size": 11,
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 1,
        "num_key_value_heads": 1, "max_position_embeddings": 8192,
    }  # fmt: skip
    config = gr.ModelConfig(**{**few, **sizes})
    model = gr.Model(config, as_weights(random_arrays(config, seed=7)), backend="numpy")
    return model, random_tokens(config, count, 8)


def parts(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of a page, and its arrays by name, read as the page's script reads them."""
    found = re.findall(r'<script type="[^"]+" id="(\w+)">(.*?)</script>', text, flags=re.DOTALL)
    raw = dict(found)
    facts = json.loads(raw["facts"])
    blob = zlib.decompress(base64.b64decode(raw["arrays"]))
    arrays = {}
    for name, layout in facts["arrays"].items():
        dtype = np.dtype(layout["type"]).newbyteorder("<")
        count = int(np.prod(layout["shape"]))
        arrays[name] = np.frombuffer(blob, dtype, count, layout["begin"]).reshape(layout["shape"])
    return facts, arrays
