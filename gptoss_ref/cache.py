"""Key/value cache: what earlier tokens leave behind for later ones.

A full layer keeps the keys and values of every position. A windowed layer keeps a **ring** of
``window`` positions: position p lives in slot p mod window, and writing it forgets p − window,
which no later query can see. Attention compares absolute positions, so a ring needs no other
bookkeeping.

A pass reads what is stored together with its own new keys and stores the new ones only when it has
ended (:meth:`KVCache.commit`), so a pass that fails or is interrupted leaves the cache as it was.

Memory per position: 2 · K · C values on each full layer, none on a windowed one beyond its window.
"""

from __future__ import annotations

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

    def commit(self, k: Array, v: Array, length: int) -> None:
        """Store what a ring must remember of new keys and values; a full layer already has them."""
        if self.window is not None:
            end = length + len(k)
            k, v = k[-self.window :], v[-self.window :]
            self._write(k, v, np.arange(end - len(k), end) % self.window)

    def _write(self, k: Array, v: Array, slots: Array) -> None:
        self.keys[slots], self.values[slots] = k, v

    def _reserve(self, positions: int) -> None:
        if positions > len(self.keys):
            capacity = max(positions, 2 * len(self.keys), 64)
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = np.empty((capacity, *old.shape[1:]), old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)


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
        for layer, (k, v) in zip(self.layers, new, strict=True):
            layer.commit(k, v, self.length)
        self.length += len(new[0][0])
