"""Key/value cache: what earlier tokens leave behind for later ones.

Each layer has room for more positions than it holds, and new keys and values are written behind
those that are held, where no later pass sees them until :meth:`KVCache.commit` counts them. So a
pass copies nothing of what is stored, and one that fails or is interrupted, wherever that is,
leaves the cache as it was.

A full layer keeps every position; when it is full, it moves to twice the room. A windowed layer of
window W has room for 2·W: when it is full, it moves to an equal one with the W − 1 positions that a
later query can still see, once in W + 1 tokens.

Attention compares absolute positions, so neither needs other bookkeeping than the position of its
first row. Memory a position: 2 · K · C values on each full layer, none on a windowed one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import GptOssError
from gptoss_ref.numerics import Array, Policy

FIRST_ROOM = 64
"""Positions that a full layer first has room for."""


def windowed_room(window: int) -> int:
    """Positions that a layer with that window has room for, however many it has seen."""
    return 2 * window


class LayerCache:
    """Keys and values of one layer; never changed but for rows beyond those that count.

    Attributes:
        window: positions that a query sees, or None for all.
        keys: (S, K, C), row 0 being position ``origin``; how many rows count, the cache knows.
        values: (S, K, C).
        origin: 0 on a full layer.
    """

    def __init__(self, window: int | None, keys: Array, values: Array, origin: int = 0) -> None:
        self.window = window
        self.keys = keys
        self.values = values
        self.origin = origin

    def extended(
        self, k: Array, v: Array, length: int
    ) -> tuple[LayerCache, Array, Array, NDArray[np.int64]]:
        """Stored keys and values followed by new ones, as attention wants them.

        Args:
            k: (T, K, C), keys of positions ``length`` … ``length + T − 1``.
            v: (T, K, C).
            length: positions stored so far, on a windowed layer including those forgotten.

        Returns:
            the layer that holds them all, itself if it has the room; keys (S, K, C) that queries
            of the new positions can see; their values (S, K, C); their positions (S,), ascending.
        """
        layer, keys, values, first = self.reserved(length, len(k))
        end = length + len(k)
        keys[length - first :], values[length - first :] = k, v
        if self.window is not None and len(layer.keys) > windowed_room(self.window):
            layer = layer._moved(end - self.window + 1, end, end)
        return layer, keys, values, np.arange(first, end)

    def reserved(self, length: int, count: int) -> tuple[LayerCache, Array, Array, int]:
        """Room for ``count`` positions after the ``length`` stored ones, to be written by a kernel.

        Returns:
            the layer that has the room, itself if it can; keys (S, K, C) that queries of the new
            positions can see, the last ``count`` not yet set; their values (S, K, C); the position
            of the first.
        """
        end = length + count
        first = 0 if self.window is None else max(0, length - self.window + 1)
        layer = self if end - self.origin <= len(self.keys) else self._moved(first, length, end)
        seen = slice(first - layer.origin, end - layer.origin)
        return layer, layer.keys[seen], layer.values[seen], first

    def _moved(self, first: int, length: int, end: int) -> LayerCache:
        """A copy with positions ``first`` … ``length − 1`` and room up to ``end``, and for more."""
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
    """One :class:`LayerCache` a layer, and the number of positions they hold.

    A copy made by ``copy.deepcopy`` goes its own way.

    A cache is for one pass at a time. Two at once, from two threads, write their keys into the same
    rows: either may see the other's, and the one that ends last is an error, because the cache no
    longer ends where it began. Give each thread a cache of its own; a model may be shared.

    Attributes:
        length: positions stored, which is the position of the next token.
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
        """Take over what a pass from ``start`` on has left: layers of ``length`` positions.

        Raises:
            GptOssError: another pass has been taken over since this one began.
        """
        if self.length != start:
            raise GptOssError(
                f"the cache grew from {start} to {self.length} positions while a pass used it: "
                f"expected one pass at a time, and a cache for each thread"
            )
        self.layers, self.length = layers, length  # no interrupt comes between two plain stores
