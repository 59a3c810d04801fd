"""The output of the model for many alternative last tokens of one prompt, computed together.

The prompt is computed once. Each alternative last token is one more row, at the position after the
prompt; it sees the prompt and itself, but none of the other alternatives.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import FLOAT32, Array
from gptoss_ref.verify.replay.evaluate import predict
from gptoss_ref.verify.replay.ops import SPECIFICATION, OpContext
from gptoss_ref.weights import ModelWeights


def each_last(
    weights: ModelWeights, config: ModelConfig, prompt: Array, last: Array, tap: str
) -> Array:
    """Return the last row of ``tap`` for a prompt (T,) plus each of some tokens (N,): (N, …).

    It is computed by the specification in float32. Rows of attention weights are (N, H, T + 1).
    """
    length = len(prompt)

    def tables(at: OpContext, positions: Array, *rest: Any) -> tuple[Array, Array]:
        return SPECIFICATION.rope_tables(at, np.minimum(positions, length), *rest)

    def attend(
        at: OpContext, q: Array, k: Array, sinks: Any, rows: Array, keys: Array, window: int | None
    ) -> Array:
        out = np.zeros((q.shape[1], len(q), len(k)), at.policy.dtype)  # (H, t, S)
        right, early = SPECIFICATION.attention_weights, int((rows < length).sum())
        if early:
            asked = rows[:early], keys[:length], window
            out[:, :early, :length] = right(at, q[:early], k[:length], sinks, *asked)
        for i, row in enumerate(rows[early:].tolist(), early):
            seen = [*range(length), row]
            where = np.array([length]), np.arange(length + 1), window
            out[:, i : i + 1, seen] = right(at, q[i : i + 1], k[seen], sinks, *where)
        return out

    ops = dataclasses.replace(SPECIFICATION, rope_tables=tables, attention_weights=attend)
    tokens = np.concatenate([np.asarray(prompt, np.int64), np.asarray(last, np.int64)])
    found = predict(weights, config, ops, tokens, {}, [tap], FLOAT32)[tap]
    if not tap.endswith("attn.weights"):
        return found[length:]
    rows = [found[:, i, [*range(length), i]] for i in range(length, len(tokens))]
    return np.stack(rows)
