"""Key/value cache: what earlier tokens leave behind for later ones.

A full layer keeps the keys and values of every position. A windowed layer keeps a **ring** of
``window`` positions: position p lives in slot p mod window, and writing it forgets p − window,
which no later query can see. Attention compares absolute positions, so a ring needs no other
bookkeeping.

A pass reads what is stored together with its own new keys, and the cache takes the new ones when
the pass has ended, all at once (:meth:`KVCache.commit`): one that fails or is interrupted, wherever
that is, leaves the cache as it was.

Memory per position: 2 · K · C values on each full layer, none on a windowed one beyond its window.
"""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.typing import NDArray

from gptoss_ref.config import ModelConfig
from gptoss_ref.numerics import Array, Policy


class LayerCache:
    """Keys and values (S, K, C) of one layer.

    Args:
        window: positions that a query sees, or None for all.
        kv_heads: K.
        head_dim: C.
        dtype: of the stored values.
    """

    def __init__(self, window: int | None, kv_heads: int, head_dim: int, dtype: np.dtype) -> None:
        self.window = window
        self.keys = np.empty((window or 0, kv_heads, head_dim), dtype)
        self.values = np.empty_like(self.keys)

    def extended(self, k: Array, v: Array, length: int) -> tuple[Array, Array, NDArray[np.int64]]:
        """Stored keys and values followed by new ones, as attention wants them.

        Args:
            k: (T, K, C), keys of positions ``length`` … ``length + T − 1``.
            v: (T, K, C).
            length: positions stored so far.

        Returns:
            keys (S, K, C), values (S, K, C) and their positions (S,), ascending.
        """
        if self.window is None:
            self._reserve(length + len(k))
            self._write(k, v, np.arange(length, length + len(k)))  # unseen until length grows
            stored = slice(0, length + len(k))
            return self.keys[stored], self.values[stored], np.arange(length + len(k))
        first = max(0, length - self.window)
        slots = np.arange(first, length) % self.window
        return (
            np.concatenate([self.keys[slots], k]),
            np.concatenate([self.values[slots], v]),
            np.arange(first, length + len(k)),
        )

    def after(self, k: Array, v: Array, length: int) -> LayerCache:
        """What this layer holds once ``k`` and ``v`` (T, K, C) follow ``length`` positions.

        A full layer already has them, beyond its length; a ring is copied, not written.
        """
        if self.window is None:
            return self
        ring = copy(self)
        ring.keys, ring.values = self.keys.copy(), self.values.copy()
        end = length + len(k)
        k, v = k[-self.window :], v[-self.window :]
        ring._write(k, v, np.arange(end - len(k), end) % self.window)
        return ring

    def _write(self, k: Array, v: Array, slots: Array) -> None:
        self.keys[slots], self.values[slots] = k, v

    def _reserve(self, positions: int) -> None:
        if positions > len(self.keys):
            capacity = max(positions, 2 * len(self.keys), 64)
            keys, values = _grown(self.keys, capacity), _grown(self.values, capacity)
            self.keys, self.values = keys, values


def _grown(old: Array, capacity: int) -> Array:
    """A copy of ``old`` (S, K, C) with room for ``capacity`` positions."""
    new = np.empty((capacity, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new


class KVCache:
    """One :class:`LayerCache` a layer, and the number of positions they hold.

    Attributes:
        length: positions stored, which is the position of the next token.
    """

    def __init__(self, config: ModelConfig, policy: Policy) -> None:
        self.length = 0
        self.layers = [
            LayerCache(config.window(n), config.num_key_value_heads, config.head_dim, policy.dtype)
            for n in range(config.num_hidden_layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def commit(self, new: list[tuple[Array, Array]]) -> None:
        """Store one pass: per layer, its new keys and values (T, K, C)."""
        layers = [
            layer.after(k, v, self.length) for layer, (k, v) in zip(self.layers, new, strict=True)
        ]
        length = self.length + len(new[0][0])
        self.layers, self.length = layers, length  # no interrupt comes between two plain stores
