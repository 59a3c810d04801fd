"""The data of the page for one pass, quantised during the pass so that no attention map is kept.

- attention.{n}.counts, .distances, .weights: rows (H, T), then keys; see :class:`Sparse`
- sinks (L, H, T): uint16, 65535 is a weight of 1
- experts (L, T, A + 1): the chosen, largest first, then the best one not chosen
- expert_weights (L, T, A): uint16, 65535 is a weight of 1
- margins (L, T): float32: last chosen router logit minus the best one not chosen
- lens, lens_chances (L + 1, T, 5): likeliest tokens after the embedding and each block; uint16
- next_chances, next_ranks (L + 1, T − 1): of the token that came next; uint16, rank from 0
- final, final_chances (T, 10): the same as lens, after the last block

L counts layers (blocks); the other letters are those of :mod:`gptoss_ref.layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_ref.errors import TraceError
from gptoss_ref.numerics import Array
from gptoss_ref.tracing.taps import select, split
from gptoss_ref.viz.lens import chances, likeliest, read_out

if TYPE_CHECKING:
    from gptoss_ref.model import Model

TAPS = (
    "embedding",
    "*.attn.weights",
    "*.router_logits",
    "*.expert_indices",
    "*.expert_weights",
    "*.mlp.residual",
)
"""Patterns of the tap points that the page needs."""

LENS, FINAL = 5, 10
ROWS = 64
"""Tokens whose logits (V of each) are held at a time."""


@dataclass(frozen=True)
class Sparse:
    """Attention weights of a layer in multiples of 1/255, without the zeros.

    Attributes:
        counts: (H, T), how many keys each row keeps; int32.
        distances: (N,), query position minus key position, row by row; int64.
        weights: (N,), in units of 1/255; uint8.
    """

    counts: Array
    distances: Array
    weights: Array

    def largest(self, keep: int) -> Sparse:
        """The ``keep`` largest weights of each row (the nearest keys among equals)."""
        row = np.repeat(np.arange(self.counts.size), self.counts.ravel())
        order = np.lexsort((self.distances, -self.weights.astype(np.int16), row))
        begin = np.cumsum(self.counts.ravel()) - self.counts.ravel()
        kept = np.zeros(len(row), bool)
        kept[order] = np.arange(len(row)) - begin[row] < keep  # `order` is row by row, too
        return Sparse(
            np.minimum(self.counts, keep).astype(np.int32),
            self.distances[kept],
            self.weights[kept],
        )


def sparse(weights: Array) -> Sparse:
    """``weights`` (H, T, S), S = T, of one layer, rounded to 255ths and without zeros.

    >>> made = sparse(np.array([[[0.25, 0, 0], [0.001, 0.5, 0], [0.2, 0.2, 0.4]]]))
    >>> made.counts.tolist(), made.distances.tolist(), made.weights.tolist()
    ([[1, 1, 3]], [0, 0, 2, 1, 0], [64, 128, 51, 51, 102])
    """
    heads, count, _ = weights.shape
    counts = np.zeros((heads, count), np.int32)
    distances, kept = [], []
    for head in range(heads):  # one at a time, to save memory
        units = np.rint(np.clip(weights[head], 0, 1) * 255).astype(np.uint8)  # (T, S)
        query, key = np.nonzero(units)
        counts[head] = np.bincount(query, minlength=count)
        distances.append(query - key)
        kept.append(units[query, key])
    return Sparse(counts, np.concatenate(distances), np.concatenate(kept))


class Recording:
    """A tap of a model that collects the data; it can also be called with a trace's arrays.

    Args:
        model: its final norm and unembedding compute the logit lens.
        tokens: (T,), the whole prompt.

    Attributes:
        attention: a Sparse for each layer.
        arrays: the other arrays by name, see the top of this file.
    """

    def __init__(self, model: Model, tokens: Array) -> None:
        config = model.config
        layers, heads, count = config.num_hidden_layers, config.num_attention_heads, len(tokens)
        shown = config.experts_per_token + (config.num_experts > config.experts_per_token)
        ids = smallest(config.vocab_size)
        lens = min(LENS, config.vocab_size)
        self.model, self.tokens = model, tokens
        self.needed = select(TAPS, config)
        self.attention: dict[int, Sparse] = {}
        self.arrays: dict[str, Array] = {
            "sinks": np.zeros((layers, heads, count), np.uint16),
            "experts": np.zeros((layers, count, shown), smallest(config.num_experts)),
            "expert_weights": np.zeros((layers, count, config.experts_per_token), np.uint16),
            "margins": np.full((layers, count), np.inf, np.float32),
            "lens": np.zeros((layers + 1, count, lens), ids),
            "lens_chances": np.zeros((layers + 1, count, lens), np.uint16),
            "next_chances": np.zeros((layers + 1, count - 1), np.uint16),
            "next_ranks": np.zeros((layers + 1, count - 1), ids),
            "final": np.zeros((count, min(FINAL, config.vocab_size)), ids),
            "final_chances": np.zeros((count, min(FINAL, config.vocab_size)), np.uint16),
        }
        self._logits: Array = np.zeros(0)  # of the router, until the choice is known

    def wants(self, name: str) -> bool:
        return name in self.needed

    def __call__(self, name: str, values: Array) -> None:
        if name not in self.needed:
            return
        values = np.asarray(values)
        if not all(np.isfinite(part).all() for part in values):
            raise TraceError(f"{name} holds NaN or infinite values: expected finite ones")
        block, stage = split(name)
        if block is None:
            self._read(0, values)
        elif stage == "attn.weights":
            self.attention[block] = sparse(values)
            self.arrays["sinks"][block] = share(1 - values.sum(axis=-1, dtype=np.float64))
        elif stage == "mlp.router_logits":
            self._logits = values
        elif stage == "mlp.expert_indices":
            self._choose(block, values)
        elif stage == "mlp.expert_weights":
            self.arrays["expert_weights"][block] = share(values)
        else:
            self._read(block + 1, values)

    def _choose(self, block: int, chosen: Array) -> None:
        """Keeps ``chosen`` (T, A) and the best expert that was not chosen."""
        experts = self.arrays["experts"][block]
        experts[:, : chosen.shape[1]] = chosen
        if experts.shape[1] > chosen.shape[1]:
            others = self._logits.astype(np.float64)
            last = np.take_along_axis(others, chosen, axis=1).min(axis=1)
            np.put_along_axis(others, chosen, -np.inf, axis=1)
            experts[:, -1] = others.argmax(axis=1)
            self.arrays["margins"][block] = last - others.max(axis=1)

    def _read(self, row: int, stream: Array) -> None:
        """Keeps the logit lens of ``stream`` (T, D)."""
        arrays = self.arrays
        for begin in range(0, len(stream), ROWS):
            rows = slice(begin, begin + ROWS)
            chance = chances(read_out(self.model, stream[rows]))  # (t, V)
            order = likeliest(chance, FINAL)
            best = share(np.take_along_axis(chance, order, axis=1))
            arrays["lens"][row, rows] = order[:, :LENS]
            arrays["lens_chances"][row, rows] = best[:, :LENS]
            if row == len(arrays["lens"]) - 1:
                arrays["final"][rows], arrays["final_chances"][rows] = order, best
            follow = self.tokens[begin + 1 : begin + 1 + ROWS]  # (t,), at the end t − 1
            came = np.take_along_axis(chance[: len(follow)], follow[:, None], axis=1)  # (t, 1)
            to = slice(begin, begin + len(follow))
            arrays["next_chances"][row, to] = share(came[:, 0])
            arrays["next_ranks"][row, to] = (chance[: len(follow)] > came).sum(axis=1)


def share(values: Array) -> Array:
    """Fractions in units of 1/65535."""
    units: Array = np.rint(np.clip(values, 0, 1) * 65535).astype(np.uint16)
    return units


def smallest(count: int) -> Any:
    """The smallest unsigned dtype for the numbers 0 to ``count`` − 1."""
    dtypes = (np.uint8, np.uint16, np.uint32)
    return next(dtype for dtype in dtypes if count - 1 <= np.iinfo(dtype).max)
