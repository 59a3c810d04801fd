"""Assignment of tokens to experts.

A *slot* is one choice of one token: slot t·A + a is the a-th choice of token t. A *position*
numbers the slots in the order of their experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptoss_ref.errors import GptOssError
from gptoss_ref.kernels.matmul.amx import ROWS as TILE
from gptoss_ref.kernels.matmul.mxfp4_gemm_int16 import SPARE
from gptoss_ref.kernels.runtime.arrays import positions_of
from gptoss_ref.kernels.runtime.buffers import integers, zeros
from gptoss_ref.kernels.runtime.jit import jit
from gptoss_ref.numerics import Array


def chosen_of(indices: Array, count: int) -> Array:
    """Return the experts ``indices`` (T, A) that tokens choose among ``count``, by slot: (T·A,).

    Raises:
        GptOssError: an index is not an integer, is out of range or repeated within a token.
    """
    chosen = positions_of(indices)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < count:
        raise GptOssError(
            f"expert indices range from {chosen.min()} to {chosen.max()}: expected 0 to {count - 1}"
        )
    ranked = np.sort(chosen, axis=-1)
    for t, a in np.argwhere(ranked[:, 1:] == ranked[:, :-1])[:1]:
        raise GptOssError(
            f"token {t} chooses expert {ranked[t, a]} twice: expected each expert once a token"
        )
    return chosen.reshape(-1)


class Plan(NamedTuple):
    """The positions 0 … T·A − 1 in the order of their experts."""

    order: Any  # the slot of each position
    starts: Any  # (E + 1,) first position of each expert
    active: Any  # the experts that a token chose
    tokens: Any  # the token of each position; ``tokens`` and ``positions`` have SPARE more entries
    positions: Any
    tiles: Any  # (E + 1,) first tile of each expert
    tile_tokens: Any  # the token of each row of the tiles
    tile_positions: Any  # the position of each row of the tiles


@jit
def plan_of(chosen: Any, per_token: int, count: int) -> Plan:
    """Return the plan for the slots ``chosen``, valid choices among ``count`` experts."""
    slots = chosen.size
    order, tokens, positions = integers(slots), zeros(slots + SPARE), zeros(slots + SPARE)
    starts, tiles, active = zeros(count + 1), zeros(count + 1), integers(count)
    n, filled = 0, zeros(count)
    for e in chosen:
        starts[e + 1] += 1
    for e in range(count):
        if starts[e + 1]:
            active[n] = e
            n += 1
        starts[e + 1] += starts[e]
    for slot in range(slots):
        e = chosen[slot]
        at = starts[e] + filled[e]
        order[at], tokens[at], positions[at] = slot, slot // per_token, at
        filled[e] += 1
    for e in range(count):
        tiles[e + 1] = tiles[e] + (starts[e + 1] - starts[e] + TILE - 1) // TILE
    rows = tiles[count] * TILE
    tile_tokens, tile_positions = integers(rows), integers(rows)
    for e in active[:n]:
        for i in range(tiles[e] * TILE, tiles[e + 1] * TILE):
            position = min(starts[e] + i - tiles[e] * TILE, starts[e + 1] - 1)
            tile_positions[i], tile_tokens[i] = position, tokens[position]
    return Plan(order, starts, active[:n], tokens, positions, tiles, tile_tokens, tile_positions)
