"""Key/value cache: the keys and values of earlier tokens.

Each layer allocates more rows than it holds positions. A pass writes new keys and values into the
free rows after the stored ones; no other pass reads them until :meth:`KVCache.commit` counts them.
Therefore a pass copies no stored rows, and a pass that fails or is interrupted does not change the
cache.

A layer with full attention keeps every position; if it has no free row, it moves to an array twice
as long. A layer with a window of W allocates 2·W positions; if it has no free row, it moves the
W − 1 positions that a later query can still see to a new array, once in W + 1 tokens.

Attention compares absolute positions, so a layer only stores the position of its first row. Memory
for each position: 2 · K · C values on each full layer, none on a windowed one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array, Policy

FIRST_ROOM = 64
"""Positions that a full layer allocates at first."""


def windowed_room(window: int) -> int:
    """Positions that a layer with that window allocates, for any length of the context."""
    return 2 * window


class LayerCache:
    """Keys and values of one layer. Stored rows never change.

    Attributes:
        window: number of positions that a query sees, or None for all.
        keys: (S, K, C), including free rows; ``KVCache.length`` says how many positions are stored.
        values: (S, K, C).
        origin: position of row 0; 0 on a full layer.
    """

    def __init__(self, window: int | None, keys: Array, values: Array, origin: int = 0) -> None:
        self.window = window
        self.keys = keys
        self.values = values
        self.origin = origin

    def extended(
        self, k: Array, v: Array, length: int
    ) -> tuple[LayerCache, Array, Array, NDArray[np.int64]]:
        """Stored keys and values, followed by new ones, for the attention of new positions.

        Args:
            k: (T, K, C), keys of positions ``length`` … ``length + T − 1``.
            v: (T, K, C).
            length: positions so far, including those that a windowed layer has dropped.

        Returns:
            the layer with the new rows (``self`` if it has free rows); the keys (S, K, C) that
            queries of the new positions can see; their values (S, K, C); their positions (S,),
            ascending.
        """
        layer, keys, values, first = self.reserved(length, len(k))
        end = length + len(k)
        keys[length - first :], values[length - first :] = k, v
        if self.window is not None and len(layer.keys) > windowed_room(self.window):
            layer = layer._moved(end - self.window + 1, end, end)
        return layer, keys, values, np.arange(first, end)

    def reserved(self, length: int, count: int) -> tuple[LayerCache, Array, Array, int]:
        """Free rows for ``count`` positions after the ``length`` stored ones, for a kernel to fill.

        Returns:
            the layer with these rows (``self`` if it has them); the keys (S, K, C) that queries of
            the new positions can see, the last ``count`` of them not yet set; their values
            (S, K, C); the position of the first key.
        """
        end = length + count
        first = 0 if self.window is None else max(0, length - self.window + 1)
        layer = self if end - self.origin <= len(self.keys) else self._moved(first, length, end)
        seen = slice(first - layer.origin, end - layer.origin)
        return layer, layer.keys[seen], layer.values[seen], first

    def _moved(self, first: int, length: int, end: int) -> LayerCache:
        """A copy with positions ``first`` … ``length − 1`` and free rows up to ``end`` or more."""
        if self.window is None:
            room = 2 * len(self.keys) or FIRST_ROOM
        else:
            room = windowed_room(self.window)
        shape = (max(room, end - first), *self.keys.shape[1:])
        keys, values = np.empty(shape, self.keys.dtype), np.empty(shape, self.keys.dtype)
        held = slice(first - self.origin, length - self.origin)
        keys[: length - first], values[: length - first] = self.keys[held], self.values[held]
        return LayerCache(self.window, keys, values, first)


class KVCache:
    """One :class:`LayerCache` for each layer, and the number of positions they hold.

    ``copy.deepcopy`` makes an independent copy.

    Use a cache for one pass at a time. Two passes at once, from two threads, write into the same
    rows: each may read the other's keys, and the pass that ends last raises an error. Give each
    thread a cache of its own; threads may share a model.

    Attributes:
        length: number of positions so far, which is the position of the next token.
        layers: in the order of the blocks.
    """

    def __init__(self, config: ModelConfig, policy: Policy) -> None:
        self.length = 0
        nothing = np.empty((0, config.num_key_value_heads, config.head_dim), policy.dtype)
        self.layers = [
            LayerCache(config.window(n), nothing, nothing) for n in range(config.num_hidden_layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def commit(self, layers: list[LayerCache], start: int, length: int) -> None:
        """Store the layers of a pass that began at position ``start`` and ended at ``length``.

        Raises:
            GptOssError: another pass was stored since this one began.
        """
        if self.length != start:
            raise GptOssError(
                f"the cache grew from {start} to {self.length} positions while a pass used it: "
                f"expected one pass at a time, and a cache for each thread"
            )
        self.layers, self.length = layers, length  # Ctrl-C cannot come between the two stores
